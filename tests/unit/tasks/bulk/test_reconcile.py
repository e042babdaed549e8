"""Findings: safe output on a terminal, and the message that repairs a picture."""

import pytest

from tasks.addresses import ObjectUri
from tasks.bulk.places import Places
from tasks.bulk.reconcile import Finding
from tasks.routes import Routes
from tasks.storage.s3 import StoredObject
from worker.printing import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026/ü 写真 (1).jpg", "2026/ü 写真 (1).jpg"),
        ("a\nstale b", r"a\nstale b"),
        ("\x1b[2Ja", r"\x1b[2Ja"),
        ("a\u202egpj", r"a\u202egpj"),
    ],
)
def test_no_key_can_draw_on_the_terminal(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("output", "asked"), [(None, None), ("s3://clean/out/b", ObjectUri("clean", "out/b/x.jpg"))]
)
def test_a_picture_is_asked_for_with_its_version_and_where_its_output_was_looked_for(output, asked):
    places = Places.find("s3://raw/in/a", output, Routes.parse("s3://raw/in=s3://clean/out"))
    source = ObjectUri("raw", "in/a/x.jpg")
    finding = Finding(
        "missing", source, places.destination("x.jpg"), "", StoredObject(source, "etag", 1)
    )
    wanted = finding.wanted(places)
    assert (wanted.source, wanted.destination, wanted.etag) == (source, asked, "etag")
