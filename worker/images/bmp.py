"""BMP files: their sizes, pixels of any bit fields, and transparency (Microsoft, [MS-WMF] 2.2.2).

Pillow reads few layouts of bit fields, and writes no transparency.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.pixels import Array

FILE_HEADER_BYTES = 14
OS2_HEADER_BYTES = 12  # its sizes have 16 bits, and it states no compression
MIN_INFO_BYTES = 40  # BITMAPINFOHEADER has planes, colours and a compression
HEADERS_BYTES = FILE_HEADER_BYTES + MIN_INFO_BYTES
MIN_HEADER_WITH_ALPHA = 56  # the headers from BITMAPV3INFOHEADER on have a mask of alpha
DENSITY_OFFSET, COLOURS_OFFSET = 38, 46  # the offsets of biXPelsPerMeter and biClrUsed
# Values of biCompression.
RAW, RLE8, RLE4, BIT_FIELDS, JPEG, PNG, ALPHA_BIT_FIELDS = 0, 1, 2, 3, 4, 5, 6
# Bytes of a BMP with run-length encoding, for each pixel and besides. The longest encoding takes 2
# for each pixel and a few for each row.
MAX_RLE_BYTES_PER_PIXEL = 4
MAX_RLE_BYTES_BESIDES = 1 << 16
MAX_PALETTE = 256
MAX_COLOURS = 1 << 16  # the largest count that writers of nonsense state
STRIP_ROWS = 256  # rows converted at a time, to save memory
# The parts of the header of a BMP with transparency: BITMAPV4HEADER with sRGB colours.
V4_HEADER_BYTES = 108
BGRA_MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
SRGB = b"BGRs"
INCHES_A_METRE = 39.3701


@dataclass(frozen=True)
class _Header:
    """The header of a BMP. `masks` are those of red, green, blue and alpha, 0 for none."""

    offset: int
    size: int
    width: int
    height: int
    is_top_down: bool
    planes: int
    bits: int
    compression: int
    colours: int
    masks: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Return the bytes of an uncompressed row, which end at a multiple of four."""
        return (self.width * self.bits + 31) // 32 * 4


def size(content: bytes) -> tuple[int, int, int]:
    """Return width, height and the number of channels of the BMP `content`.

    Raises struct.error or UnreadableImage for a header of nonsense.
    """
    header = _header(content)
    if header.compression in (RLE8, RLE4):
        pixels = header.width * header.height
        if len(content) > MAX_RLE_BYTES_PER_PIXEL * pixels + MAX_RLE_BYTES_BESIDES + header.offset:
            raise UnreadableImage("this BMP is damaged: it is longer than its pixels can need")
    return header.width, header.height, 4 if header.masks[3] else 3


