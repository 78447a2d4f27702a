"""The doctor: canaries that try to leave the sandbox. It holds where none of them gets out.

An attempt is a function that runs inside: it returns what it reached, or raises ``OSError`` where a
wall stands. A bomb is larger than its limit and small for the machine. Where there is no sandbox
the same canaries do get out (a test sees to it), or they would prove nothing.

Shown in: book/instructor.md
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import semigen_lib
from semigen_lib.grading.sandbox import (
    OUTPUT,
    Limits,
    Outcome,
    Sandbox,
    SandboxError,
    library_mounts,
    python_mounts,
)
from semigen_lib.grading.watch import folder_bytes

__all__ = ["Finding", "examine_sandbox", "main"]

MIB = 2**20
LIMITS = Limits(
    wall_seconds=30.0,
    memory_bytes=256 * MIB,
    file_bytes=8 * MIB,
    output_bytes=16 * MIB,
    log_bytes=20_000,
    cpu_seconds=30,
    processes=64,
)
LATE = 5.0  # seconds after its wall limit that a run may still be there
NEW_USER = 0x10000000  # CLONE_NEWUSER
SEIZE = 0x4206  # a request of ptrace; it ends with the canary

Host = Mapping[str, Any]


class Finding(NamedTuple):
    """What one canary found.

    Attributes
    ----------
    name
        What was tried.
    held
        Whether the sandbox held.
    detail
        What stopped it, or what was reached.
    """

    name: str
    held: bool
    detail: str


def examine_sandbox(sandbox: Sandbox, quick: bool = False) -> list[Finding]:
    """Try to get out of a sandbox and say what came of it.

    Parameters
    ----------
    sandbox
        Of any level.
    quick
        Only the attempts, which take a single short run, and no bombs.
    """
    with _host() as host:
        findings = _examine_attempts(sandbox, host)
        if not quick:
            findings += [_examine_bomb(sandbox, name, host) for name in BOMBS]
    return findings


def main(arguments: list[str]) -> None:
    """Be the canary: make the attempts, or set off the bomb that is named."""
    name, host = arguments[0], json.loads(arguments[1])
    if name in BOMBS:
        BOMBS[name][0]()
        return
    found = {}
    for name, attempt in ATTEMPTS.items():
        try:
            found[name] = (False, attempt(host))
        except (OSError, AttributeError) as error:  # the second: this system has no such call
            found[name] = (True, str(error))
    sys.stdout.write(json.dumps(found))


# ---- what is out there to be reached ----


@contextlib.contextmanager
def _host() -> Iterator[Host]:
    """Set up a secret, two listening sockets and a process, and say where they are."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semigen-doctor-")))
        folder.chmod(0o755)  # walls have to keep it, not its mode
        (folder / "secret").write_text("secret")
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        unix, address = stack.enter_context(socket.socket(socket.AF_UNIX)), f"doctor-{os.getpid()}"
        unix.bind(f"\0{address}")
        unix.listen()
        os.environ["CANARY"] = "secret"
        stack.callback(os.environ.pop, "CANARY")
        sleeper = subprocess.Popen(["sleep", "600"])
        stack.callback(sleeper.wait)
        stack.callback(sleeper.kill)
        yield {
            "secret": str(folder / "secret"),
            "beside": _beside_the_package(),
            "port": port,
            "unix": address,
            "process": sleeper.pid,
        }


def _beside_the_package() -> list[str]:
    """Return what lies in the repository (book, tests, solutions) but not the interpreter."""
    package = Path(semigen_lib.__file__).parent
    if package.is_relative_to(sys.prefix):  # installed: the package's neighbours are packages
        return []
    places = [place for place in package.parent.iterdir() if place != package]
    return [str(place) for place in places if not Path(sys.prefix).is_relative_to(place)]


def _run(sandbox: Sandbox, name: str, host: Host, output: Path, limits: Limits) -> Outcome:
    """Run this module inside."""
    return sandbox.run(
        [sys.executable, "-m", "semigen_lib.grading.doctor", name, json.dumps(host)],
        mounts=[*python_mounts(), *library_mounts("split", None)],
        output=output,
        limits=limits,
        environment={},
    )


# ---- attempts ----


def _examine_attempts(sandbox: Sandbox, host: Host) -> list[Finding]:
    try:
        with tempfile.TemporaryDirectory(prefix="semigen-") as folder:
            outcome = _run(sandbox, "attempts", host, Path(folder), LIMITS)
        found = json.loads(outcome.log)
        return [Finding(name, *found[name]) for name in ATTEMPTS]
    except (SandboxError, ValueError, KeyError) as error:
        why = f"could not be tried: {error}"
        return [Finding(name, False, why) for name in ATTEMPTS]


def _libc(function: str, *arguments: int | bytes | None) -> int:
    """Call the C library and raise what it complains of."""
    library = ctypes.CDLL(None, use_errno=True)
    result = getattr(library, function)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _read_secret(host: Host) -> str:
    return f"read {Path(host['secret']).read_text()!r} from a folder of the host"


def _see_repository(host: Host) -> str:
    """Solutions and hidden checks lie beside the package."""
    found = [place for place in host["beside"] if os.path.exists(place)]
    if not found:
        raise FileNotFoundError("nothing of the repository is there")
    return f"found {len(found)} files and folders of the repository, as {found[0]}"


