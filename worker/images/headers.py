"""Measure a file from its own structure, before Pillow opens it.

Pillow may reserve memory for the size that a file states.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from tasks.errors import ImageTooLarge, UnreadableImage
from worker.images import bmp, containers, jpeg2000, png
from worker.images.heif import avif
from worker.images.jpeg import segments
from worker.images.tiff.sizes import page_sizes

MAX_CHUNKS = 1 << 18  # chunks of a PNG or a WebP; at 1 kB each they fill the largest file
# Pixels with more bits a channel, or with more channels, need more memory and count more often.
MAX_SHALLOW_BITS, DEEP_WEIGHT = 8, 3
MAX_LIGHT_CHANNELS, HEAVY_WEIGHT = 3, 2


@dataclass(frozen=True)
class Size:
    """The number of frames of a file, the largest width and height, and the pixels of all frames.

    In `pixels` those of 16 bits count DEEP_WEIGHT times, and those of four channels HEAVY_WEIGHT
    times.
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


def _weight(bits: int, channels: int) -> int:
    """Return how many times a pixel of `channels` with `bits` each counts."""
    if bits > MAX_SHALLOW_BITS:
        return DEEP_WEIGHT
    return HEAVY_WEIGHT if channels > MAX_LIGHT_CHANNELS else 1


def _jpeg(content: bytes, max_pixels: int, _max_frames: int) -> Size:
    width, height, channels = segments.size(content, max_pixels)
    return Size(1, width, height, width * height * _weight(8, channels))


def _png(content: bytes, _max_pixels: int, _max_frames: int) -> Size:
    width, height = struct.unpack_from(">II", content, 16)
    frames, chunks, at = 1, 0, len(png.SIGNATURE)
    # Other readers show pixels before the first frame of an animation as a picture.
    is_animated, has_hidden_picture, has_transparency = False, True, False
    while at + 8 <= len(content):
        (length,), name = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        if name == b"acTL":
            (stated_frames,) = struct.unpack_from(">I", content, at + 8)
            frames, is_animated = max(frames, stated_frames), True
        elif name == b"IDAT":
            break
        has_hidden_picture &= name != b"fcTL"
        has_transparency |= name == b"tRNS"
        at += png.CHUNK_OVERHEAD + length
        chunks += 1
    frames += is_animated and has_hidden_picture
    while at + 8 <= len(content):
        at += png.CHUNK_OVERHEAD + struct.unpack_from(">I", content, at)[0]
        chunks += 1
    if chunks > MAX_CHUNKS:
        raise ImageTooLarge(
            f"this PNG has {chunks:,} chunks, the limit is {MAX_CHUNKS:,}: save it again"
        )
    has_alpha = content[png.COLOUR_TYPE] & png.ALPHA or has_transparency or is_animated
    weight = _weight(content[png.BITS], 4 if has_alpha else 3)
    return Size(frames, width, height, frames * width * height * weight)


def _webp(content: bytes, _max_pixels: int, max_frames: int) -> Size:
    width, height = containers.webp_size(content)
    frames = chunks = 0
    at = containers.RIFF_HEADER_BYTES
    while at + 8 <= len(content) and frames <= max_frames and chunks <= MAX_CHUNKS:
        name, (length,) = content[at : at + 4], struct.unpack_from("<I", content, at + 4)
        frames += name == b"ANMF"
        chunks += 1
        at += 8 + length + length % 2
    if chunks > MAX_CHUNKS:
        raise ImageTooLarge(f"this WebP has over {MAX_CHUNKS:,} chunks: save it again")
    frames = max(frames, 1)
    return Size(frames, width, height, frames * width * height)


def _tiff(content: bytes, _max_pixels: int, max_frames: int) -> Size:
    pages = page_sizes(content, max_frames)
    pixels = sum(page.width * page.height * _weight(page.bits, page.channels) for page in pages)
    largest = max(pages, key=lambda page: page.width * page.height)
    return Size(len(pages), largest.width, largest.height, pixels)


def _gif(content: bytes, _max_pixels: int, max_frames: int) -> Size:
    size = containers.gif_size(content, max_frames)
    return Size(size.frames, size.width, size.height, size.frames * size.width * size.height)


def _bmp(content: bytes, _max_pixels: int, _max_frames: int) -> Size:
    width, height, channels = bmp.size(content)
    return Size(1, width, height, width * height * _weight(8, channels))


def _avif(content: bytes, _max_pixels: int, max_frames: int) -> Size:
    measured = avif.measure(content, max_frames)
    width, height = measured.width, measured.height
    weight = _weight(containers.avif_depth(content), MAX_LIGHT_CHANNELS)
    return Size(measured.frames, width, height, measured.frames * width * height * weight)


def _jpeg2000(content: bytes, _max_pixels: int, _max_frames: int) -> Size:
    width, height, bits = jpeg2000.size(content)
    return Size(1, width, height, width * height * (2 if bits > MAX_SHALLOW_BITS else 1))


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
