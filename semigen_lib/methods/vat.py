"""Virtual adversarial training: no small change of the pixels may change what is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.data import Batch
from semigen_lib.losses import (
    balance_loss,
    classification_loss,
    divergence_loss,
    entropy_loss,
)
from semigen_lib.methods.method import Method, MethodConfig, Terms
from semigen_lib.models import Encoder, ImageShape

__all__ = ["Vat", "VatConfig", "unit_length"]


@dataclass(frozen=True)
class VatConfig(MethodConfig):
    """Settings of :class:`Vat`; the network is that of ``supervised``."""

    latent_dim: int = 32  # kept so that the network is the same; the code is not used
    width: int = 16
    batch_size: int = 96
    epsilon: float = 2.0  # length of the change, over all pixels of an image together
    probe: float = 1.0  # length of the first, random change, that finds the worst direction
    smoothness_weight: float = 1.0
    entropy_weight: float = 1.0  # be sure of unlabelled images ...
    balance_weight: float = 1.0  # ... and use all classes equally often


class Vat(Method):
    """Read an image and its worst near neighbour alike, and be sure; no random views are used.

    The worst neighbour is one step of a power iteration away: the gradient of the divergence at a
    small random change points along the direction in which reading changes fastest. It asks for
    no label, so every image teaches. With its three weights 0 it is
    ``supervised`` without that method's noise.

    Source: Miyato et al. 2018, "Virtual Adversarial Training", algorithm 1; the entropy term is
    extended by the balance of classes.
    Shown in: book/07_learning_from_few_labels.ipynb
    """

    Config = VatConfig
    reads = True
    players = {"classifier": ("encoder",)}

    def __init__(self, config: VatConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.encoder = Encoder(image_shape, config.latent_dim, n_classes, config.width)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """One player; all terms see the network as it predicts, without the noise of training.

        Noise would drown the small change. And a network that met labelled images only with
        noise, unlabelled ones only without, learnt to tell the two apart, and forgot the labels
        where there is no noise.
        """
        self.eval()
        labeled_logits = self.predict(batch.labeled_images)
        clean_logits = self.predict(batch.images)
        worst_logits = self.predict(batch.images + self.worst_change(batch.images, clean_logits))
        self.train()
        yield (
            "classifier",
            {
                "classification": classification_loss(labeled_logits, batch.labels),
                "smoothness": divergence_loss(worst_logits, clean_logits),
                "entropy": entropy_loss(clean_logits),
                "balance": balance_loss(clean_logits),
            },
        )

    def worst_change(self, images: Tensor, class_logits: Tensor) -> Tensor:
        """Return the change of length epsilon, ``(B, C, H, W)``, that hurts most, to first order.

        Parameters
        ----------
        images
            ``(B, C, H, W)``.
        class_logits
            ``(B, K)``, how they are read unchanged.
        """
        change = (self.config.probe * unit_length(torch.randn_like(images))).requires_grad_()
        divergence = divergence_loss(self.predict(images + change), class_logits)
        (gradient,) = torch.autograd.grad(divergence, change)
        return self.config.epsilon * unit_length(gradient)

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.encoder(images)[1]


def unit_length(change: Tensor) -> Tensor:
    """Scale each image of a change ``(B, C, H, W)`` to Euclidean length 1; zeros stay zeros.

    Shown in: book/07_learning_from_few_labels.ipynb
    """
    return change / change.flatten(1).norm(dim=1).clamp(min=1e-20)[:, None, None, None]
