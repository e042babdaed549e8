"""The share of people that a face recogniser identifies in outputs, by method and region.

The pictures and the attack are not part of the repository. FACES_DATA is the folder of the sets,
FACES_REID the script of the attack, FACES_REID_PYTHON an interpreter with its packages, and
FACES_REID_ONNX, optional, its network in a faster format. Each row runs ``veil anonymize`` with
other settings.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.benchmarks.exposure import SHARED

FULL = {"VEIL_REGION": "full", "VEIL_MARGIN": "0.2"}
ROWS: dict[str, dict[str, str]] = {
    "as configured": {},
    "surround, top, ellipse": {"VEIL_SHAPE": "ellipse"},
    "blur, top": {"VEIL_METHOD": "blur"},
    "pixelate, top": {"VEIL_METHOD": "pixelate"},
    "fill, top": {"VEIL_METHOD": "fill"},
    "surround, full": {"VEIL_REGION": "full"},
    "surround, full + 20 %": FULL,
    "surround, full + 20 %, ellipse": {**FULL, "VEIL_SHAPE": "ellipse"},
    "blur, full + 20 %": {**FULL, "VEIL_METHOD": "blur"},
    "pixelate, full + 20 %": {**FULL, "VEIL_METHOD": "pixelate"},
    "fill, full + 20 %": {**FULL, "VEIL_METHOD": "fill"},
}
# The trained attackers learn from people outside of the gallery, so their gallery has only half of
# all.
GALLERIES = {100: ("ceiling", "naive", "parrot"), 30: ("trained", "context")}


def run() -> None:
    """Print a line for each row: the share of probes that each attacker names at the first guess.

    `chance` is that of the attackers naive and parrot. The trained attackers have smaller
    galleries.
    """
    people = Path(os.environ.get("FACES_DATA", SHARED / "data")) / "people"
    attack = Path(os.environ.get("FACES_REID", SHARED / "tools" / "reid" / "reid.py"))
    missing = [str(path) for path in (people, attack) if not path.exists()]
    if missing:
        print(f"bench: reid needs {', '.join(missing)}", file=sys.stderr)
        return
    columns = ("chance", "ceiling", "naive", "parrot", "chance_trained", "trained", "context")
    table = Table("settings", *columns)
    for name, settings in ROWS.items():
        rates = _measure(people, attack, settings)
        print(json.dumps({"bench": "reid", "settings": name, **settings, **rates}), flush=True)
        table.add_row(name, *(f"{rates[key]:.1%}" if key in rates else "" for key in columns))
    Console(stderr=True).print(table)


def _measure(people: Path, attack: Path, settings: dict[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as output:
        veil = [
            str(Path(sys.executable).parent / "veil"),
            "anonymize",
            str(people / "images"),
            "--output",
            output,
        ]
        subprocess.run(veil, check=True, stderr=subprocess.DEVNULL, env={**os.environ, **settings})
        rates: dict[str, Any] = {}
        for gallery, attacks in GALLERIES.items():
            judged = _attacked(people, attack, output, gallery)
            rates |= {name: round(judged[name]["rank1"], 4) for name in attacks if name in judged}
            chance = "chance_trained" if "trained" in attacks else "chance"
            rates[chance] = round(judged["chance_rank1"], 4)
    return rates


def _attacked(people: Path, attack: Path, output: str, gallery: int) -> dict[str, Any]:
    command = [
        os.environ.get("FACES_REID_PYTHON", sys.executable),
        str(attack),
        "--json",
        "--gallery",
        str(gallery),
    ]
    command += [
        "--clear",
        str(people),
        "--anonymized",
        output,
        "--annotations",
        str(people / "annotations.json"),
    ]
    if onnx := os.environ.get("FACES_REID_ONNX"):
        command += ["--onnx", onnx]
    judged: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return judged
