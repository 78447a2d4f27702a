"""The networks: encoder, decoder (the same network is called generator in a game), discriminator.

No network here has seen a loss. Images are ``(B, C, H, W)`` in [0, 1]; shapes shrink by half per
stage on the way in (28, 14, 7) and double on the way out. The channels of a pixel lie side by side
in memory (``channels_last``), which is the faster order; ``book/speed.md`` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

__all__ = [
    "N_FEATURES",
    "CodeDiscriminator",
    "ConditionalGenerator",
    "ConditionalUnet",
    "ConvTrunk",
    "Decoder",
    "Discriminator",
    "Encoder",
    "GaussianNoise",
    "ImageShape",
    "MlpDecoder",
    "MlpTrunk",
    "PooledTrunk",
    "ProjectionDiscriminator",
    "Student",
    "check_width",
    "count_halvings",
    "one_hot",
]

ImageShape = tuple[int, int, int]  # channels, height, width
N_FEATURES = 128  # what every trunk makes of an image


def count_halvings(image_shape: ImageShape) -> int:
    """Return how often the side can be halved until it is at most 7: 28 -> 2, 32 -> 3, 64 -> 4.

    Raises
    ------
    ValueError
        If the image is not square or its side is not 4, 5, 6 or 7 times a power of two.

    Shown in: book/notation.md
    """
    _, height, width = image_shape
    side, halvings = height, 0
    while side > 7 and side % 2 == 0:
        side, halvings = side // 2, halvings + 1
    if height != width or not 4 <= side <= 7:
        raise ValueError(
            "image side: expected a square of 4, 5, 6 or 7 times a power of two, such as 28 or 64, "
            f"got {height} x {width}"
        )
    return halvings


def check_width(width: int) -> None:
    """Refuse a number of channels that group norm cannot split into four groups.

    Raises
    ------
    ValueError
        If the width is not a positive multiple of 4.

    Shown in: book/notation.md
    """
    if width < 1 or width % 4:
        raise ValueError(f"width: expected a positive multiple of 4, got {width}")


class GaussianNoise(nn.Module):
    """Add normal noise of a fixed size while training; do nothing in evaluation mode.

    Parameters
    ----------
    size
        The standard deviation, in units of pixel values from 0 to 1.

    Shown in: book/04_combined_objective.ipynb
    """

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return images + self.size * torch.randn_like(images) if self.training else images


class ConvTrunk(nn.Module):
    """Strided convolutions from an image to a vector of features.

    Features are normalised within each image (group norm), never over the batch: a batch of real
    and a batch of generated images would be told apart by their statistics.

    Parameters
    ----------
    image_shape
        (C, H, W), square, with a side that halves down to 4..7.
    width
        Channels after the first stage, a multiple of 4; they double at each further stage, up to
        four times.
    regularise
        Whether to make life hard while training, with noise on the pixels (0.3) and dropped
        channels (1/4). A network that shall learn from few labels needs it.

    Shown in: book/02_autoencoder.ipynb
    """

    def __init__(self, image_shape: ImageShape, width: int, *, regularise: bool) -> None:
        super().__init__()
        check_width(width)
        channels, side = image_shape[0], image_shape[1]
        stages: list[nn.Module] = [GaussianNoise(0.3)] if regularise else []
        for stage in range(count_halvings(image_shape)):
            wider = width * min(2**stage, 4)
            stages.append(nn.Conv2d(channels, wider, 4, stride=2, padding=1, bias=stage == 0))
            if stage > 0:
                stages.append(nn.GroupNorm(4, wider))
            stages.append(nn.LeakyReLU(0.2))
            channels, side = wider, side // 2
        if regularise:
            stages.append(nn.Dropout2d(0.25))
        wider = width * min(2 ** count_halvings(image_shape), 4)
        stages.append(nn.Conv2d(channels, wider, 3, padding=1, bias=False))
        stages += [nn.GroupNorm(4, wider), nn.LeakyReLU(0.2), nn.Flatten()]
        stages += [nn.Linear(wider * side * side, N_FEATURES), nn.LeakyReLU(0.2)]
        self.stages = nn.Sequential(*stages)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, N_FEATURES)``."""
        return self.stages(images)


