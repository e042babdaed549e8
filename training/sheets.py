"""Sheets of small pictures with drawn boxes, for reports."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from worker.pixels import Pixels

GAP = 8  # pixels
Colour = tuple[int, int, int]
PAPER: Colour = (250, 249, 246)
LABELLED: Colour = (42, 111, 151)
FOUND: Colour = (122, 140, 60)
ALARM: Colour = (226, 60, 38)
IGNORED: Colour = (150, 150, 150)


def draw(pixels: Pixels, corners: Sequence[Any], colour: Colour) -> None:
    """Draw a box, x1 y1 x2 y2, into `pixels`."""
    x1, y1, x2, y2 = (round(float(corner)) for corner in corners)
    cv2.rectangle(pixels, (x1, y1), (x2, y2), colour, 2, cv2.LINE_AA)


def sheet(tiles: Sequence[Pixels], side: int, columns: int) -> Pixels:
    """Return one picture of `tiles`, squares of `side` pixels, in rows of `columns`."""
    rows = -(-len(tiles) // columns)
    shape = rows * (side + GAP) + GAP, columns * (side + GAP) + GAP, 3
    whole = np.full(shape, PAPER, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (GAP + place * (side + GAP) for place in divmod(i, columns))
        whole[y : y + side, x : x + side] = tile
    return whole


def encoded(pixels: Pixels, suffix: str) -> bytes:
    """Return RGB `pixels` as a file of the format that `suffix` names, such as ``.png``."""
    _, content = cv2.imencode(suffix, pixels[..., ::-1])
    return content.tobytes()
