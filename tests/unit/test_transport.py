"""What is a task message and what is junk on the queue: nothing that is not one gets as far as Celery."""

import base64
import copy
import json
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.anonymize import LONGEST_BACKOFF_SECONDS
from tasks.app import UPLOADS
from tasks.messages import MOST_AREAS, RUN_HEADER
from tasks.s3 import LONGEST_RETRY_AFTER
from tasks.transport import LONGEST_WAIT_SECONDS, MOST_BYTES, defect, start, trusted

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=5,
)


def sent(*arguments, **options):
    """The message, as it lies on the queue, that Celery makes for these arguments."""
    app = Celery("producer", broker="memory://", set_as_current=False)
    app.send_task("veil.anonymize_image", arguments, queue=UPLOADS, **options)
    with app.connection_for_read() as connection:
        message = connection.default_channel._get(UPLOADS)
    app.close()
    return json.loads(json.dumps(message))


MESSAGE = sent("s3://raw/a.jpg")


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        sent("s3://raw/Grüße 🙂.jpg", "s3://clean/b.jpg"),
        sent(kwargs={"source": "s3://raw/a.jpg"}),
        sent("s3://raw/a.jpg", countdown=5, retries=3, time_limit=10, priority=3, expires=60),
        sent(),
        sent({"any": ["json", None, 1.5]}),
    ],
)
def test_what_celery_sends_has_no_defect(message):
    assert defect(message) is None


def changed(path, value):
    message = copy.deepcopy(MESSAGE)
    *above, last = path.split("/")
    place = message
    for name in above:
        place = place[name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return message


def body(content):
    return base64.b64encode(content if isinstance(content, bytes) else json.dumps(content).encode()).decode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("body", KeyError),
        ("body", None),
        ("body", "not base64!"),
        ("body", body(b"not JSON")),
        ("body", body(b"\xff\xfe")),
        ("body", body(b"[" * 100_000)),
        ("body", body({"args": []})),
        ("body", body([])),
        ("body", body([[], {}])),
        ("body", body(["text", {}, None])),
        ("body", body([[], [], None])),
        # What kombu's JSON would revive, and can't.
        ("body", body([[{"__type__": "datetime", "__value__": 5}], {}, None])),
        ("body", body([[{"__type__": "decimal", "__value__": "x"}], {}, None])),
        ("body", body([[{"__type__": "uuid", "__value__": {"int": "x"}}], {}, None])),
        ("body", body([[{"__type__": ["x"], "__value__": None}], {}, None])),
        ("headers", KeyError),
        ("headers", None),
        ("headers", []),
        ("headers/task", KeyError),
        ("headers/task", 5),
        ("headers/id", None),
        ("headers/retries", "many"),
        ("headers/retries", -1),
        ("properties", KeyError),
        ("properties/delivery_tag", KeyError),
        ("properties/delivery_tag", 5),
        ("properties/delivery_info", None),
        ("properties/priority", "first"),
        ("properties/priority", 1e400),
        ("properties/body_encoding", KeyError),
        ("properties/body_encoding", "utf-8"),
        ("content-type", "application/x-python-serialize"),
        ("content-type", "application/x-yaml"),
        ("content-type", None),
        ("content-encoding", "binary"),
    ],
)
def test_a_message_that_cannot_be_delivered_is_named_by_its_defect(path, value):
    reason = defect(changed(path, value))
    assert reason is not None
    assert path == "body" or path.split("/")[-1] in reason
    assert len(reason.splitlines()) == 1


@given(JSON)
def test_any_other_json_is_junk_in_one_bounded_line(value):
    reason = defect(value)
    assert reason
    assert len(reason.splitlines()) == 1
    assert len(reason) < 300


@settings(max_examples=30)
@given(
    st.sampled_from(["body", "headers", "properties", "content-type", "headers/id", "headers/x", "properties/x", "x"]),
    JSON | st.text().map(body) | JSON.map(body),
)
def test_a_changed_message_has_a_defect_or_none_and_never_raises(path, value):
    reason = defect(changed(path, value))
    assert reason is None or len(reason.splitlines()) == 1


def test_of_what_a_message_says_of_itself_only_what_veil_needs_is_passed_on():
    message = sent(
        "s3://raw/a.jpg", retries=3, priority=6, expires=60, time_limit=5, headers={RUN_HEADER: "run", "x": 1}
    )
    message["headers"] |= {"is_eager": True, "stamps": {"queue": "elsewhere"}, "hostname": "x"}
    message["properties"]["delivery_info"] = {"exchange": "elsewhere", "routing_key": "nowhere"}

    told = trusted(message, UPLOADS)

    kept = ("id", "retries", "argsrepr", RUN_HEADER)
    assert {name: told["headers"][name] for name in kept} == {name: message["headers"][name] for name in kept}
    assert not {"is_eager", "stamps", "hostname", "expires", "timelimit", "x"} & told["headers"].keys()
    assert told["properties"]["delivery_info"] == {"exchange": "", "routing_key": UPLOADS}
    assert told["properties"]["priority"] == 6
    assert json.loads(base64.b64decode(told["body"])) == [["s3://raw/a.jpg"], {}, None]
    assert defect(told) is None


@given(st.datetimes().map(str) | st.datetimes(timezones=st.timezones()).map(datetime.isoformat) | JSON)
def test_any_start_is_now_or_a_time_not_long_ahead(eta):
    begins = start(eta)
    if begins is not None:
        assert 0 < datetime.fromisoformat(begins).timestamp() - datetime.now(UTC).timestamp() <= LONGEST_WAIT_SECONDS


@pytest.mark.parametrize("seconds", [1, LONGEST_BACKOFF_SECONDS + LONGEST_RETRY_AFTER])
def test_the_longest_pause_of_a_retry_is_waited_for(seconds):
    eta = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    assert start(eta) == eta
    assert start(eta.removesuffix("+00:00")) == eta, "without a zone it is UTC, as for Celery"


def test_a_message_with_the_most_options_is_far_from_too_large():
    areas = [[999_990, 999_990, 1_000_000, 1_000_000]] * MOST_AREAS
    message = sent("s3://raw/" + "k" * 1024, "s3://clean/" + "k" * 1024, {"exempt": areas, "extra": areas})
    assert len(json.dumps(message)) < MOST_BYTES / 2


@given(st.lists(JSON, max_size=3), st.dictionaries(st.text(), JSON, max_size=3))
def test_arguments_are_passed_on_as_they_are(arguments, named):
    message = changed("body", body([arguments, named, {}]))
    told = json.loads(base64.b64decode(trusted(message, UPLOADS)["body"]))
    assert json.dumps(told) == json.dumps([arguments, named, None])
