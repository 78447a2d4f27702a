"""Intake: whatever is handed in gets one row with a reason, and never a traceback."""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import socket
import stat
import tarfile
import tempfile
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from semigen_lib.grading import intake
from semigen_lib.grading.intake import (
    REASONS,
    Intake,
    IntakeError,
    Submission,
    find_submissions,
    one_line,
    safe_name,
    safe_text,
    take_in,
)
from semigen_lib.grading.sanitise import sanitise

UNHURRIED = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
fault = pytest.mark.fault("intake")


def cell(grade_id: str, source: str, role: str = "locked", kind: str = "code", **metadata) -> dict:
    """A cell in nbgrader's format; its role is locked, answer or tests."""
    nbgrader = {
        "schema_version": 3,
        "grade_id": grade_id,
        "grade": role == "tests",
        "solution": role == "answer",
        "locked": role != "answer",
        "task": False,
    } | ({"points": 2} if role == "tests" else {})
    outputs = {"execution_count": None, "outputs": []} if kind == "code" else {}
    metadata = {"nbgrader": nbgrader, **metadata}
    return {"cell_type": kind, "id": grade_id, "metadata": metadata, "source": source, **outputs}


def template() -> dict:
    """A small student version."""
    stub = "def {}():\n    raise NotImplementedError"
    return nbformat.from_dict(
        {
            "cells": [
                cell("title", "# Losses", kind="markdown"),
                cell("parameters", "seed: int = 0  # of the run", tags=["parameters"]),
                cell("loss", stub.format("loss"), "answer"),
                cell("loss-tests", "assert loss() == 1", "tests"),
                cell("noise", stub.format("noise"), "answer"),
                cell("hand-in", "print(loss(), noise())"),
            ],
            "metadata": {"kernelspec": {"display_name": "Python 3", "name": "python3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


ASSIGNMENT = SimpleNamespace(name="A3", template=template(), parameters={"seed": 0})


def answered() -> dict:
    """What an honest student hands in."""
    notebook = json.loads(json.dumps(template()))
    for name, value in (("loss", 1), ("noise", 2)):
        index = [c["id"] for c in notebook["cells"]].index(name)
        notebook["cells"][index]["source"] = f"def {name}():\n    return {value}"
    return notebook


GOOD = json.dumps(answered()).encode()


def changed(**content: object) -> bytes:
    """A notebook with entries of its own at the top."""
    return json.dumps(answered() | content).encode()


def with_cell(**content: object) -> bytes:
    """A notebook whose cell with the first answer has entries of its own."""
    notebook = answered()
    notebook["cells"][2] |= content
    return json.dumps(notebook).encode()


def received(folder: Path) -> list[Intake]:
    """Take in a folder and hold each row to what every row promises."""
    rows = [take_in(entry, ASSIGNMENT) for entry in find_submissions(folder)]
    for row in rows:
        assert row.reason in REASONS and (row.notebook is not None) == (row.reason == "ok")
        assert row.student.isprintable() and row.detail.isprintable() and len(row.detail) <= 200
        hashes = [*row.files.values(), *([row.sha256] if row.sha256 else [])]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)
        assert row.sha256 or row.reason in ("unreadable", "not_a_file", "too_large", "refused")
        json.dumps(vars(row), ensure_ascii=False, allow_nan=False).encode()
        if row.notebook is not None:
            sanitise(row.notebook, ASSIGNMENT, {"seed": 3})
    assert len({row.student for row in rows}) == len(rows)
    return rows


def only(folder: Path) -> Intake:
    (row,) = received(folder)
    return row


# ---- what is expected ----


@pytest.mark.parametrize("suffix", [".ipynb", ".IPYNB", ".zip", ".tar", ".tar.gz", ".tgz", ""])
def test_every_form_of_submission_gives_the_same_answers(tmp_path, suffix) -> None:
    target = tmp_path / f"ann{suffix}"
    files = {"A3/A3.ipynb": GOOD, "A3/notes.txt": b"mine"}
    if suffix == "":
        write_folder(target, files)
    elif "ip" in suffix.lower() and suffix != ".zip":
        target.write_bytes(GOOD)
    else:
        target.write_bytes(zipped(files) if suffix == ".zip" else tarred(files, suffix != ".tar"))
    row = only(tmp_path)
    assert (row.student, row.reason, row.detail) == ("ann", "ok", "")
    answers = sanitise(row.notebook, ASSIGNMENT, {}).answers
    assert answers == {name: f"def {name}():\n    return {k}" for name, k in
                       (("loss", 1), ("noise", 2))}  # fmt: skip
    assert len(row.files) == (1 if suffix.lower() == ".ipynb" else 2)


def test_nothing_but_types_sources_and_ids_goes_further(tmp_path) -> None:
    notebook = answered()
    for part in notebook["cells"]:
        part["metadata"] |= {"tags": ["raises-exception"], "collapsed": True}
        part["attachments"] = {"a.png": {"image/png": "AAAA"}}
        part["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "points: 100"}]
    (tmp_path / "ann.ipynb").write_text(json.dumps(notebook))
    row = only(tmp_path)
    assert row.notebook["metadata"] == {}
    for part in row.notebook["cells"]:
        assert set(part) == {"cell_type", "metadata", "source"}
        assert set(part["metadata"]) == {"nbgrader"}
        assert set(part["metadata"]["nbgrader"]) == {"grade_id"}


def test_a_change_anywhere_changes_the_sha256(tmp_path) -> None:
    target = write_folder(tmp_path / "ann", {"A3.ipynb": GOOD, "data/x.csv": b"1"})
    before = only(tmp_path)
    assert before.sha256 == only(tmp_path).sha256
    (target / "data/x.csv").write_bytes(b"2")
    after = only(tmp_path)
    assert before.sha256 != after.sha256 and before.files["A3.ipynb"] == after.files["A3.ipynb"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["A3/any.ipynb", "A1/any.ipynb", "A31/any.ipynb"], "A3/any.ipynb"),
        (["a3_losses.ipynb", "other.ipynb"], "a3_losses.ipynb"),
        (["A3/A3.ipynb", "A3/scratch.ipynb"], "A3/A3.ipynb"),
        (["A3.ipynb", ".ipynb_checkpoints/A3-checkpoint.ipynb"], "A3.ipynb"),
        (["any.ipynb", "__MACOSX/._any.ipynb", "._any.ipynb"], "any.ipynb"),
        (["any.ipynb"], "any.ipynb"),
    ],
)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_the_notebook_is_found_among_others(tmp_path, names, chosen, form) -> None:
    files = {name: GOOD if name == chosen else b"{}" for name in names}
    if form == "folder":
        write_folder(tmp_path / "ann", files)
    else:
        (tmp_path / "ann.zip").write_bytes(zipped(files))
    assert only(tmp_path).reason == "ok"


def test_hidden_entries_and_litter_are_no_submissions(tmp_path) -> None:
    write_folder(tmp_path, {".git/x": b"", ".DS_Store": b"", "__MACOSX/x": b"", "Thumbs.db": b""})
    assert find_submissions(tmp_path) == []


@pytest.mark.parametrize("name", ["nothing", "a_file"])
def test_a_folder_that_is_none_is_one_line(tmp_path, name) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(IntakeError, match=r"^expected a folder of submissions, got .*\)$"):
        find_submissions(tmp_path / name)


# ---- faults: the notebook ----

DEEP = 100_000
V3 = {
    "nbformat": 3,
    "nbformat_minor": 0,
    "metadata": {"name": ""},
    "worksheets": [
        {
            "metadata": {},
            "cells": [
                {"cell_type": "heading", "level": 1, "metadata": {}, "source": ["Losses"]},
                {
                    "cell_type": "code",
                    "input": ["def loss():\n", "    return 1"],
                    "language": "python",
                    "metadata": {"nbgrader": {"grade_id": "loss"}},
                    "outputs": [],
                },
            ],
        }
    ],
}
NOTEBOOKS = {
    "empty": (b"", "empty"),
    "blank": (b" \n\t", "empty"),
    "truncated": (GOOD[:-20], "not_json"),
    "text after it": (GOOD + b"\nThe End", "not_json"),
    "twice in one file": (GOOD + GOOD, "not_json"),
    "merge conflict": (b"<<<<<<< HEAD\n" + GOOD, "not_json"),
    "NaN": (changed(extra=float("nan")), "not_json"),
    "Infinity": (changed(extra=float("-inf")), "not_json"),
    "a number too large": (GOOD[:-1] + b', "extra": 1e999}', "not_json"),
    "a number of 5,000 digits": (GOOD[:-1] + b', "extra": %s}' % (b"9" * 5000), "not_json"),
    "a key twice": (GOOD[:-1] + b', "cells": []}', "not_json"),
    "a key twice, far in": (GOOD[:-1] + b', "extra": [{"a": 1, "a": 2}]}', "not_json"),
    "lists in lists": (b"[" * DEEP + b"]" * DEEP, "not_json"),
    "objects in objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "not_json"),
    "deep where nobody looks": (
        GOOD[:-1] + b', "extra": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        "not_json",
    ),
    "a script": (b"def loss():\n    return 1\n", "not_json"),
    "a web page": (b"<html><script>alert(1)</script></html>", "not_json"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "not_utf8"),
    "Latin-1": (GOOD.replace(b"# Losses", b"# P\xe9nalit\xe9s"), "not_utf8"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not_utf8"),
    "half a character": (with_cell(source="x = '\ud800'"), "not_utf8"),
    "an archive by another name": (b"PK\x03\x04\xff\xff", "not_utf8"),
    "a huge file": (b" " * (intake.FILE_BYTES + 1), "too_large"),
    "a huge cell": (with_cell(source="#" * (intake.SOURCE_CHARACTERS + 1)), "too_large"),
    "too many cells": (changed(cells=answered()["cells"] * 400), "too_large"),
    "too many values": (GOOD[:-1] + b', "extra": [' + b"{}," * 600_000 + b"0]}", "too_large"),
    "format 2": (changed(nbformat=2), "unknown_format"),
    "format 5": (changed(nbformat=5), "unknown_format"),
    "format of 4,000 digits": (GOOD.replace(b'format": 4', b'format": 4' + b"0" * 4000),
                               "unknown_format"),
    "format as text": (changed(nbformat="4\n"), "unknown_format"),
    "format as a list": (changed(nbformat=[[4]]), "unknown_format"),
    "format missing": (b'{"cells": []}', "unknown_format"),
    "format 3 without sheets": (changed(nbformat=3), "not_a_notebook"),
    "format 3 with a sheet that is none": (changed(nbformat=3, worksheets=[1]), "not_a_notebook"),
    "a list": (b"[" + GOOD + b"]", "not_a_notebook"),
    "a number": (b"7", "not_a_notebook"),
    "null": (b"null", "not_a_notebook"),
    "cells missing": (b'{"nbformat": 4}', "not_a_notebook"),
    "cells an object": (changed(cells={"0": {}}), "not_a_notebook"),
    "a cell that is text": (changed(cells=["code"]), "not_a_notebook"),
    "a cell of unknown type": (with_cell(cell_type="<b>\n"), "not_a_notebook"),
    "a cell whose type is a list": (with_cell(cell_type=["code"]), "not_a_notebook"),
    "a source that is a number": (with_cell(source=1), "not_a_notebook"),
    "a source with a number": (with_cell(source=["a", 1]), "not_a_notebook"),
    "a source that is null": (with_cell(source=None), "not_a_notebook"),
    "metadata of a cell a list": (with_cell(metadata=[]), "not_a_notebook"),
    "metadata of a cell null": (with_cell(metadata=None), "not_a_notebook"),
    "no cells": (changed(cells=[]), "other_notebook"),
    "the answers taken out": (changed(cells=answered()["cells"][:2]), "other_notebook"),
    "every grade_id lost": (re.sub(rb'"nbgrader": ', b'"lost": ', GOOD), "other_notebook"),
    "every grade_id renamed": (re.sub(rb'"grade_id": "', b'"grade_id": "a-', GOOD),
                               "other_notebook"),
    "every grade_id a list": (re.sub(rb'"grade_id": ("[a-z-]+")', rb'"grade_id": [\1]', GOOD),
                              "other_notebook"),
    "nbgrader's metadata a list": (re.sub(rb'"nbgrader": (\{.*?\})', rb'"nbgrader": [\1]', GOOD),
                                   "other_notebook"),
    # What looks odd and loses nobody an answer:
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, "ok"),
    "format 3": (json.dumps(V3).encode(), "ok"),
    "format 4.0": (changed(nbformat_minor=0), "ok"),
    "a minor format of the future": (changed(nbformat_minor=10**300), "ok"),
    "a minor format of text": (changed(nbformat_minor="five"), "ok"),
    "metadata of the notebook a list": (changed(metadata=["python"]), "ok"),
    "metadata of the notebook missing": (re.sub(rb'"metadata": \{"kern.*?\}\}, ', b"", GOOD), "ok"),
    "another kernel": (changed(metadata={"kernelspec": {"name": "bash"}}), "ok"),
    "ids twice": (re.sub(rb'"id": "[a-z-]+"', b'"id": "same"', GOOD), "ok"),
    "ids missing": (re.sub(rb'"id": "[a-z-]+", ', b"", GOOD), "ok"),
    "outputs that are none": (with_cell(outputs="<script>"), "ok"),
    "half a character in an output": (with_cell(outputs=["\udfff"]), "ok"),
    "attachments": (with_cell(attachments={"../x": {"text/html": "<script>"}}), "ok"),
    "a zero byte": (with_cell(source="a = '\0'"), "ok"),
    "lines as a list": (with_cell(source=["def loss():\n", "    return 1"]), "ok"),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=fault) for name in NOTEBOOKS])
