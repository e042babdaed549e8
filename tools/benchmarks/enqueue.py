"""The speed and the memory of a backfill, and the delay of an upload behind a million messages.

The listing is simulated, and Redis is real. A thread empties the queue to the low-water mark
whenever it is full; the resulting waits are part of the time. The worker is real, but its pictures
only sleep.
"""

import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.addresses import ObjectUri
from tasks.storage.s3 import ObjectStore, StoredObject
from tools.local.servers import Redis, start_redis

KEYS = (10_000, 100_000, 1_000_000)
LOW_WATER, HIGH_WATER = 5_000, 20_000
QUEUED = 1_000_000  # messages in the queue of the backfill when a picture is uploaded
UPLOADS = 20
PICTURE_SECONDS = 0.25
ROUTE = "s3://raw=s3://clean"
STARTED = "bench:started"
MIB = 1 << 20


class SimulatedStore(ObjectStore):
    """A store with `keys` pictures in the bucket `raw`, and no outputs."""

    def __init__(self, keys: int) -> None:
        super().__init__(None)
        self._keys = keys

    def list(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[StoredObject]:
        modified = datetime.now(UTC)
        first = int(after.rpartition("/")[2].removesuffix(".jpg")) + 1 if after else 0
        for number in range(first, self._keys if bucket == "raw" else 0):
            uri = ObjectUri(bucket, f"{prefix}{number:09}.jpg")
            yield StoredObject(uri, f"{number:032x}", 250_000, modified=modified)


def run() -> None:
    """Print a line for each number of keys, and one for the uploads."""
    table = Table(
        "keys", "keys/s", "Redis at its peak", "queue at its peak", "producer at its peak"
    )
    for keys in KEYS:
        figures = _filling(keys)
        print(json.dumps({"bench": "enqueue", **figures}), flush=True)
        table.add_row(
            f"{keys:,}",
            f"{figures['keys_per_second']:,}",
            f"{figures['redis_peak_bytes'] / MIB:,.1f} MiB",
            f"{figures['queue_peak']:,}",
            f"{figures['producer_peak_bytes'] / MIB:,.0f} MiB",
        )
    Console(stderr=True).print(table)
    figures = _uploads()
    print(json.dumps({"bench": "upload behind a backfill", **figures}), flush=True)
    Console(stderr=True).print(
        f"an upload behind {figures['queued']:,} messages "
        f"({figures['redis_bytes'] / MIB:,.0f} MiB) begins after "
        f"{figures['p50_seconds']:.2f} s (median), {figures['max_seconds']:.2f} s at most; "
        f"the picture in hand takes {figures['picture_seconds']:.2f} s"
    )


def _filling(keys: int) -> dict[str, Any]:
    with _redis() as redis:
        client = redis.client()
        idle = client.info("memory")["used_memory"]
        peak = 0
        ended = threading.Event()

        def drain() -> None:
            nonlocal peak
            while not ended.wait(0.005):
                peak = max(peak, depth := client.llen("backfill"))
                if depth > HIGH_WATER - 1000:
                    client.ltrim("backfill", 0, LOW_WATER - 1)

        drainer = threading.Thread(target=drain)
        drainer.start()
        try:
            seconds, rss = _in_process(redis, _produce, keys, LOW_WATER, HIGH_WATER)
        finally:
            ended.set()
            drainer.join()
        memory = client.info("memory")
    return {
        "keys": keys,
        "keys_per_second": round(keys / seconds),
        "redis_peak_bytes": memory["used_memory_peak"],
        "redis_idle_bytes": idle,
        "queue_peak": peak,
        "producer_peak_bytes": rss,
    }


def _produce(keys: int, low_water: int, high_water: int) -> tuple[float, int]:
    """Run a backfill; return its seconds and the peak resident size of the process in bytes."""
    from tasks.app import app
    from tasks.bulk.backfill import Backfill, Selection
    from tasks.bulk.places import Places
    from tasks.routes import Routes

    producer = Backfill(
        app,
        SimulatedStore(keys),
        Places.find("s3://raw/2026", None, Routes.parse(ROUTE)),
        Selection(),
        None,
        low_water=low_water,
        high_water=high_water,
        tell=lambda line: print(line, file=sys.stderr),
    )
    started = time.perf_counter()
    *_, last = producer.pages(producer.begin())
    seconds = time.perf_counter() - started
    assert last.enqueued == keys
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _uploads() -> dict[str, Any]:
    """Measure uploads at random times while a worker with one thread processes a backfill."""
    from tasks.publishing import Publisher, Wanted

    with _redis() as redis:
        client = redis.client()
        client.config_set("appendonly", "no")  # it would only write a gigabyte
        _in_process(redis, _produce, QUEUED, 0, 2 * QUEUED)
        used = client.info("memory")["used_memory"]
        app = _app(redis)
        publisher = Publisher(app)
        random_ = random.Random(1)
        with _process(redis, _work) as worker:
            _wait_for(client, worker, 1)
            waits = []
            for number in range(UPLOADS):
                time.sleep(random_.uniform(0, 2 * PICTURE_SECONDS))
                upload = ObjectUri("raw", f"upload/{number}.jpg")
                sent = time.time()
                publisher.publish([Wanted(upload)], "uploads")
                waits.append(_started(client, str(upload), worker) - sent)
            queued = client.llen("backfill")
        publisher.close()
    return {
        "queued": queued,
        "redis_bytes": used,
        "uploads": UPLOADS,
        "picture_seconds": PICTURE_SECONDS,
        "p50_seconds": round(median(waits), 3),
        "max_seconds": round(max(waits), 3),
    }


def _started(client: Any, source: str, worker: Any) -> float:
    """Return the time at which the worker began `source`, in seconds since the epoch."""
    while not (at := client.hget(STARTED, source)):
        assert worker.is_alive(), "the worker ended"
        time.sleep(0.005)
    return float(at)


def _wait_for(client: Any, worker: Any, pictures: int) -> None:
    while client.hlen(STARTED) < pictures:
        assert worker.is_alive(), "the worker ended"
        time.sleep(0.05)


def _work() -> None:
    """Run a worker whose pictures only sleep."""
    from tasks.app import app
    from tasks.messages import FACE, AnonymizeReport, AnonymizeRequest
    from tasks.routes import Route, Routed, Routes
    from worker import logs

    route = Route.parse("s3://raw=s3://clean")

    class Pipeline:
        recipe = "0" * 16
        recipes: Mapping[str, str] = MappingProxyType({})
        routes = Routes((route,))
        labels: tuple[str, ...] = (FACE,)

        def resolve(self, request: AnonymizeRequest) -> Routed:
            return Routed(request, route, ObjectUri("clean", request.source.key))

        def check_store(self, route: Route) -> None:
            """Do nothing: there is no store."""

        def run(
            self, routed: Routed, on_stage: Callable[[str], None], confirm: Callable[[], None]
        ) -> AnonymizeReport:
            source = str(routed.request.source)
            app.backend.client.hset(STARTED, source, time.time())
            on_stage("detecting")
            time.sleep(PICTURE_SECONDS)
            confirm()
            return AnonymizeReport(
                status="anonymized", source=source, destination=None, recipe=self.recipe
            )

    # Celery prints several lines for root, the user of many containers.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    logs.configure("json")  # on standard error
    app.build_pipeline = lambda *_: Pipeline()
    app.Worker(
        pool="threads", concurrency=1, queues="uploads,backfill", loglevel="ERROR", quiet=True
    ).start()


def _app(redis: Redis) -> Any:
    from tasks.app import create_app
    from tasks.settings import Settings

    return create_app(Settings(redis_url=redis.url, redis_password=redis.password))


@contextmanager
def _redis() -> Iterator[Redis]:
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder:
        redis = start_redis(Path(folder))
        try:
            yield redis
        finally:
            redis.server.stop()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for new processes until the end of the block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _in_process(redis: Redis, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run `work` in a new process that uses `redis`, and return its result."""
    with _environment(redis.environment()), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


@contextmanager
def _process(redis: Redis, work: Callable[[], None]) -> Iterator[Any]:
    """Run `work` in a new process until the end of the block."""
    with _environment(redis.environment()):
        process = multiprocessing.get_context("spawn").Process(target=work)
        process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
