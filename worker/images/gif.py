"""The part of a GIF's screen that its frames cover, and GIFs without metadata (GIF89a).

Browsers show what no frame covers transparent. Pillow shows it in the background colour.
"""

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from worker.images import containers
from worker.pixels import Array

GRAPHIC_CONTROL = b"!\xf9"
TO_BACKGROUND, TO_PREVIOUS = 2, 3  # disposal methods (23.c.iv)
# Bytes of the extensions that are kept: of a graphic control (23), and of repeats.
GRAPHIC_CONTROL_BYTES, REPEATS_BYTES = 8, 19
# A decoder needs more of a frame's compressed data than all but so many bytes.
MAX_BEHIND = 8


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


def bare(content: bytes) -> bytes | None:
    """Return the GIF `content` with its frames, their timing and repeats alone.

    Returns None if other data may stand behind the pixels of a frame or in an extension, and if a
    frame has several graphic controls or the GIF several numbers of repeats.
    """
    parts = [content[: containers.gif_header_end(content)]]
    has_control = has_repeats = False
    for block in containers.gif_blocks(content):
        data = content[block.start : block.end]
        if block.kind == b",":
            if not _is_filled(parts[0], data):
                return None
            parts.append(data)
            has_control = False
        elif block.kind == GRAPHIC_CONTROL:
            if has_control or len(data) != GRAPHIC_CONTROL_BYTES:
                return None
            parts.append(data)
            has_control = True
        elif data.startswith(containers.GIF_REPEATS):
            if has_repeats or len(data) != REPEATS_BYTES:
                return None
            parts.append(data)
            has_repeats = True
    return b"".join([*parts, b";"])


def _is_filled(header: bytes, frame: bytes) -> bool:
    """Return whether the compressed data of `frame` is needed up to its end."""
    at = containers.gif_data_start(frame)
    data = b"".join(_data_blocks(frame, at))[:-MAX_BEHIND]
    blocks = [data[start : start + 255] for start in range(0, len(data), 255)]
    parts = [header, frame[:at], *(bytes([len(block)]) + block for block in blocks), b"\0;"]
    try:
        with Image.open(io.BytesIO(b"".join(parts)), formats=("GIF",)) as image:
            image.load()
    except Exception:  # It is cut short, as it should be.
        return True
    return False


def _data_blocks(frame: bytes, at: int) -> Iterator[bytes]:
    while frame[at]:
        yield frame[at + 1 : at + 1 + frame[at]]
        at += 1 + frame[at]
