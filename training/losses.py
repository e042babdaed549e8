"""The two losses of EfficientDet, each summed over the batch's anchors and divided by its faces."""

from typing import Any

from training.backend import keras, ops

# Tan et al. (EfficientDet, CVPR 2020), section 5.1.
ALPHA, GAMMA = 0.25, 1.5
# Reference implementation (google/automl, hparams_config.py): what the paper does not say.
HUBER_DELTA = 0.1
BOX_WEIGHT = 50.0


@keras.saving.register_keras_serializable("veil")
class FocalLoss(keras.losses.Loss):  # type: ignore[misc]
    """Focal loss (Lin et al., ICCV 2017, equation 5) of logits [n, a, 1]; the truth is 1, 0, or -1 for "don't care"."""

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
    """Huber loss of offsets [n, a, 4]; the truth [n, a, 5] ends with 1 where an anchor stands for a face, else 0."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        stands = y_true[..., 4:]
        error = ops.abs(y_true[..., :4] - y_pred)
        inner = ops.minimum(error, HUBER_DELTA)
        # Quadratic near zero, linear beyond, divided by delta's scale as the reference does: the mean of four offsets.
        huber = inner * (error - inner / 2)
        return BOX_WEIGHT * ops.sum(stands * huber) / (4 * _faces(stands))


def _faces(stands: Any) -> Any:
    """The anchors that stand for a face, and one, so that a batch without faces divides by something."""
    return ops.sum(stands) + 1
