"""Pure functions on pixels: what replaces those that are hidden."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.pixels import Black, Floats, Image

# `surround` works on squares of pixels: at least so many across the ring that it fills from, and no
# more in one hole, which bounds the memory.
MIN_RING_GRAINS, MAX_GRAINS = 4, 1 << 21
# A lower bound of the share of a square's values that are known, to avoid a division by zero.
MIN_KNOWN_SHARE = np.float32(1e-9)
OPAQUE = 255  # the value of hidden pixels in a soft edge
# Pixels that are computed in floating point at a time, so that a large face needs no more memory.
STRIP_PIXELS = 1 << 18


@dataclass(frozen=True)
class Hole:
    """Where pixels are replaced, within a window of the picture [h, w].

    `pixels` uint8 or uint16 [h, w, c] are clear; `own` uint8 [h, w] is OPAQUE where they are hidden
    and falls to 0 around; `covered` bool [h, w] are in a region of this hole or of another one;
    `grain` is the side of the squares of pixels that `surround` works on, `cell` that of the cells
    of methods that average, in pixels; `black` a black pixel.
    """

    pixels: Image
    own: NDArray[np.uint8]
    covered: NDArray[np.bool_]
    grain: int
    cell: int
    black: Black


Filling = Callable[[slice], Floats]
"""What replaces the pixels of these rows of a hole, float32 [n, w, c]; they start and end at a
multiple of its grain, or at its end.
"""


def grain_of(ring: int, area: int) -> int:
    """The side of the squares of pixels that a hole of so many is filled by, surrounded by a ring
    of this width.

    A power of two. What fills a large hole is smooth, and is worked out as well from few squares.
    """
    grain = 1
    while 2 * grain * MIN_RING_GRAINS <= ring or area > MAX_GRAINS * grain**2:
        grain *= 2
    return grain


def strips(height: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """All rows of a window, a `multiple` of so many at a time."""
    step = max(1, STRIP_PIXELS // width // multiple) * multiple
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def replace_pixels(pixels: Image, hole: Hole, method: str) -> None:
    """Replace `pixels` [h, w] or [h, w, c] in place, a copy of the hole's, by its filling."""
    filling = METHODS[method](hole)
    height, width = hole.own.shape
    for rows in strips(height, width, hole.grain):
        _blend(pixels[rows], filling(rows), hole.own[rows])


def _blend(pixels: Image, filling: Floats, own: NDArray[np.uint8]) -> None:
    """Replace `pixels` [h, w] or [h, w, c], in place, by the `filling` [h, w, c], as far as they
    are its `own`.
    """
    share = np.square(
        own * np.float32(1 / OPAQUE)
    )  # fades faster: less of what is around is changed visibly
    if pixels.dtype == np.uint8:
        pixels[...] = cv2.blendLinear(
            cv2.convertScaleAbs(filling), pixels, share, 1 - share
        ).reshape(pixels.shape)
        return
    clear = pixels.reshape(filling.shape).astype(np.float32)
    share = _spread(share, clear)
    blended = (share * filling + (1 - share) * clear).round().clip(0, np.iinfo(pixels.dtype).max)
    cv2.copyTo(blended.astype(pixels.dtype).reshape(pixels.shape), (own > 0).view(np.uint8), pixels)


