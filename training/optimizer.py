"""AdamW with clipping and an average of the weights, over all weights as one vector.

Keras' own makes some fifty operations for each of a detector's 460 weights: 40 of a minute's seconds go by before the
first step on a CPU. One vector makes them once.
"""

from collections.abc import Sequence
from typing import Any

from training.backend import keras, ops

# Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; Kingma and Ba's momenta.
FIRST, SECOND, EPSILON = 0.9, 0.999, 1e-7
DECAY = 4e-5  # paper (EfficientDet, section 5.1)
LARGEST_NORM = 10.0  # reference implementation: of all gradients together
LONGEST_AVERAGE = 0.9998  # paper, section 5.1


@keras.saving.register_keras_serializable("veil")
class FlatAdamW(keras.optimizers.Optimizer):  # type: ignore[misc]
    """`average` is how much of the weights' running average each step keeps; kernels alone decay."""

    def __init__(self, learning_rate: Any, average: float = LONGEST_AVERAGE, name: str = "flat_adamw") -> None:
        super().__init__(learning_rate=learning_rate, name=name)
        self.average = average

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._weights = list(variables)
        count = sum(_size(variable) for variable in variables)
        self.first, self.second, self.averaged = (
            self.add_variable((count,), dtype="float32", name=name) for name in ("first", "second", "averaged")
        )
        self.averaged.assign(_flat(self._weights))

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> Any:
        if not self.built and trainable_variables is not None:
            self.build(trainable_variables)
        gradient = _flat(grads)
        norm = ops.sqrt(ops.sum(ops.square(gradient)))
        gradient = gradient * ops.minimum(1.0, LARGEST_NORM / ops.maximum(norm, EPSILON))
        step = ops.cast(self.iterations + 1, "float32")
        rate = ops.cast(self.learning_rate, "float32")
        first = FIRST * self.first + (1 - FIRST) * gradient
        second = SECOND * self.second + (1 - SECOND) * ops.square(gradient)
        moved = (first / (1 - FIRST**step)) / (ops.sqrt(second / (1 - SECOND**step)) + EPSILON)
        weights = _flat(self._weights)
        kernels = _flat([each if len(each.shape) > 1 else ops.zeros_like(each) for each in self._weights])
        weights = weights - rate * (moved + DECAY * kernels)
        self.first.assign(first)
        self.second.assign(second)
        self.averaged.assign(self.average * self.averaged + (1 - self.average) * weights)
        for variable, values in zip(self._weights, self.parts(weights), strict=True):
            variable.assign(values)
        self.iterations.assign(self.iterations + 1)
        return self.iterations

    def parts(self, vector: Any) -> list[Any]:
        """`vector` cut into the shapes of the weights, in their order."""
        sizes = [_size(variable) for variable in self._weights]
        cuts = [sum(sizes[:i]) for i in range(1, len(sizes))]
        pieces = ops.split(vector, cuts)
        return [ops.reshape(piece, variable.shape) for piece, variable in zip(pieces, self._weights, strict=True)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "average": self.average}


def _size(variable: Any) -> int:
    size = 1
    for side in variable.shape:
        size *= int(side)
    return size


def _flat(values: Sequence[Any]) -> Any:
    return ops.concatenate([ops.reshape(ops.cast(value, "float32"), (-1,)) for value in values])
