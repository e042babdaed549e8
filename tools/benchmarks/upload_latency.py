"""The time from the beginning of a PUT to the output on an idle system.

The benchmark uses real Redis, a real store that posts uploads to ``veil watch --http``, and one
worker. It uploads PICTURES photographs of 1 MP one after the other.
"""

import json
import os
import time
from statistics import quantiles
from typing import Any

from botocore.exceptions import ClientError
from rich.console import Console
from rich.table import Table

from tools.benchmarks.harness import pictures
from tools.local import stack
from tools.local.servers import ServerFailed, Webhook

PICTURES = 100
WARM_UP = 5  # first pictures of the worker, which do not count
WAIT_SECONDS = 120
POLL_SECONDS = 0.01


def run() -> None:
    """Print p50, p95 and p99 in seconds."""
    count = int(os.environ.get("PICTURES") or PICTURES)
    webhook = Webhook()
    with stack.started(webhook) as running:
        running.start(
            "trigger", ["watch", "--http", webhook.address], '"watching"', **webhook.environment()
        )
        running.worker()
        client = running.s3.client()
        files = [
            pictures.encoded(image, "JPEG") for image in pictures.of_size(count + WARM_UP, 1.0)
        ]
        seconds = [_upload(client, f"{i}.jpg", content) for i, content in enumerate(files)][
            WARM_UP:
        ]
    percentiles = quantiles(seconds, n=100, method="inclusive")
    figures = {f"p{percent}": round(percentiles[percent - 1], 3) for percent in (50, 95, 99)}
    print(
        json.dumps(
            {"bench": "upload_latency", "pictures": count, **figures, "max": round(max(seconds), 3)}
        ),
        flush=True,
    )
    table = Table("pictures of 1 MP", *figures, "max", title="seconds from PUT to output")
    table.add_row(
        str(count), *(f"{value:.2f}" for value in figures.values()), f"{max(seconds):.2f}"
    )
    Console(stderr=True).print(table)


def _upload(client: Any, key: str, content: bytes) -> float:
    """Upload one picture, and return the seconds until its output exists."""
    started = time.monotonic()
    client.put_object(Bucket="raw", Key=key, Body=content)
    while time.monotonic() - started < WAIT_SECONDS:
        try:
            client.head_object(Bucket="clean", Key=key)
            return time.monotonic() - started
        except ClientError:
            time.sleep(POLL_SECONDS)
    raise ServerFailed(f"no output of {key} within {WAIT_SECONDS} s")
