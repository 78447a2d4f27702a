"""Every term of every objective: by hand, at its limits, in its gradient, in its errors."""

import math

import pytest
import torch
import torch.nn.functional as F

from semigen_lib import losses
from semigen_lib.data import UNLABELED
from semigen_lib.losses import (
    IGNORED,
    LSGAN_CODE,
    TargetCode,
    balance_loss,
    bernoulli_loss,
    brier_loss,
    classification_loss,
    denoising_loss,
    divergence_loss,
    energy_margin_loss,
    entropy_loss,
    feature_matching_loss,
    generalized_classification_loss,
    hinge_loss,
    information_loss,
    is_fake_loss,
    is_real_loss,
    least_squares_loss,
    marginal_loss,
    normal_divergence,
    prior_loss,
    pseudo_label_loss,
    real_probability,
    reconstruction_loss,
    sampled_marginal_loss,
    squared_class_loss,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


LOGITS, LABELS = normal(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
SOME = torch.tensor([0, IGNORED, 1, IGNORED, 2, 0])
GUESSES = normal(6, 4, seed=1).softmax(1)
TRUST = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0, 1.0], dtype=torch.float64)
#: A call of each loss, as a function of what a network put out.
CALLS = {
    "balance_loss": (balance_loss, [LOGITS]),
    "bernoulli_loss": (
        lambda v: bernoulli_loss(v, normal(2, 1, 3, 3, seed=1).sigmoid().to(v)),
        [normal(2, 1, 3, 3)],
    ),
    "brier_loss": (lambda v: brier_loss(v, LABELS), [LOGITS]),
    "classification_loss": (lambda v: classification_loss(v, SOME), [LOGITS]),
    "denoising_loss": (denoising_loss, [normal(2, 1, 3, 3, seed=seed) for seed in range(3)]),
    "divergence_loss": (
        lambda v: divergence_loss(v, normal(6, 4, seed=1).to(v).repeat(len(v) // 6, 1)),
        [LOGITS],
    ),
    "energy_margin_loss": (
        lambda real, fake: energy_margin_loss(real, fake, 1.0),
        [normal(5).square(), torch.tensor([0.2, 0.7, 1.4, 3.0], dtype=torch.float64)],
    ),
    "entropy_loss": (entropy_loss, [LOGITS]),
    "feature_matching_loss": (feature_matching_loss, [normal(6, 3), normal(4, 3, seed=1)]),
    "generalized_classification_loss": (
        lambda v: generalized_classification_loss(
            v, LABELS.repeat(len(v) // 6), TRUST.to(v).repeat(len(v) // 6), 0.6
        ),
        [LOGITS],
    ),
    "hinge_loss": (lambda v: hinge_loss(v, -1), [normal(6)]),
    "information_loss": (information_loss, [LOGITS]),
    "is_fake_loss": (is_fake_loss, [LOGITS]),
    "is_real_loss": (is_real_loss, [LOGITS]),
    "least_squares_loss": (lambda v: least_squares_loss(v, 0.7), [normal(6)]),
    "marginal_loss": (marginal_loss, [LOGITS, normal(6, 4, seed=1)]),
    "normal_divergence": (normal_divergence, [normal(5, 3), normal(5, 3, seed=1)]),
    "prior_loss": (prior_loss, [normal(5, 3)]),
    "pseudo_label_loss": (
        lambda v: pseudo_label_loss(v, GUESSES.to(v).repeat(len(v) // 6, 1), 0.5),
        [LOGITS],
    ),
    "real_probability": (real_probability, [LOGITS]),
    "reconstruction_loss": (
        reconstruction_loss,
        [normal(2, 1, 3, 3).sigmoid(), normal(2, 1, 3, 3, seed=1).sigmoid()],
    ),
    "sampled_marginal_loss": (
        lambda v: sampled_marginal_loss(LOGITS.to(v), LABELS, v),
        [normal(6, seed=1)],
    ),
    "squared_class_loss": (lambda v: squared_class_loss(v, LABELS), [LOGITS]),
}
each_loss = pytest.mark.parametrize("name", CALLS)
#: One number for each image; who calls them weighs the images and takes the mean.
ROWS = {"bernoulli_loss", "hinge_loss", "normal_divergence", "real_probability"}
SCALARS = sorted(set(CALLS) - ROWS)


def test_every_function_has_a_row() -> None:
    functions = {name for name in losses.__all__ if callable(getattr(losses, name))}
    assert set(CALLS) == functions - {"TargetCode", "LSGAN_CODE"}


@each_loss
def test_gradients_are_those_of_finite_differences(name) -> None:
    function, inputs = CALLS[name]
    leaves = [value.clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", SCALARS)
def test_a_loss_is_a_finite_scalar_of_the_type_that_came_in(name) -> None:
    function, inputs = CALLS[name]
    for dtype in (torch.float32, torch.float64):
        value = function(*(part.to(dtype) for part in inputs))
        assert value.shape == () and value.dtype == dtype and value.isfinite()


@pytest.mark.parametrize(
    "name", sorted(set(SCALARS) - {"classification_loss", "sampled_marginal_loss"})
)
def test_a_loss_is_a_mean_over_the_batch(name) -> None:
    """The same images twice are worth what they are worth once."""
    function, inputs = CALLS[name]
    doubled = [value.repeat(2, *[1] * (value.dim() - 1)) for value in inputs]
    if name in ("brier_loss", "squared_class_loss"):
        loss = getattr(losses, name)
        assert loss(doubled[0], LABELS.repeat(2)).item() == pytest.approx(function(*inputs).item())
    else:
        assert function(*doubled).item() == pytest.approx(function(*inputs).item())


# ---- least squares ----


def test_least_squares_by_hand() -> None:
    assert least_squares_loss(torch.tensor([1.0, 3.0]), 1.0).item() == 1.0  # (0 + 4) / 2 / 2
    assert least_squares_loss(torch.tensor([0.5, 0.5]), 0.0).item() == 0.125


def test_least_squares_pulls_harder_from_farther_and_never_saturates() -> None:
    score = torch.tensor([-1000.0], requires_grad=True)
    least_squares_loss(score, 1.0).backward()
    assert score.grad.item() == -1001.0


def test_every_image_may_have_a_target_of_its_own() -> None:
    score, target = normal(6), normal(6, seed=1)
    one_by_one = [least_squares_loss(score[i : i + 1], target[i].item()) for i in range(6)]
    torch.testing.assert_close(least_squares_loss(score, target), torch.stack(one_by_one).mean())


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^target: expected shape \(6,\), got \(6, 1\)$"):
        least_squares_loss(normal(6), normal(6, 1))


def test_the_usual_code_and_its_equilibrium() -> None:
    assert TargetCode(real=1.0, fake=0.0, generator=1.0) == LSGAN_CODE
    assert LSGAN_CODE.equilibrium() == (0.5, 0.25, 0.125)
    assert TargetCode(1, -1, 0).equilibrium() == (0, 1, 0)


@pytest.mark.parametrize(
    ("code", "plays"),
    [
        (TargetCode(), True),
        (TargetCode(1, -1, 0), True),
        (TargetCode(0, 1, 0), True),  # the other way up
        (TargetCode(1, 1, 1), False),  # as printed
        (TargetCode(0.3, 0.3, 0.3), False),
        (TargetCode(0, 0, 1), False),  # the discriminator has nothing to tell apart
        (TargetCode(1, 0, 0), False),  # the generator wants what the discriminator wants
        (TargetCode(0, 1, 1), False),  # the article's code
    ],
)
def test_what_is_a_game(code, plays) -> None:
    assert code.is_adversarial is plays


@pytest.mark.parametrize("code", [TargetCode(), TargetCode(1, -1, 0), TargetCode(0.2, 0.9, 3)])
def test_the_optimal_score_is_where_the_loss_is_flat_and_least(code) -> None:
    real = torch.tensor([0.0, 0.1, 0.5, 2.0, 1.0], dtype=torch.float64)
    fake = torch.tensor([1.0, 0.3, 0.5, 0.1, 0.0], dtype=torch.float64)

    def loss(score: torch.Tensor) -> torch.Tensor:
        return (0.5 * (real * (score - code.real) ** 2 + fake * (score - code.fake) ** 2)).sum()

    best = code.optimal_score(real, fake).requires_grad_()
    loss(best).backward()
    torch.testing.assert_close(best.grad, torch.zeros_like(best))
    for offset in (-0.1, 0.1):
        assert loss(best + offset) > loss(best)
    assert best[0] == code.fake and best[-1] == code.real
    ratio = (best - code.fake) / (code.real - best)  # equation 3.5 of the book
    torch.testing.assert_close(ratio[1:4], (real / fake)[1:4])


def test_the_equilibrium_is_the_loss_of_the_best_discriminator_at_equal_densities() -> None:
    density = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    for code in (TargetCode(), TargetCode(2, -1, 0.5)):
        score = code.optimal_score(density, density)
        expected, discriminator, generator = code.equilibrium()
        torch.testing.assert_close(score, torch.full_like(score, expected))
        real = least_squares_loss(score, code.real)
        fake = least_squares_loss(score, code.fake)
        assert (real + fake).item() == pytest.approx(discriminator)
        assert least_squares_loss(score, code.generator).item() == pytest.approx(generator)


def test_with_one_target_a_flat_discriminator_leaves_no_gradient() -> None:
    """The article's formula as printed: the best discriminator is y everywhere."""
    code = TargetCode(1, 1, 1)
    densities = normal(2, 7).square()
    torch.testing.assert_close(code.optimal_score(*densities), torch.ones(7, dtype=torch.float64))
    score = torch.ones(7, requires_grad=True)
    least_squares_loss(score, code.generator).backward()
    assert not score.grad.any()


# ---- hinge ----


def test_hinge_by_hand() -> None:
    score = torch.tensor([2.0, 1.0, 0.25, -3.0])
    assert hinge_loss(score, 1).tolist() == [0, 0, 0.75, 4]
    assert hinge_loss(score, -1).tolist() == [3, 2, 1.25, 0]


def test_beyond_the_hinge_nothing_pulls_and_before_it_all_pull_alike() -> None:
    score = torch.tensor([5.0, 0.9, -40.0], requires_grad=True)
    hinge_loss(score, 1).sum().backward()
    assert score.grad.tolist() == [0, -1, -1]


# ---- reconstruction ----


def test_reconstruction_by_hand() -> None:
    black, white = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert reconstruction_loss(black, white).item() == 1.0
    assert reconstruction_loss(white, white).item() == 0.0
    assert reconstruction_loss(black, 0.5 * white).item() == 0.25


def test_reconstruction_refuses_what_broadcasting_would_hide() -> None:
    with pytest.raises(
        ValueError, match=r"^reconstructions: expected shape \(2, 1, 4, 4\), got \(1, 1, 4, 4\)$"
    ):
        reconstruction_loss(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))


# ---- classes ----


# ---- denoising ----


def test_denoising_by_hand() -> None:
    velocity, images, noise = (torch.full((1, 1, 1, 2), value) for value in (1.0, -1.0, 3.0))
    velocity[..., 1] = 6
    assert denoising_loss(velocity, images, noise).item() == 6.5  # ((1 - 4)^2 + (6 - 4)^2) / 2


def test_who_knows_the_only_image_denoises_it_without_a_loss() -> None:
    image, noise, time = normal(1, 1, 4, 4), normal(5, 1, 4, 4, seed=1), 0.3
    noisy = (1 - time) * image + time * noise
    images = image.expand_as(noise)
    assert denoising_loss((noisy - image) / time, images, noise).item() < 1e-25
    assert denoising_loss(noisy / time, images, noise).item() > 1, "who thinks it is black"


@pytest.mark.parametrize("time", [0.05, 0.4, 0.9])
def test_the_best_denoiser_of_normal_images_has_the_loss_of_the_closed_form(time) -> None:
    """Images from N(mean, size^2): what is left is size^2 over the variance of the noisy image."""
    mean, size, n = -0.7, 0.5, 40_000
    images, noise = mean + size * normal(n, 1, 1, 1), normal(n, 1, 1, 1, seed=1)
    noisy = (1 - time) * images + time * noise
    variance = (1 - time) ** 2 * size**2 + time**2
    surprise = (noisy - (1 - time) * mean) / variance
    best = (time - (1 - time) * size**2) * surprise - mean
    least = denoising_loss(best, images, noise).item()
    assert least == pytest.approx(size**2 / variance, rel=0.03)
    for other in (best + 0.1, best - 0.1, 1.1 * best, 0.9 * best, best + 0.1 * surprise):
        assert denoising_loss(other, images, noise).item() > least


def test_denoising_refuses_what_broadcasting_would_hide() -> None:
    for velocity, noise in (((2, 1, 3, 1), (2, 1, 3, 3)), ((2, 1, 3, 3), (1, 3, 3))):
        with pytest.raises(ValueError, match=r"\Avelocity, noise: expected .*, got [^\n]*\Z"):
            denoising_loss(normal(*velocity), normal(2, 1, 3, 3), normal(*noise))


def test_ignored_is_unlabeled() -> None:
    assert IGNORED == UNLABELED


def test_cross_entropy_by_hand_and_over_the_labelled_only() -> None:
    flat = torch.zeros(3, 4)
    assert classification_loss(flat, torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(4))
    labelled = SOME != IGNORED
    expected = F.cross_entropy(LOGITS[labelled], SOME[labelled])
    torch.testing.assert_close(classification_loss(LOGITS, SOME), expected)


def test_without_any_label_the_loss_and_its_gradient_are_zero() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = classification_loss(logits, torch.full((6,), IGNORED))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_squared_class_loss_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert squared_class_loss(scores, torch.tensor([0, 0])).item() == 0.375  # (0 + 1.5) / 2 / 2
    assert squared_class_loss(scores[:1], torch.tensor([0])).item() == 0.0


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_it_is_twice_least_squares(label) -> None:
    """Reading C with K = 1: columns "real" and "generated" that sum to 1."""
    score = normal(9)
    both = torch.stack([score, 1 - score], 1)
    twice = squared_class_loss(both, torch.full((9,), label))
    target = LSGAN_CODE.real if label == 0 else LSGAN_CODE.fake
    torch.testing.assert_close(twice, 2 * least_squares_loss(score, target))


def test_the_best_class_scores_are_the_shares_of_the_densities() -> None:
    """Pointwise optimum with every label known: p(x, k) / (p + q), and q / (p + q)."""
    densities = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)  # two classes, generated
    share = (densities / densities.sum()).requires_grad_()
    losses_of = [squared_class_loss(share[None], torch.tensor([k])) for k in range(3)]
    sum(d * loss for d, loss in zip(densities, losses_of, strict=True)).backward()
    torch.testing.assert_close(share.grad, torch.zeros_like(share))


def test_brier_by_hand_and_between_its_limits() -> None:
    assert brier_loss(torch.zeros(3, 2), torch.tensor([0, 1, 0])).item() == 0.25
    sure = torch.tensor([[50.0, -50.0]])
    assert brier_loss(sure, torch.tensor([0])).item() == 0.0
    assert brier_loss(sure, torch.tensor([1])).item() == 1.0


def test_brier_is_proper() -> None:
    """In the mean over labels, the true probabilities are the best to say."""
    truth = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    logits = truth.log().requires_grad_()
    sum(p * brier_loss(logits[None], torch.tensor([k])) for k, p in enumerate(truth)).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", [brier_loss, squared_class_loss])
def test_squares_need_every_label(loss) -> None:
    with pytest.raises(RuntimeError):
        loss(LOGITS, SOME)


# ---- labels that may be wrong ----


def test_generalized_loss_by_hand() -> None:
    flat = torch.zeros(2, 4)  # every label has probability 1/4
    loss = generalized_classification_loss(flat, torch.tensor([3, 0]), torch.ones(2), 0.5)
    assert loss.item() == pytest.approx(1.0)  # (1 - 1/2) / 0.5
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [90.0, 0.0, 0.0, 0.0]])
    weights = torch.tensor([1.0, 3.0])  # the second label is certain and costs nothing
    loss = generalized_classification_loss(logits, torch.tensor([3, 0]), weights, 0.5)
    assert loss.item() == pytest.approx(0.25)


def test_towards_q_0_it_is_cross_entropy_and_at_q_1_the_probability_of_an_error() -> None:
    ones = torch.ones(6, dtype=torch.float64)
    near = generalized_classification_loss(LOGITS, LABELS, ones, 1e-6)
    torch.testing.assert_close(near, F.cross_entropy(LOGITS, LABELS), rtol=1e-4, atol=0)
    error = 1 - LOGITS.softmax(1)[torch.arange(6), LABELS]
    full = generalized_classification_loss(LOGITS, LABELS, ones, 1.0)
    torch.testing.assert_close(full, error.mean())
    # In between it lies between them: p**q falls slower than p.
    assert full < generalized_classification_loss(LOGITS, LABELS, ones, 0.5) < near


def test_an_image_of_weight_0_is_not_there() -> None:
    here = TRUST > 0
    rest = generalized_classification_loss(LOGITS[here], LABELS[here], TRUST[here], 0.6)
    logits = LOGITS.clone().requires_grad_()
    loss = generalized_classification_loss(logits, LABELS, TRUST, 0.6)
    torch.testing.assert_close(loss, rest)
    loss.backward()
    assert not logits.grad[~here].any() and logits.grad[here].any(1).all()


def test_weights_count_in_proportion_and_none_at_all_teach_nothing() -> None:
    once = generalized_classification_loss(LOGITS, LABELS, TRUST, 0.6)
    torch.testing.assert_close(
        generalized_classification_loss(LOGITS, LABELS, 7 * TRUST, 0.6), once
    )
    logits = LOGITS.clone().requires_grad_()
    loss = generalized_classification_loss(logits, LABELS, 0 * TRUST, 0.6)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_the_less_a_label_is_believed_the_less_it_pulls() -> None:
    """Cross-entropy pulls with 1 - p; here the pull is also multiplied by p**q."""
    q, pulls, of_cross_entropy = 0.6, [], []
    for against in (2.0, 4.0, 8.0, 16.0):
        logits = torch.tensor([[0.0, against]], dtype=torch.float64, requires_grad=True)
        label, one = torch.tensor([0]), torch.ones(1, dtype=torch.float64)
        generalized_classification_loss(logits, label, one, q).backward()
        p = logits.detach().softmax(1)[0, 0]
        torch.testing.assert_close(logits.grad[0, 0], -(p**q) * (1 - p))
        pulls.append(-logits.grad[0, 0].item())
        of_cross_entropy.append(1 - p.item())
    assert pulls == sorted(pulls, reverse=True) and pulls[-1] < 1e-3
    assert of_cross_entropy == sorted(of_cross_entropy)


# ---- K+1 classes with cross-entropy ----


def test_k_plus_one_is_cross_entropy_with_one_more_logit_of_zero() -> None:
    n_classes = LOGITS.shape[1]
    all_logits = torch.cat([LOGITS, LOGITS.new_zeros(len(LOGITS), 1)], 1)
    probs = all_logits.softmax(1)
    torch.testing.assert_close(real_probability(LOGITS), 1 - probs[:, -1])
    generated = torch.full((len(LOGITS),), n_classes)
    torch.testing.assert_close(is_fake_loss(LOGITS), F.cross_entropy(all_logits, generated))
    torch.testing.assert_close(is_real_loss(LOGITS), -(1 - probs[:, -1]).log().mean())
    joint = F.cross_entropy(all_logits, LABELS)  # "real, and of class y" in one go
    torch.testing.assert_close(joint, classification_loss(LOGITS, LABELS) + is_real_loss(LOGITS))


def test_k_plus_one_by_hand() -> None:
    logits = torch.zeros(1, 1)
    assert real_probability(logits).tolist() == [0.5]
    assert is_real_loss(logits).item() == pytest.approx(math.log(2))
    assert is_fake_loss(logits).item() == pytest.approx(math.log(2))
    nine = torch.zeros(1, 9)  # nine classes of weight 1 against one of weight 1
    assert real_probability(nine).item() == pytest.approx(0.9)


def test_real_minus_fake_is_minus_the_logsumexp() -> None:
    difference = is_real_loss(LOGITS) - is_fake_loss(LOGITS)
    torch.testing.assert_close(difference, -LOGITS.logsumexp(1).mean())


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_k_plus_one_does_not_overflow(size) -> None:
    logits = torch.full((2, 3), size, requires_grad=True)
    loss = is_real_loss(logits) + is_fake_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(1e4, rel=1e-3) and logits.grad.isfinite().all()


def test_shifting_all_logits_changes_the_verdict_but_not_the_class() -> None:
    shifted = LOGITS + 3
    torch.testing.assert_close(
        classification_loss(shifted, LABELS), classification_loss(LOGITS, LABELS)
    )
    assert (real_probability(shifted) > real_probability(LOGITS)).all()


# ---- information ----


def test_information_between_its_limits() -> None:
    sure = 60 * torch.eye(4)  # every class once, without doubt
    assert information_loss(sure).item() == pytest.approx(-math.log(4), abs=1e-5)
    assert information_loss(torch.zeros(4, 4)).item() == pytest.approx(0, abs=1e-6)
    one_sided = torch.tensor([[60.0, 0.0, 0.0]]).repeat(5, 1)
    assert information_loss(one_sided).item() == pytest.approx(0, abs=1e-5)


def test_information_is_between_minus_log_k_and_zero() -> None:
    for seed in range(5):
        value = information_loss(5 * normal(20, 3, seed=seed)).item()
        assert -math.log(3) <= value <= 0


# ---- feature matching ----


def test_feature_matching_by_hand() -> None:
    real, fake = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[4.0, 2.0]])
    assert feature_matching_loss(real, fake).item() == 4.5  # ((1 - 4)² + (2 - 2)²) / 2


