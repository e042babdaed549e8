"""JPEG 2000 files: completeness, size, wavelet, and the colour profile that Pillow ignores.

ISO/IEC 15444-1, Annex A (codestream) and Annex I (boxes).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage

# Markers (Table A.2).
CODESTREAM_START = b"\xff\x4f\xff\x51"  # start of codestream, then image and tile size
SOT, SOD, EOC = b"\xff\x90", b"\xff\x93", b"\xff\xd9"  # tile-part, its data, end of codestream
COD, COC = b"\xff\x52", b"\xff\x53"  # coding style of all components, and of one
CAP, QCD, QCC, RGN = b"\xff\x50", b"\xff\x5c", b"\xff\x5d", b"\xff\x5e"
# The markers of a header that decoders need: sizes and capabilities, coding styles, quantization,
# region of interest, order of progression. Those of comments, lengths and registration they don't
# need. A copy has none with packed headers, because these may hold more than decoders read.
NEEDED = frozenset(bytes([0xFF, code]) for code in b"\x50\x51\x52\x53\x5c\x5d\x5e\x5f")
UNNEEDED = frozenset(bytes([0xFF, code]) for code in b"\x55\x57\x58\x63\x64")
OF_A_COMPONENT = (COC, QCC, RGN)  # there is one for each component, which the first byte names
# The styles of quantization: the bytes of each subband, and those of all subbands (Table A.28).
QUANTIZATION_STYLE, BYTES_PER_SUBBAND, BYTES_OF_ALL_SUBBANDS = 31, {0: 1, 2: 2}, {1: 2}

# Offsets from the start of the codestream to Xsiz, which begins eight sizes and Csiz, and to the
# first component (A.5.1).
SIZES_OFFSET = 8
COMPONENTS_OFFSET = 42
COMPONENT_BYTES = 3  # the depth, and the horizontal and vertical distance of the samples
SOT_BYTES = 12  # the marker segment at the start of a tile-part (A.4.2)
ONLY_PART = b"\0\1"  # the end of that segment: the number of the part, and that of all parts
WAVELET_OFFSET = 13  # the wavelet's offset from the marker COD (A.6.1)
REVERSIBLE = b"\x01"

MAX_COMPONENTS = 4  # three colours and alpha
MAX_TILES = 8192  # OpenJPEG keeps 6 kB for each tile
MAX_MARKERS = 65_536 + 10_000  # one for each tile-part, and more in the main header
MAX_LAYERS = 1000
MAX_LEVELS = 32  # the largest number of decomposition levels (Table A.15)
# Code blocks and precincts must have at least 1 << MIN_AREA_LOG2 pixels on average: OpenJPEG keeps
# up to 1 kB for each. This many may be smaller, as those of the lowest resolutions are.
MIN_AREA_LOG2 = 8
MAX_SMALL_AREAS = 1 << 14
MAX_PACKETS = 1 << 21
DEFAULT_PRECINCT = b"\xff"  # 2^15 × 2^15 samples, where the coding style states no precincts
# The method of a colr box with an enumerated colour space, and such spaces (Table I.10).
ENUMERATED, SRGB, SYCC = b"\1", b"\0\0\0\x10", b"\0\0\0\x12"
ENUMERATED_BYTES = 7  # of a colr box with such a space
# The boxes of a file's header that a decoder needs.
HEADER_BOXES = (b"ihdr", b"bpcc", b"colr", b"cdef")
PALETTE_BOXES = (b"pclr", b"cmap")
# The boxes of a plain file before its header: the signature and the file type (I.5.2).
FILE_START = re.compile(
    rb"\0\0\0\x0cjP  \r\n\x87\n\0\0\0.ftypjp[2hx] \0{4}(jp2 |jph |jpx |jpxb)*", re.DOTALL
)
# The boxes of a resolution, for capture and display, and the bytes of their numbers.
RESOLUTIONS, RESOLUTION_BYTES = (b"resc", b"resd"), 10
COLOUR_CHANNEL = 0  # the kind of channels that hold colours, in a cdef box
DEFINITIONS_BYTES = 2 + 6 * MAX_COMPONENTS  # of a cdef box, which defines each component once
# The method, precedence and approximation of a colr box with a restricted ICC profile (I.5.3.3).
RESTRICTED_PROFILE = b"\x02\x00\x00"


@dataclass(frozen=True)
class _Sizes:
    """The image and tile size (A.5.1), in the units of the reference grid.

    `components` has the depth, with its sign bit, and the horizontal and vertical distance of the
    samples of the first components; `count` is the number of all components.
    """

    components: list[tuple[int, int, int]]
    right: int
    bottom: int
    left: int
    top: int
    tile_width: int
    tile_height: int
    tile_left: int
    tile_top: int
    count: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def tiles(self) -> int:
        across = -(-(self.right - self.tile_left) // self.tile_width)
        down = -(-(self.bottom - self.tile_top) // self.tile_height)
        return across * down

    @property
    def bits(self) -> int:
        """Return the largest depth of a component, without the sign."""
        return max((depth & 0x7F) + 1 for depth, _, _ in self.components)


@dataclass(frozen=True)
class _CodingStyle:
    """The part of a coding style that decides how finely the samples are divided (A.6.1, A.6.2).

    `layers` is 0 for the style of a component, which does not state them. `block_log2` is the
    logarithm of the pixels of a code block. `precincts` has one byte for each resolution.
    """

    layers: int
    levels: int
    block_log2: int
    precincts: bytes


def check(content: bytes) -> None:
    """Check the JPEG 2000 `content`, which `size` accepts.

    Raises UnreadableImage for a file that ends early, UnsupportedImage for a depth that is not
    handled.
    """
    if not _is_complete(content):
        raise UnreadableImage(
            "this JPEG 2000 is damaged or cut short: its parts do not reach an end marker"
        )
    sizes = _sizes(content, _codestream(content))
    if len(sizes.components) > 1 and sizes.bits > 8:
        raise UnsupportedImage(
            f"this JPEG 2000 has {sizes.bits} bits a colour, which is not handled"
        )


def size(content: bytes) -> tuple[int, int, int]:
    """Return width, height and bits of the JPEG 2000 `content`.

    These are the largest that the header and the codestream state. Raises UnreadableImage or
    struct.error for a codestream that makes no sense, UnsupportedImage for too many components, and
    ImageTooLarge for more parts (tiles, blocks, layers) than a picture of its size needs.
    """
    start = _codestream(content)
    if start < 0:
        raise UnreadableImage("this JPEG 2000 is damaged: it has no codestream")
    sizes = _sizes(content, start)
    _check_sizes(sizes)
    samples = sizes.width * sizes.height * sizes.count
    styles = list(_coding_styles(content, start))
    layers = max((style.layers for style in styles), default=0)
    for style in styles:
        _check_division(style, layers, samples, sizes.tiles * sizes.count)
    stated_width, stated_height = _stated_size(content)
    return max(sizes.width, stated_width), max(sizes.height, stated_height), sizes.bits


def is_lossless(content: bytes) -> bool:
    """Return whether the wavelet is the reversible one (A.6.1)."""
    at = content.find(COD, _codestream(content)) + WAVELET_OFFSET
    return content[at : at + 1] == REVERSIBLE


def profile(content: bytes) -> bytes | None:
    """Return the colour profile in the header of the JPEG 2000 `content`, or None."""
    for name, body in _header_boxes(content):
        if name == b"colr" and body[:1] == RESTRICTED_PROFILE[:1]:
            return body[len(RESTRICTED_PROFILE) :]
    return None


def resolution(content: bytes) -> bytes | None:
    """Return the body of the resolution box of the JPEG 2000 `content`, or None (I.5.3.7)."""
    for name, body in _header_boxes(content):
        if name == b"res ":
            kept = [
                _box(inner, numbers)
                for inner, numbers in _boxes(body)
                if inner in RESOLUTIONS and len(numbers) == RESOLUTION_BYTES
            ]
            return b"".join(kept) or None
    return None


def with_header(content: bytes, profile: bytes | None, resolution: bytes | None) -> bytes:
    """Return the file `content` with a colour profile and the body of a resolution box.

    The profile takes the place of the named colour space.
    """
    if profile is None and resolution is None:
        return content
    parts = []
    for name, body in _boxes(content):
        if name == b"jp2h":
            inner_boxes = []
            for inner_name, inner in _boxes(body):
                if inner_name == b"colr" and profile is not None:
                    inner = RESTRICTED_PROFILE + profile
                inner_boxes.append(_box(inner_name, inner))
            if resolution is not None:
                inner_boxes.append(_box(b"res ", resolution))
            body = b"".join(inner_boxes)
        parts.append(_box(name, body))
    return b"".join(parts)


def bare(content: bytes, profile: bytes | None, cut: int = 0) -> bytes | None:
    """Return the JPEG 2000 `content` without metadata, or None if it has parts that are not known.

    `profile` takes the place of the colour profile. The compressed data is left without its last
    `cut` bytes; None is also returned if it has no more.
    """
    start = _codestream(content)
    codestream = _bare_codestream(content, start, cut)
    if codestream is None or start == 0:
        return codestream
    parts = [content[: content.index(b"jp2h") - 4]]
    if not FILE_START.fullmatch(parts[0]):
        return None
    inner_boxes = _bare_header_boxes(content, profile)
    if inner_boxes is None:
        return None
    if kept := resolution(content):
        inner_boxes.append(_box(b"res ", kept))
    parts += [_box(b"jp2h", b"".join(inner_boxes)), _box(b"jp2c", codestream)]
    return b"".join(parts)


def _bare_header_boxes(content: bytes, profile: bytes | None) -> list[bytes] | None:
    """Return the boxes of the JP2 header that decoders need, or None for a palette or odd boxes.

    `profile` takes the place of the colour profile.
    """
    found = []
    for name, body in _header_boxes(content):
        if name in PALETTE_BOXES or (name == b"cdef" and len(body) > DEFINITIONS_BYTES):
            return None
        if name == b"colr" and body[:1] == RESTRICTED_PROFILE[:1]:
            if profile is None:
                return None
            body = RESTRICTED_PROFILE + profile
        elif name == b"colr" and (body[:1] != ENUMERATED or len(body) != ENUMERATED_BYTES):
            return None
        if name in HEADER_BOXES:
            found.append(_box(name, body))
    return found


def _bare_codestream(content: bytes, start: int, cut: int) -> bytes | None:
    """Return the codestream at `start` up to its end marker, without what decoders don't need.

    Returns None for several tiles, because other data may stand behind that of each. Also returns
    None for unknown markers, for parts of unknown length, and for a tile without `cut` bytes.
    """
    header = _bare_header(content, start + 2, len(content), SOT)
    if header is None or _sizes(content, start).tiles > 1:
        return None
    segments, at = header
    levels = max((style.levels for style in _coding_styles(content, start)), default=0)
    if not all(_is_needed(segment, levels) for segment in segments):
        return None
    heads, bodies = [], []
    while content[at : at + 2] == SOT:
        end = at + _tile_part_bytes(content, at)
        body = _tile_part_data(content, at, end)
        if body is None:
            return None
        heads.append(content[at : at + SOT_BYTES])
        bodies.append(body)
        at = end
    if not heads or content[at : at + 2] != EOC:
        return None
    if cut:  # Decoders join the data of all parts of a tile.
        data = b"".join(bodies)
        if len(data) <= cut:
            return None
        heads, bodies = [heads[0][: -len(ONLY_PART)] + ONLY_PART], [data[:-cut]]
    parts = [_tile_part(head, body) for head, body in zip(heads, bodies, strict=True)]
    return b"".join([content[start : start + 2], *segments, *parts, EOC])


def _tile_part_data(content: bytes, at: int, end: int) -> bytes | None:
    """Return the compressed data of the tile-part from `at` to `end` (A.4.2).

    Returns None if it states no length, and if its header has markers that decoders need: those of
    a single tile are in the main header.
    """
    header = _bare_header(content, at + SOT_BYTES, end, SOD)
    if header is None:
        return None
    segments, data_marker = header
    start = data_marker + len(SOD)
    return None if segments or start > end else content[start:end]


def _tile_part(head: bytes, data: bytes) -> bytes:
    """Return the tile-part that begins with the marker segment `head`, with its length set."""
    size = (SOT_BYTES + len(SOD) + len(data)).to_bytes(4)
    return head[:6] + size + head[10:] + SOD + data


def _bare_header(content: bytes, at: int, end: int, last: bytes) -> tuple[list[bytes], int] | None:
    """Return the needed marker segments from `at` to the marker `last`, and where that is.

    Returns None for an unknown marker, for one that comes twice, or if `last` is not before `end`.
    """
    segments: dict[bytes, bytes] = {}
    while content[at : at + 2] != last:
        marker, length = _marker(content, at)
        after = at + 2 + length
        if marker not in NEEDED | UNNEEDED or length < 2 or after > end:
            return None
        if marker in NEEDED:
            key = marker + (content[at + 4 : at + 5] if marker in OF_A_COMPONENT else b"")
            if key in segments:
                return None
            segments[key] = content[at:after]
        at = after
    return list(segments.values()), at


def _is_needed(segment: bytes, levels: int) -> bool:
    """Return whether decoders need a marker `segment` up to its end (A.5, A.6).

    `levels` is the largest number of decomposition levels. Of segments with capabilities and
    quantization, decoders ignore the end if they are too long. All others they refuse then.
    """
    marker, body = segment[:2], segment[4:]
    if marker == CAP:
        return len(body) == 4 + 2 * int.from_bytes(body[:4]).bit_count()
    if marker not in (QCD, QCC):
        return True
    values = body[1:] if marker == QCC else body
    style = values[0] & QUANTIZATION_STYLE if values else -1
    subbands = 3 * levels + 1
    needed = BYTES_OF_ALL_SUBBANDS.get(style, subbands * BYTES_PER_SUBBAND.get(style, 0))
    return len(values) <= 1 + needed


def channel_order(content: bytes) -> tuple[int, ...] | None:
    """Return for each colour the component that holds it, or None if they are in their order.

    Raises UnsupportedImage if a component of another kind precedes the colours (I.5.3.6).
    """
    for name, body in _header_boxes(content):
        if name != b"cdef":
            continue
        definitions = struct.iter_unpack(">HHH", body[2 : 2 + 6 * int.from_bytes(body[:2])])
        colours = {
            association: component
            for component, kind, association in definitions
            if kind == COLOUR_CHANNEL and 0 < association <= MAX_COMPONENTS
        }
        order = tuple(colours.get(colour, -1) for colour in range(1, len(colours) + 1))
        if order == tuple(range(len(order))):
            return None
        if sorted(order) != list(range(len(order))):
            raise UnsupportedImage(
                "this JPEG 2000 has its colours behind other channels, which is not handled"
            )
        return order
    return None


def is_ycc(content: bytes) -> bool:
    """Return whether the colours are sYCC (I.5.3.3)."""
    return any(
        name == b"colr" and body[:1] == ENUMERATED and body[3:7] == SYCC
        for name, body in _header_boxes(content)
    )


def with_rgb(content: bytes) -> bytes:
    """Return the JPEG 2000 file `content`, whose colours are sYCC, with sRGB in their place."""
    at = content.find(b"colr" + ENUMERATED)
    while at >= 0 and content[at + 7 : at + 11] != SYCC:
        at = content.find(b"colr" + ENUMERATED, at + 4)
    return content[: at + 7] + SRGB + content[at + 11 :]


def codestreams(content: bytes) -> int:
    """Return the number of pictures in a JPEG 2000 file."""
    return max(1, sum(name == b"jp2c" for name, _ in _boxes(content)))


def _sizes(content: bytes, start: int) -> _Sizes:
    sizes = struct.unpack_from(">8IH", content, start + SIZES_OFFSET)
    count = sizes[-1]
    components = []
    for number in range(min(count, MAX_COMPONENTS + 1)):
        at = start + COMPONENTS_OFFSET + COMPONENT_BYTES * number
        components.append(struct.unpack_from(">3B", content, at))
    return _Sizes(components, *sizes)


def _check_sizes(sizes: _Sizes) -> None:
    if not 1 <= sizes.count <= MAX_COMPONENTS:
        raise UnsupportedImage(
            f"JPEG 2000 pictures with {sizes.count:,} components are not handled: convert it to RGB"
        )
    has_samples = all(across and down for _, across, down in sizes.components)
    lengths = sizes.width, sizes.height, sizes.tile_width, sizes.tile_height
    if min(lengths) <= 0 or not has_samples:
        raise UnreadableImage("this JPEG 2000 is damaged: its sizes make no sense")
    # The first tile must contain the first pixel (A.5.1).
    is_before = sizes.tile_left > sizes.left or sizes.tile_top > sizes.top
    first_right = sizes.tile_left + sizes.tile_width
    first_bottom = sizes.tile_top + sizes.tile_height
    if is_before or first_right <= sizes.left or first_bottom <= sizes.top:
        raise UnreadableImage("this JPEG 2000 is damaged: its tiles are not where its picture is")
    if sizes.tiles > MAX_TILES:
        raise ImageTooLarge(
            f"this JPEG 2000 has {sizes.tiles:,} tiles, the limit is {MAX_TILES:,}: "
            "save it with larger ones"
        )


def _stated_size(content: bytes) -> tuple[int, int]:
    """Return width and height in the image header box, or 0 and 0 for a bare codestream."""
    for name, body in _header_boxes(content):
        if name == b"ihdr" and len(body) >= 8:
            height, width = struct.unpack_from(">II", body)
            return width, height
    return 0, 0


def _coding_styles(content: bytes, start: int) -> Iterator[_CodingStyle]:
    """Yield each coding style in the main header and in the headers of tile-parts."""
    at, markers = start + 2, 0
    while at + 4 <= len(content) and content[at : at + 2] != EOC:
        marker, length = _marker(content, at)
        markers += 1
        if markers > MAX_MARKERS:
            raise ImageTooLarge(f"this JPEG 2000 has over {markers - 1:,} markers: save it again")
        if marker == SOT:
            part_bytes = _tile_part_bytes(content, at)
            end = at + part_bytes if part_bytes else len(content)
            yield from _tile_coding_styles(content, at + SOT_BYTES, end)
            if part_bytes == 0:  # the last part, up to the end marker
                return
            at += max(part_bytes, SOT_BYTES)
            continue
        if marker in (COD, COC):
            yield _coding_style(marker, content[at + 4 : at + 2 + length])
        elif marker[:1] != b"\xff":
            raise UnreadableImage("this JPEG 2000 is damaged: its markers do not follow each other")
        at += 2 + max(length, 2)


def _tile_coding_styles(content: bytes, at: int, end: int) -> Iterator[_CodingStyle]:
    """Yield each coding style in the header of a tile-part, from `at` to `end` at most."""
    while at + 4 <= min(end, len(content)) and content[at : at + 2] != SOD:
        marker, length = _marker(content, at)
        if marker in (COD, COC):
            yield _coding_style(marker, content[at + 4 : at + 2 + length])
        at += 2 + max(length, 2)


def _marker(content: bytes, at: int) -> tuple[bytes, int]:
    """Return the marker at `at` and the length of its segment, which includes the length itself."""
    return content[at : at + 2], int.from_bytes(content[at + 2 : at + 4])


def _tile_part_bytes(content: bytes, at: int) -> int:
    """Return Psot of the tile-part at `at`: its length, or 0 if it reaches to the end marker."""
    return int.from_bytes(content[at + 6 : at + 10])


def _coding_style(marker: bytes, body: bytes) -> _CodingStyle:
    """Return the coding style in the marker segment `body` (A.6.1, A.6.2)."""
    if marker == COD:  # Scod, progression order, layers (2 bytes), component transform
        style, layers, parameters = body[0:1], int.from_bytes(body[2:4]), body[5:]
    else:  # the component, Scoc
        style, layers, parameters = body[1:2], 0, body[2:]
    if len(parameters) < 5:
        raise UnreadableImage("this JPEG 2000 is damaged: its coding style ends early")
    has_precincts = style[0] & 1
    # Levels, width and height of a code block, its style, the wavelet, the precincts (Table A.15).
    levels, block_width, block_height = parameters[:3]
    block_log2 = (block_width & 15) + (block_height & 15) + 4
    precincts = parameters[5:] if has_precincts else b""
    return _CodingStyle(layers, levels, block_log2, precincts)


def _check_division(style: _CodingStyle, layers: int, samples: int, tile_components: int) -> None:
    """Raise ImageTooLarge if `samples` are divided so finely that managing the parts is the cost.

    The parts are layers, code blocks, precincts, and the packets that each of the `layers` has for
    each precinct. `layers` is the largest number in the file, because the style of a component is
    used together with the layers of another coding style.
    """
    if style.levels > MAX_LEVELS:
        raise UnreadableImage("this JPEG 2000 is damaged: it has too many resolutions")
    precincts, block_log2 = 0, style.block_log2
    for level, sides in enumerate(style.precincts or DEFAULT_PRECINCT * (style.levels + 1)):
        area_log2 = (sides & 15) + (sides >> 4)
        reduction_log2 = 2 * max(style.levels - level, 0)
        precincts += (samples >> reduction_log2 >> area_log2) + tile_components
        if level == style.levels:
            block_log2 = min(block_log2, area_log2)  # a block does not cross a precinct
    max_areas = max(MAX_SMALL_AREAS, samples >> MIN_AREA_LOG2)
    blocks = samples >> block_log2
    max_precincts = max_areas + (MAX_LEVELS + 1) * tile_components
    if layers > MAX_LAYERS or blocks > max_areas or precincts > max_precincts:
        raise ImageTooLarge(
            "this JPEG 2000 is cut into too many layers, blocks or precincts: "
            "save it with the defaults"
        )
    packets = layers * precincts
    if packets > MAX_PACKETS:
        raise ImageTooLarge(f"this JPEG 2000 has {packets:,} packets: save it with fewer layers")


def _is_complete(content: bytes) -> bool:
    """Return whether the main header and all tile-parts lead to the end marker (A.4)."""
    at = _codestream(content) + 2
    while 2 <= at < len(content):
        marker, length = _marker(content, at)
        if marker == EOC:
            return True
        step = length + 2
        if marker == SOT:
            step = _tile_part_bytes(content, at)
            if step == 0:  # the last part, up to the end marker
                return content.find(EOC, at) > 0
        at += max(step, 2)
    return False


def _codestream(content: bytes) -> int:
    """Return the offset of the codestream, or -1 if there is none.

    Boxes are followed one after the other, because others may hold the same bytes.
    """
    if content.startswith(CODESTREAM_START):
        return 0
    at = 0
    while at >= 0 and at + 8 <= len(content):
        length, start = int.from_bytes(content[at : at + 4]), at + 8
        if length == 1:
            length, start = int.from_bytes(content[at + 8 : at + 16]), at + 16
        if content[at + 4 : at + 8] == b"jp2c":
            return start if content.startswith(CODESTREAM_START, start) else -1
        at = at + max(length, 8) if length else -1
    return -1


def _header_boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the body of each box in the JP2 header box."""
    for name, body in _boxes(content):
        if name == b"jp2h":
            yield from _boxes(body)


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the body of each box in `content` (I.4)."""
    at = 0
    while at + 8 <= len(content):
        length, name, header = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8], 8
        if length == 1:
            length, header = int.from_bytes(content[at + 8 : at + 16]), 16
        end = len(content) if length == 0 else at + max(length, header)
        yield name, content[at + header : end]
        at = end


def _box(name: bytes, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4) + name + body
