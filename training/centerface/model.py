"""CenterFace in Keras, with its weights to and from the network that workers run.

Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019,
arXiv:1911.03599. The published weights have the batch normalisations folded into the convolutions,
except three of the neck, which the worker's reader folds too. So the network here has none: their
statistics are those of the first training, and their gains are part of the kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from training.backend import keras, layers
from worker.detection.centerface.calibration import Floats
from worker.detection.centerface.default import WEIGHTS
from worker.detection.centerface.network import Addition, Convolution, Network

# Sandler et al., "MobileNetV2", CVPR 2018, table 2, from the third row on: expansion, channels,
# blocks, stride of the first block.
BLOCKS = (
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST_CHANNELS, SECOND_CHANNELS = 32, 16
NECK_CHANNELS = 24
# The outputs of the rows of BLOCKS that the neck adds to, from coarse to fine.
LATERAL_ROWS = (3, 1, 0)
BOX_CHANNELS = 4  # size and offset, y x each
# The score of all points of a class that the weights don't know: Lin et al. (Focal Loss for Dense
# Object Detection, ICCV 2017), section 4.1.
PRIOR = 0.01
# The first convolutions find edges and colours, which are the same for all labels. Their results
# are the largest: without their gradients, a step takes two thirds of the time.
FROZEN = 7
PICTURE = "pictures"


@dataclass
class _Steps:
    """The steps of a network, added one after the other, with kernels of zeros."""

    steps: list[Convolution | Addition] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=lambda: {PICTURE: 3})

    def convolution(
        self,
        source: str,
        channels: int,
        side: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        rectified: bool = False,
        doubles: bool = False,
    ) -> str:
        """Add a convolution, and return the name of its result."""
        target = f"step{len(self.steps)}"
        shape = (side, side, self.channels[source], 1 if depthwise else channels)
        if doubles:
            shape = (1, 1, self.channels[source], 4 * channels)
        bias = np.zeros(4 * channels if doubles else channels, np.float32)
        kernel = np.zeros(shape, np.float32)
        self.steps.append(
            Convolution(source, target, kernel, bias, stride, depthwise, rectified, doubles)
        )
        self.channels[target] = channels
        return target

    def addition(self, first: str, second: str) -> str:
        target = f"step{len(self.steps)}"
        self.steps.append(Addition((first, second), target))
        self.channels[target] = self.channels[first]
        return target


def blank(classes: int) -> Network:
    """Return the network with weights of 0, whose maps are scores of `classes`, size and offset."""
    made = _Steps()
    last = made.convolution(PICTURE, FIRST_CHANNELS, 3, 2, rectified=True)
    last = made.convolution(last, FIRST_CHANNELS, 3, depthwise=True, rectified=True)
    last = made.convolution(last, SECOND_CHANNELS)
    rows = []
    for expansion, channels, blocks, stride in BLOCKS:
        for number in range(blocks):
            last = _block(made, last, expansion, channels, stride if number == 0 else 1)
        rows.append(last)
    last = made.convolution(last, NECK_CHANNELS, rectified=True)
    for row in LATERAL_ROWS:
        doubled = made.convolution(last, NECK_CHANNELS, doubles=True, rectified=True)
        lateral = made.convolution(rows[row], NECK_CHANNELS, rectified=True)
        last = made.addition(doubled, lateral)
    last = made.convolution(last, NECK_CHANNELS, 3, rectified=True)
    channels = classes + BOX_CHANNELS
    kernel = np.zeros((1, 1, NECK_CHANNELS, channels), np.float32)
    heads = Convolution(last, "maps", kernel, np.zeros(channels, np.float32))
    return Network(PICTURE, tuple(made.steps), heads)


def _block(made: _Steps, source: str, expansion: int, channels: int, stride: int) -> str:
    """Add an inverted residual block, and return the name of its result."""
    wide = made.channels[source] * expansion
    last = made.convolution(source, wide, rectified=True)
    last = made.convolution(last, wide, 3, stride, depthwise=True, rectified=True)
    last = made.convolution(last, channels)
    if stride == 1 and made.channels[source] == channels:
        return made.addition(source, last)
    return last


def published() -> Network:
    """Return the network with the published weights, whose maps are those of the default model.

    Raises ModelInvalid if the weights can't be fetched, and ValueError if they are of another
    network.
    """
    weights = Network.of(WEIGHTS.fetch())
    network = blank(1)
    if len(weights.steps) != len(network.steps):
        raise ValueError("the published weights are of another network")
    steps: list[Convolution | Addition] = []
    for step, known in zip(network.steps, weights.steps, strict=True):
        if isinstance(step, Convolution) and isinstance(known, Convolution):
            step = _filled(step, known.kernel, known.bias)
        steps.append(step)
    channels = 1 + BOX_CHANNELS  # without those of the landmarks
    kernel, bias = weights.heads.kernel[..., :channels], weights.heads.bias[:channels]
    return replace(network, steps=tuple(steps), heads=_filled(network.heads, kernel, bias))


def _filled(step: Convolution, kernel: Floats, bias: Floats) -> Convolution:
    if kernel.shape != step.kernel.shape or bias.shape != step.bias.shape:
        raise ValueError(f"{step.target} has weights of {kernel.shape}, not {step.kernel.shape}")
    return replace(step, kernel=kernel.astype(np.float32), bias=bias.astype(np.float32))


def with_labels(
    network: Network, known: Sequence[str], wanted: Sequence[str], random: np.random.Generator
) -> Network:
    """Return `network`, whose classes are `known`, with the classes `wanted`.

    A class that is in both keeps its weights. Others get random ones of the same magnitude, because
    a weight learns at a rate that is a share of its magnitude, and the score PRIOR.
    """
    kernel, bias = network.heads.kernel, network.heads.bias
    deviation = float(np.sqrt(np.square(kernel[..., : len(known)]).mean()))
    kernels, biases = [], []
    for label in wanted:
        if label in known:
            place = list(known).index(label)
            kernels.append(kernel[..., place : place + 1])
            biases.append(bias[place : place + 1])
        else:
            drawn = random.normal(0, deviation, (*kernel.shape[:3], 1))
            kernels.append(drawn.astype(np.float32))
            biases.append(np.array([-np.log((1 - PRIOR) / PRIOR)], np.float32))
    kernels.append(kernel[..., len(known) :])
    biases.append(bias[len(known) :])
    heads = replace(
        network.heads, kernel=np.concatenate(kernels, axis=-1), bias=np.concatenate(biases)
    )
    return replace(network, heads=heads)


def keras_network(classes: int) -> Any:
    """Return the network in Keras, with weights of 0.

    Its input is float [n, h, w, 3], RGB 0 to 255, with sides that are multiples of 32. Of its
    outputs, ``faces`` [n, h/4, w/4, classes] are logits, and ``boxes`` [n, h/4, w/4, 4] are the
    logarithm of the size and the offset of the centre, y x each, in points of the map.
    """
    network = blank(classes)
    pictures = keras.Input((None, None, 3), name=PICTURE)
    values = {PICTURE: pictures}
    for step in network.steps:
        if isinstance(step, Addition):
            first, second = (values[source] for source in step.sources)
            values[step.target] = layers.Add(name=step.target)([first, second])
        else:
            values[step.target] = _layer(step)(_padded(step, values[step.source]))
    last = values[network.heads.source]
    faces = layers.Conv2D(classes, 1, dtype="float32", name="faces")(last)
    boxes = layers.Conv2D(BOX_CHANNELS, 1, dtype="float32", name="boxes")(last)
    return keras.Model(pictures, {"faces": faces, "boxes": boxes}, name="centerface")


def _padded(step: Convolution, source: Any) -> Any:
    """Return `source`, padded at the upper left if the stride of `step` is 2: see Convolution."""
    if step.stride == 1:
        return source
    return layers.ZeroPadding2D(((1, 0), (1, 0)), name=f"{step.target}_padding")(source)


def _layer(step: Convolution) -> Any:
    activation = "relu" if step.rectified else None
    padding = "same" if step.stride == 1 else "valid"
    options = {"activation": activation, "padding": padding, "name": step.target}
    if step.doubles:
        return layers.Conv2DTranspose(step.channels, 2, 2, **options)
    if step.depthwise:
        return layers.DepthwiseConv2D(step.kernel.shape[0], step.stride, **options)
    return layers.Conv2D(step.channels, step.kernel.shape[0], step.stride, **options)


def frozen(model: Any) -> list[Any]:
    """Return the layers that learn nothing: the first FROZEN convolutions."""
    return [model.get_layer(step.target) for step in blank(1).steps[:FROZEN]]


def assign(model: Any, network: Network) -> None:
    """Give the Keras network `model` the weights of `network`, which has the same classes."""
    for step in network.steps:
        if isinstance(step, Convolution):
            model.get_layer(step.target).set_weights(_to_keras(step))
    kernel, bias = network.heads.kernel, network.heads.bias
    classes = kernel.shape[-1] - BOX_CHANNELS
    model.get_layer("faces").set_weights([kernel[..., :classes], bias[:classes]])
    model.get_layer("boxes").set_weights([kernel[..., classes:], bias[classes:]])


def trained(model: Any) -> Network:
    """Return the network that workers run, with the weights of the Keras network `model`."""
    heads = [model.get_layer(name).get_weights() for name in ("faces", "boxes")]
    kernel, bias = (np.concatenate(parts, axis=-1) for parts in zip(*heads, strict=True))
    network = blank(kernel.shape[-1] - BOX_CHANNELS)
    steps: list[Convolution | Addition] = []
    for step in network.steps:
        if isinstance(step, Convolution):
            step = _filled(step, *_from_keras(step, *model.get_layer(step.target).get_weights()))
        steps.append(step)
    return replace(network, steps=tuple(steps), heads=_filled(network.heads, kernel, bias))


def _to_keras(step: Convolution) -> list[Floats]:
    """Return kernel and bias as the layer of `step` stores them."""
    if not step.doubles:
        return [step.kernel, step.bias]
    # [1, 1, in, (2, 2, out)] becomes [2, 2, out, in].
    kernel = step.kernel.reshape(-1, 2, 2, step.channels).transpose(1, 2, 3, 0)
    return [kernel, step.bias[: step.channels]]


def _from_keras(step: Convolution, kernel: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """Return the opposite of `_to_keras`."""
    if not step.doubles:
        return kernel, bias
    return kernel.transpose(3, 0, 1, 2).reshape(step.kernel.shape), np.tile(bias, 4)
