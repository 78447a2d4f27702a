"""Sanitising: the notebook that runs is the assignment's own, with a student's answers in it."""

import copy
import json
from collections.abc import Callable
from types import SimpleNamespace

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_intake import ASSIGNMENT, answered, cell, template

from semigen_lib.grading.intake import Submission, take_in
from semigen_lib.grading.sanitise import PROBLEMS, Sanitised, answer_ids, cell_id, sanitise

UNHURRIED = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
STUB = template().cells[2].source
ANSWERS = {
    name: f"def {name}():\n    return {value}" for name, value in (("loss", 1), ("noise", 2))
}
PARAMETERS = "seed: int = 7  # of the run"
Change = Callable[[dict], object]


@pytest.fixture
def handed_in(tmp_path) -> Callable[..., Sanitised]:
    """Return a function that hands in an honest notebook after a change, and takes it in."""

    def hand_in(change: Change) -> Sanitised:
        notebook = answered()
        change(notebook)
        path = tmp_path / "ann.ipynb"
        path.write_text(json.dumps(notebook))
        row = take_in(Submission("ann", path), ASSIGNMENT)
        assert row.reason == "ok"
        result = sanitise(row.notebook, ASSIGNMENT, {"seed": 7})
        hold_to_the_template(result)
        return result

    return hand_in


def hold_to_the_template(result: Sanitised) -> None:
    """Whatever was handed in: all cells of the assignment are there, in order, and unchanged."""
    nbformat.validate(nbformat.from_dict(json.loads(json.dumps(result.run))))
    own = [c for c in result.run["cells"] if c["metadata"]]
    wanted = template().cells
    assert len(own) == len(wanted)
    for got, original in zip(own, wanted, strict=True):
        assert got["cell_type"] == original.cell_type and got["metadata"] == original.metadata
        if cell_id(original) == "parameters":
            assert got["source"] == PARAMETERS
        elif cell_id(original) in ANSWERS:
            assert got["source"] == result.answers[cell_id(original)]
        else:
            assert got["source"] == original.source
    for added in (c for c in result.run["cells"] if not c["metadata"]):
        assert added["cell_type"] == "code" and added["outputs"] == []
        assert set(added) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
    assert result.run["metadata"] == template().metadata
    assert (result.run["nbformat"], result.run["nbformat_minor"]) == (4, 5)
    assert list(result.answers) == list(ANSWERS)
    for code, detail in result.problems:
        assert code in PROBLEMS and detail in {*"123456", *map(cell_id, wanted)}


def test_an_honest_notebook_has_its_answers_and_no_problem(handed_in) -> None:
    result = handed_in(lambda notebook: None)
    assert result.answers == ANSWERS and result.problems == []
    assert [c["source"] for c in result.run["cells"]] == [
        *("# Losses", PARAMETERS, ANSWERS["loss"], "assert loss() == 1", ANSWERS["noise"]),
        "print(loss(), noise())",
    ]


def test_the_untouched_student_version_has_its_stubs(handed_in) -> None:
    def untouched(notebook: dict) -> None:
        notebook.update(json.loads(json.dumps(template())))

    result = handed_in(untouched)
    assert result.problems == [] and result.answers["loss"] == STUB


def test_neither_the_template_nor_the_submission_is_written_to(handed_in) -> None:
    notebook, before = answered(), copy.deepcopy(ASSIGNMENT.template)
    result = sanitise(notebook, ASSIGNMENT, {"seed": 9})
    result.run["cells"][0]["metadata"]["x"] = result.run["metadata"]["x"] = 1
    assert notebook == answered() and before == ASSIGNMENT.template


def test_outputs_of_the_template_are_left_behind() -> None:
    with_output = template()
    with_output.cells[-1].outputs = [nbformat.v4.new_output("stream", text="old")]
    with_output.cells[-1].execution_count = 3
    result = sanitise(answered(), SimpleNamespace(template=with_output), {"seed": 7})
    hold_to_the_template(result)
    assert result.run["cells"][-1]["outputs"] == []
    assert result.run["cells"][-1]["execution_count"] is None


