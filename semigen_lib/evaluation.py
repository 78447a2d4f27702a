"""What a trained method is worth. Nothing here is called while training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from semigen_lib.data import UNLABELED, ImageSet, to_float
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

    Parameters
    ----------
    method
        A method that reads; used in evaluation mode and left in the mode it was in.
    images
        uint8 ``(N, C, H, W)``.
    batch_size
        Images at a time; it changes memory and speed only.

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
    """Return the fraction of images that the method reads wrongly, from 0 to 1.

    Parameters
    ----------
    method
        A method that reads; used in evaluation mode and left in the mode it was in.
    images
        Labelled images, every one of them.

    Raises
    ------
    ValueError
        If an image has no label (it would count as an error), or the method has no classifier.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    if n_unlabeled := int((images.labels == UNLABELED).sum()):
        raise ValueError(f"images: expected a label for each, got {n_unlabeled} without one")
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
    batch_size
        Images at a time; it changes memory and speed only.

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
    batch_size
        Images at a time. It changes memory and speed, and which noise each image gets.

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
    """Return the quantile of Student's t distribution, by integrating its density.

    Parameters
    ----------
    probability
        From 1/2 to below 1.
    degrees
        Degrees of freedom, at least 1.

    Raises
    ------
    ValueError
        If one of them is out of its range.

    Shown in: book/04_combined_objective.ipynb
    """
    if not 0.5 <= probability < 1:
        raise ValueError(f"probability: expected a number from 0.5 to below 1, got {probability}")
    if degrees < 1:
        raise ValueError(f"degrees: expected at least 1, got {degrees}")
    # With x = sqrt(degrees) * tan(angle) the density becomes a power of a cosine.
    log_constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    constant = math.exp(log_constant) / math.sqrt(math.pi)
    angles = torch.linspace(0, math.pi / 2, 20001, dtype=torch.float64)
    mass = constant * torch.cumulative_trapezoid(angles.cos() ** (degrees - 1), angles)
    mass = torch.cat([torch.zeros(1, dtype=torch.float64), mass])
    above = int(torch.searchsorted(mass, probability - 0.5).clamp(1, len(mass) - 1))
    # A straight line between the two angles around the quantile.
    share = (probability - 0.5 - mass[above - 1]) / (mass[above] - mass[above - 1])
    angle = angles[above - 1] + share * (angles[above] - angles[above - 1])
    return math.sqrt(degrees) * math.tan(angle.item())
