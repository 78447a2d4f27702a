"""What the tests share: one place for threads, tiny images that can be learnt, tiny methods."""

import dataclasses
import os
from collections.abc import Callable, Iterator

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib: no test opens a window

import semigen_lib  # isort: skip  # before torch: it tells waiting threads to sleep
import pytest
import torch

from semigen_lib.data import (
    UNLABELED,
    Batch,
    ImageData,
    ImageSet,
    LabelSplit,
    load_images,
    split_labels,
)
from semigen_lib.methods import METHODS, build_method
from semigen_lib.methods.method import Method

assert semigen_lib.__version__
# One thread for each of several workers, two for a single one: two cores are what there is.
threads = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", threads)))

#: What a failed fault test means, by the area its fault was injected in; a line for each group.
FAULTS_OF_GRADING = {
    "containment": "escapes",
    "durability": "results lost",
    "integrity": "inflated grades",
    "fairness": "inflated grades",
    "intake": "tracebacks",
}
FAULTS_OF_ENGINE = {"training": "lost", "data": "wrong", "message": "tracebacks"}
FAULTS = FAULTS_OF_GRADING | FAULTS_OF_ENGINE

#: Settings that make any method small; a method without such a field does not get it.
TINY = {"width": 8, "latent_dim": 4, "batch_size": 8, "labeled_batch_size": 10}
#: The same for networks that not every small setting reaches.
NARROW = {
    "generator_width": 8,
    "discriminator_width": 8,
    "denoiser_width": 8,
    "n_drawings": 2,
    "n_steps": 2,
}


@pytest.hookimpl(optionalhook=True)  # it is xdist's, and a single process has no use for it
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep the tests of a file together, but for the runs of chapters: each takes minutes."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "::test_nbval[" in nodeid else super()._split_scope(nodeid)

    return Scheduler(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let every report of a fault test say its area: reports also cross xdist's processes."""
    if marker := item.get_closest_marker("fault"):
        if len(marker.args) != 1 or marker.args[0] not in FAULTS:
            raise pytest.UsageError(f"{item.nodeid}: expected fault(area), area one of {[*FAULTS]}")
        item.user_properties.append(("fault", marker.args[0]))


def pytest_terminal_summary(terminalreporter) -> None:
    """Close with a line on the injected faults; an expected failure is a failure here."""
    areas, failed, skipped = {}, set(), set()
    everything = (report for reports in terminalreporter.stats.values() for report in reports)
    for report in everything:
        if not isinstance(report, pytest.TestReport):  # a warning, or a test that was deselected
            continue
        for name, area in report.user_properties:
            if name == "fault":
                areas[report.nodeid] = area
        if report.failed or hasattr(report, "wasxfail"):
            failed.add(report.nodeid)
        elif report.skipped:
            skipped.add(report.nodeid)
    for group in (FAULTS_OF_GRADING, FAULTS_OF_ENGINE):
        injected = {nodeid for nodeid, area in areas.items() if area in group}
        counts = dict.fromkeys(group.values(), 0)
        for nodeid in failed & injected:
            counts[group[areas[nodeid]]] += 1
        if injected:
            n_skipped = len(skipped & injected)
            words = [f"{len(injected) - n_skipped} injected"]
            words += [f"{count} {what}" for what, count in counts.items()]
            terminalreporter.write_line(", ".join([*words, f"{n_skipped} skipped"]))


def tiny_images(n_per_class: int, seed: int, n_classes: int = 10) -> ImageSet:
    """Images (N, 1, 28, 28) with one bright block, whose place is the class, on faint noise."""
    labels = torch.arange(n_classes).repeat(n_per_class)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (len(labels), 1, 28, 28), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 7 * (label // 4), 7 * (label % 4)
        image[:, top : top + 7, left : left + 7] += 180
    return ImageSet(images.to(torch.uint8), labels)


@pytest.fixture(scope="session")
def tiny_data() -> ImageData:
    """60 training and 20 test images of 10 classes; do not write into it."""
    names = tuple(f"place {k}" for k in range(10))
    return ImageData("tiny", names, tiny_images(6, seed=1), tiny_images(2, seed=2))


@pytest.fixture(scope="session")
def tiny_split(tiny_data: ImageData) -> LabelSplit:
    """The tiny data with 20 labels."""
    return split_labels(tiny_data, 20, 0)


@pytest.fixture(scope="session")
def mnist() -> ImageData:
    """The real one; do not write into it."""
    return load_images("mnist")


@pytest.fixture(scope="session")
def make_method() -> Callable[..., Method]:
    """Return a function that builds a tiny method with weights drawn from a seed.

    It takes a name of the table or a class of the caller's own.
    """

    def make(
        kind: str | type[Method], *, seed: int = 0, shape=(1, 28, 28), n_classes=10, **settings
    ) -> Method:
        torch.manual_seed(seed)
        method_class = METHODS[kind] if isinstance(kind, str) else kind
        settings = tiny_settings(method_class) | settings
        if isinstance(kind, str):
            return build_method(kind, shape, n_classes, settings)
        return method_class(method_class.Config(**settings), shape, n_classes)

    return make


def tiny_settings(method_class: type[Method]) -> dict[str, int]:
    """Return those of the small settings that a method has."""
    fields = {field.name for field in dataclasses.fields(method_class.Config)}
    return {name: value for name, value in (TINY | NARROW).items() if name in fields}


def within_reach(split: LabelSplit, method_class: type[Method]) -> LabelSplit:
    """Return the split, with 3,000 images for a method that looks at the whole pool first."""
    if method_class.prepare is Method.prepare:
        return split
    kept = torch.cat([split.labeled_index, torch.arange(3000)]).unique()
    return dataclasses.replace(
        split,
        images=split.images[kept],
        labels=split.labels[kept],
        labeled_index=torch.searchsorted(kept, split.labeled_index),
    )


def stages(method: Method, batch: Batch) -> Iterator[None]:
    """Take a method through the stages of a run whose pool is one batch."""
    n = int(batch.index.max()) + 1
    pool = torch.zeros(n, *batch.images.shape[1:], dtype=torch.uint8)
    pool[batch.index] = (batch.images * 255).round().to(torch.uint8)
    labels = torch.full((n,), UNLABELED)
    labels[batch.index[:2]] = torch.tensor([0, 1])
    method.prepare(pool, labels, 0.0)
    yield
    for progress in (0.5, 0.9):
        if method.prepare(pool, labels, progress):
            yield


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all weights and buffers."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Say whether two sets of weights are equal bit for bit."""
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)
