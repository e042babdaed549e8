"""Measure the calibration of a network: run it in floats on pictures, and record every channel."""

from collections.abc import Iterable, Mapping

import numpy as np

from worker.detection.centerface.calibration import Calibration, Floats
from worker.detection.centerface.network import Addition, Convolution, Network
from worker.detection.tf import tf
from worker.pixels import Pixels

LEAST = 1e-3  # lower limit for channels and weights, as a share of the largest one
PICTURE_RANGE = 0.0, 255.0

# The minimum and the maximum of each channel, by tensor.
Spans = dict[str, tuple[Floats, Floats]]


def calibrated(network: Network, pictures: Iterable[Pixels]) -> Calibration:
    """Return the calibration of `network` by `pictures`, which are canvases that it may be given.

    They are uint8 RGB [height, width, 3], with sides that are multiples of 32.
    """
    found = spans(network, pictures)
    # The file rounds the scales, and the ranges must fit the rounded ones.
    scaled = Calibration.parse(Calibration(scales(network, found), {}).written()).scales
    ranges = {network.picture: PICTURE_RANGE}
    for name in scaled:
        low, high = (span / scaled[name] for span in found[name])
        ranges[name] = min(0.0, float(low.min())), float(high.max())
    return Calibration.parse(Calibration(scaled, ranges).written())


def spans(network: Network, pictures: Iterable[Pixels]) -> Spans:
    """Return the range of each channel of each tensor over all `pictures`."""

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.float32)], autograph=False)
    def measured(picture):  # type: ignore[no-untyped-def]
        tensors = network.tensors(picture)
        return {
            name: (tf.reduce_min(t, [0, 1, 2]), tf.reduce_max(t, [0, 1, 2]))
            for name, t in tensors.items()
        }

    found: Spans = {}
    for picture in pictures:
        for name, (low, high) in measured(tf.constant(picture[None].astype(np.float32))).items():
            low, high = low.numpy(), high.numpy()
            if name in found:
                low, high = np.minimum(low, found[name][0]), np.maximum(high, found[name][1])
            found[name] = low, high
    return found


def tied(network: Network) -> list[set[str]]:
    """Return groups of tensors that need one scale: the terms and results of additions."""
    groups: list[set[str]] = [{step.target} for step in network.steps]
    for step in network.steps:
        if isinstance(step, Addition):
            names = {*step.sources, step.target}
            joined = set().union(*(group for group in groups if group & names))
            groups = [group for group in groups if not group & names] + [joined]
    return groups


def scales(network: Network, found: Spans) -> Mapping[str, Floats]:
    """Return a factor of at most 1 for each channel that minimises the loss of rounding to 8 bits.

    If only depthwise convolutions read a tensor, each channel uses all 8 bits, because it has its
    own weights. Otherwise the precision of a channel costs precision of its weights. The factor
    balances both by their geometric mean, as in SmoothQuant (Xiao et al. 2023, arXiv:2211.10438)
    with alpha 0.5.
    """
    result: dict[str, Floats] = {}
    convolutions = [
        *(step for step in network.steps if isinstance(step, Convolution)),
        network.heads,
    ]
    for names in tied(network):
        readers = [each for each in convolutions if each.source in names]
        values = _no_less(np.max([np.abs(span) for name in names for span in found[name]], axis=0))
        scale = values
        if not all(reader.depthwise for reader in readers):
            weights = np.max(
                [np.abs(reader.kernel).max(axis=(0, 1, 3)) for reader in readers], axis=0
            )
            scale = np.sqrt(values / _no_less(weights))
        result |= dict.fromkeys(names, (scale / scale.max()).astype(np.float32))
    return {step.target: result[step.target] for step in network.steps}


def _no_less(values: Floats) -> Floats:
    return values.clip(LEAST * values.max())
