"""``veil enqueue``: put addresses on the queue and, if asked, wait for the results."""

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from celery.result import AsyncResult
from celery.states import PENDING, READY_STATES, RETRY, STARTED

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed
from tasks.messages import AnonymizeOptions, AnonymizeRequest
from tasks.publishing import Publisher, Wanted
from tasks.redis_errors import connected
from tasks.routes import Routes
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from worker.commands import options
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.progress import progress_bar
from worker.commands.queue import celery_app
from worker.printing import print_note, print_summary, printable, summarized

if TYPE_CHECKING:
    from tasks.app import App

POLL_SECONDS = 0.2
PING_SECONDS = 1.0  # within which a worker must answer
MAX_POLLED = 500  # results that are read between two pauses
BATCH = 500  # messages in one transaction


Prefix = Annotated[
    str | None,
    typer.Option(metavar="s3://BUCKET/PREFIX", help="Every object below this address."),
]
Wait = Annotated[bool, typer.Option(help="Wait for the results; exit with 1 if a picture failed.")]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="With --wait: give up after this time without a result.",
    ),
]

app = CommandApp()


@app.command(has_summary=True)
def enqueue(
    uris: options.Sources = None,
    prefix: Prefix = None,
    queue: options.Queue = "uploads",
    wait: Wait = False,
    timeout: Timeout = 600,
    method: options.MethodName = None,
    region: options.Region = None,
    exempt: options.Exempt = None,
    extra: options.Extra = None,
    as_json: options.Json = False,
) -> ExitCode:
    """Put pictures on the queue.

    If VEIL_ROUTES is set, addresses outside of its sources are refused. Exit with 1 if there is no
    object below --prefix and, with --wait, if a picture failed or did not answer.

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
    count, waited_for = _publish(celery, chain(sources, listed), request, queue, wait, as_json)
    is_empty = place is not None and count == len(sources)
    if is_empty:
        print_note(f"no object below {place}: nothing to enqueue from there")
    failed = _wait(celery, waited_for, queue, timeout, as_json) if wait else 0
    return ExitCode.ok_if(not failed and not is_empty)


def _publish(
    celery: "App",
    sources: Iterable[ObjectUri],
    request: AnonymizeOptions,
    queue: str,
    wait: bool,
    as_json: bool,
) -> tuple[int, dict[str, str]]:
    """Put `sources` on `queue`. Return their number and, with `wait`, the sources by task id."""
    publisher = Publisher(celery)
    waited_for: dict[str, str] = {}
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
                    waited_for.update(zip(task_ids, map(str, batch), strict=True))
                elif as_json:
                    _print_enqueued(batch, task_ids)
            is_finished = True
    return bar.count, waited_for


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
    store = ObjectStore.connect(settings)
    return (stored.uri for stored in store.list(place.bucket, place.prefix))


def _batches(sources: Iterable[ObjectUri]) -> Iterator[list[ObjectUri]]:
    remaining = iter(sources)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _print_enqueued(sources: list[ObjectUri], task_ids: list[str]) -> None:
    for source, task_id in zip(sources, task_ids, strict=True):
        print(json.dumps({"source": str(source), "task_id": task_id}))


def _wait(celery: "App", sources: dict[str, str], queue: str, timeout: float, as_json: bool) -> int:
    """Print each result as it arrives, for `sources` by task id.

    Give up `timeout` seconds after the last result. Return how many pictures failed or did not
    answer.
    """
    counts: Counter[str] = Counter()
    pending = deque(sources)

    def summarize() -> None:
        waiting = len(sources) - counts.total()
        if waiting:
            counts["without a result"] = waiting
        parts = [f"{count} {status}" for status, count in sorted(counts.items())]
        print_summary(", ".join(parts) or "nothing")

    with summarized(summarize), connected():
        _print_results(celery, sources, pending, timeout, counts, as_json)
        _print_unanswered(celery, sources, pending, queue, counts, as_json)
    return counts["failed"] + counts["no answer"]


def _print_results(
    celery: "App",
    sources: dict[str, str],
    pending: deque[str],
    timeout: float,
    counts: Counter[str],
    as_json: bool,
) -> None:
    """Take tasks from `pending` as their results arrive, print them, and count their statuses.

    Return when all have arrived, or `timeout` seconds after the last one.
    """
    last_result = time.monotonic()
    with progress_bar("anonymized", total=len(sources)) as bar:
        while pending and time.monotonic() - last_result < timeout:
            for _ in range(min(len(pending), MAX_POLLED)):
                task_id = pending.popleft()
                meta = AsyncResult(task_id, app=celery)._get_task_meta()
                if meta["status"] not in READY_STATES:
                    pending.append(task_id)
                    continue
                counts[_print_result(sources[task_id], task_id, meta, as_json)] += 1
                bar.advance()
                last_result = time.monotonic()
            time.sleep(POLL_SECONDS)


def _print_unanswered(
    celery: "App",
    sources: dict[str, str],
    pending: Iterable[str],
    queue: str,
    counts: Counter[str],
    as_json: bool,
) -> None:
    """Print and count the tasks that are still `pending`, each with the reason."""
    workers: list[str] | None = None
    for task_id in pending:
        meta = AsyncResult(task_id, app=celery)._get_task_meta()
        if meta["status"] == PENDING and workers is None:
            workers = sorted(celery.control.inspect(timeout=PING_SECONDS).ping() or ())
        line = {"source": sources[task_id], "task_id": task_id, "status": "unknown"}
        message = _reason(meta, queue, workers or [])
        counts["no answer"] += 1
        _print({**line, "error": "NoAnswer", "message": message}, as_json)


def _reason(meta: dict[str, Any], queue: str, workers: list[str]) -> str:
    """Return why a task has no result yet, from its state and the `workers` that answer."""
    if meta["status"] == RETRY:
        error = meta["result"]
        return f"it waits for another try after {type(error).__name__}: {error}"
    if meta["status"] == STARTED:
        return "a worker has begun it and has not ended: raise --timeout, or look at its log"
    if workers:
        answering = "1 worker answers" if len(workers) == 1 else f"{len(workers)} workers answer"
        return f"it still waits on {queue}: {answering}; raise --timeout"
    return (
        f"it still waits on {queue} and no worker answers: start `veil worker` with the same "
        "VEIL_REDIS_URL"
    )


def _print_result(source: str, task_id: str, meta: dict[str, Any], as_json: bool) -> str:
    """Print the result of one picture, and return its status."""
    if meta["status"] == "SUCCESS":
        _print({"task_id": task_id, **meta["result"]}, as_json)
        return str(meta["result"]["status"])
    error = meta["result"]
    line = {"source": source, "task_id": task_id, "status": "failed"}
    _print({**line, "error": type(error).__name__, "message": str(error)}, as_json)
    return "failed"


def _print(line: dict[str, Any], as_json: bool) -> None:
    """Print a result as JSON; for people only an error, a reason for review or a warning.

    The summary counts the others.
    """
    if as_json:
        print(json.dumps(line), flush=True)
    elif "error" in line:
        text = f"{line['source']}: {line['error']}: {line.get('message', '')}"
        print(printable(text), file=sys.stderr)
    elif remarks := [line[name] for name in ("reason", "warning") if name in line]:
        text = f"{line['source']}: {line['status']}, {'; '.join(remarks)}"
        print(printable(text), file=sys.stderr)
