"""The webhook: events that an object store posts, answered once their pictures are on the queue."""

import asyncio
import hmac
import json
import resource
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, cast

import structlog
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from tasks.backoff import Backoff
from tasks.errors import MalformedEvent, QueueUnavailable, SettingsInvalid
from tasks.publishing import Wanted
from tasks.redis_errors import connected
from tasks.uploads.trigger import Trigger

MAX_BODY_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 14
HEAD_SECONDS = 10  # from the opening of a connection to the end of its first request's headers
BODY_SECONDS = 5  # for the whole body of a request
IDLE_SECONDS = 120  # of a connection; above the 90 s after which clients in Go leave it
MOST_CONNECTIONS = 900  # with the other files of the process within the usual limit of 1,024
OTHER_FILES = 100
MOST_WAITING = (
    600  # requests; those above are answered 503 at once, and so leave room for other connections
)
BATCH = 1000  # pictures in one transaction, at least those of one request
LONGEST_PAUSE_SECONDS = 2.0  # between tries of Redis
RETRY_AFTER_SECONDS = 5
PING_SECONDS = 3
END_SECONDS = 5  # for what is in hand when told to end

log = structlog.get_logger("veil")


class Intake:
    """Publishes what requests bring, together with what arrived meanwhile, on a thread of its
    own.
    """

    def __init__(self, trigger: Trigger, hold_seconds: float) -> None:
        self.trigger = trigger
        self.in_hand = 0  # requests that are being answered
        self._hold_seconds = hold_seconds
        self._waiting: dict[asyncio.Future[None], Sequence[Wanted]] = {}
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)
        self._backoff = Backoff("redis", LONGEST_PAUSE_SECONDS)

    async def put(self, pictures: Sequence[Wanted]) -> None:
        """Return once Redis has the messages; QueueUnavailable if it could not be used for
        `hold_seconds`.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise QueueUnavailable("too many requests are waiting for Redis")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[done] = pictures
        self._arrived.set()
        try:
            await asyncio.wait_for(done, self._hold_seconds)
        except TimeoutError:
            raise QueueUnavailable("Redis can't be used") from None
        finally:
            self._waiting.pop(done, None)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._batch():
                pictures = [picture for wanted in batch.values() for picture in wanted]
                try:
                    await asyncio.get_running_loop().run_in_executor(
                        self._thread, self.trigger.publish, pictures
                    )
                except QueueUnavailable as error:
                    await asyncio.sleep(self._backoff.failed(error))
                    continue
                self._backoff.succeeded()
                for done in batch:
                    self._waiting.pop(done, None)
                    if not done.done():
                        done.set_result(None)

    async def end(self) -> None:
        """Give what is in hand a last while; what is not on the queue by then is answered 503."""
        deadline = asyncio.get_running_loop().time() + END_SECONDS
        while self.in_hand and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        for done in self._waiting:
            if not done.done():
                done.set_exception(QueueUnavailable("the trigger was told to end"))
        await asyncio.sleep(0.1)  # for the answers

    def _batch(self) -> dict[asyncio.Future[None], Sequence[Wanted]]:
        batch: dict[asyncio.Future[None], Sequence[Wanted]] = {}
        room = BATCH
        for done, pictures in self._waiting.items():
            if batch and len(pictures) > room:
                break
            batch[done] = pictures
            room -= len(pictures)
        return batch


class Health:
    """Whether Redis answers. However many ask, it is asked once at a time."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._ping: asyncio.Future[bool] | None = None

    async def check(self) -> bool:
        if self._ping is None or self._ping.done():
            self._ping = asyncio.get_running_loop().run_in_executor(None, self._answers)
        try:
            return await asyncio.wait_for(asyncio.shield(self._ping), PING_SECONDS)
        except TimeoutError:
            return False

    def _answers(self) -> bool:
        try:
            with connected():
                return bool(self._redis.ping())
        except QueueUnavailable:
            return False


