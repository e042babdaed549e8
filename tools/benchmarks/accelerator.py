"""The throughput of a worker with an accelerator, measured without one.

The benchmark is that of end_to_end with a simulated device: it batches as a GPU, takes time but no
processor, and returns the detections of the real model. SPEEDS are those of the device in
megapixels of detection passes per second. The device limits the throughput if `ratio` is near 1,
the processors if it is lower. Copies and kernel launches of a real device are not measured.
PICTURES is the number per round, ROUNDS that of the rounds.
"""

import json
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.benchmarks import end_to_end
from tools.benchmarks.harness import stand_in
from tools.local import stack

SPEEDS = "10,20,40"
PICTURES, ROUNDS = 100, 3


def run() -> None:
    """Print a line for each speed of the device."""
    count, rounds = (
        int(os.environ.get("PICTURES") or PICTURES),
        int(os.environ.get("ROUNDS") or ROUNDS),
    )
    table = Table(
        "device, megapixels/s",
        "pictures/s",
        "device alone",
        "ratio",
        "processor seconds a picture: worker",
    )
    for speed in (os.environ.get("SPEEDS") or SPEEDS).split(","):
        with stack.started() as running:
            wanted = end_to_end.wanted(running, count)
            settings = {
                stand_in.PICTURES: str(wanted[0].parent),
                stand_in.SPEED: speed,
                "PYTHONPATH": str(Path(__file__).parents[2]),  # workers run in another folder
            }
            figures = end_to_end.measured(running, wanted, rounds, stand_in.__name__, settings)
        line = {"bench": "accelerator", "device_megapixels_per_second": float(speed), **figures}
        print(json.dumps(line), flush=True)
        cells = (
            f"{figures[name]:.2f}" for name in ("pictures_per_second", "detector_bound", "ratio")
        )
        table.add_row(speed, *cells, f"{figures['cpu_seconds_a_picture']['worker']:.4f}")
    Console(stderr=True, width=120).print(table)
