"""The part of the chart's schema that lists the settings, for `make manifests`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.secret_files import SUFFIX
from tasks.settings import PREFIX
from worker.settings import WorkerSettings

SCHEMA = Path(__file__).resolve().parents[1] / "docker" / "helm" / "veil" / "values.schema.json"
# Settings that the templates read, and therefore in a form that these understand.
READ_BY_TEMPLATES: dict[str, dict[str, Any]] = {
    "VEIL_REDIS_URL": {"type": ["string", "null"], "pattern": "^(redis|sentinel)s?://"},
    "VEIL_METRICS": {"type": ["string", "null"], "pattern": ":[0-9]+$"},
    "VEIL_GRACE_SECONDS": {
        "type": ["number", "string", "null"],
        "minimum": 0,
        "pattern": "^[0-9]+([.][0-9]+)?$",
    },
}
# The generated parts: lines between two lines that stay.
FORMS = re.compile(
    r'(?<=\n    "settings": \{\n)(?P<head>.*?"properties": \{\n).*?(?=\n {6}\}\n {4}\})', re.DOTALL
)
NAMES = re.compile(r'(?P<head>\n    "settingName": \{\n +"enum": \[\n).*?(?=\n +\])', re.DOTALL)


def settings_forms() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of the value of each ``VEIL_`` variable.

    Helm reads a number without quotes as a float, so texts such as accounts have to be texts. A
    file of values drops a setting of the one before with null.
    """
    forms: dict[str, dict[str, Any]] = {}
    secrets = WorkerSettings.secrets()
    for name, schema in WorkerSettings.model_json_schema()["properties"].items():
        variable = PREFIX + name.upper()
        forms[variable] = READ_BY_TEMPLATES.get(variable, {"type": [*_types(schema), "null"]})
        if name in secrets:
            forms[variable + SUFFIX] = {"type": ["string", "null"]}
    return forms


def generated(text: str) -> str:
    """Return the schema in `text` with the settings of this version."""
    forms = settings_forms()
    lines = [f"        {json.dumps(name)}: {json.dumps(form)}" for name, form in forms.items()]
    names = [f"        {json.dumps(name)}" for name in forms]
    for part, content in ((FORMS, lines), (NAMES, names)):
        text = _replaced(part, content, text)
    return text


def _replaced(part: re.Pattern[str], lines: list[str], text: str) -> str:
    content = ",\n".join(lines)
    replaced, count = part.subn(lambda found: found["head"] + content, text)
    assert count == 1
    return replaced


def _types(schema: dict[str, Any]) -> list[str]:
    """Return the types of a value whose text has the form of `schema`."""
    types = ["string"]
    parts = list(_parts(schema))
    if any(part.get("type") in ("integer", "number") for part in parts):
        types.append("number")
    if any(part.get("type") == "boolean" or "true" in part.get("enum", ()) for part in parts):
        types.append("boolean")
    return types


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `schema`, its alternatives, and what its lists consist of."""
    yield schema
    for part in schema.get("anyOf", ()):
        yield from _parts(part)
    if "items" in schema:
        yield from _parts(schema["items"])
