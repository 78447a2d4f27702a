"""The console script ``semigen``: train, sample, predict, evaluate, benchmark, and a course.

Every bad input ends with status 2 and one line on stderr, and leaves what was there untouched.

Shown in: book/running.md
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semigen_lib import __version__
from semigen_lib.checkpoint import (
    SCHEMA,
    CheckpointError,
    load_weights,
    read_json,
    save_weights,
    write_atomically,
    write_json,
)
from semigen_lib.cli_benchmark import add_benchmark
from semigen_lib.cli_course import add_course
from semigen_lib.console import (
    DEFAULT_STEPS,
    Parser,
    add_device,
    explain,
    parse_settings,
    remark,
    say,
)
from semigen_lib.data import (
    UNLABELED,
    ImageData,
    ImageSet,
    LabelSplit,
    list_folder,
    load_images,
    read_images,
    split_labels,
)
from semigen_lib.distributed import is_first, joined_processes
from semigen_lib.evaluation import class_probabilities, draw, reconstruction_error, test_error
from semigen_lib.methods import METHODS, best_method, build_method
from semigen_lib.methods.method import Method
from semigen_lib.models import ImageShape
from semigen_lib.runtime import PRECISIONS, pick_device, seed_everything
from semigen_lib.samples import classification_accuracy_score, measure_samples
from semigen_lib.training import History, check_duration, check_pool, train

__all__ = [
    "build_parser",
    "main",
]


DEFAULT_LABELS = 100
STREAM = {"auto": None, "always": True, "never": False}  # as load_images wants it
SHOWN_PER_CLASS = 10  # columns of samples.png
MOST_PIXELS = 8_000  # from left to right in a picture that can still be looked at
MOST_SCORED = 60_000  # drawings that a reader learns from; they are in memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0; 1 if a cell of a benchmark or the grader failed; 2 for bad input; 130 when interrupted. A
    training that SIGTERM ends leaves with 143.
    """
    for name in ("stdout", "stderr"):  # a daemon may have closed them: that costs no run
        if getattr(sys, name) is None:
            setattr(sys, name, io.StringIO())
    options = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: remark(f"warning: {message}")
            return options.run(options) or 0
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        sentence = explain(error)
        if sentence is None:
            raise  # a defect of ours, not of the input
        say(f"error: {sentence}")
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="semigen",
        description="Learn to draw and to read images from a few labels and many images.",
        epilog="example: semigen train --data mnist --method combined --labels 100 --minutes 3 "
        "--out runs/first && semigen sample runs/first --class 7 --out sevens.png",
    )
    parser.add_argument("--version", action="version", version=f"semigen {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sample(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    add_benchmark(commands)
    add_course(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "train",
        help="train a method and write a run",
        description="Train a method on images of which only some have labels, and write RUN/"
        "{model.safetensors, config.json, history.csv, metrics.json, samples.png}.",
        epilog=f"methods that read: {_those_that('reads')}. Methods that draw: "
        f"{_those_that('draws')}. Methods that draw the class one asks for: "
        f"{_those_that('draws_on_request')}. A setting that a method does not have is refused "
        "with the names of those that it has.",
    )
    add = command.add_argument
    add("--data", help="mnist, another data set's name, or a FOLDER with one "
        "sub-folder per class, optionally unlabeled/ and test/; ./usps is a folder, "
        "usps a data set (default: mnist)")  # fmt: skip
    add("--method", help=f"one of {', '.join(METHODS)}, or best: the one that "
        "reads best with so many labels (default: combined)")  # fmt: skip
    add("--labels", type=int, help="how many images keep their label, the same number of "
        f"each class (default: {DEFAULT_LABELS} or a few less; in a folder, all)")  # fmt: skip
    add("--seed", type=int, help="of weights, batches, noise and labels (default: 0)")
    add("--label-seed", type=int, help="of the choice of labels only (default: the seed)")
    add("--steps", type=int, help=f"how many steps (default: {DEFAULT_STEPS})")
    add("--minutes", type=float, help="how many minutes, instead of steps")
    add("--image-size", type=int, help="side in pixels (default: 28)")
    add("--channels", type=int, choices=(1, 3), help="1 grey, 3 colour (default: 1)")
    add("--stream", choices=STREAM, default="auto", help="whether the images of a folder stay in "
        "their files and are read while training: auto, if they would take more than a quarter "
        "of the free memory; the run is the same either way (default: auto)")  # fmt: skip
    add("--workers", type=int, metavar="N", help="how many processes read them; 0 for none "
        "(default: as many as there are CPUs, up to 4)")  # fmt: skip
    add("--set", action="append", metavar="NAME=VALUE", help="a setting of the "
        "method, such as latent_dim=16 or request_weight=0; repeatable")  # fmt: skip
    add_device(command)
    add("--precision", choices=PRECISIONS, help="auto: bf16 where it is fast and the method wants "
        "it (default: auto)")  # fmt: skip
    add("--out", type=Path, required=True, metavar="RUN", help="a new folder for the run")
    add("--resume", action="store_true", help="go on with an interrupted run in RUN; it remembers "
        "its options, and refuses others")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar")
    command.set_defaults(run=run_train)


def _those_that(can: str) -> str:
    return ", ".join(name for name, method in METHODS.items() if getattr(method, can))


def _add_sample(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "sample", help="draw images", description="Draw images with a trained run."
    )
    _add_run(command)
    command.add_argument("--class", dest="class_name", help="draw only this class (name or number)")
    command.add_argument("--per-class", type=int, default=10, help="images a class (default: 10)")
    command.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    command.add_argument("--out", type=Path, required=True, help="a .png (grid) or .npz file")
    add_device(command)
    command.set_defaults(run=run_sample)


def _add_predict(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "predict", help="read images", description="Say which class each image is of."
    )
    _add_run(command)
    command.add_argument("images", type=Path, help="a folder, an image, or an .npz with images")
    command.add_argument("--out", type=Path, required=True, help="a .csv: name, label, probability")
    add_device(command)
    command.set_defaults(run=run_predict)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "evaluate",
        help="measure a run on the test set",
        description="Measure a run on the test images of its data and print the figures as JSON.",
    )
    _add_run(command)
    command.add_argument("--data", metavar="FOLDER", help="where its images are now, or other "
        "labelled images of the same classes (default: where they were)")  # fmt: skip
    command.add_argument("--samples-per-class", type=int, default=500, metavar="N", help="drawings "
        "of each class to measure, if it draws on request; 0 for none (default: 500)")  # fmt: skip
    command.add_argument("--cas", action="store_true", help="also the classification accuracy "
        "score: train a classifier on as many drawings as there are training images, another on "
        "those, and test both on real images (minutes)")  # fmt: skip
    add_device(command)
    command.set_defaults(run=run_evaluate)


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_folder", type=Path, metavar="RUN", help="what semigen train wrote")


