"""The memory for the largest picture of each kind that the limits allow, with a face that fills it.

Each picture has its own process, whose peak resident set is compared with the one before. A fixed
box replaces the detector; the last row is a whole worker with its model. ``VEIL_VERIFY=flag``
includes the check.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from worker.detection.faces import Detections
from worker.images import deep
from worker.pixels import Pixels
from worker.settings import WorkerSettings

SEED = 1
NOISE_BYTES = 40 << 20  # noise in the largest file, so that the sizes of source and output count
WITH_MODEL = "JPEG RGB"


@dataclass(frozen=True)
class Kind:
    """A kind of picture; `form` and `mode` are names of Pillow, `cost` the factor of its pixels."""

    form: str
    mode: str
    cost: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.form} {self.mode}"


KINDS = [
    Kind("JPEG", "RGB", options={"quality": 90}),
    Kind("JPEG", "CMYK", 2, options={"progressive": True}),
    Kind("PNG", "RGBA", 2, options={"compress_level": 1}),
    Kind("PNG", "P", options={"compress_level": 1}),
    Kind("PNG", "RGBA;16", 3),
    Kind("TIFF", "RGB;16", 3),
    Kind("TIFF", "CMYK", 2, options={"compression": "tiff_adobe_deflate"}),
    Kind("GIF", "P", 2),
    Kind("WEBP", "RGBA", 3, {"lossless": True, "method": 0, "quality": 0}),
    Kind("AVIF", "RGBA", 3, {"speed": 10}),
    Kind("JPEG2000", "RGBA", 6),
    Kind("BMP", "RGB"),
]


@dataclass(frozen=True)
class Sees:
    """A detector that finds `face`, x1 y1 x2 y2 in pixels, in each picture."""

    face: tuple[int, int, int, int]

    def detect(self, _picture: Pixels) -> Detections:
        return Detections(np.array([self.face], np.float32), np.array([0.9], np.float32))


def run() -> None:
    """Print a line for each kind: its size, and the memory that it needs."""
    settings = WorkerSettings()
    table = Table(
        "kind",
        "megapixels",
        "file, MB",
        "needs, MiB",
        "bytes a pixel that counts",
        title="largest pictures",
    )
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder:
        path = Path(folder) / "picture"
        rows = [(kind, False) for kind in KINDS]
        rows += [(kind, True) for kind in KINDS if kind.name == WITH_MODEL]
        for kind, with_model in rows:
            # Another process writes the picture, because this one would keep the memory.
            _python(
                "write", str(settings.max_pixels), str(path), str(settings.max_bytes), kind.name
            )
            figures = needed(path, settings.max_pixels, with_model)
            name = f"{kind.name}, with the model" if with_model else kind.name
            print(json.dumps({"bench": "memory", "kind": name, **figures}), flush=True)
            table.add_row(
                name,
                f"{figures['megapixels']}",
                f"{figures['file_mb']}",
                f"{figures['needed_mib']:,}",
                f"{figures['needed_mib'] * 2**20 / settings.max_pixels:.1f}",
            )
    Console(stderr=True).print(table)


def needed(path: Path, max_pixels: int, with_model: bool = False) -> dict[str, Any]:
    """Return the peak memory of a new process for the picture at `path`, in MiB.

    With the model, the whole memory of the process counts, otherwise the growth.
    """
    printed = _python("measure", str(max_pixels), str(path), "model" if with_model else "")
    figures: dict[str, Any] = json.loads(printed.splitlines()[-1])  # the log comes before
    return figures


def write(kind: Kind, path: Path, max_pixels: int, max_bytes: int) -> None:
    """Write the largest allowed square picture: a gradient, with as much noise as fits."""
    pixels = min(max_pixels // kind.cost, max_bytes // 3 if kind.form == "BMP" else max_pixels)
    side = int(pixels**0.5) - 8
    planes = _planes(side, 4 if kind.mode != "P" else 3)
    rows = (
        side
        if kind.form == "BMP"
        else min(side, NOISE_BYTES * max_bytes // (64 << 20) // (4 * side) // kind.cost)
    )
    planes[:rows] = np.random.default_rng(SEED).integers(0, 256, planes[:rows].shape, np.uint8)
    if kind.mode.endswith(";16"):
        values = planes[..., : len(kind.mode) - 3].astype(np.uint16) * 257
        path.write_bytes(
            deep.write_png(values, None, None)
            if kind.form == "PNG"
            else deep.write_tiff([values], None)
        )
        return
    if kind.mode == "P":
        picture = Image.fromarray(planes[..., 0])
        picture.putpalette(bytes(range(256)) * 3)
    else:
        picture = Image.fromarray(planes, "CMYK" if kind.mode == "CMYK" else "RGBA").convert(
            kind.mode
        )
    picture.save(path, kind.form, **kind.options)


def _planes(side: int, channels: int) -> NDArray[np.uint8]:
    along = (np.arange(side) * 200 // side).astype(np.uint8)
    planes = np.empty((side, side, channels), np.uint8)
    for channel in range(channels):
        planes[..., channel] = along[None] if channel % 2 else along[:, None]
    planes[..., -1] += 55
    return planes


def _measure(path: Path, max_pixels: int, with_model: bool) -> dict[str, Any]:
    from tasks.messages import AnonymizeOptions
    from worker.anonymizer import Anonymizer, Limits, Stopwatch
    from worker.bootstrap import build_anonymizer
    from worker.masking.regions import MaskStyle

    settings = WorkerSettings()
    with Image.open(path) as image:
        side = image.width
    content = path.read_bytes()
    face = (round(side * 0.02), round(side * 0.02), round(side * 0.98), round(side * 0.98))
    before = 0 if with_model else peak()
    if with_model:
        anonymizer, options = build_anonymizer(settings), AnonymizeOptions.parse(extra=[face])
    else:
        limits = Limits(settings.max_bytes, max_pixels, settings.fetch_seconds)
        style = MaskStyle("surround", 1.0, 0.0, "ellipse", settings.feather)
        anonymizer = Anonymizer(
            detector=Sees(face), style=style, limits=limits, verify=settings.verify
        )
        options = AnonymizeOptions()
    result = anonymizer.anonymize(content, Stopwatch(), options)
    assert result.content
    return {
        "megapixels": round(side * side / 1e6, 1),
        "file_mb": round(len(content) / 1e6, 1),
        "needed_mib": (peak() - before) >> 20,
        "peak_mib": peak() >> 20,
    }


def peak() -> int:
    """Return the peak resident set of the process in bytes; getrusage includes its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _python(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", __name__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    what, allowed, place, *rest = sys.argv[1:]
    if what == "write":
        chosen = next(kind for kind in KINDS if kind.name == rest[1])
        write(chosen, Path(place), int(allowed), int(rest[0]))
    else:
        print(json.dumps(_measure(Path(place), int(allowed), bool(rest[0]))))
