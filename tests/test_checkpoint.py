"""Files that survive: an interruption leaves the old file or the new one, never half of one."""

import builtins
import hashlib
import io
import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

from semigen_lib import checkpoint
from semigen_lib.checkpoint import (
    KEPT,
    SCHEMA,
    CheckpointError,
    flatten_optimizer,
    load_state,
    load_weights,
    read_json,
    restore_optimizer,
    save_state,
    save_weights,
    write_atomically,
    write_json,
)

ONE_LINE = r"\A[^\n]*expected [^\n]*, got [^\n]*\Z"
WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "count": torch.tensor(3), "b": torch.eye(2)}


def refused(function, *arguments) -> str:
    with pytest.raises(CheckpointError, match=ONE_LINE) as caught:
        function(*arguments)
    return str(caught.value)


def flip_a_bit(path: Path, where: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- atomic writes ----


class HalfWritten(io.BytesIO):
    """A disk that is full after two bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)

    def write(self, content: bytes) -> int:
        self.path.write_bytes(content[:2])
        raise OSError(28, "No space left on device")


def fail(*_) -> None:
    raise OSError(5, "Input/output error")


def interrupted(*_) -> None:
    raise KeyboardInterrupt


STAGES = {
    "open": ("open", fail),
    "write": ("open", lambda path, mode: HalfWritten(path)),
    "flush": ("fsync", fail),
    "flush, by Ctrl-C": ("fsync", interrupted),
    "move": ("replace", fail),
    "move, by Ctrl-C": ("replace", interrupted),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("existed", [True, False])
def test_failed_write_leaves_the_old_file_and_nothing_else(
    stage, existed, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "file.bin"
    if existed:
        path.write_bytes(b"the old content")
    what, instead = STAGES[stage]
    owner = checkpoint if what == "open" else os
    monkeypatch.setattr(owner, what, instead, raising=False)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_atomically(path, b"the new content")
    monkeypatch.undo()
    assert names(tmp_path) == (["file.bin"] if existed else [])
    assert not existed or path.read_bytes() == b"the old content"


def test_content_is_on_the_disk_before_it_is_moved(tmp_path, monkeypatch) -> None:
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name: (order.append(name), real(*a))[1]
        )
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomically(path, b"content")
    assert order == ["fsync", "replace", "fsync"] and path.read_bytes() == b"content"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("writer", [save_weights, write_json, save_state])
def test_every_writer_is_atomic(writer, tmp_path, monkeypatch) -> None:
    def in_place(path, mode="r", *rest, **options):
        if "w" in mode or "a" in mode or "+" in mode:
            assert str(path).endswith(".tmp"), f"{path} is written in place"
        return real(path, mode, *rest, **options)

    real = builtins.open
    monkeypatch.setattr(builtins, "open", in_place)
    if writer is save_state:
        save_state(tmp_path, 1, WEIGHTS, {})
    else:
        writer(tmp_path / "file", WEIGHTS if writer is save_weights else {"a": 1})
    assert names(tmp_path)


# ---- JSON ----


def test_json_round_trip_and_layout(tmp_path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"schema": SCHEMA, "x": [1, 2.5, None, "é"]})
    assert read_json(path) == {"schema": SCHEMA, "x": [1, 2.5, None, "é"]}
    assert path.read_text().endswith("}\n") and '\n  "x"' in path.read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_is_json(value, tmp_path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": value})
    assert not names(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": }', b"\xff\xfe\x00", b"[1]", b'"text"', b"3", b"null", b"\x80\x04K\x01."],
)
def test_wrong_json_refused(content, tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert str(path) in refused(read_json, path)


@pytest.mark.parametrize("schema", [SCHEMA + 1, "2", None, 1.5, [1], True])
def test_other_schema_refused(schema, tmp_path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"schema": schema})
    assert f"schema {SCHEMA} or older" in refused(read_json, path)


def test_missing_files_refused(tmp_path) -> None:
    refused(read_json, tmp_path / "a.json")
    refused(load_weights, tmp_path / "a.safetensors", "0" * 64)


# ---- weights ----


def test_weights_round_trip(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    odd = {**WEIGHTS, "transposed": WEIGHTS["a"].T, "grad": torch.ones(2, requires_grad=True)}
    digest = save_weights(path, odd)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    got = load_weights(path, digest)
    assert got.keys() == odd.keys()
    assert all(torch.equal(got[name], odd[name]) for name in odd)
    assert got["count"].dtype == torch.int64


@pytest.mark.parametrize("where", [0, 9, -1])
def test_one_flipped_bit_refused(where, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    digest = save_weights(path, WEIGHTS)
    flip_a_bit(path, where)
    message = refused(load_weights, path, digest)
    assert "damaged" in message and digest[:12] in message


@pytest.mark.parametrize("kept", [0, 1, 7, 100])
def test_truncated_weights_refused(kept, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    digest = save_weights(path, WEIGHTS)
    path.write_bytes(path.read_bytes()[:kept])
    assert "damaged" in refused(load_weights, path, digest)


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("a file was executed",))


@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_is_never_opened(protocol, tmp_path) -> None:
    """Not even by one who also forged the sha256."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(pickle.dumps(Malicious(), protocol=protocol))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    refused(load_weights, path, digest)
    torch.save({"a": Malicious()}, path)
    refused(load_weights, path, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("digest", [None, 3, ["x"]])
def test_sha256_of_another_type_refused(digest, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, WEIGHTS)
    refused(load_weights, path, digest)


# ---- states ----


def save(folder: Path, step: int) -> None:
    save_state(folder, step, {"x": torch.tensor([float(step)])}, {"seconds": step / 2})


def test_state_round_trip(tmp_path) -> None:
    save_state(tmp_path, 7, WEIGHTS, {"seconds": 1.5, "history": {"step": [7]}})
    step, tensors, facts = load_state(tmp_path)
    assert step == 7 and facts == {"seconds": 1.5, "history": {"step": [7]}}
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


def test_last_two_states_are_kept(tmp_path) -> None:
    assert KEPT == 2
    for step in (1, 9, 10, 1000000):
        save(tmp_path, step)
    assert names(tmp_path) == [
        "step-000000010.json",
        "step-000000010.safetensors",
        "step-001000000.json",
        "step-001000000.safetensors",
    ]
    assert load_state(tmp_path)[0] == 1000000


def test_tensors_are_written_before_the_json_that_vouches_for_them(tmp_path, monkeypatch) -> None:
    order, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).suffix), real(a, b))[1])
    save(tmp_path, 1)
    assert order == [".safetensors", ".json"]


