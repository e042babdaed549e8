"""A TensorFlow SavedModel with the Object Detection API's signature, loaded, checked and warmed.

Importing this module imports TensorFlow; only the commands that detect do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed, DetectorUnavailable, ModelInvalid
from worker.detection.centerface.maps import NOT_FINITE
from worker.detection.faces import LANDMARKS, Detections, Sightings
from worker.detection.model import LEFT_OUT, digest_of, in_a_line, stated_threshold
from worker.detection.tf import tf
from worker.pixels import Pixels
from worker.process import processors

OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
# of the Object Detection API's keypoint models; taken where it is five a face
KEYPOINTS = "detection_keypoints"
# As many detections as this, all above the threshold, are as many as a model returns that does not
# say how many it can.
USUAL_CAPACITY = 100  # max_detections_per_class of the Object Detection API
CONTRACT = "see 'Your own model' in the README"


class SavedModel:
    """A Model that is a SavedModel."""

    engine = "tensorflow"
    lanes = 1  # TensorFlow spreads one batch over all processors

    def __init__(
        self, folder: Path, digest: str | None = None, score_threshold: float | None = None
    ) -> None:
        """Load and check the model in `folder`; ModelInvalid, in one line, if it can't be used.

        `digest` is known where the files are not the same on every machine; else it is that of the
        files. `score_threshold` is used in place of the model's own to tell whether
        `num_detections` leaves out a face.
        """
        if not (folder / "saved_model.pb").is_file():
            raise ModelInvalid(
                f"{folder} holds no saved_model.pb: set VEIL_MODEL to the folder of a SavedModel"
            )
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
        self.fixed_size: tuple[int, int] | None = (
            (shape[1], shape[2]) if shape[1] and shape[2] else None
        )
        self.digest = digest or digest_of(folder)
        self.score_threshold = stated_threshold(folder)
        self._least_face = score_threshold or self.score_threshold
        self._warm(folder)

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """One Detections, in pixels of the canvas, for each picture of uint8 RGB [n, height, width,
        3].

        Raises DetectorUnavailable when the device's memory is full, which passes, and
        DetectionFailed when the answer breaks the contract.
        """
        if self._one_at_a_time and len(batch) > 1:
            return [self.predict(batch[i : i + 1])[0] for i in range(len(batch))]
        try:
            returned = self._call(**{self._input: tf.constant(batch)})
            answer = self._arrays(returned, len(batch))
        except tf.errors.ResourceExhaustedError:
            raise DetectorUnavailable(
                f"no memory left on the {self.device}: lower VEIL_BATCH_SIZE"
            ) from None
        except tf.errors.InvalidArgumentError as error:
            if NOT_FINITE in str(error):
                raise DetectionFailed(NOT_FINITE) from None
            raise
        side = np.array(batch.shape[1:3] * 2, np.float32)
        found = []
        for i, count in enumerate(self._counts(answer)):
            boxes = (answer["detection_boxes"][i, :count].astype(np.float32) * side)[
                :, [1, 0, 3, 2]
            ]
            scores = answer["detection_scores"][i, :count].astype(np.float32)
            landmarks = None
            if self._landmarks:
                landmarks = answer[KEYPOINTS][i, :count, :, ::-1].astype(np.float32) * side[1::-1]
            for name, values in ((OUTPUTS[0], boxes), (KEYPOINTS, landmarks)):
                if values is not None and not np.isfinite(values).all():
                    raise DetectionFailed(
                        f"the model returned numbers that are not finite in {name}"
                    )
            left_out = (
                float(answer[LEFT_OUT][i]) if self._tells_left_out else self._left_out(scores)
            )
            found.append(Detections(boxes, scores, Sightings.of(boxes, landmarks), left_out))
        return found

    def _left_out(self, scores: NDArray[np.float32]) -> float:
        """Return the highest score of a face that the model may have had no room for.

        It is the lowest score returned, if the model returned as many faces as it can. A model that
        returns one face at most is taken for one that looks for one.
        """
        is_full = self._capacity > 1 and len(scores) >= min(self._capacity, USUAL_CAPACITY)
        return float(scores.min()) if is_full else 0.0

    def _arrays(self, returned: Mapping[str, Any], pictures: int) -> dict[str, NDArray[Any]]:
        """Return the outputs as arrays; DetectionFailed if one has another shape or type than the
        contract says.
        """
        faces = returned["detection_scores"].shape[-1:].as_list() or [None]
        shapes = {
            "detection_boxes": [pictures, *faces, 4],
            "detection_scores": [pictures, *faces],
            "detection_classes": [pictures, *faces],
            "num_detections": [pictures],
        }
        if self._landmarks:
            shapes[KEYPOINTS] = [pictures, *faces, LANDMARKS, 2]
        if self._tells_left_out:
            shapes[LEFT_OUT] = [pictures]
        arrays = {}
        for name, shape in shapes.items():
            value = returned[name]
            is_count = name in ("detection_classes", "num_detections")
            is_number = value.dtype.is_floating or (is_count and value.dtype.is_integer)
            actual = value.shape.as_list()
            if name == "num_detections" and actual in (
                [pictures, 1],
                [] if pictures == 1 else None,
            ):
                actual = [pictures]
            if not is_number or actual != shape:
                kind = "numbers" if is_count else "floats"
                raise DetectionFailed(
                    f"the model returned {name} as {value.dtype.name} {actual}, not {kind} {shape}"
                )
            arrays[name] = value.numpy()
        return arrays

    def _counts(self, answer: Mapping[str, NDArray[Any]]) -> list[int]:
        """Return how many detections each picture has; DetectionFailed if the arrays say
        otherwise.
        """
        scores, stated = answer["detection_scores"], answer["num_detections"].reshape(-1)
        for name in ("detection_scores", "detection_classes"):
            if not np.isfinite(answer[name].astype(np.float32)).all():
                raise DetectionFailed(f"the model returned numbers that are not finite in {name}")
        counts = []
        for number, row in zip(stated.tolist(), scores, strict=True):
            if not (number >= 0 and number == np.floor(number)):  # not so for NaN either
                raise DetectionFailed(
                    f"the model counts {number} detections: num_detections must be a whole number"
                )
            if number > len(row):
                raise DetectionFailed(
                    f"the model counts {number:.0f} detections and returns {len(row)}"
                )
            count = int(number)
            if (row[count:] >= self._least_face).any():
                raise DetectionFailed(
                    f"num_detections counts {count}, but detection_scores has a face beyond them: {CONTRACT}"
                )
            counts.append(count)
        return counts

    def _warm(self, folder: Path) -> None:
        """Run once: the first call plans the graph, and shows whether the answers have the right
        shape.
        """
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
        raise ModelInvalid(
            f"{folder} takes {spec.dtype.name} {shape}, not uint8 [N, H, W, 3]: {CONTRACT}"
        )
    if shape[0] not in (1, None):
        raise ModelInvalid(
            f"{folder} takes batches of exactly {shape[0]}: export it with a batch of 1 or of any size"
        )
    return name, shape
