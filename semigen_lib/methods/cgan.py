"""Draw the class that is asked for, having been told a few labels.

A conditional game needs a class for every real image. ``propagate`` finds them: its graph and its
student name the pool in the first part of the run. In the rest a generator and a discriminator
play on the images whose names are sure. The judgement is about pairs, an image and a class: a fine
3 that was asked to be a 5 is as fake as a smear. The student helps to find the classes apart, and
when the game is over it looks over what is drawn: a drawing that it does not read as what was asked
for is drawn again, from other noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.data import Batch
from semigen_lib.losses import classification_loss, hinge_loss
from semigen_lib.methods.method import Terms, choose_classes, rate_factor
from semigen_lib.methods.propagate import Propagate, PropagateConfig
from semigen_lib.models import ConditionalGenerator, ImageShape, ProjectionDiscriminator

__all__ = ["Cgan", "CganConfig"]


@dataclass(frozen=True)
class CganConfig(PropagateConfig):
    """Settings of :class:`Cgan`; those of the student are those of ``propagate``.

    ``learning_rate``, ``beta1`` and ``beta2`` are the student's, ``decay_from`` is the game's.
    """

    latent_dim: int = 64  # Z, the length of the noise
    generator_width: int = 24
    discriminator_width: int = 48
    discriminator_rate: float = 1e-3  # Adam's ...
    generator_rate: float = 2e-3  # ... faster, or its opponent has won before it has begun
    request_weight: float = 0.2  # the generator: the student shall read what was asked for
    redraws: int = 5  # how often a drawing that looks like another class is drawn again
    sure: float = 0.9  # the probability that the student must give the class asked for
    relabel_at: float = 0.2
    keep_later: float = 0.98
    ema_decay: float = 0.999


class Cgan(Propagate):
    """A conditional game with a projection discriminator, on names that a student gave.

    Source: Miyato and Koyama 2018 for the game; Lucic et al. 2019, "High-Fidelity Image Generation
    With Fewer Labels", for playing it on inferred labels.
    Shown in: book/08_drawing_on_request.ipynb
    """

    Config = CganConfig
    reads = draws = draws_on_request = True
    players = {
        "student": ("student",),
        "discriminator": ("discriminator",),
        "generator": ("generator",),
    }

    def __init__(self, config: CganConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.generator = ConditionalGenerator(
            image_shape, config.latent_dim, n_classes, config.generator_width
        )
        self.discriminator = ProjectionDiscriminator(
            image_shape, n_classes, config.discriminator_width
        )

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the student's Adam, and two that forget fast for the game."""
        players = super().optimizers()
        for player, rate in (
            ("discriminator", self.config.discriminator_rate),
            ("generator", self.config.generator_rate),
        ):
            players[player] = torch.optim.Adam(
                self.parameters_of(player), lr=rate, betas=(0.0, 0.9), fused=True
            )
        return players

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """The student until it has named the pool; then the discriminator and the generator."""
        if not self.memory["read"]:
            yield from super().updates(batch)
            return
        n = max(len(batch.images) // 2, 1)  # a game wants more steps rather than larger ones
        images, index = batch.images[:n], batch.index[:n]
        names, weights = self.memory["names"][index], self.memory["weights"][index]
        fakes = self.generator(self.noise(n), names)
        scores = self.discriminator(torch.cat([images, fakes.detach()]), names.repeat(2))
        real = (weights * hinge_loss(scores[:n], 1)).sum() / weights.sum().clamp(min=1)
        yield "discriminator", {"real": real, "fake": hinge_loss(scores[n:], -1).mean()}
        self.student.eval()  # it has learnt, and only reads from now on
        read = max(n // 4, 1)  # reading costs as much as judging: one drawing in four
        terms = {
            "adversarial": -self.discriminator(fakes, names).mean(),
            "request": classification_loss(self.student(fakes[:read]), names[:read]),
        }
        yield "generator", terms

    def rate_factor(self, progress: float) -> float:
        """Fall once for the student, and once, later, for the game."""
        start = self.config.relabel_at
        if progress < start:
            return super().rate_factor(progress)
        return rate_factor((progress - start) / max(1 - start, 1e-9), self.config.decay_from)

    def generate(self, labels: Tensor) -> Tensor:
        """Draw one image of each class that is asked for; UNLABELED leaves the class to chance."""
        classes = choose_classes(labels.to(next(self.parameters()).device), self.n_classes)
        images = self.generator(self.noise(len(classes)), classes)
        for _ in range(self.config.redraws):
            probs = self.student(images).softmax(1).gather(1, classes[:, None]).squeeze(1)
            doubted = (probs < self.config.sure).nonzero().squeeze(1)
            if not len(doubted):
                break
            again = self.generator(self.noise(len(doubted)), classes[doubted])
            images = images.index_copy(0, doubted, again)
        return images
