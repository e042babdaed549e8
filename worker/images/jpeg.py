"""JPEG files, segment by segment: re-assembled without what is no part of the picture, and decoded
strictly.

Segments are those of ITU-T T.81, Annex B. The compressed data is kept bit for bit. libjpeg goes on
where data is damaged or missing, fills the rest with gray and only warns; simplejpeg, a binding of
the same library, tells.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from worker.pixels import Array

START = b"\xff\xd8\xff"
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
APP0, APP1, APP2, APP14 = 0xE0, 0xE1, 0xE2, 0xEE
FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # sequential and progressive, Huffman and arithmetic coding
PROGRESSIVE = {0xC2, 0xCA}
DHT, DAC, DQT, DRI = 0xC4, 0xCC, 0xDB, 0xDD
TABLES = {DHT, DAC, DQT, DRI}
OTHER_FRAMES = {
    0xC3,
    0xC5,
    0xC6,
    0xC7,
    0xC8,
    0xCB,
    0xCD,
    0xCE,
    0xCF,
    0xDC,
    0xDE,
    0xDF,
}  # and DNL, DHP, EXP
# The end of a scan: the last fill byte before a marker, and the marker, which is neither a stuffed
# byte nor a restart.
SCAN_END = re.compile(rb"\xff[^\0\xd0-\xd7\xff]", re.DOTALL)
FILL = re.compile(rb"\xff*")
MOST_SCANS = 64  # encoders write up to about 20; each costs a pass over all coefficients
MOST_PASSES = 20  # scans of a picture of VEIL_MAX_PIXELS; a smaller one may have more
MOST_SEGMENTS = 4096  # the longest metadata that fit into VEIL_MAX_BYTES take 1,024
MOST_FILL = 1 << 20  # bytes before one marker; Pillow passes over them one by one
MOST_EXIF = 64  # segments: Pillow joins them one by one
ICC_PART = 65_519
COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


@dataclass(frozen=True)
class Segment:
    """A marker, what its length covers, and, after a start of scan, the compressed data up to the
    next marker.
    """

    marker: int
    body: bytes
    scan: bytes = b""

    def written(self) -> bytes:
        return bytes([0xFF, self.marker]) + (len(self.body) + 2).to_bytes(2) + self.body + self.scan


def reassembled(content: bytes, profile: bytes | None = None, exif: bytes | None = None) -> bytes:
    """The JPEG `content` made of its picture's own segments, with a colour profile and an EXIF
    block put in.

    Raises UnreadableImage where the segments end early, UnsupportedImage for kinds that are not
    handled.
    """
    kept = list(_picture(content))
    if len({segment.body for segment in kept if segment.marker == APP14}) > 1:
        raise UnsupportedImage("this JPEG states its colours twice, and differently: save it anew")
    first = [segment for segment in kept if segment.marker == APP0][:1]
    first += [segment for segment in kept if segment.marker == APP14][:1]
    if exif:
        first.append(Segment(APP1, exif))
    parts = (
        [profile[at : at + ICC_PART] for at in range(0, len(profile or b""), ICC_PART)]
        if profile
        else []
    )
    first += [
        Segment(APP2, b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part)
        for number, part in enumerate(parts, 1)
    ]
    rest = [segment for segment in kept if segment.marker not in (APP0, APP14)]
    return b"".join([b"\xff\xd8", *(segment.written() for segment in first + rest), b"\xff\xd9"])


def parsed(content: bytes) -> list[Segment]:
    """Return all segments of the JPEG `content`; UnreadableImage where they end early."""
    return list(_segments(content))


def end(content: bytes) -> int:
    """Return where the last segment of the JPEG `content` ends; its end marker and what follows
    come after.
    """
    return len(START) - 1 + sum(len(segment.written()) for segment in _segments(content))


def size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Return width and height of the JPEG `content`, from its segments alone; 0 and 0 if they do
    not say.

    Raises UnsupportedImage and UnreadableImage as `reassembled` does, and ImageTooLarge for more
    scans than a picture of that many pixels may have.
    """
    width = height = scans = 0
    for segment in _picture(content):
        if segment.marker in FRAMES and len(segment.body) >= 5:
            height, width = int.from_bytes(segment.body[1:3]), int.from_bytes(segment.body[3:5])
        scans += segment.marker == SOS
    check_scans(scans, width * height, max_pixels)
    return width, height


def check_scans(scans: int, pixels: int, max_pixels: int) -> None:
    """Raise ImageTooLarge for so many scans that decoding takes too long: each is a pass over all
    pixels.
    """
    if scans * pixels > MOST_PASSES * max_pixels and pixels <= max_pixels:
        raise ImageTooLarge(
            f"{scans} scans of {pixels:,} pixels take too long: save this JPEG with up to {MOST_PASSES} scans"
        )


