"""The article's second formula with a target for each player: a least-squares game."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.data import Batch
from semigen_lib.losses import TargetCode, least_squares_loss
from semigen_lib.methods.method import Method, MethodConfig, Terms, refuse_classes
from semigen_lib.models import Decoder, Discriminator, ImageShape

__all__ = ["Lsgan", "LsganConfig"]


@dataclass(frozen=True)
class LsganConfig(MethodConfig):
    """Settings of :class:`Lsgan`."""

    latent_dim: int = 32  # Z; the noise
    width: int = 16
    real_target: float = 1.0  # what the discriminator wants on real images
    fake_target: float = 0.0  # what the discriminator wants on generated images
    generator_target: float = 1.0  # what the generator wants on generated images
    learning_rate: float = 5e-4
    beta1: float = 0.5


class Lsgan(Method):
    """Generator against discriminator, both with squared errors. Labels are not used.

    Source: Mao et al. 2017. Shown in: book/03_gan_loss.ipynb
    """

    Config = LsganConfig
    draws = True
    players = {"discriminator": ("discriminator",), "generator": ("generator",)}

    def __init__(self, config: LsganConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.generator = Decoder(image_shape, config.latent_dim, width=config.width)
        self.discriminator = Discriminator(image_shape, config.width)
        self.code = TargetCode(config.real_target, config.fake_target, config.generator_target)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """The discriminator first; then the generator, against the discriminator's new weights."""
        n = len(batch.images)
        fakes = self.generator(self.noise(n))
        # One pass is quicker than two, and the same: each image is judged by itself.
        scores = self.discriminator(torch.cat([batch.images, fakes.detach()]))
        terms = {
            "real": least_squares_loss(scores[:n], self.code.real),
            "fake": least_squares_loss(scores[n:], self.code.fake),
        }
        yield "discriminator", terms
        score = self.discriminator(fakes)
        yield "generator", {"adversarial": least_squares_loss(score, self.code.generator)}

    def generate(self, labels: Tensor) -> Tensor:
        """Draw images of whatever class chance gives."""
        refuse_classes(self, labels)
        return self.generator(self.noise(len(labels)))
