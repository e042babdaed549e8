"""The chunks of a PNG: those that its pixels and colours need (PNG, third edition).

Pillow does not check the checksums of the pixels, and refuses long texts.
"""

import zlib
from collections.abc import Collection, Iterator, Sequence

from PIL import PngImagePlugin

from tasks.errors import UnreadableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_OVERHEAD = 12  # length, name and checksum
# The header is always the first chunk. It has the bits of a channel and the colour type, a bit of
# which stands for alpha.
BITS, COLOUR_TYPE, IHDR_END = 24, 25, 33
ALPHA = 4

# The chunks that hold the pixels, besides those that every reader must know.
PIXELS = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
# The chunks that describe colour or orientation, with the length of their bodies, 0 for any.
COLOUR = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4}
GAMMA_UNIT = 100_000  # gAMA is in hundred thousandths
DESCRIBING = {**COLOUR, b"iCCP": 0, b"eXIf": 0, b"pHYs": 9}
# The other chunks of the standard.
DROPPED = frozenset({b"tEXt", b"zTXt", b"iTXt", b"tIME", b"sBIT", b"bKGD", b"hIST", b"sPLT"})

Chunk = tuple[bytes, bytes]
"""The name and the body of a chunk."""

WRONG_CHECKSUM = "the PNG had a wrong checksum in {names}, which no pixel depends on"

# The texts of a PNG are dropped before Pillow opens it. This is the limit of a colour profile.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 16 << 20


def cleaned(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the PNG `content` with only the chunks that its pixels and colours need, and notes.

    Raises UnreadableImage if a chunk that its pixels need is damaged or missing.
    """
    parts, damaged = [SIGNATURE], set()
    for name, start, end in _chunks(content):
        is_ancillary = name in DESCRIBING or name in DROPPED
        if not _is_intact(content, start, end):
            if not is_ancillary:
                raise UnreadableImage("this PNG is damaged or cut short: a checksum in it is wrong")
            damaged.add(name.decode())
        elif name in DESCRIBING or name in PIXELS or _is_critical(name):
            parts.append(content[start:end])
    if not damaged:
        return b"".join(parts), ()
    return b"".join(parts), (WRONG_CHECKSUM.format(names=", ".join(sorted(damaged))),)


def colour_chunks(content: bytes) -> list[Chunk]:
    """Return the chunks of the cleaned PNG `content` that describe its colours.

    A colour profile is not among them, because Pillow reads it.
    """
    return described(content, COLOUR)


def described(content: bytes, names: Collection[bytes]) -> list[Chunk]:
    """Return the chunks `names` of the cleaned PNG `content` that have the length of their kind."""
    found: dict[bytes, bytes] = {}
    for name, start, end in _chunks(content):
        body = content[start + 8 : end - 4]
        if name in names and len(body) == DESCRIBING[name]:
            found.setdefault(name, body)
    return list(found.items())


def with_chunks(content: bytes, chunks: Sequence[Chunk]) -> bytes:
    """Return the PNG `content` with `chunks` after its header."""
    added = b"".join(chunk(name, body) for name, body in chunks)
    return content[:IHDR_END] + added + content[IHDR_END:] if added else content


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the start and the end of each chunk up to IEND.

    Raises UnreadableImage if one of them is not in the file.
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
    raise UnreadableImage("this PNG is damaged or cut short: its chunks do not lead to an end")


def _is_intact(content: bytes, start: int, end: int) -> bool:
    """Return whether the chunk from `start` to `end` has the stated checksum."""
    view = memoryview(content)
    return zlib.crc32(view[start + 4 : end - 4]) == int.from_bytes(view[end - 4 : end])


def _is_critical(name: bytes) -> bool:
    return not name[0] & 0x20
