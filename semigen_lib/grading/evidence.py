"""Trained weights as a student's run left them, believed in nothing and then measured.

The files may be anything, links and pipes included. A file is looked at before it is opened, and
its size before it is read; settings are held against the task's limits before anything is built;
names, shapes and types of the tensors have to be those of the method as this library builds it.
What is left to the student are the numbers, and those are measured here, with hidden seeds.

Shown in: book/instructor.md
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from semigen_lib.data import UNLABELED, ImageData, ImageSet, load_images
from semigen_lib.evaluation import draw, reconstruction_error, test_error
from semigen_lib.grading.drivers import clip
from semigen_lib.grading.tasks import WeightsTask
from semigen_lib.judge import load_judge
from semigen_lib.measures import nearest_distances
from semigen_lib.methods import build_method
from semigen_lib.methods.method import Method
from semigen_lib.samples import COPY, MOST_COPIES, measure_samples, read_images_with

__all__ = [
    "EvidenceError",
    "fingerprint",
    "load_evidence",
    "measure_weights",
    "repeats_training_images",
]

MAX_FACTS = 20_000  # bytes of the JSON file
MAX_HEADER = 1_000_000  # bytes of the header of the safetensors file
MAX_WEIGHTS = 64_000_000  # bytes of all tensors
MAX_FILES = 50  # in the folder
IMAGE_SHAPE, N_CLASSES = (1, 28, 28), 10  # of MNIST, which all assignments are about
N_RECONSTRUCTED = 2000  # test images
N_DRAWN = 100  # of each class, for the judge
N_COMPARED = 200  # of each class, for the Frechet distance
BANDS, BAND_BITS = 8, 32  # of a fingerprint: one equal band out of eight is a near copy
_TYPES = {torch.float32: "F32", torch.int64: "I64"}


class EvidenceError(ValueError):
    """Evidence that is missing or not what was asked for; one line for the student."""

    def __init__(self, text: str) -> None:
        super().__init__(clip(text))


# ---- reading ----


def load_evidence(folder: Path, name: str, task: WeightsTask) -> Method:
    """Return the method that a run handed in, in evaluation mode, on the CPU.

    Parameters
    ----------
    folder
        Where the notebook's ``hand_in`` wrote.
    name
        It was handed in under.
    task
        Says which methods and settings are allowed.

    Raises
    ------
    EvidenceError
        If anything in it is another than ``hand_in`` would have written it.
    """
    facts = _read_facts(folder / f"{name}.json")
    if facts["method"] not in task.methods:
        allowed = ", ".join(task.methods)
        raise EvidenceError(f"method: expected one of {allowed}, got {facts['method']!r}")
    for setting, most in task.limits.items():
        value = facts["settings"].get(setting, most)
        if type(value) not in (int, float) or not value <= most:
            raise EvidenceError(f"{setting}: expected a number up to {most}, got {value!r}")
    try:
        with torch.device("meta"):  # shapes only: settings must not decide how much is allocated
            wanted = build_method(facts["method"], IMAGE_SHAPE, N_CLASSES, facts["settings"])
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise EvidenceError(f"{name}.json: {error}") from None
    tensors = _read_tensors(folder / f"{name}.safetensors", wanted.state_dict())
    with torch.random.fork_rng(devices=[]):
        method = build_method(facts["method"], IMAGE_SHAPE, N_CLASSES, facts["settings"])
    method.load_state_dict(tensors)
    return method.eval()


def _read_plain(path: Path, most: int) -> bytes:
    """Return the content of a file that may be anything, if it is a plain file and small."""
    try:
        kinds = [os.lstat(place).st_mode for place in (path.parent, path)]
        if not stat.S_ISDIR(kinds[0]) or not stat.S_ISREG(kinds[1]):
            raise EvidenceError(f"{path.name}: expected a plain file, got something else")
        # Looked at again once it is open: a pipe would block, and a link lead elsewhere.
        flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
        handle = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in flags))
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise EvidenceError(f"{path.name}: expected a plain file, got something else")
            if status.st_size > most:
                raise EvidenceError(
                    f"{path.name}: expected at most {most} bytes, got {status.st_size}"
                )
            return file.read(most)
    except FileNotFoundError:
        raise EvidenceError(f"{path.name}: expected hand_in to write it, got no file") from None
    except OSError as error:
        raise EvidenceError(f"{path.name}: expected a file, got {error.strerror}") from None


def _read_facts(path: Path) -> dict[str, Any]:
    """Return what ``hand_in`` wrote beside the weights, its form checked."""
    facts = _parse(_read_plain(path, MAX_FACTS), path.name)
    kinds = {"method": str, "settings": dict, "image_shape": list, "n_classes": int}
    if {key: type(value) for key, value in facts.items()} != kinds:
        raise EvidenceError(f"{path.name}: expected {', '.join(kinds)}, got {sorted(facts)}")
    of_data = facts["image_shape"], facts["n_classes"]
    if of_data != (list(IMAGE_SHAPE), N_CLASSES):
        expected = f"{list(IMAGE_SHAPE)}, {N_CLASSES}"
        raise EvidenceError(f"{path.name}: expected image_shape, n_classes {expected}")
    return facts


def _parse(content: bytes, name: str) -> dict[str, Any]:
    """Return a JSON object: no NaN, no name twice."""

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    try:
        parsed = json.loads(content.decode(), parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{name}: expected strict JSON, got {error}") from None
    if not isinstance(parsed, dict):
        raise EvidenceError(f"{name}: expected a JSON object, got {type(parsed).__name__}")
    return parsed


def _read_tensors(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by name, every one as wanted and finite."""
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in wanted.values())
    if n_bytes > MAX_WEIGHTS:
        raise EvidenceError(f"{path.name}: expected at most {MAX_WEIGHTS} bytes, got {n_bytes}")
    content = _read_plain(path, 8 + MAX_HEADER + n_bytes)
    _check_header(content, path.name, wanted)
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise EvidenceError(f"{path.name}: expected safetensors, got {error}") from None
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise EvidenceError(f"{path.name}: {key}: expected finite numbers, got NaN or infinity")
    return tensors


