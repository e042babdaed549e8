"""``veil enqueue``: addresses onto the queue, and, if asked, the wait for what came of them."""

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from celery.result import AsyncResult
from celery.states import READY_STATES
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError, RedisError
from rich.console import Console

from tasks.anonymize import anonymize_image
from tasks.app import app
from tasks.errors import QueueUnavailable
from tasks.messages import AnonymizeOptions
from tasks.s3 import ObjectStore, ObjectUri, PrefixUri
from tasks.settings import Settings
from worker.progress import progress_bar

POLL_SECONDS = 0.2
POLLED_AT_ONCE = 500


@contextmanager
def connected() -> Iterator[None]:
    """Turns what Redis raises into one line that says what to do."""
    try:
        yield
    except (OperationalError, RedisError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, AuthenticationError) or isinstance(error, AuthenticationError):
            raise QueueUnavailable("Redis refuses the password: check VEIL_REDIS_PASSWORD") from None
        raise QueueUnavailable(f"Redis can't be used ({type(cause).__name__}): check VEIL_REDIS_URL") from None


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
    """Enqueue `uris` and everything below `prefix`; the number of pictures that failed or did not answer."""
    sources = [ObjectUri.parse(uri) for uri in uris]
    listed: Iterable[ObjectUri] = ()
    if prefix:
        store = ObjectStore.connect(settings)
        listed = (stored.uri for stored in store.list(PrefixUri.parse(prefix)))
    with connected():
        app.backend.client.ping()  # Celery itself would try for 20 s, and end in a RuntimeError
    # What is not asked for is not sent, so that workers of an older version take the message too.
    asked = {} if options is None else options.model_dump(mode="json", exclude_defaults=True)
    fields = {"options": asked} if asked else {}
    with connected(), progress_bar("enqueued") as bar:
        results: dict[str, str] = {}
        for source in chain(sources, listed):
            result = anonymize_image.apply_async((str(source),), fields, queue=queue, retry=False)
            results[result.id] = str(source)
            bar.advance()
            if not wait:
                _print_queued(source, result.id, as_json)
    if not results:
        print("veil: nothing to enqueue", file=sys.stderr)
    return _wait(results, timeout, as_json) if wait else 0


def _print_queued(source: ObjectUri, task_id: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"source": str(source), "task_id": task_id}))


def _wait(results: dict[str, str], timeout: float, as_json: bool) -> int:
    """Print each result as it comes; the number that failed or did not come within `timeout` of the one before."""
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
        _line({"source": results[task_id], "task_id": task_id, "status": "unknown", "error": "NoAnswer"}, as_json)
    Console(stderr=True).print(", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())) or "nothing")
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
        print(f"{outcome['source']}: {outcome['error']}: {outcome.get('message', '')}", file=sys.stderr)
