"""``veil train export``: write a finished run as a SavedModel for workers, and as one ZIP file.

This module needs TensorFlow, whatever backend Keras used for the training.
"""

import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import OutputFailed, TrainingFailed
from training import anchors, folders
from training.backend import ON_TENSORFLOW, ops
from training.fitting import finished_model
from training.run import WEIGHTS, Run, stated
from worker.detection.canvas import PADDING_GRAY
from worker.detection.model import DEFAULT_THRESHOLD, LEFT_OUT, METADATA
from worker.detection.tf import tf

SAVED_MODEL = "saved_model"
ZIP = "saved_model.zip"
# The number of anchors with the highest scores, of which up to MAX_DETECTIONS faces are chosen.
CANDIDATES = 2000
MAX_DETECTIONS = 500  # per picture
NMS_IOU = 0.5  # Tan et al., reference implementation
MIN_SCORE = 0.02  # the model returns no detections below it; `score_threshold` applies on top of it
# The largest difference of scores and normalised corners between the network and the saved model.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exported:
    """An exported model, and its largest difference from the Keras network."""

    folder: Path
    zip: Path
    metadata: dict[str, Any]
    difference: float


def export(run: Run, to: Path, threshold: float | None) -> Exported:
    """Write ``saved_model/`` and ``saved_model.zip`` to the folder `to`, all or nothing.

    `threshold` becomes the model's own; the default is the one that the last evaluation of the run
    on `val` proposed, else 0.5. Raise TrainingFailed if the run isn't finished or the saved model
    differs from the network, and OutputFailed if `to` contains something else than an export, or
    can't be written.
    """
    _refuse_another(to)
    saved = saved_model(run)
    chosen = threshold or run.threshold() or DEFAULT_THRESHOLD
    metadata: dict[str, Any] = {
        "score_threshold": round(chosen, 4),
        "network": f"EfficientDet-{run.recipe.size.upper()}",
        "side": run.recipe.side,
        "recipe": run.recipe.digest,
        "data": run.data,
        "training": asdict(run.recipe),
        "veil": version("veil"),
    }
    if evaluation := run.evaluation():
        metadata["evaluation"] = stated(evaluation)
    with folders.replaced(to) as work:
        shutil.copytree(saved, work / SAVED_MODEL)
        _write_metadata(work / SAVED_MODEL, metadata)
        _zip(work / SAVED_MODEL, work / ZIP)
    difference = float(_read_metadata(saved)["difference"])
    return Exported(to / SAVED_MODEL, to / ZIP, metadata, difference)


def _refuse_another(to: Path) -> None:
    """Raise OutputFailed if `to` is no folder, or contains something else than an export."""
    try:
        others = {each.name for each in to.iterdir()} - {SAVED_MODEL, ZIP}
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputFailed(f"{to} can't be written: {error.strerror}") from None
    if others:
        raise OutputFailed(
            f"{to} holds something else ({min(others)}): choose another --to, or remove it"
        )


def saved_model(run: Run) -> Path:
    """Return the folder of the run's SavedModel, which is in the folder of the run.

    It is written if it does not exist, or if other weights or other versions of Veil or TensorFlow
    made it. Raise the errors of `export`.
    """
    if not ON_TENSORFLOW:
        raise TrainingFailed(
            "a SavedModel is written by TensorFlow: run this with KERAS_BACKEND=tensorflow"
        )
    run.require_finished()
    folder = run.folder / SAVED_MODEL
    origin = _origin(run)
    if _read_metadata(folder).get("origin") != origin:
        with folders.replaced(folder) as work:
            difference = save(finished_model(run), work)
            _write_metadata(work, {"origin": origin, "difference": difference})
    return folder


