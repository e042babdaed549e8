"""The measurement of a network on the split val: what its detections count."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pip install 'veil[worker,training]'")

from training.augmentation import Example
from training.evaluation.scoring import average_precision
from training.validation import Validation
from worker.detection.faces import Detections

FACE = (10.0, 10.0, 50.0, 60.0)
RUINED = (-np.inf, -np.inf, np.nan, np.nan)


@pytest.mark.parametrize(("box", "ap50"), [(FACE, 1), (RUINED, 0)])
def test_boxes_that_are_not_finite_find_nothing(box, ap50):
    face = np.array([FACE], np.float32)
    example = Example(np.zeros((64, 64, 3), np.uint8), face, face[:0], np.zeros(1, np.intp))
    batches = SimpleNamespace(dataset=SimpleNamespace(labels=("FACE",)))
    found = Detections(np.array([box], np.float32), np.array([0.9], np.float32))

    judged = Validation(batches)._judged(example, found)

    assert average_precision(judged)["AP50"] == ap50
