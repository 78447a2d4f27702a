"""The leaderboard: cells that survive, a table that adds up, tracks that never mix."""

import csv
import dataclasses
import gc
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from conftest import tiny_images
from PIL import Image

from semigen_lib import __version__, benchmark, cli
from semigen_lib.benchmark import (
    COLUMNS,
    Cell,
    find_cells,
    library_commit,
    plan_cells,
    read_summary,
    rerun_cell,
    summarise_cells,
    to_csv,
    to_table,
    track_of,
)
from semigen_lib.cli import main
from semigen_lib.cli_benchmark import whole_numbers
from semigen_lib.jobs import JobsError, run_jobs
from semigen_lib.methods import METHODS, best_method

ROOT = Path(__file__).parents[1]
TINY = {"width": 8, "latent_dim": 4, "batch_size": 8, "labeled_batch_size": 10}
SMALL = " ".join(f"--set {name}={value}" for name, value in TINY.items())
ASKED = f"--data shapes --methods supervised,combined --labels 3,6 --seeds 0-1 --steps 4 {SMALL}"
NAMES = {f"{m}_{n}_{s}" for m in ("supervised", "combined") for n in (3, 6) for s in (0, 1)}


def run(line: str) -> int:
    """Run one command line in this process and return its exit status."""
    try:
        return main(shlex.split(line))
    except SystemExit as stop:
        return stop.code


def bench(line: str) -> int:
    """Run a benchmark in this process, without a progress bar."""
    return run(f"benchmark {line} --jobs 1 --quiet")


