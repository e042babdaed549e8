"""The share of exposed faces by size, by the state of the face and by perceived group of people.

The sets and the judge are those of `tools.benchmarks.exposure`; SETS is by default wider, whose
faces have attributes. TOOLS are what anonymizes the pictures: presets, `settings` for those of the
environment, `deface` with its defaults, and `deface:0.05` with another threshold.

An odds ratio compares a group with all other faces that have the same attribute, from LEAST_SIDE
on, within strata of the same size, blur and occlusion.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table

from tools.benchmarks.exposure import annotated_sets, sources
from tools.benchmarks.harness import child
from tools.benchmarks.harness.rates import OddsRatio, Rate, Stratum, mantel_haenszel
from tools.benchmarks.peer import environment

SETS, TOOLS = "wider", "settings"
PRESETS = ("fast", "balanced", "thorough")
BOUNDS = (0, 8, 16, 32, 64, 128, 10**6)  # limits of the classes of sizes, in pixels
LEAST_SIDE = 16  # of the faces of odds ratios, in pixels
EXPOSED = 0.5  # the share of the structure of the eyes that survives in an exposed face: the judge
# The attributes that are compared: those of WIDER FACE (Yang et al., CVPR 2016, section 3), and
# the perceived groups of people of its annotators.
STATES = {
    "blur": ("clear", "normal", "heavy"),
    "occlusion": ("none", "partial", "heavy"),
    "pose": ("typical", "atypical"),
    "illumination": ("normal", "extreme"),
    "expression": ("typical", "exaggerated"),
}
PEOPLE = ("skin", "gender", "age")
STRATA = ("blur", "occlusion")  # and the size
UNKNOWN = ("Not Sure", None)


@dataclass(frozen=True)
class Face:
    """The verdict on an annotated face. `side` is the square root of the area of its box."""

    side: float
    is_exposed: bool
    attributes: dict[str, Any]

    @property
    def size(self) -> str:
        low, high = next(pair for pair in pairwise(BOUNDS) if self.side < pair[1])
        return f"{low}-{high} px" if high < BOUNDS[-1] else f"{low} px and more"

    def value(self, attribute: str) -> str | None:
        """Return the value of `attribute` in words; None if it is not known."""
        found = self.attributes.get(attribute)
        if found in UNKNOWN:
            return None
        names = STATES.get(attribute)
        return names[int(found)] if names else str(found)


@dataclass(frozen=True)
class Row:
    """A group of faces. `odds` is None where no ratio can be computed."""

    attribute: str
    value: str
    rate: Rate
    odds: OddsRatio | None = None

    def summary(self) -> dict[str, Any]:
        low, high = self.rate.interval
        found: dict[str, Any] = {
            "by": self.attribute,
            "value": self.value,
            "faces": self.rate.cases,
            "exposed": self.rate.hits,
            "exposed_rate": round(self.rate.share, 4),
            "interval": [round(low, 4), round(high, 4)],
        }
        if self.odds:
            found["odds_ratio"] = round(self.odds.value, 2)
            found["odds_interval"] = [round(self.odds.low, 2), round(self.odds.high, 2)]
        return found


def run() -> None:
    """Print a line for each group of each set and tool."""
    names = (os.environ.get("SETS") or SETS).split(",")
    tools = (os.environ.get("TOOLS") or TOOLS).split(",")
    if (data := annotated_sets("groups", names)) is None:
        return
    for name in names:
        for tool in tools:
            table = Table("by", "value", "faces", "exposed", "95 %", "odds ratio", "95 %")
            table.title = f"{name}, {tool}"
            for row in rows(_faces(data / name, tool)):
                print(
                    json.dumps({"bench": "groups", "set": name, "tool": tool, **row.summary()}),
                    flush=True,
                )
                table.add_row(*_cells(row))
            Console(stderr=True).print(table)


def rows(faces: list[Face]) -> Iterator[Row]:
    """Yield the groups of `faces`: all, by size, by state and by people."""
    yield Row("all", "", _rate(faces))
    for size in _in_order("size", faces):
        yield Row("size", size, _rate([face for face in faces if face.size == size]))
    for attribute in (*STATES, *PEOPLE):
        known = [face for face in faces if face.value(attribute) is not None]
        for value in _in_order(attribute, known):
            members = [face for face in known if face.value(attribute) == value]
            yield Row(attribute, value, _rate(members), _odds(attribute, value, known))


def _in_order(attribute: str, faces: list[Face]) -> list[str]:
    """Return the values of `attribute` that occur: sizes and states from the least on."""
    if attribute == "size":
        return list(dict.fromkeys(face.size for face in sorted(faces, key=lambda face: face.side)))
    found = {face.value(attribute) or "" for face in faces}
    return [name for name in STATES.get(attribute, sorted(found)) if name in found]


def _rate(faces: list[Face]) -> Rate:
    return Rate(sum(face.is_exposed for face in faces), len(faces))


def _odds(attribute: str, value: str, known: list[Face]) -> OddsRatio | None:
    """Return the odds ratio of the faces with `value` against all others of the `known` ones."""
    kept = [name for name in STRATA if name != attribute]
    strata: dict[tuple[Any, ...], tuple[list[Face], list[Face]]] = defaultdict(lambda: ([], []))
    for face in known:
        if face.side >= LEAST_SIDE:
            key = (face.size, *(face.value(name) for name in kept))
            strata[key][face.value(attribute) != value].append(face)
    return mantel_haenszel(
        Stratum(_rate(group), _rate(others)) for group, others in strata.values()
    )


def _faces(folder: Path, tool: str) -> list[Face]:
    """Anonymize the set in `folder` with `tool`, and return the verdicts on its faces."""
    with TemporaryDirectory(prefix="veil-bench-") as name:
        outputs = Path(name) / "images"
        outputs.mkdir()
        if tool.startswith("deface"):
            _deface(folder, outputs, tool.partition(":")[2])
        else:
            _veil(folder, outputs, tool)
        return judged_faces(folder, outputs)


def _veil(folder: Path, outputs: Path, tool: str) -> None:
    preset = {"VEIL_PRESET": tool} if tool in PRESETS else {}
    veil = [str(Path(sys.executable).parent / "veil"), "anonymize", str(folder / "images")]
    subprocess.run(
        [*veil, "--output", str(outputs), "--json"],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **preset},
    )


def _deface(folder: Path, outputs: Path, threshold: str) -> None:
    script = Path(__file__).parent / "harness" / "peer_deface.py"
    items = json.loads((folder / "annotations.json").read_text())["images"]
    with child.started("deface", [environment(), script], outputs.parent) as peer:
        options = {"threshold": float(threshold)} if threshold else {}
        paths = [str(folder / item["file"]) for item in items]
        peer.ask(paths=paths, output=str(outputs), **options)


def judged_faces(folder: Path, outputs: Path) -> list[Face]:
    """Return the verdicts of the judge on the annotated faces of the set in `folder`.

    Faces of a picture without an output are left out, because nothing was published, and so are
    those that are too small for the judge.
    """
    judge = load_judge()
    found = []
    for item in json.loads((folder / "annotations.json").read_text())["images"]:
        output = judge.find_output(outputs, Path(item["file"]).name)
        if output is None:
            continue
        clear, hidden = judge.read_upright(folder / item["file"]), judge.read_upright(output)
        if clear.shape != hidden.shape:
            hidden = cv2.resize(hidden, clear.shape[1::-1], interpolation=cv2.INTER_AREA)
        attributes = item.get("attrs") or [{}] * len(item["faces"])
        for (x1, y1, x2, y2), known in zip(item["faces"], attributes, strict=True):
            survived = judge.survived(clear, hidden, (x1, y1, x2, y2))
            if survived is not None:
                side = max((x2 - x1) * (y2 - y1), 0) ** 0.5
                found.append(Face(side, survived >= EXPOSED, known))
    return found


def load_judge() -> ModuleType:
    """Return the judge as a module."""
    spec = importlib.util.spec_from_file_location("judge", sources()[1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cells(row: Row) -> Iterator[str]:
    low, high = row.rate.interval
    yield row.attribute
    yield row.value
    yield str(row.rate.cases)
    yield f"{row.rate.hits} ({row.rate.share:.2%})"
    yield f"{low:.2%} to {high:.2%}"
    yield f"{row.odds.value:.2f}" if row.odds else "–"
    yield f"{row.odds.low:.2f} to {row.odds.high:.2f}" if row.odds else "–"
