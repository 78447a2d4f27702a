"""Make ``book/speed.md`` and its figures of what ``make bench`` measured.

Run ``python book/tools/speed_page.py`` after ``make bench`` or ``compare_precision.py``; with
``--check`` it only says whether the page is the one that the figures make. No number is typed here:
the goals of the project stand in ``GOALS``, and everything else comes from ``book/results``.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from compare_precision import MEASURES
from pages import make_page
from tables import read_rows

from semigen_lib.evaluation import mean_interval

BOOK = Path(__file__).resolve().parents[1]
RESULTS = BOOK / "results"
PAGE = BOOK / "speed.md"
ELSEWHERE = RESULTS / "bench_elsewhere.json"  # made with ``bench.py --out``, on another machine
PEER_SCRIPT, PLAIN, FP32, BF16 = "PyTorch-GAN's script", "plain loop", "ours, fp32", "ours, bf16"
SMALL = ("lsgan of the library", "autoencoder of the library")
ARTICLE, PARTS = "the article's networks", "what each part is worth"
AT_LEAST, AT_MOST = "≥\N{NO-BREAK SPACE}", "≤\N{NO-BREAK SPACE}"
GOALS = {  # what the project set itself before it measured
    "peer_fp32": 3.0,
    "peer_bf16": 4.0,
    "share": 0.60,
    "small": 1.8,
    "import": 0.15,
    "first_step": 3.5,
    "memory": 1000,
    "flat": 0.8,
}
LABELS = {
    "test_error": ("test error, %", 100),
    "conditional_accuracy": ("conditional accuracy, %", 100),
    "frechet_ratio": ("Fréchet distance ÷ its floor", 1),
    "coverage": ("coverage", 1),
}


def median(row: Mapping) -> float:
    """Return the images per second of a row."""
    return row["images_per_second"]["median"]


def by_name(rows: Sequence[Mapping]) -> dict[str, Mapping]:
    """Return the rows of a contest by their names."""
    return {row["name"]: row for row in rows}


def times(rows: Sequence[Mapping], name: str, other: str) -> float | None:
    """Return how many times as fast one row is as another; None where either is absent."""
    found = by_name(rows)
    return median(found[name]) / median(found[other]) if {name, other} <= found.keys() else None


def share_of_peak(row: Mapping, machine: Mapping) -> float | None:
    """Return which part of the fastest float32 convolution a row computes at."""
    if not row["flops_per_image"]:
        return None
    return median(row) * row["flops_per_image"] / 1e9 / machine["peak_fp32_gflops"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = [" | ".join(header), " | ".join([":--"] + ["--:"] * (len(header) - 1))]
    return "\n".join(f"| {line} |" for line in lines + [" | ".join(row) for row in rows])


# ---- goals ----


def goals(figures: Mapping) -> list[tuple[str, str, str, bool | None]]:
    """Return (what, goal, measured, reached) for each goal; None where it was not measured."""
    contests, machine = figures["contests"], figures["machine"]
    found: list[tuple[str, str, str, bool | None]] = []

    def at_least(what: str, goal: float, value: float | None, unit: str, scale: float = 1) -> None:
        shown = (
            "not measured" if value is None else f"{unit}{scale * value:.{2 if scale == 1 else 0}f}"
        )
        found.append(
            (
                what,
                f"{AT_LEAST}{unit}{scale * goal:g}",
                shown,
                None if value is None else value >= goal,
            )
        )

    for script in ("lsgan", "sgan"):
        rows = contests.get(f"PyTorch-GAN's {script}", [])
        for name, key in ((FP32, "peer_fp32"), (BF16, "peer_bf16")):
            what = f"{name.removeprefix('ours, ')}, against PyTorch-GAN's `{script}.py`"
            at_least(what, GOALS[key], times(rows, name, PEER_SCRIPT), "×")
    article = by_name(contests.get(ARTICLE, []))
    for name in (FP32, BF16):
        what = f"share of the float32 peak on the article's networks, {name.removeprefix('ours, ')}"
        value = share_of_peak(article[name], machine) if name in article else None
        at_least(what + " (%)", GOALS["share"], value, "", 100)
    for contest in SMALL:
        for name in (FP32, BF16):
            precision, network = name.removeprefix("ours, "), contest.split()[0]
            what = f"{precision}, against a plain loop, `{network}` of the library"
            at_least(what, GOALS["small"], times(contests.get(contest, []), name, PLAIN), "×")
    if "imports" in figures:
        seconds = figures["imports"]["library"]
        found.append(
            ("seconds that the library's imports add to PyTorch's", f"{AT_MOST}{GOALS['import']:g}",
             f"{seconds:.2f}", seconds <= GOALS["import"])
        )  # fmt: skip
    if "first_step_seconds" in figures:
        seconds = statistics.median(figures["first_step_seconds"])
        found.append(
            ("seconds from the start of a process to its first step on MNIST",
             f"{AT_MOST}{GOALS['first_step']:g}", f"{seconds:.1f}", seconds <= GOALS["first_step"])
        )  # fmt: skip
    mine = [r for c in (*SMALL, "combined of the library") for r in contests.get(c, [])]
    memory = max((r["peak_memory_mb"] for r in mine if r["name"] != PLAIN), default=None)
    found.append(
        ("most memory, MB, training `lsgan`, `autoencoder`, `combined`",
         f"{AT_MOST}{GOALS['memory']}", "not measured" if memory is None else str(memory),
         None if memory is None else memory <= GOALS["memory"])
    )  # fmt: skip
    for kind in ("images in memory", "images in files"):
        rates = [median(row) for row in figures["growth"].get(kind, [])]
        value = min(rates) / rates[0] if rates else None
        at_least(f"{kind}: slowest rate over that of the smallest set", GOALS["flat"], value, "")
    return found


# ---- parts of the page ----


def contest_table(rows: Sequence[Mapping], machine: Mapping, first: str) -> str:
    """Return a table of a contest; each row is compared with the first."""
    lines = []
    for row in rows:
        rate, share = row["images_per_second"], share_of_peak(row, machine)
        lines.append(
            [
                row["name"],
                f"{rate['median']:,.0f}",
                f"{rate['low']:,.0f} to {rate['high']:,.0f}",
                f"{median(row) / median(rows[0]):.2f}",
                "" if share is None else f"{100 * share:.0f}",
                f"{row['peak_memory_mb']:,}",
            ]
        )
    header = (first, "images/s", "quartiles", "times the first", "% of fp32 peak", "memory, MB")
    return table(header, lines)


def growth_table(name: str, rows: Sequence[Mapping]) -> str:
    """Return a table of what grows."""
    lines = [
        [f"{int(row['name']):,}", f"{median(row):,.0f}", f"{row['peak_memory_mb']:,}"]
        for row in rows
    ]
    return table((name, "images/s", "memory, MB"), lines)


def precision_rows(rows: Sequence[Mapping[str, str]]) -> list[dict[str, object]]:
    """Return, for each method and measure, both intervals and whether they overlap."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for measure in MEASURES:
            intervals = {}
            for precision in ("fp32", "bf16"):
                values = [
                    float(row[measure])
                    for row in rows
                    if row["method"] == method and row["precision"] == precision and row[measure]
                ]
                if len(values) > 1:
                    intervals[precision] = (*mean_interval(values), len(values))
            if len(intervals) == 2:
                (m32, h32, _), (m16, h16, _) = intervals["fp32"], intervals["bf16"]
                found.append(
                    {
                        "method": method,
                        "measure": measure,
                        "intervals": intervals,
                        "overlap": abs(m32 - m16) <= h32 + h16,
                    }
                )
    return found


