"""Regions: the parts of faces that are hidden, and whether these cover the eyes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.messages import FACE
from worker.areas import bounds, covering
from worker.detection.boxes import overlapping_pairs
from worker.detection.faces import Detections, Sightings
from worker.masking.filling import strips

WHOLE = 1.0  # MaskStyle.region for the full face.

# The directions from the middle of a box to the top, left, bottom and right of the picture.
UP_DIRECTIONS = np.array([(0, -1), (-1, 0), (0, 1), (1, 0)], np.float64)
# The cosine of 60°: a face tilted by more than 30° has its top on two sides of its box.
TILT_COSINE = 0.5

# The band of the eyes reaches this share of the box's side beyond the middles of the eyes.
EYE_MARGIN = 0.15
# The band of the eyes in a box without landmarks: x1 y1 x2 y2 as shares of its sides, for an
# upright face and for one whose direction is unknown.
UPRIGHT_EYES = np.array([0.15, 0.25, 0.85, 0.55])
UNKNOWN_EYES = np.array([0.15, 0.15, 0.85, 0.85])
# The share of the band that has to be covered: more than one eye of two.
MIN_EYES_HIDDEN = 0.6


# A recipe is a digest over these fields, their names included: renaming one changes every recipe.
@dataclass(frozen=True)
class MaskStyle:
    """The method, the extent and the shape of masks.

    `region` is the share of the face that is hidden, from its top. `margin` is the distance by
    which the region reaches beyond the box, as a share of the box's sides. `shape` is ``rectangle``
    or ``ellipse``. `feather` is the width of the soft edge outside the region, as a share of the
    region's smaller side.
    """

    method: str = "surround"
    region: float = 0.7
    margin: float = 0.1
    shape: str = "rectangle"
    feather: float = 0.0


@dataclass(frozen=True)
class Part:
    """Sightings of objects that are hidden in one style."""

    sightings: Sightings
    style: MaskStyle


@dataclass(frozen=True)
class Regions:
    """Hidden parts of a picture, one row for each rectangle; the rectangles of one face overlap.

    `rectangles` [n, 4] are x1 y1 x2 y2 in whole pixels within the picture. `outlines` [n, 4] are
    the ellipses that bound them (centre x y, radii x y; infinite for none). `sides` [n] are the
    smaller sides before the picture's edge cut them, at most that of the picture. `faces` [n] are
    the faces that they are part of.
    """

    rectangles: NDArray[np.intp]
    outlines: NDArray[np.float64]
    sides: NDArray[np.float64]
    faces: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, chosen: Any) -> "Regions":
        return Regions(
            self.rectangles[chosen], self.outlines[chosen], self.sides[chosen], self.faces[chosen]
        )


def regions(
    sightings: Sightings,
    style: MaskStyle,
    width: int,
    height: int,
    extra: Sequence[Sequence[float]] = (),
) -> Regions:
    """Return the regions of the faces of `sightings` in a picture of `width` x `height` pixels.

    A region is the share `style.region` of each box at the side where the eyes are: the top if the
    model reports no landmarks, the whole box if they do not form a face. It is widened by the
    margin, or by the sighting's slack if that is more. Only a full region is widened by the margin
    below too: the lower edge is what `region` promises. `extra` are further areas: boxes and
    polygons. A polygon has several rectangles, which count as one face.
    """
    sighting, hidden_end = np.nonzero(_hidden_ends(sightings, style.region))
    boxes = sightings.boxes_xyxy[sighting].astype(np.float64)
    slack = np.repeat(sightings.slack[sighting, None].astype(np.float64), 2, axis=1)
    size = boxes[:, 2:] - boxes[:, :2]
    margin = np.maximum(size * style.margin, slack)
    areas = np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)
    if style.region < WHOLE:
        _end_at_share(areas, boxes, hidden_end, style.region, slack, (width, height))
    extra_boxes = [covering(area) for area in extra]
    extra_areas = [box for boxes_of_one in extra_boxes for box in boxes_of_one]
    areas = np.concatenate([areas, np.array(extra_areas, np.float64).reshape(-1, 4)])
    outlines = np.full((len(areas), 4), np.inf)
    if style.shape == "ellipse":
        ellipses = np.concatenate([boxes[:, :2] + size / 2, size / 2 + margin], axis=1)
        outlines[: len(boxes)] = ellipses
    first_extra = sightings.face.max(initial=-1) + 1
    counts = np.array([len(boxes_of_one) for boxes_of_one in extra_boxes], np.intp)
    own_face = np.repeat(np.arange(len(extra)), counts)
    faces = np.concatenate([sightings.face[sighting], first_extra + own_face])
    # The side of a polygon is that of the box around it, not that of its narrow rectangles.
    around = np.array([bounds(area) for area in extra], np.float64).reshape(-1, 4)[own_face]
    outer = np.concatenate([areas[: len(boxes)], around])
    sides = (outer[:, 2:] - outer[:, :2]).min(axis=1, initial=min(width, height))
    whole = np.concatenate([np.floor(areas[:, :2]), np.ceil(areas[:, 2:])], axis=1)
    rectangles = whole.clip(0, [width, height] * 2).astype(np.intp)
    found = Regions(rectangles, outlines, sides, faces.astype(np.intp))
    return found[(rectangles[:, 2:] > rectangles[:, :2]).all(axis=1)]


def whole_regions(
    parts: Sequence[Part], width: int, height: int, extra: Sequence[Sequence[float]] = ()
) -> Regions:
    """Return the regions of `parts`, which is not empty, as if all of each object were hidden.

    The areas `extra` belong to the first part, and `faces` of the result count over all parts.
    """
    found = []
    count = 0
    for number, part in enumerate(parts):
        areas = extra if number == 0 else ()
        style = replace(part.style, region=WHOLE)
        whole = regions(part.sightings, style, width, height, areas)
        found.append(replace(whole, faces=whole.faces + count))
        count += int(whole.faces.max(initial=-1)) + 1
    return Regions(
        np.concatenate([one.rectangles for one in found]),
        np.concatenate([one.outlines for one in found]),
        np.concatenate([one.sides for one in found]),
        np.concatenate([one.faces for one in found]),
    )


def _hidden_ends(sightings: Sightings, region: float) -> NDArray[np.bool_]:
    """Return which of UP_DIRECTIONS each face is hidden from, [n, 4].

    A row has several if the direction is uncertain.
    """
    ends = np.zeros((len(sightings), len(UP_DIRECTIONS)), bool)
    if region >= WHOLE:
        ends[:, 0] = True
        return ends
    up = sightings.up.astype(np.float64)
    ends |= up @ UP_DIRECTIONS.T > TILT_COSINE * np.hypot(*up.T)[:, None]
    ends[(up == 0).all(axis=1)] = True
    ends[np.isnan(up).any(axis=1)] = (True, False, False, False)
    return ends


def _end_at_share(
    areas: NDArray[np.float64],
    boxes: NDArray[np.float64],
    hidden_end: NDArray[np.intp],
    region: float,
    slack: NDArray[np.float64],
    picture_size: tuple[int, int],
) -> None:
    """Move the lower edge of `areas` [n, 4], in place, to the share `region` of `boxes` [n, 4].

    It is the edge opposite the end, a row of UP_DIRECTIONS, that is hidden. The share of the part
    within the picture counts too, whichever hides more. `picture_size` is (width, height).
    """
    edge = len(UP_DIRECTIONS) - 1 - hidden_end
    cut = boxes.clip(0, [*picture_size, *picture_size])
    inner, inner_cut = _inner_edges(boxes, region, slack), _inner_edges(cut, region, slack)
    is_upper_or_left = edge[:, None] < 2
    farther = np.where(is_upper_or_left, np.minimum(inner, inner_cut), np.maximum(inner, inner_cut))
    rows = np.arange(len(boxes))
    areas[rows, edge] = farther[rows, edge]


def _inner_edges(
    boxes: NDArray[np.float64], region: float, slack: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the inner edges of regions from the right, lower, left and upper edge, [n, 4]."""
    reach = (boxes[:, 2:] - boxes[:, :2]) * region + slack
    return np.concatenate([boxes[:, 2:] - reach, boxes[:, :2] + reach], axis=1)


