"""Pictures of 16 bits a channel, which Pillow reads as 8.

OpenCV reads PNG and TIFF, and this module writes them. The pixels from OpenCV are compared with
those from Pillow: Veil refuses a picture that the two libraries read differently.
"""

import struct
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images import png
from worker.images.picture import Frame
from worker.images.tiff.directories import Tag
from worker.images.turning import Turn
from worker.pixels import Array

MODES = {1: "I;16", 3: "RGB;16", 4: "RGBA;16"}  # by the number of channels
# OpenCV's conversions to the order of Pillow's channels, by OpenCV's and Pillow's channels.
CONVERSIONS = {
    (3, 3): cv2.COLOR_BGR2RGB,
    (4, 4): cv2.COLOR_BGRA2RGBA,
    (4, 3): cv2.COLOR_BGRA2RGB,
}
PNG_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # gray, RGB and RGBA, by the number of channels
PNG_SUB = 1  # the filter that stores differences from the pixel to the left
PNG_LEVEL = 4  # zlib's compression level
PNG_STRIP_ROWS = 64  # rows that are filtered and compressed at a time
TIFF_DEFLATE = 8  # a value of Compression
TIFF_HORIZONTAL_DIFFERENCES = 2  # a value of Predictor
BLACK_IS_ZERO, RGB, SEPARATED = 1, 2, 5  # values of PhotometricInterpretation
# ExtraSamples: colours that were multiplied by their alpha, and colours that were not.
ASSOCIATED, UNASSOCIATED = 1, 2
# The types of values: UNDEFINED, SHORT and LONG, by struct's code, and RATIONAL, two numbers each.
RATIONAL = "ratio"
TIFF_TYPES = {"B": 7, "H": 3, "I": 4, RATIONAL: 5}
INCH, DENSITY_UNIT = 2, 1000  # a value of ResolutionUnit, and the denominator of resolutions

TiffEntry = tuple[int, str, Sequence[int] | bytes]
"""A tag, a key of TIFF_TYPES, and the values."""


def read_png(content: bytes, upper: Array) -> Frame:
    """Return the frame of the 16-bit PNG `content`.

    `upper` is what Pillow read: the upper 8 bits, uint8 [h, w] or [h, w, 2 to 4]. Raises
    UnreadableImage for damage, UnsupportedImage if OpenCV and Pillow disagree.
    """
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UnreadableImage("the picture is damaged")
    return _frame(pixels, upper)


def read_tiff(content: bytes, page: int, upper: Array, back: Turn | None, extra: Any) -> Frame:
    """Return a 16-bit page of the TIFF `content`, as stored.

    `upper` is what Pillow read of the page, as stored: the upper 8 bits, uint8 [h, w, 3 or 4].
    `back` turns the upright page back. `extra` is the page's ExtraSamples, None or a tuple. Raises
    UnsupportedImage if OpenCV and Pillow disagree.
    """
    is_read, pages = cv2.imdecodemulti(
        np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED, range=(page, page + 1)
    )
    if not is_read or len(pages) != 1:
        raise UnsupportedImage("this kind of 16-bit TIFF is not handled")
    is_associated = extra == (ASSOCIATED,)
    try:
        return _frame(pages[0], upper, is_associated)
    except UnsupportedImage:
        if back is None:
            raise
        # Whether OpenCV has turned the page depends on its version.
        return _frame(np.ascontiguousarray(back(pages[0])), upper, is_associated)


def of_planes(pixels: Array, extra: Any) -> Frame:
    """Return the frame of a TIFF page in uint16 RGB or RGBA `pixels`.

    `extra` is the page's ExtraSamples, None or a tuple.
    """
    if extra == (ASSOCIATED,):
        _undo_association(pixels)
    if pixels.shape[2] == 4:
        pixels[pixels[..., 3] == 0] = 0
    return Frame(pixels, MODES[pixels.shape[2]])


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


