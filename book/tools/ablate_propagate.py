"""Take ``propagate`` apart: leave one part out at a time, and write what is lost.

Run ``python book/tools/ablate_propagate.py``; chapter 9 loads what it wrote. A row stands for one
run. Rows made with the settings of today are kept, so an interrupted script goes on where it was.

The graph alone is measured on the images of the pool whose labels it was not told; the student,
and with it the whole method, on the test images, once per run. Nothing is chosen by either.

On one thread, the edges of a kind of feature take about a minute, a run of the graph seconds, a run
of the student another minute.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch
from tables import read_rows, write_rows
from torch import Tensor

from semigen_lib import __version__
from semigen_lib.data import UNLABELED, ImageData, load_images, split_labels, to_float
from semigen_lib.evaluation import test_error
from semigen_lib.graph import (
    balance_classes,
    deskew,
    distortion_distances,
    nearest_neighbors,
    oriented_gradients,
    principal_components,
    spread_labels,
)
from semigen_lib.methods import build_method
from semigen_lib.methods.propagate import find_edges
from semigen_lib.runtime import seed_everything
from semigen_lib.training import train

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablation_propagate.csv"
COLUMNS = ("stage", "variant", "n_labeled", "seed", "error", "steps", "version", "settings")

WHOLE = {"gradients": True, "bend": True, "upright": True, "alpha": 0.999, "balance": True}
GRAPH = {
    "whole": {},
    "pixels for strokes": {"gradients": False, "bend": False},
    "strokes do not bend": {"bend": False},
    "not deskewed": {"upright": False},
    "alpha 0.99": {"alpha": 0.99},
    "alpha 0.9": {"alpha": 0.9},
    "not balanced": {"balance": False},
}
EDGE_PARTS = ("gradients", "bend", "upright")
STUDENT = {
    "whole": {},
    "no random views": {"augment": 0},
    "cross-entropy": {"q": 0.01},
    "no second reading": {"relabel_at": 1.0},
    "surest 80 %": {"keep": 0.8, "keep_later": 0.8},
}


@functools.lru_cache(maxsize=1)
def edges(gradients: bool, bend: bool, upright: bool) -> tuple[Tensor, Tensor]:
    """Return neighbours and similarities of the pool, as ``propagate`` has them when all is True.

    Without bending, each image has ten neighbours and similarities fall more slowly: what was
    best there on development draws, so that the part and not its settings are compared.
    """
    pool = load_images("mnist").train.images
    if gradients and bend and upright:
        return find_edges(pool)
    images = deskew(to_float(pool)) if upright else to_float(pool)
    features = oriented_gradients(images) if gradients else images.flatten(1)
    features = principal_components(features, 100)
    if not bend:
        neighbors, distances = nearest_neighbors(features, 10)
        squares = distances.square()
        return neighbors, torch.exp(-squares / (0.3 * squares[:, -1].median()))
    candidates, _ = nearest_neighbors(features, 20)
    squares, order = distortion_distances(images, candidates).sort(1)
    squares = squares[:, :7]
    return candidates.gather(1, order)[:, :7], torch.exp(
        -2 * (squares / squares[:, -1].median()) ** 2
    )


def run_graph(data: ImageData, settings: dict, n_labeled: int, seed: int, steps: int) -> float:
    """Return what the graph misreads of the labels that were hidden from it."""
    parts = {**WHOLE, **settings}
    neighbors, similarities = edges(parts["gradients"], parts["bend"], parts["upright"])
    split = split_labels(data, n_labeled, seed)
    scores = spread_labels(
        neighbors, similarities, split.labels, split.n_classes, alpha=parts["alpha"], rounds=None
    )
    names = (balance_classes(scores) if parts["balance"] else scores).argmax(1)
    hidden = split.labels == UNLABELED
    return (names != data.train.labels)[hidden].double().mean().item()


def run_student(data: ImageData, settings: dict, n_labeled: int, seed: int, steps: int) -> float:
    """Return what the student misreads of the test images."""
    split = split_labels(data, n_labeled, seed)
    seed_everything(seed)
    method = build_method("propagate", split.image_shape, split.n_classes, settings)
    train(method, split, steps=steps, seed=seed, progress=False)
    return test_error(method, data.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default="graph,student", help="which of graph, student")
    parser.add_argument("--labels", default="100,10", help="budgets of the graph")
    parser.add_argument("--student-labels", default="100", help="budgets of the student")
    parser.add_argument("--seeds", type=int, default=5, help="label seeds 0 to this, exclusive")
    parser.add_argument("--steps", type=int, default=200, help="of a student")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_images("mnist")
    seeds = range(options.seeds)
    budgets = [int(word) for word in options.labels.split(",")]
    runs = [  # in the order of edges, which are kept for one kind of feature at a time
        ("graph", run_graph, variant, settings, n_labeled, seed)
        for variant, settings in sorted(
            GRAPH.items(), key=lambda item: [part in item[1] for part in EDGE_PARTS]
        )
        for n_labeled in budgets
        for seed in seeds
    ]
    budgets = [int(word) for word in options.student_labels.split(",")]
    runs += [  # all variants of a seed before the next: half a table compares the same seeds
        ("student", run_student, variant, settings, n_labeled, seed)
        for n_labeled in budgets
        for seed in seeds
        for variant, settings in STUDENT.items()
    ]
    rows = {tuple(row[name] for name in COLUMNS[:4]): row for row in read_rows(options.out)}
    for stage, run, variant, settings, n_labeled, seed in runs:
        steps = options.steps if stage == "student" else 0
        text = " ".join(f"{name}={value}" for name, value in settings.items())
        key = (stage, variant, str(n_labeled), str(seed))
        made = [rows.get(key, {}).get(name) for name in ("steps", "settings")]
        if stage not in options.stages.split(",") or made == [str(steps), text]:
            continue
        rows[key] = {
            **dict(zip(COLUMNS[:4], key, strict=True)),
            "error": f"{run(data, settings, n_labeled, seed, steps):.6f}",
            "steps": str(steps),
            "version": __version__,
            "settings": text,
        }
        write_rows(options.out, COLUMNS, list(rows.values()))
        print(*key, "error", rows[key]["error"], flush=True)


if __name__ == "__main__":
    main()