def decoded(content: bytes, mode: str) -> Array:
    """The pixels of the JPEG `content` in `mode`, L, RGB or CMYK; UnreadableImage if any part is
    damaged or missing.
    """
    try:
        pixels: Array = simplejpeg.decode_jpeg(content, COLOURS[mode], strict=True)
    except ValueError as error:
        if "subsampling" in str(error):
            raise UnsupportedImage(
                "this JPEG has an unusual subsampling, which is not handled"
            ) from None
        raise UnreadableImage(f"the picture is damaged or cut short ({error})") from None
    if mode == "CMYK":
        np.subtract(
            255, pixels, out=pixels
        )  # stored inverted, as Adobe's programs do and Pillow assumes
    return pixels[..., 0] if mode == "L" else pixels


def check(content: bytes, most_across: int, most_down: int) -> None:
    """Raise UnreadableImage if any part of the JPEG `content` is damaged or missing, or if it is
    larger than stated.
    """
    stored = {"Gray": "L", "CMYK": "CMYK", "YCCK": "CMYK"}
    size(content, most_across * most_down)
    try:
        down, across, colours = simplejpeg.decode_jpeg_header(content)[:3]
    except ValueError as error:
        raise UnreadableImage(f"the picture is damaged or cut short ({error})") from None
    if across > most_across or down > most_down:
        raise UnreadableImage(f"this TIFF is damaged: a JPEG in it has {across} × {down} pixels")
    decoded(content, stored.get(colours, "RGB"))


def is_stored_as_rgb(content: bytes) -> bool:
    """Whether the JPEG's components are red, green and blue themselves."""
    colours: str = simplejpeg.decode_jpeg_header(content)[2]
    return colours == "RGB"


def _picture(content: bytes) -> Iterator[Segment]:
    """The segments that make the picture, in their order: no text, no thumbnail, no other program's
    data.
    """
    frames = scans = blocks = 0
    for segment in _segments(content):
        blocks += segment.marker == APP1 and segment.body.startswith(b"Exif\0")
        if blocks > MOST_EXIF:
            raise UnsupportedImage(
                f"this JPEG has over {MOST_EXIF} segments of EXIF, which is not handled"
            )
        if segment.marker in OTHER_FRAMES or (
            segment.marker in FRAMES and segment.body[:1] != b"\x08"
        ):
            raise UnsupportedImage(
                "only 8-bit JPEGs of the baseline, extended and progressive kinds are handled"
            )
        frames += segment.marker in FRAMES
        scans += segment.marker == SOS
        if frames > 1 or scans > MOST_SCANS:
            raise UnsupportedImage(
                f"this JPEG has {frames} frames and over {scans - 1} scans, which is not handled"
            )
        if scans and segment.marker in (APP0, APP14):
            continue  # decoders have taken the colours by then
        if kept := _kept(segment):
            yield kept
    if not frames or not scans:
        raise UnreadableImage("this JPEG has no picture in it")


def _kept(segment: Segment) -> Segment | None:
    """Return what is kept of a `segment`, without a thumbnail; None for one that is no part of the
    picture.
    """
    if segment.marker == APP0 and segment.body.startswith(b"JFIF\0") and len(segment.body) >= 14:
        return Segment(APP0, segment.body[:12] + b"\0\0")
    if segment.marker == APP14 and segment.body.startswith(b"Adobe") and len(segment.body) >= 12:
        return Segment(APP14, segment.body[:12])
    return segment if segment.marker in FRAMES | TABLES | {SOS} else None


def _segments(content: bytes) -> Iterator[Segment]:
    """All segments up to the end marker; UnreadableImage if there is none, or if other bytes stand
    between them.
    """
    at = 2
    number = fill = 0
    while content[at : at + 1] == b"\xff":
        start, at = at, FILL.match(content, at).end()  # type: ignore[union-attr]  # fill bytes may come before any marker
        number, fill = number + 1, fill + at - start - 1
        if number > MOST_SEGMENTS or fill > MOST_FILL:
            raise UnsupportedImage(
                f"this JPEG has over {number - 1:,} segments and {fill:,} fill bytes, which is not handled"
            )
        marker, size = (
            content[at] if at < len(content) else -1,
            int.from_bytes(content[at + 1 : at + 3]),
        )
        if marker == EOI:
            return
        if marker in (-1, 0, SOI) or size < 2 or at + 1 + size > len(content):
            break
        body, at = content[at + 3 : at + 1 + size], at + 1 + size
        end = _scan_end(content, at) if marker == SOS else at
        if end < 0:
            break
        yield Segment(marker, body, content[at:end])
        at = end
    raise UnreadableImage(
        "this JPEG is damaged or cut short: its segments do not lead to an end marker"
    )


def _scan_end(content: bytes, at: int) -> int:
    """Where the compressed data from `at` on ends: at the next marker and the fill bytes before it;
    -1 if nowhere.
    """
    found = SCAN_END.search(content, at)
    if found is None:
        return -1
    before = content[
        max(at, found.start() - MOST_FILL - 1) : found.start()
    ]  # more fill bytes are refused anyway
    return found.start() - len(before) + len(before.rstrip(b"\xff"))
