"""Shapes, ranges and gradients of the networks; nothing here depends on what is inside them."""

import pytest
import torch
import torch.nn.functional as F

from semigen_lib.models import (
    N_FEATURES,
    CodeDiscriminator,
    ConditionalGenerator,
    ConditionalUnet,
    ConvTrunk,
    Decoder,
    Discriminator,
    Encoder,
    MlpDecoder,
    MlpTrunk,
    PooledTrunk,
    ProjectionDiscriminator,
    Student,
    count_halvings,
    one_hot,
)

SHAPES = [(c, side, side) for side in (28, 32, 64) for c in (1, 3)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("side", "halvings"),
    [
        (4, 0),
        (5, 0),
        (6, 0),
        (7, 0),
        (8, 1),
        (14, 1),
        (16, 2),
        (20, 2),
        (28, 2),
        (32, 3),
        (40, 3),
        (48, 3),
        (56, 3),
        (64, 4),
        (96, 4),
        (128, 5),
    ],
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
    assert images.min() >= 0 and images.max() <= 1
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


@pytest.mark.parametrize("side", [4, 5, 7, 8, 12, 14])
def test_the_smallest_images_work_too(side) -> None:
    shape = (1, side, side)
    images = Decoder(shape, 3, width=8)(torch.randn(2, 3))
    assert images.shape == (2, *shape)
    assert Encoder(shape, 3, 2, width=8)(images)[1].shape == (2, 2)
    assert Discriminator(shape, width=8)(images).shape == (2,)


def test_every_trunk_makes_the_same_number_of_features() -> None:
    for shape in SHAPES:
        for regularise in (False, True):
            trunk = ConvTrunk(shape, 8, regularise=regularise)
            assert trunk(torch.rand(2, *shape)).shape == (2, N_FEATURES)


def test_a_class_head_is_all_that_classes_add() -> None:
    shape = (1, 28, 28)
    plain, reading = Encoder(shape, 5, width=8), Encoder(shape, 5, 4, width=8)
    assert count(reading) - count(plain) == 4 * (N_FEATURES + 1)
    plain, asked = Decoder(shape, 5, width=8), Decoder(shape, 5, 4, width=8)
    channels, height, width = asked.bottom
    assert count(asked) - count(plain) == 4 * channels * height * width


def test_default_networks_are_small_enough_for_a_cpu() -> None:
    shape = (1, 28, 28)
    assert count(Encoder(shape, 32, 10)) < 1e6
    assert count(Decoder(shape, 32, 10)) < 1e6
    assert count(Discriminator(shape)) < 1e6


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
    assert not torch.equal(together[0], together[1])
    torch.testing.assert_close(together[:1], alone)


def test_one_hot() -> None:
    rows = one_hot(torch.tensor([2, 0]), 3)
    assert rows.dtype == torch.float32 and rows.tolist() == [[0, 0, 1], [1, 0, 0]]


# ---- trunks and decoders of the methods with few labels ----


@shapes
def test_other_trunks_and_decoders(shape) -> None:
    images, labels = torch.rand(3, *shape), torch.tensor([0, 1, 3])
    assert PooledTrunk(shape, 8)(images).shape == (3, 32)
    assert MlpTrunk(shape, (6, 4), regularise=True)(images).shape == (3, 4)
    for normalise in (False, True):
        decoder = MlpDecoder(shape, 5, 4, (6,), normalise=normalise)
        latent, classes = torch.randn(3, 5), one_hot(labels, 4)
        drawn = decoder.eval()(latent, classes)
        assert drawn.shape == images.shape and drawn.min() >= 0 and drawn.max() <= 1
        torch.testing.assert_close(decoder.logits(latent, classes).sigmoid(), drawn)


@pytest.mark.parametrize("shape", [(1, 30, 30), (1, 28, 32)], ids=str)
def test_fully_connected_networks_refuse_the_same_images(shape) -> None:
    """They could read any, but a switch of a method must not change what it accepts."""
    for build in (
        lambda: MlpTrunk(shape, (4,), regularise=False),
        lambda: MlpDecoder(shape, 4),
        lambda: PooledTrunk(shape, 8),
    ):
        with pytest.raises(ValueError, match=r"\Aimage side: expected [^\n]*, got [^\n]*\Z"):
            build()


def test_fully_connected_networks_do_not_know_neighbours() -> None:
    """Shuffling the pixels, and the weights with them, changes nothing."""
    trunk, images = MlpTrunk((1, 28, 28), (6,), regularise=False), torch.rand(3, 1, 28, 28)
    order = torch.randperm(784)
    shuffled = images.flatten(1)[:, order].view_as(images)
    before = trunk(images)
    directions = trunk.stages[1].parametrizations.weight.original1
    with torch.no_grad():
        directions.copy_(directions[:, order])
    torch.testing.assert_close(trunk(shuffled), before)


def test_averaged_features_do_not_know_where() -> None:
    """Up to the last maps places matter, at their edges; the average over them forgets."""
    trunk, images = PooledTrunk((1, 28, 28), 8).eval(), torch.rand(2, 1, 28, 28)
    maps = trunk.stages[:-2](images)
    assert maps.shape == (2, 32, 7, 7)
    torch.testing.assert_close(trunk(images), maps.mean((2, 3)))
    torch.testing.assert_close(trunk.stages[-2:](maps.roll((2, 3), (2, 3))), trunk(images))


@pytest.mark.parametrize("network", ["mlp", "pooled"])
def test_trunks_add_noise_while_training_only(network) -> None:
    shape = (1, 28, 28)
    trunk = PooledTrunk(shape, 8) if network == "pooled" else MlpTrunk(shape, (4,), regularise=True)
    images = torch.rand(3, *shape)
    assert not torch.equal(trunk(images), trunk(images))
    trunk.eval()
    assert torch.equal(trunk(images), trunk(images))


def test_code_discriminator() -> None:
    network = CodeDiscriminator(5, 8)
    scores = network(100 * torch.randn(6, 5))
    assert scores.shape == (6,) and scores.abs().max() > 1, "scores are unbounded"


# ---- the student, and the two players of the conditional game ----


@shapes
def test_student_and_conditional_game(shape) -> None:
    images, labels, latent = torch.rand(3, *shape), torch.tensor([0, 1, 3]), torch.randn(3, 5)
    assert Student(shape, 4, width=8)(images).shape == (3, 4)
    drawn = ConditionalGenerator(shape, 5, 4, width=8)(20 * latent, labels)
    assert drawn.shape == images.shape and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert ProjectionDiscriminator(shape, 4, width=8)(images, labels).shape == (3,)


@pytest.mark.parametrize("side", [4, 5, 7, 8, 14])
def test_they_work_on_the_smallest_images_too(side) -> None:
    shape, labels = (1, side, side), torch.tensor([0, 2])
    drawn = ConditionalGenerator(shape, 3, 3, width=8)(torch.randn(2, 3), labels)
    assert drawn.shape == (2, *shape)
    assert Student(shape, 3, width=8)(drawn).shape == (2, 3)
    assert ProjectionDiscriminator(shape, 3, width=8)(drawn, labels).shape == (2,)


@pytest.mark.parametrize("shape", [(1, 30, 30), (1, 28, 32)], ids=str)
def test_they_refuse_the_images_that_the_others_refuse(shape) -> None:
    for build in (
        lambda: Student(shape, 4, 8),
        lambda: ConditionalGenerator(shape, 5, 4, 8),
        lambda: ProjectionDiscriminator(shape, 4, 8),
    ):
        with pytest.raises(ValueError, match=r"\Aimage side: expected [^\n]*, got [^\n]*\Z"):
            build()


@shapes
def test_none_of_their_parameters_is_without_a_gradient(shape) -> None:
    labels = torch.tensor([0, 1, 2, 0])
    student, judge = Student(shape, 3, width=8), ProjectionDiscriminator(shape, 3, width=8)
    generator = ConditionalGenerator(shape, 5, 3, width=8)
    drawn = generator(torch.randn(4, 5), labels)
    ((student(drawn) * torch.rand(4, 3)).sum() + judge(drawn, labels).sum()).backward()
    for network in (student, generator, judge):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
            assert parameter.grad.isfinite().all(), name


def test_the_student_asks_whether_and_not_where() -> None:
    """The average over places forgets them: rolling the last maps changes nothing."""
    student, images = Student((1, 28, 28), 4, width=8).eval(), torch.rand(2, 1, 28, 28)
    maps = student.stages[:-2](images)
    assert maps.shape == (2, 32, 7, 7)
    torch.testing.assert_close(student.class_head(maps.mean((2, 3))), student(images))
    rolled = student.stages[-2:](maps.roll((2, 3), (2, 3)))
    torch.testing.assert_close(student.class_head(rolled), student(images))


@pytest.mark.parametrize("network", ["student", "generator", "discriminator"])
def test_alone_in_evaluation_mode_is_as_in_company(network) -> None:
    """Also those that normalise over the batch while training, where company matters."""
    shape, labels = (1, 28, 28), torch.tensor([1, 0, 2, 1])
    images, latent = torch.rand(4, *shape), torch.randn(4, 5)
    module, inputs = {
        "student": lambda: (Student(shape, 3, 8), (images,)),
        "generator": lambda: (ConditionalGenerator(shape, 5, 3, 8), (latent, labels)),
        "discriminator": lambda: (ProjectionDiscriminator(shape, 3, 8), (images, labels)),
    }[network]()
    if network == "discriminator":
        assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules()), (
            "a batch of real and a batch of generated images would be told apart by statistics"
        )
    else:
        first_two = tuple(part[:2] for part in inputs)
        assert not torch.allclose(module(*inputs)[:2], module(*first_two), rtol=1e-3)
    module.eval()
    together, alone = module(*inputs), module(*(part[:1] for part in inputs))
    torch.testing.assert_close(together[:1], alone)
    assert not torch.allclose(together[0], together[1])


