"""The contract between a method and the training loop.

Shown in: book/05_training_loop.ipynb
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from semigen_lib.data import UNLABELED, Batch
from semigen_lib.models import ImageShape

__all__ = [
    "Method",
    "MethodConfig",
    "Terms",
    "choose_classes",
    "method_name",
    "ramp_up",
    "rate_factor",
    "refuse_classes",
]


Terms = Mapping[str, Tensor]


@dataclass(frozen=True)
class MethodConfig:
    """What every method can be told. Methods add their own fields.

    A field ``<term>_weight`` multiplies the term of that name; a term without one has weight 1.
    """

    batch_size: int = 64  # unlabelled images a step
    labeled_batch_size: int = 32  # labelled images a step; they repeat when there are fewer
    learning_rate: float = 1e-3  # Adam's, of every player that has no rate of its own
    beta1: float = 0.9  # Adam's memory of gradients; games want less of it
    beta2: float = 0.99
    decay_from: float = 0.6  # the fraction of the run after which a rate falls to 0 in a line
    ema_decay: float = 0.999  # of the averaged weights that predict and generate

    def __post_init__(self) -> None:
        """Refuse values of another type than the default's, and numbers out of range."""
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not kind:
                raise ValueError(f"{field.name}: expected {kind.__name__}, got {value!r}")
            low, high = _range_of(field.name, kind)
            if not low <= getattr(self, field.name) <= high:
                raise ValueError(
                    f"{field.name}: expected a number from {low} to {high}, got {value}"
                )


_LARGEST = 1e6  # of a weight or a target: whoever asks for more has mistyped
_RANGES = {
    "augment": (0, 1),
    "balance": (0, 1),
    "drop": (0.0, 1.0),
    "epsilon": (0.0, _LARGEST),
    "erased": (0.0, 1.0),
    "graph_power": (0.0, 10.0),
    "guidance": (0.0, 100.0),
    "keep": (0.0, 1.0),
    "keep_later": (0.0, 1.0),
    "probe": (1e-6, _LARGEST),
    "q": (0.01, 1.0),
    "ramp": (0.0, 1.0),
    "redraws": (0, 100),
    "relabel_at": (0.0, 1.0),
    "retrain_at": (0.0, 1.0),
    "share": (0.0, 1.0),
    "strength": (0.0, 10.0),
    "sure": (0.0, 1.0),
    "threshold": (0.0, 1.0),
    **dict.fromkeys(("learning_rate", "discriminator_rate", "generator_rate"), (0.0, 1.0)),
    "beta1": (0.0, 0.99999),  # Adam divides by 1 - beta
    "beta2": (0.0, 0.99999),
    "decay_from": (0.0, 1.0),
    "ema_decay": (0.0, 1.0),
    **dict.fromkeys(("convolutional", "fooling", "squared", "summed"), (0, 1)),  # switches
}


def _range_of(name: str, kind: type) -> tuple[float, float]:
    """Return the smallest and the largest value of a setting."""
    if name in _RANGES:
        return _RANGES[name]
    if kind is int:
        return 1, 2**16
    return (0.0 if name.endswith("_weight") else -_LARGEST), _LARGEST


def rate_factor(progress: float, decay_from: float) -> float:
    """Return what multiplies the learning rate: 1, then a straight line to 0 at the end.

    Parameters
    ----------
    progress
        How much of the run is done, from 0 to 1.
    decay_from
        Where the line begins.
    """
    if progress <= decay_from:
        return 1.0
    return max(0.0, (1.0 - progress) / (1.0 - decay_from))


def ramp_up(progress: float, until: float) -> float:
    """Return a straight line from 0, at the start of a run, to 1, which it keeps.

    What a method believes of its own guesses should grow with them.

    Parameters
    ----------
    progress
        How much of the run is done, from 0 to 1.
    until
        Where the line reaches 1; at 0 there is no line.
    """
    return 1.0 if progress >= until else progress / until


