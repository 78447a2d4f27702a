"""An adversarial autoencoder whose code is a class and a style.

The games are played on codes and not on images: one discriminator wants the class to be said
without doubt and every class equally often, the other wants styles to be standard normal. Then a
class and a style drawn by chance are codes like any other, and the decoder is a generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from semigen_lib.augment import warp
from semigen_lib.data import Batch
from semigen_lib.losses import (
    LSGAN_CODE,
    classification_loss,
    least_squares_loss,
    reconstruction_loss,
)
from semigen_lib.methods.method import Method, MethodConfig, Terms, choose_classes
from semigen_lib.models import (
    CodeDiscriminator,
    Decoder,
    Encoder,
    ImageShape,
    PooledTrunk,
    one_hot,
)

__all__ = ["SsAae", "SsAaeConfig"]


@dataclass(frozen=True)
class SsAaeConfig(MethodConfig):
    """Settings of :class:`SsAae`; all weights are the autoencoder's."""

    latent_dim: int = 6  # Z; the style, and short: what it cannot hold, the class must tell
    width: int = 16
    reconstruction_weight: float = 100.0
    classification_weight: float = 1.0
    class_adversarial_weight: float = 1.0  # be taken for a one-hot class drawn by chance
    style_adversarial_weight: float = 1.0  # be taken for standard normal noise
    learning_rate: float = 3e-3
    beta1: float = 0.5
    augment: int = 0  # 1: the class is read from a mild random view, and redraws the image itself


class SsAae(Method):
    """Redraw images from class and style, read labelled images, fool two discriminators of codes.

    The paper's three phases are two players: what encoder and decoder want is one sum, as they
    have no quarrel. The games are those of ``lsgan``.

    Source: Makhzani et al. 2015, Adversarial Autoencoders, section 5.
    Shown in: book/09_choosing_a_method.ipynb
    """

    Config = SsAaeConfig
    reads = draws = draws_on_request = True
    players = {
        "discriminators": ("class_discriminator", "style_discriminator"),
        "autoencoder": ("trunk", "class_head", "encoder", "decoder"),
    }

    def __init__(self, config: SsAaeConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.trunk = PooledTrunk(image_shape, config.width)
        self.class_head = nn.Linear(4 * config.width, n_classes)
        self.encoder = Encoder(image_shape, config.latent_dim, width=config.width)
        self.decoder = Decoder(image_shape, config.latent_dim, n_classes, config.width)
        self.class_discriminator = CodeDiscriminator(n_classes, 16 * config.width)
        self.style_discriminator = CodeDiscriminator(config.latent_dim, 16 * config.width)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """The discriminators first; then the autoencoder, against their new weights."""
        n = len(batch.images)
        images = torch.cat([batch.images, batch.labeled_images])
        class_logits = self.predict(warp(images) if self.config.augment else images)
        styles = self.encoder(images)[0].float()
        classes = class_logits[:n].softmax(1)
        by_chance = torch.randint(self.n_classes, (n,), device=images.device)
        wanted, noise = one_hot(by_chance, self.n_classes), self.noise(n)
        class_score, style_score = self.class_discriminator, self.style_discriminator
        terms = {
            "class_real": least_squares_loss(class_score(wanted), LSGAN_CODE.real),
            "class_fake": least_squares_loss(class_score(classes.detach()), LSGAN_CODE.fake),
            "style_real": least_squares_loss(style_score(noise), LSGAN_CODE.real),
            "style_fake": least_squares_loss(style_score(styles[:n].detach()), LSGAN_CODE.fake),
        }
        yield "discriminators", terms
        known = one_hot(batch.labels, self.n_classes)
        redrawn = self.decoder(styles, torch.cat([classes, known]))
        fooled = LSGAN_CODE.generator
        terms = {
            "reconstruction": reconstruction_loss(images, redrawn),
            "classification": classification_loss(class_logits[n:], batch.labels),
            "class_adversarial": least_squares_loss(class_score(classes), fooled),
            "style_adversarial": least_squares_loss(style_score(styles[:n]), fooled),
        }
        yield "autoencoder", terms

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.class_head(self.trunk(images)).float()

    def reconstruct(self, images: Tensor) -> Tensor:
        """Find class and style of ``(B, C, H, W)``, and redraw."""
        return self.decoder(self.encoder(images)[0], self.predict(images).softmax(1))

    def generate(self, labels: Tensor) -> Tensor:
        """Draw one image of each requested class; UNLABELED leaves the class to chance."""
        noise = self.noise(len(labels))
        requests = choose_classes(labels.to(noise.device), self.n_classes)
        return self.decoder(noise, one_hot(requests, self.n_classes))
