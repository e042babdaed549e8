"""The losses of CenterFace, summed over the points of a batch, divided by its objects."""

from typing import Any

from training.backend import keras, ops

# Zhou, Wang and Krähenbühl, "Objects as Points", 2019, arXiv:1904.07850, equation 1.
ALPHA, BETA = 2.0, 4.0
# Xu et al. (CenterFace), section 3.3.
SIZE_WEIGHT, OFFSET_WEIGHT = 0.1, 1.0


@keras.saving.register_keras_serializable("veil")
class HeatLoss(keras.losses.Loss):  # type: ignore[misc]
    """Focal loss of logits [n, h, w, c] with reduced weight near centres ("Objects as Points").

    The truth is 1 at a centre, less around it, and negative at a point that does not count.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        truth = ops.cast(y_true, y_pred.dtype)
        is_centre = ops.cast(truth >= 1, y_pred.dtype)
        counts = ops.cast(truth >= 0, y_pred.dtype)
        score = ops.sigmoid(y_pred)
        hits = is_centre * (1 - score) ** ALPHA * ops.log_sigmoid(y_pred)
        around = (1 - ops.maximum(truth, 0)) ** BETA
        misses = (counts - is_centre) * around * score**ALPHA * ops.log_sigmoid(-y_pred)
        return -ops.sum(hits + misses) / _objects(is_centre)


@keras.saving.register_keras_serializable("veil")
class CentreLoss(keras.losses.Loss):  # type: ignore[misc]
    """Smooth L1 loss of sizes and offsets [n, h, w, 4] at centres (CenterFace, section 3.2).

    The last value of the truth [n, h, w, 5] is 1 at the centre of an object, else 0.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        truth = ops.cast(y_true, y_pred.dtype)
        stands = truth[..., 4:]
        error = ops.abs(truth[..., :4] - y_pred)
        inner = ops.minimum(error, 1.0)
        smooth = stands * inner * (error - inner / 2)
        sizes, offsets = ops.sum(smooth[..., :2]), ops.sum(smooth[..., 2:])
        return (SIZE_WEIGHT * sizes + OFFSET_WEIGHT * offsets) / _objects(stands)


def _objects(stands: Any) -> Any:
    """Return the number of objects, a divisor; at least 1, for batches without any."""
    return ops.maximum(ops.sum(stands), 1.0)
