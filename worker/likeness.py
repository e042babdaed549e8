"""Whether an output shows the same picture as its source outside of what was hidden."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.detection.detector import EDGE_SLACK, MAX_SLACK_SHARE
from worker.detection.faces import Boxes, Sightings
from worker.images import Frame, Picture
from worker.images.picture import WITH_ALPHA
from worker.masking.hiding import RING_SHARE
from worker.masking.regions import WHOLE, MaskStyle, regions

Rectangles = NDArray[np.intp]
Planes = NDArray[np.float32]

TILE = 16  # pixels: the side of the squares whose differences are averaged
ROWS = 16 * TILE  # that are compared at a time, so that a large picture needs little more memory
LEAST = 0.25  # of a square's pixels have to be clear of masks for it to count
# Two decoders of one file see it at least so much alike, as small squares of gray: of 300 files
# without transparency none correlated by less than 0.9997, or differed by more than 1 level of 255
# on average.
THUMBNAIL = 32
OTHER_DECODER_CORRELATION, OTHER_DECODER_LEVELS = 0.9, 16
FLAT = 1.0  # levels: a standard deviation below which there is nothing to correlate
PAGES = "TIFF"  # whose frames are never joined

# Lossy formats may differ by so many levels of 255, and by this share of the picture's contrast
# more. Over 900 outputs of annotated photographs and odd files, in every lossy format at several
# qualities, the mean differed by at most 4.5 levels and 0.13 of the contrast, and the worst tile by
# 7.4 levels and 0.21; a test repeats it on fewer.
MEAN_LEVELS, MEAN_SHARE = 0.5, 0.25
TILE_LEVELS, TILE_SHARE = 4.0, 0.4
# A lossy format errs up as often as down, in each colour: in squares as large as this one, colours
# shifted by at most 3.5 levels in 590 such outputs, and by 13 or more where a photograph lost its
# colours or one of them.
SQUARE = 4 * TILE
SHIFT_LEVELS, SHIFT_SHARE = 4.0, 0.1


@dataclass(frozen=True)
class Differences:
    """The differences of two frames, in levels of 255: the mean of each tile that is clear of
    masks.

    `shift` is the largest difference of a square's mean colour, in any of its planes.
    `contrast` is the mean distance of the first frame's clear pixels from their mean.
    """

    tiles: Planes
    contrast: float
    shift: float = 0.0

    @property
    def are_small(self) -> bool:
        """Return whether a lossy format may have made them."""
        if not len(self.tiles):
            return True
        if self.shift > SHIFT_LEVELS + SHIFT_SHARE * self.contrast:
            return False
        mean = MEAN_LEVELS + MEAN_SHARE * self.contrast
        return bool(
            self.tiles.mean() <= mean
            and self.tiles.max() <= TILE_LEVELS + TILE_SHARE * self.contrast
        )


def is_alike(source: Picture, output: Picture, hidden: Rectangles) -> bool:
    """Return whether the two show the same outside of the rectangles `hidden`, [n, 4] x1 y1 x2 y2.

    Frames of an animation that were alike may have been joined into one: each frame of the output
    then stands for one or more frames of the source, in their order.
    """
    before, after = source.frames, output.frames
    joined = len(before) - len(after)
    if source.format != output.format or joined < 0 or (joined and source.format == PAGES):
        return False
    exact = _is_lossless(source)
    places = {0}  # frames of the output that the last frame of the source may be in
    for number, frame in enumerate(before):
        reached = (
            {0} if number == 0 else {next_ for place in places for next_ in (place, place + 1)}
        )
        reached = {
            place for place in reached if number - joined <= place <= min(number, len(after) - 1)
        }
        places = {place for place in reached if _frames_alike(frame, after[place], hidden, exact)}
    return len(after) - 1 in places


def is_confirmed(content: bytes, picture: Picture) -> bool:
    """Return whether OpenCV sees the first frame of the file `content` as `picture` has it.

    A decoder's fault would make a source and its output look alike. Frames with transparency, and
    files that OpenCV does not read, count as confirmed: there is nothing to compare.
    """
    frame = picture.frames[0]
    seen = (
        None
        if frame.mode in WITH_ALPHA
        else cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    )
    if seen is None:
        return True
    if sorted(seen.shape[:2]) != sorted(frame.pixels.shape[:2]):
        return False
    own, other = _thumbnail(next(frame.views())), _thumbnail(np.asarray(seen, np.uint8)[..., ::-1])
    if abs(own.mean() - other.mean()) > OTHER_DECODER_LEVELS:
        return False
    if own.std() < FLAT or other.std() < FLAT:
        return bool(max(own.std(), other.std()) < 2 * FLAT)
    # Programs disagree about which pictures they turn upright, so each way of lying counts.
    ways = [np.rot90(way, turn) for way in (other, other.T) for turn in range(4)]
    return any(
        np.corrcoef(own.ravel(), way.ravel())[0, 1] >= OTHER_DECODER_CORRELATION for way in ways
    )


def _thumbnail(view: NDArray[np.uint8]) -> Planes:
    size = THUMBNAIL, THUMBNAIL
    small = cv2.resize(np.ascontiguousarray(view), size, interpolation=cv2.INTER_AREA)
    gray: Planes = np.asarray(small, np.float32).mean(axis=2)
    return gray


def _is_lossless(picture: Picture) -> bool:
    """Return whether pixels outside of masks stay exactly as they are. A GIF may have to make do
    with fewer colours.
    """
    if picture.format == "TIFF":
        return picture.encoding.get("compression") != "jpeg"
    return picture.format in ("PNG", "BMP") or bool(picture.encoding.get("lossless"))


def _frames_alike(source: Frame, output: Frame, hidden: Rectangles, exact: bool) -> bool:
    if (
        source.pixels.shape[:2] != output.pixels.shape[:2]
        or source.pixels.dtype != output.pixels.dtype
    ):
        return False
    if (source.mode == "CMYK") != (output.mode == "CMYK"):
        return False
    found = differences(source, output, hidden)
    return not found.tiles.any() if exact else found.are_small


def differences(source: Frame, output: Frame, hidden: Rectangles) -> Differences:
    """Return how two frames of one size differ outside of the rectangles `hidden`."""
    tiles = [np.zeros(0, np.float32)]
    weight, total = 0.0, np.zeros(4)
    for rows, clear in _strips(source, hidden):
        before = _planes(source, rows)
        weight, total = (
            weight + clear.sum(),
            total + (before * clear[..., None]).sum(axis=(0, 1), dtype=np.float64),
        )
    mean = (total / max(weight, 1.0)).astype(np.float32)
    contrast = shift = 0.0
    for rows, clear in _strips(source, hidden):
        before = _planes(source, rows)
        contrast += float((np.abs(before - mean).mean(axis=2) * clear).sum(dtype=np.float64))
        apart = (before - _planes(output, rows)) * clear[..., None]
        tiles.append(_means(np.abs(apart).mean(axis=2), clear, TILE))
        for plane in range(apart.shape[2]):
            shift = max(
                shift, float(np.abs(_means(apart[..., plane], clear, SQUARE)).max(initial=0))
            )
    return Differences(np.concatenate(tiles), contrast / max(weight, 1.0), shift)


def _strips(frame: Frame, hidden: Rectangles) -> Iterator[tuple[slice, Planes]]:
    """Yield some rows of a frame after the other, and which of their pixels are clear of masks, 1
    or 0.
    """
    for top in range(0, frame.height, ROWS):
        rows = slice(top, min(top + ROWS, frame.height))
        clear = np.ones((rows.stop - top, frame.width), np.float32)
        for x1, y1, x2, y2 in hidden:
            clear[max(0, y1 - top) : max(0, y2 - top), x1:x2] = 0
        yield rows, clear


def _means(values: Planes, clear: Planes, side: int) -> Planes:
    """Return the mean of each square of `side` of which enough is `clear` of masks. Masked `values`
    are 0.
    """
    count = _sums(clear, side)
    counts = count >= side * side * LEAST
    means: Planes = _sums(values, side)[counts] / count[counts]
    return means


def _sums(values: Planes, side: int) -> Planes:
    """Return the sum of each square of `side`."""
    down, across = (range(0, length, side) for length in values.shape)
    sums: Planes = np.add.reduceat(np.add.reduceat(values, down, axis=0), across, axis=1)
    return sums


def _planes(frame: Frame, rows: slice) -> Planes:
    """Return rows of a frame, float32 [h, w, 4] in levels of 255: inks, or alpha last and the
    colours that it shows.
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
    boxes: Boxes,
    extra: Sequence[Sequence[float]],
    style: MaskStyle,
    picture: Picture,
    coarsest: int,
) -> Rectangles:
    """Return the rectangles in which an output may differ: the faces `boxes`, whole, and `extra`,
    with soft edges.

    A receipt has one box for each face, of which passes may have seen several, so what an edge may
    be wrong by in the `coarsest` pass, whose longer side it is in pixels, is added.
    """
    width, height = picture.width, picture.height
    seen = Sightings.of(boxes)
    slack = np.full(len(boxes), EDGE_SLACK * max(1.0, max(width, height) / coarsest), np.float32)
    whole = replace(
        style, region=WHOLE, margin=max(style.margin, MAX_SLACK_SHARE), shape="rectangle"
    )
    found = regions(replace(seen, slack=slack), whole, width, height, extra)
    grown = np.ceil((style.feather + RING_SHARE) * found.sides).astype(np.intp)[:, None] + 1
    edges = np.concatenate(
        [found.rectangles[:, :2] - grown, found.rectangles[:, 2:] + grown], axis=1
    )
    rectangles: Rectangles = edges.clip(0, [width, height] * 2)
    return rectangles