def test_faulty_notebook(tmp_path, name) -> None:
    content, reason = NOTEBOOKS[name]
    (tmp_path / "ann.ipynb").write_bytes(content)
    row = only(tmp_path)
    assert row.reason == reason and row.student == "ann"
    assert row.reason in ("ok", "empty") or row.detail, "a refusal says what it met"
    if reason == "ok":
        assert "loss" in sanitise(row.notebook, ASSIGNMENT, {}).answers


@UNHURRIED
@given(content=st.binary(max_size=300))
def test_any_bytes_are_an_intake(content, tmp_path) -> None:
    for suffix in (".ipynb", ".zip", ".tar", ".tar.gz"):
        (tmp_path / f"ann{suffix}").write_bytes(content)
    assert {row.reason for row in received(tmp_path)} & {"ok"} == set()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@UNHURRIED
@given(data=st.data())
def test_any_value_anywhere_in_a_notebook_is_an_intake(data, tmp_path) -> None:
    notebook = answered()
    places: list[tuple[object, object]] = []
    waiting: list[object] = [notebook]
    while waiting:
        part = waiting.pop()
        keys = part if isinstance(part, dict) else range(len(part))
        places += [(part, key) for key in keys]
        waiting += [part[key] for key in keys if isinstance(part[key], (dict, list))]
    part, key = data.draw(st.sampled_from(places))
    part[key] = data.draw(json_values)
    (tmp_path / "ann.ipynb").write_text(json.dumps(notebook))
    only(tmp_path)


