"""The task: validate the message, run the pipeline, then report, retry or set aside."""

import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import structlog
from celery import Task
from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from tasks import dead_letters
from tasks.app import app
from tasks.errors import Permanent, Transient, VeilError
from tasks.messages import AnonymizeRequest

MAX_RETRIES = 8
FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0

FIELDS = tuple(AnonymizeRequest.model_fields)  # in the order of positional arguments

log = structlog.get_logger("veil")


def backoff_seconds(retries: int, random_: random.Random | None = None) -> float:
    """The pause before try number `retries` + 2: capped exponential backoff with full jitter.

    Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**retries)
    return (random_ or random).uniform(0, ceiling)


@app.task(bind=True, name="veil.anonymize_image", max_retries=MAX_RETRIES, throws=(VeilError,))
def anonymize_image(self: Task, /, *arguments: Any, **named: Any) -> dict[str, Any]:
    """Anonymize a picture and store it: ``anonymize_image.delay(source, destination=None, options=None)``.

    `source` is its address, ``s3://bucket/key``; `destination` is the output's address below the route's
    destination, by default the source's key there; `options` are AnonymizeOptions as a dict. The result is an
    AnonymizeReport as a dict. A message is not trusted to fit a signature: whatever it holds is taken here and
    refused by name.
    """
    started = time.monotonic()
    fields = _fields(arguments, named)
    source, destination = fields.get("source"), fields.get("destination")
    bound = log.bind(source=_readable(source), task_id=self.request.id)
    try:
        request = AnonymizeRequest.parse(**fields)
        report: dict[str, Any] = self.app.pipeline.run(request, on_stage=partial(_send_stage, self)).to_json()
    except Transient as error:
        if self.request.retries < MAX_RETRIES:
            pause = backoff_seconds(self.request.retries)
            bound.warning("retried", **_described(error), attempt=self.request.retries + 1, pause=round(pause, 1))
            _retry(self, error, pause)
        _set_aside(self, source, destination, error)
        bound.error("dead", **_described(error), attempts=self.request.retries + 1)
        raise
    except Permanent as error:
        _set_aside(self, source, destination, error)
        bound.error("dead", **_described(error))
        raise
    except Exception as error:
        _set_aside(self, source, destination, error)
        bound.exception("bug", error=type(error).__name__)
        raise
    _clear(self, str(request.source))
    bound.info(report["status"], total=round(time.monotonic() - started, 3), **_loggable(report))
    return report


def _fields(arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request given by position or by name; what is none, or given twice, keeps a name to refuse."""
    names = [*FIELDS, *(f"argument {i}" for i in range(len(FIELDS) + 1, len(arguments) + 1))]
    fields = dict(zip(names, arguments, strict=False))
    for name, value in named.items():
        fields[f"{name} (again)" if name in fields else name] = value
    return fields


def _retry(task: Task, error: Transient, pause: float) -> NoReturn:
    """Put the message back for a later try."""
    try:
        raise task.retry(exc=error, countdown=pause)
    except Reject as failure:
        # The new message could not be queued. Celery would drop the old one too; keep it instead.
        raise Reject(f"retry not queued: {failure.reason}", requeue=True) from None


def _readable(value: Any) -> str:
    """Whatever a message holds, as bounded text that can be stored: the longest address has 1,092 bytes."""
    return str(value)[:1100].encode("utf-8", "backslashreplace").decode()


def _described(error: Exception) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


def _loggable(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in ("source", "status", "boxes_xyxy")}


def _send_stage(task: Task, stage: str) -> None:
    """Show `stage` in Flower: an event ``task-detecting`` becomes the state DETECTING."""
    try:
        task.send_event(f"task-{stage}", retry=False)
    except (OperationalError, RedisError, OSError):
        pass  # a picture must not fail because nobody could be told how far it is


def _set_aside(task: Task, source: Any, destination: Any, error: Exception) -> None:
    letter = dead_letters.DeadLetter(
        source=_readable(source),
        destination=None if destination is None else _readable(destination),
        error=type(error).__name__,
        message=str(error),
        attempts=task.request.retries + 1,
        task_id=task.request.id or "",
        worker=task.request.hostname or "",
        time=time.time(),
    )
    try:
        dead_letters.record(task.app.backend.client, letter)
    except RedisError as failure:
        # Unrecorded means unacknowledged: the message goes back to the queue.
        raise Reject(f"dead letter not recorded: {type(failure).__name__}", requeue=True) from None


def _clear(task: Task, source: str) -> None:
    try:
        dead_letters.discard(task.app.backend.client, source)
    except RedisError:
        log.warning("dead letter of a delivered picture not cleared", source=source)