def checked(content: bytes) -> bytes:
    """Return the BMP `content` with a number of colours that Pillow accepts.

    The sizes that the header states are ignored, as in viewers. Raises UnreadableImage if rows are
    missing, UnsupportedImage for a JPEG or PNG in a BMP.
    """
    header = _header(content.ljust(HEADERS_BYTES, b"\0"))
    if header.compression in (JPEG, PNG):
        raise UnsupportedImage("BMPs that hold a JPEG or a PNG are not handled: extract it")
    if header.size < MIN_INFO_BYTES:
        return content
    if header.planes != 1 or header.colours > MAX_COLOURS:
        raise UnreadableImage("this BMP is damaged: its header makes no sense")
    is_compressed = header.compression in (RLE8, RLE4)
    needed = header.offset + header.row_bytes * header.height
    # The last row may end without its padding.
    padding = header.row_bytes - -(-header.width * header.bits // 8)
    if not is_compressed and len(content) < needed - padding:
        raise UnreadableImage("this BMP is cut short")
    if header.colours <= MAX_PALETTE:
        return content
    return content[:COLOURS_OFFSET] + bytes(4) + content[COLOURS_OFFSET + 4 :]


def density(content: bytes) -> tuple[float, float] | None:
    """Return the dots an inch across and down that the header states, or None."""
    if _header(content).size < MIN_INFO_BYTES:
        return None
    across, down = struct.unpack_from("<ii", content, DENSITY_OFFSET)
    if across <= 0 or down <= 0:
        return None
    return across / INCHES_A_METRE, down / INCHES_A_METRE


def has_bit_fields(content: bytes) -> bool:
    """Return whether the pixels have bit fields, which `bit_fields` reads."""
    return _header(content).compression in (BIT_FIELDS, ALPHA_BIT_FIELDS)


def bit_fields(content: bytes) -> Array:
    """Return the pixels of a BMP with bit fields, uint8 RGB [h, w, 3] or RGBA [h, w, 4].

    Alpha that is 0 everywhere is taken for unused, as in browsers.
    """
    header = _header(content)
    if header.bits not in (16, 32):
        raise UnreadableImage("this BMP is damaged: its bit fields do not fit its depth")
    fields = [_field(mask) for mask in header.masks[:3]]
    alpha = _field(header.masks[3]) if header.masks[3] else None
    pixels = np.empty((header.height, header.width, 4 if alpha else 3), np.uint8)
    values_per_row = header.row_bytes * 8 // header.bits
    dtype = f"<u{header.bits // 8}"
    for top in range(0, header.height, STRIP_ROWS):
        rows = min(STRIP_ROWS, header.height - top)
        start = header.offset + top * header.row_bytes
        stored = content[start : start + rows * header.row_bytes]
        values = np.frombuffer(stored.ljust(rows * header.row_bytes, b"\0"), dtype)
        strip = values.reshape(rows, values_per_row)[:, : header.width].astype(np.uint32)
        for channel, (shift, largest) in enumerate([*fields, *([alpha] if alpha else [])]):
            scaled = (strip >> shift & largest) * np.uint64(255) + np.uint64(largest // 2)
            pixels[top : top + rows, :, channel] = scaled // np.uint64(max(largest, 1))
    upright = pixels if header.is_top_down else pixels[::-1]
    if alpha and not upright[..., 3].any():
        upright = upright[..., :3]
    return np.ascontiguousarray(upright)


def with_alpha(pixels: Array, density: tuple[float, float] | None = None) -> bytes:
    """Return a BMP of 32 bits of uint8 RGBA `pixels` [h, w, 4], `density` in dots an inch."""
    height, width = pixels.shape[:2]
    offset = FILE_HEADER_BYTES + V4_HEADER_BYTES
    data_bytes = pixels.nbytes
    across, down = (round(dots * INCHES_A_METRE) for dots in density or (0, 0))
    sizes = (V4_HEADER_BYTES, width, height, 1, 32, BIT_FIELDS, data_bytes, across, down)
    header = struct.pack("<IiiHHIIiiII", *sizes, 0, 0)
    header += struct.pack("<4I", *BGRA_MASKS) + SRGB
    header = header.ljust(V4_HEADER_BYTES, b"\0")
    file_header = b"BM" + struct.pack("<IHHI", offset + data_bytes, 0, 0, offset)
    return b"".join([file_header, header, *_bgra_strips(pixels)])


def _bgra_strips(pixels: Array) -> Iterator[bytes]:
    """Yield the rows of RGBA `pixels` from the bottom up, blue first."""
    for bottom in range(len(pixels), 0, -STRIP_ROWS):
        rows = pixels[max(0, bottom - STRIP_ROWS) : bottom][::-1]
        yield rows[..., [2, 1, 0, 3]].tobytes()


def _field(mask: int) -> tuple[int, int]:
    """Return the shift and the largest value of a bit field."""
    shift = (mask & -mask).bit_length() - 1 if mask else 0
    largest = mask >> shift
    if largest & largest + 1:
        raise UnsupportedImage("BMPs whose bit fields have gaps are not handled: use PNG")
    return shift, largest


def _header(content: bytes) -> _Header:
    """Return the header. Raises struct.error if it ends early."""
    offset, header_bytes = struct.unpack_from("<II", content, 10)
    if header_bytes == OS2_HEADER_BYTES:
        width, height, planes, bits = struct.unpack_from("<HHHH", content, 18)
        compression = colours = 0
    else:
        width, height, planes, bits = struct.unpack_from("<iiHH", content, 18)
        compression = colours = 0
        if header_bytes >= MIN_INFO_BYTES:
            compression, *_, colours = struct.unpack_from("<IIiiI", content, 30)
    masks: tuple[int, ...] = (0, 0, 0, 0)
    has_alpha = header_bytes >= MIN_HEADER_WITH_ALPHA or compression == ALPHA_BIT_FIELDS
    if compression == ALPHA_BIT_FIELDS or (compression == BIT_FIELDS and bits in (16, 32)):
        masks = struct.unpack_from("<4I" if has_alpha else "<3I", content, HEADERS_BYTES)
        masks = (*masks, 0)[:4]
    return _Header(
        offset, header_bytes, abs(width), abs(height), height < 0, planes, bits, compression,
        colours, masks,
    )  # fmt: skip
