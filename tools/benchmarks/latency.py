"""The latency from the message to the output: percentiles of an idle and of a busy worker.

The benchmark uses real Redis, a real store, one ``veil worker`` and JPEGs of 1 MP. It first
measures the capacity, the pictures per second with a queue that is never empty. Then messages
arrive one after the other, and then at random times (a Poisson process) at 80 % of the capacity.
PICTURES is the number in each part.
"""

import json
import os
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import quantiles
from typing import Any

from celery.result import AsyncResult
from rich.console import Console
from rich.table import Table

from tools.benchmarks.harness import pictures
from tools.local import stack
from tools.local.stack import Stack

PICTURES = 100
LOAD = 0.8
WARM_UP = 24  # pictures, but no more than are measured
MEGAPIXELS = 1.0
LIMIT_SECONDS = 300.0
# The longest pause before a picture for an idle worker. Workers poll an empty queue every 0.04 s.
PAUSE_SECONDS = 0.1
SEED = 1


def run() -> None:
    """Print a line for each load: p50, p95 and p99 in seconds."""
    count = int(os.environ.get("PICTURES") or PICTURES)
    table = Table(
        "load",
        "pictures/s",
        "p50",
        "p95",
        "p99",
        "max",
        title="seconds from the queue to the output",
    )
    with stack.started() as running:
        files = [
            pictures.encoded(image, "JPEG")
            for image in pictures.of_size(min(count, 69), MEGAPIXELS)
        ]
        running.worker()
        warm_up = _uploaded(running, files, "warm-up", min(WARM_UP, count))
        running.work_off(warm_up, LIMIT_SECONDS)
        capacity = count / running.work_off(
            _uploaded(running, files, "capacity", count), LIMIT_SECONDS
        )
        chance = random.Random(SEED)
        idle = _one_by_one(running, _uploaded(running, files, "idle", count), chance)
        busy = _arriving(running, _uploaded(running, files, "busy", count), LOAD * capacity, chance)
    for load, seconds in ((0.0, idle), (LOAD, busy)):
        figures = _percentiles(seconds)
        rate = round(load * capacity, 2)
        line = {
            "bench": "latency",
            "load": load,
            "pictures": count,
            "arrivals_per_second": rate,
            **figures,
        }
        print(json.dumps({**line, "capacity": round(capacity, 2)}), flush=True)
        table.add_row(
            f"{load:.0%}",
            f"{rate:.2f}" if rate else "",
            *(f"{value:.3f}" for value in figures.values()),
        )
    Console(stderr=True, width=120).print(table)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    percentiles = quantiles(seconds, n=100, method="inclusive")
    found = {f"p{percent}": round(percentiles[percent - 1], 3) for percent in (50, 95, 99)}
    return {**found, "max": round(max(seconds), 3)}


def _one_by_one(running: Stack, keys: Sequence[str], chance: random.Random) -> list[float]:
    seconds = []
    for key in keys:
        time.sleep(chance.uniform(0, PAUSE_SECONDS))
        seconds.append(_waited(running, *_sent(running, key)))
    return seconds


def _arriving(
    running: Stack, keys: Sequence[str], rate: float, chance: random.Random
) -> list[float]:
    sent = []
    due = time.monotonic()
    for key in keys:
        due += chance.expovariate(rate)
        time.sleep(max(0.0, due - time.monotonic()))
        sent.append(_sent(running, key))
    return [_waited(running, *each) for each in sent]


def _sent(running: Stack, key: str) -> tuple[float, str]:
    """Publish `key`; return the time of the publication and the id of the task."""
    (task,) = running.publish([key], keep_results=True)
    return time.time(), task


def _waited(running: Stack, sent: float, task: str) -> float:
    """Return the seconds from `sent` to the report of the worker, which has the same clock."""
    result = AsyncResult(task, app=running.app)
    result.get(timeout=LIMIT_SECONDS)
    done: Any = result.date_done
    if not isinstance(done, datetime):
        return 0.0
    if not done.tzinfo:
        done = done.replace(tzinfo=UTC)
    return float(done.timestamp()) - sent


def _uploaded(running: Stack, files: Sequence[bytes], name: str, count: int) -> list[str]:
    made = [(f"{name}/{number:04}.jpg", files[number % len(files)]) for number in range(count)]
    running.upload(made)
    return [key for key, _ in made]
