"""How many annotated faces are still exposed after ``veil anonymize``, by set, judged from pixels alone.

The annotated sets and the judge are not part of the repository: FACES_DATA names the folder of the sets
and FACES_JUDGE the judge's script. The settings are those of the environment, so that
``VEIL_SCALES=640,1600 make bench ONLY=exposure`` measures two passes.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

SHARED = Path(__file__).resolve().parents[3] / "shared"
SETS = ("crowd", "masks", "small")


def sources() -> tuple[Path, Path]:
    """The folder of the annotated sets and the judge's script, which may not exist."""
    data = Path(os.environ.get("FACES_DATA", SHARED / "data"))
    return data, Path(os.environ.get("FACES_JUDGE", SHARED / "tools" / "exposure.py"))


def annotated_sets(bench: str) -> Path | None:
    """The folder of the annotated sets; None, and a word about what `bench` lacks, if one or the judge is missing."""
    data, judge = sources()
    missing = [str(path) for path in (judge, *(data / name for name in SETS)) if not path.exists()]
    if missing:
        print(f"bench: {bench} needs {', '.join(missing)}", file=sys.stderr)
    return None if missing else data


def run() -> None:
    """Print a line for each set: pictures, faces, exposed faces, spill and seconds."""
    if (data := annotated_sets("exposure")) is None:
        return
    table = Table("set", "pictures", "faces", "exposed", "spill", "seconds")
    for name in SETS:
        measured = measure(data / name)
        figures = {**measured.figures, "seconds": round(measured.seconds, 1)}
        print(json.dumps({"bench": "exposure", "set": name, **figures}), flush=True)
        table.add_row(
            name,
            str(figures["pictures"]),
            str(figures["faces"]),
            f"{figures['exposed']} ({figures['exposed_rate']:.2%})",
            f"{figures['spill']:.2%}",
            f"{figures['seconds']:.0f}",
        )
    Console(stderr=True).print(table)


@dataclass(frozen=True)
class Measured:
    """What the judge says of a set, what ``veil anonymize --json`` said of each picture, and how long it took.

    `cpu_seconds` are those of its processors, loading the model included: they hardly change with what else runs.
    """

    figures: dict[str, Any]
    outcomes: list[dict[str, Any]]
    seconds: float
    cpu_seconds: float


def measure(folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Measured:
    """Anonymize the set in `folder` with the settings of this process and `environment`, and judge it."""
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as output:
        started, used = time.perf_counter(), _cpu_seconds()
        veil = [str(Path(sys.executable).parent / "veil"), "anonymize", str(folder / "images")]
        veil += ["--output", f"{output}/images", "--json"]
        told = subprocess.run(veil, check=True, capture_output=True, text=True, env={**os.environ, **environment})
        seconds, used = time.perf_counter() - started, _cpu_seconds() - used
        outcomes = [json.loads(line) for line in told.stdout.splitlines()]
        return Measured(judged(folder, Path(output) / "images"), outcomes, seconds, used)


def _cpu_seconds() -> float:
    """Of all programs that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def judged(folder: Path, outputs: Path) -> dict[str, Any]:
    """What the judge says of the `outputs` of the annotated set in `folder`."""
    command = [sys.executable, str(sources()[1]), "--clear", str(folder), "--anonymized", str(outputs)]
    command += ["--annotations", str(folder / "annotations.json"), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found
