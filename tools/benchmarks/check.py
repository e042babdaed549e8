"""The effect and the cost of ``VEIL_VERIFY``: faces that the check finds, and CPU seconds.

The sets, the judge and further settings are those of `tools.benchmarks.exposure`; ``EVERY=4`` uses
each fourth picture.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.benchmarks.exposure import SETS, Measured, annotated_sets, measure


def run() -> None:
    """Print a line for each set: findings of the check, exposed faces, spill and CPU seconds."""
    if (data := annotated_sets("check")) is None:
        return
    every = int(os.environ.get("EVERY", "1"))
    table = Table(
        "set", "pictures", "with finds", "faces found", "left", "exposed", "spill", "CPU seconds"
    )
    for name in SETS:
        with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder:
            sample = _sample(data / name, Path(folder), every)
            off, on = (measure(sample, {"VEIL_VERIFY": verify}) for verify in ("off", "flag"))
        figures = _compared(off, on)
        print(json.dumps({"bench": "check", "set": name, "every": every, **figures}), flush=True)
        table.add_row(
            name,
            str(figures["pictures"]),
            str(figures["with_finds"]),
            str(figures["found_by_check"]),
            str(figures["left"]),
            f"{figures['exposed_before']} → {figures['exposed_after']} of {figures['faces']}",
            f"{figures['spill_before']:.2%} → {figures['spill_after']:.2%}",
            f"{figures['cpu_seconds_before']:.0f} → {figures['cpu_seconds_after']:.0f}",
        )
    Console(stderr=True).print(table)


def _sample(data: Path, folder: Path, every: int) -> Path:
    """Make a set in `folder` of each `every`-th picture of the set in `data`."""
    labels = json.loads((data / "annotations.json").read_text())
    labels["images"] = sorted(labels["images"], key=lambda item: str(item["file"]))[::every]
    (folder / "images").mkdir()
    for item in labels["images"]:
        (folder / item["file"]).symlink_to((data / item["file"]).resolve())
    (folder / "annotations.json").write_text(json.dumps(labels))
    return folder


def _compared(off: Measured, on: Measured) -> dict[str, Any]:
    found = [outcome["found_by_check"] for outcome in on.outcomes]
    return {
        "pictures": on.figures["pictures"],
        "with_finds": sum(count > 0 for count in found),
        "found_by_check": sum(found),
        "left": sum(outcome["reason"] is not None for outcome in on.outcomes),
        "faces": on.figures["faces"],
        "exposed_before": off.figures["exposed"],
        "exposed_after": on.figures["exposed"],
        "spill_before": off.figures["spill"],
        "spill_after": on.figures["spill"],
        "cpu_seconds_before": round(off.cpu_seconds, 1),
        "cpu_seconds_after": round(on.cpu_seconds, 1),
    }
