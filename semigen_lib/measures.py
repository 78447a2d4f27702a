"""Distances between two sets of images, each image given by its features ``(N, D)``.

No function here knows a network. Features come from ``semigen_lib.judge`` or from a network of
your own, and every figure depends on which: only figures of one network compare. All sums are
taken in float64, and pairs are looked at one block at a time, so that 10,000 images against 10,000
need some ten MB beside the features.

Shown in: book/06_measuring_samples.ipynb
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "density_coverage",
    "frechet_distance",
    "kernel_distance",
    "nearest_distances",
    "precision_recall",
]

_ROWS, _COLUMNS = 256, 2048  # pairs in a block: 4 MB of float64, which a cache holds
_HAIR = 1e-9  # rounding must not decide whether a point on the rim of a ball lies in it


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the squared Fréchet distance of the two normal distributions fitted to features.

    With means ``m`` and covariances ``S`` it is
    ``|m1 - m2|**2 + trace(S1 + S2 - 2 * (S1 @ S2)**0.5)``: 0 for equal sets, without upper limit.
    It is biased: few images give a larger value than many, so compare equal N only, and N of at
    least some 20 times D.

    Parameters
    ----------
    first, second
        Floating point, finite, shapes (N, D) and (M, D), N and M at least 2. Their order does not
        matter.

    Raises
    ------
    ValueError
        If shapes, types or values are others.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local
    Nash Equilibrium", section 4, eq. 6.
    """
    first, second = _checked(first, second)
    shift = (first.mean(0) - second.mean(0)).square().sum()
    covariances = [torch.atleast_2d(features.T.cov()) for features in (first, second)]
    spread = covariances[0].trace() + covariances[1].trace()
    # The trace of (S1 S2)**0.5 is the sum of the singular values of S1**0.5 S2**0.5. Nothing is
    # squared on this way, so equal sets give 0 to the last digits even when S is singular.
    roots = [_root(covariance) for covariance in covariances]
    overlap = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    return max((shift + spread - 2 * overlap).item(), 0.0)


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return the kernel distance (KID): the squared maximum mean discrepancy, without bias.

    The kernel is ``(x @ y / D + 1)**3``. Equal distributions give 0 on average, and single values
    scatter around it, below 0 too. All pairs are used, so nothing is left to chance.

    Parameters
    ----------
    first, second
        Floating point, finite, shapes (N, D) and (M, D), N and M at least 2. Their order does not
        matter.

    Raises
    ------
    ValueError
        If shapes, types or values are others.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs", section 4.
    """
    first, second = _checked(first, second)
    within = sum(_mean_kernel(points, points, without_itself=True) for points in (first, second))
    return within - 2 * _mean_kernel(first, second, without_itself=False)


def precision_recall(real: Tensor, drawn: Tensor, k: int = 5) -> tuple[float, float]:
    """Return improved precision and recall, each from 0 to 1.

    A set is stood for by balls around its points, each as large as the distance to the k-th
    nearest other point of the set. Precision is the share of drawn points in some ball of the real
    ones (is what is drawn plausible?), recall the share of real points in some ball of the drawn
    ones (is all drawn that there is?). One stray point makes a large ball: see
    ``density_coverage``.

    Parameters
    ----------
    real, drawn
        Floating point, finite, shapes (N, D) and (M, D), N and M above k.
    k
        Which neighbour decides the size of a ball.

    Raises
    ------
    ValueError
        If shapes, types or values are others, or k is out of range.

    Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative
    Models", section 2; k = 5 as in Naeem et al. 2020.
    """
    real, drawn = _checked(real, drawn)
    _, in_real = _balls(real, drawn, k)
    _, in_drawn = _balls(drawn, real, k)
    return in_real.gt(0).double().mean().item(), in_drawn.gt(0).double().mean().item()


def density_coverage(real: Tensor, drawn: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density (0 and up, 1 for equal sets) and coverage (0 to 1).

    Both look at the balls of the real points alone. Density counts in how many of them a drawn
    point lies, divided by k: a stray real point adds little. Coverage is the share of the balls
    that hold a drawn point: what is left out lowers it, and a stray drawing does not raise it.

    Parameters
    ----------
    real, drawn
        Floating point, finite, shapes (N, D) and (M, D), N above k.
    k
        Which neighbour decides the size of a ball.

    Raises
    ------
    ValueError
        If shapes, types or values are others, or k is out of range.

    Source: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models",
    section 3, eq. 3 and 4.
    """
    real, drawn = _checked(real, drawn)
    covered, inside = _balls(real, drawn, k)
    return inside.double().mean().item() / k, covered.double().mean().item()


