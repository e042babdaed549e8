"""The metrics of workers and triggers, and the page from which Prometheus reads them.

No label holds a value from a message or a store, because the number of keys, buckets and tasks is
unbounded. The labels of objects are those that the models of the worker state, and the names of
routes are those of the routes file.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from celery import Celery
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from ..bulk import runs
from ..errors import Permanent, Transient, VeilError, cannot_serve
from ..messages import FACE, QUEUED_AT_HEADER, QUEUES, AnonymizeReport
from ..notifications import outbox
from ..records import dead_letters, queues, review
from ..redis.clients import impatient_client, try_writing
from ..settings import Settings, split_address

SEARCH_SECONDS = 120.0  # from one search for stray messages to the next, which reads many keys
REDIS_SECONDS = 2.0  # for Redis to answer a scrape; Prometheus waits for the page for 10 seconds
STAGES = ("fetch", "decode", "detect", "mask", "encode", "verify", "store")
Source = Literal["sqs", "http", "poll"]
EventResult = Literal["queued", "ignored", "refused", "malformed"]
# The reasons for which the webhook refuses a request: docs/monitoring.md has their meaning.
RefusalReason = Literal[
    "redis",
    "overload",
    "stopping",
    "token",
    "route",
    "malformed",
    "size",
    "method",
    "key_reused",
    "unknown",
    "bug",
]
DEAD = "dead"
OUTCOMES = ("anonymized", "skipped", "held", DEAD)
BUG = "bug"  # the label `error` of every exception that is not a VeilError
OTHER = "other"  # the label `queue` of a message from any queue that Veil does not know
# Upper bounds of histogram buckets, in seconds.
STAGE_SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
DELIVERY_SECONDS_BUCKETS = (0.25, 0.5, 1, 2, 5, 15, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)

# Flower also imports this module, and serves the library's default registry without a password.
# The metrics therefore have registries of their own. Each process serves one of them.
WORKER, TRIGGER = CollectorRegistry(), CollectorRegistry()
for _registry in (WORKER, TRIGGER):
    ProcessCollector(registry=_registry)
    PlatformCollector(registry=_registry)

PICTURES = Counter("veil_pictures", "Pictures by outcome.", ["outcome"], registry=WORKER)
ROUTE_PICTURES = Counter(
    "veil_route_pictures",
    "Pictures by the route of VEIL_ROUTES_FILE and by outcome.",
    ["route", "outcome"],
    registry=WORKER,
)
FACES = Histogram(
    "veil_faces",
    "Faces in each picture on which the detector ran.",
    buckets=(0, 1, 2, 3, 5, 10, 20, 50, 100, 200),
    registry=WORKER,
)
WITHOUT_FACE = Counter(
    "veil_pictures_without_face", "Pictures in which no face was found.", registry=WORKER
)
OBJECTS = Counter(
    "veil_objects",
    "Objects in pictures on which the detector ran, by label.",
    ["label"],
    registry=WORKER,
)
FOUND_BY_CHECK = Counter(
    "veil_faces_found_by_check",
    "Faces that only the residual check found, and that were then hidden too.",
    registry=WORKER,
)
FLAGGED = Counter(
    "veil_pictures_flagged",
    "Pictures that were published and put on the review list.",
    registry=WORKER,
)
STAGE_SECONDS = Histogram(
    "veil_stage_seconds",
    "Seconds of each stage of the pictures that did not fail.",
    ["stage"],
    buckets=STAGE_SECONDS_BUCKETS,
    registry=WORKER,
)
DELIVERY_SECONDS = Histogram(
    "veil_delivery_seconds",
    "Seconds from the first publishing of a message to the end of its picture.",
    ["queue"],
    buckets=DELIVERY_SECONDS_BUCKETS,
    registry=WORKER,
)
BYTES_READ = Counter(
    "veil_read_bytes", "Bytes of the sources that were anonymized.", registry=WORKER
)
BYTES_WRITTEN = Counter("veil_written_bytes", "Bytes of the outputs.", registry=WORKER)
RETRIES = Counter(
    "veil_retries",
    "Pictures returned to the queue for a retry, by error.",
    ["error"],
    registry=WORKER,
)
DEAD_LETTERS = Counter("veil_dead", "Dead letters, by error.", ["error"], registry=WORKER)
SOURCE_UP = Gauge(
    "veil_upload_source_up",
    "0 while the trigger can't receive from SQS, or list the store, else 1.",
    ["source"],
    registry=TRIGGER,
)
EVENTS = Counter(
    "veil_upload_events",
    "Events that the trigger received, by result.",
    ["source", "result"],
    registry=TRIGGER,
)
REFUSED_REQUESTS = Counter(
    "veil_webhook_refused",
    "Requests that the webhook refused, by reason.",
    ["reason"],
    registry=TRIGGER,
)


def _error_names(kind: type[VeilError]) -> list[str]:
    """Return the names of the errors of `kind` that a picture can have."""
    return [error.__name__ for error in kind.__subclasses__() if error.of_pictures]


def _initialize_series() -> None:
    """Set every known series to 0: Prometheus sees no increase when a new series appears."""
    for outcome in OUTCOMES:
        PICTURES.labels(outcome)
    for stage in STAGES:
        STAGE_SECONDS.labels(stage)
    for queue in QUEUES:
        DELIVERY_SECONDS.labels(queue)
    for name in _error_names(Transient):
        RETRIES.labels(name)
    for name in (*_error_names(Transient), *_error_names(Permanent), BUG):
        DEAD_LETTERS.labels(name)


_initialize_series()


def initialize_labels(labels: Iterable[str]) -> None:
    """Set the series of the labels that a worker's models find to 0."""
    for label in labels:
        OBJECTS.labels(label)


