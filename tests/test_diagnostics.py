"""The diagnostics: each planted bug is named by its own test, and healthy methods by none."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import same_weights, weights, within_reach
from torch import nn

from semigen_lib.data import Batch, BatchStream, split_labels, to_float
from semigen_lib.diagnostics import (
    HeadStart,
    diagnose,
    find_companions,
    find_extra_labels,
    find_frozen_player,
    find_inverted_targets,
    find_missing_detach,
    find_squashed_logits,
    find_vanishing_gradient,
    find_wrong_range,
    head_starts,
)
from semigen_lib.losses import TargetCode, classification_loss, least_squares_loss
from semigen_lib.methods import METHODS
from semigen_lib.methods import combined as combined_module
from semigen_lib.methods.combined import Combined
from semigen_lib.methods.lsgan import Lsgan
from semigen_lib.methods.supervised import Supervised
from semigen_lib.training import train

Updates = Iterator[tuple[str, dict[str, torch.Tensor]]]


# ---- methods with one bug each ----


class NoDetach(Lsgan):
    def updates(self, batch: Batch) -> Updates:
        fakes = self.generator(self.noise(len(batch.images)))
        real, fake = self.discriminator(batch.images), self.discriminator(fakes)
        terms = {"real": least_squares_loss(real, 1.0), "fake": least_squares_loss(fake, 0.0)}
        yield "discriminator", terms
        yield "generator", {"adversarial": least_squares_loss(self.discriminator(fakes), 1.0)}


class FrozenGenerator(Lsgan):
    def updates(self, batch: Batch) -> Updates:
        with torch.no_grad():
            fakes = self.generator(self.noise(len(batch.images)))
        real, fake = self.discriminator(batch.images), self.discriminator(fakes)
        wanted = self.code
        yield (
            "discriminator",
            {
                "real": least_squares_loss(real, wanted.real),
                "fake": least_squares_loss(fake, wanted.fake),
            },
        )
        score = self.discriminator(fakes)
        yield "generator", {"adversarial": least_squares_loss(score, wanted.generator)}


class Inverted(Lsgan):
    def __init__(self, config, image_shape, n_classes) -> None:
        super().__init__(config, image_shape, n_classes)
        self.code = TargetCode(real=0.0, fake=1.0, generator=1.0)


class Saturating(Lsgan):
    sign = -1.0  # of the score in the generator's loss: log(1 - D)

    def updates(self, batch: Batch) -> Updates:
        fakes = self.generator(self.noise(len(batch.images)))
        real, fake = self.discriminator(batch.images), self.discriminator(fakes.detach())
        yield "discriminator", {"real": F.softplus(-real).mean(), "fake": F.softplus(fake).mean()}
        score = self.discriminator(fakes)
        yield "generator", {"adversarial": self.sign * F.softplus(-self.sign * score).mean()}


class NotSaturating(Saturating):
    sign = 1.0  # -log D


class TwiceSoftmax(Supervised):
    def updates(self, batch: Batch) -> Updates:
        read = self.predict(batch.labeled_images)
        yield "classifier", {"classification": classification_loss(read, batch.labels)}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return super().predict(images).softmax(1)


class Normed(Supervised):
    remembers = True

    def __init__(self, config, image_shape, n_classes) -> None:
        super().__init__(config, image_shape, n_classes)
        norm = nn.BatchNorm1d(16, track_running_stats=self.remembers)
        layers = [nn.Flatten(), nn.Linear(math.prod(image_shape), 16), norm, nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Linear(16, n_classes))

    def updates(self, batch: Batch) -> Updates:
        read = self.encoder(batch.labeled_images)
        yield "classifier", {"classification": classification_loss(read, batch.labels)}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)


class Forgetful(Normed):
    remembers = False


class Scaled(BatchStream):
    factor, shift = 1.0, 0.0

    def at(self, step: int) -> Batch:
        batch = super().at(step)
        images, labeled = (self.factor * x + self.shift for x in batch[:2])
        return Batch(images, labeled, batch.labels)


class Bytes(Scaled):
    factor = 255.0


class Signed(Scaled):
    factor, shift = 2.0, -1.0


class DividedTwice(Scaled):
    factor = 1 / 255


class Leaky(BatchStream):
    """Its labelled batches come from the unlabelled images, by labels it must not have."""

    def at(self, step: int) -> Batch:
        batch = super().at(step)
        return batch._replace(labeled_images=batch.images, labels=batch.labels[: len(batch.images)])


BROKEN = {
    NoDetach: "missing detach",
    FrozenGenerator: "frozen player",
    Inverted: "inverted targets",
    Saturating: "vanishing gradient",
    TwiceSoftmax: "double softmax",
    Forgetful: "batch norm in the wrong mode",
}
BROKEN_STREAMS = {
    Bytes: "wrong input range",
    Signed: "wrong input range",
    DividedTwice: "wrong input range",
    Leaky: "label leak",
}
HEALTHY = [*METHODS, NotSaturating, Normed]


def named(findings: list[str]) -> list[str]:
    """Return the bugs without the evidence."""
    assert all(finding.count("\n") == 0 and ": " in finding for finding in findings)
    return [finding.partition(": ")[0] for finding in findings]


def stream_of(split, kind=BatchStream, seed=0) -> BatchStream:
    return kind(split, batch_size=8, labeled_batch_size=10, seed=seed)


# ---- all together ----


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", HEALTHY, ids=lambda kind: getattr(kind, "__name__", kind))
def test_healthy_methods_get_no_finding(kind, seed, make_method, tiny_data) -> None:
    split = split_labels(tiny_data, 20, seed)
    method = make_method(kind, seed=seed)
    assert diagnose(method, split, stream_of(split, seed=seed)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_trained_on_real_digits_they_get_none_either(name, make_method, mnist) -> None:
    split = within_reach(split_labels(mnist, 100, 0), METHODS[name])
    method = make_method(name, batch_size=32, labeled_batch_size=32)
    train(method, split, steps=30, progress=False)
    assert diagnose(method, split) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_each_planted_bug_is_named_and_no_other(kind, seed, make_method, tiny_split) -> None:
    assert named(diagnose(make_method(kind, seed=seed), tiny_split)) == [BROKEN[kind]]


@pytest.mark.parametrize("kind", BROKEN_STREAMS, ids=lambda kind: kind.__name__)
def test_each_bug_of_the_batches_is_named_and_no_other(kind, make_method, tiny_split) -> None:
    method = make_method("supervised")
    findings = diagnose(method, tiny_split, stream_of(tiny_split, kind))
    assert named(findings) == [BROKEN_STREAMS[kind]]


def test_several_bugs_are_several_findings(make_method, tiny_split) -> None:
    class Both(FrozenGenerator, Inverted):
        pass

    findings = diagnose(make_method(Both), tiny_split, stream_of(tiny_split, Signed))
    assert named(findings) == ["wrong input range", "frozen player", "inverted targets"]


@pytest.mark.parametrize("kind", ["combined", Normed], ids=str)
def test_diagnosis_leaves_everything_as_it_was(kind, make_method, tiny_split) -> None:
    method = make_method(kind).train()
    for parameter in method.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before, noise = weights(method), torch.get_rng_state()
    diagnose(method, tiny_split)
    assert method.training and same_weights(before, weights(method))
    assert torch.equal(noise, torch.get_rng_state())
    assert all((parameter.grad == 7.0).all() for parameter in method.parameters())
    assert not any(module._forward_pre_hooks for module in method.modules())
    method.eval()
    diagnose(method, tiny_split)
    assert not any(module.training for module in method.modules())


def test_diagnosis_does_not_depend_on_the_training_so_far(make_method, tiny_split) -> None:
    """A cooperation that is over looks like peace; fresh weights show it."""
    method = make_method(Inverted)
    train(method, tiny_split, steps=40, progress=False)
    assert named(diagnose(method, tiny_split)) == ["inverted targets"]


# ---- images and labels ----


@pytest.mark.parametrize("low_high", [(0, 1), (0.2, 0.9), (0, 0.06)])
def test_images_in_range(low_high) -> None:
    assert find_wrong_range(torch.tensor(low_high)) is None


@pytest.mark.parametrize("low_high", [(0, 255), (-1, 1), (-0.4, 2.8), (0, 1 / 255), (0, 1.01)])
def test_images_out_of_range(low_high) -> None:
    finding = find_wrong_range(torch.tensor(low_high))
    assert finding.startswith("wrong input range: expected images that fill [0, 1], got ")
    assert f"{low_high[0]:.3g} to {low_high[1]:.3g}" in finding


def test_labelled_images_are_looked_at_too(make_method, tiny_split) -> None:
    class Half(BatchStream):
        def at(self, step: int) -> Batch:
            batch = super().at(step)
            return batch._replace(labeled_images=255 * batch.labeled_images)

    findings = diagnose(make_method("supervised"), tiny_split, stream_of(tiny_split, Half))
    assert named(findings) == ["wrong input range"]


def test_labels_are_counted(tiny_split, tiny_data) -> None:
    stream = stream_of(tiny_split)
    assert find_extra_labels(stream, 20) is None
    assert "expected 19 labelled images, got 20" in find_extra_labels(stream, 19)
    everything = BatchStream(split_labels(tiny_data, None, 0), labeled_batch_size=7)
    assert "got 60" in find_extra_labels(everything, 20)
    none = BatchStream(tiny_split, labeled_batch_size=0)
    assert find_extra_labels(none, 20) is None


# ---- outputs ----


def test_probabilities_are_no_logits() -> None:
    logits = torch.randn(6, 10)
    assert find_squashed_logits(logits) is None
    assert find_squashed_logits(logits.abs()) is None
    assert find_squashed_logits(logits.log_softmax(1)) is None, "a second log-softmax is harmless"
    assert "1.4612" in find_squashed_logits(logits.softmax(1))


@pytest.mark.parametrize("n_classes", [2, 10, 100])
def test_the_floor_is_the_loss_of_certainty(n_classes) -> None:
    certain = torch.eye(n_classes)
    floor = classification_loss(certain, torch.arange(n_classes)).item()
    assert f"{floor:.4f}" in find_squashed_logits(certain)


def test_companions_matter_to_batch_norm_only_while_it_trains(tiny_split) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 3))
    images = stream_of(tiny_split).at(0).images
    assert find_companions(network.train(), images).startswith("batch norm in the wrong mode")
    assert find_companions(network.eval(), images) is None


# ---- players ----


def test_no_label_in_the_batch_freezes_a_classifier(make_method, tiny_split) -> None:
    batch = BatchStream(tiny_split, batch_size=4, labeled_batch_size=4).at(0)
    method = make_method("supervised")
    assert find_frozen_player(method, batch) is None
    finding = find_frozen_player(method, batch._replace(labels=torch.full_like(batch.labels, -1)))
    assert finding == "frozen player: no gradient of classification reaches the classifier"


def test_missing_detach_says_how_hard_the_term_pulls(make_method, tiny_split) -> None:
    method, batch = make_method(NoDetach).train(), stream_of(tiny_split).at(0)
    torch.manual_seed(3)
    finding = find_missing_detach(method, batch)
    torch.manual_seed(3)
    fakes = method.generator(method.noise(len(batch.images)))
    least_squares_loss(method.discriminator(fakes), 0.0).backward()
    pull = math.sqrt(sum(p.grad.square().sum().item() for p in method.generator.parameters()))
    assert finding == (
        "missing detach: the discriminator's term fake pulls at the generator behind it, "
        f"by {pull:.2g}"
    )


def test_one_pass_for_images_and_drawings_names_the_right_term(make_method, tiny_split) -> None:
    """The scores of the images come from the same tensor and pull at nobody."""

    class OnePass(Lsgan):
        def updates(self, batch: Batch) -> Updates:
            fakes = self.generator(self.noise(len(batch.images)))
            real, fake = self.discriminator(torch.cat([batch.images, fakes])).chunk(2)
            terms = {"real": least_squares_loss(real, 1.0), "fake": least_squares_loss(fake, 0.0)}
            yield "discriminator", terms

    finding = find_missing_detach(make_method(OnePass), stream_of(tiny_split).at(0))
    assert "the discriminator's term fake pulls at the generator" in finding


def test_a_shared_term_may_run_through_both(make_method, tiny_split) -> None:
    """The decoder's reconstruction reaches the encoder, who minimises it too."""

    class Alone(Combined):
        def updates(self, batch: Batch) -> Updates:
            for player, terms in super().updates(batch):
                if player == "encoder":
                    terms = {name: t for name, t in terms.items() if name != "reconstruction"}
                yield player, terms

    batch = stream_of(tiny_split).at(0)
    assert find_missing_detach(make_method("combined"), batch) is None
    finding = find_missing_detach(make_method(Alone), batch)
    assert "the decoder's term reconstruction pulls at the encoder" in finding


