"""The warm-up of a model on a GPU, which tunes itself to each shape of a batch when it meets it."""

import time

import numpy as np
import structlog

from tasks.errors import DetectorUnavailable
from worker.detection.detector import ScaledDetector, canvases_of
from worker.detection.tiled import CLOSER_TILE_SIDE

# Width and height of pictures of 1 and 12 megapixels with the aspect ratios of cameras.
USUAL_PICTURES = (
    *((1000, 1000), (1155, 866), (1225, 816), (1333, 750)),
    *((3464, 3464), (4000, 3000), (4243, 2828), (4619, 2598)),
)

# The worker does not wait longer for the remaining shapes. With PyTorch on an H200 each batch of a
# new shape took 2 s, and all of them would have taken 150 s: see docs/adr/0011-feeding-a-gpu.md.
MAX_SECONDS = 180

Shape = tuple[int, ...]

log = structlog.get_logger("veil")


def warm_up(detector: ScaledDetector, batch_size: int) -> None:
    """Give the model of `detector` batches of all sizes and usual shapes.

    The largest come first, so that a Batcher learns which ones the device has no memory for. Shapes
    that fail, and those that remain after MAX_SECONDS, are left to the pictures that need them.
    """
    started = time.monotonic()
    shapes = usual_shapes(detector)
    done = 0
    for shape in shapes:
        if time.monotonic() - started > MAX_SECONDS:
            break
        canvas = np.zeros(shape, np.uint8)
        try:
            for size in batch_sizes(batch_size):
                detector.infer([canvas] * size)
            done += 1
        except DetectorUnavailable as error:
            log.warning("a shape is not warmed up", shape=shape[:2], reason=str(error))
    seconds = round(time.monotonic() - started, 1)
    log.info("detector warmed up", shapes=f"{done} of {len(shapes)}", seconds=seconds)


def usual_shapes(detector: ScaledDetector) -> list[Shape]:
    """Return the shapes of the canvases of USUAL_PICTURES, upright and turned, largest first.

    Closer passes, which depend on what the others find, add the shape of their tiles.
    """
    size = detector.takes.fixed_size or (CLOSER_TILE_SIDE, CLOSER_TILE_SIDE)
    shapes: set[Shape] = {(*detector.takes.canvas_size(*size), 3)}
    for sides in USUAL_PICTURES:
        for height, width in (sides, sides[::-1]):
            picture = np.zeros((height, width, 3), np.uint8)
            canvases = canvases_of(picture, detector.settings, detector.takes)
            shapes.update(canvas.shape for canvas in canvases)
    return sorted(shapes, key=np.prod, reverse=True)


def batch_sizes(largest: int) -> list[int]:
    """Return the sizes of batches that a model is tuned to: powers of two and `largest`."""
    sizes = [largest]
    while sizes[-1] > 1:
        sizes.append(1 << ((sizes[-1] - 1).bit_length() - 1))
    return sizes
