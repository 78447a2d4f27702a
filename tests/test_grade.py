"""A class: one command that survives everything, and cheats that are worth their honest evidence.

The first half grades without running anything: ``mark`` is replaced, so that moments can be chosen.
The second half is the real thing, in the sandbox, on an assignment that runs in a second.
"""

import csv
import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from test_mark import DOUBLE, hand_in, tiny_assignment

from semigen_lib import cli_course
from semigen_lib.cli import build_parser, main
from semigen_lib.grading import grade
from semigen_lib.grading.assignment import load_assignment
from semigen_lib.grading.grade import read_secret
from semigen_lib.grading.intake import Submission, take_in
from semigen_lib.grading.mark import Marking, key_of
from semigen_lib.grading.results import RUN_DEPENDENT
from semigen_lib.grading.sandbox import SandboxError, unsafe_sandbox

ROOT = Path(__file__).parents[1]
NAMES = [f"student{index}" for index in range(6)]


def run(line: str) -> int:
    """Run one command line in this process and return its exit status."""
    try:
        return main(shlex.split(line))
    except SystemExit as stop:
        return stop.code


def pretended(item: tuple[Submission, Marking]) -> dict:
    """Stand in for ``mark``: a record at once, that depends on the submission alone."""
    submission, marking = item
    intake = take_in(submission, marking.assignment)
    refused = intake.reason != "ok"
    return {
        **{"schema": 1, "student": submission.student, "assignment": "T1", "title": "Tiny"},
        **{"key": key_of(intake, marking), "status": "refused" if refused else "graded"},
        **{"reason": intake.reason, "detail": intake.detail, "max_score": 5.0},
        **{"score": 0.0 if refused else int(intake.sha256, 16) % 6 / 1.0, "tasks": []},
        **{"problems": [], "flags": ["unsandboxed"], "output": []},
        **{"fingerprints": {"submission": [intake.sha256], "answers": [], "weights": []}},
        **{"timing": {"seconds": time.monotonic() % 100}},
    }


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A folder with the assignment, a secret, and submissions of six students."""
    folder = tmp_path_factory.mktemp("course")
    path = tiny_assignment(folder / "T1.ipynb")
    marking = Marking(path, nbformat.writes(load_assignment(path).template), b"", 1, None)
    (folder / "in").mkdir()
    for index, name in enumerate(NAMES[:-1]):
        answers = {"double": f"{DOUBLE}  # {index}"}
        hand_in(marking, folder / "in" / f"{name}.ipynb", answers)
    (folder / "in" / f"{NAMES[-1]}.ipynb").write_text("{")
    (folder / "secret").write_bytes(b"s" * 32)
    return folder


@pytest.fixture
def here(course, tmp_path, monkeypatch) -> Path:
    """A new working folder with copies of it all, where ``mark`` only pretends."""
    shutil.copytree(course, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grade, "mark", pretended)
    monkeypatch.setattr(cli_course, "tested_sandbox", unsafe_sandbox)
    # The student version is made by nbgrader, which takes seconds to import in every process.
    template = load_assignment(course / "T1.ipynb").template
    monkeypatch.setattr(
        grade, "load_assignment", lambda path, _=None: load_assignment(path, template)
    )
    return tmp_path


GRADE = "grade in --assignment T1.ipynb --jobs 1 --quiet --secret-file secret"


def outputs(folder: Path) -> dict[str, object]:
    """Everything that a folder of grades holds, without what depends on the run."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"):
        name = str(path.relative_to(folder))
        if path.parent.name == "results" and path.suffix == ".json":
            record = json.loads(path.read_text())
            found[name] = {k: v for k, v in record.items() if k not in RUN_DEPENDENT}
        elif path.name != "report.html":  # it shows the seconds
            found[name] = path.read_bytes()
    return found


def table(folder: Path = Path("grades")) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "grades.csv").read_text().splitlines()))


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith("semigen") and err.count("\n") == 1 and "Traceback" not in err, err
    assert "expected" in err and "got" in err, err
    return err


# ---- one command ----


