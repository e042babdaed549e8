"""Detection of other objects than faces: all passes count alike, and none follows."""

import numpy as np
import pytest

from tasks.messages import FACE
from tests.drawn import found
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections
from worker.detection.objects import LEAST_SIDE, ObjectDetector, detector_of
from worker.detection.presets import PRESETS, PassSettings
from worker.detection.tiled import ANY_SIZE, one_by_one

PICTURE = np.full((384, 512, 3), 90, np.uint8)
SCALES = (128, 256, 512)
PLATE = (64, 64, 256, 128)  # in pixels of the picture


class Model:
    """A model that finds `boxes`, of the picture's pixels, in canvases of `sides` alone."""

    def __init__(self, *boxes, sides=SCALES, score=0.5):
        self.widths = []
        self._boxes, self._sides, self._score = boxes, sides, score

    def infer(self, canvas):
        height, width = canvas.shape[:2]
        self.widths.append(width)
        if width not in self._sides or width < height:
            return Detections.none()
        factor = width / PICTURE.shape[1]
        boxes = [tuple(factor * side for side in box) for box in self._boxes]
        return found(*boxes, scores=[self._score] * len(boxes))


def detector(model, kind=ObjectDetector, turned="never", threshold=0.4):
    settings = PassSettings(SCALES, 1.0, 512, mirrored=False, turned=turned, closer_to=1920)
    return kind(one_by_one(model.infer), settings, threshold)


@pytest.mark.parametrize("side", SCALES)
def test_a_detection_of_any_pass_counts_from_the_threshold_on(side):
    seen = detector(Model(PLATE, sides=[side])).detect(PICTURE)
    assert seen.boxes_xyxy == pytest.approx(np.array([PLATE]), abs=8)
    assert not len(detector(Model(PLATE, sides=[side], score=0.39)).detect(PICTURE))


def test_the_coarsest_pass_over_faces_is_not_believed_so_easily():
    model = Model(PLATE, sides=SCALES[:1])
    assert not len(detector(model, ScaledDetector).detect(PICTURE))


def test_an_object_is_hidden_wherever_a_pass_has_seen_it():
    large, inner = PLATE, (100, 72, 230, 120)

    class Disagreeing(Model):
        def infer(self, canvas):
            self._boxes = [large] if canvas.shape[1] == SCALES[0] else [inner]
            return super().infer(canvas)

    seen = detector(Disagreeing()).detect(PICTURE)
    assert len(seen) == 1
    assert len(seen.sightings) == len(SCALES)
    assert seen.boxes_xyxy == pytest.approx(np.array([large]), abs=8)


@pytest.mark.parametrize(("side", "objects"), [(LEAST_SIDE - 1, 0), (LEAST_SIDE + 1, 1)])
def test_what_is_too_small_in_every_pass_is_a_false_alarm(side, objects):
    seen = detector(Model((100, 100, 100 + side, 100 + side))).detect(PICTURE)
    assert len(seen) == objects


def test_no_closer_pass_follows_at_a_doubtful_detection():
    picture = np.full((1500, 2000, 3), 90, np.uint8)
    canvases = []

    def infer(given):
        canvases.extend(given)
        return [found((30, 30, 42, 42), scores=[0.41]) for _ in given]

    settings = PRESETS["balanced"]
    ObjectDetector(infer, settings, 0.4).detect(picture)
    assert len(canvases) == len(settings.scales)


@pytest.mark.parametrize(
    ("turned", "boxes", "passes"),
    [
        ("never", [], 3),
        ("doubt", [PLATE], 3),
        ("doubt", [], 12),
        ("always", [PLATE], 12),
    ],
)
def test_turned_passes_are_made_as_the_settings_say(turned, boxes, passes):
    model = Model(*boxes)
    detector(model, turned=turned).detect(PICTURE)
    assert len(model.widths) == passes


def test_faces_have_a_detector_of_their_own():
    settings = PRESETS["balanced"]
    for label, kind in ((FACE, ScaledDetector), ("plate", ObjectDetector)):
        made = detector_of(label, one_by_one(Model().infer), settings, 0.4, ANY_SIZE)
        assert type(made) is kind
        assert (made.settings, made.score_threshold, made.seconds) == (settings, 0.4, float("inf"))
