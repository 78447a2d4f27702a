"""Measure what the reference answers of the assignments reach, and what wrong ones do.

Run ``python book/tools/calibrate_assignments.py``; a line of ``book/assignments/bands.json`` stands
for one run of a notebook. The bands of an assignment, ``zero_at`` and ``full_at`` in its hidden
tests, are chosen by these figures, and tests/test_assignments.py holds them to it: every run of the
reference gets full marks, no wrong answer more than half of them.

Lines made from the answers of today are kept, so an interrupted script goes on where it was. On one
thread of a quiet machine a run takes about 15 seconds of A2, 20 of A4 and 60 of A5.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import runpy
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from semigen_lib.checkpoint import read_json, write_json
from semigen_lib.course import EVIDENCE_VARIABLE
from semigen_lib.grading.assignment import (
    Assignment,
    find_assignment,
    is_answer,
    load_assignment,
    set_parameters,
)
from semigen_lib.grading.evidence import EvidenceError, load_evidence, measure_weights
from semigen_lib.grading.tasks import WeightsTask, plain_python

ROOT = Path(__file__).resolve().parents[2]
BANDS = ROOT / "book" / "assignments" / "bands.json"
MUTANTS = ROOT / "tests" / "mutants"


class Answer(NamedTuple):
    """An answer whose training is measured: the reference, or one with another text in it."""

    grade_id: str = ""  # of the tests cell that has to refuse it; "" for the reference
    old: str = ""
    new: str = ""


REFERENCE = Answer()


def tasks_of(assignment: Assignment, answer: Answer) -> list[WeightsTask]:
    """Return the tasks that are measured: for a wrong answer those of its hand-in alone."""
    tasks = [task for task in assignment.tasks if isinstance(task, WeightsTask)]
    names = {task.name for task in tasks if answer.grade_id in ("", task.grade_id)}
    return [task for task in tasks if task.name in names]


def sources_of(assignment: Assignment, answer: Answer) -> list[str]:
    """Return the cells that train and hand in: no checks, no figures, no other hand-in."""
    names = {task.name for task in tasks_of(assignment, answer)}
    sources, found = [], not answer.old
    for cell in assignment.notebook.cells:
        if cell.cell_type != "code" or cell.metadata.nbgrader["grade"] or "mystnb" in cell.metadata:
            continue
        source = cell.source
        if is_answer(cell) and answer.old in source:
            source, found = source.replace(answer.old, answer.new), True
        handed_in = re.findall(r'^hand_in\("(\w+)"', source, re.MULTILINE)
        if names.issuperset(handed_in):
            sources.append(source)
    if not found:
        raise ValueError(f"old: expected a text of {assignment.name}'s answers, got {answer.old!r}")
    return sources


def digest_of(assignment: Assignment, answer: Answer) -> str:
    """Return a name of everything that decides what a run hands in."""
    return hashlib.sha256(json.dumps(sources_of(assignment, answer)).encode()).hexdigest()[:16]


def run(assignment: Assignment, answer: Answer, seed: int) -> dict[str, float | None]:
    """Run the notebook with a seed and measure what it hands in; None where nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[EVIDENCE_VARIABLE] = folder
        namespace: dict = {"__name__": "__main__"}
        for source in sources_of(with_seed(assignment, seed), answer):
            try:
                exec(compile(plain_python(source), assignment.name, "exec"), namespace)
            except Exception as error:  # the grader goes on with the next cell, too
                print(f"{assignment.name}, seed {seed}: {type(error).__name__}: {error}")
        values: dict[str, float | None] = {}
        for task in tasks_of(assignment, answer):
            try:
                method = load_evidence(Path(folder), task.name, task)
                values[task.grade_id] = round(measure_weights(method, task.measure, seed), 5)
            except EvidenceError as error:
                print(f"{assignment.name}, seed {seed}: {error}")
                values[task.grade_id] = None
        return values


def with_seed(assignment: Assignment, seed: int) -> Assignment:
    """Return the assignment with another seed in its cell of parameters."""
    notebook = set_parameters(assignment.notebook, {"seed": seed})
    return dataclasses.replace(assignment, notebook=notebook)


def read_table() -> dict[str, dict]:
    """Return what was measured, by assignment, digest and seed."""
    return read_json(BANDS) if BANDS.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assignments", nargs="*", help="such as A2; default: all with weights")
    parser.add_argument("--seeds", type=int, default=20, help="of the reference: 0 to this")
    parser.add_argument("--wrong-seeds", type=int, default=1, help="of each wrong answer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.assignments or ["A2", "A4", "A5"]:
        assignment = load_assignment(find_assignment(name), template={})
        rows = runpy.run_path(str(MUTANTS / f"{name}.py"))["WEIGHTS"]
        plan = [(REFERENCE, seed) for seed in range(options.seeds)]
        plan += [(Answer(*row), seed) for row in rows for seed in range(options.wrong_seeds)]
        for answer, seed in plan:
            key = f"{name} {digest_of(assignment, answer)} {seed}"
            if key in read_table():
                continue
            entry = {"answer": answer.grade_id or "reference", **run(assignment, answer, seed)}
            write_json(BANDS, read_table() | {key: entry})
            print(key, entry, flush=True)


if __name__ == "__main__":
    main()
