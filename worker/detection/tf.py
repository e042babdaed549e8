"""TensorFlow, set up before it is imported. Importing this module takes seconds."""

import os

import absl.logging

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

__all__ = ["tf"]
