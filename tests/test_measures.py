"""Distances between sets, each against a closed form, a loop, or another library."""

import itertools
import math

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from semigen_lib import measures
from semigen_lib.measures import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    precision_recall,
)

PAIRS = (frechet_distance, kernel_distance, precision_recall, density_coverage)


def normal(n: int, dimension: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimension, generator=generator, dtype=torch.float64)


@pytest.fixture(params=[False, True], ids=["one block", "many blocks"])
def blocks(request, monkeypatch) -> None:
    """Sets of tens of points fall into many blocks, the last of them not full."""
    if request.param:
        monkeypatch.setattr(measures, "_ROWS", 7)
        monkeypatch.setattr(measures, "_COLUMNS", 11)


# ---- Fréchet distance ----


@pytest.mark.parametrize("n", [5, 300], ids=["singular covariance", "full rank"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equal_sets_are_at_frechet_distance_0(n, offset) -> None:
    points = (normal(n, 16, 0) * torch.logspace(-3, 2, 16) + offset).float()
    assert frechet_distance(points, points) <= 1e-6
    assert frechet_distance(points, points.flip(0)) <= 1e-6


def with_moments(n: int, mean: torch.Tensor, covariance: torch.Tensor, seed: int) -> torch.Tensor:
    """Points whose mean and covariance are exactly these."""
    points = normal(n, len(mean), seed)
    points = points - points.mean(0)
    points = points @ torch.linalg.inv(torch.linalg.cholesky(torch.atleast_2d(points.T.cov()))).T
    return points @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    # On one axis: (m1 - m2)**2 + (s1 - s2)**2.
    first = with_moments(50, torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double(), 0)
    second = with_moments(70, torch.tensor([-2.0]).double(), torch.tensor([[25.0]]).double(), 1)
    assert frechet_distance(first, second) == pytest.approx(9 + 9)
    # On many: the roots of the eigenvalues of the product, which no code of ours takes.
    means, factors = normal(2, 6, 2), normal(12, 6, 3).view(2, 6, 6)
    covariances = factors @ factors.mT
    sets = [with_moments(80 + 9 * i, means[i], covariances[i], 4 + i) for i in range(2)]
    overlap = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt().sum()
    spread = covariances[0].trace() + covariances[1].trace() - 2 * overlap
    expected = ((means[0] - means[1]).square().sum() + spread).item()
    assert expected > 1
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*sets[::-1]) == pytest.approx(expected, rel=1e-9)


def test_two_samples_of_known_gaussians_come_near_the_closed_form() -> None:
    deviation = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    got = frechet_distance(normal(40_000, 8, 0), normal(40_000, 8, 1) * deviation + 0.5)
    assert got == pytest.approx((8 * 0.25 + (1 - deviation).square().sum()).item(), rel=0.03)


def test_few_images_make_the_frechet_distance_too_large() -> None:
    """Both sets are of one distribution: whatever is left is bias, and it falls like 1 / N."""
    sizes = (100, 200, 400, 800, 1600)
    values = [frechet_distance(normal(n, 16, 0), normal(n, 16, 1)) for n in sizes]
    assert values == sorted(values, reverse=True)
    slope = math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])
    assert slope == pytest.approx(-1, abs=0.25)


# ---- kernel distance ----


def test_kernel_distance_against_a_loop(blocks) -> None:
    first, second = normal(19, 3, 0), normal(23, 3, 1) + 0.5

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    def mean(xs, ys, skip: bool) -> float:
        values = [
            kernel(x, y)
            for i, x in enumerate(xs)
            for j, y in enumerate(ys)
            if not (skip and i == j)
        ]
        return sum(values) / len(values)

    by_hand = mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)
    assert kernel_distance(first, second) == pytest.approx(by_hand, rel=1e-9)
    assert kernel_distance(second, first) == pytest.approx(by_hand, rel=1e-9)


