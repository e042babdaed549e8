"""Views of a picture that uses a small part of the range are stretched, others are not."""

import cv2
import numpy as np
import pytest

from worker.images import Frame

SIZE = 60, 80
# Any picture with values from 0 to 255.
FACE = np.add.outer(np.arange(SIZE[0]) * 2, np.arange(SIZE[1]) * 255 // 140).clip(0, 255)
INNER = np.s_[4:-4]


def views(pixels, mode):
    return [view.astype(int) for view in Frame(pixels, mode).views()]


def gray(base, factor, dtype=np.uint16):
    return (base + FACE * factor).astype(dtype)


def shows(view):
    """Return whether a view shows FACE with nearly its contrast, and not as a negative."""
    alike = np.corrcoef(view[INNER][..., 0].ravel(), FACE[INNER].ravel())[0, 1]
    return alike > 0.98 and np.ptp(view[INNER][..., 0]) > 200


DEEP = [(0, 257), (0, 8), (30000, 8), (30000, 1), (60000, 4), (65000, 2), (20000, 80)]


@pytest.mark.parametrize(("base", "factor"), DEEP)
def test_16_bits_are_stretched_from_below_and_above(base, factor):
    plain, *stretched = views(gray(base, factor), "I;16")
    assert np.array_equal(plain[..., 0], gray(base, factor) >> 8)
    assert len(stretched) == 1
    assert shows(stretched[0])


@pytest.mark.parametrize(("base", "factor"), DEEP)
def test_16_bits_in_colour_have_a_base_for_each_channel(base, factor):
    bases = [base, max(0, base - 10000), min(base + 3000, 65535 - 255 * factor)]
    pixels = np.stack([gray(each, factor) for each in bases], axis=-1)
    _, stretched = views(pixels, "RGB;16")
    assert all(shows(stretched[..., channel : channel + 1]) for channel in range(3))


@pytest.mark.parametrize(("base", "factor"), [(30000, 8), (0, 8)])
@pytest.mark.parametrize("value", [0, 65535])
def test_a_border_or_a_caption_does_not_keep_the_rest_from_being_stretched(base, factor, value):
    pixels = gray(base, factor)
    pixels[:2] = value
    assert any(shows(view) for view in views(pixels, "I;16"))


def test_transparent_pixels_do_not_count():
    alpha = np.zeros(SIZE, np.uint16)
    alpha[:, :70] = 65535
    pixels = np.dstack([gray(30000, 8)] * 3 + [alpha])
    pixels[alpha == 0] = 0
    bare = views(pixels, "RGBA;16")[0][:, :70, 0]
    assert np.ptp(bare) > 200


@pytest.mark.parametrize("base", [0, 60, 200])
@pytest.mark.parametrize("divisor", [5, 8, 16])
def test_8_bits_that_use_a_small_range_are_stretched_too(base, divisor):
    pixels = (base + FACE // divisor).astype(np.uint8)
    for mode, shape in (("L", pixels), ("RGB", np.dstack([pixels] * 3))):
        plain, stretched = views(shape, mode)
        assert np.array_equal(plain[..., 0], pixels)
        assert shows(stretched)


def test_each_channel_has_a_base_and_all_the_same_contrast():
    noise = np.random.default_rng(0).integers(0, 2, SIZE)
    pixels = np.dstack([40 + FACE // 8, 200 - FACE // 8, noise]).astype(np.uint8)
    _, stretched = views(pixels, "RGB")
    assert shows(stretched)
    assert np.ptp(stretched[..., 2]) < 20


def test_inks_that_use_a_small_range_are_stretched():
    pixels = np.dstack([np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE), 200 - FACE // 8]).astype(
        np.uint8
    )
    assert len(views(pixels, "CMYK")) == 2


@pytest.mark.parametrize("hidden", ["colours", "alpha"])
def test_a_picture_with_transparency_is_stretched_on_any_ground(hidden):
    faint = (100 + FACE // 10).astype(np.uint8)
    flat = np.full(SIZE, 100, np.uint8)
    pixels = np.dstack([faint, flat] if hidden == "colours" else [flat, faint])
    assert any(np.ptp(view[..., 0]) > 200 for view in views(pixels, "LA"))


@pytest.mark.parametrize(
    ("pixels", "mode", "count"),
    [
        (gray(0, 1, np.uint8), "L", 1),
        (gray(0, 0.5, np.uint8), "L", 1),
        (np.dstack([gray(0, 1, np.uint8)] * 3), "RGB", 1),
        (np.dstack([gray(0, 1, np.uint8)] * 4), "CMYK", 1),
        (np.dstack([gray(0, 1, np.uint8)] * 3 + [255 - gray(0, 1, np.uint8)]), "RGBA", 3),
        (np.full(SIZE, 7, np.uint8), "L", 1),
        (np.full(SIZE, 255, np.uint8), "L", 1),
        (np.full((1, 1), 9, np.uint8), "L", 1),
        (gray(0, 257), "I;16", 2),
        (np.full(SIZE, 30000, np.uint16), "I;16", 2),
    ],
)
def test_ordinary_pictures_and_empty_ones_are_looked_at_no_more_often(pixels, mode, count):
    found = views(pixels, mode)
    assert len(found) == count
    assert all(view.shape == (*pixels.shape[:2], 3) for view in found)
    if pixels.dtype == np.uint8 and mode in ("L", "RGB"):
        assert np.array_equal(found[0][..., 0], pixels if mode == "L" else pixels[..., 0])


def night(level, noise, rng):
    """Return a dark picture with one lamp, the face at `level` of its brightness, and noise."""
    dark = (FACE * level)[..., None] + rng.integers(-noise, noise + 1, (*SIZE, 3))
    dark[:2, :20] = 250
    return dark.clip(0, 255).astype(np.uint8)


def test_a_dark_picture_is_also_looked_at_brighter_and_smoother():
    pixels = night(0.2, 12, np.random.default_rng(1))
    plain, bright = views(pixels, "RGB")
    assert (plain == pixels).all()
    assert bright[INNER].mean() > 2 * plain[INNER].mean()
    alike = [
        np.corrcoef(view[INNER][..., 0].ravel(), FACE[INNER].ravel())[0, 1]
        for view in (plain, bright)
    ]
    assert alike[1] > alike[0]


def test_a_picture_that_is_not_dark_is_looked_at_as_it_is():
    assert len(views(night(0.8, 12, np.random.default_rng(1)), "RGB")) == 1


def rainy(pixels):
    """Return `pixels` behind haze and thin bright streaks."""
    hazy = (0.6 * pixels + 70).astype(np.uint8)
    hazy[5:-5, 6:-6:9] = 225
    return hazy


def test_a_picture_with_haze_is_also_looked_at_without_it():
    pixels = np.dstack([gray(0, 0.8, np.uint8)] * 3)
    plain, clear = views(rainy(pixels), "RGB")
    assert (plain == rainy(pixels)).all()
    assert shows(clear)
    assert clear.std() > 1.3 * plain.std()


def test_a_bright_picture_with_dark_parts_is_looked_at_as_it_is():
    pixels = rainy(np.dstack([gray(0, 0.8, np.uint8)] * 3))
    pixels[20:30, 20:30] = 10
    assert len(views(pixels, "RGB")) == 1


def detailed(width=400, height=300):
    """Return a picture with detail of all sizes, as photographs have it."""
    rng = np.random.default_rng(3)
    layers = [
        cv2.resize(rng.normal(0, 20, (height // step, width // step)), (width, height))
        for step in (2, 4, 8, 16, 32)
    ]
    gray = (128 + sum(layers)).clip(0, 255).astype(np.uint8)
    return with_shadow(np.repeat(gray[..., None], 3, axis=2))


def with_shadow(pixels):
    """Return `pixels` with a dark edge, so that they show no haze."""
    shaded = pixels.copy()
    shaded[-(len(pixels) // 40) :] = 10
    return shaded


def blurred(pixels):
    soft = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 5)
    return with_shadow(((soft - 128) * 5 + 128).clip(0, 255).astype(np.uint8))


def noisy(pixels):
    noise = np.random.default_rng(4).integers(-60, 61, pixels.shape)
    return with_shadow((128 + pixels.astype(int) // 16 + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "pixels",
    [blurred(detailed()), noisy(detailed())],
    ids=["blurred", "noisy"],
)
def test_a_blurred_or_noisy_picture_is_also_looked_at_smoothed(pixels):
    plain, smoothed = views(pixels, "RGB")
    assert (plain == pixels).all()
    assert smoothed.shape == pixels.shape
    assert np.abs(np.diff(smoothed.astype(int), axis=1)).mean() < (
        np.abs(np.diff(pixels.astype(int), axis=1)).mean()
    )


@pytest.mark.parametrize(
    "pixels",
    [
        detailed(),
        detailed(2000, 1500),
        with_shadow(cv2.GaussianBlur(detailed(200, 150), (0, 0), 8)),  # too small to tell
        np.full((300, 400, 3), 90, np.uint8),
        np.full((5000, 1, 3), 90, np.uint8),
    ],
    ids=["sharp", "large and sharp", "small", "flat", "a line"],
)
def test_other_pictures_are_not_looked_at_smoothed(pixels):
    assert all(
        (view == pixels).all() or view.std() > 2 * pixels.std() for view in views(pixels, "RGB")
    )
