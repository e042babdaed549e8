"""TensorFlow SavedModels with the Object Detection API's signature: loaded, checked and run once.

Importing this module imports TensorFlow, so only commands that detect do so.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DetectionFailed, DetectorUnavailable, ModelInvalid
from worker.detection.centerface.maps import NOT_FINITE
from worker.detection.faces import LANDMARKS, Detections, Sightings
from worker.detection.model import (
    LEFT_OUT,
    DeviceFull,
    digest_of,
    in_a_line,
    require_graph,
    stated_threshold,
)
from worker.detection.tf import tf
from worker.pixels import Pixels
from worker.process import processors

BOXES, SCORES, CLASSES = "detection_boxes", "detection_scores", "detection_classes"
COUNT = "num_detections"
OUTPUTS = (BOXES, SCORES, CLASSES, COUNT)
# The output of the Object Detection API's keypoint models. It is used if a face has LANDMARKS.
KEYPOINTS = "detection_keypoints"
# A model that does not state its capacity is full if it returns this many detections, all above the
# threshold. It is max_detections_per_class of the Object Detection API.
USUAL_CAPACITY = 100
# The sides, in pixels, of the black picture that a model of any size is tried on.
TRIAL_SIZE = (256, 256)
CONTRACT = "see docs/models.md"
# TensorFlow's threads do not survive a fork: in a child of this process, calls never return.
PROCESS = os.getpid()

Arrays = Mapping[str, NDArray[Any]]


class SavedModel:
    """A Model that is a TensorFlow SavedModel."""

    engine = "tensorflow"

    def __init__(
        self,
        folder: Path,
        digest: str | None = None,
        score_threshold: float | None = None,
        name: str | None = None,
        on_gpu: bool | None = None,
    ) -> None:
        """Load and check the model in `folder`.

        `digest` names a model whose files are not the same on every machine; by default it is
        computed from the files. `score_threshold` replaces the model's own where it is checked that
        `num_detections` leaves out no face. `name` is the model's name in messages, by default the
        folder. `on_gpu` says whether batches are prepared as for a GPU, by default if there is one.
        Raises ModelInvalid, in one line, if the model can't be used, and DetectorUnavailable in a
        process that was forked after TensorFlow was loaded.
        """
        if os.getpid() != PROCESS:
            raise DetectorUnavailable(
                "this process was forked after TensorFlow was loaded, where TensorFlow can't run: "
                "start processes with spawn"
            )
        require_graph(folder)
        self.folder = folder
        self.name = name or str(folder)
        self.device = _claim_device()
        self.on_gpu = has_gpu() if on_gpu is None else on_gpu
        # TensorFlow spreads one batch over all processors. A GPU computes one while another is
        # copied to it.
        self.lanes = 2 if self.on_gpu else 1
        self._loaded, self._call = _load(folder, self.name)
        self._input, shape = _checked_input(self.name, self._call)
        self.fixed_size: tuple[int, int] | None = (
            (shape[1], shape[2]) if shape[1] and shape[2] else None
        )
        self._one_at_a_time = shape[0] == 1
        self._read_outputs()
        self.digest = digest or digest_of(folder)
        self.score_threshold = stated_threshold(folder, self.name)
        self._least_face = score_threshold or self.score_threshold
        self._try()

    def _read_outputs(self) -> None:
        """Find out what the model returns; ModelInvalid if a required output is missing."""
        outputs = self._call.structured_outputs
        missing = [name for name in OUTPUTS if name not in outputs]
        if missing:
            raise ModelInvalid(f"{self.name} does not return {', '.join(missing)}: {CONTRACT}")
        keypoints = outputs.get(KEYPOINTS)
        self._has_landmarks = keypoints is not None and keypoints.shape[-2:] == (LANDMARKS, 2)
        self._reports_left_out = LEFT_OUT in outputs
        scores = outputs[SCORES].shape
        self._capacity: int = (scores.rank and scores[-1]) or USUAL_CAPACITY

    def _try(self) -> None:
        """Run once on a black picture: TensorFlow plans the graph, and the outputs are checked."""
        height, width = self.fixed_size or TRIAL_SIZE
        try:
            self.predict(np.zeros((1, height, width, 3), np.uint8))
        except Exception as error:
            raise ModelInvalid(
                f"{self.name} fails on a black picture: {in_a_line(error)}"
            ) from None

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """Return one Detections for each canvas of `batch`, uint8 RGB [n, height, width, 3].

        Boxes are in pixels of the canvas. Raises DeviceFull if the device's memory does not suffice
        for now, and DetectionFailed if the answer breaks the contract.
        """
        if self._one_at_a_time and len(batch) > 1:
            return [self.predict(batch[i : i + 1])[0] for i in range(len(batch))]
        arrays = self._run(batch)
        height, width = batch.shape[1:3]
        counts = self._counts(arrays)
        return [
            self._detections(arrays, row, count, height, width) for row, count in enumerate(counts)
        ]

    def _run(self, batch: Pixels) -> Arrays:
        """Run the model on `batch` and return its outputs as arrays of the expected shapes."""
        try:
            canvases = tf.constant(batch)
            if self.on_gpu and not self._one_at_a_time:
                canvases = _filled(canvases)
            returned = self._call(**{self._input: canvases})
            arrays = self._checked_arrays(returned, len(canvases))
            return {name: array[: len(batch)] for name, array in arrays.items()}
        except tf.errors.ResourceExhaustedError:
            raise DeviceFull(
                f"no memory left on the {self.device} for {len(batch)} canvases of "
                f"{batch.shape[1]} x {batch.shape[2]} pixels: let it run fewer programs"
            ) from None
        except tf.errors.InvalidArgumentError as error:
            if NOT_FINITE in str(error):
                raise DetectionFailed(NOT_FINITE) from None
            raise

    def _checked_arrays(self, returned: Mapping[str, Any], canvases: int) -> Arrays:
        """Return the outputs as arrays; DetectionFailed if a shape or type breaks the contract."""
        faces = returned[SCORES].shape[-1:].as_list() or [None]
        shapes = {
            BOXES: [canvases, *faces, 4],
            SCORES: [canvases, *faces],
            CLASSES: [canvases, *faces],
            COUNT: [canvases],
        }
        if self._has_landmarks:
            shapes[KEYPOINTS] = [canvases, *faces, LANDMARKS, 2]
        if self._reports_left_out:
            shapes[LEFT_OUT] = [canvases]
        return {name: _checked_array(name, returned[name], shapes[name]) for name in shapes}

    def _counts(self, arrays: Arrays) -> list[int]:
        """Return the number of detections for each canvas; DetectionFailed if it can't be right."""
        for name in (SCORES, CLASSES):
            _check_finite(name, arrays[name].astype(np.float32))
        stated = arrays[COUNT].reshape(-1).tolist()
        counts = []
        for number, scores in zip(stated, arrays[SCORES], strict=True):
            # NaN fails this comparison too.
            if not (number >= 0 and number == np.floor(number)):
                raise DetectionFailed(
                    f"the model counts {number} detections: num_detections must be a whole number"
                )
            if number > len(scores):
                raise DetectionFailed(
                    f"the model counts {number:.0f} detections and returns {len(scores)}"
                )
            count = int(number)
            if (scores[count:] >= self._least_face).any():
                raise DetectionFailed(
                    f"num_detections counts {count}, "
                    f"but detection_scores has a face beyond them: {CONTRACT}"
                )
            counts.append(count)
        return counts

    def _detections(
        self, arrays: Arrays, row: int, count: int, height: int, width: int
    ) -> Detections:
        """Return the first `count` detections of canvas `row`, in pixels of the canvas."""
        size = np.array([height, width, height, width], np.float32)
        boxes = (arrays[BOXES][row, :count].astype(np.float32) * size)[:, [1, 0, 3, 2]]
        _check_finite(BOXES, boxes)
        scores = arrays[SCORES][row, :count].astype(np.float32)
        landmarks = None
        if self._has_landmarks:
            shares = arrays[KEYPOINTS][row, :count, :, ::-1].astype(np.float32)
            landmarks = shares * size[1::-1]
            _check_finite(KEYPOINTS, landmarks)
        if self._reports_left_out:
            left_out = float(arrays[LEFT_OUT][row])
        else:
            left_out = self._left_out(scores)
        classes = arrays[CLASSES][row, :count].astype(np.intp)
        return Detections(boxes, scores, Sightings.of(boxes, landmarks), left_out, classes)

    def _left_out(self, scores: NDArray[np.float32]) -> float:
        """Return the highest score of a face that the model may have left out, else 0.

        It is the lowest score returned, if the model returned as many faces as it can. A model with
        a capacity of one face is taken for one that looks for a single face.
        """
        is_full = self._capacity > 1 and len(scores) >= min(self._capacity, USUAL_CAPACITY)
        return float(scores.min()) if is_full else 0.0


