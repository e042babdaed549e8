"""Waiting for pictures: their results as they arrive, and how they ended."""

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from celery.result import AsyncResult
from celery.states import PENDING, READY_STATES, RETRY, STARTED

from tasks.publishing import Wanted
from tasks.records.dead_letters import DeadLetter
from tasks.redis.errors import connected
from worker.commands.progress import progress_bar
from worker.commands.queue import answering_workers
from worker.printing import print_summary, printable, summarized

if TYPE_CHECKING:
    from tasks.app import App

POLL_SECONDS = 0.2
MAX_POLLED = 500  # results that are read between two pauses
OUTCOMES = ("anonymized", "skipped", "held", "dead")
WITHOUT_RESULT = "without a result"
# Said of a number of pictures of a run.
NOT_COUNTED = "were not counted: repeat the command of the run, which enqueues those not done"
NEXT_STEPS = {"held": "veil review list", "dead": "veil dead list"}


class Endings:
    """The number of the pictures that a command waited for, by outcome.

    Its text is the summary for people. It names the command that lists the held and the dead.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        """`counts` has outcomes, and WITHOUT_RESULT for the pictures that have not ended."""
        self.counts = Counter(counts)
        self.older_outputs = 0  # held pictures of which an older output is still published

    def add(self, outcome: str, result: Any) -> None:
        """Count a picture that has ended with the `result` of its task."""
        self.counts[outcome] += 1
        self.counts[WITHOUT_RESULT] -= 1
        self.older_outputs += outcome == "held" and "warning" in result

    @property
    def are_good(self) -> bool:
        """True if every picture ended, none as a dead letter, and no older output stayed."""
        failed = self.counts["dead"] + self.counts[WITHOUT_RESULT]
        return not failed and not self.older_outputs

    def __str__(self) -> str:
        parts = []
        for outcome in (*OUTCOMES, WITHOUT_RESULT):
            if count := self.counts[outcome]:
                step = NEXT_STEPS.get(outcome)
                parts.append(f"{count:,} {outcome} ({step})" if step else f"{count:,} {outcome}")
        return ", ".join(parts) or "none has ended"


def wait(
    celery: "App", pictures: Mapping[str, Wanted], queue: str, timeout: float, as_json: bool
) -> Endings:
    """Print each result as it arrives, for `pictures` by task id, and then the summary.

    Give up `timeout` seconds after the last result. Raise QueueUnavailable.
    """
    endings = Endings({WITHOUT_RESULT: len(pictures)})
    with summarized(lambda: print_summary(str(endings))):
        pending = _print_results(celery, pictures, timeout, endings, as_json)
        _print_unanswered(celery, pictures, pending, queue, as_json)
    return endings


def print_dead(letter: DeadLetter) -> None:
    """Print a picture that ended as a dead letter, on a line of standard error."""
    _print_error(letter.source, letter.error, letter.message)


def _print_results(
    celery: "App", pictures: Mapping[str, Wanted], timeout: float, endings: Endings, as_json: bool
) -> Iterable[str]:
    """Print the results of tasks as they arrive, and count their outcomes in `endings`.

    Return the tasks without a result `timeout` seconds after the last one.
    """
    pending = deque(pictures)
    last_result = time.monotonic()
    with progress_bar("anonymized", total=len(pictures)) as bar:
        while pending and time.monotonic() - last_result < timeout:
            for _ in range(min(len(pending), MAX_POLLED)):
                task_id = pending.popleft()
                meta = _meta(celery, task_id)
                if meta["status"] not in READY_STATES:
                    pending.append(task_id)
                    continue
                outcome = _print_result(pictures[task_id], task_id, meta, as_json)
                endings.add(outcome, meta["result"])
                bar.advance()
                last_result = time.monotonic()
            time.sleep(POLL_SECONDS)
    return pending


def _print_unanswered(
    celery: "App",
    pictures: Mapping[str, Wanted],
    pending: Iterable[str],
    queue: str,
    as_json: bool,
) -> None:
    """Print the tasks that are still `pending`, each with the reason."""
    workers: list[str] | None = None
    for task_id in pending:
        meta = _meta(celery, task_id)
        if meta["status"] == PENDING and workers is None:
            workers = answering_workers(celery)
        line = {**requested(pictures[task_id]), "task_id": task_id, "status": "unknown"}
        line |= {"error": "NoAnswer", "message": _reason(meta, queue, workers or [])}
        _print(line, _address(pictures[task_id]), as_json)


def _meta(celery: "App", task_id: str) -> dict[str, Any]:
    """Return the state of a task and its result, as Celery stores them."""
    with connected():
        meta: dict[str, Any] = AsyncResult(task_id, app=celery)._get_task_meta()
    return meta


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


def _print_result(picture: Wanted, task_id: str, meta: dict[str, Any], as_json: bool) -> str:
    """Print the result of one picture, and return its outcome."""
    if meta["status"] == "SUCCESS":
        _print({"task_id": task_id, **meta["result"]}, _address(picture), as_json)
        return str(meta["result"]["status"])
    error = meta["result"]
    line = {**requested(picture), "task_id": task_id, "status": "failed"}
    line |= {"error": type(error).__name__, "message": str(error)}
    _print(line, _address(picture), as_json)
    return "dead"


def requested(picture: Wanted) -> dict[str, str]:
    """Return the addresses of a request as fields of JSON; a destination only if it has one."""
    fields = {"source": str(picture.source)}
    if picture.destination is not None:
        fields["destination"] = str(picture.destination)
    return fields


def _address(picture: Wanted) -> str:
    """Return the source for people, with the destination if one was requested."""
    return " → ".join(requested(picture).values())


def _print(line: dict[str, Any], address: str, as_json: bool) -> None:
    """Print a result as JSON; for people only an error, a reason for review or a warning.

    `address` is what people see of the picture. The summary counts the other results.
    """
    if as_json:
        print(json.dumps(line), flush=True)
    elif "error" in line:
        _print_error(address, line["error"], line["message"])
    elif remarks := [line[name] for name in ("reason", "warning") if name in line]:
        text = f"{address}: {line['status']}, {'; '.join(remarks)}"
        print(printable(text), file=sys.stderr)


def _print_error(address: str, error: str, message: str) -> None:
    print(printable(f"{address}: {error}: {message}"), file=sys.stderr)
