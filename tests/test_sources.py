"""Loading: MNIST, torchvision's sets (faked: no test touches the network), folders of images."""

import hashlib
import inspect
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from semigen_lib import sources
from semigen_lib.data import (
    UNLABELED,
    DataError,
    list_folder,
    load_images,
    read_images,
    source_names,
    split_labels,
)

ROOT = Path(__file__).parents[1]
# Machines that are busy with other things must not make a test fail.
UNHURRIED = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)


def message(error: pytest.ExceptionInfo) -> str:
    """The text of an error, which must be one line."""
    text = str(error.value)
    assert "\n" not in text and "expected " in text and "got " in text
    return text


# ---- MNIST ----


def test_mnist_is_whole_and_quick() -> None:
    start = time.process_time()  # of all threads together, so that other processes do not count
    data = load_images("mnist")
    assert time.process_time() - start < 3  # about 0.8 s
    assert data.name == "mnist" and data.class_names == tuple("0123456789") and data.notes == ()
    assert data.train.images.shape == (60000, 1, 28, 28) and len(data.test) == 10000
    assert data.train.labels.bincount().tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.train.images.is_contiguous() and data.train.images.float().mean() > 33


@pytest.mark.parametrize("name", ["MNIST", "Mnist", "mnist"])
def test_mnist_in_another_size(name, monkeypatch) -> None:
    monkeypatch.setattr(sources, "_read_idx", small_idx)
    data = load_images(name, image_size=32, channels=3)
    assert data.image_shape == (3, 32, 32)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])


def small_idx(name: str) -> torch.Tensor:
    shape = (20, *sources._MNIST_SHAPES[name][1:])
    return (torch.arange(int(np.prod(shape))) % 10).to(torch.uint8).view(shape)


def damaged(content: bytes, how: str) -> bytes:
    """A file of MNIST with one thing wrong, compressed again."""
    changed = bytearray(content)
    if how == "magic":
        changed[3] ^= 1
    elif how == "count":
        changed[7] ^= 1
    elif how == "label":
        changed[500] = 10
    elif how == "bit":
        changed[500] ^= 1
    elif how == "short":
        del changed[-1]
    elif how == "header":
        del changed[6:]
    return lzma.compress(bytes(changed), preset=0)


@pytest.mark.parametrize("how", ["magic", "count", "label", "bit", "short", "header"])
def test_damaged_mnist_is_named(monkeypatch, tmp_path, how) -> None:
    file = "t10k-labels-idx1-ubyte.xz"
    folder = tmp_path / "mnist"
    shutil.copytree(sources.ASSETS / "mnist", folder)
    monkeypatch.setattr(sources, "ASSETS", tmp_path)
    (folder / file).write_bytes(damaged(lzma.decompress((folder / file).read_bytes()), how))
    with pytest.raises(DataError) as error:
        sources._read_idx(file.removesuffix(".xz"))
    expected = {
        "magic": "magic and dimensions",
        "count": "magic and dimensions",
        "header": "magic and dimensions",
        "label": "expected labels 0 to 9, got 0 to 10",
        "bit": "expected sha256",
        "short": "expected 10008 bytes, got 10007",
    }
    assert file in message(error) and expected[how] in message(error)


@pytest.mark.parametrize("how", ["missing", "cut", "other"])
def test_unreadable_mnist_is_named(monkeypatch, tmp_path, how) -> None:
    name = "t10k-labels-idx1-ubyte"
    path = tmp_path / "mnist" / f"{name}.xz"
    path.parent.mkdir()
    if how != "missing":
        content = (sources.ASSETS / "mnist" / path.name).read_bytes()
        path.write_bytes(content[:-100] if how == "cut" else b"no archive")
    monkeypatch.setattr(sources, "ASSETS", tmp_path)
    with pytest.raises(DataError) as error:
        sources._read_idx(name)
    assert f"{path}: expected a whole xz file" in message(error)


