"""Files that survive: weights and training states, written whole or not at all.

Tensors go into safetensors and everything else into JSON, so loading a file never runs code.
A file is written beside its place, flushed to the disk, and moved: whoever is interrupted leaves
the old file or the new one, never half of either. A training state is a pair of files. Its JSON is
written last, with the sha256 of the tensors and of itself: neither format would notice a flipped
bit.

Shown in: book/running.md
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

__all__ = [
    "KEPT",
    "SCHEMA",
    "CheckpointError",
    "flatten_optimizer",
    "load_state",
    "load_weights",
    "read_json",
    "restore_optimizer",
    "save_state",
    "save_weights",
    "write_atomically",
    "write_json",
]


SCHEMA = 1  # raised when older code could no longer read what newer code writes
KEPT = 2  # how many training states stay on disk
_NEWER = "written by a newer semigen_lib"


class CheckpointError(ValueError):
    """A file that is missing, damaged or newer than this library."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment ``path`` holds the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Bring a move to the disk, so that files are there in the order in which they were written."""
    with suppress(OSError):  # some file systems, and Windows, do without
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically. NaN and infinity are refused."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, is not a JSON object, or was written by a newer schema.
    """
    text = _read(path, "a file of a training run")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, got a damaged file ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    schema = content.get("schema", SCHEMA)
    if type(schema) is not int or schema > SCHEMA:
        raise CheckpointError(
            f"{path}: expected schema {SCHEMA} or older, got {schema!r}: {_NEWER}"
        )
    return content


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected {what}, got nothing") from None
    except OSError as error:  # a broken disk, a folder in its place
        raise CheckpointError(f"{path}: expected {what}, got {error.strerror}") from None


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> str:
    """Write named tensors as safetensors, atomically, and return the file's sha256."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = safetensors.torch.save(plain)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read what :func:`save_weights` wrote and check it against its sha256.

    Raises
    ------
    CheckpointError
        If the file is missing, not bit for bit as it was written, or no safetensors.
    """
    content = _read(path, "saved weights")
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        wanted = str(sha256)[:12]
        raise CheckpointError(f"{path}: expected sha256 {wanted}…, got {got[:12]}…: damaged")
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: expected safetensors, got {error}") from None


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping) -> None:
    """Write the training state of a step; of the older ones the last stays.

    All other states go, also those of later steps: a run that went back to this step, as they were
    damaged, takes another way. So does what an interrupted save has left.

    Parameters
    ----------
    folder
        Where the states of one run live.
    step
        How many steps have been made.
    tensors
        Everything that is a tensor, under flat names.
    facts
        Everything else, as JSON.
    """
    stem = folder / f"step-{step:09d}"
    sha256 = save_weights(stem.with_suffix(".safetensors"), tensors)
    entry = {
        "schema": SCHEMA,
        "step": step,
        "sha256": sha256,
        "names": sorted(tensors),
        "facts": dict(facts),
    }
    write_json(stem.with_suffix(".json"), entry | {"seal": _seal(entry)})
    made = sorted(path.stem for path in folder.glob("step-*.json") if path.stem <= stem.name)
    for path in sorted((*folder.glob("step-*"), *folder.glob(".step-*.tmp"))):
        if path.stem not in made[-KEPT:]:
            path.unlink()


def _seal(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def load_state(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Read the newest undamaged training state as (step, tensors, facts).

    A damaged one is passed over with a warning.

    Raises
    ------
    CheckpointError
        If there is no undamaged state, or one of a newer schema.
    """
    problems = []
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            state = _load_state(path)
        except CheckpointError as error:
            if _NEWER in str(error):
                raise
            problems.append(str(error))
        else:
            for problem in problems:
                warnings.warn(f"{problem}; going back to the state before", stacklevel=2)
            return state
    got = "; ".join(problems) or "nothing"
    raise CheckpointError(f"{folder}: expected a training state to resume from, got {got}")


def _load_state(path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    entry = read_json(path)
    if entry.pop("seal", None) != _seal(entry):
        raise CheckpointError(f"{path}: expected the JSON that was sealed, got another: damaged")
    try:
        step, sha256, names, facts = (entry[key] for key in ("step", "sha256", "names", "facts"))
    except KeyError as error:
        raise CheckpointError(f"{path}: expected a training state, got none of {error}") from None
    if path.stem != f"step-{step!s:0>9}":
        raise CheckpointError(f"{path}: expected the state of that step, got step {step}")
    tensors = load_weights(path.with_suffix(".safetensors"), sha256)
    if missing := sorted(set(names) - set(tensors)):
        raise CheckpointError(f"{path}: expected a whole training state, got none of {missing}")
    return step, tensors, facts


def flatten_optimizer(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimiser's state as ``optimizer.<name>.<parameter>.<key>``."""
    return {
        f"optimizer.{name}.{index}.{key}": torch.as_tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`flatten_optimizer` returned.

    Parameters
    ----------
    name
        The name it was flattened under.
    optimizer
        A fresh one of the same kind, for the same parameters.
    tensors
        What was saved; what belongs to others is left alone.
    """
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        kind, *rest = full_name.split(".")
        if kind == "optimizer" and rest[0] == name:
            if tensor.dim():
                # In the memory order of its parameter: fused optimisers do not look at strides, and
                # would add up numbers that do not belong together.
                tensor = torch.empty_like(parameters[int(rest[1])]).copy_(tensor)
            state.setdefault(int(rest[1]), {})[rest[2]] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
