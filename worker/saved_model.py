"""A TensorFlow SavedModel with the Object Detection API's signature, loaded, checked and warmed.

Importing this module imports TensorFlow; only the commands that detect do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectorUnavailable, ModelInvalid
from worker import processors
from worker.detector import LANDMARKS, Detections, Pixels, Sightings
from worker.model import LEFT_OUT, digest_of, in_a_line, stated_threshold
from worker.tf import tf

OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
KEYPOINTS = "detection_keypoints"  # of the Object Detection API's keypoint models; taken where it is five a face
# As many detections as this, all above the threshold, are as many as a model returns that does not say how many it can.
USUAL_CAPACITY = 100  # max_detections_per_class of the Object Detection API
CONTRACT = "see 'Your own model' in the README"


class SavedModel:
    """A Model that is a SavedModel."""

    engine = "tensorflow"
    lanes = 1  # TensorFlow spreads one batch over all processors

    def __init__(self, folder: Path, digest: str | None = None) -> None:
        """Load and check the model in `folder`; ModelInvalid, in one line, if it can't be used.

        `digest` is known where the files are not the same on every machine; else it is that of the files.
        """
        if not (folder / "saved_model.pb").is_file():
            raise ModelInvalid(f"{folder} holds no saved_model.pb: set VEIL_MODEL to the folder of a SavedModel")
        self.folder = folder
        self.device = _claim_device()
        self.on_gpu = has_gpu()
        try:
            self._loaded = tf.saved_model.load(str(folder))  # keeps the variables alive
            self._call = self._loaded.signatures["serving_default"]
        except KeyError:
            raise ModelInvalid(f"{folder} has no signature serving_default: {CONTRACT}") from None
        except Exception as error:
            raise ModelInvalid(f"{folder} can't be loaded: {in_a_line(error)}") from None
        self._input, shape = _checked_input(folder, self._call)
        missing = [name for name in OUTPUTS if name not in self._call.structured_outputs]
        if missing:
            raise ModelInvalid(f"{folder} does not return {', '.join(missing)}: {CONTRACT}")
        keypoints = self._call.structured_outputs.get(KEYPOINTS)
        self._landmarks = keypoints is not None and keypoints.shape[-2:] == (LANDMARKS, 2)
        self._tells_left_out = LEFT_OUT in self._call.structured_outputs
        scores = self._call.structured_outputs["detection_scores"].shape
        self._capacity: int = (scores.rank and scores[-1]) or USUAL_CAPACITY
        self._one_at_a_time = shape[0] == 1
        self.fixed_size: tuple[int, int] | None = (shape[1], shape[2]) if shape[1] and shape[2] else None
        self.digest = digest or digest_of(folder)
        self.score_threshold = stated_threshold(folder)
        self._warm(folder)

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """One Detections, in pixels of the canvas, for each picture of uint8 RGB [n, height, width, 3].

        Raises DetectorUnavailable when the device's memory is full, which passes.
        """
        if self._one_at_a_time and len(batch) > 1:
            return [self.predict(batch[i : i + 1])[0] for i in range(len(batch))]
        try:
            returned = self._call(**{self._input: tf.constant(batch)})
            names = [*OUTPUTS, *[KEYPOINTS] * self._landmarks, *[LEFT_OUT] * self._tells_left_out]
            answer = {name: returned[name].numpy() for name in names}
        except tf.errors.ResourceExhaustedError:
            raise DetectorUnavailable(f"no memory left on the {self.device}: lower VEIL_BATCH_SIZE") from None
        side = np.array(batch.shape[1:3] * 2, np.float32)
        found = []
        for i in range(len(batch)):
            count = int(answer["num_detections"].reshape(-1)[i])
            boxes = answer["detection_boxes"][i, :count].astype(np.float32) * side
            scores = answer["detection_scores"][i, :count].astype(np.float32)
            if not len(boxes) == len(scores) == count:
                raise ValueError(f"the model counts {count} detections and returns {len(boxes)}")
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise ValueError("the model returned numbers that are not finite")
            boxes = boxes[:, [1, 0, 3, 2]]
            landmarks = answer[KEYPOINTS][i, :count, :, ::-1] * side[1::-1] if self._landmarks else None
            left_out = float(answer[LEFT_OUT][i]) if self._tells_left_out else self._left_out(scores)
            found.append(Detections(boxes, scores, Sightings.of(boxes, landmarks), left_out))
        return found

    def _left_out(self, scores: NDArray[np.float32]) -> float:
        """The highest score of a face that the model may have had no room for: its lowest, if it returned as many as
        it can. A model that returns one face at most is taken for one that looks for one.
        """
        is_full = self._capacity > 1 and len(scores) >= min(self._capacity, USUAL_CAPACITY)
        return float(scores.min()) if is_full else 0.0

    def _warm(self, folder: Path) -> None:
        """Run once: the first call plans the graph, and shows whether the answers have the right shape."""
        height, width = self.fixed_size or (256, 256)
        try:
            self.predict(np.zeros((1, height, width, 3), np.uint8))
        except Exception as error:
            raise ModelInvalid(f"{folder} fails on a black picture: {in_a_line(error)}") from None


def has_gpu() -> bool:
    """Whether TensorFlow sees one."""
    return bool(tf.config.list_physical_devices("GPU"))


def _claim_device() -> str:
    """The device in words. A GPU's memory grows as needed instead of being taken whole."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU ({processors.available()} cores)"
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            pass  # already running: a second model in one process shares what the first one claimed
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "unknown")
    return f"GPU ({name})"


def _checked_input(folder: Path, call: Any) -> tuple[str, list[int | None]]:
    """The name and shape of the one input, which must be uint8 [N, H, W, 3]."""
    inputs = call.structured_input_signature[1]
    if len(inputs) != 1:
        raise ModelInvalid(f"{folder} takes {len(inputs)} inputs, not one: {CONTRACT}")
    (name, spec), *_ = inputs.items()
    shape = spec.shape.as_list() if spec.shape.rank is not None else [None] * 4
    if spec.dtype != tf.uint8 or len(shape) != 4 or shape[3] not in (3, None):
        raise ModelInvalid(f"{folder} takes {spec.dtype.name} {shape}, not uint8 [N, H, W, 3]: {CONTRACT}")
    if shape[0] not in (1, None):
        raise ModelInvalid(f"{folder} takes batches of exactly {shape[0]}: export it with a batch of 1 or of any size")
    return name, shape
