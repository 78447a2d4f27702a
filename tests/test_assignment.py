"""Assignments: their format, the student version, parameters, and what must never leak."""

import ast
import copy
import json
import re
import shlex
import sys
from pathlib import Path

import nbformat
import pytest

from semigen_lib.cli import main
from semigen_lib.grading import assignment as module
from semigen_lib.grading.assignment import (
    ASSIGNMENTS,
    STUB,
    Assignment,
    all_assignments,
    check_parameters,
    examine_source,
    find_assignment,
    grade_id_of,
    is_answer,
    load_assignment,
    make_student_version,
    notebook_text,
    set_parameters,
)
from semigen_lib.grading.tasks import Task

each_assignment = pytest.mark.parametrize(
    "path", sorted(ASSIGNMENTS.glob("*.ipynb")), ids=lambda path: path.stem
)
A3 = find_assignment("A3")
BEGIN_HIDDEN, END_HIDDEN = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"


@pytest.fixture(scope="module")
def loaded() -> dict[Path, Assignment]:
    """Every assignment of the book."""
    return {path: load_assignment(path) for path in sorted(ASSIGNMENTS.glob("*.ipynb"))}


@pytest.fixture
def a3() -> nbformat.NotebookNode:
    return nbformat.read(A3, as_version=4)


def changed(tmp_path: Path, nb: nbformat.NotebookNode) -> Path:
    nbformat.write(nb, tmp_path / "changed.ipynb")
    return tmp_path / "changed.ipynb"


