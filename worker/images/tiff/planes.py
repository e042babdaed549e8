"""Pages of 16 bits whose planes are stored one after the other, as Photoshop writes "per channel".

Pillow reads them wrongly, and OpenCV too. Each plane is read as a gray TIFF of its own.
"""

import io
import struct
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image

from tasks.errors import UnreadableImage, UnsupportedImage
from worker.images.tiff.directories import STRIPS, TILES, Tag
from worker.pixels import Array

# What says how to read the data of a plane, besides the tags that are written anew.
COPIED = (
    Tag.IMAGE_WIDTH,
    Tag.IMAGE_LENGTH,
    Tag.COMPRESSION,
    Tag.FILL_ORDER,
    Tag.ROWS_PER_STRIP,
    Tag.PREDICTOR,
    Tag.TILE_WIDTH,
    Tag.TILE_LENGTH,
)
LONG = 4
BLACK_IS_ZERO = 1


def read(image: Any, content: bytes) -> Array:
    """Return the page that Pillow's `image` is at, which has planes, as uint16 [h, w, planes].

    Raises UnreadableImage for parts that do not fit the planes, UnsupportedImage for planes of
    other depths.
    """
    directory = image.tag_v2
    count = directory.get(Tag.SAMPLES_PER_PIXEL, 1)
    offsets_tag, lengths_tag = TILES if Tag.TILE_OFFSETS in directory else STRIPS
    offsets, lengths = directory[offsets_tag], directory[lengths_tag]
    if set(directory[Tag.BITS_PER_SAMPLE]) != {16}:
        raise UnsupportedImage("TIFFs with planes of different depths are not handled")
    if len(offsets) % count:
        raise UnreadableImage("this TIFF is damaged: its planes have different numbers of parts")
    parts = len(offsets) // count
    planes = []
    for start in range(0, len(offsets), parts):
        chosen = slice(start, start + parts)
        data = [
            content[offset : offset + length]
            for offset, length in zip(offsets[chosen], lengths[chosen], strict=True)
        ]
        file = _gray_file(directory, content[:2], data, offsets_tag, lengths_tag)
        with Image.open(io.BytesIO(file), formats=("TIFF",)) as plane:
            planes.append(np.asarray(plane).astype(np.uint16))
    return np.stack(planes, axis=-1)


def _gray_file(
    directory: Any, byte_order: bytes, parts: list[bytes], offsets_tag: Tag, lengths_tag: Tag
) -> bytes:
    """Return a gray TIFF of 16 bits whose strips or tiles are `parts`."""
    order = "<" if byte_order == b"II" else ">"
    entries: dict[int, tuple[int, ...]] = {
        tag: (int(directory[tag]),) for tag in COPIED if tag in directory
    }
    entries[Tag.BITS_PER_SAMPLE] = (16,)
    entries[Tag.PHOTOMETRIC_INTERPRETATION] = (BLACK_IS_ZERO,)
    lengths = tuple(map(len, parts))
    entries[lengths_tag] = lengths
    body = 8
    entries[offsets_tag] = tuple(accumulate(lengths[:-1], initial=body))
    content = bytearray(b"".join(parts))
    fields = b""
    for tag, values in sorted(entries.items()):
        value = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            place = struct.pack(f"{order}I", body + len(content))
            content += value
            value = place
        fields += struct.pack(f"{order}HHI", tag, LONG, len(values)) + value
    header = byte_order + struct.pack(f"{order}HI", 42, body + len(content))
    table = struct.pack(f"{order}H", len(entries)) + fields + bytes(4)
    return header + bytes(content) + table
