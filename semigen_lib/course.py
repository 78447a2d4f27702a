"""What an assignment's notebook needs of the grader, and what works the same without one.

``course_split`` gives the labels that a student may see; under the grader the hidden ones are not
on the machine at all. ``hand_in`` leaves trained weights for the grader to measure: a score that a
notebook prints counts for nothing.

Shown in: book/students.md
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import safetensors
import safetensors.torch

from semigen_lib.checkpoint import save_weights, write_atomically, write_json
from semigen_lib.data import DataError, LabelSplit, load_images, split_labels
from semigen_lib.methods import METHODS
from semigen_lib.methods.method import Method, method_name

__all__ = [
    "DATA_VARIABLE",
    "EVIDENCE_VARIABLE",
    "course_split",
    "hand_in",
    "write_course_split",
]

DATA_VARIABLE = "SEMIGEN_COURSE_DATA"  # environment: a file of write_course_split
EVIDENCE_VARIABLE = "SEMIGEN_EVIDENCE"  # environment: the folder that hand_in writes to
HOME_EVIDENCE = "evidence"  # that folder without a grader


def course_split(n_labeled: int, seed: int) -> LabelSplit:
    """Return the training images of MNIST with ``n_labeled`` labels, the rest UNLABELED.

    Parameters
    ----------
    n_labeled
        How many images keep their label, divisible by 10.
    seed
        Which draw, from 0.

    Raises
    ------
    DataError
        If a number is out of range, or under the grader another one than the parameter.
    """
    path = os.environ.get(DATA_VARIABLE)
    if path is None:
        return split_labels(load_images("mnist"), n_labeled, seed)
    split = _read_split(Path(path))
    for name, wanted, got in (
        ("n_labeled", split.n_labeled, n_labeled),
        ("seed", split.seed, seed),
    ):
        if wanted != got:
            raise DataError(f"{name}: expected the notebook's parameter, {wanted}, got {got!r}")
    return split


def write_course_split(split: LabelSplit, path: Path) -> None:
    """Write a split for :func:`course_split`; it holds no hidden label, as none is in a split."""
    tensors = {
        "images": split.images.contiguous(),
        "labels": split.labels,
        "labeled_index": split.labeled_index,
    }
    facts = {"name": split.name, "class_names": split.class_names, "seed": split.seed}
    write_atomically(path, safetensors.torch.save(tensors, {"split": json.dumps(facts)}))


def _read_split(path: Path) -> LabelSplit:
    with safetensors.safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["split"])
        tensors = {name: file.get_tensor(name) for name in ("images", "labels", "labeled_index")}
    return LabelSplit(
        facts["name"],
        tuple(facts["class_names"]),
        tensors["images"],
        tensors["labels"],
        tensors["labeled_index"],
        None,
        facts["seed"],
    )


def hand_in(name: str, method: Method) -> None:
    """Write a trained method as ``<name>.safetensors`` and ``<name>.json``, and say so.

    The folder is ``evidence``, beside the notebook, or the grader's.

    Parameters
    ----------
    name
        As the assignment says: small letters, digits and underscores.
    method
        One of the library's, with the weights that shall count.

    Raises
    ------
    ValueError
        If the name or the method is another.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise ValueError(f"name: expected small letters, digits and underscores, got {name!r}")
    kind = method_name(method)
    if type(method) is not METHODS.get(kind):
        raise ValueError(f"method: expected one of the library's, got {type(method).__name__}")
    folder = Path(os.environ.get(EVIDENCE_VARIABLE, HOME_EVIDENCE))
    save_weights(folder / f"{name}.safetensors", method.state_dict())
    facts = {
        "method": kind,
        "settings": dataclasses.asdict(method.config),
        "image_shape": list(method.image_shape),
        "n_classes": method.n_classes,
    }
    write_json(folder / f"{name}.json", facts)
    sys.stdout.write(f"handed in: {name} ({kind})\n")
