"""The sandbox: what students' code may try, as root's guest and as an ordinary user's.

Every case runs under a process that stands for the grader, so that the tests can be root and the
grader not. A case that tries to get out also runs without the sandbox, where it has to succeed:
otherwise it would prove nothing. Bombs are larger than their limit and small for the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from semigen_lib.grading import sandbox, seccomp
from semigen_lib.grading.sandbox import (
    Limits,
    Mount,
    Outcome,
    SandboxError,
    find_sandbox,
    library_mounts,
    python_mounts,
    read_output,
    unsafe_sandbox,
)

ROOT = Path(__file__).parents[1]
MIB = 2**20
NOBODY = 65534
LATE = 5.0
LIMITS = {
    "wall_seconds": 60.0,  # far from what a case takes, as the machine may be busy
    "memory_bytes": 256 * MIB,
    "file_bytes": 8 * MIB,
    "output_bytes": 16 * MIB,
    "log_bytes": 2000,
    "cpu_seconds": 60,
    "processes": 64,
}

try:
    find_sandbox()
    MISSING = ""
except SandboxError as problem:
    MISSING = str(problem)
needs_sandbox = pytest.mark.skipif(bool(MISSING), reason=MISSING or "there is one")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
fault = pytest.mark.fault("containment")

# ---- the process that stands for the grader ----

GRADER = """
import dataclasses, json, os, sys, tempfile
from pathlib import Path
from semigen_lib.grading.sandbox import Limits, Mount, Sandbox, python_mounts
for line in sys.stdin:
    asked = json.loads(line)
    output = Path(tempfile.mkdtemp())
    outcome = Sandbox(asked["level"]).run(
        [sys.executable, "-c", asked["code"]],
        mounts=python_mounts() + [Mount(s and Path(s), t) for s, t in asked["mounts"]],
        output=output,
        limits=Limits(**asked["limits"]),
        environment={"TOKEN": asked["token"]},
    )
    print(json.dumps([dataclasses.asdict(outcome), str(output)]), flush=True)
"""


class Grader:
    """A process of a user that runs code in the sandbox when asked."""

    def __init__(self, command: list[str], base: Path) -> None:
        self.base = base
        self.tried: dict[str, dict[str, str]] = {}
        (base / "runs").mkdir()
        (base / "runs").chmod(0o777)
        variables = {"PATH": os.environ["PATH"], "SECRET": "secret", "TMPDIR": str(base / "runs")}
        self.process = subprocess.Popen(
            [*command, "-c", GRADER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=base,  # -c looks for packages here first
            env=variables | {"PYTHONPATH": str(base / "repository")},
        )

    def ask(self, code: str, level: str, limits: dict, mounts: list) -> str:
        """Send code to be run and return the token that its processes carry."""
        library = [str(self.base / "repository/semigen_lib"), "/library/semigen_lib"]
        token = uuid.uuid4().hex
        asked = {"code": code, "level": level, "mounts": [library, *mounts], "token": token}
        self.process.stdin.write(json.dumps(asked | {"limits": LIMITS | limits}) + "\n")
        self.process.stdin.flush()
        return token

    def run(
        self,
        code: str,
        level: str = "bubblewrap",
        limits: dict | None = None,
        mounts: list[tuple[str | None, str]] | None = None,
    ) -> tuple[Outcome, Path]:
        """Run code and return how it ended and what it left; nothing else may be left."""
        token = self.ask(code, level, limits or {}, mounts or [])
        fields, output = json.loads(self.process.stdout.readline())
        if level == "bubblewrap":
            assert not alive(token), "a process of the run is still there"
            assert_plain(Path(output))
        return Outcome(**fields), Path(output)


def alive(token: str) -> list[int]:
    """Return the processes of this machine that carry a token in their environment."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"TOKEN={token}".encode() in Path(f"/proc/{name}/environ").read_bytes():
                found.append(int(name))
    return found