def test_head_start_of_one_player_is_none(make_method, tiny_split) -> None:
    for name in ("supervised", "autoencoder"):
        assert head_starts(make_method(name), stream_of(tiny_split)) == []


def test_head_starts_of_a_game(make_method, tiny_split) -> None:
    (start,) = head_starts(make_method("lsgan"), stream_of(tiny_split))
    assert start[:3] == ("discriminator", "generator", "adversarial")
    assert start.before > 0.2 and start.after > 0.2
    assert start.gradient_before > 0 and start.gradient_after > 0
    found = head_starts(make_method("combined"), stream_of(tiny_split))
    assert [start[:3] for start in found] == [
        ("encoder", "decoder", "adversarial"),
        ("encoder", "decoder", "request"),
    ]


def test_head_starts_see_cooperation_in_combined_too(
    make_method, tiny_split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combined_module, "LSGAN_CODE", TargetCode(0.0, 1.0, 1.0))
    assert named(diagnose(make_method("combined"), tiny_split)) == ["inverted targets"]


def start(after: float, gradient_after: float) -> list[HeadStart]:
    return [HeadStart("leader", "follower", "term", 0.5, 2.0, after, gradient_after)]


def test_verdicts_on_head_starts() -> None:
    assert find_inverted_targets([]) is None and find_vanishing_gradient([]) is None
    for after, gradient in [(0.5, 2.0), (0.05, 0.2), (6.0, 40.0), (-3.0, 1.0)]:
        assert find_inverted_targets(start(after, gradient)) is None
        assert find_vanishing_gradient(start(after, gradient)) is None
    assert find_inverted_targets(start(0.04, 2.0)) == (
        "inverted targets: the leader alone learnt, and term of the follower is 0.0400: "
        "nobody plays against anybody"
    )
    assert find_vanishing_gradient(start(-0.01, 0.1)) == (
        "vanishing gradient: term of the follower falls from 2 to 0.1 when the leader is ahead"
    )
    assert find_vanishing_gradient(start(0.001, 0.1)) is None, "content, not lost"


def test_a_gradient_that_is_gone_altogether_is_seen(make_method, tiny_split) -> None:
    class Dead(Lsgan):
        """The generator feels nothing of scores below -1, and the discriminator gives -3."""

        def updates(self, batch: Batch) -> Updates:
            for player, terms in super().updates(batch):
                if player == "generator":
                    fakes = self.generator(self.noise(len(batch.images)))
                    terms = {"adversarial": 2 - F.relu(1 + self.discriminator(fakes)).mean()}
                yield player, terms

    method = make_method(Dead, fake_target=-3.0)
    (start,) = head_starts(method, stream_of(tiny_split))
    assert start.gradient_before > 0 and start.gradient_after == 0
    assert named(diagnose(method, tiny_split)) == ["vanishing gradient"]


def test_to_float_is_the_healthy_range(tiny_split) -> None:
    assert find_wrong_range(to_float(tiny_split.images)) is None
