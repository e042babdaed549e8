"""Keras, set up before it is imported; KERAS_BACKEND chooses what it computes with, by default TensorFlow."""

import os

ON_TENSORFLOW = os.environ.setdefault("KERAS_BACKEND", "tensorflow") == "tensorflow"
if ON_TENSORFLOW:
    from worker.detection.tf import tf

import keras  # noqa: E402
from keras import layers, ops  # noqa: E402

__all__ = ["ON_TENSORFLOW", "has_accelerator", "jit", "keras", "layers", "ops", "reproducible"]


def has_accelerator() -> bool:
    """Whether there is more to compute with than a CPU."""
    return any(not device.lower().startswith("cpu") for device in keras.distribution.list_devices())


def jit() -> bool | str:
    """Whether a training step is compiled: TensorFlow's compiler is many times slower on a CPU than its kernels."""
    return False if ON_TENSORFLOW and not has_accelerator() else "auto"


def reproducible(seed: int) -> None:
    """The same start from the same seed, and the same steps to rounding."""
    keras.utils.set_random_seed(seed)
    if ON_TENSORFLOW and not has_accelerator():
        tf.config.experimental.enable_op_determinism()
