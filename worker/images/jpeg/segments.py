"""The segments of a JPEG, and its file reassembled from them without metadata (T.81, Annex B).

The compressed data is kept bit for bit.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from worker.images.jpeg.markers import (
    APP0,
    APP1,
    APP2,
    APP14,
    COM,
    END_OF_IMAGE,
    EOI,
    FRAME_HEADERS,
    FRAME_SIZE_END,
    PROGRESSIVE,
    SOI,
    SOS,
    START_OF_IMAGE,
    TABLES,
    UNHANDLED,
)

EIGHT_BITS = b"\x08"  # the precision, which is the first byte of a frame header

# A scan ends at a marker other than a restart: at the last fill byte before it. A zero byte after
# 0xFF is stuffing, not a marker.
SCAN_END = re.compile(rb"\xff[^\0\xd0-\xd7\xff]", re.DOTALL)
FILL = re.compile(rb"\xff*")
MARKER = re.compile(rb"\xff+[^\0\xff]", re.DOTALL)
METADATA = {*range(APP0, APP0 + 16), COM}  # application data and comments
MAX_JUNK = 1 << 10  # bytes between two segments
MAX_SCANS = 64  # encoders write up to about 20; each is a pass over all coefficients
MAX_FULL_SIZE_SCANS = 20  # scans of a picture of VEIL_MAX_PIXELS; smaller ones may have more
MAX_SEGMENTS = 4096  # the longest metadata that fits into VEIL_MAX_BYTES takes 1,024
MAX_FILL_BYTES = 1 << 20  # Pillow passes over fill bytes one by one
MAX_EXIF_SEGMENTS = 64  # Pillow joins segments of EXIF one by one

# The parts of JFIF's and Adobe's segments that decoders read; a thumbnail may follow in JFIF's.
JFIF, JFIF_BYTES, NO_JFIF_THUMBNAIL = b"JFIF\0", 12, b"\0\0"
ADOBE, ADOBE_BYTES = b"Adobe", 12
# The coefficients and bits of a scan of a sequential JPEG (B.2.3). Decoders take them for stated.
SEQUENTIAL = b"\0\x3f\0"
SCAN_PARAMETERS = "the JPEG had parameters of its scan that decoders ignore, which were set right"
JUNK = "the JPEG had bytes between the segments of its header, which were removed"
NO_END = "this JPEG is damaged or cut short: its segments do not lead to an end marker"
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
ICC_PREFIX = b"ICC_PROFILE\0"
# Bytes of a profile in one segment, besides its length, the prefix, and two numbers of the part.
MAX_ICC_PART = 65_535 - 2 - len(ICC_PREFIX) - 2


@dataclass(frozen=True)
class Segment:
    """A marker and the body that its length covers.

    After a start of scan, `scan` is the compressed data up to the next marker.
    """

    marker: int
    body: bytes
    scan: bytes = b""

    def written(self) -> bytes:
        length = (len(self.body) + 2).to_bytes(2)
        return bytes([0xFF, self.marker]) + length + self.body + self.scan


def reassembled(
    content: bytes,
    profile: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
) -> bytes:
    """Return the JPEG `content` without metadata, with a profile, EXIF and XMP added.

    Raises UnreadableImage if the segments end before a scan, UnsupportedImage for kinds that are
    not handled.
    """
    segments = list(_picture(content))
    if len({segment.body for segment in segments if segment.marker == APP14}) > 1:
        raise UnsupportedImage("this JPEG states its colours in two different ways: save it again")
    first = [segment for segment in segments if segment.marker == APP0][:1]
    first += [segment for segment in segments if segment.marker == APP14][:1]
    if exif:
        first.append(Segment(APP1, exif))
    if xmp:
        first.append(Segment(APP1, XMP_PREFIX + xmp))
    if profile:
        first += _profile_segments(profile)
    rest = [segment for segment in segments if segment.marker not in (APP0, APP14)]
    written = (segment.written() for segment in first + rest)
    return b"".join([START_OF_IMAGE, *written, END_OF_IMAGE])


def has_adobe_marker(content: bytes) -> bool:
    """Return whether Adobe's segment in the reassembled JPEG `content` states its colours."""
    return any(segment.marker == APP14 for segment in parsed(content))


def _profile_segments(profile: bytes) -> list[Segment]:
    parts = [profile[at : at + MAX_ICC_PART] for at in range(0, len(profile), MAX_ICC_PART)]
    return [
        Segment(APP2, ICC_PREFIX + bytes([number, len(parts)]) + part)
        for number, part in enumerate(parts, 1)
    ]