def _check_header(content: bytes, name: str, wanted: dict[str, Tensor]) -> None:
    """Refuse a safetensors file that holds anything but the wanted tensors, one after the other."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= min(len(content) - 8, MAX_HEADER):
        raise EvidenceError(f"{name}: expected safetensors, got a header of {length} bytes")
    header = _parse(content[8 : 8 + length], name)
    if header.keys() != wanted.keys():
        odd = sorted(header.keys() ^ wanted.keys())[0]
        verb = "is not the method's" if odd in header else "is missing"
        raise EvidenceError(f"{name}: expected {len(wanted)} tensors of the method, {odd!r} {verb}")
    places = []
    for key, tensor in wanted.items():
        entry = header[key]
        expected = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape)}
        got = {k: v for k, v in entry.items() if k != "data_offsets"} if _is_entry(entry) else entry
        if got != expected:
            raise EvidenceError(f"{name}: {key}: expected {expected}, got {got}")
        begin, end = entry["data_offsets"]
        if end - begin != tensor.numel() * tensor.element_size():
            raise EvidenceError(f"{name}: {key}: expected its bytes, got offsets {begin} to {end}")
        places.append((begin, end))
    edges = [0] + [edge for place in sorted(places) for edge in place] + [len(content) - 8 - length]
    if edges[::2] != edges[1::2]:
        raise EvidenceError(f"{name}: expected tensors end to end, got gaps, overlaps or a rest")


def _is_entry(entry: object) -> bool:
    """Say whether an entry of a header has two whole numbers as offsets."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and [type(n) for n in offsets] == [int, int]


# ---- measuring ----


@functools.cache
def _mnist() -> ImageData:
    return load_images("mnist")


