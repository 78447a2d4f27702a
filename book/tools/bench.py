"""Measure how fast training is here, and write ``book/results/bench.json``.

``make bench`` runs it, ``make bench PEER=<checkout of PyTorch-GAN>`` races that project's own
scripts too, and ``speed_page.py`` and ``scaling_page.py`` make the pages of what it wrote.
Whatever is compared takes turns, A B A B, a few seconds each: every contestant is a process that is
stopped while another runs, so a machine that slows down slows all of them down. A rate is the
median over the turns, its spread the quartiles. It takes a quarter of an hour; close everything
else first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from semigen_lib import __version__
from semigen_lib.data import load_images
from semigen_lib.runtime import fast_bf16, keep_memory

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results" / "bench.json"
CONTESTANTS = Path(__file__).with_name("contestants.py")
ROUNDS, SECONDS = 5, 2.0  # turns of each contestant, and how long one is
LONGEST_STEP = 120.0  # seconds; a contestant that is silent for so long has failed


class BenchError(RuntimeError):
    """A contestant that did not run."""


@dataclass(frozen=True)
class Contestant:
    """A command that prints a line for its steps.

    A line that ends in ``step N`` says how many steps are done; with ``counts_lines``, as for
    scripts of others, each line that matches the pattern is one step.
    """

    name: str
    command: tuple[str, ...]
    batch_size: int = 64
    folder: Path = ROOT
    counts_lines: str = ""
    threads_spin: bool = False  # while they wait, as they do where nobody imports our package


def ours(name: str, *arguments: str, batch_size: int = 64) -> Contestant:
    """Return a contestant of ``contestants.py``."""
    sizes = ("--batch-size", str(batch_size))
    command = (sys.executable, str(CONTESTANTS), *arguments, *sizes)
    return Contestant(name, command, batch_size, threads_spin="plain" in arguments)


class Runner:
    """A contestant at work: how far it is, how much memory it took, when its first step was."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant, self.steps, self.flops, self.first_step = contestant, 0, None, None
        self._changed, self._ended = threading.Condition(), False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
        if contestant.threads_spin:
            for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
                environment.pop(name, None)
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            contestant.command,
            cwd=contestant.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # by which its readers are found
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                if self.contestant.counts_lines:
                    self.steps += bool(re.search(self.contestant.counts_lines, line))
                elif line.startswith("step "):
                    self.steps = int(line.split()[1])
                elif line.startswith("flops "):
                    self.flops = int(line.split()[1])
                if self.steps and self.first_step is None:
                    self.first_step = time.perf_counter() - self.started
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for_first_step(self) -> None:
        if not self._wait_beyond(0):
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise BenchError(
                f"{self.contestant.name}: expected a training step within {LONGEST_STEP:.0f} s, "
                f"got {said[-1] if said else 'nothing'}"
            )

    def _wait_beyond(self, steps: int) -> bool:
        """Sleep until more steps are done (who looks again and again takes time from who runs)."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.steps > steps, LONGEST_STEP)
            return self.steps > steps

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        """Send a signal to the process and its readers."""
        for pid in session_of(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def turn(self, seconds: float) -> float:
        """Let it run that long and return images a second; a turn begins and ends with a row."""
        self._signal(signal.SIGCONT)
        began, before = self._next_row(), self.steps
        ended = began
        while ended - began < seconds:
            ended = self._next_row()
        rate = (self.steps - before) * self.contestant.batch_size / (ended - began)
        self.pause()
        return rate

    def _next_row(self) -> float:
        if not self._wait_beyond(self.steps):
            raise BenchError(f"{self.contestant.name}: expected further steps, got none")
        return time.perf_counter()

    def peak_memory(self) -> float:
        """Return the most memory it had, and what its readers have for themselves, in MB."""
        leader = self.process.pid
        readers = [pid for pid in session_of(leader) if pid != leader]
        return memory(leader, "status", "VmHWM") + sum(
            memory(pid, "smaps_rollup", kind)
            for pid in readers
            for kind in ("Private_Clean", "Private_Dirty")
        )

    def stop(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=5)
        self._errors.close()


def memory(pid: int, file: str, field: str) -> float:
    """Return a field of a file of /proc in MB, 0 for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(kb) for kb in re.findall(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)) / 1024