# ---- faults: archives ----


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def zipped_as(mode: int, name: str = "A3.ipynb", content: bytes = b"/etc/passwd") -> bytes:
    """An archive with one entry of a kind, as Unix writes it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (mode | 0o644) << 16
        archive.writestr(entry, content)
    return target.getvalue()


def zipped_twice() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("A3.ipynb", GOOD)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("A3.ipynb", b"{}")
    return target.getvalue()


def patched(archive: bytes, offset: int, local_offset: int, value: bytes) -> bytes:
    """An archive of one entry with other bytes in both of its headers."""
    content = bytearray(archive)
    for start, place in ((content.rindex(b"PK\x01\x02"), offset), (0, local_offset)):
        content[start + place : start + place + len(value)] = value
    return bytes(content)


def tarred(files: dict[str, bytes], compressed: bool = False) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz" if compressed else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def tarred_as(kind: bytes, linkname: str = "/etc/passwd", name: str = "A3.ipynb") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, linkname
        archive.addfile(entry)
    return target.getvalue()


def resized(archive: bytes, size: bytes) -> bytes:
    """A tar of one file whose header gives another size, with a checksum that fits."""
    header = bytearray(archive[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + archive[512:]


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


MANY = {f"{k}.txt": b"" for k in range(intake.FILES)} | {"A3.ipynb": GOOD}
ZEROS = bytes(15_000_000)
ARCHIVES = {
    "zip: a path up": (".zip", zipped({"../A3.ipynb": GOOD}), "refused"),
    "zip: a path up inside": (".zip", zipped({"a/../../A3.ipynb": GOOD}), "refused"),
    "zip: a path up for Windows": (".zip", zipped({"..\\..\\A3.ipynb": GOOD}), "refused"),
    "zip: an absolute path": (".zip", zipped({"/tmp/A3.ipynb": GOOD}), "refused"),
    "zip: a drive": (".zip", zipped({"C:\\A3.ipynb": GOOD}), "refused"),
    "zip: a folder outside": (".zip", zipped({"../x/": b"", "A3.ipynb": GOOD}), "refused"),
    "zip: a link": (".zip", zipped_as(stat.S_IFLNK), "refused"),
    "zip: a device": (".zip", zipped_as(stat.S_IFCHR), "refused"),
    "zip: a pipe": (".zip", zipped_as(stat.S_IFIFO), "refused"),
    "zip: encrypted": (".zip", patched(zipped({"A3.ipynb": GOOD}), 8, 6, b"\1"), "refused"),
    "zip: one name twice": (".zip", zipped_twice(), "refused"),
    "zip: one name in two spellings": (".zip", zipped({"A3.ipynb": GOOD, "./A3.ipynb": b"{}"}),
                                       "refused"),
    "zip: bzip2": (".zip", zipped({"A3.ipynb": GOOD}, zipfile.ZIP_BZIP2), "refused"),
    "zip: LZMA": (".zip", zipped({"A3.ipynb": GOOD}, zipfile.ZIP_LZMA), "refused"),
    "zip: unknown method": (".zip", patched(zipped({"A3.ipynb": GOOD}), 10, 8, b"\x63"), "refused"),
    "zip: a bomb": (".zip", zipped({"A3.ipynb": GOOD, "x": ZEROS}), "too_large"),
    "zip: a bomb that says so": (".zip", zipped({"x": bytes(intake.FILE_BYTES + 1)}), "too_large"),
    "zip: too many entries": (".zip", zipped(MANY), "too_large"),
    "zip: a directory without end": (".zip", b"PK\x01\x02" * 10_001, "too_large"),
    "zip: truncated": (".zip", zipped({"A3.ipynb": GOOD})[:-30], "archive_damaged"),
    "zip: a wrong checksum": (".zip", patched(zipped({"A3.ipynb": GOOD}), 16, 14, b"abcd"),
                              "archive_damaged"),
    "zip: text": (".zip", b"my answers", "archive_damaged"),
    "zip: an empty file": (".zip", b"", "archive_damaged"),
    "zip: a tar by another name": (".zip", tarred({"A3.ipynb": GOOD}), "archive_damaged"),
    "zip: nothing in it": (".zip", zipped({}), "no_notebook"),
    "zip: no notebook": (".zip", zipped({"A3.py": b"1", "<b>\n.txt": b""}), "no_notebook"),
    "zip: an archive in it": (".zip", zipped({"A3.zip": zipped({"A3.ipynb": GOOD})}),
                              "no_notebook"),
    "zip: two notebooks": (".zip", zipped({"a.ipynb": GOOD, "b.ipynb": GOOD}), "several_notebooks"),
    "zip: a broken notebook": (".zip", zipped({"A3.ipynb": GOOD[:-1]}), "not_json"),
    "zip: Windows's separators": (".zip", zipped({"A3\\A3.ipynb": GOOD, "b\\b.ipynb": b""}), "ok"),
    "tar: a path up": (".tar", tarred({"../A3.ipynb": GOOD}), "refused"),
    "tar: an absolute path": (".tar.gz", tarred({"/tmp/A3.ipynb": GOOD}, True), "refused"),
    "tar: a symbolic link": (".tar", tarred_as(tarfile.SYMTYPE), "refused"),
    "tar: a hard link": (".tar", tarred_as(tarfile.LNKTYPE), "refused"),
    "tar: a character device": (".tar", tarred_as(tarfile.CHRTYPE), "refused"),
    "tar: a block device": (".tar", tarred_as(tarfile.BLKTYPE), "refused"),
    "tar: a pipe": (".tar", tarred_as(tarfile.FIFOTYPE), "refused"),
    "tar: a file with holes": (".tar", tarred_as(tarfile.GNUTYPE_SPARSE), "refused"),
    "tar: one name twice": (".tar", tarred({"A3.ipynb": GOOD, "./A3.ipynb": b"{}"}), "refused"),
    "tar: a bomb": (".tar.gz", tarred({"A3.ipynb": GOOD, "x": ZEROS}, True), "too_large"),
    "tar: too many entries": (".tar.gz", tarred(MANY, True), "too_large"),
    "tar: a size below zero": (".tar", resized(tarred({"A3.ipynb": GOOD}), b"\xff" * 12),
                               "too_large"),
    "tar: a size of 8 GB": (".tar", resized(tarred({"A3.ipynb": GOOD}), b"77777777777\0"),
                            "too_large"),
    "tar: truncated": (".tar", tarred({"A3.ipynb": GOOD})[:600], "archive_damaged"),
    "tar: truncated when packed": (".tar.gz", tarred({"A3.ipynb": GOOD}, True)[:-20],
                                   "archive_damaged"),
    "tar: not packed": (".tar.gz", tarred({"A3.ipynb": GOOD}), "archive_damaged"),
    "tar: an empty file": (".tgz", b"", "archive_damaged"),
    "tar: empty parts": (".tgz", gzip.compress(b"") * 1000, "archive_damaged"),
    "tar: packed text": (".tgz", gzip.compress(b"my answers"), "archive_damaged"),
    "tar: nothing in it": (".tar", tarred({}), "no_notebook"),
    "tar: two notebooks": (".tar", tarred({"a.ipynb": GOOD, "b.ipynb": b""}), "several_notebooks"),
    "another archive": (".7z", b"7z\xbc\xaf\x27\x1c", "no_notebook"),
    "a document": (".pdf", b"%PDF-1.7", "no_notebook"),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=fault) for name in ARCHIVES])
def test_faulty_archive(tmp_path, name) -> None:
    suffix, content, reason = ARCHIVES[name]
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / f"ann{suffix}").write_bytes(content)
    row = only(inbox)
    assert row.reason == reason
    assert row.sha256 and (reason == "ok" or row.detail)
    assert [path.name for path in tmp_path.rglob("*")] == ["inbox", f"ann{suffix}"], "unpacked"


def reason_and_peak(folder: Path) -> tuple[str, int]:
    """Take in one submission and say how many bytes Python held for it at most."""
    tracemalloc.start()
    try:
        row = take_in(find_submissions(folder)[0], ASSIGNMENT)
        return row.reason, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@fault
def test_a_zip_that_lies_about_its_size_is_not_unpacked(tmp_path) -> None:
    bomb = zipped({"A3.ipynb": bytes(60_000_000)})
    (tmp_path / "ann.zip").write_bytes(patched(bomb, 24, 22, len(bomb).to_bytes(4, "little")))
    reason, peak = reason_and_peak(tmp_path)
    assert reason == "archive_damaged"
    assert peak < 1.5 * intake.FILE_BYTES, "the buffer of a file's reading, and no more"


@fault
def test_a_packed_tar_whose_header_is_the_bomb_is_not_unpacked(tmp_path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 60_000_000
    bomb = gzip.compress(header.tobuf() + bytes(60_000_000))
    (tmp_path / "ann.tgz").write_bytes(bomb)
    reason, peak = reason_and_peak(tmp_path)
    assert reason == "too_large"
    assert peak < 50_000_000, "less than what it unpacks to"


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_any_damage_to_an_archive_is_an_intake(tmp_path, suffix) -> None:
    files = {"A3.ipynb": GOOD[:50], "folder/a.txt": b"a" * 600, "b" * 120: b"x"}
    whole = zipped(files) if suffix == ".zip" else tarred(files, suffix == ".tar.gz")
    whole = whole.rstrip(b"\0")  # of a tar's end
    byte = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))

    @UNHURRIED
    @given(changes=st.lists(byte, min_size=1, max_size=4), end=st.integers(0, len(whole)))
    @example(changes=[(156, ord("x"))], end=len(whole))
    @example(changes=[(156, ord("L"))], end=len(whole))
    def damage(changes, end) -> None:
        content = bytearray(whole)
        for place, value in changes:
            content[place] = value
        (tmp_path / f"ann{suffix}").write_bytes(content[: end or None])
        only(tmp_path)

    damage()


# ---- faults: the file system ----


@fault
def test_a_link_as_a_submission(tmp_path) -> None:
    inbox, secret = tmp_path / "inbox", tmp_path / "solution.ipynb"
    inbox.mkdir()
    secret.write_bytes(GOOD)
    (inbox / "ann.ipynb").symlink_to(secret)
    row = only(inbox)
    assert row.reason == "not_a_file" and not row.files


@fault
def test_a_link_to_a_folder_as_a_submission(tmp_path) -> None:
    write_folder(tmp_path / "others/bob", {"A3.ipynb": GOOD})
    write_folder(tmp_path / "inbox", {})
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox/ann").symlink_to(tmp_path / "others/bob")
    assert only(tmp_path / "inbox").reason == "not_a_file"


@fault
@pytest.mark.parametrize("target", ["missing", "ann.ipynb", "/dev/zero", "."])
def test_a_link_to_nothing_itself_or_without_end(tmp_path, target) -> None:
    (tmp_path / "ann.ipynb").symlink_to(target)
    assert only(tmp_path).reason == "not_a_file"


@fault
@pytest.mark.parametrize("target", ["missing", "..", "/etc/passwd"])
def test_a_link_in_a_folder(tmp_path, target) -> None:
    folder = write_folder(tmp_path / "ann", {"A3.ipynb": GOOD})
    (folder / "data").symlink_to(target)
    assert only(tmp_path).reason == "not_a_file"


@fault
@pytest.mark.parametrize("place", ["ann.ipynb", "ann/A3.ipynb"])
def test_a_pipe_does_not_block(tmp_path, place) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / place)
    assert only(tmp_path).reason == "not_a_file"


@fault
def test_a_file_that_becomes_a_pipe_does_not_block(tmp_path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "ann.ipynb")
    monkeypatch.setattr(intake, "_size", lambda path: 0)
    assert only(tmp_path).reason == "empty"


@fault
def test_a_file_that_becomes_a_link_is_not_followed(tmp_path, monkeypatch) -> None:
    (tmp_path / "ann.ipynb").symlink_to("/etc/hosts")
    monkeypatch.setattr(intake, "_size", lambda path: 0)
    assert only(tmp_path).reason == "unreadable"


@fault
def test_a_socket(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("ann.ipynb")
        assert only(tmp_path).reason == "not_a_file"


@contextlib.contextmanager
def an_ordinary_user() -> Iterator[None]:
    """Give up root's right to read everything, if this is root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@fault
