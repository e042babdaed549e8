"""HEIC files of any structure around pictures that ImageMagick compresses (ISO/IEC 23008-12)."""

import base64
import io
import struct
import subprocess
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

# The values of a picture of 10 bits, and its data, which pillow-heif 1.8.1 wrote with x265.
ten_y, ten_x = np.mgrid[:64, :96]
TEN_BIT_VALUES = (
    (
        np.stack([ten_x * 5 + ten_y * 3, ten_y * 14 + ten_x, 1000 - ten_x * 4 - ten_y * 6], axis=-1)
        + 20
    )
    .clip(0, 1023)
    .astype(np.uint16)
)
TEN_BIT_CONFIGURATION = base64.b64decode(
    "AAAAeGh2Y0MBBAgAAACcOAAAAAAe8AD8//r6AAAPA2AAAQAXQAEMAf//BAgAAAMAnDgAAAMAAB66AkBhAAEAK0IBAQQI"
    "AAADAJw4AAADAAAekAYQIJst1JJTXNwENBgQAAADAZAAAAMAEIBiAAEACEQBwXKGDAIk"
)
TEN_BIT_DATA = base64.b64decode(
    "AAABWigBrwY46yj0/npUfrBsyCXyoIrqkPFV8MHJv/Tsj/ZFWfladolvKK9J9uUZSuapdF0Shb4g+2sJXdf5bsXOKnRr"
    "DpnBUb++Okt6jzjCzwEvYjC3Cc/exDUlRERcZgjdONSatcX+1wdYvpzAzpbSuAtsnj2+UlwJ6hHuEU1mtbb5zWhEyzHv"
    "qmP+7FBih1Wum4jbk3EkKQPx8uy89E3zXp/7vTcxkuEYEzWpXmx8Ot7usWyvhJY3CGyVo+E5hGxYytFStnR8ZFK6C1uK"
    "e8X53bNPI2ETdwvx3yvIiiCTckbXB54uXjcOsqgDzq6VFMEqHar9dT6/NV2DmOIZx77UPXwbuKmlvMqK/6DGhOal0VvK"
    "nn4a0GFaVqEtE0vvUU591PFffxdHi+uxBqwfl9mUViP1y+8wH22uUQEUNgGNitzIPQqzPZwNJY8B4WNG+kp8Iz4N8V65"
    "Kn3EU2g="
)


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def full_box(name: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


def ispe(width: int, height: int) -> bytes:
    return full_box(b"ispe", struct.pack(">II", width, height))


def turned(quarters: int) -> bytes:
    """Return the property of a rotation by quarters, anticlockwise."""
    return box(b"irot", bytes([quarters]))


def mirrored(axis: int) -> bytes:
    return box(b"imir", bytes([axis]))


def named_colours(primaries: int, transfer: int) -> bytes:
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, 6, 0x80))


def profile(content: bytes) -> bytes:
    return box(b"colr", b"prof", content)


def auxiliary(kind: str) -> bytes:
    return full_box(b"auxC", kind.encode() + b"\0")


@dataclass
class Item:
    """One item: its type, its data, its property boxes, and its references to other items."""

    kind: bytes
    data: bytes
    properties: list[bytes] = field(default_factory=list)
    references: dict[bytes, list[int]] = field(default_factory=dict)
    hidden: bool = False


def coded(convert: str, image: Image.Image, *properties: bytes, **more: object) -> Item:
    """Return an item of `image`, compressed by the program `convert`."""
    source = io.BytesIO()
    image.save(source, "PNG")
    content = subprocess.run(
        [convert, "png:-", "-quality", "95", "heic:-"],
        input=source.getvalue(),
        capture_output=True,
        check=True,
    ).stdout
    at = content.index(b"hvcC") - 4
    configuration = content[at : at + int.from_bytes(content[at : at + 4])]
    data = content[content.index(b"mdat") + 4 :]
    size = ispe(*image.size)
    return Item(b"hvc1", data, [configuration, size, *properties], **more)  # type: ignore[arg-type]


def ten_bits(*properties: bytes, **more: object) -> Item:
    """Return an item of TEN_BIT_VALUES."""
    height, width = TEN_BIT_VALUES.shape[:2]
    described = [TEN_BIT_CONFIGURATION, ispe(width, height), *properties]
    return Item(b"hvc1", TEN_BIT_DATA, described, **more)  # type: ignore[arg-type]


def grid(rows: int, columns: int, width: int, height: int, tiles: list[int]) -> Item:
    data = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    return Item(b"grid", data, [ispe(width, height)], {b"dimg": tiles})


def exif(content: bytes, of: int) -> Item:
    return Item(b"Exif", b"\0\0\0\6Exif\0\0" + content, [], {b"cdsc": [of]})


def file(items: list[Item], primary: int = 1, brand: bytes = b"heic") -> bytes:
    """Return the HEIC of `items`, which are numbered from 1."""
    kinds = box(b"ftyp", brand, bytes(4), b"mif1", b"heic")
    without = _meta(items, primary, [0] * len(items))
    start = len(kinds) + len(without) + 8
    offsets = []
    for item in items:
        offsets.append(start)
        start += len(item.data)
    data = b"".join(item.data for item in items)
    return kinds + _meta(items, primary, offsets) + box(b"mdat", data)


def _meta(items: list[Item], primary: int, offsets: list[int]) -> bytes:
    properties: list[bytes] = []
    associations = locations = infos = references = b""
    for number, item in enumerate(items, 1):
        places = b""
        for one in item.properties:
            if one not in properties:
                properties.append(one)
            places += bytes([0x80 | properties.index(one) + 1])
        if item.properties:
            associations += struct.pack(">HB", number, len(item.properties)) + places
        locations += struct.pack(">HHHII", number, 0, 1, offsets[number - 1], len(item.data))
        infos += full_box(
            b"infe", struct.pack(">HH4s", number, 0, item.kind), b"\0",
            version=2, flags=int(item.hidden),
        )  # fmt: skip
        for kind, targets in item.references.items():
            numbers = struct.pack(f">HH{len(targets)}H", number, len(targets), *targets)
            references += box(kind, numbers)
    described = sum(bool(item.properties) for item in items)
    return full_box(
        b"meta",
        full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
        full_box(b"pitm", struct.pack(">H", primary)),
        full_box(b"iloc", b"\x44\0", struct.pack(">H", len(items)), locations),
        full_box(b"iinf", struct.pack(">H", len(items)), infos),
        full_box(b"iref", references) if references else b"",
        box(
            b"iprp",
            box(b"ipco", *properties),
            full_box(b"ipma", struct.pack(">I", described), associations),
        ),
    )
