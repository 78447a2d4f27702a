"""The bench: contestants that train what they say, turns that are counted, a page of figures."""

import json
import sys

import bench
import contestants
import pytest
import speed_page
import torch
from conftest import same_weights, weights
from tables import read_rows

from semigen_lib.data import BatchStream
from semigen_lib.methods import METHODS
from semigen_lib.runtime import fast_bf16

COUNTER = """
import sys, time
n = 0
while True:
    time.sleep(0.01)
    n += {by}
    print("{said}".format(n=n) if {alone} else "[Batch 1/9]", flush=True)
"""


def counting(name: str, by: int = 1, *, peer: bool = False, batch_size: int = 10):
    """Return a contestant that makes a step of so many in a hundredth of a second."""
    code = COUNTER.format(by=by, said="step {n}", alone=not peer)
    pattern = r"\[Batch \d+/\d+\]" if peer else ""
    return bench.Contestant(name, (sys.executable, "-c", code), batch_size, counts_lines=pattern)


# ---- contestants ----


@pytest.mark.parametrize("network", ["dcgan-lsgan", "dcgan-sgan", "article", "lsgan"])
def test_each_transposed_convolution_is_replaced_by_what_it_stands_for(network, tiny_split) -> None:
    """That both compute the same is held in test_models."""
    torch.manual_seed(0)
    method = contestants.build(network, tiny_split)
    noise = torch.randn(3, method.config.latent_dim)
    wanted = method.generator(noise)
    kernels = [layer for layer in method.modules() if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert kernels
    contestants.switch_off(method, ["transposed", "channels-last"])
    assert not any(isinstance(layer, torch.nn.ConvTranspose2d) for layer in method.modules())
    assert all(p.is_contiguous() for p in method.parameters())
    convolutions = [
        layer[1]
        for layer in method.generator.modules()
        if isinstance(layer, torch.nn.Sequential) and isinstance(layer[0], torch.nn.Upsample)
    ]
    for kernel, convolution in zip(kernels, convolutions, strict=True):
        assert convolution.weight.shape == (kernel.out_channels, kernel.in_channels, 3, 3)
        assert (convolution.bias is None) == (kernel.bias is None)
    assert method.generator(noise).shape == wanted.shape


@pytest.mark.parametrize("network", ["dcgan-lsgan", "article", "combined"])
def test_flops_are_counted_for_each_image(network, tiny_split) -> None:
    method = contestants.build(network, tiny_split)
    few, many = (
        contestants.count_flops(method, BatchStream(tiny_split, batch_size=n).at(0))
        for n in (8, 16)
    )
    assert few > 10**7
    if not method.reads:  # labelled images come on top, and are shared by more
        assert few == many


def test_both_loops_train(tiny_split, monkeypatch, capsys) -> None:
    class Enough(Exception):
        pass

    def stop(what: str, number: int) -> None:
        if number >= 2:
            raise Enough

    monkeypatch.setattr(contestants, "say", stop)
    options = contestants.parse(["lsgan", "--record-every", "1"])
    for loop in ("ours", "plain"):
        method = contestants.build("lsgan", tiny_split)
        before = weights(method)
        with pytest.raises(Enough):
            if loop == "ours":
                contestants.run_ours(method, tiny_split, options)
            else:
                batch = BatchStream(tiny_split).at(0)
                contestants.run_plain(method.train(), tiny_split, batch)
        assert not same_weights(before, weights(method)), loop


def test_every_method_of_the_library_can_be_raced() -> None:
    assert set(METHODS) < set(contestants.NETWORKS)


# ---- turns ----


def test_turns_are_counted_and_who_waits_stands_still() -> None:
    rows = bench.race(
        [counting("slow"), counting("fast", by=5), counting("peer", peer=True)],
        rounds=2,
        seconds=0.2,
    )
    slow, fast, peer = (row["images_per_second"]["median"] for row in rows)
    assert [row["name"] for row in rows] == ["slow", "fast", "peer"]
    assert slow < 10 / 0.01  # ten images in a hundredth of a second at the very most
    assert fast == pytest.approx(5 * slow, rel=0.5) and peer == pytest.approx(slow, rel=0.5)
    assert all(row["images_per_second"]["turns"] == 2 for row in rows)
    assert all(row["peak_memory_mb"] > 1 and row["first_row_seconds"] > 0 for row in rows)


def test_who_waits_stands_still() -> None:
    runner = bench.Runner(counting("one"))
    try:
        runner.wait_for_first_step()
        runner.pause()
        runner.turn(0.05)
        bench.time.sleep(0.05)  # what was printed before the stop is read
        known = runner.steps
        bench.time.sleep(0.1)
        assert runner.steps == known
        assert runner.turn(0.05) > 0 and runner.steps > known
    finally:
        runner.stop()
    assert bench.session_of(runner.process.pid) == []


def test_a_contestant_that_fails_is_named_with_its_last_words() -> None:
    broken = bench.Contestant("broken", (sys.executable, "-c", "raise ValueError('no digits')"))
    with pytest.raises(bench.BenchError, match=r"\Abroken: expected .*, got ValueError: no digits"):
        bench.race([counting("fine"), broken], rounds=1, seconds=0.1)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path) -> None:
    with pytest.raises(bench.BenchError, match=r"\APEER: expected a checkout of PyTorch-GAN, got"):
        bench.contests(tmp_path)


