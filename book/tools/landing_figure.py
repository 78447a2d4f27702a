"""Draw the picture of the landing page: ``python book/tools/landing_figure.py [RUN]``.

It runs the two commands that the page shows (``semigen train``, then ``semigen sample``; no drawing
is picked by hand) and puts the labels that were given beside the digits that were drawn. With RUN,
a finished run of the first command is used and nothing is trained.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from semigen_lib.cli import main
from semigen_lib.data import load_images, split_labels
from semigen_lib.plotting import show_images, use_style

SEED, N_LABELED, MINUTES, PER_CLASS = 0, 10, 10, 14
PICTURE = Path(__file__).resolve().parents[1] / "_static" / "landing.png"


def semigen(*arguments: object) -> None:
    """Run one command; a failure ends the script with its status."""
    if status := main([str(argument) for argument in arguments]):
        sys.exit(status)


def given_labels() -> torch.Tensor:
    """Return the labelled images, uint8 ``(10, 1, 28, 28)``, class by class."""
    split = split_labels(load_images("mnist"), N_LABELED, SEED)
    labels = split.labels[split.labeled_index]
    return split.images[split.labeled_index][labels.argsort(stable=True)]


def drawn_images(run: Path | None) -> np.ndarray:
    """Return what a run draws of each digit, uint8 ``(10 * PER_CLASS, 1, 28, 28)``."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.npz"
        if run is None:
            run = Path(folder) / "run"
            budget = ("--labels", N_LABELED, "--seed", SEED, "--minutes", MINUTES)
            semigen("train", "--method", "cgan", *budget, "--out", run)
        semigen("sample", run, "--per-class", PER_CLASS, "--out", samples)
        with np.load(samples) as arrays:
            return arrays["images"][:, None]


def draw_picture(run: Path | None) -> None:
    """Write the picture: one row a digit, what was labelled on the left, drawings on the right."""
    use_style()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(5.2, 3.3), dpi=220, width_ratios=(1, PER_CLASS)
    )
    figure.get_layout_engine().set(h_pad=0.1)  # inches
    digits = [str(digit) for digit in range(10)]
    show_images(given_labels(), columns=1, row_titles=digits, ax=left)
    show_images(drawn_images(run), columns=PER_CLASS, ax=right)
    left.set_title("labelled")
    right.set_title("drawn on request", loc="right")
    figure.savefig(PICTURE, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    draw_picture(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
