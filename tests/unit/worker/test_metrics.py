"""The metrics of the worker itself count its faces and batches, and show its state."""

import gc
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from celery.signals import heartbeat_sent

from tasks.delivery.leases import Leases
from tasks.routes import Route
from tasks.telemetry.metrics import WORKER
from worker import metrics
from worker.detection.faces import Detections
from worker.detection.labelled import Search
from worker.detection.presets import PRESETS
from worker.detection.tiled import ANY_SIZE
from worker.searches import NEAR_MARGIN


def value(name):
    return WORKER.get_sample_value(name) or 0.0


def values(*names):
    return np.array([value(name) for name in names])


def test_scores_near_the_threshold_are_counted():
    search = Search("plate", 0, PRESETS["fast"], 0.18, 0.18 + NEAR_MARGIN, ANY_SIZE, 1, {})
    found = Detections(np.zeros((4, 4), np.float32), np.array([0.9, 0.23, 0.229, 0.18], np.float32))
    names = "veil_detections_total", "veil_detections_near_threshold_total"
    before = values(*names)
    metrics.count_search(search, found)
    assert (values(*names) - before).tolist() == [4, 2]


def test_batches_are_measured_and_answered_as_before():
    names = "veil_batch_pictures_count", "veil_batch_pictures_sum"
    before = values(*names)
    predict = metrics.measured(lambda batch: [f"{len(batch)} pictures"])
    assert predict(np.zeros((3, 8, 8, 3), np.uint8)) == ["3 pictures"]
    assert (values(*names) - before).tolist() == [1, 3]


class Waiting:
    """A batcher for which pictures wait."""

    waiting = 5


def test_the_gauges_follow_the_batcher_and_the_worker():
    batcher = Waiting()
    metrics.watch_batchers([batcher])
    assert value("veil_detector_queue_pictures") == 5
    del batcher
    gc.collect()
    assert value("veil_detector_queue_pictures") == 0
    leases = Leases()
    metrics.watch_worker(leases)
    assert value("veil_in_hand_pictures") == 0
    metrics.HEARTBEAT.set(0)
    leases.is_refused = True
    heartbeat_sent.send(None)
    assert value("veil_worker_heartbeat_timestamp_seconds") == 0
    leases.is_refused = False
    heartbeat_sent.send(None)
    assert value("veil_worker_heartbeat_timestamp_seconds") == pytest.approx(time.time(), abs=5)


def test_the_store_is_up_until_the_circuit_breaker_opens():
    route = Route.parse("s3://raw=s3://clean")
    routes = [route, replace(route, name="north")]
    failing = []
    breaker = SimpleNamespace(
        is_open=False,
        closed_routes=0,
        routes=routes,
        is_up=lambda route: route not in failing,
    )
    assert value("veil_store_up") == 1
    metrics.watch_circuit_breaker(breaker)
    assert value("veil_store_up") == 1
    breaker.is_open = True
    assert value("veil_store_up") == 0
    breaker.is_open = False
    assert value("veil_closed_routes") == 0
    breaker.closed_routes = 2
    assert value("veil_closed_routes") == 2
    breaker.closed_routes = 0
    assert WORKER.get_sample_value("veil_route_up", {"route": "north"}) == 1
    failing.append(routes[1])
    assert WORKER.get_sample_value("veil_route_up", {"route": "north"}) == 0
    failing.clear()
