"""Motion blur is recognised with its length and direction, and removed."""

import math
import subprocess
import sys

import cv2
import numpy as np
import pytest

from worker.images import Frame
from worker.images.motion import motion_of, without_motion


def photograph(width=800, height=600):
    """Return a picture with edges and detail of all sizes, uint8 RGB."""
    rng = np.random.default_rng(5)
    layers = [
        cv2.resize(rng.normal(0, 16, (height // step, width // step)), (width, height))
        for step in (2, 4, 8, 16, 32)
    ]
    gray = (128 + sum(layers)).clip(0, 255).astype(np.uint8)
    for _ in range(60):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(gray, (left, top), int(rng.integers(5, 40)), int(rng.integers(256)), -1)
    gray[-(height // 20) :] = 10  # a shadow, so that the picture shows no haze
    return np.repeat(gray[..., None], 3, axis=2)


def smeared(pixels, length, angle):
    """Return `pixels` with each point smeared over `length` pixels at `angle`, in radians."""
    middle = length // 2 + 1
    line = np.zeros((2 * middle + 1, 2 * middle + 1), np.float32)
    for step in np.arange(0.125, length, 0.25) - length / 2:
        x, y = middle + math.cos(angle) * step, middle + math.sin(angle) * step
        for column, row in np.ndindex(2, 2):
            left, top = math.floor(x) + column, math.floor(y) + row
            line[top, left] += (1 - abs(x - left)) * (1 - abs(y - top))
    soft = cv2.filter2D(pixels.astype(np.float32), -1, line / line.sum())
    noise = np.random.default_rng(6).normal(0, 1, pixels.shape)
    return (soft + noise).round().clip(0, 255).astype(np.uint8)


def gray(pixels):
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def likeness(pixels, others):
    """Return the correlation of the details of two pictures."""
    details = [
        each[40:-40, 40:-40].astype(float) - cv2.GaussianBlur(each, (0, 0), 5)[40:-40, 40:-40]
        for each in (gray(pixels), gray(others))
    ]
    return np.corrcoef(details[0].ravel(), details[1].ravel())[0, 1]


@pytest.mark.parametrize("length", [9, 15, 25])
@pytest.mark.parametrize("degrees", [0, 35, 90, 150])
def test_motion_is_found_with_its_length_and_direction(length, degrees):
    found = motion_of(gray(smeared(photograph(), length, math.radians(degrees))))
    assert found is not None
    assert found.length * 800 == pytest.approx(length, abs=1.5)
    error = (math.degrees(found.angle) - degrees + 90) % 180 - 90
    assert abs(error) < 8


def test_motion_of_a_large_picture_is_found():
    found = motion_of(gray(smeared(photograph(2000, 800), 40, 0.5)))
    assert found is not None
    assert found.length * 2000 == pytest.approx(40, abs=4)


@pytest.mark.parametrize(
    "pixels",
    [
        photograph(),
        cv2.GaussianBlur(photograph(), (0, 0), 4),
        np.random.default_rng(7).integers(0, 256, (600, 800, 3), np.uint8),
        np.full((600, 800, 3), 90, np.uint8),
        np.repeat((np.arange(800) % 24 * 10).astype(np.uint8)[None, :, None], 600, 0).repeat(3, 2),
        np.full((5000, 1, 3), 90, np.uint8),
        smeared(photograph(200, 150), 15, 0.5),
    ],
    ids=["sharp", "out of focus", "noise", "flat", "stripes", "a line", "small"],
)
def test_other_pictures_show_no_motion(pixels):
    assert motion_of(gray(pixels)) is None


@pytest.mark.parametrize(("width", "height", "length"), [(800, 600, 15), (2200, 700, 40)])
def test_a_picture_is_also_looked_at_without_the_blur_of_motion(width, height, length):
    sharp = photograph(width, height)
    blurred = smeared(sharp, length, 0.6)
    plain, restored, *_ = Frame(blurred, "RGB").views()
    assert (plain == blurred).all()
    assert restored.shape == blurred.shape
    assert restored.dtype == np.uint8
    assert likeness(restored, sharp) > likeness(blurred, sharp) + 0.1


def test_removing_motion_keeps_levels_and_colours():
    pixels = np.full((300, 400, 3), (200, 120, 40), np.uint8)
    motion = motion_of(gray(smeared(photograph(), 15, 0.5)))
    assert motion is not None
    difference = without_motion(pixels, motion).astype(int) - pixels
    assert np.abs(difference).max() <= 3


VIEWS = """
import sys
import numpy as np
from worker.images import Frame
pixels = np.load(sys.argv[1])
before = set(sys.modules)
assert len(list(Frame(pixels, "RGB").views())) == 2
print(sorted(set(sys.modules) - before))
"""


def test_the_views_of_a_blurred_picture_load_no_module(tmp_path):
    """The sandbox of picture processes opens no file."""
    np.save(tmp_path / "blurred.npy", smeared(photograph(), 15, 0.5))
    command = [sys.executable, "-c", VIEWS, str(tmp_path / "blurred.npy")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
