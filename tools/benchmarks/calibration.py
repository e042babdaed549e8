"""Calibrate the 8-bit version of the default detector.

``python -m tools.benchmarks.calibration`` rewrites
``worker/detection/centerface/calibration.json``. It runs the network in floats on one picture in
EVERY of the annotated sets, as `veil anonymize` does, and records the range of every channel. It
does not use annotations. FACES_DATA is the folder of the sets. ``make bench ONLY=exposure``
measures the result.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from tools.benchmarks.exposure import SETS, sources
from worker.detection.centerface.calibration import CALIBRATION
from worker.detection.centerface.default import WEIGHTS
from worker.detection.centerface.measuring import calibrated
from worker.detection.centerface.network import Network
from worker.detection.detector import canvases_of
from worker.pixels import Pixels
from worker.settings import WorkerSettings

EVERY = 6


def canvases(folder: Path) -> Iterator[Pixels]:
    """Yield the network's inputs for some of the pictures in `folder`."""
    look = replace(WorkerSettings().pass_settings(), turned="never")
    for path in sorted(folder.iterdir())[::EVERY]:
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert pixels is not None
        yield from canvases_of(np.ascontiguousarray(pixels[..., ::-1].astype(np.uint8)), look)


def main() -> int:
    data, _ = sources()
    missing = [str(data / name) for name in SETS if not (data / name).exists()]
    if missing:
        print(f"calibration needs {', '.join(missing)}", file=sys.stderr)
        return 1
    network = Network.of(WEIGHTS.fetch())
    pictures = (canvas for name in SETS for canvas in canvases(data / name / "images"))
    CALIBRATION.write_text(calibrated(network, pictures).written())
    return 0


if __name__ == "__main__":
    sys.exit(main())
