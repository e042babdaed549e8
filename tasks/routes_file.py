"""The routes file, in TOML: routes with names, and with settings of their own."""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from .errors import InvalidRequest
from .output_names import OutputNames
from .routes import Priority, Route, Routes, parse_place
from .signatures import Key
from .wrong_values import in_words, of_form

SETTING = "VEIL_ROUTES_FILE"
TABLE = "routes"  # the table of the file that has a table for each route
MAX_ROUTES = 500  # Each has time series of its own.
MAX_BYTES = 1 << 20
PLACES = ("source", "destination")  # the keys that every route has
NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
SUFFIX = r"^(?=.{1,64}$)[^,/\s]*\.[^,/\s]+$"
# The settings of workers that a route may have in place of those of VEIL_…, by their names there.
ROUTE_SETTINGS = (
    *("method", "region", "margin", "shape", "feather", "no_faces", "verify"),
    *("preset", "scales", "max_enlargement", "enlarge_to", "closer_to", "mirrored", "turned"),
    *("smallest_face", "keep_exif", "keep_xmp", "keep_gps"),
    *("keep_metadata", "keep_tags", "keep_cache_control"),
    *("upload_encryption", "upload_kms_key", "upload_bucket_key", "upload_storage_class"),
    *("upload_tags", "upload_acl", "upload_cache_control", "upload_content_disposition"),
    *("upload_checksum", "receipt_encryption", "receipt_kms_key", "receipt_storage_class"),
    *("receipt_tags", "receipt_acl"),
)

NO_NAMES_KEY = (
    '"hash" needs VEIL_NAMES_KEY, the secret of the names, the same for all workers, triggers and '
    "commands"
)
VARIABLE = re.compile(r"\bVEIL_([A-Z0-9_]+)")

Problem = tuple[str, str]
"""A key of a route, empty for several keys together, and what is wrong with it."""

CheckSettings = Callable[[Mapping[str, Any]], list[Problem]]
"""A function that returns what is wrong with the settings of a route."""


def _address(text: str) -> str:
    try:
        return str(parse_place(text))
    except InvalidRequest as error:
        raise ValueError(str(error)) from None


Address = Annotated[str, AfterValidator(_address)]
RouteSuffix = Annotated[
    str,
    Field(json_schema_extra={"pattern": SUFFIX}),
    of_form(SUFFIX, "a suffix with a dot, as .jpg, of up to 64 characters without , / or space"),
    AfterValidator(str.lower),
]


