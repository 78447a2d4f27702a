"""Execute, normalise and check the chapters of the book.

``execute``   run chapters in place through papermill, then normalise them and update the
              table of minutes and memory in ``book/running.md``;
``normalise`` bring notebooks into the one form in which they are committed;
``check``     say which notebooks are not in that form (exit status 1).

A chapter is named by its number (``03``) or by its path; no name means all of them. A notebook that
fails leaves the file as it was, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
RUNNING = BOOK / "running.md"
TABLE_BEGIN, TABLE_END = "<!-- chapters:begin -->", "<!-- chapters:end -->"
TIME_LINE = re.compile(r"^\*\*Time\*\* [\d.]+ minutes on \d+ CPU cores\.$", re.MULTILINE)
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT_SECONDS = 900
METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Of assignments, ``semigen`` and ``nbgrader`` say how they are graded.
KEPT_NOTEBOOK_METADATA = {"mystnb", "semigen", "widgets"}
KEPT_CELL_METADATA = {"mystnb", "nbgrader", "tags"}
PROGRESS_BAR = re.compile(r"\d+%\||\d(it|step|s)?/s\b|\?it/s|\r")


class ChapterFailed(Exception):
    """A chapter did not run to its end."""


def chapters(names: list[str]) -> list[Path]:
    """Turn chapter numbers or paths into paths; no name means every chapter."""
    every = sorted(BOOK.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return every
    found = []
    for name in names:
        matches = [Path(name)] if name.endswith(".ipynb") else []
        matches = matches or [p for p in every if p.name.startswith(f"{name.zfill(2)}_")]
        if len(matches) != 1 or not matches[0].is_file():
            known = ", ".join(p.name[:2] for p in every) or "none"
            raise SystemExit(f"expected the number or path of a chapter ({known}), got {name}")
        found.append(matches[0])
    return found


# ------------------------------------------------------------------------------ normalise


def _is_progress_bar(output: dict) -> bool:
    if output.output_type == "stream":
        return output.name == "stderr" and bool(PROGRESS_BAR.search(output.text))
    data = output.get("data", {})
    return WIDGET_VIEW in data and bool(PROGRESS_BAR.search(data.get("text/plain", "")))


def _clean_outputs(cell: dict) -> None:
    merged: list[dict] = []
    for output in cell.outputs:
        if _is_progress_bar(output):
            continue
        if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
            continue
        if output.output_type == "execute_result":
            output.execution_count = cell.execution_count
        merged.append(output)
    cell.outputs = merged


def _models_named_in(text: str, models: dict) -> list[str]:
    names = re.findall(r"[0-9a-f]{32}", text)
    return [name for name in dict.fromkeys(names) if name in models]


def _clean_widgets(nb: nbformat.NotebookNode) -> None:
    """Keep the widget models that a committed output shows, under ids that never change."""
    saved = nb.metadata.get("widgets", {}).get(WIDGET_STATE, {})
    models = saved.get("state", {})
    outputs = [cell.outputs for cell in nb.cells if cell.cell_type == "code"]
    order = _models_named_in(json.dumps(outputs), models)
    for name in order:  # grows while it is walked: a breadth-first search
        text = json.dumps(models[name], sort_keys=True)
        order += [found for found in _models_named_in(text, models) if found not in order]
    shown = set(order)
    for name, model in models.items():  # jslink: nothing names the link, it names both ends
        ends = set(_models_named_in(json.dumps(model), models))
        if "Link" in model.get("model_name", "") and ends and ends <= shown | {name}:
            order.append(name)
    if not order:
        nb.metadata.pop("widgets", None)
        return
    renamed = {name: f"{position:032x}" for position, name in enumerate(order, start=1)}

    def rename(value: object) -> object:
        text = json.dumps(value)
        return json.loads(
            re.sub(r"[0-9a-f]{32}", lambda m: renamed.get(m.group(), m.group()), text)
        )

    saved["state"] = {renamed[name]: rename(models[name]) for name in order}
    nb.metadata.widgets = nbformat.from_dict({WIDGET_STATE: saved})
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = nbformat.from_dict(rename(cell.outputs))


def _cell_ids(cells: list) -> None:
    taken: set[str] = set()
    for position, cell in enumerate(cells, start=1):
        if not cell.get("id") or cell.id in taken:
            cell["id"] = f"cell-{position:02d}"
        taken.add(cell.id)


def normalise(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Bring a notebook into its committed form; doing it twice changes nothing."""
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = nbformat.from_dict(
        METADATA | {k: v for k, v in nb.metadata.items() if k in KEPT_NOTEBOOK_METADATA}
    )
    for cell in nb.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA and v}
        cell.metadata = nbformat.from_dict(kept)
        cell.source = cell.source.strip("\n")
        if cell.cell_type == "code":
            _clean_outputs(cell)
    _cell_ids(nb.cells)
    _clean_widgets(nb)
    return nb


def normalised_text(path: Path) -> str:
    """Return the text that a notebook's file should hold."""
    nb = nbformat.read(path, as_version=4)
    return nbformat.writes(normalise(nb)).rstrip("\n") + "\n"