def assert_plain(folder: Path) -> None:
    """Only plain files and folders without special rights are left, not too deep."""
    for path in folder.rglob("*"):
        facts = path.lstat()
        assert stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode), path
        assert stat.S_IMODE(facts.st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert path.is_dir() or facts.st_nlink == 1, path
        assert len(path.relative_to(folder).parts) <= 9, path


def ordinary_python() -> list[str]:
    """Return the command of a Python that an ordinary user can run, skip if there is none."""
    if os.geteuid() != 0:
        return [sys.executable]
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # setpriv itself can still start what the user cannot: the interpreter has to reach itself.
    check = (
        "import os, sys; "
        "sys.exit(sys.version_info < (3, 10) or not os.access(sys.executable, os.X_OK))"
    )
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        line = ["setpriv", *user, python]
        if subprocess.run([*line, "-c", check], capture_output=True).returncode == 0:
            return line
    pytest.skip("an ordinary user cannot run any Python >= 3.10 of this machine")


@pytest.fixture(scope="session")
def grounds() -> Iterator[Path]:
    """A folder that everyone can read: a repository with solutions, submissions, a secret."""
    base = Path(tempfile.mkdtemp(prefix="semigen-test-", dir="/var/tmp"))
    base.chmod(0o755)
    shutil.copytree(
        ROOT / "semigen_lib",
        base / "repository/semigen_lib",
        ignore=shutil.ignore_patterns("assets"),
    )
    for name in ("repository/book/A1.ipynb", "submissions/bob/A1.ipynb", "secret"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("secret")
    yield base
    subprocess.run(["rm", "-rf", str(base)], check=True)


@pytest.fixture(scope="session", params=["root", "ordinary"])
def grader(request: pytest.FixtureRequest, grounds: Path) -> Iterator[Grader]:
    if MISSING:
        pytest.skip(MISSING)
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("the grader as root needs tests as root")
    command = [sys.executable] if request.param == "root" else ordinary_python()
    base = grounds / request.param
    base.mkdir()
    for name in ("repository", "submissions", "secret"):
        (base / name).symlink_to(grounds / name)
    grader = Grader(command, base)
    yield grader
    grader.process.stdin.close()
    grader.process.wait(30)


# ---- attempts to get out ----


class Attempt(NamedTuple):
    """A statement that gets out, raises where a wall stands; who gets out without walls."""

    name: str
    code: str
    control: str  # "any", "root" or "" for none


ATTEMPTS = [
    # Files of the host.
    Attempt("secret", "open(f'{BASE}/secret').read()", "any"),
    Attempt("solutions", "open(f'{BASE}/repository/book/A1.ipynb').read()", "any"),
    Attempt("other-submissions", "os.listdir(f'{BASE}/submissions')", "any"),
    Attempt("shadow", "open('/etc/shadow').read()", "root"),
    Attempt("passwd", "open('/etc/passwd').read()", "any"),
    Attempt("homes", "os.listdir('/home')", "any"),
    Attempt("root-of-first-process", "open(f'/proc/1/root{BASE}/secret').read()", ""),
    Attempt("root-of-parent", "open(f'/proc/{os.getppid()}/root{BASE}/secret').read()", "any"),
    Attempt("hard-link-to-secret", "os.link(f'{BASE}/secret', f'{OUT}/x')", "root"),
    Attempt("hard-link-to-library", "os.link(semigen_lib.__file__, f'{OUT}/y')", "root"),
    # Places to write.
    Attempt("write-host", "touch(f'{BASE}/runs/written')", "any"),
    Attempt("write-library", "touch(os.path.dirname(semigen_lib.__file__) + '/written')", "root"),
    Attempt("write-interpreter", "touch(f'{sys.prefix}/written')", "root"),
    Attempt("write-root", "touch('/written')", "root"),
    Attempt("write-system", "touch('/usr/lib/written')", "root"),
    Attempt("write-devices", "touch('/dev/written')", "root"),
    Attempt("kernel-settings", "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)", "root"),
    Attempt("remount", "libc('mount', None, b'/', None, 32 | 4096, None)", ""),
    # The network.
    Attempt("loopback", "socket.create_connection(('127.0.0.1', PORT), timeout=2)", "any"),
    Attempt("abstract-socket", "socket.socket(1).connect(f'\\0{NAME}')", "any"),
    Attempt("socket-file", "socket.socket(1).connect(f'{SOCKET}')", "any"),
    Attempt("udp-out", "socket.socket(2, 2).connect(('192.0.2.1', 53))", "network"),
    Attempt("udp6-out", "socket.socket(10, 2).connect(('2001:db8::1', 53))", ""),
    Attempt("tcp-out", "socket.create_connection(('192.0.2.1', 80), timeout=2)", ""),
    Attempt("dns", "socket.getaddrinfo('example.org', 80)", ""),
    Attempt("raw-packets", "socket.socket(17, 3)", "root"),
    Attempt("virtual-machine", "socket.socket(40, 1).connect((2, 1))", ""),
    # Other processes.
    Attempt("environment", "os.environ['SECRET']", ""),
    Attempt("environment-of-grader", "open(f'/proc/{GRADER}/environ').read()", "any"),
    Attempt("memory-of-grader", "open(f'/proc/{GRADER}/mem', 'rb')", "root"),
    Attempt("signal-to-grader", "os.kill(GRADER, 0)", "any"),
    Attempt("trace-grader", "libc('ptrace', 0x4206, GRADER, None, None)", "root"),
    # Rights.
    Attempt("namespace-of-users", "libc('unshare', 0x10000000)", "any"),
    Attempt("mount", "mount(b'x')", "root"),
    Attempt("become-root", "os.setgroups([]); os.setuid(0)", "root"),
    Attempt("device", "os.mknod(f'{OUT}/node', 0o20666, os.makedev(1, 1))", "root"),
    Attempt("raise-limits", "resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))", ""),
    Attempt("spare-me", "open('/proc/self/oom_score_adj', 'w', 1).write('-1000\\n')", ""),
    # Memory that nothing counts.
    Attempt("memory-file", "os.memfd_create('x')", "any"),
    Attempt("shared-memory", "libc('shmctl', libc('shmget', 0, 4096, 0o600), 0, None)", "any"),
    Attempt("io-uring", "libc('syscall', 425, 1, ctypes.create_string_buffer(120))", ""),
]
PRELUDE = """
import ctypes, os, resource, socket, sys
import semigen_lib
OUT = os.environ.get("SEMIGEN_OUT", "/out")
def libc(name, *arguments):
    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def mount(name):
    os.mkdir("m")
    libc("mount", name, b"m", b"tmpfs", 0, None)
    libc("umount", b"m")
def touch(path):
    open(path, "w").close()
    os.remove(path)
"""
TRY = """
for name, code in ATTEMPTS:
    if os.fork() == 0:  # what one attempt changes is not there for the next
        try:
            exec(code)
            print(f"{name} REACHED", flush=True)
        except (OSError, ValueError, KeyError) as error:
            print(f"{name} HELD {error}", flush=True)
        os._exit(0)
    os.wait()
"""


def try_all(grader: Grader, level: str) -> dict[str, str]:
    """Make every attempt in one run and return "REACHED" or "HELD ..." for each."""
    if level in grader.tried:
        return grader.tried[level]
    with (
        socket.create_server(("127.0.0.1", 0)) as internet,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as file,
    ):
        name, path = uuid.uuid4().hex, grader.base / "runs" / uuid.uuid4().hex
        abstract.bind(f"\0{name}")
        abstract.listen()
        file.bind(str(path))
        file.listen()
        path.chmod(0o777)
        facts = {"BASE": str(grader.base), "GRADER": grader.process.pid, "SOCKET": str(path)}
        facts |= {"PORT": internet.getsockname()[1], "NAME": name}
        facts["ATTEMPTS"] = [(attempt.name, attempt.code) for attempt in ATTEMPTS]
        lines = [f"{key} = {value!r}" for key, value in facts.items()]
        code = "\n".join([PRELUDE, *lines, TRY])
        outcome, _ = grader.run(code, level, limits={"log_bytes": 20_000})
    assert outcome.status == "finished", outcome
    grader.tried[level] = dict(line.split(" ", 1) for line in outcome.log.splitlines())
    return grader.tried[level]


@fault
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=[a.name for a in ATTEMPTS])
def test_no_attempt_gets_out(grader: Grader, attempt: Attempt) -> None:
    assert try_all(grader, "bubblewrap")[attempt.name].startswith("HELD")


@pytest.mark.parametrize(
    "attempt", [a for a in ATTEMPTS if a.control], ids=[a.name for a in ATTEMPTS if a.control]
)
def test_without_a_sandbox_it_does_get_out(grader: Grader, attempt: Attempt) -> None:
    ordinary = grader.base.name == "ordinary"
    if attempt.control == "root" and ordinary:
        pytest.skip("an ordinary user cannot do this anywhere")
    got = try_all(grader, "none")[attempt.name]
    if attempt.control == "network" and "unreachable" in got:
        pytest.skip("this machine has no network")
    if attempt.name == "namespace-of-users" and ordinary and "not permitted" in got:
        pytest.skip("this machine gives namespaces to bubblewrap only")
    assert got == "REACHED"


# ---- bombs ----


class Bomb(NamedTuple):
    """Code that goes too far, and how its run may end."""

    name: str
    code: str
    limits: dict
    statuses: set[str]


WALL, SHORT = {"wall_limit"}, {"wall_seconds": 1.0}
FILES = "open(f'/out/{i}', 'wb').write(bytes(4 * 2**20)); time.sleep(0.1)"
BOMBS = [
    Bomb("loop", "while True: pass", SHORT, WALL),
    Bomb("sleep-in-c", "ctypes.CDLL(None).sleep(1000)", SHORT, WALL),
    Bomb("ignores-signals", "ignore(); time.sleep(1000)", SHORT, WALL),
    Bomb("stops-itself", "os.kill(os.getpid(), signal.SIGSTOP)", SHORT, WALL),
    Bomb("computes", "while True: pass", {"cpu_seconds": 1}, {"failed"}),
    Bomb("processes", "for _ in range(8): fork()\ntime.sleep(20)", {}, {"process_limit"}),
    Bomb(
        "threads",
        "for _ in range(200): threading.Thread(target=time.sleep, args=(20,)).start()",
        {"memory_bytes": 2048 * MIB},  # stacks count as data
        {"process_limit"},
    ),
    Bomb("memory", "kept = bytearray(os.urandom(1) * (512 * 2**20))", {}, {"failed"}),
    Bomb(
        "memory-of-children",
        "for _ in range(4):\n"
        "    if fork() == 0: kept = os.urandom(2**20) * 100; time.sleep(20)\n"
        "time.sleep(20)",
        {},
        {"memory_limit"},
    ),
    Bomb(
        "memory-shared",
        "shared = mmap.mmap(-1, 400 * 2**20)\n"
        "for i in range(400): shared.write(bytes(2**20))\n"
        "time.sleep(20)",
        {},
        {"memory_limit"},
    ),
    Bomb(
        "memory-in-dev-shm",
        "for i in range(40): open(f'/dev/shm/{i}', 'wb').write(bytes(7 * 2**20))\ntime.sleep(20)",
        {},
        {"memory_limit", "failed"},
    ),
    Bomb(
        "memory-in-tmp",
        "for i in range(40): open(f'/tmp/{i}', 'wb').write(bytes(7 * 2**20))\ntime.sleep(20)",
        {},
        {"memory_limit", "failed"},
    ),
    Bomb(
        "empty-files-in-tmp",
        "for i in range(200_000): os.close(os.open(f'/tmp/{i}', os.O_CREAT))\ntime.sleep(20)",
        {"memory_bytes": 64 * MIB},
        {"memory_limit"},
    ),
    Bomb("disk", f"for i in range(100): {FILES}", {}, {"output_limit"}),
    Bomb("disk-at-once", "for i in range(5): " + FILES.split(";")[0], {}, {"output_limit"}),
    Bomb("one-large-file", "open('/out/x', 'wb').write(bytes(64 * 2**20))", {}, {"failed"}),
    Bomb("sparse-file", "open('/out/x', 'wb').truncate(2**40)", {}, {"failed"}),
    Bomb(
        "sparse-files",
        "for i in range(9): open(f'/out/{i}', 'wb').truncate(7 * 2**20)\ntime.sleep(20)",
        {},
        {"output_limit"},
    ),
    Bomb(
        "small-files",
        "for i in range(600): os.close(os.open(f'/out/{i}', os.O_CREAT))\ntime.sleep(20)",
        {"output_bytes": MIB},
        {"output_limit"},
    ),
    Bomb(
        "deep-folders",
        "os.chdir('/out')\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\ntime.sleep(20)",
        {},
        {"output_limit"},
    ),
    Bomb(
        "locked-folder",  # an ordinary grader cannot look inside and stops it, root can
        "os.mkdir('/out/d'); open('/out/d/x', 'w'); os.chmod('/out/d', 0); time.sleep(1)",
        {},
        {"output_limit", "finished"},
    ),
    Bomb(
        "files-without-a-name",
        "kept = []\n"
        "for i in range(12):\n"
        "    kept.append(open('/out/x', 'wb')); os.unlink('/out/x')\n"
        "    kept[-1].write(bytes(4 * 2**20)); kept[-1].flush(); time.sleep(0.1)\n"
        "time.sleep(20)",
        {},
        {"output_limit"},
    ),
    Bomb("flood-of-output", "sys.stdout.write('x' * 2**22 + 'END')", {}, {"finished"}),
    Bomb("closed-output", "os.close(1); os.close(2); time.sleep(0.3)", {}, {"finished"}),
    Bomb("kills-its-parent", "os.kill(os.getppid(), 9); time.sleep(0.3)", {}, {"finished"}),
    Bomb("child-left", "if fork() == 0: ignore(); time.sleep(1000)", {}, {"finished"}),
    Bomb(
        "daemon-left",
        "if fork() == 0:\n    os.setsid(); ignore()\n    if fork() == 0: time.sleep(1000)",
        {},
        {"finished"},
    ),
    Bomb(
        "stopped-child-left",
        "if fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(0.3)",
        {},
        {"finished"},
    ),
    Bomb("core-dump", "os.chdir('/out'); os.abort()", {}, {"failed"}),
    Bomb("links-in-output", "os.symlink('/etc/passwd', '/out/a'); os.symlink('/', '/out/b')", {},
         {"finished"}),
    Bomb("pipe-and-socket-in-output", "os.mkfifo('/out/a'); socket.socket(1).bind('/out/b')", {},
         {"finished"}),
    Bomb("twin-in-output", "open('/out/a', 'w'); os.link('/out/a', '/out/b')", {}, {"finished"}),
    Bomb("setuid-in-output", "open('/out/a', 'w'); os.chmod('/out/a', 0o6777)", {}, {"finished"}),
    Bomb("odd-names-in-output", r"open('/out/-rf\n;', 'w'); open(b'/out/\xff', 'w')", {},
         {"finished"}),
]  # fmt: skip
BOMB_PRELUDE = """
import ctypes, mmap, os, signal, socket, sys, threading, time
def fork():
    try:
        return os.fork()
    except OSError:
        return -1
def ignore():
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
"""


@fault
@pytest.mark.parametrize("bomb", BOMBS, ids=[bomb.name for bomb in BOMBS])
def test_every_bomb_is_bounded(grader: Grader, bomb: Bomb) -> None:
    outcome, output = grader.run(f"{BOMB_PRELUDE}\n{bomb.code}", limits=bomb.limits)
    limits = LIMITS | bomb.limits
    assert outcome.status in bomb.statuses, outcome
    assert outcome.seconds <= limits["wall_seconds"] + LATE
    assert outcome.peak_memory <= 2 * limits["memory_bytes"]  # between two looks
    assert len(outcome.log.encode()) <= limits["log_bytes"]
    left = [path for path in output.rglob("*") if path.is_file()]
    assert all(path.stat().st_size <= limits["file_bytes"] for path in left)
    assert sum(path.stat().st_blocks * 512 for path in left) <= 2 * limits["output_bytes"]
    assert not [path for path in left if path.name.startswith("core")]


def test_the_last_of_a_flood_is_kept(grader: Grader) -> None:
    outcome, _ = grader.run("print('x' * 2**20 + 'END')", limits={"log_bytes": 10})
    assert outcome.log == "xxxxxxEND\n"


@fault
def test_nothing_outlives_a_killed_grader(grounds: Path, grader: Grader) -> None:
    base = Path(tempfile.mkdtemp(dir=grounds))
    base.chmod(0o755)
    (base / "repository").symlink_to(grounds / "repository")
    victim = Grader(grader.process.args[:-2], base)
    code = f"{BOMB_PRELUDE}\nignore(); fork() or os.setsid(); time.sleep(100)"
    token = victim.ask(code, "bubblewrap", {}, [])
    wait_until(lambda: len(alive(token)) >= 4)  # bubblewrap's own, and two of the code
    time.sleep(0.5)
    victim.process.kill()
    victim.process.wait()
    wait_until(lambda: not alive(token))


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_without_a_sandbox_something_is_left(grader: Grader) -> None:
    code = next(bomb.code for bomb in BOMBS if bomb.name == "daemon-left")
    token = grader.ask(f"{BOMB_PRELUDE}\n{code}", "none", {}, [])
    grader.process.stdout.readline()
    left = alive(token)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left


# ---- mounts and the interface ----


def test_later_mounts_lie_over_earlier_ones_and_over_tmp(grader: Grader) -> None:
    """A memory file system over an earlier mount would hide it."""
    book, secret = str(grader.base / "repository/book"), str(grader.base / "secret")
    mounts = [(book, "/in/book"), (secret, "/tmp/here/x"), (None, "/in/book")]
    code = "import os; print(os.listdir('/in/book'), open('/tmp/here/x').read())"
    outcome, _ = grader.run(code, mounts=mounts)
    assert outcome.log == "[] secret\n", outcome


@needs_sandbox
@needs_root
def test_an_interpreter_in_a_locked_home_works(grounds: Path) -> None:
    """Root's own Python may lie where the user of the run cannot go."""
    base = Path(tempfile.mkdtemp(dir=grounds))
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    (base / "repository").symlink_to(grounds / "repository")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(base / "venv")], check=True)
    grader = Grader([str(base / "venv/bin/python")], base)
    outcome, _ = grader.run("import os, sys; print(sys.prefix, os.getuid())")
    grader.process.stdin.close()
    assert outcome.log == f"{base}/venv {sandbox.FIRST_UID}\n", outcome


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def run_here(
    level: str, code: str, output: Path, mounts: list[Mount], **options: object
) -> Outcome:
    mounts = [*python_mounts(), *mounts]
    limits = Limits(**LIMITS)
    command = [sys.executable, "-c", code]
    environment = options.pop("environment", {})
    return sandbox.Sandbox(level).run(
        command, mounts=mounts, output=output, limits=limits, environment=environment, **options
    )


