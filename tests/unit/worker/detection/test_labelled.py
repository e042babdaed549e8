"""Each label is searched for by itself, with models that run on each canvas once."""

from dataclasses import replace

import numpy as np
import pytest

from tasks.errors import DetectionFailed, DetectorUnavailable
from tasks.messages import FACE
from tests.drawn import found
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections
from worker.detection.labelled import (
    LabelledDetector,
    Search,
    bridge_by_label,
    merge_by_label,
    of_label,
    remembering,
    with_label,
)
from worker.detection.presets import PRESETS, PassSettings
from worker.detection.tiled import ANY_SIZE, TooMany, one_by_one

ONE_PASS = PassSettings((256,), 1.0, 64, mirrored=False, turned="never")
PICTURE = np.random.default_rng(1).integers(0, 256, (200, 256, 3), np.uint8)
BOX = (40, 40, 90, 90)
CLASSES = {1: FACE, 2: "plate", 3: "plate"}


def search(label=FACE, model=0, classes=None, threshold=0.5, passes=ONE_PASS):
    return Search(label, model, passes, threshold, threshold + 0.05, ANY_SIZE, 60, classes or {})


def answer(*numbers, scores=None):
    """Return a detection at nearly the same place for each class of `numbers`."""
    boxes = [tuple(side + place for side in BOX) for place in range(len(numbers))]
    return replace(found(*boxes, scores=scores), classes=np.array(numbers, np.intp))


def detector(searches, *answers, seconds=60, on_search=lambda *_: None):
    models = [one_by_one(lambda _, one=one: one) for one in answers]
    return LabelledDetector(searches, models, seconds, on_search)


def test_one_search_for_faces_finds_what_the_detector_finds_bit_for_bit():
    model = one_by_one(lambda canvas: found((10, 10, 60, 60), (70, 10, 120, 64)))
    expected = ScaledDetector(model, PRESETS["balanced"], 0.5).detect(PICTURE)
    alone = LabelledDetector([search(passes=PRESETS["balanced"])], [model], 60, lambda *_: None)
    actual = alone.detect(PICTURE)
    assert actual.labelled is None
    np.testing.assert_array_equal(actual.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(actual.scores, expected.scores)
    np.testing.assert_array_equal(actual.sightings.landmarks, expected.sightings.landmarks)


def test_boxes_are_merged_within_a_label_only():
    searches = [search(FACE, 0, CLASSES), search("plate", 0, CLASSES)]
    actual = detector(searches, answer(1, 2, 3, 1)).detect(PICTURE)
    assert sorted(actual.labels) == [FACE, "plate"]


def test_two_models_may_find_the_same_label():
    searches = [search("plate", 0, {1: "plate"}), search("plate", 1, {7: "plate"})]
    actual = detector(searches, answer(1), answer(7, scores=[0.7])).detect(PICTURE)
    assert actual.labels.tolist() == ["plate"]
    assert len(actual.sightings) == 2


def test_a_label_has_a_threshold_of_its_own():
    searches = [search(FACE, 0, CLASSES, 0.9), search("plate", 0, CLASSES, 0.3)]
    actual = detector(searches, answer(1, 2, scores=[0.6, 0.6])).detect(PICTURE)
    assert actual.labels.tolist() == ["plate"]


def test_a_model_of_several_labels_runs_on_each_canvas_once():
    shapes = []

    def run(canvases):
        shapes.extend(canvas.shape for canvas in canvases)
        return [answer(1, 2) for _ in canvases]

    searches = [search(FACE, 0, CLASSES), search("plate", 0, CLASSES)]
    assert len(LabelledDetector(searches, [run], 60, lambda *_: None).detect(PICTURE)) == 2
    assert len(shapes) == 1


def test_what_is_remembered_is_told_apart_by_pixels_and_shape():
    given = []

    def run(canvases):
        given.append(len(canvases))
        return [found((0, 0, 1 + canvas.sum(), 1)) for canvas in canvases]

    infer = remembering(run)
    zeros, turned = np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    ones = np.ones((2, 3, 3), np.uint8)
    first = infer([zeros, ones, zeros])
    assert [one.boxes_xyxy[0, 2] for one in first] == [1, 19, 1]
    infer([turned, ones])
    assert given == [2, 1]


def test_a_class_without_a_label_fails_the_picture_if_it_may_count():
    infer = of_label(one_by_one(lambda _: answer(1, 9)), search(FACE, 0, CLASSES))
    with pytest.raises(DetectionFailed, match=r"class 9, which its veil.json does not label"):
        infer([PICTURE])
    quiet = of_label(
        one_by_one(lambda _: answer(1, 9, scores=[0.9, 0.1])), search(FACE, 0, CLASSES)
    )
    assert quiet([PICTURE])[0].classes.tolist() == [1]


def test_a_score_that_is_no_number_reaches_every_search():
    broken = answer(1, 2, scores=[np.nan, 0.9])
    with pytest.raises(DetectionFailed, match="not from 0 to 1"):
        detector([search("plate", 0, CLASSES)], broken).detect(PICTURE)


def test_a_model_that_leaves_objects_out_says_so_to_each_search():
    full = replace(answer(1, 2), left_out=0.4)
    (filtered,) = of_label(one_by_one(lambda _: full), search("plate", 0, CLASSES))([PICTURE])
    assert (filtered.left_out, filtered.classes.tolist()) == (0.4, [2])


def test_every_class_of_a_model_without_labels_counts():
    actual = detector([search()], answer(1, 2, 3)).detect(PICTURE)
    assert (len(actual), actual.labelled) == (1, None)


def test_all_searches_together_have_a_time_limit():
    searches = [search(FACE, 0, CLASSES), search("plate", 0, CLASSES)]
    with pytest.raises(DetectorUnavailable):
        detector(searches, answer(1), seconds=-1).detect(PICTURE)


def test_each_search_is_counted():
    counted = []
    searches = [search(FACE, 0, CLASSES, 0.5), search("plate", 0, CLASSES, 0.5)]

    def count(one, detections):
        counted.append((one.label, len(detections), one.near(detections)))

    detector(searches, answer(1, 2, scores=[0.9, 0.52]), on_search=count).detect(PICTURE)
    assert counted == [(FACE, 1, 0), ("plate", 1, 1)]


def test_views_and_frames_are_joined_by_label():
    faces, plates = found(BOX), with_label(found(BOX), "plate")
    merged = merge_by_label(Detections.joined([faces, plates, plates]))
    assert sorted(merged.labels) == [FACE, "plate"]
    bridged = bridge_by_label([plates, with_label(Detections.none(), "plate"), plates])
    assert [one.labels.tolist() for one in bridged] == [["plate"]] * 3
    assert bridge_by_label([faces, faces])[0].labelled is None


def test_a_model_that_is_always_full_is_named_with_its_label_and_its_setting():
    full = replace(answer(2), left_out=0.9)
    too_many = TooMany("the model own.zip", "plates", "set VEIL_RULES")
    one = replace(search("plate", classes={2: "plate"}), too_many=too_many)

    with pytest.raises(
        DetectionFailed, match=r"model own\.zip returned .* plates .*: set VEIL_RULES"
    ):
        detector([one], full).detect(PICTURE)
