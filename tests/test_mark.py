"""One submission: points from evidence alone, and a fault of ours is never a student's zero."""

import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from semigen_lib.grading import mark as mark_module
from semigen_lib.grading.assignment import examine_source, find_assignment, load_assignment
from semigen_lib.grading.evidence import EvidenceError
from semigen_lib.grading.gather import Gathered
from semigen_lib.grading.intake import Submission
from semigen_lib.grading.mark import Marking, hidden_seed, mark
from semigen_lib.grading.sandbox import Outcome, unsafe_sandbox
from semigen_lib.grading.tasks import WeightsTask, answer_case

SECRET = b"s" * 32
HIDDEN = """
### BEGIN HIDDEN TESTS
from semigen_lib.grading.tasks import close, examine
def cases(rng):
    for n in (1, 5):
        yield {{"x": rng.normal(size=n).astype("float32")}}
def expected(x):
    return {expected}
def explain(inputs, got, want):
    n = len(inputs["x"])
    return "a sum where a mean belongs" if close(got["value"], n * want["value"]) else ""
examine("{function}", cases, expected, explain)
### END HIDDEN TESTS
"""
WEIGHTS = """
### BEGIN HIDDEN TESTS
from semigen_lib.grading.tasks import examine_weights
examine_weights("net", measure="reconstruction_error", zero_at=1.0, full_at=0.5,
                methods=("autoencoder",), limits={"width": 8})
### END HIDDEN TESTS
"""
DOUBLE = "def double(x):\n    return 2 * x"
AVERAGE = "def average(x):\n    return x.sum() / len(x)"
HAND_IN = """
import os
from semigen_lib.course import hand_in
from semigen_lib.methods import build_method
from semigen_lib.runtime import seed_everything
seed_everything(seed)
hand_in("net", build_method("autoencoder", (1, 28, 28), 10, {"width": 8, "latent_dim": 4}))
"""


def cell(grade_id: str, source: str, *, points: float | None = None, answer=False, tags=()) -> dict:
    """A cell as an instructor writes it."""
    entry = {"schema_version": 3, "grade_id": grade_id, "task": False, "solution": answer}
    entry |= {"grade": points is not None, "locked": not answer}
    if points is not None:
        entry["points"] = points
    return new_code_cell(source, metadata={"nbgrader": entry, "tags": list(tags)})


def solution(source: str) -> str:
    first, rest = source.split("\n", 1)
    return f"{first}\n    ### BEGIN SOLUTION\n{rest}\n    ### END SOLUTION"


def tiny_assignment(
    path: Path, *, weights: bool = False, runs: int = 1, hidden: str = HIDDEN
) -> Path:
    """Write an instructor's notebook that runs in a second: two functions, or weights as well."""
    cells = [
        cell("parameters", "seed: int = 0", tags=["parameters"]),
        cell("setup", "greeting = 'hello'", tags=["setup"]),
        cell("double", solution(DOUBLE), answer=True),
        cell("double-tests", "assert double(2) == 4, 'no'"
             + hidden.format(function="double", expected="2 * x"), points=2),
        cell("average", solution(AVERAGE), answer=True),
        cell("average-tests", "print('seed', seed)"
             + hidden.format(function="average", expected="x.mean()"), points=3),
    ]  # fmt: skip
    if weights:
        cells += [cell("hand-in", HAND_IN), cell("net-tests", WEIGHTS, points=5)]
    nb = new_notebook(cells=cells)
    nb.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nb.metadata["semigen"] = {
        **{"schema": 1, "assignment": "T1", "title": "Tiny", "minutes": 0.1, "needs": "nothing"},
        **{"data": "mnist", "runs": runs, "wall_seconds": 120, "memory_gb": 4},
    }
    nbformat.write(nb, path)
    return path


@pytest.fixture(scope="module")
def marking(tmp_path_factory) -> Marking:
    path = tiny_assignment(tmp_path_factory.mktemp("course") / "T1.ipynb")
    template = nbformat.writes(load_assignment(path).template)
    return Marking(path, template, SECRET, 1, unsafe_sandbox())


def hand_in(marking: Marking, path: Path, answers: dict[str, str] | None = None, extra=()) -> Path:
    """Write a submission: the student version with some answers, and cells added at the end."""
    nb = nbformat.reads(marking.template, as_version=4)
    for part in nb.cells:
        part.source = (answers or {}).get(part.metadata.nbgrader.grade_id, part.source)
    nb.cells += extra
    nbformat.write(nb, path)
    return path


RIGHT = {"double": DOUBLE, "average": AVERAGE}


