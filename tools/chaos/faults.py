"""A proxy in front of S3 that delays, refuses, resets or truncates requests.

Clients sign their requests for the address of the proxy, so it forwards them unchanged.
"""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from tools.local.servers import HOST

CHUNK = 1 << 16
MOST_HEADER_BYTES = 1 << 16
IDLE_SECONDS = 60.0
MAX_LATENCY_SECONDS = 1.5
LINGER_NOT = struct.pack("ii", 1, 0)  # closes the connection with a reset
# `reset after` loses the response to a request that S3 has carried out.
KINDS = ("latency", "500", "503", "reset before", "reset after", "truncated")


@dataclass
class Faulty:
    """A proxy in front of the S3 server at `port`.

    `rates` contains the share of requests with each kind of fault.
    """

    port: int
    rates: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    only: bytes = b""  # only requests with this in their first line get faults
    retry_after: int | None = None  # seconds, a header of responses with 503
    requests: Counter[str] = field(default_factory=Counter)  # by fault, including `none`
    methods: Counter[str] = field(default_factory=Counter)  # all requests by method
    connections: int = 0
    paths: set[str] = field(default_factory=set)  # of all requests

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self._closed = False
        threading.Thread(target=self._accept, name="faults", daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._closed = True
        with self._lock:
            ends = [self._listener, *self._open]
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._closed:
                near, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        """Serve all requests of a connection, one after the other."""
        near.settimeout(IDLE_SECONDS)
        far = socket.create_connection((HOST, self.port))
        far.settimeout(IDLE_SECONDS)
        with self._lock:
            self._open |= {near, far}
        try:
            with suppress(OSError, EOFError):
                while self._exchange(near, far):
                    pass
        finally:
            with self._lock:
                self._open -= {near, far}
            for end in (near, far):
                end.close()

    def _choose(self, first: bytes) -> str:
        with self._lock:
            method, path, *_ = first.decode("latin-1").split(" ")
            self.methods[method] += 1
            self.paths.add(path)
            dice = self._chance.random() if self.only in first else 1.0
            for kind, rate in self.rates.items():
                if dice < rate:
                    self.requests[kind] += 1
                    return kind
                dice -= rate
            self.requests["none"] += 1
        return "none"

    def _exchange(self, near: socket.socket, far: socket.socket) -> bool:
        """Serve one request; return False if the connection must be closed."""
        request = _Message(near)
        fault = self._choose(request.first)
        if fault == "latency":
            time.sleep(self._chance.uniform(0, MAX_LATENCY_SECONDS))
        if fault == "reset before":
            return _reset(near)
        if request.headers.get("expect"):
            near.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault in ("500", "503"):
            near.sendall(self._refusal(fault, request))
            return True
        return _pass_on(request, near, far, fault)

    def _refusal(self, status: str, request: "_Message") -> bytes:
        for _ in request.body():
            pass
        code = {"500": "InternalError", "503": "SlowDown"}[status]
        body = (
            b""
            if request.is_head
            else f"<Error><Code>{code}</Code><Message>chaos</Message></Error>".encode()
        )
        lines = [
            f"HTTP/1.1 {status} {code}",
            "Content-Type: application/xml",
            f"Content-Length: {len(body)}",
        ]
        if status == "503" and self.retry_after is not None:
            lines.append(f"Retry-After: {self.retry_after}")
        return "\r\n".join([*lines, "", ""]).encode() + body


class _Message:
    """A request or a response of HTTP/1.1, whose header is read and whose body is not."""

    def __init__(self, source: socket.socket, has_body: bool = True) -> None:
        self._source = source
        self._has_body = has_body
        raw = b""
        while b"\r\n\r\n" not in raw:
            chunk = source.recv(CHUNK)
            if not chunk or len(raw) > MOST_HEADER_BYTES:
                raise EOFError
            raw += chunk
        header, self._rest = raw.split(b"\r\n\r\n", 1)
        self.first, *self._lines = header.split(b"\r\n")
        parts = (line.decode("latin-1").partition(":") for line in self._lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in parts}

    @property
    def is_head(self) -> bool:
        return self.first.startswith(b"HEAD ")

    def head(self, without: str = "") -> bytes:
        kept = [
            line
            for line in self._lines
            if not without or not line.lower().startswith(f"{without}:".encode())
        ]
        return b"\r\n".join([self.first, *kept, b"", b""])

    def body(self) -> Iterator[bytes]:
        """Yield the body in the pieces that arrive, including their framing."""
        if not self._has_body or self.first[9:12] in (b"204", b"304"):
            return
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunked()
            return
        left = int(self.headers.get("content-length", 0))
        while left > 0:
            chunk = self._rest or self._source.recv(min(CHUNK, left))
            self._rest = b""
            if not chunk:
                raise EOFError
            left -= len(chunk)
            yield chunk

    def _chunked(self) -> Iterator[bytes]:
        seen = self._rest
        while not seen.endswith(b"0\r\n\r\n"):
            if self._rest:
                yield self._rest
            self._rest = self._source.recv(CHUNK)
            if not self._rest:
                raise EOFError
            seen = seen[-8:] + self._rest
        yield self._rest


def _reset(near: socket.socket) -> bool:
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    return False


def _pass_on(request: _Message, near: socket.socket, far: socket.socket, fault: str) -> bool:
    """Forward the request, and the part of the response that `fault` leaves.

    Return False if the connection must be closed.
    """
    far.sendall(request.head(without="expect"))
    for chunk in request.body():
        far.sendall(chunk)
    answer = _Message(far, has_body=not request.is_head)
    if fault == "reset after":
        return _reset(near)
    near.sendall(answer.head())
    for chunk in answer.body():
        if fault == "truncated":
            near.sendall(chunk[: len(chunk) // 2])
            return False
        near.sendall(chunk)
    return True
