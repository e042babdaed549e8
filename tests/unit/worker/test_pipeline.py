"""An output that this worker would hold is not taken for done."""

from types import SimpleNamespace

import pytest

from tasks.addresses import ObjectUri
from tasks.messages import FACE, AnonymizeOptions, Rule
from tasks.routes import Routes
from tasks.storage import receipts
from tasks.storage.s3 import StoredObject
from worker.anonymizer import Limits
from worker.masking.regions import MaskStyle
from worker.outputs import Existing
from worker.pipeline import Pipeline
from worker.treatments import Treatments

LABELS = (FACE, "document")


def pipeline(labels=LABELS, hold_without_faces=False, **rules):
    anonymizer = SimpleNamespace(
        limits=Limits(max_bytes=1, max_pixels=1, fetch_seconds=1),
        hold_without_faces=hold_without_faces,
        verify="off",
        treatments=Treatments(MaskStyle(), labels, {name: Rule(**rules[name]) for name in rules}),
        recipe="5a38d4c65c2c5ab0",
    )
    return Pipeline(store=None, anonymizer=anonymizer, routes=Routes(()))


def existing(*labels, faces=None):
    """Return an output whose receipt has objects with `labels`, or that has no receipt."""
    metadata = {} if faces is None else {receipts.FACES: str(faces)}
    output = StoredObject(ObjectUri("clean", "a.jpg"), "etag", 1, metadata)
    receipt = SimpleNamespace(labels=list(labels), left_xyxy=[]) if labels else None
    return Existing(output, receipt)


@pytest.mark.parametrize(
    ("output", "is_held"),
    [
        (existing(FACE), False),
        (existing(FACE, "document"), True),
        (existing(faces=1), True),  # Without a receipt nobody knows which objects it shows.
    ],
)
def test_an_output_with_an_object_to_hold_is_not_done(output, is_held):
    holding = pipeline(document={"hold": True})
    assert holding._would_hold(output, AnonymizeOptions()) == is_held
    allowed = AnonymizeOptions.parse(rules={"document": {"hold": False}})
    assert not holding._would_hold(output, allowed)
    assert not pipeline()._would_hold(output, AnonymizeOptions())


@pytest.mark.parametrize(
    ("output", "labels", "is_held"),
    [
        (existing("document"), LABELS, True),
        (existing("document"), ("document",), False),
        (existing(FACE), LABELS, False),
        (existing(faces=0), LABELS, True),
        (existing(faces=2), LABELS, False),
    ],
)
def test_an_output_without_the_label_that_is_sought_is_not_done(output, labels, is_held):
    holding = pipeline(labels, hold_without_faces=True)
    assert holding._would_hold(output, AnonymizeOptions()) == is_held