class RouteEntry(BaseModel):
    """The keys of a route that are no settings of workers. All others are in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    source: Address = Field(description="Bucket and prefix of the sources, `s3://BUCKET/PREFIX`.")
    destination: Address = Field(description="Bucket and prefix of their outputs.")
    suffixes: list[RouteSuffix] = Field(
        [],
        min_length=1,
        description="Suffixes of the keys that the route takes, in upper or lower case. A route "
        "without this key takes all keys.",
    )
    priority: Priority | SkipJsonSchema[None] = Field(
        None,
        description="Workers take the pictures of `high` routes before those of `normal` ones, and "
        "those of `low` ones last. A route without the key is `normal`.",
    )
    output_names: Literal["source", "hash"] = Field(
        "source",
        description="Names of the outputs: the keys of their sources, or digests of them, keyed by "
        "`VEIL_NAMES_KEY`.",
    )

    def route(self, name: str, names_key: Key | None) -> Route:
        suffixes = tuple(self.suffixes)
        is_hashed = self.output_names == "hash"
        return Route(
            parse_place(self.source),
            parse_place(self.destination),
            name,
            suffixes,
            dict(self.model_extra or {}),
            OutputNames("", names_key, suffixes) if is_hashed else OutputNames(),
            self.priority,
        )


def read_routes(path: Path, check: CheckSettings, names_key: Key | None = None) -> Routes:
    """Return the routes in the file at `path`.

    `check` gets the settings of each route. `names_key` is the key of hashed names. Raises
    ValueError, with a line that names the file, and the route and the key of each problem.
    """
    tables = _tables(path)
    problems: list[str] = []
    routes: list[Route] = []
    for name, table in tables.items():
        found, wrong = _parsed(name, table, check, names_key)
        routes += found
        problems += [f"[{TABLE}.{name:.60}] {problem}" for problem in wrong]
    try:
        read = Routes(_with_priorities(routes), SETTING)
    except InvalidRequest as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return read


def _with_priorities(routes: list[Route]) -> tuple[Route, ...]:
    """Return `routes` with a priority each, or none: then messages go to the lists without one.

    Those lists are the only ones that producers in other languages and autoscalers know.
    """
    if all(route.priority is None for route in routes):
        return tuple(routes)
    return tuple(replace(route, priority=route.priority or "normal") for route in routes)


def _tables(path: Path) -> dict[str, Any]:
    """Return the tables of the routes in the file by their names. Raises ValueError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes")
    try:
        parsed = tomllib.loads(content.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    if unknown := sorted(parsed.keys() - {TABLE}):
        raise ValueError(f"{path}: {unknown[0]!r:.60} is unknown: write [{TABLE}.NAME]")
    tables = parsed.get(TABLE)
    if not isinstance(tables, dict) or not tables:
        raise ValueError(f"{path} has no route: write [{TABLE}.NAME], then source and destination")
    if len(tables) > MAX_ROUTES:
        raise ValueError(f"{path} has {len(tables)} routes: {MAX_ROUTES} are allowed")
    return tables


def _parsed(
    name: str, table: Any, check: CheckSettings, names_key: Key | None
) -> tuple[list[Route], list[str]]:
    """Return the route in `table`, and a line for each problem.

    With a problem, the route has its places alone. If they are not valid, there is no route.
    """
    if not isinstance(table, dict):
        return [], ["is no table of keys and values"]
    problems = list(_problems_of_name(name))
    settings = {key: value for key, value in table.items() if key in ROUTE_SETTINGS}
    try:
        entry = RouteEntry.model_validate(table)
    except ValidationError as error:
        problems += [_line(*problem) for problem in problems_of(error)]
    else:
        if entry.output_names == "hash" and names_key is None:
            problems.append(_line("output_names", NO_NAMES_KEY))
    problems += _unknown_keys(table)
    problems += [_line(key, _with_keys(problem)) for key, problem in check(settings)]
    if problems:
        return list(_with_places_alone(name, table)), problems
    return [entry.route(name, names_key)], []


def _with_places_alone(name: str, table: Mapping[str, Any]) -> Iterator[Route]:
    """Yield the route in `table` without its other keys, if its places are valid."""
    places = {key: value for key, value in table.items() if key in PLACES}
    with suppress(ValidationError):
        yield RouteEntry.model_validate(places).route(name, None)


def _with_keys(problem: str) -> str:
    """Return the text of a problem with the keys of the file in place of the variables."""

    def key_of(variable: re.Match[str]) -> str:
        key = variable[1].lower()
        return key if key in ROUTE_SETTINGS else variable[0]

    return VARIABLE.sub(key_of, problem)


def _problems_of_name(name: str) -> Iterator[str]:
    if not re.fullmatch(NAME, name):
        yield "a name has up to 40 lower-case letters, digits and hyphens"


def _unknown_keys(table: Mapping[str, Any]) -> Iterator[str]:
    known = (*RouteEntry.model_fields, *ROUTE_SETTINGS)
    for key in sorted(table.keys() - {*known}):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else "docs/routes.md lists all keys"
        yield f"{key:.60} is no key of a route: {hint}"


def problems_of(error: ValidationError) -> list[Problem]:
    """Return the first problem of each wrong key in `error`."""
    found: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        key = str(detail["loc"][0]) if detail["loc"] else ""
        found.setdefault(key, in_words(detail))
    return list(found.items())


def _line(key: str, message: str) -> str:
    return f"{key}: {message}" if key else message
