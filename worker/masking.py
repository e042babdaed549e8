"""Pure functions on pixels: which region of a face is hidden, and how."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.detector import Detections, Sightings

Image = NDArray[Any]
Floats = NDArray[np.floating[Any]]  # float32
Black = int | Sequence[int]

RING = 0.15  # width of the ring that `surround` fills from, as a share of the region's smaller side
SMALLEST_RING = 2  # pixels
RING_GRAINS = 4  # squares of pixels, at least, across a ring
MOST_GRAINS = 1 << 21  # squares of pixels that one hole is filled by, which bounds the memory
LEAST_SHARE = np.float32(1e-9)  # of a square's values that are known, so that none known is no division by zero
CELLS = 3  # across a region: all that `blur` and `pixelate` keep of it
SMALLEST_CELL = 2  # pixels
WHOLE = 1.0  # the region that is the full face
OPAQUE = 255  # of the soft edge, the pixels that are hidden
STRIP_PIXELS = 1 << 18  # that are worked on at a time in floating point, so that a large face needs no more memory

# Which way is up, seen from the middle of the box: the top, the left, the bottom or the right of the picture.
UPS = np.array([(0, -1), (-1, 0), (0, 1), (1, 0)], np.float64)
TILTED = 0.5  # cosine: a face tilted by more than 30° has its top on two sides of its box

EYE_MARGIN = 0.15  # how far the band of the eyes reaches beyond their middles, as a share of the box's side
UPRIGHT_EYES = np.array([0.15, 0.25, 0.85, 0.55])  # where that band is in a box: x1 y1 x2 y2, shares of its sides
ANYWHERE = np.array([0.15, 0.15, 0.85, 0.85])  # where it may be if nobody knows which way up the face is
HIDDEN_EYES = 0.6  # of the band that has to be covered: more than one eye of two


@dataclass(frozen=True)
class MaskStyle:
    """How faces are hidden.

    `region` is the share of the face that is hidden, from its top; `margin` how far the region reaches beyond the
    box, as a share of the box's sides; `shape` ``rectangle`` or ``ellipse``; `feather` the width of the soft edge
    outside the region, as a share of the region's smaller side.
    """

    method: str = "surround"
    region: float = 0.7
    margin: float = 0.1
    shape: str = "rectangle"
    feather: float = 0.0


@dataclass(frozen=True)
class Regions:
    """What is hidden, one row for each rectangle; the rectangles of one face overlap.

    `rectangles` [n, 4] are x1 y1 x2 y2 in whole pixels within the picture, `outlines` [n, 4] the ellipse that bounds
    each (centre x y, radii x y; infinite for none), `sides` [n] the smaller side before the picture's edge cut it, at
    most that of the picture, `faces` [n] the face that it is part of.
    """

    rectangles: NDArray[np.intp]
    outlines: NDArray[np.float64]
    sides: NDArray[np.float64]
    faces: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, chosen: Any) -> "Regions":
        return Regions(self.rectangles[chosen], self.outlines[chosen], self.sides[chosen], self.faces[chosen])


@dataclass(frozen=True)
class Hole:
    """Where pixels are replaced, within a window of the picture [h, w].

    `pixels` uint8 or uint16 [h, w, c] are clear; `own` uint8 [h, w] is OPAQUE where they are hidden and falls to 0
    around; `others` bool [h, w] are hidden too, but by themselves; `grain` is the side of the squares of pixels that
    `surround` works on, `cell` that of the cells of methods that average, in pixels; `black` a black pixel.
    """

    pixels: Image
    own: NDArray[np.uint8]
    others: NDArray[np.bool_]
    grain: int
    cell: int
    black: Black


Filling = Callable[[slice], Floats]
"""What replaces the pixels of these rows of a hole, float32 [n, w, c]; they start and end at a multiple of its grain,
or at its end."""


def regions(
    seen: Sightings, style: MaskStyle, width: int, height: int, extra: Sequence[Sequence[float]] = ()
) -> Regions:
    """What is hidden of the faces that were `seen` in a picture of `width` x `height` pixels, and all of `extra`.

    The region is the `style.region` of each box at the side where the eyes are: the top if the model says nothing of
    it, the whole box if it says something that can't be. It is widened by the margin, or by the sighting's slack where
    that is more. Only a full region is widened by the margin below too: the lower edge is what `region` promises.
    `extra` are further areas, x1 y1 x2 y2.
    """
    sighting, ends = np.nonzero(_ends(seen, style.region))
    boxes = seen.boxes_xyxy[sighting].astype(np.float64)
    slack = np.repeat(seen.slack[sighting, None].astype(np.float64), 2, axis=1)
    size = boxes[:, 2:] - boxes[:, :2]
    margin = np.maximum(size * style.margin, slack)
    outer = np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)
    if style.region < WHOLE:
        rows, edge = np.arange(len(boxes)), len(UPS) - 1 - ends
        # Of a face that the picture's edge cuts, the share of what is in the picture counts too: whichever is more.
        cut = boxes.clip(0, [width, height] * 2)
        inner, inner_cut = (_inner(box, style.region, slack) for box in (boxes, cut))
        further = np.where(edge[:, None] < 2, np.minimum(inner, inner_cut), np.maximum(inner, inner_cut))
        outer[rows, edge] = further[rows, edge]
    outer = np.concatenate([outer, np.array(extra, np.float64).reshape(-1, 4)])
    outlines = np.full((len(outer), 4), np.inf)
    if style.shape == "ellipse":
        outlines[: len(boxes)] = np.concatenate([boxes[:, :2] + size / 2, size / 2 + margin], axis=1)
    first_extra = seen.face.max(initial=-1) + 1
    faces = np.concatenate([seen.face[sighting], first_extra + np.arange(len(extra))]).astype(np.intp)
    sides = (outer[:, 2:] - outer[:, :2]).min(axis=1, initial=min(width, height))
    whole = np.concatenate([np.floor(outer[:, :2]), np.ceil(outer[:, 2:])], axis=1)
    rectangles = whole.clip(0, [width, height] * 2).astype(np.intp)
    found = Regions(rectangles, outlines, sides, faces)
    return found[(rectangles[:, 2:] > rectangles[:, :2]).all(axis=1)]


def _ends(seen: Sightings, region: float) -> NDArray[np.bool_]:
    """[n, 4]: from which of UPS each face is hidden. One row has several where that is not sure."""
    ends = np.zeros((len(seen), len(UPS)), bool)
    if region >= WHOLE:
        ends[:, 0] = True
        return ends
    up = seen.up.astype(np.float64)
    ends |= up @ UPS.T > TILTED * np.hypot(*up.T)[:, None]
    ends[(up == 0).all(axis=1)] = True
    ends[np.isnan(up).any(axis=1)] = (True, False, False, False)
    return ends


def _inner(boxes: NDArray[np.float64], region: float, slack: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 4]: how far the region reaches across each box from its right, lower, left and upper edge."""
    reach = (boxes[:, 2:] - boxes[:, :2]) * region + slack
    return np.concatenate([boxes[:, 2:] - reach, boxes[:, :2] + reach], axis=1)


