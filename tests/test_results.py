"""Results of a class: written whole, of one submission, counted right, in nbgrader's columns."""

import csv
import inspect
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from semigen_lib.checkpoint import CheckpointError
from semigen_lib.grading.results import (
    COLUMNS,
    FLAGS,
    claimed_folder,
    closing_line,
    find_results,
    flag_copies,
    is_current,
    percent,
    to_csv,
    write_result,
)

KEY = {"submission": "a" * 64, "assignment": "b" * 64, "secret": "c" * 16, "version": "0.1.0"}


def make_record(student: str = "ada", **changes) -> dict:
    """What is known of a student who got three of five points."""
    tasks = [
        {"grade_id": "one", "points": 3.0, "score": 3.0, "message": ""},
        {"grade_id": "two", "points": 2.0, "score": 0.0, "message": "two: expected 1, got 2"},
    ]
    record = {
        "schema": 1,
        "student": student,
        "assignment": "A3",
        "title": "GAN losses",
        "key": dict(KEY),
        "status": "graded",
        "reason": "ok",
        "detail": "",
        "score": 3.0,
        "max_score": 5.0,
        "tasks": tasks,
        "problems": [],
        "flags": [],
        "fingerprints": {"submission": [student], "answers": [], "weights": []},
        "output": [{"cell": "train", "text": "loss 0.3", "images": []}],
        "timing": {"seconds": 2.5},
    }
    return record | changes


def without_score(student: str) -> dict:
    return make_record(student, status="grader_error", score=None, tasks=[], detail="KeyError: 'x'")


def of(*records: dict) -> dict[str, dict]:
    return {record["student"]: record for record in records}


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ---- files ----


def test_what_is_written_is_found(tmp_path) -> None:
    records = [make_record(name) for name in ("bob", "Bob", "../b", "-rf", "ünï", "a" * 200)]
    for record in records:
        write_result(tmp_path, record)
    assert find_results(tmp_path, "A3") == dict(sorted(of(*records).items()))
    files = sorted(tmp_path.rglob("*"))
    assert len(files) == 1 + len(records), "one file a student, inside, and nothing else"
    assert "bob.json" in {path.name for path in files}


def test_a_result_is_replaced_whole(tmp_path) -> None:
    write_result(tmp_path, make_record())
    write_result(tmp_path, make_record(score=5.0))
    assert find_results(tmp_path, "A3")["ada"]["score"] == 5.0


@pytest.mark.fault("durability")
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"score": 3.0', '"score": NaN'),
        lambda text: text.replace('"graded"', '"great"'),
        lambda text: text.replace('"student": "ada"', '"student": "bob"'),
        lambda text: text.replace('"tasks"', '"task"'),
    ],
    ids=["empty", "half", "list", "nan", "status", "other-student", "no-tasks"],
)
def test_a_damaged_result_is_graded_again(damage, tmp_path) -> None:
    write_result(tmp_path, make_record())
    write_result(tmp_path, make_record("bob"))
    path = tmp_path / "results" / "ada.json"
    path.write_text(damage(path.read_text()))
    with pytest.warns(UserWarning, match=r"ada.json: expected a result, got .*: graded again"):
        found = find_results(tmp_path, "A3")
    assert set(found) == {"bob"}


def test_a_newer_result_is_not_overwritten(tmp_path) -> None:
    write_result(tmp_path, make_record(schema=2))
    with pytest.raises(CheckpointError, match="newer semigen_lib"):
        find_results(tmp_path, "A3")


def test_a_folder_is_of_one_assignment(tmp_path) -> None:
    write_result(tmp_path, make_record())
    with pytest.raises(ValueError, match="expected a folder with grades of A2, got grades of A3"):
        find_results(tmp_path, "A2")


@pytest.mark.fault("durability")
def test_a_full_disk_leaves_the_old_result(tmp_path, monkeypatch) -> None:
    write_result(tmp_path, make_record())

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_result(tmp_path, make_record(score=0.0))
    monkeypatch.undo()
    assert find_results(tmp_path, "A3") == of(make_record())
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["ada.json"]


