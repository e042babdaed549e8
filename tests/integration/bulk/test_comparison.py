"""The comparison of listings states the truth about each picture, in both orders of listing."""

import itertools
import threading

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.bulk import backfill
from tasks.bulk.backfill import Selection, SourcePages
from tasks.bulk.comparison import compare, settle
from tasks.bulk.places import Places
from tasks.errors import AccessDenied, BucketNotAllowed, InvalidRequest
from tasks.routes import Routes
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.s3 import ObjectStore

RECIPE, OLDER_RECIPE, OLDER_ETAG = "5a38d4c65c2c5ab0", "fedcba9876543210", "0" * 32

# Characters that sort before and after the slash, and names that are also folders.
keys = st.text(" !-./5a", min_size=1, max_size=6).filter(
    lambda key: {"", ".", ".."}.isdisjoint(key.split("/"))
)
HEIC_AND_OTHERS = (".heic", ".HEIC", ".hif", ".bmp", ".JPG", ".ia", ".heic.png", "")
bounded = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
numbers = itertools.count()


@pytest.fixture
def store_of_pages(listing_client):
    """A store that reads a few keys a page."""
    return ObjectStore(listing_client, page_keys=3)


@pytest.fixture
def fresh(store_of_pages, archive_at, place):
    """``fresh()`` returns an empty archive whose store reads a few keys a page."""
    return lambda: archive_at(store_of_pages, f"{place}{next(numbers)}/")


# Each function leaves a picture in one state, and returns the state.


def current(archive, key):
    archive.done(key, archive.source(key).etag)
    return "current"


def without_receipt(archive, key):
    archive.output(key, archive.source(key).etag)
    return "stale"


def current_with_an_older_receipt(archive, key):
    current(archive, key)
    archive.receipt(key, OLDER_ETAG)
    return "current"


def missing(archive, key):
    archive.source(key)
    return "missing"


def cut_before_its_output(archive, key):
    archive.receipt(key, archive.source(key).etag)
    return "missing"


def in_place_of_something_else(archive, key):
    archive.receipt(key, archive.source(key).etag)
    archive.store.put(archive.destination(key), b"a page", "text/html", {})
    archive.receipt(key, OLDER_ETAG)
    return "taken"


def changed(archive, key):
    archive.source(key)
    archive.done(key, OLDER_ETAG)
    return "stale"


def of_an_older_recipe(archive, key):
    archive.done(key, archive.source(key).etag, OLDER_RECIPE)
    return "stale"


def cut_before_its_new_output(archive, key):
    of_an_older_recipe(archive, key)
    archive.receipt(key, archive.source(key).etag)
    return "stale"


def held(archive, key):
    archive.receipt(key, archive.source(key).etag, status="held")
    return "held"


def held_over_an_older_output(archive, key):
    changed(archive, key)
    held(archive, key)
    return "held"


def released(archive, key):
    etag = held_at(archive, key, "2025-01-01T00:00:00.000+00:00")
    archive.done(key, etag)
    return "current"


def held_again(archive, key):
    etag = held_at(archive, key, "2027-01-01T00:00:00.000+00:00")
    archive.done(key, etag)
    return "held"


def held_at(archive, key, created):
    etag = archive.source(key).etag
    archive.receipt(key, etag, status="held", created=created)
    return etag


def held_by_another_recipe(archive, key):
    archive.receipt(key, archive.source(key).etag, OLDER_RECIPE, status="held")
    return "stale"


def held_by_both_recipes(archive, key):
    held_by_another_recipe(archive, key)
    return held(archive, key)


def held_and_cut_before_its_new_output(archive, key):
    held_by_another_recipe(archive, key)
    return cut_before_its_output(archive, key)


def held_as_an_older_version(archive, key):
    archive.receipt(key, OLDER_ETAG, OLDER_RECIPE, status="held")
    return missing(archive, key)


def orphan(archive, key):
    archive.done(key, OLDER_ETAG)
    return "orphan"


def only_a_receipt(archive, key):
    archive.receipt(key, OLDER_ETAG)


LEFT = [
    current, without_receipt, current_with_an_older_receipt, missing, cut_before_its_output,
    in_place_of_something_else, changed, of_an_older_recipe, cut_before_its_new_output, held,
    held_over_an_older_output, held_by_another_recipe, held_by_both_recipes,
    held_and_cut_before_its_new_output, held_as_an_older_version, orphan, only_a_receipt,
    released, held_again,
]  # fmt: skip


