"""The leaderboard: methods x label budgets x seeds, in parallel workers, one file a finished cell.

A cell is one run; a row of the table is the cells that differ in their seed alone. Whoever
interrupts it loses the cells at work and nothing else: the next call runs what is missing. Nothing
is chosen on the test set: every cell is measured once, with the averaged weights of its last step.

Shown in: book/running.md
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import statistics
import subprocess
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from semigen_lib import __version__
from semigen_lib.checkpoint import SCHEMA, read_json, write_json
from semigen_lib.data import ImageSet, load_images, split_labels
from semigen_lib.evaluation import mean_interval, test_error
from semigen_lib.jobs import run_jobs
from semigen_lib.methods import build_method
from semigen_lib.methods.method import Method
from semigen_lib.runtime import pick_device, seed_everything
from semigen_lib.training import check_pool, train

__all__ = [
    "COLUMNS",
    "TRACKS",
    "Cell",
    "Rerun",
    "find_cells",
    "library_commit",
    "measure_method",
    "missing_cells",
    "plan_cells",
    "read_summary",
    "rerun_cell",
    "run_cell",
    "run_cells",
    "summarise_cells",
    "to_csv",
    "to_table",
    "track_of",
]


TRACKS = ("plain", "augmented")  # comparable with papers; practical
SHOWN = ("track", "method", "n_labeled", "n_seeds", "mean_test_error", "interval_95", "median",
         "worst", "steps", "mean_seconds", "threads")  # fmt: skip
COLUMNS = (*SHOWN, "minutes", "seeds", "commits", "configuration")
# Torch's random generators belong to the process: two cells in it would draw from each other's.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Cell:
    """One run: everything that is asked for, and so everything that has to agree on resuming."""

    track: str
    method: str
    n_labeled: int
    seed: int  # of weights, batches and noise, and of the choice of labels
    data: str
    image_size: int
    channels: int
    settings: Mapping[str, float]
    steps: int | None
    minutes: float | None
    precision: str
    device: str
    threads: int

    def __str__(self) -> str:
        return f"{self.track}, {self.method}, {self.n_labeled} labels, seed {self.seed}"

    @property
    def row(self) -> tuple[int, str, int]:
        """Which row of the table it counts in; rows are in the order of these."""
        return TRACKS.index(self.track), self.method, self.n_labeled

    @property
    def path(self) -> Path:
        """Where its figures are, within the folder of a benchmark."""
        return Path(self.track) / f"{self.method}_{self.n_labeled}_{self.seed}.json"


class Rerun(NamedTuple):
    """What came out of running a row of the table again, and the interval it should be in.

    Attributes
    ----------
    mean_test_error : float
        From 0 to 1.
    low, high : float
        The interval.
    """

    mean_test_error: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the table holds."""
        return self.low <= self.mean_test_error <= self.high


def track_of(method: Method) -> str:
    """Return the track a method is in: ``"augmented"`` if it trains on augmented views."""
    return TRACKS[bool(getattr(method.config, "augment", 0))]


def plan_cells(
    common: Mapping[str, Any],
    methods: Sequence[str],
    budgets: Sequence[int],
    seeds: Sequence[int],
    track: str | None = None,
) -> list[Cell]:
    """Return the cells to run, all those of the first seed before any of the second.

    So a table of half of them compares the same seeds of every method and budget.

    Parameters
    ----------
    common
        The fields of ``Cell`` that all of them share: from ``data`` to ``threads``.
    methods
        Names of methods that read.
    budgets
        Numbers of labels.
    seeds
        One cell each.
    track
        Turns the setting ``augment`` of the methods on or off, unless ``common`` says how it is;
        None leaves it as it is.

    Raises
    ------
    ValueError
        If one of the cells could not be run, or would be in another track.
    """
    size, channels = common["image_size"], common["channels"]
    chosen, built = {}, []
    for name in methods:  # refused before minutes are spent on reading images
        settings = dict(common["settings"])
        method = build_method(name, (channels, size, size), 2, settings)
        switch = getattr(method.config, "augment", None)
        if track not in (None, track_of(method)) and switch is not None:
            settings.setdefault("augment", type(switch)(track == "augmented"))
            method = build_method(name, (channels, size, size), 2, settings)
        if track not in (None, track_of(method)):
            raise ValueError(f"track: expected {track} methods, got {name}: {track_of(method)}")
        if not method.reads:
            raise ValueError(f"methods: expected methods that read images, got {name}")
        chosen[name] = {"track": track_of(method), "method": name, "settings": settings}
        built.append(method)
    data = load_images(common["data"], image_size=size, channels=channels)
    for note in data.notes:
        warnings.warn(note, stacklevel=2)
    if data.name.startswith("folder:"):  # found again from elsewhere
        common = {**common, "data": str(Path(common["data"]).resolve())}
    for n_labeled in budgets:
        split_labels(data, n_labeled, seeds[0])
    for method in built:
        check_pool(method, data.train.images)
    return [
        Cell(**{**common, **chosen[name], "n_labeled": n_labeled, "seed": seed})
        for seed in dict.fromkeys(seeds)
        for name in chosen
        for n_labeled in dict.fromkeys(budgets)
    ]


