"""Every frame and page of every format is anonymized, and keeps its timing and its kind."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tasks.errors import DetectorUnavailable, ImageTooLarge, UnreadableImage
from worker import images
from worker.anonymizer import Anonymizer, Limits, Stopwatch
from worker.detection.faces import Detections
from worker.images import deep, png
from worker.masking.regions import MaskStyle

MANY = 10**7
GROUND, SKIN = (90, 90, 90), (220, 180, 150)
FACE = (16, 8, 32, 24)
SIZE = 48, 40


def scene(number=0, mode="RGB"):
    """Return a flat picture with a face, and a patch that differs between frames."""
    image = Image.new("RGB", SIZE, GROUND)
    image.paste(SKIN, FACE)
    image.paste((0, 0, 40 * number), (40, 32, 48, 40))
    if mode == "RGBA":
        image.putalpha(255)
        image.paste((0, 0, 0, 0), (0, 32, 8 + number, 40))
        return image
    return image.convert(mode)


def written(frames, form, **options):
    target = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:]} if len(frames) > 1 else {}
    frames[0].save(target, form, **more, **options)
    return target.getvalue()


def opened(content):
    return Image.open(io.BytesIO(content))


def shown(content):
    """Return all frames as a player shows them, RGBA."""
    return [
        np.asarray(frame.convert("RGBA")).astype(int)
        for frame in ImageSequence.Iterator(opened(content))
    ]


class Finds:
    """A detector that finds FACE in every frame, and counts the views it gets."""

    def __init__(self):
        self.seen = 0

    def detect(self, picture):
        self.seen += 1
        return Detections(np.array([FACE], np.float32), np.array([0.9], np.float32))


def anonymized(content, detector=None, **limits):
    bounds = Limits(**{"max_bytes": MANY, "max_pixels": MANY, "fetch_seconds": 5} | limits)
    made = Anonymizer(
        detector=detector or Finds(), style=MaskStyle("fill", 1.0, 0.0), limits=bounds
    )
    return made.anonymize(content, Stopwatch())


ANIMATED = {
    "GIF": written([scene(i) for i in range(4)], "GIF", duration=[100, 200, 300, 400], loop=3),
    "transparent GIF": written(
        [scene(i, "RGBA") for i in range(4)], "GIF", duration=50, loop=0, disposal=2
    ),
    "APNG": written([scene(i) for i in range(4)], "PNG", duration=[100, 250, 300, 400], loop=2),
    "transparent APNG": written(
        [scene(i, "RGBA") for i in range(4)], "PNG", duration=100, disposal=1
    ),
    "lossless WebP": written(
        [scene(i) for i in range(4)], "WEBP", duration=[100, 200, 300, 400], lossless=True, loop=5
    ),
    "transparent WebP": written(
        [scene(i, "RGBA") for i in range(4)], "WEBP", duration=80, lossless=True
    ),
    "lossy WebP": written(
        [scene(i) for i in range(4)], "WEBP", duration=[100, 200, 300, 400], quality=95
    ),
    "AVIF": written(
        [scene(i) for i in range(4)], "AVIF", duration=[100, 200, 300, 400], quality=95
    ),
}
LOSSLESS = [name for name in ANIMATED if name not in ("lossy WebP", "AVIF")]

# --- animations


@pytest.mark.parametrize("name", ANIMATED)
def test_the_face_is_hidden_in_every_frame_and_the_rest_plays_as_before(name):
    detector = Finds()
    result = anonymized(ANIMATED[name], detector)
    before, after = shown(ANIMATED[name]), shown(result.content)
    assert len(after) == len(before) == 4
    assert detector.seen >= 4
    assert len(result.detections) == 4
    x1, y1, x2, y2 = FACE
    tolerance = 0 if name in LOSSLESS else 40
    for one, other in zip(before, after, strict=True):
        assert (other[y1:y2, x1:x2, :3] <= tolerance).all()
        outside = np.ones(one.shape[:2], bool)
        outside[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2] = False
        visible = outside & (one[..., 3] > 0)
        assert np.abs(other - one)[visible].max() <= tolerance
        assert np.array_equal(other[..., 3][outside], one[..., 3][outside])


class Blinks(Finds):
    """A detector that misses some frames, and finds a face in the others.

    The face moves by `step` pixels a frame.
    """

    def __init__(self, missed, step=0):
        super().__init__()
        self._missed, self._step = missed, step

    def detect(self, picture):
        number = self.seen
        found = super().detect(picture)
        if number in self._missed:
            return Detections.none()
        return Detections(found.boxes_xyxy + np.float32([self._step * number, 0] * 2), found.scores)


@pytest.mark.parametrize("missed", [{1}, {1, 2}, {0, 1}, {2, 3}, {0, 2, 3}])
@pytest.mark.parametrize("name", ["GIF", "APNG", "lossless WebP"])
def test_a_face_is_hidden_in_every_frame_of_an_animation_that_misses_it(name, missed):
    result = anonymized(ANIMATED[name], Blinks(missed))
    x1, y1, x2, y2 = FACE
    assert all((frame[y1:y2, x1:x2, :3] == 0).all() for frame in shown(result.content))
    assert len(result.detections) == 4


def test_a_face_that_leaves_the_picture_is_reported_within_it():
    result = anonymized(ANIMATED["APNG"], Blinks({2, 3}, step=9))
    boxes = result.detections.boxes_xyxy
    assert (boxes >= 0).all()
    assert (boxes <= [*SIZE, *SIZE]).all()
    for number, frame in enumerate(shown(result.content)):
        assert (frame[8:24, 16 + 9 * number : 32 + 9 * number, :3] == 0).all()


def test_a_face_of_one_page_is_looked_for_on_no_other():
    result = anonymized(written([scene(i) for i in range(3)], "TIFF"), Blinks({1}))
    x1, y1, x2, y2 = FACE
    assert [bool((frame[y1:y2, x1:x2, :3] == 0).all()) for frame in shown(result.content)] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("name", ANIMATED)
def test_an_animation_keeps_its_timing_and_its_repeats(name):
    before, after = opened(ANIMATED[name]), opened(anonymized(ANIMATED[name]).content)
    assert after.info.get("loop") == before.info.get("loop")
    for number in range(before.n_frames):
        before.seek(number)
        after.seek(number)
        before.load()
        after.load()
        assert after.info["duration"] == before.info["duration"]


def test_the_still_picture_before_an_animation_is_anonymized_too():
    content = written([scene(i) for i in range(3)], "PNG", duration=[100, 200], default_image=True)
    again = anonymized(content).content
    assert opened(again).info["default_image"]
    frames = shown(again)
    assert len(frames) == 3
    x1, y1, x2, y2 = FACE
    for one, other in zip(shown(content), frames, strict=True):
        assert not other[y1:y2, x1:x2, :3].any()
        assert np.array_equal(other[:, 36:], one[:, 36:])


def test_exif_behind_the_last_frame_of_a_png_turns_every_frame():
    plain = written([scene(0), scene(1)], "PNG", duration=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    end = plain.rindex(b"IEND") - 4
    content = (
        plain[:end] + png.chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + plain[end:]
    )
    pairs = zip(images.decode(plain, MANY).frames, images.decode(content, MANY).frames, strict=True)
    for before, after in pairs:
        assert np.array_equal(after.pixels, np.rot90(before.pixels, -1))


def test_frames_that_are_masked_until_they_are_alike_last_as_long_as_before():
    frames = [scene() for _ in range(3)]
    frames[1].paste((1, 2, 3), FACE)
    again = anonymized(written(frames, "GIF", duration=[100, 200, 300])).content
    still = opened(again)
    assert (still.n_frames, still.info["duration"]) == (1, 600)


def test_a_single_frame_of_a_moving_format_is_a_still_picture():
    for form in ("GIF", "WEBP", "PNG", "AVIF"):
        again = anonymized(written([scene()], form)).content
        assert (opened(again).format, getattr(opened(again), "n_frames", 1)) == (form, 1)


@pytest.mark.parametrize("name", ANIMATED)
def test_all_frames_together_are_held_against_the_limit_of_pixels(name):
    most = 4 * SIZE[0] * SIZE[1] * (3 if name == "AVIF" or "WebP" in name else 2)
    assert anonymized(ANIMATED[name], max_pixels=most).content
    with pytest.raises(ImageTooLarge, match="4 frames of 48 × 40 pixels"):
        anonymized(ANIMATED[name], max_pixels=most - 1)


@pytest.mark.parametrize("name", ANIMATED)
def test_frames_are_counted_before_any_is_decoded(name):
    assert anonymized(ANIMATED[name], max_frames=4).content
    with pytest.raises(ImageTooLarge, match="VEIL_MAX_FRAMES"):
        anonymized(ANIMATED[name], max_frames=3)


def test_an_animation_that_takes_too_long_to_look_at_is_refused():
    with pytest.raises(ImageTooLarge, match="1 of 4 frames"):
        anonymized(ANIMATED["GIF"], detection_seconds=0)


def test_views_of_a_frame_that_take_too_long_are_no_fault_of_the_picture():
    with pytest.raises(
        DetectorUnavailable, match="detection in 1 of the views of a frame took 0 s"
    ):
        anonymized(written([scene(mode="RGBA")], "PNG"), detection_seconds=0)


def test_an_animation_whose_last_frame_was_lost_is_unreadable():
    content = ANIMATED["GIF"]
    last = content.rindex(b"\x21\xf9\x04")
    for cut in (content[:last], content[:last] + b"\0", content[: last + 10]):
        with pytest.raises(UnreadableImage):
            anonymized(cut)


def test_a_gif_frame_that_reaches_beyond_the_screen_counts_whole():
    content = bytearray(ANIMATED["GIF"])
    at = content.index(b",", content.rindex(b"\x21\xf9\x04") + 8)
    struct.pack_into("<HH", content, at + 1, 60_000, 60_000)
    with pytest.raises(ImageTooLarge, match="60"):
        anonymized(bytes(content))


# --- palettes


@pytest.mark.parametrize("form", ["GIF", "PNG"])
def test_a_palette_picture_keeps_its_palette_and_every_colour_that_no_mask_covers(form):
    chance = np.random.default_rng(0)
    source = Image.fromarray(chance.integers(0, 256, (40, 48), np.uint8), "P")
    source.putpalette(chance.integers(0, 256, 768, np.uint8).tobytes())
    again = anonymized(written([source], form)).content
    assert opened(again).mode == "P"
    before, after = shown(written([source], form))[0], shown(again)[0]
    x1, y1, x2, y2 = FACE
    outside = np.ones((40, 48), bool)
    outside[y1:y2, x1:x2] = False
    assert np.array_equal(after[outside], before[outside])
    assert after[~outside].max(axis=-1).min() == 255  # opaque
    assert len(np.unique(after[~outside], axis=0)) == 1
    assert after[y1, x1, :3].sum() < 150  # no palette entry is free, so the darkest is used


def test_the_transparency_of_a_palette_png_is_kept():
    source = scene(0, "RGBA").quantize(32, Image.Quantize.FASTOCTREE)
    content = written([source], "PNG")
    again = anonymized(content).content
    assert opened(again).mode == "P"
    assert np.array_equal(shown(again)[0][..., 3], shown(content)[0][..., 3])


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_gif_whose_frames_show_more_than_256_colours_keeps_those_that_fit_best(mode):
    # Each frame has 256 colours of its own, and half of the previous frame shows through.
    y, x = np.mgrid[:40, :48]
    frames = []
    for number in range(2):
        pixels = np.stack([(x * 5), (y * 6), np.full_like(x, 120 * number)], -1).astype(np.uint8)
        frame = Image.fromarray(pixels).quantize(250)
        if mode == "RGBA":
            indices = np.array(frame)
            indices[:, 24 * number : 24 * number + 20] = 255
            palette = frame.getpalette() + [0] * (768 - len(frame.getpalette()))
            frame = Image.fromarray(indices, "P")
            frame.putpalette(palette)
            frame.info["transparency"] = 255
        frames.append(frame)
    content = written(frames, "GIF", duration=100, disposal=1, optimize=False)
    assert len(np.unique(shown(content)[1].reshape(-1, 4), axis=0)) > 256 or mode == "RGB"
    before, after = shown(content), shown(anonymized(content).content)
    for one, other in zip(before, after, strict=True):
        outside = np.ones(one.shape[:2], bool)
        outside[8:24, 16:32] = False  # FACE
        assert np.array_equal(other[..., 3][outside], one[..., 3][outside])
        visible = outside & (one[..., 3] > 0)
        assert np.abs(other - one)[visible].mean() < 8


# --- pages


def test_the_pages_of_a_tiff_may_differ_in_size_mode_and_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = [scene(), scene(0, "L").resize((96, 80)), scene(0, "CMYK"), scene(0, "RGBA")]
    target = io.BytesIO()
    pages[1].encoderinfo = {"exif": exif}
    pages[0].save(target, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    picture = images.decode(target.getvalue(), MANY)
    assert [frame.mode for frame in picture.frames] == ["RGB", "L", "CMYK", "RGBA"]
    assert picture.frames[1].pixels.shape in ((80, 96), (96, 80))
    again = opened(anonymized(target.getvalue()).content)
    assert again.n_frames == 4
    x1, y1, x2, y2 = FACE
    for number, frame in enumerate(picture.frames):
        again.seek(number)
        assert again.mode == frame.mode
        assert again.size == (frame.width, frame.height)
        assert again.info["compression"] == "tiff_lzw"
        assert not np.asarray(again.convert("RGB"))[y1:y2, x1:x2].any()


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]
)
def test_a_tiff_keeps_its_compression(compression):
    content = written([scene()], "TIFF", compression=compression)
    assert opened(anonymized(content).content).info["compression"] == compression


def test_a_tiff_whose_checksum_is_wrong_is_unreadable():
    content = bytearray(written([scene()], "TIFF", compression="tiff_adobe_deflate"))
    at, size = (opened(bytes(content)).tag_v2[tag][0] for tag in (273, 279))
    content[at + size - 1] ^= 1
    with pytest.raises(UnreadableImage, match="checksum"):
        anonymized(bytes(content))


def test_a_tiff_whose_jpeg_data_is_cut_short_is_unreadable():
    chance = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = bytearray(written([chance], "TIFF", compression="jpeg"))
    at, size = (opened(bytes(content)).tag_v2[tag][0] for tag in (273, 279))
    content[at + size // 2 : at + size] = b"\xff\xd9" + bytes(size - size // 2 - 2)
    with pytest.raises(UnreadableImage):
        anonymized(bytes(content))


# --- 16 bits


def deep_scene(channels):
    y, x = np.mgrid[:40, :48]
    planes = [x * 1300 + 3, y * 1600 + 5, (x + y) * 700 + 7, 65535 - x * 1200]
    pixels = np.stack(planes[:channels], axis=-1).astype(np.uint16)
    return pixels[..., 0] if channels == 1 else pixels


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_16_bit_picture_keeps_all_its_bits(form, channels):
    pixels = deep_scene(channels)
    profile = None
    content = (
        deep.write_png(pixels, profile, None)
        if form == "PNG"
        else deep.write_tiff([pixels, pixels], profile)
    )
    result = anonymized(content)
    assert result.format == form
    before, after = images.decode(content, MANY), images.decode(result.content, MANY)
    assert len(after.frames) == len(before.frames)
    x1, y1, x2, y2 = FACE
    for frame, again in zip(before.frames, after.frames, strict=True):
        assert frame.mode == {1: "I;16", 3: "RGB;16", 4: "RGBA;16"}[channels]
        assert np.array_equal(frame.pixels, pixels)
        assert again.pixels.dtype == np.uint16
        outside = np.ones((40, 48), bool)
        outside[y1:y2, x1:x2] = False
        assert np.array_equal(again.pixels[outside], pixels[outside])
        assert (again.pixels[y1:y2, x1:x2].reshape(16, 16, -1)[..., :3] == 0).all()


def test_a_16_bit_gray_png_with_alpha_becomes_one_in_colour():
    body = b"".join(b"\0" + struct.pack(">6H", 1000, 65535, 2000, 300, 5, 0) for _ in range(2))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 4, 0, 0, 0)),
        (b"IDAT", zlib.compress(body)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in chunks
    )
    (frame,) = images.decode(content, MANY).frames
    assert frame.pixels[0].tolist() == [
        [1000, 1000, 1000, 65535],
        [2000, 2000, 2000, 300],
        [0, 0, 0, 0],
    ]


def test_a_deep_picture_with_transparency_is_looked_at_stretched_on_white_and_on_black():
    pixels = deep_scene(4) // 16
    (frame,) = images.decode(deep.write_png(pixels, None, None), MANY).frames
    bare, on_white, on_black = frame.views()
    assert bare.max() >= 254
    assert on_black.max() < 32
    assert on_white.min() > 200
    assert {view.shape for view in (bare, on_white, on_black)} == {(40, 48, 3)}


def test_an_opaque_deep_picture_is_looked_at_plain_and_stretched():
    (frame,) = images.decode(deep.write_png(deep_scene(3) // 16, None, None), MANY).frames
    plain, stretched = frame.views()
    assert np.array_equal(plain, (frame.pixels >> 8).astype(np.uint8))
    assert stretched.max() >= 254


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_16_bit_tiff_is_turned_as_its_orientation_says(orientation):
    pixels = deep_scene(3)
    content = deep.write_tiff([pixels], None)
    small = Image.fromarray((pixels >> 8).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = images.decode(written([small], "TIFF", exif=exif), MANY).frames[0].pixels
    count = struct.unpack_from("<H", content, struct.unpack_from("<I", content, 4)[0])[0]
    first = struct.unpack_from("<I", content, 4)[0]
    fields = [content[first + 2 + 12 * i : first + 14 + 12 * i] for i in range(count)]
    fields.append(struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0))
    fields.sort(key=lambda field: struct.unpack_from("<H", field)[0])
    with_turn = content[:4] + struct.pack("<I", len(content)) + content[8:]
    with_turn += struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4)
    (frame,) = images.decode(with_turn, MANY).frames
    assert frame.mode == "RGB;16"
    assert np.array_equal(frame.pixels >> 8, turned)


# --- other formats


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["BMP", "JPEG2000", "AVIF"])
def test_the_other_formats_stay_what_they_were(form, mode):
    content = written([scene(0, mode)], form)
    result = anonymized(content)
    again = opened(result.content)
    assert (again.format, again.size) == (form, SIZE)
    assert (
        result.content_type
        == {"BMP": "image/bmp", "JPEG2000": "image/jp2", "AVIF": "image/avif"}[form]
    )
    if form == "JPEG2000" or mode == "RGB":
        assert again.mode == mode
    x1, y1, x2, y2 = FACE
    after = shown(result.content)[0]
    assert (after[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1, :3] < 40).all()


def test_a_lossless_jpeg_2000_stays_lossless_and_a_lossy_one_stays_small():
    chance = np.random.default_rng(0)
    noisy = Image.fromarray(
        (np.asarray(scene().resize((240, 200))) + chance.integers(0, 20, (200, 240, 3))).astype(
            np.uint8
        )
    )
    lossless = written([noisy], "JPEG2000")
    before, after = shown(lossless)[0], shown(anonymized(lossless).content)[0]
    assert np.array_equal(after[40:], before[40:])
    for irreversible in (False, True):
        lossy = written(
            [noisy],
            "JPEG2000",
            quality_mode="rates",
            quality_layers=[20],
            irreversible=irreversible,
        )
        assert len(anonymized(lossy).content) < 1.5 * len(lossy) < len(lossless)


def test_a_bare_jpeg_2000_codestream_stays_one():
    content = written([scene()], "JPEG2000", no_jp2=True)
    assert content[:4] == anonymized(content).content[:4] == b"\xff\x4f\xff\x51"


def test_a_bmp_keeps_its_transparency():
    pixels = np.array(scene(0, "RGBA"))
    for alpha in (255, 100):
        pixels[..., 3] = alpha
        order = np.ascontiguousarray(pixels[::-1, :, [2, 1, 0, 3]]).tobytes()
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        info = (
            struct.pack("<IiiHHIIiiII", 108, 48, 40, 1, 32, 3, len(order), 0, 0, 0, 0)
            + masks
            + bytes(52)
        )
        content = (
            b"BM"
            + struct.pack("<IHHI", 14 + len(info) + len(order), 0, 0, 14 + len(info))
            + info
            + order
        )
        output = images.decode(anonymized(content).content, MANY)
        assert output.format == "BMP"
        outside = np.ones(pixels.shape[:2], bool)
        outside[FACE[1] : FACE[3], FACE[0] : FACE[2]] = False
        assert np.array_equal(output.frames[0].pixels[outside], pixels[outside])


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4"])
def test_an_avif_keeps_its_subsampling(subsampling):
    content = written([scene()], "AVIF", subsampling=subsampling)
    picture = images.decode(content, MANY)
    assert picture.encoding["subsampling"] == subsampling
    again = images.encode(picture, [frame.pixels.copy() for frame in picture.frames])
    assert images.decode(again, MANY).encoding["subsampling"] == subsampling
