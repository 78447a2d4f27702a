"""The one plotting style of the book: image grids, curves, intervals, point clouds, explorers.

Every function draws into `ax` when it gets one and otherwise makes a figure of its own; it
returns the `Axes`. Colours are Okabe and Ito's, told apart by readers with any kind of colour
vision; wherever a colour carries meaning, a text, a shape or a position carries it too. Figures are
white, so that a dark page shows them as they are. Tensors may live on any device.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager, patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

__all__ = [
    "CLASS_COLORS",
    "COLORS",
    "CYCLE",
    "PlotError",
    "explore",
    "grid_png",
    "plot_history",
    "plot_intervals",
    "plot_points",
    "plot_sweep",
    "show_code_space",
    "show_images",
    "use_style",
]

GREY = "#8a8f94"
INK = "#2b2f33"
#: What each thing of the book is drawn in, everywhere.
COLORS = {
    "labeled": "#0072b2",
    "unlabeled": GREY,
    "real": "#009e73",
    "fake": "#d55e00",
    "encoder": "#56b4e9",
    "generator": "#d55e00",
    "discriminator": "#cc79a7",
    "classifier": "#e69f00",
    "baseline": "#4d5358",
}
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d5358", "#a08a00")
#: Ten classes: the cycle without its grey, and three colours that stay apart from it.
CLASS_COLORS = (*CYCLE[:6], "#7a3e9d", "#a08a00", "#8c2d04", "#1b1b1b")
MARKERS = "osD^vPX<>p"
MAX_EXPLORER_BYTES = 400_000

_UNLABELED = -1
_GAP = 1  # image pixels between the tiles of a grid
_GAP_GREY = 220
_GRID_WIDTH = 600  # device pixels that a grid fills when no scale is given
_PERCENT = ticker.FuncFormatter(lambda value, _: f"{100 * value:.6g}%")
#: DejaVu ships with matplotlib; what it lacks, as in Chinese names of classes, is drawn by those of
#: the others that are installed.
_FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "PingFang SC",
    "Hiragino Sans GB", "Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Arial Unicode MS",
)  # fmt: skip
_HALO = (patheffects.withStroke(linewidth=3, foreground="white"),)


class PlotError(ValueError):
    """An argument that cannot be drawn; the message says what was expected and what was got."""


def use_style() -> None:
    """Set matplotlib's defaults for the whole book (five inches wide, readable on a phone).

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    plt.rcParams.update(
        {
            "figure.figsize": (5.0, 3.1),
            "figure.dpi": 110,
            "savefig.dpi": "figure",
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "figure.max_open_warning": 0,  # an explorer opens one figure per frame, then closes it
            "axes.prop_cycle": plt.cycler(color=CYCLE),
            "axes.facecolor": "white",
            "axes.edgecolor": GREY,
            "axes.labelcolor": INK,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.titlecolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e8ea",
            "grid.linewidth": 0.8,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "text.color": INK,
            "font.size": 10.5,
            "font.family": _installed_fonts(),
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "lines.solid_capstyle": "round",
            "image.interpolation": "nearest",
            "image.cmap": "gray",
        }
    )


def _installed_fonts() -> list[str]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _FONTS if name in installed]


