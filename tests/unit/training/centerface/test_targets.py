"""Targets of CenterFace: the worker's decoder turns them back into the labelled boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.augmentation import Example
from training.centerface.targets import IGNORED, targets
from worker.detection.centerface.maps import Layout, decode

SIDE = 128
NONE = np.zeros((0, 4), np.float32)
SURE = 12.0  # a logit


def example(boxes, classes=None, ignored=NONE):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    kinds = np.zeros(len(boxes), int) if classes is None else np.array(classes)
    return Example(np.zeros((SIDE, SIDE, 3), np.uint8), boxes, ignored, kinds)


def decoded(said):
    """Return the detections of a network that answers exactly `said`."""
    logits = np.where(said["faces"] == 1, SURE, -SURE)
    maps = np.concatenate([logits, said["boxes"][..., :4]], axis=-1).astype(np.float32)
    return decode(maps, layout=Layout(said["faces"].shape[-1], landmarks=0))


@given(st.floats(0, 100), st.floats(0, 100), st.floats(4, 28), st.floats(4, 28))
def test_the_decoder_of_workers_returns_the_labelled_box(left, top, width, height):
    box = [left, top, left + width, top + height]

    found = decoded(targets(example([box]), SIDE, 1))

    assert found.boxes_xyxy == pytest.approx(np.array([box], np.float32), abs=0.01)


def test_classes_have_maps_of_their_own_and_do_not_suppress_each_other():
    box = [20, 20, 60, 60]

    found = decoded(targets(example([box, box], [0, 1]), SIDE, 2))

    assert sorted(found.classes.tolist()) == [1, 2]
    assert found.boxes_xyxy == pytest.approx(np.array([box, box], np.float32), abs=0.01)


def test_the_heat_falls_around_a_centre_and_farther_from_a_large_object():
    small, large = (
        targets(example([[60 - half, 60 - half, 60 + half, 60 + half]]), SIDE, 1)["faces"][..., 0]
        for half in (6, 50)
    )

    for heat in (small, large):
        assert heat.max() == heat[15, 15] == 1
        assert (np.diff(heat[15, 15:]) <= 0).all()
        assert (heat == 1).sum() == 1
    assert (small > 0).sum() < (large > 0).sum()


def test_points_in_an_ignored_area_do_not_count_but_centres_in_it_do():
    area = np.array([[40, 40, 80, 80]], np.float32)

    heat = targets(example([[50, 50, 70, 70]], ignored=area), SIDE, 1)["faces"][..., 0]

    assert heat[15, 15] == 1
    assert (heat[10:20, 10:20] == IGNORED).sum() == 99
    assert (heat[:10] >= 0).all()


def test_a_picture_without_objects_has_no_targets():
    said = targets(example([]), SIDE, 2)

    assert not said["faces"].any()
    assert not said["boxes"].any()
