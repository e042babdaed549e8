"""EfficientDet in Keras: an EfficientNet backbone, a bidirectional feature pyramid, and two heads over its levels.

Tan, Pang and Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020, arXiv:1911.09070; constants that
the paper does not give are those of its reference implementation (google/automl, Apache-2.0).
"""

import contextlib
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.errors import TrainingFailed
from training.anchors import LEVELS, PER_POINT
from training.backend import keras, layers, ops

PRIOR = 0.01  # the share of anchors that the untrained network takes for faces (Lin et al., section 4.1)
FUSION_EPSILON = 1e-4  # paper, section 3.3
NORM_MOMENTUM, NORM_EPSILON = 0.99, 1e-3  # reference implementation
HEAD_DEPTH = 3  # paper, table 1: D0 to D2
# What ImageNet weights expect: Keras' EfficientNet scales by 1/255 itself and leaves the rest to weights.
MEAN = np.array([0.485, 0.456, 0.406]) * 255
DEVIATION = np.array([0.229, 0.224, 0.225]) * 255


@dataclass(frozen=True)
class Size:
    """One row of the paper's table 1: the backbone's number, the picture's side, the pyramid's channels and layers."""

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
    """Fast normalised fusion: a sum of equal shapes, each with a learned weight that is not negative."""

    def build(self, input_shape: Any) -> None:
        self.shares = self.add_weight(shape=(len(input_shape),), initializer="ones", name="shares")

    def call(self, inputs: Any) -> Any:
        shares = ops.relu(self.shares)
        shares = shares / (ops.sum(shares) + FUSION_EPSILON)
        return sum(share * each for share, each in zip(ops.unstack(shares, len(inputs)), inputs, strict=True))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0]


def efficientdet(size: str, classes: int = 1) -> Any:
    """A network with new weights: pictures float [n, h, w, 3], RGB 0 to 255, sides multiples of 128, to two outputs.

    ``faces`` [n, a, classes] are logits and ``boxes`` [n, a, 4] offsets from training.anchors.anchors.
    """
    chosen = SIZES[size]
    pictures = keras.Input((None, None, 3), name="pictures")
    normalised = layers.Rescaling(255.0 / DEVIATION, -255.0 * MEAN / DEVIATION, name="normalised")(pictures)
    maps = _pyramid_inputs(_stages(chosen.backbone)(normalised), chosen.channels)
    for number in range(chosen.layers):
        maps = _bifpn(maps, chosen.channels, f"bifpn{number}")
    start = -np.log((1 - PRIOR) / PRIOR)
    faces = _head(maps, chosen.channels, classes, "faces", keras.initializers.Constant(start))
    boxes = _head(maps, chosen.channels, 4, "boxes", "zeros")
    return keras.Model(pictures, {"faces": faces, "boxes": boxes}, name=f"efficientdet_{size}")


def load_backbone(model: Any, size: str, weights: str) -> None:
    """Copy what `weights` says ("imagenet", or an EfficientNet's .h5 without its top) into the backbone of `model`.

    TrainingFailed when they can't be had or are another network's.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras tells of downloads where results are printed
            source = getattr(keras.applications, SIZES[size].backbone)(include_top=False, weights=weights)
    except Exception as error:  # of the download, or of the file
        reason = " ".join(str(error).split())[:160]
        raise TrainingFailed(
            f"--weights {weights} can't be had ({reason}): use --weights none, or the path of {SIZES[size].backbone}'s "
            "weights without its top"
        ) from None
    known = {layer.name: layer for layer in source.layers}
    for layer in model.get_layer("backbone").layers:
        # The pictures are normalised before they come here.
        if layer.weights and not isinstance(layer, layers.Normalization):
            layer.set_weights(known[layer.name].get_weights())


def _stages(name: str) -> Any:
    """The backbone: pictures to the last feature maps at strides of 8, 16 and 32 pixels."""
    network = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(None, None, 3))
    for layer in network.layers:
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0  # stochastic depth makes small batches noisier still, and a resumed run differ
    last = {layer.name[: len("block3")]: layer.output for layer in network.layers}
    return keras.Model(network.input, [last[block] for block in ("block3", "block5", "block7")], name="backbone")


def _pyramid_inputs(stages: list[Any], channels: int) -> list[Any]:
    """The maps of all LEVELS: the backbone's, and two made from its last by halving."""
    sixth = _halved(_projected(stages[-1], channels, "p6"))
    return [*stages, sixth, _halved(sixth)]


def _bifpn(maps: list[Any], channels: int, name: str) -> list[Any]:
    """One layer of the pyramid: from coarse to fine, then from fine to coarse, each way with its own sums."""

    def own(level: int, way: str) -> Any:
        """The level's own map, projected once for each use where it still has the backbone's channels."""
        its = maps[level]
        return its if its.shape[-1] == channels else _projected(its, channels, f"{name}_{way}{LEVELS[level]}_own")

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
    return _norm(f"{name}_norm")(layers.SeparableConv2D(channels, 3, padding="same", use_bias=False, name=name)(summed))


def _head(maps: list[Any], channels: int, values: int, name: str, start: Any) -> Any:
    """`values` for each anchor of all maps. The levels share convolutions; each has its own normalisation."""
    convolutions = [
        layers.SeparableConv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv{depth}")
        for depth in range(HEAD_DEPTH)
    ]
    last = layers.SeparableConv2D(
        PER_POINT * values, 3, padding="same", bias_initializer=start, dtype="float32", name=f"{name}_last"
    )
    said = []
    for level, its in zip(LEVELS, maps, strict=True):
        for depth, convolution in enumerate(convolutions):
            its = layers.Activation("swish")(_norm(f"{name}_norm{depth}_{level}")(convolution(its)))
        said.append(layers.Reshape((-1, values), dtype="float32")(last(its)))
    return layers.Concatenate(axis=1, dtype="float32", name=name)(said)


def _projected(source: Any, channels: int, name: str) -> Any:
    return _norm(f"{name}_norm")(layers.Conv2D(channels, 1, use_bias=False, name=name)(source))


def _halved(source: Any) -> Any:
    return layers.MaxPooling2D(3, strides=2, padding="same")(source)


def _norm(name: str) -> Any:
    return layers.BatchNormalization(momentum=NORM_MOMENTUM, epsilon=NORM_EPSILON, name=name)
