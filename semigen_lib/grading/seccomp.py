"""A filter of system calls for the sandbox: memory that no sum shows, sockets beside the network.

Shared memory of System V and of ``memfd_create`` belongs to no process and to no mounted folder,
so neither a limit of a process nor a watcher of folders would see it grow. Sockets of a virtual
machine (vsock) lead to its host whatever the namespace of the network. The other calls are doors
into the kernel that no assignment needs.

Shown in: book/instructor.md
"""

from __future__ import annotations

import platform
import struct

from semigen_lib.grading.watch import SandboxError

__all__ = ["seccomp_filter"]

# Per machine: numbers of the architecture, of the call socket, and of the refused calls:
# memfd_create, memfd_secret, shmget, msgget; ptrace, process_vm_readv, process_vm_writev;
# io_uring_setup (its calls pass by a filter), userfaultfd, bpf, perf_event_open; add_key,
# request_key, keyctl.
CALLS = {
    "x86_64": (
        0xC000003E,
        41,
        (319, 447, 29, 68, 101, 310, 311, 425, 323, 321, 298, 248, 249, 250),
    ),
    "aarch64": (
        0xC00000B7,
        198,
        (279, 447, 194, 186, 117, 270, 271, 425, 282, 280, 241, 217, 218, 219),
    ),
}
FAMILIES = (1, 2, 10, 16)  # of sockets that remain: unix, internet 4 and 6, netlink
X32 = 0x40000000  # the same calls of x86-64 under a second set of numbers

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # the second: "operation not permitted"


def seccomp_filter() -> bytes:
    """Return the filter of this machine as the kernel's bytecode.

    Raises
    ------
    SandboxError
        If the numbers of this kind of machine are not known.
    """
    machine = platform.machine()
    if machine not in CALLS:
        raise SandboxError(f"sandbox: expected a machine of {', '.join(CALLS)}, got {machine}")
    architecture, socket, refused = CALLS[machine]
    # (operation, where to go if true, if false, value); names stand for the two ends.
    program: list[tuple[int, int | str, int | str, int]] = [
        (LOAD, 0, 0, 4),  # the architecture of the call
        (EQUAL, 0, "refuse", architecture),
        (LOAD, 0, 0, 0),  # its number
        (AT_LEAST, "refuse", 0, X32),
        *((EQUAL, "refuse", 0, number) for number in refused),
        (EQUAL, 0, "allow", socket),
        (LOAD, 0, 0, 16),  # its first argument
        *((EQUAL, "allow", 0, family) for family in FAMILIES),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    ends = {"refuse": len(program) - 2, "allow": len(program) - 1}

    def skip(index: int, to: int | str) -> int:
        return to if isinstance(to, int) else ends[to] - index - 1

    return b"".join(
        struct.pack("=HBBI", operation, skip(index, yes), skip(index, no), value)
        for index, (operation, yes, no, value) in enumerate(program)
    )