def test_feature_matching_asks_for_means_and_not_for_images() -> None:
    """Other images with the same mean are as good, and every image gets the same pull."""
    real = torch.tensor([[1.0], [3.0]])
    assert feature_matching_loss(real, torch.tensor([[2.0], [2.0]])).item() == 0
    fake = torch.tensor([[0.0], [8.0]], requires_grad=True)
    feature_matching_loss(real, fake).backward()
    assert fake.grad.flatten().tolist() == [2.0, 2.0]


# ---- energy ----


def test_energy_margin_by_hand() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 4.0])
    assert energy_margin_loss(real, fake, 2.0).item() == 2.75  # 2 + (1.5 + 0) / 2
    assert energy_margin_loss(torch.zeros(2), torch.full((2,), 9.0), 2.0).item() == 0.0


def test_beyond_the_margin_nothing_pushes() -> None:
    fake = torch.tensor([0.5, 4.0], requires_grad=True)
    energy_margin_loss(torch.ones(2), fake, 2.0).backward()
    assert fake.grad.tolist() == [-0.5, 0.0]


@pytest.mark.parametrize("margin", [0, -1.0])
def test_energy_needs_a_margin(margin) -> None:
    with pytest.raises(ValueError, match=f"^margin: expected a positive number, got {margin}$"):
        energy_margin_loss(torch.ones(1), torch.ones(1), margin)


