"""JPEG 2000 files: whether they are whole, their depth and wavelet, and the colour profile that
Pillow passes over.

ISO/IEC 15444-1, Annex A (codestream) and Annex I (boxes).
"""

import struct
from collections.abc import Iterator

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage

CODESTREAM = b"\xff\x4f\xff\x51"  # start of codestream, image and tile size
END, TILE_PART = b"\xff\xd9", b"\xff\x90"
CODING, COMPONENT_CODING, START_OF_DATA = b"\xff\x52", b"\xff\x53", b"\xff\x93"
MOST_COMPONENTS = 4  # colours and alpha
MOST_TILES = 8192  # OpenJPEG keeps 6 kB of each
MOST_TILE_PARTS = 65_536
MOST_MARKERS = 10_000
MOST_LAYERS = 1000
MOST_LEVELS = 32
LEAST_BLOCK = (
    8  # log2 of the pixels of a code block, and of a precinct; OpenJPEG keeps up to 1 kB of each
)
SPARE_BLOCKS = 1 << 14  # that are smaller, as those of the lowest resolutions
MOST_PACKETS = 1 << 21
RESTRICTED_PROFILE = b"\x02\x00\x00"  # method, precedence, approximation of a colr box


def check(content: bytes) -> None:
    """Raise UnreadableImage for a file that ends early, UnsupportedImage for a depth that is not
    handled.
    """
    if not _is_whole(content):
        raise UnreadableImage(
            "this JPEG 2000 is damaged or cut short: its parts do not reach an end marker"
        )
    at = _codestream(content) + 4
    count = int.from_bytes(content[at + 36 : at + 38])
    depths = [(depth & 0x7F) + 1 for depth in content[at + 38 : at + 38 + 3 * count : 3]]
    if len(depths) > 1 and max(depths) > 8:
        raise UnsupportedImage(
            f"this JPEG 2000 has {max(depths)} bits a colour, which is not handled"
        )