def precision_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of quality with and without bfloat16."""
    lines = []
    for row in precision_rows(rows):
        label, scale = LABELS[row["measure"]]
        shown = [
            f"{scale * mean:.2f} ± {scale * half:.2f}"
            for mean, half, _ in (row["intervals"][p] for p in ("fp32", "bf16"))
        ]
        seeds = min(n for _, _, n in row["intervals"].values())
        overlap = "overlap" if row["overlap"] else "**do not overlap**"
        lines.append([f"`{row['method']}`, {label}", *shown, str(seeds), overlap])
    return table(("", "fp32", "bf16", "seeds", "intervals"), lines)


def another_machine(figures: Mapping) -> str:
    """Return the goals that were measured elsewhere too, and later."""
    machine = figures["machine"]
    lines = [
        [what, goal, value, "reached" if ok else "**missed**"]
        for what, goal, value, ok in goals(figures)
        if ok is not None
    ]
    contests = "\n\n".join(
        contest_table(rows, machine, name) for name, rows in figures["contests"].items()
    )
    return f"""\
### On a machine without bfloat16

Later the contests were run on another machine: {machine["processor"]}, {machine["cores"]} cores,
PyTorch {machine["torch"]}, a fastest convolution of {machine["peak_fp32_gflops"]:.0f} GFLOP/s, and
no instructions for bfloat16. Since the first machine was measured, the discriminator of `lsgan`
judges real and drawn images in one pass, and that of the contest with `sgan.py` reads labelled and
unlabelled images in one. That machine was noisy at times, as the quartiles say.

