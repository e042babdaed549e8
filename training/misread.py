"""Boxes that a source wrote in another form than its format has, such as fractions or corners."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
Corners = NDArray[np.float64]
Flags = NDArray[np.bool_]

SMALLEST = 1.0  # pixels; a box with a smaller side, or as little within its picture, is empty
OVERHANG = 0.05  # share of a side by which a box may reach outside, as boxes of some tools do
LARGEST_FRACTION = 2.0  # the sum of a position and a side, in shares of the picture
# A source is refused if more than MOST of its boxes are empty. Another form is suspected if MISFITS
# of the boxes don't fit their pictures, and believed if FITTING of them do in that form.
MOST, MISFITS, FITTING = 0.5, 0.2, 0.98


class Form(NamedTuple):
    """The form of the boxes of a format, and the one that they are most often confused with.

    `reread` takes boxes that were read in the form `wanted`, as corners, and reads them as `other`.
    """

    name: str
    wanted: str
    other: str
    reread: Callable[[Corners], Corners]
    is_in_pixels: bool = True


def _sides_as_corners(boxes: Corners) -> Corners:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _corners_as_sides(boxes: Corners) -> Corners:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _centre_as_corners(boxes: Corners) -> Corners:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


CORNERS, SIDES = "x1 y1 x2 y2", "x y width height"
FORMS = {
    "voc": Form("Pascal VOC", CORNERS, SIDES, _corners_as_sides),
    "coco": Form("COCO", SIDES, CORNERS, _sides_as_corners),
    "yolo": Form("YOLO", "centre and sides", CORNERS, _centre_as_corners, is_in_pixels=False),
    "wider": Form("WIDER FACE", SIDES, CORNERS, _sides_as_corners),
    "veil": Form("annotations.json", CORNERS, SIDES, _corners_as_sides),
}


def fault(form: str, boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> str | None:
    """Return why none of the boxes of a source in the format `form` can be used; None if they can.

    `boxes` are x1 y1 x2 y2 in pixels, not yet cut, and `sizes` the (width, height) of the picture
    of each.
    """
    if not boxes:
        return None
    corners, extents = np.array(boxes, np.float64), np.array(sizes, np.float64)
    its = FORMS[form]
    is_empty = _are_empty(corners, extents)
    most_are_empty = is_empty.mean() > MOST
    if most_are_empty and its.is_in_pixels and _are_fractions(corners[is_empty]).mean() >= FITTING:
        return f"boxes look like fractions of the picture; {its.name} wants pixels"
    misfits = ~_fit(corners, extents)
    if misfits.mean() >= MISFITS and _fit(its.reread(corners), extents).mean() >= FITTING:
        return f"boxes look like {its.other}; {its.name} wants {its.wanted}"
    if most_are_empty:
        return (
            f"{is_empty.sum():,} of {len(boxes):,} boxes have no area, or lie wholly outside of "
            "their pictures"
        )
    return None


def _are_empty(corners: Corners, extents: Corners) -> Flags:
    """Return which boxes have no pixel in their picture."""
    low, high = np.maximum(corners[:, :2], 0), np.minimum(corners[:, 2:], extents)
    is_empty: Flags = np.any(high - low < SMALLEST, axis=1)
    return is_empty


def _fit(corners: Corners, extents: Corners) -> Flags:
    """Return which boxes have an area, and are in their picture but for OVERHANG."""
    margin = OVERHANG * extents
    leaves = (corners[:, :2] < -margin) | (corners[:, 2:] > extents + margin)
    does_fit: Flags = ~(leaves.any(axis=1) | _are_empty(corners, extents))
    return does_fit


def _are_fractions(corners: Corners) -> Flags:
    is_fraction: Flags = np.all(np.abs(corners) <= LARGEST_FRACTION, axis=1)
    return is_fraction
