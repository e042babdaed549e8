"""Export the sources with a miss as labelled pictures, from which a detector can learn."""

import json
from pathlib import Path

from tasks.addresses import ObjectUri
from tasks.bulk.annotations import FACE, AnnotatedPicture, CocoWriter, Shape
from tasks.errors import ObjectNotFound, OutputFailed
from tasks.storage.s3 import ObjectStore
from worker.local_files import write_atomically
from worker.sampling.acceptance import Acceptance
from worker.settings import WorkerSettings

ANNOTATIONS = "annotations.json"
PICTURES = "images"
OWNER_ONLY, OWNER_ONLY_FOLDER = 0o600, 0o700  # The sources are clear pictures.


def export(
    store: ObjectStore, settings: WorkerSettings, result: Acceptance, folder: Path
) -> tuple[int, int]:
    """Write the sources with a miss, and all objects in them as COCO, into the new `folder`.

    Return how many were written, and how many are gone, have changed or are not known. Without a
    source to write, nothing is left. Raise OutputFailed if the folder has files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputFailed(f"{folder} has files: name a new folder")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY_FOLDER)
    written = gone = 0
    labelled = folder / ANNOTATIONS
    labelled.touch(OWNER_ONLY)
    with labelled.open("w", encoding="utf-8") as file:
        writer = CocoWriter(file)
        for number, finding in enumerate(result.misses):
            picture = finding.picture
            content = _source(store, settings, picture.source, picture.source_etag)
            if content is None or picture.source is None:
                gone += 1
                continue
            name = f"{PICTURES}/{number:06}{Path(picture.source).suffix.lower()}"
            write_atomically(folder / name, content, OWNER_ONLY)
            objects = [*((FACE, box) for box in finding.faces), *finding.others]
            shapes = [Shape(tuple(int(side) for side in box), label) for label, box in objects]
            size = picture.width or 0, picture.height or 0
            writer.add(AnnotatedPicture(name, *size, shapes, {"source": picture.source}))
            written += 1
        writer.close()
    if not written:
        labelled.unlink()
        if is_new:
            folder.rmdir()
        return written, gone
    json.loads(labelled.read_bytes())  # A disk that is full shows here, not in a training.
    return written, gone


def _source(
    store: ObjectStore, settings: WorkerSettings, source: str | None, etag: str | None
) -> bytes | None:
    """Return the content of this version of a source; None if it is gone or not known."""
    if source is None:
        return None
    try:
        with store.open(ObjectUri.parse(source)) as opened:
            if opened.stored.etag != etag:
                return None
            return opened.read(settings.max_bytes, settings.fetch_seconds)
    except ObjectNotFound:
        return None
