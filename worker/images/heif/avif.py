"""Measure an AVIF without decoding it, from its boxes and its AV1 data.

ISO/IEC 14496-12 (boxes); ISO/IEC 23008-12 (items); AV1-ISOBMFF; AV1 Bitstream & Decoding Process
Specification, 5.3 and 5.5. A decoder reserves memory for the size in the AV1 data, whatever size
the boxes state.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage

FULL_BOX_BYTES = 4  # version and flags, at the beginning of a full box (14496-12, 4.2)
# Boxes that hold boxes, and the number of bytes before the first of these.
CONTAINERS = {
    b"meta": FULL_BOX_BYTES,
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"iprp": 0,
    b"ipco": 0,
}
SAMPLE_TABLES = (b"stsz", b"stco", b"co64", b"stsc")
# The sample entry of a picture track, from its length on (14496-12, 12.1.3).
SAMPLE_ENTRY_SIZE_OFFSET = 32
SAMPLE_ENTRY_BYTES = 86
AV1_CONFIGURATION_BYTES = 4  # the part of an av1C box before its units (AV1-ISOBMFF, 2.3.3)
MIN_TRACK_HEADER_BYTES = 84  # a track header of version 0 (14496-12, 8.3.2)
IN_FILE = 0  # the construction method of items whose offsets are in the file (14496-12, 8.11.3)
SEQUENCE_HEADER = 1  # the type of a bitstream unit (AV1, 6.2.2)
MAX_SEQUENCE_HEADER_BYTES = 1024  # the fields up to the size need fewer

# The colr box that names colours: primaries, transfer and matrix of H.273 follow, and the range
# (14496-12, 12.1.5).
NAMED_COLOUR, NAMED_COLOUR_BYTES = b"colrnclx", 15
UNSPECIFIED = 2
# The box that crops a picture: width, height, and the offset of its centre from that of the whole
# picture across and down, each a numerator and a denominator (14496-12, 12.1.4).
CLEAN_APERTURE, CLEAN_APERTURE_BYTES = b"\0\0\0\x28clap", 32
HIGH, PROFESSIONAL = 1, 2  # profiles of AV1

MAX_BOXES = 100_000
MAX_ITEMS = 4096  # grids have a few hundred at most
MAX_EXTENTS = 100_000  # pieces of items and samples; each takes 100 bytes of memory
MAX_UNITS = 200_000  # bitstream units that are read


@dataclass
class Measured:
    """The largest width × height that a part of the file states, and the number of frames.

    `extents` are the start and the end of each part that may hold AV1 data.
    """

    width: int = 0
    height: int = 0
    frames: int = 1
    extents: list[tuple[int, int]] = field(default_factory=list)

    def enlarge(self, width: int, height: int) -> None:
        if width * height > self.width * self.height:
            self.width, self.height = width, height

    def add(self, extents: Iterable[tuple[int, int]]) -> None:
        """Add `extents`. Raises ImageTooLarge when there are too many."""
        for extent in extents:
            if len(self.extents) == MAX_EXTENTS:
                raise ImageTooLarge(
                    f"the data of this AVIF or HEIC is in more than {MAX_EXTENTS:,} pieces: "
                    "save it again"
                )
            self.extents.append(extent)


class Truncated(Exception):
    """A box or a bitstream unit ends early."""


class _Budget:
    """The number of parts that a file may have."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit, self._name = limit, name
        self._remaining = limit

    def spend(self) -> None:
        """Count one part. Raises ImageTooLarge when there are too many."""
        self._remaining -= 1
        if self._remaining < 0:
            raise ImageTooLarge(
                f"this AVIF has more than {self._limit:,} {self._name}: save it again"
            )


class _Reader:
    """Reads big-endian numbers of whole bytes one after the other."""

    def __init__(self, content: bytes, at: int, end: int) -> None:
        self._content, self.at, self.end = content, at, end

    def number(self, size: int) -> int:
        """Return the number in the next `size` bytes. Raises Truncated at the end."""
        if self.at + size > self.end:
            raise Truncated
        self.at += size
        return int.from_bytes(self._content[self.at - size : self.at])


