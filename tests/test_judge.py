"""The judge that comes with the package: what its record says of it is so."""

import json
import shutil

import pytest
import torch
from conftest import tiny_images
from torch import nn
from train_judge import count_errors, distort, learning_rate, train_judge

from semigen_lib.checkpoint import CheckpointError, save_weights
from semigen_lib.data import BatchStream, LabelSplit, to_float
from semigen_lib.judge import JUDGE, N_JUDGE_FEATURES, Judge, load_judge
from semigen_lib.models import ConvTrunk


def test_it_reads_as_well_as_its_record_says(mnist) -> None:
    facts = json.loads((JUDGE / "mnist.json").read_text())
    judge = load_judge()
    with torch.no_grad():
        read = torch.cat([judge(to_float(p))[1].argmax(1) for p in mnist.test.images.split(500)])
    n_errors = int((read != mnist.test.labels).sum())
    assert facts["n_train"] == 60000 and facts["n_test"] == 10000
    # Another processor sums in another order: an image on the edge may fall to the other side.
    assert abs(n_errors - facts["n_test_errors"]) <= 2
    assert facts["n_test_errors"] <= 50, "half a percent: no judge otherwise"
    assert facts["test_error"] == facts["n_test_errors"] / 10000
    assert facts["test_accuracy"] == pytest.approx(1 - facts["test_error"])
    assert {"sha256", "seed", "epochs", "command"} <= facts.keys()


def test_it_is_small_and_frozen() -> None:
    judge = load_judge()
    assert (JUDGE / "mnist.safetensors").stat().st_size < 1_300_000
    assert 100_000 <= sum(p.numel() for p in judge.parameters()) <= 300_000
    assert not any(p.requires_grad for p in judge.parameters())
    assert not any(m.training for m in judge.modules())
    images = torch.rand(3, 1, 28, 28)
    features, class_logits = judge(images)
    assert features.shape == (3, N_JUDGE_FEATURES) and class_logits.shape == (3, 10)
    assert (features < 0).any(), "before the rectifier"
    torch.testing.assert_close(class_logits, judge.class_head(features.clamp(min=0)))
    alone = torch.cat([judge(image[None])[0] for image in images])
    torch.testing.assert_close(alone, features)  # no image is read by its neighbours


def test_it_is_no_network_of_a_method() -> None:
    def kinds(network: nn.Module) -> set[type]:
        return {type(part) for part in network.modules()} - {nn.Sequential, nn.Flatten, nn.Linear}

    ours = kinds(ConvTrunk((1, 28, 28), 16, regularise=True))
    assert kinds(Judge()) & ours == {nn.Conv2d}
    strides = {part.stride for part in Judge().modules() if isinstance(part, nn.Conv2d)}
    assert strides == {(1, 1)}, "a trunk's stride by two"


@pytest.fixture
def copied(tmp_path):
    """A copy of the judge's folder, to be damaged."""
    return shutil.copytree(JUDGE, tmp_path / "judge")


def one_line(folder) -> str:
    with pytest.raises(CheckpointError, match=r"\A[^\n]*expected [^\n]*, got [^\n]*\Z") as error:
        load_judge(folder)
    return str(error.value)


def test_a_damaged_judge_is_refused(copied) -> None:
    path = copied / "mnist.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "damaged" in one_line(copied)
    path.write_bytes(content[:100])
    assert "damaged" in one_line(copied)
    path.unlink()
    assert "got nothing" in one_line(copied)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sha256": "0"}'])
def test_a_damaged_record_is_refused(text, copied) -> None:
    (copied / "mnist.json").write_text(text)
    one_line(copied)


def test_weights_of_another_network_are_refused(copied) -> None:
    sha256 = save_weights(copied / "mnist.safetensors", nn.Linear(2, 2).state_dict())
    (copied / "mnist.json").write_text(json.dumps({"sha256": sha256}))
    assert "expected the weights of a Judge" in one_line(copied)


def test_the_script_trains_what_it_says() -> None:
    images = tiny_images(8, seed=1)
    split = LabelSplit(
        "t", tuple("0123456789"), images.images, images.labels, torch.arange(80), None, 0
    )
    torch.manual_seed(0)
    stream = BatchStream(split, batch_size=1, labeled_batch_size=20)
    judge = train_judge(stream, 40)
    assert count_errors(judge, tiny_images(5, seed=2)) <= 10, "of 50; chance is 45"
    assert not judge.training
    moved = distort(to_float(images.images))
    assert moved.shape == (80, 1, 28, 28) and not moved.equal(to_float(images.images))
    assert learning_rate(0.1) == pytest.approx(0.1) and learning_rate(1.0) == 0
