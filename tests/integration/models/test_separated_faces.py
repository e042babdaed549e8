"""Non-maximum suppression in the network's graph, for a batch at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.detection.centerface import maps

pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def separated():
    """``separated(boxes, scores)`` returns the rows that `separate` keeps of each picture."""
    from worker.detection.centerface import network

    def rows(boxes, scores):
        places, is_face = (value.numpy() for value in network.separate(boxes, scores))
        return [row[kept].tolist() for row, kept in zip(places, is_face, strict=True)]

    return rows


def one_by_one(boxes, scores):
    """Return the rows that TensorFlow's suppression for one picture keeps of each."""
    from worker.detection.tf import tf

    most = maps.MAX_DETECTIONS + 1
    kept = []
    for picture, strength in zip(boxes, scores, strict=True):
        rows = tf.image.non_max_suppression(picture, strength, most, maps.NMS_IOU, maps.MIN_SCORE)
        kept.append(rows.numpy().tolist())
    return kept


def candidates(seed, pictures, count, side):
    """Return boxes with sides of up to `side` in a unit square, with scores; some of both alike."""
    random = np.random.default_rng(seed)
    corners = random.random((pictures, count, 2), np.float32)
    boxes = np.concatenate([corners, corners + side * random.random((pictures, count, 2))], axis=2)
    copied = random.integers(0, count, count // 4)
    boxes[:, : len(copied)] = boxes[:, copied]
    scores = random.choice([0.0, maps.MIN_SCORE, 0.5, *random.random(20)], (pictures, count))
    return boxes.astype(np.float32), -np.sort(-scores, axis=1).astype(np.float32)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pictures=st.integers(1, 5),
    count=st.integers(1, 300),
    side=st.sampled_from([0.02, 0.2, 1.0]),
)
def test_a_batch_keeps_the_faces_that_each_picture_keeps_alone(
    separated, seed, pictures, count, side
):
    boxes, scores = candidates(seed, pictures, count, side)

    assert separated(boxes, scores) == one_by_one(boxes, scores)


def test_of_more_faces_than_fit_the_strongest_are_kept_in_each_picture(separated):
    boxes, scores = candidates(1, 2, 2500, 1e-4)
    scores = np.maximum(scores, 0.1)

    kept = separated(boxes, scores)

    assert kept == one_by_one(boxes, scores)
    assert {len(rows) for rows in kept} == {maps.MAX_DETECTIONS + 1}