def measure(content: bytes, max_frames: int) -> Measured:
    """Return the largest size and the number of frames of the AVIF `content`.

    Raises UnreadableImage for boxes that end early, ImageTooLarge for more parts than a picture
    needs.
    """
    measured = Measured()
    try:
        _measure_boxes(content, measured)
        units = _Budget(MAX_UNITS, "parts")
        for start, end in measured.extents:
            _measure_units(content, start, min(end, len(content)), measured, units)
    except Truncated:
        raise UnreadableImage("this AVIF is damaged or cut short: a box in it ends early") from None
    if measured.frames > max_frames:
        raise ImageTooLarge(
            f"this AVIF has {measured.frames:,} frames, the limit is {max_frames:,}: "
            "raise VEIL_MAX_FRAMES"
        )
    if not measured.width:
        raise UnreadableImage("this AVIF is damaged: it states no size")
    return measured


def measure_boxes(content: bytes) -> Measured:
    """Return the largest size that a box of `content` states, a HEIF file of any codec.

    Raises UnreadableImage for boxes that end early or state no size, ImageTooLarge for too many.
    """
    measured = Measured()
    try:
        _measure_boxes(content, measured)
    except Truncated:
        raise UnreadableImage("this HEIF is damaged or cut short: a box in it ends early") from None
    if not measured.width or any(end > len(content) for _, end in measured.extents):
        raise UnreadableImage("this HEIF is damaged or cut short: parts of it are missing")
    return measured


def colour(content: bytes) -> tuple[int, int] | None:
    """Return the colour primaries and the transfer characteristic of the AVIF `content` (H.273).

    They are those of the first colr box, or of the AV1 data without such a box. Returns None where
    they are not stated.
    """
    at = content.find(NAMED_COLOUR)
    if 0 <= at <= len(content) - NAMED_COLOUR_BYTES:
        primaries, transfer = struct.unpack_from(">HH", content, at + len(NAMED_COLOUR))
    else:
        measured = Measured()
        _measure_boxes(content, measured)
        primaries, transfer = _coded_colour(content, measured)
    return None if UNSPECIFIED in (primaries, transfer) else (primaries, transfer)


def with_colour(content: bytes, colour: tuple[int, int]) -> bytes:
    """Return the AVIF `content` with other primaries and another transfer in its colr boxes.

    The matrix stays: it says how the pixels were encoded.
    """
    parts = content.split(NAMED_COLOUR)
    stated = struct.pack(">HH", *colour)
    return NAMED_COLOUR.join([parts[0], *(stated + part[len(stated) :] for part in parts[1:])])


def crop(content: bytes, width: int, height: int) -> tuple[slice, slice] | None:
    """Return the rows and columns that the AVIF `content`, of this size, shows; None for all.

    Decoders leave the cropping to viewers. Raises UnsupportedImage for several such properties, and
    for one that is no part of the picture in whole pixels.
    """
    stated: set[bytes] = set()
    at = content.find(CLEAN_APERTURE)
    while at >= 0 and len(stated) < 2:
        at += len(CLEAN_APERTURE)
        stated.add(content[at : at + CLEAN_APERTURE_BYTES])
        at = content.find(CLEAN_APERTURE, at)
    if not stated:
        return None
    try:
        (values,) = (struct.unpack(">IIIIiIiI", one) for one in stated)
        shown_width, shown_height, right, down = (
            Fraction(*values[at : at + 2]) for at in range(0, len(values), 2)
        )
    except (ValueError, struct.error, ZeroDivisionError):
        raise UnsupportedImage(
            "this AVIF is cropped by properties in a way that is not handled: save it again"
        ) from None
    left, top = (width - shown_width) / 2 + right, (height - shown_height) / 2 + down
    edges = top, top + shown_height, left, left + shown_width
    is_part = 0 <= top < edges[1] <= height and 0 <= left < edges[3] <= width
    if not is_part or any(edge.denominator != 1 for edge in edges):
        raise UnsupportedImage(
            "this AVIF is cropped to something that is no part of it in whole pixels: save it again"
        )
    first_row, last_row, first_column, last_column = map(int, edges)
    return slice(first_row, last_row), slice(first_column, last_column)


