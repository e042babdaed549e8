"""Views for people: the first frame of a picture as a JPEG that a browser shows, at most so large.

The file is decoded where decoding is safe, so a page can show a TIFF, and 100 megapixels cost it no
more than one.
"""

import io
from dataclasses import dataclass

import cv2
from PIL import Image

from worker.images.picture import Picture

JPEG_QUALITY = 88
FORMAT = "JPEG"
MAX_SIDE = 8192  # pixels of a view


@dataclass(frozen=True)
class View:
    """The part `box` of a picture, x1 y1 x2 y2 in pixels, at most `side` pixels long.

    Without a `box` it is the whole picture. It is never enlarged.
    """

    side: int
    box: tuple[int, int, int, int] | None = None


def jpeg(picture: Picture, view: View) -> bytes:
    """Return the view of the first frame of `picture`, upright and on white, as a JPEG."""
    frame = picture.frames[0]
    pixels = frame.on_white()
    if view.box is not None:
        x1, y1, x2, y2 = view.box
        part = pixels[y1:y2, x1:x2]
        pixels = part if part.size else pixels
    height, width = pixels.shape[:2]
    factor = min(view.side, MAX_SIDE) / max(height, width)
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        image = Image.fromarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    else:
        image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, FORMAT, quality=JPEG_QUALITY)
    return file.getvalue()