def cell_of(nb: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    return next(cell for cell in nb.cells if grade_id_of(cell) == name)


# ---- the student version ----


def bare(line: str) -> str:
    return re.sub(r"\s", "", line)


def secrets_of(nb: nbformat.NotebookNode) -> set[str]:
    """Lines of solutions and hidden tests that say something and stand nowhere else."""
    secret, visible = set(), set()
    for cell in nb.cells:
        hidden = False
        for line in cell.source.splitlines():
            if re.match(r"\s*### (BEGIN|END) (SOLUTION|HIDDEN TESTS)", line):
                hidden = "BEGIN" in line
                continue
            (secret if hidden else visible).add(bare(line))
    return {line for line in secret - visible if len(line) >= 4}


def leaks(nb: nbformat.NotebookNode, student: nbformat.NotebookNode) -> list[str]:
    """Return what of an instructor's notebook shows in a student's, anywhere in its file."""
    lines = {bare(line) for cell in student.cells for line in cell.source.splitlines()}
    found = sorted(secrets_of(nb) & lines)
    text = notebook_text(student)
    found += [mark for mark in ("BEGIN SOLUTION", "HIDDEN TESTS") if mark in text]
    code = [cell for cell in student.cells if cell.cell_type == "code"]
    found += ["an output" for cell in code if cell.outputs or cell.execution_count]
    return found


@each_assignment
def test_nothing_leaks_into_the_student_version(path, loaded) -> None:
    assert len(secrets_of(loaded[path].notebook)) > 20, "there is something to keep"
    assert leaks(loaded[path].notebook, loaded[path].template) == []


@pytest.mark.parametrize("kept", ["ClearSolutions", "ClearHiddenTests", "ClearOutput"])
def test_the_leak_test_sees_a_leak(kept, a3, monkeypatch) -> None:
    from nbgrader import preprocessors

    monkeypatch.setattr(
        getattr(preprocessors, kept), "preprocess", lambda self, nb, resources: (nb, resources)
    )
    assert leaks(a3, make_student_version(a3))


@each_assignment
def test_the_student_version_is_what_nbgrader_makes(path, loaded) -> None:
    nb, student = loaded[path].notebook, loaded[path].template
    nbformat.validate(student)
    assert [grade_id_of(cell) for cell in student.cells] == [grade_id_of(cell) for cell in nb.cells]
    for cell in student.cells:
        assert cell.metadata.deletable is False
        assert cell.metadata.get("editable", True) == is_answer(cell)
        assert cell.metadata.nbgrader.checksum
        assert (STUB in cell.source) == is_answer(cell)
    assert student.metadata.semigen == nb.metadata.semigen


def test_the_instructors_version_stays_whole(a3) -> None:
    before = copy.deepcopy(a3)
    make_student_version(a3)
    assert a3 == before


# ---- the format ----


@each_assignment
def test_an_assignment_is_sound(path, loaded) -> None:
    found = loaded[path]
    nb = found.notebook
    assert path.name.startswith(f"{found.name}_") and nb.cells[0].source.startswith("# ")
    assert found.points > 0 and "seed" in found.parameters
    graded = [grade_id_of(cell) for cell in nb.cells if cell.metadata.nbgrader.grade]
    assert [task.grade_id for task in found.tasks] == graded
    for cell in nb.cells:
        entry = cell.metadata.nbgrader
        assert entry.schema_version == 3 and cell.id == entry.grade_id
        assert entry.locked != entry.solution and not (entry.grade and entry.solution)
        assert len(cell.source) < 20_000 and cell.cell_type != "raw"
        if cell.cell_type == "code":
            assert cell.execution_count, f"{cell.id} did not run"
            assert not any(output.output_type == "error" for output in cell.outputs)
    assert nb.metadata.kernelspec.name == "python3" and (nb.nbformat, nb.nbformat_minor) == (4, 5)


@each_assignment
def test_assertions_say_what_is_wrong(path, loaded) -> None:
    for cell in loaded[path].notebook.cells:
        if cell.metadata.nbgrader.grade:
            visible = cell.source.partition(BEGIN_HIDDEN)[0]
            asserts = [n for n in ast.walk(ast.parse(visible)) if isinstance(n, ast.Assert)]
            assert asserts and all(found.msg for found in asserts), cell.id


@each_assignment
def test_the_reference_is_right_and_the_stub_is_not(path, loaded) -> None:
    found = loaded[path]
    functions = {task.grade_id for task in found.tasks if isinstance(task, Task)}
    verdicts = examine_source(found, {}, seed=1)
    assert set(verdicts) == functions
    assert all(verdict.right for verdict in verdicts.values()), verdicts
    stubs = {grade_id_of(cell): cell.source for cell in found.template.cells if is_answer(cell)}
    verdicts = examine_source(found, stubs, seed=1)
    assert not any(verdict.right for verdict in verdicts.values())
    assert all("not answered yet" in verdict.message for verdict in verdicts.values())


def test_assignments_are_no_chapters() -> None:
    import notebooks as tool  # book/tools/notebooks.py

    assert not {path for path in tool.chapters([]) if "assignments" in path.parts}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda nb: nb.metadata.pop("semigen"), "of schema 1, got none"),
        (lambda nb: nb.metadata.semigen.update(schema=2), "of schema 1, got none"),
        (lambda nb: nb.metadata.semigen.update(minutes="1"), "minutes: expected float, got '1'"),
        (lambda nb: nb.metadata.semigen.update(data="cifar"), "expected data mnist or split"),
        (lambda nb: nb.metadata.semigen.update(runs=0), "and runs >= 1"),
        (lambda nb: nb.cells[3].metadata.pop("nbgrader"), "expected a grade_id of its own"),
        (
            lambda nb: nb.cells.append(nbformat.from_dict(nb.cells[3] | {"id": "again"})),
            "expected a grade_id of its own",
        ),
        (lambda nb: nb.cells[1].metadata.pop("tags"), "expected one cell tagged parameters"),
        (
            lambda nb: nb.cells[1].update(source="seed: int = "),
            "expected parameters that are Python, got invalid syntax",
        ),
        (
            lambda nb: cell_of(nb, "best-score-tests").update(source="assert True"),
            "best-score-tests: expected one task in the hidden tests, got 0",
        ),
        (
            lambda nb: cell_of(nb, "best-score").update(source="### BEGIN SOLUTION"),
            "ClearSolutions: expected a sound notebook",
        ),
        (
            lambda nb: cell_of(nb, "best-score-tests").metadata.nbgrader.pop("points"),
            "best-score-tests: expected points",
        ),
    ],
)
def test_a_notebook_that_breaks_the_format_is_refused(break_it, message, a3, tmp_path) -> None:
    break_it(a3)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_assignment(changed(tmp_path, a3))


def test_the_digest_is_of_what_is_asked(a3, tmp_path) -> None:
    before = load_assignment(A3, {}).digest
    a3.cells[-2].outputs, a3.cells[-2].execution_count = [], None
    assert load_assignment(changed(tmp_path, a3), {}).digest == before
    a3.cells[0].source += " "
    assert load_assignment(changed(tmp_path, a3), {}).digest != before


