"""Record the output of the default model for the known photograph.

``python -m tools.benchmarks.known_face`` rewrites ``worker/detection/centerface/known_face.json``.
Record it anew when the weights, BUILD, the calibration or the photograph change.

``python -m tools.benchmarks.known_face compare`` prints the largest deviation from the record for
other arithmetic, a line each: convolutions of numbers rounded to TF32 and bfloat16, and LiteRT
without XNNPACK. The tolerances of worker.detection.centerface.known_face must be larger.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from worker.detection import litert
from worker.detection.centerface import maps
from worker.detection.centerface.default import WEIGHTS
from worker.detection.centerface.known_face import (
    ANSWERS,
    TOLERANCES,
    VIEWS,
    answer,
    answers,
    confident_detections,
)
from worker.detection.faces import Detections
from worker.detection.model import Model
from worker.models import load_untested_model
from worker.pixels import Pixels
from worker.settings import WorkerSettings

FRACTION_BITS = 23  # of a float32
ROUNDED_TO = {"TF32": 10, "bfloat16": 7}


def default_model(engine: str) -> Model:
    return load_untested_model(WorkerSettings.model_validate({"model": None, "engine": engine}))


def record() -> None:
    recorded = {}
    for engine in sorted(TOLERANCES):
        model = default_model(engine)
        recorded[engine] = {
            view.name: answer(confident_detections(model, view.canvas()[0])) for view in VIEWS
        }
    ANSWERS.write_text(json.dumps(recorded, indent=1) + "\n")


def compare() -> None:
    for name, bits in ROUNDED_TO.items():
        _report(name, "tensorflow", partial(_rounded, bits))
    plain = partial(
        Interpreter, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    with patch.object(litert, "Interpreter", plain):
        model = default_model("litert")
        _report("without XNNPACK", "litert", lambda canvas: confident_detections(model, canvas))


def _report(name: str, engine: str, detect: Callable[[Pixels], Detections]) -> None:
    score = position = 0.0
    for view in VIEWS:
        now, recorded = answer(detect(view.canvas()[0])), answers()[engine][view.name]
        x1, y1, x2, y2 = recorded["box_xyxy"]
        score = max(score, abs(now["score"] - recorded["score"]))
        for part in ("box_xyxy", "landmarks"):
            off = np.abs(np.subtract(now[part], recorded[part])).max() / np.sqrt(
                (x2 - x1) * (y2 - y1)
            )
            position = max(position, float(off))
    print(
        json.dumps(
            {
                "arithmetic": name,
                "engine": engine,
                "score": round(score, 4),
                "position": round(position, 4),
            }
        )
    )


def _rounded(bits: int, canvas: Pixels) -> Detections:
    """Return the detections of the network in floats with operands of `bits` bits of fraction."""
    from worker.detection.centerface.network import Network
    from worker.detection.tf import tf

    dropped = FRACTION_BITS - bits

    def rounded(values: Any) -> Any:
        whole = tf.bitcast(tf.convert_to_tensor(values, tf.float32), tf.int32)
        return tf.bitcast(
            tf.bitwise.bitwise_and(whole + (1 << (dropped - 1)), -(1 << dropped)), tf.float32
        )

    plain, depthwise = tf.nn.conv2d, tf.nn.depthwise_conv2d
    network = Network.of(WEIGHTS.fetch())
    with (
        patch.object(
            tf.nn,
            "conv2d",
            lambda values, kernel, *more: plain(rounded(values), rounded(kernel), *more),
        ),
        patch.object(
            tf.nn,
            "depthwise_conv2d",
            lambda values, kernel, *more: depthwise(rounded(values), rounded(kernel), *more),
        ),
    ):
        return maps.decode(network(tf.constant(canvas[None].astype(np.float32))).numpy()[0])


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["compare"]):
        print(__doc__, file=sys.stderr)
        return 2
    compare() if arguments else record()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
