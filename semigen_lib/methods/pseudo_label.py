"""Self-training: the network's own sure guesses about unlabelled images become labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.augment import warp
from semigen_lib.data import Batch
from semigen_lib.losses import classification_loss, pseudo_label_loss
from semigen_lib.methods.method import Method, MethodConfig, Terms, ramp_up
from semigen_lib.models import Encoder, ImageShape

__all__ = ["PseudoLabel", "PseudoLabelConfig"]


@dataclass(frozen=True)
class PseudoLabelConfig(MethodConfig):
    """Settings of :class:`PseudoLabel`; the network is that of ``supervised``."""

    latent_dim: int = 32  # kept so that the network is the same; the code is not used
    width: int = 16
    augment: int = 0  # 1: learn from mild random views; guesses are of the images as they are
    threshold: float = 0.95  # how sure a guess must be to count
    pseudo_weight: float = 1.0
    ramp: float = 0.4  # the fraction of the run in which the pseudo term grows to its weight


class PseudoLabel(Method):
    """Cross-entropy on labelled images, and on unlabelled ones against one's own sure guesses.

    With ``pseudo_weight`` 0 or ``threshold`` 1 it is ``supervised``. It has no other source of
    truth than itself: a sure mistake is learnt like a label.

    Source: Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for
    Deep Neural Networks"; the threshold is that of Sohn et al. 2020.
    Shown in: book/07_learning_from_few_labels.ipynb
    """

    Config = PseudoLabelConfig
    reads = True
    players = {"classifier": ("encoder",)}

    def __init__(self, config: PseudoLabelConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.encoder = Encoder(image_shape, config.latent_dim, n_classes, config.width)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """One player, the labelled term and the pseudo-labelled one."""
        view = warp if self.config.augment else (lambda images: images)
        class_logits = self.predict(view(batch.labeled_images))
        terms = {"classification": classification_loss(class_logits, batch.labels)}
        guesses = self.guess(batch.images)
        pseudo = pseudo_label_loss(self.predict(view(batch.images)), guesses, self.config.threshold)
        yield "classifier", terms | {"pseudo": ramp_up(self.progress, self.config.ramp) * pseudo}

    def guess(self, images: Tensor) -> Tensor:
        """Return class probabilities ``(B, K)`` as in evaluation mode, without graph."""
        self.eval()
        with torch.no_grad():
            class_logits = self.predict(images)
        self.train()
        return class_logits.softmax(1)

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.encoder(images)[1]