def test_a_template_is_taken_without_nbgrader(a3, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    assert load_assignment(A3, {"made": "before"}).template == {"made": "before"}
    with pytest.raises(ValueError, match=r"nbgrader: expected .* pip install 'semigen-lib\[course"):
        load_assignment(A3)


# ---- finding, and parameters ----


def test_an_assignment_is_found_by_name_or_path(monkeypatch, tmp_path) -> None:
    assert find_assignment(str(A3)) == A3 and all_assignments()["A3"] == A3
    with pytest.raises(ValueError, match=r"expected a notebook or one of .*A3.*, got 'B1'"):
        find_assignment("B1")
    monkeypatch.setattr(module, "ASSIGNMENTS", tmp_path)
    with pytest.raises(ValueError, match="one of none: the book's folder is not here"):
        find_assignment("A3")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stps": 3}, "parameter: expected one of seed, steps, got 'stps'"),
        ({"steps": 2.5}, "steps: expected int, got 2.5"),
        ({"steps": "3"}, "steps: expected int, got '3'"),
        ({"steps": True}, "steps: expected int, got True"),
        ({"steps": None}, "steps: expected int, got None"),
    ],
)
def test_a_wrong_parameter_is_one_line(values, message, loaded) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_parameters(loaded[A3], values)


def test_parameters_have_the_type_of_their_default(a3, tmp_path) -> None:
    a3.cells[1].source = 'é: float = 0.5  # "ü"\nname: str = "a"; n: int = 1  # two'
    found = load_assignment(changed(tmp_path, a3), {})
    assert found.parameters == {"é": 0.5, "name": "a", "n": 1}
    values = check_parameters(found, {"é": 2, "name": "b'"})
    assert values == {"é": 2.0, "name": "b'"} and type(values["é"]) is float
    with pytest.raises(ValueError, match="é: expected float, got nan"):
        check_parameters(found, {"é": float("nan")})
    source = set_parameters(a3, values | {"n": 7}).cells[1].source
    assert source == 'é: float = 2.0  # "ü"\nname: str = "b\'"; n: int = 7  # two'


# ---- semigen assign ----


def assign(line: str) -> int:
    return main(["assign", *shlex.split(line)])


def test_assign_writes_a_student_version(tmp_path, capsys, loaded) -> None:
    assert assign(f"A3 --out {tmp_path}/new") == 0
    path = tmp_path / "new" / A3.name
    assert json.loads(path.read_text()) == json.loads(notebook_text(loaded[A3].template))
    assert capsys.readouterr().err == f"semigen: A3, GAN losses: 10 points, {path}\n"
    path.write_text("a student's work")
    assert assign(f"A3 --out {tmp_path}/new") == 2
    assert path.read_text() == "a student's work"
    assert assign(f"A3 --out {tmp_path}/new --force -p seed=3 --parameter steps=7") == 0
    nb = nbformat.read(path, as_version=4)
    assert (
        nb.cells[1].source.startswith("seed: int = 3  #") and "steps: int = 7" in nb.cells[1].source
    )
    assert nb.cells[1].metadata.nbgrader.checksum != loaded[A3].template.cells[1].metadata.nbgrader


def test_assign_all_writes_all_or_none(tmp_path, capsys) -> None:
    assert assign(f"all --out {tmp_path}") == 0
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in all_assignments().values()}
    for path in list(tmp_path.iterdir())[:-1]:
        path.unlink()
    left = list(tmp_path.iterdir())
    assert assign(f"all --out {tmp_path}") == 2 and list(tmp_path.iterdir()) == left


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("A3 -p stps=3 --out {0}", "parameter: expected one of seed, steps, got 'stps'"),
        ("A3 -p steps=many --out {0}", "steps: expected int, got 'many'"),
        ("A3 -p steps --out {0}", "-p: expected NAME=VALUE, got 'steps'"),
        ("A0 --out {0}", "assignment: expected a notebook or one of "),
        ("A3 --force --out {1}", "--out: expected a folder without A3_gan_losses.ipynb"),
        ("{1}/../03_gan_loss.ipynb --out {0}", "expected an instructor's notebook"),
    ],
)
def test_a_bad_line_ends_with_status_2_and_writes_nothing(line, message, tmp_path, capsys) -> None:
    before = A3.read_bytes()
    assert assign(line.format(tmp_path / "out", ASSIGNMENTS)) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists() and A3.read_bytes() == before