# ---- prior ----


def test_prior_of_codes_with_moments_of_a_standard_normal_is_zero() -> None:
    codes = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    assert prior_loss(codes).item() == pytest.approx(0, abs=1e-6)


def test_prior_by_hand() -> None:
    shifted = torch.tensor([[1.0], [3.0]])  # mean 2, variance 1
    assert prior_loss(shifted).item() == pytest.approx(2.0, abs=1e-5)
    wide = torch.tensor([[-2.0], [2.0]])  # mean 0, variance 4
    assert prior_loss(wide).item() == pytest.approx(0.5 * (4 - 1 - math.log(4)), abs=1e-5)


def test_prior_of_a_dead_coordinate_is_large_and_finite() -> None:
    value = prior_loss(torch.zeros(4, 1)).item()
    assert 5 < value < 10


# ---- the bounds of m2 ----


def test_bernoulli_by_hand() -> None:
    images = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.25]]]])
    coin = torch.zeros(2, 1, 1, 2)
    torch.testing.assert_close(bernoulli_loss(coin, images), torch.full((2,), 2 * math.log(2)))
    sure = torch.tensor([[[[-100.0, 100.0]]]])
    assert bernoulli_loss(sure, images[:1]).item() == pytest.approx(0)
    assert bernoulli_loss(-sure, images[:1]).item() == 200, (
        "wrong and sure costs much, not infinity"
    )


