"""Random views: within their range, each image its own, and a way back for the gradient."""

import math

import pytest
import torch

from semigen_lib.augment import MILD, STRONG, View, erase, warp

STILL = View(degrees=0, scale=0, shift=0, bend=0)


def blobs(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth images in [0, 1] whose edges are 0: what leaves the frame is not seen."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear")
    frame = torch.zeros(shape[2:])
    frame[4:-4, 4:-4] = 1
    return smooth * frame


def one_dot(side: int, row: int, column: int) -> torch.Tensor:
    """One image (1, 1, side, side) with a soft dot."""
    rows, columns = torch.arange(side)[:, None], torch.arange(side)[None, :]
    return (-((rows - row) ** 2 + (columns - column) ** 2) / 8.0).exp()[None, None]


def centre(images: torch.Tensor) -> torch.Tensor:
    """Centres of mass (B, 2), as (row, column)."""
    _, _, height, width = images.shape
    mass = images.sum((1, 2, 3))
    rows = (images.sum((1, 3)) * torch.arange(height)).sum(1) / mass
    columns = (images.sum((1, 2)) * torch.arange(width)).sum(1) / mass
    return torch.stack([rows, columns], 1)


# ---- warp ----


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (2, 3, 32, 32), (3, 1, 64, 64), (1, 2, 28, 20)])
@pytest.mark.parametrize("view", [MILD, STRONG], ids=["mild", "strong"])
def test_a_view_has_the_shape_the_type_and_the_range_of_its_image(shape, view) -> None:
    for dtype in (torch.float32, torch.float64):
        images = torch.rand(shape, dtype=dtype)
        views = warp(images, view)
        assert views.shape == images.shape and views.dtype == dtype
        assert views.min() >= 0 and views.max() <= images.max() + 1e-6, "a mean of neighbours"
        assert not torch.equal(views, images)


@pytest.mark.parametrize("colour", [0.0, 0.4, 1.0])
def test_an_even_colour_stays_what_it_is(colour) -> None:
    plain = torch.full((3, 1, 28, 28), colour)
    torch.testing.assert_close(warp(plain, STRONG), plain)


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 32, 32), (2, 1, 28, 20)])
def test_a_view_from_nowhere_else_is_the_image(shape) -> None:
    images = torch.rand(shape)
    torch.testing.assert_close(warp(images, STILL), images, atol=1e-4, rtol=0)


def test_each_image_has_a_warp_of_its_own() -> None:
    same = blobs(1, 1, 28, 28).repeat(6, 1, 1, 1)
    views = warp(same)
    for first in range(6):
        for second in range(first):
            assert (views[first] - views[second]).abs().max() > 0.01


def test_channels_of_an_image_move_together() -> None:
    grey = blobs(4, 1, 32, 32).repeat(1, 3, 1, 1)
    views = warp(grey, STRONG)
    assert torch.equal(views[:, 0], views[:, 1]) and torch.equal(views[:, 0], views[:, 2])


def test_the_seed_decides() -> None:
    images, views = blobs(4, 1, 28, 28), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(warp(images))
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


def test_a_view_is_as_sharp_in_bfloat16() -> None:
    images, views = blobs(4, 1, 64, 64), []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            views.append(warp(images))
    assert torch.equal(*views)


