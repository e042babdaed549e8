"""``veil enqueue``: addresses onto the queue, and, if asked, the wait for what came of them."""

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from celery.result import AsyncResult
from celery.states import READY_STATES
from rich.console import Console

from tasks.addresses import ObjectUri, PrefixUri
from tasks.app import app
from tasks.messages import AnonymizeOptions
from tasks.publishing import Publisher, Wanted
from tasks.redis_errors import connected
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from worker.commands.progress import progress_bar

POLL_SECONDS = 0.2
POLLED_AT_ONCE = 500
ENQUEUED_AT_ONCE = 500


def run(
    settings: Settings,
    uris: list[str],
    prefix: str | None,
    queue: str,
    wait: bool,
    timeout: float,
    as_json: bool,
    options: AnonymizeOptions | None = None,
) -> int:
    """Enqueue `uris` and everything below `prefix`; the number of pictures that failed or did not
    answer.
    """
    sources = [ObjectUri.parse(uri) for uri in uris]
    listed: Iterable[ObjectUri] = ()
    if prefix:
        store = ObjectStore.connect(settings)
        place = PrefixUri.parse(prefix)
        listed = (stored.uri for stored in store.list(place.bucket, place.prefix))
    publisher = Publisher(app)
    waited_for: dict[str, str] = {}
    with progress_bar("enqueued") as bar:
        for batch in _batches(chain(sources, listed)):
            wanted = [Wanted(source, options=options) for source in batch]
            ids = publisher.publish(wanted, queue, keep_results=wait)
            bar.advance(len(batch))
            if wait:
                waited_for.update(zip(ids, map(str, batch), strict=True))
            elif as_json:
                for source, task_id in zip(batch, ids, strict=True):
                    print(json.dumps({"source": str(source), "task_id": task_id}))
        if not bar.count:
            print("veil: nothing to enqueue", file=sys.stderr)
    return _wait(waited_for, timeout, as_json) if wait else 0


def _batches(sources: Iterable[ObjectUri]) -> Iterator[list[ObjectUri]]:
    remaining = iter(sources)
    while batch := list(islice(remaining, ENQUEUED_AT_ONCE)):
        yield batch


def _wait(results: dict[str, str], timeout: float, as_json: bool) -> int:
    """Print each result as it comes; the number that failed or did not come within `timeout` of the
    one before.
    """
    outcomes: Counter[str] = Counter()
    pending = deque(results)
    last_news = time.monotonic()
    with connected(), progress_bar("anonymized", total=len(results)) as bar:
        while pending and time.monotonic() - last_news < timeout:
            for _ in range(min(len(pending), POLLED_AT_ONCE)):
                task_id = pending.popleft()
                meta = AsyncResult(task_id, app=app)._get_task_meta()
                if meta["status"] not in READY_STATES:
                    pending.append(task_id)
                    continue
                outcomes[_print_outcome(results[task_id], task_id, meta, as_json)] += 1
                bar.advance()
                last_news = time.monotonic()
            time.sleep(POLL_SECONDS)
    for task_id in pending:
        outcomes["no answer"] += 1
        _line(
            {
                "source": results[task_id],
                "task_id": task_id,
                "status": "unknown",
                "error": "NoAnswer",
            },
            as_json,
        )
    Console(stderr=True).print(
        ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())) or "nothing"
    )
    return outcomes["failed"] + outcomes["no answer"]


def _print_outcome(source: str, task_id: str, meta: dict[str, Any], as_json: bool) -> str:
    if meta["status"] == "SUCCESS":
        _line({"task_id": task_id, **meta["result"]}, as_json)
        return str(meta["result"]["status"])
    error = meta["result"]
    outcome = {"source": source, "task_id": task_id, "status": "failed"}
    _line({**outcome, "error": type(error).__name__, "message": str(error)}, as_json)
    return "failed"


def _line(outcome: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(outcome), flush=True)
    elif "error" in outcome:
        print(
            f"{outcome['source']}: {outcome['error']}: {outcome.get('message', '')}",
            file=sys.stderr,
        )
