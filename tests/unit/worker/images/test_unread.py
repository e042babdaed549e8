"""A file is refused if Veil would read only part of it, because the rest would be lost."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tasks.errors import UnreadableImage, UnsupportedImage
from worker import images
from worker.images import jpeg2000

MANY = 10**6
SIZE = 48, 32


def scene(number=0, size=SIZE):
    y, x = np.mgrid[: size[1], : size[0]]
    return Image.fromarray(
        np.stack([x * 4, y * 4, np.full_like(x, 40 * number)], axis=-1).astype(np.uint8)
    )


def written(form, count=1, size=SIZE, **options):
    target = io.BytesIO()
    first, *more = [scene(number, size) for number in range(count)]
    if more:
        options |= {"save_all": True, "append_images": more}
    first.save(target, form, **options)
    return target.getvalue()


def decoded(content):
    return images.decode(content, MANY)


def refused(content):
    with pytest.raises(UnsupportedImage, match="viewers show") as caught:
        decoded(content)
    return str(caught.value)


def chunk(name, body):
    return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)


def chunks(content):
    found, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4])
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png(parts):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


APNG = chunks(written("PNG", 3))


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([part for part in APNG if part[0] != b"acTL"], id="no count"),
        pytest.param(
            [(name, struct.pack(">II", 2, 0) if name == b"acTL" else body) for name, body in APNG],
            id="a lower count",
        ),
        pytest.param(
            [(name, struct.pack(">II", 1, 0) if name == b"acTL" else body) for name, body in APNG],
            id="a count of one",
        ),
        pytest.param(
            [part for part in APNG if part[0] not in (b"acTL", b"fcTL")], id="data of frames alone"
        ),
        pytest.param(
            [
                *(part for part in APNG[:-1] if part[0] != b"acTL"),
                (b"acTL", struct.pack(">II", 3, 0)),
                APNG[-1],
            ],
            id="a count after the picture",
        ),
    ],
)
def test_frames_that_a_png_does_not_announce_are_not_dropped(parts):
    assert "frames" in refused(png(parts))


@pytest.mark.parametrize(
    "options", [{}, {"default_image": True}], ids=["frames", "and a default image"]
)
def test_an_apng_with_all_its_frames_is_read(options):
    assert len(decoded(written("PNG", 3, **options)).frames) == 3


def webp(*parts):
    body = b"".join(
        name + struct.pack("<I", len(part)) + part + bytes(len(part) % 2) for name, part in parts
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_parts(content):
    found, at = [], 12
    while at < len(content):
        (size,) = struct.unpack_from("<I", content, at + 4)
        found.append((content[at : at + 4], content[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return found


def test_a_second_picture_in_a_webp_is_not_dropped():
    (first,), (second,) = (webp_parts(written("WEBP", size=size)) for size in (SIZE, (96, 64)))
    header = (
        b"VP8X",
        bytes(4) + (SIZE[0] - 1).to_bytes(3, "little") + (SIZE[1] - 1).to_bytes(3, "little"),
    )
    assert len(decoded(webp(header, first)).frames) == 1
    assert "frames" in refused(webp(first, second))
    with pytest.raises(UnreadableImage):  # by libwebp itself
        decoded(webp(header, first, second))


def test_frames_of_a_webp_that_is_not_said_to_be_animated_are_not_dropped():
    (name, header), *rest = webp_parts(written("WEBP", 3))
    (still,) = webp_parts(written("WEBP"))
    frames = [part for part in rest if part[0] == b"ANMF"]
    plain = bytes([header[0] & ~2]) + header[1:]
    with pytest.raises(UnreadableImage):  # by libwebp itself
        decoded(webp((name, plain), still, *frames))


def jp2(*sizes):
    """Return a JP2 with the boxes of the first picture, and the codestreams of all."""
    streams = [written("JPEG2000", size=size) for size in sizes]
    boxes = [box for box in jpeg2000._boxes(streams[0]) if box[0] != b"jp2c"]
    boxes += [box for stream in streams for box in jpeg2000._boxes(stream) if box[0] == b"jp2c"]
    return b"".join(jpeg2000._box(*box) for box in boxes)


def test_a_second_codestream_of_a_jpeg_2000_is_not_dropped():
    assert decoded(jp2(SIZE)).width == SIZE[0]
    assert "frames" in refused(jp2(SIZE, (96, 64)))


def test_frames_of_a_gif_are_all_read():
    assert len(decoded(written("GIF", 4)).frames) == 4


# --- a larger picture


def indexed(*sizes):
    """Return an MPO of pictures of these sizes; Pillow writes none of different sizes."""
    target = io.BytesIO()
    first, *more = [scene(size=size) for size in sizes]
    first.save(target, "MPO", save_all=True, append_images=more)
    return target.getvalue()


@pytest.mark.parametrize("large", [(96, 64), (40, 60), (49, 20)])
def test_a_larger_picture_behind_a_jpeg_is_not_dropped(large):
    assert "larger" in refused(indexed(SIZE, large))
    assert "larger" in refused(indexed(SIZE, (8, 8), large))
    assert "larger" in refused(written("JPEG") + written("JPEG", size=large))
    assert "larger" in refused(
        written("JPEG") + b"some trailer" + written("JPEG", size=large, progressive=True) + b"x"
    )


@pytest.mark.parametrize("small", [SIZE, SIZE[::-1], (8, 8)])
def test_a_picture_that_is_no_larger_is_dropped_as_documented(small):
    assert decoded(indexed(SIZE, small)).width == SIZE[0]
    assert decoded(written("JPEG") + written("JPEG", size=small)).width == SIZE[0]


def test_what_only_begins_like_a_picture_behind_a_jpeg_is_no_picture():
    trailers = [
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\xff\xff",
        b"\xff\xd8\xff\xe0\0\0" * 1000,
        b"\xff\xd8\xff\xc0\0\x0b",
    ]
    for trailer in trailers:
        assert decoded(written("JPEG") + trailer).width == SIZE[0]


def test_what_looks_like_pictures_without_end_behind_a_jpeg_is_refused():
    with pytest.raises(UnsupportedImage, match="cut them off"):
        decoded(written("JPEG") + b"\xff\xd8\xff\xd9" * 20_000)


def test_a_larger_item_of_an_avif_is_not_dropped():
    content = written("AVIF")
    at = content.index(b"ispe") - 4
    assert struct.unpack_from(">II", content, at + 12) == SIZE
    assert decoded(content).width == SIZE[0]
    item = content[at : at + 12] + struct.pack(">II", 96, 64)
    assert "larger" in refused(content + b"\0\0\0\x1cfree" + item)


def test_frames_of_an_avif_that_shows_one_are_not_dropped():
    animated = written("AVIF", 3)
    assert len(decoded(animated).frames) == 3
    still = animated[:8] + b"avif" + animated[12:]  # the brand selects the still picture
    if getattr(Image.open(io.BytesIO(still)), "n_frames", 1) > 1:
        pytest.skip("this libavif shows the frames whatever the brand")
    assert "frames" in refused(still)