def replace_file(path: Path, text: str) -> None:
    """Write all of a file or nothing of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        if path.exists():
            os.chmod(temporary, path.stat().st_mode)
        else:
            os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# -------------------------------------------------------------------------------- execute


def run_chapter(source: str, target: str) -> tuple[float, float]:
    """Execute a notebook; return minutes and the kernel's peak memory in MiB.

    Runs in a process of its own, so that the peak over its children is this kernel's peak.
    """
    import papermill

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    start = time.monotonic()
    try:
        papermill.execute_notebook(
            source,
            target,
            kernel_name="python3",
            cwd=str(BOOK),
            progress_bar=True,
            execution_timeout=CELL_TIMEOUT_SECONDS,
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ChapterFailed("\n".join(lines)) from None
    minutes = (time.monotonic() - start) / 60
    kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return minutes, kibibytes / 1024


def problems_of(nb: nbformat.NotebookNode) -> list[str]:
    """Return the cells that did not really run: ``sys.exit(0)`` counts as success otherwise."""
    problems = []
    for position, cell in enumerate(nb.cells, start=1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if errors:
            problems.append(f"cell {position} ({cell.id}): {errors[0].ename}: {errors[0].evalue}")
        elif cell.execution_count is None:
            problems.append(f"cell {position} ({cell.id}) did not run")
    return problems


def execute(path: Path, time_line: bool) -> tuple[float, float]:
    """Execute one chapter in place, all of it or nothing of it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / path.name
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            try:
                minutes, mebibytes = pool.submit(run_chapter, str(path), str(target)).result()
            except BrokenProcessPool:
                raise ChapterFailed("the process that ran it was ended from outside") from None
        nb = nbformat.read(target, as_version=4)
        problems = problems_of(nb)
        if problems:
            raise ChapterFailed("\n".join(problems))
        if time_line:
            line = f"**Time** {minutes:.1f} minutes on {cpu_cores()} CPU cores."
            nb.cells[0].source = TIME_LINE.sub(line, nb.cells[0].source)
        nbformat.write(normalise(nb), target)
        replace_file(path, normalised_text(target))
    return minutes, mebibytes


def cpu_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chapter_title(path: Path) -> str:
    """Return the first heading of a notebook."""
    for cell in nbformat.read(path, as_version=4).cells:
        for line in cell.source.splitlines():
            if cell.cell_type == "markdown" and line.startswith("# "):
                return line[2:].strip()
    return path.stem


def update_table(measured: dict[str, tuple[float, float]]) -> None:
    """Rewrite the generated table of ``running.md``; rows that were not measured stay."""
    text = RUNNING.read_text(encoding="utf-8")
    before, _, rest = text.partition(TABLE_BEGIN)
    old, _, after = rest.partition(TABLE_END)
    numbers = dict(re.findall(r"\((\w+\.ipynb)\)(.*\|)$", old, re.MULTILINE))
    for name, (minutes, mebibytes) in measured.items():
        numbers[name] = f" | {minutes:.1f} | {round(mebibytes, -1):.0f} |"
    rows = [
        f"| [{chapter_title(path)}]({path.name}){numbers[path.name]}"
        for path in chapters([])
        if path.name in numbers
    ]
    table = "\n".join(["| chapter | minutes | memory, MiB |", "|:--|--:|--:|", *rows])
    new = f"{before}{TABLE_BEGIN}\n{table}\n{TABLE_END}{after}"
    if new != text:
        replace_file(RUNNING, new)


# ------------------------------------------------------------------------------- commands


def command_execute(names: list[str], table: bool) -> int:
    """Execute chapters one after the other; a failure does not stop the next one."""
    measured, failed = {}, []
    for path in chapters(names):
        print(f"{path.name}: running", flush=True)
        try:
            minutes, mebibytes = execute(path, time_line=table)
        except ChapterFailed as error:
            failed.append(path.name)
            print(f"{error}\n{path.name}: failed, left as it was", file=sys.stderr, flush=True)
            continue
        measured[path.name] = (minutes, mebibytes)
        print(f"{path.name}: {minutes:.1f} minutes, {mebibytes:.0f} MiB", flush=True)
    if measured and table:
        update_table(measured)
    print(f"{len(measured)} executed, {len(failed)} failed")
    return 1 if failed else 0


def command_normalise(names: list[str], write: bool) -> int:
    """Rewrite notebooks in their committed form, or only name those that are not."""
    different = []
    for path in chapters(names):
        text = normalised_text(path)
        if text != path.read_text(encoding="utf-8"):
            different.append(path)
            if write:
                replace_file(path, text)
    for path in different:
        print(f"{path.name}: {'rewritten' if write else 'not normalised'}")
    return 1 if different and not write else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in [
        ("execute", "run chapters in place"),
        ("normalise", "bring chapters into their committed form"),
        ("check", "name chapters that are not in their committed form"),
    ]:
        command = commands.add_parser(name, help=text)
        command.add_argument("chapter", nargs="*", help="number or path; default: all")
        if name == "execute":
            command.add_argument(
                "--no-table",
                action="store_true",
                help="leave the measured minutes in the chapter and in running.md as they are",
            )
    options = parser.parse_args(arguments)
    if options.command == "execute":
        return command_execute(options.chapter, table=not options.no_table)
    return command_normalise(options.chapter, write=options.command == "normalise")


if __name__ == "__main__":
    raise SystemExit(main())
