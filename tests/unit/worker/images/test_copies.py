"""Files in which nothing was hidden keep their compressed data, and lose their metadata."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from worker import images
from worker.images.heif import avif

MANY = 10**7
SECRET = b"Erika Mustermann, 48.1371 N 11.5754 E"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
y, x = np.mgrid[:80, :120]
SCENE = np.stack([x * 2, y * 3, (x + y)], axis=-1).astype(np.uint8)
SCENE[20:60, 20:60] ^= np.random.default_rng(0).integers(0, 32, (40, 40, 3), np.uint8)
OPAQUE = np.dstack([SCENE, np.full(SCENE.shape[:2], 200, np.uint8)])
EXIF = Image.Exif()
EXIF[270] = SECRET.decode()


def written(form, pixels=SCENE, **options):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form, **options)
    return target.getvalue()


def webp_chunk(name, body):
    return name + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2)


def with_webp_chunk(content, name, body):
    whole = content[8:] + webp_chunk(name, body)
    return b"RIFF" + len(whole).to_bytes(4, "little") + whole


WEBP = {"exif": EXIF, "xmp": SECRET, "icc_profile": SRGB}
FILES = {
    "lossy WebP": written("WEBP", quality=70, **WEBP),
    "lossless WebP": written("WEBP", lossless=True, **WEBP),
    "WebP with alpha": written("WEBP", OPAQUE, quality=70, **WEBP),
    "plain WebP": written("WEBP", quality=70),
    "WebP with an unknown chunk": with_webp_chunk(written("WEBP", **WEBP), b"note", SECRET),
    "AVIF": written("AVIF", quality=60, exif=EXIF, xmp=SECRET, icc_profile=SRGB),
    "plain AVIF": written("AVIF", quality=60),
    "AVIF of named colours": avif.with_colour(written("AVIF", quality=60), (12, 13)),
    "gray AVIF": written("AVIF", SCENE[..., 0].copy(), quality=60),
    "AVIF with a box behind it": written("AVIF") + (8 + len(SECRET)).to_bytes(4) + b"free" + SECRET,
    "lossy JPEG 2000": written(
        "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[20], comment=SECRET
    ),
    "lossless JPEG 2000": written("JPEG2000", comment=SECRET),
    "bare codestream": written("JPEG2000", no_jp2=True, comment=SECRET),
    "JPEG 2000 with a box behind it": written("JPEG2000")
    + (8 + len(SECRET)).to_bytes(4)
    + b"xml "
    + SECRET,
}


@pytest.mark.parametrize("name", FILES)
def test_a_picture_without_a_face_keeps_its_compressed_data(name):
    content = FILES[name]
    picture = images.decode(content, MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert len(output) <= len(content)
    assert SECRET not in output
    again = images.decode(output, MANY)
    assert np.array_equal(again.frames[0].pixels, picture.frames[0].pixels)
    for name in ("icc_profile", "colour"):
        assert again.encoding.get(name) == picture.encoding.get(name)
    assert images.encode(again, [frame.pixels for frame in again.frames]) == output


@pytest.mark.parametrize("name", FILES)
def test_a_picture_with_a_face_is_written_anew(name):
    picture = images.decode(FILES[name], MANY)
    masked = picture.frames[0].pixels.copy()
    masked[20:60, 20:60] = 10
    output = images.encode(picture, [masked])
    assert np.abs(images.decode(output, MANY).frames[0].pixels[30:50, 30:50, :3] - 10.0).max() < 30


@pytest.mark.parametrize("form", ["WEBP", "JPEG2000", "AVIF"])
def test_colours_below_full_transparency_are_not_copied(form):
    hidden = OPAQUE.copy()
    hidden[20:60, 20:60, 3] = 0
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    picture = images.decode(written(form, hidden, **options), MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    with Image.open(io.BytesIO(output)) as image:
        below = np.asarray(image)[25:55, 25:55].astype(int)
    assert not below[..., 3].any()
    assert np.abs(below[..., :3] - SCENE[25:55, 25:55]).mean() > 20


@pytest.mark.parametrize("lossless", [False, True])
def test_data_behind_the_pixels_of_a_webp_is_not_copied(lossless):
    plain = written("WEBP", lossless=lossless)
    name, size = plain[12:16], int.from_bytes(plain[16:20], "little")
    content = with_webp_chunk(plain[:12], name, plain[20 : 20 + size] + SECRET * 4)
    picture = images.decode(content, MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert SECRET not in output


def test_an_avif_that_a_property_turns_is_written_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = images.decode(written("AVIF", exif=exif), MANY)
    assert picture.reassembled is None
    assert (picture.width, picture.height) == (80, 120)


def test_metadata_inside_the_av1_data_is_not_copied():
    """A unit of metadata (AV1, 6.7) may follow the frame."""
    plain = written("AVIF", quality=60)
    unit = bytes([5 << 3 | 2, len(SECRET) + 1, 99]) + SECRET
    at = plain.index(b"mdat") - 4
    size = int.from_bytes(plain[at : at + 4])
    length = (size - 8).to_bytes(4)
    assert plain[:at].count(length) == 1
    head = plain[:at].replace(length, (size - 8 + len(unit)).to_bytes(4))
    content = head + (size + len(unit)).to_bytes(4) + plain[at + 4 :] + unit
    picture = images.decode(content, MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert SECRET not in output
    assert picture.reassembled is not None


def test_a_webp_that_exif_turns_is_written_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = images.decode(written("WEBP", exif=exif), MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    with Image.open(io.BytesIO(output)) as image:
        assert image.size == (80, 120)


# --- GIF


def animated(count=3, **options):
    frames = [Image.fromarray(np.roll(SCENE, 10 * number, axis=1)) for number in range(count)]
    frames = [frame.quantize(64) for frame in frames]
    target = io.BytesIO()
    frames[0].save(
        target, "GIF", save_all=True, append_images=frames[1:], comment=SECRET, **options
    )
    return target.getvalue()


GIFS = {
    "still": animated(1),
    "animation": animated(3, duration=[100, 200, 300], loop=2),
    "small frame": animated(1)[:6] + (400).to_bytes(2, "little") + animated(1)[8:],
}


@pytest.mark.parametrize("name", GIFS)
def test_a_gif_without_faces_does_not_grow(name):
    content = GIFS[name]
    assert SECRET in content
    picture = images.decode(content, MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert len(output) < len(content)
    assert SECRET not in output
    again = images.decode(output, MANY)
    for before, after in zip(picture.frames, again.frames, strict=True):
        assert np.array_equal(before.pixels, after.pixels)
    assert again.encoding.get("duration") == picture.encoding.get("duration")
    assert again.encoding.get("loop") == picture.encoding.get("loop")


def test_data_behind_the_pixels_of_a_gif_is_not_copied():
    content = animated(1)
    assert content.endswith(b"\0;")
    picture = images.decode(content[:-2] + bytes([len(SECRET)]) + SECRET + b"\0;", MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert SECRET not in output


# --- more in the compressed data than its pixels


def webp_chunks(content):
    found, at = {}, 12
    while at < len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        found[content[at : at + 4]] = content[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return found


def webp(parts):
    whole = b"WEBP" + b"".join(webp_chunk(*pair) for pair in parts)
    return b"RIFF" + len(whole).to_bytes(4, "little") + whole


def webp_with_alpha(flags, alpha):
    size = bytes([119, 0, 0, 79, 0, 0])
    bitstream = webp_chunks(written("WEBP", OPAQUE, quality=70))[b"VP8 "]
    head = b"VP8X", bytes([flags, 0, 0, 0]) + size
    return webp([head, (b"ALPH", alpha), (b"VP8 ", bitstream)])


def webp_with_long_partition():
    bitstream = webp_chunks(written("WEBP", quality=70))[b"VP8 "]
    tag = int.from_bytes(bitstream[:3], "little")
    end = 10 + (tag >> 5)
    longer = (tag + (len(MORE) << 5)).to_bytes(3, "little")
    return webp([(b"VP8 ", longer + bitstream[3:end] + MORE + bitstream[end:])])


def avif_with_data(change):
    """Return an AVIF whose AV1 data, a delimiter, a header and a frame, is changed."""
    plain = written("AVIF", quality=60)
    at = plain.index(b"mdat") - 4
    size = int.from_bytes(plain[at : at + 4])
    data = change(plain[at + 8 :])
    length = (size - 8).to_bytes(4)
    assert plain[:at].count(length) == 1
    head = plain[:at].replace(length, len(data).to_bytes(4))
    return head + (8 + len(data)).to_bytes(4) + b"mdat" + data


def frame_of(data):
    """Return where the unit of the frame starts, and its body."""
    at = 0
    while data[at] >> 3 & 15 != 6:
        size, body = avif.leb128(data, at + 1, len(data))
        at = body + size
    size, body = avif.leb128(data, at + 1, len(data))
    return at, data[body : body + size]


def with_data_behind_the_frame(data):
    at, body = frame_of(data)
    return data[:at] + b"\x30" + body + MORE  # a unit without a size reaches to the end


def with_a_second_frame(data):
    other = written("AVIF", SCENE[::-1].copy(), quality=60)
    at, _ = frame_of(other[other.index(b"mdat") + 4 :])
    return data + other[other.index(b"mdat") + 4 :][at:]


def jp2_with_segment(marker):
    stream = written("JPEG2000", no_jp2=True)
    at = stream.index(b"\xff\x52")
    return stream[:at] + marker + (2 + len(MORE)).to_bytes(2) + MORE + stream[at:]


def jp2_with_data_behind_a_tile():
    stream = written("JPEG2000", no_jp2=True)
    at = stream.index(b"\xff\x90")
    size = int.from_bytes(stream[at + 6 : at + 10]) or len(stream) - 2 - at
    longer = (size + len(MORE)).to_bytes(4)
    end = at + size
    return stream[: at + 6] + longer + stream[at + 10 : end] + MORE + stream[end:]


def jp2_with_colours(body):
    content = written("JPEG2000")
    at = content.index(b"jp2h") - 4
    size = int.from_bytes(content[at : at + 4])
    box = (8 + len(body)).to_bytes(4) + b"colr" + body
    header = (size + len(box)).to_bytes(4) + content[at + 4 : at + size] + box
    return content[:at] + header + content[at + size :]


MORE = SECRET * 4
ALPHA = OPAQUE[..., 3].tobytes()
HOLDING_MORE = {
    "data behind alpha": webp_with_alpha(0x10, b"\0" + ALPHA + MORE),
    "alpha that the header denies": webp_with_alpha(0, b"\0" + MORE + ALPHA[len(MORE) :]),
    "data behind a partition": webp_with_long_partition(),
    "data behind a frame of AVIF": avif_with_data(with_data_behind_the_frame),
    "an unknown marker": jp2_with_segment(b"\xff\x6f"),
    "lengths of tile-parts": jp2_with_segment(b"\xff\x55"),
    "data behind a tile": jp2_with_data_behind_a_tile(),
    "an unknown profile": jp2_with_colours(b"\3\0\0" + MORE),
    "a long name of colours": jp2_with_colours(b"\1\0\0\0\0\0\x10" + MORE),
}


@pytest.mark.parametrize("name", HOLDING_MORE)
def test_what_compressed_data_holds_besides_its_pixels_is_not_copied(name):
    assert MORE in HOLDING_MORE[name]
    picture = images.decode(HOLDING_MORE[name], MANY)
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert SECRET not in output
    assert images.decode(output, MANY).width == picture.width


def test_transparency_that_a_lossless_webp_denies_is_not_copied():
    hidden = OPAQUE.copy()
    hidden[:40, :, 3] = 90
    bitstream = bytearray(webp_chunks(written("WEBP", hidden, lossless=True))[b"VP8L"])
    bitstream[4] &= ~0x10
    picture = images.decode(webp([(b"VP8L", bytes(bitstream))]), MANY)
    assert picture.frames[0].mode == "RGB"
    assert picture.reassembled is None


def test_a_second_frame_of_a_still_avif_is_not_copied():
    assert images.decode(avif_with_data(with_a_second_frame), MANY).reassembled is None


def test_a_picture_that_an_avif_shows_reduced_is_not_copied():
    plain = written("AVIF", quality=60)
    at = plain.index(b"ispe") + 8
    small = plain[:at] + (40).to_bytes(4) + (30).to_bytes(4) + plain[at + 8 :]
    picture = images.decode(small, MANY)
    assert (picture.width, picture.height) == (40, 30)
    assert picture.reassembled is None
