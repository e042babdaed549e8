"""Compare an output with its picture: regions whose content the output still shows."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.masking.regions import Regions, covered_pixels
from worker.pixels import Image

# Regions are compared at SIDE pixels a side. Details finer than about three times DETAIL of these
# show a person; what is coarser, every method keeps. Within EDGE of these from its edge a region
# continues what surrounds it.
SIDE, DETAIL, EDGE = 32, 2, 3
# The share of the details that survives in a region that is shown. docs/detection.md has figures
# of right outputs, and of wrong ones.
MIN_SURVIVING = 0.75
# A region whose details differ by less than this on average, in levels of 255, shows nothing.
MIN_CONTRAST = 1.0


def shown(picture: Image, output: Image, hidden: Regions) -> NDArray[np.bool_]:
    """Return for each of the regions `hidden`, [n], whether `output` shows what `picture` does.

    Both are uint8 or uint16, [height, width] or [height, width, channels], and of one size.
    """
    return np.array([_survives(picture, output, hidden[[row]]) for row in range(len(hidden))], bool)


def _survives(picture: Image, output: Image, region: Regions) -> bool:
    """Return whether the details of `picture` in `region`, which is one, survive in `output`."""
    (x1, y1, x2, y2), outline = region.rectangles[0], region.outlines[0]
    weights = np.zeros((SIDE, SIDE), np.float32)
    weights[EDGE:-EDGE, EDGE:-EDGE] = 1
    if np.isfinite(outline[2]):
        weights *= _resized(covered_pixels(region, (x1, y1, x2, y2)).view(np.uint8))
    before = _details(picture[y1:y2, x1:x2]) * weights
    after = _details(output[y1:y2, x1:x2]) * weights
    strength = float((before * before).sum())
    if strength <= MIN_CONTRAST**2 * float(weights.sum()):
        return False
    stronger = max(strength, float((after * after).sum()))
    return float((before * after).sum()) >= MIN_SURVIVING * stronger


def _details(pixels: Image) -> NDArray[np.float32]:
    """Return the details of `pixels` at SIDE x SIDE, in levels of 255."""
    small = _resized(pixels) * (255 / np.iinfo(pixels.dtype).max)
    gray = small if small.ndim == 2 else small.mean(axis=2)
    return gray - cv2.GaussianBlur(gray, (0, 0), DETAIL)


def _resized(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return `values` at SIDE x SIDE, without a copy of all of them in floating point."""
    return np.asarray(cv2.resize(values, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float32)