@pytest.mark.parametrize("failing", [1, 2])
def test_failed_save_leaves_the_states_before(failing, tmp_path, monkeypatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    calls, real = [], os.replace

    def sometimes(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(OSError):
        save(tmp_path, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_state(tmp_path)[0] == 2
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.tmp"))


def damage(folder: Path, step: int, kind: str) -> None:
    stem = folder / f"step-{step:09d}"
    tensors, entry = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    if kind == "flipped bit":
        flip_a_bit(tensors)
    elif kind == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:20])
    elif kind == "missing tensors":
        tensors.unlink()
    elif kind == "broken JSON":
        entry.write_bytes(entry.read_bytes()[:30])
    elif kind == "missing key":
        content = json.loads(entry.read_text())
        del content["facts"]
        entry.write_text(json.dumps(content))
    else:
        content = json.loads(entry.read_text()) | {"schema": SCHEMA + 1}
        entry.write_text(json.dumps(content))


KINDS = ["flipped bit", "truncated", "missing tensors", "broken JSON", "missing key"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_newest_state_is_passed_over_with_a_warning(kind, tmp_path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path, 2, kind)
    with pytest.warns(UserWarning, match=r"step-000000002.*expected.*; going back") as caught:
        step, tensors, facts = load_state(tmp_path)
    assert (step, tensors["x"].item(), facts) == (1, 1.0, {"seconds": 0.5})
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


@pytest.mark.parametrize("kind", KINDS)
def test_no_undamaged_state_is_one_error_and_no_warning(kind, tmp_path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        damage(tmp_path, step, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = refused(load_state, tmp_path)
    assert "step-000000001" in message and "step-000000002" in message


def test_newer_state_is_not_passed_over(tmp_path) -> None:
    """Going back would silently throw away what a newer library has trained."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path, 2, "newer schema")
    assert "newer semigen_lib" in refused(load_state, tmp_path)


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_no_state_at_all(folder, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "got nothing" in refused(load_state, tmp_path / folder)


def test_tensors_without_json_are_no_state(tmp_path) -> None:
    """The run was killed between the two files of a state."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-000000002.json").unlink()
    assert load_state(tmp_path)[0] == 1


# ---- optimisers ----


def test_optimiser_goes_on_as_if_never_stopped() -> None:
    def start():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1)

    def step(layer, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        layer(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()

    layer, optimizer = start()
    step(layer, optimizer, 1)
    saved = flatten_optimizer("one", optimizer) | flatten_optimizer("two", start()[1])
    saved |= {"optimizer.other.0.step": torch.tensor(9.0), "rng.cpu": torch.zeros(2)}
    assert all(isinstance(tensor, torch.Tensor) for tensor in saved.values())
    saved = safetensors.torch.load(safetensors.torch.save(saved))
    again, fresh = start()
    again.load_state_dict(layer.state_dict())
    restore_optimizer("one", fresh, saved)
    step(layer, optimizer, 2)
    step(again, fresh, 2)
    assert torch.equal(layer.weight, again.weight) and torch.equal(layer.bias, again.bias)
    assert fresh.param_groups[0]["lr"] == 0.1