{table(("", "goal", "measured", ""), lines)}

{contests}
"""


def render(figures: Mapping, precision: Sequence[Mapping[str, str]], elsewhere: Mapping) -> str:
    """Return the page."""
    machine, contests = figures["machine"], figures["contests"]
    reached = {True: "reached", False: "**missed**", None: ""}
    goal_lines = [[what, goal, value, reached[ok]] for what, goal, value, ok in goals(figures)]
    peak16 = machine["peak_bf16_gflops"]
    steps = sorted({row["steps"] for row in precision})
    parts = [
        f"""\
<!-- Made by book/tools/speed_page.py of bench*.json in book/results; edit that script. -->
# How fast, and what makes it so

Two CPU cores are what a reader has, so a faster step is a better figure in the same minute. This
page says how fast training is, against what, and which idea is worth how much. All but the part
on a second machine and the section on quality was measured in one run of `make bench`, in which
whatever is compared takes turns of a few seconds: a machine that slows down slows all of them
down. A rate is the median over the turns; quartiles stand beside it.

The machine: {machine["processor"]}, {machine["cores"]} cores, PyTorch {
            machine["torch"]
        }, no GPU. Its fastest
3×3 convolution reached {machine["peak_fp32_gflops"]:.0f} GFLOP/s in float32{
            f" and {peak16:.0f} in bfloat16" if peak16 else ""
        }; shares of a peak are shares of the
float32 figure, of floating-point operations that PyTorch counted in the step as it is computed.

## What was aimed at, and what was reached

{table(("", "goal", "measured", ""), goal_lines)}

```{{figure}} results/speed_contests.png
:alt: Bars of how many times as fast each loop is as the first; the tables have the numbers.
:class: dark-light
:width: 100%

Each loop against the first of its contest.
```
""",
        another_machine(elsewhere),
        """\
## Against others, layer for layer

A *plain loop* is what tutorials write: a `DataLoader` that turns PIL images into tensors one by
one, an upsampling layer and then a convolution, gradients of everything, each loss read at each
step. It trains the same layers as ours.
""",
    ]
    for name, rows in contests.items():
        if name != PARTS:
            parts.append(contest_table(rows, machine, name) + "\n")
    parts.append(
        """\
## What each part is worth

One thing is switched off at a time, on the layers of PyTorch-GAN's `lsgan.py` in float32.

- **transposed**: doubling the side and a 3×3 convolution are one 4×4 transposed convolution of
  stride 2. Every pixel of a doubled image stands there four times, so most weights that meet it
  can be added up beforehand: the same function with four products for each new pixel instead of
  nine. The decoders of the library are made of it.
- **channels-last**: the channels of a pixel lie side by side in memory, as a convolution wants
  them. Where a CPU normalises groups of channels in bfloat16 it is the other way round, and the
  loop puts them apart.
- **kept-memory**: large blocks stay with the process. By default the C library returns them
  after each step, and the system fills them with zeros when they are asked for again.
- **fused-adam**: one pass over a weight, its gradient and its two averages instead of a dozen.
"""
    )
    if PARTS in contests:
        parts.append(contest_table(contests[PARTS], machine, "") + "\n")
    parts.append(
        f"""\
Not in the table, since it is in every row: images stay in memory as bytes and a batch is one
indexing operation; drawings of a step serve both players; a player's gradients are taken with
respect to its own weights only; terms are read once every ten steps.

## Does bfloat16 cost quality?