@pytest.mark.parametrize("part", sorted(KEY))
def test_a_result_is_of_one_submission_assignment_secret_and_version(part) -> None:
    assert is_current(make_record(), KEY)
    assert not is_current(make_record(), KEY | {part: "another"})


def test_no_result_and_no_score_are_never_current() -> None:
    assert not is_current(None, KEY)
    assert not is_current(without_score("ada"), KEY)


@pytest.mark.fault("durability")
def test_one_grader_at_a_time(tmp_path) -> None:
    code = (
        "import sys; from pathlib import Path; from semigen_lib.grading.results import *\n"
        f"with claimed_folder(Path({str(tmp_path)!r})): print('in', flush=True); sys.stdin.read()"
    )
    command, root = [sys.executable, "-c", code], Path(__file__).parents[1]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": root}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(ValueError, match="another at work"), claimed_folder(tmp_path):
            pass
        other.kill()
        other.wait()
        with claimed_folder(tmp_path):  # the dead let go
            pass


# ---- together ----


def test_columns_are_those_of_nbgrader() -> None:
    export = pytest.importorskip("nbgrader.plugins.export")
    source = inspect.getsource(export.CsvExportPlugin)
    listed = source.partition("keys = [")[2].partition("]")[0]
    theirs = tuple(json.loads(f"[{listed}]"))
    assert COLUMNS[: len(theirs)] == theirs


def test_the_table() -> None:
    ada, bob = rows(to_csv(of(make_record(), without_score("bob"))))
    assert (ada["student_id"], ada["raw_score"], ada["score"], ada["max_score"]) == (
        *("ada", "3.0"),
        *("3.0", "5.0"),
    )
    assert (ada["assignment"], ada["status"], ada["late_submission_penalty"]) == (
        *("A3", "graded"),
        "0.0",
    )
    assert (bob["status"], bob["score"], bob["raw_score"]) == ("grader_error", "", "")


@pytest.mark.fault("intake")
@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "\t=1", "a\n=1", 'a",=1', "a;=1"])
def test_no_name_becomes_a_formula_or_a_row(name) -> None:
    text = to_csv(of(make_record(name)))
    (row,) = rows(text)
    assert row["student_id"][0] not in "=+-@\t" and row["score"] == "3.0"
    assert all(line.startswith('"') and line.endswith('"') for line in text.splitlines())


def test_an_unsandboxed_row_says_so() -> None:
    (row,) = rows(to_csv(of(make_record(flags=["unsandboxed", "memorised"]))))
    assert row["flags"] == "UNSANDBOXED memorised"


@pytest.mark.fault("integrity")
@pytest.mark.parametrize("kind", ["submission", "answers", "weights"])
def test_what_is_equal_to_another_students_is_flagged(kind) -> None:
    prints = [{"submission": [], "answers": [], "weights": []} | {kind: v} for v in
              (["x", "y"], ["y"], ["z"], [])]  # fmt: skip
    records = of(
        *(make_record(name, fingerprints=p) for name, p in zip("abcd", prints, strict=True))
    )
    flag = f"same_{kind}"
    assert flag in FLAGS
    assert flag_copies(records) == {"a": [(flag, "b")], "b": [(flag, "a")], "c": [], "d": []}


def test_percent() -> None:
    assert percent(make_record()) == pytest.approx(60)
    assert percent(without_score("bob")) is None
    assert percent(make_record(score=0.0, max_score=0.0)) == 0


def test_the_closing_line_counts_who_is_lost() -> None:
    records = of(
        make_record("a"),
        make_record("b", reason="wall_limit"),
        make_record("c", status="refused", reason="not_json", score=0.0),
        without_score("d"),
        make_record("of last week"),
    )
    assert closing_line(records, ["a", "b", "c", "d", "e"]) == (
        "5 submissions: 2 graded, 1 of them stopped at a limit, 1 refused; 1 lost, 1 grader errors"
    )
    assert closing_line(records, ["a"]) == (
        "1 submission: 1 graded, 0 refused; 0 lost, 0 grader errors"
    )