@pytest.mark.parametrize("place", ["ann.ipynb", "ann", "ann/A3.ipynb", "ann/data"])
def test_what_nobody_may_read(place) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        closed = folder / place
        if place.endswith(".ipynb"):
            write_folder(folder, {place: GOOD})
        else:
            write_folder(closed, {"A3.ipynb": GOOD})
        write_folder(folder, {"bob.ipynb": GOOD})
        closed.chmod(0)
        try:
            with an_ordinary_user():
                reasons = {row.student: row.reason for row in received(folder)}
        finally:
            closed.chmod(0o700)
        assert reasons == {"ann": "unreadable", "bob": "ok"}


@fault
def test_a_folder_that_can_be_listed_but_not_entered() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(Path(name), {"ann.ipynb": GOOD, "bob/A3.ipynb": GOOD})
        folder.chmod(0o744)
        with an_ordinary_user():
            rows = [take_in(entry, ASSIGNMENT) for entry in find_submissions(folder)]
        folder.chmod(0o700)
        assert [row.reason for row in rows] == ["unreadable"] * 2


@fault
def test_a_submission_that_vanishes(tmp_path) -> None:
    row = take_in(Submission("ann", tmp_path / "ann.ipynb"), ASSIGNMENT)
    assert row.reason == "unreadable"


