"""The scans of a JPEG: whether every decoder shows the same pixels (ITU-T T.81, Annexes B, F and G;
T.871; T.872).

libjpeg lets a later scan write over an earlier one, guesses colours and tables that are not stated,
and smooths what was left out. Other decoders do otherwise, and show something else.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.images import jpeg
from worker.images.jpeg import Segment

COEFFICIENTS = 64
ARITHMETIC = (0xC9, 0xCA)  # frames without Huffman tables
DC, AC = 0, 1  # classes of Huffman tables
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
MOST_BLOCKS = 10  # of one MCU
MOST_BEYOND = (
    15  # pixels that blocks may have beyond an edge: what MCUs of 16, the usual ones, have at most
)
USUAL_NAMES = (b"\1\2\3", b"\0\1\2")  # of Y, Cb and Cr
ADOBE_TRANSFORM = 11  # where APP14 states the transform: none (RGB or CMYK), to YCbCr, or to YCCK
NONE, YCC, YCCK = 0, 1, 2


class _Differs(Exception):
    """Decoders may show something else."""


@dataclass
class _Component:
    """One component: its sampling factors, its table, and the lowest bit of each coefficient that
    scans have coded.
    """

    across: int
    down: int
    table: int
    bits: list[int | None] = field(default_factory=lambda: [None] * COEFFICIENTS)


def all_agree(content: bytes) -> bool:
    """Return whether every decoder shows the same pixels of the reassembled JPEG `content`.

    Each coefficient of each component is coded exactly once to its last bit, in the order of T.81,
    with tables that are there and that no later one replaces, and the colours are stated so that
    there is one way to read them.
    """
    try:
        _Script(jpeg.parsed(content)).check()
    except (_Differs, IndexError):
        return False
    return True


def ends_with_its_blocks(content: bytes) -> bool:
    """Return whether the blocks of the reassembled JPEG `content` have at most MOST_BEYOND pixels
    beyond its edges.

    Nobody sees these until the frame header is changed. Encoders repeat the edge in them; a file
    that was cut without being compressed anew has there what was cut off, which may be part of a
    face.
    """
    frame = next(segment for segment in jpeg.parsed(content) if segment.marker in jpeg.FRAMES).body
    height, width, factors = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5]), frame[7::3]
    across, down = max(each >> 4 for each in factors), max(each & 15 for each in factors)
    return max(-width % (8 * across), -height % (8 * down)) <= MOST_BEYOND


def _agree(condition: bool) -> None:
    if not condition:
        raise _Differs


class _Script:
    """The segments of a JPEG, followed as a decoder does."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._frame = next(segment for segment in segments if segment.marker in jpeg.FRAMES)
        count = self._frame.body[5]
        _agree(len(self._frame.body) == 6 + 3 * count)
        self._names = self._frame.body[6::3]
        rest = zip(self._frame.body[7::3], self._frame.body[8::3], strict=True)
        found = [_Component(factors >> 4, factors & 15, table) for factors, table in rest]
        self._components = dict(zip(self._names, found, strict=True))
        self._huffman: set[tuple[int, int]] = set()  # class and destination
        self._quantization: dict[int, bytes] = {}
        self._interval = 0

    def check(self) -> None:
        """Raise _Differs, or IndexError for a segment that ends early, where decoders may not
        agree.
        """
        _agree(len(self._components) == len(self._names))
        _agree(
            all(
                1 <= factor <= 4
                for each in self._components.values()
                for factor in (each.across, each.down)
            )
        )
        self._check_colours()
        scans = 0
        for segment in self._segments:
            if segment.marker == jpeg.DHT:
                self._define_huffman(segment.body)
            elif segment.marker == jpeg.DQT:
                self._define_quantization(segment.body, scans > 0)
            elif segment.marker == jpeg.DRI:
                _agree(len(segment.body) == 2)
                self._interval = int.from_bytes(segment.body)
            elif segment.marker == jpeg.SOS:
                self._check_scan(segment)
                scans += 1
        _agree(all(bits == 0 for each in self._components.values() for bits in each.bits))

    def _check_colours(self) -> None:
        """Gray has one reading. Of three components, YCbCr or RGB, and four, CMYK or YCCK, the
        markers say which.
        """
        is_jfif = any(segment.marker == jpeg.APP0 for segment in self._segments)
        adobe = [
            segment.body[ADOBE_TRANSFORM]
            for segment in self._segments
            if segment.marker == jpeg.APP14
        ]
        if len(self._names) == 3:
            _agree(adobe in ([], [YCC]) or (adobe == [NONE] and not is_jfif))
            # Some decoders read the names as the colour space, even where a marker states another.
            _agree(self._names in USUAL_NAMES or (self._names == b"RGB" and adobe == [NONE]))
        elif len(self._names) == 4:
            _agree(adobe in ([NONE], [YCCK]))
        else:
            _agree(len(self._names) == 1)

    def _define_huffman(self, body: bytes) -> None:
        at = 0
        while at < len(body):
            self._huffman.add((body[at] >> 4, body[at] & 15))
            at += 17 + sum(body[at + 1 : at + 17])
        _agree(at == len(body))

    def _define_quantization(self, body: bytes, between_scans: bool) -> None:
        """T.81 lets a table be replaced between scans, but some decoders dequantize at the end,
        with the last one.
        """
        at = 0
        while at < len(body):
            end = at + 1 + COEFFICIENTS * (1 + (body[at] >> 4))
            table, values = body[at] & 15, body[at:end]
            _agree(not between_scans or self._quantization.get(table, values) == values)
            self._quantization[table] = values
            at = end
        _agree(at == len(body))

    def _check_scan(self, scan: Segment) -> None:
        count = scan.body[0]
        _agree(1 <= count <= 4 and len(scan.body) == 4 + 2 * count)
        names, tables = scan.body[1:-3:2], scan.body[2:-3:2]
        places = [self._names.find(name) for name in names]
        _agree(places[0] >= 0 and places == sorted(set(places)))
        chosen = [self._components[name] for name in names]
        _agree(count == 1 or sum(each.across * each.down for each in chosen) <= MOST_BLOCKS)
        _agree(all(each.table in self._quantization for each in chosen))
        first, last, high, low = (
            scan.body[-3],
            scan.body[-2],
            scan.body[-1] >> 4,
            scan.body[-1] & 15,
        )
        if self._frame.marker in jpeg.PROGRESSIVE:
            _agree(first == last == 0 or (1 <= first <= last < COEFFICIENTS and count == 1))
        else:
            _agree((first, last, high, low) == (0, COEFFICIENTS - 1, 0, 0))
        if self._frame.marker not in ARITHMETIC:
            _agree(
                all(first > 0 or high > 0 or (DC, table >> 4) in self._huffman for table in tables)
            )
            _agree(all(last == 0 or (AC, table & 15) in self._huffman for table in tables))
        for each in chosen:
            _agree(first == 0 or each.bits[0] is not None)  # AC comes after DC (G.1.1.1.1)
            _note(each.bits, range(first, last + 1), high, low)
        self._check_restarts(scan.scan, chosen)

    def _check_restarts(self, data: bytes, chosen: Sequence[_Component]) -> None:
        """After each interval of MCUs but the last stands one restart marker, and they count up
        (E.1.4).
        """
        expected = -(-self._mcus(chosen) // self._interval) - 1 if self._interval else 0
        _agree(RESTART.findall(data) == [bytes([0xD0 + number % 8]) for number in range(expected)])

    def _mcus(self, chosen: Sequence[_Component]) -> int:
        """Return the number of MCUs of a scan of the `chosen` components (A.2)."""
        height, width = int.from_bytes(self._frame.body[1:3]), int.from_bytes(self._frame.body[3:5])
        across = max(each.across for each in self._components.values())
        down = max(each.down for each in self._components.values())
        if len(chosen) > 1:
            return -(-width // (8 * across)) * -(-height // (8 * down))
        own_width, own_height = (
            -(-width * chosen[0].across // across),
            -(-height * chosen[0].down // down),
        )
        return -(-own_width // 8) * -(-own_height // 8)


def _note(bits: list[int | None], coded: range, high: int, low: int) -> None:
    """A first scan codes what none has coded; each refinement codes the next lower bit
    (G.1.1.1.2).
    """
    for number in coded:
        _agree(bits[number] == (high or None) and (not high or low == high - 1))
        bits[number] = low
