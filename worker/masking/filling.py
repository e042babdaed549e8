"""The methods that replace hidden pixels: pure functions on pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.pixels import Black, Floats, Image

# `surround` averages squares of pixels, its grains, to save time. The ring that it fills from is at
# least this many grains wide.
MIN_RING_GRAINS = 4
# The most grains of one hole, which bounds the memory.
MAX_GRAINS = 1 << 21
# A lower bound of the share of a square's values that are known, to avoid a division by zero.
MIN_KNOWN_SHARE = np.float32(1e-9)
OPAQUE = 255  # The opacity of hidden pixels.
# The pixels that are computed in floating point at a time, so that a large face needs no more
# memory.
STRIP_PIXELS = 1 << 18


@dataclass(frozen=True)
class Hole:
    """A place where pixels are replaced, within a window of the picture [h, w].

    `pixels` uint8 or uint16 [h, w, c] are the original ones. `opacity` uint8 [h, w] is OPAQUE where
    they are hidden, and falls to 0 around. `covered` bool [h, w] marks the regions of this hole and
    of others. `grain` is the side, in pixels, of the squares that `surround` averages; `cell` that
    of the cells of `blur` and `pixelate`. `black` is a black pixel.
    """

    pixels: Image
    opacity: NDArray[np.uint8]
    covered: NDArray[np.bool_]
    grain: int
    cell: int
    black: Black


Filling = Callable[[slice], Floats]
"""Return the replacement of some rows of a hole, float32 [n, w, c].

The rows start at a multiple of the hole's grain, and end at one or at the hole's end.
"""


def grain_of(ring: int, area: int) -> int:
    """Return the grain of a hole of `area` pixels that is surrounded by a ring `ring` pixels wide.

    It is a power of two. The filling of a large hole is smooth, so few squares are enough for it.
    """
    grain = 1
    while 2 * grain * MIN_RING_GRAINS <= ring or area > MAX_GRAINS * grain**2:
        grain *= 2
    return grain


def strips(height: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """Yield the rows of a window in strips, whose heights are a multiple of `multiple`."""
    step = max(1, STRIP_PIXELS // width // multiple) * multiple
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def replace_pixels(pixels: Image, hole: Hole, method: str) -> None:
    """Replace `pixels` [h, w] or [h, w, c], a copy of the hole's, in place by its filling."""
    filling = METHODS[method](hole)
    height, width = hole.opacity.shape
    for rows in strips(height, width, hole.grain):
        _blend(pixels[rows], filling(rows), hole.opacity[rows])


def _blend(pixels: Image, filling: Floats, opacity: NDArray[np.uint8]) -> None:
    """Blend `filling` [h, w, c] into `pixels` [h, w] or [h, w, c], in place, by `opacity`."""
    # The square fades faster, so that less of the surroundings is changed visibly.
    share = np.square(opacity * np.float32(1 / OPAQUE))
    if pixels.dtype == np.uint8:
        blended = cv2.blendLinear(cv2.convertScaleAbs(filling), pixels, share, 1 - share)
        pixels[...] = blended.reshape(pixels.shape)
        return
    original = pixels.reshape(filling.shape).astype(np.float32)
    share = _per_channel(share, original)
    blended = share * filling + (1 - share) * original
    blended = blended.round().clip(0, np.iinfo(pixels.dtype).max)
    changed = (opacity > 0).view(np.uint8)
    cv2.copyTo(blended.astype(pixels.dtype).reshape(pixels.shape), changed, pixels)


def surround(hole: Hole) -> Filling:
    """Return a smooth filling from the pixels around the hole, without any covered pixel.

    Pull-push interpolation (Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4): average
    the known values while halving, then fill the unknown ones while doubling. The cost is linear in
    the pixels. If nothing around is known, the hole becomes black.
    """
    grains, known = _grains(hole)
    if not known.any():
        return fill(hole)
    filled = _filled(grains, known)
    width = hole.pixels.shape[1]
    return lambda rows: _enlarged(filled, hole.grain, rows)[:, :width]


