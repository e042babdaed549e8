"""The task: validate the message, run the pipeline, then report, retry or set aside."""

import json
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

from tasks import metrics
from tasks.addresses import ObjectUri
from tasks.app import app
from tasks.backoff import ceiling
from tasks.delivery.attempts import Delivery
from tasks.delivery.circuit_breaker import RETRY_SECONDS, asked_pause
from tasks.errors import (
    Busy,
    MalformedMessage,
    Permanent,
    Poison,
    QueueUnavailable,
    Transient,
    VeilError,
    without_data,
)
from tasks.messages import REFUSED_HEADER, RUN_HEADER, TASK, AnonymizeReport, AnonymizeRequest
from tasks.records import dead_letters, outcomes, review
from tasks.redis_errors import queue_unavailable
from tasks.routes import Route

MAX_RETRIES = 8
FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0

MOST_OPTIONS = 128 << 10  # characters of JSON: more than the most areas have

FIELDS = tuple(AnonymizeRequest.model_fields)  # in the order of positional arguments

log = structlog.get_logger("veil")


def backoff_seconds(retries: int, random_: random.Random | None = None) -> float:
    """Return the pause before try number `retries` + 2: capped exponential backoff with full
    jitter.

    Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    longest = ceiling(retries, FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
    return (random_ or random).uniform(0, longest)


@app.task(
    bind=True,
    name=TASK,
    max_retries=None,
    throws=(VeilError,),
    Request="tasks.delivery.acknowledgement:Request",
)
def anonymize_image(self: Task, /, *arguments: Any, **named: Any) -> AnonymizeReport:
    """Anonymize a picture and store it: ``anonymize_image.delay(source, destination=None,
    options=None)``.

    `source` is its address, ``s3://bucket/key``; `destination` is the output's address below the
    route's destination, by default the source's key there; `options` are AnonymizeOptions as a
    dict. The result is an AnonymizeReport; it reaches whoever waits for it as a dict. A message is
    not trusted to fit a signature: whatever it holds is taken here and refused by name.
    """
    started = time.monotonic()
    fields = _fields(arguments, named)
    bound = log.bind(source=_name(self, fields), task_id=self.request.id)
    delivery: Delivery | None = None
    try:
        _check_taken(self)
        request = AnonymizeRequest.parse(**fields)
        routed = app.work.pipeline.resolve(request)
        delivery = _delivery(self, routed.destination)
        with delivery:
            report = app.work.pipeline.run(
                routed, partial(_go_on, self, delivery), delivery.confirm
            )
            _note_review(self, request, report)
    except QueueUnavailable as error:
        bound.warning("given back", **_described(error))
        raise  # the message comes back with its lease: see tasks.delivery.acknowledgement
    except Transient as error:
        attempt = self.request.retries + 1
        if (pause := _pause(self, routed.route, error)) is not None:
            bound.warning("retried", **_described(error), attempt=attempt, pause=round(pause, 1))
            _retry(self, error, pause)
        _set_aside(self, fields, error, delivery)
        bound.error("dead", **_described(error), attempts=attempt)
        raise
    except Permanent as error:
        _set_aside(self, fields, error, delivery)
        bound.error("dead", **_described(error))
        raise
    except MemoryError as error:
        bound.error("out of memory")
        raise Reject(type(error).__name__, requeue=True) from None
    except Exception as error:
        failure = without_data(error)
        _set_aside(self, fields, failure, delivery)
        bound.error("bug", error=type(error).__name__, exc_info=failure)
        raise failure from None
    _finish(self, str(request.source), report)
    bound.info(report.status, total=round(time.monotonic() - started, 3), **_loggable(report))
    return report


def _fields(arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request given by position or by name; what is none, or given twice, keeps a
    name to refuse.
    """
    names = [*FIELDS, *(f"argument {i}" for i in range(len(FIELDS) + 1, len(arguments) + 1))]
    fields = dict(zip(names, arguments, strict=False))
    for name, value in named.items():
        fields[f"{name} (again)" if name in fields else name] = value
    return fields


def _check_taken(task: Task) -> None:
    """Raise MalformedMessage for a message that the transport could not take."""
    if refused := task.request.get(REFUSED_HEADER):
        raise MalformedMessage(refused["defect"])


def _name(task: Task, fields: Mapping[str, Any]) -> str:
    """Return the source of a picture as its dead letter has it; of a message without one, its
    id.
    """
    source = fields.get("source")
    return f"message {task.request.id}" if source is None else _readable(source)


def _delivery(task: Task, output: ObjectUri) -> Delivery:
    tag = str(task.request.properties["delivery_tag"])
    return Delivery(app.work.deliveries, output, tag, task.request.hostname or "")


