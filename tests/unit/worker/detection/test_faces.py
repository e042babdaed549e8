"""Faces: overlap, merging and clipping of boxes, and faces that frames of an animation miss."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drawn import detections, found
from worker.detection import faces
from worker.detection.faces import (
    MERGE_IOU,
    Detections,
    Sightings,
    bridged,
    clip,
    has_same_face,
    merge,
    outside,
    overlap,
)
from worker.detection.tracks import MAX_MISSED_FRAMES


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 10, 10), 1),
        ((0, 0, 10, 5), 0.5),
        ((5, 0, 15, 10), 1 / 3),
        ((2, 2, 4, 4), 0.04),
        ((10, 0, 20, 10), 0),
        ((30, 30, 40, 40), 0),
        ((5, 5, 5, 5), 0),
    ],
)
def test_overlap_is_intersection_over_union(other, expected):
    box = np.array([0, 0, 10, 10], np.float32)
    assert overlap(box, np.array([other], np.float32)) == pytest.approx([expected])


@given(detections())
def test_overlap_is_symmetric_and_between_0_and_1(some):
    boxes = some.boxes_xyxy
    table = np.array([overlap(box, boxes) for box in boxes]).reshape(len(boxes), len(boxes))
    assert np.allclose(table, table.T, atol=1e-5)
    assert ((table >= 0) & (table <= 1.001)).all()


@given(detections(), st.integers(1, 100), st.integers(1, 100))
def test_clipped_boxes_are_the_part_within_the_picture(some, width, height):
    inside = clip(some, width, height)
    x1, y1, x2, y2 = inside.boxes_xyxy.T
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all()
    assert len(inside.scores) == len(inside.boxes_xyxy)
    again = clip(inside, width, height)
    assert np.array_equal(again.boxes_xyxy, inside.boxes_xyxy)


def test_a_box_with_no_part_in_the_picture_is_dropped_and_one_within_it_unchanged():
    some = found(
        (-20, 5, -1, 9), (10, 0, 20, 10), (2, 3, 5, 7), (0, 30, 5, 40), scores=[0.9, 0.8, 0.7, 0.6]
    )
    inside = clip(some, 10, 30)
    assert inside.boxes_xyxy.tolist() == [[2, 3, 5, 7]]
    assert inside.scores == pytest.approx([0.7])


@given(detections())
def test_every_box_is_wholly_within_a_merged_one_that_is_at_least_as_strong(some):
    merged = merge(some)
    assert len(merged) <= len(some)
    for box, score in zip(some.boxes_xyxy, some.scores, strict=True):
        around = (merged.boxes_xyxy[:, :2] <= box[:2]).all(axis=1) & (
            merged.boxes_xyxy[:, 2:] >= box[2:]
        ).all(axis=1)
        assert (merged.scores[around] >= score).any()


@given(detections())
def test_merged_boxes_are_strongest_first_and_reach_no_further_than_what_was_found(some):
    merged = merge(some)
    assert (np.diff(merged.scores) <= 0).all()
    assert set(merged.scores.tolist()) <= set(some.scores.tolist())
    assert merged.boxes_xyxy.dtype == np.float32
    for side in range(4):
        assert set(merged.boxes_xyxy[:, side].tolist()) <= set(some.boxes_xyxy[:, side].tolist())


@given(detections())
def test_boxes_that_show_different_faces_stay_as_they_are(some):
    apart = Detections(
        some.boxes_xyxy * [0.01, 1, 0.01, 1] + np.arange(len(some))[:, None] * [9, 0, 9, 0],
        some.scores,
    )
    merged = merge(apart)
    order = np.argsort(-apart.scores, kind="stable")
    assert np.array_equal(merged.boxes_xyxy, apart.boxes_xyxy[order])
    assert np.array_equal(merged.scores, apart.scores[order])


def test_two_views_of_one_face_become_the_box_around_both_with_the_stronger_score():
    merged = merge(
        found((0, 0, 10, 10), (1, 0, 11, 12), (50, 50, 60, 60), scores=[0.5, 0.75, 0.25])
    )
    assert merged.boxes_xyxy.tolist() == [[0, 0, 11, 12], [50, 50, 60, 60]]
    assert merged.scores.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(("iou", "count"), [(MERGE_IOU - 0.01, 2), (MERGE_IOU + 0.01, 1)])
def test_boxes_are_one_face_from_a_certain_overlap_on(iou, count):
    assert len(merge(found((0, 0, 10, 10), (0, 0, 10, 10 * iou)))) == count


def test_nothing_found_merges_and_clips_to_nothing():
    none = clip(merge(Detections.none()), 10, 10)
    assert len(none) == 0
    assert none.boxes_xyxy.shape == (0, 4)


@given(detections())
def test_every_box_that_was_found_is_a_sighting_of_the_face_that_covers_it(some):
    merged = merge(some)
    seen = merged.sightings
    assert sorted(seen.boxes_xyxy.tolist()) == sorted(some.boxes_xyxy.tolist())
    around = merged.boxes_xyxy[seen.face]
    assert (around[:, :2] <= seen.boxes_xyxy[:, :2]).all()
    assert (around[:, 2:] >= seen.boxes_xyxy[:, 2:]).all()
    assert set(seen.face.tolist()) == set(range(len(merged)))


@given(detections(), st.data())
def test_chosen_faces_keep_their_own_sightings(some, data):
    merged = merge(some)
    chosen = data.draw(st.permutations(range(len(merged))))[
        : data.draw(st.integers(0, len(merged)))
    ]
    picked = merged[np.array(chosen, int)]
    assert picked.scores.tolist() == merged.scores[chosen].tolist()
    for row, original in enumerate(chosen):
        before, after = merged.sightings.face == original, picked.sightings.face == row
        assert (
            picked.sightings.boxes_xyxy[after].tolist()
            == merged.sightings.boxes_xyxy[before].tolist()
        )


@given(detections())
def test_the_first_sighting_of_a_merged_face_is_its_surest(some):
    def pairs(boxes, scores):
        return set(zip(map(tuple, boxes.tolist()), scores.tolist(), strict=True))

    once = merge(some)
    for merged in (once, merge(Detections.joined([once[::-1], some]))):
        first = np.unique(merged.sightings.face, return_index=True)[1]
        surest = pairs(merged.sightings.boxes_xyxy[first], merged.scores)
        assert surest <= pairs(some.boxes_xyxy, some.scores)


@given(detections())
def test_a_clipped_face_keeps_its_sightings_whole(some):
    clipped = clip(some, 40, 40)
    kept = {tuple(box) for box in clipped.sightings.boxes_xyxy.tolist()}
    assert kept <= {tuple(box) for box in some.boxes_xyxy.tolist()}
    assert len(clipped.sightings) == len(clipped)


def test_joining_merged_detections_keeps_every_sighting():
    one = merge(found((0, 0, 10, 10), (1, 0, 10, 11)))
    other = merge(found((50, 50, 60, 60), (50, 51, 60, 61), (80, 80, 90, 90)))
    joined = Detections.joined([one, other])
    assert joined.sightings.face.tolist() == [0, 0, 1, 1, 2]
    assert merge(Detections.joined([joined, one])).sightings.face.tolist().count(0) == 4


def test_a_weak_sighting_widens_a_face_and_is_none_by_itself():
    weak = Sightings.of(np.array([(0, 0, 10, 14), (50, 50, 60, 60)], np.float32))
    merged = merge(found((0, 0, 10, 10)), weak)
    assert merged.boxes_xyxy.tolist() == [[0, 0, 10, 14]]
    assert merged.sightings.boxes_xyxy.tolist() == [[0, 0, 10, 10], [0, 0, 10, 14]]
    assert merged.sightings.face.tolist() == [0, 0]
    assert len(merge(Detections.none(), weak)) == 0


@pytest.mark.parametrize(
    ("area", "left"),
    [
        ((0, 0, 10, 10), 1),
        ((0, 0, 10, 5), 1),
        ((0, 0, 10, 4), 2),
        ((0, 0, 100, 100), 0),
        ((4, 4, 6, 6), 2),
        ((60, 60, 70, 70), 2),
    ],
)
def test_a_face_is_left_out_if_half_of_it_lies_in_an_area(area, left):
    assert len(outside(found((0, 0, 10, 10), (50, 50, 60, 60)), [area])) == left


NONE = Detections.none()


FACES_BOX = (10, 10, 40, 40)


def covering(detections, box):
    """Return whether one of `detections`, or of their sightings, covers `box` to a pixel."""
    seen = np.concatenate([detections.boxes_xyxy, detections.sightings.boxes_xyxy])
    return bool(
        ((seen[:, :2] <= np.add(box[:2], 1)) & (seen[:, 2:] >= np.subtract(box[2:], 1)))
        .all(axis=1)
        .any()
    )


def test_a_face_that_flickers_is_hidden_in_the_frame_that_lacks_it_too():
    face, moved, other = found(FACES_BOX), found((14, 10, 44, 40)), found((80, 10, 110, 40))
    before, here, after = bridged(
        [Detections.joined([face, other]), other, Detections.joined([moved, other])]
    )
    assert (len(before), len(after)) == (2, 2)
    assert sorted(here.boxes_xyxy.tolist()) == [[10, 10, 44, 40], [80, 10, 110, 40]]
    assert {FACES_BOX, (14, 10, 44, 40)} <= {
        tuple(box) for box in here.sightings.boxes_xyxy.tolist()
    }


@pytest.mark.parametrize("gap", [1, 2, 3, MAX_MISSED_FRAMES, 2 * MAX_MISSED_FRAMES])
def test_a_face_is_hidden_in_all_frames_that_miss_it_between_two_that_show_it(gap):
    shown = bridged([found(FACES_BOX), *[NONE] * gap, found(FACES_BOX)])
    assert [each.boxes_xyxy.tolist() for each in shown] == [[list(FACES_BOX)]] * (gap + 2)


@pytest.mark.parametrize("missed", [1, 2, MAX_MISSED_FRAMES])
@pytest.mark.parametrize("sightings", [1, 3])
def test_a_face_is_hidden_in_the_frames_before_it_is_first_found_and_after_it_is_last_found(
    missed, sightings
):
    face = found(FACES_BOX)
    for frames in ([NONE] * missed + [face] * sightings, [face] * sightings + [NONE] * missed):
        assert [len(each) for each in bridged(frames)] == [1] * (missed + sightings)


def test_a_face_is_not_hidden_for_ever():
    face = found(FACES_BOX)
    shown = bridged([NONE] * 50 + [face] * 3 + [NONE] * 50)
    clear = [0] * (50 - MAX_MISSED_FRAMES)
    assert [len(each) for each in shown] == [*clear, *[1] * (3 + 2 * MAX_MISSED_FRAMES), *clear]


@pytest.mark.parametrize("step", [(3, 0), (-7, 5), (20, 0), (0, 25)])
@pytest.mark.parametrize("gap", [2, 5, MAX_MISSED_FRAMES])
def test_a_face_that_moves_is_hidden_where_it_is_while_it_is_missed(step, gap):
    """It moves on at the same speed before the first and after the last frame that shows it."""

    def place(frame):
        return tuple(np.add((300, 300, 330, 330), np.tile(np.multiply(step, frame), 2)).tolist())

    frames = [found(place(number)) for number in range(4 + gap + 4)]
    for number in (0, 1, *range(4, 4 + gap), len(frames) - 1):
        frames[number] = NONE
    for number, shown in enumerate(bridged(frames)):
        assert covering(shown, place(number))


def test_a_face_that_moves_between_two_single_sightings_is_hidden_on_its_way():
    frames = [found(FACES_BOX), NONE, NONE, found((70, 10, 100, 40))]
    for number, shown in enumerate(bridged(frames)):
        assert covering(shown, (10 + 20 * number, 10, 40 + 20 * number, 40))
        assert covering(shown, FACES_BOX)


def test_a_newcomer_beside_a_face_that_is_missed_does_not_expose_it():
    face, beside = found(FACES_BOX), found((42, 10, 72, 40))
    for shown in bridged([face, beside, beside, Detections.joined([face, beside])]):
        assert covering(shown, FACES_BOX)


def test_a_missed_face_keeps_its_top_its_slack_and_its_landmarks_where_it_moves():
    landmarks = np.array([[(30, 15), (30, 35), (25, 25), (15, 15), (15, 35)]], np.float32)
    frames = [
        Detections(
            box,
            np.ones(1, np.float32),
            replace(Sightings.of(box, landmarks + by), slack=np.full(1, 3.0)),
        )
        for by in (0, 4)
        for box in [np.array([FACES_BOX], np.float32) + by]
    ]
    shown = bridged([*frames, NONE])[2]
    assert shown.sightings.boxes_xyxy.tolist() == [[14, 14, 44, 44], [18, 18, 48, 48]]
    assert np.array_equal(shown.sightings.landmarks, np.concatenate([landmarks + 4, landmarks + 8]))
    assert shown.sightings.slack.tolist() == [3, 3]


@given(st.lists(detections(most=4), max_size=6))
def test_no_frame_loses_what_it_shows(frames):
    shown = bridged(frames)
    assert len(shown) == len(frames)
    for before, after in zip(frames, shown, strict=True):
        kept = {tuple(box) for box in after.sightings.boxes_xyxy.tolist()}
        assert {tuple(box) for box in before.sightings.boxes_xyxy.tolist()} <= kept
        assert after is before or len(after.sightings) > len(before.sightings)


def test_frames_that_miss_nothing_are_as_they_were():
    frames = [found((10 + number, 10, 40 + number, 40)) for number in range(30)]
    assert all(one is other for one, other in zip(bridged(frames), frames, strict=True))


def merged_one_by_one(some, weak):
    """Return what `merge` does, by comparing all boxes: the strongest takes all that overlap it.

    The faces are those of the boxes, strongest first, and of the weak sightings after them.
    """
    order = np.argsort(-some.scores, kind="stable")
    boxes = np.concatenate([some.boxes_xyxy[order], weak.boxes_xyxy])
    face = np.full(len(boxes), -1)
    for row in range(len(some)):
        if face[row] < 0:
            same = (face < 0) & (overlap(boxes[row], boxes) >= MERGE_IOU)
            same[row] = True
            face[same] = face.max(initial=-1) + 1
    numbers = range(face.max(initial=-1) + 1)
    around = [
        (*boxes[face == number, :2].min(axis=0), *boxes[face == number, 2:].max(axis=0))
        for number in numbers
    ]
    firsts = [int(np.flatnonzero(face == number)[0]) for number in numbers]
    return np.array(around, np.float32).reshape(-1, 4), some.scores[order][firsts], face


def crowd(seed):
    """Return up to 300 boxes of several passes, and weak sightings.

    Some boxes agree; others touch, nest, repeat or stand alone.
    """
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 301))
    corners = random.uniform(-20, random.choice([60, 300, 3000]), (count, 2))
    sides = random.choice([6, 25, 100], (count, 1)) * random.uniform(0.5, 2, (count, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    again = random.integers(0, count, count // 3)
    boxes[: len(again)] = boxes[again] + random.choice([0, 1, 3]) * random.uniform(
        -1, 1, (len(again), 1)
    )
    if random.random() < 0.3:
        boxes = (boxes / 10).round() * 10  # touching, and without area
    scores = random.random(count).round(int(random.integers(1, 4)))  # some are equal
    weak = boxes[: count // 2] + random.uniform(-2, 2, (count // 2, 1))
    return found(*boxes, scores=scores), Sightings.of(weak.astype(np.float32))


@pytest.mark.parametrize("seed", range(40))
def test_boxes_are_merged_as_if_each_was_compared_with_each(seed):
    some, weak = crowd(seed)
    boxes, scores, face = merged_one_by_one(some, weak)

    merged = merge(some, weak)

    assert np.array_equal(merged.boxes_xyxy, boxes)
    assert np.array_equal(merged.scores, scores)
    assert merged.sightings.face.tolist() == face[face >= 0].tolist()
    expected = [
        bool((overlap(box, merged.boxes_xyxy) >= MERGE_IOU).any()) for box in some.boxes_xyxy
    ]
    assert has_same_face(some, merged).tolist() == expected


@pytest.mark.parametrize("columns", [1, 60, 3600])
def test_thousands_of_faces_are_merged_by_comparing_each_with_those_near_it(columns, monkeypatch):
    places = np.arange(3600)
    corners = 20 * np.stack([places % columns, places // columns], axis=1)
    one = np.concatenate([corners, corners + 20], axis=1)
    several = found(*one, *one + 1, *one + 2, scores=np.linspace(1, 0.2, 3 * len(one)))
    compared = []
    kept = faces.overlap
    monkeypatch.setattr(
        faces, "overlap", lambda box, boxes: compared.append(len(boxes)) or kept(box, boxes)
    )

    merged = merge(several)

    assert np.array_equal(merged.boxes_xyxy, np.add(one, (0, 0, 2, 2)))
    assert sum(compared) <= 1000 * len(one)
    assert has_same_face(several, merged).all()
    assert sum(compared) <= 3000 * len(one)
