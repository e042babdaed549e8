"""The OpenAPI document of the HTTP API."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..messages import LOWEST_REGION, MAX_AREAS, MAX_COORDINATE, QUEUES, AnonymizeOptions

PATH = "/v1/pictures"
ADDRESS = {
    "type": "string",
    "maxLength": 1100,
    "pattern": "^s3://[^/]+/.+",
    "description": "s3://BUCKET/KEY",
}
STATUSES = ["queued", "working", "anonymized", "skipped", "held", "dead"]


def document() -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Veil",
            "version": _version(),
            "description": "Enqueue pictures for anonymization, and ask how they stand.",
        },
        "security": [{"token": []}],
        "paths": {
            PATH: {"post": _post()},
            f"{PATH}/{{id}}": {"get": _get()},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Request": _request(),
                "Queued": _object({"id": {"type": "string"}, "status": {"const": "queued"}}),
                "Picture": _picture(),
                "Error": _object(
                    {
                        "status": {"type": "integer"},
                        "error": {"type": "string"},
                        "message": {"type": "string"},
                    }
                ),
            },
        },
    }


def _post() -> dict[str, Any]:
    return {
        "operationId": "enqueue",
        "summary": "Enqueue a picture",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "schema": {"type": "string", "minLength": 1, "maxLength": 128},
                "description": (
                    "The same request with the same key gets the same id, and is enqueued once "
                    "until its picture has ended. Another request with it is refused as long as "
                    "the result of the first is kept."
                ),
            }
        ],
        "requestBody": {"required": True, "content": _json("Request")},
        "responses": {
            "202": {
                "description": "Redis has the message.",
                "headers": {"Location": {"schema": {"type": "string"}}},
                "content": _json("Queued"),
            },
            "400": _error("The request is invalid."),
            "401": _error("The token is missing or wrong."),
            "403": _error("No route leads from the source, or to the destination."),
            "413": _error("The body is too large."),
            "422": _error("The Idempotency-Key came with another request before."),
            "503": _error("Redis is unavailable; try again."),
        },
    }


def _get() -> dict[str, Any]:
    return {
        "operationId": "find",
        "summary": "Return how a picture stands",
        "parameters": [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "format": "uuid"},
            }
        ],
        "responses": {
            "200": {"description": "The picture.", "content": _json("Picture")},
            "401": _error("The token is missing or wrong."),
            "404": _error("There is no such request, or its result has expired."),
            "503": _error("Redis is unavailable; try again."),
        },
    }


def _request() -> dict[str, Any]:
    request = _object(
        {
            "source": ADDRESS,
            "destination": {"anyOf": [ADDRESS, {"type": "null"}]},
            "options": {"anyOf": [_options(), {"type": "null"}]},
            "queue": {"enum": list(QUEUES), "default": QUEUES[0]},
        },
        required=["source"],
    )
    return {**request, "additionalProperties": False}


def _options() -> dict[str, Any]:
    """Return the schema of the options, with the forms that their validators accept too."""
    schema = AnonymizeOptions.model_json_schema()
    side = {"type": "integer", "minimum": 0, "maximum": MAX_COORDINATE}
    area = {"type": "array", "items": side, "minItems": 4, "maxItems": 4}
    areas = {"type": "array", "items": area, "maxItems": MAX_AREAS}
    share = {"type": "number", "minimum": LOWEST_REGION, "maximum": 1}
    properties = schema["properties"]
    properties["region"] = {"anyOf": [share, {"enum": ["top", "full"]}, {"type": "null"}]}
    properties["exempt"] = {**areas, "description": "areas in which faces stay visible"}
    properties["extra"] = {**areas, "description": "areas that are hidden"}
    return {name: value for name, value in schema.items() if name not in ("title", "description")}


def _picture() -> dict[str, Any]:
    return _object(
        {
            "id": {"type": "string"},
            "source": {"type": "string"},
            "status": {"enum": STATUSES},
            "report": {"type": "object", "description": "with anonymized, skipped and held"},
            "error": _object({"name": {"type": "string"}, "message": {"type": "string"}}),
        },
        required=["id", "source", "status"],
    )


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": _json("Error")}


def _version() -> str:
    try:
        return version("veil")
    except PackageNotFoundError:
        return "0"