# ---- running ----


def measure_method(method: Method, images: ImageSet) -> dict[str, float]:
    """Return every figure that a cell records of a trained method, from the test images."""
    return {"test_error": test_error(method, images)}


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and measure one cell in this process, and return what its file holds."""
    before = torch.get_num_threads()
    with _ONE_AT_A_TIME:
        torch.set_num_threads(cell.threads)
        try:
            return _train_and_measure(cell)
        finally:
            torch.set_num_threads(before)


def _train_and_measure(cell: Cell) -> dict[str, Any]:
    commit = library_commit()  # asked before the minutes in which the source may change
    data = load_images(cell.data, image_size=cell.image_size, channels=cell.channels)
    split, test_images = split_labels(data, cell.n_labeled, cell.seed), data.test
    # Kept for the next cell, the data would save seconds, and hidden labels would be in memory.
    del data
    seed_everything(cell.seed)
    method = build_method(cell.method, split.image_shape, split.n_classes, cell.settings)
    history = train(
        method.to(pick_device(cell.device)),
        split,
        steps=cell.steps,
        minutes=cell.minutes,
        seed=cell.seed,
        precision=cell.precision,
        progress=False,
    )
    return {
        "schema": SCHEMA,
        "configuration": dataclasses.asdict(cell),
        "figures": measure_method(method, test_images),
        "images": [len(split), len(test_images)],  # of a folder that may grow
        "steps": int(history["step"][-1]),
        "seconds": history["seconds"][-1],
        "device": str(next(method.parameters()).device),
        "version": __version__,
        "torch": torch.__version__,
        "commit": commit,
    }


@functools.cache
def library_commit() -> str | None:
    """Return the git commit of the library's source, ``-dirty`` if it was changed since.

    None if it is no git checkout. What is changed elsewhere, such as in a chapter, does not count.
    """

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        folder = Path(__file__).parent
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else the checkout is not ours
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int = 2,
    scheduler: str | None = None,
    progress: bool = True,
) -> Iterator[tuple[Cell, str | None]]:
    """Run the cells that are missing in a folder, and write each as soon as it is finished.

    Parameters
    ----------
    cells
        From :func:`plan_cells`.
    folder
        Of the benchmark.
    jobs
        How many processes; 1 is this one.
    scheduler
        Address of a Dask scheduler, whose workers are used instead of processes.
    progress
        Whether to show a progress bar.

    Yields
    ------
    tuple of Cell and (str or None)
        As they finish: the cell, and why it failed or None.

    Raises
    ------
    ValueError
        If a cell that is there was run with another configuration, or a number of jobs or threads
        is not positive, or there is no scheduler.
    JobsError
        If a worker was killed.
    """
    for name, number in (("jobs", jobs), ("threads", min(cell.threads for cell in cells))):
        if number < 1:
            raise ValueError(f"{name}: expected a positive number, got {number}")
    there = find_cells(folder)
    missing = missing_cells(cells, there)
    folder.mkdir(parents=True, exist_ok=True)  # refused now, not when the first cell is finished
    asked = {cell.path for cell in cells}
    best = min(
        (_error_and_name(*pair) for pair in there if pair[0].path in asked), default=(math.inf, "")
    )
    done = len(cells) - len(missing)
    bar = tqdm(total=len(cells), initial=done, disable=not progress, unit="cell",
               miniters=1, mininterval=0)  # fmt: skip  # minutes apart: none may wait unseen
    with bar, closing(run_jobs(_attempt, missing, jobs=jobs, scheduler=scheduler)) as outcomes:
        for cell, record in outcomes:
            problem = record if isinstance(record, str) else None
            if problem is None:
                write_json(folder / cell.path, record)
                best = min(best, _error_and_name(cell, record))
                bar.set_postfix_str(f"best test_error {best[0]:.4f}: {best[1]}", refresh=False)
            bar.update()
            if problem:
                bar.clear()  # the caller may want to say it
            yield cell, problem


def _error_and_name(cell: Cell, record: Mapping[str, Any]) -> tuple[float, str]:
    return record["figures"]["test_error"], str(cell)


def _attempt(cell: Cell) -> tuple[Cell, dict[str, Any] | str]:
    try:
        return cell, run_cell(cell)
    except Exception as error:  # one cell's defect must not cost the others
        return cell, " ".join(f"{type(error).__name__}: {error}".split())


# ---- files ----


def find_cells(folder: Path) -> list[tuple[Cell, dict[str, Any]]]:
    """Return the finished cells in a folder with what their files hold.

    A damaged file is passed over with a warning, so that its cell is run again.

    Raises
    ------
    CheckpointError
        If a file was written by a newer version.
    """
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            record = read_json(path)
            cell = _cell_of(record)
            if folder / cell.path != path:
                raise ValueError(f"the contents of {cell.path}")
            found.append((cell, record))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if "newer semigen_lib" in str(error):  # not ours to overwrite
                raise
            reason = " ".join(str(error).split())
            if not reason.startswith(f"{path}: "):
                reason = f"{path}: expected a finished cell, got one with {reason}"
            warnings.warn(reason, stacklevel=2)
    return found


def _cell_of(record: Mapping[str, Any]) -> Cell:
    """Return the cell of a record whose figures can be used."""
    figures = record["figures"]
    numbers = [*figures.values(), figures["test_error"], record["steps"], record["seconds"]]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"numbers that are not finite: {numbers}")
    cell = Cell(**record["configuration"])
    if cell.track not in TRACKS:
        raise ValueError(f"track {cell.track!r}")
    return cell


def missing_cells(
    cells: Sequence[Cell], there: Sequence[tuple[Cell, Mapping[str, Any]]]
) -> list[Cell]:
    """Return the cells that are still to be run.

    Raises
    ------
    ValueError
        If a cell of the same row is there that differs in more than its seed.
    """
    rows = {cell.row: cell for cell, _ in there}
    for cell in cells:
        _check_same(rows.get(cell.row, cell), cell)
    done = {cell.path for cell, _ in there}
    return [cell for cell in cells if cell.path not in done]


def _check_same(before: Cell, now: Cell) -> None:
    """Refuse two cells that would make one row of two configurations."""
    for field in dataclasses.fields(Cell):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old != new and field.name != "seed":
            raise ValueError(
                f"{before.path}: expected {field.name} as there, {old!r}, got {new!r}; "
                "another configuration needs another folder"
            )


# ---- the table ----


def summarise_cells(
    finished: Sequence[tuple[Cell, Mapping[str, Any]]],
) -> list[dict[str, str]]:
    """Return the rows of the table: one for each track, method and budget, in this order.

    Raises
    ------
    ValueError
        If the cells of a row differ in more than their seed.
    """
    groups: dict[tuple, list] = {}
    for pair in finished:
        groups.setdefault(pair[0].row, []).append(pair)
    rows = []
    for _, group in sorted(groups.items()):
        group.sort(key=lambda pair: pair[0].seed)
        cells, records = zip(*group, strict=True)
        for cell in cells:
            _check_same(cells[0], cell)
        rows.append(_row(cells, records))
    return rows


def _row(cells: Sequence[Cell], records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    first = cells[0]
    if len(sizes := {tuple(record["images"]) for record in records if "images" in record}) > 1:
        raise ValueError(
            f"{first.path}: expected one set of images for all cells of a row, got {sorted(sizes)} "
            "to learn from and to be tested on: the data has changed"
        )
    errors = [record["figures"]["test_error"] for record in records]
    same = dataclasses.asdict(first)
    row = {
        "track": same.pop("track"),
        "method": same.pop("method"),
        "n_labeled": str(same.pop("n_labeled")),
        "n_seeds": str(len(cells)),
        "mean_test_error": f"{statistics.mean(errors):.6f}",
        "interval_95": _interval(errors),
        "median": f"{statistics.median(errors):.6f}",
        "worst": f"{max(errors):.6f}",
        "steps": f"{statistics.mean(record['steps'] for record in records):.0f}",
        "mean_seconds": f"{statistics.mean(record['seconds'] for record in records):.1f}",
        "threads": str(first.threads),
        "minutes": "" if first.minutes is None else str(first.minutes),
        "seeds": " ".join(str(cell.seed) for cell in cells),
        "commits": " ".join(sorted({str(record["commit"] or "unknown") for record in records})),
    }
    del same["seed"]
    row["configuration"] = json.dumps(same)  # enough to run the row again from the table alone
    shared = set.intersection(*(set(record["figures"]) for record in records)) - {"test_error"}
    for name in sorted(shared):  # what is measured of drawn images
        values = [record["figures"][name] for record in records]
        row[f"mean_{name}"] = f"{statistics.mean(values):.6f}"
        row[f"interval_95_{name}"] = _interval(values)
    return row


def _interval(values: Sequence[float]) -> str:
    return f"{mean_interval(values)[1]:.6f}" if len(values) > 1 else ""


def _columns(rows: Sequence[Mapping[str, str]], first: Sequence[str]) -> list[str]:
    """Return the columns of the table: the given ones, and those of figures of drawn images."""
    return [*first, *sorted({name for row in rows for name in row} - set(COLUMNS))]


def to_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows, COLUMNS), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows as aligned text, an empty line between the tracks."""
    columns = _columns(rows, SHOWN)
    cells = [columns, *([row.get(name, "") for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines, track = [], "track"
    for line in cells:
        if track in TRACKS and line[0] != track:
            lines.append("")
        track = line[0]
        padded = [
            word.ljust(width) if index < 2 else word.rjust(width)
            for index, (word, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def read_summary(path: Path) -> list[dict[str, str]]:
    """Read a table that ``semigen benchmark`` wrote, and check that it adds up.

    Raises
    ------
    ValueError
        If a column, a number, a track or the order is not as it would be written.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    columns = tuple(reader.fieldnames or ())
    if columns[: len(COLUMNS)] != COLUMNS or not rows:
        raise ValueError(f"{path}: expected rows of {', '.join(COLUMNS)}, got {columns}")
    keys = []
    for number, row in enumerate(rows, 2):
        try:
            keys.append(_checked(row).row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: expected a row, got {error}") from None
    if keys != sorted(set(keys)):
        raise ValueError(f"{path}: expected each row once and in order, got {keys}")
    return rows


def _checked(row: Mapping[str, str]) -> Cell:
    """Return the first cell of a row, whose numbers and track were checked."""
    cell, *more = _cells_of(row)
    settings, shape = cell.settings, (cell.channels, cell.image_size, cell.image_size)
    track = track_of(build_method(cell.method, shape, 10, settings))
    mean, median, worst = (float(row[name]) for name in ("mean_test_error", "median", "worst"))
    interval = float(row["interval_95"] or 0)
    problems = {
        f"track {row['track']} of a method in {track}": row["track"] != track,
        f"{1 + len(more)} seeds, not {row['n_seeds']}": row["n_seeds"] != str(1 + len(more)),
        f"an interval of {row['interval_95']!r}": (row["interval_95"] == "") != (not more)
        or not 0 <= interval < math.inf,
        f"a mean of {mean}, median {median}, worst {worst}": not (
            0 <= mean <= worst <= 1 and 0 <= median <= worst
        ),
        f"steps {row['steps']}": int(row["steps"]) < 1,
        f"seconds {row['mean_seconds']}": not 0 <= float(row["mean_seconds"]) < math.inf,
        f"threads {row['threads']}": row["threads"] != str(cell.threads),
        "no commit": not row["commits"],
    }
    for problem, is_so in problems.items():
        if is_so:
            raise ValueError(problem)
    return cell


def _cells_of(row: Mapping[str, str]) -> list[Cell]:
    fields = {**json.loads(row["configuration"]), "track": row["track"], "method": row["method"]}
    n_labeled, seeds = int(row["n_labeled"]), [int(seed) for seed in row["seeds"].split()]
    return [Cell(**{**fields, "n_labeled": n_labeled, "seed": seed}) for seed in seeds]


def rerun_cell(
    summary: Path, track: str, method: str, n_labeled: int, seeds: Sequence[int] | None = None
) -> Rerun:
    """Run a row of a table again, from what the table says and nothing else.

    Parameters
    ----------
    summary
        The table, as CSV.
    track, method, n_labeled
        Which row.
    seeds
        Which seeds; None are those of the row, whose mean has to be in the row's interval. The
        mean of m others, or of fewer, scatters more: the interval of a row of n seeds is widened
        by sqrt(1 + n / m), which makes it that of the mean of m new runs.

    Raises
    ------
    ValueError
        If there is no such row, or it has one seed and so no interval.
    """
    rows = [
        row
        for row in read_summary(summary)
        if (row["track"], row["method"], row["n_labeled"]) == (track, method, str(n_labeled))
    ]
    if not rows or not rows[0]["interval_95"]:
        wanted = f"{track}, {method}, {n_labeled} labels"
        raise ValueError(f"{summary}: expected a row with an interval, {wanted}, got none")
    cells = _cells_of(rows[0])
    half = float(rows[0]["interval_95"]) + 1e-6  # the table's last digit
    if seeds is not None:
        half *= math.sqrt(1 + len(cells) / len(seeds))
        cells = [dataclasses.replace(cells[0], seed=seed) for seed in seeds]
    figures = [run_cell(cell)["figures"]["test_error"] for cell in cells]
    mean = float(rows[0]["mean_test_error"])
    return Rerun(statistics.mean(figures), mean - half, mean + half)