class Encoder(nn.Module):
    """An image goes in; a code and, for K > 0 classes, class logits come out.

    With a class head it is a classifier, and regularises itself. In the combined objective it is
    the discriminator too: an image is real as far as it can be read as one of the K classes.

    Parameters
    ----------
    image_shape
        (C, H, W).
    latent_dim
        Z, the length of the code. Smaller than the number of pixels, or nothing is learned.
    n_classes
        K; 0 for an encoder without a class head.
    width
        Channels of the first stage, a multiple of 4.

    Shown in: book/02_autoencoder.ipynb
    """

    def __init__(
        self, image_shape: ImageShape, latent_dim: int, n_classes: int = 0, width: int = 16
    ) -> None:
        super().__init__()
        self.trunk = ConvTrunk(image_shape, width, regularise=n_classes > 0)
        self.latent = nn.Linear(N_FEATURES, latent_dim)
        self.class_head = (
            nn.Sequential(nn.Dropout(0.5), nn.Linear(N_FEATURES, n_classes)) if n_classes else None
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map ``(B, C, H, W)`` to the latent ``(B, Z)`` and class_logits ``(B, K)`` or None."""
        features = self.trunk(images)
        logits = self.class_head(features).float() if self.class_head else None
        return self.latent(features), logits


class Decoder(nn.Module):
    """A code, and for K > 0 a class, go in; an image comes out. In a game it is the generator.

    Each stage doubles the side with one 4x4 transposed convolution of stride 2: it can express
    nearest-neighbour upsampling followed by a 3x3 convolution, at half the cost.

    Parameters
    ----------
    image_shape
        (C, H, W).
    latent_dim
        Z, the length of the code or of the noise.
    n_classes
        K; 0 for an unconditional decoder.
    width
        Channels before the last stage.

    Shown in: book/02_autoencoder.ipynb, book/03_gan_loss.ipynb
    """

    def __init__(
        self, image_shape: ImageShape, latent_dim: int, n_classes: int = 0, width: int = 16
    ) -> None:
        super().__init__()
        check_width(width)
        halvings = count_halvings(image_shape)
        widths = [width * min(2**stage, 4) for stage in reversed(range(halvings))] or [width]
        self.n_classes = n_classes
        self.bottom = (widths[0] * 2, *(side >> halvings for side in image_shape[1:]))
        n_bottom = self.bottom[0] * self.bottom[1] * self.bottom[2]
        stages: list[nn.Module] = [nn.GroupNorm(4, self.bottom[0]), nn.ReLU()]
        channels = self.bottom[0]
        for wider in widths[:halvings]:
            stages.append(nn.ConvTranspose2d(channels, wider, 4, stride=2, padding=1, bias=False))
            stages += [nn.GroupNorm(4, wider), nn.ReLU()]
            channels = wider
        self.linear = nn.Linear(latent_dim + n_classes, n_bottom, bias=False)
        self.stages = nn.Sequential(*stages, nn.Conv2d(channels, image_shape[0], 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, class_probs: Tensor | None = None) -> Tensor:
        """Map the latent ``(B, Z)``, and class_probs ``(B, K)`` when K > 0, to images in [0, 1].

        A one-hot row of class_probs asks for one class.
        """
        if self.n_classes:
            latent = torch.cat([latent, class_probs.to(latent.dtype)], dim=1)
        bottom = self.linear(latent).unflatten(1, self.bottom)
        return self.stages(bottom).float().sigmoid()


class Discriminator(nn.Module):
    """An image goes in, an unbounded score comes out: high for real, low for generated.

    Parameters
    ----------
    image_shape
        (C, H, W).
    width
        Channels of the first stage.

    Shown in: book/03_gan_loss.ipynb
    """

    def __init__(self, image_shape: ImageShape, width: int = 16) -> None:
        super().__init__()
        self.trunk = ConvTrunk(image_shape, width, regularise=False)
        self.score = nn.Linear(N_FEATURES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to scores ``(B,)``, without a sigmoid."""
        return self.score(self.trunk(images)).squeeze(1).float()


class Student(nn.Module):
    """A classifier for many images with labels that are mostly right.

    It averages its last features over all places, so it asks whether a stroke is there and less
    where. It learns from real images, in ``dpt`` from drawings like them too, so it may normalise
    over the batch.

    Parameters
    ----------
    image_shape
        (C, H, W), as for a :class:`ConvTrunk`.
    n_classes
        K.
    width
        Channels of the first stage, a multiple of 4; the last has four times as many.

    Shown in: book/07_learning_from_few_labels.ipynb
    """

    def __init__(self, image_shape: ImageShape, n_classes: int, width: int = 32) -> None:
        super().__init__()
        check_width(width)
        halvings = count_halvings(image_shape)
        stages = self._stage(image_shape[0], width, 5, stride=2 if halvings else 1)
        channels = width
        for _ in range(1, halvings):
            wider = min(2 * channels, 4 * width)
            stages += self._stage(channels, channels, 3) + self._stage(channels, wider, 3)
            stages.append(nn.MaxPool2d(2))
            channels = wider
        stages += self._stage(channels, channels, 3) + self._stage(channels, 4 * width, 3)
        self.stages = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.class_head = nn.Linear(4 * width, n_classes)
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def _stage(channels: int, wider: int, side: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, wider, side, stride, padding=side // 2, bias=False)
        return [convolution, nn.BatchNorm2d(wider), nn.ReLU()]

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to class_logits ``(B, K)``."""
        return self.class_head(self.stages(images)).float()


class _ConditionalNorm(nn.Module):
    """Normalise over the batch, then give each class its own gain and bias per channel."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.bias = nn.Embedding(n_classes, channels), nn.Embedding(n_classes, channels)
        nn.init.normal_(self.gain.weight, 1, 0.02)  # classes differ a little from the start
        nn.init.zeros_(self.bias.weight)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        gain, bias = self.gain(labels)[:, :, None, None], self.bias(labels)[:, :, None, None]
        return self.norm(features) * gain + bias


class ConditionalGenerator(nn.Module):
    """Noise and a class go in, an image of that class comes out.

    The noise says where strokes go, and the class turns channels up and down at every size.

    Parameters
    ----------
    image_shape
        (C, H, W), as for a :class:`ConvTrunk`.
    latent_dim
        Z, the length of the noise.
    n_classes
        K.
    width
        Channels before the image, a multiple of 4; they double towards the small end, up to four
        times.

    Source: Dumoulin et al. 2017, "A Learned Representation for Artistic Style", section 2, for
    normalisation with gains of each class.
    Shown in: book/08_drawing_on_request.ipynb
    """

    def __init__(
        self, image_shape: ImageShape, latent_dim: int, n_classes: int, width: int
    ) -> None:
        super().__init__()
        check_width(width)
        halvings = count_halvings(image_shape)
        widths = [width * min(2**stage, 4) for stage in reversed(range(halvings + 1))]
        self.bottom = (widths[0], *(side >> halvings for side in image_shape[1:]))
        self.n_classes = n_classes
        self.linear = nn.Linear(latent_dim + n_classes, math.prod(self.bottom))
        self.norms = nn.ModuleList(_ConditionalNorm(wide, n_classes) for wide in widths)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False)
            for wide, narrow in pairwise(widths)
        )
        self.image = nn.Conv2d(width, image_shape[0], 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Map the latent ``(B, Z)`` and labels ``(B,)`` to images ``(B, C, H, W)`` in [0, 1]."""
        latent = torch.cat([latent, one_hot(labels, self.n_classes).to(latent.dtype)], dim=1)
        features = self.linear(latent).unflatten(1, self.bottom)
        for norm, up in zip(self.norms[:-1], self.ups, strict=True):
            features = up(norm(features, labels).relu())
        return self.image(self.norms[-1](features, labels).relu()).float().sigmoid()


class ProjectionDiscriminator(nn.Module):
    """An image and a class go in; a score comes out: high for a real image of that class.

    The score is that of an image of any class, plus the agreement of its features with a direction
    learnt for the class. Every layer is divided by its largest singular value (spectral norm), so
    the score cannot change faster than the image does.

    Parameters
    ----------
    image_shape
        (C, H, W), as for a :class:`ConvTrunk`.
    n_classes
        K.
    width
        Channels of the first stage, a multiple of 4; later ones have twice as many.

    Source: Miyato and Koyama 2018, "cGANs with Projection Discriminator", equation 5; Miyato et
    al. 2018, "Spectral Normalization for Generative Adversarial Networks".
    Shown in: book/08_drawing_on_request.ipynb
    """

    def __init__(self, image_shape: ImageShape, n_classes: int, width: int) -> None:
        super().__init__()
        check_width(width)
        stages: list[nn.Module] = []
        channels = image_shape[0]
        for stage in range(count_halvings(image_shape)):
            wider = width * min(2**stage, 2)
            stages += [spectral_norm(nn.Conv2d(channels, wider, 4, stride=2, padding=1))]
            stages += [nn.LeakyReLU(0.1)]
            channels = wider
        stages += [spectral_norm(nn.Conv2d(channels, 2 * width, 3, padding=1)), nn.LeakyReLU(0.1)]
        self.stages = nn.Sequential(*stages)
        self.score = spectral_norm(nn.Linear(2 * width, 1))
        self.direction = spectral_norm(nn.Embedding(n_classes, 2 * width))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` and labels ``(B,)`` to scores ``(B,)``."""
        features = self.stages(2 * images - 1).float()  # black is a colour like any other
        # The sum, not the mean: with every layer held to a slope of 1 it is what lets scores part.
        features = features.sum((2, 3))
        agreement = (self.direction(labels) * features).sum(1)
        return self.score(features).squeeze(1).float() + agreement


class _ConditionalBlock(nn.Module):
    """Two convolutions added to their input; between them a condition turns channels up or down."""

    def __init__(self, channels: int, wider: int, n_condition: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, wider, 3, padding=1)
        )
        self.norm = nn.GroupNorm(4, wider, affine=False)
        self.modulation = nn.Linear(n_condition, 2 * wider)
        self.second = nn.Conv2d(wider, wider, 3, padding=1)
        self.skip = nn.Identity() if channels == wider else nn.Conv2d(channels, wider, 1)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        gain, bias = self.modulation(condition)[:, :, None, None].chunk(2, 1)
        hidden = self.norm(self.first(features)) * (1 + gain) + bias
        return self.skip(features) + self.second(F.silu(hidden))