def test_a_class_has_gains_of_its_own_and_no_other_class_has_them() -> None:
    generator = ConditionalGenerator((1, 28, 28), 5, 3, width=8).eval()
    latent = torch.randn(1, 5).expand(3, 5)
    before = generator(latent, torch.arange(3))
    assert not torch.allclose(before[0], before[1]), "classes differ from the start"
    with torch.no_grad():
        generator.norms[0].gain.weight[1] *= -2
        generator.norms[-1].bias.weight[2] += 1
    after = generator(latent, torch.arange(3))
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, False]


@pytest.mark.parametrize("way", ["first layer", "gains"])
def test_a_class_reaches_the_generator_in_two_ways(way) -> None:
    """Either of them tells classes apart when the other is shut; with both shut nothing does."""
    generator = ConditionalGenerator((1, 28, 28), 5, 3, width=8).eval()
    latent, classes = torch.randn(1, 5).expand(3, 5), torch.arange(3)

    def shut(closed: str) -> None:
        with torch.no_grad():
            if closed == "first layer":
                generator.linear.weight[:, 5:] = 0
            else:
                for norm in generator.norms:
                    norm.gain.weight.fill_(1)

    shut("gains" if way == "first layer" else "first layer")
    drawn = generator(latent, classes)
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[1], drawn[2])
    shut(way)
    drawn = generator(latent, classes)
    torch.testing.assert_close(drawn[:1].expand(3, -1, -1, -1), drawn)


