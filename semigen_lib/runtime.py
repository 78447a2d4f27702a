"""Where and how precisely to compute: device, seeds, number format.

Shown in: book/05_training_loop.ipynb, book/running.md
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager

import numpy as np
import torch

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "autocast",
    "fast_bf16",
    "pick_device",
    "rng_state",
    "seed_everything",
    "set_rng_state",
]


DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on.

    Parameters
    ----------
    name
        ``"auto"`` takes a CUDA device when there is one and the CPU otherwise;
        ``"cpu"`` and ``"cuda"`` insist.

    Raises
    ------
    ValueError
        If the name is unknown, or ``"cuda"`` is asked for where there is none.

    Shown in: book/05_training_loop.ipynb
    """
    if name not in DEVICES:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected a CUDA device for 'cuda', got a machine without one")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (all devices).

    The same seed gives the same run on the same machine with the same number of threads.
    Between machines, sums are taken in another order, and runs drift apart slowly.

    Raises
    ------
    ValueError
        If ``seed`` is not an integer from 0 to 2**32 - 1 (the range NumPy accepts).

    Shown in: book/05_training_loop.ipynb
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected an integer from 0 to 2**32 - 1, got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, torch.Tensor]:
    """Return the state of torch's generators, as named uint8 tensors.

    Training draws its noise from these and from no others (batches are a function of the step).
    """
    state = {"rng.cpu": torch.get_rng_state()}
    for index in range(torch.cuda.device_count()):
        state[f"rng.cuda.{index}"] = torch.cuda.get_rng_state(index)
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`rng_state` returned; states of absent devices are ignored."""
    torch.set_rng_state(state["rng.cpu"])
    for index in range(torch.cuda.device_count()):
        if f"rng.cuda.{index}" in state:
            torch.cuda.set_rng_state(state[f"rng.cuda.{index}"], index)


def fast_bf16() -> bool:
    """Say whether the processor has instructions for bfloat16 (AVX512-BF16).

    Without them bfloat16 is slower than float32.
    """
    # A private name of torch's; where it is missing, as in older versions, the answer is no.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """Return the context in which networks run.

    Parameters
    ----------
    device
        The device the networks are on.
    precision
        ``"fp32"``; ``"bf16"`` (matrix products and convolutions in bfloat16, sums and losses in
        float32); ``"auto"`` is bf16 on CUDA and fp32 on the CPU.

    Raises
    ------
    ValueError
        If the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
