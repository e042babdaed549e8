"""EfficientDet as a kind of network that can be trained."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tasks.errors import TrainingFailed
from training import checkpoint
from training.augmentation import Boxes, Example
from training.efficientdet import anchors
from training.efficientdet.losses import BoxLoss, FocalLoss
from training.efficientdet.model import SIZES, efficientdet, load_backbone
from training.network import LEAST_SCORE
from training.run import DESCRIPTION, Run
from worker.detection.faces import Detections
from worker.pixels import Pixels

anchors_of = cache(anchors.anchors)


@dataclass(frozen=True)
class EfficientDet:
    """An EfficientDet of the `size` d0 to d2 for the labels `classes`."""

    size: str
    classes: tuple[str, ...]
    multiple: int = anchors.MULTIPLE
    learning_rate: float = 0.002
    is_relative: bool = False
    titles: dict[str, str] = field(
        default_factory=lambda: {
            "faces": "focal loss, of the scores",
            "boxes": "Huber loss, of the boxes",
        }
    )

    @property
    def name(self) -> str:
        return f"EfficientDet-{self.size.upper()}"

    @property
    def side(self) -> int:
        return SIZES[self.size].side

    def build(self) -> Any:
        return efficientdet(self.size, len(self.classes))

    def start(self, model: Any, weights: str, seed: int) -> None:  # noqa: ARG002
        """Load `weights` into the backbone of `model`, or those of the finished run in that folder.

        A run must have the same classes. Raises TrainingFailed if they can't be loaded.
        """
        folder = Path(weights)
        if not (folder / DESCRIPTION).is_file():
            load_backbone(model, self.size, weights)
            return
        run = Run.load(folder)
        run.require_finished()
        if run.recipe.classes != self.classes:
            raise TrainingFailed(
                f"--start {folder} knows {', '.join(run.recipe.classes)}, and an EfficientDet "
                "can't get other classes: use --start default"
            )
        checkpoint.restore_finished(folder, model)

    def frozen(self, model: Any) -> list[Any]:  # noqa: ARG002
        return []

    def losses(self) -> dict[str, Any]:
        return {"faces": FocalLoss(), "boxes": BoxLoss()}

    def targets(self, example: Example, side: int) -> dict[str, anchors.Floats]:
        faces, ignored = _rows_first(example.faces), _rows_first(example.ignored)
        grid = anchors_of(side, side)
        found = anchors.targets(grid, faces, ignored, example.classes, len(self.classes))
        return {"faces": found.faces, "boxes": found.boxes}

    def detections(self, model: Any, pictures: anchors.Floats) -> list[Detections]:
        outputs = model.predict_on_batch(pictures)
        sides = np.array(pictures.shape[1:3], np.float32)
        boxes = anchors.decoded(outputs["boxes"], anchors_of(*pictures.shape[1:3]), np)
        boxes = anchors.bounded(boxes, sides, np)[..., [1, 0, 3, 2]].astype(np.float32)
        scores = 1 / (1 + np.exp(-outputs["faces"].clip(-60, 60)))
        return [_strongest(*each) for each in zip(boxes, scores, strict=True)]

    def finish(self, model: Any, pictures: Iterable[Pixels], folder: Path) -> None:
        """Do nothing: `save` needs the weights alone."""

    def save(self, model: Any, run: Path, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        from training.efficientdet import detections  # needs TensorFlow, whatever backend is used

        return {"difference": detections.save(model, folder)}


def _strongest(boxes: anchors.Floats, scores: anchors.Floats) -> Detections:
    """Return the detections of `boxes` [a, 4] with `scores` [a, classes], without doubles."""
    rows, kinds = np.nonzero(scores >= LEAST_SCORE)
    boxes, scores = boxes[rows], scores[rows, kinds]
    corner_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        corner_size.tolist(), scores.tolist(), kinds.tolist(), LEAST_SCORE, anchors.NMS_IOU
    )
    rows = np.asarray(kept, np.intp)
    return Detections(boxes[rows], scores[rows], classes=kinds[rows] + 1)


def _rows_first(boxes: Boxes) -> anchors.Floats:
    """Convert x1 y1 x2 y2 to y1 x1 y2 x2."""
    return np.ascontiguousarray(boxes[:, [1, 0, 3, 2]])