def eye_bands(seen: Sightings) -> NDArray[np.float64]:
    """[n, 4] x1 y1 x2 y2: the band around the eyes of each face that was `seen`, in pixels; it may leave the picture.

    It is where the landmarks are. Without landmarks it is where the eyes of an upright face are in its box, and of a
    face whose landmarks make none the inner part of the box.
    """
    boxes = seen.boxes_xyxy.astype(np.float64)
    size = boxes[:, 2:] - boxes[:, :2]
    up = seen.up
    unknown, lost = np.isnan(up).any(axis=1), (up == 0).all(axis=1)
    shares = np.where(lost[:, None], ANYWHERE, UPRIGHT_EYES)
    usual = np.concatenate([boxes[:, :2], boxes[:, :2]], axis=1) + shares * np.concatenate([size, size], axis=1)
    eyes = seen.landmarks[:, :2].astype(np.float64)
    margin = EYE_MARGIN * np.sqrt(size.prod(axis=1))[:, None]
    marked = np.concatenate([eyes.min(axis=1) - margin, eyes.max(axis=1) + margin], axis=1)
    return np.where((unknown | lost)[:, None], usual, marked)


def eyes_hidden(found: Detections, hidden: Regions, width: int, height: int) -> NDArray[np.bool_]:
    """[n]: whether what is `hidden` in a picture of `width` x `height` pixels covers the eyes of each face `found`.

    At least HIDDEN_EYES of the band around the eyes, as far as it is in the picture, in each sighting of the face:
    what the region promises. Rectangles of a receipt are `regions(Sightings.of(boxes), MaskStyle(region=WHOLE), …)`.
    """
    seen = found.seen
    bands = eye_bands(seen).clip(0, [width, height] * 2)
    whole = np.concatenate([np.floor(bands[:, :2]), np.ceil(bands[:, 2:])], axis=1).astype(int)
    open_ = np.zeros(len(found), bool)
    for face, (x1, y1, x2, y2) in zip(seen.face, whole, strict=True):
        if x1 < x2 and y1 < y2:
            open_[face] |= _covered(hidden, (x1, y1, x2, y2)).mean() < HIDDEN_EYES
    return ~open_


