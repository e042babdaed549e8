"""Run a folder of pictures through `veil anonymize`, and judge the outputs with other programs.

``make corpus FOLDER=…`` prints a table by kind of picture. Pillow and OpenCV open the outputs, a
browser shows their colours outside the masks, and exiftool looks for metadata. What is missing
judges nothing. Nothing is fetched, and nothing is kept.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tools.browser import Browser, browser
from worker.images import signatures
from worker.pixels import Array

MARGIN = 0.6  # of a face's box, that a mask may reach beyond it
POLL_SECONDS = 0.2
MAX_SHOWN_BYTES = 40 << 20  # of a file that the browser is asked to show
# The groups of exiftool that hold metadata, and none of a picture's layout.
METADATA_GROUPS = ("ExifIFD", "GPS", "IFD1", "IPTC", "MakerNotes", "Photoshop", "XMP-")
UNKNOWN = "other"


@dataclass
class Judged:
    """The findings of the programs on one file and its output."""

    source: Path
    kind: str
    outcome: dict[str, Any]
    is_shown: bool | None = None
    rmse: float | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def is_output(self) -> bool:
        return bool(self.outcome["status"] == "anonymized")


def main(folder: Path) -> None:
    """Print a line for each file that is not as it should be, and a table by kind."""
    with tempfile.TemporaryDirectory(prefix="veil-corpus-") as target, browser() as shown:
        outcomes, peak = _anonymized(folder, Path(target))
        judged = [_judged(outcome, shown) for outcome in outcomes]
        _look_for_metadata([one for one in judged if one.is_output])
    for one in judged:
        refusal = one.outcome["message"] if one.is_shown and not one.is_output else None
        if refusal or one.faults:
            faults = [refusal] if refusal else one.faults
            print(json.dumps({"file": str(one.source), "kind": one.kind, "faults": faults}))
    Console(width=160).print(_table(judged, peak))


def _anonymized(folder: Path, target: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the outcome of each file in `folder`, and the largest memory of a process in bytes."""
    command = [str(Path(sys.executable).with_name("veil")), "anonymize", str(folder)]
    lines = target / "lines"
    peak = 0
    with lines.open("w") as output:
        process = subprocess.Popen(
            [*command, "--output", str(target / "outputs"), "--json"],
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None:
            peak = max(peak, *_peaks(process.pid), 0)
            time.sleep(POLL_SECONDS)
    return [json.loads(line) for line in lines.read_text().splitlines()], peak


def _peaks(session: int) -> Iterator[int]:
    """Yield the largest resident sets, in bytes, of the processes of `session`."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) != session:
                continue
            status = (entry / "status").read_text()
        except OSError:  # It has ended.
            continue
        if "VmHWM:" in status:
            yield int(status.partition("VmHWM:")[2].split()[0]) << 10


def _judged(outcome: dict[str, Any], shown: Browser | None) -> Judged:
    source = Path(outcome["source"])
    content = source.read_bytes()
    one = Judged(source, signatures.name_of(content) or UNKNOWN, outcome)
    before = _shown(content, shown)
    if shown is not None:
        one.is_shown = before is not None
    if not one.is_output:
        return one
    output = Path(outcome["output"]).read_bytes()
    one.faults += _unreadable(output)
    after = _shown(output, shown) if before is not None else None
    if before is not None and after is None:
        one.faults.append("the browser does not show the output")
    elif before is not None and after is not None:
        one.rmse = _difference(before, after, outcome["boxes_xyxy"])
        if one.rmse is None:
            one.faults.append("the browser shows another size")
    return one


def _shown(content: bytes, shown: Browser | None) -> Array | None:
    if shown is None or len(content) > MAX_SHOWN_BYTES:
        return None
    return shown.pixels(content)


def _unreadable(content: bytes) -> Iterator[str]:
    """Yield the programs that do not read all of the output `content`."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                image.load()
    except Exception as error:
        yield f"Pillow: {type(error).__name__}: {error}"
    else:
        if image.format != "GIF" and cv2.imdecode(np.frombuffer(content, np.uint8), -1) is None:
            yield "OpenCV does not read the output"


def _difference(before: Array, after: Array, boxes: Iterable[list[float]]) -> float | None:
    """Return the RMSE of RGBA pixels outside of the masks, of 255; None for another size."""
    if before.shape != after.shape:
        return None
    outside = np.ones(before.shape[:2], bool)
    for left, top, right, bottom in boxes:
        across, down = MARGIN * (right - left), MARGIN * (bottom - top)
        rows = slice(max(0, int(top - down)), max(0, int(bottom + down) + 1))
        outside[rows, max(0, int(left - across)) : max(0, int(right + across) + 1)] = False
    if not outside.any():
        return 0.0
    differences = before[outside].astype(np.float32) - after[outside]
    return float(np.sqrt((differences**2).mean()))


def _look_for_metadata(judged: list[Judged]) -> None:
    """Note the outputs in which exiftool finds metadata."""
    program = shutil.which("exiftool")
    if program is None or not judged:
        return
    by_path = {one.outcome["output"]: one for one in judged}
    done = subprocess.run(
        [program, "-j", "-a", "-G1", "--", *by_path], check=False, capture_output=True
    )
    for item in json.loads(done.stdout or b"[]"):
        found = sorted(tag for tag in item if tag.startswith(METADATA_GROUPS))
        if found:
            by_path[item["SourceFile"]].faults.append(f"metadata: {', '.join(found)}")


def _table(judged: list[Judged], peak: int) -> Table:
    table = Table(
        "kind", "files", "outputs", "refused", "shown but refused", "RMSE, mean", "RMSE, most",
        "faults", "seconds, mean", "refusals",
        title=f"at most {peak >> 20:,} MiB in a process",
    )  # fmt: skip
    kinds = sorted({one.kind for one in judged})
    groups = [(kind, [one for one in judged if one.kind == kind]) for kind in kinds]
    for name, group in [*groups, ("all", judged)]:
        refused = [one for one in group if not one.is_output]
        differences = [one.rmse for one in group if one.rmse is not None]
        errors = Counter(one.outcome["error"] for one in refused)
        seconds = [one.outcome["seconds"] for one in group]
        table.add_row(
            name,
            str(len(group)),
            str(len(group) - len(refused)),
            str(len(refused)),
            str(sum(bool(one.is_shown) for one in refused)),
            f"{np.mean(differences):.2f}" if differences else "",
            f"{max(differences):.2f}" if differences else "",
            str(sum(bool(one.faults) for one in group)),
            f"{np.mean(seconds):.1f}" if seconds else "",
            ", ".join(f"{count} {error}" for error, count in errors.most_common()),
        )
    return table


if __name__ == "__main__":
    main(Path(sys.argv[1]))
