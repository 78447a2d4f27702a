"""The sandbox: a command that sees its inputs, the library and one folder of its own, and no more.

Inside, ``/in`` holds the inputs, ``/out`` is the only folder that outlives the run, ``/library``
holds this package. bubblewrap takes away the rest: other files, the network, other processes. The
limits of a single process are the kernel's; sums over the whole tree are watched from outside
(``watch``). After :meth:`Sandbox.run` nothing of the run is alive.

No limit of processes binds root, so a run that root starts becomes a user of its own first. That
user may not reach what root can (an interpreter below root's home), hence two rounds of bubblewrap
there: the first, as root, only gathers the mounts in one place.

Shown in: book/instructor.md
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import semigen_lib
from semigen_lib.grading.seccomp import seccomp_filter
from semigen_lib.grading.watch import DEEPEST, Limits, Outcome, SandboxError, watch

__all__ = [
    "COURSE_DATA",
    "INPUTS",
    "LIBRARY",
    "OUTPUT",
    "Limits",
    "Mount",
    "Outcome",
    "Sandbox",
    "SandboxError",
    "find_sandbox",
    "library_mounts",
    "python_mounts",
    "read_output",
    "unsafe_sandbox",
]

INPUTS, OUTPUT, LIBRARY = "/in", "/out", "/library"
COURSE_DATA = "/in/course.safetensors"
"""Where :func:`library_mounts` puts the split of a course, for ``SEMIGEN_COURSE_DATA``."""

SCRATCH = "/tmp"
SCRATCH_BYTES = 256 * 2**20  # of /tmp, and again of /dev/shm; both count as memory
STAGE = "/srv"  # the first round's place; it exists everywhere
WAYS = ("/proc/{}/root", f"{STAGE}/proc/{{}}/root")  # to the first process of either round
SPARE = 16  # processes between the watcher's limit and the kernel's, so that the first is seen
FIRST_UID = 60600  # slot 0; between the users of people and those of systemd
PRLIMIT = "/usr/bin/prlimit"  # inside
TRIAL = Limits(20.0, 2**30, file_bytes=2**20, output_bytes=2**20, log_bytes=2000, cpu_seconds=10)


@dataclass(frozen=True)
class Mount:
    """A file or folder of the host that can be read inside; later ones lie over earlier ones.

    Attributes
    ----------
    source
        Readable for everyone. None: an empty folder, to hide what lies there.
    target
        Absolute path inside.
    """

    source: Path | None
    target: str


@dataclass(frozen=True)
class Sandbox:
    """Runs commands.

    Attributes
    ----------
    level
        "bubblewrap", or "none": limits of time and of single processes, and no walls at all.
    """

    level: str

    def run(
        self,
        command: Sequence[str],
        *,
        mounts: Sequence[Mount],
        output: Path,
        limits: Limits,
        environment: Mapping[str, str],
        slot: int = 0,
    ) -> Outcome:
        """Run a command to its end or to its first limit, and leave nothing of it alive.

        Parameters
        ----------
        command
            Words, with paths as they are inside.
        mounts
            What it can read.
        output
            An existing folder of this run alone: the command's ``/out``. Afterwards it holds plain
            files and folders only; links, pipes and devices are gone.
        limits
            Where it ends.
        environment
            Added to the few variables that are always set.
        slot
            Runs at the same time need different ones, as limits of processes count per user.

        Raises
        ------
        SandboxError
            If the command could not be started.
        """
        output.chmod(0o700)
        run = _run_bare if self.level == "none" else _run_walled
        try:
            return run(command, mounts, output, limits, environment, slot)
        finally:
            _leave_plain_files(output)


def find_sandbox() -> Sandbox:
    """Return the sandbox of this machine, once it has run a command.

    Raises
    ------
    SandboxError
        If there is none; one line that says what to install or to allow.
    """
    tools = ["bwrap", "prlimit", *(["setpriv"] if os.geteuid() == 0 else [])]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        wanted = "bubblewrap and util-linux (apt install bubblewrap)"
        raise SandboxError(f"sandbox: expected {wanted}, got no {', '.join(missing)}")
    sandbox = Sandbox("bubblewrap")
    problem = ""
    with tempfile.TemporaryDirectory(prefix="semigen-") as folder:
        python = [sys.executable, "-c", "pass"]
        mounts, output = python_mounts(), Path(folder)
        try:
            outcome = sandbox.run(
                python, mounts=mounts, output=output, limits=TRIAL, environment={}
            )
        except SandboxError as error:
            problem = str(error)
        else:
            problem = "" if outcome.status == "finished" else outcome.log.strip() or outcome.status
    if problem:
        last = problem.splitlines()[-1]
        hint = "needs bubblewrap >= 0.8; on Ubuntu >= 23.10 also its AppArmor profile"
        raise SandboxError(f"sandbox: expected bubblewrap to run Python, got {last} ({hint})")
    return sandbox


def unsafe_sandbox() -> Sandbox:
    """Return no sandbox at all, for machines without one; only where that is asked for."""
    return Sandbox("none")


def python_mounts() -> list[Mount]:
    """Return what this interpreter needs: itself, its packages, the loader and its libraries."""
    system = ("/usr/lib", "/usr/lib64", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
    places = [Path(place) for place in (*system, sys.base_prefix, sys.prefix)]
    # A venv may lead to its base over links, so both names of a place have to work inside.
    names = dict.fromkeys(str(path) for place in places for path in (place, place.resolve()))
    return [Mount(Path(name), name) for name in names if os.path.exists(name)]


def library_mounts(data: str, course_data: Path | None) -> list[Mount]:
    """Return this package and nothing beside it: no solutions, secrets or other submissions.

    Parameters
    ----------
    data
        "mnist": the package's MNIST, whole. "split": no MNIST and no judge, so that hidden labels
        and test images do not exist inside.
    course_data
        A file to be seen at ``COURSE_DATA``.
    """
    package = Path(semigen_lib.__file__).parent
    mounts = [Mount(package, f"{LIBRARY}/semigen_lib")]
    if package.is_relative_to(sys.prefix):  # installed: python_mounts() shows it a second time
        mounts.append(Mount(None, str(package)))
    if data == "split":
        hidden = ("mnist", "judge")
        mounts += [Mount(None, f"{LIBRARY}/semigen_lib/assets/{name}") for name in hidden]
    if course_data is not None:
        mounts.append(Mount(course_data, COURSE_DATA))
    return mounts


def read_output(output: Path, name: str, most: int) -> bytes:
    """Return a file that a run left.

    Parameters
    ----------
    output
        The run's output folder.
    name
        Path below it.
    most
        Bytes; a larger file is refused unread.

    Raises
    ------
    SandboxError
        If it is missing, too large or no plain file. A link is not followed, a pipe not waited for.
    """
    try:
        handle = os.open(output / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise SandboxError(f"{name}: expected a file, got {error.strerror}") from None
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise SandboxError(f"{name}: expected a plain file, got something else")
        if facts.st_size > most:
            raise SandboxError(f"{name}: expected at most {most} bytes, got {facts.st_size}")
        with open(handle, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(handle)


# ---- with bubblewrap ----


def _run_walled(
    command: Sequence[str],
    mounts: Sequence[Mount],
    output: Path,
    limits: Limits,
    environment: Mapping[str, str],
    slot: int,
) -> Outcome:
    """Run a command with bubblewrap's walls around it."""
    with contextlib.ExitStack() as stack:
        bytecode = stack.enter_context(tempfile.TemporaryFile())
        bytecode.write(seccomp_filter())
        bytecode.seek(0)
        reading, writing = os.pipe()
        report = stack.enter_context(open(reading, "rb"))
        told = [stack.enter_context(open(end, "wb")) for end in (writing, os.dup(writing))]
        before: list[str] = []
        if os.geteuid() == 0:
            uid = FIRST_UID + slot
            os.chown(output, uid, uid)
            stack.callback(os.chown, output, 0, 0)
            before, mounts, inner_output = _gather(mounts, output, uid, told[0].fileno())
        else:
            inner_output = str(output.absolute())
        line = [
            *before,
            *_walls(told[1].fileno(), bytecode.fileno()),
            *_mounted(mounts),
            *("--bind", inner_output, OUTPUT, "--remount-ro", "/", "--chdir", SCRATCH, "--"),
            *_limited(limits),
            *command,
        ]
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_variables(SCRATCH, LIBRARY) | dict(environment),
            pass_fds=[file.fileno() for file in (*told, bytecode)],
            start_new_session=True,
        )
        with process:
            for file in told:
                file.close()
            return watch(process, report, WAYS if before else WAYS[:1], limits, output)


