"""Keras, imported after its backend is chosen: KERAS_BACKEND, by default TensorFlow."""

import os

ON_TENSORFLOW = os.environ.setdefault("KERAS_BACKEND", "tensorflow") == "tensorflow"
if ON_TENSORFLOW:
    from worker.detection.tf import tf

import keras  # noqa: E402
from keras import layers, ops  # noqa: E402

__all__ = ["ON_TENSORFLOW", "has_accelerator", "jit", "keras", "layers", "ops", "reproducible"]


def has_accelerator() -> bool:
    """Return True if Keras finds a device other than CPUs."""
    return any(not device.lower().startswith("cpu") for device in keras.distribution.list_devices())


def jit() -> bool | str:
    """Return the `jit_compile` option of a training step.

    On a CPU, the compiled step of TensorFlow is many times slower than its kernels.
    """
    return False if ON_TENSORFLOW and not has_accelerator() else "auto"


def reproducible(seed: int) -> None:
    """Make the initial weights depend on `seed` alone, and each step repeatable up to rounding."""
    keras.utils.set_random_seed(seed)
    if ON_TENSORFLOW and not has_accelerator():
        tf.config.experimental.enable_op_determinism()
