"""Measure an AVIF without decoding it: the sizes that its boxes and its AV1 data state, and its
number of frames.

ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items), AV1 Bitstream & Decoding Process Specification,
5.3 and 5.5. A decoder reserves memory for the size in the AV1 data, whatever the boxes around it
say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tasks.errors import ImageTooLarge, UnreadableImage

CONTAINERS = {
    b"meta": 4,
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"iprp": 0,
    b"ipco": 0,
}
MOST_BOXES = 100_000
MOST_ITEMS = 4096  # grids have a few hundred at most
MOST_UNITS = 200_000  # open bitstream units that are looked at
SEQUENCE_HEADER = 1


@dataclass
class Measured:
    """The largest width × height that a part of the file states, and the number of frames."""

    width: int = 0
    height: int = 0
    frames: int = 1
    extents: list[tuple[int, int]] = field(default_factory=list)

    def enlarge(self, width: int, height: int) -> None:
        if width * height > self.width * self.height:
            self.width, self.height = width, height


class Truncated(Exception):
    """A box or a bitstream unit ends early."""


class _Reader:
    """Read numbers of whole bytes one after the other."""

    def __init__(self, content: bytes, at: int, end: int) -> None:
        self._content, self.at, self.end = content, at, end

    def number(self, size: int) -> int:
        if self.at + size > self.end:
            raise Truncated
        self.at += size
        return int.from_bytes(self._content[self.at - size : self.at])


def measure(content: bytes, max_frames: int) -> Measured:
    """Return the largest size and the number of frames of the AVIF `content`.

    Raises UnreadableImage for boxes that end early, ImageTooLarge for more parts than a picture
    needs.
    """
    measured, left = Measured(), [MOST_BOXES]
    try:
        _walk(content, 0, len(content), measured, left)
        units = MOST_UNITS
        for at, end in measured.extents:
            units = _read_units(content, at, min(end, len(content)), measured, units)
    except Truncated:
        raise UnreadableImage("this AVIF is damaged or cut short: a box in it ends early") from None
    if measured.frames > max_frames:
        raise ImageTooLarge(
            f"this AVIF has {measured.frames:,} frames, the limit is {max_frames:,}: raise VEIL_MAX_FRAMES"
        )
    if not measured.width:
        raise UnreadableImage("this AVIF is damaged: it states no size")
    return measured


def _walk(content: bytes, at: int, end: int, measured: Measured, left: list[int]) -> None:
    """Measure the boxes from `at` to `end`, and those in them; `left` counts down how many there
    may be.
    """
    pending = [(at, end)]
    while pending:
        at, end = pending.pop()
        samples: dict[bytes, tuple[int, int]] = {}
        while at + 8 <= end:
            left[0] -= 1
            if left[0] < 0:
                raise ImageTooLarge(f"this AVIF has more than {MOST_BOXES:,} boxes: save it anew")
            name, start, after = _box(content, at, end)
            if name in CONTAINERS:
                pending.append((start + CONTAINERS[name], after))
            elif name in MEASURES:
                MEASURES[name](content, start, after, measured)
            elif name in SAMPLE_TABLES:
                samples[name] = start, after
            at = after
        if samples:
            measured.extents.extend(_chunk_extents(content, samples, measured))


def _box(content: bytes, at: int, end: int) -> tuple[bytes, int, int]:
    """Return the name of the box at `at`, and where its body begins and ends."""
    size, name, start = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8], at + 8
    if size == 1:
        size, start = int.from_bytes(content[at + 8 : at + 16]), at + 16
    after = at + size if size else end
    if after < start or after > end:
        raise Truncated
    return name, start, after


def _item_size(content: bytes, at: int, end: int, measured: Measured) -> None:
    reader = _Reader(content, at + 4, end)
    measured.enlarge(reader.number(4), reader.number(4))


def _configuration(_content: bytes, at: int, end: int, measured: Measured) -> None:
    """Note the bitstream units behind the four bytes of an av1C box (AV1-ISOBMFF, 2.3.3)."""
    measured.extents.append((at + 4, end))


def _track_size(content: bytes, at: int, end: int, measured: Measured) -> None:
    reader = _Reader(content, at + 8, end)
    size = reader.number(4)
    kind = content[reader.at : reader.at + 4]
    if kind != b"av01" or size < 86:
        return
    reader = _Reader(content, at + 8 + 32, end)
    measured.enlarge(reader.number(2), reader.number(2))
    inner, stop = at + 8 + 86, min(at + 8 + size, end)
    while inner + 8 <= stop:
        length = int.from_bytes(content[inner : inner + 4])
        if length < 8 or inner + length > stop:
            return
        if content[inner + 4 : inner + 8] == b"av1C":
            measured.extents.append((inner + 12, inner + length))
        inner += length


def _track_header(content: bytes, at: int, end: int, measured: Measured) -> None:
    """Read width and height, 16.16 fixed point, which are the last eight bytes."""
    if end - at >= 84:
        measured.enlarge(
            *(int.from_bytes(content[place : place + 4]) >> 16 for place in (end - 8, end - 4))
        )


def _grid(content: bytes, at: int, end: int, measured: Measured) -> None:
    """Read the size of the picture that a grid's tiles make together, if this is one (23008-12,
    6.6.2.3).
    """
    if end - at < 8 or content[at] != 0 or content[at + 1] > 1:
        return
    wide = 4 if content[at + 1] else 2
    reader = _Reader(content, at + 4, end)
    if end - at >= 4 + 2 * wide:
        measured.enlarge(reader.number(wide), reader.number(wide))


def _items(content: bytes, at: int, end: int, measured: Measured) -> None:
    measured.extents.extend(_item_extents(content, at, end))


def _item_extents(content: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where the data of the items lies; data in `idat` is no AV1."""
    reader = _Reader(content, at, end)
    version = reader.number(1)
    reader.number(3)
    sizes = reader.number(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    items = reader.number(4 if version == 2 else 2)
    if items > MOST_ITEMS:
        raise ImageTooLarge(
            f"this AVIF has {items:,} items, the limit is {MOST_ITEMS:,}: save it as one picture"
        )
    for _ in range(items):
        reader.number(4 if version == 2 else 2)
        method = reader.number(2) & 15 if version else 0
        reader.number(2)
        base = reader.number(base_size)
        for _ in range(reader.number(2)):
            reader.number(index_size)
            start = base + reader.number(offset_size)
            length = reader.number(length_size)
            if method == 0:
                yield start, start + length if length else len(content)


def _chunk_extents(
    content: bytes, boxes: dict[bytes, tuple[int, int]], measured: Measured
) -> Iterator[tuple[int, int]]:
    """Yield where the samples of a track lie."""
    name = b"stco" if b"stco" in boxes else b"co64"
    if b"stsz" not in boxes or name not in boxes:
        return
    wide = 4 if name == b"stco" else 8
    places = _Reader(content, boxes[name][0] + 4, boxes[name][1])
    sizes = _Reader(content, boxes[b"stsz"][0] + 4, boxes[b"stsz"][1])
    common, samples = sizes.number(4), sizes.number(4)
    measured.frames = max(measured.frames, samples)
    if samples > MOST_ITEMS:
        raise ImageTooLarge(
            f"this AVIF has {samples:,} frames: raise VEIL_MAX_FRAMES, up to {MOST_ITEMS:,}"
        )
    chunks = places.number(4)
    if chunks > samples:
        raise UnreadableImage("this AVIF is damaged: it has more chunks than frames")
    runs: dict[int, int] = {}
    if b"stsc" in boxes:
        entries = _Reader(content, boxes[b"stsc"][0] + 4, boxes[b"stsc"][1])
        for _ in range(min(entries.number(4), chunks)):
            first, count = entries.number(4), entries.number(4)
            entries.number(4)
            runs[first] = count
    per_chunk, taken = 1, 0
    for chunk in range(1, chunks + 1):
        at = places.number(wide)
        per_chunk = runs.get(chunk, per_chunk)
        for _ in range(min(per_chunk, samples - taken)):
            length = common or sizes.number(4)
            yield at, at + length
            at, taken = at + length, taken + 1


MEASURES = {
    b"ispe": _item_size,
    b"idat": _grid,
    b"tkhd": _track_header,
    b"stsd": _track_size,
    b"av1C": _configuration,
    b"iloc": _items,
}
SAMPLE_TABLES = (b"stsz", b"stco", b"co64", b"stsc")


def _read_units(content: bytes, at: int, end: int, measured: Measured, units: int) -> int:
    """Enlarge `measured` by each sequence header among the units from `at` to `end`; return how
    many units are left.
    """
    while at < end:
        units -= 1
        if units < 0:
            raise ImageTooLarge(f"this AVIF has more than {MOST_UNITS:,} parts: save it anew")
        first = content[at]
        kind, has_extension, has_size = first >> 3 & 15, first >> 2 & 1, first >> 1 & 1
        if first & 0x80:
            break  # no unit: an item of another kind, as EXIF
        at += 1 + has_extension
        size = end - at
        if has_size:
            size, at = _leb128(content, at, end)
        if size > end - at:
            break
        if kind == SEQUENCE_HEADER:
            measured.enlarge(*_sequence_size(content[at : at + min(size, 1024)]))
        at += size
    return units


def _leb128(content: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at `at` (AV1, 4.10.5), and where it ends."""
    value = 0
    for number, part in enumerate(content[at : min(at + 8, end)]):
        value |= (part & 0x7F) << 7 * number
        if part < 0x80:
            return value, at + number + 1
    raise Truncated


class _Bits:
    """Read numbers of bits one after the other."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content), len(content) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise Truncated
        return self._value >> self._left & (1 << count) - 1

    def skip_uvlc(self) -> None:
        zeros = 0
        while not self.take(1):
            zeros += 1
        self.take(min(zeros, 32))


def _sequence_size(header: bytes) -> tuple[int, int]:
    """Return the largest width and height of a frame (5.5.1); 0 and 0 if the header ends early."""
    bits = _Bits(header)
    try:
        bits.take(3 + 1)
        if bits.take(1):  # reduced_still_picture_header
            bits.take(5)
        else:
            _skip_operating_points(bits)
        wide, high = bits.take(4) + 1, bits.take(4) + 1
        return bits.take(wide) + 1, bits.take(high) + 1
    except Truncated:
        return 0, 0


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = has_model = 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        if bits.take(1):  # equal_picture_interval
            bits.skip_uvlc()
        has_model = bits.take(1)
        if has_model:
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    has_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if has_model and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take(1):
            bits.take(4)
