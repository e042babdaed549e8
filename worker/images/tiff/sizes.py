"""Measure a TIFF from its directories alone, before a library reads it (TIFF 6.0; BigTIFF)."""

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import ImageTooLarge, UnreadableImage
from worker.images.tiff.directories import LAYOUT, STRIPS, TILES, DirectoryReader, Entry, Tag

# The headers that every reader accepts: those of TIFF, and those of BigTIFF with the size of its
# offsets.
HEADERS = (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")
CUT_SHORT = "this TIFF is cut short: a directory reaches beyond its end"

MAX_ENTRIES = 4096  # entries of one directory
MAX_PARTS = 1 << 18  # strips and tiles of all pages; Python keeps 32 bytes for each number
MAX_DESCRIBING_VALUES = 64  # values of an entry that describes the page
MAX_JPEG_TABLES = 1 << 16  # bytes of JPEG tables, which are repeated before each strip
MAX_SHARING = 4  # bytes that all strips and tiles may name, as a multiple of the file's size
# The pixels that the tiles of a page may cover: a multiple of the page's pixels, and some more for
# small pages.
MAX_TILE_COVER = 4
MIN_TILE_COVER = 1 << 22
SEPARATE_PLANES = 2  # a value of PlanarConfiguration
# The tags that describe the page, besides the places of its strips or tiles.
DESCRIBING = LAYOUT | {
    Tag.ORIENTATION, Tag.X_RESOLUTION, Tag.Y_RESOLUTION, Tag.RESOLUTION_UNIT, Tag.SAMPLE_FORMAT,
    Tag.YCBCR_SUBSAMPLING,
}  # fmt: skip
UNIQUE = DESCRIBING.union(STRIPS, TILES)
TAGS = UNIQUE | {Tag.JPEG_TABLES}


@dataclass(frozen=True)
class Page:
    """The size of a page, in pixels, its channels, and the largest value of its BitsPerSample."""

    width: int
    height: int
    bits: int
    channels: int


class _Entries:
    """The entries of one directory, by tag."""

    def __init__(self, reader: DirectoryReader, entries: dict[int, Entry]) -> None:
        self._reader = reader
        self._entries = entries

    def __contains__(self, tag: Tag) -> bool:
        return tag in self._entries

    def count(self, tag: Tag) -> int:
        return self._entries[tag].value_count if tag in self._entries else 0

    def values(self, tag: Tag) -> tuple[int, ...]:
        return self._reader.values(self._entries[tag]) if tag in self._entries else ()

    def first(self, tag: Tag, default: int) -> int:
        return (*self.values(tag), default)[0]


def page_sizes(content: bytes, max_frames: int) -> list[Page]:
    """Return the pages of the TIFF `content`.

    Raises ImageTooLarge for more than `max_frames` pages, and for too many strips or tiles. Raises
    UnreadableImage for directories that do not end, name more than the pixels need, or contradict
    each other.
    """
    if not content.startswith(HEADERS):
        raise UnreadableImage("this TIFF is damaged: its header makes no sense")
    found: list[Page] = []
    parts = named_bytes = 0
    for entries in _chain(DirectoryReader(content), max_frames):
        page, lengths = _measured(entries)
        found.append(page)
        if max(lengths, default=0) > len(content):
            raise UnreadableImage("this TIFF is cut short")
        parts += len(lengths)
        if parts > MAX_PARTS:
            raise ImageTooLarge(
                f"this TIFF has more than {MAX_PARTS:,} strips or tiles: save it with larger ones"
            )
        named_bytes += sum(lengths)
        if named_bytes > MAX_SHARING * len(content):
            raise UnreadableImage(
                "this TIFF is damaged: its strips or tiles name the same bytes again and again"
            )
    if not found:
        raise UnreadableImage("this TIFF has no picture in it")
    return found


def _chain(reader: DirectoryReader, max_frames: int) -> Iterator[_Entries]:
    """Yield the directories of the pages.

    Raises ImageTooLarge for more than `max_frames`, UnreadableImage if one is not in the file or
    comes twice.
    """
    visited: set[int] = set()
    offset = reader.first_offset
    while offset != 0:
        if offset is None:
            raise UnreadableImage(CUT_SHORT)
        if offset in visited:
            raise UnreadableImage("this TIFF is damaged: its pages form a circle")
        if len(visited) == max_frames:
            raise ImageTooLarge(
                f"this TIFF has more than {max_frames:,} frames: raise VEIL_MAX_FRAMES"
            )
        visited.add(offset)
        entries, offset = _directory(reader, offset)
        yield entries


def _directory(reader: DirectoryReader, offset: int) -> tuple[_Entries, int | None]:
    """Return the entries of the directory at `offset`, and the offset of the next directory.

    The latter is 0 after the last directory, and None if the file ends before it.
    """
    directory = reader.directory(offset, TAGS)
    if directory is None:
        raise UnreadableImage(CUT_SHORT)
    if directory.entry_count > MAX_ENTRIES:
        raise UnreadableImage(
            f"this TIFF is damaged: a directory has {directory.entry_count:,} entries"
        )
    entries: dict[int, Entry] = {}
    for entry in directory.entries:
        if entry.tag in entries and entry.tag in UNIQUE:
            raise UnreadableImage("this TIFF is damaged: a directory has an entry twice")
        if entry.tag in DESCRIBING and entry.value_count > MAX_DESCRIBING_VALUES:
            raise UnreadableImage(
                f"this TIFF is damaged: an entry that describes it has {entry.value_count:,} values"
            )
        entries.setdefault(entry.tag, entry)
    return _Entries(reader, entries), directory.next_offset


def _measured(entries: _Entries) -> tuple[Page, tuple[int, ...]]:
    """Return the page that `entries` describe, and the lengths of its strips or tiles."""
    width, height = entries.first(Tag.IMAGE_WIDTH, 0), entries.first(Tag.IMAGE_LENGTH, 0)
    is_tiled = Tag.TILE_OFFSETS in entries
    if is_tiled:
        part_width, part_height = (
            entries.first(Tag.TILE_WIDTH, 0),
            entries.first(Tag.TILE_LENGTH, 0),
        )
    else:
        rows = max(entries.first(Tag.ROWS_PER_STRIP, height), 1)
        part_width, part_height = width, min(rows, height)
    if min(width, height, part_width, part_height) <= 0:
        raise UnreadableImage("this TIFF is damaged: a page or its tiles have no size")
    columns, rows = -(-width // part_width), -(-height // part_height)
    covered = columns * part_width * rows * part_height
    if covered > MAX_TILE_COVER * width * height + MIN_TILE_COVER:
        raise ImageTooLarge(
            f"tiles of {part_width} × {part_height} pixels are too large "
            f"for {width} × {height} pixels"
        )
    offsets, lengths = TILES if is_tiled else STRIPS
    count = max(entries.count(offsets), entries.count(lengths))
    _check_parts(count, columns * rows * _planes(entries))
    if entries.count(Tag.JPEG_TABLES) > MAX_JPEG_TABLES:
        raise UnreadableImage("this TIFF is damaged: its JPEG tables are too long")
    bits = max(entries.values(Tag.BITS_PER_SAMPLE), default=1)
    channels = max(entries.first(Tag.SAMPLES_PER_PIXEL, 1), entries.count(Tag.BITS_PER_SAMPLE))
    return Page(width, height, bits, channels), entries.values(lengths)


def _planes(entries: _Entries) -> int:
    """Return the number of planes, which have strips or tiles of their own."""
    if entries.first(Tag.PLANAR_CONFIGURATION, 1) != SEPARATE_PLANES:
        return 1
    return max(entries.first(Tag.SAMPLES_PER_PIXEL, 1), 1)


def _check_parts(count: int, needed: int) -> None:
    if count > needed:
        raise UnreadableImage(
            f"this TIFF is damaged: it has {count:,} strips or tiles where {needed:,} are needed"
        )
    if count > MAX_PARTS:
        raise ImageTooLarge(f"this TIFF has {count:,} strips or tiles, the limit is {MAX_PARTS:,}")
