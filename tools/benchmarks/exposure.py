"""The share of annotated faces that are exposed after ``veil anonymize``, by set.

A script, the judge, decides this from the pixels of sources and outputs. It is not part of the
repository, and neither are the sets: FACES_DATA is the folder of the sets, and FACES_JUDGE the path
of the script. The environment contains the settings, so that ``VEIL_SCALES=640,1600 make bench
ONLY=exposure`` measures two passes. SETS names the sets, by default crowd, masks and small.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

SHARED = Path(__file__).resolve().parents[3] / "shared"
SETS = ("crowd", "masks", "small")


def sources() -> tuple[Path, Path]:
    """Return the paths of the annotated sets and of the judge, which may not exist."""
    data = Path(os.environ.get("FACES_DATA", SHARED / "data"))
    return data, Path(os.environ.get("FACES_JUDGE", SHARED / "tools" / "exposure.py"))


def annotated_sets(bench: str, names: Sequence[str] = SETS) -> Path | None:
    """Return the folder of the sets `names`; print what is missing and return None."""
    data, judge = sources()
    missing = [str(path) for path in (judge, *(data / name for name in names)) if not path.exists()]
    if missing:
        print(f"bench: {bench} needs {', '.join(missing)}", file=sys.stderr)
    return None if missing else data


def run() -> None:
    """Print a line for each set: pictures, faces, exposed faces, spill and seconds."""
    names = (os.environ.get("SETS") or ",".join(SETS)).split(",")
    if (data := annotated_sets("exposure", names)) is None:
        return
    table = Table("set", "pictures", "faces", "exposed", "spill", "seconds")
    for name in names:
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
    """The verdict of the judge on a set, the output of ``veil anonymize --json``, and its times.

    `cpu_seconds` include loading the model, and depend little on other load of the machine.
    """

    figures: dict[str, Any]
    outcomes: list[dict[str, Any]]
    seconds: float
    cpu_seconds: float


def measure(folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Measured:
    """Anonymize the set in `folder` with `environment` on top of that of the process; judge it."""
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as output:
        started, used = time.perf_counter(), _cpu_seconds()
        veil = [str(Path(sys.executable).parent / "veil"), "anonymize", str(folder / "images")]
        veil += ["--output", f"{output}/images", "--json"]
        printed = subprocess.run(
            veil, check=True, capture_output=True, text=True, env={**os.environ, **environment}
        )
        seconds, used = time.perf_counter() - started, _cpu_seconds() - used
        outcomes = [json.loads(line) for line in printed.stdout.splitlines()]
        return Measured(judged(folder, Path(output) / "images"), outcomes, seconds, used)


def _cpu_seconds() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def judged(folder: Path, outputs: Path) -> dict[str, Any]:
    """Return the verdict of the judge on the `outputs` of the annotated set in `folder`."""
    command = [
        sys.executable,
        str(sources()[1]),
        "--clear",
        str(folder),
        "--anonymized",
        str(outputs),
    ]
    command += ["--annotations", str(folder / "annotations.json"), "--json"]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return found
