"""`veil watch --http` between a SeaweedFS that sends events and a worker that makes the outputs.

``UPLOADS=500`` is the long form.
"""

import http.client
import io
import json
import os
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from PIL import Image

from tests.events import ODD_BODIES, bodies
from tools.local.servers import HOST, Webhook, free_port, start_redis, start_s3

ROUTES = "s3://raw=s3://clean,s3://pictures/raw=s3://pictures/clean"
HOLD = ("--hold", 60)
UPLOADS = int(os.environ.get("UPLOADS", "100"))
ODD_NAMES = [
    "a b.jpg",
    "a+b.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "ü 日本 😀.jpg",
    "a&b=c;d'.jpg",
    "n" * 196 + ".jpg",
]


@pytest.fixture(scope="module")
def hook():
    return Webhook()


@pytest.fixture(scope="module")
def telling_s3(clean_environment, hook, tmp_path_factory):
    """An S3 that posts the events of its files to `hook`."""
    started = start_s3(
        tmp_path_factory.mktemp("telling-s3"), ("raw", "clean", "pictures"), webhook=hook
    )
    yield started
    started.server.stop()


@pytest.fixture(scope="module")
def own_queue(new_queue):
    return new_queue()


@pytest.fixture(scope="module")
def settings(own_queue, telling_s3, hook):
    return {
        **own_queue.environment,
        **telling_s3.environment(),
        **hook.environment(),
        "VEIL_ROUTES": ROUTES,
        "VEIL_CONCURRENCY": "2",
    }


@pytest.fixture(scope="module")
def trigger(start_watch, hook, settings):
    with start_watch("--http", hook.address, *HOLD, environment=settings) as started:
        yield started


@pytest.fixture(scope="module")
def own_worker(start_worker, programs, settings):
    with start_worker([programs / "veil", "worker"], settings) as started:
        yield started


@pytest.fixture(scope="module")
def small():
    """Return a JPEG of 64 pixels that differs for each `number`."""

    def make(number):
        target = io.BytesIO()
        Image.new("RGB", (64, 64), (number % 256, number // 256, 90)).save(target, "JPEG")
        return target.getvalue()

    return make


def test_each_of_many_uploads_gives_an_output_and_a_receipt(
    trigger, own_worker, own_queue, telling_s3, settings, small, veil, wait_until
):
    client = telling_s3.client()
    keys = [f"batch/{number % 7}/{number:03}.jpg" for number in range(UPLOADS - len(ODD_NAMES))]
    keys += [f"batch/odd names/{name}" for name in ODD_NAMES]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda i: client.put_object(Bucket="raw", Key=keys[i], Body=small(i)),
                range(len(keys)),
            )
        )

    def listed(prefix):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="clean", Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    wait_until(lambda: len(own_worker.lines("anonymized")) >= UPLOADS, 200)

    assert sorted(listed("batch/")) == sorted(keys)
    assert len(listed(".veil/receipts")) == UPLOADS  # also those of long keys
    proven = veil("reconcile", "s3://raw", "s3://clean", "--json", environment=settings)
    assert (proven.returncode, proven.stderr) == (0, "")
    (summary,) = [json.loads(line)["summary"] for line in proven.stdout.splitlines()]
    assert (summary["current"], summary["complete"]) == (UPLOADS, True)
    assert own_queue.dead() == {}
    assert {line["queue"] for line in trigger.lines("queued")} == {"uploads"}
    assert sum(line["pictures"] for line in trigger.lines("queued")) >= UPLOADS
    assert trigger.lines(level="error") == []


