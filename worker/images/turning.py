"""The eight ways in which EXIF turns a picture, and their opposites (Exif 2.32, table 4)."""

from collections.abc import Callable

import numpy as np

from worker.pixels import Array

Turn = Callable[[Array], Array]
"""A function that turns pixels upright."""

ORIENTATION = 0x0112  # the tag
UPRIGHT = 1
# What turns the pixels upright, by the value of Orientation.
TURNS: dict[int, Turn] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}
SIDEWAYS = (5, 6, 7, 8)  # the values that exchange width and height
OPPOSITE = {6: 8, 8: 6}  # every other turn is its own opposite


def turned_back(pixels: Array, orientation: int) -> Array:
    """Return upright `pixels` as a file with this `orientation` stores them."""
    return turned(pixels, TURNS.get(OPPOSITE.get(orientation, orientation)))


def turned(pixels: Array, turn: Turn | None) -> Array:
    """Return `pixels` after `turn`, or as they are without one."""
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