def contents(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*/*.json"))}


def without_seconds(folder: Path) -> dict[str, dict]:
    found = {name: json.loads(text) for name, text in contents(folder).items()}
    for record in found.values():
        assert record.pop("seconds") > 0
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with tiny pictures of three classes, and the finished benchmark ``board``."""
    home = tmp_path_factory.mktemp("home")
    for folder, n_per_class, seed in (("shapes", 4, 1), ("shapes/test", 20, 2)):
        images = tiny_images(n_per_class, seed, n_classes=3)
        for index, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
            path = home / folder / "abc"[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Half as bright as the noise: or four steps would read them all.
            generator = torch.Generator().manual_seed(index + seed)
            noise = torch.randint(0, 200, image.shape, generator=generator)
            Image.fromarray((image // 8 + noise).to(torch.uint8).squeeze(0).numpy()).save(path)
    before = Path.cwd()
    os.chdir(home)
    try:
        assert bench(f"{ASKED} --out board") == 0
    finally:
        os.chdir(before)
    return home


@pytest.fixture
def here(home, tmp_path, monkeypatch) -> Path:
    """A new working folder with the pictures and a copy of the finished cells."""
    monkeypatch.chdir(tmp_path)
    Path("shapes").symlink_to(home / "shapes")
    for name, text in contents(home / "board").items():
        path = Path("board/plain") / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """Names of the cells that are run in this process, in order."""
    names, run_cell = [], benchmark.run_cell

    def remember(cell: Cell) -> dict:
        names.append(cell.path.stem)
        return run_cell(cell)

    monkeypatch.setattr(benchmark, "run_cell", remember)
    return names


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith("semigen") and err.count("\n") == 1 and "Traceback" not in err, err
    assert "expected" in err and "got" in err, err
    return err


# ---- cells ----


def test_every_cell_is_a_file_that_says_what_it_was(home) -> None:
    assert {p.name for p in (home / "board").iterdir()} == {"plain", "leaderboard.csv"}
    found = {name: json.loads(text) for name, text in contents(home / "board").items()}
    assert found.keys() == NAMES
    for name, record in found.items():
        asked = record["configuration"]
        method, n_labeled, seed = name.split("_")
        assert (asked["method"], asked["n_labeled"], asked["seed"]) == (
            method,
            int(n_labeled),
            int(seed),
        )
        assert asked["track"] == "plain" and asked["settings"] == TINY and asked["threads"] == 1
        assert asked["data"] == str((home / "shapes").resolve()), "found again from elsewhere"
        assert asked["steps"] == record["steps"] == 4 and asked["minutes"] is None
        assert 0 <= record["figures"]["test_error"] <= 1 and 0 < record["seconds"] < 60
        assert record["version"] == __version__ and record["torch"] == torch.__version__
        assert record["commit"] == library_commit() and record["schema"] == 1
    errors = {record["figures"]["test_error"] for record in found.values()}
    assert len(errors) > 3, "the tiny data is too easy or too hard to tell cells apart"


def test_a_cell_is_the_run_that_semigen_train_would_do(here, capsys) -> None:
    record = json.loads(Path("board/plain/combined_6_1.json").read_text())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    line = f"train --data shapes --method combined --labels 6 --seed 1 --steps 4 {SMALL}"
    assert run(f"{line} --out single --quiet") == 0
    torch.set_num_threads(before)
    assert json.loads(capsys.readouterr().out)["test_error"] == record["figures"]["test_error"]


def test_no_hidden_label_is_in_memory_while_training(here, monkeypatch) -> None:
    loaded, alive = [], []
    load_images, train = benchmark.load_images, benchmark.train

    def load(*positional, **named):
        data = load_images(*positional, **named)
        loaded.append(weakref.ref(data))
        return data

    def watched(*positional, **named):
        gc.collect()
        alive.append([data for data in loaded if data() is not None])
        return train(*positional, **named)

    monkeypatch.setattr(benchmark, "load_images", load)
    monkeypatch.setattr(benchmark, "train", watched)
    assert bench(f"{ASKED} --labels 3 --seeds 7 --out new") == 0
    assert len(loaded) == 3 and alive == [[], []], "one check of the options, two cells"


def test_seeds_come_one_after_the_other(here) -> None:
    common = dataclasses.asdict(PLAIN) | {"data": "shapes", "settings": TINY}
    cells = plan_cells(common, ["supervised", "combined"], [6, 3, 6], [1, 0, 1])
    assert [cell.path.stem for cell in cells] == [
        *("supervised_6_1", "supervised_3_1", "combined_6_1", "combined_3_1"),
        *("supervised_6_0", "supervised_3_0", "combined_6_0", "combined_3_0"),
    ]


def test_a_cell_has_the_threads_it_asks_for(here, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        benchmark, "measure_method", lambda *_: seen.append(torch.get_num_threads()) or
        {"test_error": 0.5},
    )  # fmt: skip
    before = torch.get_num_threads()
    assert bench(f"{ASKED} --seeds 0 --labels 3 --threads 3 --out new") == 0
    assert seen == [3, 3] and torch.get_num_threads() == before


def test_the_commit_is_of_the_library_and_says_if_it_was_changed(tmp_path, monkeypatch) -> None:
    source = tmp_path / "benchmark.py"
    monkeypatch.setattr(benchmark, "__file__", str(source))

    def now() -> str | None:
        library_commit.cache_clear()
        return library_commit()

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", *who, *words]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    try:
        source.write_text("1\n")
        assert now() is None, "no checkout"
        git("init", "-q")
        git("commit", "-q", "--allow-empty", "-m", "not about us")
        assert now() is None, "somebody else's checkout"
        git("add", ".")
        git("commit", "-q", "-m", "first")
        assert now() == git("rev-parse", "HEAD") and len(now()) == 40
        source.write_text("2\n")
        assert now() == git("rev-parse", "HEAD") + "-dirty"
        monkeypatch.setenv("PATH", "")
        assert now() is None, "no git"
    finally:
        library_commit.cache_clear()


# ---- resuming ----


def test_what_is_missing_is_run_and_nothing_else(here, home, ran) -> None:
    Path("board/plain/combined_3_1.json").unlink()
    before = contents(Path("board"))
    times = {path: path.stat().st_mtime_ns for path in Path("board/plain").iterdir()}
    assert bench(f"{ASKED} --out board") == 0
    assert ran == ["combined_3_1"]
    after = contents(Path("board"))
    assert {name: text for name, text in after.items() if name != "combined_3_1"} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert without_seconds(Path("board")) == without_seconds(home / "board")
    assert bench(f"{ASKED} --out board") == 0 and ran == ["combined_3_1"], "nothing is missing"


KILLED_WHILE_WRITING = """
import os, sys, time
from semigen_lib import checkpoint
from semigen_lib.cli import main

def hang(source, target, replace=os.replace):
    if "combined_3_0" in str(target):
        time.sleep(600)
    replace(source, target)

checkpoint.os.replace = hang
main(sys.argv[1:])
"""


def test_a_killed_benchmark_goes_on_where_it_was(here, home, ran) -> None:
    line = shlex.split(f"benchmark {ASKED} --out killed --jobs 1 --quiet")
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, *line]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(Path("killed").glob("*/.combined_3_0*.tmp")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert contents(Path("killed")).keys() == {"supervised_3_0", "supervised_6_0"}
    assert bench(f"{ASKED} --out killed") == 0
    assert set(ran) == NAMES - {"supervised_3_0", "supervised_6_0"}
    assert without_seconds(Path("killed")) == without_seconds(home / "board")


def test_ctrl_c_keeps_the_finished_cells(here, capsys, monkeypatch) -> None:
    run_cell = benchmark.run_cell

    def stop(cell: Cell) -> dict:
        if cell.path.stem == "combined_3_0":
            raise KeyboardInterrupt
        return run_cell(cell)

    monkeypatch.setattr(benchmark, "run_cell", stop)
    assert bench(f"{ASKED} --out new") == 130
    assert capsys.readouterr().err == (
        "semigen: what is finished is kept; the same command goes on\nsemigen: interrupted\n"
    )
    assert contents(Path("new")).keys() == {"supervised_3_0", "supervised_6_0"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("--steps 5", "steps"),
        ("--set width=16", "settings"),
        ("--threads 2", "threads"),
        ("--device cpu", "device"),
        ("--seeds 5 --steps 5", "steps"),  # another seed, and yet the same row
        ("--image-size 32", "image_size"),
    ],
)
def test_another_configuration_is_refused(change, word, here, ran, capsys) -> None:
    before = contents(Path("board"))
    assert bench(f"{ASKED} {change} --out board") == 2
    assert word in one_line(capsys) and not ran
    assert contents(Path("board")) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: json.dumps(record)[:-40],
        lambda record: "",
        lambda record: "[1]",
        lambda record: json.dumps(record | {"figures": {"test_error": None}}),
        lambda record: json.dumps(record | {"figures": {"test_error": math.nan}}),
        lambda record: json.dumps(record | {"figures": {}}),
        lambda record: json.dumps(record | {"figures": [0.5]}),
        lambda record: json.dumps(record | {"configuration": {"method": "combined"}}),
        lambda record: json.dumps(
            record | {"configuration": record["configuration"] | {"seed": 9}}
        ),
        lambda record: json.dumps(
            record | {"configuration": record["configuration"] | {"track": "none"}}
        ),
    ],
    ids=["truncated", "empty", "list", "no number", "NaN", "no figure", "a list of figures",
         "no configuration",
         "of another seed", "of no track"],
)  # fmt: skip
@pytest.mark.filterwarnings("default:::semigen_lib")
def test_a_damaged_cell_is_run_again_with_a_warning(damage, here, home, ran, capsys) -> None:
    path = Path("board/plain/supervised_3_0.json")
    path.write_text(damage(json.loads(path.read_text())))
    assert bench(f"{ASKED} --out board") == 0
    err = one_line(capsys)
    assert err.startswith("semigen: warning: board/plain/supervised_3_0.json: expected"), err
    assert err.count("expected") == 1
    assert ran == ["supervised_3_0"]
    assert without_seconds(Path("board")) == without_seconds(home / "board")