def test_a_folder_is_graded_by_one_command(here, capsys) -> None:
    assert run(f"{GRADE} --out grades") == 0
    out = capsys.readouterr().out
    assert out == "6 submissions: 5 graded, 1 refused; 0 lost, 0 grader errors\n"
    files = {str(path.relative_to("grades")) for path in Path("grades").rglob("*.*")}
    wanted = {f"results/{name}.json" for name in NAMES}
    wanted |= {f"feedback/{name}.html" for name in NAMES}
    assert files - {".lock"} == wanted | {"grades.csv", "report.html"}
    rows = table()
    assert [row["student_id"] for row in rows] == NAMES
    assert all("UNSANDBOXED" in row["flags"] for row in rows)


def count_marks(monkeypatch) -> list[str]:
    marked: list[str] = []

    def counted(item: tuple[Submission, Marking]) -> dict:
        marked.append(item[0].student)
        return pretended(item)

    monkeypatch.setattr(grade, "mark", counted)
    return marked


def test_only_what_is_missing_or_changed_is_graded(here, monkeypatch, capsys) -> None:
    marked = count_marks(monkeypatch)
    assert run(f"{GRADE} --out grades") == 0 and marked == NAMES
    before = outputs(Path("grades"))
    marked.clear()
    assert run(f"{GRADE} --out grades") == 0 and marked == []
    assert outputs(Path("grades")) == before
    Path("in/student2.ipynb").write_text(Path("in/student1.ipynb").read_text() + "\n")
    Path("grades/results/student3.json").unlink()
    assert run(f"{GRADE} --out grades") == 0 and marked == ["student2", "student3"]
    marked.clear()
    Path("secret").write_bytes(b"t" * 32)
    assert run(f"{GRADE} --out grades") == 0 and marked == NAMES, "other seeds, other questions"
    marked.clear()
    assert run(f"{GRADE} --out grades --runs 2") == 0 and marked == NAMES


def test_a_result_is_kept_although_its_submission_is_gone(here, capsys) -> None:
    assert run(f"{GRADE} --out grades") == 0
    assert "not among the submissions" not in capsys.readouterr().err
    Path("in/student0.ipynb").unlink()
    assert run(f"{GRADE} --out grades") == 0
    assert "semigen: student0: not among the submissions now" in capsys.readouterr().err
    assert len(table()) == 6


def test_no_submissions_are_a_mistake(here, capsys) -> None:
    Path("nobody").mkdir()
    assert run("grade nobody --assignment T1.ipynb --out grades") == 2
    assert "expected a folder with some, got none in nobody" in one_line(capsys)
    assert not Path("grades").exists()


@pytest.mark.fault("durability")
def test_a_grader_error_has_no_score_and_is_tried_again(here, monkeypatch, capsys) -> None:
    def fails(item: tuple[Submission, Marking]) -> dict:
        record = pretended(item)
        if record["student"] == "student1":
            record |= {"status": "grader_error", "score": None, "detail": "KeyError: 'x' (mark)"}
        return record

    monkeypatch.setattr(grade, "mark", fails)
    assert run(f"{GRADE} --out grades") == 1
    said = capsys.readouterr()
    assert "0 lost, 1 grader errors" in said.out
    assert said.err == "semigen: student1: expected a score, got KeyError: 'x' (mark)\n"
    rows = {row["student_id"]: row for row in table()}
    assert (rows["student1"]["score"], rows["student1"]["status"]) == ("", "grader_error")
    marked = count_marks(monkeypatch)
    assert run(f"{GRADE} --out grades") == 0 and marked == ["student1"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("grade nowhere --assignment T1.ipynb --out grades", "nowhere"),
        ("grade in --assignment A99 --out grades", "A99"),
        ("grade in --assignment T1.ipynb --out grades --jobs 0", "jobs"),
        ("grade in --assignment T1.ipynb --out grades --runs 0", "runs"),
        ("grade in --assignment T1.ipynb --out grades --secret-file none", "none"),
        ("grade in --assignment T1.ipynb --out grades --secret-file short", "16 bytes"),
        ("grade in --assignment T1.ipynb --out in/grades", "not among the submissions"),
        ("grade in --assignment T1.ipynb --out in", "not among the submissions"),
        ("grade in --assignment T1.ipynb", "--out"),
    ],
)
def test_bad_input_is_one_line(line, word, here, capsys) -> None:
    Path("short").write_bytes(b"123")
    assert run(f"{line} --quiet") == 2
    assert word in one_line(capsys)


