"""Check the pages of a TIFF: their kind, and that their compressed data is complete.

TIFF 6.0; Technical Note 2 (JPEG in TIFF).
"""

import zlib
from collections.abc import Iterator
from typing import Any

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images.clock import Clock
from worker.images.jpeg import markers, segments
from worker.images.jpeg.decoding import check_part
from worker.images.tiff import fax
from worker.images.tiff.directories import LAYOUT, STRIPS, TILES, Tag

JPEG, RAW = "jpeg", "raw"  # Pillow's names of compressions
DEFLATE = ("tiff_adobe_deflate", "tiff_deflate")
OLD_JPEG = "tiff_jpeg"
COMPRESSIONS = (RAW, "tiff_lzw", *DEFLATE, "packbits", JPEG, OLD_JPEG, *fax.COMPRESSIONS)
WHITE_IS_ZERO = 0  # a value of PhotometricInterpretation
YCBCR = 6  # a value of PhotometricInterpretation
USUAL_SUBSAMPLING = 2, 2  # where YCbCrSubSampling is left out
UNSIGNED = 1  # a value of SampleFormat
CHUNKY, PLANAR = 1, 2  # values of PlanarConfiguration
SPARE_BYTES = 1 << 10  # a strip or tile may unpack to this much more than its pixels need
UNPACK_BYTES = 1 << 16  # bytes that are unpacked at a time
STRUCTURE = LAYOUT.union(STRIPS, TILES)
STRUCTURE_TYPES = {3, 4, 16}  # SHORT, LONG, LONG8


def bits(image: Any) -> int:
    """Return the largest number of bits of a channel of the page that `image` is at."""
    return int(max(_bits_per_sample(image.tag_v2)))


def is_deep(image: Any) -> bool:
    """Return whether a channel of the page that `image` is at has more than 8 bits."""
    return bits(image) > 8


