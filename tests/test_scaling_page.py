"""The page on scaling: figures of the bench or named constants, and a model that is sane."""

import json
import math
from dataclasses import replace

import pytest
import scaling_page as page

FLOPS = {28: 10e6, 64: 40e6, 128: 160e6}
TRUE = page.Model(
    flops=tuple(FLOPS.items()),
    speed=20e9,
    launch=4e-3,
    reading=2e-4,
    fixed=400e6,
    copies=2.0,
    activations=300.0,
    name=100.0,
    reader=200e6,
)
FITTED = [name for name in vars(TRUE) if name != "flops"]
GPU = page.Machine("a GPU", 1, 256, 2e13, 5e-3, 16, 128e9)
HERE = page.Machine("here", 0, 64, 20e9, 4e-3, 2, 16e9)


def row(kind: str, name: int, batch: int = 64, side: int = 28, **changes) -> dict:
    """A row of the bench that the model above explains without error."""
    counts = {page.MEMORY: name, page.FILES: name, page.WORKERS: 1_000_000}
    workers = {page.FILES: 2, page.WORKERS: name}.get(kind)
    count = counts.get(kind, page.N_MNIST)
    rate, memory = page.predicted(TRUE, page.Row(kind, batch, side, count, workers, 0, 0))
    return {
        "name": str(name),
        "batch_size": batch,
        "images_per_second": {"low": rate, "median": rate, "high": rate, "turns": 1},
        "flops_per_image": None if workers is not None else FLOPS[side],
        "peak_memory_mb": memory / 1e6,
        **changes,
    }


def small_figures() -> dict:
    growth = {
        page.BATCH: [row(page.BATCH, n, batch=n) for n in (64, 256)],
        page.SIDE: [row(page.SIDE, n, side=n) for n in FLOPS],
        page.MEMORY: [row(page.MEMORY, n) for n in (1000, 1_000_000)],
        page.FILES: [row(page.FILES, n) for n in (1000, 1_000_000)],
        page.WORKERS: [row(page.WORKERS, n) for n in (0, 1, 2)],
    }
    machine = {"processor": "abacus", "cores": 2, "torch": "2", "peak_fp32_gflops": 80.0}
    return {"growth": growth, "machine": machine}


# ---- the page ----


def test_the_page_is_what_the_figures_make() -> None:
    figures = json.loads((page.RESULTS / "bench.json").read_text())
    assert page.PAGE.read_text() == page.render(figures)


def test_every_measured_number_of_the_page_comes_from_the_figures() -> None:
    """Everything that was measured is changed: no line that shows some of it may stay."""
    changed = json.loads(json.dumps(small_figures()))
    changed["machine"] |= {"peak_fp32_gflops": 53.0, "cores": 3, "processor": "quipu", "torch": "3"}
    for kind in changed["growth"].values():
        for each in kind:
            each["images_per_second"]["median"] *= 0.31
            each["peak_memory_mb"] *= 1.7
            each["flops_per_image"] = 1.3 * (each["flops_per_image"] or 0) or None
    before, after = (page.render(f).splitlines() for f in (small_figures(), changed))
    here = before[before.index("## One epoch on this machine") :][:20]
    here += [line for line in before if "measured here" in line or "counted by" in line]
    shown = [line for line in here if line.startswith("| ") and "--" not in line]
    stayed = [line for line in shown[1:] if line in after]
    assert len(shown) == 25 and not stayed, stayed


def test_what_was_not_measured_is_said_to_be_so() -> None:
    text = page.render(small_figures())
    assert text.index("**Nothing was measured on a GPU.**") < text.index("## What was measured")
    for section in text.split("\n### ")[1:]:
        assert "GPU" in section.splitlines()[0]
        assert section.splitlines()[2].startswith("*Nothing in this table was measured")
    for name, constant in page.ASSUMED.items():
        assert f"| {name} | {constant}".rstrip() in text and constant.origin in text


