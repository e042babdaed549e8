"""What looking at outputs again finds, what it leaves, and what it costs: ``VEIL_VERIFY`` on and off, by set.

The sets, the judge and further settings are those of `benchmarks.exposure`.
"""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.exposure import SETS, Measured, measure, sources


def run() -> None:
    """Print a line for each set: pictures in which the check found something, exposed faces, spill and seconds."""
    data, judge = sources()
    missing = [str(path) for path in (judge, *(data / name for name in SETS)) if not path.exists()]
    if missing:
        print(f"bench: check needs {', '.join(missing)}", file=sys.stderr)
        return
    table = Table("set", "pictures", "with finds", "faces found", "left", "exposed", "spill", "seconds", "share")
    for name in SETS:
        off, on = (measure(data / name, {"VEIL_VERIFY": verify}) for verify in ("off", "flag"))
        figures = _compared(off, on)
        print(json.dumps({"bench": "check", "set": name, **figures}), flush=True)
        table.add_row(
            name,
            str(figures["pictures"]),
            str(figures["with_finds"]),
            str(figures["found_by_check"]),
            str(figures["left"]),
            f"{figures['exposed_before']} → {figures['exposed_after']}",
            f"{figures['spill_before']:.2%} → {figures['spill_after']:.2%}",
            f"{figures['seconds_before']:.0f} → {figures['seconds_after']:.0f}",
            f"{figures['share']:.0%}",
        )
    Console(stderr=True).print(table)


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
        "seconds_before": round(off.seconds, 1),
        "seconds_after": round(on.seconds, 1),
        "share": round(1 - off.seconds / on.seconds, 3),
    }
