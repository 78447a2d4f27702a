"""Train ``combined`` at its full size once and write down how its terms go.

Run ``python book/tools/record_run.py``; chapter 5 draws the table beside its own small run. A row
averages the terms of the steps since the row before, and reads 1,000 validation images, which are
not in the training pool, with the averaged weights.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from semigen_lib import __version__
from semigen_lib.checkpoint import write_atomically
from semigen_lib.data import load_images, split_labels
from semigen_lib.evaluation import test_error
from semigen_lib.methods import build_method
from semigen_lib.runtime import seed_everything
from semigen_lib.training import train

RESULTS = Path(__file__).resolve().parents[1] / "results" / "combined_run.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--every", type=int, default=50, help="steps per row")
    parser.add_argument("--seed", type=int, default=0, help="of labels, weights, batches and noise")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table")
    options = parser.parse_args()
    split = split_labels(load_images("mnist"), 100, options.seed, n_validation=1000)
    seed_everything(options.seed)
    method = build_method("combined", split.image_shape, split.n_classes)
    settings = " ".join(f"{k}={v}" for k, v in dataclasses.asdict(method.config).items())
    errors: list[float] = []
    history = train(
        method,
        split,
        steps=options.steps,
        seed=options.seed,
        record_every=options.every,
        on_record=lambda step, averaged: errors.append(test_error(averaged, split.validation)),
    )
    columns = {name: values for name, values in history.items() if name != "seconds"}
    columns["validation_error"] = errors
    lines = [
        f"# version={__version__} seed={options.seed} labels=100 {settings}",
        ",".join(columns),
    ]
    lines += [",".join(f"{x:.6g}" for x in row) for row in zip(*columns.values(), strict=True)]
    write_atomically(options.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
