"""Camera raws, and other TIFFs that hold a larger picture than the pages that are read (TIFF 6.0,
TIFF/EP, DNG 1.7).

Raws show only a preview to a reader of plain TIFFs. The directories are walked here without Pillow,
which does not follow SubIFDs and does not open pages whose kind it does not know.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage

ADVICE = "develop it, and save it as TIFF, PNG or JPEG"
# Signatures of raws at the start of the file that are not those of a TIFF, and of TIFF-based ones
# at byte 8.
AT_START = (
    b"IIU\0",
    b"IIRO",
    b"IIRS",
    b"MMOR",
    b"FUJIFILMCCD-RAW",
    b"FOVb",
    b"\0MRM",
    b"II\x1a\0\0\0HEAPCCDR",
)
AT_8 = (b"CR\x02", b"IIII", b"MMMM")  # Canon CR2, Phase One IIQ
CR3 = b"ftypcrx "
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0", b"II\0+", b"MM+\0")
MOST_DIRECTORIES = 10_000  # each takes 50 microseconds
BIG = 43  # BigTIFF's number, in place of 42

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, PHOTOMETRIC, SUB_IFDS = 254, 255, 256, 257, 262, 330
COMPRESSION, JPEG_OFFSET, OLD_JPEG = 259, 513, 6
RAW_TAGS = (33421, 33422, 50706)  # CFARepeatPatternDim, CFAPattern, DNGVersion
RAW_PHOTOMETRICS = (32803, 34892)  # CFA, LinearRaw
TAGS = (
    SUBFILE,
    OLD_SUBFILE,
    WIDTH,
    HEIGHT,
    COMPRESSION,
    PHOTOMETRIC,
    SUB_IFDS,
    JPEG_OFFSET,
    *RAW_TAGS,
)
REDUCED, OLD_REDUCED = 1, 2
TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


@dataclass(frozen=True)
class Directory:
    """The values of one directory by tag, and the place of the next one, 0 for none."""

    values: dict[int, tuple[int, ...]]
    next: int

    def first(self, tag: int, default: int = 0) -> int:
        return (*self.values.get(tag, ()), default)[0]

    @property
    def is_raw(self) -> bool:
        return (
            any(tag in self.values for tag in RAW_TAGS)
            or self.first(PHOTOMETRIC) in RAW_PHOTOMETRICS
        )

    @property
    def is_reduced(self) -> bool:
        """Return whether the page is a smaller version of another picture in the file."""
        return bool(self.first(SUBFILE) & REDUCED) or self.first(OLD_SUBFILE) == OLD_REDUCED

    @property
    def has_second_picture(self) -> bool:
        """Return whether the page has a JPEG besides its strips or tiles; old-style JPEG has it in
        their place.
        """
        return JPEG_OFFSET in self.values and self.first(COMPRESSION) != OLD_JPEG

    @property
    def size(self) -> tuple[int, int]:
        return self.first(WIDTH), self.first(HEIGHT)


def check(content: bytes) -> None:
    """Raise UnsupportedImage for a camera raw, and for a TIFF whose pages are not all that it
    shows.
    """
    if content.startswith(AT_START) or content[4:12] == CR3:
        raise UnsupportedImage(f"camera raws are not handled: {ADVICE}")
    if not content.startswith(TIFF):
        return
    directories = _Directories(content)
    pages = list(directories.chain(directories.start))
    parts = [(page, list(directories.below(page))) for page in pages]
    if content.startswith(AT_8, 8) or any(
        one.is_raw for page, below in parts for one in (page, *below)
    ):
        raise UnsupportedImage(f"camera raws are not handled: {ADVICE}")
    for page, below in parts:
        if page.has_second_picture or any(
            not one.is_reduced or _is_larger(one, page) for one in below
        ):
            raise UnsupportedImage(
                f"this TIFF has further pictures beside its pages, as camera raws do: {ADVICE}"
            )
    if pages and all(page.is_reduced for page in pages):
        raise UnsupportedImage(
            f"this TIFF has only previews of a picture, as camera raws do: {ADVICE}"
        )


def kind(content: bytes) -> str | None:
    """Return the kind of the TIFF `content` in words; None for anything else, or where it has no
    first directory.
    """
    if not content.startswith(TIFF):
        return None
    directories = _Directories(content)
    page = next(directories.chain(directories.start), None)
    if page is None or 0 in page.size or PHOTOMETRIC not in page.values:
        return None
    return f"PhotometricInterpretation {page.first(PHOTOMETRIC)}"


def _is_larger(one: Directory, other: Directory) -> bool:
    return one.size[0] > other.size[0] or one.size[1] > other.size[1]


class _Directories:
    """The directories of a TIFF. Each is read once, and all together are no larger than the
    file.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._order = "<" if content.startswith(b"II") else ">"
        self._endian: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"
        self._is_big = BIG in content[2:4]
        fields = [("tag", 2), ("type", 2), ("count", 8 if self._is_big else 4)]
        layout = [(name, f"{self._order}u{size}") for name, size in fields]
        self._layout = np.dtype([*layout, ("value", "V8" if self._is_big else "V4")])
        self._left = len(content)
        self._read: set[int] = set()
        self.start = self._number(*((8, 8) if self._is_big else (4, 4)))

    def chain(self, at: int) -> Iterator[Directory]:
        """Yield the directory at `at` and those after it, up to the first that is not whole or was
        read before.
        """
        while at and at not in self._read:
            directory = self._directory(at)
            if directory is None:
                return
            yield directory
            at = directory.next

    def below(self, page: Directory) -> Iterator[Directory]:
        """Yield all directories below `page`; UnreadableImage if one is not in the file."""
        places = list(page.values.get(SUB_IFDS, ()))
        while places:
            at = places.pop()
            if not at or at in self._read:
                continue
            directory = self._directory(at)
            if directory is None:
                raise UnreadableImage(
                    "this TIFF is cut short: a picture below one of its pages is not there"
                )
            yield directory
            places += (directory.next, *directory.values.get(SUB_IFDS, ()))

    def _directory(self, at: int) -> Directory | None:
        """Return the directory at `at`; None where the file ends before it does."""
        head, offset = (8, 8) if self._is_big else (2, 4)
        count = self._number(at, head)
        end = at + head + count * self._layout.itemsize
        if not count or end > len(self._content):
            return None
        self._read.add(at)
        if len(self._read) > MOST_DIRECTORIES:
            raise ImageTooLarge(
                f"this TIFF has over {MOST_DIRECTORIES:,} pages and pictures below them: split it up"
            )
        self._spend(end - at)
        entries = np.frombuffer(self._content, self._layout, count, at + head)
        values = {
            int(entry["tag"]): self._values(entry)
            for entry in entries[np.isin(entries["tag"], TAGS)]
        }
        if values.get(SUB_IFDS) == ():
            raise UnreadableImage(
                "this TIFF is damaged: the pictures below one of its pages are not there"
            )
        return Directory(values, self._number(end, offset))

    def _values(self, entry: Any) -> tuple[int, ...]:
        """Return the whole numbers of an entry; none where it is of another type, or not in the
        file.
        """
        code, count, inline = (
            TYPES.get(int(entry["type"])),
            int(entry["count"]),
            entry["value"].tobytes(),
        )
        if code is None:
            return ()
        size = struct.calcsize("=" + code) * count
        stored = inline[:size]
        if size > len(inline):
            at = int.from_bytes(inline, self._endian)
            stored = self._content[at : at + size]
            self._spend(len(stored))
        return struct.unpack(f"{self._order}{count}{code}", stored) if len(stored) == size else ()

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnreadableImage("this TIFF is damaged: its directories lie over each other")

    def _number(self, at: int, size: int) -> int:
        """Return the number of `size` bytes at `at`; 0 where the file ends before it."""
        stored = self._content[at : at + size]
        return int.from_bytes(stored, self._endian) if len(stored) == size else 0
