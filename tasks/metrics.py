"""What is counted, and the page on which Prometheus reads it.

No label holds what a message or a store brought: keys, buckets and tasks are without number.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

from celery import Celery
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client import start_http_server as start
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tasks.errors import Permanent, SettingsInvalid, Transient, VeilError
from tasks.messages import QUEUED_AT_HEADER, QUEUES, AnonymizeReport
from tasks.records import dead_letters, queues, review
from tasks.settings import Settings, split_address

REDIS_SECONDS = 2.0  # of a scrape: Prometheus itself waits for 10
STAGES = ("fetch", "decode", "detect", "mask", "encode", "verify", "store")
Source = Literal["sqs", "http", "poll"]
Heard = Literal["queued", "ignored", "refused", "malformed"]
DEAD = "dead"
BUG = "bug"  # the error of whatever is no VeilError
OTHER = "other"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
WAITING_SECONDS = (0.25, 0.5, 1, 2, 5, 15, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)

# Not the library's default one: Flower, which loads the task too, serves that without a password.
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

PICTURES = Counter(
    "veil_pictures", "Pictures by what came of them.", ["outcome"], registry=REGISTRY
)
FACES = Histogram(
    "veil_faces",
    "Faces of each picture that was looked at.",
    buckets=(0, 1, 2, 3, 5, 10, 20, 50, 100, 200),
    registry=REGISTRY,
)
WITHOUT_FACE = Counter(
    "veil_pictures_without_face", "Pictures in which no face was found.", registry=REGISTRY
)
FOUND_BY_CHECK = Counter(
    "veil_faces_found_by_check",
    "Faces that were only found in the output, and then hidden too.",
    registry=REGISTRY,
)
FLAGGED = Counter(
    "veil_pictures_flagged",
    "Pictures that were published with a reason to look at them.",
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "veil_stage_seconds",
    "Seconds of each stage of the pictures that came through.",
    ["stage"],
    buckets=SECONDS,
    registry=REGISTRY,
)
DELIVERY_SECONDS = Histogram(
    "veil_delivery_seconds",
    "Seconds from a message's first time on the queue to the end of its picture.",
    ["queue"],
    buckets=WAITING_SECONDS,
    registry=REGISTRY,
)
BYTES_READ = Counter(
    "veil_read_bytes", "Bytes of the sources that were anonymized.", registry=REGISTRY
)
BYTES_WRITTEN = Counter("veil_written_bytes", "Bytes of the outputs.", registry=REGISTRY)
RETRIES = Counter(
    "veil_retries", "Pictures put back for a later try, by error.", ["error"], registry=REGISTRY
)
GIVEN_UP = Counter("veil_dead", "Pictures given up, by error.", ["error"], registry=REGISTRY)
EVENTS = Counter(
    "veil_upload_events",
    "Uploads that the trigger heard of, by what it did.",
    ["source", "result"],
    registry=REGISTRY,
)


def _named(kind: type[VeilError]) -> Iterator[str]:
    for error in kind.__subclasses__():
        yield error.__name__


def _at_zero() -> None:
    """Begin every series that is known: the step from nothing to 1 is no increase to Prometheus."""
    for outcome in ("anonymized", "skipped", "held", DEAD):
        PICTURES.labels(outcome)
    for stage in STAGES:
        STAGE_SECONDS.labels(stage)
    for queue in QUEUES:
        DELIVERY_SECONDS.labels(queue)
    for name in _named(Transient):
        RETRIES.labels(name)
    for name in (*_named(Transient), *_named(Permanent), BUG):
        GIVEN_UP.labels(name)


_at_zero()


def finished(report: AnonymizeReport, request: Any) -> None:
    """Count a picture that came through, by its `report` and Celery's `request`."""
    PICTURES.labels(report.status).inc()
    for stage, seconds in report.seconds.items():
        STAGE_SECONDS.labels(stage).observe(seconds)
    if report.faces is not None and report.status != "skipped":
        FACES.observe(report.faces)
        WITHOUT_FACE.inc(report.faces == 0)
    FOUND_BY_CHECK.inc(report.found_by_check or 0)
    FLAGGED.inc(report.status == "anonymized" and report.reason is not None)
    BYTES_READ.inc(report.bytes_in or 0)
    BYTES_WRITTEN.inc(report.bytes_out or 0)
    if (waited := queues.age(request.get(QUEUED_AT_HEADER))) is not None:
        queue = (request.delivery_info or {}).get("routing_key")
        DELIVERY_SECONDS.labels(queue if queue in QUEUES else OTHER).observe(waited)


