"""Regions are compared with those of an output: which of them it still shows."""

from dataclasses import replace

import numpy as np
import pytest

from worker.detection.faces import Sightings
from worker.masking import hiding
from worker.masking.comparing import shown
from worker.masking.filling import METHODS
from worker.masking.regions import MaskStyle, regions

STYLE = MaskStyle()
FACE, OTHER = (20, 20, 80, 90), (120, 30, 170, 90)
WIDTH, HEIGHT = 200, 120


def sightings(*boxes):
    return Sightings.of(np.array(boxes, np.float32).reshape(-1, 4))


def photograph(dtype=np.uint8, channels=3):
    """Return noise of several scales, as photographs have it."""
    random = np.random.default_rng(0)
    noise = np.zeros((HEIGHT, WIDTH, channels))
    for cell in (1, 4, 10, 40):
        coarse = random.normal(size=(HEIGHT // cell, WIDTH // cell, channels))
        noise += np.kron(coarse, np.ones((cell, cell, 1)))
    levels = (noise - noise.min()) / np.ptp(noise) * np.iinfo(dtype).max
    return np.squeeze(levels.astype(dtype))


def regions_of(seen, style=STYLE):
    return regions(seen, style, WIDTH, HEIGHT)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint8, 1), (np.uint16, 3)])
def test_what_a_method_hides_is_not_shown(method, shape, dtype, channels):
    style = replace(STYLE, method=method, shape=shape)
    picture = photograph(dtype, channels)
    seen = sightings(FACE, OTHER)
    output = hiding.hide(picture, seen, style)

    assert not shown(picture, output, regions_of(seen, style)).any()
    assert shown(picture, picture, regions_of(seen, style)).all()


def test_a_mask_at_another_place_hides_nothing_here():
    picture = photograph()
    output = hiding.hide(picture, sightings(FACE), STYLE)

    assert shown(picture, output, regions_of(sightings(FACE, OTHER))).tolist() == [False, True]


def test_small_changes_of_the_encoder_hide_nothing():
    picture = photograph()
    noise = np.random.default_rng(1).integers(-12, 13, picture.shape)
    output = (picture.astype(int) + noise).clip(0, 255).astype(np.uint8)

    assert shown(picture, output, regions_of(sightings(FACE))).all()


def test_where_the_picture_has_no_details_there_is_nothing_to_show():
    flat = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    gradient = np.repeat(np.linspace(60, 90, WIDTH)[None, :, None], HEIGHT, axis=0)
    for picture in (flat, np.repeat(gradient, 3, axis=2).astype(np.uint8)):
        assert not shown(picture, picture, regions_of(sightings(FACE))).any()


def test_the_corners_around_an_ellipse_are_not_compared():
    style = replace(STYLE, method="fill", shape="ellipse", region=1.0)
    picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    seen = sightings(FACE)
    is_outside = hiding.hide(np.full_like(picture, 255), seen, style) > 0
    picture[is_outside] = photograph()[is_outside]
    picture[50:54, 45:50] = 200  # A detail that is hidden.
    output = hiding.hide(picture, seen, style)

    assert not shown(picture, output, regions_of(seen, style)).any()


def test_without_regions_nothing_is_shown():
    picture = photograph()

    assert shown(picture, picture, regions_of(sightings())).tolist() == []
