"""The task: validate the message, run the pipeline, then report, retry or record a dead letter."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import structlog
from celery import Task
from celery.exceptions import Reject, Retry
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, RedisError
from structlog.contextvars import bound_contextvars

from .addresses import ObjectUri
from .app import app
from .backoff import ceiling
from .delivery.attempts import Delivery
from .delivery.circuit_breaker import requested_pause
from .errors import (
    Busy,
    InvalidRequest,
    MalformedMessage,
    Permanent,
    Poison,
    QueueUnavailable,
    Transient,
    VeilError,
    log_fields,
    without_data,
)
from .messages import REFUSED_HEADER, RUN_HEADER, TASK, AnonymizeReport, AnonymizeRequest
from .notifications import events, outbox
from .records import dead_letters, outcomes, review
from .redis.errors import queue_unavailable
from .routes import Route, Routed
from .telemetry import error_reports, metrics, tracing

MAX_RETRIES = 8
FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0
UNCOUNTED_PAUSE_SECONDS = (1.0, 5.0)  # the pause before a retry that does not count
# The pause of a picture whose route is closed while others go on. A worker holds a thousand such
# pictures at most, so this bounds how many it postpones in a second.
POSTPONED_PAUSE_SECONDS = (5.0, 15.0)

MAX_STORED_TEXT = 1100  # characters; the longest address has 1,092 bytes
MAX_LOGGED_AREAS = 20  # of each kind
MAX_STORED_OPTIONS = 128 << 10  # characters of JSON; options with the most areas have fewer

FIELDS = tuple(AnonymizeRequest.model_fields)  # in the order of the positional arguments

log = structlog.get_logger("veil")


def backoff_seconds(retries: int, random_: random.Random | None = None) -> float:
    """Return the pause in seconds after a failed try that had `retries` counted retries before it.

    The pause is capped exponential backoff with full jitter: Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015.
    """
    longest = ceiling(retries, FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
    return (random_ or random).uniform(0, longest)


class CheckedTask(Task):  # type: ignore[misc]
    """A task whose requests are checked before they are put on the queue."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run the task for a message, traced. Raise RuntimeError outside of a worker."""
        _require_worker()
        with tracing.delivery(self.request):
            return self.run(*arguments, **named)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **how: Any
    ) -> Any:
        """Put a request on the queue, as Celery does.

        Raises InvalidRequest for an invalid request, and QueueUnavailable.
        """
        AnonymizeRequest.parse(**_request_fields(args or (), kwargs or {}))
        return super().apply_async(args, kwargs, **how)

    def apply(self, *arguments: Any, **named: Any) -> Any:
        """Raise RuntimeError outside of a worker: Celery would run the task in this process."""
        _require_worker()
        return super().apply(*arguments, **named)


def _require_worker() -> None:
    if not hasattr(app, "work"):
        raise RuntimeError(
            "only a worker runs anonymize_image: put the picture on the queue with "
            "anonymize_image.delay(…), or use worker.Anonymizer in this process"
        )


@app.task(
    base=CheckedTask,
    bind=True,
    name=TASK,
    max_retries=None,
    throws=(VeilError,),
    Request=f"{__package__}.delivery.acknowledgement:Request",
)
def anonymize_image(self: Task, /, *arguments: Any, **named: Any) -> AnonymizeReport:
    """Anonymize a picture: ``anonymize_image.delay(source, destination=None, options=None)``.

    `source` is the address of the picture, ``s3://bucket/key``. `destination` is the address of the
    output, below the destination of the route; by default it is the key of the source there.
    `options` are AnonymizeOptions, also as a dict. The result is an AnonymizeReport, which callers
    receive as a dict.

    `delay` and `apply_async` raise InvalidRequest for an address or options that no worker accepts,
    and QueueUnavailable while Redis can't be used. Whether a route leads from the address is found
    by the worker.

    The signature accepts any arguments, because messages are untrusted: AnonymizeRequest refuses
    the wrong ones by name.
    """
    fields = _request_fields(arguments, named)
    bound = log.bind(
        source=_source_name(self, fields), task_id=self.request.id, **tracing.log_fields()
    )
    try:
        ended = _stored_end(self, fields, bound)
    except (Reject, Retry):
        raise
    except QueueUnavailable as error:
        bound.warning("given back", **log_fields(error))
        raise  # The message comes back with its lease: see tasks.delivery.acknowledgement.
    except MemoryError as error:
        bound.error("out of memory")
        raise Reject(type(error).__name__, requeue=True) from None
    except BaseException as error:
        effect = "how the message ended is not stored, so it is delivered again"
        try:
            _report_bug(self, bound.bind(effect=effect), error, without_data(error))
        finally:
            raise Reject(f"bug: {type(error).__name__}", requeue=True) from None
    if isinstance(ended, Exception):
        raise ended
    return ended


