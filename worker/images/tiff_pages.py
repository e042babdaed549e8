"""Measure a TIFF from its directories alone, before a library reads it (TIFF 6.0, section 2;
BigTIFF).
"""

import struct
from dataclasses import dataclass

from tasks.errors import ImageTooLarge, UnreadableImage

MOST_ENTRIES = 4096  # of one directory
MOST_PARTS = 1 << 18  # strips and tiles of all pages together; Python keeps 32 bytes of each number
MOST_VALUES = 64  # of an entry that describes the structure
MOST_TABLES = 1 << 16  # bytes of JPEG tables, which are repeated before each strip
MOST_SHARING = 4  # strips may name the file's bytes so many times over
LEAST_PADDING = 1 << 22  # pixels that tiles may have beyond the picture, whatever its size
WIDTH, HEIGHT, BITS, COMPRESSION, SAMPLES, ROWS, PLANES = 256, 257, 258, 259, 277, 278, 284
STRIPS, TILES = (273, 279), (324, 325)
TILE_SIDES = (322, 323)
JPEG_TABLES = 347
DESCRIBING = {
    256,
    257,
    258,
    259,
    262,
    266,
    274,
    277,
    278,
    282,
    283,
    284,
    296,
    317,
    322,
    323,
    338,
    339,
    530,
}
SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}

Entry = tuple[int, int, int]  # type, count, and the offset of the values
NOTHING: Entry = (3, 0, 0)


@dataclass(frozen=True)
class Page:
    """The size of a page, in pixels, and the largest value of its BitsPerSample."""

    width: int
    height: int
    bits: int


@dataclass(frozen=True)
class _Layout:
    """The byte order and the widths of numbers in a file."""

    order: str
    is_big: bool

    @property
    def pointer(self) -> str:
        return self.order + ("Q" if self.is_big else "I")

    def entry_at(self, content: bytes, at: int) -> tuple[int, Entry]:
        """Return the tag and the entry that stand at `at`."""
        tag, kind, count = struct.unpack_from(
            self.order + ("HHQ" if self.is_big else "HHI"), content, at
        )
        inline = 8 if self.is_big else 4
        place = at + 4 + inline
        if SIZES.get(kind, 1) * count > inline:
            (place,) = struct.unpack_from(self.pointer, content, place)
        return tag, (kind, count, place)

    def values(self, content: bytes, entry: Entry) -> tuple[int, ...]:
        """Return the whole numbers of `entry`; none for other types or for values that lie outside
        the file.
        """
        kind, count, place = entry
        if kind not in WHOLE or place + SIZES[kind] * count > len(content):
            return ()
        return struct.unpack_from(f"{self.order}{count}{WHOLE[kind]}", content, place)


def pages(content: bytes, max_frames: int) -> list[Page]:
    """Return the pages of the TIFF `content`.

    Raises ImageTooLarge for more than `max_frames` pages, UnreadableImage for directories that do
    not end, name more than the pixels need, or contradict each other.
    """
    try:
        return _walked(content, max_frames)
    except struct.error:
        raise UnreadableImage(
            "this TIFF is cut short: a directory reaches beyond its end"
        ) from None


def _walked(content: bytes, max_frames: int) -> list[Page]:
    layout = _layout(content)
    (at,) = struct.unpack_from(layout.pointer, content, 8 if layout.is_big else 4)
    found: list[Page] = []
    visited: set[int] = set()
    parts = named = 0
    while at:
        if at in visited:
            raise UnreadableImage("this TIFF is damaged: its pages form a circle")
        if len(found) == max_frames:
            raise ImageTooLarge(
                f"this TIFF has more than {max_frames:,} frames: raise VEIL_MAX_FRAMES"
            )
        visited.add(at)
        entries, at = _directory(content, layout, at)
        page, lengths = _measured(content, layout, entries)
        if max(lengths, default=0) > len(content):
            raise UnreadableImage("this TIFF is cut short")
        found.append(page)
        parts += len(lengths)
        named += sum(lengths)
        if parts > MOST_PARTS:
            raise ImageTooLarge(
                f"this TIFF has more than {MOST_PARTS:,} strips or tiles: save it with larger ones"
            )
        if named > MOST_SHARING * len(content):
            raise UnreadableImage(
                "this TIFF is damaged: its strips or tiles name the same bytes again and again"
            )
    if not found:
        raise UnreadableImage("this TIFF has no picture in it")
    return found


