"""Samples of listings: reproducible, one pass, each picture equally likely, each stratum there."""

import random
from collections import Counter

import pytest

from worker.sampling.drawing import Sample, StratifiedSample, allocate


def drawn(names, size, seed):
    sample = Sample(size, seed)
    for name in names:
        sample.add(name, name)
    return sample.items


NAMES = [f"2026/{number}.jpg" for number in range(1000)]


def test_the_order_of_the_listing_does_not_matter_and_the_seed_does():
    shuffled = random.Random(1).sample(NAMES, len(NAMES))
    assert drawn(NAMES, 20, 7) == drawn(shuffled, 20, 7)
    assert set(drawn(NAMES, 20, 7)) != set(drawn(NAMES, 20, 8))


def test_each_beginning_of_a_sample_is_the_smaller_sample():
    assert drawn(NAMES, 50, 7)[:20] == drawn(NAMES, 20, 7)


def test_each_picture_is_drawn_as_often_as_the_others():
    counts = Counter(name for seed in range(400) for name in drawn(NAMES[:50], 5, seed))
    assert sum(counts.values()) == 2000
    # 40 are expected for each; 6 is the standard deviation.
    assert min(counts.values()) > 14
    assert max(counts.values()) < 66


def test_a_place_with_fewer_pictures_than_wanted_is_drawn_as_a_whole():
    assert sorted(drawn(NAMES[:5], 24, 1)) == NAMES[:5]
    assert drawn([], 24, 1) == []


@pytest.mark.parametrize(
    ("size", "counts", "shares"),
    [
        (10, [80, 20], [8, 2]),
        (10, [1000, 1], [9, 1]),
        (3, [50, 40, 30, 20], [1, 1, 1, 0]),
        (24, [3, 2], [3, 2]),
        (24, [], []),
        (5, [0, 0], [0, 0]),
    ],
)
def test_strata_get_their_shares_and_at_least_one(size, counts, shares):
    assert allocate(size, counts) == shares


def test_a_stratified_sample_counts_all_and_draws_from_each():
    sample = StratifiedSample(6, 1, lambda name: name.partition("/")[0])
    for name in [*NAMES[:95], *(f"old/{number}.jpg" for number in range(5))]:
        sample.add(name, name, 10)
    large, small = sample.draw()
    assert (sample.count, sample.size_bytes) == (100, 1000)
    assert (large.count, len(large.drawn), small.count, len(small.drawn)) == (95, 5, 5, 1)
    assert len(set(large.drawn)) == 5