def has_white_at_zero(image: Any) -> bool:
    """Return whether 0 is white on the page that `image` is at."""
    return bool(image.tag_v2.get(Tag.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO)


def has_planes(image: Any) -> bool:
    """Return whether the channels of the page that `image` is at are stored one after the other."""
    planes = image.tag_v2.get(Tag.PLANAR_CONFIGURATION, CHUNKY)
    return bool(planes == PLANAR and len(_bits_per_sample(image.tag_v2)) > 1)


def is_raw_ycbcr(image: Any) -> bool:
    """Return whether the page is uncompressed YCbCr, which Pillow reads without its subsampling."""
    photometric = image.tag_v2.get(Tag.PHOTOMETRIC_INTERPRETATION)
    return bool(photometric == YCBCR and image.info.get("compression") == RAW)


def orientation(image: Any) -> int:
    """Return the Orientation of the page that `image` is at, 1 if it has none.

    Some writers store it in a BYTE.
    """
    value = image.tag_v2.get(Tag.ORIENTATION, 1)
    if isinstance(value, (bytes, tuple)):
        value = (*value, 1)[0]
    return value if isinstance(value, int) else 1


def palette(image: Any) -> bytes:
    """Return the palette of the page that `image` is at: all reds, then all greens, then all blues.

    A map without a value over 255 has 8 bits, as in libtiff and ImageMagick; others have 16.
    """
    values = image.tag_v2.get(Tag.COLOR_MAP, ())
    if len(values) != 3 << bits(image) or max(values) > 65535:
        raise UnreadableImage(
            "this TIFF is damaged: its palette does not have the colours that its pixels may have"
        )
    return bytes(values) if max(values) < 256 else bytes(value >> 8 for value in values)


def check(image: Any, content: bytes, clock: Clock) -> None:
    """Check the page that `image` is at for errors that libtiff only warns of, or passes over.

    Raises UnsupportedImage for a kind of page that is not handled, UnreadableImage for damage.
    """
    directory = image.tag_v2
    compression = image.info.get("compression")
    if compression not in COMPRESSIONS:
        raise UnsupportedImage(
            f"TIFFs with the compression {compression} are not handled: "
            "save it with LZW, Deflate, PackBits, JPEG or fax"
        )
    _check_directory(directory)
    if set(directory.get(Tag.SAMPLE_FORMAT, ())) - {UNSIGNED}:
        raise UnsupportedImage(
            "TIFFs of signed or floating point numbers are not handled: convert it to 8 or 16 bits"
        )
    size = 0
    width, height, max_bytes = _part_size(directory)
    for part in _parts(directory, content):
        clock.check()
        size += len(part)
        if compression == JPEG:
            check_part(_with_tables(part, directory.get(Tag.JPEG_TABLES)), width, height)
        elif compression in DEFLATE:
            _check_deflate(part, max_bytes)
    if compression == RAW and size * 8 < _raw_bits(image):
        raise UnreadableImage("this TIFF is cut short")


def check_fax(image: Any, content: bytes, directory: Any, compression: str) -> None:
    """Check the fax page that `image` has loaded, as stored. `directory` has its tags.

    Raises UnreadableImage for damage.
    """
    fax.check(image, directory, compression, _parts(directory, content))


def old_jpeg(image: Any, content: bytes) -> bytes:
    """Return the file of a page in old-style JPEG (TIFF 6.0, section 22).

    Raises UnsupportedImage if the page only has parts of one, or none of its size.
    """
    directory = image.tag_v2
    start = directory.get(Tag.JPEG_INTERCHANGE_FORMAT, 0)
    length = directory.get(Tag.JPEG_INTERCHANGE_FORMAT_LENGTH, len(content))
    file = content[start : start + length]
    if not file.startswith(markers.START):
        raise UnsupportedImage(
            "this TIFF has old-style JPEG without a whole JPEG in it: save it with JPEG"
        )
    if segments.size(file, image.width * image.height)[:2] != image.size:
        raise UnsupportedImage("this TIFF has a JPEG of another size than its page: save it again")
    return file


def _raw_bits(image: Any) -> int:
    """Return the bits of the pixels of an uncompressed page, at least."""
    bits = _bits_per_sample(image.tag_v2)
    if not is_raw_ycbcr(image):
        return int(image.width * image.height * sum(bits))
    across, down = image.tag_v2.get(Tag.YCBCR_SUBSAMPLING, USUAL_SUBSAMPLING)
    blocks = -(-image.width // across) * -(-image.height // down)
    return int(blocks * (across * down + 2) * max(bits))


def _bits_per_sample(directory: Any) -> tuple[int, ...]:
    bits: tuple[int, ...] = directory.get(Tag.BITS_PER_SAMPLE, (1,))
    return bits


def _check_directory(directory: Any) -> None:
    """Raise UnreadableImage for entries that Pillow ignores and other readers do not."""
    is_sound = all(directory.tagtype.get(tag, 3) in STRUCTURE_TYPES for tag in STRUCTURE)
    planes = directory.get(Tag.PLANAR_CONFIGURATION, CHUNKY)
    if not is_sound or planes not in (CHUNKY, PLANAR):
        raise UnreadableImage("this TIFF is damaged: its directory has entries of the wrong kind")


def _part_size(directory: Any) -> tuple[int, int, int]:
    """Return width and height of a strip or tile, and the bytes that its pixels need at most."""
    width, height = directory[Tag.IMAGE_WIDTH], directory[Tag.IMAGE_LENGTH]
    if Tag.TILE_OFFSETS in directory:
        width, height = directory[Tag.TILE_WIDTH], directory[Tag.TILE_LENGTH]
    else:
        height = min(max(directory.get(Tag.ROWS_PER_STRIP, height), 1), height)
    bits = _bits_per_sample(directory)
    channels = max(len(bits), directory.get(Tag.SAMPLES_PER_PIXEL, 1))
    row_bytes = -(-width * channels * max(bits) // 8)
    return width, height, height * row_bytes


def _with_tables(part: bytes, tables: Any) -> bytes:
    """Return a strip or tile as a JPEG of its own.

    `tables` is the page's JPEGTables, which are between the same two markers as the strip itself.
    """
    if not tables:
        return part
    if tables[:2] != markers.START_OF_IMAGE or tables[-2:] != markers.END_OF_IMAGE:
        raise UnreadableImage("this TIFF is damaged: its JPEG tables do not end")
    whole: bytes = tables[:-2] + part[2:]
    return whole


def _parts(directory: Any, content: bytes) -> Iterator[bytes]:
    """Yield the compressed strips or tiles of a page."""
    tags = TILES if Tag.TILE_OFFSETS in directory else STRIPS
    offsets, lengths = (directory.get(tag, ()) for tag in tags)
    if not offsets or len(offsets) != len(lengths):
        raise UnreadableImage("this TIFF is damaged: it does not say where its pixels are")
    for offset, length in zip(offsets, lengths, strict=True):
        if offset + length > len(content):
            raise UnreadableImage("this TIFF is cut short")
        yield content[offset : offset + length]


def _check_deflate(part: bytes, max_bytes: int) -> None:
    """Raise UnreadableImage for damaged data, and for data that unpacks to more than `max_bytes`.

    SPARE_BYTES more are allowed.
    """
    unpacker, size = zlib.decompressobj(), 0
    try:
        while part and not unpacker.eof:
            size += len(unpacker.decompress(part, UNPACK_BYTES))
            if size > max_bytes + SPARE_BYTES:
                raise UnreadableImage(
                    "this TIFF is damaged: a strip or tile unpacks to more than its pixels need"
                )
            part = unpacker.unconsumed_tail
        is_complete = unpacker.eof
    except zlib.error:
        is_complete = False
    if not is_complete:
        raise UnreadableImage("this TIFF is damaged: the checksum of its pixels is wrong")
