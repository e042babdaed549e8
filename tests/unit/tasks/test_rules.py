"""Rules in text become values by label, or are refused in one line."""

import pytest

from tasks.errors import InvalidRequest
from tasks.messages import AnonymizeOptions, Rule
from tasks.rules import parse_rules


def test_rules_are_read_from_a_line_and_from_several():
    text = "plate: region=full margin=0.2; traffic light: hold ; *: ignore=true scales=256,480"
    expected = {
        "plate": {"region": "full", "margin": 0.2},
        "traffic light": {"hold": True},
        "*": {"ignore": True, "scales": [256, 480]},
    }
    assert parse_rules(text) == expected
    assert parse_rules(text.replace(";", "\n")) == expected
    assert parse_rules(" ;\n") == {}


def test_the_label_of_faces_may_be_written_in_any_case():
    assert list(parse_rules("face: hold")) == ["FACE"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("plate", "'plate' is no rule"),
        ("plate: fast", "'fast' has no value"),
        ("plate: hold; plate: ignore", "two rules for plate"),
        (": hold", "is no label"),
        ("a\x00b: hold", "is no label"),
        ("p*: hold", "is no label"),
        (f"{'x' * 65}: hold", "is no label"),
    ],
)
def test_another_text_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_rules(text)


def test_the_recipe_of_a_request_depends_on_its_rules_but_not_on_their_order():
    rules = {"plate": {"method": "fill"}, "FACE": {"hold": True}}
    one = AnonymizeOptions.parse(rules=rules)
    other = AnonymizeOptions.parse(rules=dict(reversed(rules.items())))
    assert one.recipe("base") == other.recipe("base") != "base"
    assert AnonymizeOptions.of(one.to_json()) == one


def test_a_request_whose_rules_change_nothing_has_the_recipe_of_the_worker():
    assert AnonymizeOptions.parse(rules={"plate": {}}).recipe("base") == "base"
    assert AnonymizeOptions.parse().to_json() == {}


def test_the_recipe_of_a_request_of_earlier_versions_stays_the_same():
    older = AnonymizeOptions.parse(region="full", extra=[[1, 2, 3, 4]], method="fill")
    assert older.recipe("5a38d4c65c2c5ab0") == "5a38d4c65c2c5ab0-a03fcc43"


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"plate": {"colour": "red"}}, "unknown, choose from method, region"),
        ({"plate": {"margin": 2}}, "must be 1 or less"),
        ({"plate": {"hold": "yes"}}, "must be true or false"),
        ({"*": {"hold": True}}, "is no label"),
        ({"plate": {"threshold": 0.1}}, "unknown"),
        ({"FACE": {"hold": True}, " face": {"ignore": True}}, "two rules for FACE"),
        ([], "give an object with an object for each label"),
    ],
)
def test_wrong_rules_of_a_request_are_refused_by_name(rules, reason):
    with pytest.raises(InvalidRequest, match=reason):
        AnonymizeOptions.parse(rules=rules)


def test_a_rule_has_the_names_that_the_documentation_lists():
    assert list(Rule.model_fields) == [
        "method",
        "region",
        "margin",
        "shape",
        "smallest",
        "hold",
        "ignore",
    ]
