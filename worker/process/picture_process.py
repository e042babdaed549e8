"""The program of a picture process, which a worker starts (`worker.process.pool`).

    python -m worker.process.picture_process PARENT CHANNEL PICTURES CANVASES

PARENT is the worker's process ID. The others are descriptors: of a socket, and of two files in
memory for pictures and for canvases.
"""

import sys
from contextlib import suppress

from worker.process import sandbox


def main() -> None:
    parent, channel, pictures, canvases = map(int, sys.argv[1:])
    sandbox.subordinate_to(parent)
    # Imported after the signals are set, because it takes a second.
    from worker.process.channel import ChannelClosed
    from worker.process.picture_work import PictureWork

    with suppress(ChannelClosed):
        PictureWork.connect(channel, pictures, canvases).run()


if __name__ == "__main__":
    main()
