"""``veil enqueue``: put addresses on the queue and, if asked, wait for the results."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated

import typer

from tasks import tracing
from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed
from tasks.messages import AnonymizeOptions, AnonymizeRequest
from tasks.publishing import Publisher, Wanted
from tasks.redis_clients import refuse_cluster
from tasks.routes import Routes
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from worker.commands import options, waiting
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.progress import progress_bar
from worker.commands.queue import celery_app
from worker.printing import print_summary, summarized

if TYPE_CHECKING:
    from tasks.app import App

BATCH = 500  # messages in one transaction


Prefix = Annotated[
    str | None,
    typer.Option(metavar="s3://BUCKET/PREFIX", help="Every object below this address."),
]

app = CommandApp()


@app.command(has_summary=True)
def enqueue(
    uris: options.Sources = None,
    prefix: Prefix = None,
    queue: options.Queue = "uploads",
    wait: options.Wait = False,
    timeout: options.Timeout = 600,
    method: options.MethodName = None,
    region: options.Region = None,
    exempt: options.Exempt = None,
    extra: options.Extra = None,
    as_json: options.Json = False,
) -> ExitCode:
    """Put pictures on the queue.

    If VEIL_ROUTES is set, addresses outside of its sources are refused. Exit with 1 if there is no
    object below --prefix (nothing is enqueued then) and, with --wait, if a picture failed or has no
    result.

    Example: veil enqueue s3://camera-uploads/a/b.jpg --wait
    """
    if not uris and not prefix:
        raise typer.BadParameter("give addresses, or --prefix")
    request = options.anonymize_options(method, region, exempt, extra)
    settings = Settings.load()
    sources = [ObjectUri.parse(uri) for uri in uris or ()]
    place = PrefixUri.parse(prefix) if prefix else None
    if "routes" in settings.model_fields_set:  # Without it, the workers' routes are not known.
        _refuse_unrouted(settings.parsed_routes(), sources, place)
    listed = _listed(settings, place) if place else ()
    celery = celery_app()
    refuse_cluster(celery)
    tracing.configure("veil-enqueue")
    waited_for = _publish(celery, chain(sources, listed), request, queue, wait, as_json)
    if not wait:
        return ExitCode.OK
    endings = waiting.wait(celery, waited_for, queue, timeout, as_json)
    return ExitCode.ok_if(endings.are_good)


def _publish(
    celery: "App",
    sources: Iterable[ObjectUri],
    request: AnonymizeOptions,
    queue: str,
    wait: bool,
    as_json: bool,
) -> dict[str, Wanted]:
    """Put `sources` on `queue`. With `wait`, return them by task id."""
    publisher = Publisher(celery)
    waited_for: dict[str, Wanted] = {}
    is_finished = False
    with progress_bar("enqueued") as bar:

        def summarize() -> None:
            # After all were enqueued, the summary of the results follows.
            if bar.count and not (wait and is_finished):
                print_summary(f"{bar.count:,} enqueued on {queue}")

        with summarized(summarize):
            for batch in _batches(sources):
                wanted = [Wanted(source, options=request) for source in batch]
                task_ids = publisher.publish(wanted, queue, keep_results=wait)
                bar.advance(len(batch))
                if wait:
                    waited_for.update(zip(task_ids, wanted, strict=True))
                elif as_json:
                    _print_enqueued(batch, task_ids)
            is_finished = True
    return waited_for


def _refuse_unrouted(routes: Routes, sources: Iterable[ObjectUri], place: PrefixUri | None) -> None:
    """Raise BucketNotAllowed for an address that is in no source of `routes`."""
    for source in sources:
        routes.resolve(AnonymizeRequest(source=source))
    if place is not None and routes.of_source(place) is None:
        known = ", ".join(str(source) for source in routes.sources)
        raise BucketNotAllowed(
            f"{place} is not within a source of VEIL_ROUTES ({known}): add a route, or correct "
            "--prefix"
        )


def _listed(settings: Settings, place: PrefixUri) -> Iterator[ObjectUri]:
    """Return the objects below `place`. Raise NothingFound if there is none."""
    store = ObjectStore.connect(settings)
    store.require_any(place)
    return (stored.uri for stored in store.list(place.bucket, place.prefix))


def _batches(sources: Iterable[ObjectUri]) -> Iterator[list[ObjectUri]]:
    remaining = iter(sources)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _print_enqueued(sources: list[ObjectUri], task_ids: list[str]) -> None:
    for source, task_id in zip(sources, task_ids, strict=True):
        print(json.dumps({"source": str(source), "task_id": task_id}))
