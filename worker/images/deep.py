"""Pictures of 16 bits a channel, which Pillow reads as 8: OpenCV reads PNG and TIFF, and writes
neither.

What OpenCV reads is compared with what Pillow read: an output is never made of a picture that two
libraries see in different ways.
"""

import struct
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import cv2
import numpy as np

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images.picture import Frame
from worker.pixels import Array

Turn = Callable[[Array], Array]

MODES = {1: "I;16", 3: "RGB;16", 4: "RGBA;16"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOURS = {1: 0, 3: 2, 4: 6}  # channels to colour type: gray, RGB, RGBA
PNG_SUB = 1  # the filter: differences from the pixel to the left
PNG_LEVEL = 4  # of zlib
PNG_ROWS = 64  # that are filtered at a time
BLACK_IS_ZERO, RGB, SEPARATED = 1, 2, 5  # PhotometricInterpretation
ASSOCIATED = 1  # colours were multiplied by their alpha (TIFF 6.0, ExtraSamples)


def read_png(content: bytes, seen: Array) -> Frame:
    """The 16-bit PNG `content`, of which Pillow has `seen` the upper 8 bits, uint8 [h, w, 1 to
    4].
    """
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UnreadableImage("the picture is damaged")
    return _frame(pixels, seen)


def read_tiff(content: bytes, page: int, seen: Array, turn: Turn | None, extra: Any) -> Frame:
    """A 16-bit page of the TIFF `content`, upright, of which Pillow has `seen` the upper 8 bits.

    `turn` makes it upright, `extra` is its ExtraSamples, None or a tuple.
    """
    found, pages = cv2.imdecodemulti(
        np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED, range=(page, page + 1)
    )
    if not found or len(pages) != 1:
        raise UnsupportedImage("this kind of 16-bit TIFF is not handled")
    try:
        return _frame(pages[0], seen, extra == (ASSOCIATED,))
    except UnsupportedImage:
        if turn is None:
            raise
        # Whether a page has been turned depends on OpenCV's version.
        return _frame(np.ascontiguousarray(turn(pages[0])), seen, extra == (ASSOCIATED,))


def gray_page(pixels: Array, bits: int, white_is_zero: bool) -> Frame:
    """Return the gray TIFF page `pixels`, numbers of 12 or 16 `bits`, in 16 bits with black at 0.

    Pillow inverts gray of up to 8 bits by itself, and leaves 12 bits in the lower part of 16.
    """
    values: Array = pixels.astype(np.uint16)
    if bits == 12:
        values = values << 4 | values >> 8
    elif bits != 16:
        raise UnsupportedImage(
            f"TIFFs with {bits} bits are not handled: convert it to 8 or 16 bits"
        )
    return Frame(~values if white_is_zero else values, "I;16")


def _frame(pixels: Any, seen: Array, associated: bool = False) -> Frame:
    if pixels.dtype != np.uint16 or pixels.shape[:2] != seen.shape[:2] or pixels.ndim > 3:
        raise UnsupportedImage("this kind of 16-bit picture is not handled")
    seen = seen if seen.ndim == 3 else seen[..., None]
    if pixels.ndim == 3:
        planes = seen.shape[2] if seen.shape[2] > 2 else pixels.shape[2]
        pixels = np.ascontiguousarray(pixels[..., [2, 1, 0, 3][:planes]])
    own = pixels if pixels.ndim == 3 else pixels[..., None]
    compared = np.s_[..., 3:] if associated else np.s_[..., : 1 if seen.shape[2] < 3 else 3]
    if not all((own[row][compared] >> 8 == seen[row][compared]).all() for row in range(len(own))):
        raise UnsupportedImage("this 16-bit picture is read in two ways, and none can be trusted")
    if associated:
        _undo_association(pixels)
    if own.shape[2] == 4:
        own[own[..., 3] == 0] = 0
    return Frame(pixels, MODES[own.shape[2]])


def _undo_association(pixels: Array) -> None:
    for row in pixels:
        alpha = np.maximum(row[:, 3:], 1).astype(np.uint64)
        row[:, :3] = np.minimum(row[:, :3] * np.uint64(65535) // alpha, 65535)


def write_png(pixels: Array, profile: bytes | None, exif: bytes | None) -> bytes:
    """Return a PNG of uint16 `pixels`, gray [h, w], RGB [h, w, 3] or RGBA [h, w, 4] (PNG, third
    edition).

    Rows are compressed a strip at a time: an encoder that grows one buffer needs the picture's
    memory twice more.
    """
    height, width, channels = (*pixels.shape, 1)[:3]
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0)
    chunks = [PNG_SIGNATURE, _chunk(b"IHDR", header)]
    if profile:
        chunks.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif:
        chunks.append(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    compressor = zlib.compressobj(PNG_LEVEL, strategy=zlib.Z_RLE)
    for start in range(0, height, PNG_ROWS):
        rows = (
            pixels[start : start + PNG_ROWS]
            .astype(">u2")
            .view(np.uint8)
            .reshape(-1, 2 * channels * width)
        )
        filtered = np.full((len(rows), 1 + rows.shape[1]), PNG_SUB, np.uint8)
        filtered[:, 1:] = rows
        filtered[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]  # wraps around, as it must
        chunks.append(_chunk(b"IDAT", compressor.compress(filtered.data)))
    return b"".join([*chunks, _chunk(b"IDAT", compressor.flush()), _chunk(b"IEND", b"")])


def _chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def write_tiff(pages: Sequence[Array], profile: bytes | None, cmyk: Collection[int] = ()) -> bytes:
    """Return a TIFF of `pages`, uint8 or uint16: each one strip of Deflate (TIFF 6.0).

    They are gray, gray with alpha, RGB or RGBA; those whose numbers are in `cmyk` are CMYK.
    """
    content = bytearray(b"II*\0" + bytes(4))
    link = 4
    for number, pixels in enumerate(pages):
        height, width, channels = (*pixels.shape, 1)[:3]
        photometric = RGB if channels > 2 else BLACK_IS_ZERO
        if number in cmyk:
            photometric = SEPARATED
        differences = pixels.copy()
        differences[:, 1:] -= pixels[:, :-1]  # Predictor 2; wraps around, as it must
        strip = zlib.compress(differences.tobytes())
        entries: list[tuple[int, str, Sequence[int] | bytes]] = [
            (256, "I", (width,)),
            (257, "I", (height,)),
            (258, "H", (pixels.dtype.itemsize * 8,) * channels),
            (259, "H", (8,)),  # Deflate
            (262, "H", (photometric,)),
            (273, "I", (len(content),)),
            (277, "H", (channels,)),
            (278, "I", (height,)),
            (279, "I", (len(strip),)),
            (317, "H", (2,)),
        ]
        if channels in (2, 4) and photometric != SEPARATED:
            entries.append((338, "H", (2,)))  # alpha that the colours were not multiplied by
        if profile:
            entries.append((34675, "B", profile))
        content += strip
        link = _append_directory(content, link, entries)
    return bytes(content)


def _append_directory(
    content: bytearray, link: int, entries: Sequence[tuple[int, str, Sequence[int] | bytes]]
) -> int:
    """Put a directory at the end and its place at `link`; where the next one's place belongs."""
    fields = b""
    for tag, kind, values in entries:
        value = struct.pack(f"<{len(values)}{kind}", *values)
        if len(value) > 4:
            content += bytes(len(content) % 2)
            place = struct.pack("<I", len(content))
            content += value
            value = place
        fields += struct.pack(
            "<HHI", tag, {"B": 7, "H": 3, "I": 4}[kind], len(values)
        ) + value.ljust(4, b"\0")
    content += bytes(len(content) % 2)
    content[link : link + 4] = struct.pack("<I", len(content))
    content += struct.pack("<H", len(entries)) + fields + bytes(4)
    return len(content) - 4