def _frame(pixels: Any, upper: Array, is_associated: bool = False) -> Frame:
    """Return the frame of OpenCV's `pixels`, after comparing them with `upper`, which Pillow read.

    With associated alpha only alpha is compared, because Pillow has divided the colours by it.
    """
    if pixels.dtype != np.uint16 or pixels.shape[:2] != upper.shape[:2] or pixels.ndim > 3:
        raise UnsupportedImage("this kind of 16-bit picture is not handled")
    upper = upper if upper.ndim == 3 else upper[..., None]
    if pixels.ndim == 3:
        pixels = _in_pillows_order(pixels, upper.shape[2])
    planes = pixels if pixels.ndim == 3 else pixels[..., None]
    colours = 1 if upper.shape[2] < 3 else 3
    compared = np.s_[..., 3:] if is_associated else np.s_[..., :colours]
    # Rows are compared one by one to save memory.
    for plane_row, upper_row in zip(planes, upper, strict=True):
        if not (plane_row[compared] >> 8 == upper_row[compared]).all():
            raise UnsupportedImage(
                "this 16-bit picture is read in two ways, and none can be trusted"
            )
    if is_associated:
        _undo_association(pixels)
    if planes.shape[2] == 4:
        planes[planes[..., 3] == 0] = 0
    return Frame(pixels, MODES[planes.shape[2]])


def _in_pillows_order(pixels: Array, upper_channels: int) -> Array:
    """Return OpenCV's BGR or BGRA `pixels` as RGB or RGBA.

    Alpha is dropped if Pillow has `upper_channels` without it, except that Pillow's gray with alpha
    is RGBA in OpenCV.
    """
    channels: int = pixels.shape[2]
    conversion = CONVERSIONS.get((channels, upper_channels if upper_channels > 2 else channels))
    if conversion is None:
        raise UnreadableImage("two libraries find different channels in this 16-bit picture")
    return cv2.cvtColor(pixels, conversion)


