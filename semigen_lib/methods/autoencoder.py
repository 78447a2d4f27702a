"""The article's first formula: an encoder and a decoder that agree on a code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from semigen_lib.data import Batch
from semigen_lib.losses import reconstruction_loss
from semigen_lib.methods.method import Method, MethodConfig, Terms, refuse_classes
from semigen_lib.models import Decoder, Encoder, ImageShape

__all__ = ["Autoencoder", "AutoencoderConfig"]


@dataclass(frozen=True)
class AutoencoderConfig(MethodConfig):
    """Settings of :class:`Autoencoder`."""

    latent_dim: int = 32  # Z; the bottleneck
    width: int = 16


class Autoencoder(Method):
    """Minimise the squared reconstruction error. Labels are not used.

    Shown in: book/02_autoencoder.ipynb
    """

    Config = AutoencoderConfig
    draws = True
    players = {"autoencoder": ("encoder", "decoder")}

    def __init__(self, config: AutoencoderConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.encoder = Encoder(image_shape, config.latent_dim, width=config.width)
        self.decoder = Decoder(image_shape, config.latent_dim, width=config.width)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """One player, one term: encoder and decoder want the same thing."""
        reconstructions = self.reconstruct(batch.images)
        yield "autoencoder", {"reconstruction": reconstruction_loss(batch.images, reconstructions)}

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode ``(B, C, H, W)``."""
        return self.decoder(self.encoder(images)[0])

    def generate(self, labels: Tensor) -> Tensor:
        """Decode standard normal noise, which a plain autoencoder never saw: chapter 2 looks."""
        refuse_classes(self, labels)
        return self.decoder(self.noise(len(labels)))
