"""The contract of a method, held over the table of methods: a new method needs no new test."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import same_weights, stages, weights

from semigen_lib import methods, training
from semigen_lib.augment import STRONG, warp
from semigen_lib.checkpoint import load_state
from semigen_lib.data import UNLABELED, Batch, BatchStream, LabelSplit, to_float
from semigen_lib.graph import (
    balance_classes,
    deskew,
    distortion_distances,
    nearest_neighbors,
    oriented_gradients,
    principal_components,
)
from semigen_lib.losses import (
    LSGAN_CODE,
    divergence_loss,
    least_squares_loss,
)
from semigen_lib.methods import BEST, METHODS, best_method, build_method, propagate
from semigen_lib.methods.dpt import follow_back
from semigen_lib.methods.method import Method, MethodConfig, method_name, ramp_up
from semigen_lib.methods.propagate import find_edges, name_pool, surest_of_each_class
from semigen_lib.methods.vat import unit_length
from semigen_lib.training import train, training_step

ONE_LINE = r"\A[^\n]*expected [^\n]*, got [^\n]*\Z"
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def batch(tiny_split) -> Batch:
    return BatchStream(tiny_split, batch_size=8, labeled_batch_size=10, seed=3).at(0)


def step_through(method: Method, batch: Batch) -> list[tuple[str, dict]]:
    """Let every player step once in every stage, and return what each update yielded."""
    optimizers, seen = method.optimizers(), []
    for _ in stages(method, batch):
        for player, terms in method.updates(batch):
            optimizers[player].zero_grad()
            method.objective(terms).backward(inputs=method.parameters_of(player), retain_graph=True)
            optimizers[player].step()
            seen.append((player, terms))
    return seen


# ---- the table ----


@every_method
def test_name_class_and_config_agree(name, make_method) -> None:
    method = make_method(name)
    assert isinstance(method, METHODS[name]) and method_name(method) == name
    assert issubclass(METHODS[name].Config, MethodConfig)
    assert isinstance(method.config, METHODS[name].Config)
    assert METHODS[name].__name__.lower() == name.replace("_", "")


def test_the_smaller_budget_decides_which_method_is_best(monkeypatch) -> None:
    monkeypatch.setattr(methods, "BEST", {10: "few", 100: "more"})
    asked = {1: "few", 10: "few", 99: "few", 100: "more", 60000: "more"}
    assert {n: best_method(n) for n in asked} == asked


def test_best_methods_read() -> None:
    assert all(METHODS[name].reads for name in BEST.values())


def test_unknown_method_refused() -> None:
    with pytest.raises(ValueError, match=rf"\Amethod: expected .*{list(METHODS)[-1]}, got 'gan'"):
        build_method("gan", (1, 28, 28), 10)


@every_method
def test_unknown_setting_refused(name) -> None:
    with pytest.raises(
        ValueError, match=r"\Asetting: expected one of batch_size, .*, got 'nonsuch'"
    ):
        build_method(name, (1, 28, 28), 10, {"nonsuch": 3})


@every_method
@pytest.mark.parametrize("shape", [(1, 30, 30), (1, 28, 32)])
def test_impossible_image_shape_refused(name, shape) -> None:
    with pytest.raises(ValueError, match=ONE_LINE):
        build_method(name, shape, 10)


@every_method
def test_same_seed_same_weights(name, make_method) -> None:
    first, second, third = (weights(make_method(name, seed=seed)) for seed in (1, 1, 2))
    assert same_weights(first, second) and not same_weights(first, third)


# ---- the config ----


def fields_of(name: str) -> list[dataclasses.Field]:
    return list(dataclasses.fields(METHODS[name].Config))


EVERY_FIELD = [(name, field) for name in METHODS for field in fields_of(name)]
every_field = pytest.mark.parametrize(
    ("name", "field"), EVERY_FIELD, ids=[f"{name}-{field.name}" for name, field in EVERY_FIELD]
)


@every_field
def test_wrong_types_refused(name, field) -> None:
    wrong = ["0.5", None, [1], float("nan"), float("inf"), float("-inf")]
    wrong += [True, 1.5, 2.0, -1, 10**12] if type(field.default) is int else []
    wrong += [True, False] if type(field.default) is float else []
    for value in wrong:
        with pytest.raises(ValueError, match=rf"\A{field.name}: expected [^\n]*, got [^\n]*\Z"):
            METHODS[name].Config(**{field.name: value})


@every_field
def test_weights_and_rates_are_not_negative(name, field) -> None:
    if field.name.endswith("_weight") or field.name in ("learning_rate", "beta1", "ema_decay"):
        with pytest.raises(ValueError, match=rf"\A{field.name}: expected [^\n]*, got -0.1\Z"):
            METHODS[name].Config(**{field.name: -0.1})


@every_method
def test_impossible_width_refused_in_our_words(name, make_method) -> None:
    """The networks normalise four groups of channels; torch would say so, but not in our words."""
    with pytest.raises(ValueError, match=r"\Awidth: expected [^\n]*multiple of 4, got 6\Z"):
        make_method(name, width=6)


@pytest.mark.parametrize("field", ["beta1", "beta2"])
def test_a_memory_of_one_is_refused(field) -> None:
    """Adam refuses it too, but later, and not in our words."""
    with pytest.raises(ValueError, match=ONE_LINE):
        MethodConfig(**{field: 1.0})


def test_whole_numbers_are_good_decimals() -> None:
    config = MethodConfig(learning_rate=0, ema_decay=1)
    assert type(config.learning_rate) is float and type(config.ema_decay) is float


def test_config_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MethodConfig().batch_size = 3


# ---- players and updates ----


@every_method
def test_players_share_out_every_parameter_once(name, make_method) -> None:
    method = make_method(name)
    owned = [p for player in method.players for p in method.parameters_of(player)]
    assert len(owned) == len({id(p) for p in owned}), "a parameter has two players"
    assert {id(p) for p in owned} == {id(p) for p in method.parameters()}, "one has none"
    assert set(method.optimizers()) == set(method.players)
    for player, optimizer in method.optimizers().items():
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert [id(p) for p in held] == [id(p) for p in method.parameters_of(player)]
        if name != "cgan":  # whose game has a rate of its own
            assert optimizer.param_groups[0]["lr"] == method.config.learning_rate
            assert optimizer.param_groups[0]["betas"] == (method.config.beta1, method.config.beta2)


@every_method
def test_updates_yield_known_players_and_scalar_terms_with_names_of_their_own(
    name, make_method, batch
) -> None:
    method = make_method(name).train()
    seen = step_through(method, batch)
    assert {player for player, _ in seen} == set(method.players)
    known = {}
    for player, terms in seen:
        assert terms
        for term, value in terms.items():
            assert value.shape == () and value.isfinite(), term
            assert value.requires_grad, f"{term} trains nothing"
            # Two players may share a term, but two terms must not share a name.
            owner, first = known.setdefault(term, (player, value))
            later_stage = player == owner and len(seen) > len(method.players)
            assert first is value or later_stage, f"the history would hide one {term}"
    assert not {"step", "seconds"} & set(known), "these columns are the loop's"


@every_method
def test_every_weight_of_the_config_belongs_to_a_term(name, make_method, batch) -> None:
    method = make_method(name).train()
    names = {term for _, terms in step_through(method, batch) for term in terms}
    for field in fields_of(name):
        if field.name.endswith("_weight"):
            assert field.name.removesuffix("_weight") in names, f"{field.name} multiplies nothing"


@every_method
def test_every_parameter_that_is_used_gets_a_gradient(name, make_method, batch) -> None:
    method = make_method(name).train()
    step_through(method, batch)
    for parameter, tensor in method.named_parameters():
        # Who only reads keeps the code head so that its network is the one of combined.
        unused = not method.draws and parameter.startswith("encoder.latent.")
        assert (tensor.grad is None) == unused, parameter


@every_method
def test_objective_is_the_weighted_sum(name, make_method) -> None:
    fields = [field.name for field in fields_of(name) if field.name.endswith("_weight")]
    settings = {field: 0.5 + index for index, field in enumerate(fields)}
    method = make_method(name, **settings)
    terms = {field.removesuffix("_weight"): torch.tensor(3.0) for field in fields}
    terms["a_term_without_a_weight"] = torch.tensor(7.0)
    assert method.objective(terms).item() == pytest.approx(3 * sum(settings.values()) + 7)


@every_method
def test_fused_optimisers_step_as_plain_ones(name, make_method, batch, monkeypatch) -> None:
    """A fused Adam takes gradients in the order they lie in memory, whatever their strides say."""
    plain = type("Plain", (torch.optim.Adam,), {})
    unfused = lambda *given, fused, **named: plain(*given, **named)  # noqa: E731
    methods_seen = []
    for adam in (torch.optim.Adam, unfused):
        monkeypatch.setattr(torch.optim, "Adam", adam)
        method = make_method(name)
        torch.manual_seed(5)
        step_through(method, batch)
        methods_seen.append(weights(method))
    fused, wanted = methods_seen
    for key, tensor in fused.items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-5, msg=key)


# ---- what it can do is what it says ----


@every_method
def test_reads_tells_the_truth(name, make_method, batch) -> None:
    method = make_method(name).eval()
    if not method.reads:
        with pytest.raises(ValueError, match=rf"\Apredict: expected .*, got {name}\Z"):
            method.predict(batch.images)
        return
    class_logits = method.predict(batch.images)
    assert class_logits.shape == (8, 10) and class_logits.isfinite().all()
    assert class_logits.min() < 0 or not torch.allclose(class_logits.sum(1), torch.ones(8)), (
        "logits, not probabilities"
    )


@every_method
def test_draws_tells_the_truth(name, make_method) -> None:
    method = make_method(name).eval()
    anything = torch.full((6,), UNLABELED)
    assert method.draws or not method.draws_on_request
    if not method.draws:
        with pytest.raises(ValueError, match=rf"\Agenerate: expected .*, got {name}\Z"):
            method.generate(anything)
        return
    images = method.generate(anything)
    assert images.shape == (6, 1, 28, 28) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert not torch.equal(images[0], images[1]), "the noise is not used"


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].draws])
def test_draws_on_request_tells_the_truth(name, make_method) -> None:
    method = make_method(name).eval()
    asked = torch.tensor([0, 9, UNLABELED])
    if not method.draws_on_request:
        with pytest.raises(ValueError, match=rf"\Aclass: expected .*, got {name}\Z"):
            method.generate(asked)
        return
    torch.manual_seed(0)
    first = method.generate(asked)
    torch.manual_seed(0)
    second = method.generate(torch.tensor([0, 3, UNLABELED]))
    assert torch.equal(first[0], second[0]), "same noise, same class"
    assert not torch.equal(first[1], second[1]), "the class is not used"


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].draws_on_request])
def test_any_class_means_every_class_in_time(name, make_method, monkeypatch) -> None:
    """UNLABELED must not quietly be one class."""
    method, given = make_method(name).eval(), []
    drawers = [n for n in ("decoder", "generator", "denoiser") if hasattr(method, n)]
    drawer = getattr(method, drawers[0])
    forward = drawer.forward

    def watch(*inputs: torch.Tensor) -> torch.Tensor:
        classes = inputs[-1]
        given.append(classes.argmax(1) if classes.ndim == 2 else classes)
        return forward(*inputs)

    monkeypatch.setattr(drawer, "forward", watch)
    method.generate(torch.full((200,), UNLABELED))
    nobody = {10} if name == "dpt" else set()  # guidance asks for no class as well
    assert set(torch.cat(given).tolist()) == set(range(10)) | nobody


@pytest.mark.parametrize(
    "name", [name for name in METHODS if hasattr(METHODS[name], "reconstruct")]
)
def test_reconstructions_are_images(name, make_method, batch) -> None:
    method = make_method(name).eval()
    images = method.reconstruct(batch.images)
    assert images.shape == batch.images.shape and images.min() >= 0 and images.max() <= 1


@every_method
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 64, 64)], ids=str)
def test_other_images_and_few_classes(name, shape, make_method) -> None:
    method = make_method(name, shape=shape, n_classes=3).train()
    images, index = torch.rand(4, *shape), torch.arange(4)
    batch = Batch(images, torch.rand(2, *shape), torch.tensor([0, 2]), index)
    for _ in stages(method, batch):
        terms = training_step(method, batch, method.optimizers())
        assert all(term.isfinite() for term in terms.values())
    method.eval()
    if method.reads:
        assert method.predict(batch.images).shape == (4, 3)
    if method.draws:
        assert method.generate(torch.full((2,), UNLABELED)).shape == (2, *shape)


def test_the_bare_method_says_what_is_missing() -> None:
    class Bare(Method):
        players = {}

    bare = Bare(MethodConfig(), (1, 28, 28), 10)
    with pytest.raises(NotImplementedError):
        bare.updates(None)
    for call in (bare.predict, bare.generate):
        with pytest.raises(ValueError, match=ONE_LINE):
            call(torch.zeros(1))


# ---- limit cases ----


def test_combined_without_its_generative_terms_learns_to_classify(make_method, tiny_split) -> None:
    others = [
        field.name
        for field in fields_of("combined")
        if field.name.endswith("_weight") and field.name != "classification_weight"
    ]
    method = make_method("combined", learning_rate=3e-3, **dict.fromkeys(others, 0.0))
    history = train(method, tiny_split, steps=40, record_every=1, progress=False)
    assert history["classification"][0] > 1.5  # about log(10) = 2.3 before anything is learnt
    assert max(history["classification"][-10:]) < 0.2


def test_supervised_ignores_unlabelled_images_bit_for_bit(make_method, tiny_split) -> None:
    final = []
    for inverted in (False, True):
        hidden = torch.ones(len(tiny_split), dtype=torch.bool)
        hidden[tiny_split.labeled_index] = False
        images = tiny_split.images.clone()
        if inverted:
            images[hidden] = 255 - images[hidden]
        split = dataclasses.replace(tiny_split, images=images)
        method = make_method("supervised")
        train(method, split, steps=5, progress=False)
        final.append(weights(method))
    assert same_weights(*final)


@pytest.mark.parametrize("name", ["autoencoder", "lsgan"])
def test_methods_without_a_classifier_ignore_labels_bit_for_bit(
    name, make_method, tiny_split
) -> None:
    final = []
    for shift in (0, 1):
        labels = tiny_split.labels.clone()
        labels[tiny_split.labeled_index] = (labels[tiny_split.labeled_index] + shift) % 10
        method = make_method(name)
        train(method, dataclasses.replace(tiny_split, labels=labels), steps=5, progress=False)
        final.append(weights(method))
    assert same_weights(*final)


def test_first_terms_of_lsgan_by_hand(make_method, batch) -> None:
    method = make_method("lsgan", real_target=2.0, fake_target=-1.0, generator_target=0.5).train()
    twin = make_method("lsgan").train()  # same seed, same weights
    torch.manual_seed(4)
    seen = dict(step_through(method, batch))
    torch.manual_seed(4)
    drawn = twin.generator(torch.randn(8, 4))
    real, fake = twin.discriminator(batch.images), twin.discriminator(drawn)
    got = seen["discriminator"]
    torch.testing.assert_close(got["real"], 0.5 * ((real - 2.0) ** 2).mean())
    torch.testing.assert_close(got["fake"], 0.5 * ((fake + 1.0) ** 2).mean())
    # The generator meets the discriminator after its step.
    after = 0.5 * ((method.discriminator(drawn) - 0.5) ** 2).mean()
    torch.testing.assert_close(seen["generator"]["adversarial"], after)
    assert not torch.allclose(after, 0.5 * ((fake - 0.5) ** 2).mean(), rtol=1e-6)


def test_first_term_of_autoencoder_and_supervised_by_hand(make_method, batch) -> None:
    method = make_method("autoencoder").train()
    twin = make_method("autoencoder").train()
    torch.manual_seed(4)  # of whatever noise the networks add while training
    ((_, terms),) = step_through(method, batch)
    torch.manual_seed(4)
    by_hand = (batch.images - twin.decoder(twin.encoder(batch.images)[0])) ** 2
    torch.testing.assert_close(terms["reconstruction"], by_hand.mean())
    method, twin = make_method("supervised").train(), make_method("supervised").train()
    torch.manual_seed(4)
    ((_, terms),) = step_through(method, batch)
    torch.manual_seed(4)
    chosen = twin.predict(batch.labeled_images).log_softmax(1)[torch.arange(10), batch.labels]
    torch.testing.assert_close(terms["classification"], -chosen.mean())


def test_unlabelled_images_move_the_network_that_reads(make_method, batch) -> None:
    """The point of combined: what unlabelled images teach reaches the weights that classify."""
    shared = []
    for images in (batch.images, 1 - batch.images):
        method = make_method("combined").train()
        torch.manual_seed(0)
        step_through(method, batch._replace(images=images))
        shared.append(weights(method.encoder.trunk))
    assert not same_weights(*shared)


def test_labels_move_the_network_that_draws(make_method, batch) -> None:
    """And what labels teach reaches the weights that draw, through the request."""
    drawn = []
    for labels in (batch.labels, (batch.labels + 1) % 10):
        method = make_method("combined").train()
        torch.manual_seed(0)
        step_through(method, batch._replace(labels=labels))
        drawn.append(weights(method.decoder))
    assert not same_weights(*drawn)


def test_the_default_code_of_lsgan_is_the_one_of_the_losses(make_method) -> None:
    assert make_method("lsgan").code == LSGAN_CODE
    assert least_squares_loss(torch.ones(2), LSGAN_CODE.real) == 0


# ---- sgan ----


def test_first_terms_of_sgan_by_hand(make_method, batch) -> None:
    method, twin = make_method("sgan").train(), make_method("sgan").train()
    torch.manual_seed(4)
    seen = dict(step_through(method, batch))
    torch.manual_seed(4)
    fakes = twin.generator(torch.randn(8, 4))
    logits = twin.predict(torch.cat([batch.images, batch.labeled_images, fakes.detach()]))
    # The logit of "generated" is 0: as if it were one more class.
    log_probs = torch.cat([logits, torch.zeros(26, 1)], 1).log_softmax(1)
    is_fake = log_probs[:, 10]
    got = seen["classifier"]
    torch.testing.assert_close(got["fake"], -is_fake[18:].mean())
    torch.testing.assert_close(got["real"], -(1 - is_fake[:8].exp()).log().mean())
    chosen = log_probs[8:18][torch.arange(10), batch.labels] - (1 - is_fake[8:18].exp()).log()
    torch.testing.assert_close(got["classification"], -chosen.mean())
    # The generator meets the classifier after its step, with its noise and its dropout.
    wanted, drawn = method.trunk(batch.images), method.trunk(fakes)
    after = ((wanted.mean(0) - drawn.mean(0)) ** 2).mean()
    torch.testing.assert_close(seen["generator"]["matching"], after)


def test_one_class_and_squared_errors_make_sgan_the_game_of_lsgan(make_method, batch) -> None:
    """With its usual targets 0, 1, 1; the score is the probability of being real."""
    settings = {"squared": 1, "fooling": 1}
    method = make_method("sgan", n_classes=1, **settings).train()
    twin = make_method("sgan", n_classes=1, **settings).train()
    batch = batch._replace(labels=torch.zeros_like(batch.labels))
    torch.manual_seed(4)
    seen = dict(step_through(method, batch))
    torch.manual_seed(4)
    fakes = twin.generator(torch.randn(8, 4))
    together = torch.cat([batch.images, batch.labeled_images, fakes.detach()])
    score = twin.predict(together).squeeze(1).sigmoid()
    got = seen["classifier"]
    assert got["classification"].item() == 0, "there is nothing to choose from"
    torch.testing.assert_close(got["real"], 0.5 * ((score[:8] - LSGAN_CODE.real) ** 2).mean())
    torch.testing.assert_close(got["fake"], 0.5 * ((score[18:] - LSGAN_CODE.fake) ** 2).mean())
    score = method.predict(fakes).squeeze(1).sigmoid()
    fooled = 0.5 * ((score - LSGAN_CODE.generator) ** 2).mean()
    torch.testing.assert_close(seen["generator"]["adversarial"], fooled)


def trunk_after_a_step(name, make_method, batch, **settings) -> dict[str, torch.Tensor]:
    method = make_method(name, **settings).train()
    torch.manual_seed(0)
    step_through(method, batch)
    return weights(method.trunk)


@pytest.mark.parametrize("convolutional", [0, 1])
def test_sgan_without_its_unsupervised_terms_is_supervised(
    convolutional, make_method, batch
) -> None:
    inverted = batch._replace(images=1 - batch.images)
    settings = {"convolutional": convolutional}
    first, second = (
        trunk_after_a_step("sgan", make_method, b, **settings) for b in (batch, inverted)
    )
    assert not same_weights(first, second), "unlabelled images teach the network that reads"
    settings |= {"real_weight": 0.0, "fake_weight": 0.0, "information_weight": 0.0}
    first, second = (
        trunk_after_a_step("sgan", make_method, b, **settings) for b in (batch, inverted)
    )
    assert same_weights(first, second)


@pytest.mark.parametrize("switch", ["squared", "fooling", "convolutional"])
def test_every_switch_of_sgan_changes_the_run(switch, make_method, batch) -> None:
    usual = make_method("sgan")
    other = 1 - getattr(usual.config, switch)
    method = make_method("sgan", **{switch: other})
    seen = []
    for one in (usual, method):
        torch.manual_seed(0)
        seen.append(
            {k: v.item() for _, terms in step_through(one.train(), batch) for k, v in terms.items()}
        )
    assert seen[0] != seen[1] and all(torch.tensor(list(s.values())).isfinite().all() for s in seen)
    with pytest.raises(ValueError, match=rf"^{switch}: expected a number from 0 to 1, got 2$"):
        make_method("sgan", **{switch: 2})


def test_the_matching_generator_is_not_told_the_verdict(make_method, batch) -> None:
    """Turning the class head around changes what fools, and not what matches."""
    pulls = []
    for fooling in (0, 1):
        for sign in (1, -1):
            method = make_method("sgan", fooling=fooling, learning_rate=0.0).train()
            with torch.no_grad():
                for parameter in method.class_head.parameters():
                    parameter *= sign
            torch.manual_seed(0)
            step_through(method, batch)
            pulls.append(method.generator.linear.weight.grad)
    assert torch.equal(pulls[0], pulls[1]) and not torch.equal(pulls[2], pulls[3])


# ---- m2 ----


def m2_by_hand(twin: Method, images: torch.Tensor, features: torch.Tensor, k: int) -> torch.Tensor:
    """Minus the bound of log p(image, class k), ``(B,)``, at the mean of the styles."""
    request = torch.zeros(len(images), 10)
    request[:, k] = 1
    mean, log_variance = twin.encoder(torch.cat([features, request], 1)).chunk(2, 1)
    drawn = twin.decoder(mean, request)
    likelihood = (images * drawn.log() + (1 - images) * (1 - drawn).log()).sum((1, 2, 3))
    divergence = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1)
    return divergence - likelihood - torch.tensor(0.1).log()


@pytest.mark.parametrize("convolutional", [0, 1])
def test_first_terms_of_m2_by_hand(convolutional, make_method, batch, monkeypatch) -> None:
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # no noise: styles at their means
    method, twin = (make_method("m2", convolutional=convolutional).train() for _ in range(2))
    torch.manual_seed(4)  # of dropout
    ((_, terms),) = step_through(method, batch)
    torch.manual_seed(4)
    images = torch.cat([batch.images, batch.labeled_images])
    log_probs, features = twin.predict(images).log_softmax(1), twin.style_trunk(images)
    chosen = log_probs[8:][torch.arange(10), batch.labels]
    torch.testing.assert_close(terms["classification"], -chosen.mean())
    costs = [m2_by_hand(twin, batch.images, features[:8], k) for k in range(10)]
    q = log_probs[:8].exp()
    by_hand = sum(q[:, k] * (costs[k] + q[:, k].log()) for k in range(10)).mean()
    torch.testing.assert_close(terms["unlabeled"], by_hand)
    rows = zip(batch.labeled_images, features[8:], batch.labels.tolist(), strict=True)
    known = [m2_by_hand(twin, image[None], row[None], k) for image, row, k in rows]
    torch.testing.assert_close(terms["labeled"], torch.cat(known).mean())


def test_m2_that_knows_every_class_is_supervised(make_method, batch, monkeypatch) -> None:
    """A classifier without doubt makes the sum over classes the cost of the right one."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    method = make_method("m2").eval()
    features = method.style_trunk(batch.labeled_images)
    known = torch.nn.functional.one_hot(batch.labels, 10).float()
    supervised = method.costs(batch.labeled_images, features, known).mean()
    sure = method._bound(batch.labeled_images, features, 1e3 * known)
    torch.testing.assert_close(sure, supervised)
    wrong = method._bound(batch.labeled_images, features, 1e3 * known.roll(1, 1))
    assert not torch.allclose(wrong, supervised), "the class does not matter to the bound"