def test_recorded_sums_are_those_of_the_files() -> None:
    for name, digest in sources._MNIST_SHA256.items():
        content = lzma.decompress((sources.ASSETS / "mnist" / f"{name}.xz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest


# ---- what load_images accepts ----


@pytest.mark.parametrize(
    ("source", "arguments", "text"),
    [
        ("mnits", {}, "expected an existing folder or one of mnist, fashionmnist"),
        ("", {}, "expected the name of a data set or a folder, got ''"),
        (None, {}, "expected the name of a data set or a folder, got None"),
        ("mnist", {"image_size": 0}, "expected image_size to be a whole number >= 1, got 0"),
        ("mnist", {"image_size": 28.0}, "expected image_size to be a whole number >= 1, got 28.0"),
        ("mnist", {"channels": 2}, "expected channels to be 1 or 3, got 2"),
        (Path("mnist"), {}, "expected an existing folder or one of"),
    ],
)
def test_bad_requests_are_one_line(monkeypatch, tmp_path, source, arguments, text) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        load_images(source, **arguments)
    assert text in message(error)


def test_torchvision_and_pillow_are_imported_only_where_needed() -> None:
    code = (
        "import sys; from semigen_lib.data import load_images; load_images('mnist');"
        "sys.exit(any(name in sys.modules for name in ('torchvision', 'PIL', 'matplotlib')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# ---- torchvision's sets ----


class Fake:
    """Stands for one of torchvision's classes: the right counts, or one thing wrong."""

    wrong = ""
    classes = tuple(f"name {k}" for k in range(10))

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        assert download and Path(root).is_dir()
        print("Downloading")  # as torchvision does
        self.calls.append((root, train))
        count = 40 if train else 20
        self.data = torch.full((count, 28, 28), 7, dtype=torch.uint8)
        self.targets = torch.arange(count) % 10
        if self.wrong == "offline":
            raise RuntimeError("Error downloading x.gz:\nTried mirror, got:\n<urlopen error>")
        if self.wrong == "count":
            self.data = self.data[1:]
        if self.wrong == "labels":
            self.targets = self.targets[1:]
        if self.wrong == "type":
            self.data = self.data.float()
        if self.wrong == "range":
            self.targets = self.targets + 1
        if self.wrong == "classes":
            self.targets = self.targets.clamp(min=1)
        if self.wrong == "byte":
            self.data[3, 3, 3] = 8


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Put ``Fake`` in the place of FashionMNIST; no other class may be built."""
    from torchvision import datasets

    made = type("FashionMNIST", (Fake,), {"calls": []})
    monkeypatch.setattr(datasets, "FashionMNIST", made)
    row = sources._SETS["fashionmnist"]._replace(counts=(40, 20))
    monkeypatch.setitem(sources._SETS, "fashionmnist", row)
    monkeypatch.setenv("SEMIGEN_CACHE", str(tmp_path / "cache"))
    return made


@pytest.mark.parametrize("name", ["fashion_mnist", "FashionMNIST", "FASHION-MNIST", "fashionmnist"])
def test_names_in_any_spelling(fake, tmp_path, capsys, name) -> None:
    data = load_images(name)
    assert (data.name, len(data.train), len(data.test)) == ("fashionmnist", 40, 20)
    assert data.class_names == Fake.classes and data.notes == ()
    assert fake.calls == [(str(tmp_path / "cache"), True), (str(tmp_path / "cache"), False)]
    assert (tmp_path / "cache" / "fashionmnist.sha256").is_file()
    assert capsys.readouterr().out == ""  # nothing of what torchvision prints


def test_converted_sets_say_so(fake, tmp_path) -> None:
    data = load_images("fashionmnist", image_size=16, channels=3, cache_dir=tmp_path / "other")
    assert data.image_shape == (3, 16, 16) and (data.train.images == 7).all()
    assert data.notes == (
        "fashionmnist: images of shape (1, 28, 28) were converted to (3, 16, 16).",
    )
    assert (tmp_path / "other" / "fashionmnist.sha256").is_file()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("count", "train, in .*: expected uint8 images .40, 1, 28, 28., got torch.uint8 .39, 1"),
        ("type", "train, in .*: expected uint8 images .*, got torch.float32"),
        ("labels", "expected 40 labels, got shape .39,."),
        ("range", "expected labels 0 to 9, got 1 to 10"),
        ("classes", "expected images of 10 classes, got 9"),
        ("offline", "expected fashionmnist in .* or a network .*, got RuntimeError: Error downl"),
    ],
)
def test_incomplete_sets_are_refused(fake, wrong, text) -> None:
    fake.wrong = wrong
    with pytest.raises(DataError, match=text) as error:
        load_images("fashionmnist")
    message(error)


def test_files_that_change_after_the_first_load_are_refused(fake) -> None:
    load_images("fashionmnist")
    load_images("fashionmnist", image_size=14)
    fake.wrong = "byte"
    with pytest.raises(DataError, match="as at the first load, got") as error:
        load_images("fashionmnist")
    message(error)


def test_downloads_are_locked(fake, monkeypatch) -> None:
    import filelock

    held = []
    original = filelock.FileLock.acquire

    def acquire(self, *args, **kwargs):
        held.append(Path(self.lock_file).name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    load_images("fashionmnist")
    assert held == ["FashionMNIST.lock"]


def test_missing_torchvision_is_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"expected kmnist in .*, got ModuleNotFoundError") as error:
        load_images("kmnist", cache_dir=tmp_path)
    message(error)


def test_cache_folder(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SEMIGEN_CACHE", raising=False)
    assert sources._cache_folder(None) == tmp_path / ".cache" / "semigen"
    monkeypatch.setenv("SEMIGEN_CACHE", str(tmp_path / "a"))
    assert sources._cache_folder(None) == tmp_path / "a"
    assert sources._cache_folder("~/b") == tmp_path / "b"


@pytest.mark.parametrize("name", source_names()[1:])
def test_table_agrees_with_torchvision(name) -> None:
    from torchvision import datasets

    row = sources._SETS[name]
    build = getattr(datasets, row.dataset)
    for arguments in row.arguments:
        inspect.signature(build).bind("root", download=True, **arguments)
    if row.dataset == "EMNIST":
        assert (
            len(build.classes_split_dict[row.arguments[0]["split"]][-row.n_classes :])
            == row.n_classes
        )
    elif row.class_names is None and not name.startswith("cifar"):  # CIFAR reads its names later
        assert len(build.classes) == row.n_classes
    elif row.class_names is not None:
        assert len(row.class_names) == row.n_classes


@pytest.mark.parametrize("name", source_names()[1:])
def test_every_row_loads_what_its_class_keeps(monkeypatch, tmp_path, name) -> None:
    """A fake in the shape that each class of torchvision keeps its arrays in."""
    from torchvision import datasets

    row = sources._SETS[name]
    count = 3 * row.n_classes

    class Kept:
        def __init__(self, root, download, **arguments) -> None:
            c, h, w = row.shape
            self.classes = ["N/A"] * row.first_label + [f"c{k}" for k in range(row.n_classes)]
            images = np.zeros((count, c, h, w), np.uint8)
            images[:, 0, 0, w - 1] = 255  # top right
            labels = np.arange(count) % row.n_classes + row.first_label
            if arguments.get("split") == "train+unlabeled":
                labels[-row.n_classes :] = UNLABELED
            if row.dataset in ("SVHN", "STL10"):
                self.data, self.labels = images, labels
            elif row.dataset.startswith("CIFAR"):
                self.data, self.targets = images.transpose(0, 2, 3, 1), labels.tolist()
            elif row.dataset == "USPS":
                self.data, self.targets = images[:, 0], labels.tolist()
            else:
                self.data, self.targets = torch.tensor(images[:, 0]), torch.tensor(labels)
            if row.dataset == "EMNIST":
                self.data = self.data.transpose(1, 2)
            if row.dataset == "QMNIST":
                self.targets = self.targets[:, None].repeat(1, 8)
                self.targets[:, 1:] = 99

    monkeypatch.setattr(datasets, row.dataset, Kept)
    monkeypatch.setitem(sources._SETS, name, row._replace(counts=(count, count)))
    c, h, w = row.shape
    data = load_images(name, image_size=h, channels=c, cache_dir=tmp_path)
    assert data.image_shape == row.shape and data.notes == () and data.n_classes == row.n_classes
    assert (data.train.images[:, 0, 0, w - 1] == 255).all() and data.train.images.is_contiguous()
    assert "N/A" not in data.class_names
    assert data.test.labels.tolist() == [i % row.n_classes for i in range(count)]
    unlabeled = row.n_classes if name == "stl10" else 0
    assert (data.train.labels == UNLABELED).sum() == unlabeled
    assert load_images(name, cache_dir=tmp_path).image_shape == (1, 28, 28)


def test_real_class_of_torchvision_reads_what_is_there(monkeypatch, tmp_path) -> None:
    """The class itself, on files that are already in the cache, so that it downloads nothing."""
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 30), ("t10k", 20)):
        header = b"".join(n.to_bytes(4, "big") for n in (2051, count, 28, 28))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(count * 784))
        header = b"".join(n.to_bytes(4, "big") for n in (2049, count))
        labels = bytes(k % 10 for k in range(count))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels)
    monkeypatch.setitem(sources._SETS, "kmnist", sources._SETS["kmnist"]._replace(counts=(30, 20)))
    data = load_images("KMNIST", cache_dir=tmp_path)
    assert data.class_names[1] == "ki" and len(data.train) == 30
    (raw / "train-images-idx3-ubyte").write_bytes(header + bytes(5))
    with pytest.raises(DataError, match="if a file is damaged, delete it") as error:
        load_images("kmnist", cache_dir=tmp_path)
    message(error)


# ---- folders ----


def draw(path: Path, value: int = 200, size: tuple[int, int] = (28, 28), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of ten images; the grey value of an image is its number."""
    root = tmp_path / "pets"
    for k, name in enumerate(("dog", "cat")):
        for i in range(10):
            draw(root / name / f"{i + 1}.png", 100 * k + i + 1)
    return root


def values(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_folder_with_everything(folder) -> None:
    for i in range(3):
        draw(folder / "unlabeled" / f"{i}.png", 220 + i)
        draw(folder / "unlabelled" / f"{i}.png", 230 + i)
        draw(folder / "test" / "cat" / f"{i}.png", 240 + i)
        draw(folder / "test" / "dog" / f"{i}.png", 250 + i)
    data = load_images(folder)
    assert data.name == "folder:pets" and data.class_names == ("cat", "dog") and data.notes == ()
    cats, dogs = list(range(101, 111)), list(range(1, 11))  # 10.png after 9.png
    assert values(data.train.images) == [*cats, *dogs, 220, 221, 222, 230, 231, 232]
    assert data.train.labels.tolist() == [0] * 10 + [1] * 10 + [UNLABELED] * 6
    assert values(data.test.images) == [240, 241, 242, 250, 251, 252]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    split = split_labels(data, None, 0)
    assert split.n_labeled == 20 and (split.labels[20:] == UNLABELED).all()
    assert split_labels(data, 4, 0).labeled_index.max() < 20


def test_folder_without_test_images_holds_some_out(folder) -> None:
    data = load_images(str(folder))
    held = [
        100 * (name == "cat") + i
        for name in ("cat", "dog")
        for i in range(1, 11)
        if hashlib.sha256(f"{name}/{i}.png".encode()).hexdigest() < "3333"  # a fifth of ffff
    ]
    assert len(held) == 8, "the names have changed, and so what follows"
    assert set(values(data.test.images)) < set(held), "three of ten at most"
    held = values(data.test.images)
    assert len(held) == 6
    assert data.test.labels.tolist() == [value < 100 for value in held]
    assert len(data.train) == 20 - len(held)
    assert set(values(data.train.images)).isdisjoint(held)
    assert data.notes == (
        f"{folder} has no test images: {len(held)} of 20 labelled images, at least one of each "
        "class, were held out for testing.",
    )
    again = load_images(folder)
    assert torch.equal(again.test.images, data.test.images)
    moved = folder.rename(folder.with_name("elsewhere"))
    assert torch.equal(load_images(moved).test.images, data.test.images)


@UNHURRIED
@given(sizes=st.lists(st.integers(2, 40), min_size=2, max_size=4), word=st.text("ab01", max_size=3))
def test_held_out_images_are_a_part_of_every_class(sizes, word) -> None:
    classes = {
        f"c{k}": np.array([f"c{k}/{word}{i}.png" for i in range(size)], "S")
        for k, size in enumerate(sizes)
    }
    kept, held = sources._hold_out(Path("x"), classes)
    for name, files in classes.items():
        assert sorted([*kept[name], *held[name]]) == sorted(files)
        most = max(1, 0.3 * len(files))
        assert 0.1 * len(files) <= len(held[name]) <= most < len(files)


def test_held_out_images_are_a_fifth_and_stay_when_a_folder_grows() -> None:
    """No image that was learned from becomes a test image because others came."""
    names = np.array([f"cat/{i}.png" for i in range(3000)], "S")
    for n in (50, 100, 400, 1000):  # of fewer, the share may want to be mended
        (learned,), (held,) = (
            part.values() for part in sources._hold_out(Path("x"), {"c": names[:n]})
        )
        (_,), (later,) = (part.values() for part in sources._hold_out(Path("x"), {"c": names}))
        assert set(held) <= set(later) and set(learned).isdisjoint(later), n
    assert abs(len(later) / 3000 - sources.HELD_OUT) < 0.03  # four standard deviations


def test_folder_notes_about_test_images(folder) -> None:
    draw(folder / "Test" / "cat" / "a.png", 101)
    draw(folder / "Test" / "cat" / "b.png", 99)
    draw(folder / "test" / "cat" / "c.png", 98)
    data = load_images(folder)
    assert len(data.test) == 3
    assert data.notes == (
        f"{folder}/test has no image of 'dog'.",
        "1 of 3 test images are also among the training images.",
    )


def test_files_of_file_managers_are_ignored(folder) -> None:
    before = load_images(folder)
    for name in (".DS_Store", ".hidden.png", "Thumbs.db", "desktop.ini"):
        (folder / name).write_text("x")
        (folder / "cat" / name).write_text("x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "cat" / ".cache").mkdir()
    after = load_images(folder)
    assert torch.equal(before.train.images, after.train.images)


def test_thousands_of_files_in_the_wrong_place_are_one_readable_line(folder) -> None:
    for i in range(3000):
        (folder / f"{i:04}.png").touch()
    with pytest.raises(DataError, match=r"0009\.png, and 2990 more\Z") as error:
        load_images(folder)
    assert len(message(error)) < 2000


def test_all_unreadable_files_are_named(folder) -> None:
    (folder / "cat" / "notes.txt").write_text("hello")
    (folder / "cat" / "empty.png").touch()
    whole = draw(folder / "dog" / "cut.jpg", size=(99, 99)).read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) - 60])
    (folder / "dog" / "more").mkdir()
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere.png")
    draw(folder / "unlabeled" / "ok.png")
    (folder / "unlabeled" / "line\nbreak.png").write_text("no")
    (folder / "test" / "cat").mkdir(parents=True)
    (folder / "test" / "cat" / "x.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(DataError) as error:
        load_images(folder)
    text = message(error)
    known = "BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP"
    assert text.startswith(f"expected readable images ({known}), got 7 other files: ")
    for part in (
        "notes.txt (not an image)",
        "empty.png (not an image)",
        "cut.jpg (OSError: image file",
    ):
        assert part in text
    for part in ("dog/more (a folder)", "gone.png (FileNotFoundError", "line\\nbreak.png", "x.pdf"):
        assert part in text


@pytest.mark.parametrize(
    ("arrange", "text"),
    [
        (lambda root: shutil.rmtree(root), "expected an existing folder or one of mnist"),
        (
            lambda root: [shutil.rmtree(path) for path in root.iterdir()],
            "expected at least 2 class folders, got none",
        ),
        (lambda root: shutil.rmtree(root / "cat"), "expected at least 2 class folders, got 'dog'"),
        (
            lambda root: [path.unlink() for path in (root / "cat").iterdir()],
            "expected images in every class folder, got none in 'cat'",
        ),
        (
            lambda root: [path.unlink() for path in list((root / "cat").iterdir())[1:]],
            "2 images in every class so that one can be held out, got 1 in 'cat'",
        ),
        (
            lambda root: draw(root / "test" / "bird" / "1.png"),
            "expected test classes among 'cat', 'dog', got 'bird'",
        ),
        (lambda root: draw(root / "stray.png"), "expected images inside class folders, got"),
        (lambda root: draw(root / "test" / "stray.png"), "expected images inside class folders"),
    ],
)
def test_folders_that_do_not_fit_are_one_line(folder, arrange, text) -> None:
    arrange(folder)
    with pytest.raises(DataError) as error:
        load_images(folder)
    assert text in message(error)


def test_folder_that_cannot_be_listed(tmp_path) -> None:
    with pytest.raises(DataError, match="expected a readable folder, got") as error:
        list_folder(tmp_path / "none")
    message(error)


def test_a_path_is_always_a_folder(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.with_name("mnist"))
    assert load_images(Path("mnist")).class_names == ("cat", "dog")
    assert load_images("./mnist").name == "folder:mnist"


# ---- single images ----


def read_one(path: Path, **arguments) -> torch.Tensor:
    images = read_images([path], **arguments)
    assert images.dtype == torch.uint8 and images.shape[0] == 1
    return images[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16"])
def test_modes(tmp_path, mode, channels) -> None:
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "I": "tif"}.get(mode, "png")
    path = tmp_path / f"image.{suffix}"
    if mode.startswith("I"):
        pixels = np.full((28, 28), 200 * 257, np.uint16 if mode == "I;16" else np.int32)
        Image.fromarray(pixels).save(path)
    else:
        Image.new("L", (28, 28), 200).convert(mode).save(path)
    image = read_one(path, channels=channels)
    assert image.shape == (channels, 28, 28)
    if mode == "1":
        assert set(image.unique().tolist()) <= {0, 255} and 150 < image.float().mean() < 250
    else:
        assert (image.int() - 200).abs().max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode) -> None:
    pixels = np.zeros((28, 28, 4), np.uint8)
    pixels[:14, :, 3] = 255  # the upper half is black, the lower half transparent black
    path = tmp_path / ("image.gif" if mode.startswith("P") else "image.png")
    image = Image.fromarray(pixels)
    (image if mode.startswith("P") else image.convert(mode)).save(path)
    read = read_one(path)
    assert (read[0, :14] == 0).all() and (read[0, 14:] == 255).all()


def test_colours(tmp_path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (28, 28), (255, 0, 10)).save(path)
    assert read_one(path, channels=3)[:, 0, 0].tolist() == [255, 0, 10]
    assert read_one(path)[0, 0, 0] in (76, 77)


def test_exact_size_is_not_touched(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_one(tmp_path / "a.png")[0].numpy(), pixels)


def test_long_images_are_padded_with_their_border(tmp_path) -> None:
    pixels = np.full((40, 80, 3), (10, 20, 30), np.uint8)
    pixels[10:30, 20:60] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = read_one(tmp_path / "wide.png", channels=3, image_size=40)
    assert (image[:, :10] == image[:, :1, :1]).all() and image[:, 0, 0].tolist() == [10, 20, 30]
    assert (image[:, 31:] == image[:, :1, :1]).all() and (image[:, 20, 20] == 255).all()
    Image.new("L", (1, 5000), 9).save(tmp_path / "thin.png")
    assert (read_one(tmp_path / "thin.png") == 9).all()


def test_exif_orientation_is_respected(tmp_path) -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[:14] = 255  # bright above
    exif = Image.Exif()
    exif[274] = 6  # the camera was held so that the picture must be turned 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_one(tmp_path / "a.png")[0]
    assert (image[:, 14:] == 255).all() and (image[:, :14] == 0).all()


@pytest.mark.parametrize("kind", ["float", "32 bit", "bomb", "big bomb"])
def test_images_without_a_meaning_or_an_end_are_refused(tmp_path, monkeypatch, kind) -> None:
    path = tmp_path / "image.tif"
    if kind == "float":
        Image.new("F", (4, 4), 0.5).save(path)
    elif kind == "32 bit":
        Image.new("I", (4, 4), 70000).save(path)
    else:
        draw(path, size=(100, 100))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000 if kind == "bomb" else 1000)
    with warnings.catch_warnings(record=True) as shown, pytest.raises(DataError) as error:
        read_images([path])
    reason = {"float": "floating-point", "32 bit": "more than 16 bits"}.get(kind, "Decompression")
    assert reason in message(error) and not shown


def test_no_path_gives_no_image() -> None:
    assert read_images([], image_size=8, channels=3).shape == (0, 3, 8, 8)


@UNHURRIED
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    image_size=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    value=st.integers(0, 255),
)
def test_any_size_becomes_the_square(
    tmp_path_factory, width, height, image_size, channels, value
) -> None:
    path = draw(tmp_path_factory.getbasetemp() / "any.png", value, (width, height))
    image = read_one(path, image_size=image_size, channels=channels)
    assert image.shape == (channels, image_size, image_size) and (image == value).all()


