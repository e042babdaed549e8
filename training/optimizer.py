"""AdamW with gradient clipping and averaged weights, computed on one vector of all weights.

The optimizer of Keras adds some fifty operations to the graph for each of the 460 weights of a
detector, and tracing them takes 40 seconds on a CPU. With one vector they are added once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.backend import keras, ops

# Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, with the momenta of
# Kingma and Ba.
FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-7
DECAY = 4e-5  # paper (EfficientDet, section 5.1)
LARGEST_NORM = 10.0  # of the vector of all gradients; reference implementation
LONGEST_AVERAGE = 0.9998  # paper, section 5.1
LEAST_KERNEL, LEAST_BIAS = 1e-4, 1e-2  # magnitudes, so that weights of 0 learn too


@keras.saving.register_keras_serializable("veil")
class FlatAdamW(keras.optimizers.Optimizer):  # type: ignore[misc]
    """AdamW whose weight decay applies to kernels only.

    `average` is the share of the running average of the weights that each step keeps. If
    `is_relative`, the learning rate of a
    weight is multiplied by the magnitude of its channel at the time of `build`, which the caller
    then calls before the first step: see `magnitudes_of`.
    """

    def __init__(
        self,
        learning_rate: Any,
        average: float = LONGEST_AVERAGE,
        name: str = "flat_adamw",
        *,
        is_relative: bool = False,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.average = average
        self.is_relative = is_relative

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._weights = list(variables)
        count = sum(_size(variable) for variable in variables)
        self.first, self.second, self.averaged = (
            self.add_variable((count,), dtype="float32", name=name)
            for name in ("first", "second", "averaged")
        )
        self.averaged.assign(_flat(self._weights))
        self._magnitudes: Any = 1.0
        if self.is_relative:
            magnitudes = [magnitudes_of(np.asarray(variable)) for variable in self._weights]
            self._magnitudes = ops.convert_to_tensor(
                np.concatenate([each.ravel() for each in magnitudes])
            )

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> Any:
        if not self.built and trainable_variables is not None:
            self.build(trainable_variables)
        gradient = _flat(grads) * self._magnitudes  # that of a weight divided by its magnitude
        norm = ops.sqrt(ops.sum(ops.square(gradient)))
        gradient = gradient * ops.minimum(1.0, LARGEST_NORM / ops.maximum(norm, EPSILON))
        step = ops.cast(self.iterations + 1, "float32")
        rate = ops.cast(self.learning_rate, "float32")
        first = FIRST * self.first + (1 - FIRST) * gradient
        second = SECOND * self.second + (1 - SECOND) * ops.square(gradient)
        moved = (first / (1 - FIRST**step)) / (ops.sqrt(second / (1 - SECOND**step)) + EPSILON)
        weights = _flat(self._weights)
        kernels = _flat(
            [each if len(each.shape) > 1 else ops.zeros_like(each) for each in self._weights]
        )
        weights = weights - rate * (self._magnitudes * moved + DECAY * kernels)
        self.first.assign(first)
        self.second.assign(second)
        self.averaged.assign(self.average * self.averaged + (1 - self.average) * weights)
        for variable, values in zip(self._weights, self.parts(weights), strict=True):
            variable.assign(values)
        self.iterations.assign(self.iterations + 1)
        return self.iterations

    def use_average(self) -> None:
        """Replace the weights by their running average."""
        for variable, values in zip(self._weights, self.parts(self.averaged), strict=True):
            variable.assign(values)

    def parts(self, vector: Any) -> list[Any]:
        """Return the parts of `vector` in the order and the shapes of the weights."""
        sizes = [_size(variable) for variable in self._weights]
        cuts = [sum(sizes[:i]) for i in range(1, len(sizes))]
        pieces = ops.split(vector, cuts)
        return [
            ops.reshape(piece, variable.shape)
            for piece, variable in zip(pieces, self._weights, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        settings = {"average": self.average, "is_relative": self.is_relative}
        return {**super().get_config(), **settings}


def magnitudes_of(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return for each weight the magnitude of its channel, in the shape of `weights`.

    It is the root mean square of a kernel's weights that are multiplied by one output channel, or
    that of all biases. Where batch normalisations are folded into kernels, the magnitudes of
    channels differ a hundredfold, and steps of one size would replace the smallest ones: compare
    You et al., "Large Batch Optimization for Deep Learning", ICLR 2020, section 3.
    """
    axes = tuple(range(weights.ndim))
    if weights.ndim == 4:
        axes = tuple(axis for axis in axes if axis != _output_axis(weights.shape))
    mean_square = np.square(weights).mean(axis=axes, keepdims=True)
    least = LEAST_BIAS if weights.ndim == 1 else LEAST_KERNEL
    magnitudes = np.maximum(np.sqrt(mean_square), least)
    return np.broadcast_to(magnitudes, weights.shape).astype(np.float32)


def _output_axis(shape: tuple[int, ...]) -> int:
    """Return the axis of the output channels of a kernel of four axes.

    Depthwise convolutions have [h, w, channels, 1], and transposed ones of 2 x 2, which the neck of
    CenterFace has, [h, w, out, in]. All others have [h, w, in, out].
    """
    is_depthwise, is_transposed = shape[-1] == 1 and shape[0] > 1, shape[:2] == (2, 2)
    return 2 if is_depthwise or is_transposed else 3


def _size(variable: Any) -> int:
    size = 1
    for side in variable.shape:
        size *= int(side)
    return size


def _flat(values: Sequence[Any]) -> Any:
    return ops.concatenate([ops.reshape(ops.cast(value, "float32"), (-1,)) for value in values])
