"""How often the residual check notices wrong outputs, and what it says of right ones.

The faces of annotated pictures are hidden as the settings of the environment say, and also wrongly:
each mask by a face's width beside its face (`shifted`), or the largest face not at all (`missing`).
The check is told the right places, so only the pixels are wrong. Of an `unlisted` output, which is
a missing one, it is told all faces but the largest. Wrong outputs in which no annotated face is
exposed are left out.

`shown` counts the pictures in which the comparison finds a face that should be hidden, `found`
those in whose output detection finds a face, which is hidden too, `on_exposed` those in which such
a face is an exposed one, and `left` those that the whole check flags or holds.

The sets are those of `tools.benchmarks.exposure`; SETS is by default crowd, masks, small and wider,
and EVERY=8 uses each eighth picture.
"""

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tools.benchmarks.exposure import annotated_sets
from tools.benchmarks.groups import EXPOSED, load_judge
from worker import images, residual_check
from worker.anonymizer import Anonymizer
from worker.bootstrap import build_anonymizer, mask_style
from worker.detection.faces import Detections
from worker.masking import comparing, hiding, regions
from worker.masking.regions import MaskStyle
from worker.pixels import Pixels
from worker.residual_check import ResidualCheck
from worker.settings import WorkerSettings
from worker.treatments import AS_CONFIGURED

SETS = "crowd,masks,small,wider"
EVERY = 8
QUALITY = 95  # of the JPEGs
OUTPUTS = ("right", "shifted", "missing", "unlisted")
COLUMNS = (
    "pictures", "shown", "found", "on_exposed", "left", "verify", "without_source",
    "compare_seconds", "cpu_seconds",
)  # fmt: skip


def run() -> None:
    """Print a line for each set and kind of output."""
    names = (os.environ.get("SETS") or SETS).split(",")
    if (data := annotated_sets("wrong_outputs", names)) is None:
        return
    settings = WorkerSettings.load()
    anonymizer, style = build_anonymizer(settings), mask_style(settings)
    every = int(os.environ.get("EVERY") or EVERY)
    table = Table("set", "output", *COLUMNS)
    for name in names:
        counts = {kind: dict.fromkeys(COLUMNS, 0.0) for kind in OUTPUTS}
        for pixels, annotated in _pictures(data / name, every):
            found = anonymizer.detect(pixels)
            if len(found):
                _count(counts, anonymizer, style, pixels, annotated, found)
        for kind, counted in counts.items():
            figures = {column: round(value, 1) for column, value in counted.items()}
            line = {"bench": "wrong_outputs", "set": name, "output": kind, **figures}
            print(json.dumps(line), flush=True)
            table.add_row(name, kind, *(f"{value:g}" for value in figures.values()))
    Console(stderr=True).print(table)


def _pictures(folder: Path, every: int) -> Iterator[tuple[Pixels, list[list[float]]]]:
    """Yield pictures, uint8 RGB, with the boxes of their annotated faces."""
    for item in json.loads((folder / "annotations.json").read_text())["images"][::every]:
        pixels = cv2.imread(str(folder / item["file"]), cv2.IMREAD_COLOR)
        assert pixels is not None
        yield np.ascontiguousarray(pixels[..., ::-1].astype(np.uint8)), item["faces"]


def _count(
    counts: dict[str, dict[str, float]],
    anonymizer: Anonymizer,
    style: MaskStyle,
    pixels: Pixels,
    annotated: list[list[float]],
    found: Detections,
) -> None:
    """Add to `counts` what the check says of the outputs of a picture whose faces are `found`."""
    judge = load_judge()
    hidden = {
        "right": found,
        "shifted": _shifted(found, pixels.shape[1]),
        "missing": _without_largest(found),
        "unlisted": _without_largest(found),
    }
    for kind, masked in hidden.items():
        told = masked if kind == "unlisted" else found
        output = _encoded(hiding.hide(pixels, masked.sightings, style))
        survived = [judge.survived(pixels, output, box) for box in annotated]
        exposed = [
            box
            for box, share in zip(annotated, survived, strict=True)
            if share is not None and share >= EXPOSED
        ]
        if kind != "right" and not exposed:
            continue

        def redo(
            more: Sequence[Detections], masked: Detections = masked, told: Detections = told
        ) -> images.Picture:
            """Return the output with what the check added hidden too."""
            everything = Detections.joined([masked, more[0][len(told) :]])
            return _picture(_encoded(hiding.hide(pixels, everything.sightings, style)))

        check = ResidualCheck(
            decode=lambda picture: picture,
            find=anonymizer.detect_frames,
            redo=redo,
            treatments=anonymizer.treatments,
            options=AS_CONFIGURED,
            max_seconds=float("inf"),
            least_score=anonymizer.least_check_score,
        )
        counted = counts[kind]
        started = time.process_time()
        places = regions.regions(told.sightings, style, pixels.shape[1], pixels.shape[0])
        counted["shown"] += bool(comparing.shown(pixels, output, places).any())
        counted["compare_seconds"] += time.process_time() - started
        started = time.process_time()
        checked = check.run(_picture(pixels), [told], _picture(output))[1]
        counted["cpu_seconds"] += time.process_time() - started
        counted["pictures"] += 1
        counted["left"] += len(checked.remaining) > 0
        counted["found"] += len(checked.added) > 0
        counted["on_exposed"] += _is_on_one(checked.added, exposed)
        counted["verify"] += _is_reported(anonymizer, told, output, pixels)
        counted["without_source"] += _is_reported(anonymizer, told, output, None)


def _is_reported(
    anonymizer: Anonymizer, hidden: Detections, output: Pixels, source: Pixels | None
) -> bool:
    """Return whether verify reports the `output` whose receipt has the boxes of `hidden`."""
    picture = _picture(output)
    shown = residual_check.exposed(
        picture,
        None if source is None else _picture(source),
        Detections(np.rint(hidden.boxes_xyxy), hidden.scores),
        anonymizer.detect_frames,
        anonymizer.treatments,
        AS_CONFIGURED,
        anonymizer.least_check_score,
    )
    return any(map(len, shown))


def _picture(pixels: Pixels) -> images.Picture:
    return images.Picture((images.Frame(pixels, "RGB"),), "PNG")


def _encoded(pixels: Pixels) -> Pixels:
    """Return `pixels` as a JPEG shows them."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file))


def _shifted(found: Detections, width: int) -> Detections:
    """Return `found`, each face moved by the width of its box within the picture."""
    sides = found.boxes_xyxy[:, 2] - found.boxes_xyxy[:, 0]
    fits = found.boxes_xyxy[:, 2] + sides <= width
    distance = np.zeros((len(found), 2), np.float32)
    distance[:, 0] = np.where(fits, sides, -sides)
    sightings = found.sightings
    own = distance[sightings.face]
    moved = replace(
        sightings,
        boxes_xyxy=sightings.boxes_xyxy + np.concatenate([own, own], axis=1),
        landmarks=sightings.landmarks + own[:, None],
    )
    return replace(found, merged_from=moved)


def _without_largest(found: Detections) -> Detections:
    sizes = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
    is_kept = np.ones(len(found), bool)
    is_kept[sizes.prod(axis=1).argmax()] = False
    return found[is_kept]


def _is_on_one(found: Detections, boxes: list[list[float]]) -> bool:
    """Return whether the centre of a face of `found` lies in one of `boxes`."""
    centres = found.boxes_xyxy.reshape(-1, 2, 2).mean(axis=1)
    return any(
        ((centres > box[:2]) & (centres < box[2:])).all(axis=1).any() for box in np.array(boxes)
    )
