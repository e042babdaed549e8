"""The metrics: counts of outcomes, and labels without values from messages."""

import math
import socket
import time

import pytest
from prometheus_client import generate_latest

from tasks.app import app
from tasks.errors import AddressInUse, SettingsInvalid, StorageUnavailable, UnreadableImage
from tasks.messages import QUEUED_AT_HEADER, AnonymizeReport
from tasks.settings import Settings
from tasks.telemetry import metrics
from tasks.telemetry.metrics import TRIGGER, WORKER


def value(name, **labels):
    registry = TRIGGER if name.startswith("veil_upload") else WORKER
    return registry.get_sample_value(name, labels) or 0.0


class Changes:
    """The changes of samples in the block."""

    def __init__(self, *samples):
        self._samples = samples

    def __enter__(self):
        self._before = [value(name, **labels) for name, labels in self._samples]
        return self

    def __exit__(self, *_):
        after = [value(name, **labels) for name, labels in self._samples]
        self.by = [round(b - a, 6) for a, b in zip(self._before, after, strict=True)]


def a_request(**fields):
    """Return Celery's request of a message from `uploads` with these headers."""
    return type("Request", (dict,), {"delivery_info": {"routing_key": "uploads"}})(fields)


def report(**fields):
    given = {"status": "anonymized", "source": "s3://raw/a", "destination": "s3://clean/a"}
    return AnonymizeReport(**{**given, "recipe": "r", **fields})


def test_a_picture_is_counted_with_its_faces_its_stages_and_its_bytes():
    with Changes(
        ("veil_pictures_total", {"outcome": "anonymized"}),
        ("veil_faces_count", {}),
        ("veil_faces_sum", {}),
        ("veil_pictures_without_face_total", {}),
        ("veil_faces_found_by_check_total", {}),
        ("veil_stage_seconds_sum", {"stage": "detect"}),
        ("veil_read_bytes_total", {}),
        ("veil_written_bytes_total", {}),
    ) as changed:
        metrics.finished(
            report(faces=3, found_by_check=2, seconds={"detect": 0.5}, bytes_in=100, bytes_out=70),
            a_request(),
        )
    assert changed.by == [1, 1, 3, 0, 2, 0.5, 100, 70]


def test_a_picture_also_counts_for_its_route_if_that_has_a_name():
    metrics.initialize_routes(["north"])
    with Changes(
        ("veil_pictures_total", {"outcome": "anonymized"}),
        ("veil_route_pictures_total", {"route": "north", "outcome": "anonymized"}),
        ("veil_route_pictures_total", {"route": "north", "outcome": "dead"}),
    ) as changed:
        metrics.finished(report(), a_request(), "north")
        metrics.finished(report(), a_request())
        metrics.dead(UnreadableImage("no"), "north")
        metrics.dead(UnreadableImage("no"))
    assert changed.by == [2, 1, 1]


def test_a_picture_counts_as_flagged_once_and_not_where_it_is_held_or_skipped():
    reason = "faces still found in the output"
    with Changes(("veil_pictures_flagged_total", {})) as changed:
        metrics.finished(report(reason=reason), a_request())
        metrics.finished(report(status="skipped", reason=reason), a_request())
        metrics.finished(report(status="held", reason=reason), a_request())
        metrics.finished(report(), a_request())
    assert changed.by == [1]


def test_a_picture_without_a_face_counts_as_such_and_a_skipped_one_does_not():
    without = "veil_pictures_without_face_total", {}
    with Changes(without, ("veil_faces_count", {})) as changed:
        metrics.finished(report(faces=0, bytes_in=10), a_request())
        metrics.finished(report(status="skipped"), a_request())
        # A skipped picture with faces: its report was read from its receipt.
        metrics.finished(report(status="skipped", faces=3), a_request())
    assert changed.by == [1, 1]


@pytest.mark.parametrize(
    "queued_at", [None, "soon", True, math.nan, math.inf, 10**400, -(10**400), [1], {}]
)
def test_a_time_that_is_none_is_not_counted(queued_at):
    with Changes(("veil_delivery_seconds_count", {"queue": "uploads"})) as changed:
        metrics.finished(report(), a_request(**{QUEUED_AT_HEADER: queued_at}))
    assert changed.by == [0]


