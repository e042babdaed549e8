"""The chunks of a PNG: those that its pixels and colours need (PNG, third edition).

Pillow does not check the checksums of the pixels, and refuses long texts.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence

from PIL import PngImagePlugin

from tasks.errors import UnreadableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_OVERHEAD = 12  # length, name and checksum
# The header is always the first chunk. It has the bits of a channel and the colour type, whose
# bits stand for colours and alpha.
BITS, COLOUR_TYPE, IHDR_END = 24, 25, 33
COLOUR, ALPHA = 2, 4
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type
UNPACK_BYTES = 1 << 16  # bytes that are unpacked at a time

# The chunks that hold the pixels, besides those that every reader must know.
ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})
PIXELS = frozenset({b"tRNS", *ANIMATION})
# The chunks that outputs keep, with the length of their bodies: colour and density.
DENSITY = b"pHYs"
KEPT = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, DENSITY: 9}
# The keyword of XMP, and what follows it in a text that is not compressed (11.3.3.4).
XMP_KEYWORD, PLAIN_TEXT = b"XML:com.adobe.xmp\0", b"\0\0\0\0"
EXIF = b"eXIf"
GAMMA_UNIT = 100_000  # gAMA is in hundred thousandths
# The chunks that Pillow reads besides: the profile, and the orientation.
DESCRIBING = frozenset({*KEPT, b"iCCP", EXIF})
# The other chunks of the standard.
DROPPED = frozenset({b"tEXt", b"zTXt", b"iTXt", b"tIME", b"sBIT", b"bKGD", b"hIST", b"sPLT"})

Chunk = tuple[bytes, bytes]
"""The name and the body of a chunk."""

CUT_SHORT = "this PNG is damaged or cut short: its chunks do not lead to an end"
NO_END = "the PNG had no end after its pixels, which was added"
NO_ANIMATION = "the PNG had frames that are not in order, which were left out as in browsers"
WRONG_CHECKSUM = "the PNG had a wrong checksum in {names}, which no pixel depends on"

# The texts of a PNG are dropped before Pillow opens it. This is the limit of a colour profile.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 16 << 20


def cleaned(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the PNG `content` with only the chunks that its pixels and colours need, and notes.

    Raises UnreadableImage if a chunk that its pixels need is damaged or missing.
    """
    parts, damaged, notes = [SIGNATURE], set(), []
    chunks = list(walk(content))
    if chunks[-1][0] != b"IEND":
        _check_pixels(content, chunks)
        notes.append(NO_END)
    if not _are_frames_in_order(content, chunks):
        chunks = [one for one in chunks if one[0] not in ANIMATION]
        notes.append(NO_ANIMATION)
    header, *others = chunks
    # Pillow reads EXIF that stands behind the pixels after the last frame only.
    for name, start, end in [header, *sorted(others, key=lambda one: one[0] != EXIF)]:
        is_ancillary = name in DESCRIBING or name in DROPPED
        if not _is_intact(content, start, end):
            if not is_ancillary:
                raise UnreadableImage("this PNG is damaged or cut short: a checksum in it is wrong")
            damaged.add(name.decode())
        elif name in DESCRIBING or name in PIXELS or _is_critical(name):
            parts.append(content[start:end])
    if chunks[-1][0] != b"IEND":
        parts.append(chunk(b"IEND", b""))
    if damaged:
        notes.append(WRONG_CHECKSUM.format(names=", ".join(sorted(damaged))))
    return b"".join(parts), tuple(notes)


def _check_pixels(content: bytes, chunks: Sequence[tuple[bytes, int, int]]) -> None:
    """Raise UnreadableImage unless `chunks` hold all pixels of a still picture."""
    unpacker, is_still = zlib.decompressobj(), True
    remaining = _raw_bytes(content)
    try:
        for name, start, end in chunks:
            is_still &= name not in ANIMATION
            part = content[start + 8 : end - 4] if name == b"IDAT" else b""
            while part and remaining >= 0:
                remaining -= len(unpacker.decompress(part, UNPACK_BYTES))
                part = unpacker.unconsumed_tail
    except zlib.error:
        remaining = -1
    if not is_still or remaining or not unpacker.eof:
        raise UnreadableImage(CUT_SHORT)


def _raw_bytes(content: bytes) -> int:
    """Return the bytes of the unpacked pixels of a PNG that is not interlaced, else -1."""
    width, height, bits, colour_type, *_, interlaced = struct.unpack_from(">II5B", content, 16)
    row_bytes = -(-width * bits * CHANNELS.get(colour_type, 0) // 8)
    return -1 if interlaced else height * (1 + row_bytes)


def _are_frames_in_order(content: bytes, chunks: Sequence[tuple[bytes, int, int]]) -> bool:
    """Return whether an animation's frames are numbered in order, each with its own header.

    Readers show the still picture of a file whose frames are not (PNG, 14.1).
    """
    number, has_frame = 0, False
    if not any(name == b"acTL" for name, _, _ in chunks):
        return True
    for name, start, _ in chunks:
        if name in (b"fcTL", b"fdAT"):
            if int.from_bytes(content[start + 8 : start + 12]) != number:
                return False
            number += 1
        if name == b"fdAT" and not has_frame:
            return False
        has_frame |= name == b"fcTL"
    return True


def xmp(content: bytes) -> bytes | None:
    """Return the XMP packet in the PNG `content`, which is not compressed, or None."""
    for name, start, end in walk(content):
        body = content[start + 8 : end - 4]
        if name == b"iTXt" and body.startswith(XMP_KEYWORD + PLAIN_TEXT):
            return body[len(XMP_KEYWORD + PLAIN_TEXT) :]
    return None


def xmp_chunk(packet: bytes) -> Chunk:
    """Return the chunk of an XMP `packet`."""
    return b"iTXt", XMP_KEYWORD + PLAIN_TEXT + packet


def kept_chunks(content: bytes) -> list[Chunk]:
    """Return the chunks of the cleaned PNG `content` that describe its colours and its density.

    A colour profile is not among them, because Pillow reads it.
    """
    found: dict[bytes, bytes] = {}
    for name, start, end in walk(content):
        if name in KEPT and end - start - CHUNK_OVERHEAD == KEPT[name]:
            found.setdefault(name, content[start + 8 : end - 4])
    return list(found.items())


def turned_density(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return `chunks` with the density across and down exchanged, for a picture on its side."""
    return [
        (name, body[4:8] + body[:4] + body[8:] if name == DENSITY else body)
        for name, body in chunks
    ]


def with_chunks(content: bytes, chunks: Sequence[Chunk]) -> bytes:
    """Return the PNG `content` with `chunks` after its header."""
    added = b"".join(chunk(name, body) for name, body in chunks)
    return content[:IHDR_END] + added + content[IHDR_END:] if added else content


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def walk(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the start and the end of each chunk up to IEND, or to one that ends early.

    Raises UnreadableImage if the first chunk does.
    """
    at = len(SIGNATURE)
    while at + CHUNK_OVERHEAD <= len(content):
        name = content[at + 4 : at + 8]
        end = at + CHUNK_OVERHEAD + int.from_bytes(content[at : at + 4])
        if end > len(content):
            break
        yield name, at, end
        if name == b"IEND":
            return
        at = end
    if at == len(SIGNATURE):
        raise UnreadableImage(CUT_SHORT)


def _is_intact(content: bytes, start: int, end: int) -> bool:
    """Return whether the chunk from `start` to `end` has the stated checksum."""
    view = memoryview(content)
    return zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(view[end - 4 : end])


def _is_critical(name: bytes) -> bool:
    return not name[0] & 0x20
