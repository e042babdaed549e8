"""Envelopes: every form in which Celery sends a task is taken; other items have a defect."""

import base64
import bz2
import copy
import gzip
import json
import lzma
import pickle
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery
from celery.worker.strategy import proto1_to_proto2
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import serialization

from tasks.anonymize import LONGEST_BACKOFF_SECONDS
from tasks.delivery.envelopes import (
    MAX_DELAY_SECONDS,
    MAX_ID_LENGTH,
    MAX_MESSAGE_BYTES,
    MAX_NESTING,
    MAX_SAMPLE_LENGTH,
    celery_message,
    read,
    start_time,
)
from tasks.messages import MAX_AREAS, QUEUED_AT_HEADER, REFUSED_HEADER, RUN_HEADER, UPLOADS
from tasks.representation import MAX_SHOWN
from tasks.storage.aws_errors import LONGEST_RETRY_AFTER

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=5,
)
SOURCE = "s3://raw/a.jpg"


def sent(*arguments, conf=None, task="veil.anonymize_image", **options):
    """Return the message that Celery puts on the queue for these arguments."""
    app = Celery("producer", broker="memory://", set_as_current=False)
    app.conf.update(conf or {})
    app.send_task(task, arguments, queue=UPLOADS, **options)
    with app.connection_for_read() as connection:
        message = connection.default_channel._get(UPLOADS)
    app.close()
    return json.loads(json.dumps(message))


def envelope_of(message):
    item = json.dumps(message).encode()
    return read(item, len(item))


def delivered(message):
    """Return the message that Celery receives for `message`, and the arguments in it."""
    item = json.dumps(message).encode()
    received = celery_message(item, len(item), UPLOADS, "tag")
    arguments, named, _ = json.loads(base64.b64decode(received["body"]))
    return received, arguments, named


def defect(message):
    return envelope_of(message).defect


MESSAGE = sent(SOURCE)


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        sent("s3://raw/Grüße 🙂.jpg", "s3://clean/b.jpg"),
        sent(kwargs={"source": SOURCE}),
        sent(SOURCE, countdown=5, retries=3, time_limit=10, priority=3, expires=60),
        sent(),
        sent({"any": ["json", None, 1.5]}),
        sent(datetime.now(UTC)),
    ],
)
def test_a_message_of_celery_has_no_defect(message):
    assert defect(message) is None


CONFIGURATIONS = [
    {"task_compression": compression, "task_protocol": protocol}
    for compression in (None, "gzip", "zlib", "bzip2", "bzip", "lzma", "xz")
    for protocol in (1, 2)
]


@pytest.mark.parametrize(
    "conf", CONFIGURATIONS, ids=lambda conf: f"{conf['task_compression']}-{conf['task_protocol']}"
)
def test_a_message_of_any_protocol_and_compression_is_taken(conf):
    message = sent(
        SOURCE, None, {"method": "fill"}, conf=conf, kwargs={"any": 1}, task_id="an id", retries=2
    )
    received, arguments, named = delivered(message)

    assert (arguments, named) == ([SOURCE, None, {"method": "fill"}], {"any": 1})
    headers = received["headers"]
    assert (headers["id"], headers["task"], headers["retries"]) == (
        "an id",
        "veil.anonymize_image",
        2,
    )
    assert not {REFUSED_HEADER, "compression"} & headers.keys()
    assert headers["argsrepr"] == f"{SOURCE} {{'method': 'fill'}}"


def test_a_message_of_protocol_1_is_read_as_celery_reads_it():
    message = sent(
        SOURCE, conf={"task_protocol": 1}, countdown=30, kwargs={"destination": "s3://clean/b.jpg"}
    )
    body = json.loads(base64.b64decode(message["body"]))
    (arguments, named, _), headers, *_ = proto1_to_proto2(
        type("Message", (), {"headers": {}}), copy.deepcopy(body)
    )
    received, *passed = delivered(message)
    assert passed == [arguments, named]
    assert {name: received["headers"][name] for name in ("task", "id", "eta", "retries")} == {
        name: headers[name] for name in ("task", "id", "eta", "retries")
    }


