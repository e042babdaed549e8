"""A worker whose model obeys the colour of the picture; all else is as in ``veil worker``.

    python poison_worker.py [--memory=BYTES] [--file-size=BYTES] [--audit=FILE] [--scheduled=N]

Red ends the process by an access to a bad address. Green takes all memory. Blue never ends. Yellow
takes three seconds. Every other picture has one face, except for cyan, which has none, magenta,
which has another face in each detection, and white, which has a CROWD. `memory` and `file-size` are
limits of the process. `audit` names a file for the paths that the process opens and the programs
that it starts; a file that is opened to write has a line that begins with ``write``. `scheduled`
replaces the number of messages that a worker holds before their time.
"""

import ctypes
import itertools
import os
import resource
import sys
import time

import numpy as np

from tasks.delivery import transport
from worker import cli, models
from worker.detection.faces import Detections

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
CYAN, MAGENTA, WHITE = (0, 255, 255), (255, 0, 255), (255, 255, 255)
FACE = (16, 16, 48, 48)
# The faces of magenta, in a picture of 256 x 256: their side, and the distance of two of them.
SIDE, APART = 20, 28
CROWD = [(x, y, x + 4, y + 4) for y in range(12, 252, 8) for x in range(12, 252, 8)]  # 900 faces


class Colours:
    """A replacement for the SavedModel."""

    digest = "colours"
    engine = "none"
    device = "none"
    lanes = 1
    on_gpu = False
    fixed_size = None
    score_threshold = 0.5
    looks = itertools.count()

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
        if colour == CYAN:
            return Detections.none()
        faces = [FACE]
        if colour == MAGENTA:
            row, column = divmod(next(self.looks) % 49, 7)
            x, y = 24 + APART * column, 24 + APART * row
            faces = [(x, y, x + SIDE, y + SIDE)]
        if colour == WHITE:
            faces = CROWD
        return Detections(np.array(faces, np.float32), np.full(len(faces), 0.9, np.float32))


def audit(path):
    """Record the files that are opened and the programs that are started from now on."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event, arguments):
        if event in ("open", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
            if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                event = "write"
            os.write(file, f"{event} {arguments[0]}\n".encode("utf-8", "backslashreplace"))

    sys.addaudithook(note)


def main():
    options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    if "memory" in options:
        resource.setrlimit(resource.RLIMIT_AS, (int(options["memory"]),) * 2)
    if "file-size" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(options["file-size"]),) * 2)
    if "scheduled" in options:
        transport.MAX_SCHEDULED = int(options["scheduled"])
    if "audit" in options:
        audit(options["audit"])
    sys.argv = ["veil", "worker"]
    models.load_model = lambda *_: Colours()
    cli.main()


if __name__ == "__main__":
    main()
