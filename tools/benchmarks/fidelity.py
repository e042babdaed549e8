"""What remains of JPEGs in which annotated faces are hidden.

For each set a line has the share of quantized blocks without a hidden pixel that are identical in
the output, the share of pictures of which all pixels away from such blocks are identical, the size
of the output as a share of the source's where less than 5 % is hidden, and the processor time of
encoding. Where a picture has no annotated face, a square in its middle is hidden. FACES_DATA is the
folder of the sets; SETS names them, by default crowd, masks and formats.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tasks.errors import VeilError
from tools.benchmarks.exposure import sources
from worker import images
from worker.detection.faces import Sightings
from worker.images.jpeg import markers
from worker.images.jpeg.blocks import layout_of, pixels_near, replaced_squares, touched_blocks
from worker.images.jpeg.decoding import strictly_decoded
from worker.images.jpeg.segments import parsed, reassembled
from worker.images.jpeg.transcoder import coefficients
from worker.images.turning import turned_back
from worker.masking import hiding
from worker.masking.regions import MaskStyle, Part

SETS = "crowd,masks,formats"
MAX_PIXELS = 200_000_000
SMALL_SHARE = 0.05  # of the picture's pixels, hidden
MIDDLE = 0.4, 0.4, 0.6, 0.6  # the square that is hidden without annotated faces, as shares


@dataclass
class _Figures:
    """The figures of one picture."""

    blocks: int
    identical: int
    same_pixels: bool
    hidden_share: float
    size: float
    seconds: float
    seconds_all_again: float


def run() -> None:
    """Print a line for each set."""
    data, _ = sources()
    names = (os.environ.get("SETS") or SETS).split(",")
    if missing := [str(data / name) for name in names if not (data / name).exists()]:
        print(f"bench: fidelity needs {', '.join(missing)}", file=sys.stderr)
        return
    table = Table(
        "set", "JPEGs", "identical blocks", "identical pixels", "size", "ms", "ms, all again"
    )
    for name in names:
        found = list(_measured(data / name))
        sizes = [one.size for one in found if one.hidden_share < SMALL_SHARE]
        figures = {
            "jpegs": len(found),
            "identical_blocks": sum(one.identical for one in found)
            / sum(one.blocks for one in found),
            "identical_pixels": statistics.mean(one.same_pixels for one in found),
            "median_size": statistics.median(sizes),
            "largest_size": max(sizes),
            "encode_ms": 1000 * statistics.mean(one.seconds for one in found),
            "encode_all_again_ms": 1000 * statistics.mean(one.seconds_all_again for one in found),
        }
        print(json.dumps({"bench": "fidelity", "set": name, **figures}), flush=True)
        table.add_row(
            name,
            str(figures["jpegs"]),
            f"{figures['identical_blocks']:.3%}",
            f"{figures['identical_pixels']:.1%}",
            f"{figures['median_size']:.3f} (at most {figures['largest_size']:.3f})",
            f"{figures['encode_ms']:.1f}",
            f"{figures['encode_all_again_ms']:.1f}",
        )
    Console(stderr=True).print(table)


def _measured(folder: Path) -> Iterator[_Figures]:
    """Yield the figures of each JPEG of a set that Veil reads."""
    records = json.loads((folder / "annotations.json").read_text())["images"]
    for record in records:
        content = (folder / record["file"]).read_bytes()
        try:
            picture = images.decode(content, MAX_PIXELS)
        except VeilError:
            continue
        if picture.format == "JPEG":
            yield _figures(content, picture, record["faces"])


def _figures(content: bytes, picture: images.Picture, faces: list[list[float]]) -> _Figures:
    frame = picture.frames[0]
    if not faces:
        sides = (frame.width, frame.height) * 2
        faces = [[share * side for share, side in zip(MIDDLE, sides, strict=True)]]
    sightings = Sightings.of(np.array(faces, np.float32))
    new, changed = hiding.hide_and_mark(frame.pixels, [Part(sightings, MaskStyle())], frame.black)
    started = time.process_time()
    output = images.encode(picture, [new], [changed])
    seconds = time.process_time() - started
    started = time.process_time()
    images.encode(picture, [new])
    again = time.process_time() - started
    return _Figures(
        *_blocks(reassembled(content), output, turned_back(changed, picture.orientation)),
        float(changed.mean()),
        len(output) / len(content),
        seconds,
        again,
    )


def _blocks(source: bytes, output: bytes, changed: NDArray[np.bool_]) -> tuple[int, int, bool]:
    """Return the number of blocks without a changed pixel, how many of them are identical in
    `output`, and whether all pixels that are not near others are.
    """
    layout = layout_of(parsed(source))
    if layout is None:
        return 0, 0, False
    touched = touched_blocks(changed, layout)
    before, after = (coefficients(content, len(touched)) for content in (source, output))
    blocks = identical = 0
    for old, new, mask in zip(before, after, touched, strict=True):
        kept = ~mask[: old.shape[0], : old.shape[1]]
        blocks += int(kept.sum())
        if old.shape == new.shape:
            identical += int(((old == new).all(axis=2) & kept).sum())
    old_pixels, new_pixels = (
        strictly_decoded(content, _mode(source)) for content in (source, output)
    )
    near = pixels_near(replaced_squares(touched, layout), changed.shape[1])
    far = near[: changed.shape[0]] == 0
    is_same = old_pixels.shape == new_pixels.shape
    return blocks, identical, is_same and np.array_equal(old_pixels[far], new_pixels[far])


def _mode(content: bytes) -> str:
    components = next(one for one in parsed(content) if one.marker in markers.FRAME_HEADERS)
    return {1: "L", 3: "RGB", 4: "CMYK"}[components.body[5]]