@pytest.mark.parametrize(
    "path",
    [
        ("machine",),
        ("machine", "peak_fp32_gflops"),
        ("machine", "torch"),
        ("growth", page.SIDE),
        ("growth", page.FILES, 0, "peak_memory_mb"),
        ("growth", page.SIDE, 1, "flops_per_image"),
        ("growth", page.BATCH, 0, "images_per_second", "median"),
    ],
    ids=str,
)
def test_a_missing_figure_is_one_line(path: tuple) -> None:
    figures = small_figures()
    place = figures
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(page.ScalingError, match=rf"\Abench.json: expected .*, got no '{path[-1]}'"):
        page.render(figures)


def test_without_small_images_or_figures_there_is_one_line(tmp_path, monkeypatch, capsys) -> None:
    figures = small_figures()
    del figures["growth"][page.SIDE][0]
    with pytest.raises(page.ScalingError, match=r"expected sides 28 and another, got \[64, 128\]"):
        page.render(figures)
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="1"):
        page.main([])
    assert capsys.readouterr().err.count("\n") == 1


def test_the_script_writes_what_its_check_wants(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "scaling.md")
    (tmp_path / "bench.json").write_text(json.dumps(small_figures()))
    assert page.main(["--check"]) == 1 and "got another" in capsys.readouterr().err
    assert page.main([]) == 0 and page.main(["--check"]) == 0
    sizes = [(tmp_path / f"scaling_{n}.png").stat().st_size for n in ("time", "memory")]
    assert all(5_000 < size < 60_000 for size in sizes), sizes
    page.PAGE.write_text(page.PAGE.read_text().replace("2", "3", 1))
    assert page.main(["--check"]) == 1


# ---- the model ----


def test_terms_are_found_again() -> None:
    figures = small_figures()
    found = page.fit_model(figures)
    assert found == replace(TRUE, **{name: pytest.approx(vars(TRUE)[name]) for name in FITTED})
    assert "| **all** | 12 | **0 %** | **0 %** |" in page.render(figures)
    figures["growth"][page.WORKERS][0]["images_per_second"]["median"] *= 2
    text = page.render(figures)
    assert "| **all** | 12 | **0 %** | **0 %** |" not in text
    assert "| workers that read files | 3 | 0 % |" not in text


def test_mnist_is_in_memory_beside_the_pool_that_is_made_of_it() -> None:
    found = {(row.kind, row.count): row.held for row in page.measured(small_figures())}
    assert found[page.MEMORY, 1000] == 61_000
    assert found[page.SIDE, 60_000] == 60_000 and found[page.FILES, 1000] == 0


def test_a_term_is_never_negative() -> None:
    columns = [(1, 1), (1, 2), (1, 3)]
    assert page.fit(columns, [1, 3, 5])[0] == 0
    falling = (1 / 3 + 1 / 2 + 1) / (1 / 9 + 1 / 4 + 1)  # the constant of least relative squares
    assert page.fit(columns, [3, 2, 1]) == pytest.approx([falling, 0])


def test_rates_that_no_arithmetic_explains_are_refused() -> None:
    figures = small_figures()
    for kind in figures["growth"].values():
        for each in kind:
            each["images_per_second"]["median"] = each["batch_size"] ** 2  # more work in less time
            each["flops_per_image"] = each["flops_per_image"] and 1e6
    with pytest.raises(page.ScalingError, match="expected larger images to take longer, got no"):
        page.fit_model(figures)


def test_operations_of_larger_images_follow_the_pixels() -> None:
    assert TRUE.flops_of(64) == FLOPS[64]
    assert TRUE.flops_of(256) == pytest.approx(16 * FLOPS[64])


def test_more_workers_are_never_slower() -> None:
    for machine in (HERE, GPU):
        for side in page.SIDES:
            times = [
                page.step_seconds(TRUE, replace(machine, readers=n), side, streams=True)[0]
                for n in (1, 2, 4, 64)
            ]
            assert times == sorted(times, reverse=True) and times[0] > times[1]


