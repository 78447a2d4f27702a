"""What drawings are worth: compared with real images by a network that no method has trained.

Every figure is taken in the features of one judge and with as many drawings as real images of each
class. Neither set is special: real training images in the place of the drawings give the *floor*,
which no method needs to pass.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semigen_lib.data import UNLABELED, ImageSet, LabelSplit, to_float
from semigen_lib.evaluation import test_error
from semigen_lib.judge import load_judge
from semigen_lib.measures import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    precision_recall,
)
from semigen_lib.methods import build_method
from semigen_lib.runtime import rng_state, set_rng_state
from semigen_lib.sources import read_at
from semigen_lib.training import train

__all__ = [
    "Reading",
    "SampleReport",
    "classification_accuracy_score",
    "measure_samples",
    "read_images_with",
]

LEAST_SPREAD = 0.3  # of that of real images; a class below it has collapsed
LEAST_SHARE = 0.1  # of the drawings asked for that show a class; below it the class is missing
COPY = 0.5  # of the distance to the second nearest training image; a copy is nearer to the first
MOST_COPIES = 0.1  # of the drawings; with more of them, the method repeats what it was shown
_TINY = 1e-12  # keeps ratios finite where somebody compares a set with itself


class Reading(NamedTuple):
    """What a judge makes of images, so that many reports need not read real images anew.

    Attributes
    ----------
    features : Tensor
        Floating point, shape (N, D).
    class_logits : Tensor or None
        Shape (N, K); None from a judge that knows no classes.
    pixels : Tensor
        Floating point, shape (N, P): the images at half their side, in [0, 1].
    labels : Tensor
        int64, shape (N,), of the images.

    Shown in: book/06_measuring_samples.ipynb
    """

    features: Tensor
    class_logits: Tensor | None
    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class SampleReport:
    """The figures of a set of drawings, in the features of one judge.

    Attributes
    ----------
    n : int
        Drawings, and real images on the other side of every distance but those of memory.
    k : int
        The neighbour that decides the size of a ball, for precision to coverage.
    conditional_accuracy : float or None
        Share of drawings that the judge reads as what was asked for; None without a request.
    frechet, frechet_floor, frechet_ratio : float
        Fréchet distance from test images, that of n training images in the drawings' place, and
        the first over the second.
    kernel, kernel_floor : float
        The same two of the kernel distance (KID).
    precision, recall, density, coverage : float
        See ``semigen_lib.measures``; the test images are the real ones.
    nearest_ratio : float
        Median distance in pixels from a drawing to the nearest of all training images, over that
        of a test image: about 1 as if never seen, 0 for copies.
    copied_share : float
        Share of drawings that are less than half as far from one training image as from every
        other, in pixels or in features: almost no test image is.
    memorised : bool
        Whether at least a tenth of the drawings are such copies.
    counts : tuple of int or None
        How many drawings the judge reads as each class.
    spread : tuple of float
        For each class asked for (one entry if none was), the median distance from a drawing to the
        next of its class over that of real images: 1 as varied, 0 for one drawing repeated.
    collapsed : bool
        Whether a class is missing or its drawings are much alike.
    reason : str
        Why; empty if it has not collapsed.

    Shown in: book/06_measuring_samples.ipynb
    """

    n: int
    k: int
    conditional_accuracy: float | None
    frechet: float
    frechet_floor: float
    frechet_ratio: float
    kernel: float
    kernel_floor: float
    precision: float
    recall: float
    density: float
    coverage: float
    nearest_ratio: float
    copied_share: float
    memorised: bool
    counts: tuple[int, ...] | None
    spread: tuple[float, ...]
    collapsed: bool
    reason: str

    def to_dict(self) -> dict[str, object]:
        """Return the figures by name, ready for JSON."""
        return dataclasses.asdict(self)


@torch.no_grad()
def read_images_with(judge: nn.Module, images: ImageSet, batch_size: int = 500) -> Reading:
    """Let a judge read images, and return what it says on the CPU.

    Parameters
    ----------
    judge
        Any network from ``(B, C, H, W)`` in [0, 1] to features ``(B, D)`` and class_logits
        ``(B, K)`` or None. It is used in evaluation mode and left in the mode it was in.
    images
        With or without labels.
    batch_size
        Images at a time; it changes memory and speed only.

    Raises
    ------
    ValueError
        If the judge returns something else.

    Shown in: book/06_measuring_samples.ipynb
    """
    weight = next(judge.parameters(), torch.zeros(0))
    was_training = judge.training
    judge.eval()
    parts, pixels = [], []
    try:
        for index in torch.arange(len(images)).split(batch_size):
            part = to_float(read_at(images.images, index).to(weight.device))
            parts.append(judge(part))
            pixels.append(F.avg_pool2d(part, 2).flatten(1).cpu())
    finally:
        judge.train(was_training)
    first = parts[0] if isinstance(parts[0], tuple) else (parts[0],)
    if len(first) != 2 or getattr(first[0], "ndim", 0) != 2:
        got = ", ".join(str(tuple(getattr(part, "shape", ()))) for part in first)
        raise ValueError(f"judge: expected (features (B, D), class_logits or None), got ({got})")
    features, logits = ([part[i] for part in parts] for i in (0, 1))
    return Reading(
        torch.cat(features).float().cpu(),
        None if logits[0] is None else torch.cat(logits).float().cpu(),
        torch.cat(pixels),
        images.labels,
    )


def measure_samples(
    samples: Tensor,
    requests: Tensor,
    real_train: ImageSet | Reading,
    real_test: ImageSet | Reading,
    *,
    judge: nn.Module | None = None,
    k: int = 5,
) -> SampleReport:
    """Compare drawings with as many real images of the same classes.

    Test images are the real ones, and training images in the place of the drawings give the floor.
    Of both sets as many images of each class are taken as were asked for, evenly spread over the
    set: the two halves of MNIST's test set are by other writers. Memory is looked for in all
    training images.

    Parameters
    ----------
    samples
        uint8 ``(N, C, H, W)``, as ``evaluation.draw`` returns.
    requests
        ``(N,)`` int64, the class that each shall show, or UNLABELED for all of them.
    real_train, real_test
        Real images with labels, or what ``read_images_with`` made of them.
    judge
        See ``read_images_with``; None for the one of MNIST that comes with the package.
    k
        The neighbour that decides the size of a ball, for precision to coverage.

    Raises
    ------
    ValueError
        If there are fewer real images of a class than were asked for, or shapes disagree.

    Shown in: book/06_measuring_samples.ipynb
    """
    if requests.shape != samples.shape[:1] or requests.dtype != torch.int64:
        raise ValueError(
            f"requests: expected int64 ({len(samples)},), one for each sample, "
            f"got {requests.dtype} {tuple(requests.shape)}"
        )
    chosen = _take_as_many(requests, real_test.labels, "real_test")
    stand_in = _take_as_many(requests, real_train.labels, "real_train")
    judge = load_judge() if judge is None else judge
    drawn = read_images_with(judge, ImageSet(samples, requests))
    memory, unseen = (
        real if isinstance(real, Reading) else read_images_with(judge, real)
        for real in (real_train, real_test)
    )
    real, shown = unseen.features[chosen], unseen.labels[chosen]
    stand_in = memory.features[stand_in]
    frechet, floor = frechet_distance(drawn.features, real), frechet_distance(stand_in, real)
    precision, recall = precision_recall(real, drawn.features, k)
    density, coverage = density_coverage(real, drawn.features, k)
    ratio, copied = _memory(drawn, unseen.pixels[chosen], memory)
    names = requests.unique().tolist()
    spread = tuple(
        _spread(drawn.features[requests == name], real[(shown == name) | (name == UNLABELED)])
        for name in names
    )
    counts, accuracy = None, None
    if drawn.class_logits is not None:
        read, n_classes = drawn.class_logits.argmax(1), drawn.class_logits.shape[1]
        counts = tuple(torch.bincount(read, minlength=n_classes).tolist())
        if UNLABELED not in names:
            accuracy = (read == requests).double().mean().item()
    reason = _why_collapsed(dict(zip(names, spread, strict=True)), counts, shown)
    return SampleReport(
        n=len(samples),
        k=k,
        conditional_accuracy=accuracy,
        frechet=frechet,
        frechet_floor=floor,
        frechet_ratio=frechet / max(floor, _TINY),
        kernel=kernel_distance(drawn.features, real),
        kernel_floor=kernel_distance(stand_in, real),
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
        nearest_ratio=ratio,
        copied_share=copied,
        memorised=copied >= MOST_COPIES,
        counts=counts,
        spread=spread,
        collapsed=bool(reason),
        reason=reason,
    )


def classification_accuracy_score(
    samples: Tensor,
    requests: Tensor,
    test: ImageSet,
    *,
    steps: int = 4000,
    seed: int = 0,
    progress: bool = False,
) -> float:
    """Return the accuracy on real images, from 0 to 1, of a classifier that saw drawings only.

    The classifier is the method ``supervised`` on mild views, and every drawing counts as what was
    asked for. It misses what is not drawn and believes what is drawn wrongly, so one figure holds
    both. Its ceiling is the score of as many real training images, which is below 1.

    Parameters
    ----------
    samples
        uint8 ``(N, C, H, W)``; with fewer than there are training images the score is lower.
    requests
        ``(N,)`` int64, a class for each.
    test
        Labelled real images.
    steps
        Of training, 64 drawings each.
    seed
        Of weights, batches and noise.
    progress
        Whether to show a progress bar of the training.

    Raises
    ------
    ValueError
        If a drawing was not asked for, or a test image has no label.

    Source: Ravuri & Vinyals 2019, "Classification Accuracy Score for Conditional Generative
    Models", section 3.
    Shown in: book/06_measuring_samples.ipynb
    """
    ImageSet(samples, requests)  # it refuses other shapes and types
    if n_unlabeled := int((requests == UNLABELED).sum()):
        raise ValueError(f"requests: expected a class for each, got {n_unlabeled} without one")
    n_classes = int(torch.cat([requests, test.labels]).max()) + 1
    names = tuple(str(label) for label in range(n_classes))
    everything = torch.arange(len(samples))
    split = LabelSplit("drawings", names, samples, requests, everything, None, seed)
    before = rng_state()
    try:
        torch.manual_seed(seed)
        settings = {"batch_size": 1, "labeled_batch_size": 64, "augment": 1}
        reader = build_method("supervised", split.image_shape, n_classes, settings)
        train(reader, split, steps=steps, seed=seed, progress=progress)
    finally:
        set_rng_state(before)
    return 1 - test_error(reader, test)


def _take_as_many(requests: Tensor, labels: Tensor, name: str) -> Tensor:
    """Return positions in ``labels``, as many of each class as in ``requests``, evenly spread."""
    chosen = []
    for label, count in zip(
        *(part.tolist() for part in requests.unique(return_counts=True)), strict=True
    ):
        members = torch.arange(len(labels))
        if label != UNLABELED:
            members = members[labels == label]
        elif count < len(requests):
            raise ValueError("requests: expected UNLABELED for all or for none, got both")
        what = "images" if label == UNLABELED else f"images of class {label}"
        if count < 2:
            raise ValueError(f"requests: expected at least 2 {what}, got {count}")
        if len(members) < count:
            raise ValueError(f"{name}: expected at least {count} {what}, got {len(members)}")
        places = torch.linspace(0, len(members) - 1, count, dtype=torch.float64).round().long()
        chosen.append(members[places])
    return torch.cat(chosen)


def _memory(drawn: Reading, unseen_pixels: Tensor, memory: Reading) -> tuple[float, float]:
    """Return how near drawings are to training images, and which share of them are copies.

    Smooth drawings are near to much, so nearness alone proves nothing. A copy is near to one image
    and as far from the next as that one is. Noise hides it from the judge, which a shift by a
    pixel does not, and pixels are the other way round: both are asked.
    """
    by_pixels = nearest_distances(drawn.pixels, memory.pixels, 2)
    by_features = nearest_distances(drawn.features, memory.features, 2)
    copied = by_pixels[:, 0] == 0  # whatever is next: training images may have twins
    for near, next_ in (by_pixels.T, by_features.T):
        copied |= near < COPY * next_
    usual = nearest_distances(unseen_pixels, memory.pixels)
    ratio = by_pixels[:, 0].median() / usual.median().clamp(min=_TINY)
    return ratio.item(), copied.double().mean().item()


def _spread(drawn: Tensor, real: Tensor) -> float:
    """Return how far the next drawing is, over how far the next real image is, at the median."""
    drawn, real = (nearest_distances(points, points, 2)[:, 1].median() for points in (drawn, real))
    return (drawn / real.clamp(min=_TINY)).item()


def _why_collapsed(spread: dict[int, float], counts: tuple[int, ...] | None, shown: Tensor) -> str:
    """Return what is missing among drawings, for each class; empty if nothing is."""
    reasons = []
    if counts is not None:
        expected = torch.bincount(shown[shown != UNLABELED], minlength=len(counts)).tolist()
        for label, (count, usual) in enumerate(zip(counts, expected, strict=False)):
            if count < LEAST_SHARE * usual:
                reasons.append(f"class {label}: expected about {usual} drawings, got {count}")
    for label, value in spread.items():
        if value < LEAST_SPREAD:
            what = "drawings" if label == UNLABELED else f"class {label}: drawings"
            reasons.append(f"{what} are {value:.2f} times as far apart as real images")
    return "; ".join(reasons)
