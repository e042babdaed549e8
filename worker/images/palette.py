"""Pictures of up to 256 colours: what no mask touched keeps its exact colours, masks get the
nearest.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from worker.pixels import Array

MOST = 256
ROWS = 128
AT_A_TIME = 4096  # colours compared with the whole palette at once


def indexed(pixels: Array, source: Array) -> Image.Image:
    """uint8 RGB or RGBA `pixels` as a palette picture; `source` is the same picture before it was
    masked.

    A picture whose untouched pixels alone have more than 256 colours is reduced to 256, those that
    fit best.
    """
    own, covered = _colours(pixels, source)
    if len(own) > MOST:
        return _reduced(pixels)
    palette = np.unique(np.concatenate([own, _spread(covered, MOST - len(own))]))
    known = np.union1d(own, covered)
    places = _nearest(known, palette)
    indices = np.empty(pixels.shape[:2], np.uint8)
    for rows in _blocks(pixels):
        indices[rows] = places[np.searchsorted(known, _keys(pixels[rows]))]
    return _picture(indices, _unpacked(palette), pixels.shape[2])


def _colours(pixels: Array, source: Array) -> tuple[Array, Array]:
    """The colours, as numbers, of the pixels that are as in `source`, and of the others."""
    own = covered = np.zeros(0, np.uint32)
    for rows in _blocks(pixels):
        keys, untouched = _keys(pixels[rows]), (pixels[rows] == source[rows]).all(axis=-1)
        own = np.union1d(own, keys[untouched])
        covered = np.union1d(covered, keys[~untouched])
    return own, covered


def _blocks(pixels: Array) -> Iterator[slice]:
    """Rows that are worked on at a time, so that a large picture needs little more memory."""
    return (slice(top, top + ROWS) for top in range(0, len(pixels), ROWS))


def _keys(pixels: Array) -> Array:
    """Each pixel as one number."""
    keys: Array = np.zeros(pixels.shape[:2], np.uint32)
    for channel in range(4):
        keys = keys << 8 | (pixels[..., channel] if channel < pixels.shape[2] else np.uint32(255))
    return keys


def _unpacked(keys: Array) -> Array:
    return np.stack([keys >> shift & 255 for shift in (24, 16, 8, 0)], axis=-1).astype(np.uint8)


def _spread(keys: Array, count: int) -> Array:
    """At most `count` of `keys`, evenly spread in their order."""
    if len(keys) <= count:
        return keys
    return keys[np.linspace(0, len(keys) - 1, count).round().astype(int)] if count else keys[:0]


def _nearest(keys: Array, palette: Array) -> Array:
    """For each of `keys` the index of the nearest colour of `palette`, transparency counted as a
    channel.
    """
    table = _unpacked(palette).astype(np.int32)
    found = [np.zeros(0, np.intp)]
    for start in range(0, len(keys), AT_A_TIME):
        some = _unpacked(keys[start : start + AT_A_TIME]).astype(np.int32)
        distance = np.zeros((len(some), len(table)), np.int32)
        for channel in range(4):
            distance += (some[:, channel, None] - table[:, channel]) ** 2
        found.append(distance.argmin(axis=1))
    return np.concatenate(found)


def _reduced(pixels: Array) -> Image.Image:
    """`pixels` in 256 colours, one of them for what is transparent."""
    clear = pixels.shape[2] == 4
    colours = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    image = colours.quantize(MOST - clear, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    if not clear:
        return image
    indices = np.array(image)
    indices[pixels[..., 3] == 0] = MOST - 1
    table = np.zeros((MOST, 4), np.uint8)
    palette = np.frombuffer(bytes(image.getpalette() or ()), np.uint8).reshape(-1, 3)[: MOST - 1]
    table[: len(palette), :3] = palette
    table[: MOST - 1, 3] = 255
    return _picture(indices, table, 4)


def _picture(indices: Array, table: Array, channels: int) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette(table[:, :3].tobytes(), "RGB")
    if channels == 4 and (table[:, 3] < 255).any():
        image.info["transparency"] = table[:, 3].tobytes()
    return image