def size(content: bytes) -> tuple[int, int, int]:
    """Return width, height and bits of the JPEG 2000 `content`: the largest that its header and
    codestream state.

    Raises UnreadableImage for a codestream that makes no sense, ImageTooLarge for one in more parts
    (tiles, blocks, layers) than a picture of its size needs.
    """
    start = _codestream(content)
    if start < 0:
        raise UnreadableImage("this JPEG 2000 is damaged: it has no codestream")
    right, bottom, left, top, wide, high, tile_left, tile_top, count = struct.unpack_from(
        ">8IH", content, start + 8
    )
    width, height = right - left, bottom - top
    components = [
        struct.unpack_from(">3B", content, start + 42 + 3 * number)
        for number in range(min(count, 5))
    ]
    if not 1 <= count <= MOST_COMPONENTS:
        raise UnsupportedImage(
            f"JPEG 2000 pictures with {count:,} components are not handled: convert it to RGB"
        )
    if (
        width <= 0
        or height <= 0
        or not wide
        or not high
        or not all(x and y for _, x, y in components)
    ):
        raise UnreadableImage("this JPEG 2000 is damaged: its sizes make no sense")
    if tile_left > left or tile_top > top or tile_left + wide <= left or tile_top + high <= top:
        raise UnreadableImage("this JPEG 2000 is damaged: its tiles are not where its picture is")
    tiles = -(-(right - tile_left) // wide) * -(-(bottom - tile_top) // high)
    if tiles > MOST_TILES:
        raise ImageTooLarge(
            f"this JPEG 2000 has {tiles:,} tiles, the limit is {MOST_TILES:,}: save it with larger ones"
        )
    for body in _codings(content, start):
        _check_coding(body, width * height * count, tiles * count)
    stated = _stated_size(content)
    bits = max((depth & 0x7F) + 1 for depth, _, _ in components)
    return max(width, stated[0]), max(height, stated[1]), bits


def _stated_size(content: bytes) -> tuple[int, int]:
    """Return width and height in the header box; 0 and 0 of a bare codestream."""
    for name, body in _boxes(content):
        if name == b"jp2h":
            for inner, header in _boxes(body):
                if inner == b"ihdr" and len(header) >= 8:
                    height, width = struct.unpack_from(">II", header)
                    return width, height
    return 0, 0


def _codings(content: bytes, start: int) -> Iterator[bytes]:
    """Yield each coding style, as `_coding` returns it, in the main header and in those of
    tiles.
    """
    at, markers = start + 2, 0
    while at + 4 <= len(content) and content[at : at + 2] != END:
        marker, length = content[at : at + 2], int.from_bytes(content[at + 2 : at + 4])
        markers += 1
        if markers > MOST_MARKERS + MOST_TILE_PARTS:
            raise ImageTooLarge(f"this JPEG 2000 has over {markers - 1:,} markers: save it anew")
        if marker in (CODING, COMPONENT_CODING):
            yield _coding(marker, content[at + 4 : at + 2 + length])
        elif marker == TILE_PART:
            part = int.from_bytes(content[at + 6 : at + 10])
            yield from _tile_codings(content, at + 12, at + part if part else len(content))
            if part == 0:
                return
            at += max(part, 12)
            continue
        elif marker[:1] != b"\xff":
            raise UnreadableImage("this JPEG 2000 is damaged: its markers do not follow each other")
        at += 2 + max(length, 2)


def _tile_codings(content: bytes, at: int, end: int) -> Iterator[bytes]:
    """Yield the coding styles in the header of a part of a tile."""
    while at + 4 <= min(end, len(content)) and content[at : at + 2] != START_OF_DATA:
        marker, length = content[at : at + 2], int.from_bytes(content[at + 2 : at + 4])
        if marker in (CODING, COMPONENT_CODING):
            yield _coding(marker, content[at + 4 : at + 2 + length])
        at += 2 + max(length, 2)


def _coding(marker: bytes, body: bytes) -> bytes:
    """Return layers, levels, sides of a code block, style, wavelet and the sides of precincts
    (A.6.1, A.6.2).

    The style of a component has no layers of its own: 1 stands in for them.
    """
    has_precincts = body[:1] != b"" and body[0] & 1
    layers, rest = (body[2:4], body[5:]) if marker == CODING else (b"\0\1", body[2:])
    return layers + (rest if has_precincts else rest[:5])


def _check_coding(body: bytes, samples: int, tile_components: int) -> None:
    """Raise ImageTooLarge if `samples` are cut into so many layers, blocks or precincts that their
    upkeep is the cost.

    `body` is what `_coding` returns.
    """
    if len(body) < 7:
        raise UnreadableImage("this JPEG 2000 is damaged: its coding style ends early")
    layers, levels = int.from_bytes(body[:2]), body[2]
    block = (body[3] & 15) + (body[4] & 15) + 4
    if levels > MOST_LEVELS:
        raise UnreadableImage("this JPEG 2000 is damaged: it has too many resolutions")
    precincts = 0
    for level, sides in enumerate(body[7:] or bytes([0xFF]) * (levels + 1)):
        area = (sides & 15) + (sides >> 4)
        precincts += (samples >> 2 * max(levels - level, 0) >> area) + tile_components
        block = min(block, area) if level == levels else block
    is_fine = samples >> min(block, 40) > max(SPARE_BLOCKS, samples >> LEAST_BLOCK)
    if (
        layers > MOST_LAYERS
        or is_fine
        or precincts > max(SPARE_BLOCKS, samples >> LEAST_BLOCK) + 33 * tile_components
    ):
        raise ImageTooLarge(
            "this JPEG 2000 is cut into too many layers, blocks or precincts: save it with the defaults"
        )
    if layers * precincts > MOST_PACKETS:
        raise ImageTooLarge(
            f"this JPEG 2000 has {layers * precincts:,} packets: save it with fewer layers"
        )


def is_lossless(content: bytes) -> bool:
    """Whether the wavelet is the reversible one: the last byte of the coding style (A.6.1)."""
    at = content.find(b"\xff\x52", _codestream(content))
    return content[at + 13 : at + 14] == b"\x01"


def profile(content: bytes) -> bytes | None:
    """The colour profile in the file's header."""
    for name, body in _boxes(content):
        if name == b"jp2h":
            for inner, colours in _boxes(body):
                if inner == b"colr" and colours[:1] == RESTRICTED_PROFILE[:1]:
                    return colours[3:]
    return None


def with_profile(content: bytes, profile: bytes) -> bytes:
    """The file `content` with a colour profile in the place of its named colour space."""
    parts = []
    for name, body in _boxes(content):
        if name == b"jp2h":
            colours = _box(b"colr", RESTRICTED_PROFILE + profile)
            body = b"".join(
                colours if inner == b"colr" else _box(inner, part) for inner, part in _boxes(body)
            )
        parts.append(_box(name, body))
    return b"".join(parts)


def _is_whole(content: bytes) -> bool:
    """Whether the main header and the parts of all tiles lead to the end marker (A.4)."""
    at = _codestream(content) + 2
    while 2 <= at < len(content):
        marker, size = content[at : at + 2], int.from_bytes(content[at + 2 : at + 4]) + 2
        if marker == END:
            return True
        if marker == TILE_PART:
            size = int.from_bytes(content[at + 6 : at + 10])
            if size == 0:  # the last part, up to the end marker
                return content.find(END, at) > 0
        at += max(size, 2)
    return False


def _codestream(content: bytes) -> int:
    """Return where the codestream begins, -1 if there is none. Other boxes may hold the same
    bytes.
    """
    if content.startswith(CODESTREAM):
        return 0
    at = 0
    while at >= 0 and at + 8 <= len(content):
        size, start = int.from_bytes(content[at : at + 4]), at + 8
        if size == 1:
            size, start = int.from_bytes(content[at + 8 : at + 16]), at + 16
        if content[at + 4 : at + 8] == b"jp2c":
            return start if content.startswith(CODESTREAM, start) else -1
        at = at + max(size, 8) if size else -1
    return -1


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes in `content`, (name, body)."""
    at = 0
    while at + 8 <= len(content):
        size, name, header = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8], 8
        if size == 1:
            size, header = int.from_bytes(content[at + 8 : at + 16]), 16
        end = len(content) if size == 0 else at + max(size, header)
        yield name, content[at + header : end]
        at = end


def _box(name: bytes, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4) + name + body


def codestreams(content: bytes) -> int:
    """Return the number of pictures in a JPEG 2000 file."""
    return max(1, sum(name == b"jp2c" for name, _ in _boxes(content)))
