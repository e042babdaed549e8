"""Pictures of any size with any number of faces: tiles, finer passes, and models of a capacity."""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import pytest

from tasks.errors import DetectionFailed, DetectorUnavailable
from worker.detection.canvas import MAX_CANVAS_SIDE
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections
from worker.detection.presets import PassSettings
from worker.detection.tiled import CLOSER_TILE_SIDE, MAX_CANVASES, ModelInput, one_by_one
from worker.settings import WorkerSettings

GROUND, FACE = 30, 255


@dataclass
class Squares:
    """A model that finds the bright squares of a canvas which have at least `least` pixels a side.

    It returns the `capacity` largest, and reports what it leaves out.
    """

    least: int = 4
    capacity: int = 1000
    shapes: list[tuple[int, int]] = field(default_factory=list)

    def infer(self, canvas):
        self.shapes.append(canvas.shape[:2])
        bright = cv2.inRange(canvas, (151, 0, 0), (255, 255, 255))
        outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        around = [cv2.boundingRect(outline) for outline in outlines]
        x, y, width, height = np.array(around, int).reshape(-1, 4).T
        large = np.minimum(width, height) >= self.least
        boxes = np.stack([x, y, x + width, y + height], axis=1)[large].astype(np.float32)
        order = np.argsort(-(width * height)[large], kind="stable")[: self.capacity]
        left_out = 0.9 if large.sum() > self.capacity else 0.0
        return Detections(boxes[order], np.full(len(order), 0.9, np.float32), left_out=left_out)


def detector(model, preset="balanced", seconds=float("inf"), **options):
    return ScaledDetector(
        one_by_one(model.infer),
        WorkerSettings(preset=preset, turned="never").pass_settings(),
        0.5,
        ModelInput(**options),
        seconds,
    )


def picture(width, height, faces):
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    for x, y, side in faces:
        pixels[y : y + side, x : x + side] = FACE
    return pixels


def spread(width, height, side, columns, rows):
    """Return `columns` x `rows` faces of `side`, as far apart as they can be."""
    return [
        (
            round((width - side) * (i + 0.5) / columns),
            round((height - side) * (j + 0.5) / rows),
            side,
        )
        for i in range(columns)
        for j in range(rows)
    ]


def hidden(found, faces):
    """Return how many of `faces` are covered by a box of `found`, except for up to three pixels."""
    boxes = found.boxes_xyxy
    return sum(
        bool(
            ((boxes[:, :2] <= (x + 3, y + 3)) & (boxes[:, 2:] >= (x + side - 3, y + side - 3)))
            .all(axis=1)
            .any()
        )
        for x, y, side in faces
    )


@pytest.mark.parametrize(
    ("width", "height", "preset"),
    [
        (12_000, 1_000, "balanced"),
        (12_000, 1_000, "thorough"),
        (700, 16_000, "balanced"),
        (6_500, 4_300, "balanced"),
        (30_000, 300, "balanced"),
        (5_000, 5_000, "balanced"),
    ],
)
def test_a_face_of_24_pixels_is_given_to_the_model_large_enough_whatever_the_size_of_the_picture(
    width, height, preset
):
    faces = spread(width, height, 24, 4, 3)
    model = Squares(least=9)

    found = detector(model, preset).detect(picture(width, height, faces))

    assert hidden(found, faces) == len(found) == len(faces)
    assert max(max(shape) for shape in model.shapes) <= MAX_CANVAS_SIDE


@pytest.mark.parametrize(
    ("width", "height"), [(4_000, 3_000), (4_608, 3_456), (4_240, 2_832), (1_200, 800), (300, 200)]
)
def test_photographs_of_up_to_12_megapixels_have_the_passes_of_the_preset_and_no_tiles(
    width, height
):
    model = Squares()
    detector(model).detect(picture(width, height, []))
    longer = [max(shape) for shape in model.shapes]
    assert len(longer) == len(set(longer)) <= 4
    assert max(longer) <= 1920


@pytest.mark.parametrize("side", [30, 90, 200, 390, 700, 1500])
def test_a_face_of_any_size_counts_once_wherever_the_edges_of_tiles_are(side):
    random = np.random.default_rng(side)
    for _ in range(3):
        x, y = (int(random.integers(0, length - side)) for length in (9_000, 1_600))
        found = detector(Squares()).detect(picture(9_000, 1_600, [(x, y, side)]))
        assert len(found) == 1
        assert np.abs(found.boxes_xyxy[0] - (x, y, x + side, y + side)).max() < 30


def test_a_small_model_of_fixed_size_gets_tiles_where_the_whole_picture_is_too_coarse():
    faces = spread(4_000, 3_000, 24, 5, 4)
    model = Squares(least=9)

    found = detector(model, fixed_size=(512, 640)).detect(picture(4_000, 3_000, faces))

    assert hidden(found, faces) == len(found) == len(faces)
    assert set(model.shapes) == {(512, 640)}


