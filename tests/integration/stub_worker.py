"""A worker process without a detector: the key of a picture says what happens to it.

    python stub_worker.py JOURNAL [--transport=redis] [--watchdog=SECONDS] [--concurrency=N]

`redis` is kombu's own transport with its shortest intervals, for comparison.

Keys: ``…/sleep-2.5/…`` takes so many seconds, ``…/transient/…`` finds its server away,
``…/permanent/…`` fails for good, ``…/memory/…`` runs out of memory, ``…/panic/…`` raises an error
that is no Exception, ``…/bug/…`` fails with the pixels in its error, ``…/nameless/…`` fails with an
error that can't be described. JOURNAL gets one JSON object a line, with what, source, pid and at.
"""

import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from types import MappingProxyType

import structlog

from tasks.app import app
from tasks.delivery import steps
from tasks.errors import StorageUnavailable, UnreadableImage
from tasks.messages import QUEUES, AnonymizeReport
from tasks.routes import Route, Routed, Routes
from tasks.settings import Settings
from tasks.telemetry import error_reports, tracing
from worker import bootstrap, logs
from worker.process.watchdog import Watchdog

PIXELS = b"value-of-pixels" + bytes(range(128, 256))
ROUTE = Route.parse("s3://raw=s3://clean")


class Panic(BaseException):
    """An error that is no Exception, as libraries in Rust raise it."""


class Nameless(UnreadableImage):
    """An error whose description fails, so that no dead letter can be made of it."""

    def __str__(self) -> str:
        raise LookupError("no description")


class StubPipeline:
    """A pipeline that sleeps or fails as the keys of its pictures say."""

    recipe = "stub"
    recipes = MappingProxyType({})
    routes = Routes((ROUTE,))

    def __init__(self, journal: Path, watchdog: Watchdog, stall_seconds: float):
        self._journal = journal
        self._watchdog = watchdog
        self._stall_seconds = stall_seconds

    def resolve(self, request):
        return Routed(request, ROUTE, request.source)

    def check_store(self, route):
        """Report that the store works, so that a failure counts against its picture."""

    def run(self, routed, on_stage, confirm):
        source = str(routed.request.source)
        on_stage("detecting")
        self._write("begun", source)
        if "/transient/" in source:
            raise StorageUnavailable("S3 is away")
        if "/permanent/" in source:
            raise UnreadableImage("not a picture")
        if "/bug/" in source:
            raise UnicodeDecodeError("utf-8", PIXELS, 0, 1, f"no text: {PIXELS!r}") from KeyError(
                PIXELS
            )
        if "/nameless/" in source:
            raise Nameless
        if "/memory/" in source:
            raise MemoryError
        if "/panic/" in source:
            raise Panic("index out of bounds")
        with self._watchdog.watch("a batch in the detector", self._stall_seconds):
            if seconds := re.search(r"/sleep-([\d.]+)/", source):
                time.sleep(float(seconds[1]))
        self._write("done", source)
        return AnonymizeReport(
            status="anonymized", source=source, destination=source, recipe=self.recipe
        )

    def _write(self, what, source):
        line = (
            json.dumps({"what": what, "source": source, "pid": os.getpid(), "at": time.time()})
            + "\n"
        )
        journal = os.open(self._journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(journal, line.encode())
        os.close(journal)


def main():
    journal, *options = sys.argv[1:]
    chosen = dict(option.removeprefix("--").split("=") for option in options)
    if transport := chosen.get("transport"):
        steps.TRANSPORT = transport
        eager = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}
        seconds = app.conf.broker_transport_options["lease_seconds"]
        app.conf.broker_transport_options.update(visibility_timeout=seconds, **eager)
    logs.configure("json")
    tracing.configure("veil-worker")
    error_reports.configure("worker")
    watchdog = Watchdog(check_seconds=0.1)
    pipeline = StubPipeline(Path(journal), watchdog, float(chosen.get("watchdog", 3600)))

    def build(app, *_):
        bootstrap.start_notifications(Settings.load(), app)
        return pipeline

    app.build_pipeline = build
    watchdog.start()
    bootstrap.worker_ready.connect(
        lambda sender, **_: structlog.get_logger("veil").info(
            "worker ready", worker=sender.hostname
        ),
        weak=False,
    )
    worker = app.Worker(
        pool="threads",
        concurrency=int(chosen.get("concurrency", 4)),
        hostname=f"stub-{os.getpid()}@{socket.gethostname()}",
        queues=",".join(QUEUES),
        loglevel="WARNING",
        quiet=True,
    )
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
