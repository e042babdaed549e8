"""Metrics of the worker itself: its detector, its pictures in hand, and its heartbeat."""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.signals import heartbeat_sent
from celery.worker import state
from prometheus_client import Counter, Gauge, Histogram, Info

from tasks.telemetry.metrics import WORKER
from worker.searches import NEAR_MARGIN

if TYPE_CHECKING:
    from tasks.delivery.circuit_breaker import CircuitBreaker
    from tasks.delivery.leases import Leases
    from worker.detection.batching import Batcher, Predict
    from worker.detection.faces import Detections
    from worker.detection.labelled import Search
    from worker.pixels import Pixels
    from worker.process.pool import PicturePool

BUILD = Info("veil_build", "The version that runs, its recipe and its model.", registry=WORKER)
HEARTBEAT = Gauge(
    "veil_worker_heartbeat_timestamp_seconds",
    "Time of the last heartbeat of the loop that takes messages, seconds since the epoch. "
    "While Redis refuses it messages, none counts.",
    registry=WORKER,
)
STORE_UP = Gauge(
    "veil_store_up",
    "0 while this worker finds the store unavailable and takes no pictures, else 1.",
    registry=WORKER,
)
STORE_UP.set(1)
CLOSED_ROUTES = Gauge(
    "veil_closed_routes",
    "Routes whose pictures wait, because their store refuses them or is unavailable.",
    registry=WORKER,
)
ROUTE_UP = Gauge(
    "veil_route_up",
    "0 while the pictures of this route of VEIL_ROUTES_FILE wait for their store, else 1.",
    ["route"],
    registry=WORKER,
)
IN_HAND = Gauge("veil_in_hand_pictures", "Pictures that this worker has in hand.", registry=WORKER)
DETECTOR_QUEUE = Gauge(
    "veil_detector_queue_pictures", "Pictures that wait for the detector.", registry=WORKER
)
BATCHES = Histogram(
    "veil_batch_pictures",
    "Pictures in one batch of the model.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=WORKER,
)
DETECTIONS = Counter("veil_detections", "Faces that the detector returned.", registry=WORKER)
NEAR_THRESHOLD = Counter(
    "veil_detections_near_threshold",
    f"Faces that the detector returned with a score less than {NEAR_MARGIN} above the threshold.",
    registry=WORKER,
)

PROCESS_DEATHS = Counter(
    "veil_picture_process_deaths",
    "Picture processes that died while they worked on a picture.",
    registry=WORKER,
)
PROCESS_MEMORY = Gauge(
    "veil_picture_process_memory_bytes",
    "Resident memory of all picture processes; pages that they share count for each.",
    registry=WORKER,
)


def watch_worker(leases: "Leases") -> None:
    """Measure the Celery worker of this process. Call this before the worker starts.

    Its heartbeat counts only while Redis gives it messages, whose `leases` it keeps.
    """

    def beat(**_: Any) -> None:
        if not leases.is_refused:
            HEARTBEAT.set_to_current_time()

    IN_HAND.set_function(lambda: len(state.active_requests))
    heartbeat_sent.connect(beat, weak=False)


def watch_circuit_breaker(breaker: "CircuitBreaker") -> None:
    """Show the outages of the store that `breaker` recognises."""
    STORE_UP.set_function(lambda: not breaker.is_open)
    CLOSED_ROUTES.set_function(lambda: breaker.closed_routes)
    for route in breaker.routes:
        if route.name is not None:
            ROUTE_UP.labels(route.name).set_function(partial(breaker.is_up, route))


def measured(predict: "Predict") -> "Predict":
    """Return `predict` with its batches measured."""

    def run(batch: "Pixels") -> "Sequence[Detections]":
        BATCHES.observe(len(batch))
        return predict(batch)

    return run


def watch_pool(pool: "PicturePool") -> None:
    """Show the memory of the processes of `pool`."""
    PROCESS_MEMORY.set_function(pool.resident_bytes)


def watch_batchers(batchers: "Sequence[Batcher]") -> None:
    """Show the number of pictures that wait for `batchers`, which this does not keep in memory."""
    references = [weakref.ref(batcher) for batcher in batchers]

    def waiting() -> int:
        watched = [reference() for reference in references]
        return sum(batcher.waiting for batcher in watched if batcher)

    DETECTOR_QUEUE.set_function(waiting)


def count_search(search: "Search", found: "Detections") -> None:
    """Count the objects that a `search` in a picture has `found`."""
    count_detections(len(found), search.near(found))


def count_detections(detected: int, near: int) -> None:
    """Count the objects that the detector returned, and those near the threshold."""
    DETECTIONS.inc(detected)
    NEAR_THRESHOLD.inc(near)
