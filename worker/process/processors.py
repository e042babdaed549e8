"""The number of processors that this process may use."""

import math
import os
from pathlib import Path

# A container's quota, in microseconds: the time it may use and the period, or "max" for no limit.
# Source: "Control Group v2" in the Linux kernel's documentation, CPU interface files.
QUOTA = Path("/sys/fs/cgroup/cpu.max")


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
