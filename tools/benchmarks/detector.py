"""The engines of the detector, compared with ONNX Runtime on the same weights and canvases.

Each engine has its own process on PROCESSORS processors (all by default). Rounds of the engines
alternate, and the canvases are photographs. ONNX Runtime, from the environment of the benchmark
`peer`, only runs the network; the other engines also decode its output. ROUNDS and SHAPES
(704x960,…, height first) configure the benchmark.
"""

import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from tools.benchmarks import peer
from tools.benchmarks.harness import child, pictures
from tools.benchmarks.harness.child import Child
from worker.detection.centerface.default import WEIGHTS
from worker.settings import WorkerSettings

ENGINES = ("litert", "tensorflow")
REFERENCE = "onnxruntime"
SHAPES = "320x512,704x960,960x1280"
ROUNDS = 5
REPEAT = 4  # runs per round


def run() -> None:
    """Print a line for each engine and shape."""
    count = int(os.environ.get("PROCESSORS") or len(os.sched_getaffinity(0)))
    table = Table("canvas", "engine", "pictures/s", "MP/s", "MP/s of a core", f"to {REFERENCE}")
    with TemporaryDirectory(prefix="veil-bench-") as name:
        folder = Path(name)
        weights = folder / "network.onnx"
        weights.write_bytes(of_any_size(WEIGHTS.fetch()))
        script: list[str | Path] = [
            peer.environment(),
            Path(__file__).parent / "harness" / "detector_onnxruntime.py",
            weights,
            str(count),
        ]
        ours = [[sys.executable, "-m", __name__, engine, str(count)] for engine in ENGINES]
        with (
            child.started(ENGINES[0], ours[0], folder) as litert,
            child.started(ENGINES[1], ours[1], folder) as tensorflow,
            child.started(REFERENCE, script, folder) as reference,
        ):
            sides = {REFERENCE: reference, ENGINES[0]: litert, ENGINES[1]: tensorflow}
            for shape in (os.environ.get("SHAPES") or SHAPES).split(","):
                height, width = (int(side) for side in shape.split("x"))
                canvas = folder / f"{shape}.npy"
                photograph = next(pictures.photographs(1))
                np.save(
                    canvas,
                    np.asarray(ImageOps.fit(photograph, (width, height), Image.Resampling.BICUBIC)),
                )
                figures = _compare(
                    sides, canvas, height * width / 1e6, int(os.environ.get("ROUNDS") or ROUNDS)
                )
                for engine, measured in figures.items():
                    line = {
                        "bench": "detector",
                        "engine": engine,
                        "canvas": shape,
                        "processors": count,
                        **measured,
                    }
                    print(json.dumps(line), flush=True)
                    table.add_row(shape, engine, *(f"{value:.2f}" for value in measured.values()))
    Console(stderr=True).print(table)


def _compare(
    sides: dict[str, Child], canvas: Path, megapixels: float, rounds: int
) -> dict[str, dict[str, float]]:
    used = {name: {"seconds": 0.0, "cpu_seconds": 0.0} for name in sides}
    for side in sides.values():
        side.ask(canvas=str(canvas), repeat=2)
    for number in range(rounds):
        for name, side in list(sides.items())[:: 1 if number % 2 else -1]:
            answer = side.ask(canvas=str(canvas), repeat=REPEAT)
            for key in used[name]:
                used[name][key] += answer[key]
    runs = rounds * REPEAT
    return {
        name: {
            "pictures_per_second": round(runs / spent["seconds"], 3),
            "megapixels_per_second": round(runs * megapixels / spent["seconds"], 3),
            "megapixels_per_cpu_second": round(runs * megapixels / spent["cpu_seconds"], 3),
            f"ratio_to_{REFERENCE}": round(used[REFERENCE]["seconds"] / spent["seconds"], 3),
        }
        for name, spent in used.items()
    }


def of_any_size(weights: bytes) -> bytes:
    """Return the ONNX file `weights` with an input of any size."""
    model = onnx.load_from_string(weights)
    for tensor in (*model.graph.input, *model.graph.output):
        for number, size in enumerate(tensor.type.tensor_type.shape.dim):
            if number != 1:
                size.dim_param = f"{tensor.name} {number}"
    content: bytes = model.SerializeToString()
    return content


def main(engine: str, count: int) -> None:
    """Serve measurements of an engine of Veil on `count` processors."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    from worker.models import load_model

    model = load_model(WorkerSettings.model_validate({"engine": engine, "concurrency": 1}))

    def measured(canvas: str, repeat: int) -> dict[str, Any]:
        batch = np.load(canvas)[None]
        started, used = time.perf_counter(), time.process_time()
        for _ in range(repeat):
            model.predict(batch)
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}

    child.serve(measured)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
