"""Reports and receipts say what was done to a picture."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from tasks.addresses import ObjectUri
from tasks.messages import AnonymizeOptions, AnonymizeRequest
from tasks.routes import Route, Routed
from tasks.signatures import Key
from tasks.storage.marks import Marks
from tasks.storage.receipts import Receipt
from tasks.storage.s3 import StoredObject
from worker.anonymizer import Anonymized
from worker.detection.faces import Detections
from worker.outputs import Fetched
from worker.reports import receipt_of, report_of, skipped_report
from worker.residual_check import Checked

SOURCE, OUTPUT = ObjectUri("raw", "a.jpg"), ObjectUri("clean", "a.jpg")
RECIPE = "5a38d4c65c2c5ab0"
SECONDS = {"detect": 0.5}
STILL = "faces still found in the output"
HELD = "an object with the rule hold was found: plate"
NONE = Detections.none()


def detections(*boxes):
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), scores)


FACES = detections((1, 2, 30, 40), (50.4, 60.6, 70, 80))


def fetched(options=None):
    request = AnonymizeRequest.parse(source=str(SOURCE))
    routed = Routed(request, Route.parse("s3://raw=s3://clean"), OUTPUT)
    source = StoredObject(SOURCE, "etag", 7)
    return Fetched(routed, source, b"content", None, options or AnonymizeOptions(), RECIPE)


def result(content=b"output", **fields):
    return Anonymized(content, "image/jpeg", "JPEG", 100, 80, **{"detections": FACES, **fields})


def receipt(key=None, **fields):
    return receipt_of(fetched(), result(**fields), SECONDS, {"veil": "1"}, Marks(), key)


def test_the_report_of_an_output_counts_its_faces_and_bytes():
    report = report_of(fetched(), result(), SECONDS, is_checked=False)
    assert (report.status, report.source, report.destination) == (
        "anonymized",
        "s3://raw/a.jpg",
        "s3://clean/a.jpg",
    )
    assert (report.faces, report.bytes_in, report.bytes_out) == (2, 7, 6)
    assert report.lowest_score == pytest.approx(0.5)
    assert report.boxes_xyxy == [[1, 2, 30, 40], [50, 61, 70, 80]]
    assert (report.found_by_check, report.left, report.left_xyxy) == (None, None, None)
    assert "warning" not in report.to_json()


def test_the_report_has_the_warning_about_older_receipts():
    report = report_of(fetched(), result(), SECONDS, is_checked=False, warning="they stay")
    assert report.to_json()["warning"] == "they stay"


BOTH = replace(FACES, labelled=np.array(["plate", "FACE"]))


def test_a_report_counts_the_objects_of_each_label():
    labels = ("FACE", "plate", "document")
    found = result(detections=BOTH)
    report = report_of(fetched(), found, SECONDS, is_checked=False, labels=labels)
    assert (report.faces, report.labels) == (1, {"FACE": 1, "plate": 1, "document": 0})
    assert report.box_labels == ["plate", "FACE"]
    assert "1 face · 1 plate · 0 document" in repr(report)

    faces_alone = report_of(fetched(), result(), SECONDS, is_checked=False).to_json()
    assert not {"labels", "box_labels"} & faces_alone.keys()
    plates_alone = report_of(fetched(), found, SECONDS, is_checked=False, labels=("plate",))
    assert (plates_alone.faces, plates_alone.labels) == (None, {"plate": 1})


def test_a_receipt_names_the_label_of_all_but_faces():
    made = receipt(detections=BOTH)
    assert [face.get("label") for face in made.faces] == ["plate", None]
    again = Receipt.from_bytes(made.to_bytes())
    assert again.labels == ["plate", "FACE"]
    assert b"label" not in receipt().to_bytes()


def test_a_receipt_of_an_earlier_version_has_faces_alone():
    fields = json.loads(receipt().to_bytes())
    assert Receipt.from_bytes(json.dumps(fields).encode()).labels == ["FACE", "FACE"]


def test_a_skipped_picture_with_an_object_to_hold_is_reported_with_its_labels():
    made = receipt(detections=BOTH, reason=HELD, content=None)
    report = skipped_report(fetched().source, OUTPUT, made, AnonymizeOptions(), SECONDS)
    assert (report.reason, report.faces, report.box_labels) == (HELD, 1, ["plate", "FACE"])


def test_the_report_of_a_held_picture_names_no_destination():
    checked = Checked("left", NONE, detections((1, 1, 9, 9)))
    held = result(content=None, checked=checked, reason=STILL)
    report = report_of(fetched(), held, SECONDS, is_checked=True)
    assert (report.status, report.destination, report.bytes_out) == ("held", None, None)
    assert (report.found_by_check, report.left, report.left_xyxy) == (0, 1, [[1, 1, 9, 9]])


def test_a_receipt_has_the_digests_and_no_address():
    made = receipt()
    assert made.source_sha256 == hashlib.sha256(b"content").hexdigest()
    assert made.output_sha256 == hashlib.sha256(b"output").hexdigest()
    assert [face["box_xyxy"] for face in made.faces] == [[1, 2, 30, 40], [50, 61, 70, 80]]
    assert (made.output_mark, made.source_mark) == (None, None)
    assert b"a.jpg" not in made.to_bytes()


def test_a_receipt_with_a_key_has_both_marks():
    made = receipt(Key.parse("k" * 32))
    assert made.output_mark is not None
    assert made.source_mark is not None


def test_the_receipt_of_a_held_picture_has_no_output():
    made = receipt(content=None, reason="no face found", detections=NONE)
    assert (made.status, made.output_sha256, made.output_bytes) == ("held", None, None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [(AnonymizeOptions(), STILL), (AnonymizeOptions(release="etag"), None)],
)
def test_a_skipped_picture_is_reported_for_review_again_until_it_is_released(options, reason):
    checked = Checked("left", NONE, detections((1, 1, 9, 9)))
    made = receipt(checked=checked, reason=STILL)
    report = skipped_report(fetched().source, OUTPUT, made, options, SECONDS)
    assert (report.status, report.reason) == ("skipped", reason)
    assert report.left == (1 if reason else None)


def test_a_skipped_picture_without_a_reason_has_no_faces_in_its_report():
    report = skipped_report(fetched().source, OUTPUT, receipt(), AnonymizeOptions(), SECONDS)
    assert (report.status, report.faces, report.boxes_xyxy) == ("skipped", None, None)
