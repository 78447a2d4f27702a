"""Make ``book/scaling.md`` and its figures of what ``make bench`` measured.

Run ``python book/tools/scaling_page.py`` after ``make bench``; with ``--check`` it only says
whether the page is the one that the figures make. No number is typed into the prose: what was
measured comes from ``book/results/bench.json``, and what was not stands in ``ASSUMED`` with its
origin.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pages import make_page

from semigen_lib.methods import build_method
from semigen_lib.sources import MEMORY_SHARE

BOOK = Path(__file__).resolve().parents[1]
RESULTS = BOOK / "results"
PAGE = BOOK / "scaling.md"
BATCH, SIDE, FILES = "batch size", "side in pixels", "images in files"
MEMORY, WORKERS = "images in memory", "workers that read files"
GIGA = 1e9
N_MNIST = 60_000  # images that the bench loads unless it reads files
MNIST_SIDE = 28
COUNTS = (60_000, 1_000_000, 1_000_000_000)
SIDES = (28, 64, 128, 256)
PLAYERS = 2  # generator and discriminator: each exchanges its gradients by itself
LAUNCH, ARITHMETIC, READING, EXCHANGE, SPACE = (
    "starting operations",
    "arithmetic",
    "reading files",
    "exchanging gradients",
    "memory",
)


HEAD = "<!-- Made by book/tools/scaling_page.py of book/results/bench.json; edit that script. -->"
ALTS = (
    "Two log-log panels of images per second with measured points and the model's line, "
    f"left against the batch size, right against the side in pixels up to {SIDES[-1]}.",
    "Two log-log panels against the number of images, in memory and in files, with measured "
    f"points and the model's lines up to {COUNTS[-1]:,}; left images per second, right memory.",
)


class ScalingError(ValueError):
    """Figures that are not there; one line, "expected ..., got ..."."""


@dataclass(frozen=True)
class Constant:
    """A number that was not measured: its value in base units, and where it is from."""

    symbol: str
    value: float
    scale: float
    unit: str
    origin: str

    def __str__(self) -> str:
        return f"{self.value / self.scale:g} {self.unit}"


ASSUMED = {
    "peak of a GPU": Constant(
        *("$p$", 989e12, 1e12, "TFLOP/s"), "data sheet of NVIDIA's H100 SXM: bfloat16, dense"
    ),
    "share of that peak": Constant(
        *("$e$", 0.02, 0.01, "%"),
        "assumed, cautious: layers of a few dozen channels do not fill a GPU",
    ),
    "start of a step on a GPU": Constant(
        *("$o$", 5e-3, 1e-3, "ms"), "assumed: some hundred operations of 10 to 20 µs each"
    ),
    "images of a GPU in a step": Constant("$B$", 256, 1, "", "chosen"),
    "bandwidth of a GPU to the others": Constant(
        *("$b$", 50e9, 1e9, "GB/s"), "assumed: a network port of 400 Gbit/s for each GPU"
    ),
    "delay of a round of messages": Constant("$l$", 20e-6, 1e-6, "µs", "assumed"),
    "readers beside each GPU": Constant("$W$", 16, 1, "", "assumed, each on a core of its own"),
    "pixels a reader decodes": Constant(
        "$q$", 50e6, 1e6, "million/s", "assumed, for pixels beyond those of the measured files"
    ),
    "main memory for each GPU": Constant("", 128e9, GIGA, "GB", "assumed"),
    "main memory of this machine": Constant(
        "", 16e9, GIGA, "GB", "assumed; the bench does not ask"
    ),
}


# ---- what was measured ----


@dataclass(frozen=True)
class Row:
    """A row of the bench, with all that it depends on; ``workers`` is None without files."""

    kind: str
    batch: int
    side: int
    count: int
    workers: int | None
    rate: float  # images a second
    memory: float  # bytes

    @property
    def held(self) -> int:
        """How many images are in memory at a time; a pool is made of MNIST's while those stay."""
        return 0 if self.workers is not None else self.count + N_MNIST * (self.kind == MEMORY)

    @property
    def readers(self) -> int:
        """How many read at a time: the trainer itself if nobody else does."""
        return max(self.workers or 0, 1)


