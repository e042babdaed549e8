"""Prevention of core dumps: the memory of a process holds clear pictures and credentials."""

import ctypes
import os
import resource
import sys

PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def prevent() -> None:
    """Make this process, and those that it forks, leave no core dump when they crash.

    The limit of size alone would not do: Linux ignores it where dumps are piped to a program,
    core(5). Raises OSError if the system refuses, which it does not do to a process that asks for
    less.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")
