"""The check before a source is deleted: it recognises an output that does not show its source."""

import io
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from worker import images, likeness
from worker.detection.faces import Sightings
from worker.images import Frame, deep
from worker.masking import hiding
from worker.masking.regions import MaskStyle, Part

MANY = 10**7
SIZE = 96, 128
STYLE = MaskStyle("surround", 0.7, 0.1, feather=0.05)
FACE = 40, 30, 70, 66
NOTHING = np.zeros((0, 4), np.intp)


def scene(number=0):
    """Return a picture with smooth ground, edges and grain, uint8 RGB."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    grain = np.random.default_rng(number).integers(0, 20, SIZE)
    planes = [
        x + grain,
        200 - y + grain,
        np.where(((x + 5) // 11 + (y + 3) // 11) % 2, 180, 40) + grain,
    ]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def written(form, *frames, **options):
    target = io.BytesIO()
    pictures = [
        frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in frames
    ]
    if form == "GIF":  # Pillow's own choice of colours takes several times as long
        pictures = [picture.quantize(method=Image.Quantize.FASTOCTREE) for picture in pictures]
    first, *more = pictures
    if more:
        options |= {"save_all": True, "append_images": more}
    first.save(target, form, **options)
    return target.getvalue()


def with_alpha():
    return np.dstack([scene(), np.tile(np.arange(SIZE[1], dtype=np.uint8) * 2, (SIZE[0], 1))])


def gray16(base=0, factor=257):
    return (base + scene()[..., 2].astype(np.uint16) * factor).astype(np.uint16)


RATE = {"quality_mode": "rates", "quality_layers": [20]}
SOURCES = {
    "JPEG": written("JPEG", scene()),
    "JPEG, low quality": written("JPEG", scene(), quality=20),
    "JPEG, progressive": written("JPEG", scene(), quality=90, subsampling=0, progressive=True),
    "JPEG, gray": written("JPEG", Image.fromarray(scene()).convert("L")),
    "JPEG, CMYK": written("JPEG", Image.fromarray(scene()).convert("CMYK")),
    "JPEG, dark": written("JPEG", scene() // 16, quality=95),
    "PNG": written("PNG", scene()),
    "PNG, dark": written("PNG", scene() // 16),
    "PNG, palette": written("PNG", Image.fromarray(scene()).quantize(60)),
    "PNG, alpha": written("PNG", with_alpha()),
    "PNG, 16 bits": deep.write_png(gray16(), None, None),
    "PNG, 16 bits on a high base": deep.write_png(gray16(30000, 4), None, None),
    "WebP": written("WEBP", scene(), quality=50),
    "WebP, alpha": written("WEBP", with_alpha(), quality=70),
    "WebP, lossless": written("WEBP", scene(), lossless=True),
    "AVIF": written("AVIF", scene(), quality=60, speed=9),
    "JPEG 2000": written("JPEG2000", scene()),
    "JPEG 2000, lossy": written("JPEG2000", scene(), irreversible=True, **RATE),
    "TIFF": written("TIFF", scene(), compression="tiff_lzw"),
    "TIFF, JPEG": written("TIFF", scene(), compression="jpeg"),
    "TIFF, CMYK": written("TIFF", Image.fromarray(scene()).convert("CMYK")),
    "TIFF, 1 bit": written("TIFF", Image.fromarray(scene()).convert("1")),
    "TIFF, 16 bits": deep.write_tiff([gray16()], None),
    "TIFF, pages": written("TIFF", scene(0), scene(1), scene(2)),
    "GIF": written("GIF", scene()),
    "GIF, frames": written("GIF", scene(0), scene(1), scene(2), duration=90),
    "APNG": written("PNG", scene(0), scene(1), scene(2), duration=90),
    "BMP": written("BMP", scene()),
}  # fmt: skip


def decoded(content):
    return images.decode(content, MANY)


def hide(frame, *faces, style=STYLE, extra=()):
    return hiding.hide(
        frame.pixels, Sightings.of(np.array(faces, np.float32)), style, frame.black, extra
    )


def rectangles(picture, *faces, extra=()):
    return likeness.hidden_by([part(STYLE, *faces)], extra, picture, 480)


def part(style, *faces):
    return Part(Sightings.of(np.array(faces, np.float32).reshape(-1, 4)), style)


def like(source, frames, hidden=None, content=None):
    """Return whether an output with `frames` counts as one of `source`."""
    picture = decoded(source)
    output = images.encode(picture, frames) if content is None else content
    other = decoded(output)
    hidden = rectangles(picture, FACE) if hidden is None else hidden
    return likeness.is_alike(picture, other, hidden) and likeness.is_confirmed(output, other)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_an_output_of_a_worker_is_alike(source):
    picture = decoded(source)
    assert likeness.is_confirmed(source, picture)
    assert like(source, [hide(frame, FACE) for frame in picture.frames])
    assert like(source, [frame.pixels for frame in picture.frames], NOTHING)


ENCODINGS = [
    ("JPEG", {"quality": 30}),
    ("JPEG", {"quality": 75, "progressive": True}),
    ("JPEG", {"quality": 95, "subsampling": 0}),
    ("WEBP", {"quality": 40}),
    ("WEBP", {"quality": 90}),
    ("AVIF", {"quality": 40, "speed": 9}),
    ("AVIF", {"quality": 90, "speed": 9}),
    ("JPEG2000", {"quality_mode": "rates", "quality_layers": [30]}),
    ("TIFF", {"compression": "jpeg"}),
    ("PNG", {"compress_level": 1}),
    ("GIF", {}),
]


def test_photographs_in_every_lossy_format_stay_within_half_of_the_bounds(data):
    """The bounds in likeness.py are twice what is measured here."""
    folder = data("small")
    records = [
        one
        for one in json.loads((folder / "annotations.json").read_text())["images"]
        if one["faces"]
    ]
    for record in records[:: len(records) // 3]:
        photograph = Image.open(folder / record["file"]).convert("RGB")
        for form, options in ENCODINGS:
            picture = decoded(written(form, photograph, **options))
            frame = picture.frames[0]
            output = decoded(images.encode(picture, [hide(frame, *record["faces"])]))
            found = likeness.differences(
                frame, output.frames[0], rectangles(picture, *record["faces"])
            )
            if len(found.tiles):
                assert (
                    found.tiles.mean()
                    <= (likeness.MEAN_LEVELS + likeness.MEAN_SHARE * found.contrast) / 2
                )
                assert (
                    found.tiles.max()
                    <= (likeness.TILE_LEVELS + likeness.TILE_SHARE * found.contrast) / 2
                )
                assert (
                    found.shift
                    <= (likeness.SHIFT_LEVELS + likeness.SHIFT_SHARE * found.contrast) / 2
                )


def toned():
    """Return a scene whose colours differ a little, as those of photographs do."""
    ground = scene()[..., 2].astype(np.int16)
    tone = 30 * (np.mgrid[: SIZE[0], : SIZE[1]][1] // 64 % 2)
    return np.stack([ground + 20, ground, ground - tone], axis=-1).clip(0, 255).astype(np.uint8)


def without_blue(pixels):
    return pixels[..., [0, 1, 1]]


def without_colour(pixels):
    return np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("fault", [without_blue, without_colour])
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("WEBP", {"quality": 80}),
        ("GIF", {}),
        ("AVIF", {"quality": 80, "speed": 9}),
    ],
)
def test_a_picture_whose_colours_are_lost_is_not_alike(form, options, fault):
    source = written(form, toned(), **options)
    assert like(source, [toned()], NOTHING)
    assert not like(source, [fault(toned())], NOTHING)


def negative(frame):
    pixels = np.iinfo(frame.pixels.dtype).max - frame.pixels
    if frame.mode in ("LA", "RGBA", "RGBA;16"):
        pixels[..., -1] = frame.pixels[..., -1]
    return pixels


def black(frame):
    pixels = np.zeros_like(frame.pixels)
    pixels[...] = np.array(frame.black, frame.pixels.dtype)[0 if pixels.ndim == 2 else np.s_[:]]
    return pixels


def cut_off(frame):
    """Return the picture with its lower third as after a decoder that ran out of data."""
    pixels = frame.pixels.copy()
    pixels[2 * len(pixels) // 3 :] = black(frame)[0, 0]
    return pixels


def shifted(frame):
    return np.roll(frame.pixels, 9, axis=1)


def thumbnail_enlarged(frame):
    return np.repeat(np.repeat(frame.pixels[::16, ::16], 16, axis=0), 16, axis=1)[
        : SIZE[0], : SIZE[1]
    ].copy()


@pytest.mark.parametrize("fault", [negative, black, cut_off, shifted, thumbnail_enlarged])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_faulty_output_is_not_alike(source, fault):
    picture = decoded(source)
    assert not like(source, [fault(frame) for frame in picture.frames])
    if len(picture.frames) > 1:
        one = [frame.pixels for frame in picture.frames]
        one[1] = fault(picture.frames[1])
        assert not like(source, one)


def test_a_negative_on_a_high_base_is_not_alike():
    """The negative is within the picture's own range: outputs of white at 0 were like this once."""
    content = deep.write_png(gray16(30000, 4), None, None)
    (frame,) = decoded(content).frames
    assert not like(content, [(30000 + (30000 + 255 * 4 - frame.pixels)).astype(np.uint16)])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF"])