def test_m2_without_its_unlabelled_term_ignores_unlabelled_images(make_method, batch) -> None:
    inverted = batch._replace(images=1 - batch.images)
    for weight, ignored in ((1.0, False), (0.0, True)):
        first, second = (
            trunk_after_a_step("m2", make_method, b, unlabeled_weight=weight)
            for b in (batch, inverted)
        )
        assert same_weights(first, second) == ignored


@pytest.mark.parametrize("switch", ["summed", "convolutional"])
def test_every_switch_of_m2_changes_the_run(switch, make_method, batch) -> None:
    seen = []
    for value in (0, 1):
        torch.manual_seed(0)
        method = make_method("m2", **{switch: value}).train()
        seen.append({k: v.item() for k, v in step_through(method, batch)[0][1].items()})
    assert seen[0] != seen[1] and all(map(math.isfinite, seen[0].values()))


def test_m2_draws_style_and_class_apart(make_method) -> None:
    """One style in two classes: the same noise, another request."""
    method = make_method("m2").eval()
    with torch.no_grad():
        method.decoder.stages[0].weight[:, :4] = 0  # styles do not matter any more
    images = method.generate(torch.tensor([3, 3, 5]))
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


# ---- methods that learn from their own guesses ----


def steps_with_seeded_noise(method: Method, batch: Batch) -> dict[str, torch.Tensor]:
    """Take three steps, each from a fresh seed: what a method draws late disturbs no next step."""
    optimizers = method.train().optimizers()
    for step in range(3):
        method.prepare(batch.images.byte(), batch.labels, 0.5)
        torch.manual_seed(step)
        training_step(method, batch, optimizers)
    return weights(method)


