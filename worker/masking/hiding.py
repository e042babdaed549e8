"""Hide regions of a picture: pure functions on pixels."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.detection.boxes import Rows, connected
from worker.detection.faces import Sightings
from worker.masking.filling import INDEPENDENT, OPAQUE, Hole, grain_of, replace_pixels, strips
from worker.masking.regions import MaskStyle, Part, Regions, covered_pixels, regions
from worker.pixels import Black, Image

# `surround` fills from a ring around the hole. Its width is this share of the smaller side of the
# smallest region, and at least this many pixels.
RING_SHARE, MIN_RING = 0.15, 2
# `blur` and `pixelate` keep the averages of cells: this many across a region, and each of at least
# this many pixels.
CELLS_ACROSS, MIN_CELL = 3, 2

Window = tuple[int, int, int, int]
"""x1 y1 x2 y2 in pixels of the picture."""


def hide(
    picture: Image,
    sightings: Sightings,
    style: MaskStyle,
    black: Black = 0,
    extra: Sequence[Sequence[float]] = (),
) -> Image:
    """Return a copy of `picture` with the faces of `sightings` and the areas `extra` hidden.

    See hide_and_mark.
    """
    return hide_and_mark(picture, [Part(sightings, style)], black, extra)[0]


def hide_and_mark(
    picture: Image,
    parts: Sequence[Part],
    black: Black = 0,
    extra: Sequence[Sequence[float]] = (),
) -> tuple[Image, NDArray[np.bool_]]:
    """Return a copy of `picture` with the objects of all `parts` and the areas `extra` hidden.

    The second array, bool [height, width], marks the pixels of regions and their soft edges; all
    others are unchanged. `picture` is uint8 or uint16, [height, width] or [height, width,
    channels]; `black` is a black pixel, one number or one for each channel; `extra` are x1 y1 x2
    y2, hidden in the style of the first part. Overlapping and touching regions of a part are hidden
    as one, and no region is filled from pixels of another one of any part.
    """
    height, width = picture.shape[:2]
    covered = np.zeros((height, width), bool)
    planned = []
    for number, part in enumerate(parts):
        areas = extra if number == 0 else ()
        hidden = regions(part.sightings, part.style, width, height, areas)
        covered |= covered_pixels(hidden, (0, 0, width, height))
        planned.append((hidden, part.style))
    # Where regions of two parts overlap, a method that keeps nothing of its region comes last.
    planned.sort(key=lambda plan: plan[1].method in INDEPENDENT)
    result = picture.copy()
    edges = []
    for hidden, style in planned:
        for rows in _groups(hidden, style):
            window, hole = _hole(picture, hidden[rows], style, covered, black)
            x1, y1, x2, y2 = window
            replace_pixels(result[y1:y2, x1:x2], hole, style.method)
            edges.append((window, hole.opacity > 0))
    changed = covered
    for (x1, y1, x2, y2), pixels in edges:
        changed[y1:y2, x1:x2] |= pixels
    return result, changed


def _hole(
    picture: Image, group: Regions, style: MaskStyle, covered: NDArray[np.bool_], black: Black
) -> tuple[Window, Hole]:
    """Return the hole that hides the regions of `group`, and its window.

    The window includes the soft edge and the ring. `covered` bool [height, width] marks all regions
    of the picture.
    """
    height, width = picture.shape[:2]
    smallest, largest = group.sides.min(), group.sides.max()
    first, last = group.rectangles[:, :2].min(axis=0), group.rectangles[:, 2:].max(axis=0)
    feather = round(style.feather * smallest)
    ring = max(MIN_RING, round(RING_SHARE * smallest))
    reach = feather + ring
    x1, y1 = (first - reach).clip(0)
    x2, y2 = np.minimum(last + reach, (width, height))
    window = (x1, y1, x2, y2)
    hole = Hole(
        pixels=picture[y1:y2, x1:x2].reshape(y2 - y1, x2 - x1, -1),
        opacity=_opacity(group, window, feather),
        covered=covered[y1:y2, x1:x2],
        grain=grain_of(ring, int((last - first).prod())),
        cell=max(MIN_CELL, math.ceil(largest / CELLS_ACROSS)),
        black=black,
    )
    return window, hole


def _groups(everything: Regions, style: MaskStyle) -> list[Rows]:
    """Return the rows of regions in groups: of one face, or of faces whose surroundings overlap."""
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


def _opacity(group: Regions, window: Window, feather: int) -> NDArray[np.uint8]:
    """Return the opacity of `window`: OPAQUE in the regions, falling to 0 over `feather` pixels."""
    x1, y1, x2, y2 = window
    opacity = np.empty((y2 - y1, x2 - x1), np.uint8)
    # A pixel is affected only by regions within `feather`, so each strip reads that margin above
    # and below, and is higher than the margin.
    for rows in strips(y2 - y1, x2 - x1, max(1, 2 * feather)):
        top, bottom = y1 + rows.start, y1 + rows.stop
        covered = covered_pixels(group, (x1, top - feather, x2, bottom + feather))
        if feather:
            distance = cv2.distanceTransform(
                (~covered).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5
            )
            np.minimum(distance, feather + 1, out=distance)
            levels = cv2.convertScaleAbs(distance, alpha=-OPAQUE / (feather + 1), beta=OPAQUE)
        else:
            levels = covered * np.uint8(OPAQUE)
        opacity[rows] = levels[feather : feather + bottom - top]
    return opacity
