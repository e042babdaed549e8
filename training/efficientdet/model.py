"""EfficientDet in Keras: an EfficientNet backbone, a bidirectional feature pyramid, and two heads.

Tan, Pang and Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020,
arXiv:1911.09070. Constants that the paper does not state are those of its reference implementation
(google/automl, Apache-2.0).
"""

import contextlib
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.errors import TrainingFailed
from training.backend import keras, layers, ops
from training.efficientdet.anchors import LEVELS, PER_POINT

PRIOR = 0.01  # score of all anchors in the untrained network (Lin et al., section 4.1)
NEW_DEVIATION = 0.01  # of the last kernels of the heads; same section
FUSION_EPSILON = 1e-4  # paper, section 3.3
NORM_MOMENTUM, NORM_EPSILON = 0.99, 1e-3  # reference implementation
HEAD_DEPTH = 3  # paper, table 1: D0 to D2
# The normalisation that ImageNet weights expect. The EfficientNet of Keras only scales by 1/255.
MEAN = np.array([0.485, 0.456, 0.406]) * 255
DEVIATION = np.array([0.229, 0.224, 0.225]) * 255


@dataclass(frozen=True)
class Size:
    """A row of table 1 of the paper; `channels` and `layers` are those of the pyramid."""

    backbone: str
    side: int
    channels: int
    layers: int


SIZES = {
    "d0": Size("EfficientNetB0", 512, 64, 3),
    "d1": Size("EfficientNetB1", 640, 88, 4),
    "d2": Size("EfficientNetB2", 768, 112, 5),
}


@keras.saving.register_keras_serializable("veil")
class WeightedSum(layers.Layer):  # type: ignore[misc]
    """Fast normalised fusion: a sum of inputs of one shape with learned, non-negative weights."""

    def build(self, input_shape: Any) -> None:
        self.shares = self.add_weight(shape=(len(input_shape),), initializer="ones", name="shares")

    def call(self, inputs: Any) -> Any:
        shares = ops.relu(self.shares)
        shares = shares / (ops.sum(shares) + FUSION_EPSILON)
        return sum(
            share * each
            for share, each in zip(ops.unstack(shares, len(inputs)), inputs, strict=True)
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0]


def efficientdet(size: str, classes: int = 1) -> Any:
    """Return a network with new weights.

    Its input is float [n, h, w, 3], RGB 0 to 255, with sides that are multiples of 128. Of its
    outputs, ``faces`` [n, a, classes] are logits and ``boxes`` [n, a, 4] offsets from
    training.efficientdet.anchors.anchors.
    """
    chosen = SIZES[size]
    pictures = keras.Input((None, None, 3), name="pictures")
    normalised = layers.Rescaling(255.0 / DEVIATION, -255.0 * MEAN / DEVIATION, name="normalised")(
        pictures
    )
    maps = _pyramid_inputs(_stages(chosen.backbone)(normalised), chosen.channels)
    for number in range(chosen.layers):
        maps = _bifpn(maps, chosen.channels, f"bifpn{number}")
    start = -np.log((1 - PRIOR) / PRIOR)
    faces = _head(maps, chosen.channels, classes, "faces", keras.initializers.Constant(start))
    boxes = _head(maps, chosen.channels, 4, "boxes", "zeros")
    return keras.Model(pictures, {"faces": faces, "boxes": boxes}, name=f"efficientdet_{size}")