def test_a_picture_of_another_size_is_not_alike(form):
    small = Image.fromarray(scene()).resize((16, 12))
    assert not like(written(form, scene()), None, content=written(form, small))
    assert not like(
        written(form, scene()),
        None,
        content=written(form, Image.fromarray(scene()).rotate(90, expand=True)),
    )


def test_another_format_or_depth_is_not_alike():
    png = written("PNG", scene()[..., 2])
    assert not like(png, None, content=written("BMP", scene()[..., 2]))
    assert not like(png, None, content=deep.write_png(gray16(), None, None))
    assert not like(deep.write_png(gray16(), None, None), None, content=png)


def test_only_in_what_was_hidden_an_output_may_differ():
    source = written("PNG", scene())
    (frame,) = decoded(source).frames
    hidden = hide(frame, FACE)
    assert like(source, [hidden])
    assert not like(source, [hidden], NOTHING)
    elsewhere = hide(frame, FACE, (5, 5, 25, 25))
    assert not like(source, [elsewhere])
    assert like(source, [elsewhere], rectangles(decoded(source), FACE, extra=[(5, 5, 25, 25)]))


@pytest.mark.parametrize(
    "style", [STYLE, MaskStyle("fill", 1.0, 0.3, "ellipse", 0.3), MaskStyle("blur", 0.5, 0.0)]
)
def test_all_that_a_style_changes_is_within(style):
    (frame,) = decoded(SOURCES["PNG"]).frames
    changed = (hide(frame, FACE, style=style, extra=[(90, 60, 110, 80)]) != frame.pixels).any(
        axis=2
    )
    picture = decoded(SOURCES["PNG"])
    for x1, y1, x2, y2 in likeness.hidden_by(
        [part(style, FACE)], [(90, 60, 110, 80)], picture, 480
    ):
        changed[y1:y2, x1:x2] = False
    assert not changed.any()


