"""Parameters and multiply-adds of the bundled network and of the trainable EfficientDets.

A multiplication and an addition count as one, as in the EfficientDet paper, which calls them FLOPs.
Only convolutions count.
"""

import json
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

from worker.detection.centerface.default import WEIGHTS

SIDE = 768  # side of the pictures of D2 in the paper, in pixels
COCO_CLASSES = 90  # classes of the networks in the paper
# Tan, Pang and Le, "EfficientDet", CVPR 2020, table 2: millions of parameters, billions of
# multiply-adds.
PAPER = {"d0": (3.9, 2.5), "d1": (6.6, 6.1), "d2": (8.1, 11.0)}


def run() -> None:
    """Print a line for each network."""
    # Importing Keras takes seconds, and no other benchmark needs it.
    from training.efficientdet.model import SIZES, efficientdet

    rows = [bundled(SIDE)]
    for size, chosen in SIZES.items():
        rows.append(
            {"network": f"EfficientDet-{size.upper()}, one class"}
            | cost(efficientdet(size), chosen.side)
        )
        parameters, multiply_adds = PAPER[size]
        paper = {"paper_parameters": parameters * 1e6, "paper_multiply_adds": multiply_adds * 1e9}
        name = f"EfficientDet-{size.upper()}, {COCO_CLASSES} classes"
        rows.append({"network": name} | cost(efficientdet(size, COCO_CLASSES), chosen.side) | paper)
    table = Table("network", "side", "parameters", "multiply-adds", "of the paper's")
    for row in rows:
        print(json.dumps({"bench": "networks", **row}), flush=True)
        names = [name for name in ("parameters", "multiply_adds") if f"paper_{name}" in row]
        shares = [f"{row[name] / row[f'paper_{name}']:.1%}" for name in names]
        table.add_row(
            row["network"],
            str(row["side"]),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['multiply_adds'] / 1e9:.2f} B",
            ", ".join(shares),
        )
    Console(stderr=True).print(table)


def cost(model: Any, side: int) -> dict[str, Any]:
    """Return parameters and multiply-adds of a Keras network for a picture of `side` x `side`."""
    from worker.detection.tf import tf

    spec = tf.TensorSpec([1, side, side, 3], tf.float32)
    graph = (
        tf.function(lambda pictures: model(pictures, training=False))
        .get_concrete_function(spec)
        .graph
    )
    count = 0
    for operation in graph.get_operations():
        if operation.type in ("Conv2D", "DepthwiseConv2dNative"):
            height, width, channels, _ = operation.inputs[1].shape
            outputs = operation.outputs[0].shape.num_elements()
            count += outputs * height * width * (channels if operation.type == "Conv2D" else 1)
    parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)
    return {"side": side, "parameters": parameters, "multiply_adds": count}


def bundled(side: int) -> dict[str, Any]:
    """Return the same figures of CenterFace, from its ONNX file."""
    network = onnx.load_from_string(WEIGHTS.fetch())
    for size, value in zip(
        network.graph.input[0].type.tensor_type.shape.dim, (1, 3, side, side), strict=True
    ):
        size.dim_value = value
    del network.graph.value_info[:]
    for output in network.graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(network).graph
    shapes = {
        each.name: [size.dim_value for size in each.type.tensor_type.shape.dim]
        for each in [*graph.value_info, *graph.output, *graph.input]
    }
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    count = 0
    for node in graph.node:
        if node.op_type == "Conv":  # a kernel for each output value
            count += int(np.prod(shapes[node.output[0]])) * int(
                np.prod(weights[node.input[1]].shape[1:])
            )
        elif node.op_type == "ConvTranspose":  # and for each input value
            count += int(np.prod(shapes[node.input[0]])) * int(
                np.prod(weights[node.input[1]].shape[1:])
            )
    parameters = sum(int(each.size) for each in weights.values())
    return {
        "network": "CenterFace, bundled",
        "side": side,
        "parameters": parameters,
        "multiply_adds": count,
    }
