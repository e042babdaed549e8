"""The warm-up gives a model the batches that usual pictures become."""

import numpy as np
import pytest

from tasks.errors import DetectorUnavailable
from worker.detection import warm_up
from worker.detection.batching import Batcher
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections
from worker.detection.model import DeviceFull
from worker.detection.presets import PRESETS
from worker.detection.tiled import CLOSER_TILE_SIDE, ModelInput


class Model:
    """A model that keeps the shapes of its batches, on a device with memory for `pixels`."""

    def __init__(self, pixels=float("inf")):
        self.shapes = []
        self._pixels = pixels

    def predict(self, batch):
        self.shapes.append(batch.shape)
        if batch[..., 0].size > self._pixels:
            raise DeviceFull("no memory left")
        return [Detections.none() for _ in batch]


def detector(infer, fixed_size=None):
    takes = ModelInput(fixed_size, at_once=8, has_few_shapes=True)
    return ScaledDetector(infer, PRESETS["balanced"], 0.5, takes)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(warm_up, "USUAL_PICTURES", ((400, 300),))


def warmed(model, batch_size=8, fixed_size=None):
    batcher = Batcher(model.predict, batch_size, 0.001, 60)
    warm_up.warm_up(detector(batcher.infer, fixed_size), batch_size)
    batcher.close()


def test_usual_pictures_have_few_shapes_upright_and_turned():
    shapes = warm_up.usual_shapes(detector(lambda canvases: []))

    assert shapes[0] == (1280, 1920, 3)
    assert (CLOSER_TILE_SIDE, CLOSER_TILE_SIDE, 3) in shapes
    assert {(width, height, 3) for height, width, _ in shapes} == set(shapes)
    assert len(shapes) <= 20
    assert [np.prod(shape) for shape in shapes] == sorted(map(np.prod, shapes), reverse=True)


def test_a_model_of_one_size_has_one_shape():
    assert warm_up.usual_shapes(detector(lambda canvases: [], (96, 160))) == [(96, 160, 3)]


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [2, 1]), (8, [8, 4, 2, 1]), (6, [6, 4, 2, 1])]
)
def test_batches_of_each_power_of_two_are_warmed_up(largest, sizes):
    assert warm_up.batch_sizes(largest) == sizes


def test_each_shape_is_warmed_up_with_each_size(small):
    model = Model()

    warmed(model)

    by_shape = {}
    for count, *shape in model.shapes:
        by_shape.setdefault(tuple(shape), []).append(count)
    assert len(by_shape) > 1
    assert set(map(tuple, by_shape.values())) == {(8, 4, 2, 1)}


def test_a_device_without_memory_for_the_largest_batches_is_found_out(small):
    model = Model(3 * 640 * 512)

    warmed(model)

    refused = [shape for shape in model.shapes if np.prod(shape[:3]) > 3 * 640 * 512]
    assert [count for count, *_ in refused] == [8, 4, 4]


def test_a_model_that_does_not_answer_in_time_can_still_start(small, capsys):
    def late(canvases):
        raise DetectorUnavailable("no answer")

    warm_up.warm_up(detector(late), 8)

    printed = capsys.readouterr().out
    assert "a shape is not warmed up" in printed
    assert "0 of " in printed


def test_a_device_that_needs_very_long_is_left_to_the_pictures(small, monkeypatch):
    monkeypatch.setattr(warm_up, "MAX_SECONDS", -1)
    model = Model()

    warmed(model)

    assert model.shapes == []
