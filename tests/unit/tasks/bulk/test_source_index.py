"""Sources in the order of their outputs' keys, on disk."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from tasks.addresses import ObjectUri, PrefixUri
from tasks.bulk.places import Places
from tasks.bulk.source_index import PAGE, SortedSources
from tasks.errors import SettingsInvalid, StorageUnavailable
from tasks.output_names import OutputNames
from tasks.routes import Route, Routes
from tasks.signatures import Key
from tasks.storage.receipts import SOURCE
from tasks.storage.s3 import ObjectStore, StoredObject

NOW = datetime(2026, 11, 30, 12, 0, 0, 123456, UTC)


def reversed_key(uri):
    return uri.key[::-1]


def stored(key, number=0):
    uri = ObjectUri("raw", key)
    return StoredObject(uri, f"etag {number}", number, modified=NOW + timedelta(seconds=number))


def sorted_sources(*objects):
    return SortedSources("raw", iter(objects), reversed_key)


def test_sources_come_in_the_order_of_their_outputs_with_all_that_listings_have():
    objects = [stored(key, number) for number, key in enumerate(("ab", "b/a", "ü写", "a"))]
    expected = sorted(objects, key=lambda each: reversed_key(each.uri))
    found = sorted_sources(*objects)
    assert list(found.after("")) == expected
    assert list(found.after("a")) == [each for each in expected if reversed_key(each.uri) > "a"]
    assert found.find("ba") == ObjectUri("raw", "ab")
    assert found.find("ab") is None


def test_more_sources_than_a_page_come_once_each():
    keys = [f"{number:05}" for number in range(2 * PAGE + 1)]
    found = sorted_sources(*map(stored, keys))
    assert [each.uri.key[::-1] for each in found.after("")] == sorted(key[::-1] for key in keys)


def test_an_inventory_may_have_no_times():
    (found,) = sorted_sources(StoredObject(ObjectUri("raw", "a"), "", 7)).after("")
    assert (found.modified, found.etag, found.size) == (None, "", 7)


def test_many_threads_may_look_up_sources():
    found = sorted_sources(*(stored(f"{number:03}") for number in range(500)))
    wrong = []

    def look_up(start):
        for number in range(start, 500, 8):
            key = f"{number:03}"
            if found.find(key[::-1]) != ObjectUri("raw", key):
                wrong.append(key)

    threads = [threading.Thread(target=look_up, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_listing_that_breaks_off_is_an_error_of_the_store():
    def broken():
        yield stored("a")
        raise StorageUnavailable("away")

    with pytest.raises(StorageUnavailable, match="away"):
        SortedSources("raw", broken(), reversed_key)


def test_a_folder_that_is_not_there_is_named_with_its_variable(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(SettingsInvalid, match="TMPDIR: /nowhere is no folder"):
        sorted_sources(stored("a"))


class Store(ObjectStore):
    """A store that lists these keys, after as many listings that break off as `outages` says."""

    def __init__(self, outages, *keys):
        super().__init__(None)
        self.outages = outages
        self.listings = 0
        self.keys = keys

    def list(self, bucket, prefix="", after=""):
        self.listings += 1
        for key in self.keys:
            yield stored(prefix + key)
            if self.listings <= self.outages:
                raise StorageUnavailable("away")


def test_sources_are_listed_once_and_again_after_an_outage():
    names = OutputNames(hash_key=Key.parse("k" * 32))
    route = Route(PrefixUri("raw", "in/"), PrefixUri("clean", ""), "school", names=names)
    places = Places.find("s3://raw/in", None, Routes((route,)))
    store = Store(1, "a.jpg", "b.jpg")
    with pytest.raises(StorageUnavailable):
        places.list_sources(store)
    for _ in range(2):
        assert {each.uri.key for each in places.list_sources(store)} == {"in/a.jpg", "in/b.jpg"}
    assert store.listings == 2

    key = names.output_key("c.jpg")
    assert places.possible_sources(store, key) == []
    store.keys = ("c.jpg",)
    assert places.renewed_sources(store).find(key) == ObjectUri("raw", "in/c.jpg")
    assert places.possible_sources(store, key) == [ObjectUri("raw", "in/c.jpg")]
    assert store.listings == 3


def test_an_output_has_the_source_that_it_is_marked_with_also_from_before_hashed_names():
    names = OutputNames(hash_key=Key.parse("k" * 32))
    route = Route(PrefixUri("raw", "in/"), PrefixUri("clean", ""), "school", names=names)
    places = Places.find("s3://raw/in", None, Routes((route,)))
    store, source = Store(0, "a.jpg"), ObjectUri("raw", "in/a.jpg")
    metadata = {SOURCE: places.marks.source(source)}
    assert places.source_of(store, names.output_key("a.jpg"), metadata) == source
    assert places.source_of(store, "a.jpg", metadata) == source
    assert places.source_of(store, names.output_key("b.jpg"), metadata) is None
    assert places.source_of(store, names.output_key("a.jpg"), {}) is None
