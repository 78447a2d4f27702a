"""The watcher: what a run uses, summed over all its processes from outside, and where it ends.

A process has limits of its own from the kernel, but a bomb may be split over children, over files
or over a memory file system. So the sums are taken ten times a second, and at the first limit, or
when the command has ended, everything is killed.

Shown in: book/instructor.md
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["DEEPEST", "Limits", "Outcome", "SandboxError", "folder_bytes", "watch"]

DEEPEST = 8  # folders below the output folder; what lies deeper counts as over the limit
SMALLEST = 4096  # bytes that a file or folder counts at least: it takes room even when empty
EVERY = 0.1  # seconds between two looks at the sums
TICK = 0.01  # seconds between two looks at the clock, the log and the command
GRACE = 5.0  # seconds that the kernel may take to bury what was killed


class SandboxError(RuntimeError):
    """The sandbox is not there or could not start a command; never the command's own failure."""


@dataclass(frozen=True)
class Limits:
    """Where a run ends.

    Attributes
    ----------
    wall_seconds
        From the start to the end of everything.
    memory_bytes
        Of the whole tree of processes, its memory file systems included.
    file_bytes
        Of one file.
    output_bytes
        Of the output folder.
    log_bytes
        Of standard output and error; the last ones are kept.
    cpu_seconds
        Of one process.
    processes
        Of the whole tree; threads count.
    open_files
        Of one process.
    """

    wall_seconds: float
    memory_bytes: int
    file_bytes: int
    output_bytes: int
    log_bytes: int
    cpu_seconds: int
    processes: int = 256
    open_files: int = 1024


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    status
        "finished" (return code 0), "failed", "wall_limit", "memory_limit", "output_limit" or
        "process_limit".
    returncode
        Of the command; 128 + n if signal n ended it.
    seconds
        Wall clock.
    peak_memory
        Bytes, the largest sum that was seen; 0 without a sandbox.
    log
        The end of standard output and error.
    """

    status: str
    returncode: int
    seconds: float
    peak_memory: int
    log: str


def watch(
    process: subprocess.Popen,
    report: BinaryIO | None,
    ways: Sequence[str],
    limits: Limits,
    output: Path,
) -> Outcome:
    """Wait for the end of a run that has just been started, kill all of it, say how it ended.

    Parameters
    ----------
    process
        The command, its standard output a pipe, in a session of its own.
    report
        What bubblewrap tells: its first process, and at the end the return code. None: there is no
        bubblewrap, so only the time and the output folder are watched.
    ways
        For each bubblewrap around the command, the outer one first, the way from outside to the
        root folder of its first process, with {} for the number of that process.
    limits
        Where it ends.
    output
        Its output folder.

    Raises
    ------
    SandboxError
        If bubblewrap never came to start the command, or if the kernel does not end it.
    """
    started = look = time.monotonic()
    status, peak, first, log = "", 0, None, bytearray()
    os.set_blocking(process.stdout.fileno(), False)
    try:
        if report is not None:
            first = _FirstProcess(report, ways)
        while not status and process.poll() is None:
            time.sleep(TICK)
            _drain(process.stdout, log, limits.log_bytes)
            now = time.monotonic()
            if now - started > limits.wall_seconds:
                status = "wall_limit"
            elif first is not None and now >= look:
                memory, tasks, unlinked = first.usage(os.stat(output).st_dev)
                peak = max(peak, memory)
                status = _reached(memory, tasks, folder_bytes(output) + unlinked, limits)
                look = time.monotonic() + EVERY
    finally:
        _bury(process, first)
    _drain(process.stdout, log, limits.log_bytes)
    text = log.decode(errors="replace")
    if not status and report is not None and report.read().count(b'"exit-code"') < len(ways):
        raise SandboxError(f"sandbox: expected to start a command, got {text.strip()!r}")
    if not status and folder_bytes(output) > limits.output_bytes:
        status = "output_limit"  # in the moment between the last look and the end
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    status = status or ("failed" if code else "finished")
    return Outcome(status, code, time.monotonic() - started, peak, text)


class _FirstProcess:
    """The first process of the (outer) namespace: its end is the end of every other.

    bubblewrap names it in a line of JSON, and so does a second round inside the first, by the
    number that the process has there.
    """

    def __init__(self, report: BinaryIO, ways: Sequence[str]) -> None:
        lines = [report.readline() for _ in ways]
        pids = [json.loads(line)["child-pid"] for line in lines if line]
        self.inside = "".join(way.format(pid) for way, pid in zip(ways, pids, strict=False))
        self.handle = None
        with contextlib.suppress(ProcessLookupError):
            self.handle = os.pidfd_open(pids[0]) if pids else None

    def usage(self, device: int) -> tuple[int, int, int]:
        """Return bytes of memory, tasks, and bytes of open files of a device without a name."""
        memory = tasks = 0
        unlinked: dict[int, int] = {}
        with contextlib.suppress(OSError):  # it has not arrived inside yet, or has ended
            if os.stat(f"{self.inside}/proc").st_dev == os.stat("/proc").st_dev:
                return 0, 0, 0  # it still sees the host
            for folder in ("tmp", "dev/shm"):
                memory += _memory_folder_bytes(f"{self.inside}/{folder}")
            for name in filter(str.isdecimal, os.listdir(f"{self.inside}/proc")):
                with contextlib.suppress(OSError):  # one of them has just ended
                    used, threads = _process_usage(f"{self.inside}/proc/{name}")
                    memory, tasks = memory + used, tasks + threads
                    unlinked |= _unlinked_files(f"{self.inside}/proc/{name}/fd", device)
        return memory, tasks, sum(unlinked.values())

    def end(self) -> None:
        """Kill it, and wait until it and so all others are gone."""
        if self.handle is None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        gone, _, _ = select.select([self.handle], [], [], GRACE)
        os.close(self.handle)
        if not gone:
            raise SandboxError("sandbox: expected the end of a run that was killed, got none")


def _process_usage(folder: str) -> tuple[int, int]:
    """Return a process's bytes of memory, shared ones split among those who share, and threads."""
    with open(f"{folder}/stat", "rb") as file:
        facts = file.read().rpartition(b")")[2].split()
    threads, resident = int(facts[17]), int(facts[21]) * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(PermissionError), open(f"{folder}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024, threads
    return resident, threads


def _unlinked_files(folder: str, device: int) -> dict[int, int]:
    """Return the open files of a process that no folder shows any more: inode and bytes."""
    files = {}
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            facts = os.stat(f"{folder}/{name}")
            if facts.st_nlink == 0 and facts.st_dev == device:
                files[facts.st_ino] = max(facts.st_size, facts.st_blocks * 512)
    return files


def _memory_folder_bytes(folder: str) -> int:
    """Return the bytes of a memory file system; an empty file takes about one KiB of the kernel."""
    facts = os.statvfs(folder)
    used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    return used + (facts.f_files - facts.f_ffree) * 1024


def folder_bytes(folder: Path) -> float:
    """Return the size of a folder, infinite where it hides something (too deep, or locked)."""
    total = 0.0
    left = [(str(folder), 0)]
    while left:
        path, depth = left.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        total += max(facts.st_size, facts.st_blocks * 512, SMALLEST)
                        if entry.is_dir(follow_symlinks=False):
                            left.append((entry.path, depth + 1))
        except FileNotFoundError:
            continue
        except OSError:
            return math.inf
        if depth > DEEPEST:
            return math.inf
    return total


def _reached(memory: int, tasks: int, size: float, limits: Limits) -> str:
    """Return the limit that was reached, or ""."""
    if memory > limits.memory_bytes:
        return "memory_limit"
    if tasks > limits.processes:
        return "process_limit"
    return "output_limit" if size > limits.output_bytes else ""


def _drain(stream: BinaryIO, log: bytearray, most: int) -> None:
    """Take what a pipe holds and keep its end; a flood waits for the next time."""
    for _ in range(16):
        chunk = stream.read(65536)
        if not chunk:
            return
        log += chunk
        del log[:-most]


def _bury(process: subprocess.Popen, first: _FirstProcess | None) -> None:
    """Kill what is alive of a run and wait for its end."""
    if first is None or process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if first is not None:
        first.end()
    process.wait(GRACE)