def _layout(content: bytes) -> _Layout:
    order = "<" if content[:2] == b"II" else ">"
    (magic,) = struct.unpack_from(order + "H", content, 2)
    if magic not in (42, 43) or (magic == 43 and content[4:8] != struct.pack(order + "HH", 8, 0)):
        raise UnreadableImage("this TIFF is damaged: its header makes no sense")
    return _Layout(order, magic == 43)


def _directory(content: bytes, layout: _Layout, at: int) -> tuple[dict[int, Entry], int]:
    """Return the entries of the directory at `at`, and the place of the next one, 0 if it is the
    last.
    """
    (count,) = struct.unpack_from(layout.order + ("Q" if layout.is_big else "H"), content, at)
    if count > MOST_ENTRIES:
        raise UnreadableImage(f"this TIFF is damaged: a directory has {count:,} entries")
    start, step = (at + 8, 20) if layout.is_big else (at + 2, 12)
    entries: dict[int, Entry] = {}
    for number in range(count):
        tag, entry = layout.entry_at(content, start + number * step)
        if tag in entries and tag in DESCRIBING.union(STRIPS, TILES):
            raise UnreadableImage("this TIFF is damaged: a directory has an entry twice")
        if tag in DESCRIBING and entry[1] > MOST_VALUES:
            raise UnreadableImage(
                f"this TIFF is damaged: an entry that describes it has {entry[1]:,} values"
            )
        entries.setdefault(tag, entry)
    (following,) = struct.unpack_from(layout.pointer, content, start + count * step)
    return entries, int(following)


def _measured(
    content: bytes, layout: _Layout, entries: dict[int, Entry]
) -> tuple[Page, tuple[int, ...]]:
    """Return the page that `entries` describe, and the lengths of its strips or tiles."""

    def number(tag: int, default: int) -> int:
        values = layout.values(content, entries[tag]) if tag in entries else ()
        return values[0] if values else default

    width, height, bits = number(WIDTH, 0), number(HEIGHT, 0), 1
    is_tiled = TILES[0] in entries
    across, down = (
        (number(tag, 0) for tag in TILE_SIDES)
        if is_tiled
        else (width, min(max(number(ROWS, height), 1), height))
    )
    if min(width, height, across, down) <= 0:
        raise UnreadableImage("this TIFF is damaged: a page or its tiles have no size")
    if BITS in entries:
        bits = max(layout.values(content, entries[BITS]) or (1,))
    columns, rows = -(-width // across), -(-height // down)
    if columns * across * rows * down > 4 * width * height + LEAST_PADDING:
        raise ImageTooLarge(
            f"tiles of {across} × {down} pixels are too large for {width} × {height} pixels"
        )
    planes = max(number(SAMPLES, 1), 1) if number(PLANES, 1) == 2 else 1
    offsets, lengths = (entries.get(tag, NOTHING) for tag in (TILES if is_tiled else STRIPS))
    _check_parts(max(offsets[1], lengths[1]), columns * rows * planes)
    if entries.get(JPEG_TABLES, NOTHING)[1] > MOST_TABLES:
        raise UnreadableImage("this TIFF is damaged: its JPEG tables are too long")
    return Page(width, height, bits), layout.values(content, lengths)


def _check_parts(count: int, needed: int) -> None:
    if count > needed:
        raise UnreadableImage(
            f"this TIFF is damaged: it has {count:,} strips or tiles where {needed:,} are needed"
        )
    if count > MOST_PARTS:
        raise ImageTooLarge(f"this TIFF has {count:,} strips or tiles, the limit is {MOST_PARTS:,}")
