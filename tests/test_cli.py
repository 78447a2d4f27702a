"""The contract of the command line: what it writes, what it refuses, and what it leaves alone."""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_settings
from PIL import Image

from semigen_lib import __version__, cli, console, training
from semigen_lib.checkpoint import load_state, load_weights
from semigen_lib.cli import build_parser, explain, main
from semigen_lib.data import UNLABELED, ImageData, ImageSet, load_images, split_labels
from semigen_lib.evaluation import draw
from semigen_lib.methods import BEST, METHODS
from semigen_lib.runtime import seed_everything
from semigen_lib.samples import measure_samples
from semigen_lib.training import TrainingError


def small(method: str) -> str:
    return " ".join(f"--set {n}={value}" for n, value in tiny_settings(METHODS[method]).items())


SMALL = small("combined")
RESULTS = {"config.json", "history.csv", "metrics.json", "model.safetensors", "samples.png"}


def run(line: str) -> int:
    """Run one command line in this process and return its exit status."""
    try:
        return main(shlex.split(line))
    except SystemExit as stop:
        return stop.code


def draw_shape(path: Path, kind: str, index: int, channels: int) -> None:
    """Write one small picture, each of another odd size, colour or grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = 20 + index, 31 - index
    y, x = np.mgrid[:height, :width]
    inside = (y < height / 2) if kind == "top" else (x < width / 2)
    pixels = np.where(inside[..., None], [250, 200, 20], [10, 30, 90]).astype(np.uint8)
    image = Image.fromarray(pixels)
    (image if channels == 3 else image.convert("L")).save(path)


def make_folder(folder: Path, *, test: bool) -> Path:
    for index in range(8):
        for kind in ("left", "top"):
            draw_shape(folder / kind / f"{index}.png", kind, index, 3 if index % 2 else 1)
        draw_shape(folder / "unlabeled" / f"{index}.jpg", ("left", "top")[index % 2], index, 3)
    for index in range(3 if test else 0):
        for kind in ("left", "top"):
            draw_shape(folder / "test" / kind / f"{index}.bmp", kind, 8 + index, 3)
    return folder


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) | changes
    content = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(content))


def train_interrupted(arguments: str, rows: int) -> None:
    """Run semigen train and press Ctrl-C at a row of the history; each row saves a state."""

    def stop(step: int, _) -> None:
        nonlocal rows
        rows -= 1
        if rows < 0:
            raise KeyboardInterrupt

    def stopped(*positional, **named):
        return training.train(*positional, **named, record_every=1, on_record=stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SECONDS_BETWEEN_STATES", -1.0)
        patch.setattr(cli, "train", stopped)
        assert run(f"train {arguments}") == 130


UNFINISHED = f"--data shapes --method lsgan --steps 9 --seed 3 --quiet {SMALL}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with data and runs, good and damaged. Only what refuses may be tried in it."""
    home = tmp_path_factory.mktemp("workspace")
    before = Path.cwd()
    os.chdir(home)
    try:
        make_folder(Path("shapes"), test=True)
        for method in METHODS:
            line = f"train --data shapes --method {method} --steps 2 --out runs/{method}"
            line += f" {small(method)}"
            assert run(line + " --quiet") == 0
        train_interrupted(f"{UNFINISHED} --out runs/unfinished", 4)
        make_damaged_runs()
        make_bad_images()
    finally:
        os.chdir(before)
    return home


