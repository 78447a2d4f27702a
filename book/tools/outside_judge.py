"""Let a network that is not ours read what was drawn: ResNet-18, as torchvision builds it.

Run ``python book/tools/outside_judge.py NAME=SAMPLES.npz ...`` with files of this command:

    semigen sample RUN --per-class 1000 --out SAMPLES.npz

The network learns from all training images with their true labels, each batch moved by up to two
pixels. Then it reads the test images, which says how far it can be trusted, and every file. It
writes ``outside_judge.json``; its weights, 45 MB, are not kept. Twenty minutes of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.transforms import RandomCrop
from tqdm.auto import tqdm

from semigen_lib.checkpoint import SCHEMA, write_json
from semigen_lib.data import BatchStream, load_images, split_labels, to_float
from semigen_lib.runtime import seed_everything

RESULTS = Path(__file__).resolve().parents[1] / "results"
BATCH_SIZE = 128
LEARNING_RATE = 2e-3


def train(steps: int) -> nn.Module:
    """Return a ResNet-18 that has learnt from all training images of MNIST."""
    seed_everything(0)
    split = split_labels(load_images("mnist"), None, 0)
    stream = BatchStream(split, batch_size=1, labeled_batch_size=BATCH_SIZE, seed=0)
    network = torchvision.models.resnet18(num_classes=split.n_classes).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    move = RandomCrop(split.image_shape[1:], padding=2)
    for step in tqdm(range(steps), mininterval=10):
        batch = stream.at(step)
        loss = F.cross_entropy(network(as_colour(move(batch.labeled_images))), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def as_colour(images: Tensor) -> Tensor:
    """Return grey images as the three equal channels that the network wants."""
    return images.expand(-1, 3, -1, -1)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of uint8 images that the network reads as labelled, from 0 to 1."""
    parts = [network(as_colour(to_float(part))).argmax(1) for part in images.split(500)]
    return (torch.cat(parts) == labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", nargs="+", metavar="NAME=NPZ", help="what semigen sample wrote")
    parser.add_argument("--steps", type=int, default=1200, help="of 128 images (default: 1200)")
    parser.add_argument("--out", type=Path, default=RESULTS / "outside_judge.json")
    options = parser.parse_args()
    files = {}
    for argument in options.samples:  # read before the minutes of training
        name, _, path = argument.partition("=")
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = (torch.from_numpy(arrays[key]) for key in ("images", "labels"))
            files[name] = images.unsqueeze(1), labels
    network, test = train(options.steps), load_images("mnist").test
    facts = {
        "schema": SCHEMA,
        "network": "torchvision.models.resnet18",
        "torchvision": torchvision.__version__,
        "steps": options.steps,
        "batch_size": BATCH_SIZE,
        "test_error": 1 - accuracy(network, test.images, test.labels),
        "samples": {
            name: {"n": len(labels), "conditional_accuracy": accuracy(network, images, labels)}
            for name, (images, labels) in files.items()
        },
    }
    write_json(options.out, facts)
    print(f"of real test images read wrongly {facts['test_error']:.2%}")
    for name, report in facts["samples"].items():
        print(f"{name}: asked and drawn {report['conditional_accuracy']:.2%} of {report['n']}")


if __name__ == "__main__":
    main()
