"""``veil enqueue``: put addresses on the queue and, if asked, wait for the results."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed, NothingFound, ObjectNotFound, VeilError
from tasks.messages import AnonymizeOptions, AnonymizeRequest
from tasks.publishing import Publisher, Wanted
from tasks.redis.clients import refuse_unusable
from tasks.routes import Routes
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from tasks.telemetry import tracing
from worker.commands import options, request_lines, waiting
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.progress import Bar, progress_bar
from worker.commands.queue import celery_app, wait_for_room
from worker.printing import print_summary, summarized

if TYPE_CHECKING:
    from tasks.app import App

BATCH = 500  # messages in one transaction


Prefixes = Annotated[
    list[str] | None,
    typer.Option(
        "--prefix",
        metavar="s3://BUCKET/PREFIX",
        help="Every object below this address; repeatable.",
    ),
]

Files = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="A file with an address or a JSON object a line, or - for standard input; repeatable. "
        "The queue is kept below 20,000 messages.",
    ),
]

app = CommandApp()


@app.command(has_summary=True)
def enqueue(
    uris: options.Sources = None,
    prefixes: Prefixes = None,
    files: Files = None,
    queue: options.Queue = "uploads",
    wait: options.Wait = False,
    timeout: options.Timeout = None,
    method: options.MethodName = None,
    region: options.Region = None,
    exempt: options.Exempt = None,
    extra: options.Extra = None,
    rules: options.Rules = None,
    as_json: options.Json = False,
) -> ExitCode:
    """Put pictures on the queue.

    If the routes are set, addresses outside of their sources are refused. Options that leave
    objects visible apply to the version of the source that the store has now. Exit with 1 if there
    is no object below --prefix or no line in --from (nothing is enqueued then) and, with --wait, if
    a picture failed, has no result, or is held while an older output stays.

    Example: veil enqueue s3://camera-uploads/a/b.jpg --wait
    """
    if not (uris or prefixes or files):
        raise typer.BadParameter("give addresses, --prefix or --from")
    wait_seconds = options.seconds_to_wait(wait, timeout)
    given = options.anonymize_options(method, region, exempt, extra, rules)
    request = None if given == AnonymizeOptions() else given
    settings = Settings.load()
    sources = [ObjectUri.parse(uri) for uri in uris or ()]
    places = [PrefixUri.parse(prefix) for prefix in prefixes or ()]
    # Without the setting, the workers' routes are not known.
    routes = settings.parsed_routes() if settings.has_routes() else None
    if routes is not None:
        _refuse_unrouted(routes, sources, places)
    # Most producers may not read sources, and configure no store.
    store = cache(partial(ObjectStore.connect, settings))
    listed = [_listed(store(), place, routes, request) for place in places]
    celery = celery_app()
    refuse_unusable(celery)
    tracing.configure("veil-enqueue")
    with ExitStack() as stack:
        named = (Wanted(source, options=request) for source in sources)
        opened = [stack.enter_context(request_lines.opened(name)) for name in files or ()]
        lines = (request_lines.wanted(file, request, routes) for file in opened)
        pictures = (_pinned(store, wanted) for wanted in chain(named, *listed, *lines))
        count, waited_for = _publish(celery, pictures, queue, wait, as_json, bool(files))
    if not count:
        raise NothingFound(_nothing(places, files or ()))
    if wait_seconds is None:
        return ExitCode.OK
    endings = waiting.wait(celery, waited_for, queue, wait_seconds, as_json)
    return ExitCode.ok_if(endings.are_good)


def _publish(
    celery: "App",
    pictures: Iterable[Wanted],
    queue: str,
    wait: bool,
    as_json: bool,
    are_of_files: bool,
) -> tuple[int, dict[str, Wanted]]:
    """Put `pictures` on `queue`. Return their number and, with `wait`, the pictures by task id.

    Those of a file wait for room on the queue, because there may be millions.
    """
    publisher = Publisher(celery)
    waited_for: dict[str, Wanted] = {}
    is_finished = False
    with progress_bar("enqueued") as bar:

        def summarize() -> None:
            # After all were enqueued, the summary of the results follows.
            if bar.count and not (wait and is_finished):
                print_summary(f"{bar.count:,} enqueued on {queue}")

        with summarized(summarize), _count_on_error(bar, queue, are_of_files):
            for wanted in _batches(pictures):
                if are_of_files:
                    wait_for_room(celery.backend.client, queue)
                task_ids = publisher.publish(wanted, queue, keep_results=wait)
                bar.advance(len(wanted))
                if wait:
                    waited_for.update(zip(task_ids, wanted, strict=True))
                elif as_json:
                    _print_enqueued(wanted, task_ids)
            is_finished = True
    return bar.count, waited_for


def _nothing(places: Iterable[PrefixUri], files: Iterable[str]) -> str:
    """Return why nothing was enqueued, for each prefix and file."""
    reasons = [f"no object below {place} that its route takes" for place in places]
    reasons += [f"no request in --from {name:.200}" for name in files]
    return f"nothing was enqueued: {', and '.join(reasons)}"


@contextmanager
def _count_on_error(bar: Bar, queue: str, is_zero_shown: bool) -> Iterator[None]:
    """Print how many messages were enqueued if an error ends the block."""
    try:
        yield
    except VeilError:
        if bar.count or is_zero_shown:
            print_summary(f"{bar.count:,} enqueued on {queue} before this error")
        raise


def _refuse_unrouted(
    routes: Routes, sources: Iterable[ObjectUri], places: Iterable[PrefixUri]
) -> None:
    """Raise BucketNotAllowed for an address that is in no source of `routes`."""
    for source in sources:
        routes.resolve(AnonymizeRequest(source=source))
    for place in places:
        if routes.of_source(place) is None:
            known = ", ".join(str(source) for source in routes.sources)
            raise BucketNotAllowed(
                f"{place} is not within a source of {routes.setting} ({known}): "
                f"{routes.advice(place)}, or correct --prefix"
            )


def _listed(
    store: ObjectStore, place: PrefixUri, routes: Routes | None, options: AnonymizeOptions | None
) -> Iterator[Wanted]:
    """Return the objects below `place` that `routes` take, each with `options` for its version.

    Raise NothingFound if there is no object.
    """
    store.require_any(place)
    return (
        Wanted(stored.uri, options=options and options.pinned(stored.etag))
        for stored in store.list(place.bucket, place.prefix)
        if routes is None or routes.takes(stored.uri)
    )


def _pinned(store: Callable[[], ObjectStore], wanted: Wanted) -> Wanted:
    """Return `wanted` with options that show more in the present version of the source alone.

    Another picture may have its place when a worker fetches it. Raise ObjectNotFound if there is no
    source, and other errors of the store.
    """
    options = wanted.options
    if options is None or not options.lacks_version:
        return wanted
    source = store().head(wanted.source)
    if source is None:
        raise ObjectNotFound(
            f"{wanted.source}: there is no such object, whose version the options would be for: "
            "correct the address"
        )
    return replace(wanted, options=options.pinned(source.etag))


def _batches(pictures: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    remaining = iter(pictures)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _print_enqueued(pictures: list[Wanted], task_ids: list[str]) -> None:
    for picture, task_id in zip(pictures, task_ids, strict=True):
        print(json.dumps({**waiting.requested(picture), "task_id": task_id}))
