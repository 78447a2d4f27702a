"""Where images come from: MNIST in the package, torchvision's sets by name, a folder of one's own.

Everything is converted once, on loading, to square ``uint8`` images with one or three channels, so
that nothing after this module asks where an image came from. A new data set is one row of ``_SETS``
or one function, and its test. What cannot be read or does not add up is one ``DataError`` line.
A folder that is too large for that stays on disk: ``ImageFiles`` stands for its training images.

Shown in: book/01_semi_supervised_learning.ipynb, book/running.md
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import lzma
import math
import os
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "ASSETS",
    "UNLABELED",
    "DataError",
    "ImageData",
    "ImageFiles",
    "ImageSet",
    "available_memory",
    "list_folder",
    "load_images",
    "read_at",
    "read_images",
    "source_names",
    "whole_number",
]

UNLABELED = -1
"""Label of an image whose class is unknown or hidden."""

ASSETS = Path(__file__).with_name("assets")
HELD_OUT = 0.2  # share of images kept for testing when a folder brings no test images
MEMORY_SHARE = 0.25  # of what is free: while they are loaded, images are there up to three times
DIGITS = tuple("0123456789")


class DataError(ValueError):
    """Images, labels or a request that cannot be right; one line, "expected ..., got ..."."""


def whole_number(value: object, name: str, minimum: int) -> int:
    """Return a value as an int if it is one of at least a minimum, else raise ``DataError``.

    Parameters
    ----------
    value : object
        Anything; NumPy's integers are whole numbers, booleans are not.
    name : str
        What the value is, for the message.
    minimum : int
        The smallest that is accepted.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise DataError(f"expected {name} to be a whole number >= {minimum}, got {value!r}")
    return int(value)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with a label each.

    Attributes
    ----------
    images : Tensor or ImageFiles
        uint8, shape (N, C, H, W), values 0 to 255; in memory, or in files.
    labels : Tensor
        int64, shape (N,), class numbers from 0, ``UNLABELED`` where the class is unknown.

    Raises
    ------
    DataError
        If a shape or a type is another, or the lengths differ.

    Shown in: book/01_semi_supervised_learning.ipynb
    """

    images: Tensor | ImageFiles
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(
                f"expected uint8 images (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"expected int64 labels ({len(images)},), got {labels.dtype} {tuple(labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set as it was loaded: with every label that its source gives.

    Training never sees this object; it sees the ``LabelSplit`` that ``split_labels`` makes of it.

    Attributes
    ----------
    name : str
        ``"mnist"``, another lower-case name, or ``"folder:NAME"``; splits are drawn from it.
    class_names : tuple of str
        Name of each class; the label is the position in it.
    train, test : ImageSet
        For training (labels may be ``UNLABELED``) and for the final evaluation (all labelled).
    notes : tuple of str
        Sentences a user should read, such as which images were held out.

    Raises
    ------
    DataError
        If a label is out of range, a test image has none, or the two sets differ in shape.

    Shown in: book/01_semi_supervised_learning.ipynb
    """

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            shapes = " and ".join(str(tuple(p.images.shape[1:])) for p in (self.train, self.test))
            raise DataError(f"{self.name}: expected one image shape, got {shapes}")
        _check_labels(f"{self.name} train", self.train.labels, self.n_classes, UNLABELED)
        _check_labels(f"{self.name} test", self.test.labels, self.n_classes, 0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return tuple(self.train.images.shape[1:])

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)


