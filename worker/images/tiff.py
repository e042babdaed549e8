"""The pages of a TIFF: which are handled, and that their compressed data is whole (TIFF 6.0;
Technical Note 2).
"""

import zlib
from collections.abc import Iterator
from typing import Any

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images import jpeg
from worker.images.clock import Clock

COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg")
BITS_PER_SAMPLE, COMPRESSION, PLANES, EXTRA_SAMPLES, JPEG_TABLES = 258, 259, 284, 338, 347
PHOTOMETRIC, COLOR_MAP, SAMPLE_FORMAT = 262, 320, 339
WHITE_IS_ZERO, UNSIGNED = 0, 1
WIDTH, HEIGHT, SAMPLES, ROWS, TILE_SIDES = 256, 257, 277, 278, (322, 323)
STRIPS, TILES = (273, 279), (324, 325)  # the tags of their offsets and lengths
SPARE_BYTES = 1 << 10  # of a strip or tile
# What decides how the data is read: sizes, depth, compression, colours, places, predictor, tiles,
# planes.
STRUCTURE = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 338}
WHOLE_NUMBERS = {3, 4, 16}  # SHORT, LONG, LONG8


def bits(image: Any) -> int:
    """Return the most bits that a channel of the page that `image` is at has."""
    return int(max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))))


def is_deep(image: Any) -> bool:
    """Whether a channel of the page that `image` is at has more than 8 bits."""
    return bits(image) > 8


def has_white_at_zero(image: Any) -> bool:
    """Return whether 0 is white on the page that `image` is at."""
    return bool(image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO)


def palette(image: Any) -> bytes:
    """Return the colours of the palette page that `image` is at: first all reds, then greens, then
    blues.

    A map without a value over 255 is one of 8 bits, as libtiff and ImageMagick take it; others have
    16.
    """
    values = image.tag_v2.get(COLOR_MAP, ())
    if len(values) != 3 << bits(image) or max(values) > 65535:
        raise UnreadableImage(
            "this TIFF is damaged: its palette does not have the colours that its pixels may have"
        )
    return bytes(values) if max(values) < 256 else bytes(value >> 8 for value in values)


def check(image: Any, content: bytes, clock: Clock) -> None:
    """Raise UnsupportedImage or UnreadableImage for what libtiff reads with mere warnings, or in
    part.
    """
    compression = image.info.get("compression")
    if compression not in COMPRESSIONS:
        raise UnsupportedImage(
            f"TIFFs with the compression {compression} are not handled: save it with LZW, Deflate, PackBits or JPEG"
        )
    _check_directory(image.tag_v2)
    if set(image.tag_v2.get(SAMPLE_FORMAT, ())) - {UNSIGNED}:
        raise UnsupportedImage(
            "TIFFs of signed or floating point numbers are not handled: convert it to 8 or 16 bits"
        )
    size = 0
    across, down, most = _part_size(image.tag_v2)
    for part in _parts(image, content):
        clock.check()
        size += len(part)
        if compression == "jpeg":
            jpeg.check(_with_tables(part, image.tag_v2.get(JPEG_TABLES)), across, down)
        elif compression in ("tiff_adobe_deflate", "tiff_deflate"):
            _check_deflate(part, most)
    if (
        size * 8 < image.width * image.height * sum(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
        and compression == "raw"
    ):
        raise UnreadableImage("this TIFF is cut short")


def _check_directory(directory: Any) -> None:
    """Raise UnreadableImage for entries that Pillow passes over and other readers do not."""
    sound = all(directory.tagtype.get(tag, 3) in WHOLE_NUMBERS for tag in STRUCTURE)
    if not sound or COMPRESSION not in directory or directory.get(PLANES, 1) not in (1, 2):
        raise UnreadableImage("this TIFF is damaged: its directory has entries of the wrong kind")


def _part_size(directory: Any) -> tuple[int, int, int]:
    """Return width and height of a strip or tile, and the bytes that its pixels need at most."""
    across, down = directory[WIDTH], directory[HEIGHT]
    if TILES[0] in directory:
        across, down = (directory[tag] for tag in TILE_SIDES)
    else:
        down = min(max(directory.get(ROWS, down), 1), down)
    bits = directory.get(BITS_PER_SAMPLE, (1,))
    channels = max(len(bits), directory.get(SAMPLES, 1))
    return across, down, down * -(-across * channels * max(bits) // 8)


def _with_tables(part: bytes, tables: Any) -> bytes:
    """A strip or tile as a JPEG of its own: the tables stand apart, between the same two
    markers.
    """
    if not tables:
        return part
    if tables[:2] != b"\xff\xd8" or tables[-2:] != b"\xff\xd9":
        raise UnreadableImage("this TIFF is damaged: its JPEG tables do not end")
    whole: bytes = tables[:-2] + part[2:]
    return whole


def _parts(image: Any, content: bytes) -> Iterator[bytes]:
    """The compressed strips or tiles of a page."""
    offsets, lengths = (
        image.tag_v2.get(tag, ()) for tag in (TILES if TILES[0] in image.tag_v2 else STRIPS)
    )
    if not offsets or len(offsets) != len(lengths):
        raise UnreadableImage("this TIFF is damaged: where its pixels are is not known")
    for at, length in zip(offsets, lengths, strict=True):
        if at + length > len(content):
            raise UnreadableImage("this TIFF is cut short")
        yield content[at : at + length]


def _check_deflate(part: bytes, most: int) -> None:
    """Raise UnreadableImage for data that is damaged, or that unpacks to more than `most` bytes and
    some to spare.
    """
    unpacked, size = zlib.decompressobj(), 0
    try:
        while part and not unpacked.eof:
            size += len(unpacked.decompress(part, 1 << 16))
            if size > most + SPARE_BYTES:
                raise UnreadableImage(
                    "this TIFF is damaged: a strip or tile unpacks to more than its pixels need"
                )
            part = unpacked.unconsumed_tail
    except zlib.error:
        unpacked = zlib.decompressobj()
    if not unpacked.eof:
        raise UnreadableImage("this TIFF is damaged: the checksum of its pixels is wrong")
