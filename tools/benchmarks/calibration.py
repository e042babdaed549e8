"""Calibrate the 8-bit version of the default detector.

``python -m tools.benchmarks.calibration`` rewrites
``worker/detection/centerface/calibration.json``. It runs the network in floats on one picture in
EVERY of the annotated sets, as `veil anonymize` does, and records the range of every channel. It
does not use annotations. FACES_DATA is the folder of the sets. ``make bench ONLY=exposure``
measures the result.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from tools.benchmarks.exposure import SETS, sources
from worker.detection.centerface import SCORE_THRESHOLD, WEIGHTS
from worker.detection.centerface.network import (
    CALIBRATION,
    Addition,
    Calibration,
    Convolution,
    Floats,
    Network,
)
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections
from worker.detection.tf import tf
from worker.detection.tiled import one_by_one
from worker.pixels import Pixels
from worker.settings import WorkerSettings

EVERY = 6
LEAST = 1e-3  # lower limit for channels and weights, as a share of the largest one
PICTURE_RANGE = 0.0, 255.0

# The minimum and the maximum of each channel, by tensor.
Spans = dict[str, tuple[Floats, Floats]]


def canvases(folder: Path) -> Iterator[Pixels]:
    """Yield the network's inputs for some of the pictures in `folder`."""
    inputs: list[Pixels] = []

    def infer(canvas: Pixels) -> Detections:
        inputs.append(canvas)
        return Detections.none()

    look = replace(WorkerSettings().pass_settings(), turned="never")
    detector = ScaledDetector(one_by_one(infer), look, SCORE_THRESHOLD)
    for path in sorted(folder.iterdir())[::EVERY]:
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert pixels is not None
        detector.detect(np.ascontiguousarray(pixels[..., ::-1].astype(np.uint8)))
        yield from inputs
        inputs.clear()


def spans(network: Network, pictures: Iterator[Pixels]) -> Spans:
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


def main() -> int:
    data, _ = sources()
    missing = [str(data / name) for name in SETS if not (data / name).exists()]
    if missing:
        print(f"calibration needs {', '.join(missing)}", file=sys.stderr)
        return 1
    network = Network.of(WEIGHTS.fetch())
    found = spans(network, (canvas for name in SETS for canvas in canvases(data / name / "images")))
    # Writing rounds the scales, and the ranges must fit the rounded ones.
    CALIBRATION.write_text(Calibration(scales(network, found), {}).written())
    scaled = Calibration.read(CALIBRATION).scales
    ranges = {network.picture: PICTURE_RANGE}
    for name in scaled:
        low, high = (span / scaled[name] for span in found[name])
        ranges[name] = min(0.0, float(low.min())), float(high.max())
    CALIBRATION.write_text(Calibration(scaled, ranges).written())
    return 0


if __name__ == "__main__":
    sys.exit(main())
