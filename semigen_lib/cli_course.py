"""The commands of a course: ``semigen assign``, ``semigen grade`` and ``semigen doctor``.

Shown in: book/instructor.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from semigen_lib.checkpoint import write_atomically
from semigen_lib.console import parse_settings, say, terminated_like_interrupted
from semigen_lib.grading.assignment import (
    all_assignments,
    check_parameters,
    find_assignment,
    load_assignment,
    make_student_version,
    notebook_text,
    set_parameters,
)
from semigen_lib.grading.doctor import examine_sandbox
from semigen_lib.grading.results import closing_line
from semigen_lib.grading.sandbox import Sandbox, SandboxError, find_sandbox, unsafe_sandbox

__all__ = [
    "add_course",
    "tested_sandbox",
]


def add_course(commands: argparse._SubParsersAction) -> None:
    """Add the three commands to those of ``semigen``."""
    _add_assign(commands)
    _add_grade(commands)
    _add_doctor(commands)


def _add_assign(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "assign",
        help="write the student version of an assignment",
        description="Write the student version of one of the book's assignments, or of an "
        "instructor's notebook of one's own: solutions and hidden tests are taken out.",
        epilog="example: semigen assign A3 --out handout -p seed=3",
    )
    add = command.add_argument
    add("assignment", help="a name such as A3, a path to a notebook, or all")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the notebook goes")
    add("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="another "
        "value of a parameter of the notebook; repeatable")  # fmt: skip
    add("--force", action="store_true", help="overwrite a notebook that is there")
    command.set_defaults(run=_run_assign)


def _add_grade(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "grade",
        help="grade a folder of submissions",
        description="Run every notebook of a folder in a sandbox, weigh what it leaves with hidden "
        "seeds, and write GRADES/{results/STUDENT.json, grades.csv, report.html, "
        "feedback/STUDENT.html}. What a notebook prints counts for nothing. Each result is kept "
        "as soon as it is known; the same command again grades what is missing or has changed. "
        "Exit status 1 if the grader itself failed on a submission, which then has no score.",
        epilog="example: semigen assign A3 --out handout; collect notebooks in submissions/, one "
        "file, folder or archive a student; then semigen grade submissions --assignment A3 "
        "--out grades",
    )
    add = command.add_argument
    add("submissions", type=Path, metavar="SUBMISSIONS", help="a folder with one notebook, "
        "archive (.zip, .tar, .tar.gz) or folder a student, named like the student")  # fmt: skip
    add("--assignment", required=True, metavar="A", help="a name such as A3, or a path to an "
        "instructor's notebook")  # fmt: skip
    add("--out", type=Path, required=True, metavar="GRADES", help="where the grades are or will "
        "be: a folder of the instructor's alone, of one assignment")  # fmt: skip
    add("--jobs", type=int, default=2, help="how many submissions at a time (default: 2)")
    add("--scheduler", metavar="ADDRESS", help="grade on the workers of a Dask cluster instead, "
        "such as tcp://10.0.0.1:8786, which see the same folders and have a sandbox; start them "
        "with --nthreads 1")  # fmt: skip
    add("--secret-file", type=Path, metavar="FILE", help="at least 16 bytes that no student "
        "knows, of which the hidden seeds are made (default: GRADES/.secret, new)")  # fmt: skip
    add("--runs", type=int, metavar="N", help="how many seeds each notebook is run with; the "
        "median counts (default: as the assignment says)")  # fmt: skip
    add("--unsafe", action="store_true", help="without a sandbox: students' code can do all that "
        "you can do, and every row says UNSANDBOXED")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_run_grade)


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "doctor",
        help="test the sandbox that grading needs",
        description="Try to get out of the sandbox in every way we know, and say what came of it. "
        "Exit status 1 if one of them worked.",
    )
    command.set_defaults(run=_run_doctor)


def _run_assign(options: argparse.Namespace) -> None:
    """Write student versions: all that were asked for, or none."""
    wanted = options.assignment
    paths = list(all_assignments().values()) if wanted == "all" else [find_assignment(wanted)]
    values = parse_settings(options.parameter, "-p")
    texts = {}
    for path in paths:
        target = options.out / path.name
        if target.exists() and (not options.force or target.samefile(path)):
            way_out = "" if options.force else " (or --force)"
            raise ValueError(
                f"--out: expected a folder without {path.name}{way_out}, got {options.out}"
            )
        assignment = load_assignment(path)
        chosen = set_parameters(assignment.notebook, check_parameters(assignment, values))
        texts[target] = notebook_text(make_student_version(chosen))
        say(f"{assignment.name}, {assignment.title}: {assignment.points:g} points, {target}")
    for target, text in texts.items():
        write_atomically(target, text.encode())


def _run_grade(options: argparse.Namespace) -> int:
    """Grade a folder, print how it went in one line, and return 1 if somebody has no score."""
    from semigen_lib.grading.grade import grade_folder  # nbformat: there with the extra "course"

    with terminated_like_interrupted():
        students, records = grade_folder(
            options.submissions,
            find_assignment(options.assignment),
            options.out,
            unsafe_sandbox() if options.unsafe else tested_sandbox(),
            jobs=options.jobs,
            scheduler=options.scheduler,
            secret_file=options.secret_file,
            runs=options.runs,
            progress=not options.quiet,
        )
    failed = 0
    for student in students:
        record = records.get(student)
        if record is None or record["status"] == "grader_error":
            why = record["detail"] if record else "no result"
            say(f"{student}: expected a score, got {why}")
            failed = 1
    if gone := sorted(set(records) - set(students)):
        say(f"{', '.join(gone)}: not among the submissions now; the table keeps what they had")
    sys.stdout.write(closing_line(records, students) + "\n")
    return failed


def tested_sandbox() -> Sandbox:
    """Return the sandbox of this machine, if nothing gets out of it."""
    sandbox = find_sandbox()
    escaped = [finding.name for finding in examine_sandbox(sandbox, quick=True) if not finding.held]
    if escaped:
        raise SandboxError(
            f"sandbox: expected it to hold, got out by {', '.join(escaped)}; see semigen doctor"
        )
    return sandbox


def _run_doctor(options: argparse.Namespace) -> int:
    """Print what every canary found, and return 1 if one got out."""
    findings = examine_sandbox(find_sandbox())
    for name, held, detail in findings:
        sys.stdout.write(f"{'held' if held else 'ESCAPED':8}{name}: {detail}\n")
    escapes = sum(not finding.held for finding in findings)
    sys.stdout.write(f"{len(findings)} canaries, {escapes} escapes\n")
    return int(escapes > 0)