def post(address, token, message, path="/events"):
    """Post `message` on a connection of its own; return the status, the body and the headers."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    try:
        connection.request(
            "POST", path, body, {"Authorization": f"Bearer {token}"} if token else {}
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers
    finally:
        connection.close()


def event(key, bucket="raw"):
    entry = {"bucket": {"name": bucket}, "object": {"key": key, "eTag": "1"}}
    return {"Records": [{"eventName": "ObjectCreated:Put", "s3": entry}]}


def test_the_same_event_ten_times_in_a_row_gives_one_output(
    trigger, own_worker, hook, telling_s3, small, wait_until
):
    client = telling_s3.client()
    client.put_object(Bucket="raw", Key="again.jpg", Body=small(600))
    for _ in range(10):
        assert post(hook.address, hook.token, event("again.jpg"))[0] == 202

    def outcomes():
        lines = own_worker.lines(source="s3://raw/again.jpg")
        return Counter(line["event"] for line in lines)

    wait_until(lambda: outcomes().total() == 11)  # Ten of the test and one of the store.
    assert outcomes().keys() == {"anonymized", "skipped"}
    assert outcomes()["anonymized"] <= 2  # Two threads may have begun at once.
    listed = client.list_objects_v2(Bucket="clean", Prefix=".veil/receipts/again.jpg")["Contents"]
    assert len(listed) == 1
    assert client.head_object(Bucket="clean", Key="again.jpg")["Metadata"]["veil-faces"] == "0"


def test_with_one_bucket_for_both_an_output_asks_for_nothing(
    trigger, own_worker, own_queue, telling_s3, small, wait_until
):
    client = telling_s3.client()
    for number, key in enumerate(("a.jpg", "d/b.jpg", "last.jpg")):
        client.put_object(Bucket="pictures", Key=f"raw/{key}", Body=small(700 + number))
        wait_until(
            lambda key=key: own_worker.lines("anonymized", source=f"s3://pictures/raw/{key}")
        )

    sources = [
        line["source"] for line in own_worker.lines("anonymized") if "pictures" in line["source"]
    ]
    assert sorted(sources) == [
        f"s3://pictures/raw/{key}" for key in ("a.jpg", "d/b.jpg", "last.jpg")
    ]
    told = [line for line in trigger.lines("queued") if "outside" in line.get("ignored", {})]
    assert told, "the store told of the outputs too"
    assert own_queue.client.llen("uploads") == 0
    assert own_queue.dead() == {}
    keys = {item["Key"] for item in client.list_objects_v2(Bucket="pictures")["Contents"]}
    assert {key for key in keys if key.startswith("clean/") and ".veil" not in key} == {
        "clean/a.jpg",
        "clean/d/b.jpg",
        "clean/last.jpg",
    }


def test_nothing_is_lost_while_redis_is_away(
    clean_environment, start_watch, tmp_path_factory, small, wait_until
):
    redis = start_redis(tmp_path_factory.mktemp("own-redis"))
    hook = Webhook()
    s3 = start_s3(tmp_path_factory.mktemp("s3"), ("raw", "clean"), webhook=hook)
    try:
        settings = {**redis.environment(), **s3.environment(), **hook.environment()}
        with start_watch("--http", hook.address, *HOLD, environment=settings) as trigger:
            client = s3.client()
            keys = [f"{number}.jpg" for number in range(60)]
            for key in keys[:20]:
                client.put_object(Bucket="raw", Key=key, Body=small(1))
            wait_until(lambda: redis.client().llen("uploads") == 20)

            redis.server.kill()
            for key in keys[20:]:
                client.put_object(Bucket="raw", Key=key, Body=small(1))
            wait_until(lambda: trigger.lines("away", server="redis"))
            assert ask(hook.address, "GET", "/healthz")[0] == 503
            redis.server.start()

            wait_until(lambda: trigger.lines("back", server="redis"))
            wait_until(lambda: len(sources(redis)) == 60)
            assert ask(hook.address, "GET", "/healthz")[0] == 200
            assert sources(redis) == {f"s3://raw/{key}" for key in keys}
            assert len(trigger.lines("away")) == len(trigger.lines("back")) == 1
            queued = [line["pictures"] for line in trigger.lines("queued")]
            assert max(queued) > 1, "what had to wait went in batches"
            assert sum(queued) >= 60
    finally:
        s3.server.stop()
        redis.server.stop()


def test_a_full_redis_is_seen_in_health_and_metrics_and_its_end_in_the_log(
    clean_environment, start_watch, tmp_path, wait_until
):
    redis = start_redis(tmp_path / "redis")
    hook, metrics = Webhook(), f"{HOST}:{free_port()}"
    refused = 'veil_webhook_refused_total{reason="redis"} 1.0'
    settings = {**redis.environment(), **hook.environment(), "VEIL_METRICS": metrics}
    try:
        with start_watch("--http", hook.address, "--hold", 0.3, environment=settings) as trigger:
            assert ask(hook.address, "GET", "/healthz")[0] == 200
            assert refused[:-3] + "0.0" in page(metrics)
            for name in ("veil_build", "veil_worker", "veil_store", "veil_pictures", "veil_dead_t"):
                assert f"# TYPE {name}" not in page(metrics), "it is one of workers"

            redis.client().config_set("maxmemory", 1)
            assert post(hook.address, hook.token, event("a.jpg"))[0] == 503
            assert ask(hook.address, "GET", "/healthz")[0] == 503
            assert {refused, "veil_queue_up 0.0"} <= set(page(metrics).splitlines())
            (away,) = trigger.lines("away")
            assert "Redis is full" in away["message"]

            redis.client().config_set("maxmemory", 0)
            wait_until(lambda: trigger.lines("back", server="redis"))
            assert ask(hook.address, "GET", "/healthz")[0] == 200
            assert "veil_queue_up 1.0" in page(metrics)
            assert redis.client().keys() == []
    finally:
        redis.server.stop()


def page(address):
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return answer.read().decode()


def sources(redis):
    try:
        messages = redis.client().lrange("uploads", 0, -1)
    except OSError:  # Redis is loading.
        return set()
    return {json.loads(message)["headers"]["argsrepr"] for message in messages}


def ask(address, method, path="/events", headers=None, body=None):
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


@pytest.fixture(scope="module")
def lone_hook():
    return Webhook(token="token-of-this-test-run-32-characters")


@pytest.fixture(scope="module")
def lone_trigger(start_watch, lone_hook, new_queue):
    """A trigger without a store, on a queue that no worker reads."""
    queue = new_queue()
    settings = {**queue.environment, **lone_hook.environment(), "VEIL_ROUTES": ROUTES}
    with start_watch(
        "--http", lone_hook.address, "--suffix", ".JPG", environment=settings
    ) as started:
        started.queue = queue
        yield started


@pytest.fixture
def address(lone_trigger, lone_hook):
    lone_trigger.queue.client.flushdb()
    yield lone_hook.address
    lone_trigger.server.check_alive()
    assert lone_hook.token not in lone_trigger.log


@pytest.mark.parametrize(
    "header",
    [("Authorization", "Bearer {}"), ("Authorization", "{}"), ("X-Api-Key", "{}")],
    ids=["bearer", "raw", "key"],
)
def test_the_token_is_taken_as_each_kind_of_sender_shows_it(
    address, lone_hook, lone_trigger, header
):
    shown = {header[0]: header[1].format(lone_hook.token)}
    status, body, headers = ask(address, "POST", "/any/path", shown, json.dumps(event("a.jpg")))
    assert (status, json.loads(body)) == (202, {"queued": 1})
    assert "Server" not in headers
    assert lone_trigger.queue.client.llen("uploads") == 1


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"X-Api-Key": "\xff"},
    ],
)
def test_without_the_token_nothing_is_read(address, lone_trigger, shown, wait_until):
    status, _, headers = ask(address, "POST", headers=shown, body=json.dumps(event("a.jpg")))
    assert status == 401
    assert headers["WWW-Authenticate"] == "Bearer"
    assert lone_trigger.queue.client.llen("uploads") == 0
    wait_until(lambda: lone_trigger.lines("turned away", status=401))


def test_what_is_no_event_is_400_and_says_why(address, lone_hook, lone_trigger, wait_until):
    for body in (b"", b"{}", b"[1]", b"\xff", b'{"Records": [{}]}'):
        status, answer, _ = post(address, lone_hook.token, body)
        assert status == 400
        assert answer["message"]
    # The answer may come before the line.
    wait_until(lambda: len(lone_trigger.lines("malformed")) == 5)


def test_events_that_ask_for_nothing_are_taken(address, lone_hook, lone_trigger, wait_until):
    for message in (
        event("a.png"),
        event("a.jpg", "clean"),
        event("../a.jpg"),
        {"Event": "s3:TestEvent"},
    ):
        assert post(address, lone_hook.token, message)[:2] == (202, {"queued": 0})
    assert lone_trigger.queue.client.llen("uploads") == 0
    (line,) = wait_until(lambda: lone_trigger.lines("key refused"))
    assert "../a.jpg" in line["message"]


def test_a_body_over_the_limit_is_413_whether_its_length_is_told_or_not(
    address, lone_hook, lone_trigger
):
    token = {"Authorization": lone_hook.token}
    assert ask(address, "POST", headers={**token, "Content-Length": str(2 << 20)})[0] == 413
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as chunked:
        head = (
            f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: {lone_hook.token}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        chunked.sendall(head.encode() + (b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 65)
        assert chunked.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("name", ODD_BODIES)
def test_no_odd_message_ends_the_trigger(address, lone_hook, lone_trigger, name):
    status, answer, _ = post(address, lone_hook.token, ODD_BODIES[name])
    assert status in (202, 400), answer
    assert post(address, lone_hook.token, event("good.jpg"))[:2] == (202, {"queued": 1})
    lone_trigger.server.check_alive()


@examples(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=bodies())
def test_whatever_is_posted_is_answered(address, lone_hook, lone_trigger, body):
    assert post(address, lone_hook.token, body)[0] in (202, 400)
    lone_trigger.server.check_alive()


@pytest.mark.parametrize(
    "name", ["Authorization", "X-Api-Key", "Content-Length", "Transfer-Encoding", "Content-Type"]
)
@pytest.mark.parametrize(
    "value", [b"\xff\xfe", b"\xed\xa0\x80", b"9" * 5000, b"-1", b"x" * 15_000, b"chunked, gzip"]
)
def test_no_odd_header_ends_the_trigger(address, lone_hook, lone_trigger, name, value):
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sender:
        authorized = b"Authorization: %s\r\n" % lone_hook.token.encode()
        head = b"POST /\xff?\xed\xa0\x80 HTTP/1.1\r\nHost: x\r\n%s%s: %s\r\n\r\n"
        sender.sendall(
            head % (b"" if name == "Authorization" else authorized, name.encode(), value)
        )
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(100)[9:10] in (b"", b"2", b"4")
    assert post(address, lone_hook.token, event("good.jpg"))[0] == 202
    assert lone_trigger.lines("bug") == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_only_post_brings_events(address, lone_hook, method):
    status, _, headers = ask(address, method, headers={"Authorization": lone_hook.token})
    assert (status, headers["Allow"]) == (405, "POST")


def test_healthz_asks_for_no_token(address):
    assert ask(address, "GET", "/healthz")[:2] == (200, b'{"redis": true}\n')


def test_a_sender_that_stops_in_the_middle_is_cut_off_and_others_are_served(address, lone_hook):
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        head = (
            f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: {lone_hook.token}\r\n"
            "Content-Length: 100\r\n\r\n"
        )
        slow.sendall(head.encode() + b"{")
        assert post(address, lone_hook.token, event("a.jpg"))[0] == 202
        assert slow.recv(100) == b""


@pytest.fixture
def cut_off(start_watch, lone_hook, quiet_port):
    """A trigger whose Redis is away. It holds events for as long as its settings say."""

    def start(hold):
        hook = Webhook()
        settings = {**hook.environment(), "VEIL_REDIS_URL": f"redis://{HOST}:{quiet_port}/0"}
        return hook, start_watch("--http", hook.address, "--hold", hold, environment=settings)

    return start


def test_without_redis_the_answer_is_503_and_when_to_come_again(cut_off):
    hook, starting = cut_off(0.3)
    with starting as trigger:
        status, answer, headers = post(hook.address, hook.token, event("a.jpg"))
        assert status == 503
        assert int(headers["Retry-After"]) > 0
        assert "Redis" in answer["message"]
        assert ask(hook.address, "GET", "/healthz")[0] == 503
        assert post(hook.address, hook.token, event("a.jpg"))[0] == 503
        assert len(trigger.lines("away")) == 1


def test_told_to_stop_it_answers_what_it_has_in_hand(cut_off):
    hook, starting = cut_off(60)
    body = json.dumps(event("a.jpg"))
    request = (
        f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: {hook.token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    host, _, port = hook.address.rpartition(":")
    with starting as trigger, socket.create_connection((host, int(port)), timeout=20) as sender:
        sender.sendall(request.encode())
        # The answer to a later request shows that the trigger has read this one.
        assert ask(hook.address, "GET", "/healthz")[0] == 503
        trigger.server.process.send_signal(signal.SIGTERM)
        assert sender.recv(100).startswith(b"HTTP/1.1 503 ")
        assert trigger.server.process.wait(20) == 0
        assert trigger.lines("stopped")[0]["queued"] == 0


def the_one_line(done):
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: ")
    return line


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "t" * 31,
        "zwölf" * 8,
        "two words " * 4,
        "line\nbreak" * 4,
        "tab\t" * 10,
        "\x7f" * 40,
    ],
)
def test_without_a_usable_token_it_does_not_start_and_says_how_to_make_one(veil, token):
    environment = {} if token is None else {"VEIL_WEBHOOK_TOKEN": token}
    line = the_one_line(veil("watch", "--http", f"{HOST}:0", environment=environment))
    assert "VEIL_WEBHOOK_TOKEN" in line
    assert "`openssl rand -hex 32`" in line
    assert not token or token[:4] not in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--http", "8080"], "HOST:PORT"),
        (["--http", f"{HOST}:http"], "HOST:PORT"),
        (["--http", "203.0.113.1:8080"], "can't listen"),
        (["--http", f"{HOST}:0", "--prefix", "s3://elsewhere"], "VEIL_ROUTES"),
        (["--sqs", "queue"], "SQS"),
    ],
)
def test_arguments_that_can_not_be_used_are_one_line(veil, arguments, named):
    assert named in the_one_line(
        veil("watch", *arguments, environment={"VEIL_WEBHOOK_TOKEN": "t" * 32})
    )


def test_an_address_in_use_may_be_free_at_another_start(veil):
    with socket.create_server((HOST, 0)) as taken:
        address = f"{HOST}:{taken.getsockname()[1]}"
        done = veil("watch", "--http", address, environment={"VEIL_WEBHOOK_TOKEN": "t" * 32})
    assert done.returncode == 1
    assert done.stderr.startswith(f"veil: AddressInUse: can't listen on {address}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--http", f"{HOST}:0", "--poll", "5"], ["--poll", "0"]])
def test_it_takes_one_source(veil, arguments):
    done = veil("watch", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_hold_in_which_no_event_can_be_taken_is_refused(veil):
    done = veil("watch", "--http", f"{HOST}:0", "--hold", "0")
    assert done.returncode == 2
    assert "0.1" in done.stderr