def show_images(
    images,
    *,
    columns: int = 10,
    titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    ax: Axes | None = None,
    scale: int | None = None,
) -> Axes:
    """Draw images as one crisp grid, row by row.

    Parameters
    ----------
    images : tensor or array (N, C, H, W)
        C is 1 or 3; float in [0, 1] or uint8.
    columns : int
        Images per row; a shorter list makes a narrower grid.
    titles, row_titles : sequence of str, optional
        One per column, above; one per row, on the left.
    ax : Axes, optional
        Where to draw; without it a figure is made in which an image pixel is exactly `scale`
        pixels wide.
    scale : int, optional
        Pixels per image pixel of the figure made here; by default as many as 600 pixels hold.

    Raises
    ------
    PlotError
        For another shape, values outside the range, or a wrong number of titles.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    tiles = _as_images(images)
    columns = min(_positive(columns, "columns"), len(tiles))
    rows = -(-len(tiles) // columns)
    _same_length(titles, columns, "titles (one per column)")
    _same_length(row_titles, rows, "row_titles (one per row)")
    grid = _grid(tiles, columns)
    own = ax is None
    if own:
        ax = plt.figure(layout="none").add_axes((0, 0, 1, 1))
    ax.imshow(grid, interpolation="nearest")
    ax.set_axis_off()
    height, width = tiles.shape[1] + _GAP, tiles.shape[2] + _GAP
    style = {"textcoords": "offset points", "annotation_clip": False, "parse_math": False}
    style["fontfamily"] = _installed_fonts()
    above = {"xytext": (0, 4), "ha": "center", "va": "bottom", **style}
    beside = {"xytext": (-5, 0), "ha": "right", "va": "center", **style}
    texts = [
        ax.annotate(_drawable(text), ((i + 0.5) * width, -0.5), **above)
        for i, text in enumerate(titles or ())
    ] + [
        ax.annotate(_drawable(text), (-0.5, (i + 0.5) * height), **beside)
        for i, text in enumerate(row_titles or ())
    ]
    if own:
        fits = min(_GRID_WIDTH // grid.shape[1], 4 * _GRID_WIDTH // grid.shape[0])
        scale = max(1, fits) if scale is None else _positive(scale, "scale")
        _fit_figure(ax, grid.shape[1] * scale, grid.shape[0] * scale, texts)
    return ax


def _drawable(text: str) -> str:
    """Return a text whose bytes that are no UTF-8, as a folder's name may have, are spelt out."""
    return str(text).encode(errors="backslashreplace").decode()


def grid_png(
    images,
    *,
    columns: int = 10,
    row_titles: Sequence[str] | None = None,
) -> bytes:
    """Return images as one PNG picture, and leave no figure behind.

    Parameters
    ----------
    images, columns, row_titles
        As in `show_images`.

    Shown in: book/running.md
    """
    figure = show_images(images, columns=columns, row_titles=row_titles).figure
    content = io.BytesIO()
    figure.savefig(content, format="png")
    plt.close(figure)
    return content.getvalue()


def plot_history(
    history: Mapping[str, Sequence[float]],
    terms: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
    smooth: int = 1,
    log: bool = False,
) -> Axes:
    """Draw the named losses of a training run against the step.

    Parameters
    ----------
    history : mapping
        `"step"` and one list per term, all of one length; None where a term was not there.
    terms : sequence of str, optional
        Which terms, in this order; by default all.
    ax : Axes, optional
        Where to draw.
    smooth : int
        Draw running means over this many recorded steps, and the values themselves faintly.
    log : bool
        Logarithmic loss axis.

    Raises
    ------
    PlotError
        For an unknown term, one of another length than `"step"`, or one that was never there.

    Shown in: book/02_autoencoder.ipynb
    """
    if "step" not in history:
        raise PlotError(f'expected a history with "step", got {", ".join(history) or "none"}')
    terms = [name for name in history if name != "step"] if terms is None else list(terms)
    steps = np.asarray(history["step"], dtype=float)
    smooth = _positive(smooth, "smooth")
    if not terms:
        raise PlotError("expected at least 1 term, got 0")
    if not len(steps):
        raise PlotError("expected a history of at least 1 step, got 0")
    ax = _axes(ax)
    ends = []
    for name in terms:
        if name not in history:
            raise PlotError(f"expected terms of the history ({', '.join(history)}), got {name!r}")
        values = _array(history[name]).astype(float)
        _same_length(values, len(steps), f"values of {name!r} (one per step)")
        there = np.flatnonzero(~np.isnan(values))
        if not len(there):
            raise PlotError(f"expected at least 1 value of {name!r}, got 0")
        stage = slice(there[0], there[-1] + 1)  # a method may work in stages, with own terms
        at, values = steps[stage], values[stage]
        window = min(smooth, len(values))
        shown = values
        if window > 1:
            (faint,) = ax.plot(at, values, alpha=0.25, linewidth=0.8)
            shown = np.convolve(values, np.ones(window) / window, mode="valid")
        color = faint.get_color() if window > 1 else None
        (line,) = ax.plot(at[len(at) - len(shown) :], shown, label=name, color=color)
        ends.append(line)
    if log:
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel=terms[0] if len(terms) == 1 else "loss")
    if len(terms) > 1:
        _label_lines(ax, ends)
    return ax


