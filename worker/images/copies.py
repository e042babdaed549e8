"""Copies of files in which nothing was hidden: their compressed data without their metadata.

A JPEG is reassembled by worker.images.jpeg.segments.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from worker.images import gif, jpeg2000, vp8
from worker.images.heif import avif, avif_copies, deep_avif
from worker.images.loading import loaded
from worker.images.picture import WITH_ALPHA, Frame
from worker.pixels import Array

# The chunks of the pixels of a still WebP, in their order.
BITSTREAMS: tuple[bytes, ...] = (b"ALPH", b"VP8 ", b"VP8L")
# Flags of a VP8X chunk (RFC 9649, 2.7).
PROFILE, ALPHA = 0x20, 0x10
# A decoder needs more of the compressed data than all but so many bytes. With fewer, other
# data may stand behind the pixels.
MAX_BEHIND = 64
# A bit in the header of a lossless picture says whether it has alpha.
ALPHA_HINT_BYTE, ALPHA_HINT = 4, 0x10


def copied(
    form: str, content: bytes, frames: Sequence[Frame], encoding: dict[str, Any]
) -> bytes | None:
    """Return the file `content` of `frames` without its metadata, or None if it is not copied.

    `encoding` holds the metadata that is kept. Colours below full transparency are not copied; a
    GIF has none.
    """
    if form == "GIF":
        return gif.bare(content)
    frame, *others = frames
    if others:
        return None
    if frame.mode in WITH_ALPHA and not frame.pixels[..., -1].all():
        return None
    if "exif" in encoding or "xmp" in encoding:
        return None
    profile = encoding.get("icc_profile")
    if form == "WEBP":
        return _webp(content, frame, profile)
    if form == "AVIF":
        return _avif(content, frame, profile)
    if form == "JPEG2000":
        return _jpeg2000(content, frame, profile)
    return None


def _avif(content: bytes, frame: Frame, profile: bytes | None) -> bytes | None:
    """Return a still AVIF without alpha of its primary item.

    Returns None if it holds more than the pixels of `frame`, such as a larger picture that its
    header has reduced.
    """
    copy = avif_copies.bare(content, profile) if frame.mode not in WITH_ALPHA else None
    if copy is None or not _avif_shows(copy, content, frame):
        return None
    measured = avif.measure(copy, 1)
    if (measured.width, measured.height) != (frame.width, frame.height):
        return None
    return copy if avif_copies.is_filled(copy) else None


def _avif_shows(copy: bytes, content: bytes, frame: Frame) -> bool:
    """Return whether `copy` shows the pixels of `frame`, which is that of `content`."""
    try:
        if frame.pixels.dtype == np.uint16:
            return np.array_equal(deep_avif.values(copy), deep_avif.values(content))
        with Image.open(io.BytesIO(copy), formats=("AVIF",)) as image:
            return np.array_equal(np.asarray(image.convert(frame.mode)), frame.pixels)
    except Exception:  # It is damaged or cut short.
        return False


def _jpeg2000(content: bytes, frame: Frame, profile: bytes | None) -> bytes | None:
    """Return a JPEG 2000 of its codestream, or None if it holds more than the pixels of `frame`."""
    copy = jpeg2000.bare(content, profile)
    if copy is None or not _jpeg2000_shows(copy, frame):
        return None
    shorter = jpeg2000.bare(content, profile, MAX_BEHIND)
    return None if shorter and _jpeg2000_shows(shorter, frame) else copy


def _jpeg2000_shows(copy: bytes, frame: Frame) -> bool:
    try:
        with Image.open(io.BytesIO(copy), formats=("JPEG2000",)) as image:
            return np.array_equal(loaded(image).pixels, frame.pixels)
    except Exception:  # It is damaged or cut short.
        return False


def _webp(content: bytes, frame: Frame, profile: bytes | None) -> bytes | None:
    """Return a still WebP of its bitstream, its alpha and `profile` (RFC 9649).

    Returns None if it holds more than the pixels of `frame`.
    """
    chunks = dict(_webp_chunks(content))
    data = {name: chunks[name] for name in BITSTREAMS if name in chunks}
    if b"ANMF" in chunks or not data or (b"ALPH" in data and frame.mode not in WITH_ALPHA):
        return None
    # Behind each partition there may be other data. Most encoders write one with coefficients.
    if b"VP8 " in data and vp8.coefficient_partitions(data[b"VP8 "]) > 1:
        return None
    head = {}
    if b"VP8X" in chunks:
        flags = chunks[b"VP8X"][0] & ALPHA | (PROFILE if profile else 0)
        head = {b"VP8X": bytes([flags, 0, 0, 0]) + chunks[b"VP8X"][4:10]}
        head |= {b"ICCP": profile} if profile else {}
    elif profile:
        return None
    copy = _riff(head | data)
    is_same = np.array_equal(_webp_pixels(copy, frame.mode), frame.pixels)
    if not is_same or not _is_filled(head, data) or _hides_alpha(frame, data):
        return None
    return copy


def _webp_pixels(content: bytes, mode: str) -> Array:
    with Image.open(io.BytesIO(content), formats=("WEBP",)) as image:
        return np.asarray(image.convert(mode))


def _is_filled(head: dict[bytes, bytes], data: dict[bytes, bytes]) -> bool:
    """Return whether each of the chunks `data` is needed up to its end."""
    return not any(
        _is_readable(_riff(head | data | {name: shorter}))
        for name, body in data.items()
        for shorter in _shortened(name, body)
    )


def _is_readable(content: bytes) -> bool:
    try:
        _webp_pixels(content, "RGBA")
    except Exception:
        return False
    return True


def _shortened(name: bytes, body: bytes) -> Iterator[bytes]:
    """Yield a chunk without the end of its data, and of the first partition of a lossy one."""
    if len(body) > MAX_BEHIND:
        yield body[:-MAX_BEHIND]
    if name != b"VP8 ":
        return
    size = vp8.first_partition_size(body)
    if size > MAX_BEHIND:
        yield vp8.with_shorter_first_partition(body, MAX_BEHIND)


def _hides_alpha(frame: Frame, data: dict[bytes, bytes]) -> bool:
    """Return whether a lossless bitstream has transparency that its header denies.

    Decoders need not heed the header (RFC 9649, 3.4).
    """
    if b"VP8L" not in data or frame.mode in WITH_ALPHA:
        return False
    stated = bytearray(data[b"VP8L"])
    stated[ALPHA_HINT_BYTE] |= ALPHA_HINT
    return bool(_webp_pixels(_riff({b"VP8L": bytes(stated)}), "RGBA")[..., 3].min() < 255)


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the body of each chunk."""
    at, end = 12, min(len(content), int.from_bytes(content[4:8], "little") + 8)
    while at + 8 <= end:
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        yield content[at : at + 4], content[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2)


def _riff(chunks: dict[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(_chunk(*pair) for pair in chunks.items())
    return b"RIFF" + len(body).to_bytes(4, "little") + body
