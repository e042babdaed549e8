"""The task without a queue: its pauses, its arguments, and the configuration of the app."""

import inspect
import json
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from tasks.anonymize import (
    FIRST_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    MAX_RETRIES,
    _bounded_text,
    _log_values,
    _request_fields,
    _stored_options,
    anonymize_image,
    backoff_seconds,
)
from tasks.app import _add_headers, app, create_app
from tasks.errors import InvalidRequest
from tasks.messages import (
    BACKFILL,
    MAX_AREAS,
    MAX_BOXES,
    QUEUES,
    TASK,
    UPLOADS,
    AnonymizeOptions,
    AnonymizeReport,
    AnonymizeRequest,
)
from tasks.settings import Settings


class Highest(random.Random):
    """A generator that returns the upper bound."""

    def uniform(self, a, b):
        return b


@pytest.mark.parametrize(
    ("retries", "longest"),
    [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 60), (7, 60), (100, 60)],
)
def test_pauses_double_up_to_a_cap(retries, longest):
    assert backoff_seconds(retries, Highest()) == longest


@given(st.integers(0, 200), st.integers())
def test_a_pause_is_never_negative_nor_over_its_cap(retries, seed):
    pause = backoff_seconds(retries, random.Random(seed))
    assert 0 <= pause <= min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**retries)


def test_pauses_are_spread_over_their_whole_range():
    chance = random.Random(0)
    pauses = [backoff_seconds(4, chance) for _ in range(400)]
    assert min(pauses) < 1
    assert max(pauses) > 15


def test_all_pauses_together_outlast_a_restart_of_a_server():
    expected = sum(backoff_seconds(retries, Highest()) for retries in range(MAX_RETRIES)) / 2
    assert expected > 60


JSON = st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=2)
NAMES = st.text() | st.sampled_from(["self", "task", "argument_0", "args", "kwargs", "cls"])


@given(st.lists(JSON, max_size=5), st.dictionaries(NAMES, JSON, max_size=3))
def test_any_arguments_are_accepted_so_that_they_can_be_refused_by_name(arguments, named):
    inspect.signature(anonymize_image.run).bind(*arguments, **named)
    fields = _request_fields(arguments, named)
    assert sorted(map(repr, fields.values())) == sorted(map(repr, [*arguments, *named.values()]))


def test_repeated_and_surplus_arguments_are_refused():
    assert _request_fields(["s3://raw/a"], {"destination": "s3://clean/b"}) == {
        "source": "s3://raw/a",
        "destination": "s3://clean/b",
    }
    with pytest.raises(InvalidRequest, match="again"):
        AnonymizeRequest.parse(**_request_fields(["s3://raw/a.jpg"], {"source": "s3://raw/b.jpg"}))
    with pytest.raises(InvalidRequest, match="argument 4"):
        AnonymizeRequest.parse(
            **_request_fields(["s3://raw/a.jpg", None, None, "s3://raw/b.jpg"], {})
        )


@pytest.mark.parametrize(
    ("arguments", "named", "match"),
    [
        (("raw/a.jpg",), {}, "is not an address like s3://BUCKET/KEY"),
        (("s3://raw/folder/",), {}, "names no object"),
        ((), {}, "source: must be given"),
        (("s3://raw/a.jpg",), {"options": {"regoin": 1.0}}, "regoin: unknown, choose from method"),
        (("s3://raw/a.jpg", None, {"region": 2}), {}, "must be top, full, or a number"),
    ],
)
def test_a_producer_is_told_at_once_what_no_worker_accepts(arguments, named, match):
    with pytest.raises(InvalidRequest, match=match):
        anonymize_image.delay(*arguments, **named)
    with pytest.raises(InvalidRequest, match=match):
        anonymize_image.s(*arguments, **named).apply_async(queue=BACKFILL)


def test_options_are_sent_as_objects_too():
    options = AnonymizeOptions(region="full", extra=((1, 2, 3, 4),))
    assert json.loads(kombu_json.dumps(options)) == options.to_json()


@given(st.text() | st.integers() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()))
def test_any_value_of_a_message_becomes_bounded_text_in_utf_8(value):
    shown = _bounded_text(value)
    assert shown.encode("utf-8").decode() == shown
    assert len(_bounded_text(str(value) * 2000)) < 20_000


def test_the_longest_address_is_not_cut():
    uri = f"s3://{'b' * 63}/{'k' * 1024}"
    assert _bounded_text(uri) == uri


MOST = {
    name: [[999_990, 999_990, 1_000_000, 1_000_000]] * MAX_AREAS for name in ("exempt", "extra")
}


def test_a_dead_letter_keeps_the_largest_options():
    assert AnonymizeOptions.of(MOST).to_json() == MOST
    assert _stored_options(MOST) == MOST


@pytest.mark.parametrize(
    "options", [{"extra": ["x" * 200_000]}, {"at": datetime.now(UTC)}, {"at": [datetime.now(UTC)]}]
)
def test_a_dead_letter_keeps_invalid_options_as_bounded_text(options):
    kept = _stored_options(options)
    assert isinstance(kept, str)
    assert len(kept) <= 1100


def test_a_report_and_its_log_line_are_bounded():
    boxes = [[99_999, 99_999, 100_000, 100_000]] * MAX_BOXES
    report = AnonymizeReport(
        status="anonymized",
        source="s3://raw/" + "k" * 1024,
        destination="s3://clean/" + "k" * 1024,
        recipe="r",
        faces=10_000,
        boxes_xyxy=boxes,
        left=10_000,
        left_xyxy=boxes,
        options=MOST,
    )
    assert len(json.dumps(report.to_json() | {"options": {}})) < 12_000
    assert len(json.dumps(_log_values(report))) < 4_000
    assert len(repr(report)) < 2_000