def _coded_colour(content: bytes, measured: Measured) -> tuple[int, int]:
    """Return the colour in the first sequence header, or UNSPECIFIED for both."""
    for start, end in measured.extents:
        at = start
        while at < min(end, len(content)):
            header, at = content[at], at + 1 + (content[at] >> 2 & 1)
            size = end - at
            if header & 2:
                size, at = leb128(content, at, end)
            if header & 0x80 or size > end - at:
                break
            if header >> 3 & 15 == SEQUENCE_HEADER:
                return _sequence_colour(content[at : at + min(size, MAX_SEQUENCE_HEADER_BYTES)])
            at += size
    return UNSPECIFIED, UNSPECIFIED


def _measure_boxes(content: bytes, measured: Measured) -> None:
    """Measure all boxes and the boxes inside them."""
    boxes = _Budget(MAX_BOXES, "boxes")
    pending = [(0, len(content))]
    while pending:
        at, end = pending.pop()
        sample_tables: dict[bytes, tuple[int, int]] = {}
        while at + 8 <= end:
            boxes.spend()
            name, body, at = box(content, at, end)
            if name in CONTAINERS:
                pending.append((body + CONTAINERS[name], at))
            elif name in MEASURES:
                MEASURES[name](content, body, at, measured)
            elif name in SAMPLE_TABLES:
                sample_tables[name] = body, at
        if sample_tables:
            measured.add(_sample_extents(content, sample_tables, measured))


def box(content: bytes, at: int, end: int) -> tuple[bytes, int, int]:
    """Return the name of the box at `at`, and where its body begins and ends (14496-12, 4.2)."""
    length, name, body = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8], at + 8
    if length == 1:
        length, body = int.from_bytes(content[at + 8 : at + 16]), at + 16
    after = at + length if length else end
    if after < body or after > end:
        raise Truncated
    return name, body, after


def _measure_item(content: bytes, at: int, end: int, measured: Measured) -> None:
    """Read the size of an item from its ispe property (23008-12, 6.5.3)."""
    reader = _Reader(content, at + FULL_BOX_BYTES, end)
    measured.enlarge(reader.number(4), reader.number(4))


def _measure_grid(content: bytes, at: int, end: int, measured: Measured) -> None:
    """Read the size of the picture that the tiles of a grid form (23008-12, 6.6.2.3).

    An idat box may hold other data, which has another first byte.
    """
    if end - at < 8 or content[at] != 0 or content[at + 1] > 1:
        return
    number_bytes = 4 if content[at + 1] else 2
    if end - at >= 4 + 2 * number_bytes:
        reader = _Reader(content, at + 4, end)
        measured.enlarge(reader.number(number_bytes), reader.number(number_bytes))


def _measure_track_header(content: bytes, at: int, end: int, measured: Measured) -> None:
    """Read width and height, 16.16 fixed point: the last eight bytes (14496-12, 8.3.2)."""
    if end - at >= MIN_TRACK_HEADER_BYTES:
        reader = _Reader(content, end - 8, end)
        measured.enlarge(reader.number(4) >> 16, reader.number(4) >> 16)


def _measure_sample_entry(content: bytes, at: int, end: int, measured: Measured) -> None:
    """Read the size and the AV1 data in the first sample entry of a track (14496-12, 8.5.2)."""
    entry = at + FULL_BOX_BYTES + 4  # after the number of entries
    reader = _Reader(content, entry, end)
    length = reader.number(4)
    name = content[reader.at : reader.at + 4]
    if name != b"av01" or length < SAMPLE_ENTRY_BYTES:
        return
    reader = _Reader(content, entry + SAMPLE_ENTRY_SIZE_OFFSET, end)
    measured.enlarge(reader.number(2), reader.number(2))
    box, stop = entry + SAMPLE_ENTRY_BYTES, min(entry + length, end)
    while box + 8 <= stop:
        box_length = int.from_bytes(content[box : box + 4])
        if box_length < 8 or box + box_length > stop:
            return
        if content[box + 4 : box + 8] == b"av1C":
            measured.add([(box + 8 + AV1_CONFIGURATION_BYTES, box + box_length)])
        box += box_length


def _note_configuration(_content: bytes, at: int, end: int, measured: Measured) -> None:
    """Note the bitstream units in an av1C box."""
    measured.add([(at + AV1_CONFIGURATION_BYTES, end)])


def _note_items(content: bytes, at: int, end: int, measured: Measured) -> None:
    """Note the data of all items, from an iloc box."""
    measured.add((start, stop) for _, start, stop in items(content, at, end))


