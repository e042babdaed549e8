"""The frames of a GIF as browsers show them, and GIFs without metadata (GIF89a).

Pillow decodes the pixels of single frames. Where it draws several over each other it shows other
pixels than browsers if only some of them have a transparent colour.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tasks.errors import UnreadableImage
from worker.images import containers
from worker.pixels import Array, Pixels

GRAPHIC_CONTROL = b"!\xf9"
# Disposal methods (23.c.iv). Some programs write the third bit alone for the method 3, and browsers
# take it so. Other values are reserved.
TO_BACKGROUND, TO_PREVIOUS, LAST_DEFINED = 2, (3, 4), 3
# Bytes of the extensions that are kept: of a graphic control (23), and of repeats.
GRAPHIC_CONTROL_BYTES, REPEATS_BYTES = 8, 19
# Flags in the header (18) and before a frame (20): a colour table, and its colours as a power of
# two, less one. The last one is before a frame alone.
HAS_TABLE, TABLE_SIZE, IS_INTERLACED = 0x80, 0x07, 0x40
MILLISECONDS = 10  # of the unit of a frame's duration
OPAQUE = 255
# A decoder needs more of a frame's compressed data than all but so many bytes.
MAX_BEHIND = 8


@dataclass(frozen=True)
class _Control:
    """The graphic control of a frame (23). `transparent` is the index that is not drawn, or -1."""

    disposal: int = 0
    duration: int = 0
    transparent: int = -1


def frames(content: bytes) -> Iterator[tuple[Pixels, int]]:
    """Yield each frame of the GIF `content` as it is shown, and its duration in milliseconds.

    A frame is uint8 RGB [h, w, 3], or RGBA [h, w, 4] if a part of it is transparent, as all is that
    no frame has drawn. Raises UnreadableImage for colours that are not in the palette, and Pillow's
    errors for damage.
    """
    header = content[: containers.gif_header_end(content)]
    size = containers.gif_size(content, len(content))
    screen = np.zeros((size.height, size.width, 4), np.uint8)
    control = _Control()
    for block in containers.gif_blocks(content):
        if block.kind == GRAPHIC_CONTROL:
            control = _control(content[block.start : block.end])
        elif block.kind == b",":
            left, top, width, height = struct.unpack_from("<HHHH", content, block.start + 1)
            area = screen[top : top + height, left : left + width]
            before = area.copy() if control.disposal in TO_PREVIOUS else None
            _draw(area, _alone(header, content[block.start : block.end]), control.transparent)
            yield _shown(screen), control.duration
            if control.disposal == TO_BACKGROUND:
                area[...] = 0
            elif before is not None:
                area[...] = before
            control = _Control()


def bare(content: bytes) -> bytes | None:
    """Return the GIF `content` with its frames, their timing and repeats alone.

    Returns None if other data may stand behind the pixels of a frame, in an extension or in equal
    colours, if a frame has no colours, several graphic controls or an unknown disposal method, and
    if the GIF has several numbers of repeats.
    """
    parts = [content[: containers.gif_header_end(content)]]
    control: _Control | None = None
    has_repeats = False
    for block in containers.gif_blocks(content):
        data = content[block.start : block.end]
        if block.kind == b",":
            if not _is_shown_whole(parts[0], data, control or _Control()):
                return None
            parts.append(data)
            control = None
        elif block.kind == GRAPHIC_CONTROL:
            if control or len(data) != GRAPHIC_CONTROL_BYTES:
                return None
            control = _control(data)
            if control.disposal > LAST_DEFINED:
                return None
            parts.append(data)
        elif data.startswith(containers.GIF_REPEATS):
            if has_repeats or len(data) != REPEATS_BYTES:
                return None
            parts.append(data)
            has_repeats = True
    return b"".join([*parts, b";"])


def _control(block: bytes) -> _Control:
    """Return the graphic control in the extension `block`."""
    if len(block) < GRAPHIC_CONTROL_BYTES:
        return _Control()
    flags, duration, transparent = struct.unpack_from("<BHB", block, 3)
    return _Control(flags >> 2 & 7, MILLISECONDS * duration, transparent if flags & 1 else -1)


def _draw(area: Array, image: Any, transparent: int) -> None:
    """Draw a frame, opened by Pillow, in RGBA on `area`, the part of the screen that it covers."""
    indices = np.asarray(image)
    is_drawn = indices != transparent
    if image.mode == "P":
        highest = int(indices[is_drawn].max(initial=0))
        if len(image.palette.palette) < 3 * (highest + 1):
            raise UnreadableImage(
                "the picture is damaged: it has colours that are not in its palette"
            )
    np.copyto(area, np.asarray(image.convert("RGBA")), where=is_drawn[..., None])


def _shown(screen: Array) -> Pixels:
    """Return a copy of the RGBA `screen`, without its alpha if all of it is opaque."""
    is_opaque = screen[..., 3].min() == OPAQUE
    return np.ascontiguousarray(screen[..., :3]) if is_opaque else screen.copy()


def _alone(header: bytes, frame: bytes) -> Any:
    """Return `frame` opened by Pillow as a picture of its own, in the palette of its indices.

    `header` is that of the GIF. A colour table of the frame takes the place of its own: Pillow
    ignores one of a frame that is a ramp of gray.
    """
    size, flags, rest = frame[5:9], frame[9], frame[10:]
    table = header[10:]
    if flags & HAS_TABLE:
        end = 3 << (flags & TABLE_SIZE) + 1
        table = bytes([HAS_TABLE | flags & TABLE_SIZE]) + header[11:13] + rest[:end]
        rest = rest[end:]
    descriptor = b",\0\0\0\0" + size + bytes([flags & IS_INTERLACED])
    content = b"".join([header[:6], size, table, descriptor, rest, b";"])
    with Image.open(io.BytesIO(content), formats=("GIF",)) as image:
        image.load()
        return image


def _is_shown_whole(header: bytes, frame: bytes, control: _Control) -> bool:
    """Return whether viewers show all that `frame` holds, in colours that the GIF states."""
    has_table = (header[10] | frame[9]) & HAS_TABLE
    if not has_table or _has_equal_colours(header, frame, control.transparent):
        return False
    return _is_filled(header, frame)


def _has_equal_colours(header: bytes, frame: bytes, transparent: int) -> bool:
    """Return whether `frame` has pixels of different indices that look alike.

    Their indices could show what the colours hide.
    """
    image = _alone(header, frame)
    if image.mode != "P":
        return False
    used = np.flatnonzero(image.histogram())
    used = used[used != transparent]
    colours = np.frombuffer(image.palette.palette, np.uint8).reshape(-1, 3)[used]
    return len(np.unique(colours, axis=0)) < len(used)


def _is_filled(header: bytes, frame: bytes) -> bool:
    """Return whether the compressed data of `frame` is needed up to its end."""
    at = containers.gif_data_start(frame)
    data = b"".join(_data_blocks(frame, at))[:-MAX_BEHIND]
    blocks = [data[start : start + 255] for start in range(0, len(data), 255)]
    shorter = [frame[:at], *(bytes([len(block)]) + block for block in blocks), b"\0"]
    try:
        _alone(header, b"".join(shorter))
    except Exception:  # It is cut short, as it should be.
        return True
    return False


def _data_blocks(frame: bytes, at: int) -> Iterator[bytes]:
    while frame[at]:
        yield frame[at + 1 : at + 1 + frame[at]]
        at += 1 + frame[at]