def load_images(
    source: str | os.PathLike,
    *,
    image_size: int = 28,
    channels: int = 1,
    cache_dir: str | os.PathLike | None = None,
    stream: bool | None = None,
) -> ImageData:
    """Load a data set by name, or a folder of one's own images.

    Parameters
    ----------
    source : str or path
        ``"mnist"`` (in the package, no network), a name of ``source_names()`` in any case and with
        or without underscores (downloaded once through torchvision), or a folder with
        ``<class>/*`` (labelled), ``unlabeled/*`` (optional) and ``test/<class>/*`` (optional).
        A path object, or a string with a slash such as ``"./mnist"``, is always a folder.
    image_size : int
        Height and width of the result in pixels.
    channels : int
        1 (grey) or 3 (red, green, blue).
    cache_dir : path, optional
        Where downloads are kept; default ``$SEMIGEN_CACHE``, or else ``~/.cache/semigen``.
    stream : bool, optional
        Whether the training images of a folder stay in their files and are read while training.
        None decides by their size: they do if they would take more than a quarter of the memory
        that is free. Test images are always in memory.

    Returns
    -------
    ImageData
        Images uint8 (N, channels, image_size, image_size), in an order that never varies.

    Raises
    ------
    DataError
        If the source is unknown, incomplete, damaged, or cannot be downloaded.

    Notes
    -----
    Folder images: EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled
    to 8 bits, the longer side is resized to ``image_size`` (bilinear, anti-aliased) and the shorter
    one is padded evenly with the mean colour of the image's border. Whatever is not a readable
    image is an error that names it; only hidden files, ``Thumbs.db`` and ``desktop.ini`` are
    ignored. Without test images, some 20 % of each class (10 to 30 %, at least one) are held out,
    each by the sha256 of its ``class/file``, and ``notes`` says so.

    Images that stream give the same batches as images in memory. They are not looked at beforehand:
    a damaged file stops the training that comes upon it, and copies of test images among them are
    not counted. ``notes`` says that they stream, and why.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    image_size = whole_number(image_size, "image_size", 1)
    if channels not in (1, 3):
        raise DataError(f"expected channels to be 1 or 3, got {channels!r}")
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise DataError(f"expected the name of a data set or a folder, got {source!r}")
    name = re.sub(r"[_\- ]", "", source.lower()) if isinstance(source, str) else ""
    if stream and name in source_names():
        raise DataError(f"expected a folder of images to stream, got {source!r}, which does not")
    if name == "mnist":
        return _load_mnist(image_size, channels)
    if name in _SETS:
        return _load_torchvision(name, image_size, channels, _cache_folder(cache_dir))
    folder = Path(source)
    if not folder.is_dir():
        names = ", ".join(source_names())
        raise DataError(f"expected an existing folder or one of {names}, got {str(source)!r}")
    return _load_folder(folder, image_size, channels, stream)


def source_names() -> tuple[str, ...]:
    """Name the data sets that ``load_images`` accepts besides folders.

    Returns
    -------
    tuple of str
        In lower case and without underscores, ``"mnist"`` first.
    """
    return ("mnist", *_SETS)


def _check_labels(what: str, labels: Tensor, n_classes: int, lowest: int) -> None:
    """Raise unless there are labels and all lie in [lowest, n_classes)."""
    if not len(labels) or labels.min() < lowest or labels.max() >= n_classes:
        found = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "no image"
        raise DataError(f"{what}: expected labels {lowest} to {n_classes - 1}, got {found}")


def _fit(images: Tensor, image_size: int, channels: int) -> Tensor:
    """Convert square uint8 images (N, C, H, W) to another size and number of channels."""
    if images.shape[1:] == (channels, image_size, image_size):
        return images
    parts = []
    for part in images.split(4096):  # in parts: float32 is four times the memory
        values = part.float()
        if channels == 1 and part.shape[1] == 3:  # the luma weights of ITU-R BT.601, as Pillow's
            values = (values * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True)
        if values.shape[-1] != image_size:
            size = (image_size, image_size)
            values = functional.interpolate(values, size, mode="bilinear", antialias=True)
        values = values.round().clamp(0, 255).to(torch.uint8)
        parts.append(values.expand(-1, channels, -1, -1))
    return torch.cat(parts)


# ---- MNIST: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database" (CC BY-SA 3.0) ----


_MNIST_SHAPES = {
    "train-images-idx3-ubyte": (60000, 28, 28),
    "train-labels-idx1-ubyte": (60000,),
    "t10k-images-idx3-ubyte": (10000, 28, 28),
    "t10k-labels-idx1-ubyte": (10000,),
}
_MNIST_SHA256 = {  # of the decompressed bytes
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def _load_mnist(image_size: int, channels: int) -> ImageData:
    with ThreadPoolExecutor() as pool:  # lzma and hashlib release the interpreter lock
        arrays = list(pool.map(_read_idx, _MNIST_SHAPES))
    train, test = (
        ImageSet(_fit(images[:, None], image_size, channels), labels.long())
        for images, labels in (arrays[:2], arrays[2:])
    )
    return ImageData("mnist", DIGITS, train, test)


def _read_idx(name: str) -> Tensor:
    """Decompress one IDX file and check magic, dimensions, length, label range and sha256."""
    path, shape = ASSETS / "mnist" / f"{name}.xz", _MNIST_SHAPES[name]
    try:
        content = bytearray(lzma.decompress(path.read_bytes()))
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"{path}: expected a whole xz file, got {_first_line(error)}") from error
    header = (0x0800 + len(shape), *shape)  # the magic number: 08 for bytes, then the dimensions
    start, size = 4 * len(header), 4 * len(header) + math.prod(shape)
    if content[:start] != (wanted := struct.pack(f">{len(header)}I", *header)):
        raise DataError(
            f"{path}: expected magic and dimensions {header} ({wanted.hex()}), "
            f"got {bytes(content[:start]).hex()}"
        )
    if len(content) != size:
        raise DataError(f"{path}: expected {size} bytes, got {len(content)}")
    values = torch.frombuffer(content, dtype=torch.uint8, offset=start).view(shape)
    if len(shape) == 1:
        _check_labels(str(path), values, 10, 0)
    digest = hashlib.sha256(content).hexdigest()
    if digest != _MNIST_SHA256[name]:
        raise DataError(f"{path}: expected sha256 {_MNIST_SHA256[name]}, got {digest}")
    return values


def _first_line(error: Exception) -> str:
    """Name and first line of an error, for messages of one line."""
    return " ".join([type(error).__name__ + ":", *str(error).splitlines()[:1]])


# ---- torchvision's sets ----


class _Set(NamedTuple):
    """One row of the table: torchvision's class, what to ask it for, what must come back."""

    dataset: str
    counts: tuple[int, int]  # images for training, for testing
    shape: tuple[int, int, int] = (1, 28, 28)
    n_classes: int = 10
    class_names: tuple[str, ...] | None = None  # None: as torchvision calls them
    arguments: tuple[dict, dict] = ({"train": True}, {"train": False})
    first_label: int = 0
    lowest: int = 0  # UNLABELED where the set brings images without labels
    transposed: bool = False  # EMNIST's images lie on their side