def load_backbone(model: Any, size: str, weights: str) -> None:
    """Load weights into the backbone of `model`.

    `weights` is "imagenet", or the path of an .h5 file of the EfficientNet without its top. Raise
    TrainingFailed if they can't be loaded or belong to another network.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras prints its downloads on stdout
            source = getattr(keras.applications, SIZES[size].backbone)(
                include_top=False, weights=weights
            )
    except Exception as error:  # Keras documents no types for a failed download or a damaged file
        reason = " ".join(str(error).split())[:160]
        raise TrainingFailed(
            f"cannot load --weights {weights} ({reason}): fine-tune the default detector with "
            "--start default in their place, or use --weights none, or the path of "
            f"{SIZES[size].backbone}'s weights without its top"
        ) from None
    known = {layer.name: layer for layer in source.layers}
    for layer in model.get_layer("backbone").layers:
        # `efficientdet` normalises the pictures itself.
        if layer.weights and not isinstance(layer, layers.Normalization):
            layer.set_weights(known[layer.name].get_weights())


def _stages(name: str) -> Any:
    """Return the backbone, whose outputs are the last maps at strides of 8, 16 and 32 pixels."""
    network = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    for layer in network.layers:
        if isinstance(layer, layers.Dropout):
            # Stochastic depth adds noise to small batches, and makes a resumed run differ.
            layer.rate = 0.0
    last = {layer.name[: len("block3")]: layer.output for layer in network.layers}
    return keras.Model(
        network.input, [last[block] for block in ("block3", "block5", "block7")], name="backbone"
    )


def _pyramid_inputs(stages: list[Any], channels: int) -> list[Any]:
    """Return the maps of all LEVELS: those of the backbone, and two halved from its last."""
    sixth = _halved(_projected(stages[-1], channels, "p6"))
    return [*stages, sixth, _halved(sixth)]


def _bifpn(maps: list[Any], channels: int, name: str) -> list[Any]:
    """Return the maps after one layer of the pyramid: a pass from coarse to fine, and one back."""

    def own(level: int, way: str) -> Any:
        """Return the map of the level, projected if it has the channels of the backbone."""
        source = maps[level]
        if source.shape[-1] == channels:
            return source
        return _projected(source, channels, f"{name}_{way}{LEVELS[level]}_own")

    last = len(maps) - 1
    down = {last: maps[last]}
    for level in range(last - 1, -1, -1):
        finer = layers.UpSampling2D(2, interpolation="nearest")(down[level + 1])
        down[level] = _node([own(level, "down"), finer], channels, f"{name}_down{LEVELS[level]}")
    out = [down[0]]
    for level in range(1, last):
        inputs = [own(level, "up"), down[level], _halved(out[-1])]
        out.append(_node(inputs, channels, f"{name}_up{LEVELS[level]}"))
    out.append(_node([maps[last], _halved(out[-1])], channels, f"{name}_up{LEVELS[last]}"))
    return out


def _node(inputs: list[Any], channels: int, name: str) -> Any:
    summed = layers.Activation("swish")(WeightedSum(name=f"{name}_sum")(inputs))
    return _norm(f"{name}_norm")(
        layers.SeparableConv2D(channels, 3, padding="same", use_bias=False, name=name)(summed)
    )


def _head(maps: list[Any], channels: int, values: int, name: str, start: Any) -> Any:
    """Return `values` numbers for each anchor of all maps.

    The levels share their convolutions, but not their normalisations.
    """
    convolutions = [
        layers.SeparableConv2D(
            channels, 3, padding="same", use_bias=False, name=f"{name}_conv{depth}"
        )
        for depth in range(HEAD_DEPTH)
    ]
    last = layers.SeparableConv2D(
        PER_POINT * values,
        3,
        padding="same",
        pointwise_initializer=keras.initializers.RandomNormal(stddev=NEW_DEVIATION),
        bias_initializer=start,
        dtype="float32",
        name=f"{name}_last",
    )
    outputs = []
    for level, features in zip(LEVELS, maps, strict=True):
        for depth, convolution in enumerate(convolutions):
            normalised = _norm(f"{name}_norm{depth}_{level}")(convolution(features))
            features = layers.Activation("swish")(normalised)
        outputs.append(layers.Reshape((-1, values), dtype="float32")(last(features)))
    return layers.Concatenate(axis=1, dtype="float32", name=name)(outputs)


def _projected(source: Any, channels: int, name: str) -> Any:
    return _norm(f"{name}_norm")(layers.Conv2D(channels, 1, use_bias=False, name=name)(source))


def _halved(source: Any) -> Any:
    return layers.MaxPooling2D(3, strides=2, padding="same")(source)


def _norm(name: str) -> Any:
    return layers.BatchNormalization(momentum=NORM_MOMENTUM, epsilon=NORM_EPSILON, name=name)