def _see_test_images(host: Host) -> str:
    package = Path(semigen_lib.__file__).parent
    found = [
        path.name for name in ("mnist", "judge") for path in (package / f"assets/{name}").iterdir()
    ]
    if not found:
        raise OSError("the folders of MNIST and the judge are empty")
    return f"found {found}"


def _write_outside(host: Host) -> str:
    Path(host["secret"]).with_name("written").write_text("written")
    return "wrote a file into a folder of the host"


def _write_programs(host: Host) -> str:
    places = [sys.prefix, sys.base_prefix, str(Path(semigen_lib.__file__).parent), "/"]
    found = [place for place in places if os.access(place, os.W_OK)]
    if not found:
        raise PermissionError("interpreter and library are read-only")
    return f"may write into {found}"


def _reach_network(host: Host) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("192.0.2.1", 53))  # looks for a way there and sends nothing
        return f"has a way out, from {udp.getsockname()[0]}"


def _reach_loopback(host: Host) -> str:
    with socket.create_connection(("127.0.0.1", host["port"]), timeout=2):
        return "reached a socket of the host's loopback"


def _reach_unix_socket(host: Host) -> str:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.connect(f"\0{host['unix']}")
        return "reached an abstract socket of the host"


def _read_environment(host: Host) -> str:
    text = Path(f"/proc/{host['process']}/environ").read_bytes()
    return f"read {len(text)} bytes of the environment of a process of the host"


def _see_environment(host: Host) -> str:
    """The grader's own variables may hold its secrets."""
    if "CANARY" not in os.environ:
        raise OSError("the variable is not there")
    return "saw a variable of the grader"


def _signal_process(host: Host) -> str:
    os.kill(host["process"], 0)
    return "may signal a process of the host"


def _trace_process(host: Host) -> str:
    _libc("ptrace", SEIZE, host["process"], None, None)
    return "traced a process of the host"


def _become_root(host: Host) -> str:
    os.setgroups([])
    os.setuid(0)
    return "is root, with root's powers"


def _nest_namespace(host: Host) -> str:
    _libc("unshare", NEW_USER)
    return "made a namespace of users, with all powers inside"


def _hide_memory(host: Host) -> str:
    os.close(os.memfd_create("canary"))
    return "made a file in memory that nothing counts"


ATTEMPTS: dict[str, Callable[[Host], str]] = {
    "read a secret": _read_secret,
    "read solutions": _see_repository,
    "read test images": _see_test_images,
    "write outside": _write_outside,
    "write programs": _write_programs,
    "network": _reach_network,
    "host loopback": _reach_loopback,
    "abstract socket": _reach_unix_socket,
    "processes of the host": _read_environment,
    "environment": _see_environment,
    "signal": _signal_process,
    "trace": _trace_process,
    "hidden memory": _hide_memory,
    "become root": _become_root,
    "nested namespace": _nest_namespace,  # the last: it changes who the process is
}


# ---- bombs ----


def _examine_bomb(sandbox: Sandbox, name: str, host: Host) -> Finding:
    _, check, limits = BOMBS[name]
    with tempfile.TemporaryDirectory(prefix="semigen-") as folder:
        try:
            outcome = _run(sandbox, name, host, Path(folder), limits)
        except SandboxError as error:
            return Finding(name, False, f"could not be tried: {error}")
        held = check(outcome, Path(folder))
    ended = f"{outcome.status} after {outcome.seconds:.1f} s"
    return Finding(name, held, ended)


def _many_processes() -> None:
    for _ in range(4 * LIMITS.processes):
        if os.fork() == 0:
            time.sleep(10)
            os._exit(0)


def _memory_of_children() -> None:
    """Four children stay below the limit that they break together."""
    children = []
    for _ in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            kept = bytearray(os.urandom(MIB) * 100)
            time.sleep(3)
            os._exit(len(kept) % 2)
    for child in children:
        os.waitpid(child, 0)


def _many_files() -> None:
    for index in range(12):
        Path(_output(), str(index)).write_bytes(bytes(4 * MIB))
        time.sleep(0.2)


def _left_behind() -> None:
    """A grandchild in a session of its own keeps a lock for as long as it lives."""
    file = os.open(Path(_output(), "lock"), os.O_CREAT | os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(5)
        os._exit(0)


def _no_end() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _output() -> str:
    return os.environ.get("SEMIGEN_OUT", OUTPUT)


def _was_stopped(outcome: Outcome, output: Path) -> bool:
    return outcome.status != "finished"


def _was_small(outcome: Outcome, output: Path) -> bool:
    return folder_bytes(output) <= 2 * LIMITS.output_bytes


def _is_alone(outcome: Outcome, output: Path) -> bool:
    with open(output / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return outcome.status == "finished"


def _was_in_time(outcome: Outcome, output: Path) -> bool:
    return outcome.status == "wall_limit" and outcome.seconds <= SHORT.wall_seconds + LATE


SHORT = replace(LIMITS, wall_seconds=1.0)
BOMBS: dict[str, tuple[Callable[[], None], Callable[[Outcome, Path], bool], Limits]] = {
    "too many processes": (_many_processes, _was_stopped, LIMITS),
    "memory over children": (_memory_of_children, _was_stopped, LIMITS),
    "too many files": (_many_files, _was_small, LIMITS),
    "process left behind": (_left_behind, _is_alone, LIMITS),
    "no end": (_no_end, _was_in_time, SHORT),
}


if __name__ == "__main__":
    main(sys.argv[1:])