class Connections:
    """The open connections, bounded in number: for one above the bound, the least useful other one
    is closed.

    That is the one that has been open longest of those whose sender has not shown the token, else
    the one that has been without a request longest. A connection whose request is being answered
    stays. So whoever opens connections and is slow on them displaces his own, and a sender that is
    not slow is served.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._strangers: dict[
            IOStream, asyncio.TimerHandle
        ] = {}  # each with the end of its time for headers
        self._senders: dict[IOStream, None] = {}  # have shown the token
        self._answering: set[IOStream] = set()

    def opened(self, stream: IOStream) -> None:
        """Add `stream`, which has HEAD_SECONDS for the headers of its first request."""
        if len(self._strangers) + len(self._senders) + len(self._answering) >= self._most:
            # Requests in hand are fewer than connections: see MOST_WAITING.
            displaced = next(iter(self._strangers), None) or next(iter(self._senders), stream)
            displaced.close()
            self.closed(displaced)
        if not stream.closed():
            self._strangers[stream] = asyncio.get_running_loop().call_later(
                HEAD_SECONDS, stream.close
            )

    def closed(self, stream: IOStream) -> None:
        """Forget `stream`."""
        if timer := self._strangers.pop(stream, None):
            timer.cancel()
        self._senders.pop(stream, None)
        self._answering.discard(stream)

    def has_spoken(self, stream: IOStream) -> None:
        """Note that `stream` brought the headers of a request: from now on tornado's limits
        hold.
        """
        if timer := self._strangers.get(stream):
            timer.cancel()

    def has_shown_token(self, stream: IOStream) -> None:
        """Note that the sender at `stream` is known, and has a request at this moment."""
        self.closed(stream)
        if not stream.closed():
            self._senders[stream] = None

    @contextmanager
    def answering(self, stream: IOStream) -> Iterator[None]:
        """Keep `stream`, which has shown the token, while its request is answered."""
        self.closed(stream)
        if not stream.closed():
            self._answering.add(stream)
        try:
            yield
        finally:
            self.has_shown_token(stream)


class Server(HTTPServer):
    """An HTTP server whose `connections` are bounded in number."""

    connections: Connections

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        self.connections.opened(stream)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self.connections.closed(cast(HTTP1ServerConnection, server_conn).stream)
        super().on_close(server_conn)


@stream_request_body
class _Handler(RequestHandler):
    """Answers in JSON. No body is read beyond MAX_BODY_BYTES, whoever sends it and to whatever
    path.
    """

    METHODS: tuple[str, ...]

    @property
    def connections(self) -> Connections:
        return cast(Connections, self.settings["connections"])

    @property
    def stream(self) -> IOStream:
        return cast(HTTP1Connection, self.request.connection).stream

    def prepare(self) -> None:
        self._body = bytearray()
        self.connections.has_spoken(self.stream)
        if self.request.method not in self.METHODS:
            raise HTTPError(405)
        self.authorize()
        length = self.request.headers.get("Content-Length", "0")
        if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
            raise HTTPError(413)

    def authorize(self) -> None:
        """Raise HTTPError for a sender that may not ask for this."""

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > MAX_BODY_BYTES:
            self._body.clear()
            self.send_error(413)

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Log a bug. Tornado would log the address that was asked for, in which there may be a
        token.
        """
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
        self.finish(json.dumps({"status": status_code, "error": self._reason}) + "\n")


class HealthHandler(_Handler):
    """``GET /healthz``, for whoever asks: it tells nothing but whether Redis answers."""

    METHODS = ("GET",)

    def initialize(self, health: Health) -> None:
        self._health = health

    async def get(self) -> None:
        healthy = await self._health.check()
        self.set_status(200 if healthy else 503)
        self.finish(json.dumps({"redis": healthy}) + "\n")


