"""The wire contract: requests are valid or refused by name, and reports are JSON."""

import json

import kombu.utils.json
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.addresses import ObjectUri
from tasks.errors import InvalidRequest
from tasks.messages import AnonymizeOptions, AnonymizeReport, AnonymizeRequest, Rule

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("s3://raw/a.jpg"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=5,
)
NAMES = st.text() | st.sampled_from(
    ["cls", "self", "bucket", "source.key", "argument_0", "model_config", "\ud800"]
)


def test_a_source_alone_is_a_request():
    request = AnonymizeRequest.parse(source="s3://raw/in/a b+%.jpg")
    assert request.source == ObjectUri("raw", "in/a b+%.jpg")
    assert request.destination is None


def test_a_destination_may_be_named():
    request = AnonymizeRequest.parse(source="s3://raw/a.jpg", destination="s3://clean/b.jpg")
    assert request.destination == ObjectUri("clean", "b.jpg")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "source: must be given"),
        ({"source": None}, "source"),
        ({"source": ""}, "not an address"),
        ({"source": "/etc/passwd"}, "not an address"),
        ({"source": 5}, "source"),
        ({"source": ["s3://raw/a.jpg"]}, "source"),
        ({"source": {"bucket": "raw", "key": "a.jpg"}}, "source"),
        ({"source": {"bucket": "raw", "key": ""}}, "source"),
        ({"source": b"s3://raw/a.jpg"}, "source"),
        ({"source": "s3://raw"}, "names no object"),
        ({"source": "s3://raw/a.jpg", "destination": "s3://clean/"}, "names no object"),
        ({"source": "s3://raw/a.jpg", "destination": {"bucket": "b", "key": "k"}}, "destination"),
        ({"source": "s3://raw/a.jpg", "destination": True}, "destination"),
        ({"source": "s3://raw/a.jpg", "quality": 3}, "quality"),
        ({"source": "s3://raw/a.jpg", "options": "full"}, "options"),
        ({"source": "s3://raw/a.jpg", "options": {"method": "median"}}, "options.method"),
        ({"source": "s3://raw/a.jpg", "options": {"margin": 0.1}}, "options.margin"),
        ({"source": "s3://raw/a.jpg", "options": {"region": "half"}}, "options.region"),
        ({"source": "s3://raw/a.jpg", "options": {"region": 0.4}}, "options.region"),
        ({"source": "s3://raw/a.jpg", "options": {"exempt": [1, 2, 3, 4]}}, "options.exempt"),
        ({"source": "s3://raw/a.jpg", "options": {"exempt": [[1, 2, 3]]}}, "options.exempt"),
        ({"source": "s3://raw/a.jpg", "options": {"exempt": [[1, 2, 1, 4]]}}, "x1 < x2"),
        ({"source": "s3://raw/a.jpg", "options": {"extra": [[-1, 2, 3, 4]]}}, "options.extra"),
        ({"source": "s3://raw/a.jpg", "options": {"extra": [[0, 0, 10**7, 4]]}}, "options.extra"),
        ({"source": "s3://raw/a.jpg", "options": {"extra": [[0, 0, 1.5, 4]]}}, "options.extra"),
        (
            {"source": "s3://raw/a.jpg", "options": {"extra": [[0, 0, 1, 1]] * 1001}},
            "options.extra",
        ),
        ({"source": "s3://raw/a.jpg", "options": {"release": True}}, "options.release"),
        ({"source": "s3://raw/a.jpg", "options": {"release": ""}}, "options.release"),
        ({"source": "s3://raw/a.jpg", "options": {"release": "x" * 257}}, "options.release"),
        ({"source": "s3://raw/a.jpg", "cls": 3}, "cls"),
        ({"source": "s3://raw/a.jpg", "self": 3}, "self"),
    ],
)
def test_an_invalid_request_is_refused_by_name(fields, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        AnonymizeRequest.parse(**fields)


AREA = "an area needs four whole numbers: x1, y1, x2, y2, in pixels of the upright picture"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"options": {"extra": [[0, 0, 10]]}}, f"options.extra.0: {AREA}, from 0 to 1000000"),
        ({"options": {"exempt": [[0, 0, 9, 9], [0, 0, 9, 9, 9]]}}, f"options.exempt.1: {AREA}"),
        ({"options": {"extra": [0, 0, 10, 20]}}, f"options.extra.0: {AREA}"),
        ({"options": {"extra": ["0,0,10,20"]}}, f"options.extra.0: {AREA}"),
        ({"options": {"extra": [[0, 0, True, 20]]}}, f"options.extra.0: {AREA}"),
        ({"options": {"extra": [[0, -1, 10, 20]]}}, f"options.extra.0: {AREA}"),
        (
            {"options": {"extra": "0,0,10,20"}},
            "options.extra: must be a list of areas, such as [[300, 40, 420, 200]]",
        ),
        (
            {"options": {"regoin": "full"}},
            "options.regoin: unknown, choose from method, region, exempt, extra, version, release",
        ),
        ({"options": "full"}, "options: give a JSON object"),
        ({"source": None}, "source: must be an address like s3://BUCKET/KEY"),
        ({"src": "s3://raw/a.jpg"}, "src: unknown, choose from source, destination, options"),
    ],
)
def test_a_refusal_says_what_to_give(fields, complaint):
    given = fields if "src" in fields else {"source": "s3://raw/a.jpg", **fields}
    with pytest.raises(InvalidRequest) as caught:
        AnonymizeRequest.parse(**given)
    assert str(caught.value).startswith(f"not a valid request: {complaint}")


