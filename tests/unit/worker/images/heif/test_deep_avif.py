"""AVIF of 10 and 12 bits keeps its bits and its colours."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from tests import heic
from worker import images
from worker.images.display import PQ
from worker.images.heif import avif, avif_copies, deep_avif

WIDTH, HEIGHT = 96, 64
MANY = 10**7
P3 = 12
y, x = np.mgrid[:HEIGHT, :WIDTH]
SHARES = np.stack(
    [(x * HEIGHT + y) / (WIDTH * HEIGHT), y / HEIGHT, 1 - (x + y) / (WIDTH + HEIGHT)], axis=-1
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def codec():
    return pytest.importorskip("imagecodecs", reason="the extra `avif`")


@pytest.fixture
def coded(codec):
    """``coded(depth)`` returns an AVIF of the scene, and its values."""

    def make(depth, channels=3, **options):
        values = (SHARES * ((1 << depth) - 1)).astype(np.uint16)
        if channels == 4:
            values = np.dstack([values, values[..., 0]])
        values = values[..., 0] if channels == 1 else values
        content = codec.avif_encode(values, level=95, bitspersample=depth, speed=8, **options)
        return content, values.astype(int)

    return make


def masked(picture):
    """Return the output with a part of the picture hidden."""
    pixels = picture.frames[0].pixels.copy()
    pixels[:16, :16] = 0
    return images.encode(picture, [pixels])


@pytest.mark.parametrize("depth", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bits_stay_where_something_was_hidden(codec, coded, depth, channels):
    content, values = coded(depth, channels)
    picture = images.decode(content, MANY)
    shown = codec.avif_decode(masked(picture)).astype(int)
    assert shown.shape == values.shape
    step = 1 << depth - 8
    assert np.abs(shown - values)[24:, 24:].mean() < 2 * step
    assert shown[:8, :8][..., :3].max() < 8 * step
    assert len(np.unique(shown)) > 300


@pytest.mark.parametrize("pixel_format", ["444", "422", "420"])
@pytest.mark.parametrize("size", [(64, 64), (33, 41), (1, 1), (7, 300)])
def test_noise_of_any_size_is_read(codec, pixel_format, size):
    values = np.random.default_rng(3).integers(0, 1024, (*size, 3)).astype(np.uint16)
    content = codec.avif_encode(values, level=90, bitspersample=10, pixelformat=pixel_format)
    (frame,) = images.decode(content, MANY).frames
    assert frame.pixels.shape == values.shape


def test_a_picture_that_is_read_in_two_ways_is_refused(coded):
    content, values = coded(10)
    upper = (values >> 2).astype(np.uint8)
    deep_avif.read(content, 10, upper)
    upper[20:40, 30:50] = 0
    with pytest.raises(UnsupportedImage, match="two ways"):
        deep_avif.read(content, 10, upper)


@pytest.mark.parametrize("transfer", [13, PQ])
def test_named_colours_stay_and_detection_sees_display_values(coded, transfer):
    content, _ = coded(10, primaries=9, transfer=transfer, matrix=9)
    picture = images.decode(content, MANY)
    assert avif.colour(masked(picture)) == (9, transfer)
    assert (picture.frames[0].display is not None) == (transfer == PQ)


@pytest.mark.parametrize("pixel_format", ["444", "422", "420"])
def test_the_subsampling_stays(coded, pixel_format):
    content, _ = coded(10, pixelformat=pixel_format)
    output = masked(images.decode(content, MANY))
    for file in (content, output):
        at = file.index(b"av1C") + 6
        assert file[at] & 0x0C == {"444": 0, "422": 8, "420": 12}[pixel_format]


def test_a_colour_profile_stays(codec, coded):
    content = avif_copies.with_profile(coded(10)[0], SRGB)
    output = masked(images.decode(content, MANY))
    with Image.open(io.BytesIO(output)) as image:
        assert b"gTRC" in image.info["icc_profile"]
    assert codec.avif_decode(output).max() > 255


def test_without_a_face_the_compressed_data_stays(coded):
    content, _ = coded(10)
    picture = images.decode(content, MANY)
    output = images.encode(picture, [picture.frames[0].pixels])
    data = content[content.index(b"mdat") + 4 :]
    assert output.endswith(data)


def test_a_turned_picture_is_upright(codec, coded):
    content, values = coded(10)
    at = content.index(b"av1C") - 4
    configuration = content[at : at + int.from_bytes(content[at : at + 4])]
    described = [
        configuration,
        heic.ispe(WIDTH, HEIGHT),
        heic.full_box(b"pixi", bytes([3, 10, 10, 10])),
        heic.turned(1),
    ]
    item = heic.Item(b"av01", content[content.index(b"mdat") + 4 :], described)
    picture = images.decode(heic.file([item], brand=b"avif"), MANY)
    assert picture.frames[0].pixels.shape[:2] == (WIDTH, HEIGHT)
    shown = codec.avif_decode(masked(picture)).astype(int)
    assert np.abs(shown - np.rot90(values))[24:, 24:].mean() < 8


def test_damage_is_refused(coded):
    content, _ = coded(10)
    for at in range(40, len(content), 97):
        with pytest.raises((UnreadableImage, UnsupportedImage)):
            images.decode(content[:at], MANY)


def test_its_pixels_count_more_often(coded):
    content, _ = coded(10)
    with pytest.raises(ImageTooLarge):
        images.decode(content, WIDTH * HEIGHT * 3 * 3 - 1)
    assert images.decode(content, WIDTH * HEIGHT * 3 * 3)


def test_transparency_with_a_profile_is_refused(coded):
    content, _ = coded(10, channels=4)
    picture = images.decode(content, MANY)
    picture.encoding["icc_profile"] = SRGB
    with pytest.raises(UnsupportedImage, match="8 bits"):
        masked(picture)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr("worker.images.heif.deep_avif.imagecodecs", None)
    target = io.BytesIO()
    Image.new("RGB", (16, 16)).save(target, "AVIF")
    content = target.getvalue()
    at = content.index(b"av1C") + 6
    with pytest.raises(UnsupportedImage, match="needs the extra `avif`"):
        images.decode(content[:at] + bytes([content[at] | 0x40]) + content[at + 1 :], MANY)
