"""Read the pixels of a page, with the library that reads its kind rightly, and upright."""

import io
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from tasks.errors import UnsupportedImage
from worker.images import deep
from worker.images.clock import Clock
from worker.images.jpeg.decoding import COLOURS, strictly_decoded
from worker.images.jpeg.segments import reassembled
from worker.images.loading import loaded
from worker.images.picture import Frame
from worker.images.tiff import fax, pages, planes
from worker.images.tiff.directories import Tag
from worker.images.turning import OPPOSITE, ORIENTATION, TURNS, Turn, turned


def tiff_page(image: Any, content: bytes, clock: Clock) -> Frame:
    """Return the page that `image`, the TIFF `content` opened by Pillow, is at."""
    _leave_as_stored(image)
    pages.check(image, content, clock)
    orientation, directory = pages.orientation(image), dict(image.tag_v2)
    frame = _stored_page(image, content, TURNS.get(OPPOSITE.get(orientation, orientation)))
    if (compression := image.info.get("compression")) in fax.COMPRESSIONS:
        pages.check_fax(image, content, directory, compression)
    return Frame(turned(frame.pixels, TURNS.get(orientation)), frame.mode)


def _stored_page(image: Any, content: bytes, back: Turn | None) -> Frame:
    """Return the page that `image` is at, as stored. `back` turns the upright page back."""
    is_deep, extra = pages.is_deep(image), image.tag_v2.get(Tag.EXTRA_SAMPLES)
    if image.info.get("compression") == pages.OLD_JPEG:
        return _old_jpeg(pages.old_jpeg(image, content))
    if is_deep and pages.has_planes(image) and image.mode in ("RGB", "RGBA"):
        return deep.of_planes(planes.read(image, content), extra)
    if pages.is_raw_ycbcr(image):
        image = _through_libtiff(content, image.tell())
    image.load()
    if image.mode in ("P", "PA"):
        image.putpalette(pages.palette(image), "RGB;L")
    if image.mode.startswith("I;16"):
        return deep.gray_page(np.asarray(image), pages.bits(image), pages.has_white_at_zero(image))
    if not is_deep:
        return loaded(image)
    if image.mode not in ("RGB", "RGBA"):
        raise UnsupportedImage(
            f"TIFFs of mode {image.mode} with 16 bits are not handled: convert it to RGB"
        )
    return deep.read_tiff(content, image.tell(), np.asarray(image), back, extra)


def _old_jpeg(content: bytes) -> Frame:
    """Return the pixels of a JPEG in a TIFF."""
    with JpegImageFile(io.BytesIO(content)) as image:
        mode = image.mode
    if mode not in COLOURS:
        raise UnsupportedImage(f"JPEGs of mode {mode} are not handled: convert it to RGB")
    return Frame(strictly_decoded(reassembled(content), mode), mode)


def _through_libtiff(content: bytes, page: int) -> Any:
    """Return the TIFF `content` at `page`, read by libtiff though its pixels are uncompressed."""
    before = TiffImagePlugin.READ_LIBTIFF
    TiffImagePlugin.READ_LIBTIFF = True
    try:
        image: Any = Image.open(io.BytesIO(content), formats=("TIFF",))
        image.seek(page)
    finally:
        TiffImagePlugin.READ_LIBTIFF = before
    _leave_as_stored(image)
    return image


def _leave_as_stored(image: Any) -> None:
    """Keep Pillow from turning a TIFF page by itself: it also does so by XMP, but not by a BYTE."""
    image.getexif()[ORIENTATION] = 1
    image._size = image._tile_size
