"""The article's combined objective, made into a method: the decoder is the generator.

A sum of losses means nothing while its terms train different weights. Here they share: the
decoder reconstructs what the encoder codes and draws from noise; the encoder reads real images
and drawn ones. So unlabelled images shape the network that classifies, and labels shape the
network that draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.data import UNLABELED, Batch
from semigen_lib.losses import (
    LSGAN_CODE,
    classification_loss,
    least_squares_loss,
    reconstruction_loss,
)
from semigen_lib.methods.method import Method, MethodConfig, Terms
from semigen_lib.models import Decoder, Discriminator, Encoder, ImageShape, one_hot

__all__ = [
    "Combined",
    "CombinedConfig",
]


@dataclass(frozen=True)
class CombinedConfig(MethodConfig):
    """Settings of :class:`Combined`."""

    latent_dim: int = 32  # Z; the code, and the noise
    width: int = 32
    reconstruction_weight: float = 1.0  # the article's first formula
    adversarial_weight: float = 1.0  # its second, for the player that draws
    classification_weight: float = 1.0  # the labelled term: read labelled images
    request_weight: float = 1.0  # draw the class asked for, as the encoder reads it
    latent_weight: float = 1.0  # read back the noise an image was drawn from
    learning_rate: float = 5e-4
    beta1: float = 0.5


class Combined(Method):
    """Reconstruct unlabelled images, fool a discriminator, read labels, draw on request.

    Shown in: book/04_combined_objective.ipynb, book/05_training_loop.ipynb
    """

    Config = CombinedConfig
    reads = draws = draws_on_request = True
    players = {"discriminator": ("discriminator",), "autoencoder": ("encoder", "decoder")}

    def __init__(self, config: CombinedConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.encoder = Encoder(image_shape, config.latent_dim, n_classes, config.width)
        self.decoder = Decoder(image_shape, config.latent_dim, n_classes, config.width)
        self.discriminator = Discriminator(image_shape, config.width)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """The discriminator first; then encoder and decoder, together, against its new weights."""
        n, noise = len(batch.images), self.noise(len(batch.images))
        requests = torch.randint(self.n_classes, (n,), device=noise.device)
        latent, class_logits = self.encoder(torch.cat([batch.images, batch.labeled_images]))
        guesses = class_logits[:n].softmax(1)
        # Drawing and reconstructing in one pass, so that batch norm sees the same mixture always.
        fakes, reconstructions = self.decoder(
            torch.cat([noise, latent[:n]]),
            torch.cat([one_hot(requests, self.n_classes), guesses]),
        ).split(n)
        yield (
            "discriminator",
            {
                "real": least_squares_loss(self.discriminator(batch.images), LSGAN_CODE.real),
                "fake": least_squares_loss(self.discriminator(fakes.detach()), LSGAN_CODE.fake),
            },
        )
        fake_latent, fake_logits = self.encoder(fakes)
        yield (
            "autoencoder",
            {
                "reconstruction": reconstruction_loss(batch.images, reconstructions),
                "adversarial": least_squares_loss(self.discriminator(fakes), LSGAN_CODE.generator),
                "classification": classification_loss(class_logits[n:], batch.labels),
                "request": classification_loss(fake_logits, requests),
                "latent": (fake_latent - noise).square().mean(),
            },
        )

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.encoder(images)[1]

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode ``(B, C, H, W)``, guess the class, decode."""
        latent, class_logits = self.encoder(images)
        return self.decoder(latent, class_logits.softmax(1))

    def generate(self, labels: Tensor) -> Tensor:
        """Draw one image of each requested class; UNLABELED leaves the class to chance."""
        noise = self.noise(len(labels))
        chance = torch.randint(self.n_classes, (len(labels),), device=noise.device)
        requests = torch.where(
            labels.to(noise.device) == UNLABELED, chance, labels.to(noise.device)
        )
        return self.decoder(noise, one_hot(requests, self.n_classes))