@pytest.mark.parametrize("augment", [0, 1])
@pytest.mark.parametrize("settings", [{"threshold": 1.0}, {"pseudo_weight": 0.0, "threshold": 0.0}])
def test_without_its_guesses_pseudo_label_is_supervised_bit_for_bit(
    settings, augment, make_method, batch
) -> None:
    final = [
        steps_with_seeded_noise(make_method(name, augment=augment, **given), batch)
        for name, given in (
            ("supervised", {}),
            ("pseudo_label", settings),
            ("pseudo_label", {"threshold": 0.0}),
        )
    ]
    assert same_weights(final[0], final[1])
    assert not same_weights(final[0], final[2]), "the test can fail"


def test_without_its_own_terms_vat_is_supervised_without_noise_bit_for_bit(
    make_method, batch
) -> None:
    class Quiet(METHODS["supervised"]):
        def train(self, mode=True):
            return super().train(False)

    none = {"smoothness_weight": 0.0, "entropy_weight": 0.0, "balance_weight": 0.0}
    final = [
        steps_with_seeded_noise(make_method(kind, **settings), batch)
        for kind, settings in ((Quiet, {}), ("vat", none), ("vat", {}))
    ]
    assert same_weights(final[0], final[1])
    assert not same_weights(final[0], final[2]), "the test can fail"


