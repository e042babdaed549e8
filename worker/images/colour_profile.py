"""Colour profiles: only what describes colour is carried over (ICC.1:2022)."""

import struct
from typing import Any

HEADER = 128
SIGNATURE = slice(36, 40)
SPACE = slice(16, 20)
MOST_TAGS = 100
SPACES = {"L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "CMYK": b"CMYK"}
# What renders colour, the names that readers insist on, and nothing that tells one device from
# another: Apple's display profiles carry the serial number (mmod) and the model's name in all
# languages (dscm).
KEPT = frozenset(
    b"desc cprt wtpt bkpt rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC chad chrm cicp lumi "
    b"A2B0 A2B1 A2B2 A2B3 B2A0 B2A1 B2A2 B2A3 D2B0 D2B1 D2B2 D2B3 B2D0 B2D1 B2D2 B2D3 gamt pre0 pre1 pre2 "
    b"rig0 rig2 tech view meas clrt".split()
)


def checked(profile: Any, mode: str) -> bytes | None:
    """`profile` with the tags that describe colour alone; None if it is no profile for pictures of
    `mode`.
    """
    if not isinstance(profile, bytes) or len(profile) < HEADER + 4 or profile[SIGNATURE] != b"acsp":
        return None
    if int.from_bytes(profile[:4]) > len(profile) or profile[SPACE] != SPACES.get(mode, b"RGB "):
        return None
    count = int.from_bytes(profile[HEADER : HEADER + 4])
    if not 0 < count <= MOST_TAGS or len(profile) < HEADER + 4 + 12 * count:
        return None
    tags = list(struct.iter_unpack(">4sII", profile[HEADER + 4 : HEADER + 4 + 12 * count]))
    if any(offset < HEADER or offset + size > len(profile) for _, offset, size in tags):
        return None
    return _assembled(profile, [tag for tag in tags if tag[0] in KEPT])


def _assembled(profile: bytes, tags: list[tuple[bytes, int, int]]) -> bytes:
    """A profile of these tags alone: bytes between them, and after the last, are not carried
    over.
    """
    start = HEADER + 4 + 12 * len(tags)
    places: dict[tuple[int, int], int] = {}
    body = b""
    for _, offset, size in tags:
        if (offset, size) not in places:
            places[offset, size] = start + len(body)
            body += profile[offset : offset + size] + bytes(-size % 4)
    table = b"".join(
        struct.pack(">4sII", name, places[offset, size], size) for name, offset, size in tags
    )
    header = bytearray(profile[:HEADER])
    header[0:4] = (start + len(body)).to_bytes(4)
    rest = len(tags).to_bytes(4) + table + body
    if rest != profile[HEADER:]:
        header[84:100] = bytes(16)  # the profile's ID is a digest of what it was
    return bytes(header) + rest