levels = pytest.mark.parametrize("level", [pytest.param("bubblewrap", marks=needs_sandbox), "none"])


@levels
def test_a_command_finds_inputs_output_and_variables(
    level: str, output: Path, tmp_path: Path
) -> None:
    (tmp_path / "x").write_text("asked")
    tmp_path.chmod(0o700)
    code = (
        "import os; text = open(os.environ['PLACE'] + '/x').read(); "
        "open(os.environ['RESULT'], 'w').write(text + os.environ['WORD']); print('said')"
    )
    variables = {"PLACE": "/in/deep", "RESULT": "/out/result", "WORD": "/input"}
    mounts = [Mount(tmp_path / "x", "/in/deep/x")]
    outcome = run_here(level, code, output, mounts, environment=variables)
    assert (outcome.status, outcome.returncode, outcome.log) == ("finished", 0, "said\n")
    assert read_output(output, "result", 100) == b"asked/input"


@levels
@pytest.mark.parametrize(
    ("code", "status", "returncode"),
    [
        ("raise SystemExit(7)", "failed", 7),
        ("import os; os._exit(0)", "finished", 0),
        ("import os; os.kill(os.getpid(), 9)", "failed", 137),
    ],
    ids=["exit", "early", "signal"],
)
def test_the_return_code_is_the_commands(
    level: str, code: str, status: str, returncode: int, output: Path
) -> None:
    outcome = run_here(level, code, output, [])
    assert (outcome.status, outcome.returncode) == (status, returncode)


