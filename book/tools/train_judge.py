"""Train the judge of MNIST: ``python book/tools/train_judge.py [--out FOLDER]``.

It writes ``mnist.safetensors`` and ``mnist.json`` into ``semigen_lib/assets/judge``. All 60,000
training images are used with all their labels, each time turned, resized and moved a little. What
is kept is the moving average of the weights. The test images are looked at once, at the end, for
the figure that stands in the JSON: nothing was chosen by them. About seven minutes of one core.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from semigen_lib.checkpoint import SCHEMA, save_weights, write_json
from semigen_lib.data import BatchStream, ImageSet, load_images, split_labels, to_float
from semigen_lib.judge import JUDGE, Judge
from semigen_lib.runtime import autocast, fast_bf16, seed_everything

SEED = 0
EPOCHS = 18  # passes through all images
BATCH_SIZE = 128
LEARNING_RATE = 0.1  # at its peak, after a tenth of the steps
AVERAGE = 0.998  # of the weights, per step


def distort(images: Tensor) -> Tensor:
    """Turn (12 degrees), resize (a tenth), shear (a tenth) and move (2 pixels) every image."""
    n = len(images)
    angle, size, shear, right, down = (2 * torch.rand(5, n) - 1).unbind()
    angle, size, shear = angle * math.radians(12), 1 + 0.1 * size, 0.1 * shear
    transform = torch.zeros(n, 2, 3)
    transform[:, 0, 0], transform[:, 0, 1] = size * angle.cos(), shear - size * angle.sin()
    transform[:, 1, 0], transform[:, 1, 1] = size * angle.sin(), size * angle.cos()
    transform[:, 0, 2], transform[:, 1, 2] = right * 4 / 28, down * 4 / 28  # the side is 2 units
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def learning_rate(progress: float) -> float:
    """Rise to the peak in the first tenth of the run and fall to 0 by its end."""
    return LEARNING_RATE * min(progress / 0.1, (1 - progress) / 0.9)


def train_judge(images: BatchStream, steps: int, n_classes: int = 10) -> Judge:
    """Return the averaged judge after a number of steps."""
    judge = Judge(n_classes).to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(judge).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(
        judge.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    for step in tqdm(range(steps), mininterval=10):
        batch = images.at(step)
        seen = distort(batch.labeled_images).to(memory_format=torch.channels_last)
        optimizer.param_groups[0]["lr"] = learning_rate(step / steps)
        with autocast(seen.device, "bf16" if fast_bf16() else "fp32"):
            class_logits = judge(seen)[1]
        optimizer.zero_grad()
        F.cross_entropy(class_logits.float(), batch.labels).backward()
        optimizer.step()
        with torch.no_grad():
            now = judge.state_dict()
            for name, kept in average.state_dict().items():  # the statistics of batch norm too
                if kept.is_floating_point():
                    kept.lerp_(now[name], 1 - min(AVERAGE, step / (step + 10)))
                else:
                    kept.copy_(now[name])
    return average


def count_errors(judge: Judge, images: ImageSet) -> int:
    """Return how many images the judge reads wrongly."""
    wrong = 0
    with torch.no_grad():
        for part, labels in zip(images.images.split(500), images.labels.split(500), strict=True):
            wrong += int((judge(to_float(part))[1].argmax(1) != labels).sum())
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes through all images")
    parser.add_argument("--out", type=Path, default=JUDGE, help="the folder of both files")
    options = parser.parse_args()
    began = time.monotonic()
    seed_everything(SEED)
    data = load_images("mnist")
    split = split_labels(data, None, 0)
    images = BatchStream(split, batch_size=1, labeled_batch_size=BATCH_SIZE, seed=SEED)
    judge = train_judge(images, options.epochs * len(split) // BATCH_SIZE)
    minutes = round((time.monotonic() - began) / 60, 1)
    sha256 = save_weights(options.out / "mnist.safetensors", judge.state_dict())
    n_errors = count_errors(judge, data.test)
    facts = {
        "schema": SCHEMA,
        "sha256": sha256,
        "command": f"python book/tools/train_judge.py --epochs {options.epochs}",
        "seed": SEED,
        "epochs": options.epochs,
        "n_train": len(split),
        "n_test": len(data.test),
        "n_test_errors": n_errors,
        "test_error": n_errors / len(data.test),
        "test_accuracy": (len(data.test) - n_errors) / len(data.test),
        "minutes": minutes,
        "torch": torch.__version__,
    }
    write_json(options.out / "mnist.json", facts)


if __name__ == "__main__":
    main()
