"""Check that the data of a fax page is complete: Group 3 and 4 in TIFF (ITU-T T.4, T.6).

libtiff passes over damage, and fills what is missing. Its encoder writes the same bits for the same
pixels, so a page is read as it was written if encoding its pixels gives its data again.
"""

import io
from collections.abc import Iterable
from typing import Any

from PIL import Image

from tasks.errors import UnreadableImage
from worker.images.tiff.directories import STRIPS, Tag

COMPRESSIONS = ("tiff_ccitt", "group3", "group4")  # Pillow's names
END_OF_LINE = "000000000001"
# What ends a strip, by Pillow's name of the compression (T.4, 4.1.4; T.6, 2.4.1.1).
ENDS = {"tiff_ccitt": "", "group3": END_OF_LINE * 6, "group4": END_OF_LINE * 2}
T4_OPTIONS = 292
LEAST_SIGNIFICANT_FIRST = 2  # a value of FillOrder
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
COPIED = (Tag.ROWS_PER_STRIP, Tag.PHOTOMETRIC_INTERPRETATION, T4_OPTIONS)


def check(image: Image.Image, directory: Any, compression: str, parts: Iterable[bytes]) -> None:
    """Raise UnreadableImage unless `image`, of mode 1 and as stored, encodes to `parts`.

    `directory` holds the page's tags, and `parts` are its strips.
    """
    encoded = list(_encoded(image, directory, compression))
    stored = list(parts)
    if directory.get(Tag.FILL_ORDER) == LEAST_SIGNIFICANT_FIRST:
        stored = [part.translate(REVERSED) for part in stored]
    pairs = zip(stored, encoded, strict=False)
    if len(stored) != len(encoded) or not all(_is_same(*pair, compression) for pair in pairs):
        raise UnreadableImage("this TIFF is damaged: its fax data does not give its pixels")


def _encoded(image: Image.Image, directory: Any, compression: str) -> Iterable[bytes]:
    """Yield the strips of `image` as libtiff's encoder writes them."""
    tags = {int(tag): directory[tag] for tag in COPIED if tag in directory}
    tags.setdefault(int(Tag.ROWS_PER_STRIP), image.height)
    file = io.BytesIO()
    # Pillow would write further tags of an image that comes from a TIFF.
    image.copy().save(file, "TIFF", compression=compression, tiffinfo=tags)
    content = file.getvalue()
    with Image.open(io.BytesIO(content), formats=("TIFF",)) as copy:
        written: Any = copy
        offsets, lengths = (written.tag_v2[tag] for tag in STRIPS)
        for offset, length in zip(offsets, lengths, strict=True):
            yield content[offset : offset + length]


def _is_same(stored: bytes, encoded: bytes, compression: str) -> bool:
    """Return whether the strips have the same code words. The end may be left out."""
    end = ENDS[compression]
    words = _bits(encoded)
    if end:
        words = words.rstrip("0").removesuffix(end)
    if not _bits(stored).startswith(words):
        return False
    rest = _bits(stored)[len(words) :].rstrip("0")
    return not rest or rest == end


def _bits(data: bytes) -> str:
    return f"{int.from_bytes(data):0{8 * len(data)}b}" if data else ""