def _pause(task: Task, route: Route, error: Transient) -> float | None:
    """The seconds until the next try, None if this was the last. What is not the picture's own
    doing isn't counted.
    """
    asked = asked_pause(error)
    probe = partial(app.work.pipeline.check_store, route)
    if isinstance(error, Busy) or app.work.circuit_breaker.explains(error, probe):
        task.request.retries -= 1  # to which Celery adds one
        return asked + random.uniform(1.0, RETRY_SECONDS)
    return (
        asked + backoff_seconds(task.request.retries)
        if task.request.retries < MAX_RETRIES
        else None
    )


def _retry(task: Task, error: Transient, pause: float) -> NoReturn:
    """Put the message back for a later try."""
    metrics.retried(error)
    try:
        raise task.retry(exc=error, countdown=pause)
    except Reject as failure:
        # The new message could not be queued. Celery would drop the old one too; keep it instead.
        raise Reject(f"retry not queued: {failure.reason}", requeue=True) from None


def _readable(value: Any) -> str:
    """Whatever a message holds, as bounded text that can be stored: the longest address has 1,092
    bytes.
    """
    return str(value)[:1100].encode("utf-8", "backslashreplace").decode()


def _described(error: Exception) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


def _loggable(report: AnonymizeReport) -> dict[str, Any]:
    """Return what the log says of `report`: no lists of boxes, and the beginning of the options."""
    unlogged = ("source", "status", "boxes_xyxy", "left_xyxy")
    values = {name: value for name, value in report.to_json().items() if name not in unlogged}
    if report.options is not None:
        values["options"] = _readable(report.options)
    return values


def _go_on(task: Task, delivery: Delivery, stage: str) -> None:
    """Show `stage` in Flower: an event ``task-detecting`` becomes the state DETECTING.

    Of a picture that is given up it is only looked whether its output is there already.
    """
    if stage != "fetching":
        delivery.dare()
    if app.work.dispatcher is None:
        return
    try:
        app.work.dispatcher.send(f"task-{stage}", uuid=task.request.id)
    except (OperationalError, RedisError, OSError):
        pass  # a picture must not fail because nobody could be told how far it is


def _keepable(options: Any) -> Any:
    """Return `options` as a message holds them; text if they are too large for any request, or more
    than JSON.
    """
    try:
        return options if len(json.dumps(options)) <= MOST_OPTIONS else _readable(options)
    except (TypeError, ValueError):  # Celery revives dates, decimals and more
        return _readable(options)


def _set_aside(
    task: Task, fields: Mapping[str, Any], error: Exception, delivery: Delivery | None
) -> None:
    now = time.time()
    destination = fields.get("destination")
    letter = dead_letters.DeadLetter(
        source=_name(task, fields),
        destination=None if destination is None else _readable(destination),
        options=_keepable(fields.get("options")),
        error=type(error).__name__,
        message=_readable(error),
        attempts=task.request.retries
        + (len(delivery.deaths) if delivery else 0)
        + (not isinstance(error, Poison)),
        task_id=task.request.id or "",
        worker=(isinstance(error, Poison) and delivery and delivery.last_worker)
        or task.request.hostname
        or "",
        time=now,
        first_time=(delivery and delivery.first_time) or now,
        last_error=delivery.last_error if delivery else None,
        queue=(task.request.delivery_info or {}).get("routing_key"),
        sample=(task.request.get(REFUSED_HEADER) or {}).get("sample"),
    )
    try:
        with task.app.backend.client.pipeline() as pipe:
            if fields.get("source") is None:
                dead_letters.record_without_source(pipe, letter)
            else:
                dead_letters.LETTERS.record(pipe, letter)
            outcomes.count(pipe, "dead", task.request.get(RUN_HEADER))
            if isinstance(error, MalformedMessage):
                outcomes.count_malformed(pipe)
            pipe.execute()
    except RedisError as failure:
        # Unrecorded means unacknowledged: the message goes back to the queue.
        raise Reject(f"dead letter not recorded: {type(failure).__name__}", requeue=True) from None
    metrics.dead(error)


def _note_review(task: Task, request: AnonymizeRequest, report: AnonymizeReport) -> None:
    """Before the message is acknowledged, and while the output is its own: a picture to look at is
    never forgotten.
    """
    try:
        review.note(task.app.backend.client, request, report)
    except RedisError as error:
        raise queue_unavailable(error) from None


def _finish(task: Task, source: str, report: AnonymizeReport) -> None:
    metrics.finished(report, task.request)
    try:
        with task.app.backend.client.pipeline() as pipe:
            dead_letters.LETTERS.discard(pipe, source)
            outcomes.count(pipe, report.status, task.request.get(RUN_HEADER))
            pipe.execute()
    except RedisError as error:
        log.warning(
            "a delivered picture was not counted", source=source, error=type(error).__name__
        )
