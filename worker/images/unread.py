"""Files that hold more than is read of them: further frames, or a picture that is larger than the
one that is read.
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from tasks.errors import UnsupportedImage
from worker.images import containers, jpeg, jpeg2000

ITEM_SIZE = b"\0\0\0\x14ispe\0\0\0\0"  # AVIF's property of each item: its width and height follow
SAMPLE_SIZES = b"stsz\0\0\0\0"  # of a track: their common size, 0 for none, and their number follow
TRACK = b"av01" + bytes(
    6
)  # the sample entry of a track; its size follows (ISO/IEC 14496-12, 12.1.3)
TRACK_SIZE = 18
MOST_FURTHER = 10_000  # JPEGs, or what looks like the beginning of one, after the end of the first
MOST_SEGMENTS = 256  # before the frame header of a further JPEG


def check(form: str, image: Any, content: bytes) -> None:
    """Raise UnsupportedImage if `content` has frames, or a larger picture, that Pillow's `image`
    does not show.
    """
    frames = getattr(image, "n_frames", 1)
    width, height = image.size
    sizes: Iterable[tuple[int, int]] = ()
    count = frames
    if form == "PNG":
        count = _png_frames(content)
    elif form == "GIF":
        count = containers.gif_size(content, len(content))[0]
    elif form == "WEBP":
        count = _webp_frames(content)
    elif form == "JPEG2000":
        count = jpeg2000.codestreams(content)
    elif form == "AVIF":
        sizes, count = _avif(content, frames)
    elif form == "JPEG":
        frames = count = 1
        sizes = _further_jpegs(content)
    if count != frames:
        raise UnsupportedImage(
            f"this {form} has {count:,} frames, of which viewers show {frames:,}: save it anew"
        )
    longer, shorter = max(width, height), min(width, height)
    if any(max(size) > longer or min(size) > shorter for size in sizes):
        raise UnsupportedImage(
            f"this {form} holds a larger picture than the one that viewers show: extract it first"
        )


def _png_frames(content: bytes) -> int:
    """Return the number of frames that stand in an APNG, the default image included."""
    controls, before, stray = 0, 0, 0
    at, is_data = 8, False
    while at + 8 <= len(content):
        name = content[at + 4 : at + 8]
        if name == b"IEND":
            break
        before += name == b"fcTL" and not is_data
        controls += name == b"fcTL"
        stray += name == b"fdAT"
        is_data |= name == b"IDAT"
        at += 12 + int.from_bytes(content[at : at + 4])
    if not controls:
        return 1 + stray
    return controls if before else controls + 1


def _webp_frames(content: bytes) -> int:
    """Return the number of pictures in a WebP: frames of an animation, and bitstreams outside of
    them.
    """
    count, at = 0, 12
    while at + 8 <= len(content):
        count += content[at : at + 4] in (b"ANMF", b"VP8 ", b"VP8L")
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return count


def _avif(content: bytes, frames: int) -> tuple[Iterable[tuple[int, int]], int]:
    """Return the sizes of all items and tracks, and how many frames the longest track has."""
    sizes = (struct.unpack_from(">II", content, at) for at in _ends(content, ITEM_SIZE, 8))
    tracks = (
        struct.unpack_from(">HH", content, at + TRACK_SIZE)
        for at in _ends(content, TRACK, TRACK_SIZE + 4)
    )
    counts = (
        struct.unpack_from(">I", content, at + 4)[0] for at in _ends(content, SAMPLE_SIZES, 8)
    )
    has_tracks = TRACK in content
    return chain(sizes, tracks), max(chain([frames], counts if has_tracks else ()))


def _ends(content: bytes, mark: bytes, more: int) -> Iterator[int]:
    """Yield where each `mark` ends that has `more` bytes after it."""
    at = content.find(mark)
    while 0 <= at <= len(content) - len(mark) - more:
        yield at + len(mark)
        at = content.find(mark, at + len(mark))


def _further_jpegs(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the sizes of the JPEGs that follow the first one in its file, as in an MPO."""
    at = content.find(jpeg.START, jpeg.end(content))
    for _ in range(MOST_FURTHER):
        if at < 0:
            return
        size, at = _jpeg_size(content, at + 2)
        if size:
            yield size
        at = content.find(jpeg.START, at)
    raise UnsupportedImage(
        f"over {MOST_FURTHER:,} pictures follow this JPEG in its file: cut them off"
    )


def _jpeg_size(content: bytes, at: int) -> tuple[tuple[int, int] | None, int]:
    """Return the size in the frame header of the JPEG whose segments begin at `at`, and how far it
    was read.
    """
    for _ in range(MOST_SEGMENTS):
        marker, body = content[at : at + 2], content[at + 4 : at + 9]
        if marker[:1] != b"\xff" or len(body) < 5 or marker[1] in (jpeg.SOS, jpeg.SOI, jpeg.EOI):
            break
        if marker[1] in jpeg.FRAMES:
            height, width = struct.unpack(">HH", body[1:])
            return (width, height), at
        at += 2 + max(2, int.from_bytes(content[at + 2 : at + 4]))
    return None, at
