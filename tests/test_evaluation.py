"""Figures of merit, each against a slower or an older way to the same number."""

import math
import statistics

import pytest
import torch

from semigen_lib.data import UNLABELED, ImageSet, to_float
from semigen_lib.evaluation import (
    class_probabilities,
    draw,
    mean_interval,
    reconstruction_error,
    t_quantile,
    test_error,
)
from semigen_lib.methods import METHODS

readers = pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].reads])


@readers
def test_error_against_a_loop(name, make_method, tiny_data) -> None:
    method, wrong = make_method(name).eval(), 0
    for image, label in zip(tiny_data.test.images, tiny_data.test.labels, strict=True):
        with torch.no_grad():
            wrong += int(method.predict(image[None].float() / 255).argmax() != label)
    error = test_error(method, tiny_data.test)
    assert isinstance(error, float) and error == wrong / 20
    assert 0 < error <= 1, "an untrained method that is always right proves nothing"


def test_error_of_a_perfect_and_of_a_hopeless_method(make_method, tiny_data, monkeypatch) -> None:
    method, labels = make_method("supervised"), tiny_data.test.labels
    for shift, error in ((0, 0.0), (1, 1.0)):
        logits = torch.nn.functional.one_hot((labels + shift) % 10, 10).float()
        monkeypatch.setattr(method, "predict", lambda images, logits=logits: logits)
        assert test_error(method, tiny_data.test) == error


def test_error_refuses_images_without_a_label(make_method, tiny_data) -> None:
    labels = tiny_data.test.labels.clone()
    labels[3] = UNLABELED
    with pytest.raises(ValueError, match=r"\Aimages: expected .*, got 1 without one\Z"):
        test_error(make_method("supervised"), ImageSet(tiny_data.test.images, labels))


@readers
@pytest.mark.parametrize("batch_size", [1, 7, 20, 500])
def test_probabilities_do_not_depend_on_batches(name, batch_size, make_method, tiny_data) -> None:
    method = make_method(name)
    images = tiny_data.test.images
    got = class_probabilities(method, images, batch_size)
    assert got.shape == (20, 10) and got.dtype == torch.float32 and not got.requires_grad
    torch.testing.assert_close(got.sum(1), torch.ones(20))
    assert got.min() >= 0
    torch.testing.assert_close(got, class_probabilities(method, images, 500))


def test_probabilities_are_the_softmax_in_evaluation_mode(make_method, tiny_data) -> None:
    method = make_method("combined").eval()
    with torch.no_grad():
        expected = method.predict(to_float(tiny_data.test.images)).softmax(1)
    torch.testing.assert_close(class_probabilities(method.train(), tiny_data.test.images), expected)


@pytest.mark.parametrize("function", [class_probabilities, reconstruction_error])
def test_uint8_is_what_they_take(function, make_method) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 images, got torch\.float32"):
        function(make_method("combined"), torch.rand(2, 1, 28, 28))


CALLS = {
    "predict": lambda method, images: class_probabilities(method, images),
    "reconstruct": lambda method, images: reconstruction_error(method, images),
    "generate": lambda method, images: draw(method, torch.zeros(3, dtype=torch.int64)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("broken", [True, False])
def test_modes_are_put_back_even_after_an_error(
    call, training, broken, make_method, tiny_data, monkeypatch
) -> None:
    method = make_method("combined").train(training)
    real = getattr(method, call)

    def watched(*arguments):
        assert not method.training and not any(m.training for m in method.modules())
        assert not torch.is_grad_enabled()
        if broken:
            raise RuntimeError("broken")
        return real(*arguments)

    monkeypatch.setattr(method, call, watched)
    if broken:
        with pytest.raises(RuntimeError, match="broken"):
            CALLS[call](method, tiny_data.test.images)
    else:
        CALLS[call](method, tiny_data.test.images)
    assert all(module.training == training for module in method.modules())


@pytest.mark.parametrize("name", [n for n in METHODS if hasattr(METHODS[n], "reconstruct")])
def test_reconstruction_error_by_hand(name, make_method, tiny_data) -> None:
    method = make_method(name).eval()
    images = tiny_data.test.images
    with torch.no_grad():
        by_hand = (method.reconstruct(images.float() / 255) - images.float() / 255) ** 2
    expected = by_hand.mean().item()
    assert reconstruction_error(method, images) == pytest.approx(expected, rel=1e-5)
    # 20 images in batches of 7, 7 and 6: each image weighs the same.
    assert reconstruction_error(method, images, 7) == pytest.approx(expected, rel=1e-5)


def test_draw_rounds_to_the_nearest_of_256_levels(make_method, monkeypatch) -> None:
    method = make_method("combined")
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.4 / 255, 254.6 / 255, 1.0])
    monkeypatch.setattr(method, "generate", lambda labels: values.expand(len(labels), 1, 1, 7))
    images = draw(method, torch.tensor([1, 2]))
    assert images.dtype == torch.uint8 and images.shape == (2, 1, 1, 7)
    assert images[0].flatten().tolist() == [0, 0, 1, 128, 254, 255, 255]


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].draws])
def test_draw_one_image_a_label(name, make_method) -> None:
    method = make_method(name)
    assert draw(method, torch.full((5,), UNLABELED), batch_size=2).shape == (5, 1, 28, 28)
    torch.manual_seed(0)
    first = draw(method, torch.full((3,), UNLABELED))
    torch.manual_seed(0)
    assert torch.equal(first, draw(method, torch.full((3,), UNLABELED)))


# Two-sided 95 %, from printed tables; the last is the normal limit.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 19: 2.093,
         29: 2.045, 120: 1.980, 400: 1.966, 100_000: 1.960}  # fmt: skip


@pytest.mark.parametrize("degrees", TABLE)
def test_t_quantile_against_the_table(degrees) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(TABLE[degrees], abs=5.1e-4)


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),
    [(0.95, 4, 2.1318), (0.995, 2, 9.9248), (0.995, 1, 63.6567), (0.75, 1, 1.0), (0.5, 3, 0.0)],
)
def test_t_quantile_of_other_levels(probability, degrees, value) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    ("probability", "degrees"), [(0.4, 3), (1.0, 3), (1.5, 3), (float("nan"), 3), (0.9, 0)]
)
def test_t_quantile_refuses(probability, degrees) -> None:
    with pytest.raises(ValueError, match=r"\A(probability|degrees): expected .*, got .*\Z"):
        t_quantile(probability, degrees)


def test_mean_interval_by_hand() -> None:
    values = [0.03, 0.05, 0.04, 0.06, 0.045]
    mean, half_width = mean_interval(values)
    assert mean == pytest.approx(statistics.fmean(values))
    assert half_width == pytest.approx(2.7764 * statistics.stdev(values) / math.sqrt(5), rel=1e-4)
    wider = mean_interval(values, confidence=0.99)[1]
    assert wider == pytest.approx(4.6041 * statistics.stdev(values) / math.sqrt(5), rel=1e-4)


def test_mean_interval_covers_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for row in torch.rand(2000, 12, 3, generator=generator).sum(1).sub(6).tolist():  # near normal
        mean, half_width = mean_interval(row)
        covered += abs(mean) <= half_width
    assert 0.935 < covered / 2000 < 0.965


def test_mean_interval_of_equal_values_has_no_width() -> None:
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0)


@pytest.mark.parametrize("values", [[], [0.1]])
def test_mean_interval_needs_two(values) -> None:
    with pytest.raises(ValueError, match=rf"\Avalues: expected .*, got {len(values)}\Z"):
        mean_interval(values)
