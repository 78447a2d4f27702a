"""Labels travel over a graph of the images, and a student learns from where they arrive.

Three stages of one run. First every image of the pool is joined to its nearest neighbours, and the
few labels spread along these edges. Then a student learns from the images whose label looks sure,
with a loss that shrugs at the wrong ones. Then the student reads the whole pool, its answers and
the graph's are put together, and it goes on learning from nearly all of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.augment import warp
from semigen_lib.data import UNLABELED, Batch, to_float
from semigen_lib.graph import (
    balance_classes,
    deskew,
    distortion_distances,
    ink_on_black,
    nearest_neighbors,
    oriented_gradients,
    principal_components,
    spread_labels,
)
from semigen_lib.losses import generalized_classification_loss
from semigen_lib.methods.method import Method, MethodConfig, Terms
from semigen_lib.models import ImageShape, Student

__all__ = [
    "Propagate",
    "PropagateConfig",
    "find_edges",
    "name_pool",
    "surest_of_each_class",
]


@dataclass(frozen=True)
class PropagateConfig(MethodConfig):
    """Settings of :class:`Propagate`; its rate falls along cosines, whatever ``decay_from`` is."""

    width: int = 32
    batch_size: int = 128
    labeled_batch_size: int = 1  # their labels are in the graph's answer already
    learning_rate: float = 3e-3
    ema_decay: float = 0.998
    augment: int = 1  # 1: the student sees random views; 0: the images as they are
    n_neighbors: int = 7
    keep: float = 0.97  # the share of each class, surest first, that the student learns from ...
    keep_later: float = 0.98  # ... and once it has read the pool itself
    relabel_at: float = 0.4  # the fraction of the run after which it does
    graph_power: float = 1.0  # how much the graph's answer counts then; the student's counts 1
    q: float = 0.4  # of the loss: 1 shrugs most at labels that look wrong


class Propagate(Method):
    """Spread labels over the graph of strokes that may bend, then train a student on the answers.

    Source: Keysers et al. 2007 for the distance; Zhou et al. 2003 for the spreading; Iscen et al.
    2019, "Label Propagation for Deep Semi-supervised Learning", for the student; Zhang and Sabuncu
    2018 for its loss.
    Shown in: book/07_learning_from_few_labels.ipynb
    """

    Config = PropagateConfig
    reads = looks_at_pool = True
    prefers_bf16 = True
    players = {"student": ("student",)}
    turning_points = ("relabel_at",)  # settings: where in the run a stage of the student begins

    def __init__(self, config: PropagateConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.student = Student(image_shape, n_classes, config.width)

    def prepare(self, pool: Tensor, labels: Tensor, progress: float) -> bool:
        """Name the pool with the graph before the first step, and with the student's help later."""
        super().prepare(pool, labels, progress)
        device = next(self.parameters()).device  # a pool too large for it stays in main memory
        if not self.memory:
            at_hand = labels.to(pool.device)
            scores = name_pool(pool, at_hand, self.n_classes, self.config.n_neighbors).to(device)
            self.memory = {"scores": scores, "read": torch.zeros((), dtype=torch.int64)}
            self._remember(scores, labels, self.config.keep)
        if progress >= self.config.relabel_at and not self.memory["read"]:
            read = self._read(pool)
            scores = read * self.memory["scores"].clamp(min=1e-6) ** self.config.graph_power
            self.memory["read"] = torch.ones((), dtype=torch.int64)
            self._remember(balance_classes(scores), labels, self.config.keep_later)
            return True
        return False

    def _remember(self, scores: Tensor, labels: Tensor, keep: float) -> None:
        """Keep the name of every image, and a weight: 1 for the surest of each class, else 0."""
        known = labels != UNLABELED
        names = torch.where(known, labels, scores.argmax(1))
        sure = surest_of_each_class(scores.amax(1), names, self.n_classes, keep)
        sure &= scores.amax(1) > scores.amin(1)  # else no label has reached the image
        self.memory["names"], self.memory["weights"] = names, (sure | known).float()

    @torch.no_grad()
    def _read(self, pool: Tensor) -> Tensor:
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        parts = [self.predict(to_float(part.to(device))).softmax(1) for part in pool.split(1000)]
        self.train(was_training)
        return torch.cat(parts)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """One player, one term."""
        images = warp(batch.images) if self.config.augment else batch.images
        names, weights = self.memory["names"][batch.index], self.memory["weights"][batch.index]
        class_logits = self.student(images)
        loss = generalized_classification_loss(class_logits, names, weights, self.config.q)
        yield "student", {"propagated": loss}

    def rate_factor(self, progress: float) -> float:
        """Fall along half a cosine in each stage: what is learnt is settled before it is used."""
        edges = [0.0, *(getattr(self.config, name) for name in self.turning_points), 1.0]
        start = max(edge for edge in edges[:-1] if edge <= progress)
        end = min((edge for edge in edges if edge > progress), default=1.0)
        return 0.5 * (1 + math.cos(math.pi * (progress - start) / max(end - start, 1e-9)))

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.student(images)