class ConditionalUnet(nn.Module):
    """A noisy image, its time and its class go in; where it moves, pixel by pixel, comes out.

    On the way in the maps get smaller, down to a side of at most 7; on the way out they grow
    again, and meet what was known at each size. The first halving puts 2 x 2 pixels into the
    channels of one place, which loses nothing: convolutions at the full size would cost most.

    Parameters
    ----------
    image_shape
        (C, H, W), as for a :class:`ConvTrunk`.
    n_classes
        K; the label K stands for no class.
    width
        Channels of the largest maps, a multiple of 4; smaller ones have twice as many.

    Source: Ronneberger et al. 2015, "U-Net"; Dhariwal and Nichol 2021, "Diffusion Models Beat GANs
    on Image Synthesis", section 3.1, for a norm that time and class modulate.
    Shown in: book/notation.md
    """

    def __init__(self, image_shape: ImageShape, n_classes: int, width: int) -> None:
        super().__init__()
        check_width(width)
        halvings, n_condition = count_halvings(image_shape), 4 * width
        self.patch = 2 if halvings else 1
        widths = [width, *[2 * width] * (halvings - 1)]
        n_pixels = image_shape[0] * self.patch**2
        self.time = nn.Sequential(
            nn.Linear(16, n_condition), nn.SiLU(), nn.Linear(n_condition, n_condition)
        )
        self.class_embedding = nn.Embedding(n_classes + 1, n_condition)
        self.entry = nn.Conv2d(n_pixels, width, 3, padding=1)
        self.ways_in = nn.ModuleList(
            _ConditionalBlock(wide, wider, n_condition)
            for wide, wider in pairwise([width, *widths])
        )
        self.middle = _ConditionalBlock(widths[-1], widths[-1], n_condition)
        self.ways_out = nn.ModuleList(
            _ConditionalBlock(wider + wide, wide, n_condition)
            for wider, wide in pairwise([widths[-1], *reversed(widths)])
        )
        self.velocity = nn.Sequential(
            nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, n_pixels, 3, padding=1)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, noisy: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Map ``(B, C, H, W)``, times ``(B,)`` from 0 to 1 and labels ``(B,)`` to velocities."""
        angles = torch.pi * torch.arange(1, 9, device=times.device) * times[:, None]
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        condition = F.silu(self.time(waves) + self.class_embedding(labels))
        features = self.entry(F.pixel_unshuffle(noisy, self.patch))
        known: list[Tensor] = []
        for block in self.ways_in:
            features = block(F.avg_pool2d(features, 2) if known else features, condition)
            known.append(features)
        features = self.middle(features, condition)
        for block in self.ways_out:
            side = known[-1].shape[-1]
            features = (
                features if features.shape[-1] == side else F.interpolate(features, size=side)
            )
            features = block(torch.cat([features, known.pop()], 1), condition)
        return F.pixel_shuffle(self.velocity(features), self.patch).float()


class PooledTrunk(nn.Module):
    """Convolutions from an image to features that are averaged over all places.

    It asks whether a stroke is there and less where, which few labels teach better than the
    flat layer of a :class:`ConvTrunk`. Normalised within each image, so it may judge generated
    ones. While training it adds noise to the pixels (0.1) and drops channels (1/10).

    Parameters
    ----------
    image_shape
        (C, H, W), as for a :class:`ConvTrunk`.
    width
        Channels of the first stage, a multiple of 4; there are four times as many features.

    Shown in: book/07_learning_from_few_labels.ipynb, book/09_choosing_a_method.ipynb
    """

    def __init__(self, image_shape: ImageShape, width: int) -> None:
        super().__init__()
        check_width(width)
        halvings = count_halvings(image_shape)
        stages = [GaussianNoise(0.1)]
        stages += self._stage(image_shape[0], width, 5, stride=2 if halvings else 1)
        channels = width
        for _ in range(1, halvings):
            wider = min(2 * channels, 4 * width)
            stages += [*self._stage(channels, wider, 3), nn.MaxPool2d(2)]
            channels = wider
        stages.append(nn.Dropout2d(0.1))
        stages += self._stage(channels, channels, 3) + self._stage(channels, 4 * width, 3)
        self.stages = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def _stage(channels: int, wider: int, side: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, wider, side, stride, padding=side // 2, bias=False)
        return [convolution, nn.GroupNorm(4, wider), nn.LeakyReLU(0.2)]

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, 4 * width)``."""
        return self.stages(images)


