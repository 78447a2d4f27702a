"""A classifier teaches a diffusion model, and the diffusion model teaches the classifier.

Dual pseudo training, three stages of one run. First ``propagate`` names the pool: its graph and
its student turn few labels into a name for every image. Then a diffusion model learns to undo
noise on the named pool, so that it can draw the class that is asked for. Then it draws images of
every class, these join the real ones, and the student goes on learning from both.

The diffusion model is a flow: an image moves along a straight way to noise, a network learns the
velocity, and whoever follows it backwards from fresh noise arrives at a new image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semigen_lib.data import Batch, to_float
from semigen_lib.losses import denoising_loss
from semigen_lib.methods.method import Terms, choose_classes
from semigen_lib.methods.propagate import Propagate, PropagateConfig
from semigen_lib.models import ConditionalUnet, ImageShape

__all__ = ["Dpt", "DptConfig", "follow_back"]


@dataclass(frozen=True)
class DptConfig(PropagateConfig):
    """Settings of :class:`Dpt`; those of the student are those of ``propagate``."""

    denoiser_width: int = 32
    drop: float = 0.1  # how often the denoiser is not told the class, so that guidance is possible
    guidance: float = 2.0  # 1: as the class says; more: away from what no class says; 0: no class
    n_steps: int = 10  # from noise to an image; each but the last asks the denoiser twice
    n_drawings: int = 128  # of each class, for the student
    share: float = 0.25  # of the images it retrains on that are drawings; 0: it sees none
    relabel_at: float = 0.2  # the fraction of the run after which the denoiser learns ...
    retrain_at: float = 0.8  # ... and after which it draws for the student
    keep_later: float = 0.93
    ema_decay: float = 0.999


class Dpt(Propagate):
    """Classifier, names, conditional diffusion with guidance, drawings, better classifier.

    Source: You et al. 2023, "Diffusion Models and Semi-Supervised Learners Benefit Mutually with
    Few Labels", for the three stages; Ho and Salimans 2022, "Classifier-Free Diffusion Guidance";
    Esser et al. 2024, "Scaling Rectified Flow Transformers", section 3.1, for the times.
    Shown in: book/08_drawing_on_request.ipynb
    """

    Config = DptConfig
    reads = draws = draws_on_request = True
    players = {"student": ("student",), "denoiser": ("denoiser",)}
    turning_points = ("relabel_at", "retrain_at")

    def __init__(self, config: DptConfig, image_shape: ImageShape, n_classes: int) -> None:
        super().__init__(config, image_shape, n_classes)
        self.denoiser = ConditionalUnet(image_shape, n_classes, config.denoiser_width)

    def prepare(self, pool: Tensor, labels: Tensor, progress: float) -> bool:
        """Name the pool, then read it, as ``propagate`` does; later draw what joins it."""
        begins = super().prepare(pool, labels, progress)
        later = progress < self.config.retrain_at or not self.memory["read"]
        if later or "drawings" in self.memory:
            return begins
        device = self.memory["weights"].device
        requests = torch.arange(self.n_classes, device=device).repeat(self.config.n_drawings)
        with torch.no_grad():
            parts = [self.generate(part) for part in requests.split(500)]
        self.memory["drawings"] = (torch.cat(parts) * 255).round().to(torch.uint8)
        self.memory["names"] = torch.cat([self.memory["names"], requests])
        sure = torch.ones(len(requests), device=device)
        self.memory["weights"] = torch.cat([self.memory["weights"], sure])
        return True

    def updates(self, batch: Batch) -> Iterator[tuple[str, Terms]]:
        """The student; the denoiser when the student has read the pool; the student again."""
        if not self.memory["read"]:
            yield from super().updates(batch)
        elif "drawings" not in self.memory:
            yield "denoiser", {"denoising": self._denoise(batch)}
        else:
            yield from super().updates(self._join(batch))

    def _denoise(self, batch: Batch) -> Tensor:
        """Return the loss on noisy images; one whose name is not sure counts as of no class."""
        images, n = 2 * batch.images - 1, len(batch.images)
        told = torch.rand(n, device=images.device) >= self.config.drop
        told &= self.memory["weights"][batch.index] > 0
        labels = torch.where(told, self.memory["names"][batch.index], self.n_classes)
        noise = torch.randn_like(images)
        times = torch.randn(n, device=images.device).sigmoid()  # mostly where much is undecided
        t = times[:, None, None, None]
        velocity = self.denoiser((1 - t) * images + t * noise, times, labels)
        return denoising_loss(velocity, images, noise)

    def _join(self, batch: Batch) -> Batch:
        """Return the batch with drawings in the place of its first images."""
        n, drawings = round(self.config.share * len(batch.images)), self.memory["drawings"]
        chosen = torch.randint(len(drawings), (n,), device=drawings.device)
        images = torch.cat([to_float(drawings[chosen]), batch.images[n:]])
        index = torch.cat([len(self.memory["scores"]) + chosen, batch.index[n:]])
        return batch._replace(images=images, index=index)

    def velocity(self, noisy: Tensor, time: float, labels: Tensor) -> Tensor:
        """Return where noisy images ``(B, C, H, W)`` of classes ``(B,)`` move, with guidance."""
        times, guidance = torch.full((len(noisy),), time, device=noisy.device), self.config.guidance
        if guidance == 1:
            return self.denoiser(noisy, times, labels)
        labels = torch.cat([labels, torch.full_like(labels, self.n_classes)])
        both = self.denoiser(noisy.repeat(2, 1, 1, 1), times.repeat(2), labels)
        asked, of_no_class = both.chunk(2)
        return of_no_class + guidance * (asked - of_no_class)

    def generate(self, labels: Tensor) -> Tensor:
        """Draw one image of each class that is asked for; UNLABELED leaves the class to chance."""
        device = next(self.parameters()).device
        classes = choose_classes(labels.to(device), self.n_classes)
        noise = torch.randn(len(labels), *self.image_shape, device=device)
        images = follow_back(
            lambda noisy, time: self.velocity(noisy, time, classes), noise, self.config.n_steps
        )
        return (0.5 + 0.5 * images).clamp(0, 1)


def follow_back(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, n_steps: int) -> Tensor:
    """Follow a velocity from time 1 back to time 0, in equal steps of Heun's rule.

    Each step takes the mean of two velocities: here, and where the first one leads. The last one
    just goes where it is led: at time 0 no noise is left to tell a network by.

    Parameters
    ----------
    velocity
        A function of ``(B, C, H, W)`` and a time from 0 to 1.
    noise
        ``(B, C, H, W)``, where it starts.
    n_steps
        At least 1; the velocity is asked twice in each but the last.

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative
    Models", algorithm 1, for Heun's rule and its last step.
    Shown in: book/08_drawing_on_request.ipynb
    """
    images = noise
    for step in range(n_steps, 1, -1):
        here = velocity(images, step / n_steps)
        there = velocity(images - here / n_steps, (step - 1) / n_steps)
        images = images - (here + there) / (2 * n_steps)
    return images - velocity(images, 1 / n_steps) / n_steps
