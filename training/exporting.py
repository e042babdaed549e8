"""``veil train export``: write a finished run as a SavedModel for workers, and as one ZIP file.

This module needs TensorFlow, whatever backend Keras used for the training.
"""

import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.errors import ModelInvalid, TrainingFailed
from training import folders
from training.backend import ON_TENSORFLOW
from training.fitting import finished_model
from training.networks import network_of
from training.run import WEIGHTS, Run, stated
from worker.detection.centerface import known_face
from worker.detection.model import DEFAULT_THRESHOLD, METADATA, digest_of, stated_labels
from worker.detection.tf import tf
from worker.local_files import write_atomically
from worker.models import load_folder
from worker.settings import WorkerSettings

SAVED_MODEL = "saved_model"
ZIP = "saved_model.zip"
ORIGIN = "saved_model.json"  # in the folder of a run: what made its SavedModel, and its digest


@dataclass(frozen=True)
class Exported:
    """An exported model, and its largest difference from the Keras network."""

    folder: Path
    zip: Path
    metadata: dict[str, Any]
    difference: float


def export(run: Run, to: Path, threshold: float | None) -> Exported:
    """Write ``saved_model/`` and ``saved_model.zip`` to the folder `to`, all or nothing.

    `threshold` becomes the model's own; the default is the one that the last evaluation of the run
    on `val` proposed, else 0.5. Raise TrainingFailed if the run isn't finished or the saved model
    differs from the network, ModelInvalid if a worker would refuse it, and OutputFailed if `to`
    contains something else than an export, or can't be written.
    """
    folders.refuse_content(to, (SAVED_MODEL, ZIP))
    saved = saved_model(run)
    chosen = threshold or _own_threshold(run)
    facts = _read_json(saved / METADATA)
    difference = float(facts.pop("difference"))
    metadata: dict[str, Any] = {
        "score_threshold": round(chosen, 4),
        "network": network_of(run.recipe.size, run.recipe.classes).name,
        **facts,
        "side": run.recipe.side,
        "recipe": run.recipe.digest,
        "data": run.data,
        "training": run.recipe.content,
        "veil": version("veil"),
    }
    if evaluation := run.evaluation():
        metadata["evaluation"] = stated(evaluation)
    with folders.replaced(to) as work:
        shutil.copytree(saved, work / SAVED_MODEL)
        _write_metadata(work / SAVED_MODEL, metadata)
        _self_test(work / SAVED_MODEL, str(run.folder), chosen)
        _zip(work / SAVED_MODEL, work / ZIP)
    return Exported(to / SAVED_MODEL, to / ZIP, metadata, difference)


def refusal(run: Run) -> str | None:
    """Return the reason why `run` can't be exported at its own threshold; None if it can.

    Raise the errors of `saved_model`.
    """
    saved = saved_model(run)
    try:
        _self_test(saved, str(run.folder), _own_threshold(run))
    except ModelInvalid as error:
        return str(error)
    return None


def _own_threshold(run: Run) -> float:
    return run.threshold() or DEFAULT_THRESHOLD


def _self_test(folder: Path, name: str, threshold: float) -> None:
    """Test the model in `folder` as a worker does that loads it, at `threshold`.

    `name` is its name in messages. Raise ModelInvalid if it fails.
    """
    settings = WorkerSettings.load().model_copy(update={"score_threshold": threshold})
    model = load_folder(settings, folder, name=name)
    known_face.try_own(model, threshold, stated_labels(folder))


def saved_model(run: Run) -> Path:
    """Return the folder of the run's SavedModel, which is in the folder of the run.

    It is written if it does not exist, if it has changed since it was written, or if other weights
    or other versions of Veil or TensorFlow made it. Raise the errors of `export`.
    """
    if not ON_TENSORFLOW:
        raise TrainingFailed(
            "a SavedModel is written by TensorFlow: run this with KERAS_BACKEND=tensorflow"
        )
    run.require_finished()
    folder = run.folder / SAVED_MODEL
    origin = _origin(run)
    if _read_json(run.folder / ORIGIN) != {**origin, "files": digest_of(folder)}:
        network = network_of(run.recipe.size, run.recipe.classes)
        with folders.replaced(folder) as work:
            facts = network.save(finished_model(run), run.folder, work)
            labels = {str(number): label for number, label in enumerate(run.recipe.classes, 1)}
            _write_metadata(work, {"labels": labels, **facts})
        content = json.dumps({**origin, "files": digest_of(folder)}, indent=1) + "\n"
        write_atomically(run.folder / ORIGIN, content.encode())
    return folder


def _origin(run: Run) -> dict[str, str]:
    """Return the digest of the weights and the versions that decide the SavedModel of a run."""
    path = run.folder / WEIGHTS
    try:
        with path.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingFailed(f"{path} can't be read: {error.strerror}") from None
    return {"weights": weights, "veil": version("veil"), "tensorflow": tf.__version__}


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in the JSON file `path`; an empty one if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    (folder / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")


def _zip(folder: Path, path: Path) -> None:
    """Write the files of `folder` to an archive whose bytes depend on the model only.

    All entries have the same date.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes())
    with path.open("rb") as written:
        os.fsync(written.fileno())
