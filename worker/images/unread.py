"""Refuse files that hold more than Pillow reads: further frames, or a larger picture."""

import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from tasks.errors import UnsupportedImage
from worker.images import containers, jpeg2000, png
from worker.images.jpeg import markers, segments

# AVIF's property of each item, with its box header; width and height follow (23008-12, 6.5.3).
ITEM_SIZE = b"\0\0\0\x14ispe\0\0\0\0"
# The sizes of a track's samples; their common size, 0 for none, and their number follow
# (ISO/IEC 14496-12, 8.7.3).
SAMPLE_SIZES = b"stsz\0\0\0\0"
# The sample entry of a track; its size is TRACK_SIZE_OFFSET bytes later (14496-12, 12.1.3).
TRACK = b"av01" + bytes(6)
TRACK_SIZE_OFFSET = 18
MAX_FURTHER_JPEGS = 10_000  # JPEGs, or bytes that look like the beginning of one
MAX_FURTHER_SEGMENTS = 256  # segments before the frame header of a further JPEG


def check(form: str, image: Any, content: bytes) -> None:
    """Raise UnsupportedImage if `content` has more than Pillow's `image` shows.

    This is a different number of frames, or a larger picture.
    """
    shown_frames = 1 if form == "JPEG" else getattr(image, "n_frames", 1)
    frames = _frames(form, content, shown_frames)
    if frames != shown_frames:
        raise UnsupportedImage(
            f"this {form} has {frames:,} frames, of which viewers show {shown_frames:,}: "
            "save it again"
        )
    longer, shorter = max(image.size), min(image.size)
    for size in _sizes(form, content):
        if max(size) > longer or min(size) > shorter:
            raise UnsupportedImage(
                f"this {form} holds a larger picture than the one that viewers show: "
                "extract it first"
            )


def _frames(form: str, content: bytes, shown_frames: int) -> int:
    """Return the number of frames in `content`, or `shown_frames` where nothing else states it."""
    if form == "PNG":
        return _png_frames(content)
    if form == "GIF":
        return containers.gif_size(content, len(content)).frames
    if form == "WEBP":
        return _webp_frames(content)
    if form == "JPEG2000":
        return jpeg2000.codestreams(content)
    if form == "AVIF":
        return max(shown_frames, _avif_frames(content))
    return shown_frames


def _sizes(form: str, content: bytes) -> Iterable[tuple[int, int]]:
    """Return the sizes of all pictures in `content`, for formats that may hold several."""
    if form == "AVIF":
        return _avif_sizes(content)
    if form == "JPEG":
        return _further_jpegs(content)
    return ()


def _png_frames(content: bytes) -> int:
    """Return the number of frames in an APNG, the default image included."""
    controls = controls_before_data = data_without_control = 0
    at, is_after_data = len(png.SIGNATURE), False
    while at + 8 <= len(content):
        name = content[at + 4 : at + 8]
        if name == b"IEND":
            break
        controls_before_data += name == b"fcTL" and not is_after_data
        controls += name == b"fcTL"
        data_without_control += name == b"fdAT"
        is_after_data |= name == b"IDAT"
        at += png.CHUNK_OVERHEAD + int.from_bytes(content[at : at + 4])
    if not controls:
        return 1 + data_without_control
    return controls if controls_before_data else controls + 1


def _webp_frames(content: bytes) -> int:
    """Return the number of frames in a WebP, and of bitstreams outside of them."""
    count, at = 0, containers.RIFF_HEADER_BYTES
    while at + 8 <= len(content):
        count += content[at : at + 4] in (b"ANMF", b"VP8 ", b"VP8L")
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return count


def _avif_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """Return the sizes of all items and tracks."""
    items = (struct.unpack_from(">II", content, at) for at in _ends(content, ITEM_SIZE, 8))
    places = _ends(content, TRACK, TRACK_SIZE_OFFSET + 4)
    tracks = (struct.unpack_from(">HH", content, at + TRACK_SIZE_OFFSET) for at in places)
    return chain(items, tracks)


def _avif_frames(content: bytes) -> int:
    """Return the number of frames of the longest track, or 0 without tracks."""
    if TRACK not in content:
        return 0
    places = _ends(content, SAMPLE_SIZES, 8)
    return max((struct.unpack_from(">I", content, at + 4)[0] for at in places), default=0)


def _ends(content: bytes, pattern: bytes, following: int) -> Iterator[int]:
    """Yield where each `pattern` ends that is followed by at least `following` bytes."""
    at = content.find(pattern)
    while 0 <= at <= len(content) - len(pattern) - following:
        yield at + len(pattern)
        at = content.find(pattern, at + len(pattern))


def _further_jpegs(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the sizes of the JPEGs that follow the first one in its file, as in an MPO."""
    at = content.find(markers.START, segments.end(content))
    for _ in range(MAX_FURTHER_JPEGS):
        if at < 0:
            return
        size, at = _jpeg_size(content, at + len(markers.START_OF_IMAGE))
        if size:
            yield size
        at = content.find(markers.START, at)
    raise UnsupportedImage(
        f"over {MAX_FURTHER_JPEGS:,} pictures follow this JPEG in its file: cut them off"
    )


def _jpeg_size(content: bytes, at: int) -> tuple[tuple[int, int] | None, int]:
    """Return the size of the JPEG whose segments begin at `at`, and the offset read up to.

    The size is None without a frame header.
    """
    for _ in range(MAX_FURTHER_SEGMENTS):
        marker, body = content[at : at + 2], content[at + 4 : at + 4 + markers.FRAME_SIZE_END]
        if marker[:1] != b"\xff" or len(body) < markers.FRAME_SIZE_END:
            break
        if marker[1] in (markers.SOS, markers.SOI, markers.EOI):
            break
        if marker[1] in markers.FRAME_HEADERS:
            height, width = segments.frame_size(body)
            return (width, height), at
        at += 2 + max(2, int.from_bytes(content[at + 2 : at + 4]))
    return None, at
