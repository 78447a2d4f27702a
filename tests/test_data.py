"""Splits and batches: no hidden label survives, nothing depends on chance or on state."""

import gc
import hashlib
import importlib.util
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semigen_lib import data as data_module
from semigen_lib.data import (
    COMMITTED_SEEDS,
    COMMITTED_SIZES,
    SPLITS,
    UNLABELED,
    Batch,
    BatchStream,
    DataError,
    ImageData,
    ImageSet,
    LabelSplit,
    load_images,
    rank_images,
    split_labels,
    to_float,
)

ROOT = Path(__file__).parents[1]
# Machines that are busy with other things must not make a test fail.
UNHURRIED = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def mnist() -> ImageData:
    return load_images("mnist")


def toy(n: int = 60, n_classes: int = 3, unlabeled: int = 0, name: str = "toy") -> ImageData:
    """Images that carry their own index, so that a batch says which images it holds."""
    index = torch.arange(n)
    images = torch.zeros(n, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = index % 256, index // 256
    labels = index % n_classes
    labels[n - unlabeled :] = UNLABELED
    names = tuple(f"class {k}" for k in range(n_classes))
    test = ImageSet(images[:n_classes].clone(), torch.arange(n_classes))
    return ImageData(name, names, ImageSet(images, labels), test)


def which(images: torch.Tensor) -> list[int]:
    """Read the index back from the images of ``toy``, uint8 or float."""
    if images.dtype != torch.uint8:
        images = (images * 255).round()
    values = images[:, 0, 0].long()
    return (values[:, 0] + 256 * values[:, 1]).tolist()


def same(first: LabelSplit, second: LabelSplit) -> bool:
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.labels, second.labels)
        and torch.equal(first.labeled_index, second.labeled_index)
    )


# ---- the types ----


def test_sets_and_splits_tell_their_sizes() -> None:
    data = toy()
    split = split_labels(data, 6, 0, n_validation=3)
    assert len(data.train) == 60 and data.image_shape == (1, 2, 2) and data.n_classes == 3
    assert (len(split), split.image_shape, split.n_classes, split.n_labeled) == (
        57,
        (1, 2, 2),
        3,
        6,
    )
    assert split.name == "toy" and split.class_names == data.class_names and split.seed == 0
    assert len(split.validation) == 3


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_image_set_refuses_other_types_and_shapes(images, labels) -> None:
    with pytest.raises(DataError, match=r"^expected (uint8|int64) .*, got .*$"):
        ImageSet(images, labels)


@pytest.mark.parametrize(
    "bad", ["label too high", "label too low", "test unlabelled", "shape", "empty"]
)
def test_image_data_refuses_what_does_not_add_up(bad) -> None:
    data = toy()
    train, test = data.train, data.test
    if bad == "label too high":
        train = ImageSet(train.images, train.labels + 1)
    elif bad == "label too low":
        train = ImageSet(train.images, train.labels - 2)
    elif bad == "test unlabelled":
        test = ImageSet(test.images, test.labels - 1)
    elif bad == "shape":
        test = ImageSet(test.images[..., :1], test.labels)
    else:
        test = ImageSet(test.images[:0], test.labels[:0])
    with pytest.raises(DataError, match=r"^toy.*: expected .*, got .*$"):
        ImageData("toy", data.class_names, train, test)


# ---- the draw of the labels ----


