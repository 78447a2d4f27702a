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
import hashlib
import json
import os
import runpy
import tempfile
from pathlib import Path

import torch

from semigen_lib.checkpoint import read_json, write_json
from semigen_lib.course import EVIDENCE_VARIABLE
from semigen_lib.grading.assignment import (
    Assignment,
    find_assignment,
    grade_id_of,
    is_answer,
    load_assignment,
    set_parameters,
)
from semigen_lib.grading.evidence import EvidenceError, load_evidence, measure_weights
from semigen_lib.grading.tasks import WeightsTask, plain_python

ROOT = Path(__file__).resolve().parents[2]
BANDS = ROOT / "book" / "assignments" / "bands.json"


def answers_digest(assignment: Assignment, old: str = "", new: str = "") -> str:
    """Return a name of everything that decides what a run of the notebook hands in."""
    return hashlib.sha256(json.dumps(_run_sources(assignment, old, new)).encode()).hexdigest()[:16]


def _run_sources(assignment: Assignment, old: str, new: str) -> list[str]:
    """Return the cells that train and hand in: neither checks nor figures."""
    cells = [
        cell
        for cell in assignment.notebook.cells
        if cell.cell_type == "code"
        and not cell.metadata.nbgrader["grade"]
        and "mystnb" not in cell.metadata
    ]
    sources = [cell.source.replace(old, new) if is_answer(cell) else cell.source for cell in cells]
    assert not old or sources != [cell.source for cell in cells], f"not in the answers: {old}"
    return sources


def run(assignment: Assignment, seed: int, old: str, new: str) -> dict[str, float | None]:
    """Run the notebook with a seed and measure what it hands in; None where nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[EVIDENCE_VARIABLE] = folder
        namespace: dict = {"__name__": "__main__"}
        try:
            for source in _run_sources(assignment, old, new):
                exec(compile(plain_python(source), assignment.name, "exec"), namespace)
        except Exception as error:
            print(f"{assignment.name}, seed {seed}: {type(error).__name__}: {error}", flush=True)
        values = {}
        for task in assignment.tasks:
            if isinstance(task, WeightsTask):
                try:
                    method = load_evidence(Path(folder), task.name, task)
                    values[task.grade_id] = round(measure_weights(method, task.measure, seed), 5)
                except EvidenceError as error:
                    print(f"{assignment.name}, seed {seed}: {error}", flush=True)
                    values[task.grade_id] = None
        return values


def with_seed(assignment: Assignment, seed: int) -> Assignment:
    """Return the assignment with another seed in its cell of parameters."""
    nb = set_parameters(assignment.notebook, {"seed": seed})
    names = {grade_id_of(cell): cell.source for cell in nb.cells}
    for cell in assignment.notebook.cells:
        cell.source = names[grade_id_of(cell)]
    return assignment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assignments", nargs="*", default=["A2", "A4", "A5"])
    parser.add_argument("--seeds", type=int, default=20, help="of the reference: 0 to this")
    parser.add_argument("--mutant-seeds", type=int, default=1, help="of each wrong answer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.assignments:
        path = find_assignment(name)
        wrong = runpy.run_path(str(ROOT / "tests" / "mutants" / f"{name}.py"))["WEIGHTS"]
        plan = [("", "", "", seed) for seed in range(options.seeds)]
        plan += [(*row, seed) for row in wrong for seed in range(options.mutant_seeds)]
        for grade_id, old, new, seed in plan:
            assignment = load_assignment(path, template={})
            digest = answers_digest(assignment, old, new)
            key = f"{name} {digest} {seed}"
            table = read_json(BANDS) if BANDS.exists() else {}
            if key in table:
                continue
            values = run(with_seed(assignment, seed), seed, old, new)
            table = read_json(BANDS) if BANDS.exists() else {}
            table[key] = {"wrong": grade_id, "values": values}
            write_json(BANDS, table)
            print(key, grade_id or "reference", values, flush=True)


if __name__ == "__main__":
    main()
