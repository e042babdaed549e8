"""What a file's structure says before any pixel is decoded: whether it is whole, its size, frames
and depth.
"""

import struct
import zlib
from collections.abc import Iterator

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from worker.images import jpeg2000

PNG_BITS = 24  # where the depth stands: the header is always the first chunk
MOST_GIF_BLOCKS = (
    1 << 20
)  # a block holds up to 255 bytes, so this is four times what the largest file needs
MOST_GIF_COMMENTS = 1 << 20  # bytes; Pillow joins the blocks of comments one by one
HIGH_BITDEPTH = 0x40  # in the third byte of AVIF's av1C box (AV1-ISOBMFF, 2.3.3)


def check(form: str, content: bytes) -> None:
    """Raise UnreadableImage for a file that ends early, UnsupportedImage for a depth that is not
    handled.
    """
    if form == "PNG":
        if not _png_is_whole(content):
            raise UnreadableImage("this PNG is damaged or cut short: a checksum in it is wrong")
    elif form == "BMP":
        _check_bmp(content)
    elif form == "WEBP":
        if int.from_bytes(content[4:8], "little") + 8 > len(content):
            raise UnreadableImage("this WebP is cut short")
    elif form == "JPEG2000":
        jpeg2000.check(content)
    elif form == "AVIF" and any(flags & HIGH_BITDEPTH for flags in _av1_flags(content)):
        raise UnsupportedImage(
            "this AVIF has more than 8 bits a colour, which is not handled: convert it to 8 bits"
        )


def _check_bmp(content: bytes) -> None:
    """The file's size, 0 if its writer did not know it, and what must be 1 and at most 256 in
    headers from 40 bytes.
    """
    size, header, planes, colours = struct.unpack_from("<2xI8xI8xH18xI", content.ljust(54, b"\0"))
    if size not in (0, len(content)):
        raise UnreadableImage("this BMP is cut short, or there is something after it")
    if header >= 40 and (planes != 1 or colours > 256):
        raise UnreadableImage("this BMP is damaged: its header makes no sense")


def webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in a WebP's first chunk, for Pillow makes room for the picture when it opens
    it; 0 if unknown.

    RFC 9649, 2.5 to 2.7.
    """
    kind, body = content[12:16], content[20:30]
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(
            body[8:10], "little"
        ) & 0x3FFF
    return 0, 0


def webp_is_lossless(content: bytes) -> bool:
    """Whether the first pixels are in a chunk of the lossless kind; a profile or a frame's header
    may come before.
    """
    at = 12
    while at + 8 <= len(content) and content[at : at + 4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + (16 if content[at : at + 4] == b"ANMF" else size + size % 2)
    return content[at : at + 4] == b"VP8L"


def avif_subsampling(content: bytes) -> str:
    """The chroma subsampling of the picture as Pillow names it."""
    flags = next(_av1_flags(content), 0x0C)
    return {0x00: "4:4:4", 0x08: "4:2:2"}.get(flags & 0x0C, "4:2:0")


def _av1_flags(content: bytes) -> Iterator[int]:
    at = content.find(b"av1C")
    while 0 <= at < len(content) - 6:
        yield content[at + 6]
        at = content.find(b"av1C", at + 4)


def _png_is_whole(content: bytes) -> bool:
    """Whether all chunks are there and as their checksums say; Pillow leaves those of the pixels
    unchecked.
    """
    view, at = memoryview(content), 8
    while at + 12 <= len(view):
        end = at + 8 + int.from_bytes(view[at : at + 4])
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return False
        if content[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False


def gif_size(content: bytes, max_frames: int) -> tuple[int, int, int]:
    """Return frames, width and height of a GIF; its frames may reach beyond its screen, and Pillow
    then enlarges it.

    Raises UnreadableImage unless the blocks follow each other to the end marker (GIF89a, Appendix
    B), ImageTooLarge for more than `max_frames` frames.
    """
    at, frames, blocks, comments = 13 + _gif_table(content[10]), 0, 0, 0
    width, height = struct.unpack_from("<HH", content, 6)
    while at < len(content):
        kind, start = content[at : at + 1], at
        is_comment = content[at + 1 : at + 2] == b"\xfe" and kind == b"!"
        if kind == b";":
            return frames, width, height
        if kind == b"!":
            at += 2
        elif kind == b"," and at + 10 < len(content):
            left, top, across, down = struct.unpack_from("<HHHH", content, at + 1)
            frames, width, height = frames + 1, max(width, left + across), max(height, top + down)
            at += 11 + _gif_table(content[at + 9])
        else:
            break
        while at < len(content) and content[at]:
            at += 1 + content[at]
            blocks += 1
        at += 1
        comments += is_comment * (at - start)
        if frames > max_frames:
            raise ImageTooLarge(
                f"this GIF has more than {max_frames:,} frames: raise VEIL_MAX_FRAMES"
            )
        if blocks > MOST_GIF_BLOCKS or comments > MOST_GIF_COMMENTS:
            raise ImageTooLarge(
                f"this GIF has {blocks:,} blocks and comments of {comments:,} bytes: save it anew"
            )
    raise UnreadableImage("this GIF is damaged or cut short: its blocks do not reach an end marker")


def _gif_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