def test_augmented_supervised_sees_other_images_every_time(make_method, batch) -> None:
    plain, views = make_method("supervised").eval(), make_method("supervised", augment=1).eval()
    ((_, one),), ((_, other),) = list(views.updates(batch)), list(views.updates(batch))
    assert one["classification"] != other["classification"], "two random views"
    ((_, one),), ((_, other),) = list(plain.updates(batch)), list(plain.updates(batch))
    assert one["classification"] == other["classification"]


@pytest.mark.parametrize("value", [-1, 2])
def test_augment_is_a_switch(value) -> None:
    with pytest.raises(ValueError, match=r"\Aaugment: expected a number from 0 to 1, got"):
        METHODS["supervised"].Config(augment=value)


def test_ramp_up_by_hand() -> None:
    assert [ramp_up(p, 0.5) for p in (0.0, 0.25, 0.5, 0.9)] == [0.0, 0.5, 1.0, 1.0]
    assert ramp_up(0.0, 0.0) == 1.0, "no ramp at all"


def test_first_terms_of_pseudo_label_by_hand(make_method, batch) -> None:
    method, twin = (make_method("pseudo_label", threshold=0.0).train() for _ in range(2))
    for progress, share in ((0.1, 0.25), (0.4, 1.0), (0.9, 1.0)):
        method.prepare(None, None, progress)
        torch.manual_seed(4)
        terms = dict(method.updates(batch))["classifier"]
        labels = twin.eval().predict(batch.images).argmax(1)
        twin.train()
        torch.manual_seed(4)
        labeled = F.cross_entropy(twin.predict(batch.labeled_images), batch.labels)
        torch.testing.assert_close(terms["classification"], labeled)
        pseudo = F.cross_entropy(twin.predict(batch.images), labels)
        torch.testing.assert_close(terms["pseudo"], share * pseudo)


def test_first_terms_of_vat_by_hand(make_method, batch) -> None:
    method, twin = make_method("vat", epsilon=3.0).train(), make_method("vat").eval()
    torch.manual_seed(4)
    terms = dict(method.updates(batch))["classifier"]
    assert method.training
    labeled = twin.predict(batch.labeled_images)
    torch.testing.assert_close(terms["classification"], F.cross_entropy(labeled, batch.labels))
    logits = twin.predict(batch.images)
    p, mean = logits.softmax(1), logits.softmax(1).mean(0)
    torch.testing.assert_close(terms["entropy"], -(p * p.log()).sum(1).mean())
    torch.testing.assert_close(terms["balance"], (mean * (10 * mean).log()).sum())
    torch.manual_seed(4)
    change = method.eval().worst_change(batch.images, logits)
    q = twin.predict(batch.images + change).softmax(1)
    torch.testing.assert_close(terms["smoothness"], (p * (p / q).log()).sum(1).mean())


def test_the_worst_change_has_length_epsilon_and_is_worse_than_chance(make_method, batch) -> None:
    method = make_method("vat", epsilon=1.5).eval()
    logits = method.predict(batch.images)
    change = method.worst_change(batch.images, logits)
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((8,), 1.5))
    assert not change.requires_grad
    worst = divergence_loss(method.predict(batch.images + change), logits)
    for seed in range(10):
        torch.manual_seed(seed)
        chance = 1.5 * unit_length(torch.randn_like(change))
        assert worst > 2 * divergence_loss(method.predict(batch.images + chance), logits)


def test_without_a_change_smoothness_teaches_nothing(make_method, batch) -> None:
    method = make_method("vat", epsilon=0.0).train()
    ((_, terms),) = method.updates(batch)
    assert abs(terms["smoothness"].item()) < 1e-6
    terms["smoothness"].backward()
    used = [p.grad for p in method.parameters() if p.grad is not None]
    assert used and max(gradient.abs().max() for gradient in used) < 1e-6


def test_no_direction_stays_no_direction() -> None:
    assert unit_length(torch.zeros(2, 1, 4, 4)).abs().max() == 0


# ---- ss_aae ----


def test_first_terms_of_ss_aae_by_hand(make_method, batch) -> None:
    method, twin = make_method("ss_aae").train(), make_method("ss_aae").train()
    torch.manual_seed(4)
    seen = dict(step_through(method, batch))
    torch.manual_seed(4)
    images = torch.cat([batch.images, batch.labeled_images])
    class_logits, (styles, _) = twin.predict(images), twin.encoder(images)
    by_chance, noise = torch.randint(10, (8,)), torch.randn(8, 4)
    classes = class_logits[:8].softmax(1)
    got = seen["discriminators"]
    score = twin.class_discriminator(torch.eye(10)[by_chance])
    torch.testing.assert_close(got["class_real"], 0.5 * ((score - 1) ** 2).mean())
    score = twin.class_discriminator(classes)
    torch.testing.assert_close(got["class_fake"], 0.5 * (score**2).mean())
    score = twin.style_discriminator(noise)
    torch.testing.assert_close(got["style_real"], 0.5 * ((score - 1) ** 2).mean())
    score = twin.style_discriminator(styles[:8])
    torch.testing.assert_close(got["style_fake"], 0.5 * (score**2).mean())
    # The autoencoder redraws labelled images with their true class, and meets new discriminators.
    got = seen["autoencoder"]
    redrawn = twin.decoder(styles, torch.cat([classes, torch.eye(10)[batch.labels]]))
    torch.testing.assert_close(got["reconstruction"], ((images - redrawn) ** 2).mean())
    chosen = class_logits[8:].log_softmax(1)[torch.arange(10), batch.labels]
    torch.testing.assert_close(got["classification"], -chosen.mean())
    score = method.class_discriminator(classes)
    torch.testing.assert_close(got["class_adversarial"], 0.5 * ((score - 1) ** 2).mean())
    score = method.style_discriminator(styles[:8])
    torch.testing.assert_close(got["style_adversarial"], 0.5 * ((score - 1) ** 2).mean())


def test_views_of_ss_aae_are_for_the_class_alone(make_method, batch) -> None:
    """A style must know where the strokes are: it and the redrawing have the image as it is."""
    method = make_method("ss_aae", augment=1).train()
    read, written = [], []
    method.trunk.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    method.encoder.register_forward_pre_hook(lambda _, given: written.append(given[0]))
    dict(step_through(method, batch))
    images = torch.cat([batch.images, batch.labeled_images])
    assert torch.equal(written[0], images)
    moved = (read[0] - images).abs().amax((1, 2, 3))
    assert read[0].shape == images.shape and moved.min() > 1e-3  # unlabelled and labelled ones


def test_ss_aae_without_its_games_is_an_autoencoder_and_a_classifier(make_method, batch) -> None:
    """Whatever the discriminators say, nobody listens; with either weight somebody does."""
    off = {"class_adversarial_weight": 0.0, "style_adversarial_weight": 0.0}
    for settings, listens in ((off, False), *(({**off, name: 1.0}, True) for name in off)):
        first, second = (make_method("ss_aae", **settings).train() for _ in range(2))
        with torch.no_grad():
            for name in first.players["discriminators"]:
                for parameter in getattr(second, name).parameters():
                    parameter.normal_()
        moved = []
        for method in (first, second):
            torch.manual_seed(0)
            terms = dict(step_through(method, batch))["autoencoder"]
            moved.append(
                {
                    f"{name}.{key}": tensor
                    for name in method.players["autoencoder"]
                    for key, tensor in weights(getattr(method, name)).items()
                }
            )
        assert same_weights(*moved) != listens
    redrawn = method.config.reconstruction_weight * terms["reconstruction"]
    by_hand = redrawn + terms["classification"] + terms["style_adversarial"]
    torch.testing.assert_close(method.objective(terms), by_hand)


def test_classes_said_with_doubt_are_found_out(make_method) -> None:
    """What the game on classes is for: a discriminator learns to tell doubt from a decision."""
    torch.manual_seed(0)
    discriminator = make_method("ss_aae").class_discriminator
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(100):
        sure = torch.eye(10)[torch.randint(10, (64,))]
        doubt = (torch.randn(64, 10)).softmax(1)
        optimizer.zero_grad()
        real = least_squares_loss(discriminator(sure), LSGAN_CODE.real)
        (real + least_squares_loss(discriminator(doubt), LSGAN_CODE.fake)).backward()
        optimizer.step()
    discriminator.eval()
    # The noise keeps it from being sure; the first seed gave 0.43 and -0.06.
    assert discriminator(sure).mean() > discriminator(doubt).mean() + 0.3