def test_grey_pixels_are_best_said_to_be_grey() -> None:
    logits = torch.tensor(0.3).logit().reshape(1, 1, 1, 1).requires_grad_()
    bernoulli_loss(logits, torch.full((1, 1, 1, 1), 0.3)).sum().backward()
    assert abs(logits.grad.item()) < 1e-6


def test_normal_divergence_by_hand_and_as_torch_has_it() -> None:
    assert normal_divergence(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0
    assert normal_divergence(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)).item() == 2.0
    mean, log_variance = normal(5, 3), normal(5, 3, seed=1)
    own = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(own, standard).sum(1)
    torch.testing.assert_close(normal_divergence(mean, log_variance), expected)


def test_marginal_is_the_brute_force_sum_over_classes() -> None:
    probs, costs, total = LOGITS.softmax(1), normal(6, 4, seed=1), 0.0
    for image in range(6):
        for k in range(4):
            p = probs[image, k].item()
            total += p * costs[image, k].item() + p * math.log(p)
    assert marginal_loss(LOGITS, costs).item() == pytest.approx(total / 6)


def test_marginal_bounds_the_likelihood_and_the_true_posterior_reaches_it() -> None:
    costs = normal(6, 4, seed=1)
    likelihood = -(-costs).logsumexp(1).mean()  # -log of the sum over classes of p(x, y)
    assert marginal_loss(LOGITS, costs) > likelihood
    torch.testing.assert_close(marginal_loss(-costs, costs), likelihood)