def plot_intervals(
    names: Sequence[str],
    mean,
    half_width,
    *,
    points: Sequence[Sequence[float]] | None = None,
    ax: Axes | None = None,
    xlabel: str = "",
    percent: bool = False,
    colors: Sequence[str] | None = None,
) -> Axes:
    """Draw one row per group: every seed as a dot, the mean, and its interval.

    Parameters
    ----------
    names : sequence of str
        The groups, from top to bottom.
    mean, half_width : array (G,)
        The interval is mean ± half_width (for example from `evaluation.mean_interval`).
    points : sequence of G sequences, optional
        The single values, one per seed.
    ax : Axes, optional
        Where to draw.
    xlabel : str
        What the values are.
    percent : bool
        The values are fractions; write them as percentages.
    colors : sequence of G colours, optional
        By default the first colour of the cycle for all.

    Raises
    ------
    PlotError
        Where the lengths differ or a half width is negative.

    Shown in: book/04_combined_objective.ipynb
    """
    mean, half_width = _array(mean).astype(float), _array(half_width).astype(float)
    _same_length(mean, len(names), "means (one per name)")
    _same_length(half_width, len(names), "half widths (one per name)")
    _same_length(points, len(names), "groups of points (one per name)")
    _same_length(colors, len(names), "colors (one per name)")
    if (half_width < 0).any():
        raise PlotError(f"expected half widths of at least 0, got {half_width.min():g}")
    if ax is None:
        size = (plt.rcParams["figure.figsize"][0], 0.75 + 0.48 * len(names))
        ax = plt.figure(figsize=size).add_subplot()
    for row in range(len(names)):
        color = CYCLE[0] if colors is None else colors[row]
        if points is not None:
            values = _array(points[row]).astype(float)
            ax.plot(values, [row + 0.2] * len(values), "o", color=color, alpha=0.45, ms=4, mew=0)
        low, high = mean[row] - half_width[row], mean[row] + half_width[row]
        ax.plot([low, high], [row, row], color=color, linewidth=2.6)
        ax.plot(mean[row], row, "o", color=color, ms=8, mec="white", mew=1.2)
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    ax.set(xlabel=xlabel)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(False, axis="y")
    if percent:
        ax.xaxis.set_major_formatter(_PERCENT)
    return ax


def plot_sweep(
    x,
    curves: Mapping[str, object],
    *,
    ax: Axes | None = None,
    xlabel: str = "",
    ylabel: str = "",
    log_x: bool = False,
    percent: bool = False,
    colors: Mapping[str, str] | None = None,
) -> Axes:
    """Draw one line per setting over a swept value, with its interval as a band.

    Parameters
    ----------
    x : array (X,)
        The swept values, marked on the axis one by one.
    curves : mapping
        Name to `(mean, half_width)`, both (X,), or name to means alone.
    ax : Axes, optional
        Where to draw.
    xlabel, ylabel : str
        What is swept, and what comes of it.
    log_x, percent : bool
        Logarithmic x axis; fractions written as percentages.
    colors : mapping, optional
        Name to colour, for names that have one in `COLORS`.

    Raises
    ------
    PlotError
        Where a curve has another length than `x`.

    Shown in: book/04_combined_objective.ipynb
    """
    x = _array(x).astype(float)
    if log_x and x.min() <= 0:
        raise PlotError(f"expected x above 0 on a log axis, got {x.min():g}")
    ax = _axes(ax)
    ends = []
    for name, curve in curves.items():
        pair = curve if isinstance(curve, tuple) else (curve, np.zeros(len(x)))
        mean, half_width = (_array(part).astype(float) for part in pair)
        _same_length(mean, len(x), f"means of {name!r} (one per x)")
        _same_length(half_width, len(x), f"half widths of {name!r} (one per x)")
        color = (colors or {}).get(name)
        (line,) = ax.plot(x, mean, "o-", ms=5, mec="white", mew=0.8, label=name, color=color)
        ax.fill_between(
            x, mean - half_width, mean + half_width, color=line.get_color(), alpha=0.15, linewidth=0
        )
        ends.append(line)
    if log_x:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.FixedLocator(x))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    if percent:
        ax.yaxis.set_major_formatter(_PERCENT)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _label_lines(ax, ends)
    return ax


