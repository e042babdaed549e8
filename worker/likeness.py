"""The comparison of an output with its source: both must be alike outside of what was hidden."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.detection.detector import EDGE_SLACK, MAX_SLACK_SHARE
from worker.images import Frame, Picture
from worker.images.picture import WITH_ALPHA
from worker.images.writing import PAGES
from worker.masking.hiding import RING_SHARE
from worker.masking.regions import WHOLE, Part, regions
from worker.pixels import Array

Rectangles = NDArray[np.intp]
Planes = NDArray[np.float32]

TILE = 16  # pixels: the side of the tiles whose differences are averaged
# The rows that are compared at a time, so that a large picture needs little more memory.
STRIP_ROWS = 16 * TILE
MIN_CLEAR_SHARE = 0.25  # A tile counts if this share of its pixels is clear of masks.
# Two decoders of one file agree at least so far on a thumbnail in gray. Of 300 files without
# transparency none correlated by less than 0.9997, or differed by more than 1 level of 255 on
# average.
THUMBNAIL_SIDE = 32
MIN_CORRELATION, MAX_MEAN_DIFFERENCE = 0.9, 16
# Levels: thumbnails with a smaller standard deviation have nothing to correlate.
MIN_DEVIATION = 1.0
PAGED_FORMAT = "TIFF"  # Its frames are pages, which are never joined.

# Lossy formats may differ by so many levels of 255, and by this share of the picture's contrast
# more. Over 900 outputs of annotated photographs and odd files, in every lossy format at several
# qualities, the mean differed by at most 4.5 levels and 0.13 of the contrast, and the worst tile by
# 7.4 levels and 0.21. A test repeats it on fewer.
MEAN_LEVELS, MEAN_SHARE = 0.5, 0.25
TILE_LEVELS, TILE_SHARE = 4.0, 0.4
# A lossy format errs up as often as down, in each colour. In squares of this side, colours shifted
# by at most 3.5 levels in 590 such outputs, and by 13 or more where a photograph lost its colours
# or one of them.
SQUARE = 4 * TILE
SHIFT_LEVELS, SHIFT_SHARE = 4.0, 0.1


@dataclass(frozen=True)
class Differences:
    """The differences of two frames outside of masks, in levels of 255.

    `tiles` has the mean of each tile that is clear of masks. `shift` is the largest difference of a
    square's mean colour, in any of its planes. `contrast` is the mean distance of the first frame's
    clear pixels from their mean.
    """

    tiles: Planes
    contrast: float
    shift: float = 0.0

    @property
    def are_small(self) -> bool:
        """Return whether they can come from a lossy format."""
        if not len(self.tiles):
            return True
        if self.shift > SHIFT_LEVELS + SHIFT_SHARE * self.contrast:
            return False
        max_mean = MEAN_LEVELS + MEAN_SHARE * self.contrast
        max_tile = TILE_LEVELS + TILE_SHARE * self.contrast
        return bool(self.tiles.mean() <= max_mean and self.tiles.max() <= max_tile)


def is_alike(source: Picture, output: Picture, hidden: Rectangles) -> bool:
    """Return whether the two show the same outside of the rectangles `hidden`, [n, 4] x1 y1 x2 y2.

    Encoders join frames of an animation that are alike: each frame of the output then stands for
    one or more successive frames of the source.
    """
    joined = len(source.frames) - len(output.frames)
    if source.format != output.format or joined < 0:
        return False
    if joined and source.format == PAGED_FORMAT:
        return False
    exact = _is_lossless(source)
    last = len(output.frames) - 1
    possible = {0}  # The frames of the output that may stand for the current frame of the source.
    for number, frame in enumerate(source.frames):
        if number > 0:
            possible |= {place + 1 for place in possible}
        reachable = range(max(0, number - joined), min(number, last) + 1)
        possible = {
            place
            for place in possible.intersection(reachable)
            if _frames_alike(frame, output.frames[place], hidden, exact)
        }
    return last in possible


def is_confirmed(content: bytes, picture: Picture) -> bool:
    """Return whether OpenCV decodes the first frame of the file `content` as in `picture`.

    A fault of the usual decoder would make a source and its output look alike. Frames with
    transparency, and files that OpenCV does not read, count as confirmed: there is nothing to
    compare. Of an animated PNG with a picture of its own before the animation, OpenCV decodes
    either.
    """
    frames = picture.frames[: 2 if picture.encoding.get("default_image") else 1]
    if any(frame.mode in WITH_ALPHA for frame in frames):
        return True
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return decoded is None or any(_is_decoded_as(frame, decoded) for frame in frames)


def _is_decoded_as(frame: Frame, decoded: Array) -> bool:
    """Return whether `decoded`, BGR [h, w, 3], looks like `frame` in one of its orientations."""
    if sorted(decoded.shape[:2]) != sorted(frame.pixels.shape[:2]):
        return False
    own = _thumbnail(next(frame.views()))
    other = _thumbnail(np.asarray(decoded, np.uint8)[..., ::-1])
    if abs(own.mean() - other.mean()) > MAX_MEAN_DIFFERENCE:
        return False
    if own.std() < MIN_DEVIATION or other.std() < MIN_DEVIATION:
        return bool(max(own.std(), other.std()) < 2 * MIN_DEVIATION)
    # Programs disagree about which pictures they turn upright, so each orientation counts.
    for thumbnail in (other, other.T):
        for turns in range(4):
            if _correlation(own, np.rot90(thumbnail, turns)) >= MIN_CORRELATION:
                return True
    return False


def _thumbnail(view: NDArray[np.uint8]) -> Planes:
    size = THUMBNAIL_SIDE, THUMBNAIL_SIDE
    small = cv2.resize(np.ascontiguousarray(view), size, interpolation=cv2.INTER_AREA)
    gray: Planes = np.asarray(small, np.float32).mean(axis=2)
    return gray


def _correlation(one: Planes, other: Planes) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _is_lossless(picture: Picture) -> bool:
    """Return whether pixels outside of masks stay exactly as they are.

    Those of a GIF do not: it may get fewer colours.
    """
    if picture.format == "TIFF":
        return all(page["compression"] != "jpeg" for page in picture.encoding.get(PAGES, ()))
    return picture.format in ("PNG", "BMP") or bool(picture.encoding.get("lossless"))


def _frames_alike(source: Frame, output: Frame, hidden: Rectangles, exact: bool) -> bool:
    if source.pixels.shape[:2] != output.pixels.shape[:2]:
        return False
    if source.pixels.dtype != output.pixels.dtype:
        return False
    if (source.mode == "CMYK") != (output.mode == "CMYK"):
        return False
    found = differences(source, output, hidden)
    return not found.tiles.any() if exact else found.are_small


def differences(source: Frame, output: Frame, hidden: Rectangles) -> Differences:
    """Return the differences of two frames of one size outside of the rectangles `hidden`."""
    weight, mean = _mean_of_clear(source, hidden)
    tiles = [np.zeros(0, np.float32)]
    contrast = shift = 0.0
    for rows, clear in _strips(source, hidden):
        before = _planes(source, rows)
        contrast += float((np.abs(before - mean).mean(axis=2) * clear).sum(dtype=np.float64))
        difference = (before - _planes(output, rows)) * clear[..., None]
        tiles.append(_means(np.abs(difference).mean(axis=2), clear, TILE))
        for plane in range(difference.shape[2]):
            shifts = np.abs(_means(difference[..., plane], clear, SQUARE))
            shift = max(shift, float(shifts.max(initial=0)))
    return Differences(np.concatenate(tiles), contrast / max(weight, 1.0), shift)


def _mean_of_clear(frame: Frame, hidden: Rectangles) -> tuple[float, Planes]:
    """Return the number of pixels outside of the rectangles `hidden`, and their mean, [4]."""
    weight, total = 0.0, np.zeros(4)
    for rows, clear in _strips(frame, hidden):
        planes = _planes(frame, rows)
        weight += clear.sum()
        total += (planes * clear[..., None]).sum(axis=(0, 1), dtype=np.float64)
    return weight, (total / max(weight, 1.0)).astype(np.float32)


def _strips(frame: Frame, hidden: Rectangles) -> Iterator[tuple[slice, Planes]]:
    """Yield the rows of a frame in strips, and which of their pixels are clear of masks, 1 or 0."""
    for top in range(0, frame.height, STRIP_ROWS):
        rows = slice(top, min(top + STRIP_ROWS, frame.height))
        clear = np.ones((rows.stop - top, frame.width), np.float32)
        for x1, y1, x2, y2 in hidden:
            clear[max(0, y1 - top) : max(0, y2 - top), x1:x2] = 0
        yield rows, clear


def _means(values: Planes, clear: Planes, side: int) -> Planes:
    """Return the mean of each square of `side` of which enough is `clear` of masks.

    Masked `values` are 0.
    """
    counts = _sums(clear, side)
    is_enough = counts >= side * side * MIN_CLEAR_SHARE
    means: Planes = _sums(values, side)[is_enough] / counts[is_enough]
    return means


def _sums(values: Planes, side: int) -> Planes:
    """Return the sum of each square of `side`."""
    down, across = (range(0, length, side) for length in values.shape)
    sums: Planes = np.add.reduceat(np.add.reduceat(values, down, axis=0), across, axis=1)
    return sums


def _planes(frame: Frame, rows: slice) -> Planes:
    """Return rows of a frame, float32 [h, w, 4] in levels of 255.

    The planes are the inks of CMYK, or the colours, multiplied by alpha, and alpha last.
    """
    pixels = frame.pixels[rows]
    values = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32)
    values *= np.float32(255 / np.iinfo(pixels.dtype).max)
    if frame.mode == "CMYK":
        return values
    has_alpha = frame.mode in WITH_ALPHA
    planes = np.full((*values.shape[:2], 4), 255, np.float32)
    planes[..., :3] = values[..., :-1] if has_alpha else values
    if has_alpha:
        planes[..., 3] = values[..., -1]
        planes[..., :3] *= planes[..., 3:] / 255
    return planes


def hidden_by(
    parts: Sequence[Part],
    extra: Sequence[Sequence[float]],
    picture: Picture,
    coarsest: int,
) -> Rectangles:
    """Return the rectangles in which an output may differ from its source, with soft edges.

    They are the whole objects of `parts`, and the areas `extra` in the style of the first one. A
    receipt has one box for each object, which several passes may have detected, so the rectangles
    are widened by the error of an edge in the `coarsest` pass, whose longer side it is in pixels.
    """
    found = [_hidden_by(part, (), picture, coarsest) for part in parts[1:]]
    return np.concatenate([_hidden_by(parts[0], extra, picture, coarsest), *found])


def _hidden_by(
    part: Part, extra: Sequence[Sequence[float]], picture: Picture, coarsest: int
) -> Rectangles:
    """Return the rectangles of one part, as hidden_by says."""
    # Pages of a TIFF may be larger than the first.
    width = max(frame.width for frame in picture.frames)
    height = max(frame.height for frame in picture.frames)
    sightings, style = part.sightings, part.style
    slack = EDGE_SLACK * max(1.0, max(width, height) / coarsest)
    whole = replace(
        style, region=WHOLE, margin=max(style.margin, MAX_SLACK_SHARE), shape="rectangle"
    )
    slacks = np.full(len(sightings), slack, np.float32)
    found = regions(replace(sightings, slack=slacks), whole, width, height, extra)
    grown = np.ceil((style.feather + RING_SHARE) * found.sides).astype(np.intp)[:, None] + 1
    first, last = found.rectangles[:, :2] - grown, found.rectangles[:, 2:] + grown
    rectangles: Rectangles = np.concatenate([first, last], axis=1).clip(0, [width, height] * 2)
    return rectangles
