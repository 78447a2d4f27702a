"""Grading a folder of submissions, in parallel, so that it can be stopped and taken up again.

A result is kept as soon as it is known. The same command, given again, grades what has no result or
has changed since, and writes the table and the pages anew.

Shown in: book/instructor.md
"""

from __future__ import annotations

import functools
import os
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import nbformat
from tqdm.auto import tqdm

from semigen_lib.grading.assignment import load_assignment
from semigen_lib.grading.intake import Submission, find_submissions, take_in
from semigen_lib.grading.mark import Marking, key_of, mark
from semigen_lib.grading.report import write_reports
from semigen_lib.grading.results import (
    Record,
    claimed_folder,
    find_results,
    is_current,
    write_result,
)
from semigen_lib.grading.sandbox import Sandbox
from semigen_lib.jobs import run_jobs

__all__ = ["grade_folder", "read_secret"]

SECRET_BYTES = 32  # of a secret that is made here; half of it is asked of others


def grade_folder(
    submissions: Path,
    path: Path,
    out: Path,
    sandbox: Sandbox,
    *,
    jobs: int = 2,
    scheduler: str | None = None,
    secret_file: Path | None = None,
    runs: int | None = None,
    progress: bool = True,
) -> tuple[list[str], dict[str, Record]]:
    """Grade what has no result of today, and write the results, grades.csv and the pages.

    Parameters
    ----------
    submissions
        A folder with one sub-folder, notebook or archive a student.
    path
        The instructor's notebook.
    out
        Where the results are or will be.
    sandbox
        Where students' code runs.
    jobs
        How many submissions at a time; 1 is in this process.
    scheduler
        Address of a Dask scheduler, whose workers are used instead.
    secret_file
        Of which the seeds are made; None: the secret in ``out``, which is made if need be.
    runs
        How many seeds a notebook is run with; None: as the assignment says.
    progress
        Whether to show a progress bar.

    Returns
    -------
    tuple of list of str and dict of str to dict
        The students of the submissions, and all results in ``out`` by student.

    Raises
    ------
    ValueError
        If something that was asked for is wrong, or another grader is at work in ``out``.
    JobsError
        If a worker was killed.
    """
    for name, number in (("jobs", jobs), ("runs", 1 if runs is None else runs)):
        if number < 1:
            raise ValueError(f"{name}: expected a positive number, got {number}")
    if out.resolve().is_relative_to(submissions.resolve()):
        raise ValueError(f"out: expected a folder that is not among the submissions, got {out}")
    found = find_submissions(submissions.absolute())
    if not found:
        raise ValueError(f"submissions: expected a folder with some, got none in {submissions}")
    assignment = load_assignment(path)
    with claimed_folder(out):
        records = find_results(out, assignment.name)
        marking = Marking(
            path.absolute(),
            nbformat.writes(assignment.template),
            read_secret(out, secret_file),
            assignment.runs if runs is None else runs,
            sandbox,
        )
        missing = [s for s in found if not _is_graded(s, records.get(s.student), marking)]
        bar = tqdm(total=len(found), initial=len(found) - len(missing), disable=not progress,
                   unit="submission", miniters=1, mininterval=0)  # fmt: skip
        work = [(submission, marking, os.getpid()) for submission in missing]
        with bar, closing(run_jobs(_work, work, jobs=jobs, scheduler=scheduler)) as finished:
            for record in finished:
                write_result(out, record)
                bar.update()
        records = find_results(out, assignment.name)
        write_reports(out, records)
    return [submission.student for submission in found], records


def _work(item: tuple[Submission, Marking, int]) -> Record:
    submission, marking, grader = item
    if os.getppid() == grader:
        _die_with(grader)
    return mark((submission, marking))


@functools.cache
def _die_with(parent: int) -> None:
    """End this process, and so the sandboxes it watches, when its parent has been killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_graded(submission: Submission, record: Record | None, marking: Marking) -> bool:
    if record is None:
        return False
    with suppress(Exception):  # the worker meets it again, and says what it is
        intake = take_in(submission, marking.assignment)
        # What cannot be read has no sha256; it may be readable tomorrow, or be something else.
        return intake.sha256 != "" and is_current(record, key_of(intake, marking))
    return False


def read_secret(out: Path, secret_file: Path | None) -> bytes:
    """Return the secret of a file, or the one in a folder of grades, which is made if need be.

    Raises
    ------
    ValueError
        If it is too short to be a secret.
    """
    path = secret_file or out / ".secret"
    if secret_file is None and not path.exists():
        _make_secret(path)
    secret = path.read_bytes()
    if len(secret) < SECRET_BYTES // 2:
        raise ValueError(
            f"{path}: expected a secret of at least {SECRET_BYTES // 2} bytes, got {len(secret)}"
        )
    return secret


def _make_secret(path: Path) -> None:
    """Write a new secret, whole or not at all, that nobody else can read at any moment."""
    temporary = path.with_name(".secret.tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(os.urandom(SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
