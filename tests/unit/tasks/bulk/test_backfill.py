"""What a backfill wants, what its run is called, and where its pages end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

from tasks.addresses import ObjectUri
from tasks.bulk import backfill
from tasks.bulk.backfill import Run, Selection, SourcePages
from tasks.bulk.places import Places
from tasks.records import outcomes
from tasks.routes import Routes
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
    ]
    assert len({name, *others}) == 6


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


# A run as version 2 stored it: HGETALL of veil:run:raw-2026-4fa2b7c1.
STORED = {
    b"name": b"raw-2026-4fa2b7c1",
    b"source": b"s3://raw/2026/",
    b"destination": b"s3://clean/2026/",
    b"selection": b'{"since": null, "until": null, "suffixes": [], "limit": null}',
    b"recipe": b"5a38d4c65c2c5ab0",
    b"owner": b"0b5f1c0e5f9d4f0f8a6c2d1e3b4a5968",
    b"state": b"running",
    b"cursor": b"d/\xc3\xbc 1.jpg",
    b"listed": b"1000",
    b"ignored": b"10",
    b"skipped": b"40",
    b"enqueued": b"950",
    b"source_bytes": b"123456789012",
    b"started": b"1764400000.25",
    b"updated": b"1764400012.7",
}
RUN = Run(
    name="raw-2026-4fa2b7c1",
    source="s3://raw/2026/",
    destination="s3://clean/2026/",
    selection='{"since": null, "until": null, "suffixes": [], "limit": null}',
    recipe="5a38d4c65c2c5ab0",
    owner="0b5f1c0e5f9d4f0f8a6c2d1e3b4a5968",
    state="running",
    cursor="d/ü 1.jpg",
    listed=1000,
    ignored=10,
    skipped=40,
    enqueued=950,
    source_bytes=123456789012,
    started=1764400000.25,
    updated=1764400012.7,
)


class Hash:
    """A Redis that has one hash, encoded as redis-py does."""

    def __init__(self, stored=None):
        self.stored = stored or {}

    def hgetall(self, key):
        return self.stored

    def hset(self, key, mapping):
        encode = Redis().get_encoder().encode
        self.stored = {encode(name): encode(value) for name, value in mapping.items()}

    def expire(self, key, seconds):
        pass


def test_a_run_is_stored_and_read_in_the_same_bytes_as_by_earlier_versions():
    redis = Hash()
    backfill._write(redis, RUN)
    assert redis.stored == STORED
    assert backfill.read(Hash(STORED), RUN.name) == RUN
    assert backfill.read_leniently(Hash(STORED), RUN.name) == RUN


@pytest.mark.parametrize("name", STORED)
def test_a_run_without_one_of_its_fields_is_only_read_leniently(name):
    stored = {other: value for other, value in STORED.items() if other != name}
    default = Run.__dataclass_fields__[name.decode()].default
    assert backfill.read(Hash(stored), RUN.name) is None
    assert backfill.read_leniently(Hash(stored), RUN.name) == replace(
        RUN, **{name.decode(): default}
    )


def test_a_field_that_is_unreadable_is_as_if_it_were_missing():
    damaged = Hash({**STORED, b"enqueued": b"many", b"started": b"", b"later": b"field"})
    assert backfill.read(damaged, RUN.name) is None
    expected = replace(RUN, enqueued=0, started=0.0)
    assert backfill.read_leniently(damaged, RUN.name) == expected


def test_a_field_of_a_later_version_is_ignored():
    assert backfill.read(Hash({**STORED, b"later": b"field"}), RUN.name) == RUN


def test_a_run_that_is_not_stored_is_none():
    assert backfill.read(Hash(), RUN.name) is None
    assert backfill.read_leniently(Hash(), RUN.name) is None