def test_options_are_an_object_in_the_log_with_few_areas():
    def logged(options):
        return _log_values(
            AnonymizeReport(status="held", source="s", destination="d", recipe="r", options=options)
        )

    few = {"region": 1, "release": "etag", "extra": [[0, 0, 9, 9]]}
    assert logged(few)["options"] == few
    assert "areas_left_out" not in logged(few)
    most = logged(MOST)
    assert {name: len(areas) for name, areas in most["options"].items()} == {
        "exempt": 20,
        "extra": 20,
    }
    assert most["areas_left_out"] == 2 * MAX_AREAS - 40
    assert len(MOST["extra"]) == MAX_AREAS
    assert "options" not in logged(None)


def test_uploads_come_before_backfill():
    assert QUEUES == (UPLOADS, BACKFILL)
    assert [queue.name for queue in app.conf.task_queues] == list(QUEUES)
    # A queue of its own key: with the default one, a message for one queue would reach both.
    assert [(queue.exchange.name, queue.routing_key) for queue in app.conf.task_queues] == [
        (q, q) for q in QUEUES
    ]
    assert app.conf.broker_transport_options["queue_order_strategy"] == "priority"
    assert app.conf.task_default_queue == UPLOADS


ROUTED = """
[routes.street]
source = "s3://street"
destination = "s3://clean/street"
priority = "high"

[routes.school]
source = "s3://school"
destination = "s3://clean/school"

[routes.archive]
source = "s3://archive"
destination = "s3://clean/archive"
priority = "low"
"""


@pytest.fixture
def routed_app(tmp_path):
    path = tmp_path / "routes.toml"
    path.write_text(ROUTED)
    created = create_app(Settings(routes_file=str(path)))
    yield created
    created.close()


@pytest.mark.parametrize(
    ("arguments", "named", "priority"),
    [
        (("s3://street/a.jpg",), {}, 0),
        (("s3://school/a.jpg", "s3://clean/school/b.jpg"), {}, 3),
        ((), {"source": "s3://archive/a.jpg"}, 6),
        (("s3://elsewhere/a.jpg",), {}, 0),
    ],
)
def test_a_message_has_the_priority_of_its_route(routed_app, arguments, named, priority):
    options = routed_app.amqp.router.route({}, TASK, arguments, named)
    assert (options["queue"].name, options["priority"]) == (UPLOADS, priority)
    options = routed_app.amqp.router.route({"queue": BACKFILL}, TASK, arguments, named)
    assert (options["queue"].name, options["priority"]) == (BACKFILL, priority)


def test_a_priority_that_the_sender_names_counts(routed_app):
    source = ("s3://archive/a.jpg",)
    assert routed_app.amqp.router.route({"priority": 0}, TASK, source, {})["priority"] == 0


@pytest.mark.parametrize("source", [None, 1, "archive/a.jpg", [], "s3://archive"])
def test_a_message_that_names_no_picture_has_no_priority(routed_app, source):
    options = routed_app.amqp.router.route({}, TASK, (source,), {})
    assert options["queue"].name == UPLOADS
    assert "priority" not in options
    assert "priority" not in routed_app.amqp.router.route({}, "celery.ping", (), {})


def test_a_message_is_acknowledged_only_after_its_picture():
    assert app.conf.task_acks_late is True
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.worker_prefetch_multiplier == 1
    assert anonymize_image.acks_late is True


def test_only_json_is_read():
    assert app.conf.accept_content == ["json"]
    assert app.conf.result_accept_content == ["json"]


def test_the_settings_of_delivery_are_in_the_configuration():
    created = create_app(Settings(lease_seconds=7, grace_seconds=8))
    assert created.conf.broker_transport_options["lease_seconds"] == 7
    assert created.conf.worker_soft_shutdown_timeout == 8
    created.close()


def test_an_app_is_created_without_a_connection_and_does_not_show_its_password():
    created = create_app(Settings(redis_url="redis://:hunter2@192.0.2.1:1/0"))
    assert "hunter2" not in repr(created)
    assert "hunter2" not in created.conf.humanize(with_defaults=False, censored=True)
    assert created.conf.broker_url == "redis://:hunter2@192.0.2.1:1/0"
    created.close()


def test_the_task_has_a_readable_name():
    assert anonymize_image.name == "veil.anonymize_image"
    assert app.tasks["veil.anonymize_image"].name == anonymize_image.name


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["s3://raw/a b.jpg"], "s3://raw/a b.jpg"),
        (["s3://raw/a", "s3://clean/b"], "s3://raw/a → s3://clean/b"),
        (["s3://raw/a", None, {"method": "fill"}], "s3://raw/a {'method': 'fill'}"),
        ([], ""),
        ([3, None], "(3, None)"),
        ([["s3://raw/a"]], "(['s3://raw/a'],)"),
    ],
)
def test_flower_shows_addresses_unquoted_and_other_arguments_as_in_python(arguments, shown):
    headers = {"argsrepr": repr(tuple(arguments))}
    _add_headers(sender=TASK, body=(arguments, {}, {}), headers=headers)
    assert headers["argsrepr"] == shown
    other = {"argsrepr": "as it was"}
    _add_headers(sender="somebody.elses", body=(arguments, {}, {}), headers=other)
    assert other["argsrepr"] == "as it was"


@pytest.mark.parametrize(
    "call",
    [anonymize_image, lambda source: anonymize_image.apply((source,))],
    ids=["call", "apply"],
)
def test_outside_of_a_worker_a_call_says_how_to_put_a_picture_on_the_queue(call, capfd):
    with pytest.raises(RuntimeError, match=r"anonymize_image\.delay\(…\), or use worker\.Anonym"):
        call("s3://raw/a.jpg")
    assert capfd.readouterr() == ("", "")
