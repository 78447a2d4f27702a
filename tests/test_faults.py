"""What can go wrong with a training or its data is made to go wrong: nothing is lost, nothing is
silently another result, and whoever reads the message learns what to do.

A failed test counts in the closing line as a run that was lost, a result that is wrong, or a
message that is a traceback. Processes are forked: that takes milliseconds, importing torch seconds.
"""

import builtins
import errno
import hashlib
import io
import itertools
import json
import lzma
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same_weights, tiny_images, weights
from PIL import Image
from torch import nn

from semigen_lib import checkpoint, cli, data, sources, training
from semigen_lib.checkpoint import SCHEMA, CheckpointError, load_state, save_state
from semigen_lib.data import Batch, BatchStream, DataError, ImageData, load_images, split_labels
from semigen_lib.methods.method import Method, MethodConfig
from semigen_lib.methods.supervised import Supervised
from semigen_lib.training import TrainingError, train

training_fault = pytest.mark.fault("training")
data_fault = pytest.mark.fault("data")
message_fault = pytest.mark.fault("message")

ONE_LINE = r"\A[^\n]*expected [^\n]*, got [^\n]*\Z"
STEPS, ROW = 8, 2  # of every training here; a state is saved at each row


@dataclass(frozen=True)
class ToyConfig(MethodConfig):
    latent_dim: int = 4
    batch_size: int = 8
    labeled_batch_size: int = 4


class Toy(Method):
    """Two players whose results depend on everything that a training state holds."""

    Config = ToyConfig
    players = {"left": ("first",), "right": ("second",)}
    plant = None  # a function that may break the terms of a player at a step

    def __init__(self, config, image_shape, n_classes) -> None:
        super().__init__(config, image_shape, n_classes)
        self.first, self.second, self.norm = nn.Linear(4, 2), nn.Linear(2, 1), nn.BatchNorm1d(2)

    def updates(self, batch: Batch) -> Iterator[tuple[str, dict]]:
        seen = self.memory.get("seen", torch.zeros(2))
        self.memory = {"seen": seen + batch.images.mean(), "n": torch.tensor(len(batch.images))}
        shift = 0.1 * random.gauss(0, 1) + 0.1 * np.random.randn()
        hidden = self.norm(self.first(self.noise(len(batch.images))) + seen)
        yield "left", self.planted("left", {"size": (hidden - shift).square().mean()})
        made = self.second(hidden.detach())
        yield "right", self.planted("right", {"fit": (made - shift - 1).square().mean()})

    def planted(self, player: str, terms: dict) -> dict:
        return self.plant(player, terms) if self.plant else terms


@pytest.fixture(scope="module")
def split():
    images = ImageData("tiny", tuple("0123456789"), tiny_images(6, seed=1), tiny_images(2, seed=2))
    return split_labels(images, 20, 0)


@pytest.fixture(autouse=True)
def save_at_every_row(monkeypatch) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", -1.0)


def run(split, states=None, *, resume=False, kind=Toy, seed=0, **options):
    """Train a new method; return its history without the clock, and its weights."""
    torch.manual_seed(99 if resume else seed)  # what a resumed run starts from must not matter
    method = kind(kind.Config(), split.image_shape, split.n_classes)
    options = {"steps": STEPS, "record_every": ROW, "progress": False} | options
    history = train(method, split, states=states, resume=resume, **options)
    return {name: column for name, column in history.items() if name != "seconds"}, weights(method)


@pytest.fixture(scope="module")
def whole(split):
    """The run that nothing disturbed."""
    return run(split)


class Stop(Exception):
    pass


def stop_at(step: int) -> Callable[[int, Method], None]:
    def stop(now: int, _: Method) -> None:
        if now >= step:
            raise Stop

    return stop


@pytest.fixture(scope="module")
def half(split, tmp_path_factory) -> Path:
    """States of the steps 2 and 4."""
    folder = tmp_path_factory.mktemp("half") / "states"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(training, "SECONDS_BETWEEN_STATES", -1.0)
        run(split, folder, on_record=stop_at(6))
    assert steps_in(folder) == [2, 4]
    return folder


@pytest.fixture
def states(half, tmp_path) -> Path:
    """A copy of them, to be broken."""
    return Path(shutil.copytree(half, tmp_path / "states"))


def steps_in(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in sorted(folder.glob("step-*.json"))]


def newest(folder: Path, suffix: str) -> Path:
    return max(folder.glob(f"step-*{suffix}"))


