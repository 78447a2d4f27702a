"""The training loop. It knows players and terms, and nothing of any method.

Shown in: book/05_training_loop.ipynb, where it is written by hand and proved equal to this one.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from semigen_lib.checkpoint import flatten_optimizer, load_state, restore_optimizer, save_state
from semigen_lib.data import Batch, BatchStream, LabelSplit
from semigen_lib.methods.method import Method, rate_factor
from semigen_lib.runtime import autocast, fast_bf16, rng_state, seed_everything, set_rng_state

__all__ = [
    "SECONDS_BETWEEN_STATES",
    "History",
    "TrainingError",
    "average_weights",
    "check_duration",
    "rate_factor",
    "summarise",
    "train",
    "training_step",
]


SECONDS_BETWEEN_STATES = 30.0  # an interrupted run loses at most this much


class TrainingError(RuntimeError):
    """A run that cannot go on: a term of an objective is not a finite number."""


class History(Mapping[str, list[float]]):
    """What was recorded while training: ``history["step"]`` and one column per named term.

    Each row averages the steps since the row before. Where a method works in stages, a term is
    None in the rows of the stages that do not have it.
    """

    def __init__(self, columns: Mapping[str, list[float | None]] | None = None) -> None:
        self.columns = {name: list(values) for name, values in (columns or {}).items()}

    def __getitem__(self, name: str) -> list[float | None]:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def append(self, row: Mapping[str, float]) -> None:
        """Add one row."""
        n_rows = len(next(iter(self.columns.values()), []))
        for name in row:
            self.columns.setdefault(name, [None] * n_rows)
        for name, column in self.columns.items():
            column.append(row.get(name))

    def to_csv(self) -> str:
        """Return the columns as CSV text with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(zip(*self.columns.values(), strict=True))
        return text.getvalue()


def training_step(
    method: Method,
    batch: Batch,
    optimizers: Mapping[str, torch.optim.Optimizer],
    precision: str = "fp32",
) -> dict[str, Tensor]:
    """Let every player step once on its own objective, and return all named terms.

    Gradients are taken with respect to the player's own weights only, so no player can move, or
    even leave a gradient in, another's.

    Parameters
    ----------
    method
        In training mode, on the device of the batch.
    batch
        One step's images.
    optimizers
        One per player.
    precision
        See :func:`semigen_lib.runtime.autocast`.

    Returns
    -------
    dict
        Term names to detached scalars, before weighting.

    Shown in: book/05_training_loop.ipynb
    """
    named: dict[str, Tensor] = {}
    updates = method.updates(batch)
    if precision == "auto" and method.prefers_bf16 and fast_bf16():
        precision = "bf16"
    while True:
        with autocast(batch.images.device, precision):
            update = next(updates, None)
        if update is None:
            return named
        player, terms = update
        optimizers[player].zero_grad()
        # Players may share a term, such as a reconstruction, and so its graph.
        method.objective(terms).backward(inputs=method.parameters_of(player), retain_graph=True)
        optimizers[player].step()
        named.update((name, term.detach()) for name, term in terms.items())


