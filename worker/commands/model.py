"""``veil model``: build the default model, or show the one that a worker would use."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.errors import UnreadableImage
from tasks.messages import FACE
from worker import logs
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Json
from worker.local_files import read_picture
from worker.printing import printable
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.detection.faces import Detections
    from worker.searches import LoadedModel

app = CommandApp("Build or inspect the detector's model.\n\nExample: veil model info")


@app.command()
def build(as_json: Json = False) -> ExitCode:
    """Build the default model if this machine has none, and print its folder.

    The weights are downloaded once.

    Example: veil model build
    """
    from worker.detection.centerface.default import default_model

    folder = str(default_model())
    print(json.dumps({"folder": folder}) if as_json else folder)
    return ExitCode.OK


@app.command()
def info(
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also print the faces that the model finds in this picture."
        ),
    ] = None,
    as_json: Json = False,
) -> ExitCode:
    """Load and test the models that a worker would use, and print what they are.

    Example: VEIL_MODEL=/path/to/saved_model_folder veil model info --picture a.jpg
    """
    from worker.bootstrap import warn_of_faces
    from worker.models import load_models
    from worker.searches import labels_to_hide

    settings = WorkerSettings.load()
    logs.configure_command(settings.log_format)
    models = load_models(settings)
    labels = labels_to_hide(settings, models)  # The rules may name a label that no model has.
    if picture is None:  # Else the search in the picture warns.
        warn_of_faces(labels)
    descriptions = [_description(settings, one, len(models) > 1) for one in models]
    found = None if picture is None else _found(settings, models, picture)
    if as_json:
        also = {} if found is None else {"picture": found}
        described = descriptions[0] if len(models) == 1 else {"models": descriptions}
        print(json.dumps({**described, **also}))
        return ExitCode.OK
    for number, description in enumerate(descriptions):
        if number:
            print()
        _print_description(description)
    if found is not None:
        _print_found(found)
    return ExitCode.OK


def _description(
    settings: WorkerSettings, loaded: "LoadedModel", has_others: bool
) -> dict[str, Any]:
    """Return what is known of a model.

    Its labels are among it if it finds other objects than faces, or is one of several models.
    """
    from worker.detection.evaluation import stated_evaluations

    model = loaded.model
    description: dict[str, Any] = {
        "folder": str(model.folder),
        "engine": model.engine,
        "digest": model.digest,
        "score_threshold": loaded.settings.score_threshold or model.score_threshold,
        "fixed_size": model.fixed_size,
        "device": model.device,
    }
    if has_others or loaded.labels != (FACE,) or settings.rules:
        description["labels"] = [_label(settings, loaded, label) for label in loaded.labels]
    if loaded.settings.model and (evaluations := stated_evaluations(model.folder)):
        description["evaluation"] = [asdict(one) for one in evaluations]
    return description


def _label(settings: WorkerSettings, loaded: "LoadedModel", label: str) -> dict[str, Any]:
    """Return the search for `label`, and the treatment of its objects."""
    from worker import searches
    from worker.bootstrap import mask_style
    from worker.treatments import Treatments

    rules = searches.rules_of_treatment(settings)
    treatment = Treatments(mask_style(settings), loaded.labels, rules).of(label)
    own = loaded.model.score_threshold
    return {
        "label": label,
        "threshold": searches.threshold_of(loaded.settings, label, own),
        "scales": list(searches.passes_of(settings, label).scales),
        **asdict(treatment.style),
        "smallest": treatment.smallest,
        "hold": treatment.hold,
        "ignore": treatment.ignore,
    }


def _print_description(description: dict[str, Any]) -> None:
    for name, value in description.items():
        if name == "labels":
            for one in value:
                values = ", ".join(f"{key} {_said(one[key])}" for key in one if key != "label")
                print(f"label {printable(one['label'])}: {values}")
        elif name == "evaluation":
            for one in value:
                print(f"evaluation: {_evaluation_line(one)}")
        elif name == "fixed_size":
            print(f"{name}: {_size(value)}")
        else:
            print(f"{name}: {value}")


def _said(value: object) -> object:
    """Return `value` as a line of text has it."""
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _size(fixed: tuple[int, int] | None) -> str:
    """Return in words the size, height and width, that a model takes."""
    return "none, it takes any size" if fixed is None else f"{fixed[1]} x {fixed[0]}"


def _evaluation_line(evaluation: dict[str, Any]) -> str:
    label = evaluation["label"]
    objects = "faces" if label == FACE else f"objects of the label {printable(label)}"

    def line(result: dict[str, Any]) -> str:
        return (
            f"{result['exposed']:,} of {evaluation['faces']:,} {objects} exposed and "
            f"{result['spill']:.2%} of other pixels hidden"
        )

    own = f"{line(evaluation['own'])} at {evaluation['threshold']:g}"
    bundled = evaluation["bundled"]
    return own if bundled is None else f"{own}; with the bundled detector {line(bundled)}"


def _found(settings: WorkerSettings, models: "Sequence[LoadedModel]", path: Path) -> dict[str, Any]:
    """Return a description of a picture and of the objects that a worker would find in it."""
    from worker import images
    from worker.bootstrap import build_anonymizer

    content = _read(path, settings.max_bytes)
    picture = images.decode(content, settings.max_pixels, settings.max_frames)
    frames = build_anonymizer(settings, models=models).detect_frames(picture)
    return {
        "file": str(path),
        "format": picture.format,
        "width": picture.width,
        "height": picture.height,
        "frames": [_faces(detections) for detections in frames],
    }


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_picture(path, max_bytes)
    except OSError as error:
        raise UnreadableImage(f"{path} can't be read: {error.strerror}") from None


def _faces(found: "Detections") -> list[dict[str, Any]]:
    """Return a description of each face, highest score first, and the label of other objects.

    Its landmarks are those of the sighting whose box fits best; None if they are not finite.
    """
    import numpy as np

    from worker.detection.faces import overlap

    faces = []
    for row in np.argsort(-found.scores, kind="stable"):
        box = found.boxes_xyxy[row]
        sightings = found.sightings[found.sightings.face == row]
        best = int(np.argmax(overlap(box, sightings.boxes_xyxy)))
        landmarks = sightings.landmarks[best].astype(float).round(1)
        faces.append(
            {
                "score": round(float(found.scores[row]), 4),
                "box_xyxy": box.astype(float).round(1).tolist(),
                "size": (box[2:] - box[:2]).astype(float).round(1).tolist(),
                "landmarks": landmarks.tolist() if np.isfinite(landmarks).all() else None,
            }
        )
        if found.labels[row] != FACE:
            faces[-1]["label"] = str(found.labels[row])
    return faces


def _print_found(found: dict[str, Any]) -> None:
    frames = found["frames"]
    everything = [face for faces in frames for face in faces]
    counted = Counter(face.get("label", "face(s)") for face in everything)
    objects = [f"{number} {label}" for label, number in counted.items()] or ["0 face(s)"]
    size = f"{found['width']} x {found['height']}"
    counts = printable(", ".join([f"{len(frames)} frame(s)", *objects]))
    print(f"picture: {found['file']}: {found['format']}, {size}, {counts}")
    for number, faces in enumerate(frames, start=1):
        for face in faces:
            width, height = face["size"]
            landmarks = "unknown" if face["landmarks"] is None else face["landmarks"]
            label = printable(face.get("label", "face"))
            print(
                f"{label} in frame {number}: score {face['score']:.3f}, box {face['box_xyxy']}, "
                f"{width:.0f} x {height:.0f}, landmarks {landmarks}"
            )