def test_a_picture_that_is_hidden_as_a_whole_is_alike():
    source = written("JPEG", scene())
    everything = [(0, 0, SIZE[1], SIZE[0])]
    picture = decoded(source)
    assert like(source, [black(picture.frames[0])], rectangles(picture, extra=everything))


def test_a_face_on_a_page_beyond_the_size_of_the_first_may_be_hidden():
    source = written("TIFF", scene()[:20, :30], scene(1))
    first, second = decoded(source).frames
    assert like(source, [first.pixels, hide(second, FACE)])


# --- frames


def animation(*numbers, form="PNG"):
    return written(form, *(scene(number) for number in numbers), duration=90)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_frames_that_were_joined_may_be_fewer(form):
    source = images.Picture(
        tuple(Frame(scene(number), "RGB") for number in (0, 0, 1, 2, 2, 2, 3)),
        form,
        {"lossless": True},
    )
    joined = images.Picture(tuple(Frame(scene(number), "RGB") for number in (0, 1, 2, 3)), form)
    assert likeness.is_alike(source, joined, NOTHING)
    for numbers in ((0, 1, 2), (0, 2, 3), (0, 1, 3), (0, 1, 2, 3, 3, 3, 3, 3), (3, 2, 1, 0), (0,)):
        other = images.Picture(tuple(Frame(scene(number), "RGB") for number in numbers), form)
        assert not likeness.is_alike(source, other, NOTHING), numbers


def test_pages_are_never_joined():
    source = written("TIFF", scene(), scene(), scene())
    assert not like(source, None, content=written("TIFF", scene(), scene()))
    assert not like(source, None, content=written("TIFF", scene()))


# --- another decoder


@pytest.mark.parametrize("fault", [negative, black, thumbnail_enlarged])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_a_decoder_that_sees_something_else_is_not_believed(form, fault):
    content = written(form, np.add.outer(np.arange(SIZE[0]), np.arange(SIZE[1])).astype(np.uint8))
    picture = decoded(content)
    assert likeness.is_confirmed(content, picture)
    (frame,) = picture.frames
    wrong = images.Picture((Frame(fault(frame), frame.mode),), picture.format)
    if fault is thumbnail_enlarged:
        wrong = images.Picture((Frame(frame.pixels[:12, :16], frame.mode),), picture.format)
    assert not likeness.is_confirmed(content, wrong)


def test_an_animated_png_is_confirmed_by_its_picture_or_by_its_first_frame():
    number = np.arange(3)[:, None, None, None]
    frames = np.where(scene() > 100 + 20 * number, 255, 10 * number).astype(np.uint8)
    content = written("PNG", *frames, default_image=True, duration=90)
    picture = decoded(content)
    assert len(picture.frames) == 3
    assert likeness.is_confirmed(content, picture)
    wrong = [Frame(negative(frame), frame.mode) for frame in picture.frames]
    assert not likeness.is_confirmed(content, replace(picture, frames=tuple(wrong)))


def test_what_opencv_turns_upright_or_does_not_counts_as_seen():
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = written("JPEG", scene(), exif=exif.tobytes())
        assert likeness.is_confirmed(content, decoded(content))


def test_memory_for_the_comparison_does_not_grow_with_the_picture():
    peaks = []
    for height in (512, 2048):
        frame = Frame(np.zeros((height, 500, 3), np.uint8), "RGB")
        tracemalloc.start()
        likeness.differences(frame, frame, NOTHING)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
