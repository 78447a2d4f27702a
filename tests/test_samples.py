"""What drawings are worth: sets whose worth is known in advance get the figures they deserve."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from conftest import tiny_images
from PIL import Image
from torch import nn

from semigen_lib import samples as module
from semigen_lib.data import UNLABELED, ImageFiles, ImageSet, load_images, to_float
from semigen_lib.judge import load_judge
from semigen_lib.measures import frechet_distance, kernel_distance
from semigen_lib.samples import (
    Reading,
    classification_accuracy_score,
    measure_samples,
    read_images_with,
)

PER_CLASS = 50
REQUESTS = torch.arange(10).repeat_interleave(PER_CLASS)


def some_of(images: ImageSet, per_class: int, skip: int = 0) -> ImageSet:
    """Return a few images of each class, ordered by class, leaving out the first of them."""
    members = [(images.labels == k).nonzero().flatten() for k in range(10)]
    chosen = torch.cat([m[skip : skip + per_class] for m in members])
    return ImageSet(images.images[chosen], images.labels[chosen])


@pytest.fixture(scope="module")
def judge() -> nn.Module:
    return load_judge()


@pytest.fixture(scope="module")
def known(mnist, judge) -> Reading:
    """Training images, read."""
    return read_images_with(judge, some_of(mnist.train, 150))


@pytest.fixture(scope="module")
def unseen(mnist, judge) -> Reading:
    """Test images, read."""
    return read_images_with(judge, some_of(mnist.test, 60))


@pytest.fixture(scope="module")
def good(mnist) -> torch.Tensor:
    """The best drawings there can be: test images that are not among the unseen."""
    return some_of(mnist.test, PER_CLASS, skip=60).images


def with_noise(images: torch.Tensor, level: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = level * torch.randn(images.shape, generator=generator)
    return ((to_float(images) + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def test_real_images_are_near_the_floor(good, known, unseen, judge) -> None:
    report = measure_samples(good, REQUESTS, known, unseen, judge=judge)
    assert report.n == 500 and report.k == 5
    assert report.conditional_accuracy > 0.97
    assert 0.4 < report.frechet_ratio < 2.5
    assert report.frechet_ratio == pytest.approx(report.frechet / report.frechet_floor)
    assert report.kernel < 0.01
    for value in (report.precision, report.recall, report.density, report.coverage):
        assert value > 0.8
    assert not report.memorised and report.copied_share < 0.02
    assert 0.8 < report.nearest_ratio < 1.2
    assert not report.collapsed and report.reason == ""
    assert len(report.spread) == 10 and 0.6 < min(report.spread) <= max(report.spread) < 1.6
    assert sum(report.counts) == 500 and all(40 <= count <= 60 for count in report.counts)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["n"] == 500


def test_the_test_images_themselves_are_at_0(mnist, known, unseen, judge) -> None:
    images = some_of(mnist.test, 60)
    report = measure_samples(images.images, images.labels, known, unseen, judge=judge)
    assert report.frechet <= 1e-6 and report.kernel < 1e-3
    assert (report.precision, report.recall, report.density, report.coverage) == (1, 1, 1, 1)


def test_figures_are_the_measures_of_what_the_judge_reads(good, known, unseen, judge) -> None:
    everything = unseen.labels  # as many of each class as there are, so nothing is chosen
    drawn = read_images_with(judge, ImageSet(good[:500], REQUESTS))
    with torch.no_grad():
        features, class_logits = judge(to_float(good))
    torch.testing.assert_close(drawn.features, features)
    torch.testing.assert_close(drawn.class_logits, class_logits)
    images = torch.cat([good, good[:100]])
    report = measure_samples(images, everything, known, unseen, judge=judge)
    features = torch.cat([features, features[:100]])
    assert report.frechet == pytest.approx(frechet_distance(features, unseen.features), rel=1e-4)
    assert report.kernel == pytest.approx(kernel_distance(features, unseen.features), rel=1e-3)
    read = torch.cat([class_logits, class_logits[:100]]).argmax(1)
    assert report.conditional_accuracy == pytest.approx((read == everything).double().mean().item())


def test_more_noise_is_worse_at_each_of_five_levels(good, known, unseen, judge) -> None:
    rows = []
    for level in (0.0, 0.1, 0.2, 0.3, 0.5):
        drawn = with_noise(good, level)
        report = measure_samples(drawn, REQUESTS, known, unseen, judge=judge)
        rows.append((report.frechet, report.kernel, -report.density, -report.conditional_accuracy))
    for column in zip(*rows, strict=True):
        assert all(before < after for before, after in itertools.pairwise(column)), column


def test_fewer_images_have_a_larger_distance_from_the_same_reality(known, unseen) -> None:
    """Why n stands in the report, and why both sides have as many."""
    values = []
    for n in (6, 15, 30, 60):
        chosen = torch.cat([torch.arange(n) + 60 * k for k in range(10)])
        others = torch.cat([torch.arange(n) + 150 * k for k in range(10)])
        values.append(frechet_distance(unseen.features[chosen], known.features[others]))
    assert values == sorted(values, reverse=True) and values[0] > 3 * values[-1]


def classes_named(reason: str) -> list[int]:
    return [int(part.split()[1].rstrip(":")) for part in reason.split("; ")]


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_one_drawing_a_class_is_a_collapse(noise, good, known, unseen, judge) -> None:
    drawn = with_noise(good[::PER_CLASS].repeat_interleave(PER_CLASS, dim=0), noise)
    report = measure_samples(drawn, REQUESTS, known, unseen, judge=judge)
    assert report.conditional_accuracy > 0.9, "every drawing is as it should be"
    assert report.collapsed and classes_named(report.reason) == list(range(10))
    assert report.recall < 0.1 and report.coverage < 0.2
    assert max(report.spread) < 0.3


def test_one_class_of_ten_is_enough_for_a_collapse(good, known, unseen, judge) -> None:
    drawn = good.clone()
    drawn[REQUESTS == 7] = drawn[REQUESTS == 7][0]
    report = measure_samples(drawn, REQUESTS, known, unseen, judge=judge)
    assert report.collapsed and classes_named(report.reason) == [7]
    assert "times as far apart as real images" in report.reason


def test_a_class_that_is_never_drawn_is_a_collapse(mnist, known, unseen, judge) -> None:
    drawn = some_of(mnist.test, PER_CLASS, skip=60).images.clone()
    drawn[REQUESTS == 4] = some_of(mnist.test, PER_CLASS, skip=120).images[REQUESTS == 3]
    report = measure_samples(drawn, REQUESTS, known, unseen, judge=judge)
    assert report.collapsed and classes_named(report.reason) == [4]
    assert "class 4: expected about 50 drawings, got" in report.reason
    assert report.conditional_accuracy < 0.92


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_copies_of_training_images_are_found(noise, mnist, known, unseen, judge) -> None:
    copies = with_noise(some_of(mnist.train, PER_CLASS, skip=90).images, noise)
    report = measure_samples(copies, REQUESTS, known, unseen, judge=judge)
    assert report.memorised and report.copied_share > 0.8 and report.nearest_ratio < 0.3
    assert not report.collapsed
    # A fifth of copies is found too, and told.
    drawn = some_of(mnist.test, PER_CLASS, skip=60).images.clone()
    drawn[::5] = copies[::5]
    report = measure_samples(drawn, REQUESTS, known, unseen, judge=judge)
    assert report.memorised and 0.15 < report.copied_share < 0.25


def test_a_copy_that_moved_by_a_pixel_is_found_in_features(unseen, known) -> None:
    """Pixels do not see it, a judge that does not mind where a digit stands does."""

    class Blind(nn.Module):
        def forward(self, images):
            return torch.fft.fft2(images).abs().flatten(1), None

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 12, 12), generator=generator, dtype=torch.uint8)
    labels = torch.arange(2).repeat(30)
    train, test = (ImageSet(images[i : i + 20], labels[:20]) for i in (0, 20))
    moved = images[:20].roll((1, 1), (2, 3))
    copied = measure_samples(moved, labels[:20], train, test, judge=Blind())
    assert copied.memorised and copied.copied_share == 1.0 and copied.nearest_ratio > 0.7
    fresh = measure_samples(images[40:], labels[:20], train, test, judge=Blind())
    assert not fresh.memorised and fresh.copied_share == 0.0


def test_copies_of_images_that_are_there_twice_are_found(mnist, known, unseen, judge) -> None:
    twins = Reading(*(torch.cat([part, part]) for part in known))
    copies = some_of(mnist.train, PER_CLASS, skip=90).images
    report = measure_samples(copies, REQUESTS, twins, unseen, judge=judge)
    assert report.memorised and report.copied_share == 1.0


def test_images_or_what_was_read_of_them_make_no_difference(mnist, judge) -> None:
    train, test = some_of(mnist.train, 12), some_of(mnist.test, 10)
    requests = torch.arange(10).repeat_interleave(8)
    drawn = some_of(mnist.test, 8, skip=20).images
    from_images = measure_samples(drawn, requests, train, test, k=3)
    readings = read_images_with(judge, train), read_images_with(judge, test)
    assert from_images == measure_samples(drawn, requests, *readings, judge=judge, k=3)


def test_real_images_are_taken_from_everywhere_as_often_as_asked() -> None:
    """The first thousands of MNIST's test images are by other writers than the last."""
    labels = torch.tensor([0, 1] * 50 + [2])
    requests = torch.tensor([1, 0, 0, 1, 0])
    chosen = module._take_as_many(requests, labels, "real_test")
    assert labels[chosen].tolist() == [0, 0, 0, 1, 1]
    assert sorted(chosen.tolist()) in ([0, 1, 48, 98, 99], [0, 1, 50, 98, 99])
    anything = torch.full((3,), UNLABELED)
    assert module._take_as_many(anything, labels, "real_test").tolist() == [0, 50, 100]