def items(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, the start and the end of each extent of each item (14496-12, 8.11.3).

    Data in an idat box is left out: it is no AV1.
    """
    reader = _Reader(content, at, end)
    version = reader.number(1)
    reader.number(3)  # flags
    sizes = reader.number(2)
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if version else 0
    id_bytes = 4 if version == 2 else 2
    count = reader.number(id_bytes)
    if count > MAX_ITEMS:
        raise ImageTooLarge(
            f"this AVIF has {count:,} items, the limit is {MAX_ITEMS:,}: save it as one picture"
        )
    for _ in range(count):
        item = reader.number(id_bytes)
        method = reader.number(2) & 15 if version else IN_FILE
        reader.number(2)  # data reference
        base = reader.number(base_bytes)
        extents = reader.number(2)
        if extents > 1 and not index_bytes + offset_bytes + length_bytes:
            raise UnreadableImage("this AVIF is damaged: an item has many pieces at the same place")
        for _ in range(extents):
            reader.number(index_bytes)
            start = base + reader.number(offset_bytes)
            length = reader.number(length_bytes)
            if method == IN_FILE:
                yield item, start, start + length if length else len(content)


def _sample_extents(
    content: bytes, boxes: dict[bytes, tuple[int, int]], measured: Measured
) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each sample of a track (14496-12, 8.7).

    `boxes` has the start and the end of the bodies of the track's sample tables.
    """

    def reader(name: bytes) -> _Reader:
        start, end = boxes[name]
        return _Reader(content, start + FULL_BOX_BYTES, end)

    offset_table, offset_bytes = (b"stco", 4) if b"stco" in boxes else (b"co64", 8)
    if b"stsz" not in boxes or offset_table not in boxes:
        return
    offsets, sizes = reader(offset_table), reader(b"stsz")
    common_size, samples = sizes.number(4), sizes.number(4)
    measured.frames = max(measured.frames, samples)
    if samples > MAX_ITEMS:
        raise ImageTooLarge(
            f"this AVIF has {samples:,} frames: raise VEIL_MAX_FRAMES, up to {MAX_ITEMS:,}"
        )
    chunks = offsets.number(4)
    if chunks > samples:
        raise UnreadableImage("this AVIF is damaged: it has more chunks than frames")
    runs = _chunk_runs(reader(b"stsc"), chunks) if b"stsc" in boxes else {}
    samples_per_chunk = 1
    for chunk in range(1, chunks + 1):
        start = offsets.number(offset_bytes)
        samples_per_chunk = runs.get(chunk, samples_per_chunk)
        for _ in range(min(samples_per_chunk, samples)):
            length = common_size or sizes.number(4)
            yield start, start + length
            start += length
            samples -= 1


def _chunk_runs(entries: _Reader, chunks: int) -> dict[int, int]:
    """Return the samples per chunk of each run of chunks, by its first chunk (14496-12, 8.7.4)."""
    runs: dict[int, int] = {}
    for _ in range(min(entries.number(4), chunks)):
        first, samples = entries.number(4), entries.number(4)
        entries.number(4)  # sample description
        runs[first] = samples
    return runs


MEASURES = {
    b"ispe": _measure_item,
    b"idat": _measure_grid,
    b"tkhd": _measure_track_header,
    b"stsd": _measure_sample_entry,
    b"av1C": _note_configuration,
    b"iloc": _note_items,
}


def _measure_units(content: bytes, at: int, end: int, measured: Measured, units: _Budget) -> None:
    """Enlarge `measured` by each sequence header among the units from `at` to `end` (AV1, 5.3)."""
    while at < end:
        units.spend()
        header = content[at]
        is_forbidden, unit_type = header & 0x80, header >> 3 & 15
        has_extension, has_size = header >> 2 & 1, header >> 1 & 1
        if is_forbidden:
            break  # an item of another kind, such as EXIF
        at += 1 + has_extension
        size = end - at
        if has_size:
            size, at = leb128(content, at, end)
        if size > end - at:
            break
        if unit_type == SEQUENCE_HEADER:
            header_bytes = content[at : at + min(size, MAX_SEQUENCE_HEADER_BYTES)]
            measured.enlarge(*_sequence_size(header_bytes))
        at += size


def leb128(content: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends (AV1, 4.10.5)."""
    value = 0
    for number, part in enumerate(content[at : min(at + 8, end)]):
        value |= (part & 0x7F) << 7 * number
        if part < 0x80:
            return value, at + number + 1
    raise Truncated


class _Bits:
    """Reads numbers of bits one after the other. Its methods raise Truncated at the end."""

    def __init__(self, content: bytes) -> None:
        self._value, self._remaining = int.from_bytes(content), len(content) * 8

    def take(self, count: int) -> int:
        self._remaining -= count
        if self._remaining < 0:
            raise Truncated
        return self._value >> self._remaining & (1 << count) - 1

    def skip_uvlc(self) -> None:
        """Skip a number of variable length (AV1, 4.10.3)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        self.take(min(zeros, 32))


def _sequence_size(header: bytes) -> tuple[int, int]:
    """Return the largest width and height of a frame, or 0 and 0 if the header ends early.

    AV1, 5.5.1.
    """
    try:
        _, _, width, height = _sequence_start(_Bits(header))
        return width, height
    except Truncated:
        return 0, 0


def _sequence_start(bits: _Bits) -> tuple[int, bool, int, int]:
    """Read a sequence header up to the size: its profile, whether it is reduced, and the size.

    The size is the largest width and height of a frame. AV1, 5.5.1. Raises Truncated.
    """
    profile = bits.take(3)
    bits.take(1)  # still_picture
    is_reduced = bool(bits.take(1))
    if is_reduced:
        bits.take(5)  # seq_level_idx
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return profile, is_reduced, bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _sequence_colour(header: bytes) -> tuple[int, int]:
    """Return primaries and transfer in a sequence header, UNSPECIFIED if not stated (AV1, 5.5)."""
    bits = _Bits(header)
    try:
        profile, is_reduced, _, _ = _sequence_start(bits)
        _skip_tools(bits, is_reduced)
        is_deep = bits.take(1)
        if profile == PROFESSIONAL and is_deep:
            bits.take(1)  # twelve_bit
        if profile != HIGH:
            bits.take(1)  # mono_chrome
        is_described = bits.take(1)
        return (bits.take(8), bits.take(8)) if is_described else (UNSPECIFIED, UNSPECIFIED)
    except Truncated:
        return UNSPECIFIED, UNSPECIFIED


def _skip_tools(bits: _Bits, is_reduced: bool) -> None:
    """Skip the fields from frame_id_numbers_present_flag to enable_restoration (AV1, 5.5.1)."""
    if not is_reduced and bits.take(1):
        bits.take(4 + 3)  # the lengths of frame identifiers
    bits.take(3)  # use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    if not is_reduced:
        bits.take(4)  # enable_interintra_compound to enable_dual_filter
        has_order_hint = bits.take(1)
        if has_order_hint:
            bits.take(2)  # enable_jnt_comp, enable_ref_frame_mvs
        chooses_screen_content = bits.take(1)
        forces_screen_content = 2 if chooses_screen_content else bits.take(1)
        if forces_screen_content and not bits.take(1):  # seq_choose_integer_mv
            bits.take(1)  # seq_force_integer_mv
        if has_order_hint:
            bits.take(3)  # order_hint_bits
    bits.take(3)  # enable_superres, enable_cdef, enable_restoration


def _skip_operating_points(bits: _Bits) -> None:
    """Skip the fields from timing_info_present_flag to the operating points (AV1, 5.5.1)."""
    delay_bits = has_decoder_model = 0
    has_timing_info = bits.take(1)
    if has_timing_info:
        bits.take(32 + 32)  # num_units_in_display_tick, time_scale
        is_equal_interval = bits.take(1)
        if is_equal_interval:
            bits.skip_uvlc()
        has_decoder_model = bits.take(1)
        if has_decoder_model:
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)  # num_units_in_decoding_tick, lengths of two times
    has_initial_delay = bits.take(1)
    operating_points = bits.take(5) + 1
    for _ in range(operating_points):
        bits.take(12)  # operating_point_idc
        level = bits.take(5)
        if level > 7:
            bits.take(1)  # seq_tier
        if has_decoder_model and bits.take(1):
            bits.take(2 * delay_bits + 1)  # decoder and encoder delay, low_delay_mode_flag
        if has_initial_delay and bits.take(1):
            bits.take(4)
