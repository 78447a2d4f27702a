"""Marking one submission: it is read, run for its evidence, and the evidence is weighed here.

Seeds depend on a secret, the student and what was handed in, so nobody can know the questions, and
the same submission always meets the same ones.

Shown in: book/instructor.md
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import io
import itertools
import json
import math
import statistics
import tempfile
import time
import tokenize
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from semigen_lib import __version__
from semigen_lib.checkpoint import SCHEMA
from semigen_lib.grading.assignment import Assignment, load_assignment
from semigen_lib.grading.evidence import (
    EvidenceError,
    fingerprint,
    load_evidence,
    measure_weights,
    repeats_training_images,
)
from semigen_lib.grading.gather import Gathered, gather
from semigen_lib.grading.intake import Intake, Submission, one_line, take_in
from semigen_lib.grading.report import visible_output
from semigen_lib.grading.results import Record
from semigen_lib.grading.sandbox import Outcome, Sandbox, SandboxError, read_output
from semigen_lib.grading.sanitise import cell_id, sanitise
from semigen_lib.grading.tasks import Task, WeightsTask, judge_cases, make_cases

__all__ = ["Marking", "hidden_seed", "key_of", "mark"]

NOTEBOOK_BYTES = 20_000_000  # of a notebook that was run
Seed = Callable[..., int]


@dataclass(frozen=True)
class Marking:
    """What is the same for all submissions of a class, as the workers need it.

    Attributes
    ----------
    path
        The instructor's notebook; it has to be there on every machine that works.
    template
        The student version, as JSON.
    secret
        Of which the hidden seeds are made.
    runs
        How many seeds a notebook is run with.
    sandbox
        Where students' code runs.
    """

    path: Path
    template: str
    secret: bytes
    runs: int
    sandbox: Sandbox

    @property
    def assignment(self) -> Assignment:
        """The assignment; read once in every process."""
        return _read_assignment(self.path, self.template)


@functools.cache
def _read_assignment(path: Path, template: str) -> Assignment:
    return load_assignment(path, nbformat.reads(template, as_version=4))


def hidden_seed(secret: bytes, *words: str | int) -> int:
    """Return a number from 0 to 2**32 - 1 that nobody can tell who does not know the secret."""
    digest = hmac.digest(secret, json.dumps(words).encode(), "sha256")
    return int.from_bytes(digest[:4], "big")


def key_of(intake: Intake, marking: Marking) -> dict[str, Any]:
    """Return what a result is a result of; it is valid as long as this is the same."""
    return {
        "submission": intake.sha256,
        "assignment": marking.assignment.digest,
        "secret": hashlib.sha256(marking.secret).hexdigest()[:16],
        "version": __version__,
        "runs": marking.runs,
        "sandbox": marking.sandbox.level,
    }


def mark(item: tuple[Submission, Marking]) -> Record:
    """Return the record of a submission; a fault of ours becomes one without a score."""
    submission, marking = item
    started = time.monotonic()
    record: Record = {
        "schema": SCHEMA,
        "student": submission.student,
        "assignment": marking.assignment.name,
        "title": marking.assignment.title,
        "key": {},
        "status": "grader_error",
        "reason": "ok",
        "detail": "",
        "score": None,
        "max_score": float(marking.assignment.points),
        "tasks": [],
        "problems": [],
        "flags": ["unsandboxed"] if marking.sandbox.level == "none" else [],
        "fingerprints": {"submission": [], "answers": [], "weights": []},
        "output": [],
    }
    try:
        intake = take_in(submission, marking.assignment)
        record["key"] = key_of(intake, marking)
        if intake.notebook is None:
            record |= {"status": "refused", "score": 0.0}
            record |= {"reason": intake.reason, "detail": intake.detail}
        else:
            record |= _marked(intake, marking, record["flags"])
    except Exception as error:  # whatever it is, it is not the student's
        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})"
        record["detail"] = one_line(why)
    return record | {"timing": {"seconds": round(time.monotonic() - started, 2)}}


def _marked(intake: Intake, marking: Marking, flags: Sequence[str]) -> Record:
    """Return what the record of a readable submission says."""
    assignment = marking.assignment
    words = (assignment.name, intake.student, intake.sha256)
    seed = functools.partial(hidden_seed, marking.secret, *words)
    seeds = [{"seed": seed("run", index)} for index in range(marking.runs)]
    parameters = [
        {name: values.get(name, default) for name, default in assignment.parameters.items()}
        for values in seeds
    ]
    versions = [sanitise(intake.notebook, assignment, values) for values in parameters]
    cases = {
        task.grade_id: make_cases(task, seed("cases", task.grade_id))
        for task in assignment.tasks
        if isinstance(task, Task)
    }
    # What a student left may be awkward to remove; it must not cost them their points.
    with tempfile.TemporaryDirectory(prefix="semigen-", ignore_cleanup_errors=True) as scratch:
        gathered = gather(versions, parameters, cases, assignment, marking.sandbox, Path(scratch))
        evidence = [output / "evidence" for output in gathered.outputs]
        prints = [set(fingerprint(folder).values()) for folder in evidence]
        # Two runs with one value in common were not both trained: their seeds differ.
        copied = any(first & second for first, second in itertools.combinations(prints, 2))
        found = [
            _function_score(task, cases[task.grade_id], gathered, assignment)
            if isinstance(task, Task)
            else _weights_score(task, evidence, copied, seed)
            for task in assignment.tasks
        ]
        reason, detail = _worst(gathered.outcomes)
        return {
            "status": "graded",
            "reason": reason,
            "detail": detail,
            "score": round(sum(task["score"] for task in found), 4),
            "tasks": found,
            "problems": [list(problem) for problem in versions[0].problems],
            "flags": [*flags, *(["copied_weights"] if copied else []),
                      *(["memorised"] if _is_memorised(assignment, evidence[0], seed) else [])],
            "fingerprints": {
                "submission": [intake.sha256],
                "answers": _answers_print(versions[0].answers, assignment),
                "weights": sorted(set.union(*prints)),
            },
            "output": _shown(gathered.outputs[0]),
        }  # fmt: skip


def _worst(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    """Return the reason and detail of the first run that did not come to its end."""
    for outcome in outcomes:
        if outcome.status == "failed":
            return "run_failed", one_line((outcome.log.splitlines() or [""])[-1])[:200]
        if outcome.status != "finished":
            return outcome.status, ""
    return "ok", ""


def _function_score(
    task: Task, cases: Sequence[dict[str, Any]], gathered: Gathered, assignment: Assignment
) -> dict[str, Any]:
    right, message = judge_cases(task, cases, gathered.answers[task.grade_id])
    cell = _answer_cell(task.grade_id, assignment)
    if not right and cell in gathered.problems:
        message = f"{cell}: {gathered.problems[cell]}"  # why there was nothing to call
    return _scored(task, task.points if right else 0.0, message)


def _answer_cell(grade_id: str, assignment: Assignment) -> str | None:
    """Return the answer cell that stands last before a tests cell."""
    last = None
    for cell in assignment.template["cells"]:
        if cell_id(cell) == grade_id:
            break
        if cell["metadata"]["nbgrader"]["solution"]:
            last = cell_id(cell)
    return last


def _weights_score(
    task: WeightsTask, folders: Sequence[Path], copied: bool, seed: Seed
) -> dict[str, Any]:
    """Return points for the median over the runs; nothing for weights that no run made."""
    values, problem = [], ""
    for index, folder in enumerate(folders):
        try:
            method = load_evidence(folder, task.name, task)
            number = seed("measure", task.grade_id, index)
            values.append(measure_weights(method, task.measure, number))
        except EvidenceError as error:
            values.append(math.nan)
            problem = str(error)
    if copied:
        return _scored(task, 0.0, f"{task.name}: the weights are the same whatever the seed is")
    measured = [value for value in values if math.isfinite(value)]
    message = problem
    if measured:
        median = statistics.median(measured)
        message = (
            f"{task.measure.replace('_', ' ')} {median:.4g}; nothing for {task.zero_at:g}, "
            f"full marks from {task.full_at:g}" + (f"; {problem}" if problem else "")
        )
    return _scored(task, task.score(values), message)


def _is_memorised(assignment: Assignment, folder: Path, seed: Seed) -> bool:
    """Say whether weights that were handed in draw copies of training images."""
    for task in assignment.tasks:
        if isinstance(task, WeightsTask):
            with suppress(EvidenceError):
                method = load_evidence(folder, task.name, task)
                if method.draws and repeats_training_images(method, seed("copies", task.grade_id)):
                    return True
    return False


def _scored(task: Task | WeightsTask, score: float, message: str) -> dict[str, Any]:
    return {
        "grade_id": task.grade_id,
        "points": float(task.points),
        "score": round(float(score), 4),
        "message": one_line(message),
    }


def _answers_print(answers: Mapping[str, str], assignment: Assignment) -> list[str]:
    """Return a hash of all answers without comments and blanks; nothing if one is still empty."""
    empty = {cell_id(cell): cell["source"] for cell in assignment.template["cells"]}
    if any(source == empty[name] for name, source in answers.items()):
        return []
    words = [_words(source) for source in answers.values()]
    return [hashlib.sha256(json.dumps(words).encode()).hexdigest()]


def _words(source: str) -> list[str]:
    """Return the tokens of a source that mean something to Python."""
    left_out = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return source.split()
    return [token.string for token in tokens if token.type not in left_out]


def _shown(output: Path) -> list[dict[str, Any]]:
    """Return what the cells of the run showed; the student's code may have written that file."""
    try:
        notebook = json.loads(read_output(output, "executed.ipynb", NOTEBOOK_BYTES))
    except (SandboxError, ValueError, RecursionError):
        return []
    return visible_output(notebook)