def test_drawings_without_a_request(good, known, unseen, judge) -> None:
    anything = torch.full((500,), UNLABELED)
    report = measure_samples(good, anything, known, unseen, judge=judge)
    assert report.conditional_accuracy is None and not report.collapsed
    assert len(report.spread) == 1 and sum(report.counts) == 500
    one = good[:1].expand(500, -1, -1, -1)
    report = measure_samples(one, anything, known, unseen, judge=judge)
    assert report.collapsed and "class 9" in report.reason and "drawings are 0.00" in report.reason


class Pixels(nn.Module):
    """Somebody's own network: a linear one, with classes or without."""

    def __init__(self, n_classes: int | None) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 6)
        self.head = nn.Linear(6, n_classes) if n_classes else None
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        features = self.dropout(self.linear(images.flatten(1)))
        return features, self.head(features) if self.head else None


@pytest.mark.parametrize("n_classes", [None, 10])
def test_a_network_of_your_own_judges_too(n_classes, good, mnist) -> None:
    torch.manual_seed(0)
    own = Pixels(n_classes).train()
    train, test = some_of(mnist.train, PER_CLASS), some_of(mnist.test, PER_CLASS)
    report = measure_samples(good, REQUESTS, train, test, judge=own)
    assert own.training and own.dropout.training, "left as it was"
    assert report == measure_samples(good, REQUESTS, train, test, judge=own), "no dropout"
    assert report.frechet > 0 and report.precision > 0.5
    if n_classes is None:
        assert report.conditional_accuracy is report.counts is None and not report.collapsed
    else:
        assert 0 <= report.conditional_accuracy < 0.6 and sum(report.counts) == 500