def resumes(split, folder: Path, whole, passed_over: str | None = None) -> None:
    """Demand that the run goes on to the very result of an undisturbed one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = run(split, folder, resume=True)
    assert again[0] == whole[0] and same_weights(again[1], whole[1])
    said = [str(warning.message) for warning in caught]
    assert len(said) == (passed_over is not None), said
    if passed_over is not None:
        assert passed_over in said[0] and "going back" in said[0] and "\n" not in said[0]


def forked(work: Callable[[], int | None]) -> int:
    """Do something in a child process and return its exit status, -9 where it was killed."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            torch.set_num_threads(1)  # the threads of the parent are not here
            status = work() or 0
        except SystemExit as error:
            status = error.code
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- killed ----

MOMENTS = [
    f"{when} the {what} of the {name}"
    for name in ("tensors", "JSON")
    for when, what in (
        *(("before", "opening"), ("amid", "writing"), ("before", "flush")),
        *(("after", "flush"), ("before", "move"), ("after", "move")),
        *(("before", "flush of the folder"), ("after", "flush of the folder")),
    )
]


def kill_at(moment: int) -> None:
    """Let the process kill itself at the given moment of a save."""
    passed = -1

    def reach() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    class Disk(io.FileIO):
        def write(self, content: bytes) -> int:
            super().write(content[: len(content) // 2])
            reach()
            return super().write(content[len(content) // 2 :])

    def surrounded(function: Callable) -> Callable:
        def surround(*arguments) -> None:
            reach()
            function(*arguments)
            reach()

        return surround

    def opened(path: Path, mode: str) -> Disk:
        reach()
        return Disk(path, mode)

    checkpoint.open = opened
    checkpoint.os.fsync = surrounded(os.fsync)
    checkpoint.os.replace = surrounded(os.replace)


@training_fault
@pytest.mark.parametrize("moment", range(len(MOMENTS)), ids=MOMENTS)
def test_killed_while_saving(moment, split, states, whole) -> None:
    def train_on() -> None:
        kill_at(moment)
        run(split, states, resume=True)

    assert forked(train_on) == -signal.SIGKILL
    is_whole = moment >= MOMENTS.index("after the move of the JSON")  # it makes it a state
    assert steps_in(states)[-1] == (6 if is_whole else 4)
    resumes(split, states, whole)
    assert len(list(states.iterdir())) == 4, "what the dead process left is gone"


@training_fault
@pytest.mark.parametrize("player", ["left", "right", "nobody"])
def test_killed_while_training(player, split, states, whole) -> None:
    class Killed(Toy):
        def updates(self, batch):
            for who, terms in super().updates(batch):
                yield who, terms
                if who == player:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(lambda: run(split, states, resume=True, kind=Killed)) == -signal.SIGKILL
    resumes(split, states, whole)


@training_fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("amid", ["step", "save"])
def test_asked_to_stop(number, amid, split, states, whole, monkeypatch) -> None:
    """The row is finished, the state saved, and only then the signal obeyed."""

    class Asked(Toy):
        def updates(self, batch):
            if amid == "step":
                signal.raise_signal(number)
            yield from super().updates(batch)

    def sync(file: int) -> None:
        signal.raise_signal(number)
        real(file)

    def end(*_: object) -> None:
        raise SystemExit(128 + number)

    def train_on() -> None:
        signal.signal(number, end)
        if amid == "save":
            checkpoint.os.fsync = sync
        # The second signal of two is obeyed at once: only one is sent.
        run(split, states, resume=True, kind=Asked, record_every=4, steps=STEPS)

    real = os.fsync
    assert forked(train_on) == 128 + number
    assert steps_in(states)[-1] in (4, 6, 8)
    resumes(split, states, whole)


# ---- a full disk ----


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class FullDisk(io.FileIO):
    def write(self, content: bytes) -> int:
        super().write(content[: len(content) // 2])
        full()


PLACES = {
    "opening": (checkpoint, "open", full),
    "writing": (checkpoint, "open", FullDisk),
    "flush": (checkpoint.os, "fsync", full),
    "move": (checkpoint.os, "replace", full),
}


@training_fault
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", ["tensors", "JSON"])
def test_full_disk(file, place, split, states, whole, monkeypatch) -> None:
    owner, name, fails = PLACES[place]
    real, calls = getattr(owner, name, builtins.open), []

    def sometimes(*arguments):
        calls.append(arguments)
        first_of_json = 3 if place == "flush" else 2  # a folder is flushed in between
        return (fails if len(calls) == (1 if file == "tensors" else first_of_json) else real)(
            *arguments
        )

    before = sorted(path.name for path in states.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sometimes, raising=False)
        with pytest.raises(OSError, match="No space left"):
            run(split, states, resume=True)
    left = sorted(path.name for path in states.iterdir() if "6" not in path.name)
    assert left == before and not list(states.glob(".*"))
    resumes(split, states, whole)


# ---- damaged states ----


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


class Malicious:
    def __reduce__(self):
        return (os._exit, (66,))


def forge(folder: Path, content: bytes) -> None:
    """Put other content in the place of the newest tensors, with a sha256 and a seal that fit."""
    newest(folder, ".safetensors").write_bytes(content)
    reseal(folder, sha256=hashlib.sha256(content).hexdigest())


def reseal(folder: Path, **changes: object) -> None:
    path = newest(folder, ".json")
    entry = json.loads(path.read_text())
    del entry["seal"]
    entry = {key: value for key, value in (entry | changes).items() if value is not None}
    path.write_text(json.dumps(entry | {"seal": checkpoint._seal(entry)}))


def link_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


def rename_newest(folder: Path) -> None:
    """An honest state under the name of another step."""
    for suffix in (".json", ".safetensors"):
        newest(folder, suffix).rename(folder / f"step-000000005{suffix}")


TENSORS, JSON = ".safetensors", ".json"
DAMAGES = {
    "tensors empty": lambda f: cut(newest(f, TENSORS), 0),
    "tensors cut in half": lambda f: cut(newest(f, TENSORS), 0.5),
    "tensors without their end": lambda f: cut(newest(f, TENSORS), 0.999),
    "JSON empty": lambda f: cut(newest(f, JSON), 0),
    "JSON cut in half": lambda f: cut(newest(f, JSON), 0.5),
    "JSON without its end": lambda f: cut(newest(f, JSON), 0.999),
    "bit flipped in the header": lambda f: flip(newest(f, TENSORS), 100),
    "bit flipped in the length": lambda f: flip(newest(f, TENSORS), 40),
    "bit flipped in a weight": lambda f: flip(newest(f, TENSORS), -1 + 8 * 2000),
    "tensors gone": lambda f: newest(f, TENSORS).unlink(),
    "a link to nowhere": lambda f: link_nowhere(newest(f, TENSORS)),
    "another run's tensors": lambda f: shutil.copy(min(f.glob("*" + TENSORS)), newest(f, TENSORS)),
    "another step's name": rename_newest,
    "JSON of zeros": lambda f: newest(f, JSON).write_bytes(bytes(500)),
    "JSON without end": lambda f: newest(f, JSON).write_text("[" * 100_000),
    "JSON that is a list": lambda f: newest(f, JSON).write_text("[1, 2]"),
    "pickle for JSON": lambda f: newest(f, JSON).write_bytes(pickle.dumps(Malicious())),
    "pickle for tensors": lambda f: newest(f, TENSORS).write_bytes(pickle.dumps(Malicious())),
    "pickle with a forged seal": lambda f: forge(f, pickle.dumps(Malicious())),
    "archive with a forged seal": lambda f: forge(f, torch_saved(Malicious())),
    "a header of 2**60 bytes": lambda f: forge(f, struct.pack("<Q", 2**60) + b"{}"),
    "as older versions wrote it": lambda f: reseal(f, schema=0, names=None),
    "without a sha256": lambda f: reseal(f, sha256=None),
    "without facts": lambda f: reseal(f, facts=None),
}


def torch_saved(thing: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": thing}, buffer)
    return buffer.getvalue()


@training_fault
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_state(damage, split, states, whole) -> None:
    DAMAGES[damage](states)
    resumes(split, states, whole, passed_over="expected")
    assert load_state(states)[0] == STEPS


@training_fault
def test_no_bit_of_the_json_can_flip_unnoticed(tmp_path) -> None:
    """Nor the two files of a state: a flip is damage, or changes nothing that is read."""
    save_state(tmp_path, 1, {"x": torch.ones(2)}, {"seconds": 1.5, "history": {"a": [0.25]}})
    (path,) = tmp_path.glob("*.json")
    good, state = path.read_bytes(), load_state(tmp_path)
    for bit in range(0, 8 * len(good), 7):  # one or two bits of each byte, every one in turn
        flip(path, bit)
        try:
            step, tensors, facts = load_state(tmp_path)
        except CheckpointError:
            continue
        finally:
            path.write_bytes(good)
        assert (step, facts) == (state[0], state[2]) and torch.equal(tensors["x"], state[1]["x"])


@training_fault
@pytest.mark.parametrize("schema", [SCHEMA + 1, "2", None])
def test_future_schema_is_refused(schema, states) -> None:
    """Going back would throw away what a newer library has trained."""
    path = newest(states, JSON)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=ONE_LINE):
        load_state(states)
    assert path.read_bytes() == before


@training_fault
def test_every_state_damaged(split, states) -> None:
    for path in states.glob("*" + TENSORS):
        cut(path, 0.5)
    with pytest.raises(CheckpointError, match=ONE_LINE):
        run(split, states, resume=True)


@training_fault
def test_a_later_state_of_another_way_is_not_believed(split, states, whole) -> None:
    """It was damaged; the run went back and on; then the damage is healed, say by a backup."""
    backup = {path: path.read_bytes() for path in states.glob("step-000000004*")}
    cut(newest(states, TENSORS), 0.5)
    with pytest.warns(UserWarning, match="going back"), pytest.raises(Stop):
        run(split, states, resume=True, record_every=1, on_record=stop_at(4))
    assert steps_in(states) == [2, 3]
    assert all(not path.exists() for path in backup)
    again = run(split, states, resume=True, record_every=1)
    assert same_weights(again[1], whole[1])


# ---- each piece of a state ----

PIECES = ("method.", "averaged.", "optimizer.left.", "optimizer.right.", "memory.",
          "rng.cpu", "rng.python", "rng.numpy")  # fmt: skip


def without(piece: str) -> Callable[[Path], None]:
    def strip(folder: Path) -> None:
        path = newest(folder, TENSORS)
        kept = {
            name: tensor
            for name, tensor in checkpoint.safetensors.torch.load(path.read_bytes()).items()
            if not name.startswith(piece)
        }
        forge(folder, checkpoint.safetensors.torch.save(kept))

    return strip


@training_fault
@pytest.mark.parametrize("piece", PIECES)
def test_a_state_without_a_piece(piece, split, states, whole) -> None:
    without(piece)(states)
    resumes(split, states, whole, passed_over="none of")


@training_fault
@pytest.mark.parametrize("fact", ["seconds", "history", "n_parts"])
def test_a_state_without_a_fact(fact, split, states) -> None:
    facts = json.loads(newest(states, JSON).read_text())["facts"]
    del facts[fact]
    reseal(states, facts=facts)
    with pytest.raises(CheckpointError, match=ONE_LINE):
        run(split, states, resume=True)


@training_fault
@pytest.mark.parametrize("piece", [*PIECES, "step", "history"])
def test_a_resume_that_forgets_a_piece_is_another_run(
    piece, split, states, whole, monkeypatch
) -> None:
    """So the comparison with the undisturbed run, on which all tests here rest, sees each piece."""
    real = training.load_state
    fresh = {}

    def forgetful(folder: Path):
        step, tensors, facts = real(folder)
        if piece == "step":
            step = 0
        if piece == "history":
            facts["history"] = {}
        # A piece that is forgotten keeps what a new run has; a state of step 0 holds just that.
        kept = {n: t for n, t in fresh.items() if n.startswith(piece)}
        return step, {n: t for n, t in tensors.items() if not n.startswith(piece)} | kept, facts

    class New(training._Run):
        def restore(self, folder: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training, "save_state", lambda *saved: fresh.update(saved[2]))
                self.save(folder)
            super().restore(folder)

    monkeypatch.setattr(training, "load_state", forgetful)
    monkeypatch.setattr(training, "_Run", New)
    again = run(split, states, resume=True)
    assert again[0] != whole[0] or not same_weights(again[1], whole[1]), piece


@training_fault
@pytest.mark.parametrize("change", ["another method", "another width"])
def test_a_state_of_something_else(change, split, states) -> None:
    class Wider(Toy):
        def __init__(self, config, image_shape, n_classes) -> None:
            super().__init__(config, image_shape, n_classes)
            if change == "another width":
                self.second = nn.Linear(2, 3)
            else:
                self.third = nn.Linear(2, 3)

    with pytest.raises(CheckpointError, match=ONE_LINE):
        run(split, states, resume=True, kind=Wider)


# ---- what is not a number ----


class Unfit(torch.autograd.Function):
    """A finite value with a gradient that is not."""

    @staticmethod
    def forward(context, value, bad):
        context.bad = bad
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.bad, None


@training_fault
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["term", "gradient"])
@pytest.mark.parametrize("player", ["left", "right"])
def test_not_finite(player, where, value, split, states, whole) -> None:
    class Broken(Toy):
        count = 0

        def plant(self, who, terms):
            ((name, term),) = terms.items()
            self.count += who == "left"
            if who != player or self.count != 1:  # the fifth step of the run, the first here
                return terms
            return {name: term + value if where == "term" else Unfit.apply(term, value)}

    kept = {path.name: path.read_bytes() for path in states.iterdir()}
    with pytest.raises(TrainingError, match=ONE_LINE) as caught:
        run(split, states, resume=True, kind=Broken)
    said = str(caught.value)
    name = {"left": "size", "right": "fit"}[player]
    assert said.startswith("step 5: expected finite ")
    assert f"got {name} = " in said if where == "term" else f"got gradient of {player} = " in said
    assert kept == {path.name: path.read_bytes() for path in states.iterdir()}
    resumes(split, states, whole)


@training_fault
def test_weights_that_are_not_finite_are_not_saved(split, states, whole) -> None:
    class Overflows(Toy):
        def updates(self, batch):
            yield from super().updates(batch)
            with torch.no_grad():
                self.second.bias.fill_(float("inf"))  # after the last look at this step

    with pytest.raises(TrainingError, match="got "):
        run(split, states, resume=True, kind=Overflows, record_every=1)
    resumes(split, states, whole)


# ---- collapse ----


class Game(Toy):
    """Its drawings are images of the batch, or one image over and over."""

    draws = True
    spread = 1.0

    def updates(self, batch):
        self.seen = batch.images
        yield from super().updates(batch)

    def generate(self, labels):
        noise = torch.rand(len(labels), *self.image_shape)
        return 0.5 + self.spread * (noise - 0.5)


@training_fault
@pytest.mark.parametrize(("spread", "flagged"), [(1.0, False), (0.0, True), (0.01, True)])
def test_collapse_is_flagged(spread, flagged, split, monkeypatch) -> None:
    class Collapsing(Game):
        pass

    Collapsing.spread = spread
    monkeypatch.setattr(training, "LOOK_EVERY", 2)
    plain, looked = run(split, kind=Toy), run(split, kind=Collapsing)
    assert same_weights(plain[1], looked[1]), "looking changes nothing"
    assert ("collapse" in looked[0]) == flagged
    if flagged:
        assert looked[0]["collapse"][0] is None, "nothing is said of the first half"
        assert all(0 <= ratio < training.VARIETY for ratio in looked[0]["collapse"][1:])


@training_fault
def test_a_game_that_has_not_begun_has_not_collapsed(split, monkeypatch) -> None:
    """As in ``cgan``, whose generator waits until a student has named the images."""

    class Waiting(Game):
        spread = 0.0

        def updates(self, batch):
            yield from itertools.islice(super().updates(batch), 1)

    monkeypatch.setattr(training, "LOOK_EVERY", 2)
    assert "collapse" not in run(split, kind=Waiting)[0]


# ---- a full memory ----


class Plain(Toy):
    """A mean over images and no noise: parts of a batch add up to the batch."""

    most = 8  # images at a time

    def __init__(self, config, image_shape, n_classes) -> None:
        super().__init__(config, image_shape, n_classes)
        self.first, self.second = nn.Linear(784, 2), nn.Linear(784, 1)

    def optimizers(self):
        """To Adam, a gradient and twice the gradient are the same."""
        return {p: torch.optim.SGD(self.parameters_of(p), 1e-3) for p in self.players}

    def updates(self, batch):
        flat = batch.images.flatten(1)
        self.need("left", len(flat))
        yield "left", {"size": (self.first(flat) - 1).square().mean()}
        self.need("right", len(flat))
        yield "right", {"fit": (self.second(flat) + self.first(flat).sum(1, True)).square().mean()}

    def need(self, player: str, n: int) -> None:
        if n > self.most:
            raise self.error


ERRORS = {
    "CUDA": torch.cuda.OutOfMemoryError("CUDA out of memory."),
    "CPU": RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
    "Python": MemoryError(),
}


@training_fault
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("most", "parts"), [(4, 2), (2, 4)])
def test_out_of_memory(kind, most, parts, split, tmp_path) -> None:
    class Small(Plain):
        error = ERRORS[kind]

    Small.most = most
    wanted = run(split, kind=Plain)
    with pytest.warns(UserWarning, match=f"taken in {parts} parts") as said, pytest.raises(Stop):
        run(split, tmp_path, kind=Small, on_record=stop_at(6))
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a resumed run knows already
        got = run(split, tmp_path, resume=True, kind=Small)
    for name in wanted[1]:
        torch.testing.assert_close(got[1][name], wanted[1][name], rtol=1e-4, atol=1e-6)
    for name in ("size", "fit"):
        assert got[0][name] == pytest.approx(wanted[0][name], rel=1e-4)


@training_fault
def test_out_of_memory_in_the_middle_of_the_first_adam_step(split, monkeypatch) -> None:
    """Of some weight there is one moment and not the other; the repeated step makes both."""
    real, made = torch.zeros_like, []

    def zeros_like(*given, **options):
        if sys._getframe(1).f_code.co_filename.endswith("adam.py"):
            made.append(given)
            if len(made) == 2:
                raise ERRORS["CUDA"]
        return real(*given, **options)

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    with pytest.warns(UserWarning, match="taken in 2 parts"):
        run(split, kind=Supervised, steps=2)
    assert len(made) > 4


@training_fault
def test_out_of_memory_with_one_image(split, tmp_path) -> None:
    class Nothing(Plain):
        most, error = 0, ERRORS["CUDA"]

    with pytest.raises(RuntimeError, match="out of memory"):
        run(split, tmp_path, kind=Nothing)


@training_fault
def test_other_errors_are_not_taken_for_a_full_memory(split, tmp_path) -> None:
    class Wrong(Plain):
        most, error = 4, RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(split, tmp_path, kind=Wrong)


# ---- MNIST ----


def change(content: bytes, at: int, to: bytes) -> bytes:
    return content[:at] + to + content[at + len(to) :]


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
MNIST_DAMAGES = {
    "wrong magic": (LABELS, lambda c: change(c, 2, b"\x0d")),
    "wrong count": (LABELS, lambda c: change(c, 4, struct.pack(">I", 9999))),
    "wrong side": (IMAGES, lambda c: change(c, 8, struct.pack(">I", 27))),
    "label out of range": (LABELS, lambda c: change(c, 100, b"\x0a")),
    "two labels swapped": (LABELS, lambda c: change(c, 8, c[8:10][::-1])),
    "one bit of an image": (IMAGES, lambda c: change(c, 5000, bytes([c[5000] ^ 1]))),
    "cut": (LABELS, lambda c: c[:-100]),
    "too long": (LABELS, lambda c: c + b"\0"),
}


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    """The two small files of MNIST and the committed splits, to be broken."""
    copy = tmp_path / "assets"
    (copy / "mnist").mkdir(parents=True)
    for name in (IMAGES, LABELS):
        shutil.copy(sources.ASSETS / "mnist" / f"{name}.xz", copy / "mnist")
    shutil.copytree(sources.ASSETS / "splits", copy / "splits")
    monkeypatch.setattr(sources, "ASSETS", copy)
    monkeypatch.setattr(data, "SPLITS", copy / "splits")
    return copy


@data_fault
@pytest.mark.parametrize("damage", MNIST_DAMAGES)
def test_mnist_damaged(damage, assets) -> None:
    name, spoil = MNIST_DAMAGES[damage]
    path = assets / "mnist" / f"{name}.xz"
    path.write_bytes(lzma.compress(spoil(lzma.decompress(path.read_bytes())), preset=0))
    with pytest.raises(DataError, match=ONE_LINE):
        sources._read_idx(name)


@data_fault
@pytest.mark.parametrize("damage", ["gone", "cut", "not compressed"])
def test_mnist_unreadable(damage, assets) -> None:
    path = assets / "mnist" / f"{LABELS}.xz"
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        cut(path, 0.5)
    else:
        path.write_bytes(lzma.decompress(path.read_bytes()))
    with pytest.raises(DataError, match=ONE_LINE):
        sources._read_idx(LABELS)


@data_fault
@pytest.mark.parametrize("damage", ["one index", "two seeds swapped", "gone", "cut"])
def test_committed_split_damaged(damage, assets, mnist) -> None:
    path = assets / "splits" / "mnist_100.txt"
    text = path.read_text()
    if damage == "one index":
        path.write_text(text.replace("1", "2", 1))
    elif damage == "two seeds swapped":
        first, second, *rest = text.splitlines(keepends=True)
        path.write_text("".join([second.replace("1:", "0:"), first.replace("0:", "1:"), *rest]))
    elif damage == "cut":
        cut(path, 0.5)
    else:
        path.unlink()
    with pytest.raises(DataError, match=ONE_LINE):
        split_labels(mnist, 100, 0)


# ---- downloads ----


class Download:
    """Stands for torchvision's class: it writes a file, slowly, and reads it."""

    classes = tuple(f"name {k}" for k in range(10))
    fault = None

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        path = Path(root) / f"raw-{train}"
        if self.fault == "dead mirror":
            raise RuntimeError("Error downloading x.gz:\nTried mirror, got:\n<urlopen error>")
        if self.fault == "wrong download":
            raise RuntimeError("File not found or corrupted.")
        if self.fault == "cut on the way":
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        if self.fault == "an HTML page":
            raise ValueError("not enough values to unpack (expected 4, got 1)")
        count = 40 if train else 20
        if not path.exists():
            with open(path, "ab") as file:  # whoever comes between finds half a file
                for _ in range(count):
                    file.write(bytes(784))
                    file.flush()
        pixels = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 28, 28)
        self.data, self.targets = torch.tensor(pixels), torch.arange(count) % 10
        if self.fault == "wrong count":
            self.data, self.targets = self.data[1:], self.targets[1:]
        if self.fault == "fewer labels":
            self.targets = self.targets[1:]
        if self.fault == "labels out of range":
            self.targets = self.targets + 1
        if self.fault == "a class is missing":
            self.targets = self.targets.clamp(min=1)
        if self.fault == "floats":
            self.data = self.data.float()
        if self.fault == "another byte than at first":
            self.data[0, 0, 0] = 8


@pytest.fixture
def mirror(monkeypatch, tmp_path) -> type:
    from torchvision import datasets

    fake = type("FashionMNIST", (Download,), {})
    monkeypatch.setattr(datasets, "FashionMNIST", fake)
    row = sources._SETS["fashionmnist"]._replace(counts=(40, 20))
    monkeypatch.setitem(sources._SETS, "fashionmnist", row)
    monkeypatch.setenv("SEMIGEN_CACHE", str(tmp_path / "cache"))
    return fake


@data_fault
@pytest.mark.parametrize("fault", [
    *("dead mirror", "wrong download", "cut on the way", "an HTML page", "wrong count"),
    *("fewer labels", "labels out of range", "a class is missing", "floats"),
    "another byte than at first",
])  # fmt: skip
def test_download(fault, mirror) -> None:
    load_images("fashionmnist")
    mirror.fault = fault
    with pytest.raises(DataError, match=ONE_LINE):
        load_images("fashionmnist")
    mirror.fault = None
    assert len(load_images("fashionmnist").train) == 40, "connected again, it works"


@data_fault
def test_four_processes_download_at_once(mirror, tmp_path) -> None:
    def load() -> int:
        return int(load_images("fashionmnist").train.images.shape != (40, 1, 28, 28))

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 70
            try:
                torch.set_num_threads(1)
                status = load()
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert (tmp_path / "cache" / "raw-True").stat().st_size == 40 * 784
    assert load() == 0


@data_fault
@pytest.mark.parametrize("place", ["cache folder", "lock", "sha256"])
def test_read_only_cache(place, mirror, monkeypatch, capsys) -> None:
    import filelock

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    owner, name = {
        "cache folder": (Path, "mkdir"),
        "lock": (filelock.FileLock, "acquire"),
        "sha256": (Path, "write_text"),
    }[place]
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises((DataError, OSError)) as caught:
        load_images("fashionmnist")
    assert "Read-only file system" in cli.explain(caught.value)


# ---- folders ----


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of three images, and one test image of each."""
    for index in range(8):
        kind, part = ("left", "right")[index % 2], "test" if index < 2 else "."
        path = tmp_path / "images" / part / kind / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (28, 28), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


FOLDER_DAMAGES = {
    "image cut": lambda f: cut(f / "left" / "2.png", 0.5),
    "image empty": lambda f: cut(f / "left" / "2.png", 0),
    "text for an image": lambda f: (f / "left" / "2.png").write_text("no image"),
    "pickle for an image": lambda f: (f / "left" / "2.png").write_bytes(pickle.dumps(Malicious())),
    "link to nowhere": lambda f: link_nowhere(f / "left" / "2.png"),
    "class without images": lambda f: (f / "empty").mkdir(),
    "class without training images": lambda f: shutil.copytree(f / "left", f / "test" / "third"),
    "image beside the classes": lambda f: shutil.copy(f / "left" / "2.png", f / "2.png"),
    "one class": lambda f: (shutil.rmtree(f / "right"), shutil.rmtree(f / "test")),
}


@data_fault
@pytest.mark.parametrize("damage", FOLDER_DAMAGES)
def test_folder_damaged(damage, folder) -> None:
    FOLDER_DAMAGES[damage](folder)
    with pytest.raises(DataError, match=ONE_LINE):
        load_images(folder)


@data_fault
def test_an_image_in_two_splits_is_noticed(folder) -> None:
    assert not load_images(folder).notes
    shutil.copy(folder / "left" / "2.png", folder / "test" / "left" / "again.png")
    (note,) = load_images(folder).notes
    assert note == "1 of 3 test images are also among the training images."


# ---- another machine ----


def fingerprint(split) -> str:
    """Of everything that must not depend on the machine: labels, and batches of three epochs."""
    digest = hashlib.sha256(split.labels.numpy().tobytes())
    stream = BatchStream(split, batch_size=48, labeled_batch_size=7, seed=3)
    for step in (0, 1, 2, 3):
        for values in stream.at(step):
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


FINGERPRINT = f"""
import sys, torch
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
import test_faults as t
print(t.fingerprint(t.split.__wrapped__()))
history, _ = t.run(t.split.__wrapped__(), kind=t.Plain)
print(*history["size"], *history["fit"])
"""


@data_fault
@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"OMP_NUM_THREADS": "3"}, {"ATEN_CPU_CAPABILITY": "default"}])
def test_other_threads_and_instructions(setting, split) -> None:
    """The same images in the same order, to the bit; losses up to rounding."""
    line = [sys.executable, "-c", FINGERPRINT]
    result = subprocess.run(line, capture_output=True, text=True, env=os.environ | setting)
    assert result.returncode == 0, result.stderr
    there, losses = result.stdout.splitlines()
    assert there == fingerprint(split)
    history, _ = run(split, kind=Plain)
    here = [*history["size"], *history["fit"]]
    assert [float(loss) for loss in losses.split()] == pytest.approx(here, rel=1e-4)


# ---- what the command says ----

SMALL = "--set width=4 --set latent_dim=4 --set batch_size=4 --set labeled_batch_size=4"


def command(folder: Path, out: Path, extra: str = "") -> int:
    line = (
        f"train --data {folder} --method autoencoder --steps 3 --quiet {SMALL} --out {out} {extra}"
    )
    return cli.main(line.split())


def raises(error: BaseException) -> Callable:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


LOST = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:7")
MESSAGES = {
    "full disk": (checkpoint.os, "fsync", raises(OSError(errno.ENOSPC, "No space left on device"))),
    "broken disk": (checkpoint.os, "replace", raises(OSError(errno.EIO, "Input/output error"))),
    "diverged": (training, "summarise", raises(TrainingError("step 1: expected finite, got nan"))),
    "full memory": (training, "_turns", raises(ERRORS["CPU"])),
    "GPU memory": (training, "_turns", raises(ERRORS["CUDA"])),
    "lost process": (training, "_turns", raises(LOST)),
    "interrupted": (training, "_turns", raises(KeyboardInterrupt())),
}


@message_fault
@pytest.mark.parametrize("fault", MESSAGES)
def test_the_command_says_one_line(fault, folder, tmp_path, monkeypatch, capsys) -> None:
    owner, name, instead = MESSAGES[fault]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, instead)
        patch.setattr(training, "_turns_in_parts", instead)
        assert command(folder, tmp_path / "run") == (130 if fault == "interrupted" else 2)
    said = capsys.readouterr().err
    assert said.startswith("semigen: ") and said.count("\n") == 1
    assert fault == "interrupted" or ("expected" in said and "got" in said)
    assert command(folder, tmp_path / "run") == 0, "nothing of it is in the way"


@message_fault
@pytest.mark.parametrize("damage", ["newer", "all damaged", "config damaged"])
def test_the_command_refuses_to_resume_in_one_line(
    damage, folder, tmp_path, monkeypatch, capsys
) -> None:
    out = tmp_path / "run"
    assert command(folder, out) == 0
    (out / "metrics.json").unlink()  # it was interrupted before the results
    if damage == "newer":
        path = newest(out / "states", JSON)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": SCHEMA + 1}))
    elif damage == "all damaged":
        for path in (out / "states").glob("*" + TENSORS):
            cut(path, 0.9)
    else:
        cut(out / "config.json", 0.5)
    capsys.readouterr()
    assert command(folder, out, "--resume") == 2
    said = capsys.readouterr().err
    assert said.startswith("semigen: error: ") and said.count("\n") == 1


@training_fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_the_command_asked_to_stop(number, folder, tmp_path, monkeypatch) -> None:
    real = training._turns

    def asked(*arguments):
        signal.raise_signal(number)
        monkeypatch.setattr(training, "_turns", real)
        return real(*arguments)

    def train_on() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        training._turns = asked
        return command(folder, tmp_path / "run", "--set ema_decay=0.5")

    assert forked(train_on) == 128 + number
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the child had: bit for bit is for one number of threads
    try:
        assert command(folder, tmp_path / "run", "--set ema_decay=0.5 --resume") == 0
        assert command(folder, tmp_path / "whole", "--set ema_decay=0.5") == 0
    finally:
        torch.set_num_threads(threads)
    first, second = (tmp_path / name / "model.safetensors" for name in ("run", "whole"))
    assert first.read_bytes() == second.read_bytes()
