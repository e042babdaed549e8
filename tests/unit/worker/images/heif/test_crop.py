"""An AVIF is cropped as its clean aperture says: what viewers leave out is not published."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tasks.errors import UnsupportedImage
from worker import images
from worker.images.heif import avif_copies

MANY = 10**7
WIDTH, HEIGHT = 96, 64
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
QUARTER_TURN = b"\0\0\0\x09irot\1"


def clean_aperture(width, height, right=0, down=0, denominator=1):
    """Return the property of a part whose centre is so far from that of the picture."""
    numbers = (width, denominator, height, 1, right, denominator, down, 1)
    return b"\0\0\0\x28clap" + struct.pack(">IIIIiIiI", *numbers)


def cropped(*properties):
    target = io.BytesIO()
    Image.fromarray(NOISE).save(target, "AVIF", quality=90)
    whole = target.getvalue()
    return whole, avif_copies._bare(whole, None, properties)


@pytest.mark.parametrize(
    ("aperture", "rows", "columns"),
    [
        (clean_aperture(48, 64, -24), np.s_[:], np.s_[:48]),
        (clean_aperture(48, 30, 24, 17), np.s_[34:], np.s_[48:]),
        (clean_aperture(95 * 2, 64, -1, 0, 2), np.s_[:], np.s_[:95]),
        (clean_aperture(96, 64), np.s_[:], np.s_[:]),
    ],
)
@pytest.mark.parametrize("is_turned", [False, True])
def test_an_avif_is_cropped_before_it_is_turned(aperture, rows, columns, is_turned):
    whole, content = cropped(aperture, *([QUARTER_TURN] if is_turned else []))
    expected = images.decode(whole, MANY).frames[0].pixels[rows, columns]
    picture = images.decode(content, MANY)
    (frame,) = picture.frames
    assert np.array_equal(frame.pixels, np.rot90(expected) if is_turned else expected)
    output = images.encode(picture, [frame.pixels])
    with Image.open(io.BytesIO(output)) as image:
        assert image.size == (picture.width, picture.height) == frame.pixels.shape[1::-1]
    assert b"clap" not in output


@pytest.mark.parametrize(
    "apertures",
    [
        (clean_aperture(47, 64),),
        (clean_aperture(48, 64, 25),),
        (clean_aperture(0, 64),),
        (clean_aperture(48, 64, denominator=0),),
        (clean_aperture(96, 64), clean_aperture(48, 64)),
    ],
)
def test_an_unclear_crop_is_refused(apertures):
    with pytest.raises(UnsupportedImage, match="cropped"):
        images.decode(cropped(*apertures)[1], MANY)
