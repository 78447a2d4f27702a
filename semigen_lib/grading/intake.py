"""What was handed in: a folder, a notebook or an archive a student, read as if it were hostile.

Nothing is unpacked to the disk and nothing is read before its size is known. Whatever cannot be
graded becomes a reason of a closed list, so that every submission gets its row and none a
traceback. Of a notebook only the types, sources and ``grade_id`` of its cells are kept: no
metadata, tags, outputs or attachments go any further.

Shown in: book/instructor.md
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from semigen_lib.grading.assignment import Assignment
from semigen_lib.grading.sanitise import answer_ids, cell_id

__all__ = [
    "REASONS",
    "Intake",
    "IntakeError",
    "Submission",
    "find_submissions",
    "one_line",
    "safe_name",
    "safe_text",
    "take_in",
]

REASONS = {
    "ok": "the submission can be graded",
    "archive_damaged": "the archive cannot be read",
    "empty": "the notebook is an empty file",
    "no_notebook": "there is no notebook in it",
    "not_a_file": "a link, a pipe or a device was handed in instead of a file",
    "not_a_notebook": "the file is JSON, but no notebook",
    "not_json": "the notebook is damaged: it is no strict JSON",
    "not_utf8": "the notebook is not text in UTF-8",
    "other_notebook": "the notebook has none of the assignment's answer cells",
    "refused": "it holds what no answer needs: links, paths outside, encrypted or doubled entries",
    "several_notebooks": "there is more than one notebook, and none is named like the assignment",
    "too_large": "it is larger than any answer needs to be",
    "unknown_format": "the notebook has a format other than 4 or 3",
    "unreadable": "the file or folder cannot be opened",
}
"""Why a submission is graded or not: code and sentence. No other code occurs."""

FILE_BYTES = 20_000_000  # of a notebook, an archive or any file in it
TOTAL_BYTES = 100_000_000  # of all files of a submission, unpacked
RATIO = 200  # unpacked to packed size of an archive
FILES = 1000
VALUES = 1_000_000  # of a notebook's JSON, outputs and all
CELLS = 2000
SOURCE_CHARACTERS = 1_000_000  # of one cell
_SUFFIXES = (".ipynb", ".zip", ".tar", ".tar.gz", ".tgz")
_PLAIN = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@]")
_LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what systems leave behind, as hidden files do
# A pipe must not block and a link not be followed, should a file become one after it was looked at.
_CAREFULLY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
# What the standard library raises when it reads archives that were made to hurt it.
_DAMAGE = (
    *(ArithmeticError, EOFError, LookupError, OSError, RuntimeError, ValueError),
    *(struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error),
)
Entry = tuple[str, int, Callable[[], bytes] | None]  # name, size, how to read it (None: a folder)


class IntakeError(ValueError):
    """A folder of submissions that cannot be listed; one line, "expected ..., got ..."."""


class _Refused(Exception):
    """Carries a code of ``REASONS`` and a detail out of the reading functions."""


@dataclass(frozen=True)
class Submission:
    """One entry of a folder of submissions.

    Attributes
    ----------
    student : str
        Name of the entry without the suffix of a notebook or archive: one printable line, unique
        in its folder. Where two entries would share it, each keeps its suffix.
    path : Path
        The folder, notebook or archive.
    """

    student: str
    path: Path


@dataclass(frozen=True)
class Intake:
    """A submission as it was read.

    Attributes
    ----------
    student : str
        Whose it is.
    reason : str
        ``"ok"``, or the code of ``REASONS`` that says why it cannot be graded.
    detail : str
        One line for the student; empty if there is nothing to say.
    sha256 : str
        Of the notebook or archive, or of all names and files of a folder; empty if not read.
    notebook : dict or None
        Cells with type, source and ``grade_id``, in the form of nbformat 4; None if not ``"ok"``.
    files : dict of str to str
        sha256 of every file in the submission by its name.
    """

    student: str
    reason: str = "ok"
    detail: str = ""
    sha256: str = ""
    notebook: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)


# ---- names and texts that a student chose ----


def one_line(text: str) -> str:
    """Return a text with everything unprintable escaped: line ends, controls, lone surrogates."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def safe_text(text: str) -> str:
    """Return one line for a table that no spreadsheet takes for a formula.

    What begins with one of = + - @ or their wide forms, be it after blanks, or with a tab or the
    end of a line, gets an apostrophe in front.
    """
    formula = _FORMULA.match(unicodedata.normalize("NFKC", text))
    return ("'" if formula else "") + one_line(text)


def safe_name(text: str) -> str:
    """Return a plain file name that is another one for every other text.

    Small letters, digits, ``.``, ``_``, ``-`` and ``~``, at most 64 characters, beginning with a
    letter or digit: never a path, an option or a device, and distinct also where file systems
    ignore case or Unicode forms. A text that is no such name, or has a ``~``, becomes what is left
    of it, ``~`` and the beginning of its sha256.
    """
    if _PLAIN.fullmatch(text):
        return text
    digest = _sha256(text.encode("utf-8", "surrogatepass"))[:16]
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")[:40]
    return f"{stem or 'student'}~{digest}"