def _filled(canvases: Any) -> Any:
    """Return `canvases` with black ones after them, so that their number is a power of two.

    A GPU tunes itself to each shape, of which the number is a part.
    """
    missing = (1 << (len(canvases) - 1).bit_length()) - len(canvases)
    return tf.pad(canvases, [[0, missing], [0, 0], [0, 0], [0, 0]]) if missing else canvases


def has_gpu() -> bool:
    """Return whether TensorFlow has a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def _claim_device() -> str:
    """Return the device's name. A GPU's memory grows as needed instead of being taken whole."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU ({processors.available()} cores)"
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            pass  # A second model in one process shares what the first one claimed.
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "unknown")
    return f"GPU ({name})"


def _load(folder: Path, name: str) -> tuple[Any, Any]:
    """Return the SavedModel in `folder` and its signature; the former keeps variables alive."""
    try:
        loaded = tf.saved_model.load(str(folder))
        return loaded, loaded.signatures["serving_default"]
    except KeyError:
        raise ModelInvalid(f"{name} has no signature serving_default: {CONTRACT}") from None
    except Exception as error:
        raise ModelInvalid(f"{name} can't be loaded: {in_a_line(error)}") from None


def _checked_input(model: str, call: Any) -> tuple[str, list[int | None]]:
    """Return the name and the shape of the one input, which must be uint8 [N, H, W, 3]."""
    inputs = call.structured_input_signature[1]
    if len(inputs) != 1:
        raise ModelInvalid(f"{model} takes {len(inputs)} inputs, not one: {CONTRACT}")
    (name, spec), *_ = inputs.items()
    shape = spec.shape.as_list() if spec.shape.rank is not None else [None] * 4
    if spec.dtype != tf.uint8 or len(shape) != 4 or shape[3] not in (3, None):
        raise ModelInvalid(
            f"{model} takes {spec.dtype.name} {shape}, not uint8 [N, H, W, 3]: {CONTRACT}"
        )
    if shape[0] not in (1, None):
        raise ModelInvalid(
            f"{model} takes batches of exactly {shape[0]}: "
            "export it with a batch of 1 or of any size"
        )
    return name, shape


def _checked_array(name: str, value: Any, shape: list[int | None]) -> NDArray[Any]:
    """Return the output `value` as an array; DetectionFailed if it has another shape or type."""
    takes_integers = name in (CLASSES, COUNT)
    is_number = value.dtype.is_floating or (takes_integers and value.dtype.is_integer)
    actual = value.shape.as_list()
    if name == COUNT and _is_count_of(shape, actual):
        actual = shape
    if not is_number or actual != shape:
        kind = "numbers" if takes_integers else "floats"
        raise DetectionFailed(
            f"the model returned {name} as {value.dtype.name} {actual}, not {kind} {shape}"
        )
    array: NDArray[Any] = value.numpy()
    return array


def _is_count_of(shape: list[int | None], actual: list[int | None]) -> bool:
    """Return whether `actual` is another usual shape of num_detections for that many canvases."""
    (canvases,) = shape
    return actual == [canvases, 1] or (canvases == 1 and actual == [])


def _check_finite(name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise DetectionFailed(f"the model returned numbers that are not finite in {name}")
