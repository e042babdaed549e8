"""A process whose detector is a stand-in for an accelerator: it takes its time, and no processor.

``python -m tools.benchmarks.harness.stand_in worker`` is a worker, and ``… alone`` the detector
alone, configured by the environment. What the real model finds in the pictures of STAND_IN_PICTURES
is found out at the start; from then on each batch is answered from that, after as long as a device
of STAND_IN_MEGAPIXELS_A_SECOND takes. It knows no other pictures.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from tools.benchmarks.harness import alone
from worker import bootstrap, cli, images, logs
from worker.detection.faces import Detections
from worker.detection.model import Model
from worker.pixels import Pixels
from worker.settings import WorkerSettings

PICTURES, SPEED = "STAND_IN_PICTURES", "STAND_IN_MEGAPIXELS_A_SECOND"
SAMPLED = 16  # one pixel of so many in each direction tells pictures apart


class StandIn:
    """In the place of `model`, as one on a device would be: one batch after the other, of many pictures."""

    engine = "stand-in"
    device = "a stand-in for an accelerator"
    on_gpu = True
    lanes = 1

    def __init__(self, model: Model, megapixels_per_second: float) -> None:
        self.folder = model.folder
        self.digest = f"stand-in-{model.digest}"
        self.score_threshold = model.score_threshold
        self.fixed_size = model.fixed_size
        self.learns = True
        self._model = model
        self._speed = megapixels_per_second
        self._known: dict[bytes, Detections] = {}

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """What the model found in each of the batch; while it `learns`, what the model finds."""
        names = [canvas[::SAMPLED, ::SAMPLED].tobytes() for canvas in batch]
        if self.learns:
            self._known.update(zip(names, self._model.predict(batch), strict=True))
        else:
            time.sleep(batch[..., 0].size / 1e6 / self._speed)
        return [self._known[name] for name in names]


def install() -> None:
    """Let whatever is built in this process from now on have the stand-in for its model."""
    logs.configure("json")
    settings = WorkerSettings.load()
    model = StandIn(bootstrap.load_model(settings), float(os.environ[SPEED]))
    patch.object(bootstrap, "load_model", return_value=model).start()
    anonymizer = bootstrap.build_anonymizer(settings)
    for path in sorted(Path(os.environ[PICTURES]).iterdir()):
        anonymizer.look(images.decode(path.read_bytes(), settings.max_pixels))
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