def plot_points(
    points,
    labels,
    labeled_mask=None,
    *,
    ax: Axes | None = None,
    class_names: Sequence[str] | None = None,
) -> Axes:
    """Scatter points of the plane by class; labelled ones large, outlined, a shape per class.

    Parameters
    ----------
    points : array (N, 2)
        Where they lie.
    labels : array (N,)
        Integer classes, -1 where unknown (grey).
    labeled_mask : array (N,) of bool, optional
        The points whose label the learner has; by default, where some labels are -1, all others.
    ax : Axes, optional
        Where to draw.
    class_names : sequence of str, optional
        Written at the middle of each class.

    Raises
    ------
    PlotError
        For another shape, or a label that is not an integer of at least -1.

    Shown in: book/01_semi_supervised_learning.ipynb
    """
    points, labels = _points(points, labels)
    known = labels != _UNLABELED
    mask = known & ~known.all() if labeled_mask is None else _array(labeled_mask).astype(bool)
    _same_length(mask, len(points), "mask values (one per point)")
    if class_names is not None and labels.max() >= len(class_names):
        raise PlotError(
            f"expected class names for labels to {labels.max()}, got {len(class_names)}"
        )
    ax = _axes(ax)
    # Quiet where there are many: a cloud of thousands must not become a blot.
    size = float(np.clip(6000 / len(points), 4, 22))
    for label in np.unique(labels):
        color = GREY if label == _UNLABELED else CLASS_COLORS[label % len(CLASS_COLORS)]
        rest, chosen = points[(labels == label) & ~mask], points[(labels == label) & mask]
        ax.scatter(*rest.T, s=size, color=color, alpha=0.55, linewidths=0, rasterized=True)
        marker = MARKERS[label % len(MARKERS)]
        ax.scatter(
            *chosen.T,
            s=75,
            color=color,
            marker=marker,
            edgecolors="black",
            linewidths=1.2,
            zorder=4,
        )
        if class_names is not None and label != _UNLABELED:
            x, y = np.median(points[labels == label], axis=0)
            text = ax.text(x, y, class_names[label], ha="center", va="center", zorder=5)
            text.set(color=color, fontweight="bold", path_effects=_HALO)
    return ax


def show_code_space(
    codes,
    labels,
    images=None,
    *,
    class_names: Sequence[str] | None = None,
    ax: Axes | None = None,
    cells: int = 8,
) -> Axes:
    """Scatter two-dimensional codes by class, with images standing where their codes are.

    Parameters
    ----------
    codes : array (N, 2)
        Where the images lie.
    labels : array (N,)
        Integer classes, -1 where unknown.
    images : array (N, C, H, W), optional
        Thumbnails: of each cell of a `cells` × `cells` raster, the image nearest to its middle.
    class_names : sequence of str, optional
        By default the numbers of the classes.
    ax : Axes, optional
        Where to draw.
    cells : int
        Thumbnails in a row of the raster.

    Shown in: book/02_autoencoder.ipynb
    """
    codes, labels = _points(codes, labels)
    names = class_names or [str(i) for i in range(max(0, labels.max()) + 1)]
    if ax is None:
        ax = plt.figure(figsize=(5.0, 4.6)).add_subplot()
    plot_points(codes, labels, np.zeros(len(codes), bool), ax=ax, class_names=names)
    ax.set(xlabel="code 1", ylabel="code 2")
    if images is None:
        return ax
    tiles = _as_images(images)
    _same_length(tiles, len(codes), "images (one per code)")
    for i in _spread(codes, cells):
        known = labels[i] != _UNLABELED
        color = CLASS_COLORS[labels[i] % len(CLASS_COLORS)] if known else GREY
        picture = OffsetImage(tiles[i], cmap="gray", zoom=21 / tiles.shape[1])
        picture.image.set_clim(0, 1)
        box = AnnotationBbox(picture, codes[i], pad=0.06, bboxprops={"ec": color, "lw": 1.5})
        ax.add_artist(box)
    return ax