@fault
def test_a_file_of_a_terabyte(tmp_path) -> None:
    with open(tmp_path / "ann.ipynb", "wb") as file:
        file.truncate(10**12)
    write_folder(tmp_path / "bob", {"A3.ipynb": GOOD})
    with open(tmp_path / "bob/data.bin", "wb") as file:
        file.truncate(10**12)
    assert [row.reason for row in received(tmp_path)] == ["too_large"] * 2


@fault
@pytest.mark.parametrize("kind", ["files", "folders", "depth"])
def test_a_folder_without_end(tmp_path, kind) -> None:
    folder = write_folder(tmp_path / "ann", {"A3.ipynb": GOOD})
    if kind == "depth":
        deep = folder
        for _ in range(300):
            deep = deep / "d"
            deep.mkdir()
        assert only(tmp_path).reason == "ok"
        return
    for number in range(intake.FILES):
        (folder / str(number)).mkdir() if kind == "folders" else (folder / str(number)).touch()
    assert only(tmp_path).reason == "too_large"


@fault
@pytest.mark.parametrize("files", [{}, {"A3.py": b""}, {".hidden.ipynb": GOOD}])
def test_a_folder_without_a_notebook(tmp_path, files) -> None:
    (tmp_path / "ann").mkdir()
    write_folder(tmp_path / "ann", files)
    assert only(tmp_path).reason == "no_notebook"


