"""A simulated accelerator: a detector that takes time, but no processor.

``python -m tools.benchmarks.harness.stand_in worker`` is a worker, and ``… alone`` the detector
alone, both configured by the environment. At the start, the real model detects faces in all
pictures of STAND_IN_PICTURES. Later batches get the recorded detections after the time of a device
of STAND_IN_MEGAPIXELS_A_SECOND. Other pictures are not supported.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from tools.benchmarks.harness import alone
from worker import bootstrap, cli, images, logs, models
from worker.detection.faces import Detections
from worker.detection.model import Model
from worker.pixels import Pixels
from worker.settings import WorkerSettings

PICTURES, SPEED = "STAND_IN_PICTURES", "STAND_IN_MEGAPIXELS_A_SECOND"
SAMPLED = 16  # step of the sampled pixels, in each direction, that identify a picture


class StandIn:
    """A replacement of `model` that processes batches one after the other, as a device does.

    As with a GPU, the worker prepares one batch while the device has another. Blank canvases, with
    which a worker warms up its model, take no time and have no faces.
    """

    engine = "stand-in"
    device = "a stand-in for an accelerator"
    on_gpu = True
    lanes = 2

    def __init__(self, model: Model, megapixels_per_second: float) -> None:
        self.folder = model.folder
        self.name = model.name
        self.digest = f"stand-in-{model.digest}"
        self.score_threshold = model.score_threshold
        self.fixed_size = model.fixed_size
        self.learns = True
        self._model = model
        self._speed = megapixels_per_second
        self._known: dict[bytes, Detections] = {}
        self._device = threading.Lock()

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """Return the recorded detections; with `learns`, record those of the model."""
        sampled = batch[:, ::SAMPLED, ::SAMPLED]
        if not sampled.any():
            return [Detections.none() for _ in batch]
        names = [canvas.tobytes() for canvas in sampled]
        if self.learns:
            self._known.update(zip(names, self._model.predict(batch), strict=True))
        else:
            with self._device:
                time.sleep(batch[..., 0].size / 1e6 / self._speed)
        return [self._known[name] for name in names]


def install() -> None:
    """Replace the model of this process."""
    logs.configure("json")
    settings = WorkerSettings.load()
    model = StandIn(models.load_model(settings), float(os.environ[SPEED]))
    patch.object(models, "load_model", return_value=model).start()
    anonymizer = bootstrap.build_anonymizer(settings)
    for path in sorted(Path(os.environ[PICTURES]).iterdir()):
        anonymizer.detect_frames(images.decode(path.read_bytes(), settings.max_pixels))
    model.learns = False


def main() -> None:
    install()
    if sys.argv[1:] == ["worker"]:
        sys.argv = ["veil", "worker"]
        cli.main()
    else:
        alone.main()


if __name__ == "__main__":
    main()