def session_of(leader: int) -> list[int]:
    """Return the processes of a session that are there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(words[3]) == leader and words[0] != "Z":
                found.append(int(entry.name))
    return found


def race(contestants: Sequence[Contestant], rounds: int, seconds: float) -> list[dict[str, object]]:
    """Let contestants take turns, and return a row for each."""
    runners: list[Runner] = []
    try:
        for contestant in contestants:  # one after another: each has the machine as it starts
            runners.append(Runner(contestant))
            runners[-1].wait_for_first_step()
            runners[-1].pause()
        rates: list[list[float]] = [[] for _ in runners]
        for turn in range(rounds + 1):
            for runner, own in zip(runners, rates, strict=True):
                rate = runner.turn(seconds)
                if turn > 0:  # the first warms up
                    own.append(rate)
        return [row(runner, own) for runner, own in zip(runners, rates, strict=True)]
    finally:
        for runner in runners:
            runner.stop()


def row(runner: Runner, rates: list[float]) -> dict[str, object]:
    """Return what is known of a contestant."""
    low, median, high = quartiles(rates)
    return {
        "name": runner.contestant.name,
        "batch_size": runner.contestant.batch_size,
        "images_per_second": {"low": low, "median": median, "high": high, "turns": len(rates)},
        "flops_per_image": runner.flops,
        "peak_memory_mb": round(runner.peak_memory()),
        "first_row_seconds": round(runner.first_step, 2),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return (round(values[0], 4),) * 3
    return tuple(round(v, 4) for v in statistics.quantiles(values, n=4, method="inclusive"))


# ---- what is raced ----


def contests(peer: Path | None) -> dict[str, list[Contestant]]:
    """Return the contests by name. The first row of each is what the others are compared with."""
    bf16 = fast_bf16()

    def rows(network: str, *, plain: bool = True) -> list[Contestant]:
        found = [ours("plain loop", network, "--loop", "plain")] if plain else []
        found.append(ours("ours, fp32", network))
        if bf16:
            found.append(ours("ours, bf16", network, "--precision", "bf16"))
        return found

    games = {name: rows(f"dcgan-{name}") for name in ("lsgan", "sgan")}
    if peer:
        for name, found in games.items():
            found.insert(0, peer_script(peer, name))
    switches = ("transposed", "channels-last", "kept-memory", "fused-adam")
    parts = [ours("everything on", "dcgan-lsgan")]
    parts += [ours(f"without {s}", "dcgan-lsgan", "--without", s) for s in switches]
    return {
        **{f"PyTorch-GAN's {name}" if peer else f"dcgan {name}": r for name, r in games.items()},
        "the article's networks": rows("article"),
        "lsgan of the library": rows("lsgan"),
        "autoencoder of the library": rows("autoencoder"),
        "combined of the library": rows("combined", plain=False),
        "what each part is worth": parts,
    }


def peer_script(peer: Path, name: str) -> Contestant:
    """Return a script of a checkout of PyTorch-GAN, run where it expects to be run."""
    folder = peer / "implementations" / name
    if not (folder / f"{name}.py").is_file():
        raise BenchError(f"PEER: expected a checkout of PyTorch-GAN, got no {folder / name}.py")
    command = (sys.executable, "-W", "ignore", f"{name}.py")
    pattern = r"\[Batch \d+/\d+\]"
    return Contestant("PyTorch-GAN's script", command, 64, folder, pattern, threads_spin=True)


def growth(folders: Mapping[int, Path]) -> dict[str, list[Contestant]]:
    """Return how rates are followed as one thing grows. The names of rows are numbers."""
    largest = folders[max(folders)]
    return {
        "batch size": [ours(str(n), "lsgan", batch_size=n) for n in (64, 128, 256, 512)],
        "side in pixels": [ours(str(n), "lsgan", "--side", str(n)) for n in (28, 64, 128)],
        "images in memory": [ours(str(n), "lsgan", "--count", str(n)) for n in folders],
        "images in files": [ours(str(n), "lsgan", "--folder", str(f)) for n, f in folders.items()],
        "workers that read files": [
            ours(str(n), "lsgan", "--folder", str(largest), "--workers", str(n)) for n in (0, 1, 2)
        ],
    }


@contextmanager
def folders_of_images(counts: Sequence[int]) -> Iterator[dict[int, Path]]:
    """Make folders of PNG files in ten classes: real digits, most of them as hard links."""
    base = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        data = load_images("mnist")
        sources = []
        for number, image in enumerate(data.train.images[: min(counts)]):
            path = base / f"{number}.png"
            Image.fromarray(image[0].numpy()).save(path)
            sources.append(path)
        found = {}
        for count in counts:
            found[count] = base / str(count)
            for k in range(10):
                (found[count] / f"class{k}").mkdir(parents=True)
            test = found[count] / "test"
            for k in range(10):
                (test / f"class{k}").mkdir(parents=True)
                os.link(sources[k], test / f"class{k}" / "0.png")
            for number in range(count):
                target = found[count] / f"class{number % 10}" / f"{number}.png"
                os.link(sources[number % len(sources)], target)
        yield found
    finally:
        shutil.rmtree(base)


# ---- the machine ----


def machine() -> dict[str, object]:
    """Return what the figures belong to."""
    model = "unknown"
    if (info := Path("/proc/cpuinfo")).exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "bf16_in_hardware": fast_bf16(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "semigen_lib": __version__,
        "peak_fp32_gflops": peak_gflops(torch.float32),
        "peak_bf16_gflops": peak_gflops(torch.bfloat16) if fast_bf16() else None,
    }


def peak_gflops(dtype: torch.dtype) -> float:
    """Return the fastest that a plain 3x3 convolution was here, forward, in GFLOP/s."""
    best = 0.0
    for channels, side in ((64, 32), (128, 16), (128, 32), (256, 16)):
        layer = nn.Conv2d(channels, channels, 3, padding=1, dtype=dtype)
        layer.to(memory_format=torch.channels_last)
        images = torch.randn(64, channels, side, side, dtype=dtype)
        images = images.to(memory_format=torch.channels_last)
        flops = 2 * 64 * channels**2 * 9 * side**2
        with torch.no_grad():
            layer(images)
            for _ in range(30):
                began = time.perf_counter()
                layer(images)
                best = max(best, flops / (time.perf_counter() - began) / 1e9)
    return round(best, 1)


def imports(rounds: int) -> dict[str, float]:
    """Return the median seconds that imports take in a new process, over those of torch alone."""
    library = "import semigen_lib, semigen_lib.data, semigen_lib.methods, semigen_lib.training"
    lines = {"torch": "import torch", "library": f"import torch; {library}"}
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(rounds + 1):
        for name, line in lines.items():
            timed = f"import time; t = time.perf_counter(); {line}; print(time.perf_counter() - t)"
            done = subprocess.run(
                [sys.executable, "-c", timed], cwd=ROOT, capture_output=True, text=True, check=True
            )
            seconds[name].append(float(done.stdout))
    torch_alone, library_too = (statistics.median(values[1:]) for values in seconds.values())
    return {"torch": round(torch_alone, 3), "library": round(library_too - torch_alone, 3)}


def first_steps(rounds: int) -> list[float]:
    """Return the seconds from the start of a process to its first training step on MNIST."""
    seconds = []
    for _ in range(rounds):
        runner = Runner(ours("first step", "combined", "--record-every", "1"))
        try:
            runner.wait_for_first_step()
            seconds.append(round(runner.first_step, 2))
        finally:
            runner.stop()
    return seconds


# ---- the command line ----


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--peer", type=Path, help="a checkout of PyTorch-GAN, to race its sgan.py and lsgan.py")
    add("--rounds", type=int, default=ROUNDS, help="turns of each contestant")
    add("--seconds", type=float, default=SECONDS, help="how long a turn is")
    add("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000],
        help="sizes of data sets")  # fmt: skip
    add("--only", help="a part of the names of the contests to run; others stay as they were")
    add("--out", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args(arguments)
    peer = options.peer.resolve() if options.peer else None
    try:
        figures = measure(options, peer)
    except BenchError as error:
        parser.exit(1, f"bench: {error}\n")
    draft = options.out.with_suffix(".part")
    draft.write_text(json.dumps(figures, indent=1) + "\n")
    os.replace(draft, options.out)
    return 0


def measure(options: argparse.Namespace, peer: Path | None) -> dict[str, object]:
    """Measure everything that is asked for; figures of an earlier call stay in their places."""
    keep_memory()
    old = json.loads(options.out.read_text()) if options.out.exists() else {}
    figures = {"schema": 1, "contests": {}, "growth": {}} | old | {"machine": machine()}
    wanted = (options.only or "").lower()
    if not wanted:
        figures["imports"] = imports(options.rounds)
        figures["first_step_seconds"] = first_steps(options.rounds)
    for name, contestants in contests(peer).items():
        if wanted in name.lower():
            figures["contests"][name] = race(contestants, options.rounds, options.seconds)
            show(name, figures["contests"][name])
    with folders_of_images(options.counts) as folders:
        for name, contestants in growth(folders).items():
            if wanted in name.lower():
                figures["growth"][name] = race(contestants, options.rounds, options.seconds)
                show(name, figures["growth"][name])
    return figures


def show(name: str, rows: list[dict]) -> None:
    """Print a contest."""
    sys.stdout.write(f"\n{name}\n")
    first = rows[0]["images_per_second"]["median"]
    for each in rows:
        rate = each["images_per_second"]
        sys.stdout.write(
            f"  {each['name']:24} {rate['median']:8.0f} images/s ({rate['low']:.0f} to "
            f"{rate['high']:.0f})  x {rate['median'] / first:.2f}  {each['peak_memory_mb']} MB\n"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