def average_weights(method: Method) -> AveragedModel:
    """Return the exponential moving average of a method's weights and buffers.

    It starts at the current weights, and its memory grows with the number of steps until it is
    that of ``config.ema_decay``: an average that remembers the first step is of no use early on.
    """

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        decay = min(method.config.ema_decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:  # batch norm counts its batches in integers
            torch._foreach_copy_(averaged, current)

    return AveragedModel(method, multi_avg_fn=update, use_buffers=True)


def train(
    method: Method,
    split: LabelSplit,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    precision: str = "auto",
    record_every: int = 10,
    progress: bool = True,
    states: Path | None = None,
    resume: bool = False,
    on_record: Callable[[int, Method], None] | None = None,
) -> History:
    """Train a method in place and leave it with its averaged weights, in evaluation mode.

    Parameters
    ----------
    method
        The method, on the device where it shall be trained.
    split
        Images, with labels for the labelled ones only.
    steps, minutes
        How long; exactly one of them. Minutes of training, of any number of steps.
    seed
        Of the batches and of all noise.
    precision
        ``"auto"``, ``"fp32"`` or ``"bf16"``.
    record_every
        Steps per row of the history.
    progress
        Whether to show a progress bar with the named terms.
    states
        A folder for training states; with None the run cannot be resumed.
    resume
        Go on from the newest state in ``states``. A run of given steps then ends in the very
        weights of a run that was never interrupted.
    on_record
        Called with the step and the method whose weights are the averaged ones, at each row.

    Returns
    -------
    History
        ``step``, ``seconds`` and every named term, before weighting.

    Raises
    ------
    ValueError
        If not exactly one of steps and minutes is given, or it is not positive.
    TrainingError
        If a term becomes NaN or infinite; the message names the step and the term.

    Shown in: book/05_training_loop.ipynb
    """
    check_duration(steps, minutes)
    if record_every < 1:
        raise ValueError(f"record_every: expected at least 1, got {record_every}")
    if resume and states is None:
        raise ValueError("resume: expected a folder of states to resume from, got None")
    seed_everything(seed)
    run = _Run(method, split, seed)
    if resume:
        run.restore(states)
    method.train()
    limit = steps if steps is not None else 60.0 * minutes
    window: list[dict[str, Tensor]] = []
    bar = tqdm(
        total=limit,
        initial=min(limit, run.position(steps)),
        disable=not progress,
        unit="step" if steps is not None else "s",
        bar_format=None
        if steps is not None
        else "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}",
    )
    clock = time.perf_counter() - run.seconds
    saved = time.perf_counter()
    with bar:
        while (done := run.position(steps) / limit) < 1:
            if method.prepare(run.stream.pool, run.stream.pool_labels, done):
                run.averaged.n_averaged.zero_()
            run.set_rates(method.rate_factor(done))
            window.append(training_step(method, run.stream.at(run.step), run.optimizers, precision))
            run.averaged.update_parameters(method)
            run.step += 1
            run.seconds = time.perf_counter() - clock
            if len(window) < record_every and run.position(steps) < limit:
                continue
            row = summarise(window, run.step)
            window = []
            run.history.append({"step": run.step, "seconds": round(run.seconds, 3), **row})
            bar.update(min(limit, run.position(steps)) - bar.n)
            bar.set_postfix({name: f"{value:.3f}" for name, value in row.items()}, refresh=False)
            if on_record is not None:
                noise = rng_state()  # whoever watches may draw, and changes nothing
                on_record(run.step, run.averaged.module.eval())
                set_rng_state(noise)
            if states is not None and time.perf_counter() - saved > SECONDS_BETWEEN_STATES:
                run.save(states)
                saved = time.perf_counter()
    if states is not None:
        run.save(states)
    method.load_state_dict(run.averaged.module.state_dict())
    method.eval()
    return run.history


def check_duration(steps: int | None, minutes: float | None) -> None:
    """Refuse a duration that is not one positive, finite number, of either steps or minutes.

    Raises
    ------
    ValueError
        If it is refused.
    """
    given = [number for number in (steps, minutes) if number is not None]
    if len(given) != 1 or not 0 < given[0] < math.inf:
        raise ValueError(
            "duration: expected a positive number of either steps or minutes, "
            f"got steps={steps}, minutes={minutes}"
        )


def summarise(window: list[dict[str, Tensor]], step: int) -> dict[str, float]:
    """Return the mean of each term over those of the last steps that have it.

    Parameters
    ----------
    window
        The named terms of each step.
    step
        The number of the last of these steps, counted from 1.

    Raises
    ------
    TrainingError
        If a term is not finite; the first such step and term are named.
    """
    names = list(dict.fromkeys(name for row in window for name in row))
    # A finite number stands for a term that a step does not have.
    absent = torch.zeros_like(next(iter(window[0].values())))
    values = torch.stack(
        [torch.stack([row.get(name, absent).float() for name in names]) for row in window]
    )
    values = values.cpu()  # the one place where the loop waits for the device
    broken = (~values.isfinite()).nonzero()
    if len(broken):
        row, column = broken[0].tolist()
        raise TrainingError(
            f"step {step - len(window) + row + 1}: expected finite terms, "
            f"got {names[column]} = {values[row, column].item()}"
        )
    counts = torch.tensor([sum(name in row for row in window) for name in names])
    return dict(zip(names, (values.sum(0) / counts).tolist(), strict=True))


class _Run:
    """Everything that changes while training, and so everything a training state holds."""

    def __init__(self, method: Method, split: LabelSplit, seed: int) -> None:
        config = method.config
        device = next(method.parameters()).device
        self.method, self.optimizers = method, method.optimizers()
        method.memory = {}  # an earlier run may have been on other images, with other labels
        self.averaged = average_weights(method)
        self.stream = BatchStream(
            split,
            batch_size=config.batch_size,
            labeled_batch_size=config.labeled_batch_size,
            seed=seed,
            device=device,
        )
        self.history, self.step, self.seconds = History(), 0, 0.0

    def position(self, steps: int | None) -> float:
        return self.step if steps is not None else self.seconds

    def set_rates(self, factor: float) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:  # players may differ in their rates
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def save(self, folder: Path) -> None:
        tensors = {f"method.{name}": t for name, t in self.method.state_dict().items()}
        tensors |= {f"averaged.{name}": t for name, t in self.averaged.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            tensors |= flatten_optimizer(name, optimizer)
        tensors |= {f"memory.{name}": t for name, t in self.method.memory.items()}
        tensors |= rng_state()
        facts = {"seconds": self.seconds, "history": self.history.columns}
        save_state(folder, self.step, tensors, facts)

    def restore(self, folder: Path) -> None:
        self.step, tensors, facts = load_state(folder)
        for prefix, module in (("method.", self.method), ("averaged.", self.averaged)):
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            module.load_state_dict(own)
        for name, optimizer in self.optimizers.items():
            restore_optimizer(name, optimizer, tensors)
        device = next(self.method.parameters()).device
        self.method.memory = {
            name.removeprefix("memory."): tensor.to(device)
            for name, tensor in tensors.items()
            if name.startswith("memory.")
        }
        set_rng_state(tensors)
        self.seconds, self.history = facts["seconds"], History(facts["history"])
