"""Plotting: what is drawn, what is refused, and an explorer that needs no kernel."""

import ast
import base64
import io
import itertools
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from semigen_lib import plotting
from semigen_lib.plotting import (
    CLASS_COLORS,
    COLORS,
    CYCLE,
    PlotError,
    explore,
    plot_history,
    plot_intervals,
    plot_points,
    plot_sweep,
    show_code_space,
    show_images,
    use_style,
)

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def style():
    use_style()
    yield
    plt.close("all")


def pixels(figure) -> np.ndarray:
    """The figure as it is saved, (H, W, 3)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches=None)
    return np.asarray(Image.open(buffer).convert("RGB"))


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and text.startswith("expected ") and ", got " in text
    return text


def test_only_plotting_imports_matplotlib() -> None:
    package = Path(plotting.__file__).parent
    importers = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = ["." * node.level + (node.module or "")]
            else:
                continue
            if any(name.split(".")[0] == "matplotlib" for name in names):
                importers.add(path.name)
            if path.name == "plotting.py":
                assert not any(name.startswith((".", "semigen_lib")) for name in names)
    assert importers == {"plotting.py"}


# ---- colours ----


def luminance(color: str) -> float:
    parts = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_letters_that_dejavu_lacks_are_drawn_by_an_installed_font(monkeypatch) -> None:
    entries = [
        matplotlib.font_manager.FontEntry(name=n) for n in ("Odd", "PingFang SC", "DejaVu Sans")
    ]
    with monkeypatch.context() as patch:
        patch.setattr(matplotlib.font_manager.fontManager, "ttflist", entries)
        assert plotting._installed_fonts() == ["DejaVu Sans", "PingFang SC"]
    monkeypatch.setattr(plotting, "_installed_fonts", lambda: ["DejaVu Serif"])
    use_style()
    assert plt.rcParams["font.family"] == ["DejaVu Serif"]
    titles = [*show_images(RNG.random((1, 1, 28, 28)), titles=["a"], row_titles=["b"]).texts]
    assert [title.get_fontfamily() for title in titles] == [["DejaVu Serif"]] * 2


def test_colours_differ_and_show_on_white() -> None:
    assert len(set(CLASS_COLORS)) == 10 and len(set(CYCLE)) == 8
    assert not set(CLASS_COLORS) & {COLORS["unlabeled"], COLORS["baseline"]}
    assert COLORS["generator"] == COLORS["fake"] and len(set(COLORS.values())) == len(COLORS) - 1
    assert all(1.05 / (luminance(color) + 0.05) > 2 for color in CYCLE + CLASS_COLORS)


# ---- grids ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_grid_at_scale_1_is_exact(dtype) -> None:
    images = torch.randint(0, 256, (6, 1, 5, 7), dtype=torch.uint8)
    given = images if dtype == torch.uint8 else images.float() / 255
    drawn = pixels(show_images(given, columns=4, scale=1).figure)
    assert drawn.shape == (2 * 5 + 1, 4 * 7 + 3, 3)
    for i in range(6):
        y, x = i // 4 * 6, i % 4 * 8
        assert (drawn[y : y + 5, x : x + 7] == images[i, 0].numpy()[..., None]).all()
    assert (drawn[:5, 7] == drawn[0, 7]).all() and 200 < drawn[0, 7, 0] < 255  # the gap
    assert (drawn[6:, 16:] == 255).all()  # no tile, no colour


def test_grid_of_colours_at_scale_3_is_exact() -> None:
    images = RNG.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    drawn = pixels(show_images(images, scale=3).figure)
    assert drawn.shape == (12, 27, 3)
    large = images.repeat(3, axis=2).repeat(3, axis=3).transpose(0, 2, 3, 1)
    assert (drawn[:, :12] == large[0]).all() and (drawn[:, 15:] == large[1]).all()


def test_titles_leave_the_pixels_exact_and_are_inside() -> None:
    images = torch.rand(4, 1, 8, 8)
    plain = pixels(show_images(images, columns=2, scale=4).figure)
    ax = show_images(images, columns=2, scale=4, titles=[7, "b"], row_titles=["input", "output"])
    drawn = pixels(ax.figure)
    height, width = plain.shape[:2]
    assert drawn.shape[0] > height + 8 and drawn.shape[1] > width + 20
    assert (drawn[-height:, -width:] == plain).all()
    edges = (drawn[0], drawn[:, 0], drawn[-1, :-width])
    assert all((edge == 255).all() for edge in edges) and drawn[: -height - 1].min() < 150
    assert [text.get_text() for text in ax.texts] == ["7", "b", "input", "output"]


def test_wide_titles_are_inside_too() -> None:
    ax = show_images(torch.rand(1, 1, 8, 8), scale=1, titles=["a long title"])
    drawn = pixels(ax.figure)
    assert (drawn[:, 0] == 255).all() and (drawn[:, -1] == 255).all() and drawn.shape[1] > 60


def test_grid_in_given_axes_and_default_scale() -> None:
    _, axes = plt.subplots(1, 2)
    assert show_images(torch.zeros(3, 1, 4, 4), ax=axes[1], row_titles=["x"]) is axes[1]
    assert len(plt.get_fignums()) == 1
    assert pixels(show_images(torch.zeros(10, 1, 28, 28)).figure).shape == (56, 578, 3)
    assert pixels(show_images(torch.zeros(30, 1, 64, 64), columns=30).figure).shape[1] == 1949


@pytest.mark.parametrize(
    ("images", "arguments", "text"),
    [
        (torch.zeros(4, 28, 28), {}, "expected images (N, C, H, W) with C 1 or 3, got shape (4,"),
        (torch.zeros(4, 2, 8, 8), {}, "got shape (4, 2, 8, 8)"),
        (torch.zeros(0, 1, 8, 8), {}, "got shape (0, 1, 8, 8)"),
        (torch.full((1, 1, 2, 2), 1.5), {}, "in [0, 1], got values from 1.5 to 1.5"),
        (torch.full((1, 1, 2, 2), -1.0), {}, "got values from -1 to -1"),
        (torch.full((1, 1, 2, 2), np.nan), {}, "got values from nan to nan"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), {}, "of uint8 or float in [0, 1], got int64"),
        (torch.zeros(3, 1, 2, 2), {"columns": 0}, "expected columns of at least 1, got 0"),
        (torch.zeros(3, 1, 2, 2), {"columns": 1.5}, "got 1.5"),
        (torch.zeros(3, 1, 2, 2), {"scale": 0}, "expected scale of at least 1, got 0"),
        (torch.zeros(3, 1, 2, 2), {"titles": ["a"]}, "expected 3 titles (one per column), got 1"),
        (torch.zeros(3, 1, 2, 2), {"row_titles": "ab"}, "expected 1 row_titles (one per row)"),
    ],
)
def test_bad_images_are_one_line(images, arguments, text) -> None:
    with pytest.raises(PlotError) as error:
        show_images(images, **arguments)
    assert text in message(error)


def test_rounding_beyond_the_range_and_gradients_are_accepted() -> None:
    images = torch.full((1, 1, 2, 2), 1 + 5e-7, requires_grad=True)
    assert show_images(images).images[0].get_array().min() == 255


# ---- curves ----


def test_history_draws_terms_in_order_with_labels_apart() -> None:
    history = {"step": [0, 10, 20], "a": [3.0, 2, 1], "b": [2.0, 1, 1.001], "c": [1.0, 1, 2]}
    ax = plot_history(history)
    assert [line.get_label() for line in ax.lines] == ["a", "b", "c"]
    assert ax.lines[0].get_xdata().tolist() == [0, 10, 20]
    assert ax.get_legend() is None and [text.get_text() for text in ax.texts].count("b") == 1
    ax.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    assert all(text.get_color() in CYCLE for text in ax.texts)


def test_history_labels_stay_on_the_figure_and_follow_their_lines() -> None:
    history = {"step": [0, 1], **{name: [0.0, 1 + i / 1e3] for i, name in enumerate("abcde")}}
    ax = plot_history(history)
    ax.figure.canvas.draw()
    axes = ax.get_window_extent()
    for text, line in zip(ax.texts, ax.lines, strict=True):
        box = text.get_window_extent()
        assert text.get_text() == line.get_label()
        assert axes.y0 - 8 < box.y0 and box.y1 < axes.y1 + 12 and box.x0 > axes.x1


@pytest.mark.parametrize("smooth", [1, 2])
def test_history_of_terms_that_come_and_go(smooth) -> None:
    """A method that works in stages has other terms in each; every line keeps its label."""
    none = None
    history = {
        "step": [1, 2, 3, 4, 5],
        "first": [4.0, 2.0, none, none, none],
        "second": [none, none, 3.0, 1.0, 1.0],
        "both": [2.0, none, none, 2.0, 2.0],
    }
    ax = plot_history(history, smooth=smooth)
    first, second, both = [line for line in ax.lines if line.get_label() in history]
    assert first.get_xdata().tolist() == [1, 2][smooth - 1 :]
    assert first.get_ydata().tolist() == ([4, 2] if smooth == 1 else [3])
    assert second.get_xdata().tolist() == [3, 4, 5][smooth - 1 :]
    assert second.get_ydata().tolist() == ([3, 1, 1] if smooth == 1 else [2, 1])
    assert np.isnan(both.get_ydata()).sum() == (2 if smooth == 1 else 3), "the gap stays a gap"
    ax.figure.draw_without_rendering()
    places = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] and len(places) == 3
    assert all(np.isfinite([box.x0, box.y0, box.x1, box.y1]).all() for box in places)


def test_a_term_that_was_never_there_is_refused() -> None:
    with pytest.raises(PlotError, match=r"\Aexpected at least 1 value of 'a', got 0\Z"):
        plot_history({"step": [1, 2], "a": [None, None]})


def test_history_smoothing_and_log() -> None:
    ax = plot_history({"step": range(4), "a": [1.0, 3, 5, 7]}, smooth=2, log=True)
    faint, smooth = ax.lines
    assert faint.get_ydata().tolist() == [1, 3, 5, 7] and faint.get_alpha() < 0.5
    assert smooth.get_ydata().tolist() == [2, 4, 6] and smooth.get_xdata().tolist() == [1, 2, 3]
    assert faint.get_color() == smooth.get_color() and ax.get_yscale() == "log"
    assert ax.get_ylabel() == "a" and not ax.texts
    assert plot_history({"step": [1, 2], "a": [0, 4]}, smooth=9).lines[1].get_ydata() == [2]


def test_many_terms_get_a_legend() -> None:
    _, ax = plt.subplots(figsize=(3, 1))
    history = {"step": [0, 1], **{f"term {i}": [0, i] for i in range(9)}}
    assert len(plot_history(history, ax=ax).get_legend().get_texts()) == 9


@pytest.mark.parametrize(
    ("history", "terms", "text"),
    [
        ({"a": [1]}, None, 'expected a history with "step", got a'),
        ({}, None, "got none"),
        ({"step": [0], "a": [1]}, ["b"], "expected terms of the history (step, a), got 'b'"),
        ({"step": [0, 1], "a": [1]}, None, "expected 2 values of 'a' (one per step), got 1"),
        ({"step": [], "a": []}, None, "expected a history of at least 1 step, got 0"),
        ({"step": [0]}, None, "expected at least 1 term, got 0"),
    ],
)
def test_bad_histories_are_one_line(history, terms, text) -> None:
    with pytest.raises(PlotError) as error:
        plot_history(history, terms)
    assert text in message(error)


def test_intervals_show_every_seed_mean_and_interval() -> None:
    points = [[0.1, 0.2, 0.3], [0.4, 0.5]]
    ax = plot_intervals(
        ["a", "b"], [0.2, 0.45], np.array([0.05, 0.1]), points=points, percent=True, xlabel="error"
    )
    dots, bars, means = ax.lines[0::3], ax.lines[1::3], ax.lines[2::3]
    assert [line.get_xdata().tolist() for line in dots] == points
    assert np.allclose([line.get_xdata() for line in bars], [[0.15, 0.25], [0.35, 0.55]])
    assert np.allclose([line.get_xdata()[0] for line in means], [0.2, 0.45])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted() and ax.xaxis.get_major_formatter()(0.15, 0) == "15%"


def test_intervals_without_points_in_given_axes_and_colours() -> None:
    _, ax = plt.subplots()
    assert plot_intervals(["a"], [1], [0], ax=ax, colors=["red"]) is ax
    assert [line.get_color() for line in ax.lines] == ["red", "red"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mean": [1]}, "expected 2 means (one per name), got 1"),
        ({"half_width": [1]}, "expected 2 half widths (one per name), got 1"),
        ({"points": [[1]]}, "expected 2 groups of points (one per name), got 1"),
        ({"colors": ["red"]}, "expected 2 colors (one per name), got 1"),
        ({"half_width": [1, -0.5]}, "expected half widths of at least 0, got -0.5"),
    ],
)
def test_bad_intervals_are_one_line(arguments, text) -> None:
    with pytest.raises(PlotError) as error:
        plot_intervals(**{"names": ["a", "b"], "mean": [1, 2], "half_width": [0, 1], **arguments})
    assert text in message(error)


def test_sweep_draws_lines_bands_and_ticks() -> None:
    x = [0.01, 0.1, 1]
    curves = {"a": ([0.1, 0.2, 0.3], [0.01, 0.02, 0.03]), "b": torch.tensor([0.3, 0.2, 0.1])}
    ax = plot_sweep(x, curves, log_x=True, percent=True, colors={"b": "red"}, xlabel="weight")
    assert ax.get_xscale() == "log" and ax.lines[1].get_color() == "red"
    assert np.allclose(ax.lines[0].get_ydata(), [0.1, 0.2, 0.3])
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert np.allclose((low, high), (0.09, 0.33))
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert ax.yaxis.get_major_formatter()(0.075, 0) == "7.5%"
    assert not plot_sweep([1, 2], {"a": [1, 2]}).xaxis.get_label().get_text()


@pytest.mark.parametrize("curve", [[1], ([1], [1, 2]), ([1, 2], [1])])
def test_bad_curves_are_one_line(curve) -> None:
    with pytest.raises(PlotError, match=r"expected 2 (means|half widths) of 'a'") as error:
        plot_sweep([1, 2], {"a": curve})
    message(error)


def test_zero_on_a_log_axis_is_refused() -> None:
    with pytest.raises(PlotError, match=r"expected x above 0 on a log axis, got 0") as error:
        plot_sweep([0, 1], {"a": [1, 2]}, log_x=True)
    message(error)


# ---- points ----


def shown(ax) -> list[tuple[int, float]]:
    """(number of points, area of one) of every cloud that is not empty."""
    clouds = [cloud for cloud in ax.collections if len(cloud.get_offsets())]
    return [(len(cloud.get_offsets()), float(cloud.get_sizes()[0])) for cloud in clouds]


def test_points_unlabelled_grey_and_labelled_large() -> None:
    ax = plot_points(torch.rand(10, 2), torch.tensor([0, 1, *[-1] * 8]))
    (n_grey, small), (n_first, large), (n_second, _) = shown(ax)
    assert (n_grey, n_first, n_second) == (8, 1, 1) and large > 2 * small
    grey, first, second = [cloud for cloud in ax.collections if len(cloud.get_offsets())]
    assert matplotlib.colors.to_hex(grey.get_facecolor()[0]) == COLORS["unlabeled"]
    assert matplotlib.colors.to_hex(first.get_edgecolor()[0]) == "#000000"
    assert len(first.get_paths()[0]) != len(second.get_paths()[0])  # the shapes differ


def test_points_all_known_are_small_unless_masked() -> None:
    labels = np.repeat([0, 1], 5)
    assert {size for _, size in shown(plot_points(RNG.random((10, 2)), labels))} == {22}
    mask = labels == 1
    ax = plot_points(RNG.random((10, 2)), labels, mask, class_names=["cat", "dog"])
    assert [size for _, size in shown(ax)] == [22, 75]
    assert [text.get_text() for text in ax.texts] == ["cat", "dog"]
    assert not plot_points(RNG.random((2, 2)), [-1, -1], class_names=["cat"]).texts


def test_code_space_thumbnails_keep_apart_and_show_their_image() -> None:
    codes = torch.rand(500, 2)
    images = torch.rand(500, 1, 6, 6)
    ax = show_code_space(codes, torch.arange(500) % 3 - 1, images, cells=5)
    boxes = ax.artists
    places = np.array([box.xy for box in boxes])
    assert 8 < len(boxes) <= 25
    distance = np.abs(places[:, None] - places).max(axis=2) + np.eye(len(boxes))
    assert distance.min() > 0.15
    for box in boxes:
        i = int(np.abs(codes.numpy() - box.xy).sum(axis=1).argmin())
        assert np.allclose(box.offsetbox.get_data(), images[i, 0])
    assert [text.get_text() for text in ax.texts] == ["0", "1"]


def test_code_space_without_images_in_given_axes() -> None:
    _, ax = plt.subplots()
    assert show_code_space(RNG.random((5, 2)), [0, 0, 1, 1, 1], ax=ax, class_names="xy") is ax
    assert [text.get_text() for text in ax.texts] == ["x", "y"] and not ax.artists
    assert len(show_code_space(np.zeros((3, 2)), [-1] * 3, np.zeros((3, 1, 2, 2))).artists) <= 1


@pytest.mark.parametrize(
    ("points", "labels", "mask", "text"),
    [
        (np.zeros((3, 3)), [0] * 3, None, "expected points (N, 2), got shape (3, 3)"),
        (np.zeros((0, 2)), [], None, "got shape (0, 2)"),
        (np.zeros((3, 2)), [0] * 2, None, "expected 3 labels (one per point), got 2"),
        (np.zeros((2, 2)), [0.0, 1.0], None, "expected integer labels of at least -1, got float64"),
        (np.zeros((2, 2)), [0, -2], None, "got int64 -2"),
        (np.zeros((2, 2)), [0, 1], [True], "expected 2 mask values (one per point), got 1"),
        (np.zeros((2, 2)), [0, 3], None, "expected class names for labels to 3, got 2"),
    ],
)
def test_bad_points_are_one_line(points, labels, mask, text) -> None:
    names = ["a", "b"] if "names" in text else None
    with pytest.raises(PlotError) as error:
        plot_points(points, labels, mask, class_names=names)
    assert text in message(error)


def test_code_space_needs_an_image_per_code() -> None:
    with pytest.raises(PlotError, match=r"expected 3 images .one per code., got 2") as error:
        show_code_space(np.zeros((3, 2)), [0, 0, 0], np.zeros((2, 1, 4, 4)))
    message(error)


# ---- the explorer ----


def make(n: int = 4, **arguments):
    frames = [show_images(torch.full((2, 1, 8, 8), i / n)) for i in range(n)]
    return explore(frames, [f"step {i}" for i in range(n)], description="training", **arguments)


def parts(explorer):
    style, controls, pages = explorer.children
    return (style, *controls.children, pages)


def links() -> set[tuple[str, str, str, str]]:
    current = getattr(ipywidgets.widgets.widget, "_instances", None)  # ipywidgets 8
    every = ipywidgets.Widget.widgets if current is None else current
    found = set()
    for widget in every.values():
        if isinstance(widget, ipywidgets.widgets.widget_link.Link):
            (a, x), (b, y) = widget.source, widget.target
            found.add((a.model_id, x, b.model_id, y))
    return found


def frames_of(explorer) -> list[tuple[str, bytes]]:
    """(alternative text, PNG) of every frame."""
    found = []
    for page in parts(explorer)[-1].children:
        match = re.fullmatch(
            r'<img class="dark-light" alt="(.*)" src="data:image/png;base64,(.*)">', page.value
        )
        found.append((match[1], base64.b64decode(match[2])))
    return found


def test_explorer_links_in_the_browser_only() -> None:
    explorer = make()
    _, play, slider, pages = parts(explorer)
    assert (play.min, play.max, play.value, play.step) == (0, 3, 0, 1)
    assert slider.options == ("step 0", "step 1", "step 2", "step 3") and slider.index == 0
    assert pages.selected_index == 0 and len(pages.children) == 4
    assert slider.description == "training" and [pages.get_title(i) for i in (0, 3)] == [
        "step 0",
        "step 3",
    ]
    assert {
        (play.model_id, "value", slider.model_id, "index"),
        (slider.model_id, "index", pages.model_id, "selected_index"),
    } <= links()


def test_explorer_uses_models_of_both_versions_only() -> None:
    explorer = make()
    models = {widget._model_name for widget in (explorer, *explorer.children, *parts(explorer))}
    assert models == {
        *("VBoxModel", "HBoxModel", "HTMLModel", "PlayModel", "SelectionSliderModel", "TabModel")
    }
    assert all(widget._model_module == "@jupyter-widgets/controls" for widget in parts(explorer))


def test_explorer_closes_its_figures_and_no_others() -> None:
    kept = plt.figure()
    make()
    assert plt.get_fignums() == [kept.number]


def test_explorer_frames_have_alternative_text() -> None:
    assert [text for text, _ in frames_of(make())][1] == "training: step 1"
    texts = [text for text, _ in frames_of(make(alt='Digits, "sharper" & <sharper>'))]
    assert texts[2] == "Digits, &quot;sharper&quot; &amp; &lt;sharper&gt;: step 2"


def test_explorer_tells_itself_in_plain_text() -> None:
    assert repr(make()) == "Explorer of training: 4 frames, step 0 to step 3"
    assert "semigen-explorer" in make()._dom_classes


def test_explorer_frames_are_small_palette_pictures() -> None:
    explorer = explore(
        [plot_history({"step": range(50), "a": RNG.random(50)}) for _ in range(2)],
        ["a", "b"],
        description="run",
    )
    for _, png in frames_of(explorer):
        picture = Image.open(io.BytesIO(png))
        assert picture.mode == "P" and picture.size == (550, 341) and len(png) < 30_000


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (6, 1, 28, 28), (1, 1, 500, 500)])
def test_explorer_of_images(shape) -> None:
    explorer = explore([torch.zeros(shape), torch.ones(shape)], ["a", "b"], description="code")
    (_, black), (_, white) = frames_of(explorer)
    black, white = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in (black, white)
    )
    assert black[0, 0].tolist() == [0, 0, 0] and white[0, 0].tolist() == [255, 255, 255]
    assert black.shape == white.shape and 300 < black.shape[1] <= 500


def test_explorer_of_png_and_of_figures() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), (0, 114, 178)).save(buffer, format="PNG")
    figure = plt.figure(figsize=(0.9, 0.6), dpi=100)
    (_, first), _ = frames_of(explore([buffer.getvalue(), figure], "ab", description="x"))
    color = Image.open(io.BytesIO(first)).convert("RGB").getpixel((5, 5))
    assert color == (0, 114, 178) and not plt.get_fignums()


def test_large_frames_lose_colours_first_and_are_refused_then() -> None:
    def noise(size: int) -> torch.Tensor:
        return torch.tensor(RNG.random((1, size, size), dtype=np.float32))

    few = explore([noise(400), noise(400)], "ab", description="x")
    assert all(len(Image.open(io.BytesIO(png)).getcolors()) > 64 for _, png in frames_of(few))
    many = explore([noise(440), noise(440)], "ab", description="x")
    assert all(len(Image.open(io.BytesIO(png)).getcolors()) <= 32 for _, png in frames_of(many))
    with pytest.raises(
        PlotError, match=r"expected frames of at most 400 kB .*, got .* kB"
    ) as error:
        explore([noise(800), noise(800)], "ab", description="x")
    message(error)


@pytest.mark.parametrize(
    ("frames", "titles", "text"),
    [
        ([torch.zeros(1, 4, 4)], ["a"], "expected at least 2 frames, got 1"),
        ([torch.zeros(1, 4, 4)] * 2, ["a"], "expected 2 titles (one per frame), got 1"),
        ([torch.zeros(1, 4, 4)] * 2, ["a", "a"], "expected titles that differ, got a, a"),
        (
            [torch.zeros(1, 4, 4), torch.zeros(1, 4, 8)],
            ["a", "b"],
            "expected frames of one size, got (400, 200) and (400, 400) pixels",
        ),
        ([torch.zeros(4, 4)] * 2, ["a", "b"], "expected images (N, C, H, W) with C 1 or 3, got"),
        ([b"no picture"] * 2, ["a", "b"], "expected PNG bytes, got b'no picture'"),
    ],
)
def test_bad_frames_are_one_line(frames, titles, text) -> None:
    with pytest.raises(PlotError) as error:
        explore(frames, titles, description="x")
    assert text in message(error)
