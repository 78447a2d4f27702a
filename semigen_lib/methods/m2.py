"""A model of how images come about, with the class as one of its causes: M2.

An image comes from a class and a style. Where the class is known, the model learns from it; where
it is not, every class is tried, weighted by what the classifier thinks. So a classifier that is
wrong makes images unlikely, and unlabelled images teach it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from semigen_lib.data import Batch
from semigen_lib.losses import (
    bernoulli_loss,
    classification_loss,
    marginal_loss,
    normal_divergence,
    sampled_marginal_loss,
)
from semigen_lib.methods.method import Method, MethodConfig, Terms, choose_classes
from semigen_lib.models import (
    ImageShape,
    MlpDecoder,
    MlpTrunk,
    PooledTrunk,
    check_width,
    one_hot,
)

__all__ = ["M2", "M2Config"]


@dataclass(frozen=True)
class M2Config(MethodConfig):
    """Settings of :class:`M2`; bounds are in nats an image, about 100 for a digit."""

    latent_dim: int = 8  # Z; the style, and short: what it cannot hold, the class must tell
    width: int = 16
    convolutional: int = 1  # the classifier; 0: fully connected, as everything in the paper
    summed: int = 1  # 0: one class is drawn for each image instead of trying all
    unlabeled_weight: float = 1.0  # the bound where the class is not known ...
    labeled_weight: float = 0.2  # ... and where it is; more would learn the few labelled by heart
    classification_weight: float = 10.0  # the auxiliary term; without it labels barely matter
    learning_rate: float = 3e-3


class M2(Method):
    """Maximise a bound of the likelihood of images, and of the labels where they are known.

    Source: Kingma et al. 2014, Semi-supervised Learning with Deep Generative Models, equations 6
    to 9.
    Shown in: book/09_choosing_a_method.ipynb
    """

    Config = M2Config
    reads = draws = draws_on_request = True
    players = {"model": ("trunk", "class_head", "style_trunk", "encoder", "decoder")}

    def __init__(self, config: M2Config, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        check_width(config.width)
        n_hidden = 32 * config.width
        if config.convolutional:
            n_features = 4 * config.width
            self.trunk = PooledTrunk(image_shape, config.width)
        else:
            n_features = n_hidden
            self.trunk = MlpTrunk(image_shape, (n_hidden,), regularise=True)
        self.class_head = nn.Linear(n_features, n_classes)
        self.style_trunk = MlpTrunk(image_shape, (n_hidden,), regularise=False)
        self.encoder = nn.Sequential(
            nn.Linear(n_hidden + n_classes, n_hidden // 2),
            nn.Softplus(),
            nn.Linear(n_hidden // 2, 2 * config.latent_dim),
        )
        self.decoder = MlpDecoder(image_shape, config.latent_dim, n_classes, (n_hidden,))

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """One player: the bound has no adversary."""
        n, images = len(batch.images), torch.cat([batch.images, batch.labeled_images])
        class_logits, features = self.predict(images), self.style_trunk(images)
        known = one_hot(batch.labels, self.n_classes)
        terms = {
            "unlabeled": self._bound(batch.images, features[:n], class_logits[:n]),
            "labeled": self.costs(batch.labeled_images, features[n:], known).mean(),
            "classification": classification_loss(class_logits[n:], batch.labels),
        }
        yield "model", terms

    def costs(
        self, images: Tensor, features: Tensor, class_probs: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Bound minus the log likelihood of images with the classes they are said to have.

        Parameters
        ----------
        images
            ``(B, C, H, W)`` in [0, 1].
        features
            ``(B, F)``, what the trunk of styles makes of them.
        class_probs
            ``(B, K)``, one-hot.
        noise
            ``(B, Z)``, standard normal; None draws it.

        Returns
        -------
        Tensor
            ``(B,)``, in nats; one style is drawn for each image.
        """
        mean, log_variance = self._styles(features, class_probs)
        noise = torch.randn_like(mean) if noise is None else noise
        latent = mean + (0.5 * log_variance).exp() * noise
        likelihood = bernoulli_loss(self.decoder.logits(latent, class_probs), images)
        return likelihood + normal_divergence(mean, log_variance) + math.log(self.n_classes)

    def _styles(self, features: Tensor, class_probs: Tensor) -> tuple[Tensor, Tensor]:
        together = torch.cat([features, class_probs.to(features.dtype)], 1)
        return self.encoder(together).float().chunk(2, 1)

    def _bound(self, images: Tensor, features: Tensor, class_logits: Tensor) -> Tensor:
        if not self.config.summed:
            labels = class_logits.detach().softmax(1).multinomial(1).squeeze(1)
            costs = self.costs(images, features, one_hot(labels, self.n_classes))
            return sampled_marginal_loss(class_logits, labels, costs)
        n, n_classes = class_logits.shape
        every_class = torch.eye(n_classes, device=images.device).repeat(n, 1)
        images, features = (t.repeat_interleave(n_classes, 0) for t in (images, features))
        noise = torch.randn_like(class_logits[:, :, None].expand(-1, -1, self.config.latent_dim))
        costs = self.costs(images, features, every_class, noise.flatten(0, 1))
        return marginal_loss(class_logits, costs.view(n, -1))

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.class_head(self.trunk(images)).float()

    def reconstruct(self, images: Tensor) -> Tensor:
        """Find class and style of ``(B, C, H, W)``, and redraw."""
        class_probs = self.predict(images).softmax(1)
        latent, _ = self._styles(self.style_trunk(images), class_probs)
        return self.decoder(latent, class_probs)

    def generate(self, labels: Tensor) -> Tensor:
        """Draw one image of each requested class; UNLABELED leaves the class to chance."""
        noise = self.noise(len(labels))
        requests = choose_classes(labels.to(noise.device), self.n_classes)
        return self.decoder(noise, one_hot(requests, self.n_classes))