def part(figures: Mapping, *path: str) -> object:
    """Return what stands under a path of keys."""
    found: object = figures
    for key in path:
        if not isinstance(found, Mapping) or not found.get(key):
            raise ScalingError(f"bench.json: expected {' / '.join(path)}, got no {key!r}")
        found = found[key]
    return found


def measured(figures: Mapping) -> list[Row]:
    """Return the rows of everything that grew."""
    cores = part(figures, "machine", "cores")
    largest = max(int(row["name"]) for row in part(figures, "growth", FILES))
    found = []
    for kind in (BATCH, SIDE, MEMORY, FILES, WORKERS):
        for row in part(figures, "growth", kind):
            number, streams = int(part(row, "name")), kind in (FILES, WORKERS)
            counts = {MEMORY: number, FILES: number, WORKERS: largest}
            found.append(
                Row(
                    kind,
                    batch=part(row, "batch_size"),
                    side=number if kind == SIDE else MNIST_SIDE,
                    count=counts.get(kind, N_MNIST),
                    workers=(number if kind == WORKERS else min(4, cores)) if streams else None,
                    rate=part(row, "images_per_second", "median"),
                    memory=1e6 * part(row, "peak_memory_mb"),
                )
            )
    return found


def fit(columns: Sequence[Sequence[float]], values: Sequence[float]) -> np.ndarray:
    """Return coefficients >= 0 of columns whose sum comes close to values, by relative squares."""
    scaled = np.array(columns, float) / np.array(values, float)[:, None]
    used = np.ones(scaled.shape[1], bool)
    while True:
        found = np.zeros(len(used))
        found[used] = np.linalg.lstsq(scaled[:, used], np.ones(len(scaled)), rcond=None)[0]
        if found.min() >= 0:
            return found
        used[found.argmin()] = False


# ---- the model ----


@dataclass(frozen=True)
class Machine:
    """What trains: ``gpus`` processes with a GPU each, or one process on this machine if 0."""

    name: str
    gpus: int
    batch: int  # images for each process and step
    speed: float  # floating-point operations a second that it reaches
    launch: float  # seconds to start a step's operations
    readers: int  # for each process
    memory: float  # bytes for each process


@dataclass(frozen=True)
class Model:
    """The terms that were fitted."""

    flops: tuple[tuple[int, float], ...]  # (side, operations for each image), rising
    speed: float  # operations a second, of this machine
    launch: float  # seconds a step, of this machine
    reading: float  # seconds for an image of MNIST's size and a reader
    fixed: float  # bytes
    copies: float  # bytes for each byte of images in memory
    activations: float  # bytes for each pixel of a batch
    name: float  # bytes for each image in a file
    reader: float  # bytes for each reader

    def flops_of(self, side: int) -> float:
        """Return operations for an image: counted, or on the line in side² through the last two."""
        counted = dict(self.flops)
        if side in counted:
            return counted[side]
        (s, low), (t, high) = self.flops[-2:]
        return high + (high - low) * (side**2 - t**2) / (t**2 - s**2)

    def reading_of(self, side: int) -> float:
        """Return seconds to read an image: what was measured, and the pixels beyond."""
        pixels = max(0, side**2 - MNIST_SIDE**2)
        return self.reading + pixels / ASSUMED["pixels a reader decodes"].value

    def memory_of(self, count: int, side: int, batch: int, readers: int | None) -> float:
        """Return bytes of a process and its readers; images are in memory if those are None."""
        pool = self.copies * count * side**2
        if readers is not None:
            pool = self.name * count + self.reader * readers
        return self.fixed + self.activations * batch * side**2 + pool


def fit_model(figures: Mapping) -> Model:
    """Return the model of the bench's figures.

    Raises
    ------
    ScalingError
        If a figure is missing, or rates do not depend on the arithmetic.
    """
    sides = part(figures, "growth", SIDE)
    flops = tuple(sorted((int(row["name"]), part(row, "flops_per_image")) for row in sides))
    rows, of_side = measured(figures), dict(flops)
    if MNIST_SIDE not in of_side or len(of_side) < 2:
        raise ScalingError(
            f"bench.json: expected sides {MNIST_SIDE} and another, got {sorted(of_side)}"
        )
    launch, second, reading = fit(
        [
            (1, r.batch * of_side[r.side], r.batch / r.readers if r.workers is not None else 0)
            for r in rows
        ],
        [r.batch / r.rate for r in rows],
    )
    if not second:
        raise ScalingError("bench.json: expected larger images to take longer, got no difference")
    space = fit(
        [
            (1, r.batch * r.side**2)
            + ((r.held * r.side**2, 0, 0) if r.workers is None else (0, r.count, r.workers))
            for r in rows
        ],
        [r.memory for r in rows],
    )
    fixed, activations, copies, name, reader = map(float, space)
    return Model(
        *(flops, float(1 / second), float(launch), float(reading)),
        *(fixed, copies, activations, name, reader),
    )


