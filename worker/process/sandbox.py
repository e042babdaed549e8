"""The sandbox of a picture process: limits of the kernel, and a filter of system calls.

After `enter` the process has its memory and the descriptors that are open, and nothing else: it can
open no file and no socket, start no program and signal no other process.
"""

import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path

from tasks import core_dumps

MAX_DESCRIPTORS = 64
# Added to the address space of the process: stacks of threads, arenas, and holes between blocks.
SPARE_ADDRESSES = 512 << 20
# The kernel's out-of-memory killer prefers processes with more points, from -1000 to 1000.
OUT_OF_MEMORY_POINTS = 500

# <linux/prctl.h>
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
# <linux/seccomp.h>
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
RET_KILL, RET_ERRNO, RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
# Offsets in struct seccomp_data: the number of the call, the architecture, and the arguments, of 8
# bytes each, least significant first.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
# Instructions of classic BPF: <linux/filter.h>
LOAD, RETURN, JUMP_IF_EQUAL, JUMP_IF_SET = 0x20, 0x06, 0x15, 0x45
CLONE_THREAD = 0x00010000

# The system calls that a picture process may make, with their numbers on x86-64 and arm64
# (<asm/unistd_64.h>, <asm-generic/unistd.h>); None where the architecture has none. All work on
# memory, threads, time, or descriptors that are open already.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "poll": (7, None),
    "ppoll": (271, 73),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "exit": (60, 93),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "set_robust_list": (273, 99),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "getrusage": (98, 165),
}
# With other commands the kernel sends a signal to a process that the caller names (F_SETOWN).
FCNTL = (72, 25)
FCNTL_COMMANDS = (
    fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL
)  # fmt: skip
TGKILL = (234, 131)  # to itself alone: abort() uses it
CLONE = (56, 220)  # of threads alone
CLONE3 = (435, 435)  # refused as unknown: its arguments are in memory, and libraries then use clone
PRLIMIT64 = (302, 261)  # to read a limit, not to set one
# The machine's name, its place in the tuples above, its number in <linux/audit.h>, and the number
# of the call seccomp.
MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}


class Unsupported(Exception):
    """The system has no filter of system calls."""


def end_with(parent: int) -> None:
    """Let the kernel end this process when the thread of process `parent` that started it ends."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # The parent ended before.
        os._exit(0)


def subordinate_to(parent: int) -> None:
    """Let this process end with `parent`, and be the first that ends if memory is short.

    Signals that a terminal or a supervisor sends to all processes are left to the parent.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    end_with(parent)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OUT_OF_MEMORY_POINTS))
    except OSError:
        pass  # Without it the kernel chooses among all processes alike.


def enter(memory_bytes: int) -> str | None:
    """Lock this process up, with `memory_bytes` of addresses more than it has now.

    Returns None, or the reason why system calls can't be filtered here: the limits hold even so.
    """
    core_dumps.prevent()
    limit(resource.RLIMIT_AS, _address_space() + memory_bytes + SPARE_ADDRESSES)
    limit(resource.RLIMIT_NOFILE, MAX_DESCRIPTORS)
    limit(resource.RLIMIT_FSIZE, 0)
    try:
        _filter_system_calls()
    except Unsupported as reason:
        return str(reason)
    return None


def limit(kind: int, value: int) -> None:
    """Lower the limit `kind` to `value`, for good."""
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _address_space() -> int:
    """Return the size of this process's address space in bytes; 0 if it is unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _filter_system_calls() -> None:
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise Unsupported(f"no filter for {sys.platform} on {platform.machine()}")
    column, audit_number, seccomp = MACHINES[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Unsupported(f"prctl: {os.strerror(ctypes.get_errno())}")
    program = _program(column, audit_number)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, of 8 bytes each, and their address.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    flags = SECCOMP_FILTER_FLAG_TSYNC  # for the threads that libraries have started, too
    if libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, flags, header):
        raise Unsupported(f"seccomp: {os.strerror(ctypes.get_errno())}")


def _program(column: int, audit_number: int) -> bytes:
    """Return the filter as a program of classic BPF, struct sock_filter[].

    A call that is not allowed fails with EPERM.
    """
    allow = _instruction(RETURN, RET_ALLOW)
    refuse = _instruction(RETURN, RET_ERRNO | errno.EPERM)
    parts = [
        _instruction(LOAD, ARCHITECTURE),
        _instruction(JUMP_IF_EQUAL, audit_number, 1, 0),
        _instruction(RETURN, RET_KILL),
        _instruction(LOAD, NUMBER),
    ]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            parts += _if_called(number, [allow])
    parts += _if_called(CLONE3[column], [_instruction(RETURN, RET_ERRNO | errno.ENOSYS)])
    is_thread = _instruction(JUMP_IF_SET, CLONE_THREAD, 0, 1)
    parts += _if_called(CLONE[column], [*_argument(0), is_thread, allow, refuse])
    is_allowed = [
        _instruction(JUMP_IF_EQUAL, command, len(FCNTL_COMMANDS) - place, 0)
        for place, command in enumerate(FCNTL_COMMANDS)
    ]
    parts += _if_called(FCNTL[column], [*_argument(1), *is_allowed, refuse, allow])
    is_self = _instruction(JUMP_IF_EQUAL, os.getpid(), 0, 1)
    parts += _if_called(TGKILL[column], [*_argument(0), is_self, allow, refuse])
    # The third argument is the address of the new limit.
    is_zero, is_zero_too = (_instruction(JUMP_IF_EQUAL, 0, 0, skipped) for skipped in (3, 1))
    parts += _if_called(
        PRLIMIT64[column], [*_argument(2), is_zero, *_argument(2, 4), is_zero_too, allow, refuse]
    )
    return b"".join([*parts, refuse])


def _if_called(number: int, instructions: list[bytes]) -> list[bytes]:
    """Return `instructions` for the call `number`; others jump over them."""
    return [_instruction(JUMP_IF_EQUAL, number, 0, len(instructions)), *instructions]


def _argument(place: int, offset: int = 0) -> list[bytes]:
    """Return the instruction that loads four bytes of an argument of the call."""
    return [_instruction(LOAD, ARGUMENTS + 8 * place + offset)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("@HBBI", code, if_true, if_false, value)