def _grains(hole: Hole) -> tuple[Floats, NDArray[np.uint8]]:
    """Return the averages of the hole's known pixels by grain [h, w, c], and which are known.

    Pixels are known if they are neither hidden nor covered, and a grain if any of its pixels is.
    """
    height, width, channels = hole.pixels.shape
    grain = hole.grain
    size = -(-height // grain), -(-width // grain)
    averages, known = np.empty((*size, channels), np.float32), np.empty(size, np.uint8)
    for rows in strips(height, width, grain):
        part = slice(rows.start // grain, -(-rows.stop // grain))
        is_known = ((hole.opacity[rows] < OPAQUE) & ~hole.covered[rows]).view(np.uint8)
        pixels = cv2.copyTo(hole.pixels[rows], is_known).reshape(*is_known.shape, channels)
        averages[part], shares = _averages_of_known(
            pixels.astype(np.float32), is_known.astype(np.float32), grain
        )
        known[part] = shares > 0
    return averages, known


def _filled(values: Floats, known: NDArray[np.uint8]) -> Floats:
    """Return `values` [h, w, c] with those that are not `known` [h, w], 0 or 1, filled smoothly."""
    height, width = known.shape
    if known.all() or height * width == 1:
        return values
    clear = np.asarray(cv2.copyTo(values, known), np.float32).reshape(values.shape)
    averages, shares = _averages_of_known(clear, known.astype(np.float32), 2)
    # A square is known if any of its values is. If all had to be, the middle of a region would fade
    # to nothing.
    smaller = _filled(averages, (shares > 0).view(np.uint8))
    result = _enlarged(smaller, 2, slice(0, height))[:, :width]
    cv2.copyTo(values, known, result)
    return result


def _averages_of_known(values: Floats, known: Floats, side: int) -> tuple[Floats, Floats]:
    """Return the averages of the known values of squares of `side`, [h, w, c].

    The second array is the share of each square that is known, [h, w]. `known` is 1 for known
    values and 0 for others, which are 0 themselves.
    """
    averages, shares = _averaged(values, side), _averaged(known, side)
    averages = averages.reshape(*shares.shape, -1)
    return averages / _per_channel(np.maximum(shares, MIN_KNOWN_SHARE), averages), shares


def _averaged(values: Floats, side: int) -> Floats:
    """Return the averages of squares of `side`, for `values` [h, w, …].

    Values beyond the right and lower edge count as 0.
    """
    if side == 1:
        return values
    height, width = values.shape[:2]
    down, across = -height % side, -width % side
    if down or across:
        values = np.asarray(
            cv2.copyMakeBorder(values, 0, down, 0, across, cv2.BORDER_CONSTANT, value=0), np.float32
        )
    size = (width + across) // side, (height + down) // side
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _enlarged(values: Floats, factor: int, rows: slice) -> Floats:
    """Return `rows` of `values` [h, w, c] enlarged smoothly by a whole `factor`.

    The rows are those of the enlarged array, and start at a multiple of `factor`.
    """
    if factor == 1:
        return values[rows]
    # Interpolation reads one row of values before and after.
    first = max(0, rows.start // factor - 1)
    used = values[first : -(-rows.stop // factor) + 1]
    size = used.shape[1] * factor, len(used) * factor
    enlarged = cv2.resize(used, size, interpolation=cv2.INTER_LINEAR).reshape(size[1], size[0], -1)
    start = first * factor
    return np.asarray(enlarged[rows.start - start : rows.stop - start], np.float32)


def _per_channel(weights: Floats, values: Floats) -> Floats:
    """Return `weights` [h, w] repeated for each channel of `values` [h, w, c].

    NumPy is slow at broadcasting along so few channels.
    """
    channels = values.shape[2]
    merged = cv2.merge([weights] * channels).reshape(*weights.shape, channels)
    return merged.astype(np.float32, copy=False)


def blur(hole: Hole) -> Filling:
    """Return the averages of cells, a few across a face, with smooth transitions."""
    cells = _cells(hole)
    return lambda rows: _stretched(cells, rows, *hole.opacity.shape)


def pixelate(hole: Hole) -> Filling:
    """Return the averages of cells, a few across a face."""
    cells = _cells(hole)
    down, across = _cell_numbers(hole)
    return lambda rows: cells[down[rows]][:, across]


def _cells(hole: Hole) -> Floats:
    """Return the averages of the cells, [rows, columns, c].

    Pixels are weighted by the hole's opacity, so that a neighbour's face has no part in them.
    """
    down, across = _cell_numbers(hole)
    starts = np.searchsorted(across, np.arange(across[-1] + 1))
    sums = np.zeros((down[-1] + 1, len(starts), hole.pixels.shape[2]))
    weights = np.zeros(sums.shape[:2])
    for rows in strips(*hole.opacity.shape):
        # All terms are whole numbers, whose float64 sums do not depend on the order.
        opacity = hole.opacity[rows].astype(np.float32)
        weighted = hole.pixels[rows] * opacity[..., None]
        row_sums = np.add.reduceat(weighted, starts, axis=1, dtype=np.float64)
        np.add.at(sums, down[rows], row_sums)
        row_weights = np.add.reduceat(opacity, starts, axis=1, dtype=np.float64)
        np.add.at(weights, down[rows], row_weights)
    cells = (sums / np.maximum(weights, 1)[..., None]).astype(np.float32)
    return _filled(cells, (weights > 0).view(np.uint8))


def _cell_numbers(hole: Hole) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the cell of each row and of each column of the window.

    The cells are as equal as whole pixels allow.
    """
    down, across = (np.arange(side) * -(-side // hole.cell) // side for side in hole.opacity.shape)
    return down, across


def _stretched(cells: Floats, rows: slice, height: int, width: int) -> Floats:
    """Return `rows` [n, width, c] of `cells` [h, w, c] stretched smoothly to `height` x `width`."""
    last = len(cells) - 1
    places = ((np.arange(rows.start, rows.stop) + 0.5) * len(cells) / height - 0.5).clip(0, last)
    above = places.astype(np.intp)
    below = np.minimum(above + 1, last)
    first = above[0]
    used = cells[first : below[-1] + 1]
    wide = cv2.resize(used, (width, len(used)), interpolation=cv2.INTER_LINEAR)
    wide = wide.reshape(len(used), width, -1)
    share = (places - above).astype(np.float32)[:, None, None]
    stretched: Floats = wide[above - first] * (1 - share) + wide[below - first] * share
    return stretched


def fill(hole: Hole) -> Filling:
    """Return black pixels."""
    return lambda rows: np.full(hole.pixels[rows].shape, hole.black, np.float32)


METHODS: dict[str, Callable[[Hole], Filling]] = {
    "surround": surround,
    "blur": blur,
    "pixelate": pixelate,
    "fill": fill,
}
# The output of these methods does not depend on the pixels that they hide.
INDEPENDENT = ("surround", "fill")