def test_marginal_of_a_known_class_is_the_cost_of_that_class() -> None:
    costs = normal(6, 4, seed=1)
    known = marginal_loss(1e3 * F.one_hot(LABELS, 4).double(), costs)
    torch.testing.assert_close(known, costs.gather(1, LABELS[:, None]).mean())


def test_one_drawn_class_is_right_in_the_mean_over_draws() -> None:
    """Value and gradient, over all nine draws of three classes for two images."""
    costs, logits = normal(2, 3, seed=1), normal(2, 3).requires_grad_()
    probs, value, gradient = logits.detach().softmax(1), 0.0, 0.0
    for first in range(3):
        for second in range(3):
            labels = torch.tensor([first, second])
            chance = probs[0, first] * probs[1, second]
            drawn = costs.gather(1, labels[:, None]).squeeze(1)
            estimate = sampled_marginal_loss(logits, labels, drawn)
            value += chance * estimate.detach()
            gradient += chance * torch.autograd.grad(estimate, logits)[0]
    exact = marginal_loss(logits, costs)
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, logits)[0])


# ---- one's own guesses ----


def test_pseudo_labels_by_hand_and_only_the_sure_ones() -> None:
    guesses = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    logits = torch.zeros(3, 2, requires_grad=True)  # each costs log 2, whatever its label
    for threshold, sure in ((0.0, 3), (0.7, 2), (0.85, 1), (0.9, 0), (1.0, 0)):
        loss = pseudo_label_loss(logits, guesses, threshold)
        assert loss.item() == pytest.approx(sure / 3 * math.log(2)), "over the whole batch"
    pseudo_label_loss(logits, guesses, 0.7).backward()
    pulled = torch.tensor([[-0.5, 0.5], [0.0, 0.0], [0.5, -0.5]]) / 3
    torch.testing.assert_close(logits.grad, pulled)


