"""The webhook: take events that an object store posts, and answer when they are on the queue."""

import asyncio
import hmac
import json
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from types import TracebackType
from typing import Any, cast

import structlog
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from ..backoff import Backoff
from ..errors import MalformedEvent, QueueUnavailable, SettingsInvalid
from ..listening import sockets_at
from ..publishing import Wanted
from ..redis.clients import try_writing
from ..redis.errors import connected
from ..telemetry import metrics
from ..telemetry.metrics import RefusalReason
from .trigger import Trigger

MAX_BODY_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 14
HEAD_SECONDS = 10  # from the opening of a connection to the end of its first request's headers
BODY_SECONDS = 5  # for the whole body of a request
# A connection without a request is closed after this time. Go's HTTP client closes its own after
# 90 seconds, so that the client closes first.
IDLE_SECONDS = 120
MAX_CONNECTIONS = 900  # with OTHER_FILES within 1,024, the usual limit of a process
OTHER_FILES = 100  # files that the process has open besides connections
# Requests that wait for Redis; further ones are answered 503 at once. It is less than
# MAX_CONNECTIONS, so that other connections can still be opened.
MAX_WAITING_REQUESTS = 600
MAX_BATCH_SIZE = 1000  # pictures in one transaction, unless one request alone has more
MAX_PAUSE_SECONDS = 2.0  # between tries of Redis
RETRY_AFTER_SECONDS = 5  # sent with 503
CHECK_SECONDS = 3  # for Redis to answer a health check
SHUTDOWN_SECONDS = 5  # for requests in progress after a signal to stop, however long they may wait
ANSWER_SECONDS = 0.1  # to send the last answers before the server closes its connections

REDIS_AWAY = "Redis can't be used"  # if it does not answer
SHUTTING_DOWN = "the trigger is shutting down"
# The reason for an answer with this status. That of 503 depends on the error.
REFUSALS: Mapping[int, RefusalReason] = {
    400: "malformed",
    401: "token",
    403: "route",
    404: "unknown",
    405: "method",
    413: "size",
    422: "key_reused",
    500: "bug",
}

# The message of an answer with this status, unless the handler has a closer one.
MESSAGES: Mapping[int, str] = {
    400: "the request is malformed",
    401: "the token is missing or wrong: send VEIL_WEBHOOK_TOKEN as Authorization: Bearer TOKEN",
    404: "nothing is at this path: /v1/openapi.json has the paths",
    405: "the path does not take this method: the header Allow has those that it takes",
    413: f"the body has more than {MAX_BODY_BYTES:,} bytes",
    500: "a bug of Veil: the log of the trigger has it",
}

log = structlog.get_logger("veil")

MoreHandlers = Callable[["Intake", str], Sequence[tuple[Any, ...]]]
"""Returns the handlers of further paths, for the intake and the token."""


class TooManyWaiting(QueueUnavailable):
    """Too many requests wait for Redis."""


class ShuttingDown(QueueUnavailable):
    """The trigger takes no more requests."""