def _undo_association(pixels: Array) -> None:
    """Divide the colours of RGBA `pixels` by their alpha, in place."""
    for row in pixels:
        alpha = np.maximum(row[:, 3:], 1).astype(np.uint64)
        row[:, :3] = np.minimum(row[:, :3] * np.uint64(65535) // alpha, 65535)


def write_png(pixels: Array, profile: bytes | None, exif: bytes | None) -> bytes:
    """Return a PNG of uint16 `pixels`, gray [h, w], RGB [h, w, 3] or RGBA [h, w, 4].

    PNG, third edition. Rows are compressed strip by strip, because an encoder that grows a single
    buffer needs twice the memory of the picture in addition.
    """
    height, width, channels = (*pixels.shape, 1)[:3]
    pixel_bytes = 2 * channels
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR_TYPES[channels], 0, 0, 0)
    chunks = [png.SIGNATURE, png.chunk(b"IHDR", header)]
    if profile:
        chunks.append(png.chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif:
        chunks.append(png.chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    compressor = zlib.compressobj(PNG_LEVEL, strategy=zlib.Z_RLE)
    for top in range(0, height, PNG_STRIP_ROWS):
        strip = pixels[top : top + PNG_STRIP_ROWS].astype(">u2", order="C")
        rows = strip.view(np.uint8).reshape(-1, pixel_bytes * width)
        filtered = np.full((len(rows), 1 + rows.shape[1]), PNG_SUB, np.uint8)
        filtered[:, 1:] = rows
        filtered[:, 1 + pixel_bytes :] -= rows[:, :-pixel_bytes]  # modulo 256, as specified
        chunks.append(png.chunk(b"IDAT", compressor.compress(filtered.data)))
    return b"".join([*chunks, png.chunk(b"IDAT", compressor.flush()), png.chunk(b"IEND", b"")])


def write_tiff(
    pages: Sequence[Array],
    profile: bytes | None,
    cmyk: Collection[int] = (),
    density: tuple[float, float] | None = None,
) -> bytes:
    """Return a TIFF of `pages` as write_pages does, all with this profile and density."""
    return write_pages(pages, [{"icc_profile": profile, "dpi": density}] * len(pages), cmyk)


def write_pages(
    pages: Sequence[Array], options: Sequence[Mapping[str, Any]], cmyk: Collection[int] = ()
) -> bytes:
    """Return a TIFF of `pages`, uint8 or uint16, each one strip of Deflate (TIFF 6.0).

    Pages are gray [h, w], gray with alpha [h, w, 2], RGB [h, w, 3] or RGBA [h, w, 4]. Those whose
    numbers are in `cmyk` are CMYK [h, w, 4]. The `options` of each may have an `icc_profile`, and a
    `dpi` across and down.
    """
    content = bytearray(b"II*\0" + bytes(4))
    link = 4  # where the offset of the next directory belongs
    for number, (pixels, describing) in enumerate(zip(pages, options, strict=True)):
        differences = pixels.copy()
        differences[:, 1:] -= pixels[:, :-1]  # modulo 2^8 or 2^16, as specified
        strip = zlib.compress(differences.data)
        del differences
        entries = _page_entries(pixels, number in cmyk, len(content), len(strip))
        if density := describing.get("dpi"):
            entries += _density_entries(density)
        if profile := describing.get("icc_profile"):
            entries.append((Tag.ICC_PROFILE, "B", profile))
        content += strip
        link = _append_directory(content, link, entries)
    return bytes(content)


def _density_entries(density: tuple[float, float]) -> list[TiffEntry]:
    """Return the entries of `density`, in dots an inch."""
    across, down = ((round(dots * DENSITY_UNIT), DENSITY_UNIT) for dots in density)
    return [
        (Tag.X_RESOLUTION, RATIONAL, across),
        (Tag.Y_RESOLUTION, RATIONAL, down),
        (Tag.RESOLUTION_UNIT, "H", (INCH,)),
    ]


def _page_entries(pixels: Array, is_cmyk: bool, offset: int, length: int) -> list[TiffEntry]:
    """Return the entries of a page whose strip has `length` bytes and begins at `offset`."""
    height, width, channels = (*pixels.shape, 1)[:3]
    photometric = RGB if channels > 2 else BLACK_IS_ZERO
    if is_cmyk:
        photometric = SEPARATED
    entries: list[TiffEntry] = [
        (Tag.IMAGE_WIDTH, "I", (width,)),
        (Tag.IMAGE_LENGTH, "I", (height,)),
        (Tag.BITS_PER_SAMPLE, "H", (pixels.dtype.itemsize * 8,) * channels),
        (Tag.COMPRESSION, "H", (TIFF_DEFLATE,)),
        (Tag.PHOTOMETRIC_INTERPRETATION, "H", (photometric,)),
        (Tag.STRIP_OFFSETS, "I", (offset,)),
        (Tag.SAMPLES_PER_PIXEL, "H", (channels,)),
        (Tag.ROWS_PER_STRIP, "I", (height,)),
        (Tag.STRIP_BYTE_COUNTS, "I", (length,)),
        (Tag.PREDICTOR, "H", (TIFF_HORIZONTAL_DIFFERENCES,)),
    ]
    if channels in (2, 4) and not is_cmyk:
        entries.append((Tag.EXTRA_SAMPLES, "H", (UNASSOCIATED,)))
    return entries


def _append_directory(content: bytearray, link: int, entries: Sequence[TiffEntry]) -> int:
    """Append a directory to `content`, and write its offset at `link`.

    Returns where the offset of the next directory belongs.
    """
    fields = b""
    for tag, kind, values in sorted(entries):
        code, count = ("I", len(values) // 2) if kind == RATIONAL else (kind, len(values))
        value = struct.pack(f"<{len(values)}{code}", *values)
        if len(value) > 4:
            content += bytes(len(content) % 2)
            offset = struct.pack("<I", len(content))
            content += value
            value = offset
        fields += struct.pack("<HHI", tag, TIFF_TYPES[kind], count) + value.ljust(4, b"\0")
    content += bytes(len(content) % 2)
    content[link : link + 4] = struct.pack("<I", len(content))
    content += struct.pack("<H", len(entries)) + fields + bytes(4)
    return len(content) - 4
