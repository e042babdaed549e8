"""Write a JPEG in which only the blocks that a mask touches are compressed again.

All other blocks keep their quantized coefficients, and the file its tables, subsampling, scans and
restart intervals. T.81 calls the planes of a JPEG components; a component with less resolution has
larger blocks in pixels of the picture.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tasks.errors import VeilError
from worker.images import jpeg, jpeg_scans
from worker.images.jpeg_transcoder import Patch, Scan, TranscodingFailed, transcoded
from worker.images.picture import Frame
from worker.pixels import Array

Mask = NDArray[np.bool_]
"""Which pixels of a picture, [height, width], or which blocks of a component, are replaced."""

SIDE = 8  # samples; the side of a block
PATCH_COLUMNS = 1024  # blocks of a patch in a row
STRIP_BLOCKS = 8192  # blocks computed at a time, to save memory
CODED_BY_HUFFMAN = (0xC0, 0xC1, 0xC2)  # frame headers
# A Huffman table with so many symbols has all that occur in pictures of 8 bits.
ALL_SYMBOLS = {0: 12, 1: 162}  # by class: DC, AC
# Bytes of a coefficient, and of everything else that the transcoder needs for a byte of the file.
COEFFICIENT_BYTES, WORKING_BYTES = 2, 4
# Viewers interpolate the chroma of adjacent pixels, so these may change beside a replaced block.
NEIGHBOURS = np.ones((3, 3), np.uint8)
# The colours of components. Plain ones are RGB or CMYK.
GRAY, YCC, PLAIN, YCCK = "gray", "YCbCr", "plain", "YCCK"
BLACK, CMYK_CHANNELS = 3, 4  # the number of the component K, and of all


@dataclass(frozen=True)
class _Component:
    """A component: each of its samples covers `across` x `down` pixels.

    `table` is its quantization table.
    """

    across: int
    down: int
    table: Sequence[int]


@dataclass(frozen=True)
class _Layout:
    """The components of a JPEG, their colours, and the size of an MCU in pixels."""

    components: Sequence[_Component]
    colours: str
    mcu_width: int
    mcu_height: int


def encode(content: bytes, original: Frame, new: Array, changed: Mask) -> bytes | None:
    """Return the JPEG `content` with the pixels `new` where they are `changed`.

    `content` is reassembled, and every decoder agrees on it (`worker.images.jpeg_scans`).
    `original` is its frame. Blocks without a changed pixel keep their coefficients. Returns None
    for arithmetic coding and rare subsamplings, and if the result is not what it should be.
    """
    layout = _layout(content)
    if layout is None or not changed.any():
        return None
    blocks = _touched(changed, layout)
    patches = [
        _patch(number, layout, new, blocks[number]) for number in range(len(layout.components))
    ]
    try:
        output = _merged(content, patches, layout, changed.size)
        return output if _is_right(output, original, patches, blocks, layout) else None
    except (TranscodingFailed, VeilError):
        return None


def _layout(content: bytes) -> _Layout | None:
    """Return the layout of a JPEG, or None if its blocks can't be replaced."""
    segments = jpeg.parsed(content)
    frame = next(segment for segment in segments if segment.marker in jpeg.FRAME_HEADERS)
    image = JpegImageFile(io.BytesIO(content))
    factors = [(horizontal, vertical) for _, horizontal, vertical, _ in image.layer]
    tables = [image.quantization.get(table) for _, _, _, table in image.layer]
    widest = max(horizontal for horizontal, _ in factors)
    highest = max(vertical for _, vertical in factors)
    is_regular = all(widest % across == 0 and highest % down == 0 for across, down in factors)
    if frame.marker not in CODED_BY_HUFFMAN or not is_regular or not all(tables):
        return None
    components = [
        _Component(widest // across, highest // down, table)
        for (across, down), table in zip(factors, tables, strict=True)
    ]
    return _Layout(components, _colours(content, len(components)), SIDE * widest, SIDE * highest)


def _colours(content: bytes, components: int) -> str:
    if components == 1:
        return GRAY
    adobe = [segment.body for segment in jpeg.parsed(content) if segment.marker == jpeg.APP14]
    if adobe and adobe[0][jpeg_scans.ADOBE_TRANSFORM] == jpeg_scans.NO_TRANSFORM:
        return PLAIN
    return YCC if components == 3 else YCCK


def _touched(changed: Mask, layout: _Layout) -> list[Mask]:
    """Return the blocks of each component in which a pixel is changed.

    Pixels beyond the picture's edge count as those at the edge, so that nothing of a face remains
    there.
    """
    height, width = changed.shape
    beyond = (0, -height % layout.mcu_height), (0, -width % layout.mcu_width)
    padded = np.ascontiguousarray(np.pad(changed, beyond, mode="edge"))
    # Eight pixels are compared at once.
    rows = padded.view(np.uint64) != 0
    squares = rows.reshape(-1, SIDE, rows.shape[1]).any(axis=1)
    return [
        squares.reshape(
            squares.shape[0] // one.down, one.down, squares.shape[1] // one.across, one.across
        ).any(axis=(1, 3))
        for one in layout.components
    ]


def _patch(number: int, layout: _Layout, new: Array, blocks: Mask) -> Patch:
    """Return the replacement of `blocks` of the component `number`."""
    one = layout.components[number]
    places = np.argwhere(blocks)
    samples = np.empty((len(places), SIDE, SIDE), np.uint8)
    for first in range(0, len(places), STRIP_BLOCKS):
        strip = slice(first, first + STRIP_BLOCKS)
        pixels = _squares(new, places[strip], SIDE * one.down, SIDE * one.across)
        plane = _samples(pixels, layout.colours, number)
        samples[strip] = _averages(plane.reshape(-1, SIDE, one.down, SIDE, one.across))
    content = _written(_grid(samples), one.table) if len(samples) else b""
    return Patch(number, content, places[:, ::-1].astype(np.uint32))


def _squares(plane: Array, places: NDArray[np.intp], height: int, width: int) -> Array:
    """Return the squares of `height` x `width` pixels of `plane` at `places`, [n, h, w, …].

    Pixels beyond the edge are those at the edge.
    """
    rows = np.minimum(places[:, :1] * height + np.arange(height), plane.shape[0] - 1)
    columns = np.minimum(places[:, 1:] * width + np.arange(width), plane.shape[1] - 1)
    squares: Array = plane[rows[:, :, None], columns[:, None, :]]
    return squares


def _samples(pixels: Array, colours: str, number: int) -> Array:
    """Return the samples uint8 [n, h, w] of the component `number` of `pixels` [n, h, w, …]."""
    if colours == GRAY:
        return pixels
    if colours == PLAIN or number == BLACK:
        return _stored(pixels[..., number], pixels.shape[-1])
    flat = np.ascontiguousarray(pixels[..., :3]).reshape(-1, pixels.shape[2], 3)
    converted = np.asarray(Image.fromarray(flat).convert("YCbCr"))
    return converted[..., number].reshape(pixels.shape[:3])


def _stored(channel: Array, channels: int) -> Array:
    """Return a channel of a picture of so many channels as a JPEG stores it.

    CMYK is stored inverted: see `worker.images.jpeg`.
    """
    return 255 - channel if channels == CMYK_CHANNELS else channel


def _averages(samples: Array) -> Array:
    """Return the rounded averages of uint8 `samples` [n, h, down, w, across] as [n, h, w]."""
    size = samples.shape[2] * samples.shape[4]
    if size == 1:
        return samples[:, :, 0, :, 0]
    return ((samples.sum(axis=(2, 4), dtype=np.uint32) + size // 2) // size).astype(np.uint8)


def _grid(samples: Array) -> Array:
    """Return blocks [n, 8, 8] as a picture, row by row; the last row may be filled with zeros."""
    columns = min(len(samples), PATCH_COLUMNS)
    rows = -(-len(samples) // columns)
    blocks = np.zeros((rows * columns, SIDE, SIDE), np.uint8)
    blocks[: len(samples)] = samples
    grid = blocks.reshape(rows, columns, SIDE, SIDE).swapaxes(1, 2)
    return grid.reshape(rows * SIDE, columns * SIDE)


def _written(grid: Array, table: Sequence[int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grid).save(file, "JPEG", qtables=[table])
    return file.getvalue()


def _merged(content: bytes, patches: Sequence[Patch], layout: _Layout, pixels: int) -> bytes:
    """Return the JPEG `content`, of so many `pixels`, with `patches`.

    It keeps its own segments before the scans.
    """
    segments = jpeg.parsed(content)
    samples = sum(pixels // (one.across * one.down) for one in layout.components)
    samples += sum(SIDE * SIDE * len(patch.places) for patch in patches)
    memory = COEFFICIENT_BYTES * samples + WORKING_BYTES * len(content)
    optimize = not _has_all_symbols(segments)
    used = [patch for patch in patches if len(patch.places)]
    output = transcoded(content, used, _scans(segments), optimize, memory)
    first_scan = [segment.marker for segment in segments].index(jpeg.SOS)
    coding = (jpeg.DHT, jpeg.DRI, jpeg.SOS)
    kept = [segment for segment in segments[:first_scan] if segment.marker not in coding]
    kept += [segment for segment in jpeg.parsed(output) if segment.marker in coding]
    written = (segment.written() for segment in kept)
    return b"".join([jpeg.START_OF_IMAGE, *written, jpeg.END_OF_IMAGE])


def _scans(segments: Sequence[jpeg.Segment]) -> list[Scan]:
    frame = next(segment.body for segment in segments if segment.marker in jpeg.FRAME_HEADERS)
    names = frame[6::3]
    scans = []
    for segment in segments:
        if segment.marker == jpeg.SOS:
            components = [names.index(name) for name in segment.body[1:-3:2]]
            first, last, approximation = segment.body[-3:]
            scans.append(Scan(components, first, last, approximation >> 4, approximation & 15))
    return scans


def _has_all_symbols(segments: Sequence[jpeg.Segment]) -> bool:
    """Return whether the Huffman tables of a JPEG of one scan can code every block."""
    if sum(segment.marker == jpeg.SOS for segment in segments) > 1:
        return False
    for segment in segments:
        at = 0
        while segment.marker == jpeg.DHT and at < len(segment.body):
            symbols = sum(segment.body[at + 1 : at + 17])
            if symbols < ALL_SYMBOLS[segment.body[at] >> 4]:
                return False
            at += 17 + symbols
    return True


def _is_right(
    output: bytes,
    original: Frame,
    patches: Sequence[Patch],
    blocks: Sequence[Mask],
    layout: _Layout,
) -> bool:
    """Return whether `output` has the pixels of `patches` and otherwise those of `original`.

    simplejpeg's library decodes it, which shares no code with the transcoder.
    """
    if not jpeg_scans.all_agree(output):
        return False
    decoded = jpeg.decoded(output, original.mode)
    if decoded.shape != original.pixels.shape:
        return False
    planes = _full_planes(output, decoded, layout)
    if not planes or not all(_has_blocks(planes[number], patches[number]) for number in planes):
        return False
    near = _near(blocks, layout, decoded.shape[:2])
    cv2.copyTo(original.pixels, near, decoded)
    return np.array_equal(decoded, original.pixels)


def _full_planes(output: bytes, decoded: Array, layout: _Layout) -> dict[int, Array]:
    """Return components of `output` that a decoder shows exactly, by their number."""
    if layout.colours == GRAY:
        planes = {0: decoded}
    elif layout.colours == YCC:
        planes = {0: jpeg.decoded(output, "L")}
    else:
        shown = range(decoded.shape[2]) if layout.colours == PLAIN else [BLACK]
        planes = {number: _stored(decoded[..., number], decoded.shape[2]) for number in shown}
    components = layout.components
    is_full = {one: components[one].across * components[one].down == 1 for one in planes}
    return {number: plane for number, plane in planes.items() if is_full[number]}


def _has_blocks(plane: Array, patch: Patch) -> bool:
    """Return whether the blocks of `patch` are in `plane`, where they are within its edges."""
    if not len(patch.places):
        return True
    expected = _blocks(jpeg.decoded(patch.content, "L"), len(patch.places))
    places = patch.places[:, ::-1].astype(np.intp)
    height, width = plane.shape
    beyond_below = places[:, :1] * SIDE + np.arange(SIDE) >= height
    beyond_right = places[:, 1:] * SIDE + np.arange(SIDE) >= width
    differs = _squares(plane, places, SIDE, SIDE) != expected
    return not (differs & ~beyond_below[:, :, None] & ~beyond_right[:, None, :]).any()


def _blocks(grid: Array, count: int) -> Array:
    """Return the first `count` blocks [n, 8, 8] of a picture that `_grid` made."""
    rows, columns = grid.shape[0] // SIDE, grid.shape[1] // SIDE
    blocks = grid.reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2)
    return blocks.reshape(-1, SIDE, SIDE)[:count]


def _near(blocks: Sequence[Mask], layout: _Layout, size: Sequence[int]) -> NDArray[np.uint8]:
    """Return which pixels, 1 or 0, replaced `blocks` may change: their own, and adjacent ones."""
    height, width = size
    near = np.zeros((height, width), np.uint8)
    for replaced, one in zip(blocks, layout.components, strict=True):
        scale = SIDE * one.down, SIDE * one.across
        whole = replaced.repeat(scale[0], axis=0)[:height].repeat(scale[1], axis=1)[:, :width]
        near |= whole
    return np.asarray(cv2.dilate(near, NEIGHBOURS), np.uint8)