@pytest.fixture
def gathers(monkeypatch):
    """Let the evidence come from functions of the test instead of a sandbox."""

    def use(double, average, status: str = "finished", log: str = "", problems=(), asked=None):
        def gather(versions, parameters, cases, assignment, sandbox, scratch) -> Gathered:
            if asked is not None:
                asked.append((parameters, cases))
            functions = {"double-tests": double, "average-tests": average}
            answers = {
                name: [answer_case(functions[name], "call", inputs) for inputs in cases[name]]
                for name in functions
            }
            outputs = [scratch / f"{index}" for index in range(len(versions))]
            outcome = Outcome(status, 0, 1.0, 0, log)
            return Gathered([outcome] * len(versions), outputs, answers, dict(problems))

        monkeypatch.setattr(mark_module, "gather", gather)

    return use


def points(record: dict) -> dict[str, float]:
    return {task["grade_id"]: task["score"] for task in record["tasks"]}


def double(x):
    return 2 * x


def average(x):
    return x.mean()


def test_right_answers_have_all_points(marking, gathers, tmp_path) -> None:
    gathers(double, average)
    record = mark((Submission("ada", hand_in(marking, tmp_path / "ada.ipynb", RIGHT)), marking))
    assert record["status"] == "graded" and record["score"] == record["max_score"] == 5
    assert points(record) == {"double-tests": 2, "average-tests": 3}
    assert record["flags"] == ["unsandboxed"] and record["problems"] == []
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_wrong_answer_has_none_and_says_why(marking, gathers, tmp_path) -> None:
    gathers(double, lambda x: x.sum())
    record = mark((Submission("ada", hand_in(marking, tmp_path / "ada.ipynb", RIGHT)), marking))
    assert points(record) == {"double-tests": 2, "average-tests": 0}
    assert record["tasks"][1]["message"] == "average: a sum where a mean belongs"


def test_a_cell_that_fails_is_named(marking, gathers, tmp_path) -> None:
    gathers(None, average, problems={"double": "SyntaxError: invalid syntax"})
    record = mark((Submission("ada", hand_in(marking, tmp_path / "ada.ipynb", RIGHT)), marking))
    assert record["tasks"][0]["message"] == "double: SyntaxError: invalid syntax"


@pytest.mark.parametrize(
    ("status", "log", "reason", "detail"),
    [
        ("finished", "noise", "ok", ""),
        ("failed", "first\nlast", "run_failed", "last"),
        ("wall_limit", "x", "wall_limit", ""),
    ],
)
def test_how_the_run_ended_is_told(status, log, reason, detail, marking, gathers, tmp_path) -> None:
    gathers(double, average, status, log)
    record = mark((Submission("ada", hand_in(marking, tmp_path / "ada.ipynb", RIGHT)), marking))
    assert (record["reason"], record["detail"], record["score"]) == (reason, detail, 5)


def test_what_cannot_be_read_is_refused(marking, tmp_path) -> None:
    (tmp_path / "ada.ipynb").write_text("{")
    record = mark((Submission("ada", tmp_path / "ada.ipynb"), marking))
    assert (record["status"], record["reason"], record["score"]) == ("refused", "not_json", 0)


# ---- our own faults ----


@pytest.mark.fault("durability")
@pytest.mark.parametrize("where", ["take_in", "sanitise", "make_cases", "gather", "judge_cases"])
def test_a_bug_of_ours_is_no_zero(where, marking, gathers, tmp_path, monkeypatch) -> None:
    gathers(double, average)

    def broken(*_, **__) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(mark_module, where, broken)
    record = mark((Submission("ada", hand_in(marking, tmp_path / "ada.ipynb", RIGHT)), marking))
    assert (record["status"], record["score"], record["tasks"]) == ("grader_error", None, [])
    assert record["detail"].startswith("ZeroDivisionError: division by zero (broken, line ")


@pytest.mark.fault("durability")
@pytest.mark.parametrize(
    ("before", "after"),
    [("yield {{", "raise KeyError('x')\n        yield {{"), ("return {expected}", "return 1 / 0")],
    ids=["cases", "expected"],
)
def test_a_bug_of_the_assignment_is_no_zero(before, after, gathers, tmp_path) -> None:
    assert before in HIDDEN
    path = tiny_assignment(tmp_path / "T1.ipynb", hidden=HIDDEN.replace(before, after))
    template = nbformat.writes(load_assignment(path).template)
    broken = Marking(path, template, SECRET, 1, unsafe_sandbox())
    gathers(double, average)
    record = mark((Submission("ada", hand_in(broken, tmp_path / "ada.ipynb", RIGHT)), broken))
    assert (record["status"], record["score"]) == ("grader_error", None)


def test_an_explanation_that_fails_costs_nothing(gathers, tmp_path) -> None:
    hidden = HIDDEN.replace('return "a sum', 'return 1 / 0; return "a sum')
    path = tiny_assignment(tmp_path / "T1.ipynb", hidden=hidden)
    template = nbformat.writes(load_assignment(path).template)
    marking = Marking(path, template, SECRET, 1, unsafe_sandbox())
    gathers(double, lambda x: x.sum())
    record = mark((Submission("ada", hand_in(marking, tmp_path / "ada.ipynb", RIGHT)), marking))
    assert (record["status"], record["score"]) == ("graded", 2)


