"""AVIF of 10 and 12 bits a colour, read and written by imagecodecs (the extra `avif`).

Pillow reads and writes 8 bits alone.
"""

from types import ModuleType
from typing import Any

import cv2
import numpy as np

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images.heif import avif_copies
from worker.images.loading import blanked
from worker.images.picture import Frame
from worker.pixels import Array

try:
    import imagecodecs
except ImportError:
    imagecodecs = None

MODES = {1: "I;16", 3: "RGB;16", 4: "RGBA;16"}  # by the number of channels
# The chroma subsampling, by Pillow's name. A gray picture has no chroma.
PIXEL_FORMATS = {"4:4:4": "444", "4:2:2": "422", "4:2:0": "420"}
# Pillow's pixels of 8 bits may differ by rounding, on average over a tile. Where chroma is
# interpolated at an edge of the picture, single pixels differ more.
TILE_SIDE, MAX_ROUNDING = 32, 6
MISSING = (
    "AVIF of more than 8 bits a colour needs the extra `avif`: "
    "install Veil with it, or convert the picture to 8 bits"
)


def is_installed() -> bool:
    return imagecodecs is not None


def check_installed() -> None:
    """Raise UnsupportedImage if nothing that reads more than 8 bits is installed."""
    if not is_installed():
        raise UnsupportedImage(MISSING)


def read(content: bytes, depth: int, upper: Array) -> Frame:
    """Return the frame of the still AVIF `content` of `depth` bits, as stored.

    `upper` is what Pillow read: the upper 8 bits, uint8 [h, w, channels]. Raises UnreadableImage
    for damage, UnsupportedImage if the two libraries disagree.
    """
    pixels = values(content)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint16 or channels not in MODES or pixels.shape[:2] != upper.shape[:2]:
        raise UnsupportedImage("this kind of AVIF is not handled: convert it to 8 bits")
    _compare((pixels >> depth - 8).astype(np.uint8), upper)
    return frame_of(pixels, depth)


def values(content: bytes) -> Array:
    """Return the values of the still AVIF `content`, as stored, uint16 if they have over 8 bits."""
    library: ModuleType = imagecodecs
    try:
        pixels: Array = library.avif_decode(content, numthreads=1)
    except library.AvifError as error:
        raise UnreadableImage(f"the picture is damaged or cut short ({error})") from None
    return pixels


def frame_of(pixels: Array, depth: int) -> Frame:
    """Return the frame of uint16 `pixels`, [h, w] or [h, w, channels], whose values have `depth`.

    The values of a frame have 16 bits.
    """
    scaled = pixels << 16 - depth | pixels >> 2 * depth - 16
    return blanked(scaled, MODES[pixels.shape[2] if pixels.ndim == 3 else 1])


def write(pixels: Array, options: dict[str, Any], speed: int) -> bytes:
    """Return an AVIF of the uint16 `pixels` of a frame.

    `options` has the `depth`, the `quality` from 0 to 100, the `subsampling` and an `icc_profile`.
    Colours that are named are for the caller to state. Raises UnsupportedImage for transparency
    with a profile.
    """
    depth, profile = options["depth"], options.get("icc_profile")
    if profile and pixels.ndim == 3 and pixels.shape[2] == 4:
        raise UnsupportedImage(
            "AVIF of more than 8 bits with transparency and a colour profile is not handled: "
            "convert it to 8 bits"
        )
    library: ModuleType = imagecodecs
    content: bytes = library.avif_encode(
        np.ascontiguousarray(pixels >> 16 - depth),
        level=options["quality"],
        speed=speed,
        bitspersample=depth,
        pixelformat=PIXEL_FORMATS[options["subsampling"]] if pixels.ndim == 3 else None,
        numthreads=1,
    )
    return avif_copies.with_profile(content, profile) if profile else content


def _compare(upper: Array, other: Array) -> None:
    """Raise UnsupportedImage unless both show the same picture of 8 bits, uint8."""
    planes = upper if upper.ndim == 3 else upper[..., None]
    other = other if other.ndim == 3 else other[..., None]
    channels = min(planes.shape[2], other.shape[2])
    height, width = planes.shape[:2]
    tiles = -(-width // TILE_SIDE), -(-height // TILE_SIDE)
    for channel in range(channels):
        difference = cv2.absdiff(
            *(np.ascontiguousarray(one[..., channel]) for one in (planes, other))
        )
        if cv2.resize(difference, tiles, interpolation=cv2.INTER_AREA).max() > MAX_ROUNDING:
            raise UnsupportedImage("this AVIF is read in two ways, and none can be trusted")
