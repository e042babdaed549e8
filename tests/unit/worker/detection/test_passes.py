"""The plan of the passes: their sizes, their orientations, and the way back to the picture."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.detection.canvas import Pyramid
from worker.detection.passes import (
    MIN_GAIN_FACTOR,
    Pass,
    crowd_pass,
    planned_probes,
    upright_passes,
)
from worker.detection.presets import PRESETS

BALANCED = PRESETS["balanced"]


@pytest.mark.parametrize(
    ("width", "height", "finest"),
    [
        (6_000, 4_000, 0.48),
        (10_000, 10_000, 0.48),
        (12_000, 3_000, 0.48),
        (16_000, 1_080, 1920 / 2160),
        (50_000, 1_000, 1920 / 2000),
        (50_000, 100, 1),
    ],
)
def test_no_pass_is_more_than_three_times_finer_than_the_one_before(width, height, finest):
    factors = [plan.factor for plan in upright_passes(width, height, BALANCED)]
    assert factors == sorted(factors)
    assert factors[-1] == pytest.approx(finest)
    assert all(finer <= 3.02 * coarser for coarser, finer in pairwise(factors))


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(sorted(PRESETS)))
def test_one_size_is_the_coarsest_and_one_the_finest(width, height, preset):
    passes = upright_passes(width, height, PRESETS[preset])
    factors = [plan.factor for plan in passes]
    assert [plan.is_coarsest for plan in passes] == [one == min(factors) for one in factors]
    assert [plan.is_finest for plan in passes] == [one == max(factors) for one in factors]
    assert not any(plan.quarter_turns or plan.is_probe for plan in passes)


def test_a_mirrored_pass_follows_the_one_that_it_repeats():
    passes = upright_passes(1000, 800, replace(BALANCED, mirrored=True))
    assert [plan.mirrored for plan in passes] == [False, True] * (len(passes) // 2)
    assert [plan.factor for plan in passes[::2]] == [plan.factor for plan in passes[1::2]]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_point_of_a_pass_comes_back_to_its_place_in_the_picture(factor, quarter_turns, mirrored):
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[8:12, 20:24] = 255
    image = Pass(factor, quarter_turns, mirrored).image_of(Pyramid(pixels))
    rows, columns = np.nonzero(image.pixels[..., 0] > 127)
    centre = np.array([[columns.mean() + 0.5, rows.mean() + 0.5]], np.float32)
    assert image.to_picture(centre) == pytest.approx(np.array([[22, 10]]), abs=0.01)
    assert image.pixel_size == pytest.approx([1 / factor, 1 / factor])


def test_a_crowd_gets_passes_twice_as_fine_up_to_the_pixels_of_the_picture():
    crowd = np.array([[5, 5]], np.float32)
    factors = []
    finer = Pass(0.2, mirrored=True)
    while finer := crowd_pass(finer, crowd):
        assert finer.crowd is crowd
        assert not finer.mirrored
        factors.append(finer.factor)
    assert factors == [0.4, 0.8, 1]
    assert crowd_pass(Pass(0.2), crowd[:0]) is None
    assert crowd_pass(Pass(1 / MIN_GAIN_FACTOR), crowd) is None


def test_doubt_probes_one_coarse_pass_and_always_all_but_the_finest():
    plain = [Pass(factor) for factor in (0.1, 0.3, 0.6, 1)]
    doubt, always = planned_probes(plain, "doubt"), planned_probes(plain, "always")
    assert [plan.factor for plan in doubt.repeat] == [0.3]
    assert [plan.factor for plan in always.repeat] == [0.1, 0.3, 0.6]
    assert doubt.compared.factor == always.compared.factor == 0.3
    (alone,) = planned_probes(plain[:1], "always").repeat
    assert alone is plain[0]