def test_own_cells_stay_where_they_were_and_out_of_the_answers(handed_in) -> None:
    def add(notebook: dict) -> None:
        for place, source in ((6, "last = 1"), (3, "helper = 1"), (0, "first = 1")):
            notebook["cells"].insert(place, own_cell(source))
        notebook["cells"].insert(4, own_cell("A remark", "markdown"))
        notebook["cells"].insert(4, own_cell("raw", "raw"))

    result = handed_in(add)
    sources = [c["source"] for c in result.run["cells"]]
    assert sources[0] == "first = 1" and sources[-1] == "last = 1"
    assert sources.index("helper = 1") == sources.index(ANSWERS["loss"]) + 1
    assert "A remark" not in sources and "raw" not in sources
    assert result.answers == ANSWERS and result.problems == []


def own_cell(source: str, kind: str = "code", **metadata: object) -> dict:
    """A cell that a student added."""
    return {"cell_type": kind, "metadata": metadata, "source": source}


def test_white_space_at_the_ends_of_lines_is_no_change(handed_in) -> None:
    def reformat(notebook: dict) -> None:
        notebook["cells"][3]["source"] += "  \n"

    assert handed_in(reformat).problems == []


def test_answer_ids_are_those_of_answer_cells() -> None:
    assert answer_ids(template()) == set(ANSWERS)


# ---- faults: cells that are not as they were ----


def at(index: int, **content: object) -> Change:
    return lambda notebook: notebook["cells"][index].update(content)


def without(index: int) -> Change:
    return lambda notebook: notebook["cells"].pop(index)


def insert(index: int, new: dict) -> Change:
    return lambda notebook: notebook["cells"].insert(index, new)


def swapped(notebook: dict) -> None:
    cells = notebook["cells"]
    cells[2], cells[4] = cells[4], cells[2]


def renamed(index: int, name: object) -> Change:
    return lambda n: n["cells"][index]["metadata"]["nbgrader"].update(grade_id=name)


CHANGED = {
    "answer missing": (without(2), {"loss": STUB}, [("answer_missing", "loss")]),
    "answer renamed": (renamed(2, "lost"), {"loss": STUB},
                       [("unknown_cells", "1"), ("answer_missing", "loss")]),
    "answer's id a number": (renamed(2, 7), {"loss": STUB}, [("answer_missing", "loss")]),
    "answer's id null": (renamed(2, None), {"loss": STUB}, [("answer_missing", "loss")]),
    "answer's id a list": (renamed(2, ["loss"]), {"loss": STUB}, [("answer_missing", "loss")]),
    "answer's id empty": (renamed(2, ""), {"loss": STUB},
                          [("unknown_cells", "1"), ("answer_missing", "loss")]),
    "answer's id in capitals": (renamed(2, "LOSS"), {"loss": STUB},
                                [("unknown_cells", "1"), ("answer_missing", "loss")]),
    "answer's metadata lost": (at(2, metadata={}), {"loss": STUB}, [("answer_missing", "loss")]),
    "answer's metadata a list": (at(2, metadata={"nbgrader": ["loss"]}), {"loss": STUB},
                                 [("answer_missing", "loss")]),
    "answer Markdown": (at(2, cell_type="markdown"), {"loss": STUB}, [("answer_not_code", "loss")]),
    "answer raw": (at(2, cell_type="raw"), {"loss": STUB}, [("answer_not_code", "loss")]),
    "answer doubled": (insert(5, cell("loss", "def loss():\n    return 9", "answer")), {},
                       [("cell_doubled", "loss")]),
    "answer under another's id": (renamed(4, "loss"), {"noise": template().cells[4].source},
                                  [("cell_doubled", "loss"), ("answer_missing", "noise")]),
    "answers swapped": (swapped, {}, [("cells_moved", "noise")]),
    "answer emptied": (at(2, source=""), {"loss": ""}, []),
    "title edited": (at(0, source="# Gains"), {}, [("locked_changed", "title")]),
    "title made code": (at(0, cell_type="code"), {}, [("locked_changed", "title")]),
    "title missing": (without(0), {}, [("locked_missing", "title")]),
    "parameters edited": (at(1, source="seed: int = 1"), {}, []),
    "parameters missing": (without(1), {}, [("locked_missing", "parameters")]),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.fault("intake")) for n in CHANGED]
)
def test_changed_cell(handed_in, name) -> None:
    change, answers, problems = CHANGED[name]
    result = handed_in(change)
    assert result.answers == ANSWERS | answers
    assert result.problems == problems


