"""Backfill: the selection of sources, the names of runs, and the ends of pages."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks.addresses import ObjectUri
from tasks.bulk import backfill
from tasks.bulk.backfill import Selection, SourcePages
from tasks.bulk.places import Places
from tasks.output_names import OutputNames
from tasks.records import outcomes
from tasks.routes import Routes
from tasks.signatures import Key
from tasks.storage.s3 import ObjectStore, StoredObject

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
ROUTES = Routes.parse("s3://raw/in=s3://clean/out")


class Listing(ObjectStore):
    """A store that lists these sources and no outputs."""

    def __init__(self, *keys):
        super().__init__(None)
        self._keys = keys

    def list(self, bucket, prefix="", after=""):
        for key in self._keys if bucket == "raw" else ():
            if prefix + key > after:
                yield StoredObject(ObjectUri(bucket, prefix + key), "etag", 1, modified=NOON)


def read(*keys, most=2, selection=None):
    places = Places.find("s3://raw/in/2026", None, ROUTES)
    reading = SourcePages(Listing(*keys), places, selection or Selection(), None)
    while not reading.at_end:
        yield reading.page(most)


def hashed(secret):
    (route,) = ROUTES
    names = OutputNames(hash_key=Key.parse(secret))
    return Places.find("s3://raw/in/2026", None, Routes((replace(route, names=names),)))


def listed(key="a.jpg", modified=NOON):
    return StoredObject(ObjectUri("raw", key), "etag", 1, modified=modified)


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (Selection(), True),
        (Selection(since=NOON), True),
        (Selection(since=NOON + timedelta(seconds=1)), False),
        (Selection(until=NOON), False),
        (Selection(until=NOON + timedelta(seconds=1)), True),
        (Selection(suffixes=(".png", ".JPG")), True),
        (Selection(suffixes=(".png",)), False),
    ],
    ids=str,
)
def test_what_is_selected(selection, taken):
    assert selection.takes(listed()) is taken


def test_what_was_asked_decides_the_name():
    places = Places.find("s3://raw/in/2026", None, ROUTES)
    elsewhere = replace(places, output=Places.find("s3://raw/in", None, ROUTES).output)
    name = backfill.run_name(places, Selection())

    assert name == backfill.run_name(places, Selection())
    assert name.startswith("raw-in-2026-")
    others = [
        backfill.run_name(places, Selection(limit=1)),
        backfill.run_name(places, Selection(since=NOON)),
        backfill.run_name(places, Selection(until=NOON)),
        backfill.run_name(places, Selection(suffixes=(".jpg",))),
        backfill.run_name(elsewhere, Selection()),
        *(backfill.run_name(hashed(secret), Selection()) for secret in ("k" * 32, "l" * 32)),
    ]
    assert len({name, *others}) == 8


@pytest.mark.parametrize("below", ["É/x" * 200, "-", "写真", "a" * 900])
def test_every_name_is_one_that_outcomes_are_counted_by(below):
    places = Places.find(f"s3://raw/in/{below}", None, ROUTES)
    assert outcomes.RUN_NAME.fullmatch(backfill.run_name(places, Selection()))


def test_a_page_ends_when_enough_is_wanted_or_enough_is_listed(monkeypatch):
    assert [page.cursor for page in read("a", "b", "c")] == ["b", "c"]
    monkeypatch.setattr(backfill, "PAGE", 3)
    pages = list(read("a.jpg", "b", "c", "d", "e.jpg", selection=Selection(suffixes=(".jpg",))))
    assert [(page.cursor, page.listed, page.ignored, len(page.wanted)) for page in pages] == [
        ("c", 3, 2, 1),
        ("e.jpg", 2, 1, 1),
    ]


def test_what_goes_where_the_route_says_is_asked_for_as_an_upload_would_be():
    (page,) = read("a.jpg")
    assert page.wanted[0].arguments == ("s3://raw/in/2026/a.jpg",)
    elsewhere = Places.find("s3://raw/in/2026", "s3://clean/out/other", ROUTES)
    wanted = backfill.wanted(elsewhere, listed("in/2026/a.jpg"))
    assert wanted.arguments == ("s3://raw/in/2026/a.jpg", "s3://clean/out/other/a.jpg")