def packed(content, method="gzip", compression=None):
    message = sent(SOURCE, conf={"task_compression": method})
    return changed(
        "body", body(content), message | {"headers": message["headers"] | (compression or {})}
    )


def test_a_body_of_the_gzip_format_is_taken_too():
    assert defect(packed(gzip.compress(json.dumps([[SOURCE], {}, None]).encode()))) is None


@pytest.mark.parametrize(
    ("method", "pack"), [("gzip", zlib.compress), ("bzip2", bz2.compress), ("lzma", lzma.compress)]
)
def test_a_body_does_not_unpack_to_more_than_the_limit(method, pack):
    bomb = pack(b"[" + b" " * (24 << 20) + b"]")
    assert len(bomb) < MAX_MESSAGE_BYTES / 2
    message = packed(bomb, method)
    tracemalloc.start()
    try:
        assert "unpacks to more than 1,048,576 bytes" in defect(message)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    whole = pack(json.dumps([["x" * (MAX_MESSAGE_BYTES - 20)], {}, None]).encode())
    assert defect(packed(whole, method)) is None


def test_a_body_that_needs_much_memory_to_unpack_is_refused():
    small = lzma.compress(b"[[], {}, {}]", lzma.FORMAT_ALONE)
    greedy = small[:1] + (1 << 30).to_bytes(4, "little") + small[5:]  # the size of the dictionary
    assert "lzma" in defect(packed(greedy, "lzma"))


@pytest.mark.parametrize(
    "change", [lambda whole: whole[:-3], lambda whole: whole + b"x", lambda _: b"no such thing"]
)
@pytest.mark.parametrize(
    ("method", "pack"), [("gzip", zlib.compress), ("bzip2", bz2.compress), ("lzma", lzma.compress)]
)
def test_a_damaged_body_is_refused_and_the_task_id_is_known(method, pack, change):
    message = packed(change(pack(json.dumps([[SOURCE], {}, None]).encode())), method)
    assert defect(message).startswith("body: ")
    assert envelope_of(message).task_id == message["headers"]["id"]


@pytest.mark.parametrize(
    "compression", ["application/zstd", "application/x-brotli", "x", ["gzip"], 5]
)
def test_another_compression_is_refused_by_name(compression):
    assert "headers.compression" in defect(
        packed(b"\x28\xb5\x2f\xfd", compression={"compression": compression})
    )


class Forbidden:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack", "x-unknown"])
def test_a_message_of_another_serializer_is_refused_by_name_and_never_unpickled(
    serializer, protocol
):
    message = sent(SOURCE, conf={"task_protocol": protocol})
    message["content-type"] = {
        "pickle": "application/x-python-serialize",
        "yaml": "application/x-yaml",
        "msgpack": "application/x-msgpack",
    }.get(serializer, serializer)
    message["content-encoding"] = "binary"
    message["body"] = body(pickle.dumps(Forbidden()))
    envelope = envelope_of(message)
    assert "content-type" in envelope.defect
    assert "task_serializer" in envelope.defect
    assert (envelope.task_id, envelope.arguments) == (message["properties"]["correlation_id"], [])


def test_the_content_type_of_pickle_is_the_one_of_kombu():
    assert serialization.registry.name_to_type["pickle"] == "application/x-python-serialize"


@pytest.mark.parametrize("encoding", ["utf-8", None, KeyError])
def test_a_body_that_is_not_packed_as_base64_is_taken(encoding):
    message = changed("properties/body_encoding", encoding)
    message["body"] = json.dumps([["s3://raw/Grüße.jpg"], {}, None], ensure_ascii=False)
    assert delivered(message)[1] == ["s3://raw/Grüße.jpg"]


@pytest.mark.parametrize("charset", ["UTF-8", "utf8", "us-ascii", KeyError])
def test_a_charset_that_is_utf_8_is_taken(charset):
    assert defect(changed("content-encoding", charset)) is None


