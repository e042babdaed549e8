"""Prevention of core dumps: the memory of a process holds originals and credentials."""

import ctypes
import os
import resource
import sys

PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def prevent() -> None:
    """Prevent core dumps of this process and of those that it forks.

    RLIMIT_CORE alone does not suffice: Linux ignores it where dumps are piped to a program,
    core(5). Raises OSError if the system refuses. It does not refuse a process that lowers its
    own limits.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")
