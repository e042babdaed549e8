"""Hide regions of a picture: pure functions on pixels."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.detection.boxes import Rows, connected
from worker.detection.faces import Sightings
from worker.masking.filling import OPAQUE, Hole, grain_of, replace_pixels, strips
from worker.masking.regions import MaskStyle, Regions, covered_pixels, regions
from worker.pixels import Black, Image

# `surround` fills from a ring as wide as this share of the region's smaller side, in pixels at
# least MIN_RING.
RING_SHARE, MIN_RING = 0.15, 2
# `blur` and `pixelate` keep the averages of so many cells across a region, each of MIN_CELL pixels
# or more.
CELLS_ACROSS, MIN_CELL = 3, 2


def hide(
    picture: Image,
    seen: Sightings,
    style: MaskStyle,
    black: Black = 0,
    extra: Sequence[Sequence[float]] = (),
) -> Image:
    """Return a copy of `picture` with all faces `seen` and the areas `extra` (x1 y1 x2 y2) hidden.

    `picture` is uint8 or uint16, [height, width] or [height, width, channels]; `black` is a black
    pixel, one number or one a channel. Overlapping and touching regions are hidden as one, and no
    region is filled from pixels of another.
    """
    height, width = picture.shape[:2]
    everything = regions(seen, style, width, height, extra)
    covered = covered_pixels(everything, (0, 0, width, height))
    result = picture.copy()
    for members in _groups(everything, style):
        group = everything[members]
        smallest, largest = group.sides.min(), group.sides.max()
        first, last = group.rectangles[:, :2].min(axis=0), group.rectangles[:, 2:].max(axis=0)
        feather = round(style.feather * smallest)
        ring = max(MIN_RING, round(RING_SHARE * smallest))
        grain = grain_of(ring, int((last - first).prod()))
        reach = feather + ring
        x1, y1 = (first - reach).clip(0)
        x2, y2 = np.minimum(last + reach, (width, height))
        window = (x1, y1, x2, y2)
        cell = max(MIN_CELL, math.ceil(largest / CELLS_ACROSS))
        clear = picture[y1:y2, x1:x2].reshape(y2 - y1, x2 - x1, -1)
        hole = Hole(clear, _soft(group, window, feather), covered[y1:y2, x1:x2], grain, cell, black)
        replace_pixels(result[y1:y2, x1:x2], hole, style.method)
    return result


def _groups(everything: Regions, style: MaskStyle) -> list[Rows]:
    """Return the rows of regions of one face, or of faces whose surroundings overlap."""
    if not len(everything):
        return []
    faces = np.unique(everything.faces, return_inverse=True)[1]
    surroundings = np.repeat([[np.inf, np.inf, -np.inf, -np.inf]], faces.max() + 1, axis=0)
    grown = style.feather * everything.sides[:, None] + 1
    np.minimum.at(surroundings[:, :2], faces, everything.rectangles[:, :2] - grown)
    np.maximum.at(surroundings[:, 2:], faces, everything.rectangles[:, 2:] + grown)
    group = connected(surroundings)[faces]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _soft(some: Regions, window: tuple[int, int, int, int], feather: int) -> NDArray[np.uint8]:
    """Return a soft edge: OPAQUE in the regions, falling to 0 over `feather` pixels around them."""
    x1, y1, x2, y2 = window
    soft = np.empty((y2 - y1, x2 - x1), np.uint8)
    # A pixel is affected only by regions within `feather`, so each strip reads that margin above
    # and below, and is higher than the margin.
    for rows in strips(y2 - y1, x2 - x1, max(1, 2 * feather)):
        top, bottom = y1 + rows.start, y1 + rows.stop
        covered = covered_pixels(some, (x1, top - feather, x2, bottom + feather))
        if feather:
            distance = cv2.distanceTransform(
                (~covered).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5
            )
            np.minimum(distance, feather + 1, out=distance)
            shares = cv2.convertScaleAbs(distance, alpha=-OPAQUE / (feather + 1), beta=OPAQUE)
        else:
            shares = covered * np.uint8(OPAQUE)
        soft[rows] = shares[feather : feather + bottom - top]
    return soft