def make_damaged_runs() -> None:
    """Copies of good runs, each broken in one way."""
    for name in ("flipped", "truncated", "newer", "no_json", "no_digest", "no_method", "other",
                 "moved", "classes", "no_weights", "odd_settings"):  # fmt: skip
        shutil.copytree("runs/combined", f"runs/{name}")
    flip_a_bit(Path("runs/flipped/model.safetensors"))
    weights = Path("runs/truncated/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    edit_json(Path("runs/newer/config.json"), schema=99)
    Path("runs/no_json/config.json").write_text("{'method': 3}")
    edit_json(Path("runs/no_digest/metrics.json"), sha256=None)
    edit_json(Path("runs/no_method/config.json"), method=None)
    edit_json(Path("runs/other/config.json"), method="lsgan")
    edit_json(Path("runs/moved/config.json"), data=str(Path("was_here").resolve()))
    edit_json(Path("runs/classes/config.json"), class_names=["cat", "dog"])
    edit_json(Path("runs/odd_settings/config.json"), settings=[1])
    Path("runs/no_weights/model.safetensors").unlink()
    shutil.copytree("runs/unfinished", "runs/bad_states")
    for path in Path("runs/bad_states/states").glob("*.safetensors"):
        flip_a_bit(path)
    shutil.copytree("runs/unfinished", "runs/bad_config")
    Path("runs/bad_config/config.json").write_text("{")


def make_bad_images() -> None:
    """Everything that is not a data set, and everything that is not an .npz with images."""
    Path("notes.txt").write_text("not an image\n")
    Path("empty").mkdir()
    Path("drawing.png").mkdir()
    make_folder(Path("one_class"), test=False)
    shutil.rmtree("one_class/top")
    make_folder(Path("unreadable"), test=False)
    Path("unreadable/top/note.txt").write_text("not an image\n")
    make_folder(Path("loose"), test=False)
    draw_shape(Path("loose/loose.png"), "top", 0, 3)
    good = np.zeros((2, 28, 28), np.uint8)
    np.savez("small.npz", images=good[:, :20])
    np.savez("floats.npz", images=good / 255)
    np.savez("colour.npz", images=np.zeros((2, 3, 28, 28), np.uint8))
    np.savez("pickled.npz", images=np.array([print, good], dtype=object))
    np.savez("no_images.npz", pictures=good)
    np.savez("none.npz", images=good[:0])
    np.savez("scalar.npz", images=np.uint8(3))
    Path("text.npz").write_text("not an archive\n")
    Path("nothing.npz").write_bytes(b"")
    with open("array.npz", "wb") as file:
        np.save(file, good)
    np.savez_compressed("broken.npz", images=np.arange(1568, dtype=np.uint8).reshape(2, 28, 28))
    content = bytearray(Path("broken.npz").read_bytes())
    content[200:230] = bytes(30)
    Path("broken.npz").write_bytes(content)


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every path with what no write leaves as it was: place, size, times of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found[str(path)] = facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return found


TRAIN = "train --data shapes --steps 2 --out new"
BAD = {
    # what is asked for
    "unknown method": f"{TRAIN} --method gan",
    "unknown data": "train --data nonsuch --out new",
    "missing folder": "train --data ./mnist --out new",
    "labels not divisible": f"{TRAIN} --labels 3",
    "more labels than images": f"{TRAIN} --labels 200",
    "no labels": f"{TRAIN} --labels 0",
    "negative labels": f"{TRAIN} --labels -2",
    "mnist: not divisible": "train --labels 105 --out new",
    "mnist: more than images": "train --labels 70000 --out new",
    "mnist: side of 30": "train --labels 100 --image-size 30 --out new",
    "zero steps": f"{TRAIN} --steps 0",
    "negative steps": f"{TRAIN} --steps -5",
    "steps and minutes": f"{TRAIN} --minutes 1",
    "zero minutes": "train --data shapes --minutes 0 --out new",
    "negative minutes": "train --data shapes --minutes -1 --out new",
    "NaN minutes": "train --data shapes --minutes nan --out new",
    "endless minutes": "train --data shapes --minutes inf --out new",
    "negative seed": f"{TRAIN} --seed -1",
    "huge seed": f"{TRAIN} --seed 4294967296",
    "negative label seed": f"{TRAIN} --label-seed -1",
    "image size 30": f"{TRAIN} --image-size 30",
    "image size 0": f"{TRAIN} --image-size 0",
    "negative image size": f"{TRAIN} --image-size -28",
    "cuda without one": f"{TRAIN} --device cuda",
    # settings
    "unknown setting": f"{TRAIN} --set nonsuch=1",
    "setting of wrong type": f"{TRAIN} --set width=wide",
    "setting not whole": f"{TRAIN} --set width=8.5",
    "setting not possible": f"{TRAIN} --set width=6",
    "setting zero": f"{TRAIN} --set latent_dim=0",
    "setting huge": f"{TRAIN} --set batch_size=1000000000000",
    "setting true": f"{TRAIN} --set batch_size=true",
    "setting list": f"{TRAIN} --set batch_size=[8]",
    "setting deep": f"{TRAIN} --set batch_size={'[' * 5000}",
    "setting negative": f"{TRAIN} --set learning_rate=-1",
    "setting astronomic": f"{TRAIN} --set learning_rate=1{'0' * 400}",
    "setting of many digits": f"{TRAIN} --set batch_size=1{'0' * 5000}",
    "views without bounds": f"{TRAIN} --method fixmatch --set strength=1000000",
    "views turned round": f"{TRAIN} --method fixmatch --set strength=-3",
    "a search that cannot begin": f"{TRAIN} --method vat --set probe=0",
    "setting NaN": f"{TRAIN} --set learning_rate=NaN",
    "target NaN": f"{TRAIN} --method lsgan --set real_target=NaN",
    "weight endless": f"{TRAIN} --set reconstruction_weight=Infinity",
    "setting without value": f"{TRAIN} --set width",
    "setting without name": f"{TRAIN} --set =3",
    # the folder of the run
    "out is a run": "train --data shapes --steps 2 --out runs/combined",
    "out is unfinished": "train --data shapes --steps 2 --out runs/unfinished",
    "out has other things": "train --data shapes --steps 2 --out shapes",
    "out is among the images": "train --data shapes --steps 2 --out shapes/runs/new",
    "out is a file": "train --data shapes --steps 2 --out notes.txt",
    "out below a file": "train --data shapes --steps 2 --out notes.txt/run",
    "out not writable": "train --data shapes --steps 2 --out /proc/nonsuch/run",
    "resume nothing": f"{TRAIN} --resume",
    "resume what is finished": "train --data shapes --steps 2 --out runs/combined --resume",
    "resume with other steps": f"train {UNFINISHED} --steps 10 --out runs/unfinished --resume",
    "resume with minutes": "train --data shapes --method lsgan --seed 3 --minutes 1 "
    f"--out runs/unfinished --resume {SMALL}",
    "resume with other seed": f"train {UNFINISHED} --seed 4 --out runs/unfinished --resume",
    "resume other method": f"train {UNFINISHED} --method combined --out runs/unfinished --resume",
    "resume with other labels": f"train {UNFINISHED} --labels 4 --out runs/unfinished --resume",
    "resume with other set": f"train {UNFINISHED} --set width=16 --out runs/unfinished --resume",
    "resume damaged states": f"train {UNFINISHED} --out runs/bad_states --resume",
    "resume damaged config": f"train {UNFINISHED} --out runs/bad_config --resume",
    # the images to learn from
    "folder without classes": "train --data empty --steps 2 --out new",
    "folder with one class": "train --data one_class --steps 2 --out new",
    "folder with loose images": "train --data loose --steps 2 --out new",
    "unreadable image": "train --data unreadable --steps 2 --out new",
    "data is a file": "train --data notes.txt --steps 2 --out new",
    # sample
    "sample: no run": "sample runs/nonsuch --out new.png",
    "sample: unfinished run": "sample runs/unfinished --out new.png",
    "sample: run is a file": "sample notes.txt --out new.png",
    "sample: flipped bit": "sample runs/flipped --out new.png",
    "sample: truncated": "sample runs/truncated --out new.png",
    "sample: no weights": "sample runs/no_weights --out new.png",
    "sample: newer": "sample runs/newer --out new.png",
    "sample: config not JSON": "sample runs/no_json --out new.png",
    "sample: no sha256": "sample runs/no_digest --out new.png",
    "sample: no method": "sample runs/no_method --out new.png",
    "sample: config of another run": "sample runs/other --out new.png",
    "sample: settings of no kind": "sample runs/odd_settings --out new.png",
    "sample: unknown class": "sample runs/combined --class circle --out new.png",
    "sample: number too high": "sample runs/combined --class 2 --out new.png",
    "sample: negative class": "sample runs/combined --class=-1 --out new.png",
    "sample: cannot draw": "sample runs/supervised --out new.png",
    "sample: cannot choose": "sample runs/lsgan --class top --out new.png",
    "sample: none": "sample runs/combined --per-class 0 --out new.png",
    "sample: negative": "sample runs/combined --per-class -3 --out new.png",
    "sample: negative seed": "sample runs/combined --seed -3 --out new.png",
    "sample: too wide": "sample runs/combined --per-class 1000 --out new.png",
    "sample: other suffix": "sample runs/combined --out new.jpg",
    "sample: no suffix": "sample runs/combined --out new",
    "sample: out is a folder": "sample runs/combined --out drawing.png",
    "sample: out below a file": "sample runs/combined --out notes.txt/new.png",
    "sample: cuda": "sample runs/combined --device cuda --out new.png",
    # predict
    "predict: no run": "predict runs/nonsuch shapes/top --out new.csv",
    "predict: cannot read": "predict runs/autoencoder shapes/top --out new.csv",
    "predict: nothing there": "predict runs/combined nonsuch --out new.csv",
    "predict: no images": "predict runs/combined empty --out new.csv",
    "predict: no image": "predict runs/combined notes.txt --out new.csv",
    "predict: folders": "predict runs/combined shapes --out new.csv",
    "predict: one unreadable": "predict runs/combined unreadable/top --out new.csv",
    "predict: out among the images": "predict runs/combined shapes/top --out shapes/top/new.csv",
    "predict: other suffix": "predict runs/combined shapes/top --out new.txt",
    "predict: out below a file": "predict runs/combined shapes/top --out notes.txt/new.csv",
    "predict: missing npz": "predict runs/combined nonsuch.npz --out new.csv",
    # evaluate
    "evaluate: no run": "evaluate runs/nonsuch",
    "evaluate: data gone": "evaluate runs/moved",
    "evaluate: other classes": "evaluate runs/classes",
    "evaluate: flipped bit": "evaluate runs/flipped",
    "evaluate: one a class": "evaluate runs/combined --samples-per-class 1",
    "evaluate: fewer than none": "evaluate runs/combined --samples-per-class -1",
    "evaluate: score of a reader": "evaluate runs/supervised --cas",
    "evaluate: drawings not whole": "evaluate runs/combined --samples-per-class 1.5",
    # what argparse refuses
    "no command": "",
    "unknown command": "paint",
    "unknown option": f"{TRAIN} --colour",
    "unknown option in two lines": f"{TRAIN} 'two\nlines'",
    "no out": "train --data shapes",
    "steps not whole": f"{TRAIN} --steps 1.5",
    "labels not a number": f"{TRAIN} --labels many",
    "minutes not a number": "train --minutes three --out new",
    "unknown device": f"{TRAIN} --device tpu",
    "unknown precision": f"{TRAIN} --precision fp8",
    "two channels": f"{TRAIN} --channels 2",
    "no run": "sample --out new.png",
} | {
    f"predict: {name}.npz": f"predict runs/combined {name}.npz --out new.csv"
    for name in ("small", "floats", "colour", "pickled", "no_images", "none", "scalar", "text",
                 "nothing", "array", "broken")
}  # fmt: skip


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_changes_nothing(line, workspace, capsys, monkeypatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = snapshot(workspace)
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("semigen") and err.endswith("\n") and err.count("\n") == 1, err
    assert "expected " in err and "got" in err and "Traceback" not in err, err
    assert snapshot(workspace) == before


def test_an_interrupted_run_is_said_to_be_one(workspace, monkeypatch, capsys) -> None:
    monkeypatch.chdir(workspace)
    assert run("predict runs/unfinished shapes/top --out new.csv") == 2
    err = capsys.readouterr().err
    assert "got an interrupted one in runs/unfinished" in err and "--resume" in err
    assert run("predict shapes/top runs/combined --out new.csv") == 2
    assert "expected a folder that semigen train wrote, got shapes/top" in capsys.readouterr().err


def test_images_that_have_moved_can_be_named(workspace, monkeypatch, capsys) -> None:
    monkeypatch.chdir(workspace)
    assert run("evaluate runs/combined --samples-per-class 0") == 0
    wanted = capsys.readouterr().out
    assert run("evaluate runs/moved --samples-per-class 0") == 2
    capsys.readouterr()
    assert run("evaluate runs/moved --samples-per-class 0 --data shapes") == 0
    assert capsys.readouterr().out == wanted


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_closed_streams_cost_no_run(stream, workspace, monkeypatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, stream, None)
    assert run("evaluate runs/combined") == 0


def test_help_says_what_methods_can_do(capsys) -> None:
    assert run("train --help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "methods that read: supervised," in said.replace("combined, supervised,", "supervised,")
    assert "draw the class one asks for:" in said


@pytest.mark.parametrize("labels", ["", "--labels 4"])
def test_a_run_remembers_its_options(labels, workspace, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = f"--data {workspace}/shapes --channels 3 --image-size 32 --label-seed 2 --precision fp32"
    line = f"{data} --method lsgan --steps 9 --seed 3 {labels} {SMALL} --out cut"
    train_interrupted(f"{line} --quiet", 4)
    assert run("train --resume --out cut --quiet") == 0
    assert run(f"train {line} --quiet --out whole") == 0
    assert Path("cut/config.json").read_bytes() == Path("whole/config.json").read_bytes()
    weights = "model.safetensors"
    assert Path("cut", weights).read_bytes() == Path("whole", weights).read_bytes()


@pytest.mark.parametrize("options", ["--method gan", "--image-size 30", "--set nonsuch=1"])
def test_what_can_be_refused_at_once_is_refused_before_images_are_read(
    options, workspace, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(cli, "load_images", None)
    assert run(f"{TRAIN} {options}") == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["combined", "supervised"])
def test_classes_of_any_name_get_their_picture(method, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(Path("shapes"), test=True)
    for place in ("shapes", "shapes/test"):
        Path(f"{place}/top").rename(f"{place}/cost_$_$")
        os.rename(f"{place}/left", os.fsencode(f"{place}/left") + b"\xff")
    line = f"train --data shapes --method {method} --steps 1 --quiet --out run {small(method)}"
    assert run(line) == 0, capsys.readouterr().err
    assert {path.name for path in Path("run").iterdir()} >= RESULTS


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 100


def test_sampling_many_times_leaves_no_figures_behind(workspace, tmp_path) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    assert run(f"sample {workspace}/runs/combined --per-class 2 --out {tmp_path}/a.png") == 0
    assert pyplot.get_fignums() == before


# ---- train ----


def test_train_on_mnist(tmp_path, capsys) -> None:
    out = tmp_path / "runs" / "first"
    assert run(f"train --labels 100 --seed 4 --steps 3 --out {out} {SMALL}") == 0
    printed, err = capsys.readouterr()
    assert {path.name for path in out.iterdir()} == RESULTS | {"states"}
    config, metrics = (json.loads((out / f"{n}.json").read_text()) for n in ("config", "metrics"))
    assert json.loads(printed) == metrics and printed.count("\n") == 1
    assert metrics["method"] == "combined" and metrics["n_labeled"] == 100
    assert metrics["seed"] == metrics["label_seed"] == 4 and metrics["steps"] == 3
    assert metrics["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert 0 < metrics["seconds"] < 60 and 0 < metrics["test_error"] <= 1
    assert config["data"] == "mnist" and config["class_names"] == list("0123456789")
    assert config["image_shape"] == [1, 28, 28] and config["settings"] == TINY
    assert config["version"] == __version__ and config["schema"] == 1
    rows = list(csv.DictReader(io.StringIO((out / "history.csv").read_text())))
    assert rows[-1]["step"] == "3" and {"seconds", "classification"} <= set(rows[0])
    for term in set(rows[0]) - {"step", "seconds"}:
        assert f"{term}=" in err, "the progress bar names the losses"
    with Image.open(out / "samples.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 100
    # The figure is that of the weights that were written.
    weights = load_weights(out / "model.safetensors", metrics["sha256"])
    assert weights and all(tensor.isfinite().all() for tensor in weights.values())
    assert run(f"evaluate {out} --samples-per-class 0") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["test_error"] == metrics["test_error"] and figures["n_test"] == 10000
    assert "samples" not in figures


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_a_whole_run(method, workspace) -> None:
    run_folder = workspace / "runs" / method
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert {path.name for path in run_folder.iterdir()} == RESULTS | {"states"}
    assert metrics["method"] == method and metrics["n_labeled"] == 16
    assert (metrics["test_error"] is None) != METHODS[method].reads
    with Image.open(run_folder / "samples.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5, "an empty picture"


def test_best_names_the_method_it_takes(workspace, tmp_path, capsys) -> None:
    line = (
        f"train --data {workspace}/shapes --method best --labels 4 --steps 2 --quiet --set width=8"
    )
    assert run(f"{line} --out {tmp_path}/run") == 0
    assert f"semigen: best with 4 labels: {BEST[10]}\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == BEST[10]


def test_train_on_a_folder_without_test_images_says_so(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(Path("shapes"), test=False)
    line = f"train --data shapes --labels 4 --channels 3 --image-size 32 --steps 2 {SMALL}"
    assert run(f"{line} --quiet --out run") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "held out" in err, err
    config = json.loads(Path("run/config.json").read_text())
    assert config["data"] == str(tmp_path.resolve() / "shapes")
    assert config["class_names"] == ["left", "top"] and config["image_shape"] == [3, 32, 32]
    # All that follows works from elsewhere, and in colour.
    monkeypatch.chdir("/")
    assert run(f"evaluate {tmp_path}/run") == 0
    assert json.loads(capsys.readouterr().out)["n_test"] == 4
    assert run(f"sample {tmp_path}/run --per-class 2 --out {tmp_path}/drawn.npz") == 0
    assert run(f"predict {tmp_path}/run {tmp_path}/drawn.npz --out {tmp_path}/read.csv") == 0
    with np.load(tmp_path / "drawn.npz") as drawn:
        assert drawn["images"].shape == (4, 3, 32, 32)
    assert len((tmp_path / "read.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("options", ["--labels 3 --out run", "--out shapes/top/0.png/run"])
def test_a_folder_that_refuses_says_only_that(options, tmp_path, capsys, monkeypatch) -> None:
    """Not also what was held out: one line."""
    monkeypatch.chdir(tmp_path)
    make_folder(Path("shapes"), test=False)
    assert run(f"train --data shapes --steps 2 {options}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "expected" in err and "held out" not in err


def test_a_folder_called_mnist_is_not_taken_for_mnist(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(Path("mnist"), test=True)
    line = f"train --method supervised --steps 1 --quiet {SMALL}"
    assert run(f"{line} --data mnist --out digits") == 0
    assert run(f"{line} --data ./mnist --out shapes") == 0
    files = [Path(name) / "config.json" for name in ("digits", "shapes")]
    digits, shapes = (json.loads(path.read_text()) for path in files)
    assert digits["data"] == "mnist" and digits["n_labeled"] == 100
    assert shapes["data"] == str(tmp_path.resolve() / "mnist") and shapes["n_labeled"] == 16
    capsys.readouterr()
    assert run("evaluate digits") == 0
    assert json.loads(capsys.readouterr().out)["n_test"] == 10000


def test_an_empty_folder_is_a_good_place(workspace, tmp_path, capsys) -> None:
    line = f"train --data {workspace}/shapes --method autoencoder --steps 1 --quiet {SMALL}"
    assert run(f"{line} --out {tmp_path}") == 0
    assert (tmp_path / "metrics.json").exists()


def test_minutes_and_label_seed(workspace, tmp_path, capsys) -> None:
    line = f"train --data {workspace}/shapes --method supervised --labels 4 --quiet {SMALL}"
    assert run(f"{line} --seed 1 --label-seed 5 --minutes 0.005 --out {tmp_path}/run") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["seed"] == 1 and metrics["label_seed"] == 5
    assert 0.3 <= metrics["seconds"] < 5


def model_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_same_command_twice_is_the_same_file(workspace, tmp_path) -> None:
    line = f"train --data {workspace}/shapes --steps 2 --quiet {SMALL}"
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(f"{line} --seed {seed} --out {tmp_path}/{name}") == 0
    a, b, c = (model_bytes(tmp_path / name) for name in "abc")
    assert a == b != c
    assert (tmp_path / "a/samples.png").read_bytes() == (tmp_path / "b/samples.png").read_bytes()


def test_hidden_labels_do_not_reach_the_weights(tmp_path, mnist, monkeypatch) -> None:
    hidden = torch.ones(60000, dtype=torch.bool)
    hidden[split_labels(mnist, 100, 0).labeled_index] = False
    poisoned = torch.where(hidden, 9 - mnist.train.labels, mnist.train.labels)
    for name, labels in (("true", mnist.train.labels), ("poisoned", poisoned)):
        train = ImageSet(mnist.train.images, labels)
        data = ImageData("mnist", mnist.class_names, train, mnist.test)
        monkeypatch.setattr(cli, "load_images", lambda *_, data=data, **__: data)
        assert run(f"train --labels 100 --steps 2 --quiet --out {tmp_path}/{name} {SMALL}") == 0
    assert model_bytes(tmp_path / "true") == model_bytes(tmp_path / "poisoned")


# ---- interruptions ----


def test_resume_ends_in_the_very_weights(workspace, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(workspace)
    shutil.copytree("runs/unfinished", tmp_path / "run")
    assert load_state(tmp_path / "run" / "states")[0] == 4
    assert run(f"train {UNFINISHED} --out {tmp_path}/run --resume") == 0
    assert run(f"train {UNFINISHED} --out {tmp_path}/whole") == 0
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")
    assert run(f"train {UNFINISHED} --out {tmp_path}/run --resume") == 2, "it is finished now"


@pytest.mark.parametrize("change", ["one more", "another name", "others are labelled"])
def test_resume_notices_another_pool(change, workspace, tmp_path, monkeypatch, capsys) -> None:
    shutil.copytree(workspace / "shapes", tmp_path / "shapes")
    shutil.copytree(workspace / "runs/unfinished", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    config = json.loads(Path("runs/config.json").read_text())
    config |= {"data": str(tmp_path / "shapes")}
    if change == "others are labelled":
        config |= {"labeled_index": "0" * 64}
    Path("runs/config.json").write_text(json.dumps(config))
    line = f"train {UNFINISHED} --out runs --resume"
    if change == "one more":
        shutil.copy("shapes/top/3.png", "shapes/top/33.png")
    elif change == "another name":
        Path("shapes/unlabeled").mkdir(exist_ok=True)
        Path("shapes/top/0.png").rename("shapes/unlabeled/0.png")
    capsys.readouterr()
    assert run(line) == 2
    name = {"one more": "n_images", "another name": "n_", "others are labelled": "labeled_index"}
    assert f"semigen: error: --resume: expected {name[change]}" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_resume_says_that_it_passed_over_a_damaged_state(
    workspace, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(workspace)
    shutil.copytree("runs/unfinished", tmp_path / "run")
    flip_a_bit(max((tmp_path / "run" / "states").glob("*.safetensors")))
    assert run(f"train {UNFINISHED} --out {tmp_path}/run --resume") == 0
    err = capsys.readouterr().err
    assert err.startswith("semigen: warning: ") and "damaged" in err and err.count("\n") == 1
    assert run(f"train {UNFINISHED} --out {tmp_path}/whole") == 0
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")


@pytest.mark.parametrize("existed", [False, True])
def test_interrupted_before_there_is_a_state_nothing_is_left(
    existed, workspace, tmp_path, monkeypatch, capsys
) -> None:
    def stop(*_, **__):
        raise KeyboardInterrupt

    if existed:
        (tmp_path / "deep" / "run").mkdir(parents=True)
    monkeypatch.setattr(cli, "train", stop)
    before = snapshot(tmp_path)
    assert run(f"train --data {workspace}/shapes --out {tmp_path}/deep/run --quiet") == 130
    assert capsys.readouterr().err == "semigen: interrupted\n"
    assert snapshot(tmp_path).keys() == before.keys()


def test_killed_before_there_is_a_state_it_begins_anew(workspace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    (tmp_path / "run").mkdir()
    shutil.copy("runs/unfinished/config.json", tmp_path / "run")
    assert run(f"train {UNFINISHED} --out {tmp_path}/run --resume") == 0
    assert "begins anew" in capsys.readouterr().err
    assert run(f"train {UNFINISHED} --out {tmp_path}/whole") == 0
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")


def test_interrupted_while_writing_the_results(workspace, tmp_path, monkeypatch) -> None:
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(cli, "samples_png", stop)
        assert run(f"train {UNFINISHED} --out {tmp_path}/run") == 130
    assert not (tmp_path / "run/metrics.json").exists(), "metrics say that a run is finished"
    assert run(f"train {UNFINISHED} --out {tmp_path}/run --resume") == 0
    assert run(f"train {UNFINISHED} --out {tmp_path}/whole") == 0
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")


WAITING = (
    "import os, sys, time; import semigen_lib.cli as cli, semigen_lib.training as training; "
    "training.SECONDS_BETWEEN_STATES = -1.0; "
    # From step 30 on it waits until the signal was sent, however busy the machine is.
    "wait = lambda step, _: [time.sleep(0.02) for _ in range(15000) "
    "if step >= 30 and not os.path.exists(sys.argv[-1] + '/sent')]; "
    "cli.train = lambda *a, **k: training.train(*a, **k, on_record=wait); "
    "sys.exit(cli.main(sys.argv[1:]))"
)


SAID = {
    signal.SIGINT: (130, "semigen: interrupted\n"),
    signal.SIGTERM: (143, "semigen: terminated\n"),
    signal.SIGKILL: (-signal.SIGKILL, ""),
}


@pytest.mark.parametrize("number", SAID, ids=lambda n: n.name)
def test_stopped_by_a_signal_it_resumes_to_the_very_weights(
    number, workspace, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(workspace)
    line = f"train --data shapes --method autoencoder --steps 50 --quiet {SMALL}"
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(Path(cli.__file__).parents[1]),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *shlex.split(f"{line} --out {tmp_path}/run")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # "&" ignores it
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("run/states/*.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    (tmp_path / "run" / "sent").touch()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == SAID[number]
    (tmp_path / "run" / "sent").unlink()
    assert not (tmp_path / "run/metrics.json").exists()
    assert 0 < load_state(tmp_path / "run/states")[0] <= 30
    assert run(f"{line} --out {tmp_path}/run --resume") == 0
    assert run(f"{line} --out {tmp_path}/whole") == 0
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")


# ---- sample ----


def sampled(workspace: Path, tmp_path: Path, options: str) -> dict[str, np.ndarray]:
    path = tmp_path / "some" / "where" / "drawn.npz"
    assert run(f"sample {workspace}/{options} --out {path}") == 0
    with np.load(path) as arrays:
        return dict(arrays)


def test_sample_arrays(workspace, tmp_path) -> None:
    drawn = sampled(workspace, tmp_path, "runs/combined --per-class 3")
    assert drawn["images"].dtype == np.uint8 and drawn["images"].shape == (6, 28, 28)
    assert drawn["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    again = sampled(workspace, tmp_path, "runs/combined --per-class 3")
    other = sampled(workspace, tmp_path, "runs/combined --per-class 3 --seed 1")
    assert np.array_equal(drawn["images"], again["images"])
    assert not np.array_equal(drawn["images"], other["images"])
    assert len({image.tobytes() for image in drawn["images"]}) == 6


@pytest.mark.parametrize("name", ["top", "1"])
def test_sample_one_class_by_name_or_number(name, workspace, tmp_path) -> None:
    drawn = sampled(workspace, tmp_path, f"runs/combined --class {name} --per-class 4")
    assert drawn["images"].shape == (4, 28, 28) and drawn["labels"].tolist() == [1] * 4


def test_a_name_that_is_a_number_is_a_name() -> None:
    assert cli.class_index("1", ["7", "1", "0"]) == 1
    assert cli.class_index("0", ["7", "1", "0"]) == 2
    with pytest.raises(ValueError, match="--class: expected one of 7, 1, 0, got '2'"):
        cli.class_index("2", ["7", "1", "0"])  # 7 is the third class of these, and not the 2
    assert cli.class_index("0", ["b", "a"]) == 0


def test_sample_of_a_method_that_cannot_choose(workspace, tmp_path) -> None:
    drawn = sampled(workspace, tmp_path, "runs/lsgan --per-class 2")
    assert drawn["images"].shape == (4, 28, 28) and drawn["labels"].tolist() == [-1] * 4


@pytest.mark.parametrize("options", ["", "--class top", "--class left --per-class 1"])
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].draws])
def test_sample_picture(method, options, workspace, tmp_path) -> None:
    if options and not METHODS[method].draws_on_request:
        options = "--per-class 5"
    path = tmp_path / "drawn.png"
    path.write_bytes(b"an older picture")
    assert run(f"sample {workspace}/runs/{method} {options} --out {path}") == 0
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        picture.load()


# ---- predict ----


def predictions(workspace: Path, tmp_path: Path, images: str) -> list[dict[str, str]]:
    path = tmp_path / "predictions.csv"
    assert run(f"predict {workspace}/runs/combined {images} --out {path}") == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    for row in rows:
        assert list(row) == ["name", "label", "probability"]
        assert row["label"] in ("left", "top") and 0.5 <= float(row["probability"]) <= 1
    return rows


def test_predict_a_folder_an_image_and_arrays(workspace, tmp_path) -> None:
    folder = predictions(workspace, tmp_path, f"{workspace}/shapes/top")
    assert [row["name"] for row in folder] == [f"{index}.png" for index in range(8)]
    image = predictions(workspace, tmp_path, f"{workspace}/shapes/top/3.png")
    assert image == folder[3:4]
    data = load_images(workspace / "shapes")
    for name, images in (("plain", data.test.images[:, 0]), ("deep", data.test.images)):
        np.savez(tmp_path / f"{name}.npz", images=images.numpy(), labels=data.test.labels)
    plain = predictions(workspace, tmp_path, f"{tmp_path}/plain.npz")
    assert plain == predictions(workspace, tmp_path, f"{tmp_path}/deep.npz")
    assert [row["name"] for row in plain] == [str(index) for index in range(6)]
    files = predictions(workspace, tmp_path, f"{workspace}/shapes/test/left")
    assert [(row["label"], row["probability"]) for row in plain[:3]] == [
        (row["label"], row["probability"]) for row in files
    ]


def test_predict_agrees_with_the_test_error(workspace, tmp_path) -> None:
    metrics = json.loads((workspace / "runs/combined/metrics.json").read_text())
    wrong = sum(
        row["label"] != label
        for label in ("left", "top")
        for row in predictions(workspace, tmp_path, f"{workspace}/shapes/test/{label}")
    )
    assert wrong / 6 == pytest.approx(metrics["test_error"])


def test_predict_what_sample_drew_whatever_its_order_in_memory(workspace, tmp_path) -> None:
    drawn = sampled(workspace, tmp_path, "runs/combined --per-class 3")
    np.savez(tmp_path / "c.npz", images=drawn["images"])
    np.savez(tmp_path / "fortran.npz", images=np.asfortranarray(drawn["images"]))
    rows = predictions(workspace, tmp_path, f"{tmp_path}/c.npz")
    assert len(rows) == 6 and rows == predictions(workspace, tmp_path, f"{tmp_path}/fortran.npz")


# ---- evaluate ----


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_prints_one_line_of_json(method, workspace, capsys) -> None:
    before = snapshot(workspace)
    assert run(f"evaluate {workspace}/runs/{method}") == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    assert out.count("\n") == 1
    assert figures["method"] == method and figures["n_test"] == 6
    # The drawings are of shapes, which the judge of digits has never seen.
    if METHODS[method].draws_on_request:
        assert err.count("\n") == 1 and "no judge" in err and "samples" not in figures
    elif METHODS[method].draws:
        assert err == f"semigen: {method} does not draw on request: drawings are not measured\n"
    else:
        assert err == ""
    metrics = json.loads((workspace / f"runs/{method}/metrics.json").read_text())
    assert figures["test_error"] == metrics["test_error"]
    if hasattr(METHODS[method], "reconstruct"):
        assert 0 < figures["reconstruction"] < 1
    assert snapshot(workspace) == before


def test_evaluate_measures_drawings_of_digits(tmp_path, mnist, capsys, monkeypatch) -> None:
    part = slice(0, 60000, 100)  # reading all of them takes half a minute
    train = ImageSet(mnist.train.images[part], mnist.train.labels[part])
    test = ImageSet(mnist.test.images[:600], mnist.test.labels[:600])
    data = ImageData("mnist", mnist.class_names, train, test)
    monkeypatch.setattr(cli, "load_images", lambda *_, **__: data)
    assert run(f"train --labels 10 --steps 2 --quiet --out {tmp_path}/run {SMALL}") == 0
    capsys.readouterr()
    lines = []
    for _ in range(2):
        assert run(f"evaluate {tmp_path}/run --samples-per-class 20") == 0
        out, err = capsys.readouterr()
        assert out.count("\n") == 1 and err == ""
        lines.append(json.loads(out))
    assert lines[0] == lines[1], "the noise has a seed"
    figures = lines[0]["samples"]
    method, config = cli.load_run(tmp_path / "run", "cpu")
    seed_everything(config["seed"])
    requests = torch.arange(10).repeat_interleave(20)
    samples = draw(method, requests)
    expected = measure_samples(samples, requests, train, test).to_dict()
    assert figures == json.loads(json.dumps(expected))
    assert figures["n"] == 200 and figures["collapsed"], "two steps teach nobody to draw"
    assert figures["frechet_ratio"] > 10 and sum(figures["counts"]) == 200
    # More drawings than there are real ones to compare them with.
    assert run(f"evaluate {tmp_path}/run --samples-per-class 100") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "--samples-per-class: expected at most" in err


@pytest.mark.parametrize(("n_classes", "n_labeled"), [(10, 100), (3, 99), (47, 94), (150, 150)])
def test_default_labels_are_as_many_of_each_class(
    n_classes, n_labeled, tmp_path, monkeypatch
) -> None:
    images = torch.zeros(40 * n_classes, 1, 28, 28, dtype=torch.uint8)
    one = ImageSet(images, torch.arange(len(images)) % n_classes)
    names = tuple(f"class {k}" for k in range(n_classes))
    monkeypatch.setattr(cli, "load_images", lambda *_, **__: ImageData("glyphs", names, one, one))
    assert run(f"train --data Glyphs --steps 1 --quiet --out {tmp_path}/run {SMALL}") == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["n_labeled"] == n_labeled and config["n_images"] == len(images)
    assert config["data"] == "glyphs", "under whatever name it was asked for"


def test_a_file_name_of_other_bytes_loses_no_prediction(workspace, tmp_path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "images").mkdir()
    shutil.copy(workspace / "shapes/top/3.png", tmp_path / "images" / name)
    path = tmp_path / "predictions.csv"
    assert run(f"predict {workspace}/runs/combined {tmp_path}/images --out {path}") == 0
    assert b"caf\xe9.png,top" in path.read_bytes() or b"caf\xe9.png,left" in path.read_bytes()


def test_evaluate_says_that_the_folder_has_changed(
    workspace, tmp_path, monkeypatch, capsys
) -> None:
    shutil.copytree(workspace / "shapes", tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    assert run(f"train --data shapes --steps 1 --quiet --out runs {SMALL}") == 0
    capsys.readouterr()
    for changed in (False, True):
        assert run("evaluate runs --samples-per-class 0") == 0
        assert ("may have been learnt" in capsys.readouterr().err) == changed
        shutil.copy("shapes/top/3.png", "shapes/top/33.png")


@pytest.mark.parametrize("n_known", [60, 59])
def test_evaluate_scores_as_many_drawings_as_images(
    n_known, workspace, capsys, monkeypatch
) -> None:
    shapes = load_images(workspace / "shapes")
    images = torch.zeros(60, *shapes.train.images.shape[1:], dtype=torch.uint8)
    labels = torch.arange(60) % 2
    labels[n_known:] = UNLABELED
    data = ImageData(shapes.name, shapes.class_names, ImageSet(images, labels), shapes.test)
    monkeypatch.setattr(cli, "load_images", lambda *_, **__: data)
    scored = []

    def score(samples, requests, test, *, progress):
        assert test is data.test and progress
        scored.append((samples, requests))
        return len(scored) / 4

    monkeypatch.setattr(cli, "classification_accuracy_score", score)
    assert run(f"evaluate {workspace}/runs/combined --samples-per-class 0 --cas") == 0
    out, err = capsys.readouterr()
    real = 0.5 if n_known == 60 else None
    figures = json.loads(out)["classification_accuracy_score"]
    assert figures == {"n": 60, "drawn": 0.25, "real": real}
    assert scored[0][1].bincount().tolist() == [30, 30]
    assert (len(scored) == 2) == (real is not None)
    if real is not None:
        assert torch.equal(scored[1][0], images) and scored[1][1].equal(labels)
    assert "drawing 60 images" in err
    monkeypatch.setattr(cli, "MOST_SCORED", 20)
    assert run(f"evaluate {workspace}/runs/combined --samples-per-class 0 --cas") == 0
    assert json.loads(capsys.readouterr().out)["classification_accuracy_score"]["n"] == 20
    assert all(len(labels) == 20 for _, labels in scored[len(scored) // 2 :])


# ---- the rest ----


@pytest.mark.parametrize("line", ["--help", "train -h", "sample -h", "predict -h", "evaluate -h"])
def test_help_fits_a_terminal_and_names_what_there_is(line, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(line) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: semigen") and max(map(len, out.splitlines())) <= 80
    if line.startswith("train"):
        assert all(name in out for name in METHODS)


def test_version(capsys) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"semigen {__version__}\n"
    line = [sys.executable, "-m", "semigen_lib", "--version"]
    result = subprocess.run(line, capture_output=True, text=True, cwd=Path(cli.__file__).parents[1])
    assert (result.returncode, result.stdout) == (0, f"semigen {__version__}\n")


def test_options_default_to_what_help_says() -> None:
    options = build_parser().parse_args(["train", "--out", "run"])
    cli.fill_in(options, {})
    assert (options.data, options.method, options.seed) == ("mnist", "combined", 0)
    assert (options.device, options.precision, options.resume) == ("auto", "auto", False)
    assert (options.channels, options.image_size, options.settings) == (1, 28, {})
    assert options.labels is options.minutes is options.label_seed is None
    assert options.steps == console.DEFAULT_STEPS


def test_training_that_goes_wrong_names_step_and_term(
    workspace, tmp_path, capsys, monkeypatch
) -> None:
    honest = METHODS["lsgan"].updates

    def broken(self, batch):
        for player, terms in honest(self, batch):
            yield player, {name: term * float("nan") for name, term in terms.items()}

    monkeypatch.setattr(METHODS["lsgan"], "updates", broken)
    line = f"train --data {workspace}/shapes --method lsgan --steps 3 --quiet {SMALL}"
    assert run(f"{line} --out {tmp_path}/run") == 2
    err = capsys.readouterr().err
    assert err == "semigen: error: step 1: expected finite terms, got real = nan\n"
    assert not (tmp_path / "run").exists(), "nothing to resume, nothing in the way"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("x: expected\n  a, got b"), "x: expected a, got b"),
        (TrainingError("step 3: expected finite terms, got a = nan"), "step 3: expected finite "
         "terms, got a = nan"),
        (OSError(28, "No space left on device", "a.txt"), "a.txt: expected to read or write it, "
         "got No space left on device"),
        (OSError("broken"), "input or output: expected to read or write it, got broken"),
        (MemoryError(), "memory: expected enough for this size of images, batch and method, got "),
        (RuntimeError("CUDA out of memory.\nTried"), "memory: expected enough for this size of "
         "images, batch and method, got CUDA out of memory. Tried"),
        (RuntimeError("unable to mmap 4 bytes: Cannot allocate memory (12)"), "memory: expected "
         "enough for this size of images, batch and method, got unable to mmap 4 bytes: Cannot "
         "allocate memory (12)"),
        (OSError(21, "Is a directory", ".x.tmp", None, "x"), "x: expected to read or write it, "
         "got Is a directory"),
        (RuntimeError("elements that refer to a single memory location"), None),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)  # fmt: skip
def test_errors_in_the_words_of_the_user(error, sentence) -> None:
    assert explain(error) == sentence


def test_a_defect_is_not_dressed_up_as_bad_input(workspace, tmp_path, monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli, "train", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run(f"train --data {workspace}/shapes --out {tmp_path}/run")
    assert not (tmp_path / "run").exists()
