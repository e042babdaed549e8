"""Traces and reports of defects, as real receivers get them."""

import gzip
import io
import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from tests.integration.conftest import Worker
from tests.integration.receivers import Receiver
from tools.local.servers import Server

STUB = Path(__file__).parents[1] / "stub_worker.py"
ROOT = STUB.parents[2]
written = io.BytesIO()
Image.new("RGB", (64, 64)).save(written, "PNG")
PICTURE = written.getvalue()
LOG_SCHEMA = json.loads((ROOT / "docs" / "log.schema.json").read_text())
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def receiver():
    started = Receiver()
    yield started
    started.close()


@pytest.fixture
def stub(unattended, tmp_path):
    """``stub(**environment)`` starts a worker without a detector."""
    workers = []

    def start(**environment):
        variables = {**unattended.environment, "PYTHONPATH": python_path(), **environment}
        command = [sys.executable, STUB, tmp_path / "journal"]
        workers.append(Worker(Server("worker", command, tmp_path / "worker.log", variables)))
        workers[-1].start()
        return workers[-1]

    yield start
    for worker in workers:
        worker.server.stop()


def python_path():
    return ":".join([str(ROOT), *(path for path in sys.path if path)])


def spans_in(receiver):
    """Return the spans that arrived, with the name of their service, in protobuf as sent."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for posted in receiver.posted:
        body = posted.body
        if posted.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                found += [(names["service.name"], span) for span in scope.spans]
    return found


def test_a_picture_has_one_trace_from_the_command_to_the_stages_of_the_worker(
    unattended, worker_settings, raw, place, programs, start_worker, veil, receiver, wait_until
):
    pytest.importorskip("opentelemetry.sdk")
    exported = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    environment = {**worker_settings(unattended), **exported, "PYTHONPATH": python_path()}
    source = raw.put(f"{place}secret-name.png", PICTURE)
    with start_worker([programs / "veil", "worker"], environment) as worker:
        done = veil("enqueue", source, "--wait", environment=environment)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: {"publish", "anonymize"} <= names(spans_in(receiver)))
    stages = {"fetching", "decoding", "detecting", "masking", "encoding", "storing"}
    assert stages <= names(spans_in(receiver))
    by_name = {span.name: (service, span) for service, span in spans_in(receiver)}
    publish, delivery, stage = (by_name[name][1] for name in ("publish", "anonymize", "detecting"))
    assert by_name["publish"][0] == "veil-enqueue"
    assert by_name["anonymize"][0] == "veil-worker"
    assert publish.trace_id == delivery.trace_id == stage.trace_id
    assert delivery.parent_span_id == publish.span_id
    assert stage.parent_span_id == delivery.span_id
    assert attributes(delivery)["veil.outcome"] == "anonymized"

    # The log line of the picture leads to the trace, and the trace does not name the picture.
    line = worker.lines("anonymized")[0]
    assert line["trace_id"] == delivery.trace_id.hex()
    assert attributes(delivery)["messaging.message.id"] == line["task_id"]
    assert not any(b"secret-name" in posted.body for posted in receiver.posted)
    # All lines have the form of the published schema.
    for line in worker.lines():
        jsonschema.validate(line, LOG_SCHEMA)


def test_a_program_continues_its_own_trace_and_errors_have_their_class_alone(
    unattended, stub, receiver, wait_until
):
    pytest.importorskip("opentelemetry.sdk")
    stub(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_BSP_SCHEDULE_DELAY="200")
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    unattended.app.send_task("veil.anonymize_image", ("s3://raw/permanent/a.jpg",), headers=headers)
    wait_until(lambda: "anonymize" in names(spans_in(receiver)))
    ((_, span),) = [found for found in spans_in(receiver) if found[1].name == "anonymize"]
    assert span.trace_id.hex() == PARENT.split("-")[1]
    assert span.parent_span_id.hex() == PARENT.split("-")[2]
    assert span.status.message == "UnreadableImage"
    assert attributes(span)["veil.outcome"] == "dead"
    assert not span.events


@pytest.mark.parametrize("parent", ["junk", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", 7, ["x"]])
def test_junk_in_the_trace_headers_stops_no_picture(unattended, stub, receiver, parent):
    stub(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    result = unattended.app.send_task(
        "veil.anonymize_image", ("s3://raw/a.jpg",), headers={"traceparent": parent}
    )
    assert result.get(timeout=30)["status"] == "anonymized"


def test_a_receiver_that_is_away_holds_up_no_picture(unattended, stub):
    stub(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    for number in range(20):
        result = unattended.app.send_task("veil.anonymize_image", (f"s3://raw/{number}.jpg",))
        assert result.get(timeout=5)["status"] == "anonymized"


def names(spans):
    return {span.name for _, span in spans}


def attributes(span):
    return {item.key: item.value.string_value for item in span.attributes}


def test_sentry_gets_the_class_and_the_lines_of_a_defect_and_nothing_of_the_picture(
    unattended, stub, receiver, wait_until
):
    pytest.importorskip("sentry_sdk")
    dsn = receiver.url.replace("http://", "http://public@") + "/1"
    worker = stub(SENTRY_DSN=dsn)
    unattended.app.send_task("veil.anonymize_image", ("s3://raw/bug/secret-name.jpg",))
    wait_until(lambda: worker.lines("bug") and receiver.posted)
    body = receiver.posted[0].body
    if receiver.posted[0].headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    event = json.loads(body.splitlines()[2])
    errors = event["exception"]["values"]
    assert {error["type"] for error in errors} >= {"UnicodeDecodeError"}
    frames = [frame for error in errors for frame in error["stacktrace"]["frames"]]
    # the way from the task to the defect
    assert {"_stored_end", "_run", "run"} <= {frame["function"] for frame in frames}
    assert event["tags"]["component"] == "worker"
    assert event["tags"]["task_id"] == worker.lines("bug")[0]["task_id"]
    text = body.decode()
    for secret in ("secret-name", "value-of-pixels", "vars", "s3://", unattended.redis.password):
        assert secret not in text
    assert not re.search(r'"value": *"[^"]', text)


def test_an_invalid_dsn_is_a_warning(stub):
    pytest.importorskip("sentry_sdk")
    worker = stub(SENTRY_DSN="not-a-dsn")
    assert worker.lines("no reports are sent")