def eye_bands(sightings: Sightings) -> NDArray[np.float64]:
    """Return the band around the eyes of each sighting, [n, 4] x1 y1 x2 y2 in pixels.

    It surrounds the landmarks, and may leave the picture. Without landmarks it is the place of the
    eyes of an upright face in its box; it is the inner part of the box if they do not form a face.
    """
    boxes = sightings.boxes_xyxy.astype(np.float64)
    size = boxes[:, 2:] - boxes[:, :2]
    up = sightings.up
    has_none, form_no_face = np.isnan(up).any(axis=1), (up == 0).all(axis=1)
    shares = np.where(form_no_face[:, None], UNKNOWN_EYES, UPRIGHT_EYES)
    corner = np.concatenate([boxes[:, :2], boxes[:, :2]], axis=1)
    usual = corner + shares * np.concatenate([size, size], axis=1)
    eyes = sightings.landmarks[:, :2].astype(np.float64)
    margin = EYE_MARGIN * np.sqrt(size.prod(axis=1))[:, None]
    marked = np.concatenate([eyes.min(axis=1) - margin, eyes.max(axis=1) + margin], axis=1)
    return np.where((has_none | form_no_face)[:, None], usual, marked)


def eyes_hidden(found: Detections, hidden: Regions, width: int, height: int) -> NDArray[np.bool_]:
    """Return for each face of `found`, [n], whether the regions `hidden` cover its eyes.

    They must cover at least MIN_EYES_HIDDEN of the band around the eyes within the picture, of
    `width` x `height` pixels, in each sighting of the face. Of an object with another label they
    must cover as much of the box. The regions of a receipt's boxes are
    `regions(Sightings.of(boxes), MaskStyle(region=WHOLE), …)`.
    """
    sightings = found.sightings
    is_face = found.labels[sightings.face] == FACE
    bands = np.where(is_face[:, None], eye_bands(sightings), sightings.boxes_xyxy)
    bands = bands.clip(0, [width, height] * 2)
    whole = np.concatenate([np.floor(bands[:, :2]), np.ceil(bands[:, 2:])], axis=1).astype(int)
    # A picture may have the regions of all frames of an animation, so only those at eyes are drawn.
    is_at_eyes = np.zeros(len(hidden), bool)
    for _, rows in overlapping_pairs(whole, hidden.rectangles):
        is_at_eyes[rows] = True
    covered = covered_pixels(hidden[is_at_eyes], (0, 0, width, height))
    is_exposed = np.zeros(len(found), bool)
    for face, (x1, y1, x2, y2) in zip(sightings.face, whole, strict=True):
        if x1 < x2 and y1 < y2:
            is_exposed[face] |= covered[y1:y2, x1:x2].mean() < MIN_EYES_HIDDEN
    return ~is_exposed