def test_the_gradient_finds_its_way_back() -> None:
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def same_view(pixels: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return warp(pixels)

    assert torch.autograd.gradcheck(same_view, images)


def test_shifts_stay_within_their_limit_and_go_everywhere() -> None:
    torch.manual_seed(0)
    dots = one_dot(28, 14, 14).repeat(500, 1, 1, 1)
    moved = centre(warp(dots, View(degrees=0, scale=0, shift=0.1, bend=0))) - 14
    limit = 0.1 * 28
    assert moved.abs().max() <= limit + 0.05
    assert (moved.max(0).values > 0.9 * limit).all() and (moved.min(0).values < -0.9 * limit).all()
    assert moved.mean(0).abs().max() < 0.3, "no direction is preferred"


def test_turns_and_slants_stay_within_their_limit() -> None:
    """A dot right of the centre moves up or down by its turn, and hardly sideways."""
    torch.manual_seed(0)
    dots = one_dot(29, 14, 24).repeat(500, 1, 1, 1)
    moved = centre(warp(dots, View(degrees=15, scale=0, shift=0, bend=0))) - 14
    angle = torch.rad2deg(torch.atan2(moved[:, 0], moved[:, 1]))
    assert angle.abs().max() < 16.5 and angle.max() > 12 and angle.min() < -12
    upright = centre(warp(one_dot(29, 24, 14).repeat(500, 1, 1, 1),
                          View(degrees=15, scale=0, shift=0, bend=0))) - 14  # fmt: skip
    lean = torch.rad2deg(torch.atan2(upright[:, 1], upright[:, 0]))
    # Here turn and slant add up: at most twice the angle, near enough.
    assert 15 < lean.abs().max() < 35


def test_stretching_changes_sizes_up_to_its_limit() -> None:
    torch.manual_seed(0)
    two = one_dot(29, 14, 6) + one_dot(29, 14, 22)
    views = warp(two.repeat(500, 1, 1, 1), View(degrees=0, scale=0.2, shift=0, bend=0))
    columns = views.sum((1, 2))
    right = (columns[:, 15:] * torch.arange(15, 29)).sum(1) / columns[:, 15:].sum(1)
    reach = (right - 14) / 8  # 1 where nothing is stretched
    assert reach.min() > 1 / 1.2 - 0.03 and reach.max() < 1 / 0.8 + 0.03
    assert reach.min() < 0.9 and reach.max() > 1.15


def test_nothing_is_mirrored() -> None:
    """A dot on the left stays on the left, one at the top stays at the top."""
    for row, column in ((14, 4), (4, 14)):
        where = centre(warp(one_dot(28, row, column).repeat(300, 1, 1, 1), STRONG))
        assert (where[:, 0 if row < 14 else 1] < 14).all()


def test_a_bend_is_smooth_and_small() -> None:
    """A field of small displacements: lines bend, pixels do not scatter."""
    torch.manual_seed(0)
    side = 28
    ramp = torch.linspace(0, 1, side).repeat(200, 1, side, 1)  # the value tells the column
    bent = warp(ramp, View(degrees=0, scale=0, shift=0, bend=0.03))
    moved = ((bent - ramp) * (side - 1))[:, :, 3:-3, 3:-3]  # in pixels
    assert 0.2 < moved.std() < 0.03 * side * 1.5
    assert moved.diff(dim=2).abs().mean() < moved.std() / 2, "neighbours move together"
    whole = moved.mean((2, 3))
    assert (moved - whole[:, :, None, None]).std() > 0.1, "more than a shift"


def test_strong_is_stronger() -> None:
    torch.manual_seed(0)
    images = blobs(200, 1, 28, 28)
    mild, strong = ((warp(images, v) - images).square().mean().item() for v in (MILD, STRONG))
    assert strong > 1.2 * mild > 0
    assert all(getattr(STRONG, name) > getattr(MILD, name) for name in vars(MILD))


# ---- erase ----


@pytest.mark.parametrize("shape", [(400, 1, 28, 28), (400, 3, 32, 32), (400, 1, 20, 40)])
def test_erase_blanks_about_the_stated_area(shape) -> None:
    torch.manual_seed(0)
    size = 0.4
    erased = erase(torch.ones(shape), size) == 0
    assert torch.equal(erased[:, 0], erased[:, -1]), "all channels at one place"
    share = erased[:, 0].float().mean((1, 2))
    limit = (math.floor(size * shape[2]) + 1) * (math.floor(size * shape[3]) + 1)
    assert share.max() <= limit / (shape[2] * shape[3])
    # The square may hang over the edge: it covers size / (1 + size) of each side on average.
    assert share.mean().item() == pytest.approx((size / (1 + size)) ** 2, rel=0.15)


def test_erase_blanks_one_rectangle_elsewhere_for_each_image_and_touches_nothing_else() -> None:
    torch.manual_seed(0)
    images = torch.rand(50, 1, 28, 28) + 0.1
    erased = erase(images, 0.5)
    blank = erased == 0
    assert torch.equal(erased[~blank], images[~blank])
    rows, columns = blank.any(3), blank.any(2)
    assert torch.equal(blank, rows[:, :, :, None] & columns[:, :, None, :]), "a rectangle"
    assert (rows.int().diff(dim=2).abs().sum(2) <= 2).all(), "without gaps"
    assert len({tuple(r.flatten().tolist()) for r in rows}) > 10


def test_every_place_can_be_erased_and_none_always_is() -> None:
    torch.manual_seed(0)
    share = (erase(torch.ones(3000, 1, 14, 14), 0.3) == 0).float().mean(0)
    assert share.min() > 0.01 and share.max() < 0.15


def test_erasing_nothing_is_the_identity() -> None:
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(erase(images, 0.0), images)


def test_erase_lets_the_gradient_through_what_is_left() -> None:
    images = torch.rand(3, 1, 28, 28, requires_grad=True)
    torch.manual_seed(0)
    erased = erase(images)
    erased.sum().backward()
    assert torch.equal(images.grad, (erased > 0).float())


def test_the_seed_decides_what_is_erased() -> None:
    images, results = torch.ones(5, 1, 28, 28), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(erase(images))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