def _emnist(split: str, counts: tuple[int, int], n_classes: int, first_label: int = 0) -> _Set:
    arguments = ({"split": split, "train": True}, {"split": split, "train": False})
    row = _Set("EMNIST", counts, n_classes=n_classes, arguments=arguments)
    return row._replace(first_label=first_label, transposed=True)


_SPLIT = ({"split": "train"}, {"split": "test"})
_THINGS = "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"
_STL10 = ({"split": "train+unlabeled"}, {"split": "test"})
_SETS = {
    "fashionmnist": _Set("FashionMNIST", (60000, 10000)),
    "kmnist": _Set("KMNIST", (60000, 10000)),
    "qmnist": _Set("QMNIST", (60000, 60000), class_names=DIGITS),
    "emnistbalanced": _emnist("balanced", (112800, 18800), 47),
    "emnistbyclass": _emnist("byclass", (697932, 116323), 62),
    "emnistbymerge": _emnist("bymerge", (697932, 116323), 47),
    "emnistdigits": _emnist("digits", (240000, 40000), 10),
    "emnistletters": _emnist("letters", (124800, 20800), 26, first_label=1),
    "emnistmnist": _emnist("mnist", (60000, 10000), 10),
    "usps": _Set("USPS", (7291, 2007), (1, 16, 16), class_names=DIGITS),
    "svhn": _Set("SVHN", (73257, 26032), (3, 32, 32), 10, DIGITS, _SPLIT),
    "cifar10": _Set("CIFAR10", (50000, 10000), (3, 32, 32)),
    "cifar100": _Set("CIFAR100", (50000, 10000), (3, 32, 32), 100),
    "stl10": _Set("STL10", (105000, 8000), (3, 96, 96), 10, _THINGS, _STL10, 0, UNLABELED),
}


