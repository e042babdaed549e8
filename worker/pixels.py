"""Type aliases of arrays of pixels."""

from collections.abc import Sequence
from typing import Any

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
