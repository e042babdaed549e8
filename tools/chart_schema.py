"""The part of the chart's schema that lists the settings, for `make manifests`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.secret_files import SUFFIX
from tasks.settings import PREFIX
from worker.routes_schema import OTHER_FORMS
from worker.settings import WorkerSettings

SCHEMA = Path(__file__).resolve().parents[1] / "docker" / "helm" / "veil" / "values.schema.json"
# The patterns of settings that are texts.
TEXTS = {
    "VEIL_REDIS_URL": "^(redis|sentinel)s?://",
    "VEIL_METRICS": ":[0-9]+$",
    "VEIL_ROUTES": r"^(\s*s3://[^,]+=\s*s3://[^,]+(,|$))*$",
}
# The texts of values that are no texts. Others that Veil reads too, such as 1e3, are refused.
TEXTS_OF = {
    "integer": "[0-9]+",
    "number": "[0-9]+([.][0-9]+)?",
    "boolean": "1|0|[Tt]rue|[Ff]alse|[Yy]es|[Nn]o|[Oo]n|[Oo]ff",
}
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# The generated parts: lines between two lines that stay.
FORMS = re.compile(
    r'(?<=\n    "settings": \{\n)(?P<head>.*?"properties": \{\n).*?(?=\n {6}\}\n {4}\})', re.DOTALL
)
NAMES = re.compile(r'(?P<head>\n    "settingName": \{\n +"enum": \[\n).*?(?=\n +\])', re.DOTALL)


def settings_forms() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of the value of each ``VEIL_`` variable.

    Helm reads a number without quotes as a float, so texts such as accounts have to be texts. A
    file of values drops a setting of the one before with null. The limits of a number are not those
    of one in quotes, of which the schema knows only the form.
    """
    forms: dict[str, dict[str, Any]] = {}
    secrets = WorkerSettings.secrets()
    for name, schema in WorkerSettings.model_json_schema()["properties"].items():
        variable = PREFIX + name.upper()
        forms[variable] = _form(variable, {**schema, **OTHER_FORMS.get(name, {})})
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


def _form(variable: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value whose text has the form of `schema`."""
    types, is_any_text = ["string"], False
    limits: dict[str, Any] = {}
    texts = [""] if schema.get("default", "") is None else []
    for part in _parts(schema):
        kind, names = part.get("type"), part.get("enum", [part["const"]] if "const" in part else [])
        if kind in TEXTS_OF:
            types.append(kind)
            texts.append(TEXTS_OF[kind])
        if True in names:
            types.append("boolean")
        texts += [name for name in names if isinstance(name, str)]
        limits |= {name: part[name] for name in LIMITS if name in part}
        is_any_text |= kind in ("array", "object") or (kind == "string" and not names)
    form = {"type": [*dict.fromkeys(types), "null"], **limits}
    if variable in TEXTS:
        form["pattern"] = TEXTS[variable]
    elif not is_any_text:
        form["pattern"] = f"^({'|'.join(dict.fromkeys(texts))})$"
    return form


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `schema`, its alternatives, and what its lists consist of."""
    yield schema
    for part in schema.get("anyOf", ()):
        yield from _parts(part)
    if "items" in schema:
        yield from _parts(schema["items"])