def predicted(model: Model, row: Row) -> tuple[float, float]:
    """Return (images a second, bytes) that the model says of a row."""
    seconds = model.launch + row.batch * model.flops_of(row.side) / model.speed
    if row.workers is not None:
        seconds += row.batch * model.reading_of(row.side) / row.readers
    count = row.held or row.count
    return row.batch / seconds, model.memory_of(count, row.side, row.batch, row.workers)


def machines(model: Model, figures: Mapping) -> list[Machine]:
    """Return the machines of the page's tables."""
    value = {name: constant.value for name, constant in ASSUMED.items()}
    speed = value["peak of a GPU"] * value["share of that peak"]
    here = Machine(
        *(
            "This machine",
            0,
            part(figures, "growth", SIDE)[0]["batch_size"],
            model.speed,
            model.launch,
        ),
        *(min(4, part(figures, "machine", "cores")), value["main memory of this machine"]),
    )
    return [here] + [
        Machine(
            *(f"{gpus:,} GPU{'s' * (gpus > 1)}", gpus),
            *(int(value["images of a GPU in a step"]), speed),
            value["start of a step on a GPU"],
            int(value["readers beside each GPU"]),
            value["main memory for each GPU"],
        )
        for gpus in (1, 8, 1000)
    ]


@functools.cache
def n_weights(side: int) -> int:
    """Return how many weights ``lsgan`` has."""
    method = build_method("lsgan", (1, side, side), 10)
    return sum(p.numel() for p in method.parameters())


def exchange_seconds(weights: int, gpus: int) -> float:
    """Return the seconds a step's gradients take: a ring's bytes, a tree's rounds."""
    if gpus < 2:
        return 0.0
    sent = 4 * weights * 2 * (gpus - 1) / gpus
    rounds = PLAYERS * 2 * math.ceil(math.log2(gpus))
    return (
        sent / ASSUMED["bandwidth of a GPU to the others"].value
        + rounds * ASSUMED["delay of a round of messages"].value
    )


def step_seconds(
    model: Model, machine: Machine, side: int, *, streams: bool
) -> tuple[float, dict[str, float]]:
    """Return the seconds of a step, and those of each of its parts.

    On this machine all parts share the same cores and add up. Beside a GPU operations are started
    and files are read while it computes, and the slowest of the three is waited for.
    """
    parts = {
        LAUNCH: machine.launch,
        ARITHMETIC: machine.batch * model.flops_of(side) / machine.speed,
        READING: machine.batch * model.reading_of(side) / machine.readers if streams else 0.0,
        EXCHANGE: exchange_seconds(n_weights(side), machine.gpus),
    }
    if not machine.gpus:
        return sum(parts.values()), parts
    on_gpu = parts[ARITHMETIC] + parts[EXCHANGE]
    return max(parts[LAUNCH], on_gpu, parts[READING]), parts


@dataclass(frozen=True)
class Epoch:
    """What one pass over a set of images costs."""

    seconds: float
    memory: float  # bytes for each process
    streams: bool  # whether images stay in their files
    bottleneck: str


def epoch(model: Model, machine: Machine, count: int, side: int) -> Epoch:
    """Return the cost of showing ``count`` images once."""
    streams = count * side**2 > MEMORY_SHARE * machine.memory
    seconds, parts = step_seconds(model, machine, side, streams=streams)
    steps = math.ceil(count / (max(machine.gpus, 1) * machine.batch))
    memory = model.memory_of(count, side, machine.batch, machine.readers if streams else None)
    if memory > machine.memory:
        bottleneck = SPACE
    elif machine.gpus and seconds > max(parts[LAUNCH], parts[READING]):
        bottleneck = max((ARITHMETIC, EXCHANGE), key=parts.get)
    else:
        bottleneck = max(parts, key=parts.get)
    return Epoch(steps * seconds, memory, streams, bottleneck)


