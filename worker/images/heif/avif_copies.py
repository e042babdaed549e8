"""Copies of AVIF files in which nothing was hidden: the compressed data of a still picture alone.

ISO/IEC 23008-12; AV1-ISOBMFF. The container is written anew around the primary item.
"""

import base64
import struct
from collections.abc import Iterator
from functools import lru_cache

import cv2
import numpy as np

from worker.images.heif import avif

# The properties that describe the pixels, and the bytes of each that do. Others, such as a
# rotation, are reasons not to copy.
PROPERTIES = {b"av1C": 4, b"ispe": 12, b"pixi": 9, b"colr": 11, b"pasp": 8}
NAMED_COLOURS = b"nclx"  # a kind of colr boxes
PROFILES = (b"prof", b"rICC")  # the kinds of colr boxes with an ICC profile
# The units of AV1 that decoders need: sequence header, delimiter, frames and their parts (6.2.2).
UNITS = (1, 2, 3, 4, 6)
FRAMES = (3, 6)  # those that begin a frame
FORBIDDEN, HAS_EXTENSION, HAS_SIZE = 0x80, 4, 2  # bits of a unit's header
# A picture of 16 × 16 pixels with two bytes behind its data that are not zero.
PADDED = base64.b64decode(
    "AAAAHGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZgAAAORtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
    "AAAAAAAAAA5waXRtAAAAAAABAAAAHmlsb2MAAAAARAAAAQABAAAAAQAAAQgAAAAeAAAAI2lpbmYAAAAAAAEAAAAVaW5m"
    "ZQIAAAAAAQAAYXYwMQAAAABoaXBycAAAAElpcGNvAAAAFGlzcGUAAAAAAAAAEAAAABAAAAAOcGl4aQAAAAABCAAAAAxh"
    "djFDgQAcAAAAABNjb2xybmNseAABAA0ABoAAAAAXaXBtYQAAAAAAAAABAAEEgYKDhAAAACZtZGF0EgAKCBgM/9tgIaDU"
    "MB/1FcAALCAAdXt+IGzkQAEB"
)
BRANDS = b"avif" + bytes(4) + b"avifmif1miaf"


def bare(content: bytes, profile: bytes | None) -> bytes | None:
    """Return the AVIF `content` without metadata, or None if it is not a plain still picture.

    `profile` takes the place of its colour profile.
    """
    try:
        return _bare(content, profile)
    except (struct.error, IndexError, avif.Truncated, KeyError):
        return None


def with_profile(content: bytes, profile: bytes) -> bytes:
    """Return the AVIF `content`, a still picture without alpha, with a colour profile."""
    copy = _bare(content, None, (_box(b"colr", PROFILES[0] + profile),))
    assert copy is not None
    return copy


def is_filled(content: bytes) -> bool:
    """Return whether only zeros stand behind the data of each tile of the still AVIF `content`.

    OpenCV decodes with libaom, which refuses other padding (AV1, 5.3.4 and 8.2.4). The decoder of
    Pillow passes over it.
    """
    return _refuses_padding() and _is_decoded(content)


@lru_cache(maxsize=1)
def _refuses_padding() -> bool:
    """Return whether the decoder of OpenCV does so: which one it is depends on the installation."""
    return not _is_decoded(PADDED)


