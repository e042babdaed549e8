"""Tracks of faces through an animation, over the frames that miss them."""

import numpy as np
import pytest

from worker.detection.tracks import MAX_MISSED_FRAMES, MAX_MISSED_SIDES, follow


def tracks(*faces):
    """Return the tracks of `faces`, each (frame, x, side), sorted by frame."""
    frame, x, side = np.array(faces, float).reshape(-1, 3).T
    return follow(np.stack([x, x * 0, x + side, side], axis=1), frame.astype(int))


def test_a_face_that_stays_is_one_track_that_misses_nothing():
    found = tracks(*((number, 10, 30) for number in range(5)))
    assert found.since.tolist() == [-1 - MAX_MISSED_FRAMES, 0, 1, 2, 3]
    assert found.until.tolist() == [1, 2, 3, 4, 5 + MAX_MISSED_FRAMES]
    assert not found.speed_before.any()
    assert not found.speed_after.any()


@pytest.mark.parametrize("gap", [1, 2, MAX_MISSED_FRAMES])
def test_a_face_that_moves_while_it_is_missed_is_one_track(gap):
    found = tracks((0, 10, 30), (gap + 1, 10 + gap + 1, 30))
    assert found.until[0] == gap + 1
    assert found.since[1] == 0
    assert found.speed_after[0].tolist() == found.speed_before[1].tolist() == [1, 0]


def test_a_face_that_is_found_again_too_late_or_much_larger_is_another_track():
    for late in ((MAX_MISSED_FRAMES + 2, 10, 30), (1, 10, 70)):
        found = tracks((0, 10, 30), late)
        assert found.until[0] == MAX_MISSED_FRAMES + 1
        assert not found.speed_after.any()


def test_a_face_found_farther_on_shows_where_it_went_and_ends_no_track():
    found = tracks((0, 10, 30), (2, 68, 30))
    assert found.until[0] == MAX_MISSED_FRAMES + 1
    assert found.since[1] == 2 - MAX_MISSED_FRAMES - 1
    assert found.speed_after[0].tolist() == found.speed_before[1].tolist() == [29, 0]
    for frame, x in ((1, 41), (2, 71), (12, 11 + MAX_MISSED_SIDES * 30)):
        assert not tracks((0, 10, 30), (frame, x, 30)).speed_after.any()


def test_a_face_goes_on_as_it_moved():
    found = tracks((3, 10, 30), (4, 14, 30), (5, 18, 30))
    assert found.speed_before[0].tolist() == found.speed_after[2].tolist() == [4, 0]


def test_of_two_faces_each_keeps_its_own_track():
    found = tracks((0, 10, 30), (0, 42, 30), (1, 18, 30), (1, 50, 30))
    assert found.until[:2].tolist() == [1, 1]
    assert found.since[2:].tolist() == [0, 0]
    assert found.speed_after[:2].tolist() == [[8, 0], [8, 0]]


def test_a_neighbour_that_stays_is_no_sighting_of_a_face_that_is_missed():
    found = tracks((0, 10, 30), (0, 25, 30), (1, 25, 30), (2, 10, 30), (2, 25, 30))
    assert found.until.tolist()[:2] == [2, 1]


def test_no_face_makes_no_track():
    assert len(tracks().since) == 0