def told(archive, after=""):
    """Return the state of each picture, and the keys that were suspected but are current."""
    states, doubted = {}, set()
    for compared in compare(archive.store, archive.places, RECIPE, after):
        if compared.is_current:
            assert compared.key not in states
            states[compared.key] = "current"
            continue
        settled = settle(archive.store, archive.places, RECIPE, compared)
        if settled and (compared.source or settled.state == "orphan"):
            assert compared.key not in states
            states[compared.key] = settled.state
            doubted |= {settled.key} if settled.state == "current" else set()
    return states, doubted


@bounded
@given(pictures=st.dictionaries(keys, st.sampled_from(LEFT), max_size=9))
@example(pictures=dict.fromkeys(("a/a", "a-a", "a", "a.a", "a!/a"), current))
@example(pictures={"a": cut_before_its_new_output, "a.a": current, "b/a": changed})
@example(pictures={"a-/a": current, "a-": current, "a/a": orphan, "a/5": orphan})
@example(pictures={"a": held_by_another_recipe, "b": held_by_both_recipes})
@example(pictures={"a": held_and_cut_before_its_new_output, "b": held_as_an_older_version})
@example(pictures={"a": released, "b": held_again})
def test_every_picture_is_told_for_what_it_is(fresh, pictures):
    archive = fresh()
    truth = {key: state for key, leave in pictures.items() if (state := leave(archive, key))}
    assert told(archive)[0] == truth


# Sources of HEIC and others whose outputs have different keys.
named = st.dictionaries(
    st.tuples(st.sampled_from(("a", "a-", "a.0", "a/a")), st.sampled_from(HEIC_AND_OTHERS)).map(
        "".join
    ),
    st.sampled_from(LEFT),
    max_size=9,
)


@bounded
@given(pictures=named, suffix=st.sampled_from((".jpg", ".avif", ".heic.jpg")))
@example(pictures={"a.heic": current, "a.ia": current, "a.JPG": current}, suffix=".jpg")
@example(pictures={"a.HEIC": missing, "a/a.hif": held_over_an_older_output}, suffix=".jpg")
@example(pictures={"a.bmp": current, "a.heic": orphan, "a.0.heic": changed}, suffix=".avif")
def test_outputs_with_another_suffix_are_those_of_their_heic(
    store_of_pages, archive_at, place, suffix, pictures
):
    archive = archive_at(store_of_pages, f"{place}{next(numbers)}/", heif_suffix=suffix)
    pictures = {archive.destination(key).key: (key, leave) for key, leave in pictures.items()}
    truth = {}
    for output, (key, leave) in pictures.items():
        if state := leave(archive, key):
            truth[output.removeprefix(archive.places.output.prefix)] = state
    assert told(archive)[0] == truth


@pytest.mark.parametrize("keyed", [False, True])
def test_a_done_archive_of_heic_is_not_doubted(store_of_pages, archive_at, place, keyed):
    keys = [Key.parse("k" * 32)] if keyed else []
    archive = archive_at(store_of_pages, place, *keys, heif_suffix=".jpg")
    for number in range(9):
        for suffix in (".HEIC", ".MOV"):
            archive.source(f"{number}{suffix}")
        current(archive, f"{number}.HEIC")
    pages = SourcePages(archive.store, archive.places, Selection(suffixes=(".heic",)), RECIPE)
    page = pages.page(9)
    assert (page.skipped, page.wanted) == (9, [])
    going_on = SourcePages(archive.store, archive.places, Selection(), RECIPE, "4.MOV").page(9)
    assert going_on.skipped == 4


def test_outputs_from_before_the_suffix_have_no_source(store_of_pages, archive_at, place):
    current(archive_at(store_of_pages, place), "a.heic")
    archive = archive_at(store_of_pages, place, heif_suffix=".jpg")
    assert told(archive)[0] == {"a.heic": "orphan", "a.jpg": "missing"}


