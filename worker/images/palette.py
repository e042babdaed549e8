"""Pictures of up to 256 colours.

Pixels outside the masks keep their exact colours, pixels inside get the nearest ones.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from worker.pixels import Array

MAX_COLOURS = 256
STRIP_ROWS = 128
COLOURS_PER_STEP = 4096  # colours compared with the palette at a time, to bound the memory


def indexed(pixels: Array, source: Array) -> Image.Image:
    """Return uint8 RGB or RGBA `pixels` as a palette picture.

    `source` is the same picture before masking. If the pixels that masking left alone have more
    than 256 colours, the picture is reduced to the 256 that fit best.
    """
    unmasked, masked = _colours(pixels, source)
    if len(unmasked) > MAX_COLOURS:
        return _reduced(pixels)
    additional = _evenly_chosen(masked, MAX_COLOURS - len(unmasked))
    palette = np.unique(np.concatenate([unmasked, additional]))
    colours = np.union1d(unmasked, masked)
    palette_indices = _nearest(colours, palette)
    indices = np.empty(pixels.shape[:2], np.uint8)
    for rows in _strips(pixels):
        indices[rows] = palette_indices[np.searchsorted(colours, _packed(pixels[rows]))]
    return _palette_image(indices, _unpacked(palette), pixels.shape[2])


def _colours(pixels: Array, source: Array) -> tuple[Array, Array]:
    """Return the packed colours of the pixels that equal `source`, and of the others, sorted."""
    unmasked = masked = np.zeros(0, np.uint32)
    for rows in _strips(pixels):
        colours, is_unmasked = _packed(pixels[rows]), (pixels[rows] == source[rows]).all(axis=-1)
        unmasked = np.union1d(unmasked, colours[is_unmasked])
        masked = np.union1d(masked, colours[~is_unmasked])
    return unmasked, masked


def _strips(pixels: Array) -> Iterator[slice]:
    """Yield strips of rows, so that a large picture needs little additional memory."""
    return (slice(top, top + STRIP_ROWS) for top in range(0, len(pixels), STRIP_ROWS))


def _packed(pixels: Array) -> Array:
    """Return each pixel as one uint32, 0xRRGGBBAA; RGB pixels are opaque."""
    colours: Array = np.zeros(pixels.shape[:2], np.uint32)
    for channel in range(4):
        values = pixels[..., channel] if channel < pixels.shape[2] else np.uint32(255)
        colours = colours << 8 | values
    return colours


def _unpacked(colours: Array) -> Array:
    """Return packed colours as uint8 RGBA [n, 4]."""
    return np.stack([colours >> shift & 255 for shift in (24, 16, 8, 0)], axis=-1).astype(np.uint8)


def _evenly_chosen(colours: Array, count: int) -> Array:
    """Return at most `count` of the sorted `colours`, at even distances in their order."""
    if len(colours) <= count:
        return colours
    chosen: Array = colours[np.linspace(0, len(colours) - 1, count).round().astype(int)]
    return chosen


def _nearest(colours: Array, palette: Array) -> Array:
    """Return the index of the nearest colour of `palette` for each of the packed `colours`.

    Alpha counts as a channel.
    """
    table = _unpacked(palette).astype(np.int32)
    found = [np.zeros(0, np.intp)]
    for start in range(0, len(colours), COLOURS_PER_STEP):
        step = _unpacked(colours[start : start + COLOURS_PER_STEP]).astype(np.int32)
        distance = np.zeros((len(step), len(table)), np.int32)
        for channel in range(4):
            distance += (step[:, channel, None] - table[:, channel]) ** 2
        found.append(distance.argmin(axis=1))
    return np.concatenate(found)


def _reduced(pixels: Array) -> Image.Image:
    """Return `pixels` in 256 colours; with alpha, one of them is for transparent pixels."""
    has_alpha = pixels.shape[2] == 4
    colours = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    image = colours.quantize(
        MAX_COLOURS - has_alpha, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    if not has_alpha:
        return image
    transparent = MAX_COLOURS - 1
    indices = np.array(image)
    indices[pixels[..., 3] == 0] = transparent
    table = np.zeros((MAX_COLOURS, 4), np.uint8)
    palette = np.frombuffer(bytes(image.getpalette() or ()), np.uint8).reshape(-1, 3)[:transparent]
    table[: len(palette), :3] = palette
    table[:transparent, 3] = 255
    return _palette_image(indices, table, 4)


def _palette_image(indices: Array, table: Array, channels: int) -> Image.Image:
    """Return `indices` [h, w] into the RGBA `table` [n, 4] as a palette image."""
    image = Image.fromarray(indices, "P")
    image.putpalette(table[:, :3].tobytes(), "RGB")
    if channels == 4 and (table[:, 3] < 255).any():
        image.info["transparency"] = table[:, 3].tobytes()
    return image
