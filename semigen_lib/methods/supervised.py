"""The baseline: a classifier that sees the labelled images and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from semigen_lib.augment import warp
from semigen_lib.data import Batch
from semigen_lib.losses import classification_loss
from semigen_lib.methods.method import Method, MethodConfig, Terms
from semigen_lib.models import Encoder, ImageShape

__all__ = ["Supervised", "SupervisedConfig"]


@dataclass(frozen=True)
class SupervisedConfig(MethodConfig):
    """Settings of :class:`Supervised`; the network is the encoder of ``combined``."""

    latent_dim: int = 32  # kept so that the network is the same; the code is not used
    width: int = 16
    augment: int = 0  # 1: learn from mild random views of the labelled images


class Supervised(Method):
    """Cross-entropy on the labelled images. Unlabelled images are not looked at.

    Shown in: book/01_semi_supervised_learning.ipynb, book/04_combined_objective.ipynb
    """

    Config = SupervisedConfig
    reads = True
    players = {"classifier": ("encoder",)}

    def __init__(self, config: SupervisedConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.encoder = Encoder(image_shape, config.latent_dim, n_classes, config.width)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """One player, one term."""
        images = batch.labeled_images
        _, class_logits = self.encoder(warp(images) if self.config.augment else images)
        yield "classifier", {"classification": classification_loss(class_logits, batch.labels)}

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.encoder(images)[1]
