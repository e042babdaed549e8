"""TensorFlow, set up before it is imported. Importing this module takes seconds."""

import os
from typing import Any

import absl.logging

from worker.detection.canvas import PADDING_GRAY
from worker.process.silence import silenced

# TensorFlow reads both variables once, when it is imported. oneDNN's kernels more than double the
# speed on processors without AVX-512, where TensorFlow leaves them off. Their results differ from
# those of the plain kernels by rounding only.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

with silenced():
    import tensorflow as tf

# TensorFlow warns of a loaded model without gradients, which nobody needs.
absl.logging.set_verbosity(absl.logging.ERROR)

__all__ = ["padded_to_multiple", "tf"]


def padded_to_multiple(pictures: Any, multiple: int) -> Any:
    """Return `pictures`, uint8 [N, H, W, 3], with sides that are multiples of `multiple`.

    Gray is added below and on the right. The sides may be known only when the graph runs.
    """
    padding = -tf.shape(pictures)[1:3] % multiple
    return tf.pad(
        pictures,
        [[0, 0], [0, padding[0]], [0, padding[1]], [0, 0]],
        constant_values=tf.constant(PADDING_GRAY, tf.uint8),
    )