# ---- the page ----


def number(value: float) -> str:
    """Return a number with two digits that count."""
    value = float(f"{value:.1e}")
    return f"{value:,.{max(0, 1 - math.floor(math.log10(value)))}f}" if value else "0"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for size, unit in ((3600, "hours"), (60, "minutes"), (1, "seconds")):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(1e3 * seconds)} ms"


def percent(error: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * error:.0f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], aligned: str) -> str:
    """Return a Markdown table; ``aligned`` has an l or r for each column."""
    marks = [":--" if side == "l" else "--:" for side in aligned]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *rows))


def error_table(model: Model, rows: Sequence[Row]) -> str:
    """Return the largest relative errors of rates and memory for each thing that grew."""
    errors: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        rate, memory = predicted(model, row)
        errors.setdefault(row.kind, []).append(
            (abs(rate / row.rate - 1), abs(memory / row.memory - 1))
        )
    lines = [
        [kind, str(len(found)), *(percent(max(column)) for column in zip(*found, strict=True))]
        for kind, found in errors.items()
    ]
    worst = zip(*(pair for found in errors.values() for pair in found), strict=True)
    lines.append(["**all**", str(len(rows)), *(f"**{percent(max(c))}**" for c in worst)])
    return table(("what grew", "rows", "error of images/s", "error of memory"), lines, "lrrr")


def term_table(model: Model, machine: Mapping) -> str:
    """Return the terms of the model, each with its origin."""
    peak, here = part(machine, "peak_fp32_gflops"), "measured here, fitted"
    lines = [
        ["$f$", f"operations for an image of {side}²", f"{number(flops / 1e6)} million",
         "counted by PyTorch"]
        for side, flops in model.flops
    ]  # fmt: skip
    lines += [
        ["$f$", f"the same, {side}²", f"{number(model.flops_of(side) / 1e6)} million",
         "on the line through the two largest, in $s^2$"]
        for side in SIDES if side not in dict(model.flops)
    ]  # fmt: skip
    lines += [
        ["$p$", "peak of this machine, float32", f"{number(peak)} GFLOP/s", "measured here"],
        ["$e$", "share of it reached", percent(model.speed / 1e9 / peak), here],
        ["$o$", "start of a step here", f"{number(1e3 * model.launch)} ms", here],
        ["$r$", f"an image of {MNIST_SIDE}² read", f"{number(1e6 * model.reading)} µs", here],
        ["$m$", "memory before anything else", f"{number(model.fixed / GIGA)} GB", here],
        ["$c$", "memory for a byte of images", f"{number(model.copies)} bytes", here],
        ["$g$", "memory for a pixel of a batch", f"{number(model.activations)} bytes", here],
        ["$d$", "memory for an image in a file", f"{number(model.name)} bytes", here],
        ["$h$", "memory of a reader", f"{number(model.reader / GIGA)} GB", here],
        ["$w$", f"weights, {SIDES[0]}² and {SIDES[-1]}²",
         " and ".join(number(n_weights(s)) for s in (SIDES[0], SIDES[-1])), "counted"],
    ]  # fmt: skip
    lines += [[c.symbol, name, str(c).strip(), c.origin] for name, c in ASSUMED.items()]
    return table(("", "term", "value", "how it is known"), lines, "llrl")


def cost_table(model: Model, machine: Machine) -> str:
    """Return what one pass costs on a machine."""
    lines = []
    for count in COUNTS:
        for side in SIDES:
            cost = epoch(model, machine, count, side)
            where = "files" if cost.streams else "memory"
            lines.append([f"{count:,}", f"{side}²", where, duration(cost.seconds),
                          number(cost.memory / GIGA), cost.bottleneck])  # fmt: skip
    header = ("images", "pixels", "images in", "time", "memory, GB", "bottleneck")
    return table(header, lines, "rrlrrl")


