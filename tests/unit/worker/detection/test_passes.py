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
    closer_factors,
    closer_passes,
    crowd_pass,
    planned_probes,
    upright_passes,
)
from worker.detection.presets import PRESETS

BALANCED = PRESETS["balanced"]


@pytest.mark.parametrize(
    ("width", "height", "finest"),
    [
        (6_000, 4_000, 10 / 24),
        (10_000, 10_000, 10 / 24),
        (12_000, 3_000, 10 / 24),
        (16_000, 1_080, 960 / 2160),
        (50_000, 1_000, 960 / 2000),
        (50_000, 100, 1),
    ],
)
def test_no_pass_is_more_than_three_times_finer_than_the_one_before(width, height, finest):
    factors = [plan.factor for plan in upright_passes(width, height, BALANCED)]
    assert factors == sorted(factors)
    assert factors[-1] == pytest.approx(finest)
    # The first two fit into a canvas each, so no tile cuts a face there.
    assert all(finer <= 3.02 * coarser for coarser, finer in pairwise(factors[1:]))


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(sorted(PRESETS)))
def test_one_size_is_the_coarsest_and_one_the_finest(width, height, preset):
    passes = upright_passes(width, height, PRESETS[preset])
    factors = [plan.factor for plan in passes]
    assert [plan.is_coarsest for plan in passes] == [one == min(factors) for one in factors]
    has_closer = bool(closer_factors(factors[-1], max(width, height), PRESETS[preset]))
    finest = [one == max(factors) and not has_closer for one in factors]
    assert [plan.is_finest for plan in passes] == finest
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
        assert finer.places is crowd
        assert not finer.mirrored
        factors.append(finer.factor)
    assert factors == [0.4, 0.8, 1]
    assert crowd_pass(Pass(0.2), crowd[:0]) is None
    assert crowd_pass(Pass(1 / MIN_GAIN_FACTOR), crowd) is None


@pytest.mark.parametrize(
    ("longer", "finest", "closest"),
    [(400, 1.6, 3), (1_024, 0.9375, 1.875), (4_000, 10 / 24, 0.625), (12_000, 10 / 24, 0.625)],
)
def test_closer_passes_enlarge_small_pictures_and_show_the_smallest_face_of_large_ones_clearly(
    longer, finest, closest
):
    factors = closer_factors(finest, longer, BALANCED)
    assert factors[-1] == pytest.approx(closest)
    assert all(finer <= 3.02 * coarser for coarser, finer in pairwise([finest, *factors]))


def test_a_thorough_search_comes_closer_in_smaller_steps():
    assert closer_factors(0.9375, 1_024, BALANCED) == pytest.approx([1.875])
    assert closer_factors(0.9375, 1_024, PRESETS["thorough"]) == pytest.approx(
        [1.624, 2.8125], 1e-3
    )


def test_there_are_no_closer_passes_where_the_finest_one_shows_enough():
    assert closer_factors(1.5, 1_000, BALANCED) == []
    assert closer_factors(0.9, 1_000, replace(BALANCED, closer_to=0)) == []


@pytest.mark.parametrize("mirrored", [False, True])
def test_closer_passes_have_the_orientations_of_the_finest_ones(mirrored):
    whole = upright_passes(1000, 800, replace(BALANCED, mirrored=mirrored))
    places = np.array([[5, 5]], np.float32)
    closer = closer_passes(whole, 2.0, places, is_finest=True)
    assert [plan.mirrored for plan in closer] == [False, True][: 1 + mirrored]
    assert all(plan.places is places and plan.factor == 2 for plan in closer)


def test_doubt_probes_one_coarse_pass_and_always_those_between_it_and_the_finest():
    whole = [Pass(factor, is_for_large=factor == 0.1) for factor in (0.1, 0.3, 0.6, 1)]
    doubt, always = planned_probes(whole, 1_000, "doubt"), planned_probes(whole, 1_000, "always")
    assert [plan.factor for plan in doubt] == [0.48]
    assert [plan.factor for plan in always] == [0.6, 0.48]
    assert [plan.factor for plan in planned_probes(whole[:1], 1_000, "always")] == [0.1]
    assert [plan.factor for plan in planned_probes(whole, 10_000, "doubt")] == [0.25]
