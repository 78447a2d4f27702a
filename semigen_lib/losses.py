"""The terms of the objectives: pure functions of network outputs.

No function here has seen a network. Each returns a scalar, averaged over the batch. The weights
that turn terms into an objective belong to the methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "IGNORED",
    "LSGAN_CODE",
    "TargetCode",
    "balance_loss",
    "bernoulli_loss",
    "brier_loss",
    "classification_loss",
    "denoising_loss",
    "divergence_loss",
    "energy_margin_loss",
    "entropy_loss",
    "feature_matching_loss",
    "generalized_classification_loss",
    "hinge_loss",
    "information_loss",
    "is_fake_loss",
    "is_real_loss",
    "least_squares_loss",
    "marginal_loss",
    "normal_divergence",
    "prior_loss",
    "pseudo_label_loss",
    "real_probability",
    "reconstruction_loss",
    "sampled_marginal_loss",
    "squared_class_loss",
]


IGNORED = -1  # the label that carries no label; equal to data.UNLABELED, which losses never import


@dataclass(frozen=True)
class TargetCode:
    """Who wants which score: the numbers that make a least-squares loss a game, or not.

    Attributes
    ----------
    real
        The discriminator's target on real images (``b`` in Mao et al.).
    fake
        The discriminator's target on generated images (``a``).
    generator
        The generator's target on its own images (``c``).

    Source: Mao et al. 2017, Least Squares Generative Adversarial Networks, equation 2.
    Shown in: book/03_gan_loss.ipynb
    """

    real: float = 1.0
    fake: float = 0.0
    generator: float = 1.0

    @property
    def is_adversarial(self) -> bool:
        """Whether the two players want different things.

        If ``real == fake`` the best discriminator is constant; if ``generator == fake`` the
        generator helps the discriminator do what it already wants. Either way nobody plays.
        Without this there is no game; with it there is one, which need not end at the data: a
        generator that aims below ``real`` turns back where its target is reached.
        """
        return self.real != self.fake and self.generator != self.fake

    def optimal_score(self, real_density: Tensor, fake_density: Tensor) -> Tensor:
        """Return the score of the best discriminator where the two densities are as given.

        Parameters
        ----------
        real_density, fake_density
            Non-negative, any common shape, their sum positive.
        """
        total = real_density + fake_density
        return (self.real * real_density + self.fake * fake_density) / total

    def equilibrium(self) -> tuple[float, float, float]:
        """Return (score, discriminator's loss, generator's loss) when fake and real look alike.

        For the default code these are 1/2, 1/4 and 1/8.
        """
        score = (self.real + self.fake) / 2
        discriminator = 0.5 * (score - self.real) ** 2 + 0.5 * (score - self.fake) ** 2
        return score, discriminator, 0.5 * (score - self.generator) ** 2


LSGAN_CODE = TargetCode()


def least_squares_loss(score: Tensor, target: float | Tensor) -> Tensor:
    """Half the squared distance of scores from a target, averaged over the batch.

    The discriminator minimises this on real images with ``code.real`` plus this on generated
    images with ``code.fake``; the generator minimises it on generated images with
    ``code.generator``.

    Parameters
    ----------
    score
        ``(B,)`` unbounded scores. A sigmoid before this loss would saturate it.
    target
        One of the three numbers of a :class:`TargetCode`, or ``(B,)``, one for each image.

    Raises
    ------
    ValueError
        If the target is a tensor of another shape (broadcasting would hide it).

    Source: Mao et al. 2017, equation 2. Shown in: book/03_gan_loss.ipynb
    """
    if isinstance(target, Tensor) and target.shape != score.shape:
        raise ValueError(f"target: expected shape {tuple(score.shape)}, got {tuple(target.shape)}")
    return 0.5 * (score - target).square().mean()


def hinge_loss(score: Tensor, sign: float) -> Tensor:
    """Return how far scores are from the right side, ``max(0, 1 - sign * score)``, ``(B,)``.

    Source: Lim and Ye 2017, "Geometric GAN", equations 13 and 14; Miyato et al. 2018.

    Parameters
    ----------
    score
        ``(B,)``, unbounded.
    sign
        1 for images that shall score above 1, -1 for those that shall score below -1.

    Shown in: book/08_drawing_on_request.ipynb
    """
    return (1 - sign * score).relu()


def reconstruction_loss(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Squared error of reconstructions, averaged over pixels and batch.

    Parameters
    ----------
    images, reconstructions
        ``(B, C, H, W)`` in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ (broadcasting would hide it).

    Source: the article's first formula, divided by the number of pixels so that weights mean the
    same for every image size. Shown in: book/02_autoencoder.ipynb
    """
    if images.shape != reconstructions.shape:
        expected, got = tuple(images.shape), tuple(reconstructions.shape)
        raise ValueError(f"reconstructions: expected shape {expected}, got {got}")
    return (images - reconstructions).square().mean()