def explore(
    frames: Sequence[object],
    titles: Sequence[str],
    *,
    description: str,
    alt: str | None = None,
    interval: int = 700,
):
    """Browse precomputed frames with a slider and a play button, with or without a kernel.

    The frames travel inside the widget and the links between slider and frames run in the
    browser, so the explorer also works on a static page. It needs nothing beyond what
    ipywidgets 7.7 and 8 share.

    Parameters
    ----------
    frames : sequence of F frames, all of one size
        Figures or `Axes` (closed here), PNG bytes, or images (C, H, W) or (N, C, H, W) as
        `show_images` takes them.
    titles : sequence of str (F,)
        What the slider shows beside each frame, short: "step 400".
    description : str
        What the slider changes: "training step".
    alt : str, optional
        What the frames show, for readers who do not see them; the title is added to it.
    interval : int
        Milliseconds per frame while playing.

    Returns
    -------
    ipywidgets.VBox
        The last line of a cell shows it.

    Raises
    ------
    PlotError
        For fewer than two frames, frames of several sizes, repeated titles, or more than 400 kB.

    Shown in: book/02_autoencoder.ipynb
    """
    import ipywidgets as widgets

    frames, titles = list(frames), [str(title) for title in titles]
    if len(frames) < 2:
        raise PlotError(f"expected at least 2 frames, got {len(frames)}")
    _same_length(titles, len(frames), "titles (one per frame)")
    if len(set(titles)) < len(titles):
        raise PlotError(f"expected titles that differ, got {', '.join(titles)}")
    pictures = []
    for png in _as_small_pngs(frames):
        title = titles[len(pictures)]
        text = html.escape(f"{alt or description}: {title}", quote=True)
        source = base64.b64encode(png).decode()
        pictures.append(
            widgets.HTML(
                f'<img class="dark-light" alt="{text}" src="data:image/png;base64,{source}">'
            )
        )
    pages = widgets.Tab(children=pictures, selected_index=0)
    for i, title in enumerate(titles):
        pages.set_title(i, title)
    play = widgets.Play(value=0, min=0, max=len(frames) - 1, step=1, interval=interval)
    slider = widgets.SelectionSlider(options=titles, index=0, description=description)
    slider.style.description_width = "initial"
    slider.layout = widgets.Layout(flex="1 1 280px", width="auto", min_width="0")
    controls = widgets.HBox([play, slider], layout=widgets.Layout(flex_flow="row wrap"))
    widgets.jslink((play, "value"), (slider, "index"))
    widgets.jslink((slider, "index"), (pages, "selected_index"))
    text = f"Explorer of {description}: {len(frames)} frames, {titles[0]} to {titles[-1]}"
    # The plain text that stands where no widget can be shown.
    box = type("Explorer", (widgets.VBox,), {"__repr__": lambda self: text})
    explorer = box([widgets.HTML(_EXPLORER_STYLE), controls, pages])
    explorer.add_class("semigen-explorer")
    return explorer