@pytest.mark.parametrize(
    "path",
    [
        "headers/retries",
        "headers/root_id",
        "headers/origin",
        "properties/delivery_tag",
        "properties/delivery_info",
        "properties/priority",
        "headers/argsrepr",
    ],
)
def test_a_field_that_veil_does_not_need_may_be_missing(path):
    message = copy.deepcopy(MESSAGE)
    above, name = path.split("/")
    message[above].pop(name, None)
    assert defect(message) is None


@pytest.mark.parametrize(
    "task", ["shop.resize", "celery.map", "celery.backend_cleanup", "x" * 5000]
)
def test_another_task_is_refused_by_name(task):
    message = sent(SOURCE, task=task, reply_to="elsewhere")
    assert task[:90] in defect(message)
    assert len(defect(message)) < 300
    received, arguments, _ = delivered(message)
    assert received["headers"]["task"] == "veil.anonymize_image"
    assert received["headers"]["id"] == message["headers"]["id"]
    assert arguments == [], "they name no picture, and may be secret"


def test_an_argument_named_self_is_passed_on_under_another_name():
    assert delivered(sent(SOURCE, kwargs={"self": 5}))[2] == {"argument self": 5}


def test_the_readable_parts_of_a_message_are_passed_on_with_its_defect():
    message = changed("headers/retries", "many")
    received, arguments, _ = delivered(message)
    refused = received["headers"][REFUSED_HEADER]
    assert "retries" in refused["defect"]
    assert SOURCE in refused["sample"]
    assert arguments == [SOURCE]
    assert received["headers"]["retries"] == 0
    assert received["headers"]["ignore_result"] is False


def test_a_sender_cannot_mark_a_message_as_refused():
    message = sent(SOURCE, headers={REFUSED_HEADER: {"defect": "x", "sample": "x"}})
    assert REFUSED_HEADER not in delivered(message)[0]["headers"]


def test_a_message_without_an_id_gets_one_from_its_content():
    first, second, other = (
        celery_message(item, len(item), UPLOADS, "t") for item in (b"junk", b"junk", b"more junk")
    )
    assert first["headers"]["id"] == second["headers"]["id"] != other["headers"]["id"]
    assert first["headers"]["ignore_result"] is True


@pytest.mark.parametrize("protocol", [1, 2])
def test_the_id_of_a_message_that_is_too_large_is_known(protocol):
    item = json.dumps(
        sent("x" * MAX_MESSAGE_BYTES, conf={"task_protocol": protocol}, task_id="an id")
    ).encode()
    envelope = read(item[-MAX_MESSAGE_BYTES:], len(item))
    assert f"{len(item):,} bytes, the limit is 1,048,576" in envelope.defect
    assert envelope.task_id == "an id"


@pytest.mark.parametrize("id_", ["", "x" * (MAX_ID_LENGTH + 1), "\ud800", 5, None])
def test_an_invalid_id_is_refused(id_):
    message = changed("headers/id", id_)
    message["properties"]["correlation_id"] = id_
    assert "headers.id" in defect(message)
    assert envelope_of(message).task_id is None


def test_the_nesting_of_arguments_is_limited():
    def nested(levels):
        value = "x"
        for _ in range(levels):
            value = [value]
        return changed("body", body([value, {}, None]))

    assert defect(nested(MAX_NESTING)) is None
    assert "within each other" in defect(nested(MAX_NESTING + 1))
    assert defect(nested(900)) is not None


NESTED = json.loads("[" * 900 + "]" * 900)