def test_a_newer_cell_is_not_overwritten(here, ran, capsys) -> None:
    path = Path("board/plain/supervised_3_0.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    before = path.read_bytes()
    assert bench(f"{ASKED} --out board") == 2
    assert "newer" in one_line(capsys) and not ran and path.read_bytes() == before


def test_a_cell_that_fails_costs_no_other(here, home, monkeypatch, capsys) -> None:
    honest = METHODS["combined"].updates

    def broken(self, batch):
        for player, terms in honest(self, batch):
            yield player, {name: term * math.nan for name, term in terms.items()}

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["combined"], "updates", broken)
        assert bench(f"{ASKED} --out new") == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 4 and "Traceback" not in err
    assert "semigen: plain, combined, 6 labels, seed 1: expected it to finish, got Train" in err
    assert contents(Path("new")).keys() == {name for name in NAMES if "supervised" in name}
    assert "supervised" in out and "combined" not in out
    assert bench(f"{ASKED} --out new") == 0
    assert without_seconds(Path("new")) == without_seconds(home / "board")


def test_all_cells_may_fail(here, monkeypatch, capsys) -> None:
    def broken(_) -> dict:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(benchmark, "run_cell", broken)
    assert bench(f"{ASKED} --out new") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 8 and "got RuntimeError: two lines\n" in err
    assert not list(Path("new").iterdir())


