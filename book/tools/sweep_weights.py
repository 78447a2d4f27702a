"""Sweep each weight of ``combined`` alone, on validation images, and write a table and a picture.

Run ``python book/tools/sweep_weights.py``; chapter 4 loads what it wrote. Every setting differs
from the defaults in one weight (``real`` and ``fake`` move together) and is trained with three
seeds, in a small network for a short time, so that the whole sweep takes about 25 minutes of one
quiet core.
Three things are measured, none of them on test images:

- ``error``: the fraction of 5,000 validation images that the run's own encoder reads wrongly;
- ``reconstruction_error``: the squared error per pixel of its reconstructions of them;
- ``request_error``: the fraction of 1,000 drawings, 100 of each class, in which an independent
  reader sees another class than the one that was asked for. The reader is the network of
  ``supervised`` trained on every label of the pool; its own error stands in ``reader_error``.

Rows made with the settings of today are kept, so an interrupted script goes on where it was. The
picture holds one row of drawings for each setting, of seed 0, in the order of ``SWEEP``: the ten
classes, twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from tables import read_rows, settings_text, write_rows
from torch import Tensor

from semigen_lib import __version__
from semigen_lib.data import ImageData, load_images, split_labels
from semigen_lib.evaluation import class_probabilities, draw, reconstruction_error, test_error
from semigen_lib.methods import build_method
from semigen_lib.methods.combined import CombinedConfig
from semigen_lib.methods.method import Method
from semigen_lib.runtime import seed_everything
from semigen_lib.training import train

RESULTS = Path(__file__).resolve().parents[1] / "results"
SWEEP = {
    "reconstruction": (0.0, 3.0, 10.0, 30.0, 100.0),
    "real_fake": (0.0, 0.5, 2.0, 8.0),
    "adversarial": (0.0, 0.5, 2.0, 8.0),
    "request": (0.0, 0.1, 0.3, 1.0),
    "classification": (0.0, 0.3, 1.0, 3.0),
    "information": (0.0, 0.2, 0.6, 2.0),
}
SMALL = {"width": 8, "batch_size": 32, "labeled_batch_size": 16}
READER = {"width": 16, "labeled_batch_size": 64}
SEEDS = range(3)
N_LABELED = 100
N_VALIDATION = 5000
PER_CLASS = 100  # drawings that the reader reads
COLUMNS = (
    "weight",
    "value",
    "seed",
    "error",
    "reconstruction_error",
    "request_error",
    "reader_error",
    "steps",
    "version",
    "settings",
)


def settings_of(weight: str, value: float) -> dict[str, float]:
    """Return the settings of one point of the sweep."""
    names = ("real", "fake") if weight == "real_fake" else (weight,)
    return {**SMALL, **{f"{name}_weight": value for name in names}}


def is_default(weight: str, value: float) -> bool:
    """Return whether a point is the default, which all weights share."""
    default = CombinedConfig()
    return all(
        getattr(default, k) == v for k, v in settings_of(weight, value).items() if k not in SMALL
    )


def train_reader(data: ImageData, steps: int) -> tuple[Method, float]:
    """Return a classifier trained on every label of a pool, and its error on what was held out."""
    split = split_labels(data, None, 0, n_validation=N_VALIDATION)
    seed_everything(0)
    reader = build_method("supervised", split.image_shape, split.n_classes, READER)
    train(reader, split, steps=steps, seed=0, progress=False)
    return reader, test_error(reader, split.validation)


def run(data: ImageData, weight: str, value: float, seed: int, steps: int) -> Method:
    """Train one point of the sweep."""
    split = split_labels(data, N_LABELED, seed, n_validation=N_VALIDATION)
    seed_everything(seed)
    method = build_method(
        "combined", split.image_shape, split.n_classes, settings_of(weight, value)
    )
    train(method, split, steps=steps, seed=seed, progress=False)
    return method


def sheet_row(method: Method) -> Tensor:
    """Draw the ten classes twice, side by side, uint8 (28, 20 * 28)."""
    torch.manual_seed(1)
    return torch.cat(list(draw(method, torch.arange(10).repeat(2))[:, 0]), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="training steps of each run")
    parser.add_argument("--reader-steps", type=int, default=2000, help="... of the reader")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of table and picture")
    options = parser.parse_args()
    table, picture = options.out / "combined_weights.csv", options.out / "combined_weights.png"
    points = [(weight, value) for weight, values in SWEEP.items() for value in values]
    today = settings_text("combined")
    rows = {
        (row["weight"], float(row["value"]), int(row["seed"])): row
        for row in read_rows(table)
        if row["settings"] == today and int(row["steps"]) == options.steps
    }
    size = (20 * 28, 28 * len(points))
    usable = bool(rows) and picture.exists()
    sheet = Image.open(picture).convert("L") if usable else Image.new("L", size)
    # Seeds outside, so that an unfinished table has every setting; the shared default only once.
    todo = [(weight, value, seed) for seed in SEEDS for weight, value in points]
    reader = reader_error = None
    data = load_images("mnist")
    for weight, value, seed in todo:
        if (weight, value, seed) in rows:
            continue
        if reader is None:
            reader, reader_error = train_reader(data, options.reader_steps)
            print("reader's error", reader_error, flush=True)
        method = run(data, weight, value, seed, options.steps)
        validation = split_labels(data, N_LABELED, seed, n_validation=N_VALIDATION).validation
        asked = torch.arange(10).repeat(PER_CLASS)
        seen = class_probabilities(reader, draw(method, asked)).argmax(1)
        measured = {
            "seed": str(seed),
            "error": f"{test_error(method, validation):.4f}",
            "reconstruction_error": f"{reconstruction_error(method, validation.images):.5f}",
            "request_error": f"{(seen != asked).double().mean():.4f}",
            "reader_error": f"{reader_error:.4f}",
            "steps": str(options.steps),
            "version": __version__,
            "settings": today,
        }
        shared = [p for p in points if is_default(*p)] if is_default(weight, value) else None
        for name, number in shared or [(weight, value)]:
            rows[name, number, seed] = {"weight": name, "value": f"{number:g}", **measured}
            if seed == 0:
                strip = Image.fromarray(sheet_row(method).numpy())
                sheet.paste(strip, (0, 28 * points.index((name, number))))
        ordered = [rows[key] for key in sorted(rows, key=lambda k: (points.index(k[:2]), k[2]))]
        write_rows(table, COLUMNS, ordered)
        sheet.save(picture, optimize=True)
        print(weight, value, "seed", seed, measured["error"], measured["request_error"], flush=True)


if __name__ == "__main__":
    main()
