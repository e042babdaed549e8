"""The part of a GIF's screen that its frames cover (GIF89a, 18, 20 and 23).

Browsers show the rest transparent. Pillow shows it in the background colour.
"""

import struct
from collections.abc import Iterator

import numpy as np

from worker.images import containers
from worker.pixels import Array

GRAPHIC_CONTROL = b"!\xf9"
TO_BACKGROUND, TO_PREVIOUS = 2, 3  # disposal methods (23.c.iv)


def uncovered(content: bytes) -> Iterator[Array | None]:
    """Yield for each frame of the GIF `content` where nothing is drawn, bool [h, w].

    Yields None for a frame in which all of the screen is drawn.
    """
    size = containers.gif_size(content, len(content))
    covered = np.zeros((size.height, size.width), bool)
    disposal = 0
    for block in containers.gif_blocks(content):
        if block.kind == GRAPHIC_CONTROL:
            disposal = content[block.start + 3] >> 2 & 7
        elif block.kind == b",":
            left, top, width, height = struct.unpack_from("<HHHH", content, block.start + 1)
            area = np.s_[top : top + height, left : left + width]
            before = covered[area].copy()
            covered[area] = True
            yield None if covered.all() else ~covered
            if disposal == TO_BACKGROUND:
                covered[area] = False
            elif disposal == TO_PREVIOUS:
                covered[area] = before
            disposal = 0
