"""Keras, imported after its backend is chosen: KERAS_BACKEND, by default TensorFlow."""

import os

from tasks.errors import TrainingFailed

BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
ON_TENSORFLOW = BACKEND == "tensorflow"
if ON_TENSORFLOW:
    from worker.detection.tf import tf

try:
    import keras
except ModuleNotFoundError as error:
    if ON_TENSORFLOW or error.name == "keras":
        raise
    raise TrainingFailed(
        f"KERAS_BACKEND={BACKEND} needs {error.name}, which no extra of Veil installs: install it, "
        "or leave KERAS_BACKEND out for TensorFlow, without which --start does not work"
    ) from None
except ValueError:
    raise TrainingFailed(f"Keras has no backend {BACKEND}: leave KERAS_BACKEND out") from None

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