def _cache_folder(cache_dir: str | os.PathLike | None) -> Path:
    return Path(cache_dir or os.environ.get("SEMIGEN_CACHE") or "~/.cache/semigen").expanduser()


def _load_torchvision(name: str, image_size: int, channels: int, cache: Path) -> ImageData:
    row = _SETS[name]
    parts = _download(name, row, cache)
    sets, digest = [], hashlib.sha256()
    for part, count, which in zip(parts, row.counts, ("train", "test"), strict=True):
        images, labels = _arrays(part, row)
        what = f"{name} {which}, in {cache}"
        if images.dtype != torch.uint8 or images.shape != (count, *row.shape):
            got = f"{images.dtype} {tuple(images.shape)}"
            raise DataError(f"{what}: expected uint8 images {(count, *row.shape)}, got {got}")
        if labels.shape != (count,):
            raise DataError(f"{what}: expected {count} labels, got shape {tuple(labels.shape)}")
        _check_labels(what, labels, row.n_classes, row.lowest if which == "train" else 0)
        if (found := len(labels[labels >= 0].unique())) != row.n_classes:
            raise DataError(f"{what}: expected images of {row.n_classes} classes, got {found}")
        digest.update(images.numpy())
        digest.update(labels.numpy())
        sets.append(ImageSet(_fit(images, image_size, channels), labels))
    _check_fingerprint(name, cache, digest.hexdigest())
    class_names = row.class_names or tuple(map(str, parts[0].classes))[-row.n_classes :]
    notes = ()
    if row.shape != (channels, image_size, image_size):
        shape = tuple(sets[0].images.shape[1:])
        notes = (f"{name}: images of shape {row.shape} were converted to {shape}.",)
    return ImageData(name, class_names, *sets, notes)


def _download(name: str, row: _Set, cache: Path) -> list:
    """Return torchvision's training and test set, downloading them if they are not there yet."""
    try:
        from filelock import FileLock  # here, because only downloads need them
        from torchvision import datasets

        cache.mkdir(parents=True, exist_ok=True)
        build = getattr(datasets, row.dataset)
        # Two processes that download at once would write into each other's files; torchvision
        # prints, which would spoil what a caller writes to standard output.
        lock = FileLock(cache / f"{row.dataset}.lock", timeout=3600)
        with lock, contextlib.redirect_stdout(sys.stderr):
            return [build(str(cache), download=True, **part) for part in row.arguments]
    except Exception as error:  # torchvision raises whatever its readers and the network raise
        raise DataError(
            f"expected {name} in {cache} or a network to download it from, "
            f"got {_first_line(error)} (connect once, or copy the files of torchvision's "
            f"{row.dataset} there; if a file is damaged, delete it)"
        ) from error


