"""The directories of a TIFF, read without a library (TIFF 6.0, section 2; BigTIFF).

Pillow does not follow SubIFDs, does not open pages of kinds that it does not know, and may reserve
memory before Veil could check a page.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np

from tasks.errors import UnreadableImage

# The signatures that readers accept: TIFF and BigTIFF, and both with the number's bytes swapped.
SIGNATURES = (
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0", b"II\0+", b"MM+\0",
)  # fmt: skip
MAX_REPEATS = 2  # entries for each tag, on average; TIFF 6.0 allows one
BIG_TIFF = 43  # the number in a BigTIFF's signature; a plain TIFF has 42
# struct's codes of BYTE, SHORT, LONG, IFD, LONG8 and IFD8.
UNSIGNED_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class Tag(IntEnum):
    """The tags that Veil reads (TIFF 6.0, Appendix A; Technical Note 2; TIFF/EP; DNG 1.7)."""

    NEW_SUBFILE_TYPE = 254
    SUBFILE_TYPE = 255
    IMAGE_WIDTH = 256
    IMAGE_LENGTH = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC_INTERPRETATION = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    SAMPLES_PER_PIXEL = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTE_COUNTS = 279
    X_RESOLUTION = 282
    Y_RESOLUTION = 283
    PLANAR_CONFIGURATION = 284
    RESOLUTION_UNIT = 296
    PREDICTOR = 317
    COLOR_MAP = 320
    TILE_WIDTH = 322
    TILE_LENGTH = 323
    TILE_OFFSETS = 324
    TILE_BYTE_COUNTS = 325
    SUB_IFDS = 330
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339
    JPEG_TABLES = 347
    JPEG_INTERCHANGE_FORMAT = 513
    JPEG_INTERCHANGE_FORMAT_LENGTH = 514
    YCBCR_SUBSAMPLING = 530
    CFA_REPEAT_PATTERN_DIM = 33421
    CFA_PATTERN = 33422
    ICC_PROFILE = 34675
    DNG_VERSION = 50706


STRIPS = (Tag.STRIP_OFFSETS, Tag.STRIP_BYTE_COUNTS)
TILES = (Tag.TILE_OFFSETS, Tag.TILE_BYTE_COUNTS)
# The tags that say how to read the data of the strips or tiles.
LAYOUT = {
    Tag.IMAGE_WIDTH, Tag.IMAGE_LENGTH, Tag.BITS_PER_SAMPLE, Tag.COMPRESSION,
    Tag.PHOTOMETRIC_INTERPRETATION, Tag.FILL_ORDER, Tag.SAMPLES_PER_PIXEL, Tag.ROWS_PER_STRIP,
    Tag.PLANAR_CONFIGURATION, Tag.PREDICTOR, Tag.TILE_WIDTH, Tag.TILE_LENGTH, Tag.EXTRA_SAMPLES,
}  # fmt: skip


class Entry(NamedTuple):
    """One entry of a directory.

    `field` holds the values themselves if they fit into it, else their offset. `size` is the number
    of bytes of all values, 0 if they are no unsigned whole numbers.
    """

    tag: int
    type: int
    value_count: int
    field: bytes
    size: int

    @property
    def is_elsewhere(self) -> bool:
        """Return whether the values are outside the entry."""
        return self.size > len(self.field)


@dataclass(frozen=True)
class Directory:
    """The entries of a directory that were asked for, in their order.

    `entry_count` and `size`, in bytes, count all entries. `next_offset` is 0 in the last directory,
    and None if the file ends before it.
    """

    entries: tuple[Entry, ...]
    entry_count: int
    size: int
    next_offset: int | None


class DirectoryReader:
    """Reads the directories of one TIFF. The signature must be one of SIGNATURES."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        is_little = content.startswith(b"II")
        self._order = "<" if is_little else ">"
        self._byteorder: Literal["little", "big"] = "little" if is_little else "big"
        self._is_big = BIG_TIFF in content[2:4]
        self._offset_bytes, self._count_bytes = (8, 8) if self._is_big else (4, 2)
        integers = [("tag", 2), ("type", 2), ("count", self._offset_bytes)]
        fields = [(name, f"{self._order}u{size}") for name, size in integers]
        self._layout = np.dtype([*fields, ("field", f"V{self._offset_bytes}")])

    @property
    def first_offset(self) -> int | None:
        """Return the offset of the first directory, or None if the file ends before it."""
        return self._number(8 if self._is_big else 4, self._offset_bytes)

    def directory(self, offset: int, tags: Collection[int]) -> Directory | None:
        """Return the directory at `offset` with its entries of `tags`.

        Returns None for a directory without entries, and where the file ends before the directory.
        Raises UnreadableImage if the same tags are repeated, which would take a long time.
        """
        count = self._number(offset, self._count_bytes)
        start = offset + self._count_bytes
        end = start + (count or 0) * self._layout.itemsize
        if not count or end > len(self._content):
            return None
        records = np.frombuffer(self._content, self._layout, count, start)
        chosen = records[np.isin(records["tag"], list(tags))]
        if len(chosen) > MAX_REPEATS * len(tags):
            raise UnreadableImage("this TIFF is damaged: a directory repeats its entries")
        entries = tuple(self._entry(*record) for record in chosen.tolist())
        return Directory(entries, count, end - offset, self._number(end, self._offset_bytes))

    def values(self, entry: Entry) -> tuple[int, ...]:
        """Return the unsigned whole numbers of `entry`.

        Returns no values if they are of another type or reach beyond the end of the file.
        """
        code = UNSIGNED_TYPES.get(entry.type)
        if code is None:
            return ()
        stored = entry.field[: entry.size]
        if entry.is_elsewhere:
            start = int.from_bytes(entry.field, self._byteorder)
            if start + entry.size > len(self._content):
                return ()
            stored = self._content[start : start + entry.size]
        return struct.unpack(f"{self._order}{entry.value_count}{code}", stored)

    @staticmethod
    def _entry(tag: int, type_: int, count: int, field: bytes) -> Entry:
        code = UNSIGNED_TYPES.get(type_)
        size = struct.calcsize(f"={code}") * count if code else 0
        return Entry(tag, type_, count, field, size)

    def _number(self, offset: int, size: int) -> int | None:
        """Return the number of `size` bytes at `offset`, or None if the file ends before it."""
        stored = self._content[offset : offset + size]
        return int.from_bytes(stored, self._byteorder) if len(stored) == size else None
