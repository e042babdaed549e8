"""The directories of a TIFF are read in both byte orders and sizes, and never beyond the file."""

import struct

import pytest

from tasks.errors import UnreadableImage
from worker.images.tiff.directories import DirectoryReader, Tag

TAGS = (Tag.IMAGE_WIDTH, Tag.BITS_PER_SAMPLE, Tag.COMPRESSION, Tag.SUB_IFDS)
BYTE, ASCII, SHORT, LONG, LONG8 = 1, 2, 3, 4, 16


def tiff(order, big, entries, values=b""):
    """Return a TIFF with one directory of `entries` (tag, type, count, field), and `values`."""
    mark, pointer = (b"II" if order == "<" else b"MM"), ("Q" if big else "I")
    head = struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8)
    content = mark + head + struct.pack(order + ("Q" if big else "H"), len(entries))
    for tag, kind, count, field in entries:
        content += struct.pack(f"{order}HH{pointer}", tag, kind, count)
        content += field.ljust(8 if big else 4, b"\0")
    return content + bytes(8 if big else 4) + values


def directory_size(big, entries):
    return 16 + 8 + 20 * entries + 8 if big else 8 + 2 + 12 * entries + 4


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_values_are_read_from_the_entry_and_from_elsewhere(order, big):
    at = directory_size(big, 3)
    offset = struct.pack(order + ("Q" if big else "I"), at)
    entries = [
        (Tag.IMAGE_WIDTH, LONG, 1, struct.pack(order + "I", 70_000)),
        (Tag.BITS_PER_SAMPLE, SHORT, 5, offset),
        (Tag.X_RESOLUTION, LONG, 1, b"\1"),
    ]
    values = struct.pack(order + "5H", 8, 8, 16, 8, 8)
    reader = DirectoryReader(tiff(order, big, entries, values))
    directory = reader.directory(reader.first_offset, TAGS)
    assert (directory.entry_count, directory.next_offset) == (3, 0)
    assert directory.size == at - reader.first_offset - (8 if big else 4)
    width, bits = directory.entries
    assert (width.tag, reader.values(width), width.is_elsewhere) == (256, (70_000,), False)
    assert (bits.tag, reader.values(bits), bits.is_elsewhere) == (258, (8, 8, 16, 8, 8), True)


@pytest.mark.parametrize(("kind", "count"), [(ASCII, 1), (LONG, 3), (SHORT, 1 << 31), (99, 1)])
def test_values_of_another_type_or_beyond_the_end_are_none(kind, count):
    field = struct.pack("<I", directory_size(False, 1))
    reader = DirectoryReader(tiff("<", False, [(Tag.SUB_IFDS, kind, count, field)], bytes(8)))
    (entry,) = reader.directory(8, TAGS).entries
    assert reader.values(entry) == ()


def test_a_directory_that_is_empty_or_cut_short_is_none():
    content = tiff("<", False, [(Tag.IMAGE_WIDTH, LONG, 1, b"\1")])
    assert DirectoryReader(content).directory(8, TAGS).next_offset == 0
    assert DirectoryReader(content[:-1]).directory(8, TAGS).next_offset is None
    assert DirectoryReader(content[:-5]).directory(8, TAGS) is None
    assert DirectoryReader(content).directory(len(content), TAGS) is None
    assert DirectoryReader(tiff("<", False, [])).directory(8, TAGS) is None
    assert DirectoryReader(content[:6]).first_offset is None


def test_a_directory_that_repeats_its_entries_is_refused():
    """Without the limit, reading a large file would take minutes."""
    content = tiff("<", False, [(Tag.IMAGE_WIDTH, LONG, 1, b"\1")] * 9)
    with pytest.raises(UnreadableImage, match="repeats"):
        DirectoryReader(content).directory(8, TAGS)
