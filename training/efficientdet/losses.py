"""The losses of EfficientDet, summed over the anchors of a batch, divided by its faces."""

from typing import Any

from training.backend import keras, ops

# Tan et al. (EfficientDet, CVPR 2020), section 5.1.
ALPHA, GAMMA = 0.25, 1.5
# Values that the paper does not state: reference implementation (google/automl, hparams_config.py).
HUBER_DELTA = 0.1
BOX_WEIGHT = 50.0


@keras.saving.register_keras_serializable("veil")
class FocalLoss(keras.losses.Loss):  # type: ignore[misc]
    """Focal loss (Lin et al., ICCV 2017, equation 5) of logits [n, a, c].

    The truth is 1 for a face, 0 for background and -1 for an anchor that does not count.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        truth = ops.cast(y_true > 0, y_pred.dtype)
        counts = ops.cast(y_true >= 0, y_pred.dtype)
        entropy = ops.binary_crossentropy(truth, y_pred, from_logits=True)
        sure = ops.sigmoid(y_pred)
        off = ops.abs(truth - sure)
        weight = (truth * ALPHA + (1 - truth) * (1 - ALPHA)) * off**GAMMA
        return ops.sum(counts * weight * entropy) / _faces(truth)


@keras.saving.register_keras_serializable("veil")
class BoxLoss(keras.losses.Loss):  # type: ignore[misc]
    """Huber loss of offsets [n, a, 4].

    The last value of the truth [n, a, 5] is 1 for an anchor that is matched with a face, else 0.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        stands = y_true[..., 4:]
        error = ops.abs(y_true[..., :4] - y_pred)
        inner = ops.minimum(error, HUBER_DELTA)
        # As in the reference implementation, the loss is the mean over the four offsets.
        huber = inner * (error - inner / 2)
        return BOX_WEIGHT * ops.sum(stands * huber) / (4 * _faces(stands))


def _faces(stands: Any) -> Any:
    """Return the number of matched anchors plus one, a divisor for batches without faces."""
    return ops.sum(stands) + 1