def test_without_a_sandbox_nothing_is_graded(here, monkeypatch, capsys) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(here)

    def none() -> None:
        raise SandboxError("sandbox: expected bubblewrap, got no bwrap")

    monkeypatch.setattr(cli_course, "find_sandbox", none)
    assert run(f"{GRADE} --out grades") == 2 and "bubblewrap" in one_line(capsys)
    assert run("doctor") == 2 and "bubblewrap" in one_line(capsys)
    assert not Path("grades").exists()


def test_a_sandbox_that_leaks_grades_nothing(here, monkeypatch, capsys) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(here)
    leak = [("read a secret", True, "no"), ("network", False, "reached")]
    from semigen_lib.grading.doctor import Finding

    findings = [Finding(*finding) for finding in leak]
    monkeypatch.setattr(cli_course, "find_sandbox", unsafe_sandbox)
    monkeypatch.setattr(cli_course, "examine_sandbox", lambda sandbox, quick=False: findings)
    assert run(f"{GRADE} --out grades") == 2
    assert "got out by network" in one_line(capsys) and not Path("grades").exists()
    assert run("doctor") == 1
    assert capsys.readouterr().out.splitlines() == [
        *("held    read a secret: no", "ESCAPED network: reached"),
        "2 canaries, 1 escapes",
    ]


def test_the_secret_is_made_once_and_for_us_alone(tmp_path) -> None:
    secret = read_secret(tmp_path, None)
    assert len(secret) == 32 and read_secret(tmp_path, None) == secret
    assert (tmp_path / ".secret").stat().st_mode & 0o777 == 0o600
    assert read_secret(tmp_path / "other", tmp_path / ".secret") == secret


def test_the_help_shows_an_example_that_parses(capsys) -> None:
    assert run("grade -h") == 0
    text = " ".join(capsys.readouterr().out.split())
    line = text.partition("example: ")[2].partition("; then semigen ")[2]
    options = build_parser().parse_args(shlex.split(line))
    assert options.assignment == "A3" and options.jobs == 2


# ---- killed, interrupted, disk full ----


def in_child(command: str, prepare: Callable[[], None]) -> int:
    """Start a command in a forked child, where ``prepare`` has put a trap, and return its pid."""
    child = os.fork()
    if child == 0:
        try:
            # A shell that runs tests in the background has had SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            prepare()
            os._exit(run(command))
        finally:
            os._exit(99)
    return child


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def hang() -> None:
    Path("trapped").touch()
    time.sleep(600)


def trap_mark(number: int) -> Callable[[], None]:
    """Hang in the marking of one student."""

    def prepare() -> None:
        def trapped(item: tuple[Submission, Marking]) -> dict:
            if item[0].student == f"student{number}":
                hang()
            return pretended(item)

        grade.mark = trapped

    return prepare


def trap_replace(name: str, after: bool = False) -> Callable[[], None]:
    """Hang right before, or right after, a file of that name comes into its place."""

    def prepare() -> None:
        replace = os.replace

        def trapped(source: Path, target: Path) -> None:
            if after:
                replace(source, target)
            if Path(target).name == name:
                hang()
            if not after:
                replace(source, target)

        os.replace = trapped

    return prepare


TRAPS = {
    "marking-the-first": trap_mark(0),
    "marking-the-fourth": trap_mark(3),
    "writing-a-result": trap_replace("student2.json"),
    "result-written": trap_replace("student2.json", after=True),
    "writing-a-page": trap_replace("student1.html"),
    "writing-the-table": trap_replace("grades.csv"),
    "table-written": trap_replace("grades.csv", after=True),
}


@pytest.fixture
def uninterrupted(here) -> dict[str, object]:
    assert run(f"{GRADE} --out whole") == 0
    return outputs(Path("whole"))


def kill_at(trap: Callable[[], None], command: str) -> None:
    Path("trapped").unlink(missing_ok=True)
    child = in_child(command, trap)
    try:
        wait_for(Path("trapped").exists)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.fault("durability")
