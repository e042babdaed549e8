"""The HTTP API of the trigger: pictures are enqueued and found, and its document is right."""

import json
import socket
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest
import requests

from tasks.uploads.api import RESULT_KEY
from tasks.uploads.openapi import document
from tests.integration.conftest import Worker
from tools.local.servers import HOST, Server, free_port, start_redis

STUB = Path(__file__).parents[1] / "stub_worker.py"
ROOT = STUB.parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"
SECONDS = 20


@pytest.fixture
def api(unattended, start_watch):
    """``api(method, path, body)`` sends a request with the token and returns the answer."""
    port = free_port()
    environment = {
        **unattended.environment,
        "VEIL_WEBHOOK_TOKEN": TOKEN,
        "VEIL_ROUTES": "s3://raw=s3://clean",
    }
    with start_watch("--http", f"{HOST}:{port}", environment=environment) as watch:

        def call(method, path, body=None, token=TOKEN, **headers):
            return requests.request(
                method,
                f"http://{HOST}:{port}{path}",
                data=body if isinstance(body, bytes | None) else json.dumps(body),
                headers={"Authorization": f"Bearer {token}", **headers},
                timeout=SECONDS,
            )

        call.port, call.watch = port, watch
        yield call


@pytest.fixture
def worker(unattended, tmp_path):
    environment = {**unattended.environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, STUB, tmp_path / "journal"]
    started = Worker(Server("worker", command, tmp_path / "log", environment))
    started.start()
    yield started
    started.server.stop()


def checked(answer, name):
    """Return the JSON of `answer`, which has the form of the schema `name`."""
    described = document()
    schema = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
    jsonschema.validate(answer.json(), schema)
    return answer.json()


def test_a_picture_is_enqueued_and_found_until_its_end(api, worker, wait_until):
    def ended(task_id):
        found = checked(api("GET", f"/v1/pictures/{task_id}"), "Picture")
        return found if found["status"] not in ("queued", "working") else None

    answer = api("POST", "/v1/pictures", {"source": "s3://raw/a.jpg", "queue": "backfill"})
    assert answer.status_code == 202
    task_id = checked(answer, "Queued")["id"]
    assert answer.headers["Location"] == f"/v1/pictures/{task_id}"
    done = wait_until(lambda: ended(task_id))
    assert done["status"] == "anonymized"
    assert done["source"] == "s3://raw/a.jpg"
    assert done["report"]["recipe"] == "stub"

    failed = api("POST", "/v1/pictures", {"source": "s3://raw/permanent/a.jpg"}).json()
    dead = wait_until(lambda: ended(failed["id"]))
    assert dead["status"] == "dead"
    assert dead["error"] == {"name": "UnreadableImage", "message": "not a picture"}


def test_a_key_enqueues_the_picture_again_after_its_end(api, unattended):
    def post():
        body = {"source": "s3://raw/a.jpg"}
        return api("POST", "/v1/pictures", body, **{"Idempotency-Key": "order-9"}).json()["id"]

    key = RESULT_KEY.format(post())
    for state, count in (("STARTED", 1), ("RETRY", 1), ("FAILURE", 2)):
        result = {"status": state, "result": {"exc_type": "AccessDenied", "exc_message": "no"}}
        unattended.client.set(key, json.dumps(result))
        post()
        assert unattended.client.llen("uploads") == count, state


def test_options_reach_the_message_and_a_repeated_key_enqueues_nothing(api, unattended):
    body = {
        "source": "s3://raw/a.jpg",
        "destination": "s3://clean/b.jpg",
        "options": {"method": "fill", "region": "full", "extra": [[0, 0, 9, 9]]},
    }
    first = api("POST", "/v1/pictures", body, **{"Idempotency-Key": "order-7"}).json()["id"]
    again = api("POST", "/v1/pictures", body, **{"Idempotency-Key": "order-7"}).json()["id"]
    other = api("POST", "/v1/pictures", body).json()["id"]
    assert first == again != other
    assert api("GET", f"/v1/pictures/{first}").json()["status"] == "queued"
    assert unattended.client.llen("uploads") == 2