def test_two_sources_of_one_output_are_told(store_of_pages, archive_at, place):
    archive = archive_at(store_of_pages, place, heif_suffix=".jpg")
    archive.source("a.heic")
    current(archive, "a.jpg")
    found = {
        settled.source.uri.key.rpartition("/")[2]: settled.state
        for compared in compare(archive.store, archive.places, RECIPE)
        if (settled := settle(archive.store, archive.places, RECIPE, compared)) and compared.source
    }
    assert found == {"a.heic": "taken", "a.jpg": "current"}


@bounded
@given(found=st.sets(keys, max_size=12))
@example(found={"a", "a/a", "a/a/a", "a/a!", "a!", "a0"})
@example(found={"a5", "a", "a5/5", "5"})
@example(found={"a ", "a", "a/ ", "é/\ue000", "é", "\U00010000", "\uffee"})
def test_a_listing_goes_on_after_any_of_its_keys(fresh, found):
    archive = fresh()
    for key in found:
        archive.store.put(archive.places.source.join(key), b"", "image/jpeg", {})
    place = archive.places.source
    listed = [stored.uri.key for stored in archive.store.list(place.bucket, place.prefix)]
    assert sorted(listed) == sorted(place.prefix + key for key in found)
    for number, key in enumerate(listed, start=1):
        assert [
            stored.uri.key for stored in archive.store.list(place.bucket, place.prefix, key)
        ] == listed[number:]


def test_a_comparison_goes_on_after_any_of_its_keys(fresh):
    archive = fresh()
    for key in ("a", "a/b", "a/c/d", "a-b", "a-b/c", "b"):
        current(archive, key)
    sources = [compared.key for compared in compare(archive.store, archive.places, RECIPE)]
    for number, key in enumerate(sources, start=1):
        states, _ = told(archive, after=key)
        assert list(states) == sources[number:]
        assert set(states.values()) <= {"current"}


AWKWARD = (
    "a",
    "a/a",
    "a/a/a",
    "a.a",
    "a-a",
    "a!",
    "a!/k",
    "a0",
    "a.0",
    "a.f",
    "a ",
    "é/\ue000",
    "é",
)


@bounded
@given(pictures=st.dictionaries(keys, st.sampled_from(LEFT), max_size=9), most=st.integers(1, 3))
@example(pictures=dict.fromkeys(AWKWARD, missing), most=1)
@example(pictures=dict.fromkeys(AWKWARD, current), most=1)
@example(pictures=dict.fromkeys(AWKWARD, of_an_older_recipe), most=2)
def test_a_backfill_that_is_cut_off_after_any_page_wants_every_picture_that_is_not_done_once(
    fresh, monkeypatch, pictures, most
):
    monkeypatch.setattr(backfill, "PAGE", 2)
    archive = fresh()
    truth = {key: state for key, leave in pictures.items() if (state := leave(archive, key))}
    cursor, listed, wanted = "", 0, []
    while not (
        reading := SourcePages(archive.store, archive.places, Selection(), RECIPE, cursor)
    ).at_end:
        page = reading.page(most)
        cursor, listed = page.cursor, listed + page.listed
        wanted += [archive.places.key(picture.source) for picture in page.wanted]
        assert len(page.wanted) <= most
    there = {key for key, state in truth.items() if state != "orphan"}
    assert listed == len(there)
    assert len(wanted) == len(set(wanted))
    assert {key for key in there if truth[key] != "current"} <= set(wanted) <= there


@pytest.mark.parametrize("keyed", [False, True])
def test_a_released_picture_is_done_for_a_backfill_too(store_of_pages, archive_at, place, keyed):
    archive = archive_at(store_of_pages, place, *([Key.parse("k" * 32)] if keyed else []))
    pictures = {"a": released, "b": held_again, "c": released, "d": held, "e": current}
    for key, leave in pictures.items():
        leave(archive, key)

    page = SourcePages(archive.store, archive.places, Selection(), RECIPE).page(9)

    assert [archive.places.key(picture.source) for picture in page.wanted] == ["b", "d"]
    assert page.skipped == 3


def test_a_user_who_may_only_list_enqueues_released_pictures(fresh, monkeypatch):
    archive = fresh()
    for key in ("a", "b"):
        released(archive, key)
    asked = []

    def refuse(uri):
        asked.append(uri)
        raise AccessDenied(f"{uri}: denied")

    monkeypatch.setattr(archive.store, "head", refuse)
    page = SourcePages(archive.store, archive.places, Selection(), RECIPE).page(9)
    assert len(page.wanted) == 2
    assert len(asked) == 1


