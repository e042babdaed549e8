"""The report and the receipt of one picture."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tasks.addresses import ObjectUri
from tasks.messages import FACE, MAX_BOXES, AnonymizeOptions, AnonymizeReport
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.marks import Marks
from tasks.storage.receipts import Face, Receipt
from tasks.storage.s3 import StoredObject
from worker.anonymizer import Anonymized, whole_boxes
from worker.detection.faces import Detections
from worker.outputs import Fetched


def report_of(
    fetched: Fetched,
    result: Anonymized,
    seconds: dict[str, float],
    is_checked: bool,
    labels: Sequence[str] = (FACE,),
    warning: str | None = None,
) -> AnonymizeReport:
    """Return the report of a picture that was anonymized or held.

    `seconds` maps each stage to its duration. `labels` are those that the worker finds.
    `is_checked` tells whether outputs are checked for residual faces. `warning` is that of
    Outputs.store.
    """
    scores = result.detections.scores
    is_held = result.content is None
    checked = result.checked
    return AnonymizeReport(
        status="held" if is_held else "anonymized",
        **_counts(result.detections.labels.tolist(), labels),
        lowest_score=round(float(scores.min()), 4) if len(scores) else None,
        source=str(fetched.routed.request.source),
        destination=None if is_held else str(fetched.routed.destination),
        recipe=fetched.recipe,
        format=result.format,
        width=result.width,
        height=result.height,
        bytes_in=len(fetched.content),
        bytes_out=None if result.content is None else len(result.content),
        seconds=seconds,
        boxes_xyxy=whole_boxes(result.detections)[:MAX_BOXES],
        reason=result.reason,
        found_by_check=len(checked.added) if is_checked else None,
        left=len(checked.remaining) if result.reason else None,
        left_xyxy=whole_boxes(checked.remaining)[:MAX_BOXES] if result.reason else None,
        source_etag=fetched.source.etag,
        options=fetched.options.to_json() or None,
        notes=list(result.notes) or None,
        warning=warning,
    )


def skipped_report(
    source: StoredObject,
    output: ObjectUri,
    receipt: Receipt,
    options: AnonymizeOptions,
    seconds: dict[str, float],
) -> AnonymizeReport:
    """Return the report of a picture whose `output` exists already, with its `receipt`.

    It repeats the reason to review the picture from the receipt, because the worker that stored the
    output may have died before it reported the reason.
    """
    report = AnonymizeReport(
        status="skipped",
        source=str(source.uri),
        destination=str(output),
        recipe=receipt.recipe,
        seconds=seconds,
        source_etag=source.etag,
        options=options.to_json() or None,
    )
    if receipt.reason is None or options.release:
        return report
    return replace(
        report,
        **_counts(receipt.labels, list(dict.fromkeys([FACE, *receipt.labels]))),
        reason=receipt.reason,
        boxes_xyxy=[face["box_xyxy"] for face in receipt.faces[:MAX_BOXES]],
        left=len(receipt.left_xyxy),
        left_xyxy=receipt.left_xyxy[:MAX_BOXES],
    )


def receipt_of(
    fetched: Fetched,
    result: Anonymized,
    seconds: Mapping[str, float],
    made_with: Mapping[str, str],
    marks: Marks,
    key: Key | None,
) -> Receipt:
    """Return the receipt of a picture that was anonymized or held.

    `made_with` names the model and the versions. `key` signs the receipt: with one, the receipt
    names its source and its output by `marks`.
    """
    source, destination, content = fetched.source, fetched.routed.destination, result.content
    return Receipt(
        status="held" if content is None else "anonymized",
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        source_etag=source.etag,
        source_sha256=_sha256(fetched.content),
        source_bytes=len(fetched.content),
        output_sha256=None if content is None else _sha256(content),
        output_bytes=None if content is None else len(content),
        format=result.format,
        width=result.width,
        height=result.height,
        recipe=fetched.recipe,
        options=fetched.options.to_json(),
        faces=listed(result.detections),
        check=result.checked.verdict,
        found_by_check=whole_boxes(result.checked.added),
        left_xyxy=whole_boxes(result.checked.remaining),
        reason=result.reason,
        seconds=dict(seconds),
        made_with=dict(made_with),
        output_mark=receipts.place_mark(destination, key) if key else None,
        source_mark=marks.source(source.uri) if key else None,
    )


def _counts(found: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a report that count the objects with the labels `found`.

    The strongest object comes first. `labels` are those that were searched for.
    """
    counts = {label: found.count(label) for label in labels}
    faces = counts.get(FACE)
    if list(counts) == [FACE]:
        return {"faces": faces}
    return {"faces": faces, "labels": counts, "box_labels": list(found[:MAX_BOXES])}


def listed(detections: Detections) -> list[Face]:
    """Return the objects of `detections` as receipts list them."""
    boxes = whole_boxes(detections)
    faces: list[Face] = []
    for box, score, label in zip(boxes, detections.scores, detections.labels, strict=True):
        face: Face = {"box_xyxy": box, "score": round(float(score), 4)}
        if label != FACE:
            face["label"] = str(label)
        faces.append(face)
    return faces


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
