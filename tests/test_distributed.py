"""Several processes make the run of one: the same images, noise, weights, history and states.

Processes are forked and meet over gloo, so that none has to import torch again; one test, slow,
goes through torchrun.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import same_weights, weights
from torch import distributed, nn
from torch.nn import functional

from semigen_lib import data, training
from semigen_lib.checkpoint import load_state
from semigen_lib.data import BatchStream, DataError
from semigen_lib.distributed import (
    average,
    average_gradients,
    is_first,
    joined_processes,
    largest,
    part_of_processes,
    whole_batch,
)
from semigen_lib.methods import METHODS
from semigen_lib.methods.method import Method
from semigen_lib.training import TrainingError, train

ROOT = Path(__file__).parents[1]


def together(work: Callable[[int], object], folder: Path, count: int = 2) -> list:
    """Do something in several processes at once; return what each of them did, or its status."""
    folder.mkdir(exist_ok=True)
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            status = 70
            try:
                torch.set_num_threads(1)  # the threads of the parent are not here
                distributed.init_process_group(
                    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
                )
                torch.save(work(rank), folder / f"{rank}.pt")
                status = 0
            except Exception as error:
                (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
                status = 1
            finally:
                os._exit(status)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (folder / "meeting").unlink(missing_ok=True)
    return [
        torch.load(folder / f"{rank}.pt", weights_only=False) if code == 0 else code
        for rank, code in enumerate(codes)
    ]


def test_alone_nothing_changes() -> None:
    assert part_of_processes() == (0, 1) and is_first()
    values = torch.ones(3)
    assert average(values) is values and largest(2.5, values.device) == 2.5
    parameter = nn.Parameter(values)
    parameter.grad = torch.ones(3)
    average_gradients([parameter])
    assert parameter.grad.tolist() == [1, 1, 1]
    torch.manual_seed(0)
    with whole_batch():
        inside = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), inside)


def test_more_processes_than_devices_are_refused(monkeypatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match="processes: expected at most one a CUDA device, 1, got"),
        joined_processes(torch.device("cuda")),
    ):
        pass


def test_processes_share_a_batch_without_duplicates(tiny_split) -> None:
    sizes = {"batch_size": 9, "labeled_batch_size": 6, "seed": 1}
    whole = BatchStream(tiny_split, **sizes).at(5)
    parts = [BatchStream(tiny_split, **sizes, part=(rank, 3)).at(5) for rank in range(3)]
    for rank, part in enumerate(parts):
        for mine, all_of_it in zip(part, whole, strict=True):
            assert torch.equal(mine, all_of_it[rank::3])
    assert sorted(torch.cat([part.index for part in parts])) == sorted(whole.index)
    odd = BatchStream(tiny_split, batch_size=9, labeled_batch_size=7, part=(1, 3)).at(0)
    assert len(odd.labels) == 7, "a labelled batch that cannot be shared is everybody's"
    with pytest.raises(DataError, match="divisible by 2 processes, got 9"):
        BatchStream(tiny_split, batch_size=9, part=(0, 2))


def test_in_a_group_draws_and_statistics_are_of_the_whole_batch(tmp_path) -> None:
    rows = torch.randn(6, 3, 4, 4)

    def draw(rank: int, count: int) -> tuple:
        own = rows[rank::count].clone().requires_grad_()
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(3)
        with whole_batch():
            drawn = [
                torch.randn(len(own), 2),
                torch.rand((len(own), 2)),
                torch.randint(9, (len(own),)),
                torch.randn_like(own),
                torch.cat([torch.rand(len(own)), functional.dropout(own, 0.5)[:, 0, 0, 0]]),
                functional.dropout2d(own, 0.5).detach(),
                norm(own).detach(),
            ]
            mean, scalar = own.mean(0), own.mean()
            objective = mean.square().sum() + norm(own).pow(3).mean() + scalar
        objective.backward()
        buffers = [norm.running_mean, norm.running_var]
        return [d.detach() for d in drawn], mean.detach(), own.grad, norm.weight.grad, buffers

    first, second = together(lambda rank: draw(rank, 2), tmp_path)
    alone = draw(0, 1)
    for one, two, both in zip(first[0], second[0], alone[0], strict=True):
        # Joined tensors stay joined: their rows are those of the joined whole.
        torch.testing.assert_close(torch.stack([one, two], 1).flatten(0, 1), both)
    for part in (first, second):
        torch.testing.assert_close(part[1], alone[1])
        torch.testing.assert_close(part[4], alone[4])
    # A gradient is for a mean over processes, so each has its number of times its share.
    gradients = torch.stack([first[2], second[2]], 1).flatten(0, 1) / 2
    torch.testing.assert_close(gradients, alone[2])
    torch.testing.assert_close((first[3] + second[3]) / 2, alone[3])


def trained(make_method, split, name: str, **options) -> tuple:
    method = make_method(name)
    if torch.get_default_dtype() == torch.float64:
        method.double()
    # In bfloat16 rounding alone would part the runs.
    options = {"steps": 20, "progress": False, "precision": "fp32"} | options
    history = train(method, split, **options)
    return weights(method), {n: c for n, c in history.items() if n != "seconds"}


@pytest.fixture
def in_float64(monkeypatch):
    """Everything is computed in float64, so that rounding hides no difference."""
    monkeypatch.setattr(data, "to_float", lambda images: images.double() / 255)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].prepare is Method.prepare])
def test_two_processes_make_the_run_of_one(name, make_method, tiny_split, tmp_path) -> None:
    """Adam blows up the rounding of small gradients: how far float32 drifts is up to the CPU."""
    first, second = together(lambda _: trained(make_method, tiny_split, name), tmp_path)
    assert same_weights(first[0], second[0]) and first[1] == second[1]
    alone = trained(make_method, tiny_split, name)
    for key, weight in alone[0].items():
        torch.testing.assert_close(first[0][key], weight, rtol=0, atol=1e-9)
    for term, values in alone[1].items():
        assert first[1][term] == pytest.approx(values, abs=1e-9), term


@pytest.mark.usefixtures("in_float64")
def test_parts_of_a_batch_are_averaged_over_processes(make_method, tiny_split, tmp_path) -> None:
    """A run that was short of memory alone may go on in a group."""

    def work(_: int) -> dict:
        run = training._Run(make_method("autoencoder").double(), tiny_split, 0, 4, None)
        run.method.train()
        run.n_parts = 2
        for _ in range(4):
            run.make_step("fp32")
        return weights(run.method)

    first, second = together(work, tmp_path)
    assert same_weights(first, second)
    for key, weight in work(0).items():
        torch.testing.assert_close(first[key], weight, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_resumed_with_another_number_of_processes(
    before, after, make_method, tiny_split, tmp_path
) -> None:
    def start(_: int = 0):
        return trained(make_method, tiny_split, "autoencoder", steps=10, states=tmp_path / "s")

    def go_on(_: int = 0):
        return trained(
            make_method, tiny_split, "autoencoder", steps=20, states=tmp_path / "s", resume=True
        )

    for work, count in ((start, before), (go_on, after)):
        got = together(work, tmp_path / "p", count) if count > 1 else [work()]
    whole = trained(make_method, tiny_split, "autoencoder", steps=10, states=tmp_path / "w")
    whole = trained(
        make_method, tiny_split, "autoencoder", steps=20, states=tmp_path / "w", resume=True
    )
    for key, weight in whole[0].items():
        torch.testing.assert_close(got[0][0][key], weight, rtol=0, atol=1e-9)
    assert load_state(tmp_path / "s")[0] == 20


@pytest.mark.usefixtures("in_float64")
def test_a_killed_process_leaves_a_good_state(
    make_method, tiny_split, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", -1.0)

    def die(rank: int) -> None:
        def watch(step: int, _) -> None:
            if rank == 1 and step == 6:
                os.kill(os.getpid(), signal.SIGKILL)

        trained(make_method, tiny_split, "autoencoder", record_every=2, states=tmp_path / "s",
                on_record=watch)  # fmt: skip

    codes = together(die, tmp_path / "p")
    assert codes == [1, -signal.SIGKILL], "the other one does not wait for ever"
    assert load_state(tmp_path / "s")[0] in (4, 6)
    options = {"record_every": 2, "states": tmp_path / "s", "resume": True}
    again = trained(make_method, tiny_split, "autoencoder", **options)
    whole = trained(make_method, tiny_split, "autoencoder", record_every=2)
    for key, weight in whole[0].items():
        torch.testing.assert_close(again[0][key], weight, rtol=0, atol=1e-9)


def test_what_breaks_in_one_stops_all(make_method, tiny_split, tmp_path) -> None:
    def work(rank: int) -> str:
        method = make_method("autoencoder")
        redraw = method.reconstruct
        method.reconstruct = lambda images: redraw(images) * (torch.nan if rank == 1 else 1.0)
        with pytest.raises(TrainingError) as caught:
            train(method, tiny_split, steps=4, progress=False)
        return str(caught.value)

    first, second = together(work, tmp_path)
    assert first == second == "step 1: expected finite terms, got reconstruction = nan"


def test_a_signal_to_one_stops_all(make_method, tiny_split, tmp_path) -> None:
    def work(rank: int) -> int:
        signal.signal(signal.SIGTERM, signal.default_int_handler)

        def watch(step: int, _) -> None:
            if rank == 1 and step == 4:
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(KeyboardInterrupt):
            trained(make_method, tiny_split, "autoencoder", record_every=2,
                    states=tmp_path / "s", on_record=watch)  # fmt: skip
        return rank

    assert together(work, tmp_path / "p") == [0, 1]
    assert load_state(tmp_path / "s")[0] == 4


def test_minutes_are_those_of_the_slowest(make_method, tiny_split, tmp_path) -> None:
    def work(_: int) -> tuple:
        return trained(make_method, tiny_split, "autoencoder", steps=None, minutes=0.005)

    first, second = together(work, tmp_path)
    assert first[1] == second[1] and same_weights(first[0], second[0])


@pytest.mark.slow
def test_torchrun_trains_and_writes_one_run(tmp_path) -> None:
    small = "--set width=4 --set batch_size=8 --set latent_dim=4"
    line = f"train --method autoencoder --steps 3 --quiet --out {tmp_path}/run {small}"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "-m", "semigen_lib", *line.split()],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1 and '"steps": 3' in result.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"model.safetensors", "states"}