def test_order_is_natural(tmp_path) -> None:
    names = ["a10.png", "a2.png", "a1.png", "b.png", "A3.png", "2.png", "10.png", "a02.png"]
    for name in names:
        (tmp_path / name).touch()
    found = [path.name for path in list_folder(tmp_path)]
    assert found == ["2.png", "10.png", "A3.png", "a1.png", "a02.png", "a2.png", "a10.png", "b.png"]


@UNHURRIED
@given(
    st.lists(st.text(st.sampled_from("0123a\x01\x02.\u0663"), min_size=1, max_size=8), unique=True)
)
def test_order_is_that_of_words_and_numbers(names) -> None:
    def words(name: str) -> tuple:
        parts = re.split(r"([0-9]+)", name)
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name

    assert sorted(names, key=sources._natural_key) == sorted(names, key=words)


def test_fit_agrees_with_pillow() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    images = torch.tensor(pixels.transpose(2, 0, 1)[None])
    grey = np.asarray(Image.fromarray(pixels).convert("L"), int)
    assert np.abs(sources._fit(images, 32, 1)[0, 0].numpy() - grey).max() <= 1
    small = np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.BILINEAR), int)
    assert np.abs(sources._fit(images, 28, 3)[0].numpy() - small.transpose(2, 0, 1)).max() <= 1