# ---- faults: cheats ----

CHEATS = {
    "tests edited": (at(3, source="assert True"), ["locked_changed"]),
    "tests removed": (without(3), ["locked_missing"]),
    "tests made Markdown": (at(3, cell_type="markdown"), ["locked_changed"]),
    "tests replaced": (insert(3, cell("loss-tests", "pass", "tests")),
                       ["cell_doubled", "locked_changed"]),
    "tests moved before the answer": (lambda n: n["cells"].insert(2, n["cells"].pop(3)),
                                      ["cells_moved"]),
    "tests worth more": (lambda n: n["cells"][3]["metadata"]["nbgrader"].update(points=100), []),
    "answer made a tests cell": (
        lambda n: n["cells"][2]["metadata"]["nbgrader"].update(grade=True, points=9), []),
    "hand-in replaced": (at(5, source="open('loss.json', 'w').write('1')"), ["locked_changed"]),
    "parameters replaced": (at(1, source="seed: int = 1\nraise SystemExit(0)"), []),
    "parameters twice": (insert(2, own_cell("seed = 1", tags=["parameters"])), []),
    "injected parameters planted": (insert(6, own_cell("seed = 1", tags=["injected-parameters"])),
                                    []),
    "injected parameters on an answer": (
        lambda n: n["cells"][2]["metadata"].update(tags=["injected-parameters"]), []),
    "raises-exception planted": (
        lambda n: n["cells"][3]["metadata"].update(tags=["raises-exception"]), []),
    "nbval-skip planted": (lambda n: n["cells"][3]["metadata"].update(tags=["nbval-skip"]), []),
    "own cell that may raise": (insert(3, own_cell("1 / 0", tags=["raises-exception"])), []),
    "another kernel": (
        lambda n: n.update(metadata={"kernelspec": {"name": "bash", "display_name": "x"}}), []),
    "another language": (lambda n: n.update(metadata={"language_info": {"name": "bash"}}), []),
    "papermill's metadata": (
        lambda n: n["metadata"].update(papermill={"parameters": {"seed": 1}}), []),
    "outputs forged": (
        at(3, outputs=[{"output_type": "stream", "name": "stdout", "text": "passed"}]), []),
    "attachments": (at(0, attachments={"x.svg": {"image/svg+xml": "<script>"}}), []),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.fault("integrity")) for n in CHEATS]
)
def test_cheat_does_not_reach_the_run(handed_in, name) -> None:
    change, codes = CHEATS[name]
    result = handed_in(change)  # holds it to the template
    assert result.answers == ANSWERS
    assert [code for code, _ in result.problems] == codes
    tags = [tag for c in result.run["cells"] for tag in c["metadata"].get("tags", [])]
    assert tags == ["parameters"]


metadata = st.dictionaries(
    st.sampled_from(["tags", "nbgrader", "papermill", "x"]),
    st.none()
    | st.lists(st.sampled_from(["parameters", "injected-parameters", "raises-exception"]))
    | st.fixed_dictionaries(
        {"grade_id": st.sampled_from([*ANSWERS, "loss-tests", "title", "x", 1])}
    ),
)
cells = st.builds(own_cell, st.text(max_size=9), st.sampled_from(["code", "markdown", "raw"]))
any_cells = st.lists(st.builds(lambda c, m: c | {"metadata": m}, cells, metadata), max_size=6)


@UNHURRIED
@given(own=any_cells, order=st.permutations(range(6)), kept=st.integers(0, 6))
def test_whatever_is_handed_in_the_frame_holds(own, order, kept) -> None:
    notebook = answered()
    notebook["cells"] = own[:3] + [notebook["cells"][k] for k in order[:kept]] + own[3:]
    result = sanitise(notebook, ASSIGNMENT, {"seed": 7})
    hold_to_the_template(result)
    assert result.problems == sanitise(notebook, ASSIGNMENT, {"seed": 1}).problems
    ids = {cell_id(c) for c in template().cells}
    left = [c["source"] for c in result.run["cells"] if not c["metadata"]]
    for c in own:
        if c["cell_type"] == "code" and cell_id(c) not in ids:
            left.remove(c["source"])  # an error if it did not get into the run