def parsed(content: bytes) -> list[Segment]:
    """Return all segments of the JPEG `content`; raise UnreadableImage if it has no scan."""
    return list(_segments(content))


def end(content: bytes) -> int:
    """Return an offset in the JPEG `content` after its last segment, before any further JPEG.

    The end marker and any bytes after it follow there.
    """
    return len(START_OF_IMAGE) + sum(len(segment.written()) for segment in _segments(content))


def trailer_without_end(content: bytes) -> bytes | None:
    """Return the end of the JPEG `content` after its last scan if it has no end marker, else None.

    Fill bytes may precede the end marker.
    """
    scan_end = at = len(START_OF_IMAGE)
    for segment, at in _walk(content):
        if segment.marker == SOS:
            scan_end = at
    marker = _fill_end(content, at)
    has_end = marker > at and content[marker : marker + 1] == END_OF_IMAGE[1:]
    return None if has_end else content[scan_end:]


def has_other_parameters(content: bytes) -> bool:
    """Return whether a scan of the sequential JPEG `content` has parameters that are ignored."""
    segments = list(_segments(content))
    if any(segment.marker in PROGRESSIVE for segment in segments):
        return False
    scans = [segment.body for segment in segments if segment.marker == SOS]
    return any(body[-len(SEQUENTIAL) :] != SEQUENTIAL for body in scans)


def size(content: bytes, max_pixels: int) -> tuple[int, int, int]:
    """Return width, height and channels of the JPEG `content` from its segments, 0 if not stated.

    Raises UnsupportedImage and UnreadableImage as `reassembled` does, and ImageTooLarge for more
    scans than a picture of `max_pixels` may have.
    """
    width = height = channels = scans = 0
    for segment in _picture(content):
        if segment.marker in FRAME_HEADERS and len(segment.body) > FRAME_SIZE_END:
            height, width = frame_size(segment.body)
            channels = segment.body[FRAME_SIZE_END]
        scans += segment.marker == SOS
    check_scans(scans, width * height, max_pixels)
    return width, height, channels


def frame_size(body: bytes) -> tuple[int, int]:
    """Return height and width in the frame header `body` (T.81, B.2.2)."""
    return int.from_bytes(body[1:3]), int.from_bytes(body[3:5])


def check_scans(scans: int, pixels: int, max_pixels: int) -> None:
    """Raise ImageTooLarge if decoding so many scans takes too long.

    Each scan is a pass over all pixels. Pictures of more than `max_pixels` are refused elsewhere.
    """
    if scans * pixels > MAX_FULL_SIZE_SCANS * max_pixels and pixels <= max_pixels:
        raise ImageTooLarge(
            f"{scans} scans of {pixels:,} pixels take too long: "
            f"save this JPEG with up to {MAX_FULL_SIZE_SCANS} scans"
        )


def _picture(content: bytes) -> Iterator[Segment]:
    """Yield the segments that a decoder needs, in their order, without text and thumbnails.

    Raises UnsupportedImage for kinds of JPEG that are not handled, UnreadableImage if there is no
    picture.
    """
    frames = scans = exif_segments = frame_kind = 0
    for segment in _segments(content):
        exif_segments += segment.marker == APP1 and segment.body.startswith(b"Exif\0")
        if exif_segments > MAX_EXIF_SEGMENTS:
            raise UnsupportedImage(
                f"this JPEG has over {MAX_EXIF_SEGMENTS} segments of EXIF, which is not handled"
            )
        if not _is_handled(segment):
            raise UnsupportedImage(
                "only 8-bit JPEGs of the baseline, extended and progressive kinds are handled"
            )
        if segment.marker in FRAME_HEADERS:
            frames, frame_kind = frames + 1, segment.marker
        scans += segment.marker == SOS
        if frames > 1 or scans > MAX_SCANS:
            raise UnsupportedImage(
                f"this JPEG has {frames} frames and over {scans - 1} scans, which is not handled"
            )
        if scans and segment.marker in (APP0, APP14):
            continue  # decoders have chosen the colour space by then
        if kept := _kept(segment):
            is_sequential = frame_kind in FRAME_HEADERS - PROGRESSIVE
            yield _with_sequential_parameters(kept) if is_sequential else kept
    if not frames or not scans:
        raise UnreadableImage("this JPEG has no picture in it")


