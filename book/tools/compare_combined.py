"""Train ``supervised`` and ``combined`` on the same 100 labels, seed by seed, and write a table.

Run ``python book/tools/compare_combined.py``; chapter 4 loads what it wrote. A row stands for one
finished run. Rows made with the settings of today are kept, so an interrupted script goes on where
it was, and all others are made anew. The settings were chosen on validation images; the test images
are read here, once per run, and nothing is chosen by them.

The whole table takes about 12 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tables import read_rows, settings_text, write_rows

from semigen_lib import __version__
from semigen_lib.data import load_images, split_labels
from semigen_lib.evaluation import test_error
from semigen_lib.methods import build_method
from semigen_lib.runtime import seed_everything
from semigen_lib.training import train

RESULTS = Path(__file__).resolve().parents[1] / "results" / "combined_100_labels.csv"
COLUMNS = (
    "method",
    "seed",
    "steps",
    "n_labeled",
    "test_error",
    "seconds",
    "version",
    "settings",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="label seeds 0 to this, exclusive")
    parser.add_argument("--steps", type=int, default=2500, help="training steps of each run")
    parser.add_argument("--labels", type=int, default=100, help="labelled images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table")
    options = parser.parse_args()
    data = load_images("mnist")
    wanted = [(name, seed) for name in ("supervised", "combined") for seed in range(options.seeds)]
    kept = {
        (row["method"], int(row["seed"])): row
        for row in read_rows(options.out)
        if row["settings"] == settings_text(row["method"])
        and int(row["steps"]) == options.steps
        and int(row["n_labeled"]) == options.labels
    }
    for name, seed in wanted:
        if (name, seed) in kept:
            continue
        split = split_labels(data, options.labels, seed)
        seed_everything(seed)
        method = build_method(name, split.image_shape, split.n_classes)
        started = time.perf_counter()
        train(method, split, steps=options.steps, seed=seed)
        kept[name, seed] = {
            "method": name,
            "seed": str(seed),
            "steps": str(options.steps),
            "n_labeled": str(options.labels),
            "test_error": f"{test_error(method, data.test):.4f}",
            "seconds": f"{time.perf_counter() - started:.0f}",
            "version": __version__,
            "settings": settings_text(name),
        }
        write_rows(options.out, COLUMNS, [kept[key] for key in wanted if key in kept])
        print(name, "seed", seed, "test error", kept[name, seed]["test_error"])


if __name__ == "__main__":
    main()