def measure_weights(method: Method, measure: str, seed: int) -> float:
    """Return what a method is worth on images that it has not seen.

    Parameters
    ----------
    method
        From :func:`load_evidence`.
    measure
        One of ``tasks.MEASURES``: the mean squared error of 2,000 test images, the fraction of
        test images that are read wrongly, the fraction of 1,000 drawings that the judge reads as
        what was asked for, or the Frechet distance of 2,000 drawings over that of real images.
    seed
        A hidden one, of noise and choice.

    Raises
    ------
    EvidenceError
        If the result is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = _MEASURES[measure](method)
    if not math.isfinite(value):
        raise EvidenceError(f"{measure}: expected a finite number, got {value}")
    return value


def _reconstruction_error(method: Method) -> float:
    images = _mnist().test.images
    return reconstruction_error(method, images[torch.randperm(len(images))[:N_RECONSTRUCTED]])


def _test_error(method: Method) -> float:
    return test_error(method, _mnist().test)


def _conditional_accuracy(method: Method) -> float:
    requests = torch.arange(N_CLASSES).repeat(N_DRAWN)
    logits = read_images_with(load_judge(), ImageSet(draw(method, requests), requests)).class_logits
    return (logits.argmax(1) == requests).double().mean().item()


def _frechet_ratio(method: Method) -> float:
    requests = torch.arange(N_CLASSES).repeat(N_COMPARED)
    real = (_some_of_each_class(images) for images in (_mnist().train, _mnist().test))
    return measure_samples(draw(method, requests), requests, *real).frechet_ratio


def _some_of_each_class(images: ImageSet) -> ImageSet:
    """Return as many images of each class as are compared: reading all 60,000 takes a minute."""
    order = torch.randperm(len(images))
    chosen = [order[images.labels[order] == k][:N_COMPARED] for k in range(N_CLASSES)]
    return ImageSet(images.images[torch.cat(chosen)], images.labels[torch.cat(chosen)])


_MEASURES = {
    "reconstruction_error": _reconstruction_error,
    "test_error": _test_error,
    "conditional_accuracy": _conditional_accuracy,
    "frechet_ratio": _frechet_ratio,
}


# ---- copies ----


@functools.cache
def _training_pixels() -> Tensor:
    return _pixels(_mnist().train.images)


def _pixels(images: Tensor) -> Tensor:
    """Return images (N, 1, 28, 28) at half their side, (N, 196), as ``samples`` compares them."""
    return torch.nn.functional.avg_pool2d(images.float() / 255, 2).flatten(1)


def repeats_training_images(method: Method, seed: int) -> bool:
    """Say whether many drawings are copies of training images.

    By the rule of ``samples.measure_samples``, on 200 drawings and in pixels alone.

    Parameters
    ----------
    method
        One that draws.
    seed
        A hidden one, of the noise.
    """
    asked = torch.arange(N_CLASSES) if method.draws_on_request else torch.full((10,), UNLABELED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = draw(method, asked.repeat(20))
    distances = nearest_distances(_pixels(drawn), _training_pixels(), 2)
    return (distances[:, 0] < COPY * distances[:, 1]).double().mean().item() >= MOST_COPIES


def fingerprint(folder: Path) -> dict[str, str]:
    """Return what tells copies of weights, by the name of their file.

    Two files with one value in common are copies: ``<file>`` is its sha256, and ``<file>/<band>``
    are signs of sums over the weights, some of which survive when a tenth of noise is added.

    Parameters
    ----------
    folder
        As for :func:`load_evidence`. What cannot be read is left out.
    """
    prints: dict[str, str] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return prints
    for name in [name for name in names if name.endswith(".safetensors")][:MAX_FILES]:
        try:
            content = _read_plain(folder / name, 8 + MAX_HEADER + MAX_WEIGHTS)
            prints[name] = hashlib.sha256(content).hexdigest()
            tensors = safetensors.torch.load(content)
        except (EvidenceError, safetensors.SafetensorError):
            continue
        prints |= {f"{name}/{i}": band for i, band in enumerate(_bands(tensors))}
    return prints


def _bands(tensors: dict[str, Tensor]) -> list[str]:
    """Return signs of random sums of the weights as hexadecimal words.

    Biases, scales and running means stay out: they are much alike in all networks.
    """
    parts = [tensors[name].flatten() for name in sorted(tensors) if tensors[name].ndim >= 2]
    weights = torch.cat([part.float() for part in parts]) if parts else torch.zeros(0)
    if not weights.any() or not weights.isfinite().all():
        return []
    n = BANDS * BAND_BITS
    weights = torch.nn.functional.pad(weights, (0, -len(weights) % n))
    coins = torch.randint(2, weights.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    signs = ((weights * coins).view(-1, n).sum(0) > 0).long().view(BANDS, BAND_BITS)
    words = (signs << torch.arange(BAND_BITS)).sum(1).tolist()
    return [f"{i}:{word:08x}" for i, word in enumerate(words)]