def _stored_end(
    task: Task, fields: Mapping[str, Any], bound: structlog.stdlib.BoundLogger
) -> AnonymizeReport | Exception:
    """Return the report of a picture, or the error of its dead letter, once either is stored.

    Celery then acknowledges the message. Any error that is raised here gives the message back, or
    has queued it for another try.
    """
    started = time.monotonic()
    delivery: Delivery | None = None
    routed: Routed | None = None
    try:
        _raise_if_refused(task)
        request = AnonymizeRequest.parse(**fields)
        routed = app.work.pipeline.resolve(request)
        app.work.circuit_breaker.raise_if_closed(routed.route)
        delivery = _delivery(task, routed.destination)
        report = _run(task, routed, delivery)
    except (QueueUnavailable, MemoryError):
        raise
    except Transient as error:
        attempt = task.request.retries + 1
        is_postponed = delivery is None  # Its route is closed, and nothing was fetched.
        assert routed is not None, "errors of a request without a route are permanent"
        if (pause := _retry_pause(task, routed.route, error, is_postponed)) is not None:
            # While other routes go on, there may be a hundred such messages a second.
            is_quiet = is_postponed and not app.work.circuit_breaker.is_open
            log_retry = bound.debug if is_quiet else bound.warning
            log_retry("retried", **log_fields(error), attempt=attempt, pause=round(pause, 1))
            _retry(task, error, pause)
        _record_dead_letter(task, fields, error, delivery, routed)
        bound.error("dead", **log_fields(error), attempts=attempt)
        return error
    except Permanent as error:
        _record_dead_letter(task, fields, error, delivery, routed)
        bound.error("dead", **log_fields(error))
        return error
    except BaseException as error:
        # An error that is no Exception, such as a panic of a library in Rust, must not reach
        # Celery: it would neither end nor return the message, whose lease is renewed.
        failure = without_data(error)
        _record_dead_letter(task, fields, failure, delivery, routed)
        _report_bug(task, bound, error, failure)
        return failure
    _record_outcome(task, routed, report)
    bound.info(report.status, total=round(time.monotonic() - started, 3), **_log_values(report))
    return report


def _report_bug(
    task: Task, bound: structlog.stdlib.BoundLogger, error: BaseException, failure: Exception
) -> None:
    """Log and report `error`; `failure` is the same without its data."""
    bound.error("bug", error=type(error).__name__, exc_info=failure)
    error_reports.capture(error, task.request.id)