def test_first_terms_of_fixmatch_by_hand(make_method, batch) -> None:
    method, twin = (make_method("fixmatch", augment=0, threshold=0.0).train() for _ in range(2))
    method.prepare(None, None, 0.15)  # half of the ramp
    terms = dict(method.updates(batch))["classifier"]
    guesses = twin.eval().predict(batch.images).softmax(1)
    usage = 0.98 * torch.full((10,), 0.1) + 0.02 * guesses.mean(0)
    labels = (guesses / usage).argmax(1)
    logits = twin.train().predict(torch.cat([batch.labeled_images, batch.images]))
    labeled, pseudo = logits.split([10, 8])
    torch.testing.assert_close(terms["classification"], F.cross_entropy(labeled, batch.labels))
    torch.testing.assert_close(terms["pseudo"], 0.5 * F.cross_entropy(pseudo, labels))
    torch.testing.assert_close(method.memory["usage"], usage)


def test_fixmatch_above_a_threshold_of_one_has_no_pseudo_labels(make_method, batch) -> None:
    method, without = (
        make_method("fixmatch", **settings)
        for settings in ({"threshold": 1.0}, {"threshold": 0.0, "pseudo_weight": 0.0})
    )
    final = [steps_with_seeded_noise(each, batch) for each in (method, without)]
    assert same_weights(*final)
    assert not same_weights(
        steps_with_seeded_noise(make_method("fixmatch", threshold=0.0), batch), final[0]
    ), "the test can fail"


def test_balanced_guesses_use_classes_equally_often(make_method) -> None:
    """What is guessed too often needs better reasons; in the long run all shares are equal."""
    method = make_method("fixmatch", n_classes=2)
    torch.manual_seed(0)
    guesses = torch.softmax(torch.randn(64, 2) + torch.tensor([1.0, 0.0]), 1)
    for _ in range(1000):
        corrected = method.balanced(guesses)
    assert guesses[:, 0].mean() > 0.65
    torch.testing.assert_close(corrected.sum(1), torch.ones(64))
    by_hand = guesses / guesses.mean(0)
    torch.testing.assert_close(corrected, by_hand / by_hand.sum(1, keepdim=True))
    assert abs(corrected[:, 0].mean() - 0.5) < 0.05
    assert torch.equal(corrected[:, 0].argsort(), guesses[:, 0].argsort()), "the order stays"


def test_views_of_fixmatch_are_as_strong_as_asked(make_method) -> None:
    method = make_method("fixmatch", strength=0.5)
    assert method.strong.degrees == 0.5 * STRONG.degrees and method.strong.bend == 0.5 * STRONG.bend


def test_without_balance_fixmatch_believes_its_guesses_as_they_are(make_method, batch) -> None:
    method = make_method("fixmatch", balance=0, augment=0, threshold=0.0, ramp=0.0).train()
    twin = make_method("fixmatch").eval()
    terms = dict(method.updates(batch))["classifier"]
    labels = twin.predict(batch.images).argmax(1)
    logits = twin.train().predict(torch.cat([batch.labeled_images, batch.images]))
    torch.testing.assert_close(terms["pseudo"], F.cross_entropy(logits[10:], labels))
    assert not method.memory


@pytest.mark.parametrize("switch", [{"erased": 0.4}, {"strength": 0.1}, {"augment": 0},
                                    {"ramp": 0.0}])  # fmt: skip
def test_every_switch_of_fixmatch_changes_the_run(switch, make_method, batch) -> None:
    settings = {"threshold": 0.0, "ramp": 1.0}
    plain = steps_with_seeded_noise(make_method("fixmatch", **settings), batch)
    other = steps_with_seeded_noise(make_method("fixmatch", **{**settings, **switch}), batch)
    assert not same_weights(plain, other)


# ---- propagate ----


@pytest.fixture
def pool(tiny_split) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels that ``prepare`` gets; 20 of 60 labels are known."""
    return tiny_split.images, tiny_split.labels


def in_stage(method: Method, pool, stage: int) -> Method:
    """Take a method into its first or its second stage, in training mode."""
    method.train()
    assert method.prepare(*pool, 0.0) is False
    if stage == 2:
        assert method.prepare(*pool, 0.9) is True
    return method


@pytest.mark.parametrize("stage", [1, 2])
def test_a_known_label_is_never_overruled(stage, make_method, pool, monkeypatch) -> None:
    """Not by the graph and not by the student, however strange it looks to them."""
    images, labels = pool
    known, nine = labels != UNLABELED, F.one_hot(torch.full((60,), 9), 10).float()
    monkeypatch.setattr(propagate, "name_pool", lambda *_: nine)
    method = make_method("propagate", keep=0.0, keep_later=0.0, graph_power=0.0)
    in_stage(method, pool, stage)
    assert torch.equal(method.memory["names"][known], labels[known])
    assert torch.equal(method.memory["weights"], known.float()), "and it always counts"
    read = method.eval().predict(to_float(images)).softmax(1)
    guesses = balance_classes(nine if stage == 1 else read).argmax(1)
    assert torch.equal(method.memory["names"][~known], guesses[~known])
    assert not torch.equal(labels[known], guesses[known]), "the test can fail"


def test_nobody_learns_the_name_of_an_image_that_no_label_reaches(
    make_method, pool, monkeypatch
) -> None:
    _, labels = pool
    scores = F.one_hot(torch.arange(60) % 10, 10).float()
    scores[30:] = 0.1  # as balance_classes leaves rows of zeros
    monkeypatch.setattr(propagate, "name_pool", lambda *_: scores)
    method = in_stage(make_method("propagate", keep=1.0), pool, 1)
    expected = (torch.arange(60) < 30) | (labels != UNLABELED)
    assert torch.equal(method.memory["weights"], expected.float())
    assert 0 < expected[30:].sum() < 30, "the test can fail"


def test_the_graph_sees_colours() -> None:
    """Discs at random places, half of them red and half blue: as grey images they are the same."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 80, 1, 1, generator=generator) * 8 + 10
    places = torch.arange(28)
    discs = (places - x).square() + (places[:, None] - y).square() < 36
    colour = torch.arange(80) % 2
    images = torch.zeros(80, 3, 28, 28, dtype=torch.uint8)
    images[torch.arange(80), 2 * colour] = 255 * discs.byte()
    neighbors, _ = find_edges(images, 4)
    assert (colour[neighbors] == colour[:, None]).all()


def test_names_do_not_mind_ink_on_paper(monkeypatch, mnist) -> None:
    monkeypatch.setattr(propagate, "_known_edges", {})
    images = mnist.train.images[:120]
    neighbors, similarities = find_edges(images, 4)
    for paper in (255 - images, torch.where(torch.arange(120)[:, None, None, None] % 2 == 0,
                                            255 - images, images)):  # fmt: skip
        again = find_edges(paper, 4)
        assert (again[0] == neighbors).double().mean() > 0.99
        torch.testing.assert_close(again[1].sum(), similarities.sum(), rtol=1e-3, atol=0)


def test_the_surest_of_each_class_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.3, 0.8])
    names = torch.tensor([0, 0, 0, 2, 2, 0])  # nobody is called 1
    for share, kept in ((0.0, []), (0.25, [0, 4]), (0.5, [0, 4, 5]), (0.6, [0, 2, 3, 4, 5]),
                        (1.0, [0, 1, 2, 3, 4, 5])):  # fmt: skip
        mask = surest_of_each_class(confidence, names, 3, share)
        assert mask.dtype == torch.bool and mask.nonzero().flatten().tolist() == kept, share


def test_a_hard_class_keeps_its_share() -> None:
    """The surest half of all would be class 0 alone; ties are broken by place."""
    names = torch.arange(40) // 20
    confidence = torch.where(names == 0, 0.9, 0.4)
    mask = surest_of_each_class(confidence, names, 2, 0.5)
    assert mask.nonzero().flatten().tolist() == [*range(10), *range(20, 30)]


@pytest.mark.parametrize("name", [n for n, kind in METHODS.items() if kind.draws_on_request])
@pytest.mark.parametrize("wrong", [10, 11, -2])
def test_a_class_that_is_not_is_not_drawn(name, wrong, make_method) -> None:
    method = make_method(name).eval()
    with pytest.raises(ValueError, match=rf"\Alabels: expected -1 to 9, got \[{wrong}\]\Z"):
        method.generate(torch.tensor([0, wrong, UNLABELED]))


