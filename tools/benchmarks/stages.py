"""Seconds per picture in each stage, by format and size, and the share that detection hides.

The benchmark uses real Redis, a real store and one ``veil worker``. The seconds are medians of
single pictures. Then the worker gets as many pictures at once as it has threads. Their time beyond
that of the detector alone, as a share of the other stages of single pictures, is not hidden. If
detection uses all processors, only waiting can be hidden.

FORMATS (JPEG,PNG,WEBP,TIFF,GIF,BMP,AVIF,JPEG2000) and SIZES in megapixels, comma-separated, select
the measurements.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from celery.result import AsyncResult
from rich.console import Console
from rich.table import Table

from tasks.telemetry.metrics import STAGES
from tools.benchmarks.harness import alone, pictures
from tools.benchmarks.harness.alone import Alone
from tools.local import stack
from tools.local.stack import Stack
from worker.settings import WorkerSettings

FORMATS = "JPEG,PNG,WEBP,TIFF"
SIZES = "0.1,1,12,24"
ONE_BY_ONE = 3
LIMIT_SECONDS = 120.0
# A TIFF of 24 MP is larger than the default limit, and detection is slow on a busy machine.
PATIENT = {
    "VEIL_MAX_BYTES": str(256 << 20),
    "VEIL_DETECT_SECONDS": "30",
}


def run() -> None:
    """Print a line for each format and size."""
    formats = (os.environ.get("FORMATS") or FORMATS).upper().split(",")
    sizes = [float(size) for size in (os.environ.get("SIZES") or SIZES).split(",")]
    stages = [
        stage for stage in STAGES if stage != "verify" or WorkerSettings.load().verify != "off"
    ]
    table = Table("format", "MP", *stages, "sum", "hidden", title="seconds a picture")
    with stack.started() as running, alone.started(running.folder, PATIENT) as detector:
        running.worker(**PATIENT)
        for form in formats:
            for size in sizes:
                figures = _measure(running, detector, form, size)
                print(
                    json.dumps({"bench": "stages", "format": form, "megapixels": size, **figures}),
                    flush=True,
                )
                seconds, hidden = figures["seconds"], figures["hidden"]
                cells = (f"{seconds[stage]:.3f}" for stage in stages)
                table.add_row(
                    form, f"{size:g}", *cells, f"{sum(seconds.values()):.3f}", f"{hidden:.0%}"
                )
    Console(stderr=True, width=120).print(table)


def _measure(running: Stack, detector: Alone, form: str, megapixels: float) -> dict[str, Any]:
    together = WorkerSettings.load().pictures_in_flight() * (
        1 if megapixels > pictures.TILED_FROM else 3
    )
    name = f"{form}-{megapixels:g}"
    paths = pictures.written(running.folder / name, ONE_BY_ONE, megapixels, form)
    first, *single = _uploaded(running, name, [paths[0], *paths])
    _reports(running, [first])  # compiles the graphs of these shapes
    detector.detect(paths)
    reports = [_reports(running, [key])[0] for key in single]
    seconds = {
        stage: median(report["seconds"][stage] for report in reports)
        for stage in reports[0]["seconds"]
    }
    many = [paths[number % len(paths)] for number in range(together)]
    elapsed = (
        running.work_off(_uploaded(running, f"{name}-together", many), LIMIT_SECONDS) / together
    )
    alone_ = detector.detect(many).seconds / together
    for path in paths:
        path.unlink()
    return {
        "bytes": round(median(report["bytes_in"] for report in reports)),
        "faces": round(median(report["faces"] for report in reports)),
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "seconds_each_of_many": round(elapsed, 4),
        "detector_seconds_each_of_many": round(alone_, 4),
        "hidden": round(_hidden(seconds, elapsed, alone_), 3),
    }


def _hidden(seconds: Mapping[str, float], elapsed: float, detector: float) -> float:
    """Return the share of the other stages that is not part of `elapsed` beyond `detector`."""
    others = sum(seconds.values()) - seconds["detect"]
    return min(1.0, max(0.0, 1 - (elapsed - detector) / others))


def _reports(running: Stack, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """Publish `keys` at once, and return their reports."""
    tasks = running.publish(keys, keep_results=True)
    return [AsyncResult(task, app=running.app).get(timeout=LIMIT_SECONDS) for task in tasks]


def _uploaded(running: Stack, name: str, paths: Sequence[Path]) -> list[str]:
    keys = [f"{name}/{number:02}{path.suffix}" for number, path in enumerate(paths)]
    running.upload((key, path.read_bytes()) for key, path in zip(keys, paths, strict=True))
    return keys
