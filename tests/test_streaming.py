"""Images in files: the same batches as in memory, read ahead by processes that leave no trace."""

import gc
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_weights, weights
from PIL import Image

from semigen_lib import data, sources, streaming, training
from semigen_lib.checkpoint import read_json
from semigen_lib.cli import main
from semigen_lib.console import explain
from semigen_lib.data import (
    BatchStream,
    DataError,
    ImageFiles,
    LabelSplit,
    load_images,
    read_at,
    read_images,
    split_labels,
)
from semigen_lib.methods import METHODS
from semigen_lib.runtime import rng_state
from semigen_lib.streaming import default_workers
from semigen_lib.training import train

SIZES = {"batch_size": 6, "labeled_batch_size": 4, "seed": 3}
some_workers = pytest.mark.parametrize("workers", [0, 1, 2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of 15 images and 10 without a label, all different, of many sizes."""
    root = tmp_path_factory.mktemp("streams") / "shapes"
    values = np.random.default_rng(0)
    for name, count in (("cat", 15), ("dog", 15), ("unlabeled", 10), ("test/cat", 2)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            size = values.integers(5, 40, 2)
            pixels = values.integers(0, 256, size, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def splits(folder) -> tuple[LabelSplit, LabelSplit]:
    """The same split with images in memory and in files."""
    return tuple(
        split_labels(load_images(folder, stream=stream), 4, 1, n_validation=4)
        for stream in (False, True)
    )


@pytest.fixture(autouse=True)
def no_process_stays() -> None:
    yield
    gc.collect()
    assert all_have_ended()


def all_have_ended() -> bool:
    """Say whether no process is left; one that is told to end may need a moment."""
    deadline = time.monotonic() + 15
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return multiprocessing.active_children() == []


def same_batch(first, second) -> bool:
    return all(map(torch.equal, first, second))


# ---- files ----


def test_files_are_read_as_images_are(folder) -> None:
    inside, outside = load_images(folder, stream=False), load_images(folder, stream=True)
    files = outside.train.images
    assert isinstance(files, ImageFiles) and len(files) == 40 and files.shape == (40, 1, 28, 28)
    assert torch.equal(files.read(torch.arange(40)), inside.train.images)
    order = torch.tensor([39, 0, 17, 17, 5])
    assert torch.equal(files.read(order), inside.train.images[order])
    assert torch.equal(files[order].read(torch.tensor([1, 4])), inside.train.images[[0, 5]])
    assert torch.equal(read_at(inside.train.images, order), read_at(files, order))
    paths = list(files[order].paths())
    assert torch.equal(read_images(paths), inside.train.images[order])
    assert paths[1] == folder / "cat" / "0.png"
    assert torch.equal(outside.test.images, inside.test.images)
    for one, other in ((outside.train, inside.train), (outside.test, inside.test)):
        assert torch.equal(one.labels, other.labels)
    assert outside.name == inside.name and outside.class_names == inside.class_names


def test_held_out_images_are_the_same_ones(folder, tmp_path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).symlink_to(folder / name)
    inside, outside = (load_images(tmp_path, stream=stream) for stream in (False, True))
    assert torch.equal(outside.test.images, inside.test.images) and len(inside.train) < 30
    everything = torch.arange(len(inside.train))
    assert torch.equal(outside.train.images.read(everything), inside.train.images)
    assert outside.notes[0] == inside.notes[0] and len(outside.notes) == 2


def test_only_validation_images_are_read_for_a_split(folder, splits, monkeypatch) -> None:
    inside, _ = splits
    everything = load_images(folder, stream=True)
    read, first = [], sources._read_image
    monkeypatch.setattr(sources, "_read_image", lambda *a: read.append(a[0]) or first(*a))
    outside = split_labels(everything, 4, 1, n_validation=4)
    assert len(read) == 4 and isinstance(outside.images, ImageFiles)
    assert torch.equal(outside.labels, inside.labels)
    assert torch.equal(outside.labeled_index, inside.labeled_index)
    assert torch.equal(outside.validation.images, inside.validation.images)
    assert torch.equal(outside.images.read(torch.arange(36)), inside.images)


def test_a_name_is_a_few_bytes(folder) -> None:
    files = load_images(folder, stream=True).train.images
    assert files._names.dtype == "S15" and files._names[-1] == b"unlabeled/9.png"
    strange = os.fsdecode(b"\xff\xfe 1.png")
    moved = ImageFiles(Path("x"), np.array([os.fsencode(strange)]), 28, 1)
    assert [path.name for path in moved.paths()] == [strange]


# ---- which way ----


@pytest.mark.parametrize(
    ("free", "stream", "streams"),
    [
        (4 * 40 * 784, None, False),
        (4 * 40 * 784 - 4, None, True),
        (0, False, False),
        (10**12, True, True),
    ],
)
def test_size_decides_unless_somebody_does(folder, monkeypatch, free, stream, streams) -> None:
    monkeypatch.setattr(sources, "available_memory", lambda: free)
    loaded = load_images(folder, stream=stream)
    assert isinstance(loaded.train.images, ImageFiles) == streams
    notes = [note for note in loaded.notes if "stay in their files" in note]
    assert len(notes) == streams
    if streams:
        assert str(folder) in notes[0] and "40 training images" in notes[0]
        assert "0.0 MB of pixels" in notes[0] and f"{free / 1e6:.0f} MB of memory" in notes[0]


def test_memory_is_what_the_kernel_and_the_container_leave(monkeypatch) -> None:
    known = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    3000 kB\n"}

    def read_text(path: Path) -> str:
        if str(path) not in known:
            raise FileNotFoundError(path)
        return known[str(path)]

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert sources.available_memory() == 3000 * 1024
    known["/sys/fs/cgroup/memory.max"] = "max\n"
    assert sources.available_memory() == 3000 * 1024
    known["/sys/fs/cgroup/memory.max"] = "1000000\n"
    assert sources.available_memory() == 1000000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert sources.available_memory() == 250000
    known.clear()
    assert sources.available_memory() > 10**8  # the machine's, where the kernel does not say


@pytest.mark.parametrize("name", ["mnist", "CIFAR-10"])
def test_named_sets_do_not_stream(name) -> None:
    with pytest.raises(DataError) as error:
        load_images(name, stream=True)
    assert (
        str(error.value) == f"expected a folder of images to stream, got {name!r}, which does not"
    )


# ---- batches ----


@some_workers
def test_batches_are_those_of_memory(splits, workers) -> None:
    inside, outside = (BatchStream(split, **SIZES, workers=workers) for split in splits)
    for step in (*range(9), 100, 101, 7, 7, 0):  # past the end of an epoch, ahead and back
        assert same_batch(inside.at(step), outside.at(step)), step
    outside.close()


def test_parts_are_those_of_memory(splits) -> None:
    inside = BatchStream(splits[0], **SIZES)
    parts = [BatchStream(splits[1], **SIZES, part=(r, 2), workers=0) for r in range(2)]
    for step in (0, 1, 50):
        for whole, *mine in zip(inside.at(step), *(p.at(step) for p in parts), strict=True):
            assert all(torch.equal(part, whole[r::2]) for r, part in enumerate(mine))


def test_no_labelled_images_are_no_images(splits) -> None:
    stream = BatchStream(splits[1], batch_size=3, labeled_batch_size=0, workers=0)
    assert stream.at(0).labeled_images.shape == (0, 1, 28, 28)


def test_images_too_large_for_a_device_stay_in_main_memory(splits, monkeypatch) -> None:
    inside, _ = splits
    size, free = inside.images.numel(), []
    monkeypatch.setattr(data, "_free", lambda device: free[0])
    for n_free, fits in ((2 * size, True), (2 * size - 1, False)):
        free[:] = [n_free]
        assert data._fits(inside.images, torch.device("cuda")) == fits
    assert data._fits(inside.images, torch.device("cpu")), "they are there already"
    monkeypatch.setattr(data, "_fits", lambda *_: False)
    copied = BatchStream(inside, **SIZES)
    assert copied.pool is inside.images and copied._loader is not None
    monkeypatch.undo()
    for step in (0, 1, 5, 3):
        assert same_batch(copied.at(step), BatchStream(inside, **SIZES).at(step))


def test_some_images(splits) -> None:
    for split in splits:
        stream = BatchStream(split, **SIZES)
        assert torch.equal(stream.some_images(4), splits[0].images[::9])
        assert torch.equal(stream.some_images(1000), splits[0].images)


@some_workers
def test_no_generator_is_touched(splits, workers) -> None:
    stream = BatchStream(splits[1], **SIZES, workers=workers)
    before = rng_state()
    for step in (0, 1, 9):
        stream.at(step)
    stream.close()
    after = rng_state()
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- processes ----


def test_processes_begin_late_and_end_at_once(splits) -> None:
    stream = BatchStream(splits[1], **SIZES, workers=2)
    assert multiprocessing.active_children() == []
    stream.at(0)
    first = {child.pid for child in multiprocessing.active_children()}
    stream.at(1)
    assert {child.pid for child in multiprocessing.active_children()} == first and len(first) == 2
    stream.at(5)
    assert {child.pid for child in multiprocessing.active_children()}.isdisjoint(first)
    stream.close()
    assert multiprocessing.active_children() == []
    stream.at(6)
    del stream  # nor does a forgotten one leave any
    assert multiprocessing.active_children() == []


def test_no_signal_to_all_reaches_the_processes(splits) -> None:
    stream = BatchStream(splits[1], **SIZES, workers=1)
    stream.at(0)
    (child,) = multiprocessing.active_children()
    assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
    stream.close()


def test_default_number_of_processes(monkeypatch) -> None:
    for cpus, n in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: range(cpus))
        assert default_workers() == n
    monkeypatch.delattr(os, "sched_getaffinity")  # as on other systems than Linux
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert default_workers() == 3
    monkeypatch.setattr(streaming.multiprocessing.current_process(), "_config", {"daemon": True})
    assert default_workers() == 0, "a process of a pool may start none"


@pytest.mark.parametrize("workers", [-1, 1.0, True])
def test_bad_numbers_of_processes(splits, workers) -> None:
    with pytest.raises(DataError, match="expected workers to be a whole number >= 0, got"):
        BatchStream(splits[1], workers=workers)


# ---- training ----


def trained(make_method, name: str, split: LabelSplit, **options) -> tuple[dict, dict]:
    """History, without its clock, and weights."""
    method = make_method(name, n_classes=2)
    options = {"steps": 5, "record_every": 1, "progress": False} | options
    history = dict(train(method, split, **options))
    del history["seconds"]
    return history, weights(method)


def same_run(first: tuple, second: tuple) -> bool:
    return first[0] == second[0] and same_weights(first[1], second[1])


@pytest.mark.parametrize("name", METHODS)
def test_streamed_training_is_training(name, make_method, splits, tmp_path) -> None:
    inside, outside = splits
    if METHODS[name].looks_at_pool:
        with pytest.raises(ValueError) as error:
            trained(make_method, name, outside, states=tmp_path / "states")
        assert str(error.value) == (
            "method: expected one that takes images batch by batch, such as combined or lsgan, or "
            f"images that fit in memory, got {name} and 36 images that stay in their files"
        )
        assert not (tmp_path / "states").exists()
        return
    workers = 1 if name == "combined" else 0
    assert same_run(
        trained(make_method, name, inside),
        trained(make_method, name, outside, workers=workers),
    )


def test_methods_that_refuse_a_stream_are_these() -> None:
    assert {name for name in METHODS if METHODS[name].looks_at_pool} == {"propagate", "cgan", "dpt"}


def test_collapse_is_looked_for_in_the_same_images(make_method, splits, monkeypatch) -> None:
    monkeypatch.setattr(training, "LOOK_EVERY", 2)
    monkeypatch.setattr(training, "VARIETY", math.inf)
    runs = [trained(make_method, "lsgan", split, workers=0) for split in splits]
    assert same_run(*runs) and runs[0][0]["collapse"][3] > 0


def test_streamed_run_resumes_bit_for_bit(make_method, splits, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", 0.0)

    def stop(step: int, _: object) -> None:
        if step == 3:
            raise InterruptedError

    straight = trained(make_method, "combined", splits[1], workers=0)
    with pytest.raises(InterruptedError) as kept:  # and with it, all that the run refers to
        trained(make_method, "combined", splits[1], workers=1, states=tmp_path, on_record=stop)
    assert all_have_ended() and kept, "an exception ends them as well"
    for split in splits:  # wherever the images are now
        states = shutil.copytree(tmp_path, tmp_path.with_name(f"copy{split is splits[0]}"))
        resumed = trained(make_method, "combined", split, workers=1, states=states, resume=True)
        assert same_run(resumed, straight)


@some_workers
def test_a_file_that_is_damaged_meanwhile_is_named(folder, make_method, tmp_path, workers) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    split = split_labels(load_images(own, stream=True), 4, 1)
    index = BatchStream(split, batch_size=8).at(2).index
    (path,) = split.images[index[~torch.isin(index, split.labeled_index)][:1]].paths()
    path.write_bytes(path.read_bytes()[:60])
    steps = []
    method = make_method("lsgan", n_classes=2, batch_size=8, labeled_batch_size=1)
    with pytest.raises(DataError) as error:
        train(
            method,
            split,
            steps=5,
            record_every=1,
            progress=False,
            workers=workers,
            on_record=lambda step, _: steps.append(step),
        )
    assert f"WEBP), got 1 other file: {path} (" in str(error.value)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    assert steps == [1, 2], "what was read ahead is not an error yet"
    assert all_have_ended()


# ---- the command line ----


def semigen_train(folder: Path, out: Path, *more: str) -> int:
    small = ["--steps", "4", "--set", "width=8", "--set", "batch_size=8", "--quiet"]
    return main(["train", "--data", str(folder), "--out", str(out), *small, *more])


def test_the_command_streams_and_says_so_in_one_line(folder, tmp_path, capsys) -> None:
    said = []
    for stream in ("never", "always"):
        assert semigen_train(folder, tmp_path / stream, "--stream", stream) == 0
        said.append(capsys.readouterr().err.splitlines())
    assert set(said[1]) - set(said[0]) == {
        f"semigen: {folder}: 40 training images stay in their files, 0.0 MB of pixels, with "
        f"{said[1][-1].split(' with ')[1].split(' MB')[0]} MB of memory free; they are read while "
        "training."
    }
    never, always = (
        read_json(tmp_path / stream / "metrics.json") for stream in ("never", "always")
    )
    assert never["sha256"] == always["sha256"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--method", "cgan"], "got cgan and 40 images that stay in their files"),
        (["--workers", "-1"], "expected workers to be a whole number >= 0, got -1"),
        (["--data", "mnist"], "expected a folder of images to stream, got 'mnist'"),
    ],
)
def test_refused_before_anything_is_written(folder, tmp_path, capsys, arguments, text) -> None:
    assert semigen_train(folder, tmp_path / "run", "--stream", "always", *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert text in line and not (tmp_path / "run").exists()


def test_a_damaged_file_is_one_line(folder, tmp_path, capsys) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "unlabeled" / "3.png").write_bytes(b"not an image")
    arguments = ("--stream", "always", "--workers", "1", "--steps", "9")
    assert semigen_train(own, tmp_path / "run", *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"got 1 other file: {own / 'unlabeled' / '3.png'} (not an image)")


def test_a_killed_process_is_one_line(splits) -> None:
    with closing(BatchStream(splits[1], **SIZES, workers=1)) as stream:
        stream.at(0)
        (child,) = multiprocessing.active_children()
        with pytest.raises(RuntimeError) as error:
            os.kill(child.pid, signal.SIGKILL)  # torch hears of it at any moment from here on
            for step in range(1, 100):
                stream.at(step)
    assert "workers: expected the processes that read images to go on" in explain(error.value)


def test_a_broken_connection_is_the_same_line(splits) -> None:
    """Which of the two a killed process shows first is a matter of microseconds."""

    def broken() -> Iterator:
        raise ConnectionResetError(104, "Connection reset by peer")
        yield

    with closing(BatchStream(splits[1], **SIZES, workers=1)) as stream:
        stream.at(0)
        expected = stream.at(1)
        processes = stream._loader._batches
        stream._loader._batches = broken()
        with pytest.raises(RuntimeError) as error:
            stream.at(2)
        assert "workers: expected the processes that read images to go on" in explain(error.value)
        processes._shutdown_workers()
        assert same_batch(stream.at(1), expected)


def test_a_death_that_torch_reports_late_does_not_stop_the_end(splits) -> None:
    class Dying:
        def _shutdown_workers(self) -> None:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    stream = BatchStream(splits[1], **SIZES, workers=1)
    stream._loader._batches = Dying()
    stream.close()
    assert stream._loader._batches is None


@pytest.mark.slow
def test_a_stop_for_all_processes_of_a_run_loses_nothing(folder, tmp_path) -> None:
    """``timeout`` and a terminal signal the whole group, readers included."""
    out, more = tmp_path / "run", ["--stream", "always", "--workers", "2", "--quiet"]
    line = [sys.executable, "-m", "semigen_lib", "train", "--data", str(folder), "--out", str(out)]
    # More steps than a test can wait for.
    run = subprocess.Popen(
        [*line, *more, "--steps", "1000000", "--set", "width=8"],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    readers = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while run.poll() is None and len(readers.read_text().split()) < 2:
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(run.pid, signal.SIGTERM)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 143 and said.splitlines()[-1] == "semigen: terminated"
    assert any((out / "states").glob("step-*.json")) and "leaked" not in said