def initialize_routes(names: Iterable[str]) -> None:
    """Set the series of the routes with these names to 0."""
    for name in names:
        for outcome in OUTCOMES:
            ROUTE_PICTURES.labels(name, outcome)


def _count(outcome: str, route: str | None) -> None:
    PICTURES.labels(outcome).inc()
    if route is not None:
        ROUTE_PICTURES.labels(route, outcome).inc()


def finished(report: AnonymizeReport, request: Any, route: str | None = None) -> None:
    """Count a picture that did not fail, by its `report` and Celery's `request`.

    `route` is the name of its route.
    """
    _count(report.status, route)
    for stage, seconds in report.seconds.items():
        STAGE_SECONDS.labels(stage).observe(seconds)
    if report.faces is not None and report.status != "skipped":
        FACES.observe(report.faces)
        WITHOUT_FACE.inc(report.faces == 0)
    if report.status != "skipped":
        for label, number in (report.labels or {FACE: report.faces or 0}).items():
            OBJECTS.labels(label).inc(number)
    FOUND_BY_CHECK.inc(report.found_by_check or 0)
    FLAGGED.inc(report.status == "anonymized" and report.reason is not None)
    BYTES_READ.inc(report.bytes_in or 0)
    BYTES_WRITTEN.inc(report.bytes_out or 0)
    if (waited := queues.age(request.get(QUEUED_AT_HEADER))) is not None:
        queue = (request.delivery_info or {}).get("routing_key")
        DELIVERY_SECONDS.labels(queue if queue in QUEUES else OTHER).observe(waited)


def retried(error: Exception) -> None:
    """Count a picture that returns to the queue because of `error`."""
    RETRIES.labels(_name(error)).inc()


def dead(error: Exception, route: str | None = None) -> None:
    """Count a dead letter with the reason `error`, of the route with the name `route`."""
    _count(DEAD, route)
    DEAD_LETTERS.labels(_name(error)).inc()


def initialize_events(source: Source) -> None:
    """Set the series of a trigger's `source` to 0, so that Prometheus sees their first increase."""
    for result in get_args(EventResult):
        EVENTS.labels(source, result)


def count_events(source: Source, result: EventResult, number: int = 1) -> None:
    """Count `number` events that the trigger received from `source`."""
    EVENTS.labels(source, result).inc(number)