class Intake:
    """Publishes the pictures of all waiting requests together, in a thread of its own."""

    def __init__(self, trigger: Trigger, redis: Any, hold_seconds: float) -> None:
        self.trigger = trigger
        self._redis = redis
        self.requests_in_progress = 0
        self._hold_seconds = hold_seconds
        self._waiting: dict[asyncio.Future[None], Sequence[Wanted]] = {}
        self._has_ended = False
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)
        self._backoff = Backoff("redis", MAX_PAUSE_SECONDS)
        self._why_away = REDIS_AWAY

    async def put(self, pictures: Sequence[Wanted]) -> None:
        """Return when Redis has the messages of `pictures`.

        Raises QueueUnavailable if Redis cannot be used for `hold_seconds`, if too many requests
        wait for it, or after `end`.
        """
        if self._has_ended:
            raise ShuttingDown(SHUTTING_DOWN)
        if len(self._waiting) >= MAX_WAITING_REQUESTS:
            raise TooManyWaiting("too many requests are waiting for Redis")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[done] = pictures
        self._arrived.set()
        try:
            await asyncio.wait_for(done, self._hold_seconds)
        except TimeoutError:
            raise QueueUnavailable(self._why_away) from None
        finally:
            self._waiting.pop(done, None)

    def check_redis_now(self) -> None:
        """Have Redis tried at once, because a request failed: an outage is logged as such."""
        self._arrived.set()

    async def run(self) -> None:
        """Publish waiting requests until this task is cancelled.

        Redis is tried at the start, when no request may come for hours, and also without requests
        as long as it is away. The end of an outage is therefore logged soon.
        """
        pause = await self._try(self._check_redis())
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), pause)
            self._arrived.clear()
            if not self._waiting:
                pause = await self._try(self._check_redis())
            while batch := self._batch():
                pause = await self._try(self._publish(batch))
                await asyncio.sleep(pause or 0)

    async def _try(self, trying: Awaitable[None]) -> float | None:
        """Wait for `trying`; return the pause before the next try if Redis can't be used."""
        try:
            await trying
        except QueueUnavailable as error:
            self._why_away = str(error)
            return self._backoff.failed(error)
        self._why_away = REDIS_AWAY
        self._backoff.succeeded()
        return None

    async def _check_redis(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, _check, self._redis)

    async def end(self) -> None:
        """Wait up to SHUTDOWN_SECONDS for requests in progress, then answer the others 503.

        Requests that come later, on connections that are still open, are answered 503 at once.
        """
        deadline = asyncio.get_running_loop().time() + SHUTDOWN_SECONDS
        while self.requests_in_progress and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        self._has_ended = True
        for done in self._waiting:
            if not done.done():
                done.set_exception(ShuttingDown(SHUTTING_DOWN))
        await asyncio.sleep(ANSWER_SECONDS)

    async def _publish(self, batch: dict[asyncio.Future[None], Sequence[Wanted]]) -> None:
        pictures = list(chain.from_iterable(batch.values()))
        await asyncio.get_running_loop().run_in_executor(
            self._thread, self.trigger.publish, pictures
        )
        for done in batch:
            self._waiting.pop(done, None)
            if not done.done():
                done.set_result(None)

    def _batch(self) -> dict[asyncio.Future[None], Sequence[Wanted]]:
        """Return the waiting requests that are published next: the oldest, at least one."""
        batch: dict[asyncio.Future[None], Sequence[Wanted]] = {}
        remaining = MAX_BATCH_SIZE
        for done, pictures in self._waiting.items():
            if batch and len(pictures) > remaining:
                break
            batch[done] = pictures
            remaining -= len(pictures)
        return batch


def _check(redis: Any) -> None:
    """Raise QueueUnavailable if Redis does not answer, or takes no messages."""
    with connected():
        try_writing(redis)


class Health:
    """The health check: simultaneous checks share one question to Redis."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._asked: asyncio.Future[bool] | None = None

    async def check(self) -> bool:
        """Return whether Redis answers within CHECK_SECONDS, and takes messages."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().run_in_executor(None, self._takes_messages)
        try:
            return await asyncio.wait_for(asyncio.shield(self._asked), CHECK_SECONDS)
        except TimeoutError:
            return False

    def _takes_messages(self) -> bool:
        try:
            _check(self._redis)
        except QueueUnavailable:
            return False
        return True


class Connections:
    """The open connections, at most `limit` of them.

    A connection above the limit replaces another: of those whose sender has not shown the token the
    oldest, or else the one that has been without a request longest. A connection whose request is
    being answered is never replaced. A client that opens many slow connections therefore replaces
    its own, and other senders are still served.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Connections without the token, with the timers that close them unless headers arrive.
        self._strangers: dict[IOStream, asyncio.TimerHandle] = {}
        self._senders: dict[IOStream, None] = {}  # connections that have shown the token
        self._answering: set[IOStream] = set()  # connections whose request is being answered

    def opened(self, stream: IOStream) -> None:
        """Add `stream`, and close it if its first headers take longer than HEAD_SECONDS."""
        if len(self._strangers) + len(self._senders) + len(self._answering) >= self._limit:
            replaced = next(iter(self._strangers), None) or next(iter(self._senders), stream)
            replaced.close()
            self.closed(replaced)
        if not stream.closed():
            self._strangers[stream] = asyncio.get_running_loop().call_later(
                HEAD_SECONDS, stream.close
            )

    def closed(self, stream: IOStream) -> None:
        """Remove `stream`."""
        if timer := self._strangers.pop(stream, None):
            timer.cancel()
        self._senders.pop(stream, None)
        self._answering.discard(stream)

    def headers_received(self, stream: IOStream) -> None:
        """Stop the timer of `stream`: Tornado's own limits apply after the first headers."""
        if timer := self._strangers.get(stream):
            timer.cancel()

    def token_shown(self, stream: IOStream) -> None:
        """Record that `stream` has shown the token, and has a request now."""
        self.closed(stream)
        if not stream.closed():
            self._senders[stream] = None

    @contextmanager
    def answering(self, stream: IOStream) -> Iterator[None]:
        """Protect `stream`, which has shown the token, from replacement in the block."""
        self.closed(stream)
        if not stream.closed():
            self._answering.add(stream)
        try:
            yield
        finally:
            self.token_shown(stream)