@pytest.mark.parametrize(
    "path",
    [
        "content-type",
        "content-encoding",
        "body",
        "x",
        "headers",
        "headers/id",
        "headers/task",
        "headers/origin",
        "headers/compression",
        "headers/root_id",
        "headers/argsrepr",
        "headers/eta",
        "headers/ignore_result",
        f"headers/{RUN_HEADER}",
        f"headers/{QUEUED_AT_HEADER}",
        "properties",
        "properties/body_encoding",
        "properties/priority",
    ],
)
@pytest.mark.parametrize(
    "value",
    [NESTED, "\ud800\x1b" * 5000, {"\ud800" * 5000: NESTED}],
    ids=["nested", "text", "named"],
)
def test_any_value_in_any_part_of_a_message_is_bounded(path, value):
    received = delivered(changed(path, value))[0]
    refused = received["headers"].get(REFUSED_HEADER, {"defect": "", "sample": ""})
    assert all(len(text) <= MAX_SAMPLE_LENGTH and text.isprintable() for text in refused.values())
    assert len(json.dumps(received)) < 20_000
    json.dumps(received).encode()


SECRETS = (
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "hunter2",
    "Zm9vOmJhcg==",
)


@pytest.mark.parametrize(
    "item",
    [
        json.dumps({"aws_secret": SECRETS[1], "password": SECRETS[2]}).encode(),
        json.dumps([SECRETS[0]]).encode(),
        json.dumps(SECRETS[0]).encode(),
        f"AWS_SECRET_ACCESS_KEY={SECRETS[1]}".encode(),
        f"password: {SECRETS[2]}".encode(),
        f"Authorization: Basic {SECRETS[3]}".encode(),
        f"{SECRETS[0]} and {SECRETS[1]}".encode(),
        f"redis://:{SECRETS[2]}@host/0".encode(),
        json.dumps(
            sent(SECRETS[2], SECRETS[0], task="shop.pay", kwargs={"key": SECRETS[1]})
        ).encode(),
    ],
)
def test_a_sample_contains_no_secret_of_a_message(item):
    envelope = read(item, len(item))
    assert envelope.defect
    received = json.dumps(celery_message(item, len(item), UPLOADS, "tag"))
    for secret in SECRETS:
        assert secret not in envelope.sample + envelope.defect + received


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_sample_is_one_short_printable_line(item):
    envelope = read(item, len(item))
    assert envelope.sample
    assert len(envelope.sample) <= MAX_SAMPLE_LENGTH
    assert envelope.sample.isprintable()
    assert envelope.defect.isprintable()


def test_a_sample_names_the_sender():
    message = sent(SOURCE, task="shop\n\x1b[31m.resize")
    assert message["headers"]["origin"] in envelope_of(message).sample
    assert envelope_of(message).sample.isprintable()
    assert "\x1b" not in envelope_of(message).defect


def changed(path, value, message=MESSAGE):
    message = copy.deepcopy(message)
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
    return base64.b64encode(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    ).decode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("body", KeyError),
        ("body", None),
        ("body", "not base64!"),
        ("body", body(b"not JSON")),
        ("body", body(b"\xff\xfe")),
        ("body", body(b"[" * 100_000)),
        ("body", body({"no": "arguments"})),
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
        ("headers/retries", 10**4299),
        ("properties", KeyError),
        ("properties/priority", "first"),
        ("properties/priority", 1e400),
        ("properties/body_encoding", "rot13"),
        ("properties/body_encoding", ["base64"]),
        ("content-type", "application/x-python-serialize"),
        ("content-type", "application/x-yaml"),
        ("content-type", None),
        ("content-encoding", "binary"),
    ],
)
def test_the_defect_of_a_message_names_the_part(path, value):
    reason = defect(changed(path, value))
    assert reason is not None
    assert path.split("/")[-1] in reason or reason.startswith("body: ")
    assert len(reason.splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("content-type", KeyError, "content-type: it is missing, workers take application/json"),
        ("content-type", 5, "content-type: a JSON number, workers take application/json"),
        ("headers", None, "headers.task: "),
        ("properties", None, "properties: an object is expected"),
    ],
)
def test_a_sender_without_celery_reads_the_words_of_json(path, value, reason):
    plain = {**MESSAGE, "body": json.dumps([["s3://raw/a.jpg"], {}, {}]), "properties": {}}
    assert defect(changed(path, value, plain)).startswith(reason)


@given(JSON)
def test_any_other_json_is_refused_in_one_bounded_line(value):
    reason = defect(value)
    assert reason
    assert len(reason.splitlines()) == 1
    assert len(reason) < 300


