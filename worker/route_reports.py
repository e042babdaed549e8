"""Reports on routes: the settings of each, the fate of an address, and the permissions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.addresses import ObjectUri
from tasks.errors import VeilError
from tasks.messages import AnonymizeRequest
from tasks.routes import Route
from tasks.storage import receipts
from tasks.storage.s3 import ObjectStore
from worker.route_duties import who_acts
from worker.settings import WorkerSettings

# The settings that a report on a route always has, besides those of the route itself.
SHOWN = ("method", "region", "margin", "shape", "preset", "no_faces", "verify")


@dataclass(frozen=True)
class Attempt:
    """An attempt to use a permission.

    `needed_for` says what works only with it. `error` is the error with which it failed, and
    `who_acts` says who can change that. `not_tried` says why there was no attempt.
    """

    action: str
    permission: str
    needed_for: str
    error: str | None = None
    who_acts: str | None = None
    not_tried: str | None = None


@dataclass(frozen=True)
class RouteReport:
    """A route with the settings that hold on it.

    `priority` is that of its messages; None if no route has one. `own` are the names of the
    settings in the routes file. `recipe` is that of new outputs, or None if no worker has reported
    it. `attempts` is empty if nothing was tried. `names_key` is the id of the secret with which the
    names of outputs are hashed, or None if they are not.
    """

    route: str | None
    source: str
    destination: str
    suffixes: Sequence[str]
    settings: Mapping[str, Any]
    own: Sequence[str]
    recipe: str | None
    attempts: Sequence[Attempt] = field(default_factory=list)
    priority: str | None = None
    names_key: str | None = None

    @property
    def is_good(self) -> bool:
        return not any(attempt.error for attempt in self.attempts)


@dataclass(frozen=True)
class AddressReport:
    """The fate of a request for the picture at `address`: its route and output, or a refusal."""

    address: str
    route: str | None = None
    output: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    refusal: str | None = None
    priority: str | None = None


class RouteReports:
    """Reports on the routes of `settings`.

    `recipe_of` returns the recipe of the route with a name, or of those without, if it is known.
    """

    def __init__(
        self, settings: WorkerSettings, recipe_of: Callable[[str | None], str | None]
    ) -> None:
        self._settings = settings
        self._recipe_of = recipe_of

    def of_route(self, route: Route, attempts: Sequence[Attempt] = ()) -> RouteReport:
        """Return the report on `route`, with the `attempts` that were made."""
        return RouteReport(
            route.name,
            str(route.source),
            str(route.destination),
            route.suffixes,
            self._shown(route),
            sorted(route.settings),
            self._recipe_of(route.name),
            list(attempts),
            route.priority,
            route.names.hash_key.id if route.names.hash_key else None,
        )

    def of_address(self, address: str) -> tuple[AddressReport, Route | None]:
        """Return the report on the picture at `address`, and its route.

        The route is None if a worker would refuse the picture.
        """
        try:
            request = AnonymizeRequest.parse(source=address)
            routed = self._settings.parsed_routes().resolve(request)
        except VeilError as error:
            return AddressReport(address, refusal=_text(error)), None
        route = routed.route
        report = AddressReport(
            address,
            route.name,
            str(routed.destination),
            self._shown(route),
            self._recipe_of(route.name),
            priority=route.priority,
        )
        return report, route

    def _shown(self, route: Route) -> dict[str, Any]:
        settings = self._settings.of_route(route)
        names = dict.fromkeys((*SHOWN, *route.settings))
        return {name: getattr(settings, name) for name in names}


def attempts(store: ObjectStore, settings: WorkerSettings, route: Route) -> Iterator[Attempt]:
    """Try the permissions that workers and commands need on `route`, and yield what came of it.

    Writes the probe object beside the receipts, as workers do.
    """
    from worker.outputs import Outputs, destination_errors

    found: list[ObjectUri] = []

    def list_sources() -> None:
        listed = store.list(route.source.bucket, route.source.prefix)
        found.extend(stored.uri for stored, _ in zip(listed, range(1), strict=False))

    def list_outputs() -> None:
        with destination_errors():
            next(store.list(route.destination.bucket, route.destination.prefix), None)

    commands = "backfill, reconcile and veil watch --poll"
    listing = _tried(Attempt("list sources", "s3:ListBucket", commands), list_sources)
    yield listing
    attempt = Attempt("read a source", "s3:GetObject", "workers")
    if found:
        yield _tried(attempt, lambda: _read(store, found[0]))
    elif listing.error:
        yield replace(attempt, not_tried="the sources can't be listed")
    else:
        yield replace(attempt, not_tried=f"no object below {route.source}")
    attempt = Attempt("list outputs", "s3:ListBucket", "workers, backfill and reconcile")
    yield _tried(attempt, list_outputs)
    own = settings.of_route(route)
    outputs = Outputs(store, own.receipt_keys(), own.fetch_seconds, own.uploads())
    attempt = Attempt("write and read an output", "s3:PutObject and s3:GetObject", "workers")
    yield _tried(attempt, lambda: outputs.check(route))
    # There is no such receipt. A store asks for the permission first.
    receipt = route.destination.join(receipts.FOLDER + "probe")
    attempt = Attempt("delete a receipt", "s3:DeleteObject", "workers")
    yield _tried(attempt, lambda: store.delete(receipt))


def _read(store: ObjectStore, uri: ObjectUri) -> None:
    with store.open(uri):
        """Its headers have arrived, and its content is not needed."""


def _tried(attempt: Attempt, call: Callable[[], object]) -> Attempt:
    try:
        call()
    except VeilError as error:
        return replace(attempt, error=_text(error), who_acts=who_acts(error, attempt.permission))
    return attempt


def _text(error: VeilError) -> str:
    return f"{type(error).__name__}: {error}"
