"""Where and how precisely to compute: device, seeds, number format.

Shown in: book/05_training_loop.ipynb, book/running.md
"""

from __future__ import annotations

import ctypes
import json
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "autocast",
    "fast_bf16",
    "is_out_of_memory",
    "keep_memory",
    "pick_device",
    "rng_state",
    "seed_everything",
    "set_rng_state",
    "signals_noted",
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
    """Return the state of every generator that a training could draw from, as uint8 tensors.

    Those of torch, on the CPU and on the current CUDA device, of NumPy and of Python.
    """
    kind, words, *rest = np.random.get_state()
    texts = {
        "rng.python": json.dumps(random.getstate()),
        "rng.numpy": json.dumps([kind, words.tolist(), *rest]),
    }
    state = {"rng.cpu": torch.get_rng_state()}
    state |= {
        name: torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8)
        for name, text in texts.items()
    }
    if torch.cuda.is_available():
        state["rng.cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`rng_state` returned; that of an absent CUDA device is ignored."""
    python, numpy = (
        json.loads(state[name].numpy().tobytes()) for name in ("rng.python", "rng.numpy")
    )
    version, words, spare = python
    random.setstate((version, tuple(words), spare))
    np.random.set_state(tuple(numpy))
    torch.set_rng_state(state["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in state:
        torch.cuda.set_rng_state(state["rng.cuda"])


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note the first SIGINT or SIGTERM in the list that is given, and obey it afterwards.

    So whoever is interrupted can bring what is at work to an end and save it. The next signal is
    obeyed at once. Outside the main thread, where Python hears of no signals, nothing is noted.

    Shown in: book/running.md
    """
    noted: list[int] = []
    handlers: dict[int, object] = {}

    def put_back() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        put_back()
        noted.append(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.SIG_IGN:  # as in a job of a script, with "&"
                continue
            handlers[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        put_back()
    for number in noted:
        signal.raise_signal(number)


def keep_memory() -> bool:
    """Keep large blocks of memory for the next step instead of giving them back; say if it is done.

    The C library of Linux (glibc) returns each block above a threshold to the system and asks for
    it anew, and the system fills it with zeros: for maps of a megabyte and more that costs as much
    as a convolution (``book/speed.md``). The most that was ever in use stays with the process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    large = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # most of old ones
    return bool(large and mallopt(trim_threshold, 2**31 - 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that there is no room for the tensors of a step."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # on the CPU


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
        ``"fp32"``; ``"bf16"`` (matrix products and convolutions in bfloat16, weights in
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
