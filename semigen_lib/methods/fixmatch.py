"""A guess about an image as it is becomes the label of a strongly distorted view of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.augment import STRONG, View, erase, warp
from semigen_lib.data import Batch
from semigen_lib.losses import classification_loss, pseudo_label_loss
from semigen_lib.methods.method import Method, MethodConfig, Terms, ramp_up
from semigen_lib.models import ImageShape, Student

__all__ = ["Fixmatch", "FixmatchConfig"]


@dataclass(frozen=True)
class FixmatchConfig(MethodConfig):
    """Settings of :class:`Fixmatch`."""

    width: int = 16
    batch_size: int = 96
    learning_rate: float = 3e-3
    augment: int = 1  # 0: no views at all, which leaves self-training with another network
    strength: float = 0.8  # of the strong views, as a multiple of augment.STRONG
    erased: float = 0.0  # side of the square that strong views lose, as a fraction of the image's
    threshold: float = 0.95  # how sure a guess must be to count
    balance: int = 1  # 1: correct guesses towards all classes equally often
    pseudo_weight: float = 1.0
    ramp: float = 0.3  # the fraction of the run in which the pseudo term grows to its weight


class Fixmatch(Method):
    """Cross-entropy on labelled views, and on strong views against sure guesses of the image.

    Views are digit-safe: no flips, and milder than in the paper. With 100 labels early guesses
    are wrong too often, and the network learns its mistakes by heart: guesses come from the image
    as it is, are corrected towards all classes equally often, and gain their weight slowly.

    Source: Sohn et al. 2020, "FixMatch", algorithm 1; the correction is the distribution alignment
    of Berthelot et al. 2020 (ReMixMatch), section 3.1, towards equal shares.
    Shown in: book/07_learning_from_few_labels.ipynb
    """

    Config = FixmatchConfig
    reads = True
    players = {"classifier": ("student",)}

    def __init__(self, config: FixmatchConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.student = Student(image_shape, n_classes, config.width)
        sizes = (config.strength * size for size in vars(STRONG).values())
        self.strong = View(*sizes)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """One player; labelled and strong views in one forward, so they share batch statistics."""
        guesses = self.guess(batch.images)
        if self.config.balance:
            guesses = self.balanced(guesses)
        labeled, strong = batch.labeled_images, batch.images
        if self.config.augment:
            labeled, strong = warp(labeled), warp(strong, self.strong)
            strong = erase(strong, self.config.erased) if self.config.erased else strong
        class_logits = self.predict(torch.cat([labeled, strong]))
        labeled_logits, strong_logits = class_logits.split([len(labeled), len(strong)])
        pseudo = pseudo_label_loss(strong_logits, guesses, self.config.threshold)
        yield (
            "classifier",
            {
                "classification": classification_loss(labeled_logits, batch.labels),
                "pseudo": ramp_up(self.progress, self.config.ramp) * pseudo,
            },
        )

    def guess(self, images: Tensor) -> Tensor:
        """Return class probabilities ``(B, K)`` as in evaluation mode, without graph."""
        self.eval()
        with torch.no_grad():
            class_logits = self.predict(images)
        self.train()
        return class_logits.softmax(1)

    def balanced(self, guesses: Tensor) -> Tensor:
        """Divide guesses ``(B, K)`` by how often each class has been guessed of late."""
        usage = self.memory.get("usage", torch.full_like(guesses[0], 1 / self.n_classes))
        usage = usage.lerp(guesses.mean(0), 0.02)
        self.memory = {"usage": usage}
        corrected = guesses / usage
        return corrected / corrected.sum(1, keepdim=True)

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.student(images)