def retried(error: Exception) -> None:
    """Count a picture that is put back for a later try."""
    RETRIES.labels(_name(error)).inc()


def dead(error: Exception) -> None:
    """Count a picture that was given up."""
    PICTURES.labels(DEAD).inc()
    GIVEN_UP.labels(_name(error)).inc()


def begin_hearing(source: Source) -> None:
    """Begin the series of a trigger's `source` at 0, so that their first step is seen."""
    for result in get_args(Heard):
        EVENTS.labels(source, result)


def heard(source: Source, result: Heard, number: int = 1) -> None:
    """Count `number` uploads that the trigger heard of from `source`."""
    EVENTS.labels(source, result).inc(number)


def _name(error: Exception) -> str:
    return type(error).__name__ if isinstance(error, VeilError) else BUG


class QueueCollector(Collector):
    """The queues as they are at the moment of a scrape; where Redis does not answer, that and
    nothing else.
    """

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    def collect(self) -> Iterator[Metric]:
        try:
            families = list(self._read())
        except (RedisError, OSError):
            families = []
        yield GaugeMetricFamily(
            "veil_queue_up", "1 if Redis answered this scrape, else 0.", value=bool(families)
        )
        yield from families

    def _read(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("veil_queue_messages", "Messages that wait.", labels=["queue"])
        oldest = GaugeMetricFamily(
            "veil_queue_oldest_seconds",
            "How long the next message has waited; 0 if none waits.",
            labels=["queue"],
        )
        for queue in queues.statuses(self._redis):
            waiting.add_metric([queue.name], queue.waiting)
            oldest.add_metric([queue.name], queue.oldest_seconds or 0.0)
        in_hand, dead = queues.in_hand(self._redis), dead_letters.LETTERS.count(self._redis)
        yield waiting
        yield oldest
        yield GaugeMetricFamily(
            "veil_in_flight_messages", "Messages in the hands of all workers.", value=in_hand
        )
        yield GaugeMetricFamily(
            "veil_dead_letters", "Pictures that were given up and await somebody.", value=dead
        )
        yield GaugeMetricFamily(
            "veil_review_pictures",
            "Pictures that were held back or flagged and await somebody's look.",
            value=review.REVIEW_LIST.count(self._redis),
        )


def serve(settings: Settings, app: Celery) -> None:
    """Serve what is in REGISTRY, and the queues of `app`, at ``VEIL_METRICS`` until the process
    ends.

    Does nothing where that is not set. Raises SettingsInvalid where the address can't be had.
    """
    if settings.metrics is None:
        return
    host, port = split_address(settings.metrics)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a timestamp beside each series, which nothing here uses
    try:
        start(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise SettingsInvalid(
            f"VEIL_METRICS: {host}:{port} can't be served ({error.strerror}): each process needs an address of its own"
        ) from None
    REGISTRY.register(QueueCollector(_quick(app)))


def _quick(app: Celery) -> Any:
    """A Redis client of `app` that answers or fails within REDIS_SECONDS."""
    limits = {
        "socket_timeout": REDIS_SECONDS,
        "socket_connect_timeout": REDIS_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    return app.backend._create_client(**{**app.backend.connparams, **limits})
