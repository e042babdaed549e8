"""The chaos test: its verdict, and the faults of its proxy."""

import http.client
import http.server
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

from tools.chaos import verdict
from tools.chaos.__main__ import Plan
from tools.chaos.faults import Faulty
from tools.chaos.verdict import Version
from tools.local.servers import HOST

BOX = [20, 20, 60, 70]


def encoded(pixels):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 255, (90, 90, 3), np.uint8)


def test_a_face_that_is_shown_is_seen(pixels):
    source = encoded(pixels)
    elsewhere = pixels.copy()
    elsewhere[75:, :] = 0
    assert verdict.is_clear(source, source, [BOX], 0.7)
    assert verdict.is_clear(source, encoded(elsewhere), [BOX], 0.7)
    assert verdict.is_clear(source, encoded(pixels[:80]), [BOX], 0.7), "no output of that source"


def test_a_face_that_is_hidden_is_not_taken_for_one(pixels):
    hidden = pixels.copy()
    hidden[20:56, 20:60] = 128
    assert not verdict.is_clear(encoded(pixels), encoded(hidden), [BOX], 0.7)
    assert verdict.is_clear(encoded(pixels), encoded(hidden), [BOX, [60, 0, 90, 30]], 0.7), (
        "the other one is not"
    )


def test_what_is_neither_an_output_nor_dead_is_lost():
    assert verdict.lost(["a", "b", "c", "d"], ["a"], ["c"]) == ["b", "d"]


def test_an_output_that_nobody_asked_for_and_a_second_receipt_are_doubles():
    receipt = ".veil/receipts/{}.0123456789abcdef.{}.json"
    written = [
        Version("a", "1", "1"),
        Version("a", "1", "2"),
        Version(receipt.format("a", "e1"), "2", "1"),
    ]
    assert verdict.doubled(["a"], written) == []
    assert verdict.doubled(["a"], [*written, Version(receipt.format("a", "e2"), "3", "1")]) == ["a"]
    assert verdict.doubled(["a"], [*written, Version("b", "4", "1")]) == ["b"]


def test_redeliveries_are_counted_from_the_last_death_of_whoever_had_the_picture(tmp_path):
    log, midnight = tmp_path / "log", 1767225600.0

    def taken_over(second, output, last, pid):
        at = f"2026-01-01T00:{second // 60:02}:{second % 60:02}.500000Z"
        line = {"event": "taken over, to work on alone", "timestamp": at}
        return json.dumps({**line, "output": output, "last_pid": last, "pid": pid})

    log.write_text("\n".join([
        "banner",
        taken_over(30, "a", 1, 2),  # 30.5 s after the death of 1
        taken_over(75, "a", 1, 3),  # 35.5 s after the death of 2, which had not begun
        taken_over(31, "b", 1, 2),
        taken_over(50, "c", 9, 2),  # 9 has not died
    ]))  # fmt: skip
    assert verdict.redeliveries([log], {1: midnight, 2: midnight + 40}) == [30.5, 31.5, 35.5]


def test_percentiles():
    values = [float(value) for value in range(1, 101)]
    assert verdict.percentile(values, 0.5) == 51
    assert verdict.percentile(values, 0.99) == 100
    assert verdict.percentile(values, 1.0) == 100
    assert verdict.percentile([], 0.5) is None


def test_a_plan_is_the_same_for_the_same_seed():
    plan = Plan(jobs=100, kills=10, redis_kills=2, seed=5)
    assert plan.targets() == plan.targets()
    assert plan.targets() != Plan(100, 10, 2, seed=6).targets()
    assert plan.targets().count("redis") == 2


@pytest.mark.parametrize(("jobs", "kills"), [(100, 10), (5, 10), (1, 0), (1000, 112)])
def test_every_job_is_in_one_part_of_the_plan(jobs, kills):
    keys = [str(number) for number in range(jobs)]
    parts = Plan(jobs, kills, 0, seed=5).parts(keys)
    assert len(parts) == kills + 1
    assert [key for part in parts for key in part] == keys
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class Echo(http.server.BaseHTTPRequestHandler):
    """A server that answers with the body of the request."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.carried_out += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def way():
    server = http.server.ThreadingHTTPServer((HOST, 0), Echo)
    server.carried_out = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made = Faulty(server.server_port)
    made.server = server
    yield made
    made.close()
    server.shutdown()
    server.server_close()


def put(way, body=b"x" * 100_000):
    connection = http.client.HTTPConnection(way.endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request("PUT", "/raw/a", body)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_without_faults_everything_is_passed_on_as_it_is(way):
    answer, body = put(way)
    assert (answer.status, body) == (200, b"x" * 100_000)
    assert answer.headers["X-Host"] == way.endpoint.removeprefix("http://")
    assert way.paths == {"/raw/a"}


@pytest.mark.parametrize(
    ("fault", "carried_out"), [("reset before", 0), ("reset after", 1), ("truncated", 1)]
)
def test_an_answer_is_lost_before_or_after_the_work_or_in_the_middle(way, fault, carried_out):
    way.rates = {fault: 1.0}
    with pytest.raises((OSError, http.client.HTTPException)):
        put(way)
    assert way.server.carried_out == carried_out


def test_a_refusal_reaches_no_server(way):
    way.rates, way.retry_after = {"503": 1.0}, 7
    answer, body = put(way)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
    assert b"SlowDown" in body
    assert way.server.carried_out == 0
