"""What the commands of ``semigen`` share: how they are asked, how they answer, how they complain.

Results go to stdout, sentences to stderr, and a bad input is one line there.

Shown in: book/running.md
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from semigen_lib.distributed import is_first
from semigen_lib.grading.sandbox import SandboxError
from semigen_lib.jobs import JobsError
from semigen_lib.runtime import DEVICES, is_out_of_memory
from semigen_lib.training import TrainingError

__all__ = [
    "DEFAULT_STEPS",
    "Parser",
    "add_device",
    "explain",
    "parse_settings",
    "remark",
    "say",
    "terminated_like_interrupted",
]


DEFAULT_STEPS = 1500  # of a run, if neither steps nor minutes are asked for


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2 and say what was wrong."""
        message = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: expected what {self.prog} -h says, got: {message}\n")


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < 20 else float(digits)  # no whole number, or out of range


def add_device(command: argparse.ArgumentParser) -> None:
    """Let a command take ``--device``."""
    command.add_argument("--device", default="auto", choices=DEVICES, help="default: auto")


def parse_settings(pairs: Sequence[str], option: str = "--set") -> dict[str, float]:
    """Turn NAME=VALUE strings into a dictionary of numbers, booleans or strings.

    ``option`` is what they were given to.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{option}: expected NAME=VALUE, got {pair!r}")
        try:
            settings[name] = json.loads(value, parse_int=_whole)
        except (ValueError, RecursionError):
            settings[name] = value
    return settings


def say(sentence: str) -> None:
    """Write one line to stderr; stdout is for results."""
    sys.stderr.write(f"semigen: {sentence}\n")


def remark(sentence: str) -> None:
    """Say what each of several processes would say, once."""
    if is_first():
        say(sentence)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM stop what is done inside like Ctrl-C, and say what remains."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        say("what is finished is kept; the same command goes on")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


_NO_MEMORY = ("out of memory", "allocate memory", "allocate shared memory", "not enough memory")


def explain(error: Exception) -> str | None:
    """Return what the user can do something about as one line, None if there is nothing."""
    sentence = " ".join(str(error).split())
    if isinstance(error, (ValueError, JobsError, SandboxError, TrainingError)):
        return sentence
    if isinstance(error, OSError):
        where = error.filename2 or error.filename or "input or output"
        return f"{where}: expected to read or write it, got {error.strerror or sentence}"
    if sentence.startswith("DataLoader worker"):
        return f"workers: expected the processes that read images to go on, got {sentence}"
    if is_out_of_memory(error) or any(words in sentence for words in _NO_MEMORY):
        return f"memory: expected enough for this size of images, batch and method, got {sentence}"
    if "gloo" in sentence or "NCCL" in sentence:
        return f"processes: expected all of them to go on, got {sentence}"
    return None