def _request_fields(arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request from positional and named arguments.

    Surplus and repeated arguments get names that are no fields, so that validation refuses them.
    """
    surplus = [f"argument {number + 1}" for number in range(len(FIELDS), len(arguments))]
    fields = dict(zip([*FIELDS, *surplus], arguments, strict=False))
    for name, value in named.items():
        fields[f"{name} (again)" if name in fields else name] = value
    return fields


def _raise_if_refused(task: Task) -> None:
    """Raise MalformedMessage if the transport refused the message."""
    if refused := task.request.get(REFUSED_HEADER):
        raise MalformedMessage(refused["defect"])


def _source_name(task: Task, fields: Mapping[str, Any]) -> str:
    """Return the name of a message in logs and dead letters: its source, else ``message ID``."""
    source = fields.get("source")
    return dead_letters.nameless(task.request.id) if source is None else _bounded_text(source)


def _delivery(task: Task, output: ObjectUri) -> Delivery:
    tag = str(task.request.properties["delivery_tag"])
    return Delivery(app.work.deliveries, output, tag, task.request.hostname or "")


def _run(task: Task, routed: Routed, delivery: Delivery) -> AnonymizeReport:
    """Run the pipeline, and update the review list before the claim on the output ends.

    All lines of the log on the way name the picture.
    """
    about = {"source": str(routed.request.source), "task_id": task.request.id}
    with bound_contextvars(**about, **tracing.log_fields()), delivery:
        on_stage = partial(_on_stage, task, delivery)
        report = app.work.pipeline.run(routed, on_stage, delivery.confirm)
        _update_review_list(task, routed, report)
    return report


def _on_stage(task: Task, delivery: Delivery, stage: str) -> None:
    """Send the event ``task-STAGE``, which Flower shows as the state STAGE.

    Raises Poison if the picture is given up. The first stage, fetching, is still allowed: it finds
    out whether the output exists already.
    """
    if stage != "fetching":
        delivery.raise_if_poison()
    tracing.begin_stage(stage)
    if app.work.dispatcher is None:
        return
    try:
        app.work.dispatcher.send(f"task-{stage}", uuid=task.request.id)
    except (OperationalError, RedisError, OSError):
        pass  # The picture must not fail because its progress can't be reported.


def _update_review_list(task: Task, routed: Routed, report: AnonymizeReport) -> None:
    """Record whether the picture must be reviewed.

    This happens before the message is acknowledged, so that no picture is missing on the list.
    """
    try:
        review.update(task.app.backend.client, routed, report)
    except (RedisError, OSError) as error:
        raise queue_unavailable(error) from None


def _retry_pause(task: Task, route: Route, error: Transient, is_postponed: bool) -> float | None:
    """Return the pause in seconds before the next try, or None if there is none.

    A try counts only if the failure concerns this picture alone. It does not count during an
    outage of the store, for a postponed picture, or while another picture is at work.
    """
    requested = requested_pause(error)
    breaker = app.work.circuit_breaker
    is_outage = is_postponed or breaker.is_outage(error, route)
    if isinstance(error, Busy) or is_outage:
        task.request.retries -= 1  # Celery adds one for each retry.
        others_go_on = is_outage and not breaker.is_open
        pause = POSTPONED_PAUSE_SECONDS if others_go_on else UNCOUNTED_PAUSE_SECONDS
        return requested + random.uniform(*pause)
    if task.request.retries >= MAX_RETRIES:
        return None
    return requested + backoff_seconds(task.request.retries)


def _retry(task: Task, error: Transient, pause: float) -> NoReturn:
    """Queue the message again for a try in `pause` seconds."""
    metrics.retried(error)
    try:
        raise task.retry(exc=error, countdown=pause)
    except Reject as failure:
        # The new message could not be queued. Celery would drop the old one too, so requeue it.
        raise Reject(f"retry not queued: {failure.reason}", requeue=True) from None


def _record_dead_letter(
    task: Task,
    fields: Mapping[str, Any],
    error: Exception,
    delivery: Delivery | None,
    routed: Routed | None,
) -> None:
    route = _route_name(fields) if routed is None else routed.route.name
    letter = _dead_letter(task, fields, error, delivery)
    try:
        with task.app.backend.client.pipeline() as pipe:
            dead_letters.record(pipe, letter)
            run = _run_of(task)
            outcomes.count(pipe, "dead", run, route)
            if run is not None:
                dead_letters.assign_to_run(pipe, letter, run)
            if isinstance(error, MalformedMessage):
                outcomes.count_malformed(pipe)
            if app.notifies:
                outbox.put(pipe, events.of_letter(letter))
            pipe.execute()
    except (RedisError, OSError) as failure:
        # A message whose dead letter is not recorded must stay on the queue.
        raise Reject(f"dead letter not recorded: {type(failure).__name__}", requeue=True) from None
    if delivery is not None:
        delivery.forget_deaths()
    metrics.dead(error, route)
    tracing.set_outcome("dead")


def _route_name(fields: Mapping[str, Any]) -> str | None:
    """Return the name of the route of a request that was refused; None if it has no such route."""
    source = fields.get("source")
    if not isinstance(source, str):
        return None
    try:
        route = app.work.pipeline.routes.of_picture(ObjectUri.parse(source))
    except InvalidRequest:
        return None
    return None if route is None else route.name


def _run_of(task: Task) -> str | None:
    """Return the name of the backfill run that the message belongs to, if it has a valid one."""
    return outcomes.run_name(task.request.get(RUN_HEADER))


def _dead_letter(
    task: Task, fields: Mapping[str, Any], error: Exception, delivery: Delivery | None
) -> dead_letters.DeadLetter:
    now = time.time()
    destination = fields.get("destination")
    attempts, worker = task.request.retries, task.request.hostname or ""
    if delivery is not None:
        attempts += len(delivery.deaths)
    if not isinstance(error, Poison):
        attempts += 1
    elif delivery is not None and delivery.last_worker:
        worker = delivery.last_worker
    kept = {
        "source": _source_name(task, fields),
        "destination": None if destination is None else _bounded_text(destination),
        "options": _stored_options(fields.get("options")),
    }
    return dead_letters.DeadLetter(
        **kept,
        error=type(error).__name__,
        message=_bounded_text(error),
        attempts=attempts,
        task_id=task.request.id or "",
        worker=worker,
        time=now,
        first_time=(delivery and delivery.first_time) or now,
        last_error=delivery.last_error if delivery else None,
        queue=(task.request.delivery_info or {}).get("routing_key"),
        sample=(task.request.get(REFUSED_HEADER) or {}).get("sample"),
        is_whole=all(name in kept and kept[name] == value for name, value in fields.items()),
    )


def _record_outcome(task: Task, routed: Routed, report: AnonymizeReport) -> None:
    """Count the picture, remove its dead letter, and put the outcome into the outbox.

    The output exists, so a failure is only logged, unless a notification would be missing: then
    QueueUnavailable is raised, and the next delivery of the message finds the output and notifies.
    In a full Redis that would go on for ever, because only messages that end free memory.
    """
    source = str(routed.request.source)
    metrics.finished(report, task.request, routed.route.name)
    tracing.set_outcome(report.status)
    try:
        redis = task.app.backend.client
        # An output that exists already answers no earlier request for more to be hidden in it.
        is_answered = report.status != "skipped" or not dead_letters.ask_for_more(
            redis, routed, report
        )
        with redis.pipeline() as pipe:
            if is_answered:
                dead_letters.LETTERS.discard(pipe, source, routed.destinations)
            outcomes.count(pipe, report.status, _run_of(task), routed.route.name)
            if app.notifies:
                outbox.put(pipe, events.of_report(report, task.request.id))
            pipe.execute()
    except (RedisError, OSError) as error:
        log.warning("outcome not counted", source=source, error=type(error).__name__)
        if app.notifies and not isinstance(error, OutOfMemoryError):
            raise queue_unavailable(error) from None


def _bounded_text(value: Any) -> str:
    """Return any value of a message as text that is bounded and can be encoded as UTF-8."""
    return str(value)[:MAX_STORED_TEXT].encode("utf-8", "backslashreplace").decode()


def _stored_options(options: Any) -> Any:
    """Return the options of a message as a dead letter stores them.

    Options that are larger than those of any valid request, or are not JSON, become bounded text.
    """
    try:
        text = json.dumps(options)
    except (TypeError, ValueError):  # Celery decodes dates, decimals and other types.
        return _bounded_text(options)
    return options if len(text) <= MAX_STORED_OPTIONS else _bounded_text(options)


def _log_values(report: AnonymizeReport) -> dict[str, Any]:
    """Return the fields of `report` for the log: without boxes, and with few areas of the options.

    `areas_left_out` counts the other areas.
    """
    unlogged = ("source", "status", "boxes_xyxy", "left_xyxy", "box_labels")
    values = {name: value for name, value in report.to_json().items() if name not in unlogged}
    options = dict(report.options or {})
    left_out = 0
    for name in ("exempt", "extra"):
        areas = options.get(name, [])
        if len(areas) > MAX_LOGGED_AREAS:
            options[name] = areas[:MAX_LOGGED_AREAS]
            left_out += len(areas) - MAX_LOGGED_AREAS
    if options:
        values["options"] = options
    if left_out:
        values["areas_left_out"] = left_out
    return values