def _gather(
    mounts: Sequence[Mount], output: Path, uid: int, report: int
) -> tuple[list[str], list[Mount], str]:
    """Return the first round's command, the mounts as it offers them, and the output folder.

    It has a namespace of processes too. The second round belongs to another user, so that no signal
    of the first would reach it when the grader is killed; the end of a namespace does.
    """
    staged, binds = [], []
    for index, mount in enumerate(mounts):
        place = f"{STAGE}/{index}"
        if mount.source is not None:
            binds += ["--ro-bind", str(mount.source.absolute()), place]
        staged.append(Mount(mount.source and Path(place), mount.target))
    place = f"{STAGE}/output"
    user = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all"]
    line = [
        *(_tool("bwrap"), "--die-with-parent", "--unshare-pid", "--json-status-fd", str(report)),
        *("--dev-bind", "/", "/", "--tmpfs", STAGE, "--proc", f"{STAGE}/proc"),
        *(*binds, "--bind", str(output.absolute()), place, "--"),
        *(_tool("setpriv"), *user, "--inh-caps=-all", "--no-new-privs", "--"),
    ]
    return line, staged, place


def _walls(report: int, bytecode: int) -> list[str]:
    """Return the options of bubblewrap that do not depend on the run, its own folders first."""
    spaces = [f"--unshare-{name}" for name in ("user", "ipc", "pid", "net", "uts", "cgroup-try")]
    size = str(SCRATCH_BYTES)
    return [
        *(_tool("bwrap"), "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *(*spaces, "--disable-userns", "--hostname", "sandbox"),
        *("--json-status-fd", str(report), "--seccomp", str(bytecode)),
        *("--perms", "0700", "--size", size, "--tmpfs", SCRATCH, "--proc", "/proc"),
        *("--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
    ]


def _mounted(mounts: Sequence[Mount]) -> list[str]:
    """Return the mounts as options of bubblewrap, in their order."""
    options = ["--ro-bind", _tool("prlimit"), PRLIMIT]
    for mount in mounts:
        if mount.source is None:
            options += ["--perms", "0555", "--tmpfs", mount.target, "--remount-ro", mount.target]
        else:
            options += ["--ro-bind", str(mount.source.absolute()), mount.target]
    return options


def _limited(limits: Limits) -> list[str]:
    """Return the command that gives a process its limits.

    It runs inside the namespace of users: outside of it, all that the user runs would count.
    """
    return [
        PRLIMIT,
        f"--data={limits.memory_bytes}",
        f"--fsize={limits.file_bytes}",
        f"--nofile={limits.open_files}",
        f"--cpu={limits.cpu_seconds}",
        f"--nproc={limits.processes + SPARE}",
        "--core=0",
        "--",
    ]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"sandbox: expected the command {name}, got none")
    return path


def _variables(home: str, library: str) -> dict[str, str]:
    """Return the whole environment of a run, before what its caller adds."""
    return {
        "HOME": home,
        "TMPDIR": home,
        "USER": "student",
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": library,
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "2",
    }


def _leave_plain_files(output: Path) -> None:
    """Remove what is neither a plain file nor a folder, or too deep; reset every mode."""
    left = [(str(output), 0)]
    while left:
        path, depth = left.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                facts = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode) and depth < DEEPEST:
                    os.chmod(entry.path, 0o700)
                    left.append((entry.path, depth + 1))
                elif stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
                    os.chmod(entry.path, 0o600)
                else:  # rm goes down any number of folders
                    subprocess.run(["rm", "-rf", "--", entry.path], check=True)


