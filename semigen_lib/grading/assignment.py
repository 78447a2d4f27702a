"""An assignment: one instructor's notebook, from which everything else about it is made.

Its cells carry nbgrader's metadata and nbgrader makes the student version, so that a course which
runs nbgrader can take the notebook as it is.

Shown in: book/instructor.md
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semigen_lib.grading.tasks import (
    Task,
    Verdict,
    WeightsTask,
    answer_case,
    collect_tasks,
    judge_cases,
    make_cases,
    plain_python,
)

__all__ = [
    "ASSIGNMENTS",
    "Assignment",
    "all_assignments",
    "check_parameters",
    "examine_source",
    "find_assignment",
    "grade_id_of",
    "is_answer",
    "load_assignment",
    "make_student_version",
    "notebook_text",
    "set_parameters",
]

ASSIGNMENTS = Path(__file__).parents[2] / "book" / "assignments"
SCHEMA = 1  # of the notebook's own metadata, "semigen"
STUB = "raise NotImplementedError  # your code here"
_FACTS = {
    "assignment": str,
    "title": str,
    "minutes": float,
    "needs": str,
    "data": str,
    "runs": int,
    "wall_seconds": int,
    "memory_gb": int,
}


@dataclass(frozen=True, eq=False)
class Assignment:
    """All that the grader knows of an assignment.

    Attributes
    ----------
    name, title
        Such as ``A3`` and ``GAN losses``.
    path
        Of the instructor's notebook.
    notebook, template
        The instructor's version and the student's, as nbformat's dictionaries.
    digest
        sha256 of the instructor's sources and metadata; outputs do not count.
    parameters
        Name to default of what papermill sets.
    tasks
        What is graded, in the order of the notebook.
    points
        Their sum.
    runs
        How many seeds the notebook is run with.
    data
        ``mnist``, the whole data set, or ``split``, without the labels that are hidden.
    wall_seconds, memory_gb
        What a run may take.
    """

    name: str
    title: str
    path: Path
    notebook: dict[str, Any]
    template: dict[str, Any]
    digest: str
    parameters: dict[str, Any]
    tasks: list[Task | WeightsTask]
    points: float
    runs: int
    data: str
    wall_seconds: int
    memory_gb: int


def all_assignments() -> dict[str, Path]:
    """Return the instructor's notebooks of the book by name; none outside a checkout of it."""
    return {
        path.name.partition("_")[0]: path for path in sorted(ASSIGNMENTS.glob("A[0-9]_*.ipynb"))
    }


def find_assignment(name_or_path: str) -> Path:
    """Return the instructor's notebook of a name such as ``A3``, or the path if it is one.

    Raises
    ------
    ValueError
        If there is no such notebook.
    """
    path = Path(name_or_path)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    known = all_assignments()
    if name_or_path not in known:
        names = ", ".join(known) or "none: the book's folder is not here"
        raise ValueError(f"assignment: expected a notebook or one of {names}, got {name_or_path!r}")
    return known[name_or_path]


def load_assignment(path: Path, template: dict[str, Any] | None = None) -> Assignment:
    """Read an instructor's notebook, run its hidden declarations, and make its student version.

    Parameters
    ----------
    path
        Of our own notebook: its hidden parts are run as part of this program.
    template
        The student version, if it was made before: importing nbgrader takes seconds.

    Raises
    ------
    ValueError
        If the notebook breaks a rule of the format, or nbgrader is not installed.
    """
    nb = _read_notebook(path)
    facts = _facts_of(nb, path)
    ids = [grade_id_of(cell) for cell in nb.cells]
    if "" in ids or len(set(ids)) != len(ids):
        odd = sorted({i for i in ids if not i or ids.count(i) > 1})
        raise ValueError(f"{path.name}: expected a grade_id of its own for each cell, got {odd}")
    tasks: list[Task | WeightsTask] = []
    for cell in nb.cells:
        entry = cell.metadata.nbgrader
        if entry.get("grade"):
            if type(entry.get("points")) not in (int, float):
                raise ValueError(f"{grade_id_of(cell)}: expected points, got {entry.get('points')}")
            tasks += collect_tasks(cell.source, grade_id_of(cell), entry.points)
    return Assignment(
        name=facts["assignment"],
        title=facts["title"],
        path=path,
        notebook=nb,
        template=make_student_version(nb) if template is None else template,
        digest=_digest(nb),
        parameters={name: value for name, (value, _) in _literals(nb, path.name).items()},
        tasks=tasks,
        points=sum(task.points for task in tasks),
        runs=facts["runs"],
        data=facts["data"],
        wall_seconds=facts["wall_seconds"],
        memory_gb=facts["memory_gb"],
    )


def _read_notebook(path: Path) -> Any:
    try:
        import nbformat
    except ModuleNotFoundError:
        raise _course_missing("nbformat") from None
    return nbformat.read(path, as_version=4)


def notebook_text(nb: Any) -> str:
    """Return the content of a notebook's file."""
    import nbformat

    return nbformat.writes(nb).rstrip("\n") + "\n"


def _course_missing(module: str) -> ValueError:
    return ValueError(
        f"{module}: expected it for assignments, got none: pip install 'semigen-lib[course]'"
    )


