"""Reading and writing: formats, orientation, colour and limits; damaged files are refused."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin

from tasks.errors import EmptyObject, ImageTooLarge, UnreadableImage, UnsupportedImage, VeilError
from worker import images
from worker.images import headers
from worker.images.picture import BLACK
from worker.settings import WorkerSettings

MANY = 10**8
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(mode="RGB", *tags):
    """Return a colour profile for pictures of `mode`: sRGB's tags and `tags`, (name, body)."""
    count = int.from_bytes(SRGB[128:132])
    table, body = SRGB[132 : 132 + 12 * count], SRGB[132 + 12 * count :]
    shift = 12 * len(tags)
    entries = [struct.unpack(">4sII", table[i : i + 12]) for i in range(0, len(table), 12)]
    entries = [(name, at + shift, size) for name, at, size in entries]
    for name, content in tags:
        entries.append((name, 132 + 12 * (count + len(tags)) + len(body), len(content)))
        body += content + bytes(-len(content) % 4)
    whole = (
        SRGB[:128]
        + len(entries).to_bytes(4)
        + b"".join(struct.pack(">4sII", *entry) for entry in entries)
        + body
    )
    space = {"L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "CMYK": b"CMYK"}.get(mode, b"RGB ")
    return len(whole).to_bytes(4) + whole[4:16] + space + whole[20:]


PROFILE = profile()
LARGE = profile("RGB", (b"A2B0", bytes(70_000)))
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


def scene(mode="RGB", width=90, height=60):
    """Return a smooth picture that is different at each corner.

    Alpha, if any, is 0 at the left.
    """
    y, x = np.mgrid[:height, :width]
    planes = [
        x * 255 // width,
        y * 255 // height,
        (x + y) * 255 // (width + height),
        255 - x * 120 // width,
    ]
    if mode == "I;16":
        return Image.fromarray((planes[0] * 200 + planes[1]).astype(np.uint16))
    pixels = np.stack(planes[: CHANNELS[mode]], axis=-1).astype(np.uint8)
    if mode in ("LA", "RGBA"):
        pixels[..., -1] = planes[0]
    return (
        Image.fromarray(pixels[..., 0])
        if mode == "L"
        else Image.fromarray(pixels, mode if mode == "CMYK" else None)
    )


def written(image, form, **options):
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def opened(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def decoded(content, max_pixels=MANY):
    """Return the only frame of a picture."""
    (frame,) = images.decode(content, max_pixels).frames
    return frame


def round_trip(content):
    """Return the picture, its only frame, and the output of a copy of that, as after masking."""
    picture = images.decode(content, MANY)
    (frame,) = picture.frames
    return picture, frame, images.encode(picture, [frame.pixels.copy()])


def png(*chunks):
    """Return a PNG of `chunks`, (name, body), with checksums."""
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width, height, depth=8, colour=2):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


JPEG = written(scene(), "JPEG", quality=85)
FILES = {
    "JPEG": JPEG,
    "progressive JPEG": written(scene(), "JPEG", progressive=True),
    "gray JPEG": written(scene("L"), "JPEG"),
    "CMYK JPEG": written(scene("CMYK"), "JPEG"),
    "PNG": written(scene(), "PNG"),
    "palette PNG": written(scene().convert("P"), "PNG"),
    "16-bit PNG": written(scene("I;16"), "PNG"),
    "lossy WebP": written(scene(), "WEBP"),
    "lossless WebP": written(scene("RGBA"), "WEBP", lossless=True),
    "TIFF": written(scene(), "TIFF"),
    "Deflate TIFF": written(scene("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
    "LZW TIFF": written(scene("CMYK"), "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": written(scene(), "TIFF", compression="jpeg"),
    "16-bit TIFF": written(scene("I;16"), "TIFF", compression="tiff_adobe_deflate"),
    "GIF": written(scene().convert("P"), "GIF"),
    "BMP": written(scene(), "BMP"),
    "AVIF": written(scene(), "AVIF"),
    "JPEG 2000": written(scene(), "JPEG2000"),
}
# How many times a pixel counts against the limit, where it is not 1.
COST = {
    "CMYK JPEG": 2,
    "Deflate TIFF": 2,
    "LZW TIFF": 2,
    "GIF": 2,
    "lossy WebP": 3,
    "lossless WebP": 3,
    "16-bit PNG": 3,
    "16-bit TIFF": 3,
    "AVIF": 3,
    "JPEG 2000": 6,
}

# --- round trips


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_stays_a_jpeg_of_its_kind(mode, progressive):
    content = written(scene(mode), "JPEG", quality=90, progressive=progressive)
    picture, frame, again = round_trip(content)
    before, after = opened(content), opened(again)
    assert (picture.format, picture.content_type, frame.mode) == ("JPEG", "image/jpeg", mode)
    assert (after.format, after.mode, after.size) == ("JPEG", mode, before.size)
    assert bool(after.info.get("progressive")) is progressive
    assert np.abs(np.asarray(after).astype(int) - np.asarray(before)).mean() < 1
    assert np.array_equal(frame.pixels, np.asarray(before))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [15, 60, 95])
def test_a_jpeg_keeps_its_quantisation_and_subsampling(quality, subsampling):
    content = written(scene(), "JPEG", quality=quality, subsampling=subsampling)
    _, _, again = round_trip(content)
    assert opened(again).quantization == opened(content).quantization
    assert JpegImagePlugin.get_sampling(opened(again)) == subsampling
    assert len(again) < 1.2 * len(content) + 500


def test_tables_of_its_own_are_kept():
    own = [[1 + (i * 7) % 90 for i in range(64)], [99 - i for i in range(64)]]
    _, _, again = round_trip(written(scene(), "JPEG", qtables=own))
    assert list(opened(again).quantization.values()) == own


def test_a_progressive_jpeg_finer_than_pillow_can_write_is_written_baseline():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    content = cv2.imencode(".jpg", pixels, options)[1].tobytes()
    assert opened(content).info["progressive"]
    _, frame, again = round_trip(content)
    assert np.abs(np.asarray(opened(again)).astype(int) - frame.pixels).mean() < 2


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("with_profile", [False, True], ids=["no profile", "profile"])
def test_a_png_keeps_every_pixel_and_its_depth(mode, with_profile):
    content = written(
        scene(mode), "PNG", **({"icc_profile": profile(mode)} if with_profile else {})
    )
    picture, frame, again = round_trip(content)
    expected = np.array(opened(content))
    if mode in ("LA", "RGBA"):
        expected[expected[..., -1] == 0] = 0
    assert (frame.mode, picture.content_type) == (mode, "image/png")
    assert opened(again).mode == mode
    assert np.array_equal(np.asarray(opened(again)), expected)
    assert opened(again).info.get("icc_profile") == (profile(mode) if with_profile else None)


@pytest.mark.parametrize("side", ["opaque", "one entry", "alpha for all entries"])
def test_a_palette_png_keeps_its_colours(side):
    image = scene().convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    options = {
        "opaque": {},
        "one entry": {"transparency": 3},
        "alpha for all entries": {"transparency": bytes(range(32))},
    }
    content = written(image, "PNG", **options[side])
    _, frame, again = round_trip(content)
    expected = np.array(opened(content).convert("RGB" if side == "opaque" else "RGBA"))
    if side != "opaque":
        expected[expected[..., -1] == 0] = 0
    assert frame.mode == ("RGB" if side == "opaque" else "RGBA")
    assert opened(again).mode == "P"
    assert np.array_equal(np.asarray(opened(again).convert(frame.mode)), expected)


def test_a_black_and_white_png_keeps_its_pixels():
    image = scene("L").convert("1")
    _, frame, again = round_trip(written(image, "PNG"))
    assert frame.mode == "L"
    assert np.array_equal(np.asarray(opened(again)) > 0, np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_png_with_a_transparent_colour_becomes_one_with_alpha(mode):
    image = Image.fromarray(np.full((4, 4) if mode == "L" else (4, 4, 3), 7, np.uint8))
    image.putpixel((0, 0), 200 if mode == "L" else (200, 7, 7))
    content = written(image, "PNG", transparency=7 if mode == "L" else (7, 7, 7))
    _, frame, again = round_trip(content)
    assert frame.mode == f"{mode}A"
    alpha = np.asarray(opened(again))[..., -1]
    assert alpha[0, 0] == 255
    assert alpha.sum() == 255


@pytest.mark.parametrize(
    "kept", [None, PROFILE, LARGE], ids=["no profile", "profile", "large profile"]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_lossless_webp_keeps_every_pixel(mode, kept):
    content = written(scene(mode), "WEBP", lossless=True, **({"icc_profile": kept} if kept else {}))
    picture, frame, again = round_trip(content)
    assert (frame.mode, picture.content_type) == (mode, "image/webp")
    assert np.array_equal(np.asarray(opened(again)), frame.pixels)
    assert b"VP8L" in again
    assert opened(again).info.get("icc_profile") == kept


@pytest.mark.parametrize("kept", [None, PROFILE], ids=["no profile", "profile"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_lossy_webp_stays_lossy_and_close(mode, kept):
    content = written(scene(mode), "WEBP", quality=80, **({"icc_profile": kept} if kept else {}))
    _, frame, again = round_trip(content)
    after = np.asarray(opened(again)).astype(int)
    assert frame.mode == opened(again).mode == mode
    assert b"VP8L" not in again[:16] + again[30:34]
    seen = frame.pixels[..., -1] > 0 if mode == "RGBA" else np.ones(after.shape[:2], bool)
    assert np.abs(after - frame.pixels)[seen].mean() < 4
    if mode == "RGBA":
        assert np.array_equal(after[..., -1], frame.pixels[..., -1])


@pytest.mark.parametrize("name", FILES)
def test_decoding_what_was_encoded_gives_the_same_kind_again(name):
    picture, frame, again = round_trip(FILES[name])
    twice = images.decode(again, MANY)
    (same,) = twice.frames
    assert (same.mode, twice.format, same.pixels.shape) == (
        frame.mode,
        picture.format,
        frame.pixels.shape,
    )
    assert same.pixels.dtype == frame.pixels.dtype
    assert twice.encoding | {"rate": 0} == picture.encoding | {"rate": 0}


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB")]
)
def test_a_colour_profile_is_kept(form, mode):
    _, _, again = round_trip(written(scene(mode), form, icc_profile=profile(mode)))
    assert opened(again).info["icc_profile"] == profile(mode)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_one_pixel_is_a_picture(form):
    picture, _, again = round_trip(written(Image.new("RGB", (1, 1), "red"), form))
    assert (picture.width, picture.height) == opened(again).size == (1, 1)


def test_the_given_pixels_are_encoded():
    picture = images.decode(FILES["PNG"], MANY)
    (frame,) = picture.frames
    black = np.zeros_like(frame.pixels)
    assert not np.asarray(opened(images.encode(picture, [black]))).any()


# --- orientation

# How a picture is stored in the file, by EXIF orientation (Exif 2.32, tag 0x0112).
LYING = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", LYING)
@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})],
)
def test_orientation_is_baked_into_the_pixels(form, options, orientation):
    upright = np.asarray(scene())
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(np.ascontiguousarray(LYING[orientation](upright)))
    picture, frame, again = round_trip(written(lying, form, exif=exif, **options))
    assert (picture.width, picture.height) == (90, 60)
    assert np.abs(frame.pixels.astype(int) - upright).max() <= (12 if form == "JPEG" else 0)
    assert opened(again).size == (90, 60)
    assert 0x0112 not in opened(again).getexif()


@pytest.mark.parametrize("orientation", LYING)
def test_orientation_is_baked_into_gray_and_palette_pictures(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for image in (scene("L"), scene("I;16"), scene("RGBA"), scene().convert("P")):
        lying = Image.fromarray(np.ascontiguousarray(LYING[orientation](np.asarray(image))))
        if image.mode == "P":
            lying = lying.convert("P")
            lying.putpalette(image.getpalette())
        frame = decoded(written(lying, "PNG", exif=exif))
        assert np.array_equal(frame.pixels, decoded(written(image, "PNG")).pixels)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    frame = decoded(written(scene(), "PNG", exif=exif))
    assert np.array_equal(frame.pixels, np.asarray(scene()))


# --- transparency and views


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_colours_that_full_transparency_hides_are_blanked(form):
    pixels = np.full((20, 20, 4), 200, np.uint8)
    pixels[:10, :, 3] = 0
    pixels[10:, :, 3] = 1
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    _, frame, again = round_trip(written(Image.fromarray(pixels), form, **options))
    for seen in (frame.pixels, np.asarray(opened(again))):
        assert not seen[:10].any()
        assert (seen[10:, :, :3] == 200).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_an_opaque_picture_is_looked_at_once_in_rgb(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    frame = decoded(written(scene(mode), form))
    view, *others = frame.views()
    # The scene is dark in CMYK, so it is looked at brightened, too.
    assert len(others) == (mode == "CMYK")
    assert view.dtype == np.uint8
    assert view.shape == (60, 90, 3)
    if mode == "RGB":
        assert np.array_equal(view, frame.pixels)
    # From left to right, the brightness follows that of the picture.
    brightness = np.asarray(
        opened(written(scene(mode), form)).convert("RGB" if mode == "CMYK" else "F")
    )
    wanted = brightness.reshape(60, 90, -1).mean(axis=(0, 2))
    assert np.corrcoef(view.mean(axis=(0, 2)), wanted)[0, 1] > 0.99


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_transparent_picture_is_looked_at_bare_on_white_and_on_black(mode):
    frame = decoded(written(scene(mode), "PNG"))
    bare, on_white, *_, on_black = frame.views()  # On white it may look as if it had haze.
    assert bare.dtype == on_white.dtype == on_black.dtype == np.uint8
    assert bare.shape == on_white.shape == on_black.shape == (60, 90, 3)
    assert np.array_equal(bare, np.broadcast_to(frame.pixels[..., :-1], bare.shape))
    hidden = frame.pixels[..., -1] == 0
    assert hidden.any()
    assert (on_white[hidden] == 255).all()
    assert (on_black[hidden] == 0).all()
    # The expected view is the colour blended with the background.
    alpha = frame.pixels[..., -1:] / 255
    for view, ground in ((on_white, 255), (on_black, 0)):
        assert np.abs(view - (frame.pixels[..., :-1] * alpha + ground * (1 - alpha))).max() <= 1.01


def test_a_face_drawn_in_transparency_alone_is_in_a_view():
    shape = np.zeros((40, 40, 2), np.uint8)
    shape[..., 0] = 255
    shape[10:30, 10:30, 1] = 90
    views = list(decoded(written(Image.fromarray(shape, "LA"), "PNG")).views())
    assert any(np.ptp(view) >= 90 for view in views)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_alpha_channel_that_hides_nothing_is_looked_at_once(mode):
    image = scene(mode)
    image.putalpha(255)
    assert len(list(decoded(written(image, "PNG")).views())) == 1


def test_a_face_under_almost_full_transparency_is_in_a_view():
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[5:15, 5:15] = (250, 10, 10, 1)
    views = list(decoded(written(Image.fromarray(pixels), "PNG")).views())
    assert any((view[5:15, 5:15] == (250, 10, 10)).all() for view in views)


@pytest.mark.parametrize("brightest", [1, 255, 4095, 65535])
def test_a_16_bit_picture_is_looked_at_in_its_own_range(brightest):
    pixels = (np.linspace(0, 1, 100 * 80).reshape(80, 100) * brightest).round().astype(np.uint16)
    plain, stretched = decoded(written(Image.fromarray(pixels), "PNG")).views()
    assert plain.max() == brightest >> 8
    assert stretched.min() == 0
    assert stretched.max() >= 254


def test_a_black_16_bit_picture_has_a_view():
    for view in decoded(written(Image.fromarray(np.zeros((8, 8), np.uint16)), "PNG")).views():
        assert view.shape == (8, 8, 3)
        assert not view.any()


# --- what is refused


def heic(brand=b"heic"):
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(200)


REFUSED = {
    "MP4": heic(b"isom"),
    "ICO": written(scene(), "ICO"),
    "PPM": written(scene(), "PPM"),
    "TGA": written(scene(), "TGA"),
    "ZSTD TIFF": written(scene(), "TIFF", compression="zstd"),
    "floating point TIFF": written(scene("L").convert("F"), "TIFF"),
    "32-bit TIFF": written(scene("L").convert("I"), "TIFF"),
    "LAB TIFF": written(scene().convert("LAB"), "TIFF"),
    "16-bit gray PNG with a transparent value": png(
        header(1, 1, 16, 0), (b"tRNS", b"\0\1"), (b"IDAT", zlib.compress(bytes(3))), (b"IEND", b"")
    ),
    "12-bit JPEG": JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_kind_that_is_not_handled_is_named(name):
    with pytest.raises(UnsupportedImage) as caught:
        images.decode(REFUSED[name], MANY)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize(
    "content",
    [
        b"hello, world\n",
        b"<!doctype html><html><body>404 Not Found</body></html>",
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        b'{"json": true}',
        b"%PDF-1.7\n",
        b"PK\x03\x04" + bytes(60),
        bytes(1000),
        b"\xff",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(20),
        b"GIF89a",
        "Grüße aus dem Süden".encode("utf-16"),
    ],
)
def test_a_file_that_is_no_picture_is_unreadable(content):
    with pytest.raises(UnreadableImage):
        images.decode(content, MANY)


def test_an_empty_file_is_named_so():
    with pytest.raises(EmptyObject):
        images.decode(b"", MANY)


@pytest.mark.parametrize("name", FILES)
def test_a_picture_over_the_limit_of_pixels_is_refused_and_one_at_it_is_not(name):
    most = 90 * 60 * COST.get(name, 1)
    assert images.decode(FILES[name], most).width == 90
    with pytest.raises(ImageTooLarge, match="90 × 60"):
        images.decode(FILES[name], most - 1)


def jpeg_of_size(width, height):
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def webp_of_size(width, height):
    content = bytearray(written(scene(), "WEBP", lossless=True))
    at = content.index(b"VP8L") + 9
    bits = (
        int.from_bytes(content[at : at + 4], "little") & ~0xFFFFFFF
        | (width - 1)
        | (height - 1) << 14
    )
    content[at : at + 4] = bits.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        png(header(2**31 - 1, 2**31 - 1), (b"IDAT", b"not even compressed"), (b"IEND", b"")),
        png(header(50_000, 50_000), (b"IDAT", b"not even compressed"), (b"IEND", b"")),
        png(header(50_000, 50_000, 1, 0), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")),
        jpeg_of_size(65_500, 65_500),
        webp_of_size(12_000, 12_000),
    ],
    ids=["largest PNG", "large PNG", "bomb", "JPEG", "WebP"],
)
def test_a_bomb_is_refused_by_its_header_before_any_pixel_is_decoded(content):
    # Decoding any of these would fail with another error, or take gigabytes.
    with pytest.raises(ImageTooLarge):
        images.decode(content, MANY)


@pytest.mark.parametrize("name", FILES)
def test_the_format_comes_from_the_content_alone(name):
    assert images.decode(FILES[name], MANY).format == name.split(
        " ", name.count(" ") - ("2000" in name)
    )[-1].upper().replace(" ", "")


# --- damage

PNG_END_BYTES = 12  # of the chunk IEND


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_picture_is_unreadable(name):
    content = FILES[name]
    if "PNG" in name:  # All pixels are before the last chunk.
        content = content[:-PNG_END_BYTES]
    step = max(1, len(content) // 60)
    for offset in sorted(
        {
            1,
            2,
            11,
            24,
            *range(3, len(content) - 2, step),
            *range(len(content) - 14, len(content) - 2),
        }
    ):
        with pytest.raises(UnreadableImage):
            images.decode(content[:offset], MANY)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("lost", [1, 2])
def test_a_picture_that_lost_only_its_end_marker_is_never_a_partial_one(name, lost):
    content = FILES[name]
    try:
        pixels = decoded(content[:-lost]).pixels
    except UnreadableImage:
        return
    # A BMP's last bytes are padding, and a GIF ends with its last block.
    assert "JPEG" in name or "PNG" in name or name in ("BMP", "GIF")
    assert np.array_equal(pixels, decoded(content).pixels)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("name", ["JPEG", "PNG", "16-bit PNG"])
def test_a_picture_whose_end_was_never_written_is_unreadable(name, share):
    content = FILES[name]
    kept = int(len(content) * share)
    with pytest.raises(UnreadableImage):
        images.decode(content[:kept] + bytes(len(content) - kept), MANY)


def test_a_large_png_whose_last_rows_are_zeros_is_unreadable():
    # Pillow takes the zeros for the end without a warning, and leaves the rows black.
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    content = written(Image.fromarray(pixels), "PNG")
    kept = len(content) * 9 // 10
    with pytest.raises(UnreadableImage):
        images.decode(content[:kept] + bytes(len(content) - kept), MANY)


@pytest.mark.parametrize("name", ["PNG", "palette PNG", "16-bit PNG"])
def test_a_png_with_any_wrong_byte_before_its_end_is_unreadable(name):
    content = FILES[name]
    for offset in range(8, len(content) - PNG_END_BYTES, 7):
        damaged = bytearray(content)
        damaged[offset] ^= 0x10
        with pytest.raises(UnreadableImage):
            images.decode(bytes(damaged), MANY)


@pytest.mark.parametrize("name", ["PNG", "palette PNG", "16-bit PNG"])
@pytest.mark.parametrize("place", range(1, 13))
def test_a_png_with_a_wrong_byte_in_its_end_is_unreadable_or_whole(name, place):
    content = FILES[name]
    damaged = bytearray(content)
    damaged[-place] ^= 0x10
    try:
        pixels = decoded(bytes(damaged)).pixels
    except UnreadableImage:
        return
    assert np.array_equal(pixels, decoded(content).pixels)


@pytest.mark.filterwarnings("ignore")  # Pillow's warnings are no errors
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_picture_is_a_picture_or_an_error_with_a_name(name, seed):
    content, chance = FILES[name], np.random.default_rng(seed)
    # Wrong bits anywhere, wrong bytes in the header, bytes lost or repeated in the middle.
    for attempt in range(60):
        damaged = bytearray(content)
        if attempt % 3 == 0:
            for at in chance.integers(0, len(damaged), chance.integers(1, 6)):
                damaged[at] ^= 1 << int(chance.integers(8))
        elif attempt % 3 == 1:
            for at in chance.integers(0, min(len(damaged), 200), chance.integers(1, 4)):
                damaged[at] = int(chance.integers(256))
        else:
            first, second = sorted(chance.integers(0, len(damaged), 2).tolist())
            damaged[first:second] = damaged[first:second] * int(chance.integers(3))
        try:
            picture = images.decode(bytes(damaged), 10**6)
        except VeilError:
            continue
        for frame in picture.frames:
            assert frame.pixels.size
            assert [view.dtype for view in frame.views()]
        assert images.encode(picture, [frame.pixels.copy() for frame in picture.frames])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_noise_behind_a_pictures_first_bytes_is_an_error_with_a_name(seed):
    chance = np.random.default_rng(seed)
    starts = [
        b"\xff\xd8\xff\xe0",
        b"\xff\xd8\xff\xe1\x00\x40Exif\0\0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x40\0\0\0WEBPVP8X",
        b"GIF89a",
        b"II*\0",
        b"BM",
    ]
    for start in starts:
        for size in (0, 3, 50, 400):
            with pytest.raises(VeilError):
                images.decode(start + chance.bytes(size), 10**6)


def test_a_few_hot_pixels_do_not_darken_a_16_bit_picture():
    pixels = np.tile(np.linspace(0, 4095, 200).astype(np.uint16), (100, 1))
    pixels[50, 50] = 65535
    _, stretched = decoded(written(Image.fromarray(pixels), "PNG")).views()
    assert stretched.max() == 255
    assert np.median(stretched) > 100


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns and continues
def test_exif_that_cannot_be_read_does_not_cost_the_picture():
    content = written(scene(), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert decoded(content).pixels.shape == (60, 90, 3)


@pytest.mark.parametrize("mode", [mode for mode in BLACK if mode not in ("RGB;16", "RGBA;16")])
def test_black_is_opaque_black_in_every_mode(mode):
    image = Image.new(mode, (1, 1), BLACK[mode] if len(BLACK[mode]) > 1 else BLACK[mode][0])
    assert image.convert("RGB").getpixel((0, 0)) == (0, 0, 0)
    assert image.getchannel("A").getpixel((0, 0)) == 255 if mode in ("LA", "RGBA") else True


# --- the pictures of today's cameras and scanners


@pytest.mark.parametrize(
    ("width", "height"),
    [(12_000, 9_000), (11_648, 8_736), (16_384, 12_288), (4_960, 7_016)],
    ids=["108 megapixels", "GFX100", "200 megapixels", "A4 at 600 dpi"],
)
def test_the_default_limits_allow_the_pictures_of_cameras_and_scanners(width, height):
    settings = WorkerSettings()
    size = headers.measure("JPEG", jpeg_of_size(width, height), settings.max_pixels, 1)
    assert size.pixels <= settings.max_pixels
    if height == 7_016:
        assert width * height * 3 <= settings.max_bytes  # uncompressed