def bottlenecks(model: Model, machine: Machine) -> str:
    """Return which bottleneck a machine meets where."""
    places: dict[str, list[str]] = {}
    for count in COUNTS:
        sides: dict[str, list[str]] = {}
        for side in SIDES:
            sides.setdefault(epoch(model, machine, count, side).bottleneck, []).append(f"{side}²")
        for name, found in sides.items():
            of = "" if len(found) == len(SIDES) else f" of {', '.join(found)} pixels"
            places.setdefault(name, []).append(f"{count:,} images{of}")
    return ", ".join(f"*{name}* with {' and '.join(found)}" for name, found in places.items())


def bottleneck_sentence(model: Model, found: Sequence[Machine]) -> str:
    """Return the bottlenecks of machines; those that meet the same ones are named together."""
    names: dict[str, list[str]] = {}
    for machine in found:
        names.setdefault(bottlenecks(model, machine), []).append(machine.name)
    return "; ".join(f"{', '.join(same)}: {where}" for where, same in names.items())


def render(figures: Mapping) -> str:
    """Return the page.

    Raises
    ------
    ScalingError
        If a figure that the page needs is missing.
    """
    model, rows = fit_model(figures), measured(figures)
    processor, cores = (part(figures, "machine", key) for key in ("processor", "cores"))
    here, *gpus = machines(model, figures)
    most = gpus[-1]
    batch = most.gpus * most.batch
    step, parts = step_seconds(model, most, SIDES[-1], streams=False)
    notice = "*Nothing in this table was measured: it is the model with the assumed terms.*"
    on_gpus = "\n".join(f"### {m.name}\n\n{notice}\n\n{cost_table(model, m)}\n" for m in gpus)
    return rf"""{HEAD}
# A million images, a billion

How long would one pass over a million or a billion images take, and how much memory, on this
machine or on a thousand GPUs, and what would everything wait for? What `make bench` measured
([](speed)) ends at {max(r.count for r in rows):,} images, {model.flops[-1][0]} pixels a side and
{cores} cores. This page fits a small model to it and follows that much further.

```{{warning}}
**Nothing was measured on a GPU.** Every term of one is from a data sheet or assumed; the table of
terms says which. Read those times as orders of magnitude.
```

## What was measured

`lsgan` of the library, which needs no labels, in float32 on {processor}, {cores} cores, PyTorch
{part(figures, "machine", "torch")}. Points are medians over turns; lines are the model of the next
section.

```{{figure}} results/scaling_time.png
:alt: {ALTS[0]}
:class: dark-light
:width: 100%

Images per second against the batch size, and against the side of an image.
```

```{{figure}} results/scaling_memory.png
:alt: {ALTS[1]}
:class: dark-light
:width: 100%

Images per second and memory against the number of images.
```

## The model

$K$ processes with a GPU each, or one process on this machine ($K = 1$), show $N$ images of
$s \times s$ pixels once. Each takes $B$ images in a step, and $W$ readers bring them if they are in
files. A step has four parts: its operations are started in $o$ seconds; arithmetic takes $a$;
reading takes $\rho$, or nothing from memory; exchanging gradients takes $x$, or nothing if
$K = 1$:

$$
a = \frac{{B\, f(s)}}{{e\, p}}, \qquad
\rho = \frac{{B}}{{W}} \left( r + \frac{{s^2 - {MNIST_SIDE}^2}}{{q}} \right), \qquad
x = \frac{{4 w}}{{b}} \cdot \frac{{2 (K - 1)}}{{K}} + {2 * PLAYERS} \lceil \log_2 K \rceil\, l .
$$

$f(s)$ are floating-point operations for an image, $p$ is the peak and $e$ the share of it that is
reached. A small image is read in $r$ seconds, and of a larger one $q$ pixels are decoded in a
second. $w$ weights of 4 bytes travel at $b$ bytes a second, for both players up and down a tree
whose every round is late by $l$. On this machine all parts share the cores and add up. Beside a GPU
they overlap, but for the exchange, which waits for the gradients:

$$
t_\text{{here}} = o + a + \rho, \qquad t_\text{{GPU}} = \max(o,\; a + x,\; \rho) .
$$

One pass over the images, an epoch, takes

$$
\left\lceil \frac{{N}}{{K B}} \right\rceil \cdot t .
$$

A process and its readers need, with images in memory or in files,

$$
M = m + g\, B s^2 + c\, N s^2 \qquad \text{{or}} \qquad M = m + g\, B s^2 + d\, N + h\, W .
$$

Images stay in their files, as the library decides it, if they would take more than
{percent(MEMORY_SHARE)} of the memory. The bottleneck is the largest part of a step, or memory if
$M$ is more than there is.

{term_table(model, part(figures, "machine"))}

What was fitted comes from two fits of least relative squares, one of seconds and one of memory,
over all rows of the bench. Memory is an upper bound: pages that readers share with the process that
trains are counted once for each. The largest relative errors:

{error_table(model, rows)}

## One epoch on this machine

{processor}, {cores} cores, {here.batch} images in a step. Lines beyond what was measured follow
from the terms. Where the bottleneck is memory, the time is what it would be if there were enough.

{cost_table(model, here)}

## One epoch on GPUs

Each GPU takes {most.batch} images in a step, and its process has {most.memory / GIGA:g} GB of main
memory. Every process has all images, or the names of all files. What a batch needs is counted
with the rest, though it lies on the GPU.

{on_gpus}
## What would stop you, and what the model leaves out

- **What becomes the bottleneck where:** {bottleneck_sentence(model, (here, *gpus))}. Exchanging
  gradients between {most.name} takes {duration(parts[EXCHANGE])} beside a step of
  {duration(step)}, since networks of this size have few weights.
- **Large batches:** {most.name} with {most.batch} images each make one batch of {batch:,}. An epoch
  of {COUNTS[0]:,} images fills {number(COUNTS[0] / batch)} of such steps, one of {COUNTS[1]:,}
  fills {number(COUNTS[1] / batch)}. Beyond some size a larger batch hardly saves steps (McCandlish
  and others, 2018, *An Empirical Model of Large-Batch Training*), and a faster epoch is then no
  longer a faster result.
- **Left out:** slow machines that all others wait for; failures, and the states saved against them;
  the disks and networks that files come from; larger networks, which larger images would need; and
  what such batches do to the quality of what is learned.
"""