@pytest.mark.parametrize(
    "answer",
    [
        lambda images: images.flatten(1),
        lambda images: (images, None),
        lambda images: (images.flatten(1), None, None),
        lambda images: (None, images.flatten(1)),
    ],
)
def test_a_judge_that_answers_something_else_is_refused(answer, good) -> None:
    class Odd(nn.Module):
        def forward(self, images):
            return answer(images)

    with pytest.raises(ValueError, match=r"\Ajudge: expected \(features [^\n]*, got [^\n]*\Z"):
        read_images_with(Odd(), ImageSet(good[:4], REQUESTS[:4]))


def test_images_may_stay_in_their_files(tmp_path, judge, mnist) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(mnist.train.images[:6]):
            Image.fromarray(image[0].numpy()).save(tmp_path / name / f"{i}.png")
    inside, outside = (load_images(tmp_path, stream=s).train for s in (False, True))
    assert isinstance(outside.images, ImageFiles)
    first, second = (read_images_with(judge, part, batch_size=4) for part in (inside, outside))
    for name in ("features", "class_logits", "pixels", "labels"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


BAD = {
    "one too few": (REQUESTS[1:], "requests: expected int64 \\(500,\\)"),
    "not whole": (REQUESTS.float(), "requests: expected int64"),
    "some unlabelled": (REQUESTS - 1, "requests: expected UNLABELED for all or for none"),
    "one of a class": (
        REQUESTS.clone().index_fill_(0, torch.arange(1, 50), 1),
        "requests: expected at least 2",
    ),
    "more than there are": (REQUESTS // 2, "real_test: expected at least 100 images of class 0"),
    "a class that is not": (REQUESTS + 1, "real_test: expected at least 50 images of class 10"),
}


@pytest.mark.parametrize("case", BAD)
def test_requests_that_cannot_be_met_are_one_line(case, good, known, unseen, judge) -> None:
    requests, text = BAD[case]
    with pytest.raises(ValueError, match=rf"\A{text}") as error:
        measure_samples(good, requests, known, unseen, judge=judge)
    assert ", got " in str(error.value) and "\n" not in str(error.value)


# ---- classification accuracy score ----


def test_score_of_good_and_of_wrong_drawings() -> None:
    test, drawn = tiny_images(5, seed=2), tiny_images(12, seed=3)
    random.random(), np.random.rand(), torch.rand(3)  # no generator is where a seed would put it
    state, draws = torch.get_rng_state(), (random.getstate(), str(np.random.get_state()))
    score = classification_accuracy_score(drawn.images, drawn.labels, test, steps=40)
    assert torch.get_rng_state().equal(state), "the noise of the caller is left alone"
    assert draws == (random.getstate(), str(np.random.get_state())), "and his other draws"
    assert score > 0.8
    wrong = (drawn.labels + 1) % 10
    assert classification_accuracy_score(drawn.images, wrong, test, steps=30) < 0.1
    torch.rand(3)
    again = classification_accuracy_score(drawn.images, drawn.labels, test, steps=40)
    assert again == score, "a seed is a result"


def test_score_with_a_class_that_no_test_image_shows() -> None:
    test, drawn = tiny_images(2, seed=2), tiny_images(3, seed=3)
    few = test.labels < 9
    test = ImageSet(test.images[few], test.labels[few])
    assert 0 <= classification_accuracy_score(drawn.images, drawn.labels, test, steps=2) <= 1


def test_score_sees_drawings_only(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(module, "train", lambda *given, **_: seen.append(given))
    test, drawn = tiny_images(2, seed=2), tiny_images(3, seed=3)
    classification_accuracy_score(drawn.images, drawn.labels, test)
    ((reader, split),) = seen
    assert reader.config.augment == 1, "the score was measured with views"
    assert split.images.equal(drawn.images) and split.labels.equal(drawn.labels)
    assert split.n_labeled == len(split) == 30 and split.validation is None


def test_score_needs_a_class_for_each() -> None:
    drawn = tiny_images(2, seed=2)
    labels = drawn.labels.clone()
    labels[3] = UNLABELED
    with pytest.raises(ValueError, match=r"\Arequests: expected a class for each, got 1 without"):
        classification_accuracy_score(drawn.images, labels, drawn)
