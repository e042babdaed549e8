"""The errors of pydantic and of parsers in plain words."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import AfterValidator

WHOLE, NUMBER, TRUTH = "must be a whole number", "must be a number", "must be true or false"
LIST = "must be a list"
# Texts by pydantic's type of error, with the fields of its context.
TEXTS = {
    "bool_parsing": TRUTH,
    "bool_type": TRUTH,
    "finite_number": "must be a finite number",
    "float_parsing": NUMBER,
    "float_type": NUMBER,
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be {ge} or more",
    "int_from_float": WHOLE,
    "int_parsing": WHOLE,
    "int_parsing_size": WHOLE,
    "int_type": WHOLE,
    "less_than": "must be below {lt}",
    "less_than_equal": "must be {le} or less",
    "list_type": LIST,
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match the regular expression {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "string_type": "must be a text",
    "too_short": "must have {min_length} or more values",
    "tuple_type": LIST,
}
# The types of JSON by those that Python reads them as.
JSON_TYPES = {
    bool: "boolean",
    dict: "object",
    float: "number",
    int: "number",
    list: "list",
    str: "text",
}


def of_form(pattern: str, text: str) -> AfterValidator:
    """Return the check that a whole value matches `pattern`; its error says that it must be `text`.

    The pattern of a Field is no check for people: its error shows the regular expression.
    """

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {text}")
        return value

    return AfterValidator(check)


def in_words(detail: Mapping[str, Any]) -> str:
    """Return what is wrong with a value; `detail` is one of the errors of a ValidationError."""
    if text := TEXTS.get(detail["type"]):
        return text.format(**{name: _shown(value) for name, value in detail.get("ctx", {}).items()})
    return str(detail["msg"]).removeprefix("Value error, ")


def json_type(value: Any) -> str:
    """Return the type of a parsed JSON value, in the words of JSON."""
    return "null" if value is None else f"a JSON {JSON_TYPES.get(type(value), 'value')}"


def cause(error: Exception) -> str:
    """Return in one line why data could not be read, from the error that reading them raised."""
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    if isinstance(error, AttributeError | TypeError):
        return "a part of it is of another type than the format says"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