def _origin(run: Run) -> dict[str, str]:
    """Return the digest of the weights and the versions that decide the SavedModel of a run."""
    path = run.folder / WEIGHTS
    try:
        with path.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingFailed(f"{path} can't be read: {error.strerror}") from None
    return {"weights": weights, "veil": version("veil"), "tensorflow": tf.__version__}


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of the SavedModel in `folder`; empty if there is none."""
    try:
        content = json.loads((folder / METADATA).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    (folder / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")


def save(model: Any, folder: Path) -> float:
    """Write the network to `folder` as a SavedModel, and compare both on test pictures.

    Return the largest difference; raise TrainingFailed if it is above TOLERANCE.

    The signature is that of worker.detection.centerface.network, without keypoints. Height and
    width are arbitrary, because the model pads pictures to multiples of 128.
    """
    holder = tf.Module()
    # For a Keras model, TensorFlow would also save the functions of all layers, which takes a
    # minute.
    holder.network = [variable.value for variable in model.variables]
    holder.min_score = tf.Variable(MIN_SCORE, trainable=False)
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name="input_tensor")

    @tf.function(input_signature=[spec], autograph=False)
    def detect(input_tensor: Any) -> dict[str, Any]:
        return _detections(model, input_tensor, holder.min_score)

    folder.mkdir(parents=True)
    # Nobody asks a served model for gradients, and to trace them takes half of the time.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(
        holder, str(folder), signatures={"serving_default": detect}, options=options
    )
    difference = _difference(model, folder)
    if not difference <= TOLERANCE:
        raise TrainingFailed(
            f"the saved model differs from the network by {difference:.2g}: it is not used"
        )
    return difference


def _detections(model: Any, pictures: Any, min_score: Any) -> dict[str, Any]:
    shape = tf.shape(pictures)
    height, width = shape[1], shape[2]
    sides = tf.stack([height, width])
    padding = -sides % anchors.MULTIPLE
    padded = tf.pad(
        pictures,
        [[0, 0], [0, padding[0]], [0, padding[1]], [0, 0]],
        constant_values=tf.constant(PADDING_GRAY, tf.uint8),
    )
    outputs = model(tf.cast(padded, tf.float32), training=False)
    scores = tf.sigmoid(tf.reduce_max(outputs["faces"], axis=2))
    grid = _grid(sides + padding)
    # The padding contains no faces, and workers refuse boxes outside of the picture.
    middle = (grid[:, :2] + grid[:, 2:]) / 2
    scores *= tf.cast(tf.reduce_all(middle < tf.cast(sides, tf.float32), axis=1), tf.float32)
    scores, index = tf.math.top_k(scores, tf.minimum(CANDIDATES + 1, tf.shape(scores)[1]))
    beyond = tf.reduce_max(tf.pad(scores[:, CANDIDATES:], [[0, 0], [0, 1]]), axis=1)
    scores, index = scores[:, :CANDIDATES], index[:, :CANDIDATES]
    boxes = anchors.decoded(
        tf.gather(outputs["boxes"], index, batch_dims=1), tf.gather(grid, index), ops
    )
    boxes = anchors.bounded(boxes, tf.cast(sides, tf.float32), ops)
    extent = tf.cast(tf.stack([height, width, height, width]), tf.float32)
    kept = tf.image.combined_non_max_suppression(
        (boxes / extent)[:, :, None],
        scores[:, :, None],
        MAX_DETECTIONS + 1,
        MAX_DETECTIONS + 1,
        NMS_IOU,
        min_score,
        clip_boxes=False,
    )
    found = kept.nmsed_scores[:, :MAX_DETECTIONS]
    return {
        "detection_boxes": kept.nmsed_boxes[:, :MAX_DETECTIONS],
        "detection_scores": found,
        "detection_classes": tf.ones_like(found),
        "num_detections": tf.cast(tf.minimum(kept.valid_detections, MAX_DETECTIONS), tf.float32),
        LEFT_OUT: tf.maximum(beyond, kept.nmsed_scores[:, MAX_DETECTIONS]),
    }


def _grid(sides: Any) -> Any:
    """Return training.anchors.anchors in TensorFlow, for sides that only the graph knows."""
    found = []
    for stride in anchors.STRIDES:
        rows, columns = tf.meshgrid(
            tf.range(sides[0] // stride), tf.range(sides[1] // stride), indexing="ij"
        )
        centres = (tf.cast(tf.stack([rows, columns], axis=-1), tf.float32) + 0.5) * stride
        half = tf.constant(anchors.shapes(stride) / 2)
        centres = tf.reshape(centres, [-1, 1, 2])
        found.append(tf.reshape(tf.concat([centres - half, centres + half], axis=-1), [-1, 4]))
    return tf.concat(found, axis=0)


def _difference(model: Any, folder: Path) -> float:
    """Return the largest difference between the outputs of `model` and of its SavedModel.

    It covers scores and normalised corners. Each detection of the SavedModel in `folder` is
    compared with the most similar anchor of `model`.
    """
    side = anchors.MULTIPLE
    picture = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    outputs = model.predict_on_batch(picture.astype(np.float32))
    # Beyond these limits exp overflows, and the score is 0 or 1 in any case.
    logits = outputs["faces"].max(axis=2).clip(-60, 60)
    every = 1 / (1 + np.exp(-logits))
    boxes = anchors.decoded(outputs["boxes"], anchors.anchors(side, side), np)
    boxes = anchors.bounded(boxes, np.array([side, side], np.float32), np) / side
    loaded = tf.saved_model.load(str(folder))
    loaded.min_score.assign(0.0)  # in memory only, so that unsure detections are compared too
    answer = loaded.signatures["serving_default"](tf.constant(picture))
    answer = {name: value.numpy() for name, value in answer.items()}
    worst = 0.0
    for i in range(len(picture)):
        count = int(answer["num_detections"][i])
        if not count:
            return float("inf")
        for box, score in zip(
            answer["detection_boxes"][i, :count], answer["detection_scores"][i, :count], strict=True
        ):
            off = np.maximum(np.abs(boxes[i] - box).max(axis=1), np.abs(every[i] - score))
            worst = max(worst, float(off.min()))
    return worst


def _zip(folder: Path, path: Path) -> None:
    """Write the files of `folder` to an archive whose bytes depend on the model only.

    All entries have the same date.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    with path.open("rb") as written:
        os.fsync(written.fileno())