def run_train(options: argparse.Namespace) -> None:
    """Train a method and write everything that belongs to the run."""
    device = pick_device(options.device)
    with ends_on_sigterm(), joined_processes(device):
        train_run(options, device)


def train_run(options: argparse.Namespace, device: torch.device) -> None:
    """Do it, in one of several processes or alone; the first of them writes."""
    out = options.out
    if is_first():
        check_free(out, options.resume)
    before = read_json(out / "config.json") if options.resume else {}
    fill_in(options, before)
    check_outside(out, Path(options.data))
    check_duration(options.steps, options.minutes)
    if options.method != "best":  # refused before minutes are spent on reading images
        shape = (options.channels, options.image_size, options.image_size)
        build_method(options.method, shape, 2, options.settings)
    data = load_images(
        options.data,
        image_size=options.image_size,
        channels=options.channels,
        stream=STREAM[options.stream],
    )
    n_labeled = options.labels
    if n_labeled is None and before:
        check_same(before, {"n_images": len(data.train)})
        n_labeled = before.get("n_labeled", 0)
        if n_labeled >= int((data.train.labels != UNLABELED).sum()):
            n_labeled = None  # all of them, also where classes differ in size
    elif n_labeled is None and not data.name.startswith("folder:"):
        n_labeled = max(DEFAULT_LABELS // data.n_classes, 1) * data.n_classes
    label_seed = options.seed if options.label_seed is None else options.label_seed
    split = split_labels(data, n_labeled, label_seed)
    test_images = data.test
    if options.method == "best":
        options.method = best_method(split.n_labeled)
        remark(f"best with {split.n_labeled} labels: {options.method}")
    config = config_of(options, split, label_seed)
    seed_everything(options.seed)
    method = method_from(config).to(device)
    check_pool(method, split.images)
    has_state = any((out / "states").glob("step-*.json"))
    if options.resume:
        check_same(before, config)
        if not has_state:  # it was killed in its first half minute
            remark("no training state was saved yet: the run begins anew")
    notes = () if options.resume else data.notes
    del data  # from here on no hidden label is in memory
    with claimed(out, config) if is_first() else nullcontext():
        for note in notes:
            remark(note)
        history = train(
            method,
            split,
            steps=options.steps,
            minutes=options.minutes,
            seed=options.seed,
            precision=options.precision,
            progress=not options.quiet,
            states=out / "states",
            resume=has_state,
            workers=options.workers,
        )
        if is_first():
            write_results(out, config, method, history, test_images)


DEFAULTS = {"data": "mnist", "method": "combined", "seed": 0, "precision": "auto",
            "channels": 1, "image_size": 28, "label_seed": None}  # fmt: skip


def fill_in(options: argparse.Namespace, before: dict) -> None:
    """Take what was not asked for from the run that goes on; for a new one, the defaults."""
    remembered = {name: before[name] for name in DEFAULTS if name in before}
    if "image_shape" in before:
        remembered |= dict(zip(("channels", "image_size"), before["image_shape"], strict=False))
    for name, value in (DEFAULTS | remembered).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.steps is None and options.minutes is None:
        options.steps = before.get("steps", DEFAULT_STEPS)
        options.minutes = before.get("minutes")
    remembered = before.get("settings", {})
    options.settings = remembered if options.set is None else parse_settings(options.set)


def config_of(options: argparse.Namespace, split: LabelSplit, label_seed: int) -> dict:
    """Return every choice that leads to a run; how its images are kept is none of them."""
    is_folder = split.name.startswith("folder:")
    return {
        "schema": SCHEMA,
        "version": __version__,
        "method": options.method,
        "settings": options.settings,
        # A folder as an absolute path, so that it is found again from elsewhere.
        "data": str(Path(options.data).resolve()) if is_folder else split.name,
        "image_shape": list(split.image_shape),
        "class_names": list(split.class_names),
        "n_images": len(split),
        "n_labeled": split.n_labeled,
        "labeled_index": hashlib.sha256(split.labeled_index.numpy().tobytes()).hexdigest(),
        "seed": options.seed,
        "label_seed": label_seed,
        "steps": options.steps,
        "minutes": options.minutes,
        "precision": options.precision,
    }


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command in order, as Ctrl-C does, with one line and status 143."""

    asked = []

    def end(number: int, _: object) -> None:
        asked.append(is_first())
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if any(asked):  # said when the progress bar is closed
            say("terminated")


@contextmanager
def claimed(out: Path, config: dict) -> Iterator[None]:
    """Make the folder of a run; if the run fails before there is a state, undo that."""
    if (out / "config.json").exists():
        yield
        return
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        write_json(out / "config.json", config)
        yield
    except BaseException:
        if not (out / "states").exists():
            with suppress(OSError):
                (out / "config.json").unlink(missing_ok=True)
                for folder in made:
                    folder.rmdir()
        raise


def check_free(out: Path, resume: bool) -> None:
    """Refuse to train over a run, and to resume where there is none or where all is done."""
    if resume and (out / "metrics.json").exists():
        raise ValueError(f"--resume: expected an interrupted run, got a finished one in {out}")
    if resume and not (out / "config.json").exists():
        raise ValueError(f"--resume: expected an interrupted run in {out}, got none")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out: expected a new or empty folder (or --resume), got {out}")


def check_outside(out: Path, images: Path) -> None:
    """Refuse to write into a folder of images, which holds nothing else."""
    if images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"--out: expected a place outside the images in {images}, got {out}")


def check_same(before: dict, now: dict) -> None:
    """Refuse to resume a run with other options than it was started with."""
    for name, value in now.items():
        if before.get(name) != value and name != "version":
            raise ValueError(
                f"--resume: expected {name} as before, {before.get(name)!r}, got {value!r}"
            )


def method_from(config: dict) -> Method:
    """Build the method that a run's config describes, with fresh weights."""
    shape = tuple(config["image_shape"])
    return build_method(config["method"], shape, len(config["class_names"]), config["settings"])


def write_results(
    out: Path, config: dict, method: Method, history: History, test_images: ImageSet
) -> None:
    """Write weights, history, samples and, last, the metrics that say the run is finished."""
    sha256 = save_weights(out / "model.safetensors", method.state_dict())
    write_atomically(out / "history.csv", history.to_csv().encode())
    write_atomically(out / "samples.png", samples_png(method, config, test_images))
    metrics = {
        "method": config["method"],
        "n_labeled": config["n_labeled"],
        "seed": config["seed"],
        "label_seed": config["label_seed"],
        "test_error": test_error(method, test_images) if method.reads else None,
        "steps": int(history["step"][-1]),
        "seconds": history["seconds"][-1],
        "device": str(next(method.parameters()).device),
        "sha256": sha256,
    }
    write_json(out / "metrics.json", metrics)
    sys.stdout.write(json.dumps(metrics) + "\n")


def samples_png(method: Method, config: dict, test_images: ImageSet) -> bytes:
    """Return a picture of what a method does, a row a class where it knows classes.

    A method that draws shows drawings. One that only reads shows the first test images it reads
    as each class, mistakes included.
    """
    from semigen_lib.plotting import grid_png  # matplotlib: imported only where used

    names = config["class_names"]
    labels = torch.arange(len(names)).repeat_interleave(SHOWN_PER_CLASS)
    seed_everything(config["seed"])
    if method.draws_on_request:
        return grid_png(draw(method, labels), columns=SHOWN_PER_CLASS, row_titles=names)
    if method.draws:
        anything = torch.full_like(labels, UNLABELED)
        return grid_png(draw(method, anything), columns=SHOWN_PER_CLASS)
    read = class_probabilities(method, test_images.images).argmax(1)
    blank = torch.zeros(SHOWN_PER_CLASS, *test_images.images.shape[1:], dtype=torch.uint8)
    rows = [
        torch.cat([test_images.images[read == label][:SHOWN_PER_CLASS], blank])[:SHOWN_PER_CLASS]
        for label in range(len(names))
    ]
    return grid_png(torch.cat(rows), columns=SHOWN_PER_CLASS, row_titles=names)


def load_run(folder: Path, device: str) -> tuple[Method, dict]:
    """Return the trained method of a finished run, and its config."""
    if not (folder / "config.json").exists():
        raise ValueError(f"RUN: expected a folder that semigen train wrote, got {folder}")
    if not (folder / "metrics.json").exists():
        raise ValueError(
            f"RUN: expected a finished run, got an interrupted one in {folder}; the same "
            "semigen train with --resume goes on"
        )
    config, metrics = read_json(folder / "config.json"), read_json(folder / "metrics.json")
    wanted = ("method", "settings", "data", "image_shape", "class_names")
    if missing := [name for name in wanted if name not in config]:
        raise CheckpointError(f"{folder}: expected a run's config, got none of {missing}")
    weights = load_weights(folder / "model.safetensors", metrics.get("sha256"))
    try:
        method = method_from(config)
        method.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder}: expected config and weights of one run, got {reason}"
        ) from None
    return method.to(pick_device(device)).eval(), config


