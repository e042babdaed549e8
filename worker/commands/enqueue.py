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
from celery.states import READY_STATES

from tasks.addresses import ObjectUri, PrefixUri
from tasks.publishing import Publisher, Wanted
from tasks.redis_errors import connected
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from worker.commands import options
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.progress import progress_bar
from worker.commands.queue import celery_app
from worker.printing import print_note, print_summary

if TYPE_CHECKING:
    from tasks.app import App

POLL_SECONDS = 0.2
MAX_POLLED = 500  # results that are read between two pauses
BATCH = 500  # messages in one transaction


Uris = Annotated[list[str] | None, typer.Argument(metavar="[s3://BUCKET/KEY]...")]
Prefix = Annotated[
    str | None,
    typer.Option(help="Every object below this address, s3://BUCKET or s3://BUCKET/PREFIX."),
]
Wait = Annotated[bool, typer.Option(help="Wait for the results; exit with 1 if a picture failed.")]
Timeout = Annotated[
    float, typer.Option(help="With --wait: give up after this many seconds without a result.")
]

app = CommandApp()


@app.command()
def enqueue(
    uris: Uris = None,
    prefix: Prefix = None,
    queue: options.Queue = "uploads",
    wait: Wait = False,
    timeout: Timeout = 600,
    method: options.Method = None,
    region: options.Region = None,
    exempt: options.Exempt = None,
    extra: options.Extra = None,
    as_json: options.Json = False,
) -> ExitCode:
    """Put pictures on the queue.

    Exit with 1 if a picture failed or did not answer (with --wait).

    Example: veil enqueue s3://camera-uploads/a/b.jpg --wait
    """
    if not uris and not prefix:
        raise typer.BadParameter("give addresses, or --prefix")
    request = options.anonymize_options(method, region, exempt, extra)
    settings = Settings.load()
    sources = [ObjectUri.parse(uri) for uri in uris or ()]
    listed = _listed(settings, prefix) if prefix else ()
    celery = celery_app()
    publisher = Publisher(celery)
    waited_for: dict[str, str] = {}
    with progress_bar("enqueued") as bar:
        for batch in _batches(chain(sources, listed)):
            wanted = [Wanted(source, options=request) for source in batch]
            task_ids = publisher.publish(wanted, queue, keep_results=wait)
            bar.advance(len(batch))
            if wait:
                waited_for.update(zip(task_ids, map(str, batch), strict=True))
            elif as_json:
                _print_enqueued(batch, task_ids)
        if not bar.count:
            print_note("nothing to enqueue")
    failed = _wait(celery, waited_for, timeout, as_json) if wait else 0
    return ExitCode.ok_if(not failed)


def _listed(settings: Settings, prefix: str) -> Iterator[ObjectUri]:
    place = PrefixUri.parse(prefix)
    store = ObjectStore.connect(settings)
    return (stored.uri for stored in store.list(place.bucket, place.prefix))


def _batches(sources: Iterable[ObjectUri]) -> Iterator[list[ObjectUri]]:
    remaining = iter(sources)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def _print_enqueued(sources: list[ObjectUri], task_ids: list[str]) -> None:
    for source, task_id in zip(sources, task_ids, strict=True):
        print(json.dumps({"source": str(source), "task_id": task_id}))


def _wait(celery: "App", sources: dict[str, str], timeout: float, as_json: bool) -> int:
    """Print each result as it arrives, for `sources` by task id.

    Give up `timeout` seconds after the last result. Return how many pictures failed or did not
    answer.
    """
    counts: Counter[str] = Counter()
    pending = deque(sources)
    last_result = time.monotonic()
    with connected(), progress_bar("anonymized", total=len(sources)) as bar:
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
    for task_id in pending:
        counts["no answer"] += 1
        line = {"source": sources[task_id], "task_id": task_id, "status": "unknown"}
        _print({**line, "error": "NoAnswer"}, as_json)
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    print_summary(", ".join(parts) or "nothing")
    return counts["failed"] + counts["no answer"]


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
    """Print a result as JSON; for people only an error, because the summary counts the others."""
    if as_json:
        print(json.dumps(line), flush=True)
    elif "error" in line:
        text = f"{line['source']}: {line['error']}: {line.get('message', '')}"
        print(text, file=sys.stderr)
