"""What training is allowed to see: splits without hidden labels, and batches that need no state.

``load_images`` (from ``sources``) gives a data set with every label. ``split_labels`` keeps a few
labels of it and forgets the others, and ``BatchStream`` turns the split into batches.

Shown in: book/01_semi_supervised_learning.ipynb
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from semigen_lib.sources import (
    ASSETS,
    UNLABELED,
    DataError,
    ImageData,
    ImageFiles,
    ImageSet,
    list_folder,
    load_images,
    read_at,
    read_images,
    source_names,
    whole_number,
)
from semigen_lib.streaming import StepLoader, default_workers

__all__ = [
    "UNLABELED",
    "Batch",
    "BatchStream",
    "DataError",
    "ImageData",
    "ImageFiles",
    "ImageSet",
    "LabelSplit",
    "list_folder",
    "load_images",
    "rank_images",
    "read_images",
    "source_names",
    "split_labels",
    "to_float",
]

COMMITTED_SIZES = (10, 20, 50, 100, 200, 600, 1000, 3000)
COMMITTED_SEEDS = range(10)
SPLITS = ASSETS / "splits"
DEVICE_SHARE = 0.5  # of a CUDA device's free memory; the rest is for weights and for a step


@dataclass(frozen=True, eq=False)
class LabelSplit:
    """The training pool with few labels; the hidden ones do not exist in this object.

    Attributes
    ----------
    name, class_names : str, tuple of str
        As in ``ImageData``.
    images : Tensor or ImageFiles
        uint8, shape (N, C, H, W): every training image except those of the validation set.
    labels : Tensor
        int64, shape (N,); the class at ``labeled_index`` and ``UNLABELED`` everywhere else.
    labeled_index : Tensor
        int64, shape (n_labeled,), increasing positions in ``images``.
    validation : ImageSet or None
        Labelled images that are not in the pool, for choosing settings.
    seed : int
        The seed the labels were drawn with.

    Shown in: book/01_semi_supervised_learning.ipynb
    """

    name: str
    class_names: tuple[str, ...]
    images: Tensor | ImageFiles
    labels: Tensor
    labeled_index: Tensor
    validation: ImageSet | None
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return tuple(self.images.shape[1:])

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def n_labeled(self) -> int:
        """Number of images whose label is known."""
        return len(self.labeled_index)


def split_labels(
    data: ImageData, n_labeled: int | None, seed: int, *, n_validation: int = 0
) -> LabelSplit:
    """Keep ``n_labeled`` labels, the same number of each class, and forget the others.

    The images of each class are ranked by ``rank_images``; the first ``n_labeled / K`` keep their
    labels and the last ``n_validation / K`` are the validation set. So the labelled images of a
    small budget are among those of every larger one with the same seed. For MNIST the ranking was
    done once: the index files in ``assets/splits`` are used, after their sha256 was checked.

    Parameters
    ----------
    data : ImageData
        Images without a label of their own stay unlabelled whatever the budget.
    n_labeled : int or None
        Number of labels to keep, divisible by the number of classes; None keeps every label.
    seed : int
        Which draw, from 0.
    n_validation : int
        Number of labelled images to take out of the pool, divisible by the number of classes.

    Returns
    -------
    LabelSplit
        It shares the images of ``data`` if nothing is taken out, and none of its labels. Where
        images stay in their files, those of the validation set are read and no others.

    Raises
    ------
    DataError
        If a number is negative, not divisible, or more than some class has.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    seed = whole_number(seed, "seed", 0)
    per_class = None if n_labeled is None else _per_class("n_labeled", n_labeled, data.n_classes, 1)
    held = _per_class("n_validation", n_validation, data.n_classes, 0)
    true_labels = data.train.labels
    counts = torch.bincount(true_labels[true_labels != UNLABELED], minlength=data.n_classes)
    needed = (1 if per_class is None else per_class) + held
    if counts.min() < needed:
        most, scarce = int(counts.min()), data.class_names[int(counts.argmin())]
        raise DataError(
            f"expected n_labeled + n_validation <= {most * data.n_classes}, as class {scarce!r} "
            f"has {most} labels, got {needed * data.n_classes}"
        )
    chosen = _committed_index(data, n_labeled, seed)
    if chosen is None or held:
        ranks = rank_images(data.name, true_labels, data.n_classes, seed)
        if chosen is None:
            chosen = torch.cat([rank[: len(rank) - held][:per_class] for rank in ranks])
            chosen = chosen.sort().values
        taken = torch.cat([rank[len(rank) - held :] for rank in ranks]).sort().values
    images, position, validation = data.train.images, chosen, None
    if held:
        in_pool = torch.ones(len(images), dtype=torch.bool)
        in_pool[taken] = False
        validation = ImageSet(read_at(images, taken), true_labels[taken])
        images = images[in_pool]
        position = (in_pool.cumsum(0) - 1)[chosen]  # the pool is numbered anew
    labels = torch.full((len(images),), UNLABELED)
    labels[position] = true_labels[chosen]
    return LabelSplit(data.name, data.class_names, images, labels, position, validation, seed)


