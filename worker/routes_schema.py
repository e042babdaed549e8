"""The JSON schema of the routes file, for editors and checks before a deployment."""

import json
from typing import Any

from tasks.messages import LOWEST_REGION, REGIONS
from tasks.routes_file import MAX_ROUTES, NAME, ROUTE_SETTINGS, TABLE, RouteEntry
from tasks.settings import PREFIX
from worker.settings import WorkerSettings

# The forms of values that a validator of the settings turns into the type of the setting.
OTHER_FORMS: dict[str, dict[str, Any]] = {
    "region": {
        "anyOf": [
            {"enum": list(REGIONS)},
            {"type": "number", "minimum": LOWEST_REGION, "maximum": 1},
        ]
    },
    "keep_gps": {"enum": ["false", "rounded", "true", False, True]},
}


def schema() -> dict[str, Any]:
    """Return the schema of the routes file."""
    entry = RouteEntry.model_json_schema()
    settings = WorkerSettings.model_json_schema()["properties"]
    properties = {name: _property(form) for name, form in entry["properties"].items()}
    for name in ROUTE_SETTINGS:
        properties[name] = _property({**settings[name], **OTHER_FORMS.get(name, {})})
        properties[name]["description"] = f"`{PREFIX}{name.upper()}` of this route."
    route = {
        "type": "object",
        "required": entry["required"],
        "properties": properties,
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Routes of Veil",
        "type": "object",
        "required": [TABLE],
        "properties": {
            TABLE: {
                "type": "object",
                "minProperties": 1,
                "maxProperties": MAX_ROUTES,
                "propertyNames": {"pattern": NAME},
                "additionalProperties": route,
            }
        },
        "additionalProperties": False,
    }


def text() -> str:
    """Return the schema as docs/routes.schema.json has it."""
    return json.dumps(schema(), indent=2) + "\n"


def _property(form: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a key. An empty text takes away what an optional setting has."""
    kept = {name: value for name, value in form.items() if name not in ("title", "default")}
    if "anyOf" in kept:
        kept.pop("type", None)
        nothing = {"type": "null"}
        kept["anyOf"] = [{"const": ""} if one == nothing else one for one in kept["anyOf"]]
    for bound in ("ge", "le"):
        kept.pop(bound, None)
    if "enum" in kept and True in kept["enum"]:
        kept.pop("type", None)
    return kept
