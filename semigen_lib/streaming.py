"""Images of the next steps, read ahead by other processes while a step is made.

What is read follows from the step alone, so it does not matter who reads it, or when.

Shown in: book/running.md
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semigen_lib.sources import DataError, ImageFiles, read_at

__all__ = [
    "StepLoader",
    "default_workers",
]


def default_workers() -> int:
    """Return how many processes read images if nobody says: as many as there are CPUs, up to 4.

    ``book/speed.md`` compares numbers of them. There are none in a process that may not start any,
    such as a worker of a Dask cluster.
    """
    if multiprocessing.current_process().daemon:
        return 0
    # Not every system can say how many of its CPUs are for this process.
    can_say = hasattr(os, "sched_getaffinity")
    return min(4, len(os.sched_getaffinity(0)) if can_say else os.cpu_count() or 1)


class StepLoader:
    """The images of a step; those of the steps after it are read meanwhile.

    Parameters
    ----------
    images : Tensor or ImageFiles
        uint8, shape (N, C, H, W), in main memory or in files.
    positions : callable
        Maps a step to int64 tensors, the positions of its images: those of its two streams.
    workers : int
        How many processes read; 0 reads nothing ahead.
    pinned : bool
        Whether images come in page-locked memory, from where a CUDA device takes them by itself.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
        positions: Callable[[int], tuple[Tensor, ...]],
        workers: int,
        pinned: bool,
    ) -> None:
        self._images, self._positions = _Images(images), positions
        self._workers, self._pinned = workers, pinned
        self._batches: Iterator | None = None
        self._next = -1

    def at(self, step: int) -> tuple[Tensor, ...]:
        """Return the images of a step, uint8; a step out of sequence begins a new sequence.

        Raises
        ------
        DataError
            If a file cannot be read as an image.
        RuntimeError
            If a process that reads was ended from outside.
        """
        if step != self._next:
            self.close()
            self._batches = self._from(step)
        self._next = -1  # until the step is there
        try:
            images = next(self._batches)
        except (OSError, EOFError) as error:
            if not self._workers:
                raise
            # Of a killed process we may see the broken connection before torch sees its death.
            self.close()
            raise RuntimeError("DataLoader worker ended before its images came") from error
        if isinstance(images, DataError):
            self.close()
            raise images
        self._next = step + 1
        return images

    def close(self) -> None:
        """End the processes; the next step begins anew."""
        # They end when nobody refers to the iterator any more. An exception that is kept may do so
        # for long, and torch has no public name for ending them at once.
        # Torch says that one was killed whenever it hears of it: here that is no news.
        with suppress(RuntimeError):
            getattr(self._batches, "_shutdown_workers", lambda: None)()
        self._batches = None
        self._next = -1

    def _from(self, step: int) -> Iterator:
        positions = self._positions  # the iterator must not refer to us: it ends with the last one
        loader = DataLoader(
            self._images,
            batch_size=None,
            # As arrays: tensors would travel as files that are open on both sides.
            sampler=(
                tuple(index.numpy() for index in positions(number))
                for number in itertools.count(step)
            ),
            num_workers=self._workers,
            pin_memory=self._pinned,
            worker_init_fn=_leave_group,
            generator=torch.Generator(),  # else it draws from the one that training draws from
        )
        return iter(loader)


class _Images(Dataset):
    """Several batches at once. What is wrong is returned, since torch would add a traceback."""

    def __init__(self, images: Tensor | ImageFiles) -> None:
        self.images = images

    def __getitem__(self, indices: tuple) -> tuple[Tensor, ...] | DataError:
        try:
            return tuple(read_at(self.images, torch.from_numpy(index)) for index in indices)
        except DataError as error:
            return error


def _leave_group(_: int) -> None:
    """Hear no signal that is meant for all: the parent finishes a row and still needs images."""
    os.setpgrp()