def _is_decoded(content: bytes) -> bool:
    """Return whether OpenCV decodes the AVIF `content`, without a message if it does not."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) is not None
    except cv2.error:
        return False
    finally:
        cv2.utils.logging.setLogLevel(level)


def _bare(content: bytes, profile: bytes | None, further: tuple[bytes, ...] = ()) -> bytes | None:
    """Return the AVIF `content` of its primary item. `further` are property boxes to add."""
    outer = dict(_boxes(content, 0, len(content)))
    meta = outer[b"meta"]
    if b"moov" in outer:
        return None
    parts = dict(_boxes(content, meta[0] + avif.FULL_BOX_BYTES, meta[1]))
    (primary,) = struct.unpack_from(">H", content, parts[b"pitm"][0] + avif.FULL_BOX_BYTES)
    extents = [one for number, *one in avif.items(content, *parts[b"iloc"]) if number == primary]
    properties = _properties(content, parts[b"iprp"], primary, profile)
    if len(extents) != 1 or properties is None:
        return None
    (start, end) = extents[0]
    data = _units(content[start:end])
    if data is None:
        return None
    file_type = _box(b"ftyp", BRANDS)
    properties += further
    head = _meta(properties, 0, len(data))
    offset = len(file_type) + len(head) + 8
    return file_type + _meta(properties, offset, len(data)) + _box(b"mdat", data)


def _properties(
    content: bytes, place: tuple[int, int], item: int, profile: bytes | None
) -> list[bytes] | None:
    """Return the property boxes of `item`, or None if one is of another kind."""
    inner = dict(_boxes(content, *place))
    available = list(_boxes(content, *inner[b"ipco"]))
    found = []
    for number in _associations(content, *inner[b"ipma"])[item]:
        name, (start, end) = available[number - 1]
        body = content[start:end]
        if name not in PROPERTIES:
            return None
        if name == b"colr" and body[:4] in PROFILES:
            if profile is None:
                return None
            found.append(_box(name, body[:4] + profile))
            continue
        if name == b"colr" and body[:4] != NAMED_COLOURS:
            return None
        found.append(_box(name, body[: PROPERTIES[name]]))
    return found if any(one[4:8] == b"av1C" for one in found) else None


def _associations(content: bytes, at: int, end: int) -> dict[int, list[int]]:
    """Return the numbers of the properties of each item, from an ipma box (23008-12, 9.3.1)."""
    version, is_wide = content[at], content[at + 3] & 1
    (count,) = struct.unpack_from(">I", content, at + 4)
    at += 8
    found: dict[int, list[int]] = {}
    for _ in range(min(count, avif.MAX_ITEMS)):
        (item,) = struct.unpack_from(">I" if version else ">H", content, at)
        at += 4 if version else 2
        numbers = content[at]
        size = 2 if is_wide else 1
        mask = 0x7FFF if is_wide else 0x7F
        places = range(at + 1, at + 1 + size * numbers, size)
        found[item] = [int.from_bytes(content[one : one + size]) & mask for one in places]
        at += 1 + size * numbers
        if at > end:
            raise avif.Truncated
    return found


def _units(data: bytes) -> bytes | None:
    """Return AV1 `data` without its metadata and padding.

    Returns None if its units do not fit it, for several frames or headers, and for units with an
    extension: decoders show one frame of one layer, and the others would stay in the file.
    """
    parts: list[bytes] = []
    at = frames = headers = 0
    while at < len(data):
        header, start = data[at], at
        at += 1
        size = len(data) - at
        if header & HAS_SIZE:
            size, at = avif.leb128(data, at, len(data))
        if header & (FORBIDDEN | HAS_EXTENSION) or size > len(data) - at:
            return None
        kind = header >> 3 & 15
        if kind in UNITS:
            parts.append(data[start : at + size])
        frames += kind in FRAMES
        headers += kind == avif.SEQUENCE_HEADER
        at += size
    return b"".join(parts) if frames == headers == 1 else None


def _meta(properties: list[bytes], offset: int, length: int) -> bytes:
    """Return the meta box of one item with `properties`, whose data is at `offset`."""
    places = bytes([0x80 | number for number in range(1, len(properties) + 1)])
    entry = _full_box(b"infe", struct.pack(">HH4s", 1, 0, b"av01") + b"\0", version=2)
    return _full_box(
        b"meta",
        _full_box(b"hdlr", bytes(4) + b"pict" + bytes(13))
        + _full_box(b"pitm", b"\0\1")
        + _full_box(b"iloc", b"\x44\0" + struct.pack(">HHHHII", 1, 1, 0, 1, offset, length))
        + _full_box(b"iinf", b"\0\1" + entry)
        + _box(
            b"iprp",
            _box(b"ipco", b"".join(properties))
            + _full_box(b"ipma", struct.pack(">IHB", 1, 1, len(properties)) + places),
        ),
    )


def _boxes(content: bytes, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield the name of each box, and where its body starts and ends."""
    while at + 8 <= end:
        name, body, at = avif.box(content, at, end)
        yield name, (body, at)


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), name) + body


def _full_box(name: bytes, body: bytes, version: int = 0) -> bytes:
    return _box(name, bytes([version, 0, 0, 0]) + body)