def test_first_names_are_those_of_the_graph(make_method, pool) -> None:
    images, labels = pool
    method = in_stage(make_method("propagate", keep=0.5, n_neighbors=4), pool, 1)
    scores, known = name_pool(images, labels, 10, 4), labels != UNLABELED
    names = torch.where(known, labels, scores.argmax(1))
    assert torch.equal(method.memory["names"], names)
    sure = surest_of_each_class(scores.amax(1), names, 10, 0.5)
    assert torch.equal(method.memory["weights"], (sure | known).float())
    assert 0 < (~sure & known).sum() and 0 < (~sure & ~known).sum(), "the test can fail"


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_second_names_are_those_of_graph_and_student(power, make_method, pool) -> None:
    images, labels = pool
    settings = {"graph_power": power, "keep_later": 0.7}
    method = in_stage(make_method("propagate", **settings), pool, 2)
    read = method.eval().predict(to_float(images)).softmax(1)
    graph = name_pool(images, labels, 10)
    both = balance_classes(read * graph.clamp(min=1e-6) ** power)
    known = labels != UNLABELED
    names = torch.where(known, labels, both.argmax(1))
    assert torch.equal(method.memory["names"], names)
    sure = surest_of_each_class(both.amax(1), names, 10, 0.7)
    assert torch.equal(method.memory["weights"], (sure | known).float())
    alone = torch.where(known, labels, balance_classes(read).argmax(1))
    assert torch.equal(names, alone) == (power == 0), "at 0 the graph is not asked"


@pytest.mark.parametrize("name", ["propagate", "cgan", "dpt"])
def test_the_pool_is_named_once_and_read_once(name, make_method, pool, monkeypatch) -> None:
    named, method = [], make_method(name, relabel_at=0.4, graph_power=0.0).train()
    monkeypatch.setattr(propagate, "name_pool", lambda *given: named.append(1) or name_pool(*given))
    stages_begin, names = [], []
    for progress in (0.0, 0.1, 0.39, 0.4, 0.41, 0.79):
        stages_begin.append(method.prepare(*pool, progress))
        names.append(method.memory["names"])
        with torch.no_grad():  # whatever the student has learnt since
            method.student.class_head.bias.normal_(0, 9)
    assert stages_begin == [False, False, False, True, False, False] and len(named) == 1
    assert names[0] is names[2] and names[3] is names[5] and not torch.equal(names[2], names[3])


@pytest.mark.parametrize("training", [True, False])
def test_reading_the_pool_changes_no_weight_and_no_mode(training, make_method, pool) -> None:
    """Nor the averages that batch norm keeps, which reading in training mode would move."""
    method = make_method("propagate").train(training)
    method.prepare(*pool, 0.0)
    before = weights(method)
    assert method.prepare(*pool, 0.9) and method.training is training
    assert method.student.training is training and same_weights(before, weights(method))


def test_first_term_of_propagate_by_hand(make_method, batch, pool) -> None:
    method, twin = (in_stage(make_method("propagate", q=0.5), pool, 1) for _ in range(2))
    doubted = batch.index[2]
    method.memory["weights"][doubted] = 0
    torch.manual_seed(4)
    ((player, terms),) = method.updates(batch)
    torch.manual_seed(4)
    logits = twin.predict(warp(batch.images))
    p = logits.softmax(1)[torch.arange(8), method.memory["names"][batch.index]]
    counts = method.memory["weights"][batch.index]
    expected = (counts * 2 * (1 - p.sqrt())).sum() / counts.sum()
    assert player == "student" and counts.sum() < 8
    torch.testing.assert_close(terms["propagated"], expected)


def test_the_name_of_an_image_of_weight_0_does_not_matter(make_method, batch, pool) -> None:
    losses = []
    for weight, shift in ((0.0, 0), (0.0, 3), (1.0, 0), (1.0, 3)):
        method = in_stage(make_method("propagate", augment=0), pool, 1).eval()
        method.memory["weights"][batch.index[:3]] = weight
        method.memory["names"][batch.index[:3]] += shift
        method.memory["names"] %= 10
        images = batch.images.clone()
        images[:3] += 0.1 * shift  # in evaluation mode the image itself cannot reach the others
        ((_, terms),) = method.updates(batch._replace(images=images))
        losses.append(terms["propagated"].item())
    assert losses[0] == losses[1] and losses[2] != losses[3]


def test_without_augmentation_the_student_sees_the_images_and_no_noise_is_drawn(
    make_method, batch, pool, monkeypatch
) -> None:
    for augment in (0, 1):
        method, seen = in_stage(make_method("propagate", augment=augment), pool, 1), []
        forward = method.student.forward
        monkeypatch.setattr(
            method.student, "forward", lambda x, f=forward, s=seen: s.append(x) or f(x)
        )
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(method.updates(batch))
        assert torch.equal(seen[0], batch.images) == (augment == 0)
        assert torch.equal(torch.get_rng_state(), before) == (augment == 0)


def test_rates_fall_to_0_at_the_end_of_both_stages(make_method) -> None:
    method = make_method("propagate", relabel_at=0.4)
    rates = [method.rate_factor(p) for p in (0.0, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0)]
    root = math.sqrt(0.5)
    assert rates == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2, 1, 0.5, 0])
    assert method.rate_factor(0.4 - 1e-6) < 1e-6 and method.rate_factor(1 - 1e-6) < 1e-6
    for relabel_at in (0.0, 1.0):  # a single stage
        method = make_method("propagate", relabel_at=relabel_at)
        rates = [method.rate_factor(p) for p in (0.0, 0.5, 0.999999)]
        assert rates == pytest.approx([1, 0.5, 0], abs=1e-6)


@pytest.mark.parametrize("switch", [{"q": 1.0}, {"augment": 0}, {"keep": 0.3}])
def test_every_setting_of_propagate_changes_the_run(switch, make_method, batch, pool) -> None:
    final = []
    for settings in ({}, switch):
        method = in_stage(make_method("propagate", **settings), pool, 1)
        torch.manual_seed(0)
        training_step(method, batch, method.optimizers())
        final.append(weights(method))
    assert not same_weights(*final)


def test_edges_of_a_pool_are_found_once(pool, monkeypatch) -> None:
    """Labels do not matter to them; other images and other numbers of neighbours do."""
    calls, find = [], propagate.find_edges
    monkeypatch.setattr(propagate, "_known_edges", {})
    monkeypatch.setattr(
        propagate, "find_edges", lambda *given: calls.append(given[1]) or find(*given)
    )
    images, labels = pool
    first = name_pool(images, labels, 10, 4)
    assert torch.equal(name_pool(images.clone(), labels, 10, 4), first) and calls == [4]
    other = torch.where(labels == UNLABELED, labels, (labels + 1) % 10)
    torch.testing.assert_close(name_pool(images, other, 10, 4).roll(-1, 1), first)
    assert calls == [4], "the same pool with other labels"
    changed = images.clone()
    changed[[5, 6]] = images[[6, 5]]
    assert not torch.equal(name_pool(changed, labels, 10, 4), first) and calls == [4, 4]
    assert not torch.equal(name_pool(changed, labels, 10, 6), first) and calls == [4, 4, 6]
    assert torch.equal(name_pool(images, labels, 10, 4), first) and calls == [4, 4, 6, 4]
    assert len(propagate._known_edges) == 1, "one pool fits into memory, many may not"


@pytest.mark.parametrize("n_neighbors", [1, 7, 25, 59])
def test_neighbours_are_the_least_distorted_of_twenty_candidates(n_neighbors, pool) -> None:
    """Or of as many as were asked for; beyond a pool's size there are none."""
    images, _ = pool
    neighbors, similarities = find_edges(images, n_neighbors)
    upright = deskew(to_float(images))
    features = principal_components(oriented_gradients(upright), 100)
    candidates, _ = nearest_neighbors(features, max(20, n_neighbors))
    squares, order = distortion_distances(upright, candidates).sort(1)
    squares = squares[:, :n_neighbors]
    assert torch.equal(neighbors, candidates.gather(1, order)[:, :n_neighbors])
    expected = torch.exp(-2 * (squares / squares[:, -1].median()) ** 2)
    torch.testing.assert_close(similarities, expected)


