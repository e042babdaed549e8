"""CenterFace as a kind of network that can be trained: it starts from weights, and runs on CPUs."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tasks.errors import TrainingFailed
from training import checkpoint
from training.augmentation import Example
from training.backend import ON_TENSORFLOW
from training.centerface import model as centerface
from training.centerface.losses import CentreLoss, HeatLoss
from training.centerface.targets import Floats, targets
from training.data.dataset import FACE
from training.network import DEFAULT, LEAST_SCORE
from training.run import Run, remedy
from worker.detection.centerface.known_face import photograph
from worker.detection.centerface.maps import STRIDE, Layout, decode
from worker.detection.centerface.measuring import calibrated
from worker.detection.centerface.network import SIDE_MULTIPLE, Network, in_eight_bits, save
from worker.detection.faces import Detections
from worker.detection.model import NETWORK
from worker.detection.saved_model import SavedModel
from worker.detection.tf import tf
from worker.pixels import Pixels
from worker.process.silence import silenced

# In the folder of a run: the difference of the network in 8 bits, and the SHA-256 of its file.
DIFFERENCE = "network.json"
# The largest difference of scores and normalised corners between the network and the saved model.
TOLERANCE = 1e-3
# The network in 8 bits is left out of an export if its scores differ by more than this on average,
# over the points of the training pictures that either network scores this high.
MAX_SCORE_DIFFERENCE, COMPARED_SCORE = 0.1, 0.1
# Learning rates for faces, which the published weights know, and for other labels, whose weights
# are random. With three times the second one, the loss of plates rose; with a third, it fell more
# slowly.
KNOWN_RATE, NEW_RATE = 0.001, 0.01
COMPARED_EVERY = 4  # Of the canvases by which the network is calibrated.


@dataclass(frozen=True)
class CenterFace:
    """CenterFace for the labels `classes`, without the landmarks of the default model."""

    classes: tuple[str, ...]
    name: str = "CenterFace"
    side: int = 320
    multiple: int = SIDE_MULTIPLE
    is_relative: bool = True
    titles: dict[str, str] = field(
        default_factory=lambda: {
            "faces": "focal loss, of the scores",
            "boxes": "smooth L1 loss, of the boxes",
        }
    )

    @property
    def learning_rate(self) -> float:
        return KNOWN_RATE if self.classes == (FACE,) else NEW_RATE

    def build(self) -> Any:
        if not ON_TENSORFLOW:
            raise TrainingFailed("--start needs TensorFlow: run this with KERAS_BACKEND=tensorflow")
        return centerface.keras_network(len(self.classes))

    def start(self, model: Any, weights: str, seed: int) -> None:
        """Give `model` the published weights, or those of the finished run in the folder `weights`.

        Classes of the same label keep their weights, others get random ones that depend on `seed`.
        """
        known: tuple[str, ...] = (FACE,)
        if weights == DEFAULT:
            network = centerface.published()
        else:
            network, known = _network_of_run(Run.load(Path(weights)))
        random = np.random.default_rng(seed)
        centerface.assign(model, centerface.with_labels(network, known, self.classes, random))

    def frozen(self, model: Any) -> list[Any]:
        return centerface.frozen(model)

    def losses(self) -> dict[str, Any]:
        return {"faces": HeatLoss(), "boxes": CentreLoss()}

    def targets(self, example: Example, side: int) -> dict[str, Floats]:
        return targets(example, side, len(self.classes))

    def detections(self, model: Any, pictures: Floats) -> list[Detections]:
        outputs = model.predict_on_batch(pictures)
        maps = np.concatenate([outputs["faces"], outputs["boxes"]], axis=-1)
        layout = Layout(len(self.classes), landmarks=0)
        return [decode(each, LEAST_SCORE, layout) for each in maps]

    def finish(self, model: Any, pictures: Iterable[Pixels], folder: Path) -> None:
        """Write the network in 8 bits, calibrated by `pictures`, and its difference in floats."""
        network, canvases = centerface.trained(model), list(pictures)
        calibration = calibrated(network, canvases)
        flatbuffer = in_eight_bits(network, calibration.scales, calibration.ranges)
        compared = canvases[::COMPARED_EVERY]
        with silenced():  # LiteRT logs its delegate
            difference = _difference_in_eight_bits(network, flatbuffer, compared, len(self.classes))
        (folder / NETWORK).write_bytes(flatbuffer)
        stated = {"difference_in_8_bits": difference, "sha256": _sha256(flatbuffer)}
        (folder / DIFFERENCE).write_text(json.dumps(stated) + "\n")

    def save(self, model: Any, run: Path, folder: Path) -> dict[str, Any]:
        network = centerface.trained(model)
        save(network, Layout(len(self.classes), landmarks=0), folder)
        difference = _difference(model, network, folder)
        if not difference <= TOLERANCE:
            raise TrainingFailed(
                f"the saved model differs from the network by {difference:.2g}: it is not used"
            )
        layout = {"classes": len(self.classes), "landmarks": 0}
        in_8_bits, flatbuffer = _finished(run)
        if in_8_bits <= MAX_SCORE_DIFFERENCE:
            (folder / NETWORK).write_bytes(flatbuffer)
        return {"difference": difference, "maps": layout, "difference_in_8_bits": in_8_bits}


def _finished(run: Path) -> tuple[float, bytes]:
    """Return what `finish` wrote to the folder `run`: the difference, and the network in 8 bits.

    Raise TrainingFailed if it is damaged.
    """
    try:
        stated = json.loads((run / DIFFERENCE).read_text())
        flatbuffer = (run / NETWORK).read_bytes()
        if stated["sha256"] == _sha256(flatbuffer):
            return float(stated["difference_in_8_bits"]), flatbuffer
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise TrainingFailed(
        f"{run / NETWORK} is missing, or not the file that {DIFFERENCE} beside it states: "
        f"{remedy(run)}"
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _network_of_run(run: Run) -> tuple[Network, tuple[str, ...]]:
    """Return the network of a finished run, and its labels."""
    run.require_finished()
    model = centerface.keras_network(len(run.recipe.classes))
    checkpoint.restore_finished(run.folder, model)
    return centerface.trained(model), run.recipe.classes


def _difference(model: Any, network: Network, folder: Path) -> float:
    """Return the largest difference between `model` and its SavedModel in `folder`.

    It covers the scores of all points of the known photograph, as `network` computes them, which is
    in the SavedModel, and each detection of the SavedModel, compared with the most similar point.
    """
    picture = photograph()
    outputs = model.predict_on_batch(picture[None].astype(np.float32))
    expected = _scores(outputs["faces"][0])
    classes = expected.shape[-1]
    maps = network(tf.constant(picture[None], tf.float32)).numpy()[0]
    worst = float(np.abs(_scores(maps[..., :classes]) - expected).max())
    boxes = _boxes(outputs["boxes"][0])
    (found,) = SavedModel(folder).predict(picture[None])
    assert found.classes is not None
    for box, score, number in zip(found.boxes_xyxy, found.scores, found.classes, strict=True):
        corners = np.abs(boxes - box).max(axis=-1) / max(picture.shape)
        off = np.maximum(corners, np.abs(expected[..., number - 1] - score))
        worst = max(worst, float(off.min()))
    return worst


def _boxes(sizes_offsets: Floats) -> Floats:
    """Return the boxes [h, w, 4], x1 y1 x2 y2 in pixels, of maps of size and offset [h, w, 4]."""
    rows, columns = np.indices(sizes_offsets.shape[:2])
    half = np.exp(sizes_offsets[..., :2]) / 2
    centre = np.stack([rows, columns], axis=-1) + sizes_offsets[..., 2:] + 0.5
    boxes: Floats = np.concatenate([centre - half, centre + half], axis=-1) * STRIDE
    return boxes[..., [1, 0, 3, 2]]


def _difference_in_eight_bits(
    network: Network, flatbuffer: bytes, canvases: list[Pixels], classes: int
) -> float:
    """Return the mean difference of the scores of `network` and of itself in 8 bits.

    It covers the points of `canvases` that either scores COMPARED_SCORE or more.
    """
    interpreter = Interpreter(model_content=flatbuffer)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    differences = [np.zeros(0)]
    for canvas in canvases:
        interpreter.resize_tensor_input(source["index"], [1, *canvas.shape])
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], canvas[None])
        interpreter.invoke()
        rounded = _scores(interpreter.get_tensor(target["index"])[..., :classes])
        exact = _scores(network(tf.constant(canvas[None], tf.float32)).numpy()[..., :classes])
        compared = np.maximum(rounded, exact) >= COMPARED_SCORE
        differences.append(np.abs(rounded - exact)[compared])
    everything = np.concatenate(differences)
    return round(float(everything.mean()), 4) if len(everything) else 0.0


def _scores(logits: Floats) -> Floats:
    scores: Floats = 1 / (1 + np.exp(-logits.clip(-60, 60)))
    return scores