class EventsHandler(_Handler):
    """``POST`` of one message with events, to any other path. Who sends it is known before its body
    is read.
    """

    METHODS = ("POST",)

    def initialize(self, intake: Intake, token: str) -> None:
        self._intake = intake
        self._token = token

    def authorize(self) -> None:
        if not self._is_authorized():
            raise HTTPError(401)
        self.connections.has_shown_token(self.stream)

    async def post(self) -> None:
        self._intake.in_hand += 1
        try:
            with self.connections.answering(self.stream):
                await self._answer()
        finally:
            self._intake.in_hand -= 1

    async def _answer(self) -> None:
        try:
            pictures = self._intake.trigger.read(bytes(self._body))
            if pictures:
                await self._intake.put(pictures)
        except MalformedEvent as error:
            self._refuse(400, str(error))
        except QueueUnavailable as error:
            self.set_header("Retry-After", str(RETRY_AFTER_SECONDS))
            self._refuse(503, str(error))
        else:
            self.set_status(202)
            self.finish(json.dumps({"queued": len(pictures)}) + "\n")

    def _refuse(self, status: int, message: str) -> None:
        self.set_status(status)
        self.finish(
            json.dumps({"status": status, "error": self._reason, "message": message}) + "\n"
        )
        if status == 400:
            log.warning("malformed", message=message, sender=self.request.remote_ip)

    def _is_authorized(self) -> bool:
        """Whether the token is there: as a bearer's, alone, or, as EventBridge sends it, as a
        key.
        """
        headers = self.request.headers
        given = headers.get("Authorization") or headers.get("X-Api-Key", "")
        return hmac.compare_digest(given.removeprefix("Bearer ").encode(), self._token.encode())


def _log_answer(handler: RequestHandler) -> None:
    """One line for a sender that is turned away. Neither headers nor addresses are in it: they may
    hold a token.
    """
    if handler.get_status() in (401, 405, 413, 500):
        log.warning("turned away", status=handler.get_status(), sender=handler.request.remote_ip)


async def serve(
    trigger: Trigger, redis: Any, token: str, host: str, port: int, hold_seconds: float
) -> None:
    """Take events at `host`:`port` until SIGTERM or SIGINT; then what is in hand is answered.

    While Redis is away an event is held for `hold_seconds`, and answered 503 only then. Raises
    SettingsInvalid if the address can't be used, or too few files may be open.
    """
    _allow_files(MOST_CONNECTIONS + OTHER_FILES)
    try:
        sockets = bind_sockets(port, host)
    except OSError as error:
        raise SettingsInvalid(f"can't listen on {host}:{port}: {error.strerror}") from None
    told = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, told.set)
    intake = Intake(trigger, hold_seconds)
    connections = Connections(MOST_CONNECTIONS)
    application = Application(
        [
            (r"/healthz", HealthHandler, {"health": Health(redis)}),
            (r".*", EventsHandler, {"intake": intake, "token": token}),
        ],
        log_function=_log_answer,
        connections=connections,
    )
    # A larger body is refused by the handler, which says so; the connection ends with the answer.
    server = Server(
        application,
        max_body_size=1 << 40,
        max_header_size=MAX_HEADER_BYTES,
        body_timeout=BODY_SECONDS,
        idle_connection_timeout=IDLE_SECONDS,
    )
    server.connections = connections
    server.add_sockets(sockets)
    log.info("watching", http=f"{host}:{sockets[0].getsockname()[1]}")
    publishing = asyncio.create_task(intake.run())
    waiting = asyncio.create_task(told.wait())
    # Publishing ends by itself only with a bug: then this process must not go on to take events.
    await asyncio.wait({publishing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    server.stop()
    if waiting.done():
        await intake.end()
    publishing.cancel()
    with suppress(asyncio.CancelledError):
        await publishing
    await server.close_all_connections()


def _allow_files(needed: int) -> None:
    """Have the process open `needed` files at once. Raises SettingsInvalid where the system does
    not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        raise SettingsInvalid(
            f"--http needs {needed} open files, and the limit is {hard}: raise it, as with `ulimit -n {needed}`"
        ) from None
