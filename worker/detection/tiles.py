"""Tiles: the overlapping parts of a view that is larger than what the model is given at once."""

import math
from collections.abc import Iterator

Tile = tuple[slice, slice]
"""Rows and columns of a view."""


def tiles(height: int, width: int, size: tuple[int, int], overlap: int) -> Iterator[Tile]:
    """Yield the parts, at most `size` (height, width), that cover a view of `height` x `width`, in
    pixels.

    Neighbours share `overlap` pixels or more, so that whatever is no larger lies whole in one of
    them. All parts have one size, so that the model is given few shapes, and no pixel is in none.
    """
    for rows in _spans(height, size[0], overlap):
        for columns in _spans(width, size[1], overlap):
            yield rows, columns


def quarters(height: int, width: int, overlap: int) -> Iterator[Tile]:
    """Yield the four parts of a view whose neighbours share `overlap` pixels, at most a quarter of
    a side.
    """
    down, across = min(overlap, height // 4), min(overlap, width // 4)
    for rows in _spans(height, -(-(height + down) // 2), down):
        for columns in _spans(width, -(-(width + across) // 2), across):
            yield rows, columns


def _spans(length: int, most: int, overlap: int) -> Iterator[slice]:
    """Yield the equal parts, at most `most` long, of a side of `length` pixels."""
    if length <= most:
        yield slice(0, length)
        return
    count = math.ceil((length - overlap) / (most - overlap))
    part = math.ceil((length - overlap) / count) + overlap
    for number in range(count):
        start = (length - part) * number // (count - 1)
        yield slice(start, start + part)
