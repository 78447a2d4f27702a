"""Evidence: files that a hostile student wrote are refused in one line, honest ones measured."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from semigen_lib.course import EVIDENCE_VARIABLE, hand_in
from semigen_lib.data import ImageData
from semigen_lib.grading import evidence
from semigen_lib.grading.evidence import (
    EvidenceError,
    fingerprint,
    load_evidence,
    measure_weights,
    repeats_training_images,
)
from semigen_lib.grading.tasks import MEASURES, WeightsTask
from semigen_lib.methods import METHODS
from semigen_lib.methods.method import Method

LIMITS = {"width": 16, "latent_dim": 32}
TASK = WeightsTask("t", "reader", "test_error", 0.5, 0.1, ("combined", "supervised"), LIMITS, 2.0)
injected = pytest.mark.fault("integrity")


@pytest.fixture
def folder(tmp_path, monkeypatch, make_method, capsys) -> Path:
    """An honest reader that was handed in."""
    monkeypatch.setenv(EVIDENCE_VARIABLE, str(tmp_path / "evidence"))
    hand_in("reader", make_method("combined"))
    capsys.readouterr()
    return tmp_path / "evidence"


def refused(folder: Path, task: WeightsTask = TASK) -> str:
    with pytest.raises(EvidenceError, match=r"\A[^\n]{10,300}\Z") as caught:
        load_evidence(folder, "reader", task)
    return str(caught.value)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "reader.safetensors")


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    # Ours lie with the channels of a pixel side by side, which safetensors refuses.
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / "reader.safetensors")


def edit_facts(folder: Path, change: Callable[[dict], object]) -> None:
    facts = json.loads((folder / "reader.json").read_text())
    change(facts)
    (folder / "reader.json").write_text(json.dumps(facts))


def edit_header(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "reader.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


# ---- honest ----


@pytest.mark.parametrize("name", ["combined", "fixmatch", "lsgan"])
def test_what_was_handed_in_comes_back(name, folder, make_method, capsys) -> None:
    method = make_method(name, seed=3)
    hand_in("reader", method)
    task = WeightsTask("t", "reader", "test_error", 0.5, 0.1, tuple(METHODS), LIMITS, 2.0)
    state = torch.get_rng_state()
    loaded = load_evidence(folder, "reader", task)
    assert torch.equal(state, torch.get_rng_state()), "loading draws from the caller's generator"
    assert type(loaded) is type(method) and loaded.config == method.config and not loaded.training
    for key, tensor in method.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key])


# ---- files that are none ----


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def nothing(path: Path) -> None:
    path.unlink()


def a_huge_hole(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


@injected
@pytest.mark.parametrize("name", ["reader.json", "reader.safetensors"])
@pytest.mark.parametrize(
    "fault",
    [a_link, a_pipe, a_folder, a_device, nothing, a_huge_hole, unreadable, empty, half, noise],
)
def test_a_file_that_is_something_else_is_refused(fault, name, folder) -> None:
    fault(folder / name)
    told = refused(folder)
    assert told.startswith(name)
    assert fault is not a_huge_hole or "expected at most" in told, "it was read"


@injected
def test_a_folder_that_is_a_link_is_refused(folder) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")
    assert "expected a plain file" in refused(folder)


@injected
def test_a_file_swapped_after_the_first_look_is_refused(folder, monkeypatch) -> None:
    before = {path: os.lstat(path) for path in (folder, folder / "reader.json")}
    a_pipe(folder / "reader.json")
    monkeypatch.setattr(evidence.os, "lstat", before.__getitem__)
    assert "expected a plain file" in refused(folder)


# ---- what the JSON says ----


@injected
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(method="lsgan"), "method: expected one of combined, "),
        (lambda facts: facts.update(method="os.system\n"), "method: expected one of"),
        (lambda facts: facts.update(method=["combined"]), "expected method, settings, image_"),
        (lambda facts: facts.pop("settings"), "expected method, settings, image_shape"),
        (lambda facts: facts.update(score=10), "expected method, settings, image_shape"),
        (lambda facts: facts.update(image_shape=[1, 64, 64]), "expected image_shape, n_classes"),
        (lambda facts: facts.update(n_classes=2), "expected image_shape, n_classes"),
        (lambda facts: facts.update(n_classes=True), "expected method, settings, image_"),
        (lambda facts: facts["settings"].update(width=17), "width: expected a number up to 16"),
        (lambda facts: facts["settings"].update(width="16"), "width: expected a number up to 16"),
        (lambda facts: facts["settings"].update(width=True), "width: expected a number up to 16"),
        (lambda facts: facts["settings"].update(width=-8), "width: expected a number from 1"),
        (lambda facts: facts["settings"].update(width=8.0), "width: expected int, got 8.0"),
        (lambda facts: facts["settings"].update(beta1=10**400), "reader.json: "),
        (lambda facts: facts["settings"].update(beta1=[0.5]), "beta1: expected float"),
        (lambda facts: facts["settings"].update(beta1="x\n" * 5000), "beta1: expected float"),
        (lambda facts: facts["settings"].update({"x\n" * 5000: 1}), "setting: expected one of"),
        (lambda facts: facts["settings"].update(decay="x" * 5000), "setting: expected one of"),
    ],
)
def test_facts_out_of_bounds_are_refused(change, message, folder) -> None:
    edit_facts(folder, change)
    assert message in refused(folder)


@injected
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"n_classes": 10', '"n_classes": NaN'),
        ('"n_classes": 10', '"n_classes": 10, "n_classes": 10'),
        ('"n_classes": 10', '"n_classes": ' + "[" * 9000),
        ('"n_classes": 10', '"n_classes": ' + "9" * 9000),
        ('"n_classes": 10', '"n_classes": 1e999'),
        ("{", "[{", ),
        ('"method": "combined"', '"method": "\udcff"'),
    ],
)  # fmt: skip
def test_json_that_is_not_strict_is_refused(old, new, folder) -> None:
    path = folder / "reader.json"
    text = path.read_text().replace(old, new, 1)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(folder).startswith("reader.json: expected ")


@injected
@pytest.mark.parametrize("value", ["NaN", "-Infinity"])
def test_numbers_that_are_none_are_refused_before_anybody_compares_them(value, folder) -> None:
    text = (folder / "reader.json").read_text()
    (folder / "reader.json").write_text(text.replace('"beta1": 0.5', f'"beta1": {value}'))
    assert refused(folder) == f"reader.json: expected strict JSON, got {value}"


@injected
def test_settings_do_not_decide_how_much_is_allocated(folder) -> None:
    """Two terabytes of weights are refused before the first of them is."""
    edit_facts(folder, lambda facts: facts["settings"].update(width=65536, latent_dim=65536))
    greedy = WeightsTask("t", "reader", "test_error", 0.5, 0.1, ("combined",), {}, 2.0)
    assert "expected at most 64000000 bytes" in refused(folder, greedy)


# ---- what the weights are ----


def first(tensors: dict[str, torch.Tensor], ndim: int = 1) -> str:
    return next(key for key, tensor in tensors.items() if tensor.ndim == ndim)


@injected
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, key: tensors[key].half(), "expected {'dtype': 'F32'"),
        (lambda tensors, key: tensors[key].long(), "expected {'dtype': 'F32'"),
        (lambda tensors, key: tensors[key].double(), "expected {'dtype': 'F32'"),
        (lambda tensors, key: tensors[key][None], "expected {'dtype': 'F32'"),
        (lambda tensors, key: tensors[key][:-1].clone(), "expected {'dtype': 'F32'"),
        (lambda tensors, key: tensors[key] * torch.nan, "expected finite numbers"),
        (lambda tensors, key: tensors[key] - torch.inf, "expected finite numbers"),
        (lambda tensors, key: None, "is missing"),
    ],
    ids=["half", "whole", "double", "axis", "short", "nan", "inf", "missing"],
)
def test_tensors_of_another_kind_are_refused(change, message, folder) -> None:
    tensors = weights_of(folder)
    key = first(tensors)
    changed = change(tensors, key)
    del tensors[key]
    save(folder, tensors | ({key: changed} if changed is not None else {}))
    assert message in refused(folder)


@injected
def test_a_tensor_too_many_is_refused(folder) -> None:
    save(folder, weights_of(folder) | {"zz.payload": torch.zeros(3)})
    assert "'zz.payload' is not the method's" in refused(folder)


@injected
def test_weights_of_another_architecture_are_refused(folder, make_method) -> None:
    save(folder, make_method("supervised").state_dict())
    assert "is missing" in refused(folder)


def overlap(header: dict) -> None:
    """Let two tensors of one size share their bytes."""
    sizes: dict = {}
    for entry in header.values():
        begin, end = entry["data_offsets"]
        if end - begin in sizes:
            entry["data_offsets"] = sizes[end - begin]
            return
        sizes[end - begin] = [begin, end]
    raise AssertionError("no two tensors of one size")


def change_first(**entry):
    return lambda header: header[next(iter(header))].update(entry)


def twice(header: dict) -> str:
    text = json.dumps(header)
    key = next(iter(header))
    return text[:-1] + f", {json.dumps(key)}: {json.dumps(header[key])}}}"


@injected
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (overlap, "expected tensors end to end"),
        (change_first(data_offsets=[0, 0]), "expected its bytes"),
        (change_first(data_offsets=[-4, 10**30]), "expected its bytes"),
        (change_first(data_offsets=[0.0, 1.0]), "expected {'dtype'"),
        (change_first(data_offsets="00"), "expected {'dtype'"),
        (change_first(dtype="F16"), "expected {'dtype'"),
        (change_first(shape=[2**62, 2**62]), "expected {'dtype'"),
        (change_first(code="import os"), "expected {'dtype'"),
        (lambda header: header.update(__metadata__={"score": "10"}), "is not the method's"),
        (lambda header: header.update({next(iter(header)): None}), "expected {'dtype'"),
        (twice, "expected strict JSON, got a name twice"),
        (lambda header: "[]", "expected a JSON object"),
        (lambda header: "{" * 100_000, "expected strict JSON"),
    ],
)
def test_a_header_that_lies_is_refused(change, message, folder) -> None:
    edit_header(folder, change)
    assert message in refused(folder)


@injected
@pytest.mark.parametrize("length", [0, 10**6 + 1, 2**64 - 1])
def test_a_header_without_end_is_refused(length, folder) -> None:
    path = folder / "reader.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    assert refused(folder).startswith("reader.safetensors: expected safetensors, got a header of")


@injected
def test_bytes_after_the_tensors_are_refused(folder) -> None:
    with (folder / "reader.safetensors").open("ab") as file:
        file.write(b"smuggled")
    assert "gaps, overlaps or a rest" in refused(folder)


# ---- measuring ----


class Fixed(Method):
    """A method that does what a test tells it."""

    reads = draws = draws_on_request = True

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__(self.Config(), (1, 28, 28), 10)
        self.scale, self.images = torch.nn.Parameter(torch.ones(1)), images.float() / 255

    def predict(self, images):
        return self.scale * torch.nn.functional.one_hot(torch.zeros(len(images), dtype=int), 10)

    def reconstruct(self, images):
        return images * 0 + self.scale

    def generate(self, labels):
        noise = 0.02 * torch.rand(len(labels), 1, 28, 28)
        chosen = self.images[torch.randint(len(self.images), (len(labels),))]
        return (chosen * (1 - 0.02) + noise).clamp(0, 1)


@pytest.fixture
def small_mnist(mnist, monkeypatch) -> ImageData:
    """MNIST with a twentieth of its images in the place of what evidence measures on."""
    parts = (type(part)(part.images[::20], part.labels[::20]) for part in (mnist.train, mnist.test))
    small = ImageData(mnist.name, mnist.class_names, *parts)
    evidence._training_pixels.cache_clear()
    monkeypatch.setattr(evidence, "_mnist", lambda: small)
    monkeypatch.setattr(evidence, "N_COMPARED", 30)
    yield small
    evidence._training_pixels.cache_clear()


def test_measures_are_what_their_names_say(small_mnist) -> None:
    method = Fixed(small_mnist.train.images)
    got = {name: measure_weights(method, name, 5) for name in MEASURES}
    assert got["test_error"] == (small_mnist.test.labels != 0).double().mean().item()
    assert 0.8 < got["reconstruction_error"] < 1, "all pixels 1, most are 0"
    assert 0.02 < got["conditional_accuracy"] < 0.2, "any digit whatever was asked for"
    assert 0.3 < got["frechet_ratio"] < 10, "real images with a little noise"
    again = {name: measure_weights(method, name, 5) for name in MEASURES}
    assert got == again, "a seed is a result"
    assert measure_weights(method, "conditional_accuracy", 6) != got["conditional_accuracy"]


@injected
def test_what_is_not_finite_is_no_result(small_mnist) -> None:
    method = Fixed(small_mnist.train.images)
    method.scale.data.fill_(torch.nan)
    with pytest.raises(EvidenceError, match="reconstruction_error: expected a finite number"):
        measure_weights(method, "reconstruction_error", 0)


# ---- copies ----


@injected
def test_memorised_training_images_are_seen(small_mnist) -> None:
    assert repeats_training_images(Fixed(small_mnist.train.images[:50]), 0)
    assert not repeats_training_images(Fixed(small_mnist.test.images), 0), "test images are new"


def common(first: dict[str, str], second: dict[str, str]) -> set[str]:
    return {*first.values()} & {*second.values()}


@injected
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1])
def test_weights_of_another_student_are_seen_through_noise(share, folder) -> None:
    before, tensors = fingerprint(folder), weights_of(folder)
    for tensor in tensors.values():
        tensor += share * tensor.std(correction=0) * torch.randn_like(tensor)
    save(folder, tensors)
    assert common(before, fingerprint(folder))


def test_weights_of_ones_own_are_no_copies(folder, make_method, capsys) -> None:
    prints = [fingerprint(folder)]
    for seed in range(1, 30):
        hand_in("reader", make_method("combined", seed=seed))
        prints.append(fingerprint(folder))
    assert all(len(found) == 9 for found in prints)
    for index, found in enumerate(prints):
        assert not any(common(found, other) for other in prints[:index])


def test_what_all_networks_have_alike_makes_no_copies(folder) -> None:
    variance = 100 * torch.ones(5000)
    prints = []
    for seed in range(5):
        weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
        save(folder, {"variance": variance + seed, "weight": weight})
        prints.append(fingerprint(folder))
    assert not any(common(found, other) for found in prints for other in prints if found != other)


@injected
def test_a_fingerprint_is_taken_of_plain_weights_only(folder) -> None:
    assert fingerprint(folder / "nothing") == {}
    (folder / "b.safetensors").symlink_to("reader.safetensors")
    os.mkfifo(folder / "c.safetensors")
    (folder / "d.safetensors").write_bytes(b"no weights")
    save(folder, {"w": torch.full((4, 4), torch.nan)})
    assert set(fingerprint(folder)) == {"d.safetensors", "reader.safetensors"}
    elsewhere = folder.with_name("elsewhere")
    elsewhere.symlink_to(folder)
    assert fingerprint(elsewhere) == {}