@needs_sandbox
def test_our_own_mistake_is_not_the_students(output: Path) -> None:
    with pytest.raises(SandboxError, match="expected to start a command, got .*nowhere"):
        run_here("bubblewrap", "pass", output, [Mount(Path("/nowhere"), "/in/x")])


@needs_sandbox
@pytest.mark.parametrize("data", ["mnist", "split"])
def test_the_library_stands_alone(data: str, output: Path, tmp_path: Path) -> None:
    (tmp_path / "course").write_text("split")
    code = (
        "import json, os, semigen_lib; p = os.path.dirname(semigen_lib.__file__); "
        "print(json.dumps([p, os.listdir('/library'), os.listdir(p + '/assets/mnist'), "
        "os.listdir(p + '/assets/judge'), open('/in/course.safetensors').read()]))"
    )
    outcome = run_here("bubblewrap", code, output, library_mounts(data, tmp_path / "course"))
    package, library, mnist, judge, course = json.loads(outcome.log)
    assert (package, library, course) == ("/library/semigen_lib", ["semigen_lib"], "split")
    assert bool(mnist) == bool(judge) == (data == "mnist")


@needs_sandbox
def test_an_installed_library_is_not_seen_a_second_time(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package below the interpreter's prefix, its images would be there after all."""
    monkeypatch.setattr(sys, "prefix", str(ROOT))
    mounts = library_mounts("split", None)
    code = f"import os; print(os.listdir({str(ROOT / 'semigen_lib')!r}))"
    assert run_here("bubblewrap", code, output, mounts).log == "[]\n"


def test_python_mounts_hold_no_home_and_no_repository() -> None:
    targets = [Path(mount.target) for mount in python_mounts()]
    needed = (sys.prefix, sys.base_prefix, os.path.realpath(sys.executable))
    assert all(any(Path(place).is_relative_to(t) for t in targets) for place in needed)
    kept_out = (ROOT / "book", Path.home() / "secret", Path("/etc/shadow"), Path("/tmp/x"))
    assert not [p for p in kept_out if any(p.is_relative_to(t) for t in targets)]


def test_read_output_takes_plain_files_only(output: Path) -> None:
    (output / "file").write_bytes(b"12345")
    assert read_output(output, "file", 5) == b"12345"
    (output / "link").symlink_to(output / "file")
    os.mkfifo(output / "pipe")
    (output / "folder").mkdir()
    for name in ("link", "pipe", "folder", "missing"):
        with pytest.raises(SandboxError, match=f"^{name}: expected a "):
            read_output(output, name, 5)
    with pytest.raises(SandboxError, match="at most 4 bytes"):
        read_output(output, "file", 4)


def test_a_missing_tool_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"expected bubblewrap .*apt install.*, got no bwrap"):
        find_sandbox()


def test_a_sandbox_that_cannot_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bwrap", "prlimit", "setpriv"):
        (tmp_path / name).write_text("#!/bin/sh\necho bwrap: setting up uid map: denied\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SandboxError, match=r"^sandbox: .*uid map: denied.*AppArmor") as error:
        find_sandbox()
    assert "\n" not in str(error.value)


def test_an_unknown_machine_has_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(SandboxError, match="expected a machine of x86_64, aarch64, got pdp11"):
        seccomp.seccomp_filter()


def test_no_sandbox_is_named_so() -> None:
    assert unsafe_sandbox().level == "none"


@needs_sandbox
def test_walls_cost_little(output: Path) -> None:
    times = {
        level: min(run_here(level, "pass", output, []).seconds for _ in range(5))
        for level in ("bubblewrap", "none")
    }
    assert times["bubblewrap"] - times["none"] < 0.3, times