def _arrays(dataset: object, row: _Set) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) and labels (N,) from 0, whichever way torchvision keeps them."""
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    if row.transposed:
        images = images.transpose(-1, -2)
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    if labels.ndim == 2:  # QMNIST: the class is the first of eight columns
        labels = labels[:, 0]
    return images.contiguous(), labels.long().contiguous() - row.first_label


def _check_fingerprint(name: str, cache: Path, digest: str) -> None:
    """Compare with the sha256 of the first load: torchvision does not check what it unpacked."""
    path = cache / f"{name}.sha256"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest + "\n")
        os.replace(temporary, path)
    known = path.read_text().strip()
    if known != digest:
        raise DataError(
            f"{name} in {cache}: expected sha256 {known} as at the first load, got {digest} "
            f"(delete the unpacked files and {path.name}, then load again)"
        )


# ---- A folder of one's own images ----

_IGNORED = {"thumbs.db", "desktop.ini"}  # and hidden files; file managers leave them behind
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def list_folder(folder: Path) -> list[Path]:
    """List what is in a folder, without hidden files.

    Parameters
    ----------
    folder : Path
        The folder; what lies deeper is not listed.

    Returns
    -------
    list of Path
        In natural order: ``2.png`` before ``10.png``.

    Raises
    ------
    DataError
        If the folder cannot be read.
    """

    return [folder / name for name in _list_names(folder)]


def _list_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{_shown(folder)}: expected a readable folder, got {error!r}") from error
    return sorted((name for name in names if name.lower() not in _IGNORED), key=_natural_key)


def _natural_key(name: str) -> str:
    """Return a text that sorts as the name does if numbers in it count by their value.

    One text, as a million names are sorted by it: tuples would take six times the memory.
    """
    words = re.split(r"([0-9]+)", name)
    numbers = [str(int(word)) if word.isdecimal() else None for word in words]
    # A number is its length and its digits. No name contains the character 0, so what begins a
    # longer word or a longer name comes before it.
    return (
        "".join(
            f"\1{word}\0" if number is None else f"\2{chr(len(number))}{number}"
            for word, number in zip(words, numbers, strict=True)
        )
        + f"\0{name}"
    )


def read_images(paths: Sequence[Path], *, image_size: int = 28, channels: int = 1) -> Tensor:
    """Read image files of any size and mode and convert them as ``load_images`` does.

    Parameters
    ----------
    paths : list of Path
        BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP; of an animation the first frame.
    image_size, channels : int
        As in ``load_images``.

    Returns
    -------
    Tensor
        uint8, shape (len(paths), channels, image_size, image_size), in the order of ``paths``.

    Raises
    ------
    DataError
        If there is anything that cannot be read as an image; the line names all such files.
    """
    with ThreadPoolExecutor() as pool:  # decoders release the interpreter lock
        return _read_all(paths, len(paths), image_size, channels, pool.map)


def _read_all(
    paths: Iterable[Path], count: int, image_size: int, channels: int, apply: Callable
) -> Tensor:
    """Read ``count`` image files, with ``apply`` (``map`` or one that does the same at once)."""
    from PIL import Image

    images = np.empty((count, channels, image_size, image_size), np.uint8)

    def read(position: int, path: Path) -> str:
        try:
            images[position] = _read_image(path, image_size, channels)
        except Exception as error:  # Pillow's decoders raise many types on damaged files
            return f"{_shown(path)} ({_reason(path, error)})"
        return ""

    bad: list[str] = []
    positions, paths = iter(range(count)), iter(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        while part := list(itertools.islice(paths, 4096)):  # a task takes more than a small image
            bad += filter(None, apply(read, itertools.islice(positions, len(part)), part))
    if bad:
        files = "1 other file" if len(bad) == 1 else f"{len(bad)} other files"
        formats = ", ".join(_FORMATS)
        raise DataError(f"expected readable images ({formats}), got {files}: {_some(bad)}")
    return torch.from_numpy(images)


class ImageFiles:
    """Images that stay in their files: they stand where a tensor of all of them would.

    Of a million only the names are in memory, some 20 MB. They tell the folder of an image and so
    its class, which is why nobody but the reader of files ever looks at them.

    Parameters
    ----------
    folder : Path
        What all names are relative to.
    names : ndarray
        Bytes, shape (N,): the files, in their order.
    image_size, channels : int
        As in ``load_images``.

    Shown in: book/running.md
    """

    dtype, ndim = torch.uint8, 4

    def __init__(self, folder: Path, names: np.ndarray, image_size: int, channels: int) -> None:
        self._folder, self._names = folder, names
        self._image_size, self._channels = image_size, channels

    def __len__(self) -> int:
        return len(self._names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of the tensor that they stand for."""
        return len(self), self._channels, self._image_size, self._image_size

    def __getitem__(self, index: Tensor) -> ImageFiles:
        """Return some of them, by a mask or by positions; nothing is read."""
        names = self._names[index.numpy()]
        return ImageFiles(self._folder, names, self._image_size, self._channels)

    def paths(self) -> Iterable[Path]:
        """Return the files, one after the other."""
        return (self._folder / os.fsdecode(name) for name in self._names)

    def read(self, index: Tensor) -> Tensor:
        """Return the images at some positions, uint8, as ``read_images`` does.

        Raises
        ------
        DataError
            If a file cannot be read as an image.
        """
        files = self[index]
        return _read_all(files.paths(), len(files), self._image_size, self._channels, map)