def test_kernel_distance_of_one_distribution_is_0_on_average() -> None:
    values = torch.tensor(
        [kernel_distance(normal(60, 8, 2 * s), normal(60, 8, 2 * s + 1)) for s in range(80)]
    )
    error = (values.std() / math.sqrt(len(values))).item()
    assert abs(values.mean().item()) < 3 * error, "biased"
    assert values.min() < 0 < values.max()
    same = normal(1500, 8, 0)
    assert -0.02 < kernel_distance(same, same) < 0, "no pair of a point with itself counts"


# ---- balls ----


def test_neighbours_against_all_pairs(blocks) -> None:
    points, others = normal(30, 4, 0), normal(40, 4, 1)
    ranked = (points[:, None] - others).square().sum(2).sqrt().sort(1).values
    for k in (1, 3, 40):
        torch.testing.assert_close(nearest_distances(points, others, k), ranked[:, :k])
    assert nearest_distances(points, points).eq(0).all(), "a copy is at distance 0"
    assert nearest_distances(points + 1e6, others + 1e6).allclose(ranked[:, :1], rtol=1e-4)


def four_measures(real: torch.Tensor, drawn: torch.Tensor, k: int) -> tuple[float, ...]:
    """Precision, recall, density and coverage as their papers say them, pair by pair."""

    def radius(points: torch.Tensor, i: int) -> float:
        return sorted(float((points[i] - other).norm()) for other in points)[k]

    def inside(centers: torch.Tensor, points: torch.Tensor) -> list[list[bool]]:
        return [
            [float((center - point).norm()) < radius(centers, i) for point in points]
            for i, center in enumerate(centers)
        ]

    by_real, by_drawn = inside(real, drawn), inside(drawn, real)
    precision = sum(map(any, zip(*by_real, strict=True))) / len(drawn)
    recall = sum(map(any, zip(*by_drawn, strict=True))) / len(real)
    density = sum(map(sum, by_real)) / (k * len(drawn))
    return precision, recall, density, sum(map(any, by_real)) / len(real)


@pytest.mark.parametrize("k", [1, 3])
def test_balls_against_loops(k, blocks) -> None:
    real, drawn = normal(25, 2, 0), normal(31, 2, 1) * 0.7 + 1.2
    expected = four_measures(real, drawn, k)
    precision, recall, density, coverage = expected
    for value in (precision, recall, density / 2, coverage):
        assert 0 < value < 1, f"{expected}: a limit case would prove little"
    got = (*precision_recall(real, drawn, k), *density_coverage(real, drawn, k))
    assert got == pytest.approx(expected)


def test_equal_sets_have_ones_everywhere(blocks) -> None:
    for points in (normal(60, 8, 0), normal(60, 8, 0).float() + 100):
        assert precision_recall(points, points) == (1.0, 1.0)
        assert density_coverage(points, points) == (1.0, 1.0)


def test_sets_far_apart_have_zeros_everywhere() -> None:
    real, drawn = normal(40, 3, 0), normal(40, 3, 1) + 100
    assert (*precision_recall(real, drawn), *density_coverage(real, drawn)) == (0, 0, 0, 0)


def test_recall_and_coverage_miss_what_is_not_drawn() -> None:
    real = normal(400, 4, 0)
    real[200:] += 20  # two kinds, and only one is drawn
    drawn = normal(400, 4, 1)
    precision, recall = precision_recall(real, drawn)
    density, coverage = density_coverage(real, drawn)
    assert precision > 0.8 and 0.7 < density < 1.3
    assert recall < 0.55 and coverage < 0.55
    precision, recall = precision_recall(drawn, real)
    assert precision < 0.55 and recall > 0.8, "the other way round"