@settings(max_examples=30)
@given(
    st.sampled_from(
        [
            "body",
            "headers",
            "properties",
            "content-type",
            "headers/id",
            "headers/x",
            "properties/x",
            "x",
        ]
    ),
    JSON | st.text().map(body) | JSON.map(body),
)
def test_a_changed_message_has_a_defect_or_none_and_never_raises(path, value):
    reason = defect(changed(path, value))
    assert reason is None or len(reason.splitlines()) == 1


def test_only_the_fields_that_veil_needs_are_passed_on():
    message = sent(
        SOURCE, retries=3, priority=6, expires=60, time_limit=5, headers={RUN_HEADER: "run", "x": 1}
    )
    message["headers"] |= {"is_eager": True, "stamps": {"queue": "elsewhere"}, "hostname": "x"}
    message["properties"]["delivery_info"] = {"exchange": "elsewhere", "routing_key": "nowhere"}

    received, arguments, named = delivered(message)

    kept = ("id", "retries", RUN_HEADER)
    assert {name: received["headers"][name] for name in kept} == {
        name: message["headers"][name] for name in kept
    }
    assert (
        not {"is_eager", "stamps", "hostname", "expires", "timelimit", "x"}
        & received["headers"].keys()
    )
    assert received["properties"]["delivery_info"] == {"exchange": "", "routing_key": UPLOADS}
    assert (received["properties"]["delivery_tag"], received["properties"]["priority"]) == (
        "tag",
        6,
    )
    assert (arguments, named) == ([SOURCE], {})
    assert defect(received) is None


def test_the_representation_of_arguments_is_bounded():
    areas = [[999_990, 999_990, 1_000_000, 1_000_000]] * MAX_AREAS
    message = sent(SOURCE, None, {"extra": areas}, kwargs={"exempt": areas}, argsrepr="x" * 100_000)
    headers = delivered(message)[0]["headers"]
    assert headers["argsrepr"].startswith(SOURCE)
    assert len(headers["argsrepr"]) == MAX_SHOWN
    assert len(headers["kwargsrepr"]) <= MAX_SHOWN + 20
    longest = ["s3://" + "b" * 63 + "/" + "k" * 1024, "s3://" + "c" * 63 + "/" + "k" * 1024]
    assert delivered(sent(*longest))[0]["headers"]["argsrepr"] == " → ".join(longest)


@given(
    st.datetimes().map(str) | st.datetimes(timezones=st.timezones()).map(datetime.isoformat) | JSON
)
def test_a_message_starts_now_or_within_the_longest_delay(eta):
    begins = start_time(eta)
    if begins is not None:
        assert (
            0
            < datetime.fromisoformat(begins).timestamp() - datetime.now(UTC).timestamp()
            <= MAX_DELAY_SECONDS
        )


@pytest.mark.parametrize("seconds", [1, LONGEST_BACKOFF_SECONDS + LONGEST_RETRY_AFTER])
def test_the_longest_pause_of_a_retry_is_kept(seconds):
    eta = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
    assert start_time(eta) == eta
    assert start_time(eta.removesuffix("+00:00")) == eta, "without a zone it is UTC, as for Celery"


def test_the_largest_options_fit_in_a_message():
    areas = [[999_990, 999_990, 1_000_000, 1_000_000]] * MAX_AREAS
    message = sent(
        "s3://raw/" + "k" * 1024, "s3://clean/" + "k" * 1024, {"exempt": areas, "extra": areas}
    )
    assert len(json.dumps(message)) < MAX_MESSAGE_BYTES / 2


@given(st.lists(JSON, max_size=3), st.dictionaries(st.text(), JSON, max_size=3))
def test_arguments_are_passed_on_unchanged(arguments, named):
    passed = delivered(changed("body", body([arguments, named, {}])))[1:]
    renamed = {"argument self" if name == "self" else name: value for name, value in named.items()}
    assert json.dumps(passed) == json.dumps((arguments, renamed))
