"""The known-answer test: answers of a model that let a worker start, and others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import DetectorUnavailable, ModelInvalid
from worker.detection.centerface import known_face
from worker.detection.centerface.default import SCORE_THRESHOLD
from worker.detection.faces import Detections, Sightings

ENGINES = sorted(known_face.TOLERANCES)


class Recorded:
    """A model that answers as recorded, after `change`, of boxes, scores and landmarks."""

    folder = Path("models") / "centerface"
    name = str(folder)
    device = "CPU"
    fixed_size = None
    score_threshold = SCORE_THRESHOLD

    def __init__(
        self, engine, change=lambda boxes, scores, landmarks: (boxes, scores, landmarks), blank=None
    ):
        self.engine = engine
        self._change = change
        self._blank = blank

    def predict(self, batch):
        (canvas,) = batch
        for view in known_face.VIEWS:
            if np.array_equal(canvas, view.canvas(self.fixed_size)[0]):
                recorded = known_face.answers()[self.engine][view.name]
                names = ("box_xyxy", "score", "landmarks")
                boxes, scores, landmarks = self._change(
                    *(np.array([recorded[name]], np.float32) for name in names)
                )
                return [Detections(boxes, scores, Sightings.of(boxes, landmarks))]
        assert (canvas == canvas[0, 0]).all()
        return [Detections.none() if self._blank is None else self._blank]


def test_the_photograph_is_small_and_stands_where_no_other_order_of_corners_fits():
    assert known_face.PHOTOGRAPH.stat().st_size < 40_000
    assert known_face.PHOTOGRAPH.with_name("known_face.NOTICE.txt").is_file()
    height, width = known_face.photograph().shape[:2]
    assert height % 64 == width % 64 == 0
    for engine in ENGINES:
        assert known_face.answers()[engine].keys() == {view.name for view in known_face.VIEWS}
        for recorded in known_face.answers()[engine].values():
            assert recorded["score"] > 0.8


@pytest.mark.parametrize("engine", ENGINES)
def test_the_recorded_answer_passes_and_so_does_one_within_the_tolerance(engine):
    tolerance = known_face.TOLERANCES[engine]

    def nearly(boxes, scores, landmarks):
        off = (
            0.8
            * tolerance.position
            * np.sqrt((boxes[0, 2] - boxes[0, 0]) * (boxes[0, 3] - boxes[0, 1]))
        )
        return boxes + off, scores - 0.8 * tolerance.score, landmarks - off

    known_face.check_default(Recorded(engine))
    known_face.check_default(Recorded(engine, nearly))


def doubled(boxes, scores, landmarks):
    return (
        np.concatenate([boxes, boxes]),
        np.concatenate([scores, scores]),
        np.concatenate([landmarks, landmarks]),
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda boxes, scores, landmarks: (boxes, scores - 0.05, landmarks), "score 0.8"),
        (lambda boxes, scores, landmarks: (boxes, scores * 0, landmarks), "0 faces"),
        (lambda boxes, scores, landmarks: (boxes[:0], scores[:0], landmarks[:0]), "0 faces"),
        (doubled, "2 faces"),
        (
            lambda boxes, scores, landmarks: (boxes + 8, scores, landmarks),
            "box_xyxy of the known face off by 8.0",
        ),
        (
            lambda boxes, scores, landmarks: (boxes, scores, landmarks[:, ::-1]),
            "landmarks of the known face off",
        ),
        (
            lambda boxes, scores, landmarks: (boxes, scores, landmarks * np.nan),
            "landmarks of the known face off",
        ),
        (
            lambda boxes, scores, landmarks: (boxes * 100, scores, landmarks),
            "shares of the picture",
        ),
        (lambda boxes, scores, landmarks: (boxes, scores * np.nan, landmarks), "from 0 to 1"),
    ],
)
def test_a_default_model_that_answers_otherwise_is_refused_in_one_line(engine, change, said):
    with pytest.raises(ModelInvalid, match=said) as raised:
        known_face.check_default(Recorded(engine, change))

    assert str(Recorded.folder) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_default_model_that_finds_a_face_in_nothing_is_refused(engine):
    blank = Detections(np.array([[10, 10, 60, 60]], np.float32), np.array([0.9], np.float32))

    with pytest.raises(ModelInvalid, match="a face in a blank picture"):
        known_face.check_default(Recorded(engine, blank=blank))


def test_a_default_model_whose_threshold_was_changed_is_refused():
    model = Recorded("litert")
    model.score_threshold = 0.9

    with pytest.raises(ModelInvalid, match=r"score_threshold is 0\.9, not 0\.17"):
        known_face.check_default(model)


def test_an_error_that_passes_is_not_called_the_model_s():
    class Full(Recorded):
        def predict(self, batch):
            raise DetectorUnavailable("no memory left")

    for check in (known_face.check_default, lambda model: known_face.try_own(model, 0.5)):
        with pytest.raises(DetectorUnavailable):
            check(Full("litert"))


def as_returned(order):
    """Return a change of boxes to those of a model whose four numbers are in another `order`."""

    def change(boxes, scores, landmarks):
        side = np.array([256, 192] * 2)
        x1, y1, x2, y2 = (boxes / side).T
        numbers = {
            "x1 y1 x2 y2": (x1, y1, x2, y2),
            "x y width height": (x1, y1, x2 - x1, y2 - y1),
            "y x height width": (y1, x1, y2 - y1, x2 - x1),
            "centre x, centre y, width, height": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
            "centre y, centre x, height, width": ((y1 + y2) / 2, (x1 + x2) / 2, y2 - y1, x2 - x1),
        }[order]
        a, b, c, d = numbers  # taken for y1 x1 y2 x2
        return (
            np.stack([b, a, d, c], axis=1).astype(np.float32) * side.astype(np.float32),
            scores,
            None,
        )

    return change


@pytest.mark.parametrize("order", known_face.READINGS)
def test_a_model_of_ones_own_with_its_corners_in_another_order_is_refused(order):
    with pytest.raises(ModelInvalid, match=f"as {order}: they must be y1 x1 y2 x2"):
        known_face.try_own(Recorded("tensorflow", as_returned(order)), 0.5)


def test_a_model_of_ones_own_that_finds_the_face_is_taken_without_a_word(capsys):
    known_face.try_own(Recorded("tensorflow"), 0.5)

    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda boxes, scores, landmarks: (boxes[:0], scores[:0], landmarks[:0]),
        lambda boxes, scores, landmarks: (boxes, scores * 0, landmarks),
        lambda boxes, scores, landmarks: (boxes + 60, scores, landmarks + 60),
    ],
)
def test_a_model_of_ones_own_that_does_not_find_it_is_taken_with_a_warning(change, capsys):
    known_face.try_own(Recorded("tensorflow", change), 0.5)

    (line,) = capsys.readouterr().out.splitlines()
    assert "the model does not find the known face" in line


class Everywhere:
    """A model that answers the same boxes to everything; `scores` has those of each call."""

    name, engine, device, fixed_size = "own.zip", "tensorflow", "CPU", (192, 256)

    def __init__(self, *scores):
        self._scores = list(scores)

    def predict(self, batch):
        scores = np.array(self._scores.pop(0), np.float32)
        boxes = np.tile(np.array([[10, 10, 30, 30]], np.float32), (len(scores), 1))
        return [Detections(boxes, scores)]


@pytest.mark.parametrize("scores", [[0.9], [0.9, 0.7]])
def test_a_model_that_answers_the_same_for_everything_is_refused(scores):
    with pytest.raises(ModelInvalid, match=r"^own\.zip answers the same for a photograph"):
        known_face.try_own(Everywhere(scores, scores, scores), 0.5)


def test_a_class_without_a_label_is_refused_before_a_picture_comes():
    class Labelled(Recorded):
        def predict(self, batch):
            return [
                replace(found, classes=np.full(len(found), 2)) for found in super().predict(batch)
            ]

    with pytest.raises(ModelInvalid, match=r"returns the class 2, which its veil\.json does not"):
        known_face.try_own(Labelled("tensorflow"), 0.5, {1: "FACE"})
    known_face.try_own(Labelled("tensorflow"), 0.5, {1: "plate", 2: "FACE"})


class Covering(Recorded):
    """A model that also answers two boxes, which cover `share` of the upright photograph."""

    def __init__(self, share):
        def change(boxes, scores, landmarks):
            middle = 256 * share / 2
            more = [[0, 0, middle, 192], [middle, 0, 2 * middle, 192]]
            return (
                np.concatenate([boxes, np.array(more, np.float32)]),
                np.concatenate([scores, np.array([0.5, 0.5], np.float32)]),
                None,
            )

        super().__init__("tensorflow", change)


def test_a_model_that_takes_nearly_all_of_the_photograph_for_faces_is_refused():
    with pytest.raises(ModelInvalid, match=r"covers 90% of a photograph .*more than 80%") as raised:
        known_face.try_own(Covering(0.9), 0.5)

    assert len(str(raised.value).splitlines()) == 1


def test_a_model_of_large_boxes_is_taken_and_so_is_one_that_is_unsure_of_them():
    known_face.try_own(Covering(0.75), 0.5)
    known_face.try_own(Covering(0.9), 0.6)


def test_a_model_that_only_errs_in_a_blank_picture_is_taken():
    known_face.try_own(Everywhere([0.9, 0.6], [0.9, 0.7], [0.8]), 0.5)
