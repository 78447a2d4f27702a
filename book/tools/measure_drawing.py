"""Measure what finished runs draw on request, seed by seed: the table that chapter 8 loads.

Run ``python book/tools/measure_drawing.py RUN ...`` with folders that such commands filled:

    semigen train --data mnist --method cgan --labels 10 --seed 1 --minutes 10 --out RUN

Each run becomes a row of ``drawing.csv``: the figures that ``semigen evaluate RUN --cas`` prints of
5,000 drawings, and the classification accuracy score of 60,000. Rows of other runs stay. Six
minutes of one core a run, and two more for the score of the training images themselves. Chapter
8's other tables hold rows of the same kind, with 100 labels:

    drawing_long.csv       cgan --seed 0 --steps 12000
    drawing_control.csv    cgan --steps 3500, of folders that labelled_only.py made
    drawing_diffusion.csv  dpt --steps 2000, measured with --no-score: to draw 60,000 images takes
                           a diffusion half an hour
    drawing_letters.csv    cgan --steps 3500, of a folder that make_letters.py made, measured with
                           --data ./letters

With ``--data FOLDER`` the runs are of that folder. The judge of MNIST knows nothing of its images,
so another is trained first, of all that have a label. There are as many drawings of each class as
the scarcest has test images, and no score; a row of its own says what real training images reach
in their place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from export_generator import measure_real
from tables import read_rows, settings_text, write_rows
from torch import Tensor
from train_judge import BATCH_SIZE, EPOCHS, count_errors, train_judge

from semigen_lib import __version__
from semigen_lib.checkpoint import read_json
from semigen_lib.cli import load_run
from semigen_lib.data import UNLABELED, BatchStream, ImageData, load_images, split_labels
from semigen_lib.evaluation import draw, test_error
from semigen_lib.judge import JUDGE, Judge, load_judge
from semigen_lib.methods.method import Method
from semigen_lib.runtime import seed_everything
from semigen_lib.samples import (
    SampleReport,
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
    "judge_error",  # the share of test images that the judge reads wrongly
    "version",
    "settings",
)
N_MEASURED, N_SCORED = 5_000, 60_000


def judge_of(data: ImageData, name: str) -> tuple[Judge, float]:
    """Return a judge of the images, and its test error."""
    if name == "mnist":
        return load_judge(), read_json(JUDGE / "mnist.json")["test_error"]
    seed_everything(0)
    split = split_labels(data, None, 0)
    images = BatchStream(split, batch_size=1, labeled_batch_size=BATCH_SIZE, seed=0)
    judge = train_judge(images, EPOCHS * split.n_labeled // BATCH_SIZE, data.n_classes)
    return judge, count_errors(judge, data.test) / len(data.test)


def figures_of(report: SampleReport) -> dict[str, float]:
    """Return what a row holds of a report."""
    return {name: getattr(report, name) for name in (*MEASURES, "copied_share")}


def written(figures: dict[str, float]) -> dict[str, str]:
    """Return figures as a table has them."""
    return {name: f"{value:.4f}" for name, value in figures.items()}


def drawings_of_each(data: ImageData) -> int:
    """Return how many drawings of each class there are real test images for."""
    scarcest = int(data.test.labels.bincount(minlength=data.n_classes).min())
    return min(N_MEASURED // data.n_classes, scarcest)


def draw_each(method: Method, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return drawings, as many of each class, and what each was to show."""
    requests = torch.arange(method.n_classes).repeat_interleave(per_class)
    seed_everything(seed)
    return draw(method, requests), requests


def add_row(table: Path, row: dict[str, str]) -> None:
    """Put a row into the table, in the place of the one of the same run."""
    rows = [r for r in read_rows(table) if any(r[name] != row[name] for name in KEY)]
    rows.append(row | {"version": __version__})
    rows.sort(key=lambda r: (r["method"], int(r["n_labeled"]), int(r["seed"])))
    write_rows(table, COLUMNS, rows)
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--data", default="mnist", help="mnist, or a folder of other images")
    parser.add_argument("--no-score", action="store_true", help="leave out the accuracy score")
    parser.add_argument("--out", type=Path, help=f"the table (of mnist: {TABLE.name})")
    options = parser.parse_args()
    if options.out is None and options.data != "mnist":
        parser.error(f"--out: expected a table of its own for {options.data}, got none")
    table = options.out or TABLE
    runs = [load_run(run, "auto") for run in options.runs]  # all of them, before minutes pass
    data = load_images(options.data)
    for run, (_, config) in zip(options.runs, runs, strict=True):
        if (config["class_names"], config["image_shape"]) != (list(data.class_names), [1, 28, 28]):
            parser.error(f"{run}: expected a run of {options.data}, got one of {config['data']}")
    judge, judge_error = judge_of(data, options.data)
    per_class = drawings_of_each(data)
    real = read_images_with(judge, data.train), read_images_with(judge, data.test)
    shared = {"judge_error": judge_error}
    if options.data != "mnist":
        report = measure_real(data, *real, per_class, judge)
        n_labeled = int((data.train.labels != UNLABELED).sum())
        row = {"method": "real", "n_labeled": str(n_labeled), "seed": "0"}
        add_row(table, row | written(shared | figures_of(report)))
    elif not options.no_score:
        shared["score_real"] = classification_accuracy_score(
            data.train.images, data.train.labels, data.test, progress=True
        )
    for run, (method, config) in zip(options.runs, runs, strict=True):
        metrics, seed = read_json(run / "metrics.json"), config["seed"]
        report = measure_samples(*draw_each(method, per_class, seed), *real, judge=judge)
        figures = {"test_error": test_error(method, data.test)} | figures_of(report)
        if "score_real" in shared:
            drawn = draw_each(method, N_SCORED // data.n_classes, seed)
            figures["score_drawn"] = classification_accuracy_score(*drawn, data.test, progress=True)
        row = {name: str(config[name]) for name in KEY}
        row |= {"minutes": "" if config["minutes"] is None else f"{config['minutes']:g}"}
        row |= {"steps": str(metrics["steps"]), "seconds": f"{metrics['seconds']:.0f}"}
        row |= written(figures | shared) | {"settings": settings_text(method.config)}
        add_row(table, row)


if __name__ == "__main__":
    main()
