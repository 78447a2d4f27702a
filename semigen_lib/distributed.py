"""Many processes, one run: each takes its rows of every batch, and all of them make the same step.

``torchrun --nproc-per-node K -m semigen_lib train ...`` starts K processes with the same seed. The
batch is that of a single process; process r takes its rows r, r + K, r + 2K, ..., and of the noise
the same rows. Gradients are averaged before a player steps, so all processes keep the same weights
and draw the same noise, and only the first one writes. Up to rounding it is the run of one process,
as long as the labelled batch can be shared out too: if K does not divide it, all have all of it,
each with noise of its own. Nor do all methods keep to it: ``cgan`` and ``dpt`` work with halves and
quarters of a batch, and ``m2`` with ``summed=0`` draws classes and compares images of a part.

Why not DistributedDataParallel: it wraps one network whose every backward pass ends in a step of
all its weights. Here players share graphs and take turns, and each asks for gradients of its own
weights only; averaging those is a few lines, and knows nothing of networks.

Shown in: book/running.md
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = [
    "average",
    "average_gradients",
    "is_first",
    "joined_processes",
    "largest",
    "part_of_processes",
    "whole_batch",
]


@contextmanager
def joined_processes(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, each on a CUDA device of its own if there is.

    Without ``torchrun``, or with one process, nothing is joined, and every function here does
    nothing.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if device.type == "cuda":
        rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if rank >= count:
            raise ValueError(f"processes: expected at most one a CUDA device, {count}, got more")
        torch.cuda.set_device(rank)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def part_of_processes() -> tuple[int, int]:
    """Return (r, K): which of how many processes this is."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_first() -> bool:
    """Say whether this is the process that writes."""
    return part_of_processes()[0] == 0


def average(values: Tensor) -> Tensor:
    """Return the mean over the processes of a tensor of one shape; without graph."""
    _, count = part_of_processes()
    if count == 1:
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total / count


def largest(number: float, device: torch.device) -> float:
    """Return the largest of the processes' numbers, so that all of them decide alike."""
    if part_of_processes()[1] == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return shared.item()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if part_of_processes()[1] == 1 or not gradients:
        return
    mean = average(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = mean.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def whole_batch() -> AbstractContextManager:
    """Return the context in which a method is asked for its terms.

    In it, what is drawn for each image and what is averaged over images are those of the whole
    batch: the noise of ``randn``, ``rand``, ``randint`` and of dropout, means over the first
    dimension, and batch norm. Terms that divide by a sum of weights stay those of a part.
    """
    return nullcontext() if part_of_processes()[1] == 1 else _WholeBatch()


class _WholeBatch(TorchFunctionMode):
    """Draws for the whole batch in every process, and keeps its own rows.

    Rows r, r + K, ... of tensors that are joined one after the other are the rows of the joined
    tensor, so it does not matter which part of a batch a draw is for.
    """

    def __torch_function__(
        self, function: object, types: Sequence, arguments: tuple = (), options: dict | None = None
    ) -> object:
        options = options or {}
        if function in (torch.randn, torch.rand):
            size = arguments if isinstance(arguments[0], int) else arguments[0]
            return _own_rows(function(_whole(size), **options))
        if function is torch.randint:
            *bounds, size = arguments
            return _own_rows(function(*bounds, _whole(size), **options))
        if function in (torch.randn_like, torch.rand_like):
            (like,) = arguments
            return _own_rows(function(like.new_empty(_whole(like.shape)), **options))
        if function in (functional.dropout, functional.dropout2d):
            inputs, *arguments = arguments
            ones = inputs.new_ones(_whole(inputs.shape))
            return inputs * _own_rows(function(ones, *arguments, **options))
        if function is functional.batch_norm:
            return _batch_norm(*arguments, **options)
        result = function(*arguments, **options)
        dims = arguments[1:] or (options.get("dim"),)
        over_rows = function in (torch.mean, torch.Tensor.mean) and dims == (0,)
        return _Average.apply(result) if over_rows else result


def _whole(size: Sequence[int]) -> tuple[int, ...]:
    return size[0] * part_of_processes()[1], *size[1:]


def _own_rows(values: Tensor) -> Tensor:
    index, count = part_of_processes()
    return values[index::count]


class _Average(torch.autograd.Function):
    """The mean over processes. What depends on it is in the objective of each of them."""

    @staticmethod
    def forward(context: object, values: Tensor) -> Tensor:
        return average(values)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return average(gradient)


def _batch_norm(
    inputs: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what ``functional.batch_norm`` does, with mean and variance over all processes."""
    if not training:
        return functional.batch_norm(inputs, running_mean, running_var, weight, bias, eps=eps)
    others = [dim for dim in range(inputs.dim()) if dim != 1]
    values = inputs.float()
    mean = _Average.apply(values.mean(others, keepdim=True))
    variance = _Average.apply((values - mean).square().mean(others, keepdim=True))
    count = part_of_processes()[1] * values.numel() / values.shape[1]
    with torch.no_grad():
        running_mean.lerp_(mean.flatten(), momentum)
        running_var.lerp_(variance.flatten() * (count / (count - 1)), momentum)
    normal = (values - mean) * (variance + eps).rsqrt()
    if weight is not None:
        normal = normal * weight.view_as(mean) + bias.view_as(mean)
    return normal.to(inputs.dtype)
