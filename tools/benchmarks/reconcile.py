"""The speed and the memory of ``veil reconcile`` at 100k, 1M and 10M keys.

Generators simulate the listings of the store, so that the benchmark measures the comparison and no
server. Redis is real. One picture in 1,000 has no output, which costs a request. VEIL_BENCH_KEYS,
comma-separated numbers, replaces the sizes.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from tasks.addresses import ObjectUri
from tasks.bulk.places import Places
from tasks.bulk.reconcile import Reconciliation
from tasks.routes import Routes
from tasks.storage import receipts
from tasks.storage.s3 import ObjectStore, StoredObject
from tools.local.servers import start_redis

SIZES = (100_000, 1_000_000, 10_000_000)
MISSING_OF = 1000
RECIPE, ETAG = "5a38d4c65c2c5ab0", "9dd4e461268c8034f5c8564e155c67a6"
OUTPUT_BYTES = 2


class Simulated(ObjectStore):
    """A store with `count` sources, their outputs and receipts."""

    def __init__(self, count: int) -> None:
        super().__init__(None)
        self._count = count

    def list(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[StoredObject]:
        """Yield a whole listing; listings of one picture or after a key are empty."""
        is_output = bucket == "clean"
        tail = f".{RECIPE}.{ETAG}={OUTPUT_BYTES}.json" if prefix else ""
        for number in range(self._count) if prefix in ("", receipts.FOLDER) and not after else ():
            if is_output and number % MISSING_OF == 0:
                continue
            key = f"{prefix}2026/{number // 10_000:05}/{number:09}.jpg{tail}"
            yield StoredObject(ObjectUri(bucket, key), ETAG, OUTPUT_BYTES if is_output else 1)

    def head(self, uri: ObjectUri) -> StoredObject | None:
        """Return an object for a source; requested outputs do not exist."""
        return StoredObject(uri, ETAG, 1) if uri.bucket == "raw" else None


def run() -> None:
    """Print a line for each size: findings, keys per second and peak memory."""
    table = Table("keys", "missing", "keys/s", "peak RSS, MiB")
    sizes = [
        int(size) for size in os.environ.get("VEIL_BENCH_KEYS", "").split(",") if size
    ] or SIZES
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder:
        server = start_redis(Path(folder))
        try:
            for size in sizes:
                # Each size has its own process, because a peak never decreases.
                command = [sys.executable, "-m", __name__, str(size), str(server.port)]
                environment = {**os.environ, "REDIS_PASSWORD": server.password}
                ran = subprocess.run(
                    command, check=True, capture_output=True, text=True, env=environment
                )
                figures = json.loads(ran.stdout)
                print(json.dumps({"bench": "reconcile", **figures}), flush=True)
                table.add_row(
                    f"{size:,}",
                    f"{figures['missing']:,}",
                    f"{figures['keys_per_second']:,}",
                    f"{figures['peak_mib']}",
                )
        finally:
            server.server.stop()
    Console(stderr=True).print(table)


def _measure(count: int, client: Any) -> dict[str, Any]:
    places = Places.find("s3://raw", None, Routes.parse("s3://raw=s3://clean"))
    reconciliation = Reconciliation(Simulated(count), places, RECIPE, client)
    started = time.perf_counter()
    missing = sum(1 for _ in reconciliation.findings())
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {
        "keys": count,
        "missing": missing,
        "keys_per_second": round(count / seconds),
        "peak_mib": peak,
    }


if __name__ == "__main__":
    at = redis.Redis(port=int(sys.argv[2]), password=os.environ["REDIS_PASSWORD"])
    print(json.dumps(_measure(int(sys.argv[1]), at)))