def test_a_key_that_came_with_another_request_is_refused_and_enqueues_nothing(api, unattended):
    def post(body):
        return api("POST", "/v1/pictures", body, **{"Idempotency-Key": "order-8"})

    first = post({"source": "s3://raw/a.jpg", "options": {"method": "fill", "region": "full"}})
    others = [
        {"source": "s3://raw/b.jpg", "options": {"method": "fill", "region": "full"}},
        {"source": "s3://raw/a.jpg", "options": {"method": "blur", "region": "full"}},
        {"source": "s3://raw/a.jpg"},
        {
            "source": "s3://raw/a.jpg",
            "destination": "s3://clean/b.jpg",
            "options": {"method": "fill", "region": "full"},
        },
        {
            "source": "s3://raw/a.jpg",
            "queue": "backfill",
            "options": {"method": "fill", "region": "full"},
        },
    ]
    for body in others:
        answer = post(body)
        assert answer.status_code == 422, body
        assert "another key" in checked(answer, "Error")["message"]
    assert unattended.client.llen("uploads") == 1
    assert not unattended.client.exists("backfill")
    found = api("GET", f"/v1/pictures/{first.json()['id']}").json()
    assert found["source"] == "s3://raw/a.jpg"
    # The order and the spaces of the JSON do not matter, nor fields with their default.
    same = (
        b'{"options":{ "region": "full","method":"fill"},"source":"s3://raw/a.jpg",'
        b'"destination":null, "queue":"uploads"}'
    )
    assert post(same).json() == first.json()


def test_a_redis_that_hangs_holds_up_no_request(start_watch):
    with socket.create_server((HOST, 0)) as silent:
        port = free_port()
        environment = {
            "VEIL_REDIS_URL": f"redis://{HOST}:{silent.getsockname()[1]}/0",
            "VEIL_WEBHOOK_TOKEN": TOKEN,
            "VEIL_ROUTES": "s3://raw=s3://clean",
        }
        with start_watch("--http", f"{HOST}:{port}", environment=environment):

            def post(number):
                return requests.post(
                    f"http://{HOST}:{port}/v1/pictures",
                    data=json.dumps({"source": f"s3://raw/{number}.jpg"}),
                    headers={"Authorization": f"Bearer {TOKEN}"},
                    timeout=SECONDS,
                )

            with ThreadPoolExecutor(4) as threads:
                answers = list(threads.map(post, range(4)))
    assert [answer.status_code for answer in answers] == [503] * 4
    assert all("Retry-After" in answer.headers for answer in answers)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"junk", 400, "the body is no JSON"),
        (b"\xff", 400, "the body is no JSON"),
        (b"[" * 100_000, 400, "the body is no JSON"),
        ([], 400, "must be a JSON object"),
        ({}, 400, "source"),
        ({"source": 7}, 400, "source"),
        ({"source": "https://raw/a.jpg"}, 400, "s3://"),
        ({"source": "s3://raw/\ud800.jpg"}, 400, ""),
        ({"source": "s3://raw/a.jpg", "colour": 1}, 400, "unknown field colour"),
        ({"source": "s3://raw/a.jpg", "queue": "celery"}, 400, "queue must be one of"),
        ({"source": "s3://raw/a.jpg", "options": {"method": "none"}}, 400, "method"),
        ({"source": "s3://elsewhere/a.jpg"}, 403, "elsewhere"),
        ({"source": "s3://raw/a.jpg", "destination": "s3://else/a.jpg"}, 403, "else"),
    ],
)
def test_wrong_requests_are_refused_by_name(api, unattended, body, status, message):
    answer = api("POST", "/v1/pictures", body)
    assert answer.status_code == status, answer.text
    assert message in checked(answer, "Error")["message"]
    assert not unattended.client.exists("uploads")


