"""Colour profiles, reduced to the tags that describe colour (ICC.1:2022)."""

import struct
from typing import Any

# The header and its fields (7.2).
HEADER_BYTES = 128
SIZE = slice(0, 4)
DATE = slice(24, 36)
COLOUR_SPACE = slice(16, 20)
SIGNATURE = slice(36, 40)
PROFILE_ID = slice(84, 100)
RESERVED = slice(100, 128)

# The tag table (7.3): the number of tags, then a name, an offset and a size for each.
TABLE_START = HEADER_BYTES + 4
TABLE_ENTRY = ">4sII"
TABLE_ENTRY_BYTES = 12
MAX_TAGS = 100

COLOUR_SPACES = {"L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "CMYK": b"CMYK"}
RGB_COLOUR_SPACE = b"RGB "

# The tags that render colour, and the names that readers require. Tags that tell devices apart are
# left out: Apple's display profiles carry the serial number (mmod) and the model's name in all
# languages (dscm).
KEPT_TAGS = frozenset(
    b"desc cprt wtpt bkpt rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC chad chrm cicp lumi "
    b"A2B0 A2B1 A2B2 A2B3 B2A0 B2A1 B2A2 B2A3 D2B0 D2B1 D2B2 D2B3 B2D0 B2D1 B2D2 B2D3 "
    b"gamt pre0 pre1 pre2 rig0 rig2 tech view meas clrt".split()
)
# The tags for people. Names and copyrights are short; longer ones hold other data.
TEXT_TAGS, MAX_TEXT_BYTES = (b"desc", b"cprt"), 4096


def checked(profile: Any, mode: str) -> bytes | None:
    """Return `profile` with only its colour tags, or None if it does not fit pictures of `mode`.

    None also stands for a profile that is damaged or not `bytes`.
    """
    if not isinstance(profile, bytes) or len(profile) < TABLE_START:
        return None
    if profile[SIGNATURE] != b"acsp" or int.from_bytes(profile[SIZE]) > len(profile):
        return None
    if profile[COLOUR_SPACE] != COLOUR_SPACES.get(mode, RGB_COLOUR_SPACE):
        return None
    count = int.from_bytes(profile[HEADER_BYTES:TABLE_START])
    table_end = TABLE_START + TABLE_ENTRY_BYTES * count
    if not 0 < count <= MAX_TAGS or len(profile) < table_end:
        return None
    tags = list(struct.iter_unpack(TABLE_ENTRY, profile[TABLE_START:table_end]))
    if any(offset < HEADER_BYTES or offset + size > len(profile) for _, offset, size in tags):
        return None
    kept = [tag for tag in tags if _is_kept(*tag)]
    assembled = bytearray(_assembled(profile, kept))
    assembled[RESERVED] = bytes(RESERVED.stop - RESERVED.start)
    if len(kept) < len(tags):
        # A profile of one device alone: the second in which it was made tells it apart, too.
        assembled[DATE] = bytes(DATE.stop - DATE.start)
    return bytes(assembled)


def _is_kept(name: bytes, _offset: int, size: int) -> bool:
    return name in KEPT_TAGS and not (name in TEXT_TAGS and size > MAX_TEXT_BYTES)


def _assembled(profile: bytes, tags: list[tuple[bytes, int, int]]) -> bytes:
    """Return a profile of only these tags, each a name, an offset and a size in `profile`.

    Bytes between the tags and after the last one are dropped.
    """
    start = TABLE_START + TABLE_ENTRY_BYTES * len(tags)
    new_offsets: dict[tuple[int, int], int] = {}  # tags may share their data
    body = b""
    for _, offset, size in tags:
        if (offset, size) not in new_offsets:
            new_offsets[offset, size] = start + len(body)
            body += profile[offset : offset + size] + bytes(-size % 4)
    table = b"".join(
        struct.pack(TABLE_ENTRY, name, new_offsets[offset, size], size)
        for name, offset, size in tags
    )
    header = bytearray(profile[:HEADER_BYTES])
    header[SIZE] = (start + len(body)).to_bytes(4)
    rest = len(tags).to_bytes(4) + table + body
    if rest != profile[HEADER_BYTES:]:
        header[PROFILE_ID] = bytes(16)  # the ID is a digest of the former content
    return bytes(header) + rest