def _with_sequential_parameters(segment: Segment) -> Segment:
    """Return `segment` of a sequential JPEG with the parameters that T.81 requires of its scans.

    Samsung's cameras state others. All decoders ignore them, and libjpeg warns.
    """
    if segment.marker != SOS:
        return segment
    return Segment(SOS, segment.body[: -len(SEQUENTIAL)] + SEQUENTIAL, segment.scan)


def _is_handled(segment: Segment) -> bool:
    """Return whether `segment` is not a frame header of an unhandled kind or precision."""
    if segment.marker in FRAME_HEADERS:
        return segment.body[:1] == EIGHT_BITS
    return segment.marker not in UNHANDLED


def _kept(segment: Segment) -> Segment | None:
    """Return the part of `segment` that a decoder needs, without a thumbnail, or None."""
    marker, body = segment.marker, segment.body
    if marker == APP0 and body.startswith(JFIF) and len(body) >= JFIF_BYTES + 2:
        return Segment(APP0, body[:JFIF_BYTES] + NO_JFIF_THUMBNAIL)
    if marker == APP14 and body.startswith(ADOBE) and len(body) >= ADOBE_BYTES:
        return Segment(APP14, body[:ADOBE_BYTES])
    return segment if marker in FRAME_HEADERS | TABLES | {SOS} else None


def _segments(content: bytes) -> Iterator[Segment]:
    """Yield all segments up to the end marker.

    Raises UnreadableImage if they end before a scan, or if bytes that no decoder needs hide it.
    """
    for segment, _ in _walk(content):
        yield segment


def _walk(content: bytes) -> Iterator[tuple[Segment, int]]:
    """Yield each segment with the offset after it. Raises the errors of `_segments`.

    Without an end marker the last scan reaches to the next marker, or to the end of the file. Bytes
    after a segment of metadata in the header are passed over, as decoders do. Elsewhere they may be
    the rest of a segment that pixels need.
    """
    at = len(START_OF_IMAGE)
    number = fill_bytes = 0
    has_scan, marker = False, 0
    while True:
        if not has_scan and marker in METADATA:
            at = _junk_end(content, at)
        if content[at : at + 1] != b"\xff":
            break
        start = at
        at = _fill_end(content, at)
        number += 1
        fill_bytes += at - start - 1
        if number > MAX_SEGMENTS or fill_bytes > MAX_FILL_BYTES:
            raise UnsupportedImage(
                f"this JPEG has over {number - 1:,} segments and {fill_bytes:,} fill bytes, "
                "which is not handled"
            )
        marker = content[at] if at < len(content) else -1
        if marker == EOI:
            return
        length = int.from_bytes(content[at + 1 : at + 3])
        body_end = at + 1 + length
        if marker in (-1, 0, SOI) or length < 2 or body_end > len(content):
            break
        body = content[at + 3 : body_end]
        at = _scan_end(content, body_end) if marker == SOS else body_end
        has_scan |= marker == SOS
        yield Segment(marker, body, content[body_end:at]), at
    if not has_scan:
        raise UnreadableImage(NO_END)


def _fill_end(content: bytes, at: int) -> int:
    """Return the offset after the fill bytes from `at` on; any number may precede a marker."""
    found = FILL.match(content, at)
    return found.end() if found else at


def _junk_end(content: bytes, at: int) -> int:
    """Return the offset of the first fill byte or marker from `at` on, or `at` if none is near.

    A zero after 0xFF makes no marker.
    """
    is_fill = content[at : at + 1] == b"\xff"
    end = _fill_end(content, at)
    if is_fill and content[end : end + 1] != b"\0":
        return at
    found = MARKER.search(content, at, at + MAX_JUNK)
    return found.start() if found else at


def has_junk(content: bytes) -> bool:
    """Return whether other bytes stand between the segments of the header of `content`."""
    at, marker = len(START_OF_IMAGE), 0
    for segment, end in _walk(content):
        if marker in METADATA and _junk_end(content, at) != at:
            return True
        at, marker = end, segment.marker
    return False


def _scan_end(content: bytes, at: int) -> int:
    """Return where the compressed data from `at` on ends.

    It ends at the next marker, before the fill bytes that precede it, or at the end of the file.
    """
    found = SCAN_END.search(content, at)
    if found is None:
        return len(content)
    # A longer run of fill bytes is refused afterwards, so this need not look further back.
    before = content[max(at, found.start() - MAX_FILL_BYTES - 1) : found.start()]
    return found.start() - len(before) + len(before.rstrip(b"\xff"))
