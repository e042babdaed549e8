"""TensorFlow, set up before it is imported; importing this module takes seconds, and only what
needs it does.
"""

import os

from worker.process.silence import silenced

# oneDNN's kernels more than double the speed on processors without AVX-512, where TensorFlow leaves
# them off, and their results differ from the plain ones by rounding only. Read once, at
# TensorFlow's import.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

with silenced():
    import tensorflow as tf

__all__ = ["tf"]
