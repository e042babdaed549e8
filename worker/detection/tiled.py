"""Run the model over the image of a pass: tile by tile, and closer where a tile is too full."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed, DetectorUnavailable
from worker.detection.canvas import MAX_CANVAS_SIDE, Size, canvas_size, padded
from worker.detection.credible import credible
from worker.detection.faces import Detections, Points, moved
from worker.detection.passes import PassImage
from worker.detection.tiles import Tile, quarters, tiles
from worker.pixels import Pixels

# The pixels that neighbouring tiles share. Faces that are larger lie whole in the next coarser
# pass: see presets.MAX_STEP_FACTOR.
TILE_OVERLAP = 192
# A tile may have cut a face whose box comes within this many pixels of the tile's edge.
CUT_MARGIN = 2
# The longest side, in pixels, of the tiles of a closer pass, and the pixels that neighbours share.
# Small tiles waste little around the places that the pass is for, and the faces there are small.
# Where places would need too many of them, as a crowd does, they are larger.
CLOSER_TILE_SIDE, CLOSER_TILE_OVERLAP = 256, 48
LARGER_TILES = ((512, 96), (1024, TILE_OVERLAP), (MAX_CANVAS_SIDE, TILE_OVERLAP))
MAX_CLOSER_TILES = 128
# A tile with a side of at most this many pixels is not divided again, however many faces the model
# finds in it.
MIN_DIVISIBLE_SIDE = 32
# The most canvases of one picture that a model gets together.
MAX_CANVASES_AT_ONCE = 8
# The most canvases of one picture. Walls of small faces in 24 to 140 megapixels need 100 to 160.
MAX_CANVASES = 1000

Infer = Callable[[Sequence[Pixels]], Sequence[Detections]]
"""Return the detections in each canvas, uint8 RGB [height, width, 3], in pixels of the canvas."""


def one_by_one(infer: Callable[[Pixels], Detections]) -> Infer:
    """Return the Infer that calls `infer` for each canvas."""
    return lambda canvases: [infer(canvas) for canvas in canvases]


@dataclass(frozen=True)
class TooMany:
    """The errors of a picture with more objects than the model can return.

    `model` and `objects` are their names in messages, and `remedy` is the change of a setting that
    leaves out weaker detections.
    """

    model: str = "the model"
    objects: str = "faces"
    remedy: str = "raise VEIL_SCORE_THRESHOLD"

    def in_many_parts(self) -> DetectionFailed:
        return DetectionFailed(
            f"{self.model} returns as many {self.objects} as it can for each of "
            f"{MAX_CANVASES:,} parts of the picture: {self._advice}"
        )

    def in_a_small_part(self, count: int, size: str) -> DetectionFailed:
        return DetectionFailed(
            f"{self.model} returned {count} {self.objects} for a part of {size} pixels, as many as "
            f"it can: {self._advice}"
        )

    @property
    def _advice(self) -> str:
        return f"{self.remedy}, or export the model with more detections"


TOO_MANY_FACES = TooMany()


def limited(infer: Infer, seconds: float, too_many: TooMany = TOO_MANY_FACES) -> Infer:
    """Return `infer` with limits for one picture, whose time starts now.

    A call after `seconds` raises DetectorUnavailable. One that would make more canvases than
    MAX_CANVASES raises the error of `too_many`.
    """
    end = time.monotonic() + seconds
    remaining = MAX_CANVASES

    def infer_within_limits(canvases: Sequence[Pixels]) -> Sequence[Detections]:
        nonlocal remaining
        remaining -= len(canvases)
        if remaining < 0:
            raise too_many.in_many_parts()
        if time.monotonic() > end:
            raise DetectorUnavailable(f"the passes over one picture took more than {seconds:g} s")
        return infer(canvases)

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
class ModelInput:
    """The canvases that a model takes.

    `fixed_size` is the size of a model that takes no other. A model `at_once` of several canvases
    gets those of several tiles and passes together, as long as they have no more pixels than
    `largest_at_once` of the largest size. One that `has_few_shapes` gets canvases with sides of
    GPU_SIDES.
    """

    fixed_size: Size | None = None
    _: KW_ONLY
    at_once: int = 1
    largest_at_once: int = MAX_CANVASES_AT_ONCE
    has_few_shapes: bool = False

    @property
    def pixels_at_once(self) -> int:
        """The most pixels of the canvases that the model gets together."""
        height, width = self.fixed_size or (MAX_CANVAS_SIDE, MAX_CANVAS_SIDE)
        return min(self.at_once, self.largest_at_once) * height * width

    def canvas_size(self, height: int, width: int) -> Size:
        """Return the size of the canvas that shows a part of `height` x `width` pixels."""
        return self.fixed_size or canvas_size(height, width, self.has_few_shapes)


ANY_SIZE = ModelInput()


@dataclass(frozen=True)
class _Part:
    """A tile of the image with the place `number` among those of a call."""

    number: int
    image: PassImage
    tile: Tile

    @property
    def pixels(self) -> Pixels:
        return self.image.pixels[self.tile]

    def canvas_size(self, takes: ModelInput) -> Size:
        """Return the size of the canvas that shows this part to a model that `takes` it."""
        rows, columns = self.tile
        return takes.canvas_size(rows.stop - rows.start, columns.stop - columns.start)


@dataclass(frozen=True)
class TiledModel:
    """A model that takes images of any size.

    Detections below `least_score` are dropped. A model that leaves out faces with a score of
    `score_threshold` or more is run again on the quarters of the tile.
    """

    infer: Infer
    least_score: float
    score_threshold: float
    takes: ModelInput = ANY_SIZE
    too_many: TooMany = TOO_MANY_FACES

    def detect(self, images: Sequence[PassImage]) -> list[TiledDetections]:
        """Return the detections in each of `images`, whose canvases the model gets together.

        A face that the edge of a tile cuts is whole in another tile or in a coarser pass. Raises
        DetectionFailed if the model's answer is not credible, or if even the smallest part of the
        finest pass has more faces than the model can return; and what `infer` raises.
        """
        planned = [self._tiles(image) for image in images]
        found: list[list[tuple[Detections, Tile]]] = [[] for _ in images]
        parts = [
            _Part(number, image, tile)
            for number, (image, image_tiles) in enumerate(zip(images, planned, strict=True))
            for tile in image_tiles
        ]
        # The model's lanes are free at the same time if the largest is not the last.
        waiting = deque(sorted(parts, key=self._pixels, reverse=True))
        while waiting:
            for part, detections, is_full in self._detect_in(self._next(waiting)):
                found[part.number].append((detections, part.tile))
                if is_full:
                    waiting.extendleft(reversed(list(_quarters(part))))
        return [
            _joined(image, parts, len(parts) > len(tiles_of_image))
            for image, parts, tiles_of_image in zip(images, found, planned, strict=True)
        ]

    def _next(self, waiting: deque[_Part]) -> list[_Part]:
        """Take the parts that the model gets together from the left of `waiting`."""
        together = [waiting.popleft()]
        pixels = self._pixels(together[0])
        while waiting and len(together) < self.takes.at_once:
            pixels += self._pixels(waiting[0])
            if pixels > self.takes.pixels_at_once:
                break
            together.append(waiting.popleft())
        return together

    def _pixels(self, part: _Part) -> int:
        """Return the number of pixels of the canvas that shows `part`."""
        height, width = part.canvas_size(self.takes)
        return height * width

    def _tiles(self, image: PassImage) -> list[Tile]:
        """Return the tiles of `image` that are given to the model."""
        height, width = image.pixels.shape[:2]
        if image.plan.places is not None:
            return self._closer_tiles(image, image.plan.places)
        size = self.takes.fixed_size or (MAX_CANVAS_SIDE, MAX_CANVAS_SIDE)
        # No coarser pass shows whole what the tiles of the coarsest one cut.
        overlap = min(size) // 2 if image.plan.is_coarsest else min(TILE_OVERLAP, min(size) // 3)
        return list(tiles(height, width, size, overlap))

    def _closer_tiles(self, image: PassImage, places: Points) -> list[Tile]:
        """Return the tiles of `image` that contain one of `places`."""
        height, width = image.pixels.shape[:2]
        kinds = [(CLOSER_TILE_SIDE, CLOSER_TILE_OVERLAP), *LARGER_TILES]
        sizes = [((side, side), overlap) for side, overlap in kinds]
        if fixed := self.takes.fixed_size:
            sizes = [(fixed, min(CLOSER_TILE_OVERLAP, min(fixed) // 3))]
        found: list[Tile] = []
        for size, overlap in sizes:
            planned = list(tiles(height, width, size, overlap))
            found = _with_places(planned, places, image)
            if len(found) <= MAX_CLOSER_TILES:
                break
        return found

    def _detect_in(self, parts: Sequence[_Part]) -> Iterator[tuple[_Part, Detections, bool]]:
        """Yield each part with its detections, in pixels of its image.

        The third value says whether its quarters have to follow, because the model returned as many
        faces as it can.
        """
        canvases = [padded(part.pixels, part.canvas_size(self.takes)) for part in parts]
        answers = self.infer(canvases)
        for part, canvas, answer in zip(parts, canvases, answers, strict=True):
            found = credible(answer, canvas.shape[1], canvas.shape[0], self.least_score)
            rows, columns = part.tile
            in_image = moved(found, np.tile([columns.start, rows.start], (len(found), 1)))
            yield part, in_image, self._is_full(part, answer)

    def _is_full(self, part: _Part, answer: Detections) -> bool:
        """Return whether the model left out faces of `part`, and its quarters may show them.

        Raises DetectionFailed if they can't be shown at all.
        """
        if answer.left_out < self.score_threshold:
            return False
        height, width = part.pixels.shape[:2]
        if min(height, width) > MIN_DIVISIBLE_SIDE:
            return True
        if part.image.plan.is_finest:
            raise self.too_many.in_a_small_part(len(answer), f"{width} x {height}")
        return False  # A finer pass shows faces that are so small.


def _quarters(part: _Part) -> Iterator[_Part]:
    """Yield the four parts into which `part` is divided."""
    rows, columns = part.tile
    height, width = part.pixels.shape[:2]
    for down, across in quarters(height, width, TILE_OVERLAP):
        yield replace(part, tile=(_shifted(down, rows), _shifted(across, columns)))


def _joined(
    image: PassImage, parts: Sequence[tuple[Detections, Tile]], is_full: bool
) -> TiledDetections:
    """Return the detections in the `parts` of `image` as those of the image."""
    height, width = image.pixels.shape[:2]
    is_cut = [np.zeros(0, bool)]
    is_cut += [_reaches_edge(found, tile, height, width) for found, tile in parts]
    found = Detections.joined([Detections.none(), *(found for found, _ in parts)])
    return TiledDetections(found, np.concatenate(is_cut), is_full)


def _with_places(planned: Sequence[Tile], places: Points, image: PassImage) -> list[Tile]:
    """Return the tiles of `image` in which one of `places` [n, 2] lies, x y in the picture."""
    corners = np.array(
        [[[across.start, down.start], [across.stop, down.stop]] for down, across in planned],
        np.float32,
    )
    in_picture = image.to_picture(corners)
    first, last = in_picture.min(axis=1), in_picture.max(axis=1)
    return [
        tile
        for tile, low, high in zip(planned, first, last, strict=True)
        if ((places >= low) & (places < high)).all(axis=1).any()
    ]


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