# The slider turns the pages, so the tabs above them go. The play button draws its own sign: an
# icon font is not there in every place where a saved explorer is shown.
_EXPLORER_STYLE = """<style>
.semigen-explorer .widget-tab > .lm-TabBar, .semigen-explorer .widget-tab > .p-TabBar,
.semigen-explorer .widget-play button + button:not(:has(.fa-pause)),
.semigen-explorer .widget-play button * { display: none !important; }
.semigen-explorer .widget-play { width: auto; flex: none; }
.semigen-explorer .widget-play button { width: 48px; height: 32px; }
.semigen-explorer .widget-play button::before {
  content: ""; content: "" / "play or pause"; display: inline-block; width: 13px; height: 13px;
  background: currentColor; clip-path: polygon(8% 0, 100% 50%, 8% 100%); vertical-align: middle; }
.semigen-explorer .widget-play button:has(.fa-pause)::before {
  clip-path: polygon(0 0, 35% 0, 35% 100%, 65% 100%, 65% 0, 100% 0, 100% 100%, 0 100%); }
.semigen-explorer .widget-tab-contents {
  border: 0 !important; padding: 0 !important; background: none !important; }
.semigen-explorer .widget-readout { min-width: 5.5em; text-align: left; white-space: nowrap; }
.semigen-explorer img { display: block; max-width: 100%; height: auto; }
</style>"""


