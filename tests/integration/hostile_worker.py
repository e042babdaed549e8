"""A worker as in ``veil worker``, whose picture processes obey their pictures (hostile_process.py).

Its model finds one face in each canvas.
"""

import sys
from functools import partial
from pathlib import Path

from tests.integration.poison_worker import Colours
from worker import cli, models
from worker.process import pool

COMMAND = (
    sys.executable,
    "-P",
    "-X",
    "faulthandler",
    str(Path(__file__).with_name("hostile_process.py")),
)

if __name__ == "__main__":
    pool.PicturePool = partial(pool.PicturePool, command=COMMAND)
    models.load_model = lambda *_: Colours()
    sys.argv = ["veil", "worker"]
    cli.main()
