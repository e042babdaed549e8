"""The values that a setting of several types takes, in words."""

from typing import Any

from pydantic import TypeAdapter

NUMBERS = {"integer": "a whole number", "number": "a number"}


def alternatives(annotation: Any) -> str | None:
    """Return the values of a union in words, or None if `annotation` is no union.

    ``int | None`` is none either: it takes values of one type, and no value.
    """
    schema = TypeAdapter(annotation).json_schema()
    forms = [form for form in schema.get("anyOf", ()) if form.get("type") != "null"]
    return " or ".join(_in_words(form) for form in forms) if len(forms) > 1 else None


def _in_words(form: dict[str, Any]) -> str:
    if "const" in form:
        return repr(form["const"])
    if "enum" in form:
        return " or ".join(map(repr, form["enum"]))
    if form["type"] in NUMBERS:
        return NUMBERS[form["type"]] + _limits(form.get("minimum"), form.get("maximum"))
    return f"a {form['type']}"


def _limits(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    if least is not None:
        return f" of {least:g} or more"
    return "" if most is None else f" of {most:g} or less"