# ---- seeds ----


def test_seeds_are_of_the_secret_the_student_and_the_submission(marking, gathers, tmp_path) -> None:
    def asked_of(student: str, marking: Marking, answers: dict) -> str:
        asked: list = []
        gathers(double, average, asked=asked)
        mark((Submission(student, hand_in(marking, tmp_path / "x.ipynb", answers)), marking))
        (parameters, cases) = asked[0]
        return f"{parameters} {cases}"

    other = Marking(marking.path, marking.template, b"t" * 32, 1, marking.sandbox)
    first = asked_of("ada", marking, RIGHT)
    assert asked_of("ada", marking, RIGHT) == first, "the same submission meets the same questions"
    another = {**RIGHT, "double": DOUBLE + "  # again"}
    all_of_them = {first, asked_of("bob", marking, RIGHT), asked_of("ada", other, RIGHT)}
    assert len(all_of_them | {asked_of("ada", marking, another)}) == 4


def test_hidden_seeds_are_numbers_for_every_generator() -> None:
    seeds = [hidden_seed(SECRET, "a", n) for n in range(1000)]
    assert len(set(seeds)) == 1000 and 0 <= min(seeds) and max(seeds) < 2**32
    assert hidden_seed(SECRET, "a", "b1") != hidden_seed(SECRET, "ab", "1")


# ---- weights ----


@pytest.fixture
def weigh(monkeypatch):
    """Score weights whose measured values and fingerprints the test chooses."""
    task = WeightsTask("w", "net", "test_error", 0.5, 0.1, ("supervised",), {}, 4.0)

    def weigh(values: list, copied: bool = False) -> dict:
        monkeypatch.setattr(mark_module, "load_evidence", lambda folder, name, task: folder)

        def measure(method: Path, measure: str, seed: int) -> float:
            value = values[int(method.name)]
            if isinstance(value, str):
                raise EvidenceError(value)
            return value

        monkeypatch.setattr(mark_module, "measure_weights", measure)
        folders = [Path(str(index)) for index in range(len(values))]
        return mark_module._weights_score(task, folders, copied, lambda *words: 0)

    return weigh


def test_weights_are_worth_the_median_of_the_runs(weigh) -> None:
    assert weigh([0.1, 0.3, 0.5])["score"] == 2
    assert weigh([0.05])["score"] == 4 and weigh([0.7])["score"] == 0
    assert "test error 0.3; nothing for 0.5, full marks from 0.1" in weigh([0.3])["message"]


def test_a_run_without_weights_counts_as_nothing(weigh) -> None:
    one = weigh(["net: expected a file, got none", 0.1, 0.3])
    assert one["score"] == 2 and one["message"].endswith("expected a file, got none")
    none = weigh(["net: expected a file, got none"] * 3)
    assert none["score"] == 0 and none["message"] == "net: expected a file, got none"


@pytest.mark.fault("integrity")
def test_copied_weights_are_worth_nothing(weigh) -> None:
    assert weigh([0.1, 0.1, 0.1], copied=True)["score"] == 0


# ---- copies of answers ----


def test_equal_answers_are_found_behind_comments_and_blanks(marking) -> None:
    assignment = marking.assignment
    first = mark_module._answers_print(RIGHT, assignment)
    spaced = {**RIGHT, "double": "# mine\n\ndef double( x ):\n        return 2*x  # of course"}
    assert mark_module._answers_print(spaced, assignment) == first != []
    renamed = {**RIGHT, "double": "def double(y):\n    return 2 * y"}
    assert mark_module._answers_print(renamed, assignment) != first
    empty = {c.metadata.nbgrader.grade_id: c.source for c in assignment.template["cells"]}
    half = {**RIGHT, "double": empty["double"]}
    assert mark_module._answers_print(half, assignment) == []


@pytest.mark.fault("intake")
@pytest.mark.parametrize(
    "source", ["(" * 10_000, "x = '''", "\tif:\n  a\n b", "\0", "1+" * 5_000 + "1"]
)
def test_no_source_breaks_the_comparison(source, marking) -> None:
    answers = {**RIGHT, "double": source}
    assert len(mark_module._answers_print(answers, marking.assignment)) == 1


# ---- fairness ----


@pytest.fixture(scope="module")
def book() -> list:
    """The assignments of the book, without their student versions."""
    paths = sorted(find_assignment("A3").parent.glob("A*.ipynb"))
    return [load_assignment(path, template={"cells": []}) for path in paths]


@pytest.mark.fault("fairness")
@pytest.mark.parametrize("index", range(20))
def test_the_reference_solution_is_right_on_every_hidden_seed(index, book) -> None:
    for assignment in book:
        seed = hidden_seed(SECRET, assignment.name, "someone", index)
        for grade_id, (right, message) in examine_source(assignment, {}, seed).items():
            assert right, f"{assignment.name}, {grade_id}: {message}"
