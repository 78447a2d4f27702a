"""Running a submission for its evidence: the notebook once a seed, and beside it the probe.

The probe, which asks the answer cells alone for answers, takes no time of its own on a machine with
a free core: it runs while the notebook does.

Shown in: book/instructor.md
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from filelock import FileLock, Timeout

from semigen_lib.course import DATA_VARIABLE, EVIDENCE_VARIABLE, write_course_split
from semigen_lib.data import ImageData, load_images, split_labels
from semigen_lib.grading.assignment import Assignment
from semigen_lib.grading.drivers import Answer
from semigen_lib.grading.exchange import read_answers, write_questions
from semigen_lib.grading.sandbox import (
    COURSE_DATA,
    INPUTS,
    OUTPUT,
    Limits,
    Mount,
    Outcome,
    Sandbox,
    SandboxError,
    library_mounts,
    python_mounts,
)
from semigen_lib.grading.sanitise import Sanitised, cell_id
from semigen_lib.grading.tasks import Task

__all__ = ["Gathered", "claimed_slots", "gather"]

SLOTS = 64  # sandboxes at a time on one machine
FILE_BYTES = 200_000_000  # one file that a run writes
OUTPUT_BYTES = 500_000_000  # all of them
LOG_BYTES = 64_000  # what a run prints outside its notebook


@dataclass(frozen=True)
class Gathered:
    """What is there to be weighed.

    Attributes
    ----------
    outcomes
        How the runs of the notebook ended, one a seed.
    outputs
        Their output folders.
    answers
        For each task its answers: arrays by name, or a problem in a line.
    problems
        By the ``grade_id`` of an answer cell that failed on its own, why.
    """

    outcomes: list[Outcome]
    outputs: list[Path]
    answers: dict[str, list[Answer | str]]
    problems: dict[str, str]


def gather(
    versions: Sequence[Sanitised],
    parameters: Sequence[Mapping[str, Any]],
    cases: Mapping[str, Sequence[dict[str, Any]]],
    assignment: Assignment,
    sandbox: Sandbox,
    scratch: Path,
) -> Gathered:
    """Run the notebook with every seed, and beside the first run the probe.

    Parameters
    ----------
    versions, parameters
        The notebook for each run, and the values of all its parameters.
    cases
        For each function task the inputs of its calls.
    assignment
        Says what a run may take, and what data it sees.
    sandbox
        Where it all happens.
    scratch
        An empty folder; what is gathered is left there.

    Raises
    ------
    SandboxError
        If the sandbox could not be started.
    """
    bench = _Bench(assignment, sandbox, scratch)
    with claimed_slots(2) as (one, other), ThreadPoolExecutor(1) as pool:
        data = [bench.write_split(index, values) for index, values in enumerate(parameters)]
        probed = pool.submit(bench.probe, versions[0], cases, data[0], other)
        ran = [bench.run(i, versions[i], data[i], one) for i in range(len(versions))]
        answers, problems = probed.result()
    return Gathered([outcome for outcome, _ in ran], [out for _, out in ran], answers, problems)


@contextmanager
def claimed_slots(n: int) -> Iterator[list[int]]:
    """Keep numbers for sandboxes that no other grader on this machine uses at the same time.

    Raises
    ------
    SandboxError
        If all are taken.
    """
    folder = Path(tempfile.gettempdir(), f"semigen-slots-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    slots: list[int] = []
    with ExitStack() as stack:
        for slot in range(SLOTS):
            if len(slots) < n:
                with suppress(Timeout):
                    stack.enter_context(FileLock(folder / str(slot)).acquire(timeout=0))
                    slots.append(slot)
        if len(slots) < n:
            raise SandboxError(f"sandbox: expected {n} of {SLOTS} slots to be free, got {slots}")
        yield slots


@dataclass(frozen=True)
class _Bench:
    """The runs of one submission: what they share."""

    assignment: Assignment
    sandbox: Sandbox
    scratch: Path

    def write_split(self, index: int, parameters: Mapping[str, Any]) -> Path | None:
        """Write the labels that a run may see, if the assignment hides the others."""
        if self.assignment.data != "split":
            return None
        path = self.scratch / f"split{index}.safetensors"
        split = split_labels(_mnist(), parameters["n_labeled"], parameters["seed"])
        write_course_split(split, path)
        path.chmod(0o644)
        return path

    def run(
        self, index: int, version: Sanitised, data: Path | None, slot: int
    ) -> tuple[Outcome, Path]:
        inputs = self._folder(f"run{index}-in")
        nbformat.write(nbformat.from_dict(version.run), inputs / "notebook.ipynb")
        output = self._folder(f"run{index}-out")
        return self._start("run", inputs, output, data, slot), output

    def probe(
        self,
        version: Sanitised,
        cases: Mapping[str, Sequence[dict[str, Any]]],
        data: Path | None,
        slot: int,
    ) -> tuple[dict[str, list[Answer | str]], dict[str, str]]:
        if not cases:
            return {}, {}
        inputs, output = self._folder("probe-in"), self._folder("probe-out")
        tasks = [task for task in self.assignment.tasks if isinstance(task, Task)]
        write_questions(inputs, _cells_to_probe(version), tasks, cases)
        outcome = self._start("probe", inputs, output, data, slot)
        limit = outcome.status.replace("_", " ")
        missing = f"expected an answer, got none: {limit}"
        return read_answers(output, {name: len(c) for name, c in cases.items()}, missing)

    def _folder(self, name: str) -> Path:
        folder = self.scratch / name
        folder.mkdir()
        return folder

    def _start(
        self, what: str, inputs: Path, output: Path, data: Path | None, slot: int
    ) -> Outcome:
        mounts = [*python_mounts(), *library_mounts(self.assignment.data, data)]
        for path in inputs.iterdir():
            path.chmod(0o644)
            mounts.append(Mount(path, f"{INPUTS}/{path.name}"))
        seconds = self.assignment.wall_seconds
        environment = {EVIDENCE_VARIABLE: f"{OUTPUT}/evidence"}
        if data is not None:
            environment[DATA_VARIABLE] = COURSE_DATA
        return self.sandbox.run(
            [sys.executable, "-m", "semigen_lib.grading.worker", what],
            mounts=mounts,
            output=output,
            limits=Limits(
                wall_seconds=seconds,
                memory_bytes=self.assignment.memory_gb * 2**30,
                file_bytes=FILE_BYTES,
                output_bytes=OUTPUT_BYTES,
                log_bytes=LOG_BYTES,
                cpu_seconds=4 * seconds,
            ),
            environment=environment,
            slot=slot,
        )


@functools.cache
def _mnist() -> ImageData:
    return load_images("mnist")  # takes seconds, and hidden labels may be in this process


def _cells_to_probe(version: Sanitised) -> list[dict[str, Any]]:
    """Return parameters, setup and answers: what the functions need, and no more."""
    cells = []
    for cell in version.run["cells"]:
        name, tags = cell_id(cell), cell["metadata"].get("tags", [])
        if name in version.answers or {"parameters", "setup"} & set(tags):
            cells.append({"grade_id": name, "source": cell["source"],
                          "answer": name in version.answers})  # fmt: skip
    return cells