def test_not_even_certainty_is_above_a_threshold_of_one() -> None:
    certain = F.one_hot(LABELS, 4).double()
    assert pseudo_label_loss(LOGITS, certain, 1.0) == 0
    whole = pseudo_label_loss(LOGITS, certain, 0.999)
    torch.testing.assert_close(whole, classification_loss(LOGITS, LABELS))


def test_divergence_by_hand() -> None:
    half, quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence_loss(quarter, half).item() == pytest.approx(wanted)
    assert divergence_loss(quarter + 7, quarter).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [divergence_loss, lambda v, t: pseudo_label_loss(v, t, 0.0)])
def test_a_guess_is_a_target_and_gets_no_gradient(loss) -> None:
    logits, target = LOGITS.clone().requires_grad_(), GUESSES.clone().requires_grad_()
    loss(logits, target).backward()
    assert target.grad is None and logits.grad.abs().sum() > 0


def test_entropy_and_balance_between_their_limits() -> None:
    sure, unsure = 50 * F.one_hot(torch.arange(4), 4).double(), torch.zeros(4, 4).double()
    assert entropy_loss(sure).item() == pytest.approx(0, abs=1e-9)
    assert entropy_loss(unsure).item() == pytest.approx(math.log(4))
    one_class = sure[:1].repeat(4, 1)
    assert balance_loss(one_class).item() == pytest.approx(math.log(4))
    for balanced in (sure, unsure):
        assert balance_loss(balanced).item() == pytest.approx(0, abs=1e-9)


def test_information_is_entropy_and_balance() -> None:
    both = entropy_loss(LOGITS) + balance_loss(LOGITS)
    torch.testing.assert_close(information_loss(LOGITS) + math.log(4), both)


def test_the_cost_of_a_single_image_has_no_mean_to_lean_on() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = sampled_marginal_loss(logits, torch.tensor([1]), torch.tensor([5.0]))
    loss.backward()
    assert loss.item() == pytest.approx(5 - math.log(3)) and logits.grad.isfinite().all()
