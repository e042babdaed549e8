"""How many processors this process may use."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of use and of time, or "max"


def available(quota: Path = QUOTA) -> int:
    """Those that the scheduler gives it, but no more than its container's quota, rounded up."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        use, period = quota.read_text().split()
        return max(1, min(count, math.ceil(int(use) / int(period))))
    except (OSError, ValueError):
        return count
