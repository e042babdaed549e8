"""The webhook: batches of requests, the limits of connections and bodies, and its end by a bug."""

import asyncio
import contextlib
import json
import resource
import signal
from typing import get_args

import pytest
from redis.exceptions import OutOfMemoryError
from structlog.testing import capture_logs

from tasks.addresses import ObjectUri
from tasks.errors import MalformedEvent, QueueUnavailable, SettingsInvalid
from tasks.publishing import Wanted
from tasks.telemetry.metrics import TRIGGER, RefusalReason
from tasks.uploads import webhook
from tasks.uploads.webhook import MAX_BATCH_SIZE, MAX_BODY_BYTES, Intake
from tools.local.servers import HOST, free_port


def pictures(*numbers):
    return [Wanted(ObjectUri("raw", f"{number}.jpg")) for number in numbers]


class Publishes:
    """A trigger that publishes only after the given failures."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.batches = []

    def publish(self, batch):
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(len(batch))


class Answers:
    """A Redis that takes writes after the given failures."""

    def __init__(self, *failures):
        self.failures = list(failures)

    def lpushx(self, key, value):
        if self.failures:
            raise self.failures.pop(0)
        return 0


def publish(trigger, requests, hold=30.0):
    """Return None or the error of each request; `requests` are their numbers of pictures."""

    async def run():
        intake = Intake(trigger, Answers(), hold)
        puts = [intake.put(pictures(*range(count))) for count in requests]
        publishing = asyncio.create_task(intake.run())
        try:
            return await asyncio.gather(*puts, return_exceptions=True)
        finally:
            publishing.cancel()

    return asyncio.run(run())


def test_requests_that_arrive_together_are_published_together():
    trigger = Publishes()
    assert publish(trigger, [1, 2, 3]) == [None] * 3
    assert trigger.batches == [6]


def test_a_batch_is_bounded_and_a_large_request_stays_whole():
    trigger = Publishes()
    assert publish(trigger, [MAX_BATCH_SIZE - 1, 1, 1, MAX_BATCH_SIZE * 2, 1]) == [None] * 5
    assert trigger.batches == [MAX_BATCH_SIZE, 1, MAX_BATCH_SIZE * 2, 1]


def test_requests_are_held_until_redis_is_back():
    trigger = Publishes(QueueUnavailable("away"), QueueUnavailable("away"))
    assert publish(trigger, [1, 1]) == [None] * 2
    assert trigger.batches == [2]


def test_requests_are_held_no_longer_than_the_limit():
    trigger = Publishes(*[QueueUnavailable("away")] * 1000)
    answers = publish(trigger, [1, 1], hold=0.05)
    assert [type(answer) for answer in answers] == [QueueUnavailable] * 2
    assert trigger.batches == []


def test_more_requests_than_can_wait_are_turned_away_at_once(monkeypatch):
    monkeypatch.setattr(webhook, "MAX_WAITING_REQUESTS", 2)
    trigger = Publishes()
    answers = publish(trigger, [1, 1, 1])
    assert answers[:2] == [None, None]
    assert isinstance(answers[2], QueueUnavailable)
    assert trigger.batches == [2]


def test_a_request_that_comes_after_the_end_is_turned_away_at_once():
    async def run():
        intake = Intake(Publishes(), Answers(), 0.1)
        await intake.end()
        with pytest.raises(QueueUnavailable, match="shutting down"):
            await intake.put(pictures(1))

    asyncio.run(run())


TOKEN = "t" * 32


@contextlib.contextmanager
def own_signals():
    """Restore the signal handlers that `serve` replaces."""
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def served(trigger, visit, redis=None, hold=5.0):
    """Return the result of ``await visit(port)`` while a webhook serves on this port."""
    redis = redis or Answers()

    async def run():
        port = free_port()
        serving = asyncio.create_task(webhook.serve(trigger, redis, TOKEN, HOST, port, hold))
        await asyncio.sleep(0.1)
        visiting = asyncio.create_task(visit(port))
        await asyncio.wait({serving, visiting}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(serving, 20)
        return await visiting

    with own_signals():
        return asyncio.run(run())


class Takes(Publishes):
    """A trigger that reads pictures from any message."""

    def read(self, body):
        return pictures(len(self.batches))


def head(method="POST", path="/", token=TOKEN, **fields):
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        *(f"{name.replace('_', '-')}: {v}" for name, v in fields.items()),
    ]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.asynccontextmanager
async def connection(port):
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def ask(port, request):
    """Return the status of the answer to `request` on a new connection; None without an answer."""
    async with connection(port) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
        return await status(reader)


async def status(reader):
    """Read the next answer and return its status; None if the connection is closed."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        lines = head.decode().lower().splitlines()
        lengths = [line.split()[1] for line in lines if line.startswith("content-length:")]
        await reader.readexactly(int(lengths[0]) if lengths else 0)
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    return int(lines[0].split()[1])


