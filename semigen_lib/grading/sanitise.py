"""From a submission only its answers are taken; all else is the assignment's own.

The notebook that runs starts from the template, the student version that was handed out. Into it go
the sources of the answer cells, found by nbgrader's ``grade_id``, and the code that the student
added between. What a student did to locked cells, tags, metadata or the kernel is left behind.

Shown in: book/instructor.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semigen_lib.grading.assignment import Assignment, is_answer, set_parameters

__all__ = ["PROBLEMS", "Sanitised", "answer_ids", "cell_id", "sanitise"]

Cell = Mapping[str, Any]

PROBLEMS = {
    "answer_missing": "an answer cell is missing; the assignment's empty one was used",
    "answer_not_code": "an answer cell is not code; the assignment's empty one was used",
    "cell_doubled": "a cell of the assignment is there more than once; the first one counts",
    "cells_moved": "cells of the assignment are in another order; they were put back",
    "locked_changed": "a locked cell was changed; the assignment's own was used",
    "locked_missing": "a locked cell is missing; the assignment's own was used",
    "unknown_cells": "cells carry a grade_id that the assignment does not have; they do not count",
}
"""What can be wrong with a notebook that is graded all the same: code and sentence."""


@dataclass(frozen=True)
class Sanitised:
    """A submission as it is run and examined.

    Attributes
    ----------
    run : dict
        The notebook for papermill, nbformat 4.5, without outputs; parameters are in it.
    answers : dict of str to str
        Source of every answer cell by its ``grade_id``, in the order of the assignment.
    problems : list of tuple of str
        (code of ``PROBLEMS``, what it is about: a ``grade_id`` or a count).
    """

    run: dict[str, Any]
    answers: dict[str, str]
    problems: list[tuple[str, str]]


def sanitise(
    notebook: Mapping[str, Any], assignment: Assignment, parameters: Mapping[str, Any]
) -> Sanitised:
    """Put a student's answers into the assignment's own notebook.

    Parameters
    ----------
    notebook : mapping
        The submission, as ``take_in`` read it.
    assignment : Assignment
        Its template is the frame, and says which cells are answers.
    parameters : mapping of str to object
        Values in place of the assignment's defaults, from ``check_parameters``.
    """
    template = set_parameters(assignment.template, parameters)
    names = [cell_id(cell) for cell in template["cells"]]
    first, added, problems = _sort_out(notebook["cells"], names)
    answers: dict[str, str] = {}
    cells = _as_code(added[None])
    for name, cell in zip(names, template["cells"], strict=True):
        handed_in = first.get(name)
        if is_answer(cell):
            if handed_in is None:
                problems.append(("answer_missing", name))
            elif handed_in["cell_type"] != "code":
                problems.append(("answer_not_code", name))
            else:
                cell["source"] = handed_in["source"]
            answers[name] = cell["source"]
        elif handed_in is None:
            problems.append(("locked_missing", name))
        elif not _same_cell(handed_in, cell) and not _holds_parameters(cell):
            problems.append(("locked_changed", name))
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
        cells += [cell, *_as_code(added.get(name, []))]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    run = {**template, "nbformat": 4, "nbformat_minor": 5, "cells": cells}
    return Sanitised(run, answers, problems)


def answer_ids(template: Mapping[str, Any]) -> set[str]:
    """Return the ``grade_id`` of every answer cell of a template."""
    return {cell_id(cell) for cell in template["cells"] if is_answer(cell)}


def cell_id(cell: Cell) -> str | None:
    """Return the ``grade_id`` of a cell, None if it has none or one that is no text."""
    nbgrader = cell["metadata"].get("nbgrader")
    name = nbgrader.get("grade_id") if isinstance(nbgrader, Mapping) else None
    return name if isinstance(name, str) else None


def _sort_out(
    cells: list[Cell], names: list[str]
) -> tuple[dict[str, Cell], dict[str | None, list[Cell]], list[tuple[str, str]]]:
    """Split a submission into the assignment's cells and those added after each of them."""
    first: dict[str, Cell] = {}
    added: dict[str | None, list[Cell]] = {None: []}
    doubled, unknown = set(), 0
    place = None
    for cell in cells:
        name = cell_id(cell)
        if name in names and name not in first:
            first[name], added[name], place = cell, [], name
        else:
            added[place].append(cell)
            doubled |= {name}.intersection(names)
            unknown += name is not None and name not in names
    problems = [("cell_doubled", name) for name in names if name in doubled]
    in_order = [name for name in names if name in first]
    moved = [name for name, other in zip(first, in_order, strict=True) if name != other]
    if moved:
        problems.append(("cells_moved", moved[0]))
    if unknown:
        problems.append(("unknown_cells", str(unknown)))
    return first, added, problems


def _as_code(cells: list[Cell]) -> list[dict[str, Any]]:
    """Return those of a student's own cells that do something, stripped to their source."""
    return [
        {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
        | {"source": cell["source"]}
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def _holds_parameters(cell: Cell) -> bool:
    """Say whether a locked cell is one that students may well change at home."""
    return "parameters" in cell["metadata"].get("tags", ())


def _same_cell(first: Cell, second: Cell) -> bool:
    """Say whether two cells are equal but for white space at the ends of lines."""
    texts = [[line.rstrip() for line in c["source"].strip().splitlines()] for c in (first, second)]
    return first["cell_type"] == second["cell_type"] and texts[0] == texts[1]
