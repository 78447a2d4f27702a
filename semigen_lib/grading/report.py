"""The pages of a graded class: one for the instructor, one a student, readable without a network.

Everything that came from a student is escaped, and of what their notebooks showed only text and PNG
images are taken. The pages forbid browsers all scripts but the one that sorts the table.

Shown in: book/instructor.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from semigen_lib.checkpoint import write_atomically
from semigen_lib.grading.intake import REASONS, safe_name
from semigen_lib.grading.results import FLAGS, STATUSES, Record, flag_copies, percent, to_csv
from semigen_lib.grading.sanitise import PROBLEMS, cell_id

__all__ = [
    "RUN_REASONS",
    "feedback_page",
    "report_page",
    "visible_output",
    "write_reports",
]

RUN_REASONS = {
    "run_failed": "the run of the notebook ended early",
    "wall_limit": "the run was stopped: it took longer than the assignment allows",
    "memory_limit": "the run was stopped: it took more memory than the assignment allows",
    "output_limit": "the run was stopped: it wrote more than the assignment allows",
    "process_limit": "the run was stopped: it started too many processes",
}
MAX_TEXT = 20_000  # characters a cell shows
MAX_IMAGES = 30  # a notebook shows
MAX_IMAGE = 1_000_000  # bytes of a PNG
MAX_SIDE = 4000  # pixels of a PNG
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


# ---- what a notebook showed ----


def visible_output(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return text and PNG images that the cells of a run notebook show.

    The notebook may have been forged: what has not the form of an output is left out.

    Returns
    -------
    list of dict
        For each cell that shows something its name ``cell``, ``text``, and ``images`` in base64.
    """
    shown, left = [], MAX_IMAGES
    for number, cell in enumerate(_list(notebook, "cells"), 1):
        texts, images = [], []
        for output in _list(cell, "outputs"):
            data = output.get("data") if isinstance(output.get("data"), dict) else {}
            image = _checked_png(data.get("image/png"))
            if image and left:
                images.append(image)
                left -= 1
            elif output.get("output_type") == "error":
                texts.append("\n".join(map(str, _list(output, "traceback", str))) + "\n")
            else:
                texts.append(_text(output.get("text")) or _text(data.get("text/plain")) + "\n")
        text = _readable("".join(texts))
        if text or images:
            metadata = cell.get("metadata")
            name = cell_id(cell) if isinstance(metadata, dict) else None
            shown.append({"cell": name or f"cell {number}", "text": text, "images": images})
    return shown