class Server(HTTPServer):
    """An HTTP server with a limited number of connections."""

    connections: Connections

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        self.connections.opened(stream)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self.connections.closed(cast(HTTP1ServerConnection, server_conn).stream)
        super().on_close(server_conn)


@stream_request_body
class Handler(RequestHandler):
    """A handler that answers in JSON.

    It reads no body beyond MAX_BODY_BYTES, whatever the sender and the path.
    """

    METHODS: tuple[str, ...]

    @property
    def connections(self) -> Connections:
        return cast(Connections, self.settings["connections"])

    @property
    def stream(self) -> IOStream:
        return cast(HTTP1Connection, self.request.connection).stream

    def prepare(self) -> None:
        self.body = bytearray()
        self.connections.headers_received(self.stream)
        if self.request.method not in self.METHODS:
            raise HTTPError(405)
        self.authorize()
        length = self.request.headers.get("Content-Length", "0")
        if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
            raise HTTPError(413)

    def authorize(self) -> None:
        """Raise HTTPError for a sender that may not send this request."""

    def data_received(self, chunk: bytes) -> None:
        self.body += chunk
        if len(self.body) > MAX_BODY_BYTES:
            self.body.clear()
            self.send_error(413)

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Log a bug without the requested address, which may contain a token."""
        if typ and not issubclass(typ, HTTPError):
            log.error("bug", error=typ.__name__, exc_info=(typ, value, tb))

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.clear_header("Server")

    def write_error(self, status_code: int, **_: Any) -> None:
        if status_code == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.METHODS))
        self.refuse(status_code, MESSAGES.get(status_code, "the request can't be answered"))

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error and its `message`."""
        self.set_status(status)
        self.finish(
            json.dumps({"status": status, "error": self._reason, "message": message}) + "\n"
        )


class HealthHandler(Handler):
    """``GET /healthz``, without a token: the answer only says if Redis takes messages."""

    METHODS = ("GET",)

    def initialize(self, health: Health) -> None:
        self._health = health

    async def get(self) -> None:
        healthy = await self._health.check()
        self.set_status(200 if healthy else 503)
        self.finish(json.dumps({"redis": healthy}) + "\n")


class AuthorizedHandler(Handler):
    """A handler for senders with the token, which is checked before the body is read."""

    reason_of_503: RefusalReason = "redis"

    def initialize(self, intake: Intake, token: str) -> None:
        self.intake = intake
        self._token = token

    def authorize(self) -> None:
        if not self._is_authorized():
            raise HTTPError(401)
        self.connections.token_shown(self.stream)

    async def answer(self, answering: Awaitable[None]) -> None:
        """Wait for `answering`; meanwhile the connection is not replaced and a shutdown waits."""
        self.intake.requests_in_progress += 1
        try:
            with self.connections.answering(self.stream):
                await answering
        finally:
            self.intake.requests_in_progress -= 1

    def refuse_for_now(self, error: QueueUnavailable) -> None:
        """Answer 503, and when to come again."""
        self.intake.check_redis_now()
        if isinstance(error, TooManyWaiting):
            self.reason_of_503 = "overload"
        if isinstance(error, ShuttingDown):
            self.reason_of_503 = "stopping"
        self.set_header("Retry-After", str(RETRY_AFTER_SECONDS))
        self.refuse(503, str(error))

    def _is_authorized(self) -> bool:
        """Return whether the request has the token.

        `Authorization` holds it with or without ``Bearer``; EventBridge sends it as `X-Api-Key`.
        """
        headers = self.request.headers
        token = headers.get("Authorization") or headers.get("X-Api-Key", "")
        return hmac.compare_digest(token.removeprefix("Bearer ").encode(), self._token.encode())


