"""Places: the addresses that routes allow, and the keys of a picture in them."""

import pytest

from tasks.addresses import ObjectUri, PrefixUri
from tasks.bulk.places import Places
from tasks.errors import BucketNotAllowed, InvalidRequest
from tasks.output_names import OutputNames
from tasks.routes import Route, Routes
from tasks.signatures import Key

ROUTES = Routes.parse("s3://raw/in=s3://clean/out", "s3://archive=s3://shown")


@pytest.mark.parametrize(
    ("source", "output", "expected"),
    [
        ("s3://raw/in", None, "s3://clean/out/"),
        ("s3://raw/in/2026", None, "s3://clean/out/2026/"),
        ("s3://raw/in/2026", "s3://clean/out/again", "s3://clean/out/again/"),
        ("s3://archive", None, "s3://shown/"),
    ],
)
def test_outputs_go_where_the_route_leads_or_below_it(source, output, expected):
    places = Places.find(source, output, ROUTES)
    assert str(places.output) == expected
    assert places.route.source.overlaps(places.source)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("s3://raw", None),
        ("s3://other", None),
        ("s3://clean/out", None),
        ("s3://raw/in", "s3://clean"),
        ("s3://raw/in", "s3://shown"),
    ],
)
def test_places_without_a_route_are_refused(source, output):
    with pytest.raises(BucketNotAllowed, match="VEIL_ROUTES"):
        Places.find(source, output, ROUTES)


def test_routes_that_begin_below_an_address_are_named():
    routes = Routes.parse(*(f"s3://raw/{year}=s3://clean/{year}" for year in range(2020, 2027)))
    with pytest.raises(BucketNotAllowed) as raised:
        Places.find("s3://raw", None, routes)
    named = "s3://raw/2020/, s3://raw/2021/, s3://raw/2022/, s3://raw/2023/, s3://raw/2024/"
    assert str(raised.value).endswith(f"anywhere: routes begin below: {named} and 2 more")
    with pytest.raises(BucketNotAllowed, match="routes lead below: s3://clean/2020/, "):
        Places.of_outputs(PrefixUri.parse("s3://clean"), routes)
    with pytest.raises(BucketNotAllowed, match="anywhere: add a route"):
        Places.find("s3://raw/1999", None, routes)


def test_the_place_of_receipts_is_refused():
    with pytest.raises(InvalidRequest, match="kept for receipts"):
        Places.find("s3://raw/in", "s3://clean/out/.veil/x", ROUTES)
    with pytest.raises(InvalidRequest, match="kept for receipts"):
        Places.of_outputs(PrefixUri.parse("s3://clean/out/.veil"), ROUTES)


def test_outputs_have_the_sources_that_their_route_gives():
    places = Places.of_outputs(PrefixUri.parse("s3://clean/out/2026"), ROUTES)
    assert str(places.source) == "s3://raw/in/2026/"
    with pytest.raises(BucketNotAllowed, match="s3://clean/"):
        Places.of_outputs(PrefixUri.parse("s3://clean"), ROUTES)


def test_a_picture_has_one_key_in_its_places_and_one_in_its_receipts():
    places = Places.find("s3://raw/in/2026", "s3://clean/out/again", ROUTES)
    key = places.key(ObjectUri("raw", "in/2026/d/a.jpg"))
    assert key == "d/a.jpg"
    assert places.destination(key) == ObjectUri("clean", "out/again/d/a.jpg")
    assert places.asked_destination(key) == places.destination(key)
    assert places.receipt_key(key) == "again/d/a.jpg"
    default = Places.find("s3://raw/in/2026", None, ROUTES)
    assert default.asked_destination(key) is None
    assert default.receipt_key(key) == "2026/d/a.jpg"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((), (".jpg", ".tar.png")),
        ((".JPG",), (".jpg",)),
        ((".png", "a.jpg"), (".tar.png", "a.jpg")),
    ],
)
def test_a_route_and_a_command_take_the_suffixes_that_both_have(asked, expected):
    places = PrefixUri.parse("s3://raw"), PrefixUri.parse("s3://clean")
    routes = Routes((Route(*places, "north", (".jpg", ".tar.png")),))
    assert Places.find("s3://raw/a", None, routes).route.suffixes_among(asked) == expected


def test_suffixes_that_a_route_does_not_take_are_refused():
    places = PrefixUri.parse("s3://raw"), PrefixUri.parse("s3://clean")
    routes = Routes((Route(*places, "north", (".jpg",)),))
    with pytest.raises(InvalidRequest, match=r"route north only takes keys with \.jpg"):
        Places.find("s3://raw", None, routes).route.suffixes_among([".png"])
    assert Places.find("s3://archive", None, ROUTES).route.suffixes_among([".PNG"]) == (".PNG",)


NAMES = OutputNames(hash_key=Key.parse("k" * 32))
HASHED = Routes(
    (Route(PrefixUri("raw", "in/"), PrefixUri("clean", "out/"), "school", names=NAMES),)
)


@pytest.mark.parametrize("source", ["s3://raw/in", "s3://raw/in/2026"])
def test_hashed_names_are_the_same_for_a_part_of_the_sources(source):
    places = Places.find(source, None, HASHED)
    key = places.key(ObjectUri("raw", "in/2026/a.jpg"))
    assert key == NAMES.output_key("2026/a.jpg")
    assert places.destination(key) == ObjectUri("clean", "out/" + key)
    assert places.asked_destination(key) is None
    assert places.receipt_key(key) == key
    assert places.are_mixed == (source != "s3://raw/in")


def test_outputs_with_hashed_names_have_any_source_of_their_route():
    places = Places.of_outputs(PrefixUri.parse("s3://clean/out/again"), HASHED)
    assert str(places.source) == "s3://raw/in/"
    key = places.key(ObjectUri("raw", "in/2026/a.jpg"))
    assert places.asked_destination(key) == ObjectUri("clean", "out/again/" + key)