def _list(mapping: Any, key: str, kind: type = dict) -> list[Any]:
    """Return those elements of a list that are of a kind; nothing where there is no list."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return [part for part in value if isinstance(part, kind)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    """Return a text of nbformat, which may be one string or a list of lines."""
    lines = value if isinstance(value, list) else [value]
    return "".join(line for line in lines if isinstance(line, str))


def _readable(text: str) -> str:
    """Return text as a terminal would leave it, without colours, in UTF-8, of a bearable length."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).strip("\n")
    # Of a bar that was drawn over and over, what was drawn last.
    text = "\n".join(line[line.rfind("\r", 0, -1) + 1 :] for line in text.split("\n"))
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
                   for c in text.replace("\r", ""))  # fmt: skip
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]}\n[…]\n{text[-MAX_TEXT // 2 :]}"
    return text


def _checked_png(value: Any) -> str:
    """Return a PNG of a bearable size as base64 in one piece; "" if it is none."""
    try:
        content = base64.b64decode("".join(_text(value).split()), validate=True)
    except (binascii.Error, ValueError):
        return ""
    sides = [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)]
    if not content.startswith(PNG) or len(content) > MAX_IMAGE or max(sides) > MAX_SIDE:
        return ""
    return base64.b64encode(content).decode()


# ---- pages ----


def write_reports(folder: Path, records: Mapping[str, Record]) -> None:
    """Write grades.csv, report.html and feedback/<student>.html, each atomically."""
    for student, record in records.items():
        page = feedback_page(record).encode("utf-8", "replace")
        write_atomically(folder / "feedback" / f"{safe_name(student)}.html", page)
    write_atomically(folder / "report.html", report_page(records).encode("utf-8", "replace"))
    write_atomically(folder / "grades.csv", to_csv(records).encode("utf-8", "replace"))


def feedback_page(record: Record) -> str:
    """Return the page that a student gets: points, what is wrong, and what their run showed.

    It names no other student, no seed and no expected value beyond what a message says.
    """
    title = f"{record['assignment']}: {record['title']}"
    parts = [
        f'<header><p class="over">{escape(record["student"])}</p><h1>{escape(title)}</h1>',
        _score_line(record),
        "</header><main>",
        _notes(_student_notes(record)),
    ]
    if record["tasks"]:
        parts.append(_task_table(record["tasks"]))
    if record["output"]:
        parts.append("<h2>What your notebook showed</h2>")
        parts += [_shown_cell(cell) for cell in record["output"]]
    return _page(f"{title}, {record['student']}", [*parts, "</main>"])


def report_page(records: Mapping[str, Record]) -> str:
    """Return the instructor's page: the class, its exercises, every student; sorts by any column.

    Students stand from the lowest score to the highest, those without a score first.
    """
    some = next(iter(records.values()), None)
    title = f"{some['assignment']}: {some['title']}" if some else "No submissions"
    ordered = sorted(records.values(), key=lambda r: -1 if percent(r) is None else percent(r))
    copies = flag_copies(records)
    parts = [
        f'<header><p class="over">Grades</p><h1>{escape(title)}</h1>',
        _tiles(ordered),
        "</header><main>",
        _notes(_class_notes(ordered)),
        _histogram([p for p in map(percent, ordered) if p is not None]),
        _exercise_table(ordered),
        "<h2>Students</h2>",
        _table(
            "Students; a button in a heading sorts by it",
            ("Student", "Score", "Outcome", "Flags", "Seconds"),
            [_student_row(record, copies[record["student"]]) for record in ordered],
            sortable=True,
        ),
        _legend(ordered, copies),
        "</main>",
        f"<script>{_SORT}</script>",
    ]
    return _page(f"Grades of {title}", parts)


def _page(title: str, parts: Iterable[str]) -> str:
    digest = base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return "\n".join([
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        *(part for part in parts if part),
        "</body>\n</html>\n",
    ])  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _bar(share: float) -> str:
    """Return a bar that says nothing the number beside it does not say."""
    return f'<span class="bar" aria-hidden="true"><i style="width:{100 * share:.0f}%"></i></span>'


def _score_line(record: Record) -> str:
    share = percent(record)
    if share is None:
        return '<p class="score"><b>not graded yet</b></p>'
    points = f"<b>{_number(record['score'])}</b> of {_number(record['max_score'])} points"
    return f'<p class="score">{points}{_bar(share / 100)}</p>'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if notes else ""


def _outcome(record: Record) -> str:
    """Return in a sentence how it went with a submission; "" if it went through."""
    if record["status"] == "grader_error":
        return f"{STATUSES['grader_error']}: {record['detail']}"
    if record["reason"] == "ok":
        return ""
    sentence = (REASONS | RUN_REASONS)[record["reason"]]
    return sentence + (f" ({record['detail']})" if record["detail"] else "")


def _student_notes(record: Record) -> list[str]:
    if record["status"] == "grader_error":
        return ["Something went wrong on our side. Your submission is kept and graded again."]
    notes = [_outcome(record)] if record["reason"] != "ok" else []
    notes += [f"{PROBLEMS[code]}: {detail}" for code, detail in record["problems"]]
    notes += [FLAGS[flag] for flag in record["flags"] if flag != "unsandboxed"]
    return [note[:1].upper() + note[1:] for note in notes]


def _class_notes(records: Sequence[Record]) -> list[str]:
    notes = []
    if any("unsandboxed" in record["flags"] for record in records):
        notes.append(FLAGS["unsandboxed"])
    if errors := sum(record["status"] == "grader_error" for record in records):
        notes.append(f"{errors} without a score: {STATUSES['grader_error']}.")
    return notes


def _task_table(tasks: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for task in tasks:
        full = task["score"] >= task["points"]
        mark = "✓" if full else "◐" if task["score"] > 0 else "✗"
        message = task["message"] or ("right" if full else "")
        rows.append((
            f'<th scope="row">{escape(task["grade_id"])}</th>',
            f'<td class="number" data-sort="{task["score"]}">'
            f'<span class="{"good" if full else "bad"}" aria-hidden="true">{mark}</span> '
            f"{_number(task['score'])} of {_number(task['points'])}</td>",
            f"<td>{escape(message)}</td>",
        ))  # fmt: skip
    return "<h2>Exercises</h2>" + _table("Exercises", ("Exercise", "Points", "What we saw"), rows)


def _shown_cell(cell: Mapping[str, Any]) -> str:
    name = escape(cell["cell"])
    text = f'<pre tabindex="0">{escape(cell["text"])}</pre>' if cell["text"] else ""
    images = "".join(
        f'<img alt="Figure {number} that {name} showed" src="data:image/png;base64,{image}">'
        for number, image in enumerate(cell["images"], 1)
    )
    return f"<section><h3>{name}</h3>{text}{images}</section>"


def _tiles(records: Sequence[Record]) -> str:
    shares = [share for share in map(percent, records) if share is not None]
    refused = sum(record["status"] == "refused" for record in records)
    tiles = {
        "students": str(len(records)),
        "mean": f"{statistics.mean(shares):.0f} %" if shares else "-",
        "median": f"{statistics.median(shares):.0f} %" if shares else "-",
        "refused": str(refused),
        "without a score": str(len(records) - len(shares)),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    return f'<dl class="tiles">{items}</dl>'


def _histogram(shares: Sequence[float]) -> str:
    """Return how many students have how much of the full score, in ten steps, as SVG."""
    if not shares:
        return ""
    counts = [0] * 10
    for share in shares:
        counts[min(9, int(share // 10))] += 1
    highest = max(counts)
    bars, words = [], []
    for step, count in enumerate(counts):
        height, x = 100 * count / highest, 60 * step
        bars.append(
            f'<rect x="{x + 4}" y="{120 - height:.1f}" width="52" height="{height:.1f}" rx="3"/>'
            + (f'<text x="{x + 30}" y="{112 - height:.1f}">{count}</text>' if count else "")
            + f'<text class="axis" x="{x + 30}" y="138">{10 * step}–{10 * step + 10}</text>'
        )
        words += [f"{10 * step} to {10 * step + 10} percent: {count}"] if count else []
    label = "Number of students by percent of the full score. " + "; ".join(words)
    return (
        f'<figure><svg viewBox="0 0 600 144" role="img" aria-label="{label}">{"".join(bars)}</svg>'
        "<figcaption>Students by percent of the full score</figcaption></figure>"
    )


def _exercise_table(records: Sequence[Record]) -> str:
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        for task in record["tasks"]:
            tasks.setdefault(task["grade_id"], []).append(task)
    rows = []
    for name, answers in tasks.items():
        points = answers[0]["points"]
        share = statistics.mean(a["score"] for a in answers) / points if points else 0.0
        full = sum(a["score"] >= a["points"] for a in answers)
        rows.append((
            f'<th scope="row">{escape(name)}</th>',
            f'<td class="number">{_number(points)}</td>',
            f'<td class="number">{100 * share:.0f} % {_bar(share)}</td>',
            f'<td class="number">{full} of {len(answers)}</td>',
        ))  # fmt: skip
    if not rows:
        return ""
    columns = ("Exercise", "Points", "Mean", "Full marks")
    return "<h2>Exercises</h2>" + _table("Exercises, over all that were graded", columns, rows)


def _student_row(record: Record, copies: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    student, share = record["student"], percent(record)
    link = escape(f"feedback/{safe_name(student)}.html")
    score = "none" if share is None else f"{_number(record['score'])} {_bar(share / 100)}"
    found = [*((flag, "") for flag in record["flags"]), *copies]
    badges = " ".join(
        f'<span class="flag">{escape(_flag_name(flag))}</span> {escape(others)}'
        for flag, others in found
    )
    outcome = _outcome(record) or record["status"]
    seconds = record["timing"]["seconds"]
    return (
        f'<th scope="row"><a href="{link}">{escape(student)}</a></th>',
        f'<td class="number" data-sort="{-1 if share is None else share}">{score}</td>',
        f'<td class="{escape(record["status"])}">{escape(outcome)}</td>',
        f"<td>{badges}</td>",
        f'<td class="number wide" data-sort="{seconds}">{seconds:.1f}</td>',
    )


def _flag_name(flag: str) -> str:
    return "UNSANDBOXED" if flag == "unsandboxed" else flag.replace("_", " ")


def _legend(records: Sequence[Record], copies: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    seen = {flag for record in records for flag in record["flags"]}
    seen |= {flag for found in copies.values() for flag, _ in found}
    items = "".join(
        f"<dt>{escape(_flag_name(flag))}</dt><dd>{escape(sentence)}</dd>"
        for flag, sentence in FLAGS.items()
        if flag in seen
    )
    return f'<h2>Flags</h2><dl class="legend">{items}</dl>' if items else ""


def _table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], sortable: bool = False
) -> str:
    """Return a table; cells are HTML already."""
    heads = []
    for column in columns:
        wide = ' class="wide"' if column == "Seconds" else ""
        name = f'<button type="button">{column}</button>' if sortable else column
        heads.append(f'<th scope="col"{wide}>{name}</th>')
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


_SORT = """
for (const [column, button] of document.querySelectorAll("th button").entries())
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const order = (a, b) => key(a).localeCompare(key(b), "en", {numeric: true});
    const number = (a, b) => key(a) - key(b);
    const rows = [...body.rows], numbers = rows.every(row => row.cells[column].dataset.sort);
    rows.sort(numbers ? number : order);
    body.append(...(rising ? rows : rows.reverse()));
  });
"""
_STYLE = """
:root { --ink: #1d2433; --soft: #5b6478; --paper: #fbfaf7; --card: #fff; --line: #dfe2ea;
  --accent: #2f5aa8; --good: #1b7f4b; --bad: #b3361f; --flag: #fbe6c8; --flagink: #6b4300; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ee; --soft: #a2aabb; --paper: #14171e;
  --card: #1c2029; --line: #333a48; --accent: #8db4ff; --good: #65d39b; --bad: #ff9179;
  --flag: #4d3a17; --flagink: #ffdfa6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; }
h3 { font: 600 .85rem/1.4 ui-monospace, monospace; color: var(--soft); margin: 0 0 .5rem; }
.over { margin: 0; color: var(--soft); font-weight: 600; }
a { color: var(--accent); }
.score { font-size: 1.15rem; display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; }
.score b { font-size: 1.9rem; line-height: 1; }
.score .bar { flex: 1 1 8rem; height: .7rem; }
.bar { display: inline-block; width: 5rem; height: .5rem; border-radius: 1rem;
  background: var(--line); overflow: hidden; vertical-align: middle; margin-left: .4rem; }
.bar i { display: block; height: 100%; background: var(--accent); border-radius: 1rem; }
.notes { list-style: none; padding: 0; }
.notes li { background: var(--flag); color: var(--flagink); border-radius: .5rem;
  padding: .6rem .9rem; margin: .5rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .75rem; }
.tiles div, section, figure, .scroll { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
.tiles div { padding: .7rem .9rem; display: flex; flex-direction: column-reverse; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.5rem; font-weight: 650; }
figure { margin: 1.25rem 0; padding: 1rem; }
figcaption { color: var(--soft); font-size: .85rem; text-align: center; }
svg { width: 100%; display: block; fill: var(--accent); }
svg text { fill: var(--ink); font-size: 14px; text-anchor: middle; }
svg .axis { fill: var(--soft); font-size: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { text-align: left; padding: .5rem .8rem; vertical-align: top; font-weight: 400; }
thead th { font-weight: 600; color: var(--soft); font-size: .85rem; white-space: nowrap; }
tbody tr { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; min-width: 7.5rem; overflow-wrap: anywhere; }
td { min-width: 4rem; } td:not(.number):not(:empty) { min-width: 11rem; }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; }
th button:focus-visible, .scroll:focus-visible, pre:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }
th button::after { content: " ↕"; opacity: .45; }
th[aria-sort=ascending] button::after { content: " ↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: " ↓"; opacity: 1; }
.good { color: var(--good); } .bad, .refused, .grader_error { color: var(--bad); }
.flag { background: var(--flag); color: var(--flagink); border-radius: 1rem; padding: .1rem .6rem;
  font-size: .85rem; white-space: nowrap; }
.legend dt { font-weight: 600; } .legend dd { margin: 0 0 .6rem; color: var(--soft); }
section { padding: .9rem 1rem; margin: .8rem 0; }
pre { margin: 0; max-height: 24rem; overflow: auto; white-space: pre-wrap;
  font: .85rem/1.45 ui-monospace, monospace; }
section img { display: block; max-width: 100%; height: auto; background: #fff; margin-top: .6rem;
  border-radius: .3rem; }
@media (max-width: 40rem) { .wide { display: none; } body { padding: 1.25rem .8rem 3rem; } }
"""
