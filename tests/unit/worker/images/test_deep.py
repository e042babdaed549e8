"""Pictures of 16 bits keep every bit through writing and reading, and OpenCV must agree."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from tasks.errors import UnreadableImage, UnsupportedImage
from worker import images
from worker.images import deep

MANY = 10**6
HEIGHT, WIDTH = 40, 48
CHANNELS = [1, 3, 4]
MODES = {1: "I;16", 3: "RGB;16", 4: "RGBA;16"}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def scene(channels):
    """Return pixels whose channels differ in their upper and in their lower 8 bits."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [x * 1300 + 3, y * 1600 + 5, (x + y) * 700 + 7, 65535 - x * 1200]
    pixels = np.stack(planes[:channels], axis=-1).astype(np.uint16)
    return pixels[..., 0] if channels == 1 else pixels


def profile(channels):
    gray = SRGB[:16] + b"GRAY" + SRGB[20:]
    return gray if channels == 1 else SRGB


def written(form, pixels, icc=None):
    if form == "PNG":
        return deep.write_png(pixels, icc, None)
    return deep.write_tiff([pixels], icc)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_every_sample_and_the_profile_survive_a_round_trip(form, channels):
    content = written(form, scene(channels), profile(channels))
    picture = images.decode(content, MANY)
    (frame,) = picture.frames
    assert (picture.format, frame.mode) == (form, MODES[channels])
    assert np.array_equal(frame.pixels, scene(channels))
    assert frame.pixels.flags.c_contiguous
    again = images.encode(picture, [frame.pixels.copy()])
    assert np.array_equal(images.decode(again, MANY).frames[0].pixels, scene(channels))
    with Image.open(io.BytesIO(again)) as image:
        assert image.info["icc_profile"] == profile(channels)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_opencv_reads_the_samples_in_the_order_of_its_channels(form, channels):
    content = written(form, scene(channels))
    read = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    order = {1: slice(None), 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    expected = scene(channels) if channels == 1 else scene(channels)[..., order]
    assert np.array_equal(read, expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_pixels_that_are_not_contiguous_are_written_alike(form):
    pixels = np.asfortranarray(scene(3))
    assert not pixels.flags.c_contiguous
    assert written(form, pixels) == written(form, scene(3))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_holds_pages_of_every_kind(dtype):
    pages = [scene(channels).astype(dtype) for channels in CHANNELS]
    content = deep.write_tiff([*pages, pages[2]], None, cmyk=[3])
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 4
        for number, mode in enumerate(["L" if dtype == np.uint8 else "I;16", "RGB", "RGBA"]):
            image.seek(number)
            assert image.mode == mode
            if dtype == np.uint8 or number == 0:
                assert np.array_equal(np.asarray(image), pages[number])
        if dtype == np.uint8:
            image.seek(3)
            assert image.mode == "CMYK"


def test_colours_that_full_transparency_hides_are_blanked():
    pixels = scene(4)
    pixels[:10, :, 3] = 0
    (frame,) = images.decode(deep.write_png(pixels, None, None), MANY).frames
    assert (frame.pixels[:10] == 0).all()
    assert np.array_equal(frame.pixels[10:], pixels[10:])


def test_pixels_that_pillow_reads_differently_are_refused():
    content = deep.write_png(scene(3), None, None)
    upper = (scene(3) >> 8).astype(np.uint8)
    assert np.array_equal(deep.read_png(content, upper).pixels, scene(3))
    upper[5, 7, 1] ^= 1
    with pytest.raises(UnsupportedImage):
        deep.read_png(content, upper)


def test_channels_that_only_pillow_finds_are_refused():
    content = deep.write_png(scene(3), None, None)
    with pytest.raises(UnreadableImage):
        deep.read_png(content, (scene(4) >> 8).astype(np.uint8))