def initialize_refusals() -> None:
    """Set the series of the requests that the webhook refuses to 0."""
    for reason in get_args(RefusalReason):
        REFUSED_REQUESTS.labels(reason)


def count_refused_request(reason: RefusalReason) -> None:
    """Count a request that the webhook refused."""
    REFUSED_REQUESTS.labels(reason).inc()


def set_source_up(source: Source, is_up: bool) -> None:
    """Show whether the trigger can read its `source` of events."""
    SOURCE_UP.labels(source).set(is_up)


def _name(error: Exception) -> str:
    return type(error).__name__ if isinstance(error, VeilError) else BUG


class QueueCollector(Collector):
    """The queues at the time of a scrape.

    If Redis does not answer, the only sample is ``veil_queue_up`` with the value 0. A Redis that
    answers and takes no messages, such as a full one, has the other samples too.
    """

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._watch = queues.Watch()
        self._stray = queues.StrayMessages(SEARCH_SECONDS)

    def collect(self) -> Iterator[Metric]:
        try:
            families = list(self._read())
        except (RedisError, OSError):
            families = []
        yield GaugeMetricFamily(
            "veil_queue_up",
            "1 if Redis answered this scrape and takes messages, else 0.",
            value=bool(families) and self._takes_messages(),
        )
        yield from families

    def _takes_messages(self) -> bool:
        try:
            try_writing(self._redis)
        except (RedisError, OSError):
            return False
        return True

    def _read(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("veil_queue_messages", "Waiting messages.", labels=["queue"])
        oldest = GaugeMetricFamily(
            "veil_queue_oldest_seconds",
            "Age of the message that is delivered next, as far as it is known; 0 if none waits.",
            labels=["queue"],
        )
        for queue in queues.statuses(self._redis, self._watch):
            waiting.add_metric([queue.name], queue.waiting)
            oldest.add_metric([queue.name], queue.oldest_seconds or 0.0)
        stray = sum(queue.waiting for queue in self._stray.read(self._redis))
        in_hand, dead = queues.in_hand(self._redis), dead_letters.LETTERS.count(self._redis)
        silent = runs.silent_seconds(self._redis)
        yield waiting
        yield oldest
        yield GaugeMetricFamily(
            "veil_stray_messages",
            "Messages for Veil in lists that no worker reads.",
            value=stray,
        )
        yield GaugeMetricFamily(
            "veil_in_flight_messages", "Messages that all workers hold.", value=in_hand
        )
        yield GaugeMetricFamily(
            "veil_backfill_silent_seconds",
            "Time since the backfill that is silent longest stored its progress; 0 if none runs.",
            value=silent,
        )
        yield GaugeMetricFamily(
            "veil_dead_letters", "Dead letters that nobody has handled yet.", value=dead
        )
        yield GaugeMetricFamily(
            "veil_review_pictures",
            "Held or flagged pictures on the review list.",
            value=review.REVIEW_LIST.count(self._redis),
        )
        yield GaugeMetricFamily(
            "veil_notifications_waiting",
            "Notifications that their target has not accepted yet.",
            value=outbox.waiting(self._redis),
        )
        yield GaugeMetricFamily(
            "veil_notifications_failed",
            "Notifications that their target did not accept, and that are due again.",
            value=outbox.failed(self._redis),
        )


def serve(settings: Settings, app: Celery, registry: CollectorRegistry) -> None:
    """Serve `registry` and the queues of `app` at ``VEIL_METRICS`` until the process ends.

    Does nothing if this setting is empty. Raises AddressInUse, or SettingsInvalid for an address
    that can never be used.
    """
    if settings.metrics is None:
        return
    host, port = split_address(settings.metrics)
    # Veil does not use the timestamp that the library adds to each series.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise cannot_serve(
            error,
            f"VEIL_METRICS: {host}:{port} can't be served ({error.strerror}): "
            "each process needs an address of its own",
        ) from None
    registry.register(QueueCollector(impatient_client(app, REDIS_SECONDS)))