async def ends(reader, seconds=30):
    """Return whether the connection is closed within `seconds`; ignore its answers."""
    try:
        await asyncio.wait_for(reader.read(), seconds)
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


GOOD = head(Content_Length=1) + b"{"
HEALTH = head("GET", "/healthz", token=None)


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST / HTTP/1.1\r\nX: ", head("GET", "/healthz", token=None)],
    ids=["silent", "headers", "healthz"],
)
def test_however_many_slow_connections_there_are_they_are_few_and_others_are_served(
    monkeypatch, sent
):
    monkeypatch.setattr(webhook, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(webhook, "MAX_WAITING_REQUESTS", 4)

    async def visit(port):
        async with contextlib.AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(connection(port)) for _ in range(40)]
            for _, writer in slow:
                writer.write(sent)
            answers = [await ask(port, GOOD), await ask(port, HEALTH), await ask(port, GOOD)]
            ended = await asyncio.gather(*(ends(reader, 0.5) for reader, _ in slow))
            return answers, ended

    answers, ended = served(Takes(), visit, Answers())
    assert answers == [202, 200, 202]
    assert ended.count(False) <= 8


def test_a_sender_that_has_shown_the_token_is_not_displaced_by_those_that_have_not(monkeypatch):
    monkeypatch.setattr(webhook, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(webhook, "MAX_WAITING_REQUESTS", 4)

    async def visit(port):
        async with contextlib.AsyncExitStack() as stack:
            reader, writer = await stack.enter_async_context(connection(port))
            writer.write(GOOD)
            first = await status(reader)
            for _ in range(40):
                await stack.enter_async_context(connection(port))
            writer.write(GOOD)
            return first, await status(reader)

    assert served(Takes(), visit) == (202, 202)


def test_a_request_that_waits_for_redis_is_not_displaced_whoever_comes(monkeypatch):
    monkeypatch.setattr(webhook, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(webhook, "MAX_WAITING_REQUESTS", 4)

    async def visit(port):
        async with contextlib.AsyncExitStack() as stack:
            waiting = [asyncio.create_task(ask(port, GOOD)) for _ in range(4)]
            await asyncio.sleep(0.1)
            for _ in range(20):
                _, writer = await stack.enter_async_context(connection(port))
                # The sender shows the token, but does not send the whole body.
                writer.write(head(Content_Length=2) + b"{")
            healthy = await ask(port, HEALTH)
            return healthy, await asyncio.gather(*waiting)

    away = [QueueUnavailable("away")] * 3
    assert served(Takes(*away), visit, Answers(), hold=30.0) == (200, [202] * 4)


def test_headers_that_do_not_end_are_waited_for_only_so_long(monkeypatch):
    monkeypatch.setattr(webhook, "HEAD_SECONDS", 0.3)

    async def visit(port):
        async with contextlib.AsyncExitStack() as stack:
            silent, _ = await stack.enter_async_context(connection(port))
            begun, writer = await stack.enter_async_context(connection(port))
            writer.write(b"POST / HTTP/1.1\r\nX: ")
            used, writer = await stack.enter_async_context(connection(port))
            writer.write(HEALTH)
            first = await status(used)
            ended = await asyncio.gather(ends(silent), ends(begun))
            # A connection that has had a request stays open.
            writer.write(HEALTH)
            return ended, first, await status(used)

    assert served(Takes(), visit, Answers()) == ([True, True], 200, 200)


def test_a_connection_that_ends_by_itself_leaves_room(monkeypatch):
    monkeypatch.setattr(webhook, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(webhook, "MAX_WAITING_REQUESTS", 1)

    async def visit(port):
        return [
            await ask(port, request)
            for _ in range(20)
            for request in (GOOD, HEALTH, b"nonsense\r\n\r\n")
        ]

    assert served(Takes(), visit, Answers()) == [202, 200, 400] * 20


@pytest.mark.parametrize("path", ["/healthz", "/events"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("token", [None, TOKEN], ids=["stranger", "sender"])
def test_no_body_above_the_limit_is_kept_wherever_it_is_sent(path, method, token, monkeypatch):
    largest = []
    take = webhook.Handler.data_received

    def note(handler, chunk):
        take(handler, chunk)
        largest.append(len(handler.body))

    monkeypatch.setattr(webhook.Handler, "data_received", note)

    async def visit(port):
        answers = []
        for fields, body in (
            ({"Content_Length": 4 * MAX_BODY_BYTES}, b" " * 4 * MAX_BODY_BYTES),
            ({"Content_Length": "9" * 5000}, b" "),
            ({"Transfer_Encoding": "chunked"}, (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 64),
        ):
            answers.append(await ask(port, head(method, path, token=token, **fields) + body))
        return answers, await ask(port, HEALTH)

    answers, healthy = served(Takes(), visit, Answers())
    assert set(answers) <= {400, 401, 405, 413, None}
    assert healthy == 200
    assert max(largest, default=0) <= MAX_BODY_BYTES


def test_headers_above_the_limit_end_the_connection():
    async def visit(port):
        return [
            await ask(port, head(X="x" * 70_000)),
            await ask(port, head(X="x" * 10_000, Content_Length=1) + b"{"),
        ]

    assert served(Takes(), visit) == [None, 202]


def test_a_bug_in_one_request_is_logged_without_its_address_and_is_that_request_s_alone():
    class Broken(Takes):
        def read(self, body):
            secret = "value-of-a-variable"
            raise ZeroDivisionError(len(secret))

    async def visit(port):
        return await ask(
            port, head(path="/?token=in-the-address", Content_Length=1) + b"{"
        ), await ask(port, HEALTH)

    with capture_logs() as lines:
        assert served(Broken(), visit, Answers()) == (500, 200)
    assert [line["error"] for line in lines if line["event"] == "bug"] == ["ZeroDivisionError"]
    assert "in-the-address" not in json.dumps(lines, default=repr)


@pytest.mark.parametrize("error", [ConnectionRefusedError(), OutOfMemoryError("used memory")])
def test_an_outage_of_redis_is_logged_at_both_ends_although_no_request_arrives(error):
    async def visit(port):
        answers = [await ask(port, HEALTH)]
        while answers[-1] != 200:
            answers.append(await ask(port, HEALTH))
            await asyncio.sleep(0.05)
        await asyncio.sleep(webhook.MAX_PAUSE_SECONDS)
        return answers

    with capture_logs() as lines:
        answers = served(Takes(), visit, redis=Answers(*[error] * 4))
    assert (answers[0], answers[-1]) == (503, 200)
    told = [(line["event"], line["server"]) for line in lines if "server" in line]
    assert told == [("away", "redis"), ("back", "redis")]


def refused(reason):
    return TRIGGER.get_sample_value("veil_webhook_refused_total", {"reason": reason})


def test_refused_requests_are_counted_by_reason(monkeypatch):
    class Hard(Takes):
        def read(self, body):
            if body == b"?":
                raise MalformedEvent("not JSON")
            if body == b"!":
                raise ZeroDivisionError
            return super().read(body)

    monkeypatch.setattr(webhook, "MAX_WAITING_REQUESTS", 1)
    full = [QueueUnavailable("Redis is full")] * 1000

    async def visit(port):
        before = {reason: refused(reason) for reason in get_args(RefusalReason)}
        both = await asyncio.gather(ask(port, GOOD), ask(port, GOOD))
        others = [
            await ask(port, request)
            for request in (
                head(Content_Length=1) + b"?",
                head(Content_Length=1) + b"!",
                head(token="wrong", Content_Length=1) + b"{",
                head("PUT", Content_Length=1) + b"{",
                head(Content_Length=2 * MAX_BODY_BYTES),
                HEALTH,
            )
        ]
        return both, others, {reason: refused(reason) - before[reason] for reason in before}

    both, others, counted = served(Hard(*full), visit, hold=0.3)
    assert both == [503, 503]
    assert others == [400, 500, 401, 405, 413, 200]
    reasons = ("redis", "overload", "malformed", "bug", "token", "method", "size")
    assert {reason: number for reason, number in counted.items() if number} == dict.fromkeys(
        reasons, 1
    )


def test_too_few_open_files_are_one_line_that_says_so(monkeypatch):
    monkeypatch.setattr(
        webhook, "MAX_CONNECTIONS", resource.getrlimit(resource.RLIMIT_NOFILE)[1] + (1 << 40)
    )

    async def visit(port):
        raise AssertionError

    with pytest.raises(SettingsInvalid, match="ulimit -n"):
        served(Takes(), visit)


def test_a_bug_while_publishing_ends_the_process():
    class Broken(Publishes):
        def read(self, body):
            return pictures(1)

    async def visit(port):
        return await ask(port, GOOD)

    with pytest.raises(ZeroDivisionError):
        served(Broken(ZeroDivisionError()), visit)
