"""Hidden faces, seconds and memory for pictures of many dimensions and densities.

The pictures are PNGs: panoramas, screenshots and large photographs with sharp portraits of known
sizes, and walls of thousands of faces. A face is hidden if nine tenths of the pixels of its eyes
changed. Each picture has its own process, which loads the model before the measurement. PICTURES
selects some of them (``panorama,scroll``).
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console
from rich.table import Table

from tools.benchmarks.memory import peak
from tools.local.scenes import ASTRONAUT, photograph
from worker import logs
from worker.settings import WorkerSettings

HEAD = (120, 0, 330, 260)  # x1 y1 x2 y2 of the head in the portrait
FACE = 110  # height of the face in the portrait, in pixels
EYES = (70, 95, 138, 132)  # x1 y1 x2 y2 of the eyes in the head
HIDDEN = 0.9  # share of changed pixels from which eyes count as hidden
SIZES = (24, 32, 48, 64, 80, 100, 130, 170, 220, 300)  # heights of faces, in pixels
SEED = 3
CELL = 60  # side of the structures in the background, in pixels
TRIES = 20_000  # random positions that are tried for one head
COLUMNS = (
    "picture",
    "megapixels",
    "faces",
    "hidden",
    "clear_by_size",
    "seconds",
    "detect",
    "peak_mib",
)


@dataclass(frozen=True)
class Scene:
    """A picture of `width` x `height` pixels.

    It has `repeats` faces of each of SIZES, or with `wall` only heads of that width, in pixels.
    """

    name: str
    width: int
    height: int
    repeats: int = 4
    wall: int = 0


SCENES = (
    Scene("photo-12", 4000, 3000),
    Scene("photo-24", 6000, 4000),
    Scene("photo-54", 9000, 6000),
    Scene("photo-96", 12_000, 8000),
    Scene("panorama", 12_000, 3000),
    Scene("scroll", 1080, 16_000, 2),
    Scene("strip", 30_000, 1000, 2),
    Scene("wall-2400", 2880, 2400, wall=48),
    Scene("wall-10000", 4400, 5500, wall=44),
)


def run() -> None:
    """Print a line for each picture: its faces, the hidden ones, seconds and MiB."""
    chosen = os.environ.get("PICTURES", "")
    names = set(chosen.split(",")) if chosen else {scene.name for scene in SCENES}
    portrait = photograph(ASTRONAUT, platformdirs.user_cache_path("veil") / "samples")
    table = Table(*COLUMNS, title="dimensions")
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder:
        for scene in (scene for scene in SCENES if scene.name in names):
            path = Path(folder) / f"{scene.name}.png"
            image, heads = made(scene, portrait.crop(HEAD))
            image.save(path, compress_level=1)
            figures = _measured(path)
            before = np.asarray(image)
            after = np.asarray(Image.open(path.with_suffix(".out")).convert("RGB"))
            clear = []
            for size, x, y in heads:
                if _changed(before, after, size, x, y) < HIDDEN:
                    clear.append(size)
            line: dict[str, Any] = {
                "picture": scene.name,
                "megapixels": round(scene.width * scene.height / 1e6, 1),
                "faces": len(heads),
                "hidden": len(heads) - len(clear),
                "clear_by_size": dict(sorted(Counter(clear).items())),
                **figures,
            }
            print(json.dumps({"bench": "dimensions", **line}), flush=True)
            sizes = [f"{n} of {size} px" for size, n in line["clear_by_size"].items()]
            cells = {**line, "clear_by_size": ", ".join(sizes)}
            table.add_row(*(str(cells[name]) for name in COLUMNS))
    Console(stderr=True, width=120).print(table)


def made(scene: Scene, head: Image.Image) -> tuple[Image.Image, list[tuple[int, int, int]]]:
    """Return the picture of `scene` and its heads.

    For each head, the list has the height of its face and x and y of its upper left corner.
    """
    chance = random.Random(SEED)
    if scene.wall:
        return _wall(scene, head, chance)
    cells = np.random.default_rng(SEED).integers(
        50, 210, (scene.height // CELL + 1, scene.width // CELL + 1, 3), np.uint8
    )
    image = Image.fromarray(cells).resize((scene.width, scene.height), Image.Resampling.BICUBIC)
    heads: list[tuple[int, int, int]] = []
    taken: list[tuple[int, int, int, int]] = []
    for size in sorted(SIZES * scene.repeats, reverse=True):
        one = _head(head, size)
        for _ in range(TRIES):
            x = chance.randrange(scene.width - one.width)
            y = chance.randrange(scene.height - one.height)
            box = (x, y, x + one.width, y + one.height)
            if not any(_overlap(box, other) for other in taken):
                image.paste(one, (x, y))
                taken.append(box)
                heads.append((size, x, y))
                break
    return image, heads


def _overlap(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Return whether two boxes, x1 y1 x2 y2, overlap or touch."""
    return box[0] <= other[2] and other[0] <= box[2] and box[1] <= other[3] and other[1] <= box[3]


def _wall(
    scene: Scene, head: Image.Image, chance: random.Random
) -> tuple[Image.Image, list[tuple[int, int, int]]]:
    """Return heads without gaps, each with a random brightness, half of them mirrored."""
    size = scene.wall * FACE // head.width
    one = _head(head, size)
    image = Image.new("RGB", (scene.width, scene.height))
    heads = []
    for y in range(0, scene.height - one.height + 1, one.height):
        for x in range(0, scene.width - one.width + 1, one.width):
            varied = ImageEnhance.Brightness(one).enhance(chance.uniform(0.8, 1.15))
            if chance.random() < 0.5:
                varied = ImageOps.mirror(varied)
            image.paste(varied, (x, y))
            heads.append((size, x, y))
    return image, heads


def _head(head: Image.Image, size: int) -> Image.Image:
    return head.resize(
        (round(head.width * size / FACE), round(head.height * size / FACE)),
        Image.Resampling.LANCZOS,
    )


def _changed(
    before: NDArray[np.uint8], after: NDArray[np.uint8], size: int, x: int, y: int
) -> float:
    """Return the share of changed pixels in the eyes of the head at `x` `y`."""
    x1, y1, x2, y2 = (round(side * size / FACE) for side in EYES)
    eyes = slice(y + y1, y + y2), slice(x + x1, x + x2)
    return float((before[eyes] != after[eyes]).any(axis=-1).mean())


def _measured(path: Path) -> dict[str, Any]:
    """Return the seconds and MiB of a process that anonymizes `path`; its output is beside it."""
    command = [sys.executable, "-m", __name__, str(path)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return figures


def main(path: Path) -> None:
    from worker.anonymizer import Stopwatch
    from worker.bootstrap import build_anonymizer

    logs.configure("json")
    anonymizer = build_anonymizer(WorkerSettings.load())
    content, watch, started = path.read_bytes(), Stopwatch(), time.perf_counter()
    result = anonymizer.anonymize(content, watch)
    seconds = time.perf_counter() - started
    assert result.content
    path.with_suffix(".out").write_bytes(result.content)
    figures = {
        "seconds": round(seconds, 2),
        "peak_mib": peak() >> 20,
        "found": len(result.detections),
        **watch.seconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
