"""Views for people: upright, on white, reduced, and from every kind of file."""

import io

import numpy as np
import pytest
from PIL import Image

from worker import images
from worker.images.viewing import View, jpeg


def shown(picture, view):
    return np.asarray(Image.open(io.BytesIO(jpeg(picture, view))))


def decoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return images.decode(file.getvalue(), 10_000_000)


def test_a_view_is_reduced_and_never_enlarged():
    picture = decoded(Image.new("RGB", (400, 200), "red"))
    assert shown(picture, View(100)).shape == (50, 100, 3)
    assert shown(picture, View(1000)).shape == (200, 400, 3)


def test_a_view_can_be_a_part():
    image = Image.new("RGB", (400, 200), "red")
    image.paste("blue", (300, 100, 400, 200))
    part = shown(decoded(image), View(1000, (300, 100, 400, 200)))
    assert part.shape == (100, 100, 3)
    assert part[50, 50, 2] > 200
    assert shown(decoded(image), View(1000, (900, 900, 950, 950))).shape == (200, 400, 3)


def test_hidden_colours_stay_hidden():
    image = Image.new("RGBA", (60, 60), (255, 0, 0, 0))
    assert shown(decoded(image), View(60)).min() > 240


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "I;16"])
def test_every_mode_is_shown(mode):
    form = "PNG" if mode in ("L", "RGB", "I;16") else "TIFF"
    assert shown(decoded(Image.new(mode, (50, 40)), form), View(50)).shape == (40, 50, 3)