@settings(max_examples=40)
@given(JSON, JSON, st.dictionaries(NAMES, JSON, max_size=3))
def test_any_json_is_a_request_or_refused_in_one_line(source, destination, extra):
    fields = {**extra, "source": source, "destination": destination}
    try:
        request = AnonymizeRequest.parse(**fields)
    except InvalidRequest as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert not set(extra) - {"source", "destination"}
        assert str(request.source) == source
        assert str(request.destination or None) == str(destination)


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "s3://raw/a.jpg", "x" * 1_000_000: 1},
        {"source": "x" * 1_000_000},
        {"source": "s3://raw/" + "x" * 1_000_000},
    ],
    ids=["long name", "long text", "long key"],
)
def test_a_refusal_is_short_however_long_the_message(fields):
    with pytest.raises(InvalidRequest) as caught:
        AnonymizeRequest.parse(**fields)
    assert len(str(caught.value)) < 500


def test_a_request_cannot_be_changed():
    request = AnonymizeRequest.parse(source="s3://raw/a.jpg")
    with pytest.raises(ValueError, match="frozen"):
        request.source = ObjectUri("other", "b.jpg")


def test_options_come_from_json():
    fields = json.loads(
        '{"method": "fill", "region": "full", "exempt": [[1, 2, 3, 4]], "extra": [[5, 6, 7, 8]]}'
    )
    options = AnonymizeRequest.parse(source="s3://raw/a.jpg", options=fields).options
    assert options == AnonymizeOptions(
        method="fill", region=1.0, exempt=((1, 2, 3, 4),), extra=((5, 6, 7, 8),)
    )
    assert (
        AnonymizeRequest.parse(source="s3://raw/a.jpg", options={"region": "top"}).options.region
        == 0.7
    )


def test_empty_options_keep_the_recipe_and_others_change_it():
    base = "0123456789abcdef"
    asked = [
        {"method": "fill"},
        {"region": 0.8},
        {"exempt": [[1, 2, 3, 4]]},
        {"extra": [[1, 2, 3, 4]]},
        {"extra": [[1, 2, 3, 5]]},
        {"release": "0" * 32},
    ]
    recipes = {AnonymizeOptions.parse(**fields).recipe(base) for fields in asked}
    assert AnonymizeOptions.parse().recipe(base) == base
    assert len(recipes | {base}) == len(asked) + 1
    assert all(recipe.partition("-")[0] == base for recipe in recipes)
    assert AnonymizeOptions.parse(**asked[0]).recipe("another") not in recipes


def test_the_recipe_of_a_release_does_not_reveal_the_etag():
    one, other = (
        AnonymizeOptions.parse(release=etag).recipe("0" * 16) for etag in ("0" * 32, "1" * 32)
    )
    assert one == other != AnonymizeOptions.parse().recipe("0" * 16)


def test_a_correction_keeps_what_was_asked_before():
    asked = AnonymizeOptions.parse(
        method="fill",
        region=1.0,
        extra=[[0, 0, 9, 9]],
        release="abc",
        rules={"plate": {"method": "fill", "margin": 1.0}, "document": {"hold": True}},
    )
    more = AnonymizeOptions.parse(
        extra=[[20, 0, 29, 9]], exempt=[[50, 0, 59, 9]], rules={"document": {"hold": False}}
    )
    assert asked.with_more(more, "def") == AnonymizeOptions.parse(
        method="fill",
        region=1.0,
        extra=[[0, 0, 9, 9], [20, 0, 29, 9]],
        exempt=[[50, 0, 59, 9]],
        version="def",
        rules={"plate": {"method": "fill", "margin": 1.0}, "document": {"hold": False}},
    )