def test_one_stray_drawing_raises_recall_and_not_coverage() -> None:
    """What Naeem et al. hold against recall (their figure 1) and made coverage for."""
    real = normal(300, 2, 0)
    drawn = torch.cat([normal(300, 2, 1) * 0.05, torch.full((1, 2), 8.0).double()])
    with_stray = precision_recall(real, drawn)[1]
    assert with_stray > precision_recall(real, drawn[:300])[1] + 0.3
    coverage = density_coverage(real, drawn)[1] - density_coverage(real, drawn[:300])[1]
    assert coverage == pytest.approx(0, abs=0.02)


# ---- all of them ----


def test_more_noise_is_worse_at_each_of_five_levels() -> None:
    real, other = normal(500, 8, 0), normal(500, 8, 1)
    noise = normal(500, 8, 2)
    rows = []
    for level in (0.0, 0.5, 1.0, 2.0, 4.0):
        drawn = other + level * noise
        precision, density = precision_recall(real, drawn)[0], density_coverage(real, drawn)[0]
        coverage = density_coverage(real, drawn)[1]
        frechet, kernel = frechet_distance(real, drawn), kernel_distance(real, drawn)
        rows.append((frechet, kernel, -precision, -density, -coverage))
    for column in zip(*rows, strict=True):
        assert all(before < after for before, after in itertools.pairwise(column))


class Pixels(nn.Module):
    """Features that torchmetrics takes without change: the pixels."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def as_images(features: torch.Tensor) -> torch.Tensor:
    return features.view(-1, 3, 2, 2)


def test_frechet_distance_agrees_with_torchmetrics() -> None:
    first, second = normal(300, 12, 0), normal(250, 12, 1) * 1.3 + 0.2
    metric = FrechetInceptionDistance(feature=Pixels(), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(as_images(first), real=True)
    metric.update(as_images(second), real=False)
    assert frechet_distance(first, second) == pytest.approx(metric.compute().item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `")
def test_kernel_distance_agrees_with_torchmetrics() -> None:
    first, second = normal(120, 12, 0), normal(120, 12, 1) * 1.3 + 0.2
    metric = KernelInceptionDistance(feature=Pixels(), subsets=1, subset_size=120, normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(as_images(first), real=True)
    metric.update(as_images(second), real=False)
    assert kernel_distance(first, second) == pytest.approx(metric.compute()[0].item(), rel=1e-6)


@pytest.mark.parametrize("measure", PAIRS)
def test_measures_leave_their_input_and_its_kind_alone(measure) -> None:
    first, second = normal(40, 4, 0).float(), normal(40, 4, 1).float().requires_grad_()
    before = first.clone(), second.detach().clone()
    got, precise = measure(first, second), measure(first.double(), second.double())
    assert got == pytest.approx(precise, rel=1e-9), "float64 inside"
    assert first.equal(before[0]) and second.equal(before[1])
    assert all(type(value) is float for value in (got if isinstance(got, tuple) else (got,)))


GOOD = normal(9, 4, 0)
BAD = {
    "whole numbers": (GOOD.long(), GOOD),
    "images": (GOOD.view(9, 1, 2, 2), GOOD),
    "one point": (GOOD, GOOD[:1]),
    "no numbers": (GOOD[:, :0], GOOD[:, :0]),
    "not a number": (GOOD, GOOD.clone().fill_(math.nan)),
    "infinite": (GOOD / 0.0, GOOD),
    "two lengths": (GOOD, GOOD[:, :3]),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("measure", PAIRS)
def test_bad_features_are_one_line(measure, case) -> None:
    with pytest.raises(ValueError, match=r"\Afeatures: expected [^\n]*, got [^\n]*\Z"):
        measure(*BAD[case])


@pytest.mark.parametrize("k", [0, 9])
@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_the_neighbour_has_to_exist(measure, k) -> None:
    with pytest.raises(ValueError, match=rf"\Ak: expected a number from 1 to 8, got {k}\Z"):
        measure(GOOD, GOOD, k)


def test_the_nearest_has_to_exist() -> None:
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"\Ak: expected a number from 1 to 3, got {k}\Z"):
            nearest_distances(GOOD, GOOD[:3], k)
