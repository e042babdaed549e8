"""Intervals of rates: the published values, and archives whose rates are known."""

import functools
import math

import numpy as np
import pytest

from worker.sampling.intervals import (
    CONFIDENCE,
    beta_share,
    pictures_needed,
    rate,
    rate_in_clusters,
    student,
)

ARCHIVES = 1000
PICTURES = 2000  # of an archive


def binomial_share(found, of, share):
    """The probability of at most `found` of `of`, summed term by term."""
    return sum(
        math.comb(of, number) * share**number * (1 - share) ** (of - number)
        for number in range(found + 1)
    )


@pytest.mark.parametrize(
    ("found", "of", "low", "high"),
    [
        # R: binom.test(found, of)$conf.int
        (0, 300, 0.0, 0.0122210),
        (3, 300, 0.0020670, 0.0289445),
        (1, 10, 0.0025286, 0.4450161),
        (5, 10, 0.1870860, 0.8129140),
        (10, 10, 0.6915029, 1.0),
    ],
)
def test_intervals_are_those_of_clopper_and_pearson(found, of, low, high):
    interval = rate(found, of)
    assert interval.low == pytest.approx(low, abs=1e-6)
    assert interval.high == pytest.approx(high, abs=1e-6)
    assert interval.estimate == found / of


@pytest.mark.parametrize(("found", "of"), [(1, 20), (7, 300), (40, 50), (299, 300)])
def test_at_the_ends_so_few_or_so_many_have_a_probability_of_one_in_forty(found, of):
    interval = rate(found, of)
    assert binomial_share(found, of, interval.high) == pytest.approx(0.025, rel=1e-6)
    assert 1 - binomial_share(found - 1, of, interval.low) == pytest.approx(0.025, rel=1e-6)
    assert binomial_share(found, of, interval.upper_bound) == pytest.approx(0.05, rel=1e-6)


def test_no_miss_in_300_pictures_means_fewer_than_one_in_a_hundred():
    assert 0.0099 < rate(0, 300).upper_bound < 0.01


def test_the_number_of_pictures_for_a_wanted_certainty():
    assert pictures_needed(0.01) == 299
    assert pictures_needed(0.001) == 2995
    assert pictures_needed(0.01, misses=1) == 473
    assert pictures_needed(1e-9) is None
    for misses in (0, 2):
        needed = pictures_needed(0.02, misses)
        assert rate(misses, needed).upper_bound <= 0.02 < rate(misses, needed - 1).upper_bound


def test_without_a_picture_nothing_is_known():
    unknown = rate(0, 0)
    assert (unknown.estimate, unknown.low, unknown.high) == (None, 0.0, 1.0)
    assert rate_in_clusters([0, 0], [0, 0]) == unknown


def test_the_quantiles_of_student_and_the_beta_distribution():
    assert student(1, 0.95) == pytest.approx(12.7062, abs=1e-4)
    assert student(10, 0.95) == pytest.approx(2.22814, abs=1e-5)
    assert beta_share(0.3, 2, 5) == pytest.approx(1 - binomial_share(1, 6, 0.3), rel=1e-9)
    assert beta_share(0.5, 50_000, 50_000) == pytest.approx(0.5, rel=1e-6)


def archive(chance, share, faces, kind):
    """The exposed faces and the faces of each picture; those of one are exposed alike, or each has
    a chance of its own.
    """
    counts = chance.choice(faces, PICTURES)
    if kind == "alike":
        return counts * (chance.random(PICTURES) < share), counts
    return chance.binomial(counts, share), counts


def test_the_intervals_cover_the_truth_in_95_of_100_archives():
    chance = np.random.default_rng(20)
    known_rate = functools.cache(rate)  # few different numbers are drawn
    covers_pictures = covers_faces = 0
    for _ in range(ARCHIVES):
        share = chance.choice((0.002, 0.01, 0.05, 0.2))
        faces = ((1,), (0, 0, 1, 2, 4), (1, 1, 1, 1, 40))[chance.integers(3)]
        exposed, counts = archive(chance, share, faces, chance.choice(("alike", "independent")))
        drawn = chance.permutation(PICTURES)[: chance.choice((60, 300))]

        true_pictures = np.mean(exposed > 0)
        of_pictures = known_rate(int(sum(exposed[drawn] > 0)), len(drawn))
        covers_pictures += of_pictures.low <= true_pictures <= of_pictures.high

        true_faces = exposed.sum() / counts.sum()
        of_faces = rate_in_clusters(exposed[drawn].tolist(), counts[drawn].tolist())
        covers_faces += of_faces.low <= true_faces <= of_faces.high
    print(f"covered: pictures {covers_pictures}, faces {covers_faces} of {ARCHIVES}")
    assert covers_pictures >= CONFIDENCE * ARCHIVES
    assert covers_faces >= CONFIDENCE * ARCHIVES
