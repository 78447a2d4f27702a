"""The student's side: a split without hidden labels, and weights that are handed in."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from semigen_lib.course import (
    DATA_VARIABLE,
    EVIDENCE_VARIABLE,
    course_split,
    hand_in,
    write_course_split,
)
from semigen_lib.data import UNLABELED, DataError, split_labels
from semigen_lib.methods.supervised import Supervised


@pytest.fixture
def graded(tmp_path, monkeypatch, tiny_split) -> Path:
    """The file that the grader mounts, with 20 labels of seed 0."""
    path = tmp_path / "course.safetensors"
    write_course_split(tiny_split, path)
    monkeypatch.setenv(DATA_VARIABLE, str(path))
    return path


def test_at_home_the_split_is_the_librarys(monkeypatch, mnist) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr("semigen_lib.course.load_images", lambda name: mnist)
    split, wanted = course_split(100, 3), split_labels(mnist, 100, 3)
    assert torch.equal(split.labels, wanted.labels) and split.seed == 3


def test_under_the_grader_the_split_comes_from_its_file(graded, tiny_split) -> None:
    split = course_split(20, 0)
    for name in ("images", "labels", "labeled_index"):
        assert torch.equal(getattr(split, name), getattr(tiny_split, name)), name
    assert (split.name, split.class_names, split.seed) == (
        tiny_split.name,
        tiny_split.class_names,
        tiny_split.seed,
    )


@pytest.mark.parametrize(
    ("n_labeled", "seed", "message"),
    [(50, 0, "n_labeled: expected .* 20, got 50"), (20, 1, "seed: expected .* 0, got 1")],
)
def test_under_the_grader_the_parameters_are_what_there_is(n_labeled, seed, message, graded):
    with pytest.raises(DataError, match=message):
        course_split(n_labeled, seed)


@pytest.mark.fault("integrity")
def test_no_hidden_label_is_in_the_graders_file(graded, tiny_data, tiny_split) -> None:
    tensors = safetensors.torch.load_file(graded)
    assert set(tensors) == {"images", "labels", "labeled_index"}
    hidden = torch.ones(len(tiny_split), dtype=bool)
    hidden[tiny_split.labeled_index] = False
    assert (tensors["labels"][hidden] == UNLABELED).all() and hidden.any()
    truth = tiny_data.train.labels
    for kind in (np.int64, np.int32, np.uint8):  # all labels one after the other, in any type
        assert truth.numpy().astype(kind).tobytes() not in graded.read_bytes()


def test_weights_are_handed_in_as_plain_data(tmp_path, monkeypatch, make_method, capsys) -> None:
    monkeypatch.setenv(EVIDENCE_VARIABLE, str(tmp_path / "out"))
    method = make_method("supervised")
    hand_in("reader", method)
    assert capsys.readouterr().out == "handed in: reader (supervised)\n"
    assert sorted(os.listdir(tmp_path / "out")) == ["reader.json", "reader.safetensors"]
    facts = json.loads((tmp_path / "out/reader.json").read_text())
    assert set(facts) == {"method", "settings", "image_shape", "n_classes"}
    assert Supervised.Config(**facts["settings"]) == method.config
    tensors = safetensors.torch.load_file(tmp_path / "out/reader.safetensors")
    assert all(torch.equal(tensors[name], t) for name, t in method.state_dict().items())


def test_without_a_grader_they_lie_beside_the_notebook(tmp_path, monkeypatch, make_method) -> None:
    monkeypatch.delenv(EVIDENCE_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    hand_in("reader", make_method("supervised"))
    hand_in("reader", make_method("supervised", seed=1))  # again, after more training
    assert sorted(os.listdir("evidence")) == ["reader.json", "reader.safetensors"]


class Mine(Supervised):
    """A method of a student's own."""


@pytest.mark.parametrize("name", ["", "../up", "Reader", "a b", "x" * 41, "reader.json"])
def test_a_name_is_a_plain_word(name, make_method) -> None:
    with pytest.raises(ValueError, match="name: expected small letters"):
        hand_in(name, make_method("supervised"))


@pytest.mark.parametrize("method", [Mine, torch.nn.Linear(1, 1)])
def test_a_method_is_one_of_the_librarys(method, make_method) -> None:
    method = make_method(method) if isinstance(method, type) else method
    with pytest.raises(
        ValueError, match="method: expected one of the library's, got (Mine|Linear)"
    ):
        hand_in("reader", method)
