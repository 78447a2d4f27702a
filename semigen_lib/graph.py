"""Labels that travel from neighbour to neighbour: no network, no training.

Each image is a point. ``nearest_neighbors`` joins it to the points nearest to it, and
``spread_labels`` lets the few known labels flow along these edges, so that images without labels
say where one class may end and another begin. What "near" means decides how good the edges are:
``oriented_gradients`` compares strokes where raw pixels would compare ink, and
``distortion_distances`` lets them give way a little before it compares them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "GraphError",
    "balance_classes",
    "deskew",
    "distortion_distances",
    "ink_on_black",
    "nearest_neighbors",
    "oriented_gradients",
    "principal_components",
    "spread_labels",
]


class GraphError(ValueError):
    """Points, edges or labels that make no graph; one line, "expected ..., got ..."."""


_ACCURACY, _MOST_ROUNDS = 1e-5, 2000  # of the limit that labels spread to
_GROUP = 32  # columns that are looked at together; any number gives the same neighbours


@torch.no_grad()
def nearest_neighbors(features: Tensor, k: int, *, block: int = 512) -> tuple[Tensor, Tensor]:
    """Find the k nearest other points of every point, by comparing all pairs.

    Distances come from matrix products, some rows at a time, so memory stays at about
    ``2 * block * N`` numbers. The k nearest points lie in at most k groups of columns, and these
    are the k groups with the nearest members: so a minimum over each group, which is cheap, leaves
    few columns to sort. The distances of the pairs that were found are computed anew from
    differences, free of cancellation.

    Parameters
    ----------
    features : Tensor
        Floating point, finite, shape (N, D), on any device.
    k : int
        Neighbours per point, from 1 to N - 1. A point is not its own neighbour, but a copy of it
        is.
    block : int
        Points handled at a time; it changes speed and memory only.

    Returns
    -------
    neighbors : Tensor
        int64, shape (N, k), positions in ``features``, nearest first.
    distances : Tensor
        float32, shape (N, k), Euclidean distances to them.

    Raises
    ------
    GraphError
        If the features have another shape or type or are not finite, or k or block is out of range.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise GraphError(
            f"expected floating-point features (N, D), got {features.dtype} {tuple(features.shape)}"
        )
    n = len(features)
    if not 1 <= k < n:
        raise GraphError(f"expected k from 1 to {n - 1}, one less than the points, got {k}")
    if block < 1:
        raise GraphError(f"expected block of at least 1, got {block}")
    features = features.float()
    if not features.isfinite().all():
        raise GraphError("expected finite features, got NaN or infinity")
    features = features - features.mean(0)  # the same distances, with fewer digits to cancel
    squares = features.square().sum(1)
    n_groups = -(-n // _GROUP)
    # Rows of squared distances, up to the point's own square; the last group is filled up.
    far = features.new_full((min(block, n), n_groups * _GROUP), torch.inf)
    found = []
    for first in range(0, n, block):
        part = features[first : first + block]
        rows = torch.arange(len(part), device=features.device)
        far[: len(part), :n] = torch.addmm(squares, part, features.T, alpha=-2)
        far[rows, rows + first] = torch.inf
        groups = far[: len(part)].unflatten(1, (n_groups, _GROUP))
        nearest = groups.amin(2).topk(min(k, n_groups), largest=False).indices
        inside = groups.gather(1, nearest[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
        place = inside.topk(k, largest=False).indices
        found.append(nearest.gather(1, place // _GROUP) * _GROUP + place % _GROUP)
    neighbors = torch.cat(found)
    distances = torch.cat(
        [
            (features[points, None] - features[found]).square().sum(2).sqrt()
            for points, found in zip(
                torch.arange(n, device=features.device).split(512),
                neighbors.split(512),
                strict=True,
            )
        ]
    )
    distances, order = distances.sort(dim=1, stable=True)
    return neighbors.gather(1, order), distances


@torch.no_grad()
def spread_labels(
    neighbors: Tensor,
    similarities: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    alpha: float = 0.99,
    rounds: int | None = 200,
) -> Tensor:
    """Let labels flow along the edges of a graph, and return the score of every class everywhere.

    With ``W`` the symmetrised similarities, ``D`` its diagonal of row sums,
    ``S = D**-0.5 @ W @ D**-0.5`` and ``Y`` the one-hot labels (a row of zeros where unknown), each
    round is ``F = alpha * S @ F + (1 - alpha) * Y``, from ``F = Y``.

    Parameters
    ----------
    neighbors : Tensor
        int64, shape (N, k), from ``nearest_neighbors``.
    similarities : Tensor
        Floating point, at least 0, shape (N, k): the weight of each edge. An edge that both of
        its ends name gets the mean of both weights, one that a single end names half of its own.
    labels : Tensor
        int64, shape (N,), classes from 0 to K - 1, or -1 (``UNLABELED``) where unknown.
    n_classes : int
        K.
    alpha : float
        From 0 (every label stays where it is) up to but without 1 (the graph alone decides).
    rounds : int or None
        At least 0. What is still missing from the limit shrinks by ``alpha`` per round, so an
        alpha near 1 needs thousands. None goes to the limit by conjugate gradients, which needs
        about the square root of that.

    Returns
    -------
    Tensor
        float32, shape (N, K), at least 0, not normalised; ``argmax(1)`` is the prediction. A row
        of zeros is a point that no label has reached.

    Raises
    ------
    GraphError
        If shapes disagree or a value is out of range.

    Source: Zhou et al. 2003, "Learning with Local and Global Consistency", section 2.
    Shown in: book/01_semi_supervised_learning.ipynb
    """
    _check_edges(neighbors, similarities)
    n, device = len(neighbors), similarities.device
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise GraphError(f"expected int64 labels ({n},), got {labels.dtype} {tuple(labels.shape)}")
    if int(labels.min()) < -1 or int(labels.max()) >= n_classes:
        raise GraphError(
            f"expected labels from -1 to {n_classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    if not 0 <= alpha < 1:
        raise GraphError(f"expected alpha from 0 up to but without 1, got {alpha}")
    if rounds is not None and rounds < 0:
        raise GraphError(f"expected rounds of at least 0, got {rounds}")
    here = torch.arange(n, device=device).repeat_interleave(neighbors.shape[1])
    there = neighbors.flatten()
    # Every edge in both directions, sorted by the point it ends at.
    ends, order = torch.cat([here, there]).sort(stable=True)
    starts = torch.cat([there, here])[order]
    weights = similarities.float().flatten().repeat(2)[order] / 2
    degree = torch.zeros(n, device=device).index_add_(0, ends, weights)
    scale = torch.where(degree > 0, degree.rsqrt(), 0)  # a point without edges keeps its label
    weights = weights * scale[ends] * scale[starts]
    first = torch.searchsorted(ends, torch.arange(n, device=device))
    known = labels >= 0
    y = torch.zeros(n, n_classes, device=device)
    y[known] = F.one_hot(labels[known], n_classes).float()

    def arriving(scores: Tensor) -> Tensor:
        # A sparse product S @ F as weighted sums of rows: several times faster than torch.sparse.
        return F.embedding_bag(starts, scores, first, mode="sum", per_sample_weights=weights)

    if rounds is None:
        return _conjugate_gradients(lambda f: f - alpha * arriving(f), (1 - alpha) * y).clamp(min=0)
    scores = y
    for _ in range(rounds):
        scores = alpha * arriving(scores) + (1 - alpha) * y
    return scores


def _conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """Solve ``matrix(x) = b`` for a symmetric positive definite matrix, each column on its own."""
    x, residual = torch.zeros_like(b), b.clone()
    direction, size = residual.clone(), residual.square().sum(0)
    goal = _ACCURACY**2 * size
    for _ in range(_MOST_ROUNDS):
        if (size <= goal).all():
            break
        image = matrix(direction)
        step = size / (direction * image).sum(0).clamp(min=1e-38)  # an absent class stays at 0
        x += step * direction
        residual -= step * image
        before, size = size, residual.square().sum(0)
        direction = residual + (size / before.clamp(min=1e-38)) * direction
    return x


def balance_classes(scores: Tensor) -> Tensor:
    """Return probabilities of scores, after giving every class the same total.

    A class whose labelled images happen to be central reaches more points, however many images
    there are of it; where classes are known to be about equally frequent, this takes that back.

    Parameters
    ----------
    scores : Tensor
        At least 0, shape (N, K).

    Returns
    -------
    Tensor
        Shape (N, K), rows sum to 1; a row of zeros becomes 1/K everywhere.

    Source: Zhu et al. 2003, "Semi-Supervised Learning Using Gaussian Fields and Harmonic
    Functions", section 4, class mass normalisation with equal masses.
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    scores = scores / scores.sum(0).clamp(min=1e-30)
    total = scores.sum(1, keepdim=True)
    return torch.where(total > 0, scores / total.clamp(min=1e-30), 1 / scores.shape[1])


def ink_on_black(images: Tensor) -> Tensor:
    """Invert the images whose rim is light: what is written on paper is dark, and a digit here not.

    Parameters
    ----------
    images : Tensor
        From 0 to 1, shape (N, C, H, W).

    Shown in: book/07_learning_from_few_labels.ipynb
    """
    rows, columns = images[..., [0, -1], :].mean((1, 2, 3)), images[..., [0, -1]].mean((1, 2, 3))
    return torch.where((rows + columns > 1)[:, None, None, None], 1 - images, images)


@torch.no_grad()
def principal_components(features: Tensor, n: int) -> Tensor:
    """Project features on the ``n`` directions in which they vary most.

    Distances change little and cost less. Of more than 2,000 points with more than 2,000
    features, as of colour images, a few directions are found in a small part of the time (Halko et
    al. 2011, "Finding Structure with Randomness"), and differ a little.

    Parameters
    ----------
    features : Tensor
        Floating point, shape (N, D).
    n : int
        Number of directions; D or more keep all.

    Returns
    -------
    Tensor
        Shape (N, min(n, D, N)), centred; the last direction is the widest. Fewer points than
        features lie in fewer directions.

    Shown in: book/07_learning_from_few_labels.ipynb
    """
    features = features - features.mean(0)
    if min(features.shape) > _MOST_EXACT and 4 * n < min(features.shape):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # of the few directions that it begins with
            directions = torch.svd_lowrank(features, n + 20, niter=4)[2][:, :n].flip(1)
        return features @ directions
    if len(features) < features.shape[1]:  # the same from the smaller of two matrices
        values, coordinates = torch.linalg.eigh((features @ features.T).double())
        return (coordinates * values.clamp(min=0).sqrt())[:, -n:].to(features.dtype)
    covariance = (features.T @ features).double()
    directions = torch.linalg.eigh(covariance).eigenvectors[:, -n:]
    return features @ directions.to(features.dtype)


_DIRECTIONS, _SHARPNESS, _STRIDE = 8, 4, 3
_MOST_EXACT = 2000  # points and features, in the cube of which all directions take time


@torch.no_grad()
def oriented_gradients(images: Tensor, *, block: int = 1000) -> Tensor:
    """Describe images by where their edges are and which way they face.

    At every pixel the gradient's length is shared out over eight directions, mostly to the nearest
    one; each direction is blurred and looked at every third pixel. The square root keeps bold
    strokes from outweighing fine ones. Two images of one stroke, slightly moved, stay near.

    Parameters
    ----------
    images : Tensor
        Floating point, shape (N, C, H, W); each channel has edges of its own.
    block : int
        Images of 784 values handled at a time, or fewer larger ones; it changes memory only.

    Returns
    -------
    Tensor
        float32, shape (N, C * 8 * ceil(H / 3) * ceil(W / 3)); rows have length 1, a blank image 0.

    Source: Dalal and Triggs 2005, "Histograms of Oriented Gradients for Human Detection".
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    bell, wide = _gaussian(0.7, 2, images), _gaussian(1.5, 4, images)
    slope = bell * torch.arange(-2, 3, device=images.device)
    derivative = torch.stack([torch.outer(bell, slope), torch.outer(slope, bell)])[:, None]
    angles = torch.arange(_DIRECTIONS, device=images.device) * (2 * math.pi / _DIRECTIONS)
    facing = torch.stack([angles.cos(), angles.sin()], 1)[:, :, None, None]
    across = wide.view(1, 1, 1, -1).expand(_DIRECTIONS, 1, 1, -1)
    parts = []
    for part in images.split(_smaller(block, images)):
        gradient = F.conv2d(part.float().flatten(0, 1)[:, None], derivative, padding=2)
        length = gradient.square().sum(1, keepdim=True).sqrt()
        cosine = F.conv2d(gradient / length.clamp(min=1e-6), facing).relu()
        found = length * cosine.pow(_SHARPNESS)
        found = F.conv2d(found, across, stride=(1, _STRIDE), padding=(0, 4), groups=_DIRECTIONS)
        found = F.conv2d(found, across.mT, stride=(_STRIDE, 1), padding=(4, 0), groups=_DIRECTIONS)
        found = found.clamp(min=0).sqrt().reshape(len(part), -1)  # the channels of an image again
        parts.append(F.normalize(found, dim=1))
    return torch.cat(parts)


_RIM = 0.1  # of all edges may lie in the rim that is not looked at


@torch.no_grad()
def distortion_distances(images: Tensor, neighbors: Tensor, *, block: int = 256) -> Tensor:
    """Return how unlike images are to their neighbours where every window may give way by a pixel.

    Images are compared by their gradients, of which the length is replaced by its square root,
    window by window: each is laid on the neighbour at its own place and at the eight places next
    to it, and the least sum of squared differences counts. So a stroke may bend, and a stroke that
    is missing is missing at all nine. The rim of the images, where less than a tenth of all edges
    of the set lie, is not looked at.

    Parameters
    ----------
    images : Tensor
        Floating point, shape (N, C, H, W); squares are added up over the channels.
    neighbors : Tensor
        int64, shape (M, k), positions in ``images``; row i are neighbours of image i, so M is at
        most N.
    block : int
        Pairs looked at together; it changes speed and memory only.

    Returns
    -------
    Tensor
        float32, shape (M, k), at least 0: sums of *squares*. The windows that may give way are the
        neighbour's, so it matters, little, which of two images is the neighbour.

    Raises
    ------
    GraphError
        If shapes or types are others, or a position is out of range.

    Source: Keysers et al. 2007, "Deformation Models for Image Recognition", the image
    distortion model with gradients and local context.
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise GraphError(
            f"expected floating-point images (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    _check_neighbors(neighbors, len(images))
    parts = images.split(_smaller(4096, images))
    rim = _rim(sum(_flat_gradient(part).square().sum((0, 1)) for part in parts))
    height, width = (side - 2 * rim for side in images.shape[-2:])
    moving = torch.zeros(
        len(images), 2 * images.shape[1], height + 2, width + 2, device=images.device
    )
    gradient = moving[..., 1:-1, 1:-1]
    for part, place in zip(parts, gradient.split(len(parts[0])), strict=True):
        place.copy_(_flat_gradient(part)[..., rim : rim + height, rim : rim + width])
    here = torch.arange(len(neighbors), device=images.device).repeat_interleave(neighbors.shape[1])
    windows = {"kernel_size": 6, "stride": 4, "padding": 2}  # pixels; they overlap by two
    windows |= {"ceil_mode": True, "divisor_override": 1}  # up to the edge; sums, not means
    found = []
    for first, second in zip(here.split(block), neighbors.flatten().split(block), strict=True):
        fixed, moved = gradient[first], moving[second]
        least = None
        for down, right in itertools.product(range(3), repeat=2):
            there = moved[..., down : down + height, right : right + width]
            squares = (fixed - there).square_().sum(1)
            sums = F.avg_pool2d(squares, **windows)
            least = sums if least is None else torch.minimum(least, sums, out=least)
        found.append(least.sum((1, 2)))
    return torch.cat(found).view(neighbors.shape)


def _smaller(block: int, images: Tensor) -> int:
    """Return how many images have as many values as ``block`` images of 784."""
    return max(1, block * 784 // images[:1].numel())


def _flat_gradient(images: Tensor) -> Tensor:
    """Return gradients ``(B, 2 C, H, W)`` whose length is replaced by its square root."""
    slopes = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=images.device) / 8
    planes = images.float().flatten(0, 1)[:, None]  # each channel has edges of its own
    gradient = F.conv2d(planes, torch.stack([slopes, slopes.T])[:, None], padding=1)
    gradient *= gradient.square().sum(1, keepdim=True).clamp(min=1e-12).pow(-0.25)
    return gradient.view(len(images), -1, *gradient.shape[-2:])


def _rim(strength: Tensor) -> int:
    """Return how many rows and columns, alike at all four sides, hold a tenth of all edges.

    ``strength`` is what each pixel has of them, shape (H, W).
    """
    most = (min(strength.shape) - 1) // 2
    rim = 0
    while rim < most:
        inside = strength[rim + 1 : -rim - 1, rim + 1 : -rim - 1].sum()
        if inside < (1 - _RIM) * strength.sum():
            break
        rim += 1
    return rim


def _gaussian(deviation: float, reach: int, like: Tensor) -> Tensor:
    """Return weights of a bell over ``2 * reach + 1`` pixels; they sum to 1."""
    pixels = torch.arange(-reach, reach + 1, device=like.device)
    bell = torch.exp(-pixels.square() / (2 * deviation**2))
    return bell / bell.sum()


@torch.no_grad()
def deskew(images: Tensor, *, block: int = 4096) -> Tensor:
    """Shear every image upright and move its centre of mass to the middle.

    The ink of a slanted stroke has a covariance between x and y; sliding each row sideways, in
    proportion to its height, makes it 0. An image without ink stays as it is.

    Parameters
    ----------
    images : Tensor
        Floating point, at least 0, shape (N, C, H, W), ink bright on black.
    block : int
        Images of 784 values handled at a time, or fewer larger ones.

    Returns
    -------
    Tensor
        Same shape and type; values are interpolated, zeros come in at the edges.

    Raises
    ------
    GraphError
        If the images have another shape or type.

    Source: LeCun et al. 1998, section III.A, where deskewed digits are among the inputs compared.
    Shown in: book/01_semi_supervised_learning.ipynb
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise GraphError(
            f"expected floating-point images (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    return torch.cat([_deskew_block(part) for part in images.split(_smaller(block, images))])


def _deskew_block(images: Tensor) -> Tensor:
    _, _, height, width = images.shape
    ink = images.sum(1)
    mass = ink.sum((1, 2))
    # Coordinates of grid_sample: from -1 to 1 between the outer edges of the outer pixels.
    x = (2 * torch.arange(width, device=images.device) + 1) / width - 1
    y = ((2 * torch.arange(height, device=images.device) + 1) / height - 1)[:, None]

    def mean(values: Tensor) -> Tensor:
        return (ink * values).sum((1, 2)) / mass.clamp(min=1e-6)

    centre_x, centre_y = mean(x), mean(y)
    off_x, off_y = x - centre_x[:, None, None], y - centre_y[:, None, None]
    shear = mean(off_x * off_y) / mean(off_y.square()).clamp(min=1e-6)
    transform = images.new_zeros(len(images), 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = 1
    transform[:, 0, 1] = shear
    transform[:, 0, 2], transform[:, 1, 2] = centre_x, centre_y
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def _check_neighbors(neighbors: Tensor, n: int) -> None:
    if neighbors.ndim != 2 or neighbors.dtype != torch.int64 or 0 in neighbors.shape:
        raise GraphError(
            f"expected int64 neighbors (N, k), got {neighbors.dtype} {tuple(neighbors.shape)}"
        )
    if len(neighbors) > n:
        raise GraphError(f"expected neighbors of at most {n} points, got {len(neighbors)}")
    if not 0 <= int(neighbors.min()) <= int(neighbors.max()) < n:
        raise GraphError(
            f"expected neighbors from 0 to {n - 1}, got {int(neighbors.min())} to "
            f"{int(neighbors.max())}"
        )


def _check_edges(neighbors: Tensor, similarities: Tensor) -> None:
    _check_neighbors(neighbors, len(neighbors))
    if similarities.shape != neighbors.shape:
        raise GraphError(
            f"expected similarities {tuple(neighbors.shape)}, got {tuple(similarities.shape)}"
        )
    if not (similarities.isfinite().all() and (similarities >= 0).all()):
        raise GraphError(
            f"expected finite similarities of at least 0, got {float(similarities.min())} to "
            f"{float(similarities.max())}"
        )
