"""Write a JPEG in which only the blocks that a mask touches are compressed again.

All other blocks keep their quantized coefficients, and the file its tables, subsampling, scans and
restart intervals. T.81 calls the planes of a JPEG components; a component with less resolution has
larger blocks in pixels of the picture.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tasks.errors import VeilError
from worker.images.jpeg import markers
from worker.images.jpeg.decoding import strictly_decoded
from worker.images.jpeg.scans import ADOBE_TRANSFORM, NO_TRANSFORM
from worker.images.jpeg.segments import Segment, parsed
from worker.images.jpeg.transcoder import (
    Patch,
    Scan,
    TranscodingFailed,
    spliced,
    transcoded,
)
from worker.images.picture import Frame
from worker.pixels import Array

Mask = NDArray[np.bool_]
"""Which pixels of a picture, [height, width], or which blocks of a component, are replaced."""

SIDE = 8  # samples; the side of a block
# A picture that is mostly changed has little to keep. Blocks of up to half of a picture take 25
# bytes of memory a pixel; with this many pixels, they stay within what `docs/promises.md` states
# for the largest picture.
MOST_CHANGED, MOST_PIXELS = 0.5, 100_000_000
PATCH_COLUMNS = 1024  # blocks of a patch in a row
# Blocks computed at a time, and rows of pixels compared at a time, to save memory.
STRIP_BLOCKS, STRIP_ROWS = 8192, 128
HANDLED = (0xC0, 0xC1, 0xC2)  # frame headers: sequential and progressive, with Huffman coding
CODING = (markers.DHT, markers.DRI, markers.SOS)  # segments that are written anew
# Bytes of a coefficient, and of everything else that the transcoder needs for a byte of the file.
COEFFICIENT_BYTES, WORKING_BYTES = 2, 4
# Viewers interpolate the chroma of adjacent pixels, so these may change beside a replaced block.
NEIGHBOURS = np.ones((3, 3), np.uint8)
# The colours of components. Plain ones are RGB or CMYK.
GRAY, YCC, PLAIN, YCCK = "gray", "YCbCr", "plain", "YCCK"
MAX_LUMA_ROUNDING = 2
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

    `content` is reassembled, and every decoder agrees on it (`worker.images.jpeg.scans`).
    `original` is its frame. Blocks without a changed pixel keep their coefficients. Returns None
    for arithmetic coding and rare subsamplings, if the picture is too large or mostly changed, if
    the memory does not suffice, and if the result is not what it should be.
    """
    count = np.count_nonzero(changed)
    if not count:
        return content
    if changed.size > MOST_PIXELS or count > MOST_CHANGED * changed.size:
        return None
    segments = parsed(content)
    layout = layout_of(segments)
    if layout is None:
        return None
    try:
        blocks = touched_blocks(changed, layout)
        patches = _patches(layout, new, blocks)
        output = _merged(content, segments, patches, layout, changed.size)
        return output if _is_right(output, original, patches, blocks, layout) else None
    except (TranscodingFailed, VeilError, MemoryError, cv2.error):
        return None


