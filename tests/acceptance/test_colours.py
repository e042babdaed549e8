"""A browser shows the colours of an output as it shows those of its source."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from tools.browser import browser as started_browser
from worker import images
from worker.images import png
from worker.images.heif import avif

MANY = 10**7
# The largest RMSE, of 255. A step of PQ in 8 bits is several steps on the screen.
LOSSLESS, LOSSY, LOSSY_PQ = 1, 3, 5

y, x = np.mgrid[:96, :128]
SCENE = np.stack([x * 2, y * 255 // 95, (x + y) * 255 // 222], axis=-1).astype(np.uint8)
PHOTO = Image.fromarray(SCENE)
DISPLAY_P3 = (12, 13)
PQ_2020, HLG_2020 = (9, 16), (9, 18)
SRGB_CHROMATICITIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
WIDE_CHROMATICITIES = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def written(form, **options):
    target = io.BytesIO()
    PHOTO.save(target, form, **options)
    return target.getvalue()


def png_with(*chunks):
    return png.with_chunks(written("PNG"), chunks)


def deep_png_with(*chunks):
    content = images.deep.write_png(SCENE.astype(np.uint16) * 257, None, None)
    return png.with_chunks(content, chunks)


def chromaticities(values):
    return b"cHRM", struct.pack(">8I", *values)


def gamma(value):
    return b"gAMA", struct.pack(">I", value)


def cicp(primaries, transfer):
    return b"cICP", bytes([primaries, transfer, 0, 1])


def swapped_profile():
    """Return a profile that shows red as blue, and blue as red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def nclx(content, colour):
    return avif.with_colour(content, colour)


SOURCES = {
    "PNG, cICP Display P3": (png_with(cicp(*DISPLAY_P3)), LOSSLESS),
    "PNG, cICP PQ": (png_with(cicp(*PQ_2020)), LOSSLESS),
    "PNG, cICP HLG of 16 bits": (deep_png_with(cicp(*HLG_2020)), LOSSLESS),
    "PNG, gamma 1.8": (png_with(gamma(55556)), LOSSLESS),
    "PNG, linear, of 16 bits": (deep_png_with(gamma(100000)), LOSSLESS),
    "PNG, gamma and wide primaries": (
        png_with(gamma(45455), chromaticities(WIDE_CHROMATICITIES)),
        LOSSLESS,
    ),
    "PNG, sRGB and gamma": (
        png_with((b"sRGB", b"\0"), gamma(45455), chromaticities(SRGB_CHROMATICITIES)),
        LOSSLESS,
    ),
    "PNG, profile": (written("PNG", icc_profile=swapped_profile()), LOSSLESS),
    "JPEG, profile": (written("JPEG", quality=95, icc_profile=swapped_profile()), LOSSY),
    "WebP, profile": (written("WEBP", lossless=True, icc_profile=swapped_profile()), LOSSLESS),
    "AVIF, sRGB": (written("AVIF", quality=95), LOSSY),
    "AVIF, Display P3": (nclx(written("AVIF", quality=95), DISPLAY_P3), LOSSY),
    "AVIF, PQ": (nclx(written("AVIF", quality=95), PQ_2020), LOSSY_PQ),
    "AVIF, profile": (written("AVIF", quality=95, icc_profile=swapped_profile()), LOSSY),
}
UNUSUAL = {name for name in SOURCES if "sRGB" not in name}


@pytest.fixture(scope="module")
def browser():
    with started_browser() as found:
        if found is None:
            pytest.skip("Chromium is not on this machine: make system-packages")
        yield found


@pytest.mark.parametrize("name", SOURCES)
def test_a_browser_shows_the_same_colours(name, browser):
    content, limit = SOURCES[name]
    picture = images.decode(content, MANY)
    output = images.encode(picture, [frame.pixels.copy() for frame in picture.frames])
    before, after = (browser.pixels(each) for each in (content, output))
    rmse = np.sqrt(((before[..., :3].astype(float) - after[..., :3]) ** 2).mean())
    assert rmse <= limit
    plain = np.sqrt(((before[..., :3].astype(float) - SCENE) ** 2).mean())
    assert (plain > 2 * limit) == (name in UNUSUAL)  # the browser heeds the description