def hide(
    picture: Image,
    seen: Sightings,
    style: MaskStyle,
    black: Black = 0,
    extra: Sequence[Sequence[float]] = (),
) -> Image:
    """A copy of `picture` with every face that was `seen` hidden, and all of `extra` (areas, x1 y1 x2 y2).

    `picture` is uint8 or uint16, [height, width] or [height, width, channels]; `black` is a black pixel, one number or
    one a channel. Overlapping and touching regions are hidden as one, and no region is filled from pixels of another.
    """
    height, width = picture.shape[:2]
    everything = regions(seen, style, width, height, extra)
    result = picture.copy()
    for members in _groups(everything, style):
        group = everything[members]
        smallest, largest = group.sides.min(), group.sides.max()
        first, last = group.rectangles[:, :2].min(axis=0), group.rectangles[:, 2:].max(axis=0)
        feather = round(style.feather * smallest)
        ring = max(SMALLEST_RING, round(RING * smallest))
        grain = _grain(ring, int((last - first).prod()))
        reach = feather + ring
        x1, y1 = (first - reach).clip(0)
        x2, y2 = np.minimum(last + reach, (width, height))
        window = (x1, y1, x2, y2)
        cell = max(SMALLEST_CELL, math.ceil(largest / CELLS))
        clear = picture[y1:y2, x1:x2].reshape(y2 - y1, x2 - x1, -1)
        hole = Hole(clear, _soft(group, window, feather), _covered(everything[~members], window), grain, cell, black)
        filling = METHODS[style.method](hole)
        for rows in _strips(y2 - y1, x2 - x1, grain):
            _blend(result[y1:y2, x1:x2][rows], filling(rows), hole.own[rows])
    return result


def _grain(ring: int, area: int) -> int:
    """The side of the squares of pixels that a hole of so many is filled by, surrounded by a ring of this width.

    A power of two. What fills a large hole is smooth, and is worked out as well from few squares.
    """
    grain = 1
    while 2 * grain * RING_GRAINS <= ring or area > MOST_GRAINS * grain**2:
        grain *= 2
    return grain


def _blend(pixels: Image, filling: Floats, own: NDArray[np.uint8]) -> None:
    """Replace `pixels` [h, w] or [h, w, c], in place, by the `filling` [h, w, c], as far as they are its `own`."""
    share = np.square(own * np.float32(1 / OPAQUE))  # fades faster: less of what is around is changed visibly
    if pixels.dtype == np.uint8:
        pixels[...] = cv2.blendLinear(cv2.convertScaleAbs(filling), pixels, share, 1 - share).reshape(pixels.shape)
        return
    clear = pixels.reshape(filling.shape).astype(np.float32)
    share = _spread(share, clear)
    blended = (share * filling + (1 - share) * clear).round().clip(0, np.iinfo(pixels.dtype).max)
    cv2.copyTo(blended.astype(pixels.dtype).reshape(pixels.shape), (own > 0).view(np.uint8), pixels)