# ---- figures ----


def draw(figures: Mapping, folder: Path) -> None:
    """Draw both figures of the page as PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from semigen_lib.plotting import use_style

    use_style()
    model, rows = fit_model(figures), measured(figures)
    counts = [round(count) for count in np.geomspace(1000, COUNTS[-1], 50)]
    batches = [row.batch for row in rows if row.kind == BATCH]

    def panel(axes: object, kind: str, field: str, places: Sequence[int], what: str) -> None:
        """Draw points, and the model's line at places."""
        points = [row for row in rows if row.kind == kind]
        lines = [replace(points[0], **{field: place}) for place in places]
        index, unit = ("rate", "memory").index(what), {"rate": 1, "memory": GIGA}[what]
        (line,) = axes.plot(places, [predicted(model, row)[index] / unit for row in lines])
        axes.plot(
            [getattr(row, field) for row in points],
            [getattr(row, what) / unit for row in points],
            "s" if kind == FILES else "o",
            color=line.get_color(),
            label=kind,
        )
        axes.set(xscale="log", yscale="log")

    figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.7), sharey=True)
    cases = ((BATCH, "batch", batches), (SIDE, "side", SIDES))
    for axes, (kind, field, places) in zip(panels, cases, strict=True):
        panel(axes, kind, field, places, "rate")
        axes.set(xlabel=kind)
        axes.set_xticks(places, [str(place) for place in places])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    panels[0].set_ylabel("images/s")
    figure.savefig(folder / "scaling_time.png", dpi=130)
    plt.close(figure)

    figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.7))
    for axes, what in zip(panels, ("rate", "memory"), strict=True):
        for kind in (MEMORY, FILES):
            panel(axes, kind, "count", counts, what)
        axes.set(xlabel="images")
    low, high = panels[0].get_ylim()
    panels[0].set(ylabel="images/s", ylim=(low / 10, 3 * high))
    panels[0].tick_params(axis="y", which="minor", labelleft=False)
    panels[1].set(ylabel="memory, GB")
    panels[1].legend()
    figure.savefig(folder / "scaling_memory.png", dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    summary = __doc__.splitlines()[0]
    return make_page(summary, RESULTS, PAGE, render, draw, arguments)


if __name__ == "__main__":
    sys.exit(main())