def test_folders_of_images_hold_what_they_say() -> None:
    with bench.folders_of_images([20, 50]) as folders:
        for count, folder in folders.items():
            train = list(folder.glob("class*/*.png"))
            assert len(train) == count and len(list(folder.glob("test/*/*.png"))) == 10
        base = folder.parent
    assert not base.exists()


# ---- the page ----


def figures() -> dict:
    return json.loads((speed_page.RESULTS / "bench.json").read_text())


def elsewhere() -> dict:
    return json.loads(speed_page.ELSEWHERE.read_text())


def render(measured: dict, there: dict | None = None) -> str:
    return speed_page.render(measured, precision(), there or elsewhere())


def precision() -> list[dict[str, str]]:
    return read_rows(speed_page.RESULTS / "precision.csv")


def test_the_page_is_what_the_figures_make() -> None:
    assert speed_page.PAGE.read_text() == render(figures())


def test_every_number_of_the_page_comes_from_the_figures() -> None:
    """Everything measured is changed, and then every table line with a measured number has to."""

    def changed(measured: dict) -> dict:
        return json.loads(json.dumps(measured), parse_float=lambda text: float(text) * 1.37)

    before = render(figures()).splitlines()
    after = render(changed(figures()), changed(elsewhere())).splitlines()
    rates = [line for line in before if line.startswith("| ") and " to " in line]
    assert len(rates) >= 15
    assert not set(rates) & set(after)


def test_goals_are_missed_when_they_are() -> None:
    rows = figures()
    found = {what: ok for what, _, _, ok in speed_page.goals(rows)}
    assert None not in found.values(), "expected every goal to be measured"
    for contest in rows["contests"].values():
        for row in contest:
            if row["name"].startswith("ours"):
                row["images_per_second"]["median"] /= 100
                row["peak_memory_mb"] *= 100
    rows["imports"]["library"], rows["first_step_seconds"] = 9.0, [9.0]
    for kind in ("images in memory", "images in files"):
        rows["growth"][kind][-1]["images_per_second"]["median"] = 1
    assert not any(ok for *_, ok in speed_page.goals(rows))


def test_what_was_not_measured_on_another_machine_is_left_out() -> None:
    there = elsewhere()
    for row in there["contests"]["lsgan of the library"]:
        if row["name"] == speed_page.FP32:
            row["images_per_second"]["median"] = 1e-3
    page = speed_page.another_machine(there)
    assert "not measured" not in page and "bf16" not in page and "imports" not in page
    (line,) = (line for line in page.splitlines() if "plain loop, `lsgan`" in line)
    assert "**missed**" in line


def test_intervals_that_do_not_overlap_are_said_to() -> None:
    def table(shift: float) -> list[dict[str, str]]:
        return [
            {"method": "combined", "precision": p, "test_error": str(0.05 + 0.001 * seed + move)}
            | dict.fromkeys(speed_page.MEASURES[1:], "")
            for p, move in (("fp32", 0.0), ("bf16", shift))
            for seed in range(5)
        ]

    assert [row["overlap"] for row in speed_page.precision_rows(table(0.001))] == [True]
    assert [row["overlap"] for row in speed_page.precision_rows(table(0.02))] == [False]


def test_a_method_uses_bf16_of_its_own_accord_only_where_nothing_is_lost() -> None:
    rows = speed_page.precision_rows(precision())
    for name in ("combined", "lsgan"):
        own = [row for row in rows if row["method"] == name]
        assert own and all(n == 5 for row in own for *_, n in row["intervals"].values())
        no_loss = all(row["overlap"] for row in own)
        assert no_loss or not METHODS[name].prefers_bf16, own


@pytest.mark.skipif(not fast_bf16(), reason="no bfloat16 in hardware here")
def test_a_machine_with_bf16_races_it() -> None:
    assert [c.name for c in bench.contests(None)["the article's networks"]][-1] == speed_page.BF16
