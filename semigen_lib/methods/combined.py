"""The article's combined objective, made into a method: two networks, each with two jobs.

A sum of losses means nothing while its terms train different weights. Here they share. The decoder
is the generator: it redraws what the encoder coded and draws from noise. The encoder is the
discriminator: an image is real as far as it can be read as one of the K classes. So unlabelled
and drawn images shape the network that reads, and labels shape the network that draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.data import Batch
from semigen_lib.losses import (
    LSGAN_CODE,
    classification_loss,
    information_loss,
    least_squares_loss,
    real_probability,
    reconstruction_loss,
)
from semigen_lib.methods.method import Method, MethodConfig, Terms, choose_classes
from semigen_lib.models import Decoder, Encoder, ImageShape, one_hot

__all__ = ["Combined", "CombinedConfig"]


@dataclass(frozen=True)
class CombinedConfig(MethodConfig):
    """Settings of :class:`Combined`."""

    latent_dim: int = 32  # Z; the code, and the noise
    width: int = 16
    reconstruction_weight: float = 10.0  # both players: the article's first formula
    real_weight: float = 2.0  # the encoder: unlabelled images are real ...
    fake_weight: float = 2.0  # ... and drawn ones are not
    classification_weight: float = 1.0  # the encoder: the labelled term
    information_weight: float = 0.2  # the encoder: be sure, and use all classes equally often
    adversarial_weight: float = 2.0  # the decoder: drawn images shall be taken for real ...
    request_weight: float = 0.1  # ... and be read as the class that was asked for
    beta1: float = 0.5


class Combined(Method):
    """Redraw unlabelled images, tell drawn from real, read labelled images, draw on request.

    Source: the article's sum of formulas; K+1 classes after Salimans et al. 2016, section 5, with
    the squared errors of Mao et al. 2017.
    Shown in: book/04_combined_objective.ipynb, book/05_training_loop.ipynb
    """

    Config = CombinedConfig
    reads = draws = draws_on_request = True
    players = {"encoder": ("encoder",), "decoder": ("decoder",)}

    def __init__(self, config: CombinedConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.encoder = Encoder(image_shape, config.latent_dim, n_classes, config.width)
        self.decoder = Decoder(image_shape, config.latent_dim, n_classes, config.width)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """The encoder first; then the decoder, against the encoder's new weights."""
        n, n_labeled = len(batch.images), len(batch.labels)
        requests = torch.randint(self.n_classes, (n,), device=batch.images.device)
        fakes = self.decoder(self.noise(n), one_hot(requests, self.n_classes))
        images = torch.cat([batch.images, batch.labeled_images, fakes.detach()])
        latent, class_logits = self.encoder(images)
        real_logits, labeled_logits, fake_logits = class_logits.split([n, n_labeled, n])
        reconstructions = self.decoder(latent[:n], real_logits.softmax(1))
        reconstruction = reconstruction_loss(batch.images, reconstructions)
        terms = {
            "reconstruction": reconstruction,
            "real": least_squares_loss(real_probability(real_logits), LSGAN_CODE.real),
            "fake": least_squares_loss(real_probability(fake_logits), LSGAN_CODE.fake),
            "classification": classification_loss(labeled_logits, batch.labels),
            "information": information_loss(real_logits),
        }
        yield "encoder", terms
        _, class_logits = self.encoder(fakes)
        fooled = least_squares_loss(real_probability(class_logits), LSGAN_CODE.generator)
        terms = {
            "reconstruction": reconstruction,
            "adversarial": fooled,
            "request": classification_loss(class_logits, requests),
        }
        yield "decoder", terms

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
        requests = choose_classes(labels.to(noise.device), self.n_classes)
        return self.decoder(noise, one_hot(requests, self.n_classes))