def test_the_way_from_the_queue_to_the_end_is_measured_by_queue():
    request = a_request(**{QUEUED_AT_HEADER: time.time() - 100})
    with Changes(
        ("veil_delivery_seconds_bucket", {"queue": "uploads", "le": "60.0"}),
        ("veil_delivery_seconds_bucket", {"queue": "uploads", "le": "300.0"}),
    ) as changed:
        metrics.finished(report(), request)
    assert changed.by == [0, 1]


def test_no_label_holds_what_a_message_brought():
    request = a_request(**{QUEUED_AT_HEADER: time.time()})
    request.delivery_info = {"routing_key": "a-queue-of-somebody"}
    with Changes(("veil_delivery_seconds_count", {"queue": "other"})) as changed:
        metrics.finished(
            report(source="s3://raw/secret-key.jpg", destination="s3://clean/secret-key.jpg"),
            request,
        )
        metrics.dead(type("StrangeError", (Exception,), {})("secret-key.jpg"))
    assert changed.by == [1]
    page = generate_latest(WORKER).decode()
    for brought in ("secret-key", "a-queue-of-somebody", "StrangeError"):
        assert brought not in page


def test_errors_are_counted_by_name_and_a_bug_as_a_bug():
    with Changes(
        ("veil_retries_total", {"error": "StorageUnavailable"}),
        ("veil_dead_total", {"error": "UnreadableImage"}),
        ("veil_dead_total", {"error": "bug"}),
        ("veil_pictures_total", {"outcome": "dead"}),
    ) as changed:
        metrics.retried(StorageUnavailable("away"))
        metrics.dead(UnreadableImage("no"))
        metrics.dead(ZeroDivisionError("ours"))
    assert changed.by == [1, 1, 1, 2]


def test_events_of_the_trigger_are_counted_by_source_and_result():
    queued = "veil_upload_events_total", {"source": "http", "result": "queued"}
    metrics.initialize_events("http")
    assert TRIGGER.get_sample_value(*queued) is not None
    with Changes(
        queued, ("veil_upload_events_total", {"source": "http", "result": "malformed"})
    ) as changed:
        metrics.count_events("http", "queued", 3)
        metrics.count_events("http", "malformed")
    assert changed.by == [3, 1]


def test_every_known_series_begins_at_zero_so_that_its_first_step_is_seen():
    for outcome in ("anonymized", "skipped", "held", "dead"):
        assert WORKER.get_sample_value("veil_pictures_total", {"outcome": outcome}) is not None
    for error in ("AccessDenied", "MalformedMessage", "StorageUnavailable", "bug"):
        assert WORKER.get_sample_value("veil_dead_total", {"error": error}) is not None
    # Permanent errors are never retried.
    assert WORKER.get_sample_value("veil_retries_total", {"error": "AccessDenied"}) is None
    # Those of commands, triggers and training end no picture.
    for error in ("TrainingFailed", "DatasetInvalid", "RunUnknown", "EventsUnavailable"):
        for name in ("veil_dead_total", "veil_retries_total"):
            assert WORKER.get_sample_value(name, {"error": error}) is None


def test_an_address_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressInUse, match=f"VEIL_METRICS: {address} can't be served"):
            metrics.serve(Settings(metrics=address), app, WORKER)


@pytest.mark.parametrize("address", ["192.0.2.1:9100", "no-such-host.invalid:9100"])
def test_an_address_that_is_not_of_this_machine_is_one_line(address):
    with pytest.raises(SettingsInvalid, match="can't be served"):
        metrics.serve(Settings(metrics=address), app, WORKER)


def test_nothing_is_served_where_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(metrics, "start_http_server", lambda *_, **__: pytest.fail("served"))
    metrics.serve(Settings(metrics=""), app, WORKER)


def test_the_library_s_default_registry_which_flower_serves_has_none_of_it():
    from prometheus_client import REGISTRY as DEFAULT

    assert b"veil_" not in generate_latest(DEFAULT)