def nearest_distances(points: Tensor, others: Tensor, k: int = 1) -> Tensor:
    """Return for every point the Euclidean distances to the k nearest of ``others``.

    A point that is itself among the others has a first neighbour at distance 0: ask for k + 1.

    Parameters
    ----------
    points, others
        Floating point, finite, shapes (N, D) and (M, D).
    k
        From 1 to M.

    Returns
    -------
    Tensor
        float64, shape (N, k), nearest first.

    Raises
    ------
    ValueError
        If shapes, types or values are others, or k is out of range.
    """
    points, others = _checked(points, others, at_least=1)
    if not 1 <= k <= len(others):
        raise ValueError(f"k: expected a number from 1 to {len(others)}, got {k}")
    result = []
    for rows in points.split(_ROWS):
        values, indices = [], []
        for first, columns in zip(
            range(0, len(others), _COLUMNS), others.split(_COLUMNS), strict=True
        ):
            found = _squared(rows, columns).topk(min(k, len(columns)), largest=False, sorted=False)
            values.append(found.values)
            indices.append(found.indices + first)
        best = torch.cat(values, 1).topk(k, largest=False).indices
        chosen = torch.cat(indices, 1).gather(1, best)
        # Anew from differences: products cancel, and a copy shall be at distance 0.
        exact = (rows[:, None] - others[chosen]).square().sum(2)
        result.append(exact.sort(1).values.sqrt())
    return torch.cat(result)


def _checked(first: Tensor, second: Tensor, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """Return both sets in float64, or refuse them."""
    for features in (first, second):
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(
                "features: expected floating point (N, D), got "
                f"{features.dtype} {tuple(features.shape)}"
            )
        if len(features) < at_least or not features.shape[1]:
            raise ValueError(
                f"features: expected at least {at_least} of at least one number each, "
                f"got {tuple(features.shape)}"
            )
        if not features.isfinite().all():
            raise ValueError("features: expected finite numbers, got NaN or infinity")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features: expected as many numbers for each image of both sets, "
            f"got {first.shape[1]} and {second.shape[1]}"
        )
    return first.detach().double(), second.detach().double()


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _mean_kernel(first: Tensor, second: Tensor, *, without_itself: bool) -> float:
    """Return the mean of the cubic kernel over all pairs, or all pairs of two different points."""
    dimension, total = first.shape[1], 0.0
    for rows in first.split(_ROWS):
        for columns in second.split(_COLUMNS):
            total += (rows @ columns.T / dimension + 1).pow_(3).sum().item()
    if not without_itself:
        return total / (len(first) * len(second))
    total -= (first.square().sum(1) / dimension + 1).pow(3).sum().item()
    return total / (len(first) * (len(first) - 1))


def _squared(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the squared distances of all pairs, ``(len(rows), len(columns))``."""
    products = torch.addmm(columns.square().sum(1), rows, columns.T, alpha=-2)
    return products.add_(rows.square().sum(1)[:, None]).clamp_(min=0)


def _balls(centers: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return which balls hold a point ``(N,)``, and in how many balls a point lies ``(M,)``.

    A ball ends at the k-th nearest other center, which lies on its rim and so not in it.
    """
    if not 1 <= k < len(centers):
        raise ValueError(f"k: expected a number from 1 to {len(centers) - 1}, got {k}")
    radii = nearest_distances(centers, centers, k + 1)[:, k]
    limits = radii.square() * (1 - _HAIR)
    held, inside = [], torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for rows, limit in zip(centers.split(_ROWS), limits.split(_ROWS), strict=True):
        within = [_squared(rows, columns) < limit[:, None] for columns in points.split(_COLUMNS)]
        inside += torch.cat([part.sum(0) for part in within])
        held.append(torch.stack([part.any(1) for part in within]).any(0))
    return torch.cat(held), inside
