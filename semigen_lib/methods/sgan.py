"""K+1 classes: the classifier is the discriminator, and what it cannot place is generated.

The generator is there for the classifier's sake. Matching features it draws images near the data
but not of it, and so shows where boundaries between classes may lie: where there are no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from semigen_lib.data import Batch
from semigen_lib.losses import (
    LSGAN_CODE,
    brier_loss,
    classification_loss,
    feature_matching_loss,
    information_loss,
    is_fake_loss,
    is_real_loss,
    least_squares_loss,
    real_probability,
)
from semigen_lib.methods.method import Method, MethodConfig, Terms, refuse_classes
from semigen_lib.models import (
    Decoder,
    ImageShape,
    MlpDecoder,
    MlpTrunk,
    PooledTrunk,
    check_width,
)

__all__ = ["Sgan", "SganConfig"]


@dataclass(frozen=True)
class SganConfig(MethodConfig):
    """Settings of :class:`Sgan`."""

    latent_dim: int = 64  # Z; the noise
    width: int = 16
    convolutional: int = 1  # 0: the paper's fully connected networks
    squared: int = 0  # 1: the article's squared errors instead of cross-entropies
    fooling: int = 0  # 1: the generator wants to be taken for real instead of matching features
    real_weight: float = 0.5  # the classifier: unlabelled images are of one of the K classes ...
    fake_weight: float = 0.5  # ... and drawn ones of none
    classification_weight: float = 1.0
    information_weight: float = 0.3  # be sure, use all classes equally often; the paper has 0
    labeled_batch_size: int = 50
    learning_rate: float = 4e-3
    beta1: float = 0.5


class Sgan(Method):
    """Read labelled images, tell drawn from real with the same logits, match features.

    K logits make K+1 classes: that of "generated" is fixed at 0. Labelled images teach which
    class, given that they are real; unlabelled and drawn ones teach real or not. With squared
    errors and K = 1 this is the game of ``lsgan``, its score a probability.

    Source: Salimans et al. 2016, Improved Techniques for Training GANs, sections 3.1 and 5; the
    information term is Springenberg's (2016, CatGAN, equation 6).
    Shown in: book/07_learning_from_few_labels.ipynb
    """

    Config = SganConfig
    reads = draws = True
    players = {"classifier": ("trunk", "class_head"), "generator": ("generator",)}

    def __init__(self, config: SganConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        check_width(config.width)
        width = config.width
        if config.convolutional:
            n_features = 4 * width
            self.trunk = PooledTrunk(image_shape, width)
            narrow = 4 * max(1, width // 8)  # it need not draw well: a quarter of the products
            self.generator = Decoder(image_shape, config.latent_dim, width=narrow)
        else:
            n_features = 16 * width
            widths = (64 * width, 32 * width, n_features, n_features, n_features)
            self.trunk = MlpTrunk(image_shape, widths, regularise=True)
            widths = (32 * width, 32 * width)
            self.generator = MlpDecoder(
                image_shape, config.latent_dim, widths=widths, normalise=True
            )
        self.class_head = weight_norm(nn.Linear(n_features, n_classes))

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """The classifier first; then the generator, against the classifier's new weights."""
        n, n_labeled = len(batch.images), len(batch.labels)
        fakes = self.generator(self.noise(n))
        class_logits = self.predict(torch.cat([batch.images, batch.labeled_images, fakes.detach()]))
        real_logits, labeled_logits, fake_logits = class_logits.split([n, n_labeled, n])
        yield "classifier", self._verdicts(real_logits, labeled_logits, fake_logits, batch.labels)
        if self.config.fooling:
            yield "generator", {"adversarial": self._is_real(self.predict(fakes))}
        else:
            with torch.no_grad():
                wanted = self.trunk(batch.images).float()
            drawn = self.trunk(fakes).float()
            yield "generator", {"matching": feature_matching_loss(wanted, drawn)}

    def _verdicts(self, real: Tensor, labeled: Tensor, fake: Tensor, labels: Tensor) -> Terms:
        if self.config.squared:
            is_fake = least_squares_loss(real_probability(fake), LSGAN_CODE.fake)
            classification = brier_loss(labeled, labels)
        else:
            is_fake, classification = is_fake_loss(fake), classification_loss(labeled, labels)
        return {
            "real": self._is_real(real),
            "fake": is_fake,
            "classification": classification,
            "information": information_loss(real),
        }

    def _is_real(self, class_logits: Tensor) -> Tensor:
        if self.config.squared:
            return least_squares_loss(real_probability(class_logits), LSGAN_CODE.real)
        return is_real_loss(class_logits)

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)``."""
        return self.class_head(self.trunk(images)).float()

    def generate(self, labels: Tensor) -> Tensor:
        """Draw images of whatever class chance gives."""
        refuse_classes(self, labels)
        return self.generator(self.noise(len(labels)))
