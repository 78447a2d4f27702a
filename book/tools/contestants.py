"""Train one network in one way until stopped, and print how many steps are done.

``make bench`` starts several of these, lets them take turns, and counts. Every contestant trains
real MNIST images with batches of 64; what differs is said on the command line. The first line it
prints is ``flops N``, the floating-point operations of a step for each image, counted by PyTorch.

``--loop ours``   the training loop of the library, recording every 10 steps as always;
``--loop plain``  the loop of a tutorial on the same layers: a DataLoader that makes tensors of PIL
                  images one by one, upsampling and then a convolution, channels apart, an Adam that
                  is not fused, gradients of everything, each loss read at each step.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from semigen_lib import training
from semigen_lib.data import Batch, BatchStream, LabelSplit, load_images, split_labels
from semigen_lib.losses import (
    LSGAN_CODE,
    classification_loss,
    is_fake_loss,
    is_real_loss,
    least_squares_loss,
)
from semigen_lib.methods import METHODS, build_method
from semigen_lib.methods.method import Method, MethodConfig, Terms

FOREVER = 10**9  # steps


class Upsample(nn.Sequential):
    """A transposed convolution that can be asked to be what it replaces."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__(nn.ConvTranspose2d(n_inputs, n_outputs, 4, stride=2, padding=1))


def reshape(*shape: int) -> nn.Module:
    """Return a layer that gives each vector of a batch a shape."""
    return nn.Unflatten(1, shape)


def dcgan_generator() -> nn.Module:
    """Return the layers of PyTorch-GAN's generators for 32 x 32 pixels, upsampling in one."""
    return nn.Sequential(
        nn.Linear(100, 128 * 8 * 8),
        reshape(128, 8, 8),
        *(Upsample(128, 128), nn.BatchNorm2d(128), nn.LeakyReLU(0.2)),
        *(Upsample(128, 64), nn.BatchNorm2d(64), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(64, 1, 3, padding=1), nn.Sigmoid()),
    )


def dcgan_trunk() -> nn.Module:
    """Return the layers of PyTorch-GAN's discriminators below their heads."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((1, 16, 32, 64, 128)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        layers += [nn.Dropout2d(0.25), *([nn.BatchNorm2d(after)] if before > 1 else [])]
    return nn.Sequential(*layers, nn.Flatten())


def article_generator() -> nn.Module:
    """Return the article's generator, made to end at 28 x 28 pixels."""
    return nn.Sequential(
        *(nn.Linear(100, 32 * 7 * 7), nn.ReLU(), reshape(32, 7, 7)),
        *(Upsample(32, 32), nn.ReLU(), Upsample(32, 32), nn.ReLU()),
        *(nn.Conv2d(32, 1, 3, padding=1), nn.Sigmoid()),
    )


def article_trunk() -> nn.Module:
    """Return the article's encoder: two convolutions at the full size."""
    convolutions = (nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1))
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), nn.Flatten())


@dataclass(frozen=True)
class GameConfig(MethodConfig):
    """Settings of the games that are raced."""

    latent_dim: int = 100
    learning_rate: float = 2e-4
    beta1: float = 0.5


class Game(Method):
    """A generator against a trunk with a head: least squares, or K+1 classes with labels."""

    Config = GameConfig
    draws = True
    players = {"discriminator": ("trunk", "head"), "generator": ("generator",)}

    def __init__(
        self, config: GameConfig, generator: nn.Module, trunk: nn.Module, side: int, n_outputs: int
    ) -> None:
        super().__init__(config, (1, side, side), 10)
        self.generator, self.trunk = generator, trunk
        with torch.no_grad():
            n_features = trunk.eval()(torch.zeros(2, 1, side, side)).shape[1]
        self.head = nn.Linear(n_features, n_outputs)
        self.to(memory_format=torch.channels_last)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """The discriminator first; then the generator. The same drawings serve both."""
        fakes = self.generate(batch.images)
        if self.head.out_features == 1:
            terms = {
                "real": least_squares_loss(self.judge(batch.images)[:, 0], LSGAN_CODE.real),
                "fake": least_squares_loss(self.judge(fakes.detach())[:, 0], LSGAN_CODE.fake),
            }
            yield "discriminator", terms
            score = self.judge(fakes)[:, 0]
            yield "generator", {"adversarial": least_squares_loss(score, LSGAN_CODE.generator)}
        else:
            known, real = self.judge(torch.cat([batch.labeled_images, batch.images])).split(
                [len(batch.labels), len(batch.images)]
            )
            terms = {
                "real": is_real_loss(real),
                "fake": is_fake_loss(self.judge(fakes.detach())),
                "classification": classification_loss(known, batch.labels),
            }
            yield "discriminator", terms
            yield "generator", {"adversarial": is_real_loss(self.judge(fakes))}

    def judge(self, images: Tensor) -> Tensor:
        """Map images to what the head says of them."""
        return self.head(self.trunk(images)).float()

    def generate(self, labels: Tensor) -> Tensor:
        """Draw as many images."""
        return self.generator(self.noise(len(labels))).float()


NETWORKS = ("dcgan-lsgan", "dcgan-sgan", "article", *METHODS)


def build(network: str, split: LabelSplit) -> Method:
    """Return a network by its name: a game of others' layers, or a method of the library."""
    if network in METHODS:
        return build_method(network, split.image_shape, split.n_classes)
    side = split.image_shape[1]
    if network == "article":
        return Game(GameConfig(), article_generator(), article_trunk(), side, 1)
    return Game(
        GameConfig(), dcgan_generator(), dcgan_trunk(), side, 1 if network == "dcgan-lsgan" else 10
    )