# ---- a folder of submissions ----


def find_submissions(folder: Path) -> list[Submission]:
    """List what was handed in: every entry of a folder that is not hidden, in order of its name.

    Nothing is opened: an entry that is no submission gets its reason from ``take_in``.

    Raises
    ------
    IntakeError
        If the folder does not exist, is no folder, or cannot be listed.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if not _is_litter(name))
    except OSError as error:
        got = one_line(f"{folder} ({error.strerror})")
        raise IntakeError(f"expected a folder of submissions, got {got}") from None
    stems = {name: _stem(folder / name) for name in names}
    count = Counter([*stems.values(), *(name for name in names if stems[name] != name)])
    students = {name: stem if count[stem] == 1 else name for name, stem in stems.items()}
    # Backslashes are doubled, so that an escaped name is no other student's real one.
    return [
        Submission(one_line(student.replace("\\", r"\\")), folder / name)
        for name, student in students.items()
    ]


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def _stem(path: Path) -> str:
    """Return the name of an entry without the suffix of a notebook or archive."""
    if os.path.isdir(path):  # says no, and raises nothing, where it may not look
        return path.name
    suffix = next((s for s in _SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]


# ---- one submission ----


def take_in(submission: Submission, assignment: Assignment) -> Intake:
    """Read a submission; whatever is wrong with it becomes its reason.

    The name of the assignment chooses among several notebooks, its template knows the answers.
    """
    path = submission.path
    sha256, files, notebook = "", {}, None
    reason, detail = "ok", ""
    try:
        if _size(path) is None:
            contents = _within_limits(_folder_entries(path), TOTAL_BYTES)
        else:
            content = _read_file(path)
            sha256 = _sha256(content)
            contents = _unpack(content, path)
        files = {one_line(name): _sha256(content) for name, content in contents.items()}
        sha256 = sha256 or _sha256(json.dumps(files, sort_keys=True).encode())
        name = _choose(list(contents), assignment.name)
        cells = _parse(contents[name])
        if not answer_ids(assignment.template).intersection(map(cell_id, cells)):
            raise _Refused("other_notebook", name)
        notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    except _Refused as refused:
        reason, detail = refused.args[0], one_line(refused.args[1])[:200]
    return Intake(submission.student, reason, detail, sha256, notebook, files)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _choose(names: list[str], wanted: str) -> str:
    """Return the one notebook, or the one whose file and folders are named most like wanted."""
    notebooks = [name for name in names if name.lower().endswith(".ipynb")]
    if not notebooks:
        raise _Refused("no_notebook", ", ".join(names[:3]) or "nothing in it")
    pattern = re.compile(re.escape(wanted.lower()) + r"(?![0-9a-z])")
    fits = [sum(map(bool, map(pattern.match, n.lower().split("/")))) for n in notebooks]
    best = [name for name, fit in zip(notebooks, fits, strict=True) if fit == max(fits)]
    if len(best) > 1:
        raise _Refused("several_notebooks", ", ".join(best[:3]))
    return best[0]


# ---- files and folders ----


def _size(path: Path) -> int | None:
    """Return the size of a file, None of a folder; what is neither, or a link, is refused."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise _Refused("unreadable", f"{path.name}: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise _Refused("not_a_file", path.name)
    return status.st_size


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | _CAREFULLY)) as file:
            content = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise _Refused("unreadable", f"{path.name}: {error.strerror}") from None
    if len(content) > FILE_BYTES:
        raise _Refused("too_large", f"{path.name}: more than {FILE_BYTES:,} bytes")
    return content


