"""``veil model info``: the model that a worker would use, and the faces that it finds in a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ImageTooLarge, UnreadableImage
from worker import images, logs
from worker.bootstrap import build_anonymizer, load_model
from worker.detection.faces import Detections, overlap
from worker.settings import WorkerSettings


def run(settings: WorkerSettings, picture: Path | None, as_json: bool) -> None:
    """Print what the model is and, given a `picture`, the faces that a worker with `settings` finds
    in it.
    """
    logs.configure(settings.log_format)
    model = load_model(settings)
    described: dict[str, Any] = {
        "folder": str(model.folder),
        "engine": model.engine,
        "digest": model.digest,
        "score_threshold": settings.score_threshold or model.score_threshold,
        "fixed_size": model.fixed_size,
        "device": model.device,
    }
    found: dict[str, Any] | None = None
    if picture is not None:
        content = _read(picture, settings.max_bytes)
        decoded = images.decode(content, settings.max_pixels, settings.max_frames)
        looks = build_anonymizer(settings, model=model).detect_frames(decoded)
        found = {
            "file": str(picture),
            "format": decoded.format,
            "width": decoded.width,
            "height": decoded.height,
            "frames": [_faces(faces) for faces in looks],
        }
    if as_json:
        print(json.dumps({**described, **({"picture": found} if found else {})}))
        return
    for name, value in described.items():
        print(f"{name}: {value}")
    if found:
        _print_picture(found)


def _read(picture: Path, max_bytes: int) -> bytes:
    try:
        if (size := picture.stat().st_size) > max_bytes:
            raise ImageTooLarge(
                f"{picture} has {size:,} bytes, the limit is {max_bytes:,}: raise VEIL_MAX_BYTES"
            )
        return picture.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{picture} can't be read: {error.strerror}") from None


def _faces(found: Detections) -> list[dict[str, Any]]:
    """Return a description of each face, strongest first, with the landmarks of the sighting that
    fits it best.
    """
    faces = []
    for row in np.argsort(-found.scores, kind="stable"):
        box = found.boxes_xyxy[row]
        seen = found.seen[found.seen.face == row]
        landmarks = (
            seen.landmarks[int(np.argmax(overlap(box, seen.boxes_xyxy)))].astype(float).round(1)
        )
        known = bool(np.isfinite(landmarks).all())
        faces.append(
            {
                "score": round(float(found.scores[row]), 4),
                "box_xyxy": box.astype(float).round(1).tolist(),
                "size": (box[2:] - box[:2]).astype(float).round(1).tolist(),
                "landmarks": landmarks.tolist() if known else None,
            }
        )
    return faces


def _print_picture(found: dict[str, Any]) -> None:
    count = sum(len(faces) for faces in found["frames"])
    size = f"{found['width']} x {found['height']}"
    print(
        f"picture: {found['file']}: {found['format']}, {size}, {len(found['frames'])} frame(s), {count} face(s)"
    )
    for number, faces in enumerate(found["frames"], start=1):
        for face in faces:
            width, height = face["size"]
            landmarks = "unknown" if face["landmarks"] is None else face["landmarks"]
            where = f"box {face['box_xyxy']}, {width:.0f} x {height:.0f}, landmarks {landmarks}"
            print(f"face in frame {number}: score {face['score']:.3f}, {where}")
