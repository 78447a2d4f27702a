"""Tasks: what a hidden block declares, what a driver returns, and what is right or wrong."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from semigen_lib.grading.drivers import MAX_NUMBERS, AnswerError, clip
from semigen_lib.grading.tasks import (
    Task,
    WeightsTask,
    answer_case,
    close,
    collect_tasks,
    examine,
    examine_weights,
    flatten,
    hidden_source,
    judge,
    judge_cases,
    known_faults,
    make_cases,
    one_line,
    plain_python,
    run_driver,
)

DECLARED = """
assert mean_square is not None, "never run by the grader"
### BEGIN HIDDEN TESTS
from semigen_lib.grading.tasks import examine, known_faults

def cases(rng):
    for n in (4, 1):
        yield {"score": rng.normal(size=n).astype("float32"), "target": 2.0}

def expected(score, target):
    return ((score - target) ** 2).mean()

faults = {"a sum for a mean": lambda score, target: ((score - target) ** 2).sum()}
examine("mean_square", cases, expected, known_faults(faults, "gradients"), "gradients", 1e-4)
### END HIDDEN TESTS
not_run
"""
WEIGHTS = {
    "measure": "test_error",
    "zero_at": 0.5,
    "full_at": 0.1,
    "methods": ("supervised",),
    "limits": {"width": 16},
}


def task(driver: str = "gradients", **changes) -> Task:
    found = collect_tasks(DECLARED, "mean-square", 2)[0]
    return dataclasses.replace(found, driver=driver, **changes)


def verdict(function, found: Task | None = None):
    """Judge a function as the grader does, without its sandbox."""
    found = found or task()
    inputs = make_cases(found, 7)
    answers = [answer_case(function, found.driver, case) for case in inputs]
    return judge_cases(found, inputs, answers)


def right(score, target):
    return ((score - target) ** 2).mean()


# ---- declaring ----


def test_the_hidden_part_is_declared_and_nothing_else_is_run() -> None:
    found = task()
    assert (found.grade_id, found.points, found.function) == ("mean-square", 2, "mean_square")
    assert (found.driver, found.tolerance) == ("gradients", 1e-4)
    assert "not_run" not in hidden_source(DECLARED) and hidden_source("x = 1") == ""


@pytest.mark.parametrize("hidden", ["", "x = 1"])
def test_a_tests_cell_declares_one_task(hidden) -> None:
    source = f"### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
    with pytest.raises(ValueError, match="mean: expected one task in the hidden tests, got 0"):
        collect_tasks(source, "mean", 1)


@pytest.mark.parametrize(("hidden", "why"), [("x = 1 +", "SyntaxError"), ("y", "NameError")])
def test_a_tests_cell_with_a_mistake_is_one_line(hidden, why) -> None:
    source = f"### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
    with pytest.raises(ValueError, match=f"mean: expected hidden tests that run, got {why}"):
        collect_tasks(source, "mean", 1)


def test_cases_come_from_the_seed() -> None:
    first, again, other = (make_cases(task(), seed) for seed in (1, 1, 2))
    assert np.array_equal(first[0]["score"], again[0]["score"])
    assert not np.array_equal(first[0]["score"], other[0]["score"])


@pytest.mark.parametrize("answer", [right, lambda score, target: score.sum(), None])
def test_in_a_kernel_examine_judges_at_once(answer) -> None:
    namespace = {"mean_square": answer}
    if answer is right:
        exec(hidden_source(DECLARED), namespace)
        return
    with pytest.raises(AssertionError, match="mean_square: "):
        exec(hidden_source(DECLARED), namespace)


def test_after_collecting_examine_judges_again() -> None:
    with pytest.raises(ValueError, match="broken: expected .*, got ZeroDivisionError"):
        collect_tasks("### BEGIN HIDDEN TESTS\n1 / 0\n### END HIDDEN TESTS", "broken", 1)
    with pytest.raises(AssertionError, match="expected a function, got nothing of this name"):
        exec(hidden_source(DECLARED), {})


def test_a_declaration_with_a_slip_is_refused() -> None:
    with pytest.raises(ValueError, match="driver: expected one of call, .*, got 'cal'"):
        examine("f", lambda rng: [], right, known_faults({}), "cal")
    with pytest.raises(ValueError, match="measure: expected one of .*, got 'error'"):
        examine_weights("f", **WEIGHTS | {"measure": "error"})
    with pytest.raises(ValueError, match="full_at: expected another value"):
        examine_weights("f", **WEIGHTS | {"zero_at": 0.1})


def test_weights_are_worth_what_lies_between_the_bands() -> None:
    hidden = f"from semigen_lib.grading.tasks import *\nexamine_weights('reader', **{WEIGHTS})"
    source = f"### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
    (found,) = collect_tasks(source, "weights", 4)
    assert isinstance(found, WeightsTask) and found.methods == ("supervised",)
    assert [found.score([value]) for value in (0.9, 0.5, 0.1, 0.0)] == [0, 0, 4, 4]
    assert found.score([0.3]) == pytest.approx(2)
    assert found.score([0.1, 0.3, 0.5]) == pytest.approx(2), "the median run counts"
    assert found.score([0.1, math.nan, math.nan]) == 0, "a run without evidence is worth nothing"
    assert found.score([-math.inf]) == 0
    rising = dataclasses.replace(found, zero_at=0.2, full_at=0.8)
    assert [rising.score([value]) for value in (0.1, 0.5, 0.9)] == pytest.approx([0, 2, 4])


# ---- running ----


def network() -> dict:
    weights = [np.ones((2, 3), "float32"), np.ones((1, 2), "float32")]
    return {"$mlp": {"weights": weights, "biases": [np.zeros(2, "float32"), np.ones(1, "float32")]}}


def test_call_returns_the_value_under_its_name() -> None:
    assert run_driver(lambda x: 2 * x, "call", {"x": np.ones(3)})["value"].tolist() == [2, 2, 2]


def test_gradients_are_zero_where_none_arrives() -> None:
    inputs = {"D": network(), "x": np.ones((1, 3), "float32"), "n": np.arange(2), "c": 2.0}
    got = run_driver(lambda D, x, n, c: c * D(x), "gradients", inputs)
    assert got["value"].item() == 14 and "gradient.n" not in got
    assert got["gradient.x"].tolist() == [[4, 4, 4]] and got["gradient.D.2.bias"].tolist() == [2]
    got = run_driver(lambda D, x, n, c: c * D(x.detach()), "gradients", inputs)
    assert not got["gradient.x"].any() and got["gradient.D.2.bias"].tolist() == [2]
    got = run_driver(lambda D, x, n, c: (c * D(x)).detach(), "gradients", inputs)
    assert not any(array.any() for name, array in got.items() if name != "value")
    got = run_driver(lambda D, x, n, c: c * D(x), "gradients", inputs | {"$wrt": ["x"]})
    assert set(got) == {"value", "gradient.x"}


def test_step_shows_what_became_of_a_network() -> None:
    def descend(D, x):
        with torch.no_grad():
            D[2].bias -= 0.5

    got = run_driver(lambda D, x: descend(D, x) or 0.0, "step", {"D": network(), "x": 1})
    assert got["weights.D.2.bias"].tolist() == [0.0], "two steps down from 1"
    assert got["weights.D.0.bias"].tolist() == [0, 0] and {"value.0", "value.1"} <= got.keys()


def test_changed_inputs_are_seen() -> None:
    inputs = {"x": np.zeros(2)}
    got = run_driver(lambda x: x + 1, "call_and_look", inputs)
    assert got["value"].tolist() == [1, 1] and got["afterwards.x"].tolist() == [0, 0]
    assert run_driver(lambda x: x.add_(1), "call_and_look", inputs)["afterwards.x"].tolist() == [
        1,
        1,
    ]


def test_terms_in_a_dictionary_have_gradients() -> None:
    terms = {name: np.array(value, "float32") for name, value in (("a", 2), ("b", 1))}
    inputs = {"terms": terms, "weight": 3.0}
    got = run_driver(lambda terms, weight: weight * terms["a"] + terms["b"], "gradients", inputs)
    assert (got["value"], got["gradient.terms.a"], got["gradient.terms.b"]) == (7, 3, 1)
    got = run_driver(lambda terms, weight: terms["a"].detach() * weight, "gradients", inputs)
    assert (got["value"], got["gradient.terms.a"]) == (6, 0)


class Wide(nn.Module):
    """A network whose order of layers is the attribute ``names``."""

    names = ("first", "second")

    def __init__(self, n: int) -> None:
        super().__init__()
        sizes = {"first": (4, n), "second": (n, 2)}
        for name in self.names:
            setattr(self, name, nn.Linear(*sizes[name]))
        self.dropout = nn.Dropout(0.9)

    def forward(self, images):
        return self.dropout(self.second(self.first(images)))


def test_build_fills_by_shape_so_that_order_does_not_matter() -> None:
    inputs = {"arguments": {"n": 3}, "fill_seed": 5, "images": np.ones((2, 4), "float32")}
    other = type("Turned", (Wide,), {"names": ("second", "first")})
    first, second = (run_driver(kind, "build", inputs) for kind in (Wide, other))
    assert first["result"].shape == (2, 2) and first["n_parameters"] == 15 + 8
    assert np.array_equal(first["result"], second["result"]), "also: dropout was on"
    changed = run_driver(Wide, "build", inputs | {"fill_seed": 6})
    assert not np.array_equal(first["result"], changed["result"])
    assert answer_case(lambda n: 3, "build", inputs) == "expected a torch.nn.Module, got int"


def test_a_function_cannot_spoil_the_inputs_or_the_dice() -> None:
    def spoil(x):
        x += 1
        return torch.rand(1) + x

    inputs = {"x": np.zeros(1)}
    first, second = run_driver(spoil, "call", inputs), run_driver(spoil, "call", inputs)
    assert inputs["x"].item() == 0 and first["value"] == second["value"]


@dataclasses.dataclass
class Point:
    x: float
    y: tuple


class Pair(NamedTuple):
    a: bool
    b: str


def test_flatten_names_everything() -> None:
    got = flatten({"p": Point(1.0, (2, [torch.ones(2)])), "q": Pair(True, "né"), 3: np.float32(4)})
    assert set(got) == {"p.x", "p.y.0", "p.y.1.0", "q.a", "q.b", "3"}
    assert {name: array.dtype.kind for name, array in got.items()} == dict(
        zip(got, ["f", "i", "f", "b", "u", "f"], strict=True)
    )
    assert "".join(map(chr, got["q.b"])) == "né"
    assert flatten({"half": torch.ones(2, dtype=torch.bfloat16)})["half"].dtype == np.float32
    assert flatten({"t": torch.ones(3, 2).t()})["t"].flags.c_contiguous


LOOP: list = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "value",
    [
        None,
        object(),
        {1, 2},
        lambda: 1,
        b"bytes",
        1 + 2j,
        np.array(["a"], dtype=object),
        torch.ones(2, dtype=torch.complex64),
        nn.Linear(1, 1),
        LOOP,
        [0] * 2000,
        torch.zeros(MAX_NUMBERS + 1),
        [np.zeros(MAX_NUMBERS // 2 + 1)] * 2,
        Point,
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_else_is_returned_is_one_line(value) -> None:
    with pytest.raises(AnswerError, match=r"\A[^\n]*expected [^\n]*, got [^\n]*\Z"):
        flatten({"value": value})


def test_problems_are_short_lines() -> None:
    def todo():
        raise NotImplementedError

    assert "not answered yet" in answer_case(todo, "call", {})
    assert answer_case(None, "call", {}) == "expected a function, got nothing of this name"
    assert answer_case(3, "call", {}) == "expected a function, got int"
    assert one_line(ValueError("two\nlines")) == "ValueError: two lines"
    assert len(one_line(ValueError("x" * 10_000))) == len(clip("x" * 10_000)) == 300


@pytest.mark.parametrize(
    ("source", "plain"),
    [
        ("x = (1\n  % 2)", "x = (1\n  % 2)"),
        ("if 0:\n    %pip install x\ny = 1", "if 0:\n    pass\ny = 1"),
        ("!ls", "pass"),
        ("f?\n\nx = 1", "pass\n\nx = 1"),
        ("here = !ls\nx = 1", "pass\nx = 1"),
        ("# why?\ndef f(:", "# why?\ndef f(:"),
        ("def f(:", "def f(:"),
    ],
)
def test_magics_go_only_where_they_must(source, plain) -> None:
    assert plain_python(source) == plain


# ---- judging ----


def test_right_answers_are_right() -> None:
    assert verdict(right) == (True, "")
    assert verdict(lambda score, target: torch.nn.functional.mse_loss(score, 0 * score + target))[0]
    assert verdict(lambda score, target: right(score, target) * (1 + 1e-6))[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda score, target: ((score - target) ** 2).sum(), "a sum for a mean"),
        (lambda score, target: -right(score, target), "expected "),
        (lambda score, target: right(score, target).detach(), "gradient.score: expected "),
        (lambda score, target: right(score, target)[None], "expected shape (), got (1,)"),
        (lambda score, target: 1, "expected real numbers, got whole numbers"),
        (lambda score, target: right(score, target) * math.nan, "expected finite numbers, got nan"),
        (lambda score, target: right(score, target) / 0, "expected finite numbers, got inf"),
        (lambda score, target: (right(score, target),), "expected value, gradient.score, got 0, "),
        (lambda score, target: None, "value: expected a tensor or a number, got NoneType"),
        (lambda score: score, "TypeError: "),
        (lambda score, target: score[5], "IndexError: "),
    ],
)
def test_wrong_answers_are_told_what_is_wrong(wrong, message) -> None:
    assert not verdict(wrong).right
    assert verdict(wrong).message.startswith("mean_square: ") and message in verdict(wrong).message


@pytest.mark.fault("integrity")
def test_one_wrong_case_of_many_is_enough() -> None:
    for n in (1, 4):
        got = verdict(lambda score, target, n=n: right(score, target) + (len(score) == n))
        assert not got.right, f"wrong for batches of {n} only"


@pytest.mark.fault("integrity")
def test_objects_that_are_equal_to_everything_are_nothing() -> None:
    class Liar:
        def __eq__(self, other):
            return True

        def __getattr__(self, name):
            return self

    assert not verdict(lambda score, target: Liar()).right

    class Float(float):
        __eq__ = Liar.__eq__

    assert not verdict(lambda score, target: Float(1)).right


@pytest.mark.fault("integrity")
def test_forged_answers_are_harmless_and_wrong() -> None:
    found = task()
    case = make_cases(found, 0)[0]
    want = run_driver(found.expected, found.driver, case)
    loud = {f"<script>\n{'x' * 500}": np.zeros(1)} | {str(i): np.zeros(1) for i in range(500)}
    for got in ("line\nline" + "x" * 9999, "", {}, loud, {"value": np.zeros(0)}, loud | want):
        told = judge(found, case, got, want)
        assert not told.right and "\n" not in told.message and len(told.message) < 600


def test_whole_numbers_and_text_are_compared_exactly() -> None:
    for good, near in ((100_000, 100_001), ("abcd", "abce"), ("a", "ab"), (True, False)):
        found = task("call", expected=lambda score, target, good=good: good)
        assert verdict(lambda score, target, good=good: good, found).right
        assert not verdict(lambda score, target, near=near: near, found).right


def test_an_explanation_that_fails_is_no_explanation() -> None:
    found = task(explain=lambda inputs, got, want: got["nothing"])
    assert "expected " in verdict(lambda score, target: 3.0, found).message


def test_the_commonest_explanation_is_told() -> None:
    names = iter(["rare", "common", "common"])
    found = task(
        explain=lambda inputs, got, want: next(names),
        cases=lambda rng: [{"score": np.ones(2, "float32"), "target": 1.0}] * 3,
    )
    assert verdict(lambda score, target: 9.0 + score.sum(), found).message == "mean_square: common"


def test_a_broken_reference_is_a_fault_of_ours() -> None:
    def broken(score, target):
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        verdict(right, task(expected=broken))


def test_close_is_never_true_of_nan_or_other_shapes() -> None:
    assert close(np.ones(2), np.ones(2) + 1e-4)
    assert not close(np.ones(2), np.ones(2) + 1e-2)
    assert not close(np.ones(2), np.ones((2, 1)))
    assert not close(np.array(np.nan), np.array(np.nan))
