"""Copies of files in which nothing was hidden: their compressed data without their metadata.

A JPEG is reassembled by worker.images.jpeg.segments.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from worker.images import gif, jpeg2000
from worker.images.heif import avif_copies, deep_avif
from worker.images.picture import WITH_ALPHA, Frame

# Flags of a VP8X chunk (RFC 9649, 2.7).
PROFILE, ALPHA = 0x20, 0x10
# A decoder of WebP needs more of the compressed data than all but so many bytes. With fewer, other
# data may stand behind the pixels.
MAX_BEHIND = 64


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
        return _webp(content, profile)
    if form == "AVIF":
        return _avif(content, frame, profile)
    if form == "JPEG2000":
        return jpeg2000.bare(content, profile)
    return None


def _avif(content: bytes, frame: Frame, profile: bytes | None) -> bytes | None:
    """Return a still AVIF without alpha of its primary item, if it shows the pixels of `frame`."""
    copy = avif_copies.bare(content, profile) if frame.mode not in WITH_ALPHA else None
    if copy is None:
        return None
    if frame.pixels.dtype == np.uint16:
        same = np.array_equal(deep_avif.values(copy), deep_avif.values(content))
        return copy if same else None
    with Image.open(io.BytesIO(copy), formats=("AVIF",)) as image:
        pixels = np.asarray(image.convert(frame.mode))
    return copy if np.array_equal(pixels, frame.pixels) else None


def _webp(content: bytes, profile: bytes | None) -> bytes | None:
    """Return a still WebP of its bitstream, its alpha and `profile` (RFC 9649)."""
    chunks = dict(_webp_chunks(content))
    names = [name for name in (b"ALPH", b"VP8 ", b"VP8L") if name in chunks]
    if b"ANMF" in chunks or not names:
        return None
    parts = [_chunk(name, chunks[name]) for name in names]
    if b"VP8X" in chunks:
        flags = chunks[b"VP8X"][0] & ALPHA | (PROFILE if profile else 0)
        head = [_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + chunks[b"VP8X"][4:10])]
        parts = head + ([_chunk(b"ICCP", profile)] if profile else []) + parts
    elif profile:
        return None
    return _riff(parts) if _is_filled(names[-1], chunks[names[-1]]) else None


def _is_filled(name: bytes, data: bytes) -> bool:
    """Return whether the bitstream `data` is needed up to its end."""
    try:
        with Image.open(io.BytesIO(_riff([_chunk(name, data[:-MAX_BEHIND])]))) as image:
            image.load()
    except Exception:  # It is cut short, as it should be.
        return True
    return len(data) <= MAX_BEHIND


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the body of each chunk."""
    at, end = 12, min(len(content), int.from_bytes(content[4:8], "little") + 8)
    while at + 8 <= end:
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        yield content[at : at + 4], content[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2)


def _riff(parts: list[bytes]) -> bytes:
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + len(body).to_bytes(4, "little") + body
