"""How long it takes from the beginning of a PUT to the finished output, on a system with nothing else to do.

Real Redis, a real store that tells ``veil watch --http`` of uploads, and one worker; photographs of 1 MP with 16 faces
are uploaded one after the other. BENCH_PICTURES is their number.
"""

import io
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any

import platformdirs
from botocore.exceptions import ClientError
from PIL import Image
from rich.console import Console
from rich.table import Table

from demo import scenes
from demo.servers import Server, ServerFailed, Webhook, start_redis, start_s3

PICTURES = 100
WARM_UP = 5  # not counted: the first pictures of a worker's life
SIZE = 1160, 870  # 1.01 MP
WAIT_SECONDS = 120
POLL_SECONDS = 0.01
PROGRAMS = Path(sys.executable).parent


def run() -> None:
    """Print p50, p95 and p99 in seconds."""
    count = int(os.environ.get("BENCH_PICTURES", PICTURES))
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder, ExitStack() as stopping:
        client = _start(Path(folder), stopping)
        pictures = _pictures(Path(folder), count + WARM_UP)
        seconds = [_upload(client, f"{i}.jpg", content) for i, content in enumerate(pictures)][WARM_UP:]
    percentiles = quantiles(seconds, n=100, method="inclusive")
    figures = {f"p{percent}": round(percentiles[percent - 1], 3) for percent in (50, 95, 99)}
    print(
        json.dumps({"bench": "upload_latency", "pictures": count, **figures, "max": round(max(seconds), 3)}), flush=True
    )
    table = Table("pictures of 1 MP", *figures, "max", title="seconds from PUT to output")
    table.add_row(str(count), *(f"{value:.2f}" for value in figures.values()), f"{max(seconds):.2f}")
    Console(stderr=True).print(table)


def _start(folder: Path, stopping: ExitStack) -> Any:
    """The servers, ready; a client of the store."""
    redis = start_redis(folder / "redis")
    stopping.callback(redis.server.stop)
    webhook = Webhook()
    s3 = start_s3(folder / "s3", ("raw", "clean"), webhook=webhook)
    stopping.callback(s3.server.stop)
    environment = {**redis.environment(), **s3.environment(), **webhook.environment(), "VEIL_LOG_FORMAT": "json"}
    for name, arguments, ready in (
        ("trigger", ["watch", "--http", webhook.address], '"watching"'),
        ("worker", ["worker"], '"worker ready"'),
    ):
        server = Server(name, [PROGRAMS / "veil", *arguments], folder / f"{name}.log", environment)
        stopping.callback(server.stop)
        server.start()
        deadline = time.monotonic() + WAIT_SECONDS
        while ready not in server.log.read_text():
            server.check_alive()
            if time.monotonic() > deadline:
                raise ServerFailed(f"{name} was not ready within {WAIT_SECONDS} s")
            time.sleep(0.1)
    return s3.client()


def _pictures(folder: Path, count: int) -> list[bytes]:
    """Photographs that differ from each other."""
    scenes.make(folder / "samples", platformdirs.user_cache_path("veil") / "samples")
    made = []
    with Image.open(folder / "samples" / "gallery.jpg") as gallery:
        for i in range(count):
            target = io.BytesIO()
            box = (i % 50, i // 50, gallery.width - 50 + i % 50, gallery.height - 38 + i // 50)
            gallery.resize(SIZE, Image.Resampling.BILINEAR, box).save(target, "JPEG", quality=90)
            made.append(target.getvalue())
    return made


def _upload(client: Any, key: str, content: bytes) -> float:
    """Seconds until the output of one picture is there."""
    started = time.monotonic()
    client.put_object(Bucket="raw", Key=key, Body=content)
    while time.monotonic() - started < WAIT_SECONDS:
        try:
            client.head_object(Bucket="clean", Key=key)
            return time.monotonic() - started
        except ClientError:
            time.sleep(POLL_SECONDS)
    raise ServerFailed(f"no output of {key} within {WAIT_SECONDS} s")