def test_here_parts_add_up_and_beside_a_gpu_the_slowest_counts() -> None:
    total, parts = page.step_seconds(TRUE, HERE, 28, streams=True)
    assert total == pytest.approx(4e-3 + 64 * (10e6 / 20e9 + 2e-4 / 2))
    assert sum(parts.values()) == total
    assert page.step_seconds(TRUE, GPU, 28, streams=True)[0] == GPU.launch
    slow = replace(GPU, readers=1)
    assert page.step_seconds(TRUE, slow, 128, streams=True)[0] == pytest.approx(
        256 * (2e-4 + (128**2 - 28**2) / 50e6)
    )


def test_more_gpus_are_never_slower_but_for_the_exchange() -> None:
    for side in page.SIDES:
        seconds = [page.epoch(TRUE, replace(GPU, gpus=k), 10**9, side).seconds for k in (1, 8, 999)]
        assert seconds[0] > 7 * seconds[1] > 7 * 100 * seconds[2]
    one_step = [page.epoch(TRUE, replace(GPU, gpus=k, launch=0), 1, 28) for k in (1, 8)]
    late = page.exchange_seconds(page.n_weights(28), 8)
    assert one_step[1].seconds - one_step[0].seconds == pytest.approx(late)


def test_an_exchange_is_twice_the_bytes_and_a_delay_for_each_round() -> None:
    assert page.exchange_seconds(10**6, 1) == 0
    expected = 4e6 * 2 * 7 / 8 / 50e9 + 2 * 2 * 3 * 20e-6
    assert page.exchange_seconds(10**6, 8) == pytest.approx(expected)


def test_time_is_proportional_to_the_number_of_images() -> None:
    for machine in (HERE, GPU):
        ten, twenty = (page.epoch(TRUE, machine, n * 10**8, 64).seconds for n in (10, 20))
        assert twenty == pytest.approx(2 * ten, rel=1e-5)


@pytest.mark.parametrize(
    ("machine", "count", "side", "bottleneck"),
    [
        (HERE, 60_000, 28, page.ARITHMETIC),
        (replace(HERE, launch=1.0), 60_000, 28, page.LAUNCH),
        (GPU, 60_000, 28, page.LAUNCH),
        (replace(GPU, speed=1e12), 60_000, 128, page.ARITHMETIC),
        (replace(GPU, readers=1), 10**9, 28, page.READING),
        (replace(GPU, gpus=2**30, launch=1e-3), 60_000, 28, page.EXCHANGE),
        (replace(GPU, memory=50e9), 10**9, 28, page.SPACE),
    ],
)
def test_bottlenecks_have_their_names(machine, count, side, bottleneck) -> None:
    assert page.epoch(TRUE, machine, count, side).bottleneck == bottleneck


def test_images_in_files_take_the_memory_of_their_names_alone() -> None:
    few, many = (TRUE.memory_of(n, 28, 64, 2) for n in (0, 10**6))
    assert many - few == pytest.approx(TRUE.name * 10**6)
    assert TRUE.memory_of(10**6, 256, 64, 2) - TRUE.memory_of(0, 256, 64, 2) == many - few
    few, many = (TRUE.memory_of(n, 28, 64, None) for n in (0, 10**6))
    assert many - few == pytest.approx(TRUE.copies * 28**2 * 10**6)


def test_images_stay_in_files_where_the_library_leaves_them() -> None:
    edge = math.floor(page.MEMORY_SHARE * HERE.memory / 64**2)
    assert [page.epoch(TRUE, HERE, n, 64).streams for n in (edge, edge + 1)] == [False, True]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (9.96, "10"), (9.94, "9.9"), (123.4, "120"), (98765, "99,000")],
)
def test_numbers_have_two_digits(value: float, text: str) -> None:
    assert page.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.005, "5.0 ms"), (59, "59 seconds"), (90, "1.5 minutes"), (7200, "2.0 hours")],
)
def test_times_have_a_unit(seconds: float, text: str) -> None:
    assert page.duration(seconds) == text
