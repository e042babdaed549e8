"""Pixels that Pillow has loaded, in one of the modes of a Frame."""

from typing import Any

import numpy as np

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images.picture import WITH_ALPHA, Frame
from worker.pixels import Array


def loaded(image: Any) -> Frame:
    """Return what Pillow has loaded, in one of Frame's modes.

    Colours of fully transparent pixels are blanked.
    """
    if image.mode.startswith("I;16"):
        if "transparency" in image.info:
            raise UnsupportedImage(
                "this PNG has 16-bit gray with a transparent value, which is not handled"
            )
        return Frame(np.array(image).astype(np.uint16), "I;16")
    if image.mode == "P" and len(image.palette.palette) < 3 * (int(np.asarray(image).max()) + 1):
        raise UnreadableImage("the picture is damaged: it has colours that are not in its palette")
    image = _in_frame_mode(image)
    return blanked(np.array(image), image.mode)


def blanked(pixels: Array, mode: str) -> Frame:
    """Return the frame of `pixels`, without the colours of fully transparent pixels."""
    if mode in WITH_ALPHA:
        pixels[pixels[..., -1] == 0] = 0
    return Frame(pixels, mode)


def _in_frame_mode(image: Any) -> Any:
    """Return `image` in one of Frame's modes of 8 bits; raise UnsupportedImage for other modes."""
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    elif image.mode in ("P", "PA", "YCbCr", "RGBX"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise UnsupportedImage(f"pictures of mode {image.mode} are not handled: convert it to RGB")
    return image
