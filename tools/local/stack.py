"""The stack of a benchmark: Redis, S3 and workers on free loopback ports."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from celery import Celery

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.publishing import Publisher, Wanted
from tasks.records import dead_letters, outcomes
from tasks.settings import Settings
from tools.local.servers import S3, Redis, Server, ServerFailed, Webhook, start_redis, start_s3

Program = Sequence[str | Path]
VEIL: Program = [Path(sys.executable).parent / "veil"]
RAW, CLEAN = "raw", "clean"
READY_SECONDS = 120
CHECK_SECONDS = 0.02  # between two checks of a condition


@dataclass
class Stack:
    """The servers of a benchmark and its workers."""

    folder: Path
    redis: Redis
    s3: S3
    environment: dict[str, str]
    stopping: ExitStack
    workers: list[Server] = field(default_factory=list)

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        ready: str,
        program: Program = VEIL,
        **settings: str,
    ) -> Server:
        """Start ``veil ARGUMENTS…`` and wait until its log contains `ready`."""
        environment = {**self.environment, **settings}
        server = Server(name, [*program, *arguments], self.folder / f"{name}.log", environment)
        self.stopping.callback(server.stop)
        server.start()
        self.wait(lambda: ready in server.log.read_text(), server, READY_SECONDS)
        return server

    def worker(self, program: Program = VEIL, **settings: str) -> Server:
        """Start another worker with `settings` in its environment, and wait until it is ready."""
        server = self.start(
            f"worker-{len(self.workers) + 1}", ["worker"], '"worker ready"', program, **settings
        )
        self.workers.append(server)
        return server

    def upload(self, pictures: Iterable[tuple[str, bytes]]) -> None:
        """Put `pictures`, keys and contents, into the bucket of sources."""
        client = self.s3.client()
        for key, content in pictures:
            client.put_object(Bucket=RAW, Key=key, Body=content)

    def publish(self, keys: Iterable[str], *, keep_results: bool = False) -> list[str]:
        """Publish tasks for uploaded pictures, and return their ids."""
        wanted = [Wanted(ObjectUri(RAW, key)) for key in keys]
        return self.publisher.publish(wanted, "uploads", keep_results=keep_results)

    def work_off(self, keys: Sequence[str], limit: float) -> float:
        """Publish `keys` at once, and return the seconds until all have their outputs.

        Raise ServerFailed after `limit` seconds.
        """
        target = self.anonymized() + len(keys)
        started = time.perf_counter()
        self.publish(keys)
        self.wait(lambda: self.anonymized() >= target, self.workers[0], limit)
        return time.perf_counter() - started

    def anonymized(self) -> int:
        """Return the number of reported outputs; raise ServerFailed if there is a dead letter."""
        counts = outcomes.totals(self.client)
        if counts.get("dead"):
            letter = next(dead_letters.LETTERS.entries(self.client))
            reason = f"{letter.error}: {letter.message}"
            raise ServerFailed(f"{letter.source} is a dead letter: {reason}")
        return counts.get("anonymized", 0)

    def wait(self, condition: Callable[[], bool], server: Server, seconds: float) -> None:
        """Wait for `condition`; raise ServerFailed if `server` ends, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            server.check_alive()
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{server.name} has not done its work within {seconds:.0f} s (see {server.log})"
                )
            time.sleep(CHECK_SECONDS)

    @cached_property
    def client(self) -> Any:
        """A client of Redis."""
        return self.redis.client()

    @cached_property
    def app(self) -> Celery:
        return create_app(Settings(redis_url=self.redis.url, redis_password=self.redis.password))

    @cached_property
    def publisher(self) -> Publisher:
        return Publisher(self.app)


@contextmanager
def started(webhook: Webhook | None = None) -> Iterator[Stack]:
    """Start Redis and S3 with the buckets `raw` and `clean`, and stop them at the end of the block.

    S3 posts its events to the `webhook`, if there is one.
    """
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as name, ExitStack() as stopping:
        folder = Path(name)
        redis = start_redis(folder / "redis")
        stopping.callback(redis.server.stop)
        s3 = start_s3(folder / "s3", (RAW, CLEAN), webhook=webhook)
        stopping.callback(s3.server.stop)
        environment = {**redis.environment(), **s3.environment(), "VEIL_LOG_FORMAT": "json"}
        yield Stack(folder, redis, s3, environment, stopping)