def read_at(images: Tensor | ImageFiles, index: Tensor) -> Tensor:
    """Return the images at some positions, wherever they are.

    Parameters
    ----------
    images : Tensor or ImageFiles
        uint8, shape (N, C, H, W).
    index : Tensor
        int64, positions on the CPU.

    Returns
    -------
    Tensor
        uint8, in the order of the positions.

    Raises
    ------
    DataError
        If a file cannot be read as an image.

    Shown in: book/running.md
    """
    return images.read(index) if isinstance(images, ImageFiles) else images[index]


def available_memory() -> int:
    """Return how many bytes of main memory are free, for each process of a run.

    Shown in: book/running.md
    """
    bounds = [sys.maxsize]  # of a system that does not say
    with contextlib.suppress(AttributeError, ValueError):
        bounds.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, TypeError):  # Linux has it
        free = re.search(r"MemAvailable: +([0-9]+) kB", Path("/proc/meminfo").read_text())
        bounds.append(1024 * int(free[1]))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container, if there is one
        with contextlib.suppress(OSError, ValueError):
            bounds.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return min(bounds) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _shown(path: Path) -> str:
    """Path with line breaks and undecodable bytes escaped, so that a message stays one line."""
    return repr(str(path))[1:-1]


def _reason(path: Path, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, DataError):
        return str(error)
    if path.is_dir():
        return "a folder"
    return "not an image" if isinstance(error, UnidentifiedImageError) else _first_line(error)


