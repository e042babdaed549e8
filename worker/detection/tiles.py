"""Tiles: the overlapping parts of an image that is larger than a canvas may be."""

import math
from collections.abc import Iterator

Tile = tuple[slice, slice]
"""Rows and columns of an image."""


def tiles(height: int, width: int, size: tuple[int, int], overlap: int) -> Iterator[Tile]:
    """Yield tiles of at most `size` (height, width) that cover `height` x `width` pixels.

    Neighbours share at least `overlap` pixels, so whatever is no larger lies whole in one of them.
    All tiles have the same size, so that the model gets few shapes.
    """
    for rows in _spans(height, size[0], overlap):
        for columns in _spans(width, size[1], overlap):
            yield rows, columns


def quarters(height: int, width: int, overlap: int) -> Iterator[Tile]:
    """Yield four tiles that cover `height` x `width` pixels.

    Neighbours share `overlap` pixels, but at most a quarter of a side.
    """
    down, across = min(overlap, height // 4), min(overlap, width // 4)
    for rows in _spans(height, -(-(height + down) // 2), down):
        for columns in _spans(width, -(-(width + across) // 2), across):
            yield rows, columns


def _spans(length: int, max_length: int, overlap: int) -> Iterator[slice]:
    """Yield equal spans of at most `max_length` that cover a side of `length` pixels."""
    if length <= max_length:
        yield slice(0, length)
        return
    count = math.ceil((length - overlap) / (max_length - overlap))
    span = math.ceil((length - overlap) / count) + overlap
    for number in range(count):
        start = (length - span) * number // (count - 1)
        yield slice(start, start + span)