@pytest.mark.parametrize(("gone", "kept"), [("cam/", "cam-old/"), ("cam-old/", "cam/")])
def test_what_is_in_the_way_of_one_folder_casts_no_doubt_on_its_neighbours(fresh, gone, kept):
    archive = fresh()
    for number in range(5):
        orphan(archive, f"{gone}{number}")
        current(archive, f"{kept}{number}")
    states, doubted = told(archive)
    assert len([key for key in states if states[key] == "orphan"]) == 5
    assert doubted == set()


def test_receipts_are_no_outputs_and_cost_no_page_each(fresh, monkeypatch):
    archive = fresh()
    for number in range(30):
        current(archive, f"{number:02}")
    asked = []
    monkeypatch.setattr(archive.store, "head", asked.append)
    assert all(compared.is_current for compared in compare(archive.store, archive.places, RECIPE))
    assert asked == []


@pytest.mark.parametrize("key", ["k" * 230, "/".join(["f" * 60] * 15)], ids=["name", "whole"])
def test_long_keys_are_settled_though_no_listing_tells_their_receipts(fresh, key):
    archive = fresh()
    current(archive, key)
    held(archive, key[:-1])
    assert told(archive) == ({key: "current", key[:-1]: "held"}, {key})


def test_without_a_recipe_only_the_version_of_the_source_counts(fresh):
    archive = fresh()
    of_an_older_recipe(archive, "a")
    changed(archive, "b")
    states = {}
    for compared in compare(archive.store, archive.places, None):
        settled = (
            None if compared.is_current else settle(archive.store, archive.places, None, compared)
        )
        states[compared.key] = settled.state if settled else "current"
    assert states == {"a": "current", "b": "stale"}


def test_keys_that_no_worker_takes_are_refused_and_not_asked_for(by_bytes, archive_at, place):
    archive = archive_at(ObjectStore(by_bytes), place)
    for key in ("a//b", "b/./c", "b/../c", "d/..", "e/.veil/x.jpg"):
        by_bytes.put_object(Bucket="raw", Key=place + key, Body=b"")
    assert told(archive)[0] == {
        "a//b": "missing",
        "b/./c": "refused",
        "b/../c": "refused",
        "d/..": "refused",
        "e/.veil/x.jpg": "refused",
    }


def test_nothing_false_is_told_of_what_stays_while_the_rest_changes(fresh):
    archive = fresh()
    truth = {f"{number:02}/stays": LEFT[number % len(LEFT)] for number in range(13)}
    truth = {key: state for key, leave in truth.items() if (state := leave(archive, key))}
    ended, turns = threading.Event(), []

    def churn():
        while not ended.is_set():
            for number in range(0, 13, 3):
                key = f"{number:02}/{len(turns) % 7}"
                archive.done(key, archive.source(key, str(len(turns)).encode()).etag)
                archive.store.delete(
                    archive.places.source.join(f"{number:02}/{(len(turns) + 3) % 7}")
                )
                archive.store.delete(
                    archive.places.destination(f"{number:02}/{(len(turns) + 5) % 7}")
                )
            turns.append(1)

    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for _ in range(3):
            states, _ = told(archive)
            assert {key: state for key, state in states.items() if key.endswith("stays")} == truth
    finally:
        ended.set()
        writer.join()
    assert turns


def test_places_are_within_one_route():
    routes = Routes.parse("s3://raw/in=s3://clean/out")
    places = Places.find("s3://raw/in/2026", None, routes)
    assert str(places.output) == "s3://clean/out/2026/"
    assert places.receipt_key("a.jpg") == "2026/a.jpg"
    assert (
        str(Places.find("s3://raw/in/2026", "s3://clean/out/again", routes).output)
        == "s3://clean/out/again/"
    )
    for source, output in (
        ("s3://raw", None),
        ("s3://raw/in", "s3://clean"),
        ("s3://raw/inner", None),
    ):
        with pytest.raises(BucketNotAllowed):
            Places.find(source, output, routes)
    with pytest.raises(InvalidRequest):
        Places.find("s3://raw/in", f"s3://clean/out/{receipts.FOLDER}", routes)
