"""The loop: repeatable, resumable, deaf to hidden labels, and strict about what is not a number."""

import csv
import dataclasses
import io
import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import same_weights, stages, weights, within_reach
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from semigen_lib import training
from semigen_lib.checkpoint import CheckpointError, load_state
from semigen_lib.data import (
    UNLABELED,
    Batch,
    BatchStream,
    ImageData,
    ImageSet,
    split_labels,
    to_float,
)
from semigen_lib.evaluation import draw
from semigen_lib.methods import METHODS
from semigen_lib.methods.method import Method, MethodConfig
from semigen_lib.methods.supervised import Supervised
from semigen_lib.models import Decoder
from semigen_lib.training import (
    History,
    TrainingError,
    average_weights,
    check_duration,
    rate_factor,
    summarise,
    train,
    training_step,
)

every_method = pytest.mark.parametrize("name", METHODS)
every_player = pytest.mark.parametrize(
    ("name", "player"), [(name, player) for name in METHODS for player in METHODS[name].players]
)


@dataclass(frozen=True)
class ToyConfig(MethodConfig):
    latent_dim: int = 4
    noisy_weight: float = 1.0
    batch_size: int = 8
    labeled_batch_size: int = 4


class Toy(Method):
    """Two players of a few weights, with noise, batch norm and a buffer of integers."""

    Config = ToyConfig
    players = {"left": ("first",), "right": ("second", "norm")}

    def __init__(self, config, image_shape, n_classes) -> None:
        super().__init__(config, image_shape, n_classes)
        self.first, self.second, self.norm = nn.Linear(4, 2), nn.Linear(2, 1), nn.BatchNorm1d(2)
        self.calls = 0

    def updates(self, batch: Batch) -> Iterator[tuple[str, dict]]:
        self.calls += 1
        brightness = batch.images.flatten(1).mean(1, keepdim=True)
        hidden = self.first(self.noise(len(batch.images)))
        still = self.second(self.norm(hidden.detach()))
        yield "left", {"noisy": (hidden - brightness).square().mean(), "size": hidden.abs().mean()}
        yield "right", {"fit": (still + hidden.detach().sum(1, True) - 1).square().mean()}


def run(make_method, split, kind=Toy, *, weights_seed=0, settings=None, **arguments):
    """Train a new method and return its history, without its clock, and its weights."""
    method = make_method(kind, seed=weights_seed, **(settings or {}))
    arguments = {"steps": 6, "record_every": 2, "progress": False} | arguments
    history = train(method, split, **arguments)
    return timeless(history), weights(method)


def timeless(history: History) -> dict[str, list[float]]:
    return {name: values for name, values in history.items() if name != "seconds"}


# ---- the same again ----


@every_method
def test_same_seed_twice_is_the_same_run_bit_for_bit(name, make_method, tiny_split) -> None:
    first, second = (run(make_method, tiny_split, name, seed=1) for _ in range(2))
    assert first[0] == second[0] and same_weights(first[1], second[1])
    other = run(make_method, tiny_split, name, seed=2)
    assert first[0] != other[0] and not same_weights(first[1], other[1])


def test_the_seed_is_all_that_matters_of_the_past(make_method, tiny_split) -> None:
    method = make_method(Toy)
    torch.randn(17)  # other cells ran before
    history = train(method, tiny_split, steps=6, record_every=2, progress=False)
    assert timeless(history) == run(make_method, tiny_split)[0]


# ---- players ----


@every_player
def test_a_player_moves_nobody_else(name, player, make_method, tiny_split) -> None:
    """Neither weights nor gradients: those of the others are marked, and the marks stay."""

    class Alone(METHODS[name]):
        def updates(self, batch):
            return ((who, terms) for who, terms in super().updates(batch) if who == player)

    method = make_method(Alone).train()
    for parameter in method.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    own = {id(p) for p in method.parameters_of(player)}
    batch = BatchStream(tiny_split, batch_size=8, labeled_batch_size=10).at(0)
    for _ in stages(method, batch):
        training_step(method, batch, method.optimizers())
    moved = 0
    for parameter_name, parameter in method.named_parameters():
        same = torch.equal(parameter, before[parameter_name])
        if id(parameter) in own:
            moved += not same
        else:
            assert same, f"{player} moved {parameter_name}"
            assert parameter.grad.eq(7).all(), f"{player} left a gradient in {parameter_name}"
    assert moved


def test_a_later_player_meets_the_earlier_players_new_weights(make_method, tiny_split) -> None:
    class Watching(Toy):
        def updates(self, batch):
            before = self.first.weight.detach().clone()
            for player, terms in super().updates(batch):
                if player == "right":
                    self.met_new_weights = not torch.equal(before, self.first.weight)
                yield player, terms

    method = make_method(Watching).train()
    batch = BatchStream(tiny_split, batch_size=8).at(0)
    terms = training_step(method, batch, method.optimizers())
    assert method.met_new_weights
    assert list(terms) == ["noisy", "size", "fit"]
    assert not any(term.requires_grad for term in terms.values())


