"""A decoded picture: its frames, and what the detector looks at."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.detector import Pixels
from worker.images.formats import CONTENT_TYPES

Array = NDArray[Any]

BLACK: dict[str, tuple[int, ...]] = {
    "L": (0,),
    "LA": (0, 255),
    "RGB": (0, 0, 0),
    "RGBA": (0, 0, 0, 255),
    "CMYK": (0, 0, 0, 255),
    "I;16": (0,),
    "RGB;16": (0, 0, 0),
    "RGBA;16": (0, 0, 0, 65535),
}
WITH_ALPHA = ("LA", "RGBA", "RGBA;16")
WHITE_PERCENTILE = 99.5
SAMPLES = 1_000_000  # pixels that the percentile is taken of
ROWS = 256  # that are put on a ground at a time, so that a large picture needs no further copies


@dataclass(frozen=True)
class Frame:
    """One frame or page, upright.

    `pixels` is uint8 [h, w] (L), [h, w, 2] (LA), [h, w, 3] (RGB), [h, w, 4] (RGBA, CMYK), or uint16
    [h, w] (I;16), [h, w, 3] (RGB;16), [h, w, 4] (RGBA;16).
    """

    pixels: Array
    mode: str

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def black(self) -> tuple[int, ...]:
        """The value of an opaque black pixel, one number a channel."""
        return BLACK[self.mode]

    def views(self) -> Iterator[Pixels]:
        """What an eye may see of the frame, each uint8 RGB [h, w, 3]: where faces are looked for.

        A frame with transparency is looked at three times: its colours alone, which a tool can lay bare, on white
        and on black. An opaque one of 16 bits twice: as most viewers show it, and stretched to the range that it
        uses; with transparency its bare colours are the stretched ones.
        """
        if self.mode == "CMYK":
            yield np.asarray(Image.fromarray(self.pixels, "CMYK").convert("RGB"))
            return
        colours = self.pixels[..., :-1] if self.mode in WITH_ALPHA else self.pixels
        deep = self.pixels.dtype == np.uint16
        alpha = self.pixels[..., -1] if self.mode in WITH_ALPHA else None
        if alpha is None or alpha.min() == np.iinfo(alpha.dtype).max:
            yield _rgb(_eight_bits(colours))
            if deep:
                yield _rgb(_stretched(colours))
            return
        yield _rgb(_stretched(colours) if deep else colours)
        for ground in (255, 0):
            yield _over(ground, _eight_bits(colours), _eight_bits(alpha))


@dataclass(frozen=True)
class Picture:
    """One decoded file.

    `encoding` holds the options with which Pillow writes the same kind of file again. `reassembled` is the file
    itself without its metadata, where that is all that has to go: see worker.images.jpeg.
    """

    frames: tuple[Frame, ...]
    format: str
    encoding: dict[str, Any] = field(default_factory=dict)
    reassembled: bytes | None = None

    @property
    def width(self) -> int:
        return self.frames[0].width

    @property
    def height(self) -> int:
        return self.frames[0].height

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format]


def _rgb(colours: Array) -> Pixels:
    """uint8 [h, w], [h, w, 1] or [h, w, 3] as [h, w, 3]."""
    planes = colours if colours.ndim == 3 else colours[..., None]
    return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))


def _eight_bits(values: Array) -> Array:
    return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values


def _stretched(colours: Array) -> Array:
    # White is what nearly all pixels stay below: a few hot ones must not darken the rest.
    step = max(1, round((colours.size / SAMPLES) ** 0.5))
    brightest = max(float(np.percentile(colours[::step, ::step], WHITE_PERCENTILE)), 1.0)
    shown = (np.arange(65536) * (255 / brightest)).clip(0, 255).astype(np.uint8)
    stretched: Array = shown[colours]
    return stretched


def _over(ground: int, colours: Array, alpha: Array) -> Pixels:
    """uint8 `colours` as seen through `alpha` [h, w] before a ground of one gray level."""
    result = np.empty((*alpha.shape, 3), np.uint8)
    for top in range(0, len(alpha), ROWS):
        rows = slice(top, top + ROWS)
        share = alpha[rows, :, None].astype(np.uint16)
        planes = colours[rows] if colours.ndim == 3 else colours[rows, :, None]
        result[rows] = (planes * share + ground * (255 - share) + 127) // 255
    return result
