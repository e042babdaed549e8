"""Boxes that a source wrote in another form than its format has, such as fractions or corners."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.bulk.misread import (
    CENTRE,
    CORNERS,
    FITTING,
    LARGEST_FRACTION,
    MISFITS,
    OVERHANG,
    SIDES,
    SMALLEST,
    SWAPPED,
)

Box = tuple[float, float, float, float]
Corners = NDArray[np.float64]
Flags = NDArray[np.bool_]
Convert = Callable[[Corners], Corners]

# A source is refused if more than this share of its boxes are empty.
MOST = 0.5
# Boxes are doubted if at least this share and number of them reach outside by this share of their
# own side, and ONE_SIDED times as many on the right or at the bottom as on the other sides.
REACHING, LEAST_REACHING, REACH, ONE_SIDED = 0.02, 3, 0.1, 5
# They are also doubted if there are FEW or more, and most of them are wider than high, which faces
# are not, or if all are in the upper left part of their pictures.
FEW, WIDER_THAN_HIGH, WIDER, UPPER_LEFT = 20, 0.6, 1.05, 0.7


class Form(NamedTuple):
    """The form of the boxes of a format: `wanted` is a key of WRITTEN."""

    name: str
    wanted: str
    is_in_pixels: bool = True


FORMS = {
    "voc": Form("Pascal VOC", CORNERS),
    "coco": Form("COCO", SIDES),
    "yolo": Form("YOLO", CENTRE, is_in_pixels=False),
    "wider": Form("WIDER FACE", SIDES),
    "veil": Form("annotations.json", CORNERS),
}


def _sides_of(corners: Corners) -> Corners:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _corners_of_sides(numbers: Corners) -> Corners:
    return np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], axis=1)


def _centre_of(corners: Corners) -> Corners:
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    return np.concatenate([middle, corners[:, 2:] - corners[:, :2]], axis=1)


def _corners_of_centre(numbers: Corners) -> Corners:
    half = numbers[:, 2:] / 2
    return np.concatenate([numbers[:, :2] - half, numbers[:, :2] + half], axis=1)


# Functions from corners to the four numbers of a form, and back.
WRITTEN: dict[str, tuple[Convert, Convert]] = {
    CORNERS: (np.array, np.array),
    SIDES: (_sides_of, _corners_of_sides),
    CENTRE: (_centre_of, _corners_of_centre),
}


def _readings(its: Form, corners: Corners, extents: Corners) -> Iterator[tuple[str, Corners]]:
    """Yield each other form with the corners of boxes that were written in it.

    `corners` are those of the boxes as they were read, in the form `its`.
    """
    scale = np.ones(4) if its.is_in_pixels else np.tile(extents, 2)
    write, _ = WRITTEN[its.wanted]
    numbers = write(corners) / scale
    for name, (_, read) in WRITTEN.items():
        if name != its.wanted:
            yield name, read(numbers * scale)
    for name, (_, read) in WRITTEN.items():
        yield SWAPPED[name], read(numbers[:, [1, 0, 3, 2]] * scale)


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
    if misfits.mean() >= MISFITS:
        for other, reread in _readings(its, corners, extents):
            if _fit(reread, extents).mean() >= FITTING:
                return f"boxes look like {other}; {its.name} wants {its.wanted}"
    if most_are_empty:
        return (
            f"{is_empty.sum():,} of {len(boxes):,} boxes have no area, or lie wholly outside of "
            "their pictures"
        )
    return None


def doubt(
    form: str, boxes: Sequence[Box], sizes: Sequence[tuple[int, int]], *, are_faces: bool
) -> str | None:
    """Return why the boxes of a source look wrong as a whole, though they can be used, or None.

    The arguments are those of `fault`. Boxes that `are_faces` are expected to be higher than wide.
    """
    if not boxes:
        return None
    corners, extents = np.array(boxes, np.float64), np.array(sizes, np.float64)
    its = FORMS[form]
    width, height = (corners[:, 2:] - corners[:, :2]).T
    wider = width > WIDER * height
    if are_faces and len(corners) >= FEW and wider.mean() >= WIDER_THAN_HIGH:
        return (
            f"{wider.sum():,} of {len(boxes):,} boxes are wider than high, and faces are not: they "
            "look like boxes with x and y or width and height swapped, or of something else"
        )
    if reaching := _reaching_doubt(its, corners, extents):
        return reaching
    if len(corners) < FEW:
        return None
    right, bottom = (corners[:, 2:] / extents).max(axis=0)
    if max(right, bottom) <= UPPER_LEFT:
        return (
            f"all boxes are in the upper left {right:.0%} × {bottom:.0%} of their pictures: they "
            "look like boxes of smaller pictures"
        )
    return None


def _reaching_doubt(its: Form, corners: Corners, extents: Corners) -> str | None:
    """Return the doubt about boxes that reach out of their pictures on one side alone, or None."""
    reach = REACH * (corners[:, 2:] - corners[:, :2])
    after = int(np.any(corners[:, 2:] > extents + reach, axis=1).sum())
    before = int(np.any(corners[:, :2] < -reach, axis=1).sum())
    if max(before, after) < max(LEAST_REACHING, REACHING * len(corners)):
        return None
    if max(before, after) < ONE_SIDED * min(before, after):
        return None
    side, cause = "on the right or at the bottom", "boxes of larger pictures"
    if before > after:
        side, cause = "on the left or at the top", "boxes with an offset"
    shifted = {SIDES: CENTRE, CENTRE: SIDES}.get(its.wanted)
    for other, reread in _readings(its, corners, extents):
        if other == shifted and _fit(reread, extents).mean() >= FITTING:
            cause = f"{other}, and {its.name} wants {its.wanted}"
    return (
        f"{max(before, after):,} of {len(corners):,} boxes reach out of their pictures {side}, and "
        f"{min(before, after):,} on the other sides: they look like {cause}"
    )


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
