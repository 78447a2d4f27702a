"""Measure what finished runs draw on request, seed by seed: the table that chapter 8 loads.

Run ``python book/tools/measure_drawing.py RUN ...`` with folders that such commands filled:

    semigen train --data mnist --method cgan --labels 10 --seed 1 --minutes 10 --out RUN

Each run becomes a row of ``drawing.csv``: the figures that ``semigen evaluate RUN --cas`` prints of
5,000 drawings, and the classification accuracy score of 60,000. Rows of other runs stay; the long
run of chapter 8 (``--labels 100 --seed 0 --steps 12000``) is in ``drawing_long.csv``, its control
(``labelled_only.py``) in ``drawing_control.csv``. Six minutes
of one core a run, and two more for the score of the training images themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tables import read_rows, settings_text, write_rows

from semigen_lib import __version__
from semigen_lib.checkpoint import read_json
from semigen_lib.cli import load_run
from semigen_lib.data import ImageData, load_images
from semigen_lib.evaluation import draw, test_error
from semigen_lib.judge import load_judge
from semigen_lib.methods.method import Method
from semigen_lib.runtime import seed_everything
from semigen_lib.samples import (
    Reading,
    classification_accuracy_score,
    measure_samples,
    read_images_with,
)

TABLE = Path(__file__).resolve().parents[1] / "results" / "drawing.csv"
KEY = ("method", "n_labeled", "seed")
MEASURES = ("conditional_accuracy", "frechet_ratio", "precision", "recall", "coverage")
SCORES = ("score_drawn", "score_real")
COLUMNS = (
    *KEY,
    "minutes",  # what was asked for; empty if that was a number of steps
    "steps",
    "seconds",
    "test_error",
    *MEASURES,
    "copied_share",
    *SCORES,
    "version",
    "settings",
)
N_MEASURED, N_SCORED = 5_000, 60_000


def measure(method: Method, data: ImageData, real: tuple[Reading, Reading], seed: int) -> dict:
    """Return the figures of a row that need drawings; each heap of them starts with the seed."""
    figures: dict[str, float] = {"test_error": test_error(method, data.test)}
    heaps = []
    for n in (N_MEASURED, N_SCORED):
        requests = torch.arange(data.n_classes).repeat_interleave(n // data.n_classes)
        seed_everything(seed)
        heaps.append((draw(method, requests), requests))
    report = measure_samples(*heaps[0], *real)
    figures |= {name: getattr(report, name) for name in (*MEASURES, "copied_share")}
    score = classification_accuracy_score(*heaps[1], data.test, progress=True)
    return figures | {"score_drawn": score}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table")
    options = parser.parse_args()
    runs = [load_run(run, "auto") for run in options.runs]  # all of them, before minutes pass
    data, judge = load_images("mnist"), load_judge()
    real = read_images_with(judge, data.train), read_images_with(judge, data.test)
    ceiling = classification_accuracy_score(
        data.train.images, data.train.labels, data.test, progress=True
    )
    for run, (method, config) in zip(options.runs, runs, strict=True):
        metrics = read_json(run / "metrics.json")
        figures = measure(method, data, real, config["seed"]) | {"score_real": ceiling}
        row = {name: str(config[name]) for name in KEY}
        row |= {"minutes": "" if config["minutes"] is None else f"{config['minutes']:g}"}
        row |= {"steps": str(metrics["steps"]), "seconds": f"{metrics['seconds']:.0f}"}
        row |= {name: f"{value:.4f}" for name, value in figures.items()}
        rows = [r for r in read_rows(options.out) if any(r[name] != row[name] for name in KEY)]
        row["settings"] = settings_text(method.config)
        rows.append(row | {"version": __version__})
        rows.sort(key=lambda r: (r["method"], int(r["n_labeled"]), int(r["seed"])))
        write_rows(options.out, COLUMNS, rows)
        print(row, flush=True)


if __name__ == "__main__":
    main()
