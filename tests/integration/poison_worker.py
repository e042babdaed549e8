"""A worker whose model does what a picture's colour says; all else is as in ``veil worker``.

    python poison_worker.py [MEMORY]

Red is read as an address, and the process dies of it; green takes all memory there is, up to MEMORY bytes; blue never
ends; yellow takes three seconds. Every picture that ends has one face.
"""

import ctypes
import resource
import sys
import time

import numpy as np

from worker import bootstrap, cli
from worker.detector import Detections

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
FACE = (16, 16, 48, 48)


class Colours:
    """In the place of the SavedModel."""

    digest = "colours"
    device = "none"
    on_gpu = False
    fixed_size = None
    score_threshold = 0.5

    def predict(self, batch):
        return [self._look(canvas) for canvas in batch]

    def _look(self, canvas):
        colour = tuple(int(value) for value in canvas[8, 8])
        if colour == RED:
            ctypes.string_at(0)
        if colour == GREEN:
            hoard = []
            while True:
                hoard.append(np.empty(1 << 26, np.uint8))
        if colour == BLUE:
            time.sleep(3600)
        time.sleep(3 if colour == YELLOW else 0.02)
        return Detections(np.array([FACE], np.float32), np.array([0.9], np.float32))


def main():
    if len(sys.argv) > 1:
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
    sys.argv = ["veil", "worker"]
    bootstrap.load_model = lambda settings: Colours()
    cli.main()


if __name__ == "__main__":
    main()