@pytest.mark.parametrize("capacity", [20, 100])
@pytest.mark.parametrize("fixed_size", [None, (640, 960)])
def test_a_model_that_returns_only_so_many_faces_is_asked_again_of_smaller_parts(
    capacity, fixed_size
):
    faces = spread(960, 640, 12, 24, 16)
    model = Squares(capacity=capacity)

    found = detector(model, fixed_size=fixed_size).detect(picture(960, 640, faces))

    assert len(found) == len(faces)
    assert hidden(found, faces) == len(faces)


def test_a_large_face_among_more_small_ones_than_the_model_returns_is_found_once():
    small = [
        face
        for face in spread(960, 640, 12, 24, 16)
        if not (300 < face[0] < 620 and 150 < face[1] < 470)
    ]
    large = (330, 180, 260)

    found = detector(Squares(capacity=20)).detect(picture(960, 640, [*small, large]))

    assert len(found) == len(small) + 1
    assert hidden(found, [*small, large]) == len(small) + 1


def test_a_crowd_of_more_faces_than_the_model_returns_is_looked_at_more_closely():
    """The faces are too small for the passes that a picture of this size gets by itself."""
    faces = spread(4_000, 2_000, 14, 60, 30)
    model = Squares(least=11, capacity=50)

    found = detector(model).detect(
        picture(4_000, 2_000, [*faces, *spread(4_000, 2_000, 40, 10, 9)])
    )

    assert hidden(found, faces) == len(faces)


@pytest.mark.parametrize(("width", "height"), [(2000, 3000), (4000, 3000), (6000, 1500)])
def test_a_crowd_of_small_faces_that_the_finest_pass_hardly_sees_is_looked_at_more_closely(
    width, height
):
    @dataclass
    class Doubtful(Squares):
        def infer(self, canvas):
            found = super().infer(canvas)
            sides = found.boxes_xyxy[:, 2] - found.boxes_xyxy[:, 0]
            return replace(found, scores=np.where(sides < 18, 0.4, 0.9).astype(np.float32))

    faces = spread(width, height, 24, 5, 4)
    assert hidden(detector(Doubtful()).detect(picture(width, height, faces)), faces) == len(faces)


def test_only_the_part_with_the_crowd_is_looked_at_more_closely():
    crowd = [(100 + 40 * i, 100 + 40 * j, 24) for i in range(5) for j in range(4)]
    model = Squares()

    found = detector(model).detect(picture(4_000, 3_000, crowd))

    assert hidden(found, crowd) == len(crowd)
    whole, closer = model.shapes[:4], model.shapes[4:]
    assert 1 <= len(closer) <= 2
    assert max(map(max, closer)) <= CLOSER_TILE_SIDE < max(map(max, whole))


@pytest.mark.parametrize(("width", "height"), [(5_333, 3_000), (6_400, 4_000), (9_000, 6_000)])
def test_a_large_picture_gets_more_passes_and_none_less(width, height):
    model = Squares()

    detector(model).detect(picture(width, height, []))

    longer_sides = [max(shape) for shape in model.shapes]
    assert longer_sides[:3] == [256, 512, 960]
    assert len(longer_sides) > 4


def test_a_model_that_always_returns_as_many_as_it_can_publishes_nothing():
    def infer(canvas):
        box = np.array([[1, 1, 9, 9]], np.float32)
        return Detections(box, np.array([0.9], np.float32), left_out=0.9)

    looking = ScaledDetector(
        one_by_one(infer), PassSettings((640,), 2, 640, mirrored=False, turned="never"), 0.5
    )
    with pytest.raises(DetectionFailed, match=r"as many as it can.*VEIL_SCORE_THRESHOLD"):
        looking.detect(picture(640, 480, []))


def test_faces_left_out_below_the_threshold_do_not_matter():
    calls = []

    def infer(canvas):
        calls.append(canvas.shape)
        return Detections(
            np.array([[1, 1, 9, 9]], np.float32), np.array([0.9], np.float32), left_out=0.49
        )

    looking = ScaledDetector(
        one_by_one(infer), PassSettings((640,), 2, 640, mirrored=False, turned="never"), 0.5
    )
    assert len(looking.detect(picture(640, 480, []))) == 1
    assert len(calls) == 1


def test_all_passes_over_a_picture_have_a_limit_together():
    looking = detector(Squares(), seconds=-1.0)
    with pytest.raises(DetectorUnavailable, match="passes"):
        looking.detect(picture(64, 64, []))


def test_no_picture_is_looked_at_in_more_than_a_thousand_parts():
    model = Squares(capacity=2)
    with pytest.raises(DetectionFailed, match="as many faces as it can"):
        detector(model).detect(picture(400, 400, spread(400, 400, 8, 40, 40)))
    assert len(model.shapes) <= MAX_CANVASES