def layout_of(segments: Sequence[Segment]) -> _Layout | None:
    """Return the layout of a JPEG, or None if its blocks can't be replaced."""
    header = [one for one in segments if one.marker in (*markers.FRAME_HEADERS, markers.DQT)]
    written = b"".join(segment.written() for segment in header)
    first_scan = next(segment for segment in segments if segment.marker == markers.SOS)
    opened = JpegImageFile(io.BytesIO(markers.START_OF_IMAGE + written + first_scan.written()[:64]))
    factors = [(horizontal, vertical) for _, horizontal, vertical, _ in opened.layer]
    tables = [opened.quantization[table] for _, _, _, table in opened.layer]
    widest = max(horizontal for horizontal, _ in factors)
    highest = max(vertical for _, vertical in factors)
    is_regular = all(widest % across == 0 and highest % down == 0 for across, down in factors)
    is_handled = all(one.marker in HANDLED for one in header if one.marker != markers.DQT)
    if not is_regular or not is_handled:
        return None
    components = [
        _Component(widest // across, highest // down, table)
        for (across, down), table in zip(factors, tables, strict=True)
    ]
    return _Layout(components, _colours(segments, len(components)), SIDE * widest, SIDE * highest)


def _colours(segments: Sequence[Segment], components: int) -> str:
    if components == 1:
        return GRAY
    adobe = [segment.body for segment in segments if segment.marker == markers.APP14]
    if adobe and adobe[0][ADOBE_TRANSFORM] == NO_TRANSFORM:
        return PLAIN
    return YCC if components == 3 else YCCK


def touched_blocks(changed: Mask, layout: _Layout) -> list[Mask]:
    """Return the blocks of each component in which a pixel is changed.

    Pixels beyond the picture's edge count as those at the edge, so that nothing of a face remains
    there.
    """
    height, width = changed.shape
    beyond = 0, -height % layout.mcu_height, 0, -width % layout.mcu_width
    padded = changed.view(np.uint8)
    if any(beyond):
        bordered = cv2.copyMakeBorder(padded, *beyond, cv2.BORDER_REPLICATE)
        padded = np.asarray(bordered, np.uint8)
    # Eight pixels are compared at once.
    rows = padded.view(np.uint64) != 0
    squares = rows.reshape(-1, SIDE, rows.shape[1]).any(axis=1)
    down, across = squares.shape
    return [
        squares.reshape(down // one.down, one.down, across // one.across, one.across).any((1, 3))
        for one in layout.components
    ]


def _patches(layout: _Layout, new: Array, blocks: Sequence[Mask]) -> list[Patch]:
    """Return the replacements of the `blocks` of each component.

    Components of the same resolution have the same blocks, whose colours are converted once.
    """
    patches: dict[int, Patch] = {}
    for kind in {(one.across, one.down) for one in layout.components}:
        numbers = [
            number for number, one in enumerate(layout.components) if (one.across, one.down) == kind
        ]
        places = np.argwhere(blocks[numbers[0]])
        samples = _new_samples(layout, numbers, new, places)
        for number, plane in zip(numbers, samples, strict=True):
            content = _written(_grid(plane), layout.components[number].table)
            patches[number] = Patch(number, content, places[:, ::-1].astype(np.uint32))
    return [patches[number] for number in sorted(patches)]


def _new_samples(
    layout: _Layout, numbers: Sequence[int], new: Array, places: NDArray[np.intp]
) -> list[Array]:
    """Return the blocks [n, 8, 8] at `places` of each component of `numbers`, of the same size."""
    one = layout.components[numbers[0]]
    samples = [np.empty((len(places), SIDE, SIDE), np.uint8) for _ in numbers]
    for first in range(0, len(places), STRIP_BLOCKS):
        strip = slice(first, first + STRIP_BLOCKS)
        pixels = _squares(new, places[strip], SIDE * one.down, SIDE * one.across)
        planes = _planes(pixels, layout.colours)
        for number, component in zip(numbers, samples, strict=True):
            size = (-1, SIDE, one.down, SIDE, one.across)
            component[strip] = _averages(planes[number].reshape(size))
    return samples


def _squares(plane: Array, places: NDArray[np.intp], height: int, width: int) -> Array:
    """Return the squares of `height` x `width` pixels of `plane` at `places`, [n, h, w, …].

    Pixels beyond the edge are those at the edge.
    """
    rows, columns = places[:, 0].max(initial=0) + 1, places[:, 1].max(initial=0) + 1
    beyond = rows * height - plane.shape[0], columns * width - plane.shape[1]
    if max(beyond) > 0:
        below, right = (max(0, pixels) for pixels in beyond)
        plane = cv2.copyMakeBorder(plane, 0, below, 0, right, cv2.BORDER_REPLICATE)
    whole = plane[: rows * height, : columns * width]
    squares = whole.reshape(rows, height, columns, width, *plane.shape[2:]).swapaxes(1, 2)
    return squares[places[:, 0], places[:, 1]]


def _planes(pixels: Array, colours: str) -> list[Array]:
    """Return the samples uint8 [n, h, w] of each component for `pixels` [n, h, w, …]."""
    if colours == GRAY:
        return [pixels]
    channels = pixels.shape[-1]
    planes = [_stored(pixels[..., number], channels) for number in range(channels)]
    if colours == PLAIN:
        return planes
    flat = np.ascontiguousarray(pixels[..., :3]).reshape(-1, pixels.shape[2], 3)
    luma, red, blue = cv2.split(cv2.cvtColor(flat, cv2.COLOR_RGB2YCrCb))
    size = pixels.shape[:3]
    return [luma.reshape(size), blue.reshape(size), red.reshape(size), *planes[BLACK:]]


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
    # NumPy is slow at sums over short axes.
    sums = np.full((*samples.shape[:2], samples.shape[3]), size // 2, np.uint16)
    for row in range(samples.shape[2]):
        for column in range(samples.shape[4]):
            sums += samples[:, :, row, :, column]
    averages: Array = (sums // size).astype(np.uint8)
    return averages


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


def _merged(
    content: bytes,
    segments: Sequence[Segment],
    patches: Sequence[Patch],
    layout: _Layout,
    pixels: int,
) -> bytes:
    """Return the JPEG `content`, of so many `pixels`, with `patches`.

    It keeps its own segments before the scans.
    """
    scans = _scans(segments)
    if len(scans) == 1 and (scan := spliced(content, patches)) is not None:
        return _joined(
            replace(segment, scan=scan) if segment.marker == markers.SOS else segment
            for segment in segments
        )
    samples = sum(pixels // (one.across * one.down) for one in layout.components)
    samples += sum(SIDE * SIDE * len(patch.places) for patch in patches)
    memory = COEFFICIENT_BYTES * samples + WORKING_BYTES * len(content)
    output = transcoded(content, patches, scans, memory)
    first_scan = [segment.marker for segment in segments].index(markers.SOS)
    kept = [segment for segment in segments[:first_scan] if segment.marker not in CODING]
    kept += [segment for segment in parsed(output) if segment.marker in CODING]
    return _joined(kept)


def _joined(segments: Iterable[Segment]) -> bytes:
    written = (segment.written() for segment in segments)
    return b"".join([markers.START_OF_IMAGE, *written, markers.END_OF_IMAGE])


def _scans(segments: Sequence[Segment]) -> list[Scan]:
    frame = next(segment.body for segment in segments if segment.marker in markers.FRAME_HEADERS)
    names = frame[6::3]
    scans = []
    for segment in segments:
        if segment.marker == markers.SOS:
            components = [names.index(name) for name in segment.body[1:-3:2]]
            first, last, approximation = segment.body[-3:]
            scans.append(Scan(components, first, last, approximation >> 4, approximation & 15))
    return scans


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
    decoded = strictly_decoded(output, original.mode)
    if decoded.shape != original.pixels.shape:
        return False
    if not all(_shows(decoded, patch, layout) for patch in patches):
        return False
    squares = replaced_squares(blocks, layout)
    for top in range(0, decoded.shape[0], STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        first = max(0, top // SIDE - 1)
        near = pixels_near(squares[first : rows.stop // SIDE + 1], decoded.shape[1])
        part, expected = decoded[rows], original.pixels[rows]
        cv2.copyTo(expected, near[top - first * SIDE :][: len(part)], part)
        if cv2.norm(part, expected, cv2.NORM_INF):
            return False
    return True


def replaced_squares(blocks: Sequence[Mask], layout: _Layout) -> NDArray[np.uint8]:
    """Return which squares of 8 x 8 pixels have a replaced block in any component, 1 or 0."""
    replaced = [
        mask.repeat(one.down, axis=0).repeat(one.across, axis=1)
        for mask, one in zip(blocks, layout.components, strict=True)
    ]
    squares: Mask = np.any(replaced, axis=0)
    return squares.astype(np.uint8)


def pixels_near(squares: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return which pixels, 1 or 0, are in one of the `squares` or adjacent to one."""
    size = squares.shape[1] * SIDE, squares.shape[0] * SIDE
    pixels = cv2.resize(squares, size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.dilate(pixels, NEIGHBOURS)[:, :width], np.uint8)


def _shows(decoded: Array, patch: Patch, layout: _Layout) -> bool:
    """Return whether the pixels `decoded` have the blocks of `patch` where they should be.

    Only components of the full resolution are compared, and no chroma: it is interpolated.
    """
    one = layout.components[patch.component]
    has_chroma = layout.colours in (YCC, YCCK) and patch.component in (1, 2)
    if one.across * one.down > 1 or has_chroma:
        return True
    places = patch.places[:, ::-1].astype(np.intp)
    shown = _squares(decoded, places, SIDE, SIDE)
    expected = _blocks(strictly_decoded(patch.content, "L"), len(places))
    rows = places[:, :1] * SIDE + np.arange(SIDE)
    columns = places[:, 1:] * SIDE + np.arange(SIDE)
    height, width = decoded.shape[:2]
    is_within = (rows < height)[:, :, None] & (columns < width)[:, None, :]
    return bool((_is_close(shown, expected, patch.component, layout.colours) | ~is_within).all())


def _is_close(shown: Array, expected: Array, number: int, colours: str) -> Mask:
    """Return which samples `expected` [n, h, w] of a component the pixels `shown` have."""
    if colours == GRAY:
        return np.equal(shown, expected)
    if colours == PLAIN or number == BLACK:
        return np.equal(_stored(shown[..., number], shown.shape[-1]), expected)
    colour = np.ascontiguousarray(shown[..., :3])
    luma = cv2.cvtColor(colour.reshape(-1, SIDE, 3), cv2.COLOR_RGB2GRAY).reshape(expected.shape)
    is_close = np.asarray(cv2.absdiff(luma, expected) <= MAX_LUMA_ROUNDING, bool)
    # A colour that is clipped has another luma.
    others = ~is_close
    is_close[others] = ((colour[others] == 0) | (colour[others] == 255)).any(axis=1)
    return is_close


def _blocks(grid: Array, count: int) -> Array:
    """Return the first `count` blocks [n, 8, 8] of a picture that `_grid` made."""
    rows, columns = grid.shape[0] // SIDE, grid.shape[1] // SIDE
    blocks = grid.reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2)
    return blocks.reshape(-1, SIDE, SIDE)[:count]