@pytest.mark.parametrize("key", ["", "k" * 129])
def test_an_idempotency_key_that_identifies_nothing_is_refused(api, unattended, key):
    body = {"source": "s3://raw/a.jpg"}
    answer = api("POST", "/v1/pictures", body, **{"Idempotency-Key": key})
    assert answer.status_code == 400
    assert "1 to 128" in checked(answer, "Error")["message"]
    assert not unattended.client.exists("uploads")


def test_a_full_redis_is_logged_and_said_alike_for_the_api_and_for_events(
    start_watch, tmp_path, wait_until
):
    redis, port = start_redis(tmp_path / "redis"), free_port()
    environment = {
        **redis.environment(),
        "VEIL_WEBHOOK_TOKEN": TOKEN,
        "VEIL_ROUTES": "s3://raw=s3://clean",
    }
    url = f"http://{HOST}:{port}"
    record = {"s3": {"bucket": {"name": "raw"}, "object": {"key": "a.jpg"}}}
    event = {"Records": [{"eventName": "s3:ObjectCreated:Put", **record}]}
    asked = (f"{url}/v1/pictures", {"source": "s3://raw/a.jpg"}), (f"{url}/events", event)
    try:
        with start_watch(
            "--http", f"{HOST}:{port}", "--hold", 1, environment=environment
        ) as trigger:
            redis.client().config_set("maxmemory", 1)
            for place, body in asked:
                answer = requests.post(
                    place, json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=SECONDS
                )
                assert answer.status_code == 503
                assert "Redis is full" in answer.json()["message"]
                wait_until(lambda: len(trigger.lines("away", server="redis")) == 1)
    finally:
        redis.server.stop()


def test_the_token_is_needed_and_unknown_paths_and_ids_are_not_found(api, unattended):
    body = {"source": "s3://raw/a.jpg"}
    refused = [
        (api("POST", "/v1/pictures", body, token="wrong"), 401, "the token is missing or wrong"),
        (api("GET", f"/v1/pictures/{uuid.uuid4()}", token=""), 401, "the token is missing"),
        (api("GET", f"/v1/pictures/{uuid.uuid4()}"), 404, "no request has this id"),
        (api("GET", "/v1/pictures/UNKNOWN"), 404, "no request has this id"),
        (api("POST", "/v1/picture", body), 404, "nothing is at this path"),
        (api("DELETE", "/v1/pictures"), 405, "does not take this method"),
        (api("DELETE", "/v1/pictures/x"), 405, "does not take this method"),
        (api("POST", "/v1/pictures", b"x" * ((1 << 20) + 1)), 413, "the body has more than"),
    ]
    for answer, status, message in refused:
        assert answer.status_code == status
        assert message in checked(answer, "Error")["message"]
    assert not unattended.client.exists("uploads")
    # Events still go to any other path.
    assert api("POST", "/events", b'{"Records": []}').status_code == 202


def test_the_document_describes_what_the_server_does(api):
    """Schemathesis makes requests from the document, valid and invalid ones, and checks answers."""
    schemathesis = pytest.importorskip("schemathesis")
    served = requests.get(f"http://{HOST}:{api.port}/v1/openapi.json", timeout=SECONDS).json()
    assert served == document()
    schema = schemathesis.openapi.from_dict(served)
    schema.config.base_url = f"http://{HOST}:{api.port}"
    for operation in schema.get_all_operations():
        run_cases(operation.ok())
    assert not api.watch.lines("bug")


def run_cases(operation):
    import hypothesis
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    for mode in GenerationMode:

        @hypothesis.settings(
            max_examples=20,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
            assert answer.status_code < 500, answer.text
            # The schema does not say that x1 < x2 in an area, or which keys S3 allows.
            case.validate_response(answer, excluded_checks=[positive_data_acceptance])

        check()