@fault
def test_a_folder_with_two_notebooks(tmp_path) -> None:
    write_folder(tmp_path / "ann", {"A3.ipynb": GOOD, "A3 (1).ipynb": GOOD})
    row = only(tmp_path)
    assert (row.reason, row.detail) == ("several_notebooks", "A3 (1).ipynb, A3.ipynb")


# ---- faults: names ----

NAMES = [
    *("a\nb", "\r", "\t=1", "-rf", "--help", "=cmd|' C calc'!A0", "+1", "c: d", "@SUM(1)", "-1+1"),
    *("<script>alert(1)", "\"'><img src=x>", "a&b;c,d", "${HOME}", "`id`", "a\\..\\b"),
    *("..a", "~", "*", "con", "NUL.txt", "Ann", "ANN", "é", "e\u0301", "\u202etxt", "\u200b"),
    *("x" * 249, "学生", "🙂", " ", "a b", "a.", "%2e%2e%2f", "\udcff\udcfe", "\ufeff=1"),
]


@pytest.mark.parametrize("name", [pytest.param(name, marks=fault) for name in NAMES])
@pytest.mark.parametrize("form", [".ipynb", ""])
def test_nasty_name(tmp_path, name, form) -> None:
    if name.startswith("."):
        name = f"x{name}"
    target = tmp_path / f"{name}{form}"
    if form:
        target.write_bytes(GOOD)
    else:
        write_folder(target, {f"{name}.ipynb": GOOD})
    row = only(tmp_path)
    assert row.reason == "ok"
    assert_plain(safe_name(row.student))
    assert_no_formula(safe_text(row.student))
    assert all(name.isprintable() for name in row.files)


