"""The measurement of a network on the split val while it is trained."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.augmentation import Example, fitted
from training.batches import Batch, Batches, joined
from training.evaluation.scoring import Judged, average_precision, judged
from worker.detection.faces import Detections

MOST_PICTURES = 64  # so that a checkpoint takes seconds


@dataclass(frozen=True)
class Measured:
    """The mean loss, and the average precision at an IoU of 0.5 over all labels.

    The precision is None if the pictures have no objects, or if the loss is not a number.
    """

    loss: float
    ap50: float | None


@dataclass(frozen=True)
class Validation:
    """Up to MOST_PICTURES pictures of the split val, seen whole in squares of the training.

    The measurement is a fast one, in one pass: `veil train evaluate` measures the passes of a
    worker.
    """

    batches: Batches

    def measure(self, model: Any) -> Measured:
        """Return how well `model` does on the pictures."""
        losses, pictures = [], []
        for examples in self._examples():
            batch = self._batch(examples)
            result = model.test_on_batch(batch.pictures, batch.truth, return_dict=True)
            losses.append(float(result["loss"]))
            if not math.isfinite(losses[-1]):
                return Measured(losses[-1], None)
            found = self.batches.network.detections(model, batch.pictures)
            for example, detections in zip(examples, found, strict=True):
                pictures += self._judged(example, detections)
        return Measured(float(np.mean(losses)), average_precision(pictures)["AP50"])

    def _examples(self) -> Iterator[list[Example]]:
        """Yield the pictures in batches."""
        count, size = len(self.batches.pictures), self.batches.size
        chosen = range(0, count, math.ceil(count / MOST_PICTURES))
        for first in range(0, len(chosen), size):
            yield [
                fitted(self.batches.labelled(self.batches.pictures[number]), self.batches.side)
                for number in chosen[first : first + size]
            ]

    def _batch(self, examples: list[Example]) -> Batch:
        network, side = self.batches.network, self.batches.side
        return joined([(example.pixels, network.targets(example, side)) for example in examples])

    def _judged(self, example: Example, found: Detections) -> list[Judged]:
        """Return the detections of each label, matched with its objects."""
        # Those of a network that the training ruins may have no place in a picture.
        found = found[np.isfinite(found.boxes_xyxy).all(axis=1)]
        classes = np.ones(len(found), np.intp) if found.classes is None else found.classes
        return [
            judged(
                example.faces[example.classes == number],
                example.ignored,
                found[classes == number + 1],
            )
            for number in range(len(self.batches.dataset.labels))
        ]
