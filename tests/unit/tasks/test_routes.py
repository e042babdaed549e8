"""Routes: the addresses of outputs, and no reads or writes outside of the routes."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed, InvalidRequest, VeilError
from tasks.messages import AnonymizeRequest
from tasks.routes import PRIORITIES, Route, Routes
from tasks.settings import Settings

ROUTES = Routes.parse(
    "s3://raw=s3://clean",
    "s3://mixed/in=s3://mixed/out",
    "s3://archive/day=1/=s3://shown/day=1/",
)


def request(source, target=None):
    return AnonymizeRequest.parse(source=source, destination=target)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("s3://raw/a.jpg", "s3://clean/a.jpg"),
        ("s3://raw/deep/er/a b+%.jpg", "s3://clean/deep/er/a b+%.jpg"),
        ("s3://raw//a.jpg", "s3://clean//a.jpg"),
        ("s3://mixed/in/a.jpg", "s3://mixed/out/a.jpg"),
        ("s3://archive/day=1/a.jpg", "s3://shown/day=1/a.jpg"),
    ],
)
def test_an_output_keeps_the_key_below_its_route(source, expected):
    assert str(ROUTES.resolve(request(source)).destination) == expected


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("s3://raw/a.jpg", "s3://clean/elsewhere/b.png"),
        ("s3://mixed/in/a.jpg", "s3://mixed/out/b.jpg"),
    ],
)
def test_a_destination_may_be_chosen_within_the_route(source, target):
    assert str(ROUTES.resolve(request(source, target)).destination) == target


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("s3://other/a.jpg", None),
        ("s3://clean/a.jpg", None),
        ("s3://mixed/a.jpg", None),
        ("s3://mixed/input/a.jpg", None),
        ("s3://mixed/out/a.jpg", None),
        ("s3://archive/day=2/a.jpg", None),
        ("s3://raw/a.jpg", "s3://raw/a.jpg"),
        ("s3://raw/a.jpg", "s3://other/a.jpg"),
        ("s3://raw/a.jpg", "s3://mixed/out/a.jpg"),
        ("s3://mixed/in/a.jpg", "s3://mixed/in/a.jpg"),
        ("s3://mixed/in/a.jpg", "s3://mixed/outside/a.jpg"),
        ("s3://mixed/in/a.jpg", "s3://clean/a.jpg"),
    ],
)
def test_a_source_outside_the_routes_is_refused(source, target):
    with pytest.raises(BucketNotAllowed, match="VEIL_ROUTES"):
        ROUTES.resolve(request(source, target))


def test_without_routes_nothing_is_allowed():
    with pytest.raises(BucketNotAllowed):
        Routes(()).resolve(request("s3://raw/a.jpg"))


PREFIXES = st.text("ab/=", max_size=6)
PLACES = st.builds(
    lambda bucket, prefix: f"s3://{bucket}/{prefix}", st.sampled_from(["raw", "clean"]), PREFIXES
)
URIS = st.builds(
    lambda bucket, key: f"s3://{bucket}/{key}",
    st.sampled_from(["raw", "clean"]),
    st.text("ab/=", min_size=1),
)


@settings(max_examples=40)
@given(st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=3), URIS, st.none() | URIS)
def test_no_request_ever_reaches_a_place_outside_its_route(places, source, target):
    table = [Route(PrefixUri.parse(one), PrefixUri.parse(other)) for one, other in places]
    try:
        routes = Routes(tuple(table))
        wanted = request(source, target)
    except VeilError:
        assume(False)
    try:
        found = routes.resolve(wanted).destination
    except BucketNotAllowed:
        return
    taken = [route for route in table if route.source.contains(wanted.source)]
    assert len(taken) == 1
    assert taken[0].destination.contains(found)
    assert found != wanted.source
    assert not any(route.source.contains(found) for route in table)


@given(st.lists(PLACES, min_size=1, max_size=6), st.text("ab/", min_size=1, max_size=6))
def test_each_picture_has_the_route_of_its_source(places, key):
    table = [
        Route(PrefixUri.parse(place), PrefixUri("clean", f"{number}/"), priority="low")
        for number, place in enumerate(places)
    ]
    try:
        routes = Routes(tuple(table))
    except InvalidRequest:
        assume(False)
    for route in table:
        source = route.source.join(key)
        assume(route.source.contains(source))
        assert routes.resolve(AnonymizeRequest(source=source)).route is route
        assert routes.priority_of(source) == PRIORITIES["low"]


def test_a_picture_off_the_routes_and_one_of_a_route_without_priority_come_first():
    assert ROUTES.priority_of(ObjectUri("raw", "a.jpg")) == 0
    low = Routes((Route(PrefixUri("raw", "b/"), PrefixUri("clean", ""), priority="low"),))
    for key in ("a/a.jpg", "b", "b-c/a.jpg", "c/a.jpg"):
        assert low.priority_of(ObjectUri("raw", key)) == 0
    assert low.priority_of(ObjectUri("raw", "b/a.jpg")) == PRIORITIES["low"]


@given(
    PREFIXES,
    PREFIXES,
    st.text("ab/", min_size=1, max_size=6),
    st.text("ab/", min_size=1, max_size=6),
)
def test_two_sources_never_share_a_default_output(first, second, one_key, other_key):
    routes = Routes.parse(
        f"s3://raw/a{first}=s3://clean/a{second}",
        f"s3://raw/b{first}=s3://clean/b{second}",
    )
    outputs = {}
    for route in routes:
        for key in (one_key, other_key):
            uri = route.source.join(key)
            if not uri.key.endswith("/"):
                outputs[uri] = routes.resolve(AnonymizeRequest(source=uri)).destination
    assert len(set(outputs.values())) == len(outputs)


def test_the_suffix_of_heic_is_that_of_each_routes_outputs():
    texts = ("s3://raw=s3://clean", "s3://phones=s3://shown")
    routes = Settings.load(routes=texts, heif_suffix=".jpg").parsed_routes()
    for source, expected in (
        ("s3://raw/a.HEIC", "s3://clean/a.jpg"),
        ("s3://phones/d/a.heif", "s3://shown/d/a.jpg"),
        ("s3://phones/a.png", "s3://shown/a.png"),
    ):
        routed = routes.resolve(request(source))
        assert str(routed.destination) == expected
        assert None in routed.destinations


@pytest.mark.parametrize(
    "texts",
    [
        ["s3://raw=s3://raw"],
        ["s3://raw=s3://raw/out"],
        ["s3://raw/in=s3://raw"],
        ["s3://raw=s3://clean", "s3://clean=s3://more"],
        ["s3://raw=s3://clean", "s3://raw/in=s3://more"],
        ["s3://raw=s3://clean", "s3://old=s3://clean"],
        ["s3://raw=s3://clean", "s3://old=s3://clean/old"],
        ["s3://raw=s3://clean", "s3://raw=s3://clean"],
    ],
)
def test_routes_that_overlap_are_refused(texts):
    with pytest.raises(InvalidRequest, match="overlap"):
        Routes.parse(*texts)


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["s3://raw=s3://clean"],
        ["s3://mixed/in=s3://mixed/out"],
        ["s3://mixed/pre=s3://mixed/prefix"],
        ["s3://raw/a=s3://clean/a", "s3://raw/b=s3://clean/b"],
        ["s3://raw/.veils=s3://clean/a.veil"],
    ],
)
def test_routes_that_keep_apart_are_accepted(texts):
    routes = Routes.parse(*texts)
    assert Routes.parse(*map(str, routes)) == routes


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("s3://raw=s3://clean", Route(PrefixUri("raw", ""), PrefixUri("clean", ""))),
        (
            " s3://raw/in/ = s3://clean/out ",
            Route(PrefixUri("raw", "in/"), PrefixUri("clean", "out/")),
        ),
        (
            "s3://raw/day=1=s3://clean/day=1",
            Route(PrefixUri("raw", "day=1/"), PrefixUri("clean", "day=1/")),
        ),
    ],
)
def test_a_route_is_read_from_text(text, route):
    assert Route.parse(text) == route


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "s3://raw",
        "s3://raw=",
        "=s3://clean",
        "s3://raw=clean",
        "raw=s3://clean",
        "s3://raw->s3://clean",
        "s3://raw=s3://clean=s3://more",
        "s3://raw=/tmp/clean",
        "s3://raw=s3://clean/.veil",
        "s3://raw=s3://clean/a/.veil/b/",
        "s3://raw/.veil/receipts=s3://clean",
    ],
)
def test_an_invalid_route_is_refused(text):
    with pytest.raises(InvalidRequest):
        Route.parse(text)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("s3://mixed/in/a.jpg", "s3://mixed/in/../out/a.jpg"),
        ("s3://mixed/in/a.jpg", "s3://mixed/out/../in/a.jpg"),
        ("s3://raw/../a.jpg", None),
    ],
)
def test_nothing_walks_out_of_a_route(source, target):
    with pytest.raises(InvalidRequest):
        ROUTES.resolve(request(source, target))


def test_an_output_whose_key_would_be_too_long_is_refused_before_any_work():
    routes = Routes.parse("s3://raw=s3://clean/" + "p" * 40)
    assert routes.resolve(request("s3://raw/" + "k" * 900))
    with pytest.raises(InvalidRequest, match="longer than 1024 bytes"):
        routes.resolve(request("s3://raw/" + "k" * 1000))


@pytest.mark.parametrize(
    ("place", "source_route", "destination_route"),
    [
        ("s3://raw", "s3://raw", None),
        ("s3://raw/deep/er", "s3://raw", None),
        ("s3://clean/deep", None, "s3://clean"),
        ("s3://mixed", None, None),
        ("s3://mixed/in", "s3://mixed/in", None),
        ("s3://mixed/in/a", "s3://mixed/in", None),
        ("s3://mixed/input", None, None),
        ("s3://mixed/out/a", None, "s3://mixed/out"),
        ("s3://other", None, None),
    ],
)
def test_a_place_belongs_to_the_route_that_contains_it(place, source_route, destination_route):
    found = ROUTES.of_source(PrefixUri.parse(place))
    assert (found and found.source) == (source_route and PrefixUri.parse(source_route))
    found = ROUTES.of_destination(PrefixUri.parse(place))
    assert (found and found.destination) == (
        destination_route and PrefixUri.parse(destination_route)
    )


@pytest.mark.parametrize(
    ("bucket", "key", "is_source"),
    [
        ("raw", "a.jpg", True),
        ("raw", "", True),
        ("mixed", "in/", True),
        ("mixed", "in/a.jpg", True),
        ("mixed", "input", False),
        ("mixed", "out/a.jpg", False),
        ("other", "a.jpg", False),
    ],
)
def test_the_marker_of_a_sources_folder_is_in_the_source_too(bucket, key, is_source):
    assert ROUTES.has_source(ObjectUri(bucket, key)) is is_source


def test_outputs_and_sources_have_the_same_relative_prefix():
    route = Route.parse("s3://mixed/in=s3://mixed/out")
    sources, outputs = PrefixUri.parse("s3://mixed/in/2026"), PrefixUri.parse("s3://mixed/out/2026")
    assert route.outputs_of(sources) == outputs
    assert route.sources_of(outputs) == sources
