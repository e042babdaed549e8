"""Decode a JPEG strictly: whatever is damaged or missing is an error.

Where data is damaged or missing, libjpeg fills the rest with gray and only warns. simplejpeg, a
binding of the same library, reports such warnings.
"""

import numpy as np
import simplejpeg

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images.jpeg import segments
from worker.pixels import Array

COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # simplejpeg's names of Pillow's modes
# The modes in which JPEGs in a TIFF are decoded, by simplejpeg's name of their colours; others are
# decoded as RGB.
TIFF_MODES = {"Gray": "L", "CMYK": "CMYK", "YCCK": "CMYK"}


def strictly_decoded(content: bytes, mode: str) -> Array:
    """Return the pixels of the JPEG `content` in `mode`, which is L, RGB or CMYK.

    They are uint8, [h, w] for L, else [h, w, channels]. Raises UnreadableImage if any part is
    damaged or missing, UnsupportedImage for an unusual subsampling.
    """
    try:
        pixels = _pixels(content, mode)
    except ValueError as error:
        raise UnreadableImage(f"the picture is damaged or cut short ({error})") from None
    if mode == "CMYK":
        # Stored inverted, as Adobe's programs write it, and as browsers and Pillow assume.
        np.subtract(255, pixels, out=pixels)
    return pixels[..., 0] if mode == "L" else pixels


def first_warning(content: bytes, mode: str) -> str | None:
    """Return the first warning of libjpeg about the JPEG `content`, or None."""
    try:
        _pixels(content, mode)
    except ValueError as error:
        return str(error)
    return None


def _pixels(content: bytes, mode: str) -> Array:
    """Return the pixels of the JPEG `content`. Raises ValueError for each warning of libjpeg."""
    try:
        pixels: Array = simplejpeg.decode_jpeg(content, COLOURS[mode], strict=True)
    except ValueError as error:
        if "subsampling" in str(error):
            raise UnsupportedImage(
                "this JPEG has an unusual subsampling, which is not handled"
            ) from None
        raise
    return pixels


def check_part(content: bytes, max_width: int, max_height: int) -> None:
    """Check the JPEG `content`, which is a strip or tile of a TIFF.

    Raises UnreadableImage if any part is damaged or missing, or if it is larger than stated.
    """
    segments.size(content, max_width * max_height)
    try:
        height, width, colours = simplejpeg.decode_jpeg_header(content)[:3]
    except ValueError as error:
        raise UnreadableImage(f"the picture is damaged or cut short ({error})") from None
    if width > max_width or height > max_height:
        raise UnreadableImage(f"this TIFF is damaged: a JPEG in it has {width} × {height} pixels")
    strictly_decoded(content, TIFF_MODES.get(colours, "RGB"))


def is_stored_as_rgb(content: bytes) -> bool:
    """Return whether the components of the JPEG `content` are red, green and blue."""
    colours: str = simplejpeg.decode_jpeg_header(content)[2]
    return colours == "RGB"
