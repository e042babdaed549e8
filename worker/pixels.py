"""Type aliases of arrays of pixels, and their reduction."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""uint8 RGB [height, width, 3], or a batch of them [n, height, width, 3]."""
Array = NDArray[Any]
"""Samples of any type and shape."""
Image = NDArray[Any]
"""uint8 or uint16, [height, width] or [height, width, channels]."""
Floats = NDArray[np.floating[Any]]
"""float32"""
Black = int | Sequence[int]
"""A black pixel: one number, or one for each channel."""


def reduced(pixels: Pixels, side: int) -> Pixels:
    """Return `pixels` with a longest side of `side`, by averaging; smaller ones as they are."""
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