def test_a_correction_that_only_hides_more_keeps_the_release_of_the_version():
    asked = AnonymizeOptions.parse(extra=[[0, 0, 9, 9]], exempt=[[1, 1, 9, 9]], release="abc")
    more = AnonymizeOptions.parse(extra=[[20, 0, 29, 9]])
    assert asked.with_more(more, "abc").release == "abc"
    assert asked.with_more(more, "def").release is None
    assert asked.with_more(more, None).release is None
    assert asked.with_more(AnonymizeOptions(), "abc").release is None
    for other in (
        {"exempt": [[5, 5, 9, 9]]},
        {"method": "blur"},
        {"region": 0.5},
        {"rules": {"plate": {"ignore": True}}},
    ):
        weaker = AnonymizeOptions.parse(extra=[[20, 0, 29, 9]], **other)
        assert asked.with_more(weaker, "abc").release is None


def test_a_correction_replaces_the_values_of_a_rule_that_it_has():
    asked = AnonymizeOptions.parse(rules={"FACE": {"region": 1.0, "margin": 0.1}})
    more = AnonymizeOptions.parse(rules={"FACE": {"margin": 0.3}})
    assert asked.with_more(more, None).rules == {"FACE": Rule(region=1.0, margin=0.3)}


def test_a_correction_has_no_more_areas_than_a_request_may_have():
    area = [0, 0, 9, 9]
    most = AnonymizeOptions.parse(extra=[area] * 1000)
    with pytest.raises(InvalidRequest, match="extra"):
        most.with_more(AnonymizeOptions.parse(extra=[[1, 1, 9, 9]]), "def")
    there_already = AnonymizeOptions.parse(extra=[area])
    assert most.with_more(there_already, "def") == most


def test_exempt_areas_apply_to_the_version_that_they_are_for_only():
    asked = AnonymizeOptions.parse(exempt=[[0, 0, 9, 9]], extra=[[9, 9, 20, 20]], version="a" * 32)
    assert asked.for_version("a" * 32) == asked
    assert asked.for_version("b" * 32) == AnonymizeOptions.parse(extra=[[9, 9, 20, 20]])
    released = AnonymizeOptions.parse(exempt=[[0, 0, 9, 9]], version="a", release="b")
    assert released.for_version("b") == AnonymizeOptions.parse(release="b")


SHOWING = [
    {"exempt": [[0, 0, 9, 9]]},
    {"rules": {"FACE": {"ignore": True}}},
    {"rules": {"plate": {"smallest": 8}}},
    {"rules": {"document": {"hold": False}}},
]


@pytest.mark.parametrize("shown", SHOWING)
def test_options_that_show_more_can_be_pinned_to_a_version(shown):
    asked = AnonymizeOptions.parse(extra=[[9, 9, 20, 20]], **shown)
    assert asked.lacks_version
    pinned = asked.pinned("a" * 32)
    assert pinned.version == "a" * 32
    assert not pinned.lacks_version
    assert pinned.pinned("b" * 32) == pinned
    assert pinned.for_version("a" * 32) == pinned
    assert pinned.for_version("b" * 32) == AnonymizeOptions.parse(extra=[[9, 9, 20, 20]])
    assert asked.with_more(AnonymizeOptions(), "a" * 32) == pinned


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"method": "blur", "region": "top", "extra": [[0, 0, 9, 9]]},
        {"rules": {"plate": {"method": "fill", "hold": True}, "FACE": {"ignore": False}}},
        {"exempt": [[0, 0, 9, 9]], "release": "a" * 32},
    ],
)
def test_other_options_need_no_version(asked):
    options = AnonymizeOptions.parse(**asked)
    assert not options.lacks_version
    assert options.pinned("b" * 32) == options


def test_what_a_rule_hides_stays_in_another_version():
    rule = {"method": "fill", "margin": 0.2, "ignore": True}
    asked = AnonymizeOptions.parse(rules={"plate": rule, "FACE": {"hold": True}}, version="a")
    rules = {"plate": {"method": "fill", "margin": 0.2}, "FACE": {"hold": True}}
    assert asked.for_version("b") == AnonymizeOptions.parse(rules=rules)


