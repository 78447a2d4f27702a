"""Train ``combined`` and ``lsgan`` in float32 and in bfloat16, seed by seed, and write a table.

Run ``python book/tools/compare_precision.py``; ``book/speed.md`` shows what it wrote. A method may
compute in bfloat16 of its own accord only if this table says that nothing is lost by it: the
intervals of the two formats have to overlap in every measure. A row stands for one finished run, an
interrupted script goes on where it was, and rows made with other settings are made anew.

The whole table takes about half an hour on two quiet cores that have bfloat16 in hardware.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from tables import read_rows, settings_text, write_rows

from semigen_lib import __version__
from semigen_lib.data import UNLABELED, ImageData, load_images, split_labels
from semigen_lib.evaluation import draw, test_error
from semigen_lib.judge import load_judge
from semigen_lib.methods import build_method
from semigen_lib.methods.method import Method
from semigen_lib.runtime import fast_bf16, seed_everything
from semigen_lib.samples import Reading, measure_samples, read_images_with
from semigen_lib.training import train

RESULTS = Path(__file__).resolve().parents[1] / "results" / "precision.csv"
METHODS_COMPARED = ("combined", "lsgan")
FORMATS = ("fp32", "bf16")
MEASURES = ("test_error", "conditional_accuracy", "frechet_ratio", "coverage")
COLUMNS = ("method", "precision", "seed", "steps", *MEASURES, "seconds", "version", "settings")
N_DRAWN = 2000  # drawings of each run


def measure(method: Method, data: ImageData, real: tuple[Reading, Reading]) -> dict[str, str]:
    """Return every measure that the method has; the others are empty."""
    requests = torch.arange(10).repeat_interleave(N_DRAWN // 10)
    if not method.draws_on_request:
        requests = torch.full_like(requests, UNLABELED)
    report = measure_samples(draw(method, requests), requests, *real)
    figures = {
        "test_error": test_error(method, data.test) if method.reads else None,
        "conditional_accuracy": report.conditional_accuracy,
        "frechet_ratio": report.frechet_ratio,
        "coverage": report.coverage,
    }
    return {name: "" if value is None else f"{value:.4f}" for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this, exclusive")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table")
    options = parser.parse_args()
    if not fast_bf16():
        parser.error("expected a processor with bfloat16 in hardware (AVX512-BF16), got another")
    data, judge = load_images("mnist"), load_judge()
    real = read_images_with(judge, data.train), read_images_with(judge, data.test)
    wanted = [
        (name, precision, seed)
        for seed in range(options.seeds)  # a table of few seeds is a table too
        for name in METHODS_COMPARED
        for precision in FORMATS
    ]
    kept = {
        (row["method"], row["precision"], int(row["seed"])): row
        for row in read_rows(options.out)
        if row["settings"] == settings_text(row["method"]) and int(row["steps"]) == options.steps
    }
    for name, precision, seed in wanted:
        if (name, precision, seed) in kept:
            continue
        split = split_labels(data, 100, seed)
        seed_everything(seed)
        method = build_method(name, split.image_shape, split.n_classes)
        started = time.perf_counter()
        train(method, split, steps=options.steps, seed=seed, precision=precision)
        row = {
            "method": name,
            "precision": precision,
            "seed": str(seed),
            "steps": str(options.steps),
            "seconds": f"{time.perf_counter() - started:.0f}",
            "version": __version__,
            "settings": settings_text(name),
        }
        kept[name, precision, seed] = row | measure(method, data, real)
        write_rows(options.out, COLUMNS, [kept[key] for key in sorted(wanted) if key in kept])


if __name__ == "__main__":
    main()
