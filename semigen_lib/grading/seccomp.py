"""A filter of system calls for the sandbox: memory that no sum of processes shows, and debuggers.

Shared memory of System V and of ``memfd_create`` belongs to no process and to no mounted folder,
so neither a limit of a process nor a watcher of folders would see it grow. The other calls are
doors into the kernel that no assignment needs.

Shown in: book/instructor.md
"""

from __future__ import annotations

import platform
import struct

__all__ = ["seccomp_filter"]

# Per machine: the kernel's number of the architecture, and of the refused calls, in this order:
# memfd_create, memfd_secret, shmget, msgget; ptrace, process_vm_readv, process_vm_writev;
# io_uring_setup (its calls pass by a filter), userfaultfd, bpf, perf_event_open; add_key,
# request_key, keyctl.
CALLS = {
    "x86_64": (
        0xC000003E,
        (319, 447, 29, 68, 101, 310, 311, 425, 323, 321, 298, 248, 249, 250),
    ),
    "aarch64": (
        0xC00000B7,
        (279, 447, 194, 186, 117, 270, 271, 425, 282, 280, 241, 217, 218, 219),
    ),
}
X32 = 0x40000000  # the same calls of x86-64 under a second set of numbers

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # the second: "operation not permitted"


def seccomp_filter() -> bytes:
    """Return the filter of this machine as the kernel's bytecode, empty for an unknown machine."""
    if platform.machine() not in CALLS:
        return b""
    architecture, refused = CALLS[platform.machine()]
    count = len(refused)
    # (operation, jump if true, jump if false, value); jumps skip that many instructions.
    program = [
        (LOAD, 0, 0, 4),  # the architecture of the call
        (EQUAL, 0, count + 3, architecture),
        (LOAD, 0, 0, 0),  # its number
        (AT_LEAST, count + 1, 0, X32),
        *((EQUAL, count - index, 0, number) for index, number in enumerate(refused)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