def run_sample(options: argparse.Namespace) -> None:
    """Draw images and write them as a picture or as arrays."""
    check_suffix(options.out, (".png", ".npz"))
    if options.per_class < 1:
        raise ValueError(f"--per-class: expected a positive number, got {options.per_class}")
    method, config = load_run(options.run_folder, options.device)
    if not method.draws:
        raise ValueError(f"RUN: expected a method that draws, got {config['method']}")
    names, columns = config["class_names"], options.per_class
    if options.class_name is not None:
        asked = [class_index(options.class_name, names)]
    else:
        asked = list(range(len(names))) if method.draws_on_request else [UNLABELED] * len(names)
    if len(asked) == 1:  # a single class fills a block rather than a line
        columns = math.ceil(math.sqrt(options.per_class))
    if options.out.suffix == ".png" and columns > MOST_PIXELS // config["image_shape"][-1]:
        raise ValueError(
            f"--per-class: expected a .png of at most {MOST_PIXELS} pixels from left to right, "
            f"got {columns} images beside each other; an .npz takes any number"
        )
    labels = torch.tensor(asked).repeat_interleave(options.per_class)
    seed_everything(options.seed)
    images = draw(method, labels)
    if options.out.suffix == ".png":
        from semigen_lib.plotting import grid_png  # matplotlib: imported only where used

        titles = [names[k] for k in asked] if method.draws_on_request and len(asked) > 1 else None
        picture = grid_png(images, columns=columns, row_titles=titles)
        write_atomically(options.out, picture)
        return
    plain = images.squeeze(1) if images.shape[1] == 1 else images
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=plain.numpy(), labels=labels.numpy())
    write_atomically(options.out, buffer.getvalue())