def rank_images(name: str, labels: Tensor, n_classes: int, seed: int) -> list[Tensor]:
    """Rank the labelled images of each class by the sha256 of the text ``name/seed/index``.

    No random generator takes part, so the order is the same with every version of every library.

    Parameters
    ----------
    name : str
        Name of the data set.
    labels : Tensor
        int64, shape (N,), ``UNLABELED`` where unknown.
    n_classes, seed : int
        Number of classes, and which draw.

    Returns
    -------
    list of Tensor
        For each class the int64 indices of its images, first rank first.
    """
    prefix = f"{name}/{seed}/"

    def digest(index: int) -> bytes:
        return hashlib.sha256(f"{prefix}{index}".encode()).digest()

    members = [(labels == k).nonzero().flatten().tolist() for k in range(n_classes)]
    return [torch.tensor(sorted(m, key=digest), dtype=torch.int64) for m in members]


def _per_class(name: str, total: int, n_classes: int, minimum: int) -> int:
    total = whole_number(total, name, minimum)
    if total % n_classes:
        raise DataError(f"expected {name} to be divisible by {n_classes} classes, got {total}")
    return total // n_classes


def _committed_index(data: ImageData, n_labeled: int | None, seed: int) -> Tensor | None:
    """Return the committed labelled indices, None if there is no file for this request."""
    is_mnist = data.name == "mnist" and len(data.train) == 60000
    if not is_mnist or n_labeled not in COMMITTED_SIZES or seed not in COMMITTED_SEEDS:
        return None
    path = SPLITS / f"mnist_{n_labeled}.txt"
    content = path.read_bytes() if path.exists() else b""
    sums = dict(line.split()[::-1] for line in (SPLITS / "SHA256SUMS").read_text().splitlines())
    digest = hashlib.sha256(content).hexdigest()
    if digest != sums.get(path.name):
        raise DataError(f"{path}: expected sha256 {sums.get(path.name)}, got {digest}")
    line = content.decode().splitlines()[seed].removeprefix(f"{seed}: ")
    chosen = torch.tensor([int(word) for word in line.split()])
    counts = torch.bincount(data.train.labels[chosen].clamp(min=0), minlength=data.n_classes)
    if len(set(counts.tolist())) != 1:
        raise DataError(f"{path}: expected {n_labeled} labels in balance, got {counts.tolist()}")
    return chosen


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images to float32.

    Parameters
    ----------
    images : Tensor
        uint8, any shape, values 0 to 255.

    Returns
    -------
    Tensor
        float32, the same shape, values in [0, 1].

    Raises
    ------
    DataError
        If the images are not uint8.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    if images.dtype != torch.uint8:
        raise DataError(f"expected uint8 images, got {images.dtype}")
    return images.float().div_(255)


class Batch(NamedTuple):
    """What one training step sees.

    Attributes
    ----------
    images : Tensor
        float32 in [0, 1], shape (B, C, H, W), drawn from the whole pool, without labels.
    labeled_images : Tensor
        float32 in [0, 1], shape (L, C, H, W).
    labels : Tensor
        int64, shape (L,), classes of ``labeled_images``.
    index : Tensor or None
        int64, shape (B,), positions of ``images`` in the pool: a method that has worked something
        out for every image of the pool finds it again by them.

    Shown in: book/01_semi_supervised_learning.ipynb
    """

    images: Tensor
    labeled_images: Tensor
    labels: Tensor
    index: Tensor | None = None