# ---- without ----

_BARE = """
import json, os, resource, sys
for name, value in json.loads(sys.argv[1]).items():
    which = getattr(resource, name, None)
    if which is not None:
        resource.setrlimit(which, (value, value))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _run_bare(
    command: Sequence[str],
    mounts: Sequence[Mount],
    output: Path,
    limits: Limits,
    environment: Mapping[str, str],
    slot: int,
) -> Outcome:
    """Run a command in this machine as it is, its inputs linked into a folder of their own."""
    rlimits = {
        "RLIMIT_DATA": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_CORE": 0,
    }
    with tempfile.TemporaryDirectory(prefix="semigen-", ignore_cleanup_errors=True) as folder:
        inputs, home = Path(folder, "in"), Path(folder, "home")
        home.mkdir()
        for mount in mounts:
            if mount.source is not None and mount.target.startswith(f"{INPUTS}/"):
                link = inputs / mount.target.removeprefix(f"{INPUTS}/")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(mount.source.absolute())

        def outside(text: str) -> str:
            for name, place in ((INPUTS, inputs), (OUTPUT, output.absolute())):
                if text == name or text.startswith(f"{name}/"):
                    return f"{place}{text.removeprefix(name)}"
            return text

        places = {"SEMIGEN_IN": INPUTS, "SEMIGEN_OUT": OUTPUT}
        variables = _variables(str(home), str(Path(semigen_lib.__file__).parents[1]))
        added = {name: outside(text) for name, text in (places | dict(environment)).items()}
        process = subprocess.Popen(
            [sys.executable, "-c", _BARE, json.dumps(rlimits), *map(outside, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables | added,
            cwd=home,
            start_new_session=True,
        )
        with process:
            return watch(process, None, (), limits, output)
