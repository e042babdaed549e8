"""Overlapping boxes: the same pairs and groups as by comparing all boxes, in far less time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.detection import boxes
from worker.detection.boxes import connected, overlapping_pairs

SMALL = st.integers(0, 12)


@st.composite
def some_boxes(draw, most=12):
    """Draw boxes with whole sides: many touch, nest and repeat, and some are points and lines."""
    corners = draw(
        st.lists(st.tuples(SMALL, SMALL, st.integers(0, 6), st.integers(0, 6)), max_size=most)
    )
    return np.array([(x, y, x + w, y + h) for x, y, w, h in corners], float).reshape(-1, 4)


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def pairs(some, others):
    return sorted(
        (i, j)
        for rows in overlapping_pairs(some, others)
        for i, j in zip(*map(list, rows), strict=True)
    )


def groups(some):
    """Return the lowest row of each box's group, found by walking from neighbour to neighbour."""
    labels = [-1] * len(some)
    for row in range(len(some)):
        edge = [row] if labels[row] < 0 else []
        while edge:
            here = edge.pop()
            labels[here] = row
            edge += [j for j in range(len(some)) if labels[j] < 0 and overlap(some[here], some[j])]
    return labels


@given(some_boxes(), some_boxes())
def test_the_pairs_are_those_that_overlap_each_once(some, others):
    expected = [
        (i, j) for i in range(len(some)) for j in range(len(others)) if overlap(some[i], others[j])
    ]
    assert pairs(some, others) == expected


@given(some_boxes(), st.sampled_from([1, 3, 50]))
def test_the_groups_are_those_of_a_walk_whatever_the_size_of_a_chunk(some, chunk):
    some[:, 2:] += 1  # a point or a line does not overlap itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "PAIRS_AT_ONCE", chunk)
        assert connected(some).tolist() == groups(some)


@pytest.mark.parametrize("seed", range(4))
def test_the_groups_of_300_boxes_of_all_sizes_are_those_of_a_walk(seed):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 1000, (300, 2))
    sides = random.choice([3, 20, 60, 200], (300, 1), p=[0.4, 0.4, 0.15, 0.05]) * random.uniform(
        0.5, 2, (300, 2)
    )
    some = np.concatenate([corners, corners + sides], axis=1)
    assert connected(some).tolist() == groups(some)


def test_a_chain_in_any_order_is_one_group():
    along = np.random.default_rng(0).permutation(2000)
    some = np.stack([along, along * 0, along + 1.5, along * 0 + 1], axis=1)
    assert (connected(some) == 0).all()


@pytest.mark.parametrize("layout", ["column", "row", "square"])
def test_few_pairs_are_compared_however_the_boxes_lie(layout, monkeypatch):
    places = np.arange(2500)
    x, y = {
        "column": (0 * places, places),
        "row": (places, 0 * places),
        "square": divmod(places, 50),
    }[layout]
    some = np.stack([x, y, x + 1, y + 1], axis=1) * 20.0
    compared = []
    kept = boxes._chunks
    monkeypatch.setattr(
        boxes,
        "_chunks",
        lambda *ranges: (compared.append(len(chunk[0])) or chunk for chunk in kept(*ranges)),
    )
    assert len(set(connected(some))) == len(some)
    assert sum(compared) <= 60 * len(some)