class BatchStream:
    """Batches as a pure function of the step, so that a run resumes at any step without state.

    The unlabelled stream goes through the whole pool, labelled images included (their labels are
    not used there), in a new order each epoch; a batch may end one epoch and begin the next. The
    labelled stream goes through the labelled images in the same way, and repeats them as often as
    its batch size asks for. As in Salimans et al. (2016), "Improved Techniques for Training GANs".

    Parameters
    ----------
    split : LabelSplit
        From ``split_labels``.
    batch_size : int
        B, images in an unlabelled batch.
    labeled_batch_size : int
        L, images in a labelled batch; 0 for none.
    seed : int
        Seed of the orders.
    device : str or torch.device
        Where batches are made, and where images are kept as uint8 if they fit: in main memory if
        they would take more than half of what is free on a CUDA device, in their files if the
        split has them there. Batches are the same, bit for bit.
    part : (int, int)
        Which of how many processes this is: number r of K gets rows r, r + K, r + 2K, ... of every
        batch, and a labelled batch that K does not divide whole.
    workers : int, optional
        How many processes read files ahead of the steps; None is as many as there are CPUs, up to
        4. With 0 each batch is read when it is asked for.

    Attributes
    ----------
    pool : Tensor or ImageFiles
        The whole pool, uint8 (N, C, H, W), where it is kept.
    pool_labels : Tensor
        int64 (N,) on the device, with ``UNLABELED`` but for the labelled images.

    Raises
    ------
    DataError
        If a number is not whole or too small, or the processes cannot share a batch evenly.

    Shown in: book/05_training_loop.ipynb
    """

    def __init__(
        self,
        split: LabelSplit,
        *,
        batch_size: int = 64,
        labeled_batch_size: int = 32,
        seed: int = 0,
        device: str | torch.device = "cpu",
        part: tuple[int, int] = (0, 1),
        workers: int | None = None,
    ) -> None:
        batch_size = whole_number(batch_size, "batch_size", 1)
        labeled_batch_size = whole_number(labeled_batch_size, "labeled_batch_size", 0)
        seed = whole_number(seed, "seed", 0)
        workers = default_workers() if workers is None else whole_number(workers, "workers", 0)
        index, n_parts = part
        if batch_size % n_parts:
            raise DataError(
                f"expected batch_size to be divisible by {n_parts} processes, got {batch_size}"
            )
        self._device, images = torch.device(device), split.images
        in_files = isinstance(images, ImageFiles)
        streams = in_files or not _fits(images, self._device)
        self.pool = images if streams else images.to(device)
        self.pool_labels = split.labels.to(device)
        where = "cpu" if streams else self._device  # positions are drawn where images are
        rows = slice(index, None, n_parts)
        self._positions = _Positions(
            _Cycle(len(images), batch_size, f"{seed}/pool", where),
            rows,
            _Cycle(split.n_labeled, labeled_batch_size, f"{seed}/labeled", where),
            slice(None) if labeled_batch_size % n_parts else rows,
            split.labeled_index.to(where),
        )
        self._loader = None
        if streams:
            self._loader = StepLoader(
                images,
                self._positions.at,
                workers=workers if in_files else 0,
                pinned=self._device.type == "cuda",
            )

    def at(self, step: int) -> Batch:
        """Return the batch of a step.

        Parameters
        ----------
        step : int
            Counted from 0.

        Returns
        -------
        Batch
            A copy: changing it changes no other batch.

        Raises
        ------
        DataError
            If the step is negative or not whole, or a file cannot be read as an image.
        """
        step = whole_number(step, "step", 0)
        pool, labeled = self._positions.at(step)
        if self._loader is None:
            images, labeled_images = self.pool[pool], self.pool[labeled]
        else:
            images, labeled_images = (
                part.to(self._device, non_blocking=True) for part in self._loader.at(step)
            )
        return Batch(
            to_float(images),
            to_float(labeled_images),
            self.pool_labels[labeled.to(self._device)],
            pool.to(self._device, copy=True),
        )

    def some_images(self, n: int) -> Tensor:
        """Return ``n`` images, evenly spread over the pool, uint8, on the device; or all, if fewer.

        Raises
        ------
        DataError
            If a file cannot be read as an image.
        """
        n = min(n, len(self.pool))
        return read_at(self.pool, torch.arange(n) * len(self.pool) // n).to(self._device)

    def close(self) -> None:
        """End the processes that read files; a step that is asked for later starts new ones."""
        if self._loader is not None:
            self._loader.close()


def _fits(images: Tensor, device: torch.device) -> bool:
    """Say whether a device has room for images; where they are already, it has."""
    return images.device.type == device.type or images.numel() <= DEVICE_SHARE * _free(device)


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


class _Cycle:
    """Positions 0 to count - 1, in another order each epoch, in batches of a fixed size."""

    def __init__(self, count: int, size: int, name: str, device: str | torch.device) -> None:
        self.count, self.size, self.name, self.device = count, size, name, device
        self._orders: dict[int, Tensor] = {}  # only to save time: they can be drawn again

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            digest = hashlib.sha256(f"{self.name}/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
            order = torch.randperm(self.count, generator=generator)
            order = order.to(self.device, non_blocking=True)
            # Two are kept: a batch may straddle the end of an epoch.
            previous = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders = {**previous, epoch: order}
        return self._orders[epoch]

    def at(self, step: int) -> Tensor:
        """Return the positions of one batch, int64 (size,)."""
        epoch, offset = divmod(step * self.size, self.count)
        parts = [self._order(epoch)[offset : offset + self.size]]
        missing = self.size - len(parts[0])
        while missing > 0:
            epoch += 1
            parts.append(self._order(epoch)[:missing])
            missing -= len(parts[-1])
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Positions(NamedTuple):
    """Which images a step shows: rows of a batch of the pool, and of a labelled one."""

    pool: _Cycle
    rows: slice
    labeled: _Cycle
    labeled_rows: slice
    labeled_index: Tensor

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return their positions in the pool, int64 (B,) and (L,)."""
        labeled = self.labeled.at(step)[self.labeled_rows]
        return self.pool.at(step)[self.rows], self.labeled_index[labeled]
