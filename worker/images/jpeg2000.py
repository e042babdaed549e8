"""JPEG 2000 files: whether they are whole, their depth and wavelet, and the colour profile that Pillow passes over.

ISO/IEC 15444-1, Annex A (codestream) and Annex I (boxes).
"""

from collections.abc import Iterator

from tasks.errors import UnreadableImage, UnsupportedImage

CODESTREAM = b"\xff\x4f\xff\x51"  # start of codestream, image and tile size
END, TILE_PART = b"\xff\xd9", b"\xff\x90"
RESTRICTED_PROFILE = b"\x02\x00\x00"  # method, precedence, approximation of a colr box


def check(content: bytes) -> None:
    """Raise UnreadableImage for a file that ends early, UnsupportedImage for a depth that is not handled."""
    if not _is_whole(content):
        raise UnreadableImage("this JPEG 2000 is damaged or cut short: its parts do not reach an end marker")
    at = content.find(CODESTREAM) + 4
    count = int.from_bytes(content[at + 36 : at + 38])
    depths = [(depth & 0x7F) + 1 for depth in content[at + 38 : at + 38 + 3 * count : 3]]
    if len(depths) > 1 and max(depths) > 8:
        raise UnsupportedImage(f"this JPEG 2000 has {max(depths)} bits a colour, which is not handled")


def is_lossless(content: bytes) -> bool:
    """Whether the wavelet is the reversible one: the last byte of the coding style (A.6.1)."""
    at = content.find(b"\xff\x52", content.find(CODESTREAM))
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
            body = b"".join(colours if inner == b"colr" else _box(inner, part) for inner, part in _boxes(body))
        parts.append(_box(name, body))
    return b"".join(parts)


def _is_whole(content: bytes) -> bool:
    """Whether the main header and the parts of all tiles lead to the end marker (A.4)."""
    at = content.find(CODESTREAM) + 2
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
