"""Remove bytes from the compressed data of a JPEG that belong to no block.

libjpeg decodes every block of such a file, and warns of the bytes afterwards, as it warns of data
that is missing. Scanners write zeros before the end marker, webcams before restart markers, and
some phones no end marker. Nothing else that libjpeg warns of is accepted.
"""

import re
from collections.abc import Callable

from tasks.errors import UnreadableImage
from worker.images.jpeg import markers
from worker.images.jpeg.decoding import first_warning, strictly_decoded
from worker.images.jpeg.scans import all_agree, mcu_count, with_mcus
from worker.images.jpeg.segments import NO_END, Segment, parsed
from worker.pixels import Array

RESTARTS = re.compile(rb"(\xff[\xd0-\xd7])")
# Of the bytes before a restart marker so many may belong to a block, though they are like the stray
# ones after them. At the end of a file they may stand in the place of blocks that are lost.
MAX_OF_BLOCKS = 1
MAX_INTERVALS = 1 << 17  # each takes 50 microseconds
MAX_SIDE = 65_500  # libjpeg's limit
# Samsung's cameras write a trailer of entries. Each begins with zeros, a type, and the length of
# its name in four bytes.
SAMSUNG_TRAILER = re.compile(rb"\0\0(?!\0\0)..[\x01-\x7f]\0\0\0.*SEFT", re.DOTALL)
# libjpeg reads so many bytes ahead at most.
READ_AHEAD = 16
PADDING = bytes(64)
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")

STRAY_BYTES = "the JPEG had bytes between its blocks and a marker, which were removed"
NO_END_MARKER = "the JPEG had no end marker, which was added"

Assemble = Callable[[bytes], bytes]
"""A function that returns a JPEG with the given compressed data in its last scan."""


def read(content: bytes, mode: str, trailer: bytes | None) -> tuple[bytes, Array, tuple[str, ...]]:
    """Return the reassembled JPEG `content` without stray bytes, its pixels, and notes.

    `trailer` is the end of the file if it has no end marker, else None. The pixels are those of
    strictly_decoded. Raises its errors, in particular UnreadableImage if blocks are damaged or
    missing.
    """
    if trailer is None:
        try:
            return content, strictly_decoded(content, mode), ()
        except UnreadableImage:
            found = _cleaned(content, mode, trailer)
            if found is None:
                raise
    else:
        found = _cleaned(content, mode, trailer)
        if found is None:
            raise UnreadableImage(NO_END)
    whole, note = found
    return whole, strictly_decoded(whole, mode), (note,)


def _cleaned(content: bytes, mode: str, trailer: bytes | None) -> tuple[bytes, str] | None:
    """Return `content` without stray bytes and with an end marker, and a note of what it had.

    Returns None if the compressed data has other faults.
    """
    segments = parsed(content)
    last = segments[-1]
    if last.marker != markers.SOS:
        return None
    head = b"".join(segment.written() for segment in segments[:-1])
    if trailer is not None:
        end = _end_without_marker(_assembler(head, last), last.scan, mode, trailer)
        if end is None:
            return None
        last = Segment(last.marker, last.body, last.scan[:end])
        whole = _assembler(head, last)(last.scan)
        return (whole, NO_END_MARKER) if all_agree(whole) else None
    restart_interval = _restart_interval(segments)
    scans = [segment for segment in segments if segment.marker == markers.SOS]
    if restart_interval and len(scans) == 1:
        scan = _without_strays_before_restarts(segments, last, restart_interval, mode)
    else:
        scan = _without_strays(_assembler(head, last), last.scan, mode)
    if scan is None or scan == last.scan:
        return None
    return _assembler(head, last)(scan), STRAY_BYTES


def _restart_interval(segments: list[Segment]) -> int:
    stated = [segment.body for segment in segments if segment.marker == markers.DRI]
    return int.from_bytes(stated[-1]) if stated else 0


def _assembler(head: bytes, scan: Segment) -> Assemble:
    header = Segment(scan.marker, scan.body).written()
    return lambda data: markers.START_OF_IMAGE + head + header + data + markers.END_OF_IMAGE


def _is_clean(content: bytes, mode: str) -> bool:
    return first_warning(content, mode) is None


def _without_strays(
    assemble: Assemble, data: bytes, mode: str, max_of_blocks: int = 0
) -> bytes | None:
    """Return `data` without the run of equal bytes at its end that belongs to no block.

    Up to `max_of_blocks` of them may belong to one. Returns None for other bytes, which are taken
    for damage: after it libjpeg finds the end of the blocks too early.
    """
    run = data[-1:]
    blocks = data.rstrip(run) if run else data
    if blocks.endswith(b"\xff"):  # a stuffed byte follows
        blocks += run
    candidates = [(blocks + run * kept)[: len(data)] for kept in range(max_of_blocks + 1)]
    if run != b"\0":
        candidates.append(data)  # There are no stray bytes.
    return next((each for each in candidates if _is_clean(assemble(each), mode)), None)


def _without_strays_before_restarts(
    segments: list[Segment], scan: Segment, restart_interval: int, mode: str
) -> bytes | None:
    """Return the data of the only scan, without stray bytes at the end of its intervals.

    Each interval is decoded as a JPEG of its own.
    """
    *intervals, last = RESTARTS.split(scan.scan)
    if len(intervals) // 2 >= MAX_INTERVALS:
        return None
    frame = next(segment for segment in segments if segment.marker in markers.FRAME_HEADERS)
    mcus = mcu_count(frame)
    if -(-mcus // restart_interval) != len(intervals) // 2 + 1:
        return None
    tables = [
        segment for segment in segments if segment.marker in (markers.DQT, markers.DHT, markers.DAC)
    ]
    adobe = [segment for segment in segments if segment.marker in (markers.APP0, markers.APP14)]
    head = b"".join(segment.written() for segment in adobe + tables)
    parts: list[bytes] = []
    for number, data in enumerate([*intervals[::2], last]):
        count = min(restart_interval, mcus - number * restart_interval)
        sized = with_mcus(frame, count, MAX_SIDE)
        if sized is None:
            return None
        is_last = 2 * number == len(intervals)
        assemble = _assembler(head + sized.written(), scan)
        shorter = _without_strays(assemble, data, mode, 0 if is_last else MAX_OF_BLOCKS)
        if shorter is None:
            return None
        parts += [shorter, *intervals[2 * number + 1 : 2 * number + 2]]
    return b"".join(parts)


def _end_without_marker(assemble: Assemble, data: bytes, mode: str, trailer: bytes) -> int | None:
    """Return the length of the blocks in `data`, with which the picture in its file ends.

    Returns None if blocks are missing, or if other data follows than a trailer that is known: it
    may stand in the place of blocks that were never written.
    """
    found = EXTRANEOUS.search(first_warning(assemble(data + PADDING), mode) or "")
    if found is None:
        return None
    end = min(len(data), len(data) + len(PADDING) - int(found[1]))
    lowest = max(0, end - READ_AHEAD)
    while lowest < end:
        middle = (lowest + end) // 2
        if _is_clean(assemble(data[:middle]), mode):
            end = middle
        else:
            lowest = middle + 1
    if not _is_clean(assemble(data[:end]), mode) or data[:end].endswith(b"\0\0"):
        return None
    following = data[end:].rstrip(b"\xff") + trailer
    return end if not following or SAMSUNG_TRAILER.fullmatch(following) else None