def denoising_loss(velocity: Tensor, images: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the way from images to noise, averaged over pixels and batch.

    At time t the noisy image is ``(1 - t) * images + t * noise``, so it moves at the velocity
    ``noise - images``. Many such ways cross at one place, and the best a network can say there is
    their mean; what is left of the loss then is their spread, and not 0.

    Parameters
    ----------
    velocity
        ``(B, C, H, W)``, what a network says on seeing the noisy images.
    images, noise
        ``(B, C, H, W)``, the two ends of every way.

    Raises
    ------
    ValueError
        If the shapes differ (broadcasting would hide it).

    Source: Liu et al. 2023, "Flow Straight and Fast", equation 1.
    Shown in: book/notation.md
    """
    if not velocity.shape == images.shape == noise.shape:
        expected, got = tuple(images.shape), (tuple(velocity.shape), tuple(noise.shape))
        raise ValueError(f"velocity, noise: expected twice shape {expected}, got {got}")
    return (velocity - (noise - images)).square().mean()


def classification_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, averaged over the labelled images of the batch.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before any softmax: a second softmax would keep this loss from reaching 0.
    labels
        ``(B,)`` int64 in 0..K-1, or UNLABELED (-1) for images that do not count.

    Returns
    -------
    Tensor
        A scalar; exactly 0 (with zero gradient) when no image of the batch has a label.

    Shown in: book/04_combined_objective.ipynb
    """
    total = F.cross_entropy(class_logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def generalized_classification_loss(
    class_logits: Tensor, labels: Tensor, weights: Tensor, q: float = 0.7
) -> Tensor:
    """Classification loss that shrugs at labels it cannot believe, weighted mean over the batch.

    ``(1 - p**q) / q`` for the probability p of the label: cross-entropy as q goes to 0, the plain
    probability of an error at q = 1. In between, an image whose label looks wrong to the network
    pulls at it ever less, where cross-entropy would pull ever more.

    Parameters
    ----------
    class_logits
        ``(B, K)``.
    labels
        ``(B,)`` int64, from 0 to K - 1.
    weights
        ``(B,)``, at least 0; an image of weight 0 does not count.
    q
        Above 0, at most 1.

    Source: Zhang and Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural
    Networks with Noisy Labels", equation 6.
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    log_probability = class_logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    loss = (1 - (q * log_probability).exp()) / q
    return (weights * loss).sum() / weights.sum().clamp(min=1e-6)


def squared_class_loss(class_scores: Tensor, labels: Tensor) -> Tensor:
    """Half the squared distance of class scores from the one-hot label, averaged over the batch.

    With K+1 classes, the last one being "generated", and targets that depend on where an image
    came from and on who plays, this is the article's formula with a vector for y. For K = 1 and
    scores that sum to 1 it is twice :func:`least_squares_loss`.

    Parameters
    ----------
    class_scores
        ``(B, K)`` or ``(B, K+1)``, unbounded, or probabilities.
    labels
        ``(B,)`` int64, the column that shall be 1; every image must have one.

    Source: Mao et al. 2017, equation 2, one coordinate per class.
    Shown in: book/03_gan_loss.ipynb
    """
    target = F.one_hot(labels, class_scores.shape[1])
    return 0.5 * (class_scores - target).square().sum(1).mean()


def brier_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Half the squared distance of class probabilities from the one-hot label, batch average.

    The proper scoring rule that the article's formula becomes when its y is a class label.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before the softmax.
    labels
        ``(B,)`` int64 in 0..K-1; every image must be labelled.

    Source: Brier 1950. Shown in: book/03_gan_loss.ipynb
    """
    return squared_class_loss(class_logits.softmax(1), labels)


def real_probability(class_logits: Tensor) -> Tensor:
    """Probability that an image is of one of the K classes and not generated.

    K+1 logits are one too many, so the logit of the class "generated" is fixed at 0 and the
    probability is ``sigmoid(logsumexp(class_logits))``.

    Parameters
    ----------
    class_logits
        ``(B, K)``.

    Returns
    -------
    Tensor
        ``(B,)`` in (0, 1).

    Source: Salimans et al. 2016, section 5. Shown in: book/03_gan_loss.ipynb
    """
    return class_logits.logsumexp(1).sigmoid()


def is_real_loss(class_logits: Tensor) -> Tensor:
    """Cross-entropy, in nats, of "these are real" under K+1 classes, averaged over the batch.

    Parameters
    ----------
    class_logits
        ``(B, K)``; the logit of "generated" is 0.

    Source: Salimans et al. 2016, section 5. Shown in: book/03_gan_loss.ipynb
    """
    return F.softplus(-class_logits.logsumexp(1)).mean()


def is_fake_loss(class_logits: Tensor) -> Tensor:
    """Cross-entropy, in nats, of "these are generated" under K+1 classes, batch average.

    Parameters
    ----------
    class_logits
        ``(B, K)``; the logit of "generated" is 0.

    Source: Salimans et al. 2016, section 5. Shown in: book/03_gan_loss.ipynb
    """
    return F.softplus(class_logits.logsumexp(1)).mean()


def feature_matching_loss(real_features: Tensor, fake_features: Tensor) -> Tensor:
    """Squared distance of the batches' mean features, averaged over the features.

    A generator that minimises it learns what is in the images and not how to fool: good for the
    classifier that owns the features, and less good for the images.

    Parameters
    ----------
    real_features, fake_features
        ``(B, F)`` each, with batches of any sizes; give no gradient to the real ones.

    Source: Salimans et al. 2016, section 3.1.
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    return (real_features.mean(0) - fake_features.mean(0)).square().mean()


def information_loss(class_logits: Tensor) -> Tensor:
    """Minus the information, in nats, that an image gives about its predicted class.

    The mean entropy of each image's class probabilities, less the entropy of their mean: low when
    every image is read with confidence and all classes are read equally often. It assumes that
    the unlabelled images are of all classes in about equal numbers.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before the softmax; B several times K, or the mean says little.

    Returns
    -------
    Tensor
        A scalar from ``-log(K)`` to 0.

    Source: Krause et al. 2010 (RIM), equation 3; Springenberg 2016 (CatGAN), equation 6.
    Shown in: book/04_combined_objective.ipynb
    """
    log_probs = class_logits.log_softmax(1)
    probs = log_probs.exp()
    mean = probs.mean(0)
    return (mean * mean.clamp(min=1e-12).log()).sum() - (probs * log_probs).sum(1).mean()


def entropy_loss(class_logits: Tensor) -> Tensor:
    """Entropy of each image's class probabilities, in nats, averaged over the batch: be sure.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before the softmax.

    Source: Grandvalet and Bengio 2005, equation 8. Shown in: book/07_learning_from_few_labels.ipynb
    """
    log_probs = class_logits.log_softmax(1)
    return -(log_probs.exp() * log_probs).sum(1).mean()


def balance_loss(class_logits: Tensor) -> Tensor:
    """Divergence of the batch's mean class probabilities from equal shares, in nats.

    From 0, when all K classes are read equally often, to ``log(K)``, when only one is. With
    :func:`entropy_loss` it adds up to ``information_loss + log(K)``.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before the softmax; B several times K, or the mean says little.

    Source: Krause et al. 2010 (RIM), equation 3, the first entropy alone.
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    mean = class_logits.softmax(1).mean(0)
    return math.log(class_logits.shape[1]) + (mean * mean.clamp(min=1e-12).log()).sum()


def divergence_loss(class_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the target's class probabilities, in nats, batch average.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before the softmax: what shall come near the target.
    target_logits
        ``(B, K)``, before the softmax; taken as given, and gets no gradient.

    Source: Miyato et al. 2018 (VAT), equation 5.
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    target = target_logits.detach().log_softmax(1)
    return (target.exp() * (target - class_logits.log_softmax(1))).sum(1).mean()


def pseudo_label_loss(class_logits: Tensor, guesses: Tensor, threshold: float) -> Tensor:
    """Cross-entropy against one's own sure guesses, in nats, averaged over the whole batch.

    An image counts if its largest guess is above the threshold, and its label is that class.
    Images that do not count stay in the denominator, so the term grows with the number that do.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before the softmax.
    guesses
        ``(B, K)`` class probabilities; they are taken as given, and get no gradient.
    threshold
        From 0 (everything counts) to 1 (nothing does).

    Source: Lee 2013, "Pseudo-Label", equations 15 and 16; with the threshold, Sohn et al. 2020
    (FixMatch), equation 4.
    Shown in: book/07_learning_from_few_labels.ipynb
    """
    confidence, labels = guesses.detach().max(1)
    losses = F.cross_entropy(class_logits, labels, reduction="none")
    return (losses * (confidence > threshold)).mean()


def energy_margin_loss(real_energy: Tensor, fake_energy: Tensor, margin: float) -> Tensor:
    """Low energy for real images, energy of at least ``margin`` for generated ones.

    Parameters
    ----------
    real_energy, fake_energy
        ``(B,)``, non-negative: reconstruction errors of an autoencoder that is the discriminator.
    margin
        Positive, in units of the energy. Without it nothing opposes the reconstruction of fakes.

    Raises
    ------
    ValueError
        If the margin is not positive.

    Source: Zhao et al. 2017 (EBGAN), equation 1. Shown in: book/03_gan_loss.ipynb
    """
    if margin <= 0:
        raise ValueError(f"margin: expected a positive number, got {margin}")
    return real_energy.mean() + F.relu(margin - fake_energy).mean()


def prior_loss(latent: Tensor) -> Tensor:
    """Distance of the batch's codes from a standard normal: per-coordinate means and variances.

    Half of ``variance + mean**2 - 1 - log(variance)`` averaged over coordinates: the
    Kullback-Leibler divergence from N(0, 1) to the normal with the batch's moments. 0 when every
    coordinate has mean 0 and variance 1 over the batch.

    Parameters
    ----------
    latent
        ``(B, Z)`` with B at least 2.

    Shown in: book/04_combined_objective.ipynb
    """
    variance, mean = torch.var_mean(latent, dim=0, correction=0)
    variance = variance + 1e-6  # a dead coordinate costs much, not infinitely much
    return 0.5 * (variance + mean.square() - 1 - variance.log()).mean()


def bernoulli_loss(image_logits: Tensor, images: Tensor) -> Tensor:
    """Minus the log likelihood of each image, in nats, with every pixel a coin.

    Grey pixels count as the mean of black and white ones in their proportion.

    Parameters
    ----------
    image_logits
        ``(B, C, H, W)``, before the sigmoid.
    images
        ``(B, C, H, W)`` in [0, 1].

    Returns
    -------
    Tensor
        ``(B,)``, summed over pixels.

    Source: Kingma and Welling 2014, appendix C.1. Shown in: book/09_choosing_a_method.ipynb
    """
    losses = F.binary_cross_entropy_with_logits(image_logits, images, reduction="none")
    return losses.flatten(1).sum(1)


def normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from a standard normal to each image's own normal, in nats.

    Parameters
    ----------
    mean, log_variance
        ``(B, Z)``; coordinates are independent.

    Returns
    -------
    Tensor
        ``(B,)``, summed over coordinates; 0 for mean 0 and log-variance 0.

    Source: Kingma and Welling 2014, appendix B. Shown in: book/09_choosing_a_method.ipynb
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(1)


def marginal_loss(class_logits: Tensor, costs: Tensor) -> Tensor:
    """Cost of images whose class is unknown, in nats: the mean over what it may be, less entropy.

    With costs of ``-log p(image, class)`` it is never below ``-log p(image)``, and equal when the
    class probabilities are those of the model, given the image.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before the softmax: what the classifier thinks.
    costs
        ``(B, K)``: minus the log likelihood, or a bound of it, of each image with each class.

    Source: Kingma et al. 2014, equation 7. Shown in: book/09_choosing_a_method.ipynb
    """
    log_probs = class_logits.log_softmax(1)
    return (log_probs.exp() * (costs + log_probs)).sum(1).mean()


def sampled_marginal_loss(class_logits: Tensor, labels: Tensor, costs: Tensor) -> Tensor:
    """Estimate :func:`marginal_loss` and its gradient from one class for each image.

    The classifier learns only which of its guesses turned out cheaper than the other images'.
    The gradient is right in the mean over guesses, and far from it in a single step.

    Parameters
    ----------
    class_logits
        ``(B, K)``, before the softmax; B at least 2.
    labels
        ``(B,)``, drawn from these probabilities.
    costs
        ``(B,)``, each image's cost with its drawn class.

    Source: Williams 1992 (REINFORCE), with the mean cost of the other images as baseline.
    Shown in: book/09_choosing_a_method.ipynb
    """
    log_probs = class_logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    costs, n = costs + log_probs, len(labels)
    surprise = (costs - costs.mean()).detach() * n / max(n - 1, 1)
    # The second summand is 0 and only has a gradient.
    return (costs + surprise * (log_probs - log_probs.detach())).mean()
