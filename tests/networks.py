"""Small networks for tests of training, with the outputs of an EfficientDet."""

from importlib import import_module
from typing import Any

from training.backend import keras, layers
from training.efficientdet.anchors import PER_POINT, STRIDES

EFFICIENTNET = import_module(keras.applications.EfficientNetB0.__module__)


def small_network(size: str, classes: int = 1) -> Any:
    """Return a network that takes what EfficientDet takes, and is built in a moment.

    Its layers ``faces_last`` and ``boxes_last`` make the outputs of all strides.
    """
    pictures = keras.Input((None, None, 3))
    inner = keras.Input((None, None, 3))
    body = keras.Model(
        inner,
        layers.BatchNormalization()(layers.Conv2D(4, 3, 8, padding="same", use_bias=False)(inner)),
    )
    body.name = "backbone"
    maps = body(layers.Rescaling(1 / 255)(pictures))
    last = {
        "faces": layers.Conv2D(classes * PER_POINT, 1, name="faces_last"),
        "boxes": layers.Conv2D(4 * PER_POINT, 1, name="boxes_last"),
    }
    said = {}
    for name, values in (("faces", classes), ("boxes", 4)):
        levels = []
        for stride in STRIDES:
            level = layers.AveragePooling2D(stride // 8)(maps) if stride > 8 else maps
            levels.append(layers.Reshape((-1, values))(last[name](level)))
        said[name] = layers.Concatenate(axis=1)(levels)
    return keras.Model(pictures, said)


def shallow_b0(**options: Any) -> Any:
    """Return an EfficientNetB0 with one block in place of up to four of a kind.

    It is traced in half of the time.
    """
    width, depth, side = 1.0, 0.01, 224
    return EFFICIENTNET.EfficientNet(width, depth, side, weights_name="b0", **options)
