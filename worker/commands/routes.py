"""``veil routes``: the routes with their settings, and what would happen to an address."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tasks.errors import QueueUnavailable
from tasks.publishing import announced_recipe, announced_recipes
from tasks.redis.clients import impatient_client
from tasks.routes import Route
from tasks.storage.s3 import ObjectStore
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Json
from worker.commands.queue import REDIS_SECONDS, celery_app
from worker.printing import UNKNOWN, print_note, printable
from worker.route_reports import AddressReport, Attempt, RouteReport, RouteReports, attempts
from worker.settings import WorkerSettings

Addresses = Annotated[
    list[str] | None,
    typer.Argument(metavar="s3://BUCKET/KEY", help="Addresses of pictures.", show_default=False),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Only read the settings: ask no store and no Redis.")
]

app = CommandApp("Show and check the routes.\n\nExample: veil routes check")


@app.callback()
def routes() -> None:
    """Show and check the routes."""


@app.command()
def check(addresses: Addresses = None, offline: Offline = False, as_json: Json = False) -> ExitCode:
    """Print the routes and their settings, and try their permissions.

    For each route, the command lists sources and reads one if there is one, lists outputs, writes a
    small object beside the receipts as workers do at their start, with the headers of outputs and
    of receipts, and deletes a receipt that does not exist. With addresses, it also prints what
    would happen to each, and checks their routes alone. Exit with 1 if something fails or is
    refused.

    Example: veil routes check s3://camera-uploads/a/b.jpg
    """
    settings = WorkerSettings.load()
    reports = RouteReports(settings, _recipes(offline))
    chosen: list[Route | None] = []
    are_good = True
    for address in addresses or ():
        fate, own_route = reports.of_address(address)
        chosen.append(own_route)
        are_good &= fate.refusal is None
        print(json.dumps({"address": asdict(fate)}) if as_json else _address_text(fate))
    for route in settings.parsed_routes():
        if addresses and route not in chosen:
            continue
        report = reports.of_route(route, list(_attempts(settings, route, offline)))
        are_good &= report.is_good
        print(json.dumps({"route": asdict(report)}) if as_json else _route_text(report))
    return ExitCode.ok_if(are_good)


def _attempts(settings: WorkerSettings, route: Route, offline: bool) -> Iterator[Attempt]:
    if not offline:
        yield from attempts(ObjectStore.connect(settings), settings, route)


def _recipes(offline: bool) -> Callable[[str | None], str | None]:
    """Return a function of the name of a route: its recipe, as the workers have reported it.

    Without Redis no recipe is known.
    """
    default: str | None = None
    known: dict[str, str] = {}
    if not offline:
        redis = impatient_client(celery_app(), REDIS_SECONDS)
        try:
            default, known = announced_recipe(redis), announced_recipes(redis)
        except QueueUnavailable as error:
            print_note(f"the recipes are unknown: {error}")
    return lambda name: known.get(name or "", default)


def _address_text(fate: AddressReport) -> str:
    if fate.refusal is not None:
        return f"{printable(fate.address)}\n  refused  {printable(fate.refusal)}\n"
    lines = [
        printable(fate.address),
        f"  route    {fate.route or UNKNOWN}",
        f"  output   {printable(fate.output or UNKNOWN)}",
        f"  settings {_settings_text(fate.settings)}",
        f"  recipe   {fate.recipe or UNKNOWN}",
    ]
    if fate.priority is not None:
        lines.append(f"  priority {fate.priority}")
    return "\n".join(lines) + "\n"


def _route_text(report: RouteReport) -> str:
    name = f"{report.route}: " if report.route else ""
    lines = [f"{name}{report.source} -> {report.destination}"]
    if report.suffixes:
        lines.append(f"  suffixes {' '.join(report.suffixes)}")
    if report.names_key:
        lines.append(f"  names    hashed with the secret {report.names_key}")
    lines.append(f"  settings {_settings_text(report.settings, report.own)}")
    lines.append(f"  recipe   {report.recipe or UNKNOWN}")
    if report.priority is not None:
        lines.append(f"  priority {report.priority}")
    for attempt in report.attempts:
        lines += _attempt_lines(attempt)
    return "\n".join(map(printable, lines)) + "\n"


def _attempt_lines(attempt: Attempt) -> Iterator[str]:
    needs = f"{attempt.action} ({attempt.permission}, for {attempt.needed_for})"
    if attempt.not_tried:
        yield f"  –        {needs}"
        yield f"           not tried: {attempt.not_tried}"
        return
    if attempt.error is None:
        yield f"  ok       {needs}"
        return
    yield f"  failed   {needs}"
    yield f"           {attempt.error}"
    if attempt.who_acts:
        yield f"           {attempt.who_acts}"


def _settings_text(settings: Mapping[str, Any], own: Any = ()) -> str:
    """Return the settings on a line; those of the route itself have an asterisk."""
    parts = []
    for name, value in settings.items():
        parts.append(f"{name}{'*' if name in own else ''}={_value_text(value)}")
    return " ".join(parts)


def _value_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