def test_gradients_do_not_pile_up(make_method, tiny_split) -> None:
    """Two steps of one batch with a rate of zero leave the gradient of one."""
    batch = BatchStream(tiny_split, batch_size=8).at(0)
    method = make_method(Toy, learning_rate=0.0).train()
    optimizers, gradients = method.optimizers(), []
    for _ in range(2):
        torch.manual_seed(0)
        training_step(method, batch, optimizers)
        gradients.append([p.grad.clone() for p in method.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# ---- nobody waits for the device ----


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the program wait until a GPU has caught up: reading a number of it.

    What lies on the CPU wherever the weights are may be read.
    """

    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}
    armed = True

    def __init__(self, run) -> None:
        super().__init__()
        self.run, self.derived = run, []  # from numbers at hand, as "not read" is

    def is_at_hand(self, number: object) -> bool:
        known = [self.run.averaged.n_averaged, *self.run.method.memory.values(), *self.derived]
        return torch.is_tensor(number) and any(
            number.data_ptr() == other.data_ptr() for other in known if not other.dim()
        )

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.__name__.partition(".")[0]
        masks = name == "index" and any(
            i.dtype == torch.bool for i in arguments[1] if i is not None
        )
        if self.armed and (name in self.waiting or masks):
            assert self.is_at_hand(arguments[0]), name
        result = function(*arguments, **(options or {}))
        if torch.is_tensor(result) and arguments and self.is_at_hand(arguments[0]):
            self.derived.append(result)
        return result


@every_method
def test_no_step_waits_for_the_device(name, make_method, tiny_split) -> None:
    run = training._Run(make_method(name), tiny_split, 0, 10, None)
    mode = NoWaiting(run)
    run.method.prepare = quietly(mode, run.method.prepare)  # a new stage may look around
    for _ in range(10):
        with mode, pytest.MonkeyPatch.context() as patch:
            # The optimisers are PyTorch's, and count their steps on the CPU.
            for optimizer in run.optimizers.values():
                patch.setattr(optimizer, "step", quietly(mode, optimizer.step))
            # It looks whether labels are in range; on a GPU a kernel does.
            patch.setattr(functional, "one_hot", quietly(mode, functional.one_hot))
            run.make_step("fp32")


def quietly(mode: NoWaiting, function):
    def unwatched(*arguments):
        armed, mode.armed = mode.armed, False
        result = function(*arguments)
        mode.armed = armed
        return result

    return unwatched


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@every_method
def test_gpu_no_step_waits(name, make_method, tiny_split) -> None:
    run = training._Run(make_method(name).to("cuda"), tiny_split, 0, 10, None)
    run.make_step("auto")
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.make_step("auto")
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- terms and weights ----


@every_method
def test_every_term_is_in_the_history(name, make_method, tiny_split) -> None:
    batch = BatchStream(tiny_split, batch_size=8, labeled_batch_size=10).at(0)
    method = make_method(name)
    names, n_stages = {}, 0
    for _ in stages(method.train(), batch):
        names |= training_step(method, batch, method.optimizers())
        n_stages += 1
    history = train(make_method(name), tiny_split, steps=3, record_every=2, progress=False)
    assert list(history) == ["step", "seconds", *names]
    assert history["step"] == [2, 3]
    for column in history.values():
        assert all(value is None or math.isfinite(value) for value in column)
        assert None not in column or n_stages > 1


def test_terms_are_reported_before_weighting(make_method, tiny_split) -> None:
    light, heavy = (
        run(make_method, tiny_split, settings={"noisy_weight": w}, steps=1)[0] for w in (1.0, 50.0)
    )
    assert light["noisy"] == heavy["noisy"]


WEIGHTS = [
    (name, field.name)
    for name in METHODS
    for field in dataclasses.fields(METHODS[name].Config)
    if field.name.endswith("_weight")
]


@pytest.mark.parametrize(("name", "field"), WEIGHTS, ids=map("-".join, WEIGHTS))
def test_weight_zero_is_the_same_as_no_such_term(name, field, make_method, tiny_split) -> None:
    class Without(METHODS[name]):
        def objective(self, terms):
            kept = {t: value for t, value in terms.items() if t != field.removesuffix("_weight")}
            return super().objective(kept)

    # A threshold would keep a term asleep in so short a run.
    fields = {known.name for known in dataclasses.fields(METHODS[name].Config)}
    awake = {"threshold": 0.0} if "threshold" in fields else {}
    history, zero = run(make_method, tiny_split, name, settings={**awake, field: 0.0}, steps=3)
    _, without = run(make_method, tiny_split, Without, settings=awake, steps=3)
    _, weighted = run(make_method, tiny_split, name, settings=awake, steps=3)
    assert same_weights(zero, without) and not same_weights(zero, weighted)
    assert field.removesuffix("_weight") in history, "it is still reported"


# ---- what is not a number ----


@every_player
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_term_stops_the_run_naming_step_and_term(
    name, player, value, make_method, tiny_split, tmp_path
) -> None:
    class Broken(METHODS[name]):
        count, planted = 0, None

        def updates(self, batch):
            self.count += 1
            for who, terms in super().updates(batch):
                if who == player and self.count == 5:
                    self.planted = list(terms)[-1]
                    terms = {**terms, self.planted: terms[self.planted] * 0 + value}
                yield who, terms

    # A student that has finished its stage by the fifth step is given the whole run.
    method = make_method(Broken, **({"relabel_at": 1.0} if player == "student" else {}))
    with pytest.raises(TrainingError) as caught:
        train(method, tiny_split, steps=9, record_every=3, progress=False, states=tmp_path)
    expected = f"step 5: expected finite terms, got {method.planted} = {value}"
    assert str(caught.value) == expected
    assert not any(tmp_path.iterdir()), "a broken state must not be kept"


def test_first_broken_step_is_named_not_the_last() -> None:
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    window = [{"a": good, "b": good}, {"a": good, "b": bad}, {"a": bad, "b": bad}]
    with pytest.raises(TrainingError, match=r"\Astep 41: .* got b = nan\Z"):
        summarise(window, 42)


def test_summary_is_the_mean_in_float32() -> None:
    window = [
        {"a": torch.tensor(1.0), "b": torch.tensor(1.0, dtype=torch.bfloat16)},
        {"a": torch.tensor(4.0), "b": torch.tensor(2.0, dtype=torch.bfloat16)},
    ]
    assert summarise(window, 2) == {"a": 2.5, "b": 1.5}


def test_the_player_whose_gradient_breaks_is_named_before_whom_it_hurts(
    make_method, tiny_split
) -> None:
    class Root(Toy):
        def updates(self, batch):
            for player, terms in super().updates(batch):
                if player == "left" and self.calls == 3:
                    terms["size"] = terms["size"] + self.first.bias.mul(0).abs().sqrt().sum()
                yield player, terms

    with pytest.raises(TrainingError, match=r"\Astep 3: .* got gradient of left = nan\Z"):
        run(make_method, tiny_split, Root, record_every=5)


def test_a_player_whom_no_gradient_reaches_stays_as_it_was(make_method, tiny_split) -> None:
    class Cut(Toy):
        def updates(self, batch):
            for player, terms in super().updates(batch):
                yield player, terms if player == "left" else {"fit": self.first.weight.sum()}

    method = make_method(Cut)
    before = method.second.weight.clone()
    train(method, tiny_split, steps=3, progress=False)
    assert torch.equal(method.second.weight, before)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"shape": (3, 28, 28)}, "split: expected .* got .*"),
        ({"n_classes": 5}, "split: expected .* got .*"),
        ({"steps": 2.5}, "expected steps to be a whole number .* got 2.5"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(kind, message, make_method, tiny_split) -> None:
    steps = kind.pop("steps", 2)
    with pytest.raises(ValueError, match=rf"\A{message}\Z"):
        train(make_method("supervised", **kind), tiny_split, steps=steps, progress=False)


def test_a_signal_that_somebody_swallows_is_no_finished_run(
    make_method, tiny_split, tmp_path
) -> None:
    def ask(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(make_method("supervised"), tiny_split, steps=9, record_every=1, progress=False,
                  states=tmp_path, on_record=ask)  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert load_state(tmp_path)[0] == 1


# ---- a batch in parts ----


def test_a_batch_is_split_and_few_labels_are_in_every_part(tiny_split) -> None:
    batch = BatchStream(tiny_split, batch_size=7, labeled_batch_size=2).at(0)
    parts = training._split(batch, 3)
    assert [len(part.images) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.index for part in parts]), batch.index)
    assert all(torch.equal(part.labels, batch.labels) for part in parts)
    first, second = training._split(batch._replace(index=None), 2)
    assert torch.equal(torch.cat([first.labels, second.labels]), batch.labels)
    assert first.index is None


@every_method
def test_every_method_trains_in_parts(name, make_method, tiny_split) -> None:
    history = train(make_method(name), tiny_split, steps=4, record_every=1, progress=False)
    run = training._Run(make_method(name), tiny_split, 0, 4, None)
    run.method.train()
    run.n_parts, terms = 2, {}
    for _ in range(4):
        terms |= run.make_step("fp32")
    assert {name for name in terms if not name.startswith("gradient of ")} == {
        name for name in history if name not in ("step", "seconds")
    }
    assert all(term.isfinite() for term in terms.values())


@every_method
def test_terms_are_float32_in_bf16(name, make_method, tiny_split) -> None:
    """Losses are small differences: eight bits of them would be too few."""
    method = make_method(name).train()
    run = training._Run(method, tiny_split, 0, 4, None)
    for _ in range(4):
        terms = run.make_step("bf16")
        assert {term.dtype for term in terms.values()} == {torch.float32}


# ---- interruptions ----


class Interrupted(Exception):
    pass


@pytest.fixture
def save_at_every_row(monkeypatch) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", -1.0)


def interrupt(make_method, split, folder, step, kind=Toy, **arguments) -> None:
    def stop(now: int, _: Method) -> None:
        if now >= step:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(make_method, split, kind, states=folder, on_record=stop, **arguments)


@pytest.mark.parametrize("step", range(2, 8))
@pytest.mark.usefixtures("save_at_every_row")
def test_resumed_at_any_step_it_ends_in_the_same_weights(
    step, make_method, tiny_split, tmp_path
) -> None:
    whole = run(make_method, tiny_split, steps=7, record_every=1)
    interrupt(make_method, tiny_split, tmp_path, step, steps=7, record_every=1)
    assert load_state(tmp_path)[0] == step - 1
    again = run(
        make_method, tiny_split, weights_seed=99, steps=7, record_every=1,
        states=tmp_path, resume=True,
    )  # fmt: skip
    assert again[0] == whole[0] and same_weights(again[1], whole[1])


@every_method
@pytest.mark.usefixtures("save_at_every_row")
def test_every_method_resumes_bit_for_bit(name, make_method, tiny_split, tmp_path) -> None:
    whole = run(make_method, tiny_split, name)
    interrupt(make_method, tiny_split, tmp_path, 4, name)
    again = run(make_method, tiny_split, name, weights_seed=99, states=tmp_path, resume=True)
    assert again[0] == whole[0] and same_weights(again[1], whole[1])


@pytest.mark.usefixtures("save_at_every_row")
def test_interrupted_between_two_players_and_twice(make_method, tiny_split, tmp_path) -> None:
    class Fragile(Toy):
        stop_at = 0

        def updates(self, batch):
            self.count = getattr(self, "count", 0) + 1
            for player, terms in super().updates(batch):
                yield player, terms
                if player == "left" and self.count == self.stop_at:
                    raise Interrupted  # left has stepped, right has not

    whole = run(make_method, tiny_split, steps=12, record_every=3)
    for stop_at, resume in ((5, False), (4, True)):  # counted anew: step 5, then step 3 + 4
        Fragile.stop_at = stop_at
        with pytest.raises(Interrupted):
            run(
                make_method, tiny_split, Fragile, steps=12, record_every=3,
                states=tmp_path, resume=resume,
            )  # fmt: skip
    assert load_state(tmp_path)[0] == 6
    Fragile.stop_at = 0
    again = run(
        make_method, tiny_split, Fragile, steps=12, record_every=3, states=tmp_path, resume=True
    )
    assert again[0] == whole[0] and same_weights(again[1], whole[1])


@pytest.mark.usefixtures("save_at_every_row")
def test_damaged_newest_state_is_passed_over_with_a_warning(
    make_method, tiny_split, tmp_path
) -> None:
    whole = run(make_method, tiny_split, steps=8)
    interrupt(make_method, tiny_split, tmp_path, 6, steps=8)
    newest = tmp_path / "step-000000004.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-000000004.* damaged; going back"):
        again = run(make_method, tiny_split, steps=8, states=tmp_path, resume=True)
    assert again[0] == whole[0] and same_weights(again[1], whole[1])


def test_nothing_to_resume_from_is_refused(make_method, tiny_split, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a training state .*, got nothing"):
        run(make_method, tiny_split, states=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"\Aresume: expected .*, got None\Z"):
        run(make_method, tiny_split, resume=True)


def test_finished_run_resumes_to_itself(make_method, tiny_split, tmp_path) -> None:
    """An interruption between the last step and the results costs nothing."""
    whole = run(make_method, tiny_split, states=tmp_path)
    again = run(make_method, tiny_split, weights_seed=99, states=tmp_path, resume=True)
    assert again[0] == whole[0] and same_weights(again[1], whole[1])


def test_a_finished_run_can_go_on_for_more_steps(make_method, tiny_split, tmp_path) -> None:
    run(make_method, tiny_split, states=tmp_path)
    history, _ = run(make_method, tiny_split, states=tmp_path, resume=True, steps=10)
    assert history["step"] == [2, 4, 6, 8, 10]


def test_without_a_folder_nothing_is_written(
    make_method, tiny_split, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(make_method, tiny_split)
    assert not any(tmp_path.iterdir())


def test_states_are_saved_when_the_time_has_come(make_method, tiny_split, tmp_path) -> None:
    """Half a minute has not passed, so that only the last step is saved."""
    run(make_method, tiny_split, states=tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-000000006.json",
        "step-000000006.safetensors",
    ]


# ---- how long ----


@pytest.mark.parametrize(
    ("steps", "minutes"),
    [
        (None, None),
        (3, 1.0),
        (0, None),
        (-1, None),
        (0, 1.0),
        (None, 0.0),
        (None, -2.0),
        (None, float("nan")),
        (None, float("inf")),
    ],
)
def test_duration_refused_in_one_line(steps, minutes) -> None:
    with pytest.raises(ValueError, match=r"\Aduration: expected [^\n]*, got [^\n]*\Z"):
        check_duration(steps, minutes)


@pytest.mark.parametrize("duration", [{"steps": 3, "minutes": 1e-9}, {"steps": 0}], ids=str)
def test_a_refused_run_writes_nothing(duration, make_method, tiny_split, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"\Aduration: expected"):
        run(make_method, tiny_split, states=tmp_path / "states", **duration)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("record_every", [0, -3])
def test_record_every_refused(record_every, make_method, tiny_split) -> None:
    with pytest.raises(ValueError, match=r"\Arecord_every: expected .*, got -?\d\Z"):
        run(make_method, tiny_split, record_every=record_every)


def test_minutes_end_in_time(make_method, tiny_split) -> None:
    run(make_method, tiny_split, steps=1)  # the first optimiser of a process costs seconds
    method = make_method(Toy)
    start = time.perf_counter()
    history = train(method, tiny_split, minutes=0.5 / 60, progress=False)
    assert 0.5 <= time.perf_counter() - start < 5.0  # far from an idle machine's 0.51
    assert 0.5 <= history["seconds"][-1] < 3.0
    assert history["step"][-1] == method.calls > 10
    assert history["seconds"] == sorted(history["seconds"])


def test_getting_ready_is_no_part_of_the_schedule(
    make_method, tiny_split, tmp_path, monkeypatch
) -> None:
    """The clock is ours: to get ready takes 30 of 60 seconds, and every step takes one."""
    now, begun, seen = [0.0], [], []
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(Toy):
        players = {"both": ("first", "second", "norm")}

        def updates(self, batch):
            now[0] += 1.0
            for _, terms in super().updates(batch):
                yield "both", {name: term for name, term in terms.items() if name == "noisy"}
                return

        def prepare(self, pool, labels, progress) -> bool:
            now[0] += 0.0 if begun else 30.0
            begun.append(progress)
            return False

        def rate_factor(self, progress) -> float:
            seen.append(progress)
            return super().rate_factor(progress)

    def go_on(minutes: float, **arguments) -> None:
        train(make_method(Slow), tiny_split, minutes=minutes, progress=False, states=tmp_path,
              **arguments)  # fmt: skip

    go_on(1.0)
    assert seen == pytest.approx([step / 30 for step in range(30)]), "and still it ends in time"
    go_on(1.5, resume=True)
    expected = [step / 60 for step in range(30, 60)]
    assert seen[30:] == pytest.approx(expected), "a resumed run knows when it was ready"
    begun.clear()
    seen.clear()
    train(make_method(Slow), tiny_split, minutes=0.25, progress=False)
    assert seen == [0.0], "who gets ready for longer than the run takes one step"


def test_the_shortest_run_is_one_step(make_method, tiny_split) -> None:
    history = train(make_method(Toy), tiny_split, minutes=1e-9, progress=False)
    assert history["step"] == [1]


def test_resumed_minutes_count_what_was_used(make_method, tiny_split, tmp_path) -> None:
    train(make_method(Toy), tiny_split, minutes=0.3 / 60, progress=False, states=tmp_path)
    history = train(
        make_method(Toy), tiny_split, minutes=0.5 / 60, progress=False,
        states=tmp_path, resume=True,
    )  # fmt: skip
    assert 0.5 <= history["seconds"][-1] < 3.0
    assert history["seconds"] == sorted(history["seconds"]), "the clock goes on where it stopped"
    assert history["step"] == sorted(set(history["step"]))


def test_rows_average_the_steps_since_the_row_before(make_method, tiny_split) -> None:
    class Counting(Toy):
        def updates(self, batch):
            for player, terms in super().updates(batch):
                yield player, {**terms, f"count_{player}": terms.popitem()[1] * 0 + self.calls}

    history, _ = run(make_method, tiny_split, Counting, steps=7, record_every=3)
    assert history["step"] == [3, 6, 7]
    assert history["count_left"] == history["count_right"] == [2.0, 5.0, 7.0]


# ---- rates and averages ----


def test_rate_factor_by_hand() -> None:
    assert [rate_factor(p, 0.6) for p in (0, 0.3, 0.6)] == [1, 1, 1]
    assert rate_factor(0.8, 0.6) == pytest.approx(0.5)
    assert rate_factor(0.9, 0.6) == pytest.approx(0.25)
    assert rate_factor(1.0, 0.6) == 0 and rate_factor(1.3, 0.6) == 0
    assert rate_factor(1.0, 1.0) == 1.0  # never decays
    assert rate_factor(0.25, 0.0) == pytest.approx(0.75)


def test_every_player_steps_at_the_rate_of_the_moment(make_method, tiny_split) -> None:
    used = {"left": [], "right": []}

    class Spied(Toy):
        def optimizers(self):
            optimizers = super().optimizers()
            for player, optimizer in optimizers.items():
                optimizer.register_step_pre_hook(
                    lambda o, *_, player=player: used[player].append(o.param_groups[0]["lr"])
                )
            return optimizers

    settings = {"learning_rate": 0.01, "decay_from": 0.5}
    run(make_method, tiny_split, Spied, settings=settings, steps=8)
    by_hand = [0.01, 0.01, 0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025]
    assert used["left"] == used["right"] == pytest.approx(by_hand)


def test_average_weights_by_hand(make_method) -> None:
    method = make_method(Toy, ema_decay=0.2)
    averaged, expected = average_weights(method), None
    values = [3.0, -1.0, 2.0, 5.0]
    for count, value in enumerate(values):
        with torch.no_grad():
            method.first.weight.fill_(value)
            method.norm.running_mean.fill_(10 * value)
            method.norm.num_batches_tracked.fill_(count + 40)
        averaged.update_parameters(method)
        # A short memory at first: 2/11 = 0.18 is less than 0.2, and 3/12 is more.
        decay = [0.0, 2 / 11, 0.2, 0.2][count]
        expected = value if expected is None else decay * expected + (1 - decay) * value
        module = averaged.module
        torch.testing.assert_close(module.first.weight, torch.full((2, 4), expected))
        torch.testing.assert_close(module.norm.running_mean, torch.full((2,), 10 * expected))
        assert module.norm.num_batches_tracked == count + 40
    assert method.first.weight[0, 0] == 5.0, "averaging must not write into the method"


def test_train_leaves_the_average_of_all_steps(make_method, tiny_split, tmp_path) -> None:
    seen = []

    class Watched(Toy):
        def updates(self, batch):
            seen.append(weights(self))
            return super().updates(batch)

    method = make_method(Watched, ema_decay=0.9)
    train(method, tiny_split, steps=5, progress=False, states=tmp_path)
    _, tensors, _ = load_state(tmp_path)
    prefix = "method."
    raw = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    expected = seen[1]["first.weight"]  # seen[0] are the weights before the first step
    for count, step in enumerate([*seen[2:], raw], start=1):
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * step["first.weight"]
    torch.testing.assert_close(method.first.weight, expected)
    assert not method.training and not torch.equal(method.first.weight, raw["first.weight"])


class _Restarts(Toy):
    """Begins a new stage once, at 60 % of the run."""

    def prepare(self, pool, labels, progress) -> bool:
        begins = progress >= 0.6 and not self.memory
        if begins:
            self.memory = {"begun": torch.ones(())}
        return begins


@pytest.mark.parametrize("steps", [5, 10])
def test_averages_start_anew_where_a_stage_begins(steps, make_method, tiny_split) -> None:
    """After the stage's first step the average is what that step left, whatever was before."""
    raw, averaged = [], []

    class Watched(_Restarts):
        def updates(self, batch):
            raw.append(weights(self))
            return super().updates(batch)

    def record(step: int, method: Method) -> None:
        averaged.append(weights(method))

    method = make_method(Watched, ema_decay=0.9)
    train(method, tiny_split, steps=steps, record_every=1, progress=False, on_record=record)
    first = round(0.6 * steps)  # of the new stage; raw[i] are the weights before step i
    assert same_weights(averaged[first], raw[first + 1])
    assert not same_weights(averaged[first - 1], raw[first])
    second, third = raw[first + 1]["first.weight"], averaged[first + 1]["first.weight"]
    if steps == 10:
        after = raw[first + 2]["first.weight"]
        torch.testing.assert_close(third, 2 / 11 * second + 9 / 11 * after)


@pytest.mark.parametrize("name", ["propagate", "cgan"])
def test_what_was_before_the_game_is_not_in_the_average(
    name, make_method, tiny_split, tmp_path
) -> None:
    method = make_method(name, relabel_at=0.7)
    train(method, tiny_split, steps=4, progress=False, states=tmp_path)
    _, tensors, _ = load_state(tmp_path)
    last = {n.removeprefix("method."): t for n, t in tensors.items() if n.startswith("method.")}
    assert same_weights(weights(method), last), "the new stage has had one step"


def test_no_memory_means_the_last_weights(make_method, tiny_split, tmp_path) -> None:
    method = make_method(Toy, ema_decay=0.0)
    train(method, tiny_split, steps=5, progress=False, states=tmp_path)
    _, tensors, _ = load_state(tmp_path)
    torch.testing.assert_close(method.first.weight, tensors["method.first.weight"])


# ---- on_record ----


def test_on_record_sees_the_averaged_weights_in_evaluation_mode(make_method, tiny_split) -> None:
    seen = []

    def record(step: int, method: Method) -> None:
        seen.append((step, method.training, method.norm.training, weights(method)))

    method = make_method(Toy)
    train(method, tiny_split, steps=5, record_every=2, progress=False, on_record=record)
    assert [row[:3] for row in seen] == [(s, False, False) for s in (2, 4, 5)]
    assert same_weights(seen[-1][3], weights(method))
    assert not same_weights(seen[0][3], weights(method))


@every_method
def test_on_record_cannot_disturb_the_run(name, make_method, tiny_split) -> None:
    def disturb(step: int, method: Method) -> None:
        torch.manual_seed(step)
        torch.randn(1000)
        if method.draws:
            draw(method, torch.full((3,), UNLABELED))
        method.train()

    quiet = run(make_method, tiny_split, name, record_every=1)
    disturbed = run(make_method, tiny_split, name, record_every=1, on_record=disturb)
    assert quiet[0] == disturbed[0] and same_weights(quiet[1], disturbed[1])


# ---- what is shown ----


def test_progress_bar_names_the_terms(make_method, tiny_split, capsys) -> None:
    run(make_method, tiny_split, progress=True)
    shown = capsys.readouterr().err
    assert "6/6" in shown and all(f"{name}=" in shown for name in ("noisy", "size", "fit"))


def test_progress_bar_of_minutes(make_method, tiny_split, capsys) -> None:
    train(make_method(Toy), tiny_split, minutes=0.2 / 60, progress=True)
    shown = capsys.readouterr().err
    assert "100%" in shown and "noisy=" in shown


def test_no_progress_bar_when_not_wanted(make_method, tiny_split, capsys) -> None:
    run(make_method, tiny_split)
    assert capsys.readouterr() == ("", "")


def test_history_is_a_mapping_that_becomes_csv() -> None:
    history = History()
    assert len(history) == 0 and history.to_csv().strip() == ""
    history.append({"step": 2, "loss": 0.1})
    history.append({"step": 4, "loss": 1e-7})
    assert dict(history) == {"step": [2, 4], "loss": [0.1, 1e-7]} and len(history) == 2
    rows = list(csv.DictReader(io.StringIO(history.to_csv())))
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == [(2, 0.1), (4, 1e-7)]
    copy = History(history)
    copy.append({"step": 6, "loss": 0.0})
    assert history["step"] == [2, 4]


def test_terms_that_come_and_go_leave_empty_fields() -> None:
    history = History()
    for row in ({"step": 1, "a": 0.5}, {"step": 2, "a": 0.25, "b": 3.0}, {"step": 3, "b": 4.0}):
        history.append(row)
    assert dict(history) == {"step": [1, 2, 3], "a": [0.5, 0.25, None], "b": [None, 3.0, 4.0]}
    assert history.to_csv().splitlines() == ["step,a,b", "1,0.5,", "2,0.25,3.0", "3,,4.0"]


def test_a_summary_averages_each_term_over_the_steps_that_have_it() -> None:
    one, two, six = (torch.tensor(float(value)) for value in (1, 2, 6))
    window = [{"a": one}, {"a": two, "b": six}, {"b": two}]
    assert summarise(window, 3) == {"a": 1.5, "b": 4.0}
    window[1]["b"] = torch.tensor(float("inf"))
    with pytest.raises(TrainingError, match=r"\Astep 8: expected finite terms, got b = inf\Z"):
        summarise(window, 9)


def test_a_run_in_stages_records_what_each_stage_has(make_method, tiny_split) -> None:
    method = make_method("cgan", relabel_at=0.5)
    history = train(method, tiny_split, steps=4, record_every=1, progress=False)
    present = {
        name: [value is not None for value in history[name]]
        for name in ("propagated", "real", "fake", "adversarial")
    }
    game = {key: [False, False, True, True] for key in ("real", "fake", "adversarial")}
    assert present == {"propagated": [True, True, False, False], **game}
    rows = list(csv.DictReader(io.StringIO(history.to_csv())))
    assert rows[0]["real"] == rows[3]["propagated"] == "" and float(rows[3]["real"]) >= 0


def test_bf16_leaves_weights_and_terms_in_order(make_method, tiny_split) -> None:
    history, final = run(make_method, tiny_split, "combined", steps=2, precision="bf16")
    assert all(math.isfinite(v) for column in history.values() for v in column)
    assert all(t.dtype == torch.float32 for t in final.values() if t.is_floating_point())
    assert history != run(make_method, tiny_split, "combined", steps=2, precision="fp32")[0]
    with pytest.raises(ValueError, match="precision: expected"):
        run(make_method, tiny_split, precision="fp8")


# ---- leakage ----


@every_method
def test_hidden_labels_do_not_exist(name, make_method, mnist) -> None:
    """Poison every label that the split hides: not one bit of the weights changes."""
    visible = split_labels(mnist, 100, 0).labeled_index
    hidden = torch.ones(60000, dtype=torch.bool)
    hidden[visible] = False
    assert hidden.sum() == 59_900
    final = {}
    for kind, which in (("true", hidden & False), ("poisoned", hidden), ("visible", ~hidden)):
        labels = torch.where(which, (mnist.train.labels + 1) % 10, mnist.train.labels)
        train_set = ImageSet(mnist.train.images, labels)
        data = ImageData("mnist", mnist.class_names, train_set, mnist.test)
        split = split_labels(data, 100, 0)
        assert torch.equal(split.labeled_index, visible)
        final[kind] = run(make_method, within_reach(split, METHODS[name]), name, steps=3)
    assert final["true"][0] == final["poisoned"][0]
    assert same_weights(final["true"][1], final["poisoned"][1])
    # The test can fail: a visible label matters to whoever reads.
    assert same_weights(final["true"][1], final["visible"][1]) != METHODS[name].reads


@every_method
def test_labels_poisoned_after_the_split_do_not_matter(name, make_method, tiny_data) -> None:
    labels = tiny_data.train.labels.clone()
    data = dataclasses.replace(tiny_data, train=ImageSet(tiny_data.train.images, labels))
    split = split_labels(data, 20, 0)
    clean = run(make_method, split, name, steps=3)
    labels.fill_(0)
    poisoned = run(make_method, split, name, steps=3)
    assert clean[0] == poisoned[0] and same_weights(clean[1], poisoned[1])


# ---- methods that work in stages ----


class _Staged(Supervised):
    """Remembers the pool at half time, and lets what it remembers steer what it learns."""

    def prepare(self, pool, labels, progress) -> None:
        if not self.memory:
            self.memory = {"stage": torch.tensor(0), "targets": torch.zeros(len(pool))}
        if progress >= 0.5 and self.memory["stage"] == 0:
            self.memory = {
                "stage": torch.tensor(1),
                "targets": self.predict(to_float(pool)).detach()[:, 0],
            }

    def updates(self, batch):
        pulled = self.predict(batch.images)[:, 0] - self.memory["targets"][batch.index]
        yield "classifier", {"classification": pulled.square().mean()}


def test_memory_survives_an_interruption_bit_for_bit(make_method, tiny_split, tmp_path) -> None:
    whole, first, second = (make_method(_Staged) for _ in range(3))
    train(whole, tiny_split, steps=12, progress=False)

    class Stop(Exception):
        pass

    def stop(step, method) -> None:
        if step == 8:
            raise Stop

    with pytest.raises(Stop), pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SECONDS_BETWEEN_STATES", -1.0)
        train(first, tiny_split, steps=12, record_every=1, progress=False, states=tmp_path,
              on_record=stop)  # fmt: skip
    train(second, tiny_split, steps=12, progress=False, states=tmp_path, resume=True)
    assert same_weights(weights(whole), weights(second))
    assert torch.equal(whole.memory["targets"], second.memory["targets"])
    assert not torch.equal(whole.memory["targets"], torch.zeros(len(tiny_split))), "stage 1 ran"


def test_memory_of_an_earlier_run_is_not_believed(make_method, tiny_data, tiny_split) -> None:
    """It named other images, and with labels that the new split may hide."""
    method, fresh = make_method("propagate"), make_method("propagate")
    train(method, tiny_split, steps=2, progress=False)
    other = split_labels(tiny_data, 20, 1)
    assert not torch.equal(other.labels, tiny_split.labels)
    for each in (method, fresh):
        train(each, other, steps=2, progress=False)
    assert torch.equal(method.memory["scores"], fresh.memory["scores"])


def test_players_keep_their_own_rates(make_method, tiny_split) -> None:
    class Slow(Supervised):
        def optimizers(self):
            ((player, optimizer),) = super().optimizers().items()
            optimizer.param_groups[0]["lr"] = 1e-5
            self.watched = optimizer
            return {player: optimizer}

    method = make_method(Slow, decay_from=0.0)
    train(method, tiny_split, steps=4, progress=False)
    assert method.watched.param_groups[0]["lr"] == pytest.approx(1e-5 / 4)


def test_bf16_is_automatic_only_where_it_was_checked(make_method, tiny_split, monkeypatch) -> None:
    seen, batch = [], BatchStream(tiny_split, batch_size=8).at(0)
    monkeypatch.setattr(training, "autocast", lambda device, precision: (
        seen.append(precision), nullcontext())[1])  # fmt: skip
    for fast, prefers, wanted in (
        (True, True, "bf16"),
        (True, False, "auto"),
        (False, True, "auto"),
    ):
        monkeypatch.setattr(training, "fast_bf16", lambda fast=fast: fast)
        method = make_method("supervised")
        monkeypatch.setattr(Supervised, "prefers_bf16", prefers)
        training_step(method, batch, method.optimizers(), "auto")
        assert set(seen) == {wanted}
        training_step(method, batch, method.optimizers(), "fp32")
        assert seen[-1] == "fp32"
        seen.clear()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_lie_apart_where_groups_of_them_are_normalised_in_bf16(
    precision, make_method, tiny_split
) -> None:
    method = make_method("propagate", shape=(3, 28, 28))
    method.unread = Decoder((3, 28, 28), 4, width=8)  # group norm; the student has batch norm
    training._arrange(method, precision)
    kernels = {"student": method.student.stages[3].weight, "unread": method.unread.stages[2].weight}
    apart = {name: kernel.is_contiguous() for name, kernel in kernels.items()}
    assert apart == {"student": False, "unread": precision == "bf16"}