def test_conditional_norm_by_hand() -> None:
    norm = ConditionalGenerator((1, 28, 28), 5, 3, width=8).norms[-1]
    features, labels = 3 + 2 * torch.randn(6, 8, 4, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    mean = features.mean((0, 2, 3), keepdim=True)
    deviation = features.var((0, 2, 3), unbiased=False, keepdim=True).add(1e-5).sqrt()
    with torch.no_grad():
        norm.bias.weight.normal_()
    expected = torch.stack(
        [
            norm.gain.weight[k][:, None, None] * row + norm.bias.weight[k][:, None, None]
            for k, row in zip(labels, (features - mean) / deviation, strict=True)
        ]
    )
    torch.testing.assert_close(norm(features, labels), expected)


def test_projection_by_hand() -> None:
    """f(phi) + <v_y, phi>, with phi the features summed over places."""
    judge = ProjectionDiscriminator((1, 28, 28), 3, width=8).eval()
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([2, 0, 2])
    maps = judge.stages(2 * images - 1)
    assert maps.shape == (3, 16, 7, 7)
    phi = maps.sum((2, 3))
    f = phi @ judge.score.weight[0] + judge.score.bias
    agreement = torch.stack([judge.direction.weight[y] @ phi[i] for i, y in enumerate(labels)])
    torch.testing.assert_close(judge(images, labels), f + agreement)
    # What the class adds is linear in its direction, and absent without one.
    swapped = judge(images, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(swapped - f, phi @ judge.direction.weight[1])
    assert not torch.allclose(swapped, judge(images, labels))


def test_no_layer_of_the_judge_stretches_anything() -> None:
    """Spectral norm: the largest singular value is 1, also after the weights have grown."""
    judge = ProjectionDiscriminator((1, 28, 28), 5, width=8)
    images, labels = torch.rand(5, 1, 28, 28), torch.arange(5)
    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.Embedding)
    layers = [part for part in judge.modules() if isinstance(part, kinds)]
    assert len(layers) == 5, "three convolutions, the score and the directions"
    with torch.no_grad():
        for layer in layers:
            original = layer.parametrizations.weight.original
            original.copy_(50 * torch.randn_like(original))
    for _ in range(40):  # each pass of training takes one step towards the largest
        judge(images, labels)
    judge.eval()
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert largest == pytest.approx(1, abs=0.05), layer
    assert torch.equal(judge(images, labels), judge(images, labels)), "at rest while judging"


# ---- the network that undoes noise ----


def moves(network: ConditionalUnet, shape, labels=(0, 1, 3)) -> torch.Tensor:
    """Let it look at noise, at a time of each image's own."""
    labels = torch.tensor(labels)
    return network(torch.randn(len(labels), *shape), torch.rand(len(labels)), labels)


@shapes
def test_unet(shape) -> None:
    network = ConditionalUnet(shape, 3, width=8)
    velocity = moves(network, shape)
    assert velocity.shape == (3, *shape) and velocity.dtype == torch.float32
    (velocity * torch.rand_like(velocity)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("side", [4, 5, 7, 8, 14, 40])
def test_unet_takes_the_sides_that_the_others_take(side) -> None:
    assert moves(ConditionalUnet((1, side, side), 3, 8), (1, side, side)).shape[-1] == side
    with pytest.raises(ValueError, match=r"\Aimage side: expected [^\n]*, got 30 x 30\Z"):
        ConditionalUnet((1, 30, 30), 3, 8)
    with pytest.raises(ValueError, match=r"\Awidth: expected [^\n]*, got 6\Z"):
        ConditionalUnet((1, side, side), 3, 6)


def test_unet_is_small_and_its_smallest_maps_are_of_side_7() -> None:
    network, sides = ConditionalUnet((1, 28, 28), 10, 32), []
    assert 0.3e6 < count(network) < 1e6
    for block in (*network.ways_in, network.middle, *network.ways_out):
        block.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    moves(network, (1, 28, 28))
    assert sides == [14, 7, 7, 7, 14]


def test_time_class_and_no_class_change_the_velocity() -> None:
    network, noisy = ConditionalUnet((1, 28, 28), 3, 8), torch.randn(1, 1, 28, 28)
    seen = [
        network(noisy, torch.tensor([time]), torch.tensor([label]))
        for time, label in ((0.5, 0), (0.5, 1), (0.5, 3), (0.0, 0), (1.0, 0))
    ]
    for index, velocity in enumerate(seen):
        assert all(not torch.allclose(velocity, other) for other in seen[:index])


def test_what_unet_says_of_an_image_does_not_depend_on_the_company() -> None:
    network, shape = ConditionalUnet((1, 28, 28), 3, 8), (1, 28, 28)
    noisy, times, labels = torch.randn(3, *shape), torch.rand(3), torch.arange(3)
    alone = network(noisy[:1], times[:1], labels[:1])
    torch.testing.assert_close(network(noisy, times, labels)[:1], alone)


def test_unet_block_by_hand() -> None:
    """Group norm whose gain and bias the condition moves, between two convolutions."""
    block = ConditionalUnet((1, 28, 28), 3, 8).ways_in[1]
    features, condition = torch.randn(2, 8, 7, 7), torch.randn(2, 32)
    hidden = block.first(features).unflatten(1, (4, 4))
    deviation = hidden.var((2, 3, 4), unbiased=False, keepdim=True).add(1e-5).sqrt()
    hidden = ((hidden - hidden.mean((2, 3, 4), keepdim=True)) / deviation).flatten(1, 2)
    gain, bias = (condition @ block.modulation.weight.T + block.modulation.bias).split(16, 1)
    hidden = hidden * (1 + gain[:, :, None, None]) + bias[:, :, None, None]
    expected = block.skip(features) + block.second(hidden * hidden.sigmoid())
    torch.testing.assert_close(block(features, condition), expected)


# ---- what makes them fast ----


def transposed_kernel(weight: torch.Tensor) -> torch.Tensor:
    """Return the 4x4 kernel (I, O, 4, 4) of nearest upsampling and a 3x3 kernel (O, I, 3, 3)."""
    for dim in (2, 3):
        low, middle, high = weight.split(1, dim)
        weight = torch.cat([high, middle + high, low + middle, low], dim)
    return weight.transpose(0, 1)


def test_a_transposed_convolution_does_upsampling_and_convolution_in_one() -> None:
    images, weight, bias = (torch.randn(s).double() for s in ((2, 3, 7, 7), (5, 3, 3, 3), (5,)))
    wanted = F.conv2d(F.interpolate(images, scale_factor=2), weight, bias, padding=1)
    got = F.conv_transpose2d(images, transposed_kernel(weight), bias, stride=2, padding=1)
    assert (got - wanted).abs().max() < 1e-13


def test_channels_of_a_pixel_lie_side_by_side() -> None:
    networks = [
        ConvTrunk((3, 28, 28), 8, regularise=False),
        PooledTrunk((3, 28, 28), 8),
        Decoder((3, 28, 28), 4, width=8),
        Student((3, 28, 28), 10, 8),
        ConditionalGenerator((3, 28, 28), 4, 10, 8),
        ProjectionDiscriminator((3, 28, 28), 10, 8),
        ConditionalUnet((3, 28, 28), 10, 8),
    ]
    for network in networks:
        kernels = [p for p in network.parameters() if p.dim() == 4]
        assert kernels, type(network)
        for kernel in kernels:
            assert kernel.is_contiguous(memory_format=torch.channels_last), type(network)
