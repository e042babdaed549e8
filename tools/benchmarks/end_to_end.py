"""The throughput of one worker, compared with that of its detector alone.

The benchmark uses real Redis, a real store, one ``veil worker`` and JPEGs of 1 MP. `detector_bound`
is the throughput of the detector in another process on the decoded pictures, with the same settings
and threads. Rounds of both alternate, so that other load on the machine affects both. PICTURES is
the number per round, ROUNDS that of the rounds.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.benchmarks.harness import alone, machine, pictures
from tools.benchmarks.harness.alone import Spent
from tools.local import stack
from tools.local.stack import Stack
from worker.settings import WorkerSettings

PICTURES, ROUNDS = 100, 5
MEGAPIXELS = 1.0
WARM_UP = 24  # pictures; the first ones of a process compile the graphs
LIMIT_SECONDS = 300.0


def run() -> None:
    """Print pictures per second of both, their ratio, and processor seconds per picture."""
    count, rounds = (
        int(os.environ.get("PICTURES") or PICTURES),
        int(os.environ.get("ROUNDS") or ROUNDS),
    )
    with stack.started() as running:
        figures = measured(running, wanted(running, count), rounds)
    print(json.dumps({"bench": "end_to_end", **figures}), flush=True)
    table = Table(
        "pictures/s",
        "detector alone",
        "ratio",
        "processor seconds a picture: worker",
        "store",
        "Redis",
        "alone",
    )
    cpu = figures["cpu_seconds_a_picture"]
    table.add_row(
        f"{figures['pictures_per_second']:.2f}",
        f"{figures['detector_bound']:.2f}",
        f"{figures['ratio']:.3f}",
        *(f"{cpu[name]:.4f}" for name in ("worker", "store", "redis", "detector_alone")),
    )
    Console(stderr=True, width=120).print(table)


def wanted(running: Stack, count: int) -> list[Path]:
    """Return the pictures of a round; some may be repeated."""
    made = pictures.written(running.folder / "pictures", min(count, 69), MEGAPIXELS, "JPEG")
    return [made[number % len(made)] for number in range(count)]


def measured(
    running: Stack,
    wanted: list[Path],
    rounds: int,
    module: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the figures of a worker and of its detector alone: those of Veil or of `module`."""
    program = [sys.executable, "-m", module] if module else stack.VEIL
    worker = running.worker(program, **(settings or {}))
    processes = {
        "worker": worker.pid,
        "store": running.s3.server.pid,
        "redis": running.redis.server.pid,
    }
    used = dict.fromkeys(processes, 0.0)
    seconds: list[float] = []
    bounds: list[Spent] = []
    with alone.started(running.folder, settings, module or alone.__name__) as detector:
        _worked_off(running, wanted[:WARM_UP], "warm-up")
        detector.detect(wanted[:WARM_UP])
        detector.detect(wanted[:WARM_UP])
        for number in range(rounds):
            keys = _uploaded(running, wanted, f"{number}")
            before = {name: machine.cpu_seconds(pid) for name, pid in processes.items()}
            seconds.append(running.work_off(keys, LIMIT_SECONDS))
            for name, pid in processes.items():
                used[name] += machine.cpu_seconds(pid) - before[name]
            bounds.append(detector.detect(wanted))
    return _figures(len(wanted), seconds, bounds, used)


def _figures(
    count: int, seconds: list[float], bounds: list[Spent], used: dict[str, float]
) -> dict[str, Any]:
    through, alone_ = sum(seconds), sum(spent.seconds for spent in bounds)
    each = {name: round(value / (count * len(seconds)), 4) for name, value in used.items()}
    each["detector_alone"] = round(
        sum(spent.cpu_seconds for spent in bounds) / (count * len(bounds)), 4
    )
    return {
        "pictures": count,
        "rounds": len(seconds),
        "megapixels": MEGAPIXELS,
        "format": "JPEG",
        "photographs": pictures.origin(),
        "workers": 1,
        "threads": WorkerSettings.load().pictures_in_flight(),
        "pictures_per_second": round(count * len(seconds) / through, 3),
        "detector_bound": round(count * len(bounds) / alone_, 3),
        "ratio": round(alone_ / through, 4),
        "ratio_of_rounds": [round(b.seconds / s, 3) for s, b in zip(seconds, bounds, strict=True)],
        "cpu_seconds_a_picture": each,
    }


def _worked_off(running: Stack, wanted: list[Path], name: str) -> float:
    return running.work_off(_uploaded(running, wanted, name), LIMIT_SECONDS)


def _uploaded(running: Stack, wanted: list[Path], name: str) -> list[str]:
    """Upload the files `wanted` below `name`, and return their keys."""
    files = [
        (f"{name}/{number:04}{path.suffix}", path.read_bytes())
        for number, path in enumerate(wanted)
    ]
    running.upload(files)
    return [key for key, _ in files]