def run_predict(options: argparse.Namespace) -> None:
    """Read images and write name, label, probability."""
    check_suffix(options.out, (".csv",))
    check_outside(options.out, options.images)
    method, config = load_run(options.run_folder, options.device)
    if not method.reads:
        raise ValueError(f"RUN: expected a method that reads images, got {config['method']}")
    names, images = images_to_read(options.images, config["image_shape"])
    probabilities, labels = class_probabilities(method, images).max(1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "label", "probability"))
    for name, label, probability in zip(names, labels, probabilities, strict=True):
        writer.writerow((name, config["class_names"][label], f"{probability:.4f}"))
    write_atomically(options.out, text.getvalue().encode(errors="surrogateescape"))


def run_evaluate(options: argparse.Namespace) -> None:
    """Print the figures of a run on the test set as one line of JSON."""
    per_class = options.samples_per_class
    if per_class < 0 or per_class == 1:
        raise ValueError(f"--samples-per-class: expected 0 or at least 2, got {per_class}")
    method, config = load_run(options.run_folder, options.device)
    if options.cas and not method.draws_on_request:
        raise ValueError(f"--cas: expected a method that draws on request, got {config['method']}")
    channels, image_size, _ = config["image_shape"]
    if options.data is not None:
        config["data"] = options.data
    data = load_images(config["data"], image_size=image_size, channels=channels)
    if list(data.class_names) != config["class_names"]:
        raise ValueError(
            f"classes: expected {config['class_names']} as trained, got {list(data.class_names)}"
        )
    if (n := config.get("n_images", len(data.train))) != len(data.train):
        say(f"{data.name}: {n} training images in the run, {len(data.train)} now: without a test "
            "folder, some images that it is tested on may have been learnt")  # fmt: skip
    for note in data.notes:
        say(note)
    drawn = {}
    if method.draws_on_request and per_class:  # first, as it may refuse
        drawn = sample_figures(method, config, data, per_class)
    figures = {
        "method": config["method"],
        "n_test": len(data.test),
        "test_error": test_error(method, data.test) if method.reads else None,
    }
    if hasattr(method, "reconstruct"):
        figures["reconstruction"] = reconstruction_error(method, data.test.images)
    figures |= drawn
    if per_class and method.draws and not method.draws_on_request:
        say(f"{config['method']} does not draw on request: drawings are not measured")
    if options.cas:
        figures["classification_accuracy_score"] = score_figures(method, config, data)
    sys.stdout.write(json.dumps(figures) + "\n")