def _folder_entries(folder: Path) -> Iterator[Entry]:
    """Walk through a folder without following links; a folder in it is an entry too."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            names = sorted(name for name in os.listdir(place) if not _is_litter(name))
        except OSError as error:
            raise _Refused("unreadable", f"{place.name}: {error.strerror}") from None
        for name in names:
            path = place / name
            shown, size = path.relative_to(folder).as_posix(), _size(path)
            if size is None:
                waiting.append(path)
                yield shown, 0, None
            else:
                yield shown, size, functools.partial(_read_file, path)


def _within_limits(entries: Iterator[Entry], limit: int) -> dict[str, bytes]:
    """Read entries one by one, as long as they are harmless and few and small enough."""
    contents: dict[str, bytes] = {}
    total = 0
    for number, (name, size, read) in enumerate(entries, 1):
        total += max(size, 0)
        if number > FILES or not 0 <= size <= FILE_BYTES or total > limit:
            raise _Refused("too_large", f"more than {FILES:,} files or {limit:,} bytes unpacked")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise _Refused("refused", f"a path that leads outside: {name}")
        if read is None or any(map(_is_litter, path.parts)):
            continue
        if str(path) in contents:
            raise _Refused("refused", f"two entries of one name: {name}")
        contents[str(path)] = read()
    return contents


# ---- archives ----


def _unpack(content: bytes, path: Path) -> dict[str, bytes]:
    """Return the files of an archive in memory, or the file itself if it is none."""
    suffix = path.name[len(_stem(path)) :].lower()
    limit = min(TOTAL_BYTES, RATIO * len(content))
    try:
        if suffix == ".zip":
            return _within_limits(_zip_entries(content), limit)
        if suffix in (".tar.gz", ".tgz"):
            unpacker = zlib.decompressobj(wbits=31)  # gzip's form, of one part
            content = unpacker.decompress(content, limit + 1)
            if len(content) > limit:
                raise _Refused("too_large", f"{path.name}: more than {limit:,} bytes unpacked")
            if not unpacker.eof:
                raise EOFError("truncated")
        if suffix in (".tar", ".tar.gz", ".tgz"):
            return _within_limits(_tar_entries(content), limit)
    except _DAMAGE as error:
        raise _Refused("archive_damaged", f"{path.name}: {error}") from None
    return {path.name: content}


def _zip_entries(content: bytes) -> Iterator[Entry]:
    if content.count(b"PK\x01\x02") > 10 * FILES:  # ZipFile reads all at once
        raise _Refused("too_large", f"more than {FILES:,} files")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            # Other methods than these two unpack without a bound.
            simple = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or entry.flag_bits & 1 or not simple:
                raise _Refused("refused", f"a link, or encrypted: {entry.filename}")
            # Some programs of Windows write its own separators; a drive makes a path absolute.
            name = re.sub("^[A-Za-z]:", "/", entry.filename.replace("\\", "/"))
            read = functools.partial(_read_zipped, archive, entry)
            yield name, entry.file_size, None if entry.is_dir() else read


def _read_zipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read no more than an entry says it has: without a number, a lying one would be unpacked."""
    with archive.open(entry) as file:
        return file.read(entry.file_size + 1)


def _tar_entries(content: bytes) -> Iterator[Entry]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for entry in archive:
            regular = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse()
            if not regular and not entry.isdir():
                raise _Refused("refused", f"a link or a device: {entry.name}")
            read = functools.partial(_read_tarred, archive, entry)
            yield entry.name, entry.size, None if entry.isdir() else read


def _read_tarred(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    with archive.extractfile(entry) as file:
        return file.read()


# ---- notebooks ----


def _parse(content: bytes) -> list[dict[str, Any]]:
    """Return the cells of a notebook, each with nothing but its type, source and ``grade_id``."""
    if not content.strip():
        raise _Refused("empty", "")
    if sum(map(content.count, (b",", b"[", b"{"))) > VALUES:  # millions would take a gigabyte
        raise _Refused("too_large", f"more than {VALUES:,} values")
    try:
        notebook = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise _Refused("not_utf8", f"{error.reason} at byte {error.start:,}") from None
    except RecursionError:
        raise _Refused("not_json", "nested too deep") from None
    except ValueError as error:
        raise _Refused("not_json", str(error)) from None
    cells = _cells(_expect(notebook, dict, "the notebook"))
    if len(cells) > CELLS:
        raise _Refused("too_large", f"expected at most {CELLS:,} cells, got {len(cells):,}")
    return [_reduce(cell, f"cell {number}") for number, cell in enumerate(cells, 1)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {text[:20]}")
    return value


def _cells(notebook: dict[str, Any]) -> list[Any]:
    version = notebook.get("nbformat")
    if version == 4:
        return _expect(notebook.get("cells"), list, "cells")
    if version == 3:
        sheets = _expect(notebook.get("worksheets"), list, "worksheets")
        sheets = [_expect(sheet, dict, "a worksheet") for sheet in sheets]
        return [c for sheet in sheets for c in _expect(sheet.get("cells"), list, "cells")]
    got = version if type(version) is int else type(version).__name__
    raise _Refused("unknown_format", f"expected nbformat 4, got {got}")


def _reduce(cell: object, place: str) -> dict[str, Any]:
    cell = _expect(cell, dict, place)
    kind = cell.get("cell_type")
    if kind not in ("code", "markdown", "raw", "heading"):  # format 3 has headings
        raise _Refused("not_a_notebook", f"{place}: expected code, markdown or raw")
    metadata = _expect(cell.get("metadata", {}), dict, f"metadata of {place}")
    source = cell.get("source", cell.get("input"))  # format 3 has input
    lines = source if isinstance(source, list) else [source]
    text = "".join(_expect(line, str, f"source of {place}") for line in lines)
    if len(text) > SOURCE_CHARACTERS:
        raise _Refused("too_large", f"{place}: more than {SOURCE_CHARACTERS:,} characters")
    name = cell_id({"metadata": metadata})
    try:
        f"{text}{name}".encode()
    except UnicodeEncodeError:
        raise _Refused("not_utf8", f"{place}: half a character (a lone surrogate)") from None
    return {
        "cell_type": "markdown" if kind == "heading" else kind,
        "metadata": {} if name is None else {"nbgrader": {"grade_id": name}},
        "source": text,
    }


def _expect(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        names = f"expected {what} to be {kind.__name__}, got {type(value).__name__}"
        raise _Refused("not_a_notebook", names)
    return value
