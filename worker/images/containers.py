"""Check a file's structure before any pixel is decoded: completeness, size, frames and depth."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import ImageTooLarge, UnreadableImage
from worker.images import jpeg2000
from worker.images.heif import deep_avif

RIFF_HEADER_BYTES = 12  # "RIFF", the size, "WEBP"
ANMF_HEADER_BYTES = 16  # the part of an ANMF chunk before its chunks (RFC 9649, 2.7.1.1)
MAX_GIF_BLOCKS = 1 << 20  # a block holds 255 bytes: the largest file needs a quarter of these
MAX_GIF_COMMENT_BYTES = 1 << 20  # Pillow joins the blocks of comments one by one
GIF_COMMENT = b"!\xfe"
GIF_REPEATS = b"!\xff\x0bNETSCAPE2.0"
# The flags in the third byte of AVIF's av1C box (AV1-ISOBMFF, 2.3.3).
HIGH_BITDEPTH, TWELVE_BITS = 0x40, 0x20
SUBSAMPLING = 0x0C
SUBSAMPLING_NAMES = {0x00: "4:4:4", 0x08: "4:2:2", SUBSAMPLING: "4:2:0"}


def check(form: str, content: bytes) -> None:
    """Raise UnreadableImage for a file that ends early, UnsupportedImage for an unhandled depth."""
    if form == "WEBP":
        if int.from_bytes(content[4:8], "little") + 8 > len(content):
            raise UnreadableImage("this WebP is cut short")
    elif form == "JPEG2000":
        jpeg2000.check(content)
    elif form == "AVIF" and avif_depth(content) > 8:
        deep_avif.check_installed()


def webp_size(content: bytes) -> tuple[int, int]:
    """Return width and height in a WebP's first chunk, or 0 and 0 if unknown.

    Pillow reserves memory for the picture when it opens the file. RFC 9649, 2.5 to 2.7.
    """
    name, body = content[12:16], content[20:30]
    if name == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if name == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name == b"VP8 ":
        width, height = (int.from_bytes(body[at : at + 2], "little") for at in (6, 8))
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def webp_is_lossless(content: bytes) -> bool:
    """Return whether the first bitstream in a WebP is lossless.

    A profile and the header of a frame may precede it.
    """
    at = RIFF_HEADER_BYTES
    while at + 8 <= len(content) and content[at : at + 4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        is_frame = content[at : at + 4] == b"ANMF"
        at += 8 + (ANMF_HEADER_BYTES if is_frame else size + size % 2)
    return content[at : at + 4] == b"VP8L"


def avif_subsampling(content: bytes) -> str:
    """Return the chroma subsampling of an AVIF by Pillow's name, 4:2:0 if it is not stated."""
    flags = next(_av1_flags(content), SUBSAMPLING)
    return SUBSAMPLING_NAMES.get(flags & SUBSAMPLING, "4:2:0")


def avif_depth(content: bytes) -> int:
    """Return the largest number of bits a colour of an AVIF: 8, 10 or 12 (AV1-ISOBMFF, 2.3.3)."""
    depth = 8
    for flags in _av1_flags(content):
        if flags & HIGH_BITDEPTH:
            depth = max(depth, 12 if flags & TWELVE_BITS else 10)
    return depth


def _av1_flags(content: bytes) -> Iterator[int]:
    """Yield the third byte of each av1C box."""
    at = content.find(b"av1C")
    while 0 <= at < len(content) - 6:
        yield content[at + 6]
        at = content.find(b"av1C", at + 4)


@dataclass(frozen=True)
class GifSize:
    """The number of frames, the width and the height of a GIF, and whether it has an end marker."""

    frames: int
    width: int
    height: int
    has_end: bool = True


def gif_size(content: bytes, max_frames: int) -> GifSize:
    """Return the size of a GIF.

    Frames may reach beyond the GIF's screen: Pillow then enlarges the picture. Raises
    UnreadableImage unless the blocks lead to the end marker (GIF89a, Appendix B), which a still
    picture may lack, ImageTooLarge for more than `max_frames` frames.
    """
    frames = data_blocks = comment_bytes = end = 0
    width, height = struct.unpack_from("<HH", content, 6)
    for block in gif_blocks(content):
        if block.kind == b";":
            return GifSize(frames, width, height)
        end, data_blocks = block.end, data_blocks + block.data_blocks
        if block.kind == b",":
            right, bottom = _gif_frame_corner(content, block.start)
            frames, width, height = frames + 1, max(width, right), max(height, bottom)
        if block.kind == GIF_COMMENT:
            comment_bytes += block.end - block.start
        if frames > max_frames:
            raise ImageTooLarge(
                f"this GIF has more than {max_frames:,} frames: raise VEIL_MAX_FRAMES"
            )
        if data_blocks > MAX_GIF_BLOCKS or comment_bytes > MAX_GIF_COMMENT_BYTES:
            raise ImageTooLarge(
                f"this GIF has {data_blocks:,} blocks and comments of {comment_bytes:,} bytes: "
                "save it again"
            )
    # An animation without an end marker may have lost frames.
    if end == len(content) and frames == 1 and GIF_REPEATS not in content:
        return GifSize(frames, width, height, has_end=False)
    raise UnreadableImage("this GIF is damaged or cut short: its blocks do not reach an end marker")


@dataclass(frozen=True)
class GifBlock:
    """A block of a GIF with the blocks of its data (GIF89a, Appendix A).

    `kind` is ``,`` for a frame, ``;`` for the end marker, and ``!`` with its label for an
    extension.
    """

    kind: bytes
    start: int
    end: int
    data_blocks: int


def gif_blocks(content: bytes) -> Iterator[GifBlock]:
    """Yield the blocks after the header, up to the end marker or what is no block.

    Zeros between blocks are left out, because readers pass over them.
    """
    at = gif_header_end(content)
    while at < len(content):
        start, kind = at, content[at : at + 1]
        if kind == b"\0":
            at += 1
            continue
        if kind == b"!":
            kind, at = content[at : at + 2], at + 2
        elif kind == b"," and at + 10 < len(content):
            at += gif_data_start(content[at : at + 10])
        elif kind == b";":
            yield GifBlock(kind, start, start + 1, 0)
            return
        else:
            return
        at, data_blocks = _gif_blocks_end(content, at)
        yield GifBlock(kind, start, at, data_blocks)


def gif_header_end(content: bytes) -> int:
    """Return where the header and the global colour table of a GIF end."""
    return 13 + _gif_table(content[10])


def gif_data_start(frame: bytes) -> int:
    """Return where the data blocks of the GIF frame `frame` start, from its descriptor on."""
    return 11 + _gif_table(frame[9])


def _gif_frame_corner(content: bytes, at: int) -> tuple[int, int]:
    """Return right and bottom of the frame whose descriptor is at `at` (GIF89a, 20)."""
    left, top, width, height = struct.unpack_from("<HHHH", content, at + 1)
    return left + width, top + height


def _gif_blocks_end(content: bytes, at: int) -> tuple[int, int]:
    """Return where the data blocks from `at` on end, and their number (GIF89a, 15)."""
    blocks = 0
    while at < len(content) and content[at]:
        at += 1 + content[at]
        blocks += 1
    return at + 1, blocks


def _gif_table(flags: int) -> int:
    """Return the size in bytes of the colour table that `flags` state (GIF89a, 18 and 20)."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