def surround(hole: Hole) -> Filling:
    """Filled smoothly from the pixels around the hole; nothing of a covered pixel is used.

    Pull-push interpolation (Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4): average
    what is known while halving, then fill what is not while doubling. Cost is linear in the pixels.
    Where nothing around is known, the hole becomes black.
    """
    height, width, channels = hole.pixels.shape
    size = -(-height // hole.grain), -(-width // hole.grain)
    values, known = np.empty((*size, channels), np.float32), np.empty(size, np.uint8)
    for rows in strips(height, width, hole.grain):
        part = slice(rows.start // hole.grain, -(-rows.stop // hole.grain))
        clear = ((hole.own[rows] < OPAQUE) & ~hole.covered[rows]).view(np.uint8)
        seen = cv2.copyTo(hole.pixels[rows], clear).reshape(*clear.shape, channels)
        values[part], shares = _known(seen.astype(np.float32), clear.astype(np.float32), hole.grain)
        known[part] = shares > 0
    if not known.any():
        return fill(hole)
    filled = _filled(values, known)
    return lambda rows: _enlarged(filled, hole.grain, rows)[:, :width]


def _filled(values: Floats, known: NDArray[np.uint8]) -> Floats:
    """`values` [h, w, c] where they are `known` [h, w], 0 or 1, and filled smoothly where they are
    not.
    """
    height, width = known.shape
    if known.all() or height * width == 1:
        return values
    clear = np.asarray(cv2.copyTo(values, known), np.float32).reshape(values.shape)
    averages, shares = _known(clear, known.astype(np.float32), 2)
    # Any known pixel makes its parent a known one: otherwise the middle of a region fades to
    # nothing.
    smaller = _filled(averages, (shares > 0).view(np.uint8))
    result = _enlarged(smaller, 2, slice(0, height))[:, :width]
    cv2.copyTo(values, known, result)
    return result


def _known(values: Floats, weights: Floats, factor: int) -> tuple[Floats, Floats]:
    """The averages [h, w, c] of squares of `factor` by `factor` values, and which share [h, w] of
    each is known.

    `values` are 0 where their `weights` are, 0 for unknown and 1 for known.
    """
    sums, shares = _averaged(values, factor), _averaged(weights, factor)
    averages = sums.reshape(*shares.shape, -1)
    return averages / _spread(np.maximum(shares, MIN_KNOWN_SHARE), averages), shares


def _averaged(values: Floats, factor: int) -> Floats:
    """The averages of squares of `factor` by `factor` values [h, w, …]; past the right and lower
    edge is 0.
    """
    if factor == 1:
        return values
    height, width = values.shape[:2]
    down, across = -height % factor, -width % factor
    if down or across:
        values = np.asarray(
            cv2.copyMakeBorder(values, 0, down, 0, across, cv2.BORDER_CONSTANT, value=0), np.float32
        )
    size = (width + across) // factor, (height + down) // factor
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _enlarged(values: Floats, factor: int, rows: slice) -> Floats:
    """The `rows` of `values` [h, w, c] stretched smoothly by a whole `factor`; they start at a
    multiple of it.
    """
    if factor == 1:
        return values[rows]
    before = max(0, rows.start // factor - 1)
    used = values[before : -(-rows.stop // factor) + 1]
    size = used.shape[1] * factor, len(used) * factor
    stretched = cv2.resize(used, size, interpolation=cv2.INTER_LINEAR).reshape(size[1], size[0], -1)
    return np.asarray(
        stretched[rows.start - before * factor : rows.stop - before * factor], np.float32
    )


def _spread(weights: Floats, values: Floats) -> Floats:
    """`weights` [h, w] once for each channel of `values` [h, w, c]; NumPy broadcasts along so few
    slowly.
    """
    channels = values.shape[2]
    return (
        cv2.merge([weights] * channels)
        .reshape(*weights.shape, channels)
        .astype(np.float32, copy=False)
    )


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
    """The averages of the cells [rows, columns, c] over the hole alone: a neighbour's face is no
    part of them.
    """
    down, across = _cell_numbers(hole)
    starts = np.searchsorted(across, np.arange(across[-1] + 1))
    sums = np.zeros((down[-1] + 1, len(starts), hole.pixels.shape[2]))
    weights = np.zeros(sums.shape[:2])
    for rows in strips(*hole.own.shape):
        # In whole numbers, which add up to the same in any order.
        own = hole.own[rows].astype(np.float32)
        weighted = np.add.reduceat(
            hole.pixels[rows] * own[..., None], starts, axis=1, dtype=np.float64
        )
        np.add.at(sums, down[rows], weighted)
        np.add.at(weights, down[rows], np.add.reduceat(own, starts, axis=1, dtype=np.float64))
    cells = (sums / np.maximum(weights, 1)[..., None]).astype(np.float32)
    return _filled(cells, (weights > 0).view(np.uint8))


def _cell_numbers(hole: Hole) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """In which cell each row and each column of the window lies; they are as equal as whole pixels
    let them be.
    """
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
    wide = cv2.resize(used, (width, len(used)), interpolation=cv2.INTER_LINEAR).reshape(
        len(used), width, -1
    )
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
# The output of these methods does not depend on the pixels that they hide.
INDEPENDENT = ("surround", "fill")
