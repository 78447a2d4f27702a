"""The training loop. It knows players and terms, and nothing of any method.

Shown in: book/05_training_loop.ipynb, where it is written by hand and proved equal to this one.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from semigen_lib.checkpoint import (
    CheckpointError,
    flatten_optimizer,
    load_state,
    restore_optimizer,
    save_state,
)
from semigen_lib.data import UNLABELED, Batch, BatchStream, ImageFiles, LabelSplit, to_float
from semigen_lib.distributed import (
    average,
    average_gradients,
    is_first,
    largest,
    part_of_processes,
    whole_batch,
)
from semigen_lib.methods.method import Method, Terms, method_name, rate_factor
from semigen_lib.runtime import (
    autocast,
    fast_bf16,
    is_out_of_memory,
    keep_memory,
    rng_state,
    seed_everything,
    set_rng_state,
    signals_noted,
)
from semigen_lib.sources import whole_number

__all__ = [
    "LOOK_EVERY",
    "SECONDS_BETWEEN_STATES",
    "VARIETY",
    "History",
    "TrainingError",
    "average_weights",
    "check_duration",
    "check_pool",
    "measure_variety",
    "rate_factor",
    "summarise",
    "train",
    "training_step",
]


SECONDS_BETWEEN_STATES = 30.0  # a run that is killed loses at most this much, and one row
LOOK_EVERY = 100  # steps between two looks at what a game draws, in the second half of a run
VARIETY = 0.1  # drawings that vary less have collapsed; four healthy games had 0.40 to 0.82
_GRADIENT = "gradient of "  # before a player's name, beside the terms of a step


class TrainingError(RuntimeError):
    """A run that cannot go on: a term of an objective, a gradient or a weight is not finite."""


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

    Gradients are taken with respect to the weights that the player's optimiser moves, so no player
    can even leave a gradient in another's.

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
    for _, terms in _turns(method, batch, optimizers, precision):
        named.update(terms)
    return named


def _turns(
    method: Method,
    batch: Batch,
    optimizers: Mapping[str, torch.optim.Optimizer],
    precision: str,
) -> Iterator[tuple[str, Terms]]:
    """Yield every player that has stepped, and its detached terms."""
    updates = method.updates(batch)
    while True:
        update = _next_update(method, updates, batch, precision)
        if update is None:
            return
        player, terms = update
        optimizers[player].zero_grad()
        weights = _moved_by(optimizers[player])
        # Players may share a term, such as a reconstruction, and so its graph.
        method.objective(terms).backward(inputs=weights, retain_graph=True)
        average_gradients(weights)
        optimizers[player].step()
        yield player, {name: term.detach() for name, term in terms.items()}


def _moved_by(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Return a player's weights; to ask the networks for them at each step takes longer."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _forget_unfinished(optimizer: torch.optim.Optimizer) -> None:
    """Drop what Adam has of a weight for whose second moment there was no room."""
    if isinstance(optimizer, torch.optim.Adam):
        for weight in [w for w, state in optimizer.state.items() if "exp_avg_sq" not in state]:
            del optimizer.state[weight]


def _next_update(
    method: Method, updates: Iterator[tuple[str, Terms]], batch: Batch, precision: str
) -> tuple[str, Terms] | None:
    with autocast(batch.images.device, _chosen(method, precision)), whole_batch():
        return next(updates, None)


def _chosen(method: Method, precision: str) -> str:
    """Return bf16 for "auto" where the method wants it and the processor is fast at it."""
    return "bf16" if precision == "auto" and method.prefers_bf16 and fast_bf16() else precision


def _arrange(method: Method, precision: str) -> None:
    """Put the channels of a pixel apart in memory where that is the faster order.

    It is where a CPU normalises groups of them in bfloat16; ``book/speed.md`` measures it.
    """
    if next(method.parameters()).is_cuda or _chosen(method, precision) != "bf16":
        return
    for network in method.children():
        if any(isinstance(layer, torch.nn.GroupNorm) for layer in network.modules()):
            network.to(memory_format=torch.contiguous_format)


def _turns_in_parts(
    method: Method,
    batch: Batch,
    optimizers: Mapping[str, torch.optim.Optimizer],
    precision: str,
    n_parts: int,
) -> Iterator[tuple[str, Terms]]:
    """Do the same with the graph of one part of the batch in memory at a time.

    A player steps on the gradients of all parts, so the batch is as large as ever. For each turn
    the parts are worked through anew, with new noise, up to the update of that turn.
    """
    parts = _split(batch, n_parts)
    for turn in itertools.count():
        named: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            updates = itertools.islice(method.updates(part), turn, None)
            update = _next_update(method, updates, part, precision)
            if update is None:
                return
            player, terms = update
            if index == 0:
                optimizers[player].zero_grad()
            share = len(part.images) / len(batch.images)
            (share * method.objective(terms)).backward(inputs=_moved_by(optimizers[player]))
            for name, term in terms.items():
                named[name] = named.get(name, 0.0) + share * term.detach()
            del updates, update, terms, term  # and with them the graph of this part
        average_gradients(_moved_by(optimizers[player]))
        optimizers[player].step()
        yield player, named


def _split(batch: Batch, n_parts: int) -> list[Batch]:
    """Split a batch into parts; labelled images that are too few are in each of them."""

    def split(values: Tensor | None) -> list[Tensor | None]:
        if values is None or len(values) < n_parts:
            return [values] * n_parts
        return list(values.tensor_split(n_parts))

    return [Batch(*part) for part in zip(*map(split, batch), strict=True)]


def average_weights(method: Method) -> AveragedModel:
    """Return the exponential moving average of a method's weights and buffers.

    It starts at the current weights, and its memory grows with the number of steps until it is
    that of ``config.ema_decay``: an average that remembers the first step is of no use early on.
    """
    return _Average(method)


class _Average(AveragedModel):
    """PyTorch's, less the waiting: that one carries its count to the device at every step."""

    @torch.no_grad()
    def update_parameters(self, model: Method) -> None:
        averaged, current = ([*each.parameters(), *each.buffers()] for each in (self.module, model))
        count = int(self.n_averaged)  # it stays on the CPU, wherever the weights are
        if count == 0:
            torch._foreach_copy_(averaged, current)
        else:
            weight = 1 - min(model.config.ema_decay, (1 + count) / (10 + count))
            is_float = [tensor.is_floating_point() for tensor in averaged]
            torch._foreach_lerp_(
                list(itertools.compress(averaged, is_float)),
                list(itertools.compress(current, is_float)),
                weight,
            )
            for mine, theirs in zip(averaged, current, strict=True):
                if not mine.is_floating_point():  # batch norm counts its batches in integers
                    mine.copy_(theirs)
        self.n_averaged += 1


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
    workers: int | None = None,
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
        A folder for training states; with None the run cannot be resumed. With a folder, SIGINT
        and SIGTERM are obeyed when the row is finished and saved; a second one is obeyed at once.
    resume
        Go on from the newest state in ``states``. A run of given steps then ends in the very
        weights of a run that was never interrupted.
    on_record
        Called with the step and the method whose weights are the averaged ones, at each row.
    workers
        How many processes read the images of a split that has them in files; see ``BatchStream``.

    Returns
    -------
    History
        ``step``, ``seconds`` and every named term, before weighting. A column ``collapse`` is
        there if a game's drawings have become one and the same: see :func:`measure_variety`.

    Raises
    ------
    ValueError
        If not exactly one of steps and minutes is given, or it is not positive; if the method looks
        at its whole pool and the pool is not in memory; if a file cannot be read as an image.
    TrainingError
        If a term or a gradient becomes NaN or infinite; the message names the step, and the term
        or the player.

    Notes
    -----
    Where memory does not suffice, a warning says so once, and each batch is taken in 2, 4, ...
    parts whose gradients are added up: the steps are as large as before, and slower.

    Shown in: book/05_training_loop.ipynb
    """
    check_duration(steps, minutes)
    steps = None if steps is None else whole_number(steps, "steps", 1)
    check_pool(method, split.images)
    expected, got = (method.image_shape, method.n_classes), (split.image_shape, split.n_classes)
    if expected != got:
        raise ValueError(f"split: expected (image_shape, n_classes) {expected}, got {got}")
    states = None if states is None else Path(states)
    if record_every < 1:
        raise ValueError(f"record_every: expected at least 1, got {record_every}")
    if resume and states is None:
        raise ValueError("resume: expected a folder of states to resume from, got None")
    seed_everything(seed)
    keep_memory()
    _arrange(method, precision)
    run = _Run(method, split, seed, steps, minutes, workers)
    if resume:
        run.restore(states)
    method.train()
    window: list[dict[str, Tensor]] = []
    saved = time.perf_counter()
    # An interruption waits until it costs nothing. Where nothing is saved, it need not.
    signals = nullcontext([]) if states is None else signals_noted()
    with closing(run.stream), run.bar(progress) as bar, signals as noted:
        while run.done < 1:
            window.append(run.make_step(precision))
            if len(window) < record_every and run.done < 1:
                continue
            row = run.record(window)
            window = []
            bar.update(min(bar.total, run.position) - bar.n)
            bar.set_postfix({name: f"{value:.3f}" for name, value in row.items()}, refresh=False)
            if on_record is not None:
                noise = rng_state()  # whoever watches may draw, and changes nothing
                on_record(run.step, run.averaged.module.eval())
                set_rng_state(noise)
            if states is not None and time.perf_counter() - saved > SECONDS_BETWEEN_STATES:
                run.save(states)
                saved = time.perf_counter()
            if stop := int(largest(max(noted, default=0), run.device)):
                noted[:] = [stop]  # in every process
                break
        if states is not None:
            run.save(states)
    if run.done < 1:  # somebody took the signal and did nothing: this is no finished run
        raise KeyboardInterrupt
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


def check_pool(method: Method, images: Tensor | ImageFiles) -> None:
    """Refuse images in files for a method that looks at all of its pool at once.

    Raises
    ------
    ValueError
        If it is refused.
    """
    if method.looks_at_pool and isinstance(images, ImageFiles):
        raise ValueError(
            "method: expected one that takes images batch by batch, such as combined or lsgan, or "
            f"images that fit in memory, got {method_name(method)} and {len(images)} images that "
            "stay in their files"
        )


def summarise(window: list[dict[str, Tensor]], step: int) -> dict[str, float]:
    """Return the mean of each term over those of the last steps that have it.

    Parameters
    ----------
    window
        The named terms of each step, and the norms of gradients, which are only looked at.
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
    values = average(values).cpu()  # the one place where the loop waits for the device
    broken = (~values.isfinite()).nonzero()
    if len(broken):
        row, column = broken[0].tolist()
        raise TrainingError(
            f"step {step - len(window) + row + 1}: expected finite terms, "
            f"got {names[column]} = {values[row, column].item()}"
        )
    terms = [name for name in names if not name.startswith(_GRADIENT)]
    counts = torch.tensor([sum(name in row for row in window) for name in terms])
    # Without the other columns: how a sum is rounded depends on how many there are.
    sums = values[:, [names.index(name) for name in terms]].sum(0)
    return dict(zip(terms, (sums / counts).tolist(), strict=True))


