"""Compressed data in several parts: behind each of them other data may stand, which nobody sees."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tasks.errors import VeilError
from worker import images
from worker.images import vp8
from worker.images.heif import avif, avif_copies

MANY = 10**7
SECRET = b"Erika Mustermann, 48.1371 N 11.5754 E"
MORE = SECRET * 4
y, x = np.mgrid[:160, :256]
SCENE = np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)
SCENE ^= np.random.default_rng(0).integers(0, 32, SCENE.shape, np.uint8)
# Written by libwebp with `partitions` and `low_memory`, which Pillow does not offer: 32 × 48 pixels
# with two partitions of coefficients.
TWO_PARTITIONS = base64.b64decode(
    "UklGRngBAABXRUJQVlA4IGwBAACwCACdASogADAABAFoJbACuTuuwDmKcYKwuy68UdgMsqIVIZ5r3tsSyg9j5TyxIk0l"
    "+p3XXOgeQNHaINB9JJ9qF3beQs1B6nxT2wHmGwAAvwAA/u7cDuCLIsOBCsMSSH0+HHtdfb4pcWLU1c+e/+DaYe8dU8xR"
    "NfvhHzrIg1vqN9LA4JtzwYYcAsRXo8/NMpcp0XORbO3oRogqow7j+NIGLnFFjt6N7g2lFAFUkH3rqWvoDZskFSAZwm9z"
    "zgYTgZ/zSleMZ74xlyNvrDhe7rz0nUVIoEibrfX1E3VTCwLWCtepByxC1/Z6o3ZKXE9tJNEHlxQC8RZ81VP9zy4zz9F2"
    "Xqu80zlxR5HbgwUn6NJuAADt8lapcxR4CEWIw+QgZxc0FVftFqd1Ca9y8nHu5mAIHBrl8fY4UpnObg9ieOf2MlNvKQu7"
    "07bxsiqc0GXvdDdou37XHYkCwnbh6iVGb5olIHJzM+2WMh9xY4AA"
)
WEBP_HEADER_BYTES = 20


def written(form, pixels=SCENE, **options):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form, **options)
    return target.getvalue()


def shown(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def copied(content):
    """Return whether the compressed data is kept, and the output without faces."""
    picture = images.decode(content, MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    return picture.reassembled is not None, output


# --- WebP


def webp(frame):
    body = b"WEBPVP8 " + len(frame).to_bytes(4, "little") + frame + bytes(len(frame) % 2)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("quality", [1, 50, 100])
@pytest.mark.parametrize("method", [0, 6])
def test_pillow_writes_webp_with_one_partition_of_coefficients(quality, method):
    content = written("WEBP", quality=quality, method=method)
    assert vp8.coefficient_partitions(content[WEBP_HEADER_BYTES:]) == 1
    assert copied(content) == (True, content)


def test_data_behind_one_of_several_partitions_of_a_webp_is_not_copied():
    frame = TWO_PARTITIONS[WEBP_HEADER_BYTES:]
    assert vp8.coefficient_partitions(frame) == 2
    sizes = vp8.FRAME_HEADER_BYTES + vp8.first_partition_size(frame)
    start = sizes + 3  # There is a size for each partition but the last.
    size = int.from_bytes(frame[sizes:start], "little")
    end, longer = start + size, (size + len(MORE)).to_bytes(3, "little")
    content = webp(frame[:sizes] + longer + frame[start:end] + MORE + frame[end:])
    assert np.array_equal(shown(content), shown(TWO_PARTITIONS))
    is_copied, output = copied(content)
    assert not is_copied
    assert SECRET not in output
    assert np.abs(shown(output).astype(int) - shown(content)).mean() < 5


# --- AVIF

TILES = written("AVIF", quality=80, autotiling=False, tile_cols=1)


def units(data):
    """Return the kind and the body of each unit of AV1 data."""
    found, at = [], 0
    while at < len(data):
        size, start = avif.leb128(data, at + 1, len(data))
        found.append((data[at] >> 3 & 15, data[start : start + size]))
        at = start + size
    return found


def with_units(content, parts):
    """Return the AVIF `content` with other AV1 data: header bytes and bodies."""
    data = b"".join(header + leb128(len(body)) + body for header, body in parts)
    at = content.index(b"mdat") - 4
    length = (len(content) - at - 8).to_bytes(4)
    assert content[:at].count(length) == 1
    head = content[:at].replace(length, len(data).to_bytes(4))
    return head + (8 + len(data)).to_bytes(4) + b"mdat" + data


def leb128(number):
    return bytes([number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14])


def stated(kind):
    """Return the header of a unit that states its size."""
    return bytes([kind << 3 | 2])


def with_data_behind_the_first_tile():
    """Return the picture of two tiles, the first of which has data behind its pixels.

    Two bytes before that tile state its size, less one. They are where libaom's header ends, which
    is found by trying: at the right place Pillow's decoder shows the same picture.
    """
    parts = units(TILES[TILES.index(b"mdat") + 4 :])
    kind, body = parts.pop()
    for at in range(4, 40):
        size = int.from_bytes(body[at : at + 2], "little") + 1
        end, longer = at + 2 + size, (size - 1 + len(MORE)).to_bytes(4, "little")[:2]
        if end < len(body):
            changed = body[:at] + longer + body[at + 2 : end] + MORE + body[end:]
            last = stated(kind), changed
            content = with_units(TILES, [*((stated(one), data) for one, data in parts), last])
            try:
                if np.array_equal(shown(content), shown(TILES)):
                    return content
            except RuntimeError:
                continue
    raise AssertionError("the size of the first tile was not found")


def test_an_avif_of_several_tiles_is_copied():
    is_copied, output = copied(TILES)
    assert is_copied
    assert np.array_equal(shown(output), shown(TILES))


def test_data_behind_a_tile_of_an_avif_is_not_copied():
    content = with_data_behind_the_first_tile()
    assert MORE in content
    is_copied, output = copied(content)
    assert not is_copied
    assert SECRET not in output


def test_an_avif_is_written_anew_if_the_decoder_of_opencv_passes_over_padding(monkeypatch, capfd):
    assert shown(avif_copies.PADDED).shape == (16, 16)
    assert avif_copies.is_filled(TILES)
    assert not avif_copies.is_filled(avif_copies.PADDED)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(avif_copies, "_refuses_padding", lambda: False)
    assert not copied(TILES)[0]


FURTHER_UNITS = {
    "a tile of another layer": (bytes([4 << 3 | 4 | 2, 1 << 3]), MORE),
    "a second header": (stated(1), MORE),
}


@pytest.mark.parametrize("name", FURTHER_UNITS)
def test_units_that_decoders_of_an_avif_may_pass_over_are_not_copied(name):
    parts = [(stated(kind), body) for kind, body in units(TILES[TILES.index(b"mdat") + 4 :])]
    assert avif_copies.bare(with_units(TILES, parts), None) is not None
    assert avif_copies.bare(with_units(TILES, [*parts, FURTHER_UNITS[name]]), None) is None


# --- JPEG 2000


def tile_parts(stream):
    """Return the header of a codestream, and its tile-parts."""
    parts, start = [], stream.index(b"\xff\x90")
    at = start
    while stream[at : at + 2] == b"\xff\x90":
        end = at + int.from_bytes(stream[at + 6 : at + 10])
        parts.append(stream[at:end])
        at = end
    return stream[:start], parts


def with_data_behind(part):
    return part[:6] + (len(part) + len(MORE)).to_bytes(4) + part[10:] + MORE


def test_data_behind_a_tile_of_a_jpeg_2000_is_not_copied():
    plain = written("JPEG2000", no_jp2=True, tile_size=(128, 128))
    header, parts = tile_parts(plain)
    assert len(parts) == 4
    content = header + b"".join([with_data_behind(parts[0]), *parts[1:]]) + b"\xff\xd9"
    assert np.array_equal(shown(content), SCENE)
    is_copied, output = copied(content)
    assert not is_copied
    assert SECRET not in output
    assert np.array_equal(shown(output), SCENE)


def in_parts(data_behind):
    """Return a codestream whose tile has two parts, the second of which is empty."""
    header, (part,) = tile_parts(written("JPEG2000", no_jp2=True))
    first = part[:6] + (len(part) + len(data_behind)).to_bytes(4) + b"\0\2" + part[12:]
    second = part[:6] + (14).to_bytes(4) + b"\1\2" + b"\xff\x93"
    return header + first + data_behind + second + b"\xff\xd9"


def test_data_behind_a_part_of_the_tile_of_a_jpeg_2000_is_not_copied():
    assert copied(in_parts(b""))[0]
    content = in_parts(MORE)
    assert np.array_equal(shown(content), SCENE)
    is_copied, output = copied(content)
    assert not is_copied
    assert SECRET not in output


def test_a_jpeg_2000_whose_tile_states_no_length_is_written_anew():
    header, (part,) = tile_parts(written("JPEG2000", no_jp2=True))
    is_copied, _ = copied(header + part[:6] + bytes(4) + part[10:] + b"\xff\xd9")
    assert not is_copied


def with_segments(change):
    """Return a JPEG 2000 whose main header is changed, a list of marker segments."""
    header, parts = tile_parts(written("JPEG2000", no_jp2=True))
    segments, at = [], 2
    while at < len(header):
        end = at + 2 + int.from_bytes(header[at + 2 : at + 4])
        segments.append(header[at:end])
        at = end
    return header[:2] + b"".join(change(segments) + parts) + b"\xff\xd9"


def segment(marker, body):
    return marker + (2 + len(body)).to_bytes(2) + body


def longer_quantization(segments):
    return [segment(one[:2], one[4:] + MORE) if one[:2] == b"\xff\x5c" else one for one in segments]


def quantization_twice(segments):
    first = next(one for one in segments if one[:2] == b"\xff\x5c")
    return [segments[0], segment(first[:2], first[4:5] + SECRET[: len(first) - 5]), *segments[1:]]


def capabilities(segments):
    return [segments[0], segment(b"\xff\x50", bytes(4) + MORE), *segments[1:]]


def test_a_plain_jpeg_2000_is_copied():
    content = with_segments(lambda segments: segments)
    assert copied(content)[0]


@pytest.mark.parametrize("change", [longer_quantization, quantization_twice, capabilities])
def test_what_decoders_of_a_jpeg_2000_ignore_is_not_copied(change):
    content = with_segments(change)
    assert SECRET[:10] in content
    assert np.array_equal(shown(content), SCENE)
    is_copied, output = copied(content)
    assert not is_copied
    assert SECRET[:10] not in output


def box(name, body):
    return (8 + len(body)).to_bytes(4) + name + body


def test_boxes_before_the_header_of_a_jpeg_2000_are_not_copied():
    plain = written("JPEG2000")
    assert copied(plain)[0]
    at = plain.index(b"jp2h") - 4
    content = plain[:at] + box(b"free", SECRET[:16]) + plain[at:]
    is_copied, output = copied(content)
    assert not is_copied
    assert SECRET[:16] not in output


# --- GIF


def test_extensions_of_a_gif_that_readers_pass_over_are_not_copied():
    plain = written("GIF", SCENE[..., 0].copy())
    at = plain.index(b"!\xf9") if b"!\xf9" in plain else plain.index(b",\0\0\0\0")
    control = b"!\xf9\x04\0\0\0\0\0"
    hidden = b"!\xf9" + bytes([14]) + bytes(4) + SECRET[:10] + b"\0"
    assert copied(plain)[0]
    assert copied(plain[:at] + control + plain[plain.index(b",\0\0\0\0") :])[0]
    for further in (hidden, hidden + control, control + control):
        is_copied, output = copied(plain[:at] + further + plain[plain.index(b",\0\0\0\0") :])
        assert not is_copied
        assert SECRET[:10] not in output


# --- JPEG


def jpeg_with(further):
    """Return a JPEG with segments before its own."""
    content = written("JPEG", quality=90)
    at = content.index(b"\xff\xdb")
    return content[:at] + further + content[at:]


def huffman_table(symbols):
    """Return a segment with an AC table of codes of eight bits."""
    return segment(b"\xff\xc4", b"\x10" + bytes([0] * 7 + [len(symbols)] + [0] * 8) + symbols)


REPLACED = {
    "Huffman table": huffman_table(MORE),
    "quantization table": segment(b"\xff\xdb", b"\0" + (SECRET * 2)[:64]),
    "conditioning": segment(b"\xff\xcc", b"".join(bytes([16, one]) for one in SECRET)),
}


@pytest.mark.parametrize("name", REPLACED)
def test_tables_of_a_jpeg_that_no_scan_uses_are_not_copied(name):
    assert copied(jpeg_with(b""))[0]
    try:
        is_copied, output = copied(jpeg_with(REPLACED[name]))
    except VeilError:
        return  # libjpeg refuses the file
    assert not is_copied
    assert REPLACED[name][4:] not in output


def test_a_jpeg_with_the_same_tables_twice_is_copied():
    content = written("JPEG", quality=90)
    start, end = content.index(b"\xff\xdb"), content.index(b"\xff\xc0")
    tables = content[start:end]
    assert copied(content[:end] + tables + content[end:])[0]