bfloat16 keeps the range of float32 and drops two thirds of its digits. These two methods might
use it of their own accord, where the processor has it, only if this table shows no loss:
{", ".join(steps)} steps on 100 labels, test images, 95 % intervals over seeds. The format was
settled before, by speed; the table could only forbid it.

{precision_table(precision)}

`--precision fp32` and `--precision bf16` insist on either. Weights, and what is added up inside a
product, are float32 in both. Neither method uses it unasked: two chapters that trained with it
side by side on the two cores hardly moved. `propagate`, `cgan` and `dpt` do use it unasked, and
have no such table: figures made of them in bfloat16 and in float32 are not compared here. On a GPU
it is the default of every method, unmeasured.

## How it grows

```{{figure}} results/speed_growth.png
:alt: Curves of images per second as one thing grows; the tables have the numbers.
:class: dark-light
:width: 100%

`lsgan` of the library; bars are quartiles.
```
"""
    )
    for name, rows in figures["growth"].items():
        parts.append(growth_table(name, rows) + "\n")
    parts.append(
        """\
Memory is the most that a process had, and what its readers had for themselves at the end; much
of it is PyTorch itself. Images in files are read by workers ahead of the step that wants them,
with the same result as from memory ([](running) says how to ask for it). Where this leads with a
million images or a thousand GPUs is the subject of [](scaling).

## Measure it yourself

```bash
make bench                       # a quarter of an hour; close everything else first
make bench PEER=../PyTorch-GAN   # and the scripts of a checkout of that project
```

Both renew this page. `.venv/bin/python book/tools/compare_precision.py` renews the table of
bfloat16.
"""
    )
    return "\n".join(parts)


# ---- figures ----


def draw(figures: Mapping, folder: Path) -> None:
    """Draw both figures of the page as PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from semigen_lib.plotting import COLORS, use_style

    use_style()
    order = (PEER_SCRIPT, PLAIN, FP32, BF16)
    colors = dict(zip(order, list(COLORS.values()), strict=False))
    contests = {n: r for n, r in figures["contests"].items() if n != PARTS}
    height = sum(len(rows) + 0.8 for rows in contests.values())
    figure, axes = plt.subplots(figsize=(7, 0.28 * height + 0.4), layout="constrained")
    place, ticks = 0.0, []
    for name, rows in contests.items():
        ticks.append((place + (len(rows) - 1) / 2, name))
        for row in rows:
            value = median(row) / median(rows[0])
            axes.barh(place, value, color=colors[row["name"]], height=0.85)
            axes.text(value + 0.04, place, f"{row['name']}  ×{value:.2f}", va="center", fontsize=8)
            place += 1
        place += 0.8
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * axes.get_xlim()[1])
    axes.set_xlabel("times as fast as the first of the contest")
    axes.grid(visible=False)
    figure.savefig(folder / "speed_contests.png", dpi=110)
    plt.close(figure)

    growths = figures["growth"]
    figure, grid = plt.subplots(1, len(growths), figsize=(9.5, 2.7), layout="constrained")
    for axes, (name, rows) in zip(grid, growths.items(), strict=True):
        places = [int(row["name"]) for row in rows]
        rates = [row["images_per_second"] for row in rows]
        middle = [rate["median"] for rate in rates]
        spread = [
            [rate["median"] - rate["low"] for rate in rates],
            [rate["high"] - rate["median"] for rate in rates],
        ]
        axes.errorbar(places, middle, spread, marker="o", markersize=4, capsize=2)
        if min(places) > 0:
            axes.set_xscale("log")
            axes.minorticks_off()
        if max(places) < 1000:
            axes.set_xticks(places, [str(p) for p in places])
        axes.set_ylim(0, 1.1 * max(rate["high"] for rate in rates))
        axes.set_title(name.replace(" that ", " that\n"), fontsize=9)
        axes.tick_params(labelsize=8)
    grid[0].set_ylabel("images/s")
    figure.savefig(folder / "speed_growth.png", dpi=100)
    plt.close(figure)


def main() -> int:
    precision = read_rows(RESULTS / "precision.csv")
    elsewhere = json.loads(ELSEWHERE.read_text())
    summary = __doc__.splitlines()[0]
    return make_page(
        summary, RESULTS, PAGE, lambda figures: render(figures, precision, elsewhere), draw
    )


if __name__ == "__main__":
    sys.exit(main())
