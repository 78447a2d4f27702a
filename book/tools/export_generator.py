"""Take generator and student out of a finished run and measure drawings: what chapter 8 loads.

Run ``python book/tools/export_generator.py RUN``, where RUN is a folder that this command filled:

    semigen train --data mnist --method cgan --labels 10 --seed 0 --minutes 10 --out RUN

It writes ``cgan_10_generator.safetensors``, the weights of both networks as 16-bit numbers, and a
JSON beside it with their sha256, the config and the seconds of the run, and what
``measure_samples`` says of 5,000 drawings: of the first ones, and of those that ``generate``
returns, among which what the student doubted was drawn again. They are drawn with the weights as
written, rounded, so the figures belong to the file. The same figures of real training images in
the drawings' place are in it too; for them the memory is what is left of the training images,
since each of them would be its own copy.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from semigen_lib import __version__
from semigen_lib.checkpoint import SCHEMA, load_weights, read_json, save_weights, write_json
from semigen_lib.data import ImageData, load_images
from semigen_lib.evaluation import draw
from semigen_lib.judge import load_judge
from semigen_lib.methods import build_method
from semigen_lib.runtime import seed_everything
from semigen_lib.samples import Reading, SampleReport, measure_samples, read_images_with

RESULTS = Path(__file__).resolve().parents[1] / "results"
PREFIXES = ("generator.", "student.")
MOST_BYTES = 1_200_000
PER_CLASS = 500


def half(tensor: Tensor) -> Tensor:
    """Return floating point numbers in 16 bits, and others as they are."""
    return tensor.half() if tensor.is_floating_point() else tensor


def measure_real(
    data: ImageData,
    memory: Reading,
    unseen: Reading,
    per_class: int,
    judge: nn.Module | None = None,
) -> SampleReport:
    """Return the figures of real training images in the place of drawings."""
    labels = data.train.labels
    members = [(labels == k).nonzero().flatten() for k in range(data.n_classes)]
    chosen = torch.cat([m[torch.linspace(0, len(m) - 1, per_class).long()] for m in members])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    others = Reading(*(part[rest] for part in memory))
    return measure_samples(data.train.images[chosen], labels[chosen], others, unseen, judge=judge)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run of cgan")
    parser.add_argument("--name", default="cgan_10_generator", help="of both files")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="drawings of each class")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of both files")
    options = parser.parse_args()
    config, metrics = (read_json(options.run / f"{name}.json") for name in ("config", "metrics"))
    shape, n_classes = tuple(config["image_shape"]), len(config["class_names"])
    method = build_method(config["method"], shape, n_classes, config["settings"]).eval()
    weights = load_weights(options.run / "model.safetensors", metrics["sha256"])
    own = {name: half(t) for name, t in weights.items() if name.startswith(PREFIXES)}
    method.load_state_dict(weights | own)
    if not all(t.isfinite().all() for t in own.values()):
        raise SystemExit("expected finite weights, got one that 16 bits cannot hold")

    data = load_images(config["data"])
    requests = torch.arange(n_classes).repeat_interleave(options.per_class)
    memory, unseen = (read_images_with(load_judge(), part) for part in (data.train, data.test))
    settings, reports = method.config, {}
    for name, redraws in (("samples", settings.redraws), ("first_samples", 0)):
        method.config = dataclasses.replace(settings, redraws=redraws)
        seed_everything(config["seed"])
        reports[name] = measure_samples(draw(method, requests), requests, memory, unseen)

    path = options.out / f"{options.name}.safetensors"
    sha256 = save_weights(path, own)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"expected at most {MOST_BYTES} bytes, got {path.stat().st_size}")
    facts = {
        "schema": SCHEMA,
        "version": __version__,
        "sha256": sha256,
        "run": config,
        "settings": dataclasses.asdict(settings),
        "seconds": metrics["seconds"],
        "steps": metrics["steps"],
        "test_error": metrics["test_error"],
        **{name: report.to_dict() for name, report in reports.items()},
        "real": measure_real(data, memory, unseen, options.per_class).to_dict(),
    }
    write_json(path.with_suffix(".json"), facts)
    print(f"{path.name}: {path.stat().st_size:,} bytes, sha256 {sha256[:12]}…")
    for name, report in reports.items():
        obeyed, ratio = report.conditional_accuracy, report.frechet_ratio
        print(f"{name}: asked and drawn {obeyed:.2%}, Fréchet {ratio:.1f}")


if __name__ == "__main__":
    main()
