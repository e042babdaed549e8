"""Fixtures of real servers: a Redis and an S3 for all tests, and a worker that most tests share."""

import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from celery import Celery
from celery.result import AsyncResult
from PIL import Image

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.bulk.places import Places
from tasks.output_names import OutputNames
from tasks.records import dead_letters
from tasks.routes import Route, Routes
from tasks.settings import Settings
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.receipts import Receipt, ReceiptName
from tasks.storage.s3 import ObjectStore, StoredObject
from tools.local.servers import DATABASES, HOST, S3, Redis, Server, free_port, start_redis, start_s3

RAW, CLEAN = "raw", "clean"
# The second route has no source bucket, the third no destination bucket.
ROUTES = (
    f"s3://{RAW}=s3://{CLEAN},s3://absent=s3://{CLEAN}-absent,s3://other/in=s3://absent-outputs"
)
READY_SECONDS = 90
RESULT_SECONDS = 60
# Small limits, so that tests can make pictures that exceed them. The samples are well below.
MAX_PIXELS = 20_000_000
MAX_BYTES = 12 << 20


@dataclass
class Queue:
    """A database of the Redis, with queues, results and dead letters of its own."""

    redis: Redis
    database: int
    app: Celery = field(init=False)

    def __post_init__(self) -> None:
        url = f"redis://{HOST}:{self.redis.port}/{self.database}"
        self.environment = {"VEIL_REDIS_URL": url, "VEIL_REDIS_PASSWORD": self.redis.password}
        self.app = create_app(Settings(redis_url=url, redis_password=self.redis.password))
        self.client = self.app.backend.client

    def send(self, /, *arguments: Any, **named: Any) -> AsyncResult:
        """Enqueue a message with the unchecked `arguments`."""
        return self.app.send_task("veil.anonymize_image", arguments, named)

    def report(self, /, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Enqueue a message and return its report; raise the error of a failed picture."""
        return self.send(*arguments, **named).get(timeout=RESULT_SECONDS)

    def outcome(self, result: AsyncResult) -> tuple[str, Any]:
        """Wait for a task and return its state, with its report or exception."""
        answer = result.get(timeout=RESULT_SECONDS, propagate=False)
        return result.state, answer

    def dead(self) -> dict[str, dead_letters.DeadLetter]:
        return {letter.source: letter for letter in dead_letters.LETTERS.entries(self.client)}


def _wait_until(condition: Callable[[], Any], seconds: float = RESULT_SECONDS) -> Any:
    """Return the first true value of `condition`; fail the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"nothing happened within {seconds:g} s"
        time.sleep(0.05)
    return value


@dataclass
class Bucket:
    """A bucket as a user sees it, through boto3 instead of Veil's own store."""

    client: Any
    name: str

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def put(self, key: str, content: bytes, **options: Any) -> str:
        self.client.put_object(Bucket=self.name, Key=key, Body=content, **options)
        return self.uri(key)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def head(self, key: str) -> dict[str, Any] | None:
        """Return S3's answer about an object, or None if there is none."""
        try:
            return self.client.head_object(Bucket=self.name, Key=key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def open(self, key: str) -> Image.Image:
        return Image.open(io.BytesIO(self.get(key)))

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix
        )
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


@dataclass
class Worker:
    """A worker or a trigger, and its log: Celery's banner, and one JSON object a line."""

    server: Server
    ready: str = "worker ready"

    def start(self) -> None:
        """Start the process and wait until it takes messages."""
        before = len(self.lines(self.ready))
        self.server.start()
        deadline = time.monotonic() + READY_SECONDS
        while len(self.lines(self.ready)) == before:
            self.server.check_alive()
            assert time.monotonic() < deadline, (
                f"the {self.server.name} was not ready within {READY_SECONDS} s"
            )
            time.sleep(0.1)

    @property
    def log(self) -> str:
        return self.server.log.read_text(errors="replace") if self.server.log.exists() else ""

    @property
    def alive(self) -> bool:
        return self.server.process is not None and self.server.process.poll() is None

    def lines(self, event: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Return the JSON lines of the log with this event and these fields."""
        wanted = fields if event is None else {"event": event, **fields}
        # Tests ask again and again, and to look for a text is far quicker than to parse a line.
        needed = "" if event is None else json.dumps(event, ensure_ascii=False)
        found = []
        for text in self.log.splitlines():
            if needed not in text:
                continue
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if all(line.get(name) == value for name, value in wanted.items()):
                    found.append(line)
        return found


@pytest.fixture(scope="session")
def redis_server(
    clean_environment: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Redis]:
    started = start_redis(tmp_path_factory.mktemp("redis"))
    yield started
    started.server.stop()


@pytest.fixture(scope="session")
def s3(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    started = start_s3(tmp_path_factory.mktemp("s3"), (RAW, CLEAN, f"{CLEAN}-absent", "other"))
    yield started
    started.server.stop()


@pytest.fixture(scope="session")
def new_queue(redis_server: Redis) -> Callable[[], Queue]:
    """``new_queue()`` returns an empty queue that no other test uses."""
    numbers = iter(range(DATABASES))
    return lambda: Queue(redis_server, next(numbers))


@pytest.fixture(scope="session")
def queue(new_queue: Callable[[], Queue]) -> Queue:
    """The queue of the shared worker."""
    return new_queue()


@pytest.fixture(scope="session")
def _unattended(new_queue: Callable[[], Queue]) -> Queue:
    return new_queue()


@pytest.fixture
def unattended(_unattended: Queue) -> Queue:
    """An empty queue that no worker reads."""
    _unattended.client.flushdb()
    return _unattended


@pytest.fixture(scope="session")
def raw(s3: S3) -> Bucket:
    return Bucket(s3.client(), RAW)


@pytest.fixture(scope="session")
def clean(s3: S3) -> Bucket:
    return Bucket(s3.client(), CLEAN)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    """The prefix of the keys of this test."""
    return f"{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}/"


@pytest.fixture(scope="session")
def environment(queue: Queue, s3: S3) -> dict[str, str]:
    """The environment of producers and workers at the shared queue."""
    return {
        **queue.environment,
        **s3.environment(),
        "VEIL_ROUTES": ROUTES,
        "VEIL_MAX_PIXELS": str(MAX_PIXELS),
        "VEIL_MAX_BYTES": str(MAX_BYTES),
        "VEIL_CONCURRENCY": "2",
    }


@pytest.fixture(scope="session")
def worker_settings(s3: S3) -> Callable[[Queue], dict[str, str]]:
    """``worker_settings(queue)`` returns the whole environment of a worker at `queue`."""

    def settings(queue: Queue) -> dict[str, str]:
        return {
            **os.environ,
            **queue.environment,
            **s3.environment(),
            "VEIL_ROUTES": ROUTES,
        }

    return settings


@contextlib.contextmanager
def _running(started: Worker) -> Iterator[Worker]:
    """Run a process for the block."""
    try:
        started.start()
        yield started
    finally:
        started.server.stop()


@pytest.fixture(scope="session")
def start_worker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``with start_worker(command, environment) as worker:`` runs a worker for the block."""

    def start(
        command: list[Any], environment: dict[str, str]
    ) -> contextlib.AbstractContextManager[Worker]:
        log = tmp_path_factory.mktemp("worker") / "worker.log"
        return _running(Worker(Server("worker", command, log, environment)))

    return start


@pytest.fixture(scope="session")
def refused_worker(programs: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """``refused_worker(environment)`` runs a worker that ends at its start, and returns its end."""

    def run(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [programs / "veil", "worker"],
            check=False,
            capture_output=True,
            text=True,
            timeout=READY_SECONDS,
            env=environment,
        )

    return run


@pytest.fixture(scope="session")
def start_watch(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``with start_watch(*arguments, environment=…)`` runs ``veil watch`` for the block."""

    def start(
        *arguments: object, environment: dict[str, str]
    ) -> contextlib.AbstractContextManager[Worker]:
        command = [programs / "veil", "watch", *map(str, arguments)]
        log = tmp_path_factory.mktemp("watch") / "watch.log"
        return _running(Worker(Server("trigger", command, log, environment), "watching"))

    return start


@pytest.fixture(scope="session")
def metrics_address() -> str:
    """The address at which the shared worker serves its metrics."""
    return f"{HOST}:{free_port()}"


@pytest.fixture(scope="session")
def shared_worker(
    environment: dict[str, str],
    metrics_address: str,
    programs: Path,
    start_worker: Callable[..., Any],
) -> Iterator[Worker]:
    with start_worker(
        [programs / "veil", "worker"], {**environment, "VEIL_METRICS": metrics_address}
    ) as started:
        yield started


@pytest.fixture
def worker(shared_worker: Worker) -> Iterator[Worker]:
    """``veil worker`` at the shared queue.

    A test that ends the worker fails, and the next test gets a new one.
    """
    if not shared_worker.alive:
        shared_worker.start()
    yield shared_worker
    shared_worker.server.check_alive()


@pytest.fixture(scope="session")
def store_at() -> Callable[..., ObjectStore]:
    """``store_at(s3, endpoint, secret)`` connects an ObjectStore, as a worker does.

    By default it uses the endpoint and the secret key of `s3`.
    """

    def connect(
        s3: S3, endpoint: str | None = None, secret: str | None = None, **settings: Any
    ) -> ObjectStore:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
            patch.setenv("AWS_SECRET_ACCESS_KEY", secret or s3.secret_key)
            return ObjectStore.connect(
                Settings(s3_endpoint=endpoint or s3.endpoint, **settings), connections=20
            )

    return connect


@pytest.fixture(scope="session")
def store(s3: S3, store_at: Callable[..., ObjectStore]) -> ObjectStore:
    return store_at(s3)


@dataclass
class Line:
    """A network connection to `target` that can be cut or hang.

    `download` and `upload` limit the bytes that a connection carries in each direction; None means
    no limit. At the limit the connection is closed if `cut` is set, and hangs otherwise.
    """

    target: tuple[str, int]
    download: int | None = None
    upload: int | None = None
    cut: bool = False

    def __post_init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._ended.set()
        for end in self._sockets:
            _shut(end)
        for thread in self._threads:
            thread.join(5)
        for end in self._sockets:
            end.close()

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=run, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self.target)
                self._sockets += near, far
                self._start(self._pump, near, far, self.upload)
                self._start(self._pump, far, near, self.download)

    def _pump(self, source: socket.socket, sink: socket.socket, allowed: int | None) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(chunk[:allowed])
                if allowed is not None and (allowed := allowed - len(chunk)) <= 0:
                    if not self.cut:
                        self._ended.wait()
                    break
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def new_line() -> Iterator[Callable[[tuple[str, int]], Line]]:
    """``new_line(address)`` returns a line that carries all bytes until a test limits it."""
    with contextlib.ExitStack() as stack:
        yield lambda target: stack.enter_context(contextlib.closing(Line(target)))


@pytest.fixture
def line(s3: S3, new_line: Callable[[tuple[str, int]], Line]) -> Line:
    """A line to S3."""
    return new_line((HOST, int(s3.endpoint.rpartition(":")[2])))


@pytest.fixture(scope="session")
def quiet_port() -> int:
    """A port where nobody listens."""
    return free_port()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    return _wait_until


@pytest.fixture(scope="session")
def secrets_of_this_run(redis_server: Redis, s3: S3) -> tuple[str, ...]:
    """The secrets that no log may contain."""
    return redis_server.password, s3.secret_key


RECIPE, OLDER_RECIPE = "5a38d4c65c2c5ab0", "fedcba9876543210"
OLDER_ETAG = "0" * 32
ANONYMIZED = b"anonymized"  # the content of every output in an Archive


@dataclass
class Archive:
    """Sources, outputs and receipts below two prefixes, written as a worker writes them.

    Keys are those of sources.
    """

    store: ObjectStore
    places: Places

    def destination(self, key: str) -> ObjectUri:
        return self.places.destination(self.places.key(self.places.source.join(key)))

    def source(self, key: str, content: bytes = b"picture") -> StoredObject:
        uri = self.places.source.join(key)
        self.store.put(uri, content, "image/jpeg", {})
        stored = self.store.head(uri)
        assert stored is not None
        return stored

    def receipt(
        self,
        key: str,
        etag: str,
        recipe: str = RECIPE,
        status: str = "anonymized",
        scores: tuple[float, ...] = (),
        created: str = "2026-01-01T00:00:00.000+00:00",
        label: str | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        labelled = {} if label is None else {"label": label}
        sign = next(iter(self.places.marks.keys), None)
        receipt = Receipt(
            status=status,
            created=created,
            source_etag=etag,
            source_sha256="0" * 64,
            source_bytes=7,
            output_sha256=None,
            output_bytes=len(ANONYMIZED) if status == "anonymized" else None,
            format="JPEG",
            width=3,
            height=2,
            recipe=recipe,
            faces=[{"box_xyxy": [0, 0, 1, 1], "score": score, **labelled} for score in scores],
            seconds={},
            made_with={},
            options=dict(options),
            output_mark=receipts.place_mark(self.destination(key), sign) if sign else None,
            source_mark=self.places.marks.source(self.places.source.join(key)) if sign else None,
        )
        mark = self.places.marks.version(self.places.source.join(key), etag)
        receipt_key = self.places.receipt_key(self.places.key(self.places.source.join(key)))
        made = ReceiptName.of(receipt_key, recipe, mark, receipt.output_bytes or 0)
        uri = receipts.uri(self.places.route.destination, made)
        self.store.put(uri, receipt.to_bytes(sign), "application/json", {})

    def output(self, key: str, etag: str, recipe: str = RECIPE) -> None:
        metadata = {
            receipts.SOURCE: self.places.marks.source(self.places.source.join(key)),
            receipts.SOURCE_ETAG: self.places.marks.version(self.places.source.join(key), etag),
            receipts.RECIPE: recipe,
            receipts.FACES: "1",
        }
        self.store.put(self.destination(key), ANONYMIZED, "image/jpeg", metadata)

    def done(
        self,
        key: str,
        etag: str,
        recipe: str = RECIPE,
        scores: tuple[float, ...] = (),
        label: str | None = None,
    ) -> None:
        self.receipt(key, etag, recipe, scores=scores, label=label)
        self.output(key, etag, recipe)


@pytest.fixture(scope="session")
def archive_at() -> Callable[..., Archive]:
    """``archive_at(store, prefix)`` returns an archive below `prefix` in both buckets."""

    def archive(
        store: ObjectStore,
        prefix: str,
        *keys: Key,
        heif_suffix: str = "",
        names_key: Key | None = None,
    ) -> Archive:
        route = Route.parse(f"s3://{RAW}/{prefix}=s3://{CLEAN}/{prefix}")
        route = replace(route, names=OutputNames(heif_suffix, names_key))
        routes = Routes((route,))
        return Archive(store, Places.find(f"s3://{RAW}/{prefix}", None, routes, keys))

    return archive


@pytest.fixture(scope="session")
def by_bytes(clean_environment: None) -> Iterator[Any]:
    """A client of a server that lists keys in the order of their bytes, as Amazon S3 does."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(HOST, free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    for bucket in (RAW, CLEAN):
        client.create_bucket(Bucket=bucket)
    yield client
    server.stop()


@pytest.fixture(scope="session", params=["by bytes", "by folder"])
def listing_client(request: pytest.FixtureRequest) -> Any:
    """A client of each kind of server: those that list by bytes and those that list by folder."""
    if request.param == "by bytes":
        return request.getfixturevalue("by_bytes")
    return request.getfixturevalue("s3").client()