def assert_plain(name: str) -> None:
    """Hold a name to what makes it harmless in a path, a command, a page and a link."""
    assert re.fullmatch(r"[a-z0-9][a-z0-9._~-]*", name) and 1 <= len(name) <= 64
    assert not name.endswith(".") and Path(name).name == name
    assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name)


def assert_no_formula(text: str) -> None:
    assert text.isprintable()
    assert not unicodedata.normalize("NFKC", text).lstrip().startswith(("=", "+", "-", "@"))
    target = io.StringIO()
    csv.writer(target).writerow([text, 1])
    assert next(csv.reader([target.getvalue()])) == [text, "1"]


@fault
def test_names_that_differ_only_in_case_or_form_stay_apart(tmp_path) -> None:
    names = ["Ann", "ann", "ANN", "é", "e\u0301", "É", "a b", "a-b", "a/b".replace("/", "\u2215")]
    write_folder(tmp_path, {f"{name}.ipynb": GOOD for name in names})
    rows = received(tmp_path)
    assert len(rows) == len(names)
    assert len({safe_name(row.student).casefold() for row in rows}) == len(names)


@fault
def test_one_student_in_several_forms_has_a_row_for_each(tmp_path) -> None:
    files = ["ann.ipynb", "ann.zip", "ann.tar.gz", "ann.ipynb.zip", "bob.ipynb", "bob.IPYNB"]
    write_folder(tmp_path, dict.fromkeys(files, GOOD))
    write_folder(tmp_path / "ann", {"A3.ipynb": GOOD})
    assert {row.student for row in received(tmp_path)} == {"ann", *files}