def _read_image(path: Path, image_size: int, channels: int) -> np.ndarray:
    """Return one image file as uint8 (channels, image_size, image_size)."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=_FORMATS) as image:
        image = _flatten(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    scale = image_size / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    if size != image.size:  # resized before it is padded: a long thin image must not explode
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(*image.size[::-1], channels)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = np.empty((image_size, image_size, channels), np.uint8)
    square[:] = border.mean(0).round()
    top, left = ((image_size - side) // 2 for side in pixels.shape[:2])
    square[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return square.transpose(2, 0, 1).copy()


def _flatten(image: object) -> object:
    """Bring deep and transparent images to plain 8-bit ones: scale 16 bits, lay on white."""
    from PIL import Image

    if image.mode == "F":
        raise DataError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"pixels {values.min()} to {values.max()}, more than 16 bits")
        return Image.fromarray((values / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image


def _load_folder(folder: Path, image_size: int, channels: int, stream: bool | None) -> ImageData:
    classes, unlabeled, test_classes = _scan(folder)
    class_names, notes = tuple(sorted(classes)), []
    if not any(map(len, test_classes.values())):
        classes, test_classes = _hold_out(folder, classes)
        n_kept, n_held = (sum(map(len, part.values())) for part in (classes, test_classes))
        notes.append(
            f"{_shown(folder)} has no test images: {n_held} of {n_kept + n_held} labelled images, "
            "at least one of each class, were held out for testing."
        )
    elif missing := [name for name in class_names if not len(test_classes.get(name, ()))]:
        notes.append(f"{_shown(folder)}/test has no image of {_listed(missing)}.")
    names, labels = _in_order(classes, class_names)
    test_names, test_labels = _in_order(test_classes, class_names)
    labels = torch.cat([labels, torch.full((len(unlabeled),), UNLABELED)])
    n = len(labels)
    names = np.concatenate([names, unlabeled, test_names])
    files = ImageFiles(folder, names, image_size, channels)
    train, test = files[torch.arange(n)], files[torch.arange(n, len(files))]
    size, free = math.prod(train.shape), available_memory()
    if stream or (stream is None and size > MEMORY_SHARE * free):
        test = read_images(list(test.paths()), image_size=image_size, channels=channels)
        notes.append(
            f"{_shown(folder)}: {n} training images stay in their files, {size / 1e6:.1f} MB of "
            f"pixels, with {free / 1e6:.0f} MB of memory free; they are read while training."
        )
    else:
        images = read_images(list(files.paths()), image_size=image_size, channels=channels)
        train, test = images[:n].clone(), images[n:].clone()
        known = {image.tobytes() for image in train.numpy()}
        if copies := sum(image.tobytes() in known for image in test.numpy()):
            notes.append(f"{copies} of {len(test)} test images are also among the training images.")
    return ImageData(
        f"folder:{_shown(Path(folder.resolve().name))}",
        class_names,
        ImageSet(train, labels),
        ImageSet(test, test_labels),
        tuple(notes),
    )


_Names = dict[str, np.ndarray]  # files of each class, as bytes, relative to the folder


def _in_order(classes: _Names, class_names: Sequence[str]) -> tuple[np.ndarray, Tensor]:
    """Return the files of all classes, one class after the other, and their labels."""
    parts = [classes.get(name, np.empty(0, "S")) for name in class_names]
    counts = torch.tensor([len(part) for part in parts])
    return np.concatenate(parts), torch.arange(len(parts)).repeat_interleave(counts)


def _scan(folder: Path) -> tuple[_Names, np.ndarray, _Names]:
    """Return the files of the classes, those without labels, and those of the test classes."""

    def files(part: Path) -> np.ndarray:
        below = part.relative_to(folder)
        return np.array([os.fsencode(f"{below}/{name}") for name in _list_names(part)], "S")

    classes, unlabeled, test_classes = {}, [np.empty(0, "S")], {}
    for path in _only_folders(folder):
        if path.name.lower() in ("unlabeled", "unlabelled"):
            unlabeled.append(files(path))
        elif path.name.lower() == "test":
            for part in _only_folders(path):
                before = test_classes.get(part.name, np.empty(0, "S"))
                test_classes[part.name] = np.concatenate([before, files(part)])
        else:
            classes[path.name] = files(path)
    if len(classes) < 2:
        found = _listed(classes) or "none"
        raise DataError(f"{_shown(folder)}: expected at least 2 class folders, got {found}")
    if unknown := sorted(set(test_classes) - set(classes)):
        raise DataError(
            f"{_shown(folder)}: expected test classes among {_listed(classes)}, "
            f"got {_listed(unknown)}"
        )
    if empty := [name for name in classes if not len(classes[name])]:
        raise DataError(
            f"{_shown(folder)}: expected images in every class folder, got none in {_listed(empty)}"
        )
    return classes, np.concatenate(unlabeled), test_classes


def _only_folders(folder: Path) -> list[Path]:
    entries = list_folder(folder)
    if files := [_shown(path) for path in entries if not path.is_dir()]:
        raise DataError(
            f"{_shown(folder)}: expected images inside class folders, got {_some(files)}"
        )
    return entries


def _hold_out(folder: Path, classes: _Names) -> tuple[_Names, _Names]:
    """Take test images of each class by the hash of their names: the same wherever it is run.

    Each name decides for itself, so that images that a run has learned from hardly ever become test
    images when the folder grows: only in a class of which names alone would hold out less than a
    tenth, or more than three.
    """
    kept, held = {}, {}
    for name, files in classes.items():
        if len(files) < 2:
            raise DataError(
                f"{_shown(folder)}: expected a test folder, or 2 images in every class so that "
                f"one can be held out, got 1 in {_listed([name])}"
            )
        digests = [hashlib.sha256(file).digest()[:8] for file in files]  # of class/file
        shares = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
        n_held = (shares < HELD_OUT).sum().clip(math.ceil(0.1 * len(files)), 0.3 * len(files))
        n_held = max(int(n_held), 1)
        chosen = np.zeros(len(files), bool)
        chosen[shares.argsort()[:n_held]] = True
        kept[name], held[name] = files[~chosen], files[chosen]
    return kept, held


def _listed(names: Iterable[str]) -> str:
    return _some([repr(name) for name in names])


def _some(names: Sequence[str], most: int = 10) -> str:
    """Join names to one line that can be read, however many there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