class EventsHandler(AuthorizedHandler):
    """``POST`` of one message with events, to any other path."""

    METHODS = ("POST",)

    async def post(self) -> None:
        await self.answer(self._answer())

    async def _answer(self) -> None:
        try:
            pictures = self.intake.trigger.read(bytes(self.body))
            if pictures:
                await self.intake.put(pictures)
        except MalformedEvent as error:
            self.refuse(400, str(error))
            log.warning("malformed", message=str(error), sender=self.request.remote_ip)
        except QueueUnavailable as error:
            self.refuse_for_now(error)
        else:
            self.set_status(202)
            self.finish(json.dumps({"queued": len(pictures)}) + "\n")


def _record_answer(handler: RequestHandler) -> None:
    """Count a refused request, and log it if its sender must act or there is a bug.

    The log line has neither headers nor the address, which may contain a token.
    """
    status = handler.get_status()
    if status in (401, 405, 413, 500):
        log.warning("turned away", status=status, sender=handler.request.remote_ip)
    if isinstance(handler, AuthorizedHandler) and status == 503:
        metrics.count_refused_request(handler.reason_of_503)
    elif status in REFUSALS:
        metrics.count_refused_request(REFUSALS[status])


async def serve(
    trigger: Trigger,
    redis: Any,
    token: str,
    host: str,
    port: int,
    hold_seconds: float,
    more_handlers: MoreHandlers = lambda _intake, _token: [],
) -> None:
    """Take events at `host`:`port` until SIGTERM or SIGINT, then finish requests in progress.

    `more_handlers` returns those of other paths; all paths without one take events.

    While Redis is away, a request waits for up to `hold_seconds` before it is answered 503. Raises
    AddressInUse, and SettingsInvalid if the address can never be used, or if the process may open
    too few files.
    """
    _allow_files(MAX_CONNECTIONS + OTHER_FILES)
    sockets = sockets_at(host, port)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    metrics.initialize_refusals()
    intake = Intake(trigger, redis, hold_seconds)
    server = _server(intake, Health(redis), token, more_handlers(intake, token))
    server.add_sockets(sockets)
    log.info("watching", http=f"{host}:{sockets[0].getsockname()[1]}")
    publishing = asyncio.create_task(intake.run())
    stopping = asyncio.create_task(stop.wait())
    # Publishing ends by itself only because of a bug. The process must then take no more events.
    await asyncio.wait({publishing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    server.stop()
    if stopping.done():
        await intake.end()
    publishing.cancel()
    with suppress(asyncio.CancelledError):
        await publishing
    await server.close_all_connections()


def _server(
    intake: Intake, health: Health, token: str, more_handlers: Sequence[tuple[Any, ...]] = ()
) -> Server:
    connections = Connections(MAX_CONNECTIONS)
    application = Application(
        [
            (r"/healthz", HealthHandler, {"health": health}),
            *more_handlers,
            (r".*", EventsHandler, {"intake": intake, "token": token}),
        ],
        log_function=_record_answer,
        connections=connections,
    )
    server = Server(
        application,
        # The handlers answer 413 to a body above MAX_BODY_BYTES and end the connection. Tornado's
        # own limit, which answers 400, is therefore out of reach.
        max_body_size=1 << 40,
        max_header_size=MAX_HEADER_BYTES,
        body_timeout=BODY_SECONDS,
        idle_connection_timeout=IDLE_SECONDS,
    )
    server.connections = connections
    return server


def _allow_files(needed: int) -> None:
    """Let the process open `needed` files at once.

    Raises SettingsInvalid if the system does not allow that many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        raise SettingsInvalid(
            f"--http needs {needed} open files, and the limit is {hard}: "
            f"raise it, as with `ulimit -n {needed}`"
        ) from None
