"""Errors of parsers, in words that name no type of Python."""

import json

import pytest

from tasks.errors import MalformedEvent
from tasks.uploads.events import parse
from tasks.wrong_values import cause


def error_of(read):
    with pytest.raises(Exception) as raised:
        read()
    return raised.value


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda: {}["sourceBucket"], "it has no 'sourceBucket'"),
        (lambda: len(1), "a part of it is of another type than the format says"),
        (lambda: json.loads("no"), "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_a_cause_is_told_without_the_type_of_the_error(read, said):
    assert cause(error_of(read)) == said


@pytest.mark.parametrize(
    ("body", "said"),
    [("null", "not an event but null"), ("[]", "not an event but a JSON list")],
)
def test_an_event_of_another_type_is_named_in_the_words_of_json(body, said):
    with pytest.raises(MalformedEvent, match=said):
        parse(body)
