"""The frames of an animated PNG as browsers show them (PNG, third edition, 13).

Pillow decodes the pixels of single frames. Where it draws several over each other it shows other
pixels than browsers, above all if the first one is no part of the animation.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tasks.errors import UnreadableImage
from worker.images import png
from worker.images.loading import loaded
from worker.pixels import Array, Pixels

# Disposal methods, and the operation that draws over what was there (11.3.6.2).
TO_BACKGROUND, TO_PREVIOUS, OVER = 1, 2, 1
DEFAULT_UNIT, MILLISECONDS = 100, 1000  # units of a duration: parts of a second
OPAQUE = 255
NEEDED = (b"PLTE", b"tRNS")  # what a frame needs besides the header and its data
DAMAGED = "this PNG is damaged: a frame of its animation is not within its picture"


@dataclass(frozen=True)
class _Control:
    """The frame control before the data of a frame (11.3.6.2)."""

    width: int
    height: int
    left: int = 0
    top: int = 0
    duration: float = 0
    disposal: int = 0
    blending: int = 0

    @classmethod
    def read(cls, body: bytes) -> "_Control":
        """Return the control in the chunk `body`."""
        width, height, left, top = struct.unpack_from(">4I", body, 4)
        delay, unit, disposal, blending = struct.unpack_from(">HHBB", body, 20)
        duration = delay * MILLISECONDS / (unit or DEFAULT_UNIT)
        return cls(width, height, left, top, duration, disposal, blending)


@dataclass
class _Stored:
    """A frame as it is stored. One without a control is no part of the animation."""

    control: _Control | None
    data: list[bytes] = field(default_factory=list)


def frames(content: bytes) -> Iterator[tuple[Pixels, float]]:
    """Yield each frame of the cleaned PNG `content` as it is shown, and its milliseconds.

    A picture that is no part of the animation comes first, with 0. Frames are uint8 [h, w, c], gray
    or RGB, and with alpha if a part is transparent. Raises UnreadableImage for a frame outside of
    the picture, and Pillow's errors for damage.
    """
    header, needed, stored = _parts(content)
    width, height = struct.unpack_from(">II", header)
    is_gray = not content[png.COLOUR_TYPE] & png.COLOUR
    screen = np.zeros((height, width, 4), np.uint8)
    is_first = True
    for one in stored:
        control = one.control or _Control(width, height)
        right, bottom = control.left + control.width, control.top + control.height
        if right > width or bottom > height:
            raise UnreadableImage(DAMAGED)
        pixels = _alone(header, needed, control, one.data)
        if one.control is None:
            yield _shown(pixels, is_gray), 0
            continue
        area = screen[control.top : bottom, control.left : right]
        before = area.copy() if control.disposal == TO_PREVIOUS else None
        area[...] = _over(area, pixels) if control.blending == OVER else pixels
        yield _shown(screen, is_gray), control.duration
        if control.disposal == TO_BACKGROUND or (before is not None and is_first):
            area[...] = 0
        elif before is not None:
            area[...] = before
        is_first = False


def _parts(content: bytes) -> tuple[bytes, bytes, list[_Stored]]:
    """Return the body of the header, the chunks that all frames need, and the frames."""
    header, needed, control = b"", b"", None
    stored: list[_Stored] = []
    for name, start, end in png.walk(content):
        body = content[start + 8 : end - 4]
        if name == b"IHDR":
            header = body
        elif name in NEEDED:
            needed += content[start:end]
        elif name == b"fcTL":
            control = _Control.read(body)
            stored.append(_Stored(control))
        elif name == b"IDAT":
            if not stored:
                stored.append(_Stored(None))
            stored[-1].data.append(body)
        elif name == b"fdAT":
            stored[-1].data.append(body[4:])
    return header, needed, stored


def _alone(header: bytes, needed: bytes, control: _Control, data: list[bytes]) -> Pixels:
    """Return the pixels of a frame alone, RGBA."""
    size = struct.pack(">II", control.width, control.height)
    parts = [png.SIGNATURE, png.chunk(b"IHDR", size + header[8:]), needed]
    parts += [png.chunk(b"IDAT", b"".join(data)), png.chunk(b"IEND", b"")]
    with Image.open(io.BytesIO(b"".join(parts)), formats=("PNG",)) as image:
        image.load()
        frame = loaded(image)
    return np.asarray(Image.fromarray(frame.pixels).convert("RGBA"))


def _over(below: Array, pixels: Array) -> Array:
    """Return RGBA `pixels` drawn over those `below`."""
    images = (Image.fromarray(np.ascontiguousarray(one)) for one in (below, pixels))
    return np.asarray(Image.alpha_composite(*images))


def _shown(screen: Array, is_gray: bool) -> Pixels:
    """Return a copy of the RGBA `screen`, without alpha if all of it is opaque."""
    colours = screen[..., :1] if is_gray else screen[..., :3]
    if screen[..., 3].min() == OPAQUE:
        return colours.copy()
    return np.concatenate([colours, screen[..., 3:]], axis=-1)
