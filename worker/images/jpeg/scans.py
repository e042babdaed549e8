"""Check that every decoder shows the same pixels of a JPEG.

ITU-T T.81, Annexes B, F and G; T.871 (JFIF); T.872 (Adobe). libjpeg lets a later scan overwrite an
earlier one, guesses colours and tables that are not stated, and smooths missing parts. Other
decoders handle these cases in other ways, and show other pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.images.jpeg import markers
from worker.images.jpeg.segments import Segment, frame_size, parsed

BLOCK_SIDE = 8
COEFFICIENTS = 64
ARITHMETIC = (0xC9, 0xCA)  # frame headers of JPEGs without Huffman tables
DC, AC = 0, 1  # classes of Huffman tables
MAX_CONDITIONING_BYTES = 2 * 32  # of a DAC segment with a pair for each table (B.2.4.3)
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
FIRST_RESTART = 0xD0
# Limits of the standard (B.2.2, B.2.3).
MAX_SAMPLING_FACTOR = 4
MAX_SCAN_COMPONENTS = 4
MAX_MCU_BLOCKS = 10
# Pixels that blocks may have beyond an edge of the picture. MCUs of 16 pixels, the usual ones, have
# at most 15.
MAX_PADDING = 15
USUAL_NAMES = (b"\1\2\3", b"\0\1\2")  # the component identifiers of Y, Cb and Cr
ADOBE_TRANSFORM = 11  # the offset of the transform in Adobe's segment
NO_TRANSFORM, YCC, YCCK = 0, 1, 2  # transforms: none (RGB or CMYK), to YCbCr, to YCCK


class _DecodersDiffer(Exception):
    """Decoders may show different pixels."""


def _require(condition: bool) -> None:
    if not condition:
        raise _DecodersDiffer


@dataclass
class _Component:
    """One component: its sampling factors and its quantization table.

    `coded_bits` has for each coefficient the lowest bit that scans have coded, or None.
    """

    horizontal: int
    vertical: int
    table: int
    coded_bits: list[int | None] = field(default_factory=lambda: [None] * COEFFICIENTS)

    def code(self, first: int, last: int, high: int, low: int) -> None:
        """Note a scan of the coefficients `first` to `last` (G.1.1.1.2).

        A first scan codes coefficients that no scan has coded. Each refinement codes the next lower
        bit: `high` is the lowest bit so far, 0 in a first scan, and `low` is the new one.
        """
        for number in range(first, last + 1):
            _require(self.coded_bits[number] == (high or None))
            _require(not high or low == high - 1)
            self.coded_bits[number] = low


@dataclass(frozen=True)
class _ScanHeader:
    """The parameters of a scan (B.2.3)."""

    names: bytes
    tables: bytes
    first: int
    last: int
    high: int
    low: int


def all_agree(content: bytes) -> bool:
    """Return whether every decoder shows the same pixels of the reassembled JPEG `content`.

    This requires that each coefficient of each component is coded exactly once to its last bit, in
    the order of T.81, with tables that are present and that no later table replaces, that no table
    is replaced before it is used, and that the colours are stated in a way that has only one
    reading.
    """
    try:
        _Decoder(parsed(content)).check()
    except (_DecodersDiffer, IndexError):
        return False
    return True


def ends_with_its_blocks(content: bytes) -> bool:
    """Return whether the blocks of the JPEG `content` reach at most MAX_PADDING beyond its edges.

    `content` is reassembled. Nobody sees the pixels beyond the edges until the frame header is
    changed. Encoders repeat the edge in them, but a file that was cropped without being compressed
    again holds there what was cropped, which may be part of a face.
    """
    frame = next(
        segment.body for segment in parsed(content) if segment.marker in markers.FRAME_HEADERS
    )
    height, width = frame_size(frame)
    sampling_factors = frame[7::3]
    mcu_width = BLOCK_SIDE * max(factors >> 4 for factors in sampling_factors)
    mcu_height = BLOCK_SIDE * max(factors & 15 for factors in sampling_factors)
    return max(-width % mcu_width, -height % mcu_height) <= MAX_PADDING


def mcu_count(frame: Segment) -> int:
    """Return the number of MCUs of a scan of all components of `frame`, a frame header (A.2)."""
    height, width = frame_size(frame.body)
    mcu_width, mcu_height = _mcu_size(frame.body)
    return -(-width // mcu_width) * -(-height // mcu_height)


def with_mcus(frame: Segment, count: int, max_side: int) -> Segment | None:
    """Return the frame header `frame` with the size of `count` MCUs, in whole rows or in one.

    Returns None if one row of so many MCUs is wider than `max_side`.
    """
    mcu_width, mcu_height = _mcu_size(frame.body)
    columns = -(-frame_size(frame.body)[1] // mcu_width)
    if count % columns:
        columns = count
    width, height = columns * mcu_width, count // columns * mcu_height
    if width > max_side:
        return None
    size = height.to_bytes(2) + width.to_bytes(2)
    return Segment(frame.marker, frame.body[:1] + size + frame.body[markers.FRAME_SIZE_END :])


def _mcu_size(frame: bytes) -> tuple[int, int]:
    """Return width and height of an MCU of all components. That of one component is a block."""
    factors = frame[7::3]
    if len(factors) == 1:
        return BLOCK_SIDE, BLOCK_SIDE
    horizontal = max(factor >> 4 for factor in factors)
    vertical = max(factor & 15 for factor in factors)
    return BLOCK_SIDE * horizontal, BLOCK_SIDE * vertical


class _Decoder:
    """Follows the segments of a JPEG as a decoder does, without decoding pixels.

    Its methods raise _DecodersDiffer, or IndexError for a segment that ends early.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._frame = next(
            segment for segment in segments if segment.marker in markers.FRAME_HEADERS
        )
        body = self._frame.body
        count = body[5]
        _require(len(body) == 6 + 3 * count)
        self._names, factors, tables = body[6::3], body[7::3], body[8::3]
        self._components = {
            name: _Component(factor >> 4, factor & 15, table)
            for name, factor, table in zip(self._names, factors, tables, strict=True)
        }
        # The Huffman tables by class and destination, and those that no scan has used yet.
        self._huffman: dict[tuple[int, int], bytes] = {}
        self._unused: set[tuple[int, int]] = set()
        self._quantization: dict[int, bytes] = {}
        self._restart_interval = 0

    def check(self) -> None:
        """Raise _DecodersDiffer or IndexError if decoders may show different pixels."""
        self._check_components()
        self._check_colours()
        for segment in self._segments:
            if segment.marker == markers.DHT:
                self._define_huffman(segment.body)
            elif segment.marker == markers.DQT:
                self._define_quantization(segment.body)
            elif segment.marker == markers.DAC:
                _require(self._frame.marker in ARITHMETIC)
                _require(len(segment.body) <= MAX_CONDITIONING_BYTES)
            elif segment.marker == markers.DRI:
                _require(len(segment.body) == 2)
                self._restart_interval = int.from_bytes(segment.body)
            elif segment.marker == markers.SOS:
                self._check_scan(segment)
        for component in self._components.values():
            _require(all(bits == 0 for bits in component.coded_bits))

    def _check_components(self) -> None:
        _require(len(self._components) == len(self._names))
        for component in self._components.values():
            _require(1 <= component.horizontal <= MAX_SAMPLING_FACTOR)
            _require(1 <= component.vertical <= MAX_SAMPLING_FACTOR)

    def _check_colours(self) -> None:
        """Require that the markers say which colours the components are.

        One component is gray, three are YCbCr or RGB, four are CMYK or YCCK.
        """
        is_jfif = any(segment.marker == markers.APP0 for segment in self._segments)
        adobe = [segment for segment in self._segments if segment.marker == markers.APP14]
        transforms = [segment.body[ADOBE_TRANSFORM] for segment in adobe]
        if len(self._names) == 3:
            is_rgb = transforms == [NO_TRANSFORM] and not is_jfif
            _require(transforms in ([], [YCC]) or is_rgb)
            # Some decoders take the colour space from the names, even if a marker states another.
            _require(self._names in USUAL_NAMES or (self._names == b"RGB" and is_rgb))
        elif len(self._names) == 4:
            _require(transforms in ([NO_TRANSFORM], [YCCK]))
        else:
            _require(len(self._names) == 1)

    def _define_huffman(self, body: bytes) -> None:
        """Note the tables of a DHT segment (B.2.4.2).

        A table that another replaces before a scan uses it could hold anything.
        """
        at = 0
        while at < len(body):
            end = at + 17 + sum(body[at + 1 : at + 17])
            table, definition = (body[at] >> 4, body[at] & 15), body[at + 1 : end]
            _require(table not in self._unused or self._huffman[table] == definition)
            self._huffman[table] = definition
            self._unused.add(table)
            at = end
        _require(at == len(body))

    def _define_quantization(self, body: bytes) -> None:
        """Note the tables of a DQT segment (B.2.4.1).

        A value of 0 would hide coefficients that stay in the file. T.81 allows replacing a table
        between scans, but some decoders dequantize at the end, with the last table. A table that is
        replaced before the first scan could hold anything.
        """
        at = 0
        while at < len(body):
            size = 1 + (body[at] >> 4)  # bytes of a value
            end = at + 1 + COEFFICIENTS * size
            table, values = body[at] & 15, body[at:end]
            _require(all(any(values[one : one + size]) for one in range(1, len(values), size)))
            _require(self._quantization.get(table, values) == values)
            self._quantization[table] = values
            at = end
        _require(at == len(body))

    def _check_scan(self, scan: Segment) -> None:
        header = _scan_header(scan.body)
        places = [self._names.find(name) for name in header.names]
        _require(places[0] >= 0 and places == sorted(set(places)))
        components = [self._components[name] for name in header.names]
        if len(components) > 1:
            blocks = sum(component.horizontal * component.vertical for component in components)
            _require(blocks <= MAX_MCU_BLOCKS)
        self._check_coefficients(header)
        self._check_tables(header, components)
        for component in components:
            is_dc = header.first == 0
            _require(is_dc or component.coded_bits[0] is not None)  # DC comes first (G.1.1.1.1)
            component.code(header.first, header.last, header.high, header.low)
        self._check_restarts(scan.scan, components)

    def _check_coefficients(self, header: _ScanHeader) -> None:
        """Require a range of coefficients and bits that the kind of the JPEG has (B.2.3)."""
        if self._frame.marker in markers.PROGRESSIVE:
            is_dc = header.first == header.last == 0
            is_ac = 1 <= header.first <= header.last < COEFFICIENTS
            _require(is_dc or (is_ac and len(header.names) == 1))
        else:
            coded = header.first, header.last, header.high, header.low
            _require(coded == (0, COEFFICIENTS - 1, 0, 0))

    def _check_tables(self, header: _ScanHeader, components: Sequence[_Component]) -> None:
        """Require that the tables of the scan are present. Refinements of DC need none."""
        _require(all(component.table in self._quantization for component in components))
        if self._frame.marker in ARITHMETIC:
            return
        needed = []
        for table in header.tables:
            if header.first == 0 and header.high == 0:
                needed.append((DC, table >> 4))
            if header.last > 0:
                needed.append((AC, table & 15))
        _require(all(table in self._huffman for table in needed))
        self._unused.difference_update(needed)

    def _check_restarts(self, data: bytes, components: Sequence[_Component]) -> None:
        """Require a restart marker after each interval but the last, numbered in order (E.1.4)."""
        expected = 0
        if self._restart_interval:
            expected = -(-self._mcus(components) // self._restart_interval) - 1
        restarts = [bytes([FIRST_RESTART + number % 8]) for number in range(expected)]
        _require(RESTART.findall(data) == restarts)

    def _mcus(self, components: Sequence[_Component]) -> int:
        """Return the number of MCUs of a scan of `components` (A.2)."""
        height, width = frame_size(self._frame.body)
        horizontal = max(component.horizontal for component in self._components.values())
        vertical = max(component.vertical for component in self._components.values())
        if len(components) > 1:
            mcu_width, mcu_height = BLOCK_SIDE * horizontal, BLOCK_SIDE * vertical
            return -(-width // mcu_width) * -(-height // mcu_height)
        (component,) = components
        component_width = -(-width * component.horizontal // horizontal)
        component_height = -(-height * component.vertical // vertical)
        return -(-component_width // BLOCK_SIDE) * -(-component_height // BLOCK_SIDE)


def _scan_header(body: bytes) -> _ScanHeader:
    count = body[0]
    _require(1 <= count <= MAX_SCAN_COMPONENTS and len(body) == 4 + 2 * count)
    names, tables = body[1:-3:2], body[2:-3:2]
    first, last, approximation = body[-3:]
    return _ScanHeader(names, tables, first, last, approximation >> 4, approximation & 15)