def test_the_same_bytes_in_another_shape_are_another_pool(monkeypatch) -> None:
    monkeypatch.setattr(propagate, "_known_edges", {})
    images = torch.randint(0, 256, (8, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    for shape in ((8, 3, 28, 28), (24, 1, 28, 28)):
        pool = images.byte().view(shape)
        labels = torch.arange(len(pool)) % 2
        assert name_pool(pool, labels, 2, 3).shape == (len(pool), 2)


# ---- cgan ----


def watched_drawings(method: Method, probs: list[list[float]], monkeypatch) -> list:
    """Let the student give these probabilities to what is asked, round by round; note requests."""
    asked, rounds, forward = [], iter(probs), method.generator.forward

    def draw(latent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append(labels.tolist())
        return forward(latent, labels)

    def read(images: torch.Tensor) -> torch.Tensor:
        p, wanted = torch.tensor(next(rounds)), torch.tensor([2, 5, 7])
        others = ((1 - p) / 9)[:, None].expand(-1, 10)
        return others.scatter(1, wanted[:, None], p[:, None]).log()

    monkeypatch.setattr(method.generator, "forward", draw)
    monkeypatch.setattr(method.student, "forward", read)
    return asked


def test_what_the_student_doubts_is_drawn_again_and_the_rest_is_kept(
    make_method, monkeypatch
) -> None:
    method, drawn = make_method("cgan", sure=0.6).eval(), []
    answers = [[0.5, 0.7, 0.1], [0.6, 0.7, 0.3], [0.9, 0.9, 0.6]]
    asked = watched_drawings(method, answers, monkeypatch)
    method.generator.register_forward_hook(lambda *given: drawn.append(given[2]))
    images = method.generate(torch.tensor([2, 5, 7]))
    assert asked == [[2, 5, 7], [2, 7], [7]]
    assert torch.equal(images, torch.stack([drawn[1][0], drawn[0][1], drawn[2][0]]))
    assert not torch.equal(drawn[0][0], drawn[1][0]), "from other noise"


@pytest.mark.parametrize("redraws", [0, 1, 3])
def test_a_drawing_that_never_pleases_is_drawn_as_often_as_it_was_told(
    redraws, make_method, monkeypatch
) -> None:
    method = make_method("cgan", redraws=redraws).eval()
    asked = watched_drawings(method, [[0.1, 0.95, 0.95]] * 9, monkeypatch)
    assert method.generate(torch.tensor([2, 5, 7])).shape == (3, 1, 28, 28)
    assert asked == [[2, 5, 7]] + [[2]] * redraws


def play(method: Method, batch: Batch) -> dict[str, dict]:
    """Let every player of the present stage step once, and return its terms."""
    optimizers, seen = method.optimizers(), {}
    for player, terms in method.updates(batch):
        optimizers[player].zero_grad()
        method.objective(terms).backward(inputs=method.parameters_of(player), retain_graph=True)
        optimizers[player].step()
        seen[player] = terms
    return seen


def test_the_student_first_and_then_only_the_game(make_method, batch, pool) -> None:
    """Neither weights nor what batch norm and spectral norm keep of those who wait."""
    networks, method = ("student", "generator", "discriminator"), make_method("cgan").train()
    for progress, players in ((0.0, {"student"}), (0.9, {"discriminator", "generator"})):
        method.prepare(*pool, progress)
        before = {name: weights(getattr(method, name)) for name in networks}
        assert set(play(method, batch)) == players
        moved = {n for n in networks if not same_weights(before[n], weights(getattr(method, n)))}
        assert moved == players


def test_first_terms_of_cgan_by_hand(make_method, batch, pool) -> None:
    method, twin = (in_stage(make_method("cgan"), pool, 2) for _ in range(2))
    method.memory["weights"] = torch.ones(60)
    method.memory["weights"][batch.index[1]] = 0  # of four real images three are believed
    torch.manual_seed(4)
    seen = play(method, batch)
    torch.manual_seed(4)
    names = method.memory["names"][batch.index[:4]]
    fakes = twin.generator(torch.randn(4, 4), names)
    scores = twin.discriminator(torch.cat([batch.images[:4], fakes]), torch.cat([names, names]))
    believed = torch.tensor([0, 2, 3])
    got = seen["discriminator"]
    torch.testing.assert_close(got["real"], (1 - scores[believed]).clamp(min=0).mean())
    torch.testing.assert_close(got["fake"], (1 + scores[4:]).clamp(min=0).mean())
    # The generator meets the discriminator after its step.
    after = -method.discriminator.eval()(fakes, names).mean()
    torch.testing.assert_close(seen["generator"]["adversarial"], after)
    assert not torch.allclose(after, -scores[4:].mean(), rtol=1e-6)
    # The student reads one in four.
    read = twin.student.eval()(fakes[:1]).log_softmax(1)[0, names[0]]
    torch.testing.assert_close(seen["generator"]["request"], -read)


def test_the_generator_hears_the_student_as_loudly_as_asked(make_method, batch, pool) -> None:
    drawn = {}
    for weight in (0.0, 0.2):
        for turned in (False, True):
            method = in_stage(make_method("cgan", request_weight=weight), pool, 2)
            if turned:
                with torch.no_grad():
                    method.student.class_head.weight.neg_()
            torch.manual_seed(4)
            play(method, batch)
            drawn[weight, turned] = weights(method.generator)
    assert same_weights(drawn[0.0, False], drawn[0.0, True])
    assert not same_weights(drawn[0.2, False], drawn[0.2, True])


def test_the_judgement_is_about_an_image_and_its_class(make_method, batch, pool) -> None:
    """Other names, the same images and the same noise: every term of the game is another."""
    seen = []
    for shift in (0, 0, 1):
        method = in_stage(make_method("cgan", keep_later=1.0), pool, 2)
        method.memory["names"] = (method.memory["names"] + shift) % 10
        torch.manual_seed(4)
        seen.append(
            {k: v.item() for terms in play(method, batch).values() for k, v in terms.items()}
        )
    assert seen[0] == seen[1] and set(seen[0]) == {"real", "fake", "adversarial", "request"}
    assert all(seen[0][term] != seen[2][term] for term in seen[0])


def test_a_batch_without_a_sure_name_still_has_fakes(make_method, batch, pool) -> None:
    method = in_stage(make_method("cgan"), pool, 2)
    method.memory["weights"] = torch.zeros(60)
    terms = play(method, batch)["discriminator"]
    assert terms["real"].item() == 0 and terms["fake"] > 0


def test_the_game_has_rates_and_memories_of_its_own(make_method) -> None:
    rates = {"student": 0.01, "discriminator": 0.002, "generator": 0.003}
    settings = {"learning_rate": 0.01, "discriminator_rate": 0.002, "generator_rate": 0.003}
    method = make_method("cgan", **settings, beta1=0.7)
    groups = {player: o.param_groups[0] for player, o in method.optimizers().items()}
    assert {player: group["lr"] for player, group in groups.items()} == rates
    betas = {player: group["betas"][0] for player, group in groups.items()}
    assert betas == {"student": 0.7, "discriminator": 0.0, "generator": 0.0}


def test_rates_of_cgan_fall_once_for_the_student_and_once_for_the_game(make_method) -> None:
    method = make_method("cgan", relabel_at=0.2, decay_from=0.5)
    rates = [method.rate_factor(p) for p in (0.0, 0.1, 0.2, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([1, 0.5, 1, 1, 0.5, 0])
    assert method.rate_factor(0.2 - 1e-6) < 1e-6
    whole = make_method("cgan", relabel_at=1.0)
    assert whole.rate_factor(0.5) == pytest.approx(0.5) and whole.rate_factor(1.0) == 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_half_of_an_odd_batch_is_a_batch(batch_size, make_method, tiny_split: LabelSplit) -> None:
    method = make_method("cgan", batch_size=batch_size)
    history = train(method, tiny_split, steps=4, record_every=1, progress=False)
    assert all(map(math.isfinite, history["fake"][1:])) and history["fake"][0] is None


# ---- dpt ----


def denoising(make_method, pool, **settings) -> Method:
    """Take a tiny dpt to where its denoiser learns."""
    method = make_method("dpt", **settings).train()
    method.prepare(*pool, 0.0)
    assert method.prepare(*pool, 0.5) is True
    return method


def retraining(make_method, pool, **settings) -> Method:
    """Take a tiny dpt to where its student meets drawings."""
    method = denoising(make_method, pool, **settings)
    assert method.prepare(*pool, 0.9) is True
    return method


def test_the_student_then_the_denoiser_then_the_student(make_method, batch, pool) -> None:
    networks, method = ("student", "denoiser"), make_method("dpt").train()
    for progress, player in ((0.0, "student"), (0.5, "denoiser"), (0.9, "student")):
        method.prepare(*pool, progress)
        before = {name: weights(getattr(method, name)) for name in networks}
        assert set(play(method, batch)) == {player}
        moved = {n for n in networks if not same_weights(before[n], weights(getattr(method, n)))}
        assert moved == {player}


def test_first_denoising_term_by_hand(make_method, batch, pool) -> None:
    method = denoising(make_method, pool, drop=0.5, keep_later=1.0)
    method.memory["weights"][batch.index[:3]] = 0
    torch.manual_seed(4)
    ((player, terms),) = method.updates(batch)
    torch.manual_seed(4)
    kept = torch.rand(8) >= 0.5
    kept[:3] = False  # nobody is sure what these show
    assert 0 < kept.sum() < 5
    labels = method.memory["names"][batch.index].clone()
    labels[~kept] = 10
    images, noise = 2 * batch.images - 1, torch.randn(8, 1, 28, 28)
    times = torch.randn(8).sigmoid()
    t = times.view(8, 1, 1, 1)
    velocity = method.denoiser(images + t * (noise - images), times, labels)
    assert player == "denoiser" and list(terms) == ["denoising"]
    torch.testing.assert_close(terms["denoising"], ((noise - images - velocity) ** 2).mean())


@pytest.mark.parametrize(("settings", "matter"), [({"drop": 1.0}, False), ({"drop": 0.0}, True)])
def test_a_class_that_is_always_dropped_does_not_matter(
    settings, matter, make_method, batch, pool
) -> None:
    """Nor does that of any image whose name is not sure, whatever is dropped."""
    final, rows = [], []
    for shift in (0, 1):
        method = denoising(make_method, pool, keep_later=1.0, **settings)
        method.memory["names"] = (method.memory["names"] + shift) % 10
        torch.manual_seed(0)
        play(method, batch)
        final.append(weights(method.denoiser))
        rows.append(method.denoiser.class_embedding.weight.grad.abs().sum(1) > 0)
    assert same_weights(*final) != matter
    assert rows[0][10] != matter and rows[0][:10].any() == matter


def test_guidance_by_hand(make_method) -> None:
    """At 1 it is what the class says, at 0 what no class says, and else on the line of both."""
    noisy, labels = torch.randn(3, 1, 28, 28), torch.tensor([0, 4, 9])
    said = {g: make_method("dpt", guidance=g).velocity(noisy, 0.3, labels) for g in (0.0, 1.0, 3.0)}
    denoiser, times = make_method("dpt").denoiser, torch.full((3,), 0.3)
    torch.testing.assert_close(said[1.0], denoiser(noisy, times, labels))
    torch.testing.assert_close(said[0.0], denoiser(noisy, times, torch.full((3,), 10)))
    torch.testing.assert_close(said[3.0], 3 * said[1.0] - 2 * said[0.0])
    assert not torch.allclose(said[1.0], said[0.0], rtol=1e-3)


@pytest.mark.parametrize(("guidance", "images"), [(1.0, 5), (2.0, 10), (0.0, 10)])
def test_a_drawing_costs_two_questions_a_step_but_the_last_and_guidance_doubles_them(
    guidance, images, make_method, monkeypatch
) -> None:
    method, asked = make_method("dpt", guidance=guidance, n_steps=3), []
    forward = method.denoiser.forward
    monkeypatch.setattr(
        method.denoiser, "forward", lambda x, *given: asked.append(len(x)) or forward(x, *given)
    )
    method.generate(torch.zeros(5, dtype=torch.int64))
    assert asked == [images] * 5, "two in each step but the last"


def test_without_guidance_no_class_at_all_is_drawn(make_method) -> None:
    method = make_method("dpt", guidance=0.0)
    drawn = []
    for label in (0, 7):
        torch.manual_seed(0)
        drawn.append(method.generate(torch.tensor([label])))
    assert torch.equal(*drawn)


def test_the_way_back_ends_where_the_closed_form_says() -> None:
    """Of N(mean, size^2): noise z becomes mean + size * z; Heun's error falls as the square."""
    mean, size, noise = -0.7, 0.5, torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)

    def best(noisy: torch.Tensor, time: float) -> torch.Tensor:
        variance = (1 - time) ** 2 * size**2 + time**2
        surprise = (noisy - (1 - time) * mean) / variance
        return (time - (1 - time) * size**2) * surprise - mean

    wrong = [
        (follow_back(best, noise, n) - (mean + size * noise)).abs().max().item()
        for n in (10, 64, 128)
    ]
    assert wrong[0] < 0.02
    assert wrong[1] / wrong[2] == pytest.approx(4, rel=0.1)


def test_who_knows_that_pixels_are_normal_draws_such_pixels(make_method, monkeypatch) -> None:
    """From noise to an image, and from pixels between -1 and 1 to pixels between 0 and 1."""
    method, mean, size = make_method("dpt", n_steps=32), 0.2, 0.1

    def best(noisy: torch.Tensor, times: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        t = times.view(-1, 1, 1, 1)
        surprise = (noisy - (1 - t) * mean) / ((1 - t) ** 2 * size**2 + t**2)
        return (t - (1 - t) * size**2) * surprise - mean

    monkeypatch.setattr(method.denoiser, "forward", best)
    images = method.generate(torch.full((20,), UNLABELED))
    assert images.mean().item() == pytest.approx(0.6, abs=0.005)
    assert images.std().item() == pytest.approx(0.05, rel=0.1)


def test_the_way_back_never_asks_at_time_0() -> None:
    asked = []
    follow_back(lambda noisy, time: asked.append(time) or noisy, torch.randn(2, 1, 4, 4), 3)
    assert asked == pytest.approx([1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])


def test_a_straight_way_back_takes_one_step() -> None:
    image, noise = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(follow_back(lambda *_: noise - image, noise, 1), image)


def test_drawings_join_the_pool_once_and_are_small(make_method, pool) -> None:
    method = denoising(make_method, pool)
    names, sure = method.memory["names"], method.memory["weights"]
    method.prepare(*pool, 0.9)
    drawings = method.memory["drawings"]
    assert drawings.dtype == torch.uint8 and drawings.shape == (20, 1, 28, 28)
    assert torch.equal(method.memory["names"][:60], names), "real images keep their names"
    assert torch.equal(method.memory["weights"], torch.cat([sure, torch.ones(20)]))
    assert sorted(method.memory["names"][60:].tolist()) == sorted([*range(10)] * 2)
    assert method.prepare(*pool, 0.95) is False and method.memory["drawings"] is drawings


def test_the_student_meets_drawings_with_the_class_that_was_asked_for(
    make_method, batch, pool
) -> None:
    method = retraining(make_method, pool, share=0.5)
    torch.manual_seed(4)
    joined = method._join(batch)
    chosen = joined.index[:4] - 60
    assert torch.equal(joined.images[:4], to_float(method.memory["drawings"][chosen]))
    assert torch.equal(joined.images[4:], batch.images[4:])
    assert torch.equal(joined.index[4:], batch.index[4:])
    requests = torch.arange(10).repeat(2)
    assert torch.equal(method.memory["names"][joined.index[:4]], requests[chosen])
    everything = torch.cat([method._join(batch).index[:4] for _ in range(60)])
    assert set(everything.tolist()) == set(range(60, 80)), "every drawing in time"


@pytest.mark.parametrize(("share", "sees"), [(0.0, False), (0.25, True), (1.0, True)])
def test_a_share_of_zero_never_sees_a_drawing(share, sees, make_method, batch, pool) -> None:
    final = []
    for inverted in (False, True):
        method = retraining(make_method, pool, share=share)
        if inverted:
            method.memory["drawings"] = 255 - method.memory["drawings"]
        torch.manual_seed(0)
        play(method, batch)
        final.append(weights(method.student))
    assert same_weights(*final) != sees
    propagated = in_stage(make_method("propagate", keep_later=0.93), pool, 2)
    with torch.no_grad():
        propagated.student.load_state_dict(method.student.state_dict())
    torch.manual_seed(0)
    ((_, alone),) = propagated.updates(batch)
    torch.manual_seed(0)
    ((_, terms),) = method.updates(batch)
    assert torch.equal(alone["propagated"], terms["propagated"]) != sees


@pytest.mark.parametrize("switch", [{"drop": 0.9}, {"guidance": 1.0}, {"share": 0.0},
                                    {"n_steps": 3}, {"n_drawings": 3}])  # fmt: skip
def test_every_setting_of_dpt_changes_the_run(switch, make_method, tiny_split) -> None:
    final = []
    for settings in ({}, switch):
        method = make_method("dpt", **settings)
        train(method, tiny_split, steps=6, progress=False)
        final.append(weights(method))
    assert not same_weights(*final)


def test_rates_of_dpt_fall_to_0_in_each_of_three_stages(make_method) -> None:
    method = make_method("dpt", relabel_at=0.2, retrain_at=0.8)
    rates = [method.rate_factor(p) for p in (0.0, 0.1, 0.2, 0.5, 0.8, 0.9)]
    assert rates == pytest.approx([1, 0.5, 1, 0.5, 1, 0.5])
    assert max(method.rate_factor(p - 1e-6) for p in (0.2, 0.8, 1.0)) < 1e-6


@pytest.mark.parametrize(("relabel_at", "retrain_at"), [(0.7, 0.3), (0.5, 0.5), (0.2, 1.0), (1, 1)])
def test_stages_that_are_left_out_are_left_out(
    relabel_at, retrain_at, make_method, tiny_split
) -> None:
    method = make_method("dpt", relabel_at=relabel_at, retrain_at=retrain_at)
    history = train(method, tiny_split, steps=10, record_every=1, progress=False)
    n_denoised = sum(value is not None for value in history.columns.get("denoising", []))
    assert n_denoised == max(0, round(10 * (retrain_at - relabel_at)))
    assert ("drawings" in method.memory) == (relabel_at < 1 and retrain_at < 1)


def test_a_run_that_stopped_among_its_drawings_goes_on_bit_for_bit(
    make_method, tiny_split, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", -1.0)
    settings = {"steps": 6, "record_every": 1, "progress": False}
    whole = make_method("dpt", retrain_at=0.5)
    train(whole, tiny_split, **settings)

    def stop(step: int, _: Method) -> None:
        if step == 5:
            raise KeyboardInterrupt

    method = make_method("dpt", retrain_at=0.5)
    with pytest.raises(KeyboardInterrupt):
        train(method, tiny_split, states=tmp_path, on_record=stop, **settings)
    step, tensors, _ = load_state(tmp_path)
    assert step == 4 and torch.equal(tensors["memory.drawings"], whole.memory["drawings"])
    again = make_method("dpt", retrain_at=0.5, seed=9)
    train(again, tiny_split, states=tmp_path, resume=True, **settings)
    assert same_weights(weights(whole), weights(again))