def test_committed_files_are_what_the_generator_draws(mnist) -> None:
    path = ROOT / "book" / "tools" / "make_splits.py"
    spec = importlib.util.spec_from_file_location("make_splits", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    drawn = tool.split_files(mnist)
    committed = {path.name: path.read_bytes().decode() for path in SPLITS.iterdir()}
    assert committed == drawn
    assert len(committed) == len(COMMITTED_SIZES) + 1


def test_committed_sums_are_right() -> None:
    lines = (SPLITS / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == len(COMMITTED_SIZES)
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((SPLITS / name).read_bytes()).hexdigest() == digest


def test_ranking_written_out_by_hand() -> None:
    labels = torch.tensor([0, 1, 0, UNLABELED, 1, 0])
    ranks = rank_images("toy", labels, 2, 7)
    for k, members in enumerate([[0, 2, 5], [1, 4]]):
        texts = {hashlib.sha256(f"toy/7/{i}".encode()).hexdigest(): i for i in members}
        assert ranks[k].tolist() == [texts[digest] for digest in sorted(texts)]


@pytest.mark.parametrize("n_labeled", COMMITTED_SIZES)
def test_mnist_splits_are_balanced_and_hidden(mnist, n_labeled) -> None:
    seen = set()
    for seed in COMMITTED_SEEDS:
        split = split_labels(mnist, n_labeled, seed)
        kept = split.labels[split.labeled_index]
        assert split.n_labeled == n_labeled == int((split.labels != UNLABELED).sum())
        assert kept.bincount(minlength=10).tolist() == [n_labeled // 10] * 10
        assert torch.equal(kept, mnist.train.labels[split.labeled_index])
        assert (split.labeled_index.diff() > 0).all()
        seen.add(tuple(split.labeled_index.tolist()))
    assert len(seen) == len(COMMITTED_SEEDS)


@pytest.mark.parametrize("seed", [0, 9, 10, 123456789])
def test_budgets_of_one_seed_are_nested(mnist, seed) -> None:
    smaller: set[int] = set()
    for n_labeled in (*COMMITTED_SIZES, 5000):
        chosen = set(split_labels(mnist, n_labeled, seed).labeled_index.tolist())
        assert smaller < chosen
        smaller = chosen


@pytest.mark.parametrize("n_validation", [0, 1000])
def test_files_and_generator_agree_with_and_without_validation(
    mnist, monkeypatch, n_validation
) -> None:
    from_file = split_labels(mnist, 100, 3, n_validation=n_validation)
    monkeypatch.setattr(data_module, "COMMITTED_SIZES", ())
    drawn = split_labels(mnist, 100, 3, n_validation=n_validation)
    assert same(from_file, drawn)


def test_altered_index_file_is_refused(mnist, monkeypatch, tmp_path) -> None:
    for path in SPLITS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(data_module, "SPLITS", tmp_path)
    file = tmp_path / "mnist_10.txt"
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(DataError, match=r"mnist_10.txt: expected sha256 \w+, got \w+$"):
        split_labels(mnist, 10, 0)
    file.unlink()
    with pytest.raises(DataError, match=r"mnist_10\.txt: expected sha256"):
        split_labels(mnist, 10, 0)


def test_index_files_are_not_used_for_other_data(mnist) -> None:
    relabeled = ImageSet(mnist.train.images, (mnist.train.labels + 1) % 10)
    relabeled.labels[split_labels(mnist, 10, 0).labeled_index[0]] = 0
    with pytest.raises(DataError, match="expected 10 labels in balance, got"):
        split_labels(ImageData("mnist", mnist.class_names, relabeled, mnist.test), 10, 0)
    small = toy(200, 10, name="mnist")
    assert split_labels(small, 10, 0).labeled_index.max() < 200


@UNHURRIED
@given(
    n=st.integers(40, 300),
    n_classes=st.integers(2, 6),
    unlabeled=st.integers(0, 15),
    per_class=st.integers(1, 2),
    held=st.integers(0, 2),
    seed=st.integers(0, 2**70),
)
def test_split_properties(n, n_classes, unlabeled, per_class, held, seed) -> None:
    data = toy(n, n_classes, unlabeled)
    split = split_labels(data, per_class * n_classes, seed, n_validation=held * n_classes)
    pool, labeled = which(split.images), which(split.images[split.labeled_index])
    validation = which(split.validation.images) if held else []
    assert sorted(pool + validation) == list(range(n))  # nothing lost, nothing twice
    assert pool == sorted(pool) and not set(labeled) & set(validation)
    visible = (split.labels != UNLABELED).nonzero().flatten()
    assert torch.equal(visible, split.labeled_index)
    assert split.labels[visible].tolist() == [i % n_classes for i in labeled]
    assert Counter(i % n_classes for i in labeled) == dict.fromkeys(range(n_classes), per_class)
    assert all(i < n - unlabeled for i in labeled + validation)
    if held:
        assert split.validation.labels.tolist() == [i % n_classes for i in validation]
        assert Counter(split.validation.labels.tolist()) == dict.fromkeys(range(n_classes), held)
        pool_without = which(split_labels(data, per_class * n_classes, seed).images)
        assert pool_without == list(range(n))
        # Taking out a validation set does not change which images are labelled.
        plain = split_labels(data, per_class * n_classes, seed)
        assert which(plain.images[plain.labeled_index]) == labeled


def test_every_label_with_none() -> None:
    split = split_labels(toy(50, 3, unlabeled=8), None, 0, n_validation=6)
    assert split.n_labeled == 50 - 8 - 6
    assert (split.labels == UNLABELED).sum() == 8
    assert split_labels(toy(50, 3), None, 0).n_labeled == 50


def test_numpy_integers_are_numbers() -> None:
    assert same(split_labels(toy(), np.int64(6), np.int32(1)), split_labels(toy(), 6, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_labeled": 10}, "expected n_labeled to be divisible by 3 classes, got 10"),
        ({"n_labeled": 0}, "expected n_labeled to be a whole number >= 1, got 0"),
        ({"n_labeled": -3}, "expected n_labeled to be a whole number >= 1, got -3"),
        ({"n_labeled": 3.0}, "expected n_labeled to be a whole number >= 1, got 3.0"),
        ({"n_labeled": "3"}, "expected n_labeled to be a whole number >= 1, got '3'"),
        ({"n_labeled": True}, "expected n_labeled to be a whole number >= 1, got True"),
        ({"seed": -1}, "expected seed to be a whole number >= 0, got -1"),
        ({"seed": None}, "expected seed to be a whole number >= 0, got None"),
        ({"n_validation": 4}, "expected n_validation to be divisible by 3 classes, got 4"),
        ({"n_validation": -3}, "expected n_validation to be a whole number >= 0, got -3"),
        (
            {"n_labeled": 63},
            "expected n_labeled + n_validation <= 60, as class 'class 0' has 20 labels, got 63",
        ),
        (
            {"n_labeled": 57, "n_validation": 6},
            "expected n_labeled + n_validation <= 60, as class 'class 0' has 20 labels, got 63",
        ),
        (
            {"n_labeled": None, "n_validation": 60},
            "expected n_labeled + n_validation <= 60, as class 'class 0' has 20 labels, got 63",
        ),
    ],
)
def test_bad_requests_are_one_line(arguments, message) -> None:
    with pytest.raises(DataError) as error:
        split_labels(toy(), **{"n_labeled": 6, "seed": 0, **arguments})
    assert str(error.value) == message


def test_the_scarcest_class_decides() -> None:
    data = toy(60, 3)
    data.train.labels[data.train.labels == 1] = UNLABELED
    data.train.labels[1:11:3] = 1
    assert split_labels(data, 12, 0).n_labeled == 12
    with pytest.raises(DataError, match="<= 12, as class 'class 1' has 4 labels, got 15"):
        split_labels(data, 15, 0)


# ---- leakage: hidden labels do not exist ----


def reachable(start: object) -> list[torch.Tensor]:
    """Every tensor that can be reached from an object by following references."""
    seen, queue, tensors = set(), [start], []
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type) or type(item).__name__ == "module":
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            tensors.append(item)
        if not callable(item) or hasattr(item, "__dict__"):
            queue += [r for r in gc.get_referents(item) if not hasattr(r, "__globals__")]
            queue += list(getattr(item, "__dict__", {}).values())
    return tensors


@pytest.mark.parametrize("n_validation", [0, 30])
def test_no_reference_to_hidden_labels(n_validation) -> None:
    data = toy(90, 3)
    split = split_labels(data, 6, 0, n_validation=n_validation)
    stream = BatchStream(split, batch_size=8, labeled_batch_size=4)
    stream.at(0)
    source = data.train.labels.untyped_storage().data_ptr()
    for owner in (split, stream):
        tensors = reachable(owner)
        assert any(tensor.data_ptr() == split.images.data_ptr() for tensor in tensors)
        assert all(tensor.untyped_storage().data_ptr() != source for tensor in tensors)
    visible = split.n_labeled + n_validation
    for tensor in (split.labels, split.labeled_index, split.validation and split.validation.labels):
        if tensor is not None:  # a slice would keep the whole behind it alive
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    known = [split.labels] + ([split.validation.labels] if split.validation else [])
    assert sum(int((labels != UNLABELED).sum()) for labels in known) == visible
    # What a checkpoint or another process would be given holds no more than that either.
    copied = pickle.loads(pickle.dumps(split))
    assert same(copied, split) and copied.labels.unique().min() == UNLABELED


def test_poisoned_hidden_labels_change_nothing(mnist) -> None:
    clean = split_labels(mnist, 100, 4)
    hidden = clean.labels == UNLABELED
    labels = mnist.train.labels.clone()
    labels[hidden] = (labels[hidden] + 1 + torch.arange(int(hidden.sum())) % 9) % 10
    assert (labels != mnist.train.labels).sum() == 59900
    train = ImageSet(mnist.train.images, labels)
    poisoned = split_labels(ImageData("mnist", mnist.class_names, train, mnist.test), 100, 4)
    assert same(clean, poisoned)
    streams = [BatchStream(split, seed=1) for split in (clean, poisoned)]
    for step in (0, 1, 936, 937, 938, 5000):
        for first, second in zip(*(stream.at(step) for stream in streams), strict=True):
            assert torch.equal(first, second)


def test_poison_after_the_split_changes_nothing() -> None:
    data = toy(90, 3)
    split = split_labels(data, 6, 0, n_validation=6)
    before = [tensor.clone() for tensor in (split.labels, split.labeled_index)]
    validation = split.validation.labels.clone()
    stream = BatchStream(split, batch_size=16, labeled_batch_size=5)
    batches = [stream.at(step) for step in range(12)]
    data.train.labels.fill_(2)
    assert torch.equal(split.labels, before[0]) and torch.equal(split.labeled_index, before[1])
    assert torch.equal(split.validation.labels, validation)
    again = BatchStream(split, batch_size=16, labeled_batch_size=5)
    for step, batch in enumerate(batches):
        assert all(map(torch.equal, batch, again.at(step)))


@pytest.mark.parametrize("n_labeled", [3, 12, 60])
def test_stream_shows_the_labelled_images_and_no_others(n_labeled) -> None:
    data = toy(60, 3)
    split = split_labels(data, n_labeled, 1)
    stream = BatchStream(split, batch_size=7, labeled_batch_size=5)
    labeled, pool = Counter(), Counter()
    for step in range(60):
        batch = stream.at(step)
        shown = which(batch.labeled_images)
        assert batch.labels.tolist() == [i % 3 for i in shown]
        labeled.update(shown)
        pool.update(which(batch.images))
    assert sorted(labeled) == split.labeled_index.tolist() and len(labeled) == n_labeled
    assert max(labeled.values()) - min(labeled.values()) <= 1
    assert sorted(pool) == list(range(60))  # labelled images are in the pool too, without labels
    assert set(pool.values()) == {7}


def test_validation_images_never_reach_a_batch() -> None:
    split = split_labels(toy(60, 3), 6, 1, n_validation=12)
    stream = BatchStream(split, batch_size=16, labeled_batch_size=8)
    shown = set()
    for step in range(30):
        batch = stream.at(step)
        shown |= set(which(batch.images)) | set(which(batch.labeled_images))
    assert shown.isdisjoint(which(split.validation.images)) and len(shown) == 48


# ---- batches ----


def test_batch_has_the_promised_form(mnist) -> None:
    batch = BatchStream(split_labels(mnist, 10, 0)).at(3)
    assert isinstance(batch, Batch)
    assert batch.images.shape == (64, 1, 28, 28) and batch.labeled_images.shape == (32, 1, 28, 28)
    assert batch.images.dtype == batch.labeled_images.dtype == torch.float32
    assert batch.labels.shape == (32,) and batch.labels.dtype == torch.int64
    assert batch.images.is_contiguous() and batch.labeled_images.is_contiguous()
    assert batch.images.min() == 0 and batch.images.max() == 1
    assert Counter(batch.labels.tolist()).most_common()[-1][1] >= 2  # ten images fill 32 places


@UNHURRIED
@given(
    n=st.integers(6, 80),
    size=st.integers(1, 200),
    labeled_size=st.integers(0, 20),
    seed=st.integers(0, 2**64),
    steps=st.permutations(list(range(12))),
)
def test_stream_is_a_pure_function_of_the_step(n, size, labeled_size, seed, steps) -> None:
    split = split_labels(toy(n, 3), 3, 0)
    sizes = {"batch_size": size, "labeled_batch_size": labeled_size, "seed": seed}
    in_order = BatchStream(split, **sizes)
    expected = [in_order.at(step) for step in range(12)]
    jumping = BatchStream(split, **sizes)
    state = torch.random.get_rng_state()
    for step in steps:
        assert all(map(torch.equal, jumping.at(step), expected[step]))
        assert all(map(torch.equal, BatchStream(split, **sizes).at(step), expected[step]))
    assert torch.equal(state, torch.random.get_rng_state())
    # Laid end to end the batches are epochs, each with every image once.
    shown = [i for batch in expected for i in which(batch.images)]
    for start in range(0, len(shown) - n + 1, n):
        assert sorted(shown[start : start + n]) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    split = split_labels(toy(60, 3), 30, 0)

    def order(seed: int, epoch: int) -> list[int]:
        stream = BatchStream(split, batch_size=60, labeled_batch_size=30, seed=seed)
        return which(stream.at(epoch).images)

    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    batch = BatchStream(split, batch_size=30, labeled_batch_size=30).at(0)
    assert which(batch.images) != which(batch.labeled_images)


def test_long_runs_keep_two_orders_at_most() -> None:
    stream = BatchStream(split_labels(toy(), 6, 0), batch_size=50, labeled_batch_size=50)
    for step in range(40):
        stream.at(step)
        positions = stream._positions
        assert len(positions.pool._orders) <= 2 and len(positions.labeled._orders) <= 2


def test_batches_are_copies() -> None:
    stream = BatchStream(split_labels(toy(), 6, 0), batch_size=60)
    first = stream.at(0)
    kept = [tensor.clone() for tensor in first]
    for tensor in first:
        tensor.fill_(0)
    assert all(map(torch.equal, stream.at(0), kept))


def test_order_of_the_first_epoch_is_pinned() -> None:
    """A change of the stream would silently change every published run."""
    stream = BatchStream(
        split_labels(toy(12, 3), 6, 0), batch_size=12, labeled_batch_size=6, seed=5
    )
    batch = stream.at(0)
    assert which(batch.images) == [0, 5, 4, 10, 11, 3, 8, 9, 7, 1, 2, 6]
    assert which(batch.labeled_images) == [10, 1, 9, 5, 11, 6]


@pytest.mark.parametrize(
    ("arguments", "step", "message"),
    [
        ({"batch_size": 0}, 0, "expected batch_size to be a whole number >= 1, got 0"),
        ({"labeled_batch_size": -1}, 0, "expected labeled_batch_size to be a whole .* got -1"),
        ({"seed": 1.5}, 0, "expected seed to be a whole number >= 0, got 1.5"),
        ({}, -1, "expected step to be a whole number >= 0, got -1"),
        ({}, 0.5, "expected step to be a whole number >= 0, got 0.5"),
    ],
)
def test_bad_streams_are_one_line(arguments, step, message) -> None:
    with pytest.raises(DataError, match=f"^{message}$"):
        BatchStream(split_labels(toy(), 6, 0), **arguments).at(step)


def test_to_float_is_exact_and_refuses_floats() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = to_float(images)
    assert floats.dtype == torch.float32 and floats.shape == images.shape
    assert torch.equal(floats.flatten(), torch.arange(256) / 255)
    assert images.max() == 255
    with pytest.raises(DataError, match=r"expected uint8 images, got torch\.float32"):
        to_float(floats)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_stream_on_the_gpu_equals_the_cpu() -> None:
    split = split_labels(toy(), 6, 0)
    here, there = BatchStream(split), BatchStream(split, device="cuda")
    for step in (0, 3, 1):
        for first, second in zip(here.at(step), there.at(step), strict=True):
            assert second.is_cuda and torch.equal(first, second.cpu())


def test_names_are_all_there() -> None:
    assert all(hasattr(data_module, name) for name in data_module.__all__)
    assert data_module.UNLABELED == -1