def covered_pixels(hidden: Regions, window: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Return which pixels of `window`, x1 y1 x2 y2 in the picture, are in a region of `hidden`."""
    x1, y1, x2, y2 = window
    covered = np.zeros((y2 - y1, x2 - x1), bool)
    is_inside = (hidden.rectangles[:, :2] < (x2, y2)).all(axis=1)
    is_inside &= (hidden.rectangles[:, 2:] > (x1, y1)).all(axis=1)
    inside = hidden[is_inside]
    for (left, top, right, bottom), outline in zip(inside.rectangles, inside.outlines, strict=True):
        left, right, top, bottom = max(left, x1), min(right, x2), max(top, y1), min(bottom, y2)
        part = covered[top - y1 : bottom - y1, left - x1 : right - x1]
        if np.isinf(outline[2]):
            part[...] = True
            continue
        for rows in strips(*part.shape):
            centres = np.arange(left, right) + 0.5, np.arange(top, bottom)[rows] + 0.5
            part[rows] |= _in_ellipse(outline, *centres)
    return covered


def _in_ellipse(
    outline: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which of the pixels with the centres `x` and `y` the ellipse `outline` touches.

    The shape is [len(y), len(x)].
    """
    centre_x, centre_y, radius_x, radius_y = outline
    across, down = (x - centre_x) / (radius_x + 0.5), (y - centre_y) / (radius_y + 0.5)
    reached: NDArray[np.bool_] = across[None] ** 2 + down[:, None] ** 2 <= 1
    return reached