def upsample_first(module: nn.Module) -> None:
    """Replace each transposed convolution that doubles the side by what it stands for."""
    for name, child in module.named_children():
        upsample_first(child)
        if isinstance(child, nn.ConvTranspose2d):
            convolution = nn.Conv2d(
                child.in_channels,
                child.out_channels,
                3,
                padding=1,
                bias=child.bias is not None,
            )
            setattr(module, name, nn.Sequential(nn.Upsample(scale_factor=2), convolution))


def count_flops(method: Method, batch: Batch) -> int:
    """Return the floating-point operations of one step, forward and backward, for each image."""
    with FlopCounterMode(display=False) as counter:
        training.training_step(method.train(), batch, method.optimizers())
    return counter.get_total_flops() // len(batch.images)


def say(what: str, number: int) -> None:
    """Print a line at once; whoever counts is at the other end of a pipe."""
    sys.stdout.write(f"{what} {number}\n")
    sys.stdout.flush()


# ---- our loop ----


def run_ours(method: Method, split: LabelSplit, options: argparse.Namespace) -> None:
    """Train as ``semigen train`` does."""
    training.train(
        method,
        split,
        steps=FOREVER,
        precision=options.precision,
        record_every=options.record_every,
        workers=options.workers,
        progress=False,
        on_record=lambda step, _: say("step", step),
    )


# ---- a tutorial's loop ----


class PilImages(Dataset):
    """The images of a pool as PIL images, which torchvision's transforms make tensors of."""

    def __init__(self, images: Tensor, side: int) -> None:
        from PIL import Image
        from torchvision import transforms

        self.images = images.squeeze(1).numpy()
        self.from_array = Image.fromarray
        self.transform = transforms.Compose([transforms.Resize(side), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.from_array(self.images[index]))


def run_plain(method: Method, split: LabelSplit, batch: Batch) -> None:
    """Train as a tutorial does."""
    betas = (method.config.beta1, method.config.beta2)
    rate = method.config.learning_rate
    optimizers = {
        player: torch.optim.Adam(method.parameters_of(player), lr=rate, betas=betas)
        for player in method.players
    }
    images = PilImages(load_images("mnist").train.images, split.image_shape[1])
    loader = DataLoader(images, batch_size=method.config.batch_size, shuffle=True)
    step = 0
    while True:
        for images in loader:
            for player, terms in method.updates(batch._replace(images=images)):
                optimizers[player].zero_grad()
                loss = method.objective(terms)
                loss.backward(retain_graph=True)
                optimizers[player].step()
                loss.item()
            step += 1
            say("step", step)


# ---- the command line ----


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("network", choices=NETWORKS, help="others' layers, or a method of the library")
    add("--loop", default="ours", choices=("ours", "plain"))
    add("--precision", default="fp32", choices=("fp32", "bf16"))
    add("--without", nargs="*", default=[], choices=SWITCHES, help="what to switch off")
    add("--batch-size", type=int, default=64)
    add("--side", type=int, help="pixels; 28, and 32 for dcgan")
    add("--record-every", type=int, default=10)
    add("--count", type=int, help="images in the pool: MNIST's over and over")
    add("--folder", type=Path, help="a folder of images instead, streamed")
    add("--workers", type=int, help="processes that read it")
    return parser.parse_args(arguments)


SWITCHES = ("transposed", "channels-last", "kept-memory", "fused-adam")


def switch_off(method: Method, without: list[str]) -> None:
    """Take back what makes a network or its training faster."""
    if "transposed" in without:
        upsample_first(method)
    if "channels-last" in without:
        method.to(memory_format=torch.contiguous_format)
    if "kept-memory" in without:
        training.keep_memory = lambda: False
    if "fused-adam" in without:
        fused = torch.optim.Adam
        torch.optim.Adam = lambda *given, **named: fused(*given, **named | {"fused": False})


def pool(options: argparse.Namespace) -> LabelSplit:
    """Return the images to train on, 100 of them with a label."""
    side = options.side or (32 if options.network.startswith("dcgan") else 28)
    if options.folder:
        data = load_images(options.folder, image_size=side, stream=True)
        return split_labels(data, 100, 0)
    split = split_labels(load_images("mnist", image_size=side), 100, 0)
    if options.count:
        index = torch.arange(options.count) % len(split)
        labels = torch.full((options.count,), -1)
        labels[: len(split)] = split.labels[: options.count]
        labeled = (labels >= 0).nonzero().flatten()
        split = replace(split, images=split.images[index], labels=labels, labeled_index=labeled)
    return split


def main() -> None:
    options = parse()
    split = pool(options)
    torch.manual_seed(0)
    method = build(options.network, split)
    method.config = replace(method.config, batch_size=options.batch_size)
    if options.loop == "plain":
        switch_off(method, list(SWITCHES))
    else:
        switch_off(method, options.without)
    sizes = {"batch_size": method.config.batch_size, "labeled_batch_size": 32}
    if options.record_every > 1 and not options.folder:
        say("flops", count_flops(method, BatchStream(split, **sizes).at(0)))
    if options.loop == "plain":
        run_plain(method.train(), split, BatchStream(split, **sizes).at(0))
    else:
        run_ours(method, split, options)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # whoever counted has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