class MlpTrunk(nn.Module):
    """Fully connected layers from an image to a vector of features.

    Which pixels are neighbours is not known to it: papers call results of such networks
    permutation invariant. Each row of weights is a direction and a length (weight norm).

    Parameters
    ----------
    image_shape
        (C, H, W), as for a :class:`ConvTrunk`.
    widths
        Units of each layer; the last number is that of the features.
    regularise
        Whether to add noise while training, 0.3 to the pixels and 0.5 to each further layer.

    Source: Salimans et al. 2016, the network of its MNIST experiments; Salimans and Kingma 2016,
    Weight Normalization, equation 2.
    Shown in: book/07_learning_from_few_labels.ipynb
    """

    def __init__(self, image_shape: ImageShape, widths: Sequence[int], *, regularise: bool) -> None:
        super().__init__()
        count_halvings(image_shape)
        stages: list[nn.Module] = [nn.Flatten()]
        n_inputs = math.prod(image_shape)
        for layer, n_units in enumerate(widths):
            if regularise:
                stages.append(GaussianNoise(0.5 if layer else 0.3))
            linear = nn.Linear(n_inputs, n_units)
            nn.init.kaiming_normal_(linear.weight)  # the noise is sized for units of variance 1
            nn.init.zeros_(linear.bias)
            stages += [weight_norm(linear), nn.ReLU()]
            n_inputs = n_units
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, widths[-1])``."""
        return self.stages(images)


class MlpDecoder(nn.Module):
    """Fully connected layers from a code, and for K > 0 a class, to an image.

    Parameters
    ----------
    image_shape
        (C, H, W), as for a :class:`Decoder`.
    latent_dim
        Z, the length of the code or of the noise.
    n_classes
        K; 0 for an unconditional decoder.
    widths
        Units of each hidden layer.
    normalise
        Whether hidden layers are normalised over the batch, as generators want it.

    Shown in: book/07_learning_from_few_labels.ipynb, book/09_choosing_a_method.ipynb
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        n_classes: int = 0,
        widths: Sequence[int] = (512, 512),
        *,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        count_halvings(image_shape)
        stages: list[nn.Module] = []
        n_inputs = latent_dim + n_classes
        for n_units in widths:
            stages.append(nn.Linear(n_inputs, n_units, bias=not normalise))
            stages += [nn.BatchNorm1d(n_units), nn.Softplus()] if normalise else [nn.Softplus()]
            n_inputs = n_units
        last = nn.Linear(n_inputs, math.prod(image_shape))
        self.stages = nn.Sequential(*stages, last, nn.Unflatten(1, tuple(image_shape)))

    def logits(self, latent: Tensor, class_probs: Tensor | None = None) -> Tensor:
        """Map to ``(B, C, H, W)`` before the sigmoid, which a Bernoulli likelihood wants."""
        if class_probs is not None:
            latent = torch.cat([latent, class_probs.to(latent.dtype)], dim=1)
        return self.stages(latent).float()

    def forward(self, latent: Tensor, class_probs: Tensor | None = None) -> Tensor:
        """Map the latent ``(B, Z)``, and class_probs ``(B, K)`` when K > 0, to images in [0, 1]."""
        return self.logits(latent, class_probs).sigmoid()


