"""The throughput by number of workers and depth of the queue, and the requests per picture.

The benchmark uses real Redis, a real store, real workers and JPEGs of 1 MP. Redis and a proxy in
front of the store first count the requests of one worker. Then one, two and four workers share the
machine, and then one worker has queues of several depths. PICTURES is the number in each part;
WORKERS and DEPTHS replace the numbers of workers and messages.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.addresses import ObjectUri
from tasks.messages import BACKFILL
from tasks.publishing import Wanted
from tasks.records import queues
from tools.benchmarks.harness import machine, pictures
from tools.chaos.faults import Faulty
from tools.local import stack
from tools.local.servers import Server, ServerFailed
from tools.local.stack import CLEAN, RAW, Stack

PICTURES = 80
WORKERS = "1,2,4"
DEPTHS = "1000,10000,100000"
WARM_UP = 12  # pictures per worker, but no more than are measured
MEGAPIXELS = 1.0
LIMIT_SECONDS = 300.0
AT_ONCE = 5000  # messages per publication
IDLE_SECONDS = 5


def run() -> None:
    """Print the requests of a picture, and a line for each number of workers and each depth."""
    count = int(os.environ.get("PICTURES") or PICTURES)
    table = Table("workers", "messages", "pictures/s", "RSS of each worker, MiB", "bytes a message")
    with stack.started() as running:
        files = [
            pictures.encoded(image, "JPEG")
            for image in pictures.of_size(min(count, 69), MEGAPIXELS)
        ]
        asked = _asked(running, files, count)
        print(json.dumps({"bench": "scaling", **asked}), flush=True)
        for workers in _numbers("WORKERS", WORKERS):
            figures = _with_workers(running, files, workers, count)
            print(json.dumps({"bench": "scaling", **figures}), flush=True)
            _add(table, figures)
        for worker in running.workers[1:]:
            worker.stop()
        for depth in _numbers("DEPTHS", DEPTHS):
            figures = _in_front_of(running, _keys("asked", count), depth, count)
            print(json.dumps({"bench": "scaling", **figures}), flush=True)
            _add(table, figures)
    console = Console(stderr=True, width=120)
    console.print(table)
    console.print(
        "a picture:",
        ", ".join(f"{name} {value}" for name, value in asked.items() if name != "pictures"),
    )


def _numbers(variable: str, default: str) -> list[int]:
    return [int(number) for number in (os.environ.get(variable) or default).split(",")]


def _add(table: Table, figures: dict[str, Any]) -> None:
    table.add_row(
        str(figures["workers"]),
        f"{figures['queue_depth']:,}",
        f"{figures['pictures_per_second']:.2f}",
        ", ".join(f"{mib:,}" for mib in figures["worker_rss_mib"]),
        str(figures.get("redis_bytes_a_message", "")),
    )


def _asked(running: Stack, files: Sequence[bytes], count: int) -> dict[str, Any]:
    """Return the requests per picture to Redis and the store, with a worker behind a proxy."""
    with closing(Faulty(int(running.s3.endpoint.rpartition(":")[2]))) as way:
        worker = running.worker(VEIL_S3_ENDPOINT=way.endpoint)
        warm_up = min(WARM_UP, count)
        _upload(running, files, "way", warm_up)
        running.work_off(_keys("way", warm_up), LIMIT_SECONDS)
        idle = _idle(running)
        _upload(running, files, "asked", count)
        requests, connections = way.methods.copy(), way.connections
        before = running.client.info("all")
        running.publish(_keys("asked", count))
        # This polls the store, so that Redis counts the commands of the worker only.
        _wait_for_outputs(running, worker, "asked", count)
        after = running.client.info("all")
        made, opened = way.methods - requests, way.connections - connections
        worker.stop()
    running.workers.remove(worker)

    def each(name: str, digits: int = 2) -> float:
        return round(float(after[name] - before[name]) / count, digits)

    return {
        "pictures": count,
        "redis_round_trips": each("total_reads_processed"),
        "redis_commands": each("total_commands_processed"),  # including those of scripts
        "redis_cpu_seconds": round(each("used_cpu_user", 6) + each("used_cpu_sys", 6), 6),
        "redis_bytes_in": each("total_net_input_bytes", 0),
        "redis_bytes_out": each("total_net_output_bytes", 0),
        "s3_requests": {
            method: round(number / count, 2) for method, number in sorted(made.items())
        },
        "s3_connections_opened": opened,
        **idle,
    }


def _idle(running: Stack) -> dict[str, float]:
    """Return the load of an idle worker on Redis."""
    before = running.client.info("all")
    time.sleep(IDLE_SECONDS)
    after = running.client.info("all")
    reads = after["total_reads_processed"] - before["total_reads_processed"]
    cpu = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return {
        "idle_redis_round_trips_a_second": round(reads / IDLE_SECONDS, 1),
        "idle_redis_cpu_share": round(cpu / IDLE_SECONDS, 5),
    }


def _wait_for_outputs(running: Stack, worker: Server, name: str, count: int) -> None:
    client = running.s3.client()
    pages = client.get_paginator("list_objects_v2")

    def there() -> bool:
        time.sleep(0.2)
        listed: int = sum(
            page["KeyCount"] for page in pages.paginate(Bucket=CLEAN, Prefix=f"{name}/")
        )
        return listed >= count

    running.wait(there, worker, LIMIT_SECONDS)


def _with_workers(
    running: Stack, files: Sequence[bytes], workers: int, count: int
) -> dict[str, Any]:
    while len(running.workers) < workers:
        running.worker()
    name = f"workers-{workers}"
    keys = _keys(name, count + min(WARM_UP, count) * workers)
    _upload(running, files, name, len(keys))
    running.work_off(keys[count:], LIMIT_SECONDS)
    seconds = running.work_off(keys[:count], LIMIT_SECONDS)
    return {
        "workers": workers,
        "queue_depth": count,
        "pictures_per_second": round(count / seconds, 3),
        "worker_rss_mib": [
            machine.resident_bytes(worker.pid) // machine.MIB for worker in running.workers
        ],
    }


def _in_front_of(running: Stack, keys: Sequence[str], depth: int, count: int) -> dict[str, Any]:
    """Return the rate of the first worker with a queue of `depth` messages."""
    idle = running.client.info("memory")["used_memory"]
    started = time.perf_counter()
    for first in range(0, depth, AT_ONCE):
        wanted = []
        for number in range(first, min(first + AT_ONCE, depth)):
            source = ObjectUri(RAW, keys[number % len(keys)])
            wanted.append(Wanted(source, ObjectUri(CLEAN, f"depth-{depth}/{number:07}.jpg")))
        running.publisher.publish(wanted, BACKFILL)
    published = time.perf_counter() - started
    waiting = queues.depth(running.client, BACKFILL)
    used = running.client.info("memory")["used_memory"]
    target = running.anonymized() + count
    started = time.perf_counter()
    running.wait(lambda: running.anonymized() >= target, running.workers[0], LIMIT_SECONDS)
    seconds = time.perf_counter() - started
    running.client.delete(BACKFILL)
    running.wait(lambda: not queues.in_hand(running.client), running.workers[0], LIMIT_SECONDS)
    if waiting < count:
        raise ServerFailed(
            f"only {waiting} of {depth} messages were left to measure with: raise DEPTHS"
        )
    return {
        "workers": 1,
        "queue_depth": depth,
        "pictures_per_second": round(count / seconds, 3),
        "enqueued_per_second": round(depth / published),
        "redis_bytes_a_message": round((used - idle) / waiting),
        "worker_rss_mib": [machine.resident_bytes(running.workers[0].pid) // machine.MIB],
    }


def _keys(name: str, count: int) -> list[str]:
    return [f"{name}/{number:05}.jpg" for number in range(count)]


def _upload(running: Stack, files: Sequence[bytes], name: str, count: int) -> None:
    running.upload(
        (key, files[number % len(files)]) for number, key in enumerate(_keys(name, count))
    )