def test_the_bar_shows_the_best_so_far(here, capsys) -> None:
    for path in Path("board/plain").glob("supervised_3_*"):
        path.unlink()
    assert run(f"benchmark {ASKED} --out board --jobs 1") == 0
    err = capsys.readouterr().err
    assert "7/8" in err and "8/8" in err and "cell" in err
    found = [json.loads(text)["figures"]["test_error"] for text in contents(Path("board")).values()]
    assert f"best test_error {min(found):.4f}: plain, " in err.rsplit("\r", 1)[-1]


# ---- workers ----


@pytest.fixture(scope="module")
def by_processes(home) -> Path:
    """The same benchmark, run by two processes."""
    command = f"{sys.executable} -m semigen_lib benchmark {ASKED} --out processes --jobs 2 --quiet"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(shlex.split(command), check=True, cwd=home, env=environment)
    return home / "processes"


def test_processes_give_the_same_cells(by_processes, home) -> None:
    assert without_seconds(by_processes) == without_seconds(home / "board")


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_cells(by_processes, here, monkeypatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        line = f"benchmark {ASKED} --out cluster --scheduler {cluster.scheduler_address} --quiet"
        line = line.replace("--data shapes", f"--data {by_processes.parent / 'shapes'}")
        assert cluster.scheduler.transition_counter == 0
        assert run(line) == 0
        assert cluster.scheduler.transition_counter >= 3 * len(NAMES), "the workers were idle"
    assert without_seconds(Path("cluster")) == without_seconds(by_processes)


def test_a_killed_worker_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "_attempt", lambda cell: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(JobsError) as caught:
        list(run_jobs(benchmark._attempt, ["one", "two", "three"]))
    sentence = cli.explain(caught.value)
    assert sentence.startswith("workers: expected them to stay alive, got Terminated")


# ---- what is refused ----

BAD = {
    "unknown method": f"{ASKED} --methods gan --out new",
    "method that cannot read": f"{ASKED} --methods supervised,lsgan --out new",
    "unknown setting": f"{ASKED} --set nonsuch=1 --out new",
    "unknown data": f"{ASKED} --data nonsuch --out new",
    "labels not divisible": f"{ASKED} --labels 3,4 --out new",
    "more labels than images": f"{ASKED} --labels 300 --out new",
    "no labels": f"{ASKED} --labels 0 --out new",
    "labels not a number": f"{ASKED} --labels many --out new",
    "seed not a number": f"{ASKED} --seeds a-b --out new",
    "negative seed": f"{ASKED} --seeds=-1 --out new",
    "seeds without an end": f"{ASKED} --seeds 0- --out new",
    "seeds that fall": f"{ASKED} --seeds 4-2 --out new",
    "a part of the seeds that falls": f"{ASKED} --seeds 0,3-1 --out new",
    "cuda without one": f"{ASKED} --device cuda --out new",
    "no steps": f"{ASKED} --steps 0 --out new",
    "steps and minutes": f"{ASKED} --minutes 1 --out new",
    "no jobs": f"{ASKED} --jobs 0 --out new",
    "no threads": f"{ASKED} --threads 0 --out new",
    "unknown track": f"{ASKED} --track both --out new",
    "other track": f"{ASKED} --methods supervised --track plain --set augment=1 --out new",
    "out is a file": f"{ASKED} --out shapes/a/0.png",
    "out below a file": f"{ASKED} --out shapes/a/0.png/new",
    "nothing to summarise": "--out new",
    "summary of another kind": f"{ASKED} --out new --summary new.py",
    "no out": ASKED,
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_runs_nothing(line, here, ran, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(f"benchmark --jobs 1 --quiet {line}") == 2
    one_line(capsys)
    assert not ran and not Path("new").exists()


@pytest.mark.parametrize(
    "options", ["--methods gan", "--set nonsuch=1", "--methods supervised --image-size 30"]
)
def test_what_can_be_refused_at_once_is_refused_before_images_are_read(
    options, here, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(benchmark, "load_images", None)
    assert run(f"benchmark --jobs 1 --quiet {ASKED} {options} --out new") == 2
    one_line(capsys)


@pytest.mark.filterwarnings("default")
def test_what_is_to_be_said_of_the_images_is_said(here, capsys) -> None:
    Path("untested").mkdir()
    for kind in "abc":
        shutil.copytree(f"shapes/{kind}", f"untested/{kind}")
    line = f"{ASKED} --methods supervised --labels 3 --seeds 0 --data untested --out new"
    assert bench(line) == 0
    assert "warning: untested has no test images" in capsys.readouterr().err


def test_without_a_cluster_it_says_so(here, monkeypatch, capsys) -> None:
    pytest.importorskip("distributed")

    def nobody(*_, **__):
        raise OSError("Timed out\ntrying to connect")

    monkeypatch.setattr("dask.distributed.Client", nobody)
    assert bench(f"{ASKED} --out new --scheduler tcp://127.0.0.1:1") == 2
    err = one_line(capsys)
    assert "expected a Dask scheduler at tcp://127.0.0.1:1, got Timed out trying" in err
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    assert bench(f"{ASKED} --out new --scheduler tcp://127.0.0.1:1") == 2
    assert "expected dask[distributed] to be installed" in one_line(capsys)


def test_numbers_and_ranges() -> None:
    assert whole_numbers("0-4") == [0, 1, 2, 3, 4]
    assert whole_numbers("10,20,3-4") == [10, 20, 3, 4]


# ---- tracks ----


def test_the_track_is_what_the_method_does(make_method) -> None:
    assert track_of(make_method("supervised")) == "plain"
    assert track_of(make_method("supervised", augment=1)) == "augmented"


def test_tracks_never_meet(here, capsys) -> None:
    line = f"{ASKED} --methods supervised"
    assert bench(f"{line} --track augmented --out board") == 0
    assert len(list(Path("board/plain").iterdir())) == 8
    cells = list(Path("board/augmented").iterdir())
    assert len(cells) == 4
    for path in cells:
        asked = json.loads(path.read_text())["configuration"]
        assert asked["track"] == "augmented" and asked["settings"]["augment"] == 1
    rows = read_summary(Path("board/leaderboard.csv"))
    assert [row["track"] for row in rows] == ["plain"] * 4 + ["augmented"] * 2
    assert all(row["n_seeds"] == "2" for row in rows)
    plain, augmented = capsys.readouterr().out.split("\n\n")
    assert "augmented" not in plain and "plain" not in augmented
    # However the switch is turned on, it is the same cell.
    assert bench(f"{line} --set augment=1 --out other") == 0
    shutil.rmtree("board/plain")
    assert without_seconds(Path("other")) == without_seconds(Path("board"))


# ---- the table ----

PLAIN = Cell("plain", "supervised", 10, 0, "mnist", 28, 1, {}, 9, None, "auto", "auto", 1)
AUGMENTED = dataclasses.replace(PLAIN, track="augmented", n_labeled=1000, settings={"augment": 1})


def finished(cell: Cell, error: float, seconds: float = 1.0, **figures) -> tuple[Cell, dict]:
    record = {"configuration": dataclasses.asdict(cell), "steps": 9, "seconds": seconds}
    return cell, record | {"figures": {"test_error": error, **figures}, "commit": "c0ffee"}


def some_cells() -> list[tuple[Cell, dict]]:
    """Two tracks, three budgets, three seeds of one of them; in no order."""
    return [
        finished(dataclasses.replace(PLAIN, n_labeled=100), 0.05),
        finished(AUGMENTED, 0.01),
        finished(dataclasses.replace(PLAIN, seed=2), 0.6, 5.0),
        finished(PLAIN, 0.1, 1.0),
        finished(dataclasses.replace(PLAIN, seed=1), 0.2, 3.0),
    ]


def test_the_table_by_hand() -> None:
    ten, hundred, augmented = summarise_cells(some_cells())
    assert ten["n_labeled"] == "10" and ten["seeds"] == "0 1 2" and ten["n_seeds"] == "3"
    # t = 4.302653 for 2 degrees of freedom; the variance of (.1, .2, .6) is .07.
    assert float(ten["mean_test_error"]) == pytest.approx(0.3)
    assert float(ten["interval_95"]) == pytest.approx(4.302653 * math.sqrt(0.07 / 3), abs=2e-6)
    assert float(ten["median"]) == pytest.approx(0.2) and float(ten["worst"]) == 0.6
    assert ten["steps"] == "9" and ten["mean_seconds"] == "3.0" and ten["threads"] == "1"
    assert ten["commits"] == "c0ffee" and ten["minutes"] == ""
    assert hundred["n_labeled"] == "100" and hundred["n_seeds"] == "1"
    assert hundred["interval_95"] == "", "one seed tells nothing of the scatter"
    assert hundred["mean_test_error"] == hundred["median"] == hundred["worst"] == "0.050000"
    assert augmented["track"] == "augmented" and augmented["n_seeds"] == "1"


def test_figures_of_drawn_images_have_columns_of_the_same_kind() -> None:
    pairs = [
        finished(dataclasses.replace(PLAIN, method="combined", seed=s), 0.1, kid=0.5 + s)
        for s in (0, 1)
    ]
    rows = summarise_cells([finished(PLAIN, 0.2), *pairs])
    combined, supervised = csv.DictReader(to_csv(rows).splitlines())
    assert combined["mean_kid"] == "1.000000"
    # t = 12.706205 for one degree of freedom; the variance of (.5, 1.5) is .5.
    assert float(combined["interval_95_kid"]) == pytest.approx(12.706205 * 0.5, abs=1e-5)
    assert supervised["mean_kid"] == supervised["interval_95_kid"] == ""
    assert "mean_kid" in to_table(rows).splitlines()[0]


def test_the_order_is_that_of_the_numbers() -> None:
    budgets = (1000, 20, 100, 10)
    pairs = [finished(dataclasses.replace(PLAIN, n_labeled=n), 0.1) for n in budgets]
    assert [r["n_labeled"] for r in summarise_cells(pairs)] == ["10", "20", "100", "1000"]


def test_a_row_is_of_one_configuration() -> None:
    pairs = [finished(PLAIN, 0.1), finished(dataclasses.replace(PLAIN, seed=1, steps=8), 0.1)]
    with pytest.raises(ValueError, match="expected steps as there, 9, got 8"):
        summarise_cells(pairs)


def test_a_row_is_of_one_set_of_images() -> None:
    """A folder that grows between two calls changes what is measured."""
    records = [finished(PLAIN, 0.1), finished(dataclasses.replace(PLAIN, seed=1), 0.1)]
    for n, (_, record) in zip((16, 32), records, strict=True):
        record["images"] = [n, 4]
    with pytest.raises(ValueError, match="expected one set of images for all cells of a row, got"):
        summarise_cells(records)
    records[1][1]["images"] = [16, 4]
    assert len(summarise_cells(records)) == 1


def test_terminated_it_stops_as_by_ctrl_c(here, monkeypatch, capsys) -> None:
    """So its workers are ended too."""

    def asked(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        yield

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("semigen_lib.cli_benchmark.run_cells", asked)
    assert bench(f"{ASKED} --out new") == 130
    assert "what is finished is kept; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_table_is_written_without_running(here, ran, capsys) -> None:
    assert bench("--out board --summary tables/board.csv") == 0
    printed = capsys.readouterr().out.splitlines()
    assert not ran and not Path("board/leaderboard.csv").exists()
    rows = read_summary(Path("tables/board.csv"))
    assert [(r["method"], r["n_labeled"]) for r in rows] == [
        ("combined", "3"), ("combined", "6"), ("supervised", "3"), ("supervised", "6"),
    ]  # fmt: skip
    assert len(printed) == 5 and len({len(line) for line in printed}) == 1, "aligned"
    assert printed[0].split() == list(COLUMNS[:11])
    assert printed[1].split() == [rows[0][name] for name in COLUMNS[:11]]
    errors = [r["figures"]["test_error"] for c, r in find_cells(Path("board"))
              if (c.method, c.n_labeled) == ("combined", 3)]  # fmt: skip
    assert float(rows[0]["mean_test_error"]) == pytest.approx(sum(errors) / 2, abs=1e-6)


def test_a_row_run_again_is_inside_its_interval(here, ran) -> None:
    assert bench("--out board --summary board.csv") == 0
    again = rerun_cell(Path("board.csv"), "plain", "combined", 6)
    assert ran == ["combined_6_0", "combined_6_1"] and again.inside
    row = next(r for r in read_summary(Path("board.csv"))
               if (r["method"], r["n_labeled"]) == ("combined", "6"))  # fmt: skip
    mean, half = float(row["mean_test_error"]), float(row["interval_95"])
    assert again.mean_test_error == pytest.approx(mean, abs=1e-6)
    assert (again.low, again.high) == pytest.approx((mean - half, mean + half), abs=2e-6)
    single = rerun_cell(Path("board.csv"), "plain", "combined", 6, seeds=[1])
    assert single.high - mean == pytest.approx(half * math.sqrt(3), abs=5e-6) and single.inside
    # A table that was typed rather than measured does not hold.
    wrong = Path("board.csv").read_text().replace(
        f"{row['mean_test_error']},{row['interval_95']}", "0.000000,0.000100"
    )  # fmt: skip
    Path("wrong.csv").write_text(wrong)
    assert not rerun_cell(Path("wrong.csv"), "plain", "combined", 6).inside


def test_without_an_interval_there_is_nothing_to_be_inside_of(tmp_path) -> None:
    path = tmp_path / "board.csv"
    path.write_text(to_csv(summarise_cells(some_cells())))
    for row in (("plain", "supervised", 100), ("plain", "supervised", 7)):
        with pytest.raises(ValueError, match="expected a row with an interval"):
            rerun_cell(path, *row)


MALFORMED = {
    "no header": lambda t: t.split("\n", 1)[1],
    "no rows": lambda t: t.split("\n", 1)[0] + "\n",
    "column gone": lambda t: t.replace(",median", ""),
    "row twice": lambda t: t + t.splitlines()[-1] + "\n",
    "out of order": lambda t: "\n".join([t.splitlines()[i] for i in (0, 2, 1, 3)]) + "\n",
    "in the other track": lambda t: t.replace("augmented,", "plain,"),
    "unknown track": lambda t: t.replace("augmented,", "mixed,"),
    "unknown method": lambda t: t.replace("plain,supervised,100,", "plain,magic,100,"),
    "a seed too few": lambda t: t.replace("0 1 2", "0 1"),
    "no number": lambda t: t.replace("0.300000", "good"),
    "NaN": lambda t: t.replace("0.300000", "nan"),
    "error above 1": lambda t: t.replace("0.600000", "1.600000"),
    "worst is not worst": lambda t: t.replace("0.600000", "0.150000"),
    "interval of one seed": lambda t: t.replace("0.050000,,", "0.050000,0.1,"),
    "interval gone": lambda t: t.replace("0.657241", ""),
    "negative interval": lambda t: t.replace("0.657241", "-0.657241"),
    "other threads": lambda t: t.replace(",3.0,1,", ",3.0,2,"),
    "no commit": lambda t: t.replace("c0ffee", ""),
    "no configuration": lambda t: t.replace("mnist", 'mn"ist'),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_table_is_refused(change, tmp_path) -> None:
    path = tmp_path / "board.csv"
    text = to_csv(summarise_cells(some_cells()))
    path.write_text(text)
    assert len(read_summary(path)) == 3
    assert change(text) != text, "the change must meet something"
    path.write_text(change(text))
    with pytest.raises(ValueError, match=r"board.csv.*: expected .*, got "):
        read_summary(path)


def test_the_committed_table() -> None:
    path = ROOT / "book" / "results" / "leaderboard.csv"
    for row in read_summary(path):
        name = f"{row['track']}, {row['method']}, {row['n_labeled']}"
        assert int(row["n_seeds"]) >= 5, f"{name}: expected at least five seeds"
        assert row["n_labeled"] in ("10", "20", "50", "100", "1000"), name
        asked = json.loads(row["configuration"])
        assert asked["data"] == "mnist" and asked["image_size"] == 28, f"{name}: full MNIST"
        assert "unknown" not in row["commits"], f"{name}: of which source?"


def test_the_committed_table_is_that_of_the_committed_cells() -> None:
    results = ROOT / "book" / "results"
    made = summarise_cells(find_cells(results / "board"))
    for row in read_summary(results / "leaderboard.csv"):
        assert row in made, f"{row['track']}, {row['method']}, {row['n_labeled']}: other cells"


def test_best_is_what_the_committed_table_puts_first() -> None:
    """On either track: whoever asks for the best reader does not ask how it was made."""
    rows = read_summary(ROOT / "book" / "results" / "leaderboard.csv")
    for budget in ("10", "20", "50", "100", "1000"):
        ranked = [row for row in rows if row["n_labeled"] == budget]
        first = min(ranked, key=lambda row: float(row["mean_test_error"]))
        assert best_method(int(budget)) == first["method"], f"{budget} labels"


def test_help_shows_an_example_that_parses(capsys) -> None:
    assert run("benchmark --help") == 0
    text = " ".join(capsys.readouterr().out.split())
    example = text.split("example: ")[1]
    for command in example.split(" && "):
        assert cli.build_parser().parse_args(shlex.split(command)[1:]).out == Path("runs/board")