def sample_figures(
    method: Method, config: dict, data: ImageData, per_class: int
) -> dict[str, object]:
    """Return what drawings of a run are worth, as far as it can be said for its data."""
    if config["data"] != "mnist" or config["image_shape"] != [1, 28, 28]:
        size = "{} x {} x {}".format(*config["image_shape"])
        say(f"no judge comes with the package for {data.name} as {size}: drawings are not measured")
        return {}
    most = int(data.test.labels.bincount().min())
    if per_class > most:
        raise ValueError(
            f"--samples-per-class: expected at most {most}, the test images of a class, "
            f"got {per_class}"
        )
    requests = torch.arange(data.n_classes).repeat_interleave(per_class)
    seed_everything(config.get("seed", 0))
    samples = draw(method, requests)
    return {"samples": measure_samples(samples, requests, data.train, data.test).to_dict()}


def score_figures(method: Method, config: dict, data: ImageData) -> dict[str, object]:
    """Return the score of as many drawings as there are training images, and that of the images.

    The second is None where not every training image has a label, or they are not in memory.
    """
    n = min(len(data.train), MOST_SCORED)
    requests = torch.arange(data.n_classes).repeat_interleave(max(n // data.n_classes, 1))
    say(f"--cas: drawing {len(requests):,} images, to learn from them and then from real ones")
    seed_everything(config.get("seed", 0))
    samples = draw(method, requests)
    drawn = classification_accuracy_score(samples, requests, data.test, progress=True)
    real, images, labels = None, data.train.images, data.train.labels
    if isinstance(images, torch.Tensor) and (labels != UNLABELED).all():
        some = torch.arange(n) * len(images) // n
        real = classification_accuracy_score(images[some], labels[some], data.test, progress=True)
    return {"n": len(requests), "drawn": drawn, "real": real}


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse an output file whose ending says nothing of its format."""
    if path.suffix not in suffixes:
        raise ValueError(f"--out: expected a file ending in {' or '.join(suffixes)}, got {path}")


def class_index(name: str, class_names: Sequence[str]) -> int:
    """Return the number of the class that a user names."""
    if name in class_names:
        return class_names.index(name)
    has_numbers = any(known.isdecimal() for known in class_names)
    if name.isdecimal() and int(name) < len(class_names) and not has_numbers:
        return int(name)
    raise ValueError(f"--class: expected one of {', '.join(class_names)}, got {name!r}")


def images_to_read(source: Path, image_shape: ImageShape) -> tuple[list[str], Tensor]:
    """Return names and uint8 images ``(N, C, H, W)`` of a folder, an image or an .npz."""
    channels, image_size, _ = image_shape
    if source.suffix == ".npz":
        return images_of_npz(source, image_shape)
    if source.is_dir():
        paths = list_folder(source)
        if not paths:
            raise ValueError(f"{source}: expected a folder with images, got none")
    elif source.exists():
        paths = [source]
    else:
        raise ValueError(f"{source}: expected a folder, an image or an .npz, got nothing there")
    images = read_images(paths, image_size=image_size, channels=channels)
    return [path.name for path in paths], images


def images_of_npz(source: Path, image_shape: ImageShape) -> tuple[list[str], Tensor]:
    """Return the array ``images`` of an .npz, as ``semigen sample`` writes it."""
    try:
        with np.load(source, allow_pickle=False) as arrays:
            images = np.ascontiguousarray(arrays["images"])
    except Exception as error:  # a damaged archive raises many types
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{source}: expected an .npz with images, got {reason}") from None
    channels, height, width = image_shape
    wanted = (height, width) if channels == 1 and images.ndim == 3 else (channels, height, width)
    if images.dtype != np.uint8 or images.shape[1:] != wanted or not images.size:
        raise ValueError(
            f"{source}: expected one or more uint8 images of shape {wanted}, "
            f"got {images.dtype} of shape {images.shape}"
        )
    tensor = torch.from_numpy(images).reshape(-1, channels, height, width)
    return [str(index) for index in range(len(tensor))], tensor