def _facts_of(nb: Any, path: Path) -> dict[str, Any]:
    """Return the notebook's own metadata, checked."""
    facts = dict(nb.metadata.get("semigen", {}))
    if facts.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path}: expected an instructor's notebook of schema {SCHEMA}, got none")
    for name, kind in _FACTS.items():
        if type(facts.get(name)) is not kind:
            got = facts.get(name)
            raise ValueError(f"{path.name}: {name}: expected {kind.__name__}, got {got!r}")
    if facts["data"] not in ("mnist", "split") or facts["runs"] < 1:
        raise ValueError(f"{path.name}: expected data mnist or split, and runs >= 1, got {facts}")
    return facts


def _digest(nb: Any) -> str:
    content = [nb.metadata.semigen] + [[c.cell_type, c.source, c.metadata] for c in nb.cells]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def grade_id_of(cell: Mapping[str, Any]) -> str:
    """Return nbgrader's name of a cell; "" if it has none."""
    return cell["metadata"].get("nbgrader", {}).get("grade_id", "")


def is_answer(cell: Mapping[str, Any]) -> bool:
    """Say whether a cell of an instructor's or a template's notebook is for the student."""
    return cell["metadata"].get("nbgrader", {}).get("solution", False)


def make_student_version(nb: Any) -> Any:
    """Return a copy without solutions, hidden tests and outputs, made by nbgrader.

    Raises
    ------
    ValueError
        If nbgrader is not installed, or objects to the notebook.
    """
    try:
        from nbgrader import preprocessors  # takes seconds
        from nbgrader.nbgraderformat import ValidationError
        from traitlets.config import Config
    except ModuleNotFoundError as error:
        raise _course_missing(error.name or "nbgrader") from None
    config = Config()
    config.ClearSolutions.code_stub = {"python": STUB}
    student, resources = copy.deepcopy(nb), {}  # the steps write into what they are given
    for step in (
        preprocessors.CheckCellMetadata,
        preprocessors.ClearSolutions,
        preprocessors.ClearHiddenTests,
        preprocessors.ClearOutput,
        preprocessors.LockCells,
        preprocessors.ComputeChecksums,
    ):
        try:
            student, resources = step(config=config)(student, resources)
        except (RuntimeError, ValidationError) as error:
            raise ValueError(f"{step.__name__}: expected a sound notebook, got: {error}") from None
    return student


# ---- parameters ----


def _literals(nb: Any, name: str) -> dict[str, tuple[Any, ast.expr]]:
    """Return the annotated literals of the cell tagged parameters, with their place in it."""
    cells = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{name}: expected one cell tagged parameters, got {len(cells)}")
    try:
        lines = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise ValueError(f"{name}: expected parameters that are Python, got {error}") from None
    return {
        line.target.id: (ast.literal_eval(line.value), line.value)
        for line in lines
        if isinstance(line, ast.AnnAssign)
    }


def check_parameters(assignment: Assignment, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with their types, or say which is wrong.

    Parameters
    ----------
    assignment
        Whose notebook is to be run.
    values
        Some of its parameters; those that are missing keep their default.

    Raises
    ------
    ValueError
        If a name is unknown, or a value has another type than the default.
    """
    checked = {}
    for name, value in values.items():
        if name not in assignment.parameters:
            known = ", ".join(assignment.parameters)
            raise ValueError(f"parameter: expected one of {known}, got {name!r}")
        kind = type(assignment.parameters[name])
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}")
        checked[name] = value
    return checked


def set_parameters(nb: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of a notebook whose cell of parameters has other values.

    Parameters
    ----------
    nb
        Of any version.
    values
        From :func:`check_parameters`.
    """
    nb = copy.deepcopy(nb)
    places = _literals(nb, "notebook")
    cell = next(cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", []))
    lines = cell.source.split("\n")
    # From the last to the first, so that places on the same line stay true.
    for name in sorted(values, key=list(places).index, reverse=True):
        node, value = places[name][1], values[name]
        line = lines[node.lineno - 1].encode()
        literal = repr(value).encode()
        lines[node.lineno - 1] = (
            line[: node.col_offset] + literal + line[node.end_col_offset :]
        ).decode()
    cell.source = "\n".join(lines)
    return nb


# ---- trying answers without a sandbox ----


def examine_source(
    assignment: Assignment, sources: Mapping[str, str], seed: int = 0
) -> dict[str, Verdict]:
    """Judge answers in this process: for authors of assignments, never for students' code.

    Parameters
    ----------
    assignment
        Whose function tasks are judged.
    sources
        The grade_id of an answer cell to its source; the reference stands in for those missing.
    seed
        Of the cases.

    Returns
    -------
    dict of str to Verdict
        By the grade_id of the tests cell.
    """
    namespace: dict[str, Any] = {"__name__": "__answers__"}
    for cell in assignment.notebook.cells:
        is_setup = {"parameters", "setup"} & set(cell.metadata.get("tags", []))
        if is_answer(cell) or is_setup:
            name = grade_id_of(cell)
            source = plain_python(sources.get(name, cell.source))
            exec(compile(source, f"<{name}>", "exec"), namespace)
    verdicts = {}
    for task in assignment.tasks:
        if isinstance(task, Task):
            function, cases = namespace.get(task.function), make_cases(task, seed)
            answers = [answer_case(function, task.driver, case) for case in cases]
            verdicts[task.grade_id] = judge_cases(task, cases, answers)
    return verdicts