class Method(nn.Module):
    """Where models and losses meet.

    A method names its players and, for every batch, tells what each of them minimises. It never
    sees an optimiser; the training loop never sees a network.

    Parameters
    ----------
    config
        An instance of the method's ``Config``.
    image_shape
        (C, H, W) of the images.
    n_classes
        K, the number of classes of the data.

    Attributes
    ----------
    memory : dict of str to Tensor
        What the method has worked out about the images it trains on. It belongs to the state of a
        training and is saved with it, not to the weights.
    progress : float
        How much of the run was done when the next step was prepared, for terms that grow.

    Shown in: book/05_training_loop.ipynb
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    reads: ClassVar[bool] = False  # whether it can say which class an image is of
    draws: ClassVar[bool] = False  # whether it can generate images
    draws_on_request: ClassVar[bool] = False  # whether it can generate a class that is asked for
    looks_at_pool: ClassVar[bool] = False  # whether ``prepare`` needs all images in memory
    players: ClassVar[Mapping[str, tuple[str, ...]]]  # player -> names of the networks it trains
    prefers_bf16: ClassVar[bool] = False  # the default where a processor is fast at it

    def __init__(self, config: MethodConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__()
        self.config, self.image_shape, self.n_classes = config, tuple(image_shape), n_classes
        self.memory: dict[str, Tensor] = {}
        self.progress = 0.0

    def prepare(self, pool: Tensor, labels: Tensor, progress: float) -> bool:
        """Get ready for the next step; called before every one.

        A method that looks at the whole pool, or works in stages, does it here and puts what it
        finds into ``memory``; most only note the progress. One that looks at the pool says so with
        ``looks_at_pool``, as a pool that is not in memory is refused then.

        Parameters
        ----------
        pool
            uint8 ``(N, C, H, W)``, every image it trains on; ``ImageFiles`` if they are in files.
        labels
            ``(N,)``, UNLABELED but for the labelled images.
        progress
            How much of the run is done, from 0 to below 1.

        Returns
        -------
        bool
            Whether a new stage begins. Averages of weights start anew then: they shall not
            remember what a network was before its game began.
        """
        self.progress = progress
        return False

    def rate_factor(self, progress: float) -> float:
        """Return what multiplies every learning rate when ``progress`` of the run is done."""
        return rate_factor(progress, self.config.decay_from)

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """Yield (player, {term: loss}) once per update, in order.

        The caller lets that player step on the weighted sum of its terms before it asks for the
        next update, so a later player meets the earlier player's new weights.
        """
        raise NotImplementedError

    def predict(self, images: Tensor) -> Tensor:
        """Return class_logits ``(B, K)`` of images ``(B, C, H, W)`` in [0, 1].

        Raises
        ------
        ValueError
            If the method has no classifier.
        """
        raise ValueError(f"predict: expected a method with a classifier, got {method_name(self)}")

    def generate(self, labels: Tensor) -> Tensor:
        """Draw one image for each of ``labels`` ``(B,)``, as ``(B, C, H, W)`` in [0, 1].

        UNLABELED (-1) leaves the class to chance.

        Raises
        ------
        ValueError
            If the method does not draw, or if it cannot draw a class on request.
        """
        raise ValueError(f"generate: expected a method that draws, got {method_name(self)}")

    def objective(self, terms: Terms) -> Tensor:
        """Return the weighted sum of a player's terms."""
        return sum(
            getattr(self.config, f"{name}_weight", 1.0) * term for name, term in terms.items()
        )

    def parameters_of(self, player: str) -> list[nn.Parameter]:
        """Return the parameters that a player trains."""
        return [p for name in self.players[player] for p in getattr(self, name).parameters()]

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return one fresh Adam per player."""
        betas = (self.config.beta1, self.config.beta2)
        return {
            player: torch.optim.Adam(
                self.parameters_of(player), lr=self.config.learning_rate, betas=betas, fused=True
            )
            for player in self.players
        }

    def noise(self, n: int) -> Tensor:
        """Draw ``(n, Z)`` standard normal noise on the device of the method's weights."""
        return torch.randn(n, self.config.latent_dim, device=next(self.parameters()).device)


def method_name(method: Method) -> str:
    """Return the name of a method as the command line spells it."""
    return type(method).__module__.rpartition(".")[2]


def choose_classes(labels: Tensor, n_classes: int) -> Tensor:
    """Return ``labels`` ``(B,)`` with a class drawn by chance wherever there is UNLABELED.

    Raises
    ------
    ValueError
        If there is another number than UNLABELED or a class.
    """
    if ((labels < UNLABELED) | (labels >= n_classes)).any():
        wrong = sorted(set(labels.tolist()) - set(range(UNLABELED, n_classes)))
        raise ValueError(f"labels: expected {UNLABELED} to {n_classes - 1}, got {wrong}")
    chance = torch.randint(n_classes, labels.shape, device=labels.device)
    return torch.where(labels == UNLABELED, chance, labels)


def refuse_classes(method: Method, labels: Tensor) -> None:
    """Raise ValueError if a class is requested from a method that cannot choose one."""
    if (labels != UNLABELED).any():
        raise ValueError(
            f"class: expected a method that draws on request, such as combined, "
            f"got {method_name(method)}"
        )