@fault
def test_a_name_that_is_anothers_safe_name(tmp_path) -> None:
    write_folder(tmp_path, {"Ann.ipynb": GOOD, f"{safe_name('Ann')}.ipynb": GOOD})
    assert len({safe_name(row.student) for row in received(tmp_path)}) == 2


@fault
def test_a_name_that_is_anothers_escaped_name(tmp_path) -> None:
    write_folder(tmp_path, {"a\n.ipynb": GOOD, r"a\n.ipynb": GOOD})
    assert [row.student for row in received(tmp_path)] == [r"a\n", r"a\\n"]


@fault
def test_the_same_file_of_two_students_is_seen(tmp_path) -> None:
    write_folder(tmp_path, {"ann.ipynb": GOOD, "bob/A3.ipynb": GOOD, "eve.zip": b""})
    (tmp_path / "eve.zip").write_bytes(zipped({"A3.ipynb": GOOD}))
    rows = received(tmp_path)
    assert [row.reason for row in rows] == ["ok"] * 3
    assert len({digest for row in rows for digest in row.files.values()}) == 1


NAMES_ON_DISK = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=20)


@UNHURRIED
@given(texts=st.lists(st.text() | st.text("aA~-0"), unique=True, min_size=1, max_size=8))
def test_safe_name_is_plain_and_never_shared(texts) -> None:
    names = [safe_name(text) for text in texts]
    for name in names:
        assert_plain(name)
        assert safe_name(name) == name or "~" in name
    assert len(set(names)) == len(texts)


@pytest.mark.parametrize("name", ["ann", "student-17", "a.miller_2", "7"])
def test_safe_name_leaves_ordinary_names_alone(name) -> None:
    assert safe_name(name) == name


@UNHURRIED
@given(text=st.text() | st.text("=+-@＝＋－＠ \t\n\u00a0a'"))
def test_safe_text_is_one_line_and_no_formula(text) -> None:
    assert_no_formula(safe_text(text))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("Ann Miller", "Ann Miller"),
        ("a=b", "a=b"),
        ("=1+1", "'=1+1"),
        (" @x", "' @x"),
        ("＝1", "'＝1"),
        ("\tx", r"'\tx"),
        ("a\nb\udcff", r"a\nb\udcff"),
    ],
)
def test_safe_text_by_example(text, safe) -> None:
    assert safe_text(text) == safe


def test_one_line_keeps_what_can_be_read() -> None:
    assert one_line("Zoë 学生 a\\n") == "Zoë 学生 a\\n"
    assert one_line("a\r\n\u2028\x1b[31m") == r"a\r\n\u2028\x1b[31m"


@UNHURRIED
@given(names=st.lists(NAMES_ON_DISK, unique=True, max_size=5), suffix=st.sampled_from(["", ".zip"]))
def test_every_entry_is_one_student(names, suffix) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            with contextlib.suppress(OSError, UnicodeEncodeError):  # what no disk takes
                (Path(folder) / f"{name}{suffix}").touch()
        visible = [name for name in os.listdir(folder) if not intake._is_litter(name)]
        found = find_submissions(Path(folder))
        assert sorted(entry.path.name for entry in found) == sorted(visible)
        assert len({entry.student for entry in found}) == len(visible)
