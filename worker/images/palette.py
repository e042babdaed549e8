"""Pictures of up to 256 colours: what no mask touched keeps its exact colours, masks get the nearest."""

import numpy as np
from PIL import Image

from worker.images.picture import Array

MOST = 256
AT_A_TIME = 4096  # colours compared with the whole palette at once


def indexed(pixels: Array, source: Array) -> Image.Image:
    """uint8 RGB or RGBA `pixels` as a palette picture; `source` is the same picture before it was masked.

    A picture whose untouched pixels alone have more than 256 colours is reduced to 256, those that fit best.
    """
    colours, keys = _keys(pixels)
    untouched = (pixels == source).all(axis=-1)
    own = np.unique(keys[untouched])
    if len(own) > MOST:
        return _reduced(pixels)
    covered = np.unique(keys[~untouched])
    palette = np.concatenate([own, _spread(covered, MOST - len(own))])
    if not len(palette):
        palette = covered[:1]
    palette = np.unique(palette)
    nearest = np.searchsorted(palette, own)
    known = np.concatenate([own, covered])
    places = np.concatenate([nearest, _nearest(covered, palette)])
    order = np.argsort(known, kind="stable")
    indices = places[order][np.searchsorted(known[order], keys)].astype(np.uint8)
    return _picture(indices, _unpacked(palette), colours)


def _keys(pixels: Array) -> tuple[int, Array]:
    """The channels, and each pixel as one number."""
    channels = pixels.shape[2]
    keys: Array = np.zeros(pixels.shape[:2], np.uint32)
    for channel in range(4):
        keys = keys << 8 | (pixels[..., channel] if channel < channels else np.uint32(255))
    return channels, keys


def _unpacked(keys: Array) -> Array:
    return np.stack([keys >> shift & 255 for shift in (24, 16, 8, 0)], axis=-1).astype(np.uint8)


def _spread(keys: Array, count: int) -> Array:
    """At most `count` of `keys`, evenly spread in their order."""
    if len(keys) <= count:
        return keys
    return keys[np.linspace(0, len(keys) - 1, count).round().astype(int)] if count else keys[:0]


def _nearest(keys: Array, palette: Array) -> Array:
    """For each of `keys` the index of the nearest colour of `palette`, transparency counted as a channel."""
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
    if pixels.shape[2] == 3:
        return Image.fromarray(pixels).quantize(MOST, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return Image.fromarray(pixels).quantize(MOST, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def _picture(indices: Array, table: Array, channels: int) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette(table[:, :3].tobytes(), "RGB")
    if channels == 4 and (table[:, 3] < 255).any():
        image.info["transparency"] = table[:, 3].tobytes()
    return image
