"""Seconds a picture in each stage, by format and size, and how much of what is not detection is hidden behind it.

Real Redis, a real store, one ``veil worker``. The seconds are medians of pictures that are alone with the worker.
Then as many are asked for at once as fit: what they take beyond the detector alone, of all that their other stages
take one by one, is not hidden. On a machine whose processors detection keeps busy, only waiting can be.

FORMATS (JPEG,PNG,WEBP,TIFF,GIF,BMP,AVIF,JPEG2000) and SIZES in megapixels, with commas between, say what is measured.
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

from tasks.metrics import STAGES
from tools.benchmarks.harness import alone, pictures
from tools.benchmarks.harness.alone import Alone
from tools.local import stack
from tools.local.stack import Stack
from worker.settings import WorkerSettings

FORMATS = "JPEG,PNG,WEBP,TIFF"
SIZES = "0.1,1,12,24"
ONE_BY_ONE = 3
LIMIT_SECONDS = 120.0
PATIENT = {  # a TIFF of 24 MP is larger than the default allows, and a busy machine may take long
    "VEIL_MAX_BYTES": str(256 << 20),
    "VEIL_DETECT_SECONDS": "30",
}


def run() -> None:
    """Print a line for each format and size."""
    formats = (os.environ.get("FORMATS") or FORMATS).upper().split(",")
    sizes = [float(size) for size in (os.environ.get("SIZES") or SIZES).split(",")]
    stages = [stage for stage in STAGES if stage != "verify" or WorkerSettings.load().verify != "off"]
    table = Table("format", "MP", *stages, "sum", "hidden", title="seconds a picture")
    with stack.started() as running, alone.started(running.folder, PATIENT) as detector:
        running.worker(**PATIENT)
        for form in formats:
            for size in sizes:
                figures = _measure(running, detector, form, size)
                print(json.dumps({"bench": "stages", "format": form, "megapixels": size, **figures}), flush=True)
                seconds, hidden = figures["seconds"], figures["hidden"]
                cells = (f"{seconds[stage]:.3f}" for stage in stages)
                table.add_row(form, f"{size:g}", *cells, f"{sum(seconds.values()):.3f}", f"{hidden:.0%}")
    Console(stderr=True, width=120).print(table)


def _measure(running: Stack, detector: Alone, form: str, megapixels: float) -> dict[str, Any]:
    together = WorkerSettings.load().concurrency * (1 if megapixels > pictures.TILED_FROM else 3)
    name = f"{form}-{megapixels:g}"
    paths = pictures.written(running.folder / name, ONE_BY_ONE, megapixels, form)
    first, *single = _uploaded(running, name, [paths[0], *paths])
    _reports(running, [first])  # plans the graphs of these shapes
    detector.detect(paths)
    reports = [_reports(running, [key])[0] for key in single]
    seconds = {stage: median(report["seconds"][stage] for report in reports) for stage in reports[0]["seconds"]}
    many = [paths[number % len(paths)] for number in range(together)]
    elapsed = running.work_off(_uploaded(running, f"{name}-together", many), LIMIT_SECONDS) / together
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
    """The share of the seconds of all other stages that `elapsed` has not on top of `detector`."""
    others = sum(seconds.values()) - seconds["detect"]
    return min(1.0, max(0.0, 1 - (elapsed - detector) / others))


def _reports(running: Stack, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """Ask for `keys` at once; their reports."""
    tasks = running.publish(keys, keep_results=True)
    return [AsyncResult(task, app=running.app).get(timeout=LIMIT_SECONDS) for task in tasks]


def _uploaded(running: Stack, name: str, paths: Sequence[Path]) -> list[str]:
    keys = [f"{name}/{number:02}{path.suffix}" for number, path in enumerate(paths)]
    running.upload((key, path.read_bytes()) for key, path in zip(keys, paths, strict=True))
    return keys
