"""The results of a class: one file a student, what they say together, and grades.csv.

A result is written whole or not at all, and says what it is a result of: of which submission,
assignment, secret and version. A second call grades what has no result of today, and nothing else.
What is only visible among several students, such as a copy, is found when the table is made.

Shown in: book/instructor.md
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from semigen_lib.checkpoint import SCHEMA, CheckpointError, read_json, write_json
from semigen_lib.grading.intake import safe_name, safe_text

__all__ = [
    "COLUMNS",
    "FLAGS",
    "RUN_DEPENDENT",
    "STATUSES",
    "Record",
    "claimed_folder",
    "closing_line",
    "find_results",
    "flag_copies",
    "is_current",
    "percent",
    "to_csv",
    "write_result",
]

Record = dict[str, Any]

STATUSES = {
    "graded": "run and scored",
    "refused": "could not be run; zero points",
    "grader_error": "a fault of the grader or of the assignment, not of the student; no score",
}
FLAGS = {
    "unsandboxed": "UNSANDBOXED: the student's code could do what you can do",
    "copied_weights": "the trained weights do not depend on the seed, so they were not trained in "
    "the run; worth no points",
    "memorised": "drawings are copies of training images",
    "same_submission": "the same file as another student's",
    "same_answers": "the same answers as another student's, but for names of files and comments",
    "same_weights": "the same, or nearly the same, trained weights as another student's",
}
# The columns of nbgrader's CSV exporter, in its order, then ours.
COLUMNS = ("assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email",
           "raw_score", "late_submission_penalty", "score", "max_score",
           "status", "reason", "flags")  # fmt: skip
RUN_DEPENDENT = ("timing", "output")  # of a record: all the rest is the same whenever it is made


# ---- files ----


@contextmanager
def claimed_folder(folder: Path) -> Iterator[None]:
    """Keep a folder of grades for this process; whoever dies lets go of it.

    Raises
    ------
    ValueError
        If another grader is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"--out: expected a folder for this grader alone, got another at work in {folder}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_result(folder: Path, record: Record) -> None:
    """Write what is known of one student, in place of what was known before."""
    write_json(folder / "results" / f"{safe_name(record['student'])}.json", record)


def find_results(folder: Path, assignment: str) -> dict[str, Record]:
    """Return the results in a folder by student, in the order of their names.

    A damaged file is passed over with a warning, so that its student is graded again.

    Parameters
    ----------
    folder
        Of the grades.
    assignment
        The name of the assignment that they have to be of.

    Raises
    ------
    ValueError
        If there are results of another assignment, or of a newer version.
    """
    found = {}
    for path in sorted((folder / "results").glob("*.json")):
        try:
            record = read_json(path)
            _check(record, path)
        except (CheckpointError, KeyError, TypeError, AttributeError) as error:
            if "newer semigen_lib" in str(error):  # not ours to overwrite
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(f"{path}: expected a result, got {reason}: graded again", stacklevel=2)
            continue
        if record["assignment"] != assignment:
            raise ValueError(
                f"--out: expected a folder with grades of {assignment}, "
                f"got grades of {record['assignment']} in {folder}"
            )
        found[record["student"]] = record
    return dict(sorted(found.items()))


def _check(record: Record, path: Path) -> None:
    """Refuse a record that the table could not be made of."""
    numbers = [record["max_score"], *(task["score"] for task in record["tasks"])]
    if record["status"] != "grader_error":
        numbers.append(record["score"])
    elif record["score"] is not None:
        raise CheckpointError("a score of a grader error")
    if record["status"] not in STATUSES or not all(map(math.isfinite, numbers)):
        raise CheckpointError(f"status {record['status']!r}, numbers {numbers}")
    if path.stem != safe_name(record["student"]):
        raise CheckpointError(f"the result of {record['student']!r}")
    if not isinstance(record["key"], dict) or not set(record["flags"]) <= set(FLAGS):
        raise CheckpointError(f"flags {record['flags']}")


def is_current(record: Record | None, key: Mapping[str, Any]) -> bool:
    """Say whether a result is of this submission, assignment, secret and version.

    A grader error never is: what was wrong may be mended.
    """
    return (
        record is not None
        and record["schema"] == SCHEMA
        and record["status"] != "grader_error"
        and record["key"] == key
    )


# ---- what they say together ----


def flag_copies(records: Mapping[str, Record]) -> dict[str, list[tuple[str, str]]]:
    """Return for every student (flag, the other students' names) of what is equal to others'.

    A refused submission, an empty answer and answers that are still the assignment's own are
    nobody's copy: the fingerprints of those are empty.
    """
    flags: dict[str, list[tuple[str, str]]] = {student: [] for student in records}
    for kind, flag in (
        ("submission", "same_submission"),
        ("answers", "same_answers"),
        ("weights", "same_weights"),
    ):
        owners: dict[str, list[str]] = {}
        for student, record in records.items():
            for value in {*record["fingerprints"].get(kind, ())}:
                owners.setdefault(value, []).append(student)
        for student in records:
            others = {o for group in owners.values() if student in group for o in group}
            others -= {student}
            if others:
                flags[student].append((flag, ", ".join(sorted(others))))
    return flags


def percent(record: Record) -> float | None:
    """Return how much of the full score a student has, from 0 to 100; None without a score."""
    if record["score"] is None:
        return None
    return 100 * record["score"] / record["max_score"] if record["max_score"] else 0.0


def to_csv(records: Mapping[str, Record]) -> str:
    """Return a table that nbgrader's users know, one row a student; a score may be empty.

    Every field is quoted, and none begins like a formula of a spreadsheet.
    """
    copies = flag_copies(records)
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(COLUMNS)
    for student, record in records.items():
        score = "" if record["score"] is None else str(float(record["score"]))
        flags = [*record["flags"], *(flag for flag, _ in copies[student])]
        row = {
            "assignment": record["assignment"],
            "student_id": student,
            "raw_score": score,
            "late_submission_penalty": "0.0",
            "score": score,
            "max_score": str(float(record["max_score"])),
            "status": record["status"],
            "reason": record["reason"],
            "flags": " ".join("UNSANDBOXED" if f == "unsandboxed" else f for f in flags),
        }
        writer.writerow([safe_text(row.get(column, "")) for column in COLUMNS])
    return text.getvalue()


def closing_line(records: Mapping[str, Record], students: Sequence[str]) -> str:
    """Return how a class was graded, in one line.

    Parameters
    ----------
    records
        What is in the folder at the end.
    students
        Whose submissions there were: whoever has no result is lost.
    """
    there = [records[student] for student in students if student in records]
    counts = {status: sum(r["status"] == status for r in there) for status in STATUSES}
    stopped = sum(r["status"] == "graded" and r["reason"].endswith("_limit") for r in there)
    words = [f"{counts['graded']} graded"]
    words += [f"{stopped} of them stopped at a limit"] if stopped else []
    words += [f"{counts['refused']} refused"]
    return (
        f"{len(students)} submission{'s' * (len(students) != 1)}: {', '.join(words)}; "
        f"{len(students) - len(there)} lost, {counts['grader_error']} grader errors"
    )