def _as_small_pngs(frames: list[object]) -> list[bytes]:
    """Frames as palette PNGs of one size, with fewer colours where they would be too large."""
    from PIL import Image

    pictures = []
    for frame in frames:
        frame = frame.figure if isinstance(frame, Axes) else frame
        if isinstance(frame, Figure):
            buffer = io.BytesIO()
            frame.savefig(buffer, format="png", bbox_inches=None)
            plt.close(frame)
            frame = buffer.getvalue()
        if isinstance(frame, bytes):
            try:
                picture = Image.open(io.BytesIO(frame)).convert("RGB")
            except OSError:
                raise PlotError(f"expected PNG bytes, got {frame[:12]!r}") from None
        else:
            array = _array(frame)
            tiles = _as_images(array[None] if array.ndim == 3 else array)
            picture = Image.fromarray(_grid(tiles, min(10, len(tiles))))
            factor = max(1, 400 // picture.width)
            size = (picture.width * factor, picture.height * factor)
            picture = picture.resize(size, Image.Resampling.NEAREST)
        pictures.append(picture)
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        raise PlotError(f"expected frames of one size, got {sizes[0]} and {sizes[-1]} pixels")
    for n_colors in (128, 32):
        pngs = [_palette_png(picture, n_colors) for picture in pictures]
        total = sum(map(len, pngs)) * 4 // 3  # as base64
        if total <= MAX_EXPLORER_BYTES:
            return pngs
    limit = MAX_EXPLORER_BYTES // 1000
    raise PlotError(f"expected frames of at most {limit} kB together, got {total // 1000} kB")


def _palette_png(picture, n_colors: int) -> bytes:
    buffer = io.BytesIO()
    picture.quantize(n_colors, dither=0).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _fit_figure(ax: Axes, width: int, height: int, texts: list) -> None:
    """Give `ax` width × height pixels exactly and the figure whole-pixel margins for the texts."""
    figure = ax.figure
    pixel = 1 / figure.dpi
    for _ in range(2):  # the texts' places depend on the size, their extent does not
        frame = ax.get_window_extent()
        boxes = [text.get_window_extent() for text in texts]
        left = int(np.ceil(max([frame.x0 - box.x0 + 2 for box in boxes] + [0])))
        right = int(np.ceil(max([box.x1 - frame.x1 + 2 for box in boxes] + [0])))
        top = int(np.ceil(max([box.y1 - frame.y1 + 2 for box in boxes] + [0])))
        # Matplotlib cuts a figure down and an image up to whole pixels: hair's breadths of safety.
        total = (left + width + right + 1e-3, height + top + 1e-3)
        figure.set_size_inches(total[0] * pixel, total[1] * pixel)
        inner = ((width - 1e-4) / total[0], (height - 1e-4) / total[1])
        ax.set_position((left / total[0], 0, *inner))


def _spread(codes: np.ndarray, cells: int) -> list[int]:
    """Indices of codes near the middles of a raster's cells, none close to another."""
    low, high = np.percentile(codes, (1, 99), axis=0)
    place = (codes - low) / np.maximum(high - low, 1e-12) * cells
    off = np.abs(place - np.clip(np.floor(place), 0, cells - 1) - 0.5).max(axis=1)
    chosen: list[int] = []
    for i in np.argsort(off, kind="stable"):
        if off[i] <= 0.5 and all(np.abs(place[i] - place[j]).max() >= 0.95 for j in chosen):
            chosen.append(int(i))
    return chosen


def _label_lines(ax: Axes, lines: list) -> None:
    """Write each line's name at its right end, apart from each other; a legend if too many."""
    points = plt.rcParams["font.size"] * 1.25  # height of a label
    low, high = ax.get_ylim()  # also brings the limits up to date
    height = ax.get_position().height * ax.figure.get_size_inches()[1] * 72
    if len(lines) * points > height:
        ax.legend(fontsize="small", ncols=2)
        return
    ends = [line.get_ydata()[-1] for line in lines]
    place = ax.get_yaxis().get_transform().transform([low, high, *ends])
    y = (place[2:] - place[0]) / (place[1] - place[0]) * height
    # Push overlapping labels up, then the whole stack down so that it stays beside the axes.
    order = np.argsort(y, kind="stable")
    steps = points * np.arange(len(lines))
    apart = np.maximum.accumulate(y[order] - steps) + steps
    apart -= max(0.0, apart[-1] - height)
    for i, at in zip(order, apart, strict=True):
        ax.annotate(
            lines[i].get_label(),
            (1, ends[i]),
            xycoords=("axes fraction", "data"),  # the labels follow later changes of the limits
            xytext=(5, at - y[i]),
            textcoords="offset points",
            va="center",
            color=lines[i].get_color(),
            annotation_clip=False,
        )


def _grid(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (N, H, W[, 3]) as one uint8 picture (H, W, 3), thin light gaps between them."""
    tiles = np.uint8(np.round(tiles * 255)).reshape(*tiles.shape[:3], -1)  # grey: (N, H, W, 1)
    n, height, width, _ = tiles.shape
    rows = -(-n // columns)
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    grid = np.full(shape, _GAP_GREY, np.uint8)
    grid[(rows - 1) * (height + _GAP) :, (n - (rows - 1) * columns) * (width + _GAP) :] = 255
    for i, tile in enumerate(tiles):
        y, x = i // columns * (height + _GAP), i % columns * (width + _GAP)
        grid[y : y + height, x : x + width] = tile
    return grid


def _axes(ax: Axes | None) -> Axes:
    return plt.figure().add_subplot() if ax is None else ax


def _array(values) -> np.ndarray:
    """An array of a list, an array or a tensor on any device (without importing torch)."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _as_images(images) -> np.ndarray:
    """Images (N, C, H, W) as float (N, H, W) or (N, H, W, 3) in [0, 1], or one clear error."""
    array = _array(images)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise PlotError(f"expected images (N, C, H, W) with C 1 or 3, got shape {array.shape}")
    if array.dtype == np.uint8:
        array = array / 255
    elif not np.issubdtype(array.dtype, np.floating):
        raise PlotError(f"expected images of uint8 or float in [0, 1], got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise PlotError(f"expected float images in [0, 1], got values from {low:g} to {high:g}")
    array = np.clip(array, 0, 1)
    return array[:, 0] if array.shape[1] == 1 else array.transpose(0, 2, 3, 1)


def _points(points, labels) -> tuple[np.ndarray, np.ndarray]:
    points, labels = _array(points), _array(labels)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise PlotError(f"expected points (N, 2), got shape {points.shape}")
    _same_length(labels, len(points), "labels (one per point)")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < _UNLABELED:
        raise PlotError(
            f"expected integer labels of at least -1, got {labels.dtype} {labels.min()}"
        )
    return points, labels


def _positive(value: int, name: str) -> int:
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise PlotError(f"expected {name} of at least 1, got {value!r}")
    return int(value)


def _same_length(values, n: int, name: str) -> None:
    if values is not None and len(values) != n:
        raise PlotError(f"expected {n} {name}, got {len(values)}")
