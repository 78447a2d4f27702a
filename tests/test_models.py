"""Shapes, ranges and gradients of the networks; nothing here depends on what is inside them."""

import pytest
import torch

from semigen_lib.models import (
    ConvTrunk,
    Decoder,
    Discriminator,
    Encoder,
    count_halvings,
    initialise,
    one_hot,
)

SHAPES = [(1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64), (1, 7, 7)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("side", "halvings"),
    [(4, 0), (5, 0), (6, 0), (7, 0), (8, 1), (14, 1), (16, 2), (20, 2), (28, 2)]
    + [(32, 3), (40, 3), (48, 3), (56, 3), (64, 4), (96, 4), (128, 5)],
)
def test_halvings(side, halvings) -> None:
    assert count_halvings((1, side, side)) == halvings
    assert 4 <= side >> halvings <= 7


@pytest.mark.parametrize(
    "shape",
    [(1, 30, 30), (1, 3, 3), (1, 0, 0), (1, 9, 9), (1, 27, 27), (3, 36, 36), (1, 28, 32)],
    ids=str,
)
@pytest.mark.parametrize("network", [Encoder, Decoder, Discriminator, count_halvings])
def test_other_sides_are_refused_in_one_line(network, shape) -> None:
    arguments = (shape,) if network in (Discriminator, count_halvings) else (shape, 4)
    wanted = rf"\Aimage side: expected [^\n]*, got {shape[1]} x {shape[2]}\Z"
    with pytest.raises(ValueError, match=wanted):
        network(*arguments)


@shapes
def test_encoder(shape) -> None:
    images = torch.rand(3, *shape)
    latent, class_logits = Encoder(shape, 5, 4, width=8)(images)
    assert latent.shape == (3, 5) and class_logits.shape == (3, 4)
    latent, class_logits = Encoder(shape, 5, width=8)(images)
    assert latent.shape == (3, 5) and class_logits is None


@shapes
def test_decoder(shape) -> None:
    latent = 5 * torch.randn(3, 6)
    images = Decoder(shape, 6, width=8)(latent)
    assert images.shape == (3, *shape) and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 1
    images = Decoder(shape, 6, 4, width=8)(latent, one_hot(torch.tensor([0, 1, 3]), 4))
    assert images.shape == (3, *shape)


@shapes
def test_discriminator_scores_are_unbounded(shape) -> None:
    network = Discriminator(shape, width=8)
    images = torch.rand(3, *shape)
    assert network(images).shape == (3,)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(10)
        scores = torch.cat([network(1000 * images), network(-1000 * images)])
    assert scores.abs().max() > 1, "a sigmoid or tanh would keep every score below 1"


@shapes
def test_no_parameter_is_without_a_gradient(shape) -> None:
    images, labels = torch.rand(4, *shape), torch.tensor([0, 1, 2, 0])
    encoder = Encoder(shape, 5, 3, width=8)
    decoder, discriminator = Decoder(shape, 5, 3, width=8), Discriminator(shape, width=8)
    latent, class_logits = encoder(images)
    drawn = decoder(latent, one_hot(labels, 3))
    # Random weights: a plain sum over a normalised layer has no gradient by symmetry.
    mixed = (drawn * torch.rand_like(drawn)).sum() + (class_logits * torch.rand(4, 3)).sum()
    (mixed + discriminator(drawn).sum()).backward()
    for network in (encoder, decoder, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
            assert parameter.grad.isfinite().all(), name


def test_a_small_image_has_a_decoder_without_stages() -> None:
    assert Decoder((1, 5, 5), 3, width=8)(torch.randn(2, 3)).shape == (2, 1, 5, 5)
    assert ConvTrunk((2, 6, 6), 8, normalise=True).n_features == 2 * 6 * 6


def test_parameter_counts_written_out_by_hand() -> None:
    """Convolution weights, which no choice of normalisation changes, for width 8 and side 28."""

    def kernels(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.ndim == 4)

    assert kernels(ConvTrunk((1, 28, 28), 8, normalise=False)) == 1 * 8 * 16 + 8 * 16 * 16
    trunk = ConvTrunk((3, 28, 28), 8, normalise=False)
    assert trunk.n_features == 16 * 7 * 7
    assert count(trunk) == (3 * 8 + 8 * 16) * 16 + 8 + 16  # kernels and biases
    discriminator = Discriminator((1, 28, 28), 8)
    assert count(discriminator) == (1 * 8 + 8 * 16) * 16 + 8 + 16 + 16 * 49 + 1
    plain, reading = Encoder((1, 28, 28), 5, width=8), Encoder((1, 28, 28), 5, 4, width=8)
    assert count(reading) - count(plain) == 4 * (16 * 49 + 1)


@pytest.mark.parametrize("extra", [4, 8])
def test_width_and_latent_dim_make_networks_larger(extra) -> None:
    for network in (Encoder, Decoder):
        assert count(network((1, 28, 28), 4 + extra, width=8)) > count(
            network((1, 28, 28), 4, width=8)
        )
        assert count(network((1, 28, 28), 4, width=8 + 2 * extra)) > count(
            network((1, 28, 28), 4, width=8)
        )


def test_classes_change_what_is_decoded() -> None:
    decoder = Decoder((1, 28, 28), 4, 3, width=8).eval()
    latent = torch.randn(1, 4).expand(3, 4)
    images = decoder(latent, torch.eye(3))
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_class_probs_may_be_soft_and_of_lower_precision() -> None:
    decoder = Decoder((1, 28, 28), 4, 3, width=8)
    half = torch.full((2, 3), 1 / 3, dtype=torch.bfloat16)
    assert decoder(torch.randn(2, 4), half).dtype == torch.float32


@pytest.mark.parametrize("network", ["Encoder", "Discriminator"])
def test_an_image_is_read_the_same_in_any_company(network) -> None:
    """In evaluation mode nothing depends on the rest of the batch."""
    images = torch.rand(6, 1, 28, 28)
    if network == "Encoder":
        reader = Encoder((1, 28, 28), 4, 3, width=8).eval()
        together, alone = reader(images)[1], reader(images[:1])[1]
    else:
        reader = Discriminator((1, 28, 28), width=8).eval()
        together, alone = reader(images), reader(images[:1])
    torch.testing.assert_close(together[:1], alone)


def test_initialise_draws_small_weights_and_zero_biases() -> None:
    for layer in (
        torch.nn.Conv2d(16, 32, 4),
        torch.nn.ConvTranspose2d(16, 32, 4),
        torch.nn.Linear(100, 100),
    ):
        torch.nn.init.ones_(layer.weight)
        layer.apply(initialise)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(layer.weight.mean().item()) < 0.002
        assert not layer.bias.any()
    untouched = torch.nn.BatchNorm2d(3)
    untouched.apply(initialise)
    assert untouched.weight.eq(1).all()
    bare = torch.nn.Linear(3, 3, bias=False)
    bare.apply(initialise)
    assert bare.bias is None


def test_one_hot() -> None:
    rows = one_hot(torch.tensor([2, 0]), 3)
    assert rows.dtype == torch.float32 and rows.tolist() == [[0, 0, 1], [1, 0, 0]]
