"""The command ``semigen benchmark``: methods x labels x seeds, and the table of what is there.

Shown in: book/running.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from semigen_lib.benchmark import (
    TRACKS,
    Cell,
    find_cells,
    plan_cells,
    run_cells,
    summarise_cells,
    to_csv,
    to_table,
)
from semigen_lib.checkpoint import write_atomically
from semigen_lib.console import (
    DEFAULT_STEPS,
    add_device,
    parse_settings,
    say,
    terminated_like_interrupted,
)
from semigen_lib.methods import METHODS
from semigen_lib.runtime import PRECISIONS, pick_device
from semigen_lib.training import check_duration

__all__ = [
    "add_benchmark",
    "whole_numbers",
]


BUDGETS = (10, 20, 50, 100, 1000)  # of labels, in the table that papers compare


def add_benchmark(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of ``semigen``."""
    command = commands.add_parser(
        "benchmark",
        help="compare methods: methods x labels x seeds",
        description="Run every method with every number of labels and every seed, and write a "
        "table with 95 % intervals. Each finished cell is a file in FOLDER; the same command again "
        "runs what is missing. Without --methods nothing is run and the table is written of what "
        "is there. One track is comparable with papers (plain), the other is practical "
        "(augmented); a row of the table is of one of them.",
        epilog="example: semigen benchmark --methods supervised,combined --labels 10,100 "
        "--seeds 0-4 --steps 1500 --out runs/board && semigen benchmark --out runs/board "
        "--summary board.csv",
    )
    add = command.add_argument
    add("--methods", type=lambda text: text.split(","), metavar="M,M", help="methods that read, "
        f"with commas, of {', '.join(METHODS)}")  # fmt: skip
    add("--labels", type=whole_numbers, default=BUDGETS, metavar="N,N", help="how many images keep "
        "their label (default: 10,20,50,100,1000)")  # fmt: skip
    add("--seeds", type=whole_numbers, default=range(5), metavar="S-S", help="of weights, batches, "
        "noise and labels, as 0-4 or 0,3 (default: 0-4)")  # fmt: skip
    add("--track", choices=TRACKS, help="turn the methods' setting augment off or on (default: as "
        "each method has it)")  # fmt: skip
    add("--data", default="mnist", help="as for semigen train (default: mnist)")
    add("--steps", type=int, help=f"how many steps a cell (default: {DEFAULT_STEPS})")
    add("--minutes", type=float, help="how many minutes a cell, instead of steps")
    add("--image-size", type=int, default=28, help="side in pixels (default: 28)")
    add("--channels", type=int, choices=(1, 3), default=1, help="1 grey, 3 colour (default: 1)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting that all "
        "these methods have; repeatable")  # fmt: skip
    add_device(command)
    add("--precision", default="auto", choices=PRECISIONS, help="auto: bf16 where fast and checked")
    add("--jobs", type=int, default=2, help="how many cells at a time (default: 2)")
    add("--threads", type=int, default=1, help="threads a cell (default: 1)")
    add("--scheduler", metavar="ADDRESS", help="run on the workers of a Dask cluster instead, such "
        "as tcp://10.0.0.1:8786; start them with --nthreads 1")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the cells are or will be")
    add("--summary", type=Path, metavar="CSV", help="the table (default: FOLDER/leaderboard.csv)")
    add("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=_run_benchmark)


def whole_numbers(text: str) -> list[int]:
    """Turn ``0-4`` or ``10,20`` into a list of numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            run = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            run = range(0)
        if not run:
            raise argparse.ArgumentTypeError(f"expected numbers as 0,3 or 0-4, got {part!r}")
        numbers += run
    return numbers


def _run_benchmark(options: argparse.Namespace) -> int:
    """Run the cells that are missing, write the table, and return 1 if a cell failed."""
    failed = 0
    if options.summary is not None and options.summary.suffix != ".csv":
        raise ValueError(f"--summary: expected a file ending in .csv, got {options.summary}")
    if options.methods:
        with terminated_like_interrupted():  # or its workers would go on
            for cell, problem in run_cells(
                _planned_cells(options),
                options.out,
                jobs=options.jobs,
                scheduler=options.scheduler,
                progress=not options.quiet,
            ):
                if problem is not None:
                    say(f"{cell}: expected it to finish, got {problem}")
                    failed = 1
    rows = summarise_cells(find_cells(options.out))
    if not rows and not failed:
        raise ValueError(f"--out: expected a folder with finished cells, got none in {options.out}")
    if rows:
        summary = options.summary or options.out / "leaderboard.csv"
        write_atomically(summary, to_csv(rows).encode())
        sys.stdout.write(to_table(rows))
    return failed


def _planned_cells(options: argparse.Namespace) -> list[Cell]:
    """Return the cells that the options of ``semigen benchmark`` ask for."""
    if options.steps is None and options.minutes is None:
        options.steps = DEFAULT_STEPS
    check_duration(options.steps, options.minutes)
    if options.scheduler is None:  # its workers have devices of their own
        pick_device(options.device)
    common = {
        "data": options.data,
        "image_size": options.image_size,
        "channels": options.channels,
        "settings": parse_settings(options.set),
        "steps": options.steps,
        "minutes": options.minutes,
        "precision": options.precision,
        "device": options.device,
        "threads": options.threads,
    }
    return plan_cells(common, options.methods, options.labels, options.seeds, options.track)