def measure_variety(method: Method, images: Tensor) -> float:
    """Return how much drawings vary, as a multiple of how much images ``(B, C, H, W)`` do.

    Two sets of real images have about 1, and a game that draws one image over and over has 0. What
    varies is each pixel, from image to image: its standard deviation is averaged over the pixels.
    A training looks every ``LOOK_EVERY`` steps of its second half, and flags less than ``VARIETY``.

    Shown in: book/05_training_loop.ipynb
    """
    with torch.no_grad():
        drawn = method.generate(torch.full((len(images),), UNLABELED)).float()
    return (drawn.std(0).mean() / images.std(0).mean().clamp(min=1e-9)).item()


class _Run:
    """Everything that changes while training, and so everything a training state holds."""

    def __init__(
        self,
        method: Method,
        split: LabelSplit,
        seed: int,
        steps: int | None,
        minutes: float | None,
        workers: int | None = None,
    ) -> None:
        config = method.config
        self.device = next(method.parameters()).device
        self.method, self.optimizers = method, method.optimizers()
        method.memory = {}  # an earlier run may have been on other images, with other labels
        self.averaged = average_weights(method)
        self.stream = BatchStream(
            split,
            batch_size=config.batch_size,
            labeled_batch_size=config.labeled_batch_size,
            seed=seed,
            device=self.device,
            part=part_of_processes(),
            workers=workers,
        )
        self.in_steps = steps is not None
        self.limit = steps if self.in_steps else 60.0 * minutes
        self.history, self.step, self.seconds, self.n_parts = History(), 0, 0.0, 1
        self.ready = 0.0  # the part of the limit that went by before the first step
        self.clock = time.perf_counter()

    @property
    def position(self) -> float:
        return self.step if self.in_steps else self.seconds

    @property
    def done(self) -> float:
        return max(0.0, self.position - self.ready) / (self.limit - self.ready)

    def bar(self, progress: bool) -> tqdm:
        return tqdm(
            total=self.limit,
            initial=min(self.limit, self.position),
            disable=not (progress and is_first()),
            unit="step" if self.in_steps else "s",
            bar_format=None
            if self.in_steps
            else "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}",
        )

    def make_step(self, precision: str) -> dict[str, Tensor]:
        """Return the terms of the step; after each player's, the norm of its gradient."""
        method = self.method
        if method.prepare(self.stream.pool, self.stream.pool_labels, self.done):
            self.averaged.n_averaged.zero_()
        if self.step == 0 and not self.in_steps:
            # No part of the schedule: a slow graph would eat up the first stage of a method.
            spent = largest(time.perf_counter() - self.clock, self.device)
            self.ready = min(spent, 0.9 * self.limit)
        done = self.done
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:  # players may differ in their rates
                rate = group.setdefault("initial_lr", group["lr"])
                group["lr"] = rate * method.rate_factor(done)
        named = self._turns(self.stream.at(self.step), precision)
        self.averaged.update_parameters(method)
        self.step += 1
        self.seconds = time.perf_counter() - self.clock
        if not self.in_steps:
            self.seconds = largest(self.seconds, self.device)
        return named

    def _turns(self, batch: Batch, precision: str) -> dict[str, Tensor]:
        """Let every player step; where memory does not suffice, in parts of the batch.

        The step in which that is found out begins anew, also for a player who had his turn.
        """
        n_parts = self.n_parts
        while True:
            try:
                if self.n_parts == 1:
                    turns = _turns(self.method, batch, self.optimizers, precision)
                else:
                    turns = _turns_in_parts(
                        self.method, batch, self.optimizers, precision, self.n_parts
                    )
                named: dict[str, Tensor] = {}
                for player, terms in turns:
                    named |= terms
                    named[_GRADIENT + player] = _gradient_norm(_moved_by(self.optimizers[player]))
                break
            except (RuntimeError, MemoryError) as error:
                alone = part_of_processes()[1] == 1  # the others would wait for this one
                smallest = 2 * self.n_parts > len(batch.images)
                if not is_out_of_memory(error) or smallest or not alone:
                    raise
            self.n_parts *= 2  # out here the failed step, and its tensors, are forgotten
            for optimizer in self.optimizers.values():
                _forget_unfinished(optimizer)
        if self.n_parts > n_parts:
            warnings.warn(
                f"memory: expected room for {len(batch.images)} images at once, got none: from "
                f"step {self.step + 1} on they are taken in {self.n_parts} parts, and their "
                "gradients added up",
                stacklevel=4,
            )
        return named

    def record(self, window: list[dict[str, Tensor]]) -> dict[str, float]:
        """Add a row to the history and return its terms."""
        row = summarise(window, self.step)
        seen = self.step // LOOK_EVERY > (self.step - len(window)) // LOOK_EVERY
        n_players = sum(name.startswith(_GRADIENT) for name in window[-1])  # had a turn: a game
        if seen and self.done >= 0.5 and self.method.draws and n_players > 1:
            noise = rng_state()
            images = to_float(self.stream.some_images(32))
            variety = measure_variety(self.averaged.module.eval(), images)
            set_rng_state(noise)
            if variety < VARIETY:
                row["collapse"] = variety
        self.history.append({"step": self.step, "seconds": round(self.seconds, 3), **row})
        return row

    def save(self, folder: Path) -> None:
        tensors = {f"method.{name}": t for name, t in self.method.state_dict().items()}
        tensors |= {f"averaged.{name}": t for name, t in self.averaged.state_dict().items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise TrainingError(f"step {self.step}: expected finite weights, got {name}")
        for name, optimizer in self.optimizers.items():
            tensors |= flatten_optimizer(name, optimizer)
        tensors |= {f"memory.{name}": t for name, t in self.method.memory.items()}
        tensors |= rng_state()
        facts = {
            "seconds": self.seconds,
            "n_parts": self.n_parts,
            "ready": self.ready,
            "history": self.history.columns,
        }
        if is_first():
            save_state(folder, self.step, tensors, facts)

    def restore(self, folder: Path) -> None:
        self.step, tensors, facts = load_state(folder)
        try:
            for prefix, module in (("method.", self.method), ("averaged.", self.averaged)):
                own = {
                    n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
                }
                module.load_state_dict(own)
            for name, optimizer in self.optimizers.items():
                restore_optimizer(name, optimizer, tensors)
            set_rng_state(tensors)
            self.seconds, self.n_parts = facts["seconds"], facts["n_parts"]
            self.ready = facts.get("ready", 0.0)
            self.history = History(facts["history"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{folder}: expected a state of this method with these settings, got {reason}"
            ) from None
        self.method.memory = {
            # A method asks its numbers what to do next: they stay where they can be read.
            name.removeprefix("memory."): tensor.to(self.device) if tensor.dim() else tensor
            for name, tensor in tensors.items()
            if name.startswith("memory.")
        }
        self.clock = time.perf_counter() - self.seconds


def _gradient_norm(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Return the norm of a player's gradient: not finite if any part of it is not."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:  # nothing of the objective reaches this player
        return parameters[0].new_zeros(())
    return torch.stack(torch._foreach_norm(gradients)).norm()