def test_recipes_do_not_tell_the_version_of_exempt_areas():
    exempt = {"exempt": [[0, 0, 9, 9]]}
    one = AnonymizeOptions.parse(**exempt, version="a" * 32).recipe("0" * 16)
    assert one == AnonymizeOptions.parse(**exempt).recipe("0" * 16)
    assert AnonymizeOptions.parse(version="a" * 32).recipe("0" * 16) == "0" * 16


def test_a_release_applies_to_the_reviewed_version_only():
    released = AnonymizeOptions.parse(release="a" * 32, region="full", exempt=[[0, 0, 9, 9]])
    assert released.for_version("a" * 32) == released
    assert released.for_version("b" * 32) == AnonymizeOptions.parse(region="full")
    assert AnonymizeOptions.parse(region="full").for_version("b" * 32) == AnonymizeOptions.parse(
        region="full"
    )


REPORTS = st.builds(
    AnonymizeReport,
    status=st.sampled_from(["anonymized", "skipped", "held"]),
    source=st.text(),
    destination=st.none() | st.text(),
    recipe=st.text(),
    faces=st.none() | st.integers(0, 1000),
    lowest_score=st.none() | st.floats(0, 1),
    format=st.none() | st.just("JPEG"),
    width=st.none() | st.integers(1, 10**6),
    bytes_in=st.none() | st.integers(0, 2**40),
    seconds=st.dictionaries(st.text(), st.floats(0, 1000), max_size=4),
    boxes_xyxy=st.none() | st.lists(st.lists(st.integers(), min_size=4, max_size=4), max_size=3),
)


@given(REPORTS)
def test_a_report_is_json_without_unknown_fields(report):
    plain = report.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert None not in plain.values()
    assert {name: getattr(report, name) for name in plain} == plain
    assert {"status", "source", "recipe"} <= set(plain)


def test_kombu_encodes_a_report_as_json():
    report = AnonymizeReport(
        status="held", faces=0, source="s3://raw/a", destination=None, recipe="r"
    )
    assert json.loads(kombu.utils.json.dumps({"result": report})) == {"result": report.to_json()}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {
                "status": "anonymized",
                "faces": 2,
                "lowest_score": 0.2381,
                "destination": "s3://clean/a.jpg",
                "format": "JPEG",
                "width": 512,
                "height": 600,
                "bytes_in": 88991,
                "bytes_out": 78154,
                "seconds": {"fetch": 0.021, "detect": 1.5},
                "boxes_xyxy": [[1, 2, 3, 4]] * 2,
            },
            "anonymized · 2 faces · lowest score 0.24 · s3://clean/a.jpg · JPEG 512×600"
            " · 88,991 bytes in · 78,154 out · fetch 0.02 s · detect 1.50 s",
        ),
        (
            {"status": "anonymized", "faces": 1, "destination": "s3://clean/a"},
            "anonymized · 1 face · s3://clean/a",
        ),
        (
            {"status": "held", "reason": "no face found", "faces": 0, "destination": None},
            "held · no face found",
        ),
        (
            {
                "status": "anonymized",
                "reason": "faces still found in the output",
                "faces": 3,
                "found_by_check": 2,
                "destination": "s3://clean/a",
            },
            "anonymized · faces still found in the output · 3 faces · 2 by the check · s3://clean/a",
        ),
        ({"status": "skipped", "destination": "s3://clean/a"}, "skipped · s3://clean/a"),
        (
            {
                "status": "anonymized",
                "faces": 1,
                "destination": "s3://clean/a",
                "warning": "older receipts stay",
            },
            "anonymized · 1 face · s3://clean/a · older receipts stay",
        ),
    ],
)
def test_the_repr_of_a_report_is_one_line_with_the_most_important_first(fields, line):
    assert repr(AnonymizeReport(source="s3://raw/a", recipe="r", **fields)) == line


@pytest.mark.parametrize("rules", ["plate: ignore", ["plate"], 3, {"plate": "ignore"}])
def test_rules_of_another_form_are_refused_with_an_example(rules):
    with pytest.raises(InvalidRequest) as refused:
        AnonymizeOptions.parse(rules=rules)

    assert str(refused.value) == (
        "not a valid request: rules: give an object with an object for each label, such as "
        '{"plate": {"method": "fill", "margin": 0.2}}'
    )