@pytest.mark.parametrize("trap", TRAPS)
def test_killed_at_a_moment_nothing_is_lost(trap, here, uninterrupted, monkeypatch) -> None:
    kill_at(TRAPS[trap], f"{GRADE} --out grades")
    kept = {path.stem for path in Path("grades/results").glob("*.json")}
    marked = count_marks(monkeypatch)
    assert run(f"{GRADE} --out grades") == 0
    assert not kept & set(marked), "nothing is graded twice"
    assert kept | set(marked) == set(NAMES)
    stray = list(Path("grades").rglob(".*.tmp"))
    assert len(stray) <= 1, "what was half written lies beside, and is not taken for a result"
    for path in stray:
        path.unlink()
    assert outputs(Path("grades")) == uninterrupted


@pytest.mark.fault("durability")
def test_killed_five_times_the_grades_are_the_same(here, uninterrupted) -> None:
    moments = ("student4.json", "student1.html", "grades.csv")
    for trap in (trap_mark(0), trap_mark(3), *map(trap_replace, moments)):
        kill_at(trap, f"{GRADE} --out grades")
    assert run(f"{GRADE} --out grades") == 0
    for path in Path("grades").rglob(".*.tmp"):
        path.unlink()
    assert outputs(Path("grades")) == uninterrupted


@pytest.mark.fault("durability")
def test_killed_while_the_secret_is_made(here) -> None:
    command = GRADE.replace("--secret-file secret", "--out grades")
    kill_at(trap_replace(".secret"), command)
    assert not Path("grades/.secret").exists() and not list(Path("grades").rglob("*.json"))
    assert run(command) == 0 and Path("grades/.secret").stat().st_size == 32


@pytest.mark.fault("durability")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_what_is_finished(number, here, uninterrupted, capfd) -> None:
    Path("trapped").unlink(missing_ok=True)
    child = in_child(f"{GRADE} --out grades", trap_mark(3))
    wait_for(Path("trapped").exists)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    err = capfd.readouterr().err
    assert err == (
        "semigen: what is finished is kept; the same command goes on\nsemigen: interrupted\n"
    )
    assert {p.stem for p in Path("grades/results").iterdir()} == set(NAMES[:3])
    assert run(f"{GRADE} --out grades") == 0
    assert outputs(Path("grades")) == uninterrupted


@pytest.mark.fault("durability")
@pytest.mark.parametrize("name", ["student2.json", "student2.html", "grades.csv", "report.html"])
def test_a_full_disk_leaves_what_was_there(name, here, monkeypatch, capsys) -> None:
    assert run(f"{GRADE} --out grades") == 0
    Path("secret").write_bytes(b"t" * 32)  # so that all is graded again
    before = {path: path.read_bytes() for path in Path("grades").rglob("*") if path.is_file()}
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    capsys.readouterr()
    assert run(f"{GRADE} --out grades") == 2
    assert "No space left on device" in one_line(capsys)
    (path,) = (path for path in before if path.name == name)
    assert path.read_bytes() == before[path]
    assert {path for path in Path("grades").rglob("*") if path.is_file()} == set(before)
    monkeypatch.setattr(os, "replace", replace)
    assert run(f"{GRADE} --out grades") == 0


@pytest.mark.fault("durability")
def test_a_second_grader_says_so_and_touches_nothing(here, capsys) -> None:
    child = in_child(f"{GRADE} --out grades", trap_mark(3))
    try:
        wait_for(Path("trapped").exists)
        before = {path: path.stat().st_mtime_ns for path in Path("grades").rglob("*")}
        capsys.readouterr()
        assert run(f"{GRADE} --out grades") == 2
        assert "another at work in grades" in one_line(capsys)
        after = {path: path.stat().st_mtime_ns for path in Path("grades").rglob("*")}
        assert {p: t for p, t in after.items() if p.name != ".lock"} == {
            p: t for p, t in before.items() if p.name != ".lock"
        }
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.fault("durability")
def test_a_changed_result_of_another_assignment_is_left_alone(here, capsys) -> None:
    assert run(f"{GRADE} --out grades") == 0
    text = Path("T1.ipynb").read_text().replace('"assignment": "T1"', '"assignment": "T2"')
    Path("T2.ipynb").write_text(text)
    before = outputs(Path("grades"))
    capsys.readouterr()
    assert run(GRADE.replace("T1", "T2") + " --out grades") == 2
    assert "expected a folder with grades of T2, got grades of T1" in one_line(capsys)
    assert outputs(Path("grades")) == before
