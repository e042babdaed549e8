"""The processors and the memory that this process may use, and the picture processes for them."""

import math
import os
from pathlib import Path

# A container's quota, in microseconds: the time it may use and the period, or "max" for no limit.
# Source: "Control Group v2" in the Linux kernel's documentation, CPU interface files.
QUOTA = Path("/sys/fs/cgroup/cpu.max")
# A container's limit of memory in bytes, or "max" for none. Source: memory interface files there.
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")

PROCESSES_A_PROCESSOR = 2  # picture processes for each processor: half of them wait for detections
MEMORY_A_PROCESS = 512 << 20  # bytes; a process needs more only for the largest pictures
# Bytes for a worker with its model and pictures of a camera. The chart refuses a limit below it.
MINIMUM_MEMORY = 10**9


def available(quota: Path = QUOTA) -> int:
    """Return the number of processors from the scheduler, at most the container's `quota`.

    A fraction of a processor counts as a whole one.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        used, period = quota.read_text().split()
        return max(1, min(count, math.ceil(int(used) / int(period))))
    except (OSError, ValueError):
        return count


def memory(limit: Path = MEMORY_LIMIT) -> int:
    """Return the bytes of the machine's memory, at most the container's `limit`."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(installed, int(limit.read_text()))
    except (OSError, ValueError):
        return installed


def picture_processes() -> int:
    """Return the number of picture processes that suit the processors and the memory.

    It is 0 on systems without files in memory, by which a worker shares pictures with them.
    """
    if not hasattr(os, "memfd_create"):
        return 0
    by_memory = memory() // MEMORY_A_PROCESS
    return max(1, min(available() * PROCESSES_A_PROCESSOR, by_memory))
