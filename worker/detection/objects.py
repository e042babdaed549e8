"""Detection of objects other than faces, such as licence plates."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.messages import FACE
from worker.detection.canvas import Pyramid
from worker.detection.detector import PassResult, ScaledDetector
from worker.detection.faces import Detections, box_sides
from worker.detection.passes import Pass, upright_passes
from worker.detection.presets import PassSettings
from worker.detection.tiled import TOO_MANY_FACES, Infer, ModelInput, TooMany

# The side, in pixels of a pass, of the smallest object that counts. Most smaller ones are false
# alarms: docs/plates.md has the figures.
LEAST_SIDE = 10


@dataclass(frozen=True)
class ObjectDetector(ScaledDetector):
    """A ScaledDetector of objects other than faces, in whose passes all detections count alike.

    What the passes over faces assume holds for CenterFace and heads only. So each pass detects
    objects of any size from `LEAST_SIDE` on, each detection that reaches the threshold counts, and
    no closer pass follows. The object is hidden wherever one of the passes has seen it: a network
    finds the edges of large objects in a coarse pass, and those of small ones in a fine pass.
    """

    def results(self, picture: Pyramid) -> list[PassResult]:
        """Return the results of all passes over `picture`.

        Turned passes repeat all of them, if the settings say ``always``, or ``doubt`` and the
        upright passes find nothing.
        """
        size = picture.width, picture.height
        upright = upright_passes(*size, self.settings, self.takes.fixed_size)
        results = self._run(picture, upright)
        is_found = any(len(one.strong) + len(one.cut) for one in results)
        turned = self.settings.turned
        if turned == "always" or (turned == "doubt" and not is_found):
            results += self._run(
                picture,
                [replace(plan, quarter_turns=turns) for turns in (1, 2, 3) for plan in upright],
            )
        return results

    def _widens(self, plan: Pass) -> bool:  # noqa: ARG002
        return True

    def _counts(self, found: Detections, plan: Pass) -> NDArray[np.bool_]:  # noqa: ARG002
        is_large_enough = box_sides(found.boxes_xyxy) >= LEAST_SIDE
        return np.asarray(is_large_enough & (found.scores >= self.score_threshold), bool)


def detector_of(
    label: str,
    infer: Infer,
    settings: PassSettings,
    score_threshold: float,
    takes: ModelInput,
    seconds: float = float("inf"),
    too_many: TooMany = TOO_MANY_FACES,
) -> ScaledDetector:
    """Return the detector of the objects of `label`."""
    kind = ScaledDetector if label == FACE else ObjectDetector
    return kind(infer, settings, score_threshold, takes, seconds, too_many)