def name_pool(pool: Tensor, labels: Tensor, n_classes: int, n_neighbors: int = 7) -> Tensor:
    """Return what the graph of a pool says of every image, as probabilities ``(N, K)``.

    Parameters
    ----------
    pool
        uint8 ``(N, C, H, W)``.
    labels
        ``(N,)``, UNLABELED but for the labelled images.
    n_classes
        K.
    n_neighbors
        Edges of every image.

    Shown in: book/07_learning_from_few_labels.ipynb
    """
    neighbors, similarities = _edges(pool, min(n_neighbors, len(pool) - 1))
    # An alpha so near 1 lets labels travel far before they fade: it is what ten labels need.
    scores = spread_labels(neighbors, similarities, labels, n_classes, alpha=0.999, rounds=None)
    return balance_classes(scores)


_CANDIDATES = 20  # of each image, which the slow and better distance chooses from
_known_edges: dict[tuple, tuple[Tensor, Tensor]] = {}  # of the last pool only


def find_edges(pool: Tensor, n_neighbors: int = 7) -> tuple[Tensor, Tensor]:
    """Return neighbours and similarities ``(N, n_neighbors)`` of a pool of images.

    Oriented gradients, which are quick to compare, name 20 candidates of each image; of these the
    nearest after a little distortion are its neighbours.

    Parameters
    ----------
    pool
        uint8 ``(N, C, H, W)``.
    n_neighbors
        From 1 to N - 1.

    Shown in: book/07_learning_from_few_labels.ipynb
    """
    parts = pool.split(4096)  # so that float copies of all images are there only once
    upright = torch.cat([deskew(ink_on_black(to_float(part))) for part in parts])
    features = principal_components(oriented_gradients(upright), 100)
    n_candidates = min(max(_CANDIDATES, n_neighbors), len(pool) - 1)
    candidates, _ = nearest_neighbors(features, n_candidates)
    squares, order = distortion_distances(upright, candidates).sort(dim=1, stable=True)
    neighbors, squares = candidates.gather(1, order)[:, :n_neighbors], squares[:, :n_neighbors]
    # An edge as long as a typical one that is just kept weighs 1/7, one of twice its square 1/3000.
    typical = squares[:, -1].median().clamp(min=1e-12)
    return neighbors, torch.exp(-2 * (squares / typical).square())


def _edges(pool: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
    """Return what ``find_edges`` finds, once for the pool that was asked for last.

    Edges know nothing of labels, so a process that trains on one pool with other labels, or other
    budgets, finds them once.
    """
    digest = hashlib.sha256(pool.cpu().numpy().tobytes()).hexdigest()
    key = (digest, pool.shape, n_neighbors)
    if key not in _known_edges:
        found = find_edges(pool, n_neighbors)
        _known_edges.clear()
        _known_edges[key] = found
    neighbors, similarities = _known_edges[key]
    return neighbors.to(pool.device), similarities.to(pool.device)


def surest_of_each_class(confidence: Tensor, names: Tensor, n_classes: int, share: float) -> Tensor:
    """Return a mask ``(N,)`` of the surest ``share`` of the images of each name.

    Every class keeps its share, or the easy classes would crowd out the hard ones.

    Parameters
    ----------
    confidence
        ``(N,)``, more is surer.
    names
        ``(N,)`` int64 classes.
    n_classes
        K.
    share
        From 0 to 1.

    Shown in: book/07_learning_from_few_labels.ipynb
    """
    mask = torch.zeros_like(names, dtype=torch.bool)
    for k in range(n_classes):
        members = (names == k).nonzero().squeeze(1)
        order = confidence[members].argsort(descending=True, stable=True)
        mask[members[order[: math.ceil(share * len(members))]]] = True
    return mask
