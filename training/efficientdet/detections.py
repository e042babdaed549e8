"""EfficientDet as a SavedModel: padding, the network, boxes and non-maximum suppression.

This module needs TensorFlow, whatever backend Keras used for the training.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import TrainingFailed
from training.backend import ops
from training.efficientdet import anchors
from worker.detection.model import LEFT_OUT
from worker.detection.tf import padded_to_multiple, tf

# The number of anchors with the highest scores, of which up to MAX_DETECTIONS faces are chosen.
CANDIDATES = 2000
MAX_DETECTIONS = 500  # per picture
MIN_SCORE = 0.02  # the model returns no detections below it; `score_threshold` applies on top of it
# The largest difference of scores and normalised corners between the network and the saved model.
TOLERANCE = 1e-3


def save(model: Any, folder: Path) -> float:
    """Write the network to `folder` as a SavedModel, and compare both on test pictures.

    Return the largest difference; raise TrainingFailed if it is above TOLERANCE.

    The signature is that of worker.detection.centerface.network.save, without keypoints. Height and
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
    sides = tf.shape(pictures)[1:3]
    padded = padded_to_multiple(pictures, anchors.MULTIPLE)
    outputs = model(tf.cast(padded, tf.float32), training=False)
    scores = tf.sigmoid(outputs["faces"])
    grid = _grid(tf.shape(padded)[1:3])
    # The padding contains no faces, and workers refuse boxes outside of the picture.
    middle = (grid[:, :2] + grid[:, 2:]) / 2
    is_inside = tf.reduce_all(middle < tf.cast(sides, tf.float32), axis=1, keepdims=True)
    scores *= tf.cast(is_inside, tf.float32)
    highest = tf.reduce_max(scores, axis=2)
    highest, index = tf.math.top_k(highest, tf.minimum(CANDIDATES + 1, tf.shape(highest)[1]))
    beyond = tf.reduce_max(tf.pad(highest[:, CANDIDATES:], [[0, 0], [0, 1]]), axis=1)
    index = index[:, :CANDIDATES]
    scores = tf.gather(scores, index, batch_dims=1)
    boxes = anchors.decoded(
        tf.gather(outputs["boxes"], index, batch_dims=1), tf.gather(grid, index), ops
    )
    boxes = anchors.bounded(boxes, tf.cast(sides, tf.float32), ops)
    extent = tf.cast(tf.tile(sides, [2]), tf.float32)
    kept = tf.image.combined_non_max_suppression(
        (boxes / extent)[:, :, None],
        scores,
        MAX_DETECTIONS + 1,
        MAX_DETECTIONS + 1,
        anchors.NMS_IOU,
        min_score,
        clip_boxes=False,
    )
    return {
        "detection_boxes": kept.nmsed_boxes[:, :MAX_DETECTIONS],
        "detection_scores": kept.nmsed_scores[:, :MAX_DETECTIONS],
        "detection_classes": kept.nmsed_classes[:, :MAX_DETECTIONS] + 1,
        "num_detections": tf.cast(tf.minimum(kept.valid_detections, MAX_DETECTIONS), tf.float32),
        LEFT_OUT: tf.maximum(beyond, kept.nmsed_scores[:, MAX_DETECTIONS]),
    }


def _grid(sides: Any) -> Any:
    """Return `anchors.anchors` in TensorFlow, for sides that only the graph knows."""
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
