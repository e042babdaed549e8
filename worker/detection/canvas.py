"""Canvases: the arrays given to the model, made from a picture at any size."""

from bisect import bisect_left

import cv2
import numpy as np

from worker.pixels import Pixels

# The sides of a canvas are multiples of this many pixels, so that few shapes occur and canvases
# form batches. CenterFace needs multiples of 32.
SIDE_MULTIPLE = 64
PADDING_GRAY = 114  # level of 255; fills the rest of a canvas

# The longest side, in pixels, of a canvas for a model that takes any size. Larger images are cut
# into tiles.
MAX_CANVAS_SIDE = 1920

# The sides of canvases for a GPU, which tunes itself to each shape, and whose batches need canvases
# of one shape. From 192 on, each is at most 1.34 times the one before it.
GPU_SIDES = (64, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, MAX_CANVAS_SIDE)

Size = tuple[int, int]
"""Height and width, in pixels."""


def canvas_size(height: int, width: int, has_few_shapes: bool = False) -> Size:
    """Return the size of the canvas for a part of `height` x `width` pixels.

    Its sides are the next multiples of SIDE_MULTIPLE, or, for `has_few_shapes`, the next of
    GPU_SIDES.
    """
    side = _next_gpu_side if has_few_shapes else _next_multiple
    return side(height), side(width)


def padded(part: Pixels, size: Size | None = None) -> Pixels:
    """Return a canvas with `part`, uint8 RGB [height, width, 3], in its upper left corner.

    The rest is gray. Without a `size`, the canvas has that of `canvas_size`.
    """
    height, width = part.shape[:2]
    canvas = np.full((*(size or canvas_size(height, width)), 3), PADDING_GRAY, np.uint8)
    canvas[:height, :width] = part
    return canvas


def _next_multiple(side: int) -> int:
    return -(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE


def _next_gpu_side(side: int) -> int:
    return GPU_SIDES[bisect_left(GPU_SIDES, side)]


class Pyramid:
    """A picture, uint8 [height, width, 3], that passes of any size are resized from.

    It keeps the halves, quarters, … of the picture, each of which is computed once.
    """

    def __init__(self, picture: Pixels) -> None:
        self.height, self.width = picture.shape[:2]
        self._levels = [picture]

    def resized(self, factor: float) -> Pixels:
        """Return the picture with its sides multiplied by `factor`, rounded, at least one pixel.

        Halving is exact and fast, so the picture is halved as often as possible. Interpolation
        does the rest, less than a factor of two, and skips no pixel but the odd last row or column
        of each halving. Averaging all the way takes eight times as long and finds no more faces.
        """
        width, height = max(1, round(self.width * factor)), max(1, round(self.height * factor))
        number = 0
        level = self._level(number)
        while level.shape[1] >= 2 * width and level.shape[0] >= 2 * height:
            number += 1
            level = self._level(number)
        return np.asarray(
            cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8
        )

    def _level(self, number: int) -> Pixels:
        """Return the picture halved `number` times, without an odd last row or column."""
        if number == len(self._levels):
            previous = self._levels[-1]
            height, width = previous.shape[0] // 2, previous.shape[1] // 2
            even = previous[: 2 * height, : 2 * width]
            halved = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
            self._levels.append(np.asarray(halved, np.uint8))
        return self._levels[number]
