"""Run the model over the image of a pass: tile by tile, and closer where a tile is too full."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed, DetectorUnavailable
from worker.detection.canvas import MAX_CANVAS_SIDE, padded
from worker.detection.credible import credible
from worker.detection.faces import Detections, Points, moved
from worker.detection.passes import PassImage
from worker.detection.tiles import Tile, quarters, tiles
from worker.pixels import Pixels

# The pixels that neighbouring tiles share. Faces that are larger lie whole in the next coarser
# pass: see passes.MAX_STEP_FACTOR.
TILE_OVERLAP = 192
# A tile may have cut a face whose box comes within this many pixels of the tile's edge.
CUT_MARGIN = 2
# The longest side, in pixels, of the tiles of a closer pass, and the pixels that neighbours share.
# Small tiles waste little around the places that the pass is for, and the faces there are small.
CLOSER_TILE_SIDE, CLOSER_TILE_OVERLAP = 512, 64
# A tile with a side of at most this many pixels is not divided again, however many faces the model
# finds in it.
MIN_DIVISIBLE_SIDE = 32
# The most canvases of one picture. A wall of 10,000 faces in 24 megapixels needs about 100.
MAX_CANVASES = 1000
ADVICE = "raise VEIL_SCORE_THRESHOLD, or export the model with more detections"

Infer = Callable[[Pixels], Detections]
"""Return the detections in a canvas, uint8 RGB [height, width, 3], in pixels of the canvas."""


def limited(infer: Infer, seconds: float) -> Infer:
    """Return `infer` with limits for one picture, whose time starts now.

    A call after `seconds` raises DetectorUnavailable; one after MAX_CANVASES, DetectionFailed.
    """
    end = time.monotonic() + seconds
    canvases = count(1)

    def infer_within_limits(canvas: Pixels) -> Detections:
        if next(canvases) > MAX_CANVASES:
            raise DetectionFailed(
                "the model returns as many faces as it can "
                f"for each of {MAX_CANVASES:,} parts of the picture: {ADVICE}"
            )
        if time.monotonic() > end:
            raise DetectorUnavailable(f"the passes over one picture took more than {seconds:g} s")
        return infer(canvas)

    return infer_within_limits


@dataclass(frozen=True)
class TiledDetections:
    """The detections in the image of a pass, in its pixels.

    `is_cut` bool [n] marks those that the edge of a tile may have cut. `is_full` is true if the
    model found as many faces in a tile as it can return.
    """

    found: Detections
    is_cut: NDArray[np.bool_]
    is_full: bool


@dataclass(frozen=True)
class TiledModel:
    """A model that takes images of any size.

    Detections below `least_score` are dropped. A model that leaves out faces with a score of
    `score_threshold` or more is run again on the quarters of the tile. `fixed_size` is the
    (height, width) of a model that takes no other size.
    """

    infer: Infer
    least_score: float
    score_threshold: float
    fixed_size: tuple[int, int] | None = None

    def detect(self, image: PassImage) -> TiledDetections:
        """Return the detections in `image`.

        A face that the edge of a tile cuts is whole in another tile or in a coarser pass. Raises
        DetectionFailed if the model's answer is not credible, or if even the smallest part of the
        finest pass has more faces than the model can return; and what `infer` raises.
        """
        height, width = image.pixels.shape[:2]
        planned = self._tiles(image)
        parts: list[tuple[Detections, Tile]] = []
        for tile in planned:
            parts += self._detect_in(image, tile)
        is_cut = [np.zeros(0, bool)]
        is_cut += [_reaches_edge(found, tile, height, width) for found, tile in parts]
        found = Detections.joined([Detections.none(), *(found for found, _ in parts)])
        return TiledDetections(found, np.concatenate(is_cut), len(parts) > len(planned))

    def _tiles(self, image: PassImage) -> list[Tile]:
        """Return the tiles of `image` that are given to the model."""
        height, width = image.pixels.shape[:2]
        places = image.plan.places
        if places is not None:
            size = self.fixed_size or (CLOSER_TILE_SIDE, CLOSER_TILE_SIDE)
            overlap = min(CLOSER_TILE_OVERLAP, min(size) // 3)
            planned = tiles(height, width, size, overlap)
            return [tile for tile in planned if _any_in(places, tile, image)]
        size = self.fixed_size or (MAX_CANVAS_SIDE, MAX_CANVAS_SIDE)
        # No coarser pass shows whole what the tiles of the coarsest one cut.
        overlap = min(size) // 2 if image.plan.is_coarsest else min(TILE_OVERLAP, min(size) // 3)
        return list(tiles(height, width, size, overlap))

    def _detect_in(self, image: PassImage, tile: Tile) -> Iterator[tuple[Detections, Tile]]:
        """Yield the detections in `tile`, in pixels of the image, with the tile.

        If the model returned as many faces as it can, the same follows for the tile's quarters.
        """
        rows, columns = tile
        part = image.pixels[rows, columns]
        height, width = part.shape[:2]
        canvas = padded(part, self.fixed_size)
        answer = self.infer(canvas)
        found = credible(answer, canvas.shape[1], canvas.shape[0], self.least_score)
        yield moved(found, np.tile([columns.start, rows.start], (len(found), 1))), tile
        if answer.left_out < self.score_threshold:
            return
        if min(height, width) <= MIN_DIVISIBLE_SIDE:
            if image.plan.is_finest:
                raise DetectionFailed(
                    f"the model returned {len(answer)} faces for a part of {width} x {height} "
                    f"pixels, as many as it can: {ADVICE}"
                )
            return  # A finer pass shows faces that are so small.
        for down, across in quarters(height, width, TILE_OVERLAP):
            yield from self._detect_in(image, (_shifted(down, rows), _shifted(across, columns)))


def _any_in(places: Points, tile: Tile, image: PassImage) -> bool:
    """Return whether one of `places` [n, 2], x y in the picture, lies in `tile` of `image`."""
    rows, columns = tile
    corners = np.array([[columns.start, rows.start], [columns.stop, rows.stop]], np.float32)
    in_picture = image.to_picture(corners)
    first, last = in_picture.min(axis=0), in_picture.max(axis=0)
    return bool(((places >= first) & (places < last)).all(axis=1).any())


def _reaches_edge(found: Detections, tile: Tile, height: int, width: int) -> NDArray[np.bool_]:
    """Return which of `found` reach an edge of `tile` beyond which the image goes on, [n].

    `height` and `width` are those of the image.
    """
    boxes = found.boxes_xyxy
    rows, columns = tile
    reaches = np.zeros(len(found), bool)
    for axis, (span, length) in enumerate(((columns, width), (rows, height))):
        if span.start > 0:
            reaches |= boxes[:, axis] < span.start + CUT_MARGIN
        if span.stop < length:
            reaches |= boxes[:, axis + 2] > span.stop - CUT_MARGIN
    return reaches


def _shifted(span: slice, by: slice) -> slice:
    """Return `span`, which counts from the start of `by`, as pixels of the whole image."""
    return slice(by.start + span.start, by.start + span.stop)
