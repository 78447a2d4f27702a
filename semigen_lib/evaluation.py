"""What a trained method is worth. Nothing here is called while training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from semigen_lib.data import ImageSet, to_float
from semigen_lib.losses import reconstruction_loss
from semigen_lib.methods.method import Method

__all__ = [
    "class_probabilities",
    "draw",
    "mean_interval",
    "reconstruction_error",
    "t_quantile",
    "test_error",
]


@torch.no_grad()
def class_probabilities(method: Method, images: Tensor, batch_size: int = 500) -> Tensor:
    """Return ``(N, K)`` float32 probabilities on the CPU for uint8 images ``(N, C, H, W)``.

    The method is used in evaluation mode and left in the mode it was in.

    Raises
    ------
    ValueError
        If the method has no classifier.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    device, was_training = next(method.parameters()).device, method.training
    method.eval()
    try:
        parts = [
            method.predict(to_float(part.to(device))).float().softmax(1).cpu()
            for part in images.split(batch_size)
        ]
    finally:
        method.train(was_training)
    return torch.cat(parts)


def test_error(method: Method, images: ImageSet) -> float:
    """Return the fraction of labelled images that the method reads wrongly, from 0 to 1.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    predictions = class_probabilities(method, images.images).argmax(1)
    return (predictions != images.labels).double().mean().item()


test_error.__test__ = False  # its name is the field's term, and not a test of pytest's


@torch.no_grad()
def reconstruction_error(method: Method, images: Tensor, batch_size: int = 500) -> float:
    """Return the mean squared error per pixel of reconstructions of uint8 images, from 0 to 1.

    Parameters
    ----------
    method
        A method that reconstructs; used in evaluation mode and left in the mode it was in.
    images
        uint8 ``(N, C, H, W)``.

    Shown in: book/02_autoencoder.ipynb
    """
    device, was_training = next(method.parameters()).device, method.training
    method.eval()
    total = 0.0
    try:
        for part in images.split(batch_size):
            part = to_float(part.to(device))
            total += reconstruction_loss(part, method.reconstruct(part)).item() * len(part)
    finally:
        method.train(was_training)
    return total / len(images)


@torch.no_grad()
def draw(method: Method, labels: Tensor, batch_size: int = 500) -> Tensor:
    """Draw one image per label, as uint8 ``(N, C, H, W)`` on the CPU.

    Parameters
    ----------
    method
        A method that draws; used in evaluation mode and left in the mode it was in.
    labels
        ``(N,)`` int64: the class to draw, or UNLABELED for any.

    Shown in: book/04_combined_objective.ipynb
    """
    device, was_training = next(method.parameters()).device, method.training
    method.eval()
    try:
        parts = [
            (method.generate(part.to(device)) * 255).round().to(torch.uint8).cpu()
            for part in labels.split(batch_size)
        ]
    finally:
        method.train(was_training)
    return torch.cat(parts)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of a few runs and the half-width of its confidence interval.

    Parameters
    ----------
    values
        One number per seed, at least two.
    confidence
        Of the two-sided interval of Student's t distribution.

    Raises
    ------
    ValueError
        If there are fewer than two values.

    Shown in: book/04_combined_objective.ipynb
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"values: expected at least 2 for an interval, got {n}")
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, t_quantile((1 + confidence) / 2, n - 1) * math.sqrt(variance / n)


def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, by bisection of its integral.

    Parameters
    ----------
    probability
        Between 1/2 and 1.
    degrees
        Degrees of freedom, at least 1.
    """
    constant = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2)
    constant /= math.sqrt(math.pi)
    # With x = sqrt(degrees) * tan(angle) the density becomes a power of a cosine.
    angles = torch.linspace(0, math.pi / 2, 20001, dtype=torch.float64)
    mass = 0.5 + constant * torch.cumulative_trapezoid(angles.cos() ** (degrees - 1), angles)
    index = int(torch.searchsorted(mass, probability))
    return math.sqrt(degrees) * math.tan(angles[index + 1].item())