class CodeDiscriminator(nn.Module):
    """A code goes in, an unbounded score comes out: high for codes from the prior.

    Noise on the code while training, 0.3, blurs what is too easy to tell: that class
    probabilities are never quite 0 and 1.

    Parameters
    ----------
    n_inputs
        Length of the code.
    n_units
        Units of each of the two hidden layers.

    Source: Makhzani et al. 2015, appendix A. Shown in: book/09_choosing_a_method.ipynb
    """

    def __init__(self, n_inputs: int, n_units: int) -> None:
        super().__init__()
        stages: list[nn.Module] = [GaussianNoise(0.3)]
        for n_before in (n_inputs, n_units):
            stages += [nn.Linear(n_before, n_units), nn.LeakyReLU(0.2)]
        self.stages = nn.Sequential(*stages, nn.Linear(n_units, 1), nn.Flatten(0))

    def forward(self, codes: Tensor) -> Tensor:
        """Map ``(B, n_inputs)`` to scores ``(B,)``."""
        return self.stages(codes).float()


def one_hot(labels: Tensor, n_classes: int) -> Tensor:
    """Return ``(B, K)`` float32 rows that ask for the classes ``labels`` ``(B,)``.

    Shown in: book/04_combined_objective.ipynb
    """
    return F.one_hot(labels, n_classes).float()