def _strips(height: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """All rows of a window, a `multiple` of so many at a time."""
    step = max(1, STRIP_PIXELS // width // multiple) * multiple
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _groups(everything: Regions, style: MaskStyle) -> list[NDArray[np.bool_]]:
    """Which regions belong together: those of one face, and of faces whose surroundings overlap or touch."""
    faces = np.unique(everything.faces, return_inverse=True)[1]
    count = int(faces.max(initial=-1)) + 1
    first, last = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    grown = style.feather * everything.sides[:, None] + 1
    np.minimum.at(first, faces, everything.rectangles[:, :2] - grown)
    np.maximum.at(last, faces, everything.rectangles[:, 2:] + grown)
    before: NDArray[np.bool_] = np.all(first[:, None] < last[None], axis=2)
    near = before & before.T
    groups = []
    left = np.ones(count, bool)
    for face in range(count):
        if not left[face]:
            continue
        group = np.zeros(count, bool)
        edge = np.arange(count) == face
        while edge.any():
            group |= edge
            edge = near[edge].any(axis=0) & ~group
        left &= ~group
        groups.append(group[faces])
    return groups


def _covered(some: Regions, window: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Which pixels of the `window` (x1 y1 x2 y2 in the picture) are in one of the regions."""
    x1, y1, x2, y2 = window
    covered = np.zeros((y2 - y1, x2 - x1), bool)
    inside = (some.rectangles[:, :2] < (x2, y2)).all(axis=1) & (some.rectangles[:, 2:] > (x1, y1)).all(axis=1)
    for (left, top, right, bottom), outline in zip(some.rectangles[inside], some.outlines[inside], strict=True):
        left, right, top, bottom = max(left, x1), min(right, x2), max(top, y1), min(bottom, y2)
        part = covered[top - y1 : bottom - y1, left - x1 : right - x1]
        if np.isinf(outline[2]):
            part[...] = True
            continue
        for rows in _strips(*part.shape):
            centres = np.arange(left, right) + 0.5, np.arange(top, bottom)[rows] + 0.5
            part[rows] |= _within(outline, *centres)
    return covered


def _within(outline: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the pixels with these centres the ellipse `outline` reaches."""
    centre_x, centre_y, radius_x, radius_y = outline
    across, down = (x - centre_x) / (radius_x + 0.5), (y - centre_y) / (radius_y + 0.5)
    reached: NDArray[np.bool_] = across[None] ** 2 + down[:, None] ** 2 <= 1
    return reached


def _soft(some: Regions, window: tuple[int, int, int, int], feather: int) -> NDArray[np.uint8]:
    """OPAQUE in the regions, falling to 0 over `feather` pixels around them: within a region nothing shines through."""
    x1, y1, x2, y2 = window
    soft = np.empty((y2 - y1, x2 - x1), np.uint8)
    # No farther than the edge is wide is looked for a region, so strips see what is that far above and below.
    step = max(STRIP_PIXELS // (x2 - x1), 2 * feather, 1)
    for top in range(y1, y2, step):
        bottom = min(top + step, y2)
        covered = _covered(some, (x1, top - feather, x2, bottom + feather))
        if feather:
            distance = cv2.distanceTransform((~covered).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
            np.minimum(distance, feather + 1, out=distance)
            shares = cv2.convertScaleAbs(distance, alpha=-OPAQUE / (feather + 1), beta=OPAQUE)
        else:
            shares = covered * np.uint8(OPAQUE)
        soft[top - y1 : bottom - y1] = shares[feather : feather + bottom - top]
    return soft


def surround(hole: Hole) -> Filling:
    """Filled smoothly from the pixels around the hole; nothing of a covered pixel is used.

    Pull-push interpolation (Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4): average what is
    known while halving, then fill what is not while doubling. Cost is linear in the pixels. Where nothing around is
    known, the hole becomes black.
    """
    height, width, channels = hole.pixels.shape
    size = -(-height // hole.grain), -(-width // hole.grain)
    values, known = np.empty((*size, channels), np.float32), np.empty(size, np.uint8)
    for rows in _strips(height, width, hole.grain):
        part = slice(rows.start // hole.grain, -(-rows.stop // hole.grain))
        clear = ((hole.own[rows] < OPAQUE) & ~hole.others[rows]).view(np.uint8)
        seen = cv2.copyTo(hole.pixels[rows], clear).reshape(*clear.shape, channels)
        values[part], shares = _known(seen.astype(np.float32), clear.astype(np.float32), hole.grain)
        known[part] = shares > 0
    if not known.any():
        return fill(hole)
    filled = _filled(values, known)
    return lambda rows: _enlarged(filled, hole.grain, rows)[:, :width]


def _filled(values: Floats, known: NDArray[np.uint8]) -> Floats:
    """`values` [h, w, c] where they are `known` [h, w], 0 or 1, and filled smoothly where they are not."""
    height, width = known.shape
    if known.all() or height * width == 1:
        return values
    clear = np.asarray(cv2.copyTo(values, known), np.float32).reshape(values.shape)
    averages, shares = _known(clear, known.astype(np.float32), 2)
    # Any known pixel makes its parent a known one: otherwise the middle of a region fades to nothing.
    smaller = _filled(averages, (shares > 0).view(np.uint8))
    result = _enlarged(smaller, 2, slice(0, height))[:, :width]
    cv2.copyTo(values, known, result)
    return result


def _known(values: Floats, weights: Floats, factor: int) -> tuple[Floats, Floats]:
    """The averages [h, w, c] of squares of `factor` by `factor` values, and which share [h, w] of each is known.

    `values` are 0 where their `weights` are, 0 for unknown and 1 for known.
    """
    sums, shares = _averaged(values, factor), _averaged(weights, factor)
    averages = sums.reshape(*shares.shape, -1)
    return averages / _spread(np.maximum(shares, LEAST_SHARE), averages), shares


def _averaged(values: Floats, factor: int) -> Floats:
    """The averages of squares of `factor` by `factor` values [h, w, …]; past the right and lower edge is 0."""
    if factor == 1:
        return values
    height, width = values.shape[:2]
    down, across = -height % factor, -width % factor
    if down or across:
        values = np.asarray(cv2.copyMakeBorder(values, 0, down, 0, across, cv2.BORDER_CONSTANT, value=0), np.float32)
    size = (width + across) // factor, (height + down) // factor
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _enlarged(values: Floats, factor: int, rows: slice) -> Floats:
    """The `rows` of `values` [h, w, c] stretched smoothly by a whole `factor`; they start at a multiple of it."""
    if factor == 1:
        return values[rows]
    before = max(0, rows.start // factor - 1)
    used = values[before : -(-rows.stop // factor) + 1]
    size = used.shape[1] * factor, len(used) * factor
    stretched = cv2.resize(used, size, interpolation=cv2.INTER_LINEAR).reshape(size[1], size[0], -1)
    return np.asarray(stretched[rows.start - before * factor : rows.stop - before * factor], np.float32)


def _spread(weights: Floats, values: Floats) -> Floats:
    """`weights` [h, w] once for each channel of `values` [h, w, c]; NumPy broadcasts along so few slowly."""
    channels = values.shape[2]
    return cv2.merge([weights] * channels).reshape(*weights.shape, channels).astype(np.float32, copy=False)


def blur(hole: Hole) -> Filling:
    """The averages of cells, a few across a face, with smooth transitions."""
    cells = _cells(hole)
    return lambda rows: _stretched(cells, rows, *hole.own.shape)


def pixelate(hole: Hole) -> Filling:
    """The averages of cells, a few across a face."""
    cells = _cells(hole)
    down, across = _cell_numbers(hole)
    return lambda rows: cells[down[rows]][:, across]


def _cells(hole: Hole) -> Floats:
    """The averages of the cells [rows, columns, c] over the hole alone: a neighbour's face is no part of them."""
    down, across = _cell_numbers(hole)
    starts = np.searchsorted(across, np.arange(across[-1] + 1))
    sums = np.zeros((down[-1] + 1, len(starts), hole.pixels.shape[2]))
    weights = np.zeros(sums.shape[:2])
    for rows in _strips(*hole.own.shape):
        # In whole numbers, which add up to the same in any order.
        own = hole.own[rows].astype(np.float32)
        weighted = np.add.reduceat(hole.pixels[rows] * own[..., None], starts, axis=1, dtype=np.float64)
        np.add.at(sums, down[rows], weighted)
        np.add.at(weights, down[rows], np.add.reduceat(own, starts, axis=1, dtype=np.float64))
    cells = (sums / np.maximum(weights, 1)[..., None]).astype(np.float32)
    return _filled(cells, (weights > 0).view(np.uint8))


def _cell_numbers(hole: Hole) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """In which cell each row and each column of the window lies; they are as equal as whole pixels let them be."""
    down, across = (np.arange(side) * -(-side // hole.cell) // side for side in hole.own.shape)
    return down, across


def _stretched(cells: Floats, rows: slice, height: int, width: int) -> Floats:
    """The `rows` [n, width, c] of `cells` [h, w, c] stretched smoothly to `height` and `width`."""
    last = len(cells) - 1
    places = ((np.arange(rows.start, rows.stop) + 0.5) * len(cells) / height - 0.5).clip(0, last)
    before = places.astype(np.intp)
    after = np.minimum(before + 1, last)
    first = before[0]
    used = cells[first : after[-1] + 1]
    wide = cv2.resize(used, (width, len(used)), interpolation=cv2.INTER_LINEAR).reshape(len(used), width, -1)
    share = (places - before).astype(np.float32)[:, None, None]
    stretched: Floats = wide[before - first] * (1 - share) + wide[after - first] * share
    return stretched


def fill(hole: Hole) -> Filling:
    """Black pixels."""
    return lambda rows: np.full(hole.pixels[rows].shape, hole.black, np.float32)


METHODS: dict[str, Callable[[Hole], Filling]] = {
    "surround": surround,
    "blur": blur,
    "pixelate": pixelate,
    "fill": fill,
}
INDEPENDENT = ("surround", "fill")  # what was in a region has no influence on the output
