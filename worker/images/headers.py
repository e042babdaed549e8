"""Measure a file from its own structure, before Pillow opens it and may reserve memory for what it
states.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from PIL import PngImagePlugin

from tasks.errors import ImageTooLarge, UnreadableImage
from worker.images import avif, containers, jpeg, jpeg2000, tiff_pages

MOST_CHUNKS = 1 << 18  # of a PNG or a WebP; at 1 kB each they fill the largest file
MOST_RLE_BYTES = (
    4  # for each pixel of a BMP; its longest sound coding takes 2 and a few for each row
)
RLE_SLACK = 1 << 16
RLE = (1, 2)
DEEP = 8  # bits a channel, beyond which a pixel counts twice
PNG_DEPTH = containers.PNG_BITS

PngImagePlugin.MAX_TEXT_MEMORY = 16 << 20  # unpacked text of one PNG; the output drops it


@dataclass(frozen=True)
class Size:
    """The frames of a file, the largest width and height, and the pixels of all frames, those of 16
    bits twice.
    """

    frames: int
    width: int
    height: int
    pixels: int


def measure(form: str, content: bytes, max_pixels: int, max_frames: int) -> Size:
    """Return the size of `content`, a file of the format `form`.

    Raises UnreadableImage for a structure that makes no sense, ImageTooLarge for one with more
    parts than a picture of `max_pixels` and `max_frames` needs.
    """
    try:
        return MEASURES[form](content, max_pixels, max_frames)
    except (struct.error, IndexError):
        raise UnreadableImage("not a picture, or damaged from its first bytes") from None


def _jpeg(content: bytes, max_pixels: int, _max_frames: int) -> Size:
    width, height = jpeg.size(content, max_pixels)
    return Size(1, width, height, width * height)


def _png(content: bytes, _max_pixels: int, _max_frames: int) -> Size:
    width, height = struct.unpack_from(">II", content, 16)
    frames, chunks, at = 1, 0, 8
    # Pixels that stand before the first frame of an animation are a picture for other readers.
    is_animated, is_hidden = False, True
    while at + 8 <= len(content):
        name, (length,) = content[at + 4 : at + 8], struct.unpack_from(">I", content, at)
        if name == b"acTL":
            frames, is_animated = max(frames, *struct.unpack_from(">I", content, at + 8)), True
        elif name == b"IDAT":
            break
        is_hidden &= name != b"fcTL"
        at += 12 + length
        chunks += 1
    frames += is_animated and is_hidden
    while at + 8 <= len(content):
        at += 12 + struct.unpack_from(">I", content, at)[0]
        chunks += 1
    if chunks > MOST_CHUNKS:
        raise ImageTooLarge(
            f"this PNG has {chunks:,} chunks, the limit is {MOST_CHUNKS:,}: save it anew"
        )
    return Size(
        frames, width, height, frames * width * height * (2 if content[PNG_DEPTH] > DEEP else 1)
    )


def _webp(content: bytes, _max_pixels: int, max_frames: int) -> Size:
    width, height = containers.webp_size(content)
    frames = chunks = 0
    at = 12
    while at + 8 <= len(content) and frames <= max_frames and chunks <= MOST_CHUNKS:
        name, (length,) = content[at : at + 4], struct.unpack_from("<I", content, at + 4)
        frames += name == b"ANMF"
        chunks += 1
        at += 8 + length + length % 2
    if chunks > MOST_CHUNKS:
        raise ImageTooLarge(f"this WebP has over {MOST_CHUNKS:,} chunks: save it anew")
    frames = max(frames, 1)
    return Size(frames, width, height, frames * width * height)


def _tiff(content: bytes, _max_pixels: int, max_frames: int) -> Size:
    pages = tiff_pages.pages(content, max_frames)
    pixels = sum(page.width * page.height * (2 if page.bits > DEEP else 1) for page in pages)
    largest = max(pages, key=lambda page: page.width * page.height)
    return Size(len(pages), largest.width, largest.height, pixels)


def _gif(content: bytes, _max_pixels: int, max_frames: int) -> Size:
    frames, width, height = containers.gif_size(content, max_frames)
    return Size(frames, width, height, frames * width * height)


def _bmp(content: bytes, _max_pixels: int, _max_frames: int) -> Size:
    (header,) = struct.unpack_from("<I", content, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", content, 18)
    width, height = abs(width), abs(height)
    if header >= 40:
        (coding,) = struct.unpack_from("<I", content, 30)
        if coding in RLE and len(content) > MOST_RLE_BYTES * width * height + RLE_SLACK:
            raise UnreadableImage("this BMP is damaged: it is longer than its pixels can need")
    return Size(1, width, height, width * height)


def _avif(content: bytes, _max_pixels: int, max_frames: int) -> Size:
    measured = avif.measure(content, max_frames)
    return Size(
        measured.frames,
        measured.width,
        measured.height,
        measured.frames * measured.width * measured.height,
    )


def _jpeg2000(content: bytes, _max_pixels: int, _max_frames: int) -> Size:
    width, height, bits = jpeg2000.size(content)
    return Size(1, width, height, width * height * (2 if bits > DEEP else 1))


MEASURES: dict[str, Callable[[bytes, int, int], Size]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "TIFF": _tiff,
    "GIF": _gif,
    "BMP": _bmp,
    "AVIF": _avif,
    "JPEG2000": _jpeg2000,
}
