"""Messages of a picture process: data of the expected form, or refused."""

import json
import os
import resource
import socket
import struct
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.messages import AnonymizeOptions
from worker.detection.faces import Detections, Sightings
from worker.process.channel import (
    ERRORS,
    MAX_MESSAGE_BYTES,
    Bug,
    Canvases,
    Channel,
    ChannelClosed,
    ChannelTimeout,
    Faces,
    Failure,
    Kind,
    ProtocolBroken,
    Ready,
    Result,
    Stage,
    Work,
    packed,
    packed_answers,
    parsed,
    parsed_answers,
    read_file,
    write_file,
)

FACES = Faces([[1.0, 2.0, 3.5, 4.25]], [0.875])
NONE = Faces([], [])
RESULT = Result(
    size=12,
    format="PNG",
    width=3,
    height=2,
    faces=FACES,
    verdict="off",
    notes=["the GIF had no end marker"],
    added=NONE,
    remaining=NONE,
    reason=None,
    seconds={"decode": 0.5},
    detected=1,
    near=0,
)


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    yield Channel(one), Channel(other), other
    one.close()
    other.close()


@pytest.mark.parametrize(
    "message",
    [
        RESULT,
        Failure("UnreadableImage", "damaged"),
        Failure("MemoryError", ""),
        Bug("KeyError", "no", ["a.py:1 f"]),
        Ready(None),
        Ready("no filter"),
        Stage("masking"),
        Canvases([[64, 128], [128, 192]]),
        Canvases([[64, 128]], 1),
        replace(RESULT, faces=Faces([[1.0, 2.0, 3.5, 4.25]], [0.875], [2])),
        Work(5, AnonymizeOptions(region=0.9, extra=((1, 2, 3, 4),)), False),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was(ends, message):
    one, other, _ = ends
    one.send(*packed(message))
    assert parsed(*other.receive(5)) == message


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": "12"},
        {"size": 12.5},
        {"size": 1 << 50},
        {"format": "EXE"},
        {"width": 0},
        {"width": 10_000_000},
        {"faces": {"boxes_xyxy": [[1, 2, 3]], "scores": [0.5]}},
        {"faces": {"boxes_xyxy": [[1, 2, 3, 4]], "scores": []}},
        {"faces": {"boxes_xyxy": [[1, 2, 3, 1e300]], "scores": [0.5]}},
        {"faces": {"boxes_xyxy": [[1, 2, 3, 4]], "scores": [1.5]}},
        {"faces": {"boxes_xyxy": [[1, 2, 3, 4]], "scores": [0.5], "labels": []}},
        {"faces": {"boxes_xyxy": [[1, 2, 3, 4]], "scores": [0.5], "labels": [-1]}},
        {"faces": {"boxes_xyxy": [[1, 2, 3, 4]], "scores": [0.5], "labels": ["plate"]}},
        {"faces": None},
        {"verdict": "fine"},
        {"reason": "s3://secret"},
        {"seconds": {"decode": -1}},
        {"seconds": {"fetch": 1}},
        {"seconds": {"decode": "soon"}},
        {"detected": True},
        {"also": 1},
    ],
)
def test_a_result_of_another_form_is_refused(change):
    values = json.loads(packed(RESULT)[1]) | change
    with pytest.raises(ProtocolBroken, match="RESULT"):
        parsed(Kind.RESULT, json.dumps(values).encode())


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_numbers_that_are_not_finite_are_refused(number):
    content = packed(RESULT)[1].replace(b"0.875", number)
    with pytest.raises(ProtocolBroken):
        parsed(Kind.RESULT, content)


@pytest.mark.parametrize(
    "error", ["StorageUnavailable", "QueueUnavailable", "Poison", "SystemExit", "object", ""]
)
def test_no_error_but_those_of_the_anonymizer_can_be_raised(error):
    assert error not in ERRORS
    with pytest.raises(ProtocolBroken):
        parsed(Kind.FAILURE, json.dumps({"error": error, "message": ""}).encode())


@pytest.mark.parametrize("kind", [Kind.ANSWER, Kind.REFUSAL])
def test_a_kind_without_a_form_is_refused(kind):
    with pytest.raises(ProtocolBroken):
        parsed(kind, b"{}")


@given(kind=st.sampled_from(Kind), content=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(kind, content):
    try:
        parsed(kind, content)
    except ProtocolBroken:
        pass


def test_a_message_that_is_too_large_is_refused_before_it_is_read(ends):
    one, _, raw = ends
    raw.sendall(struct.pack("<BI", Kind.RESULT, MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ProtocolBroken, match="bytes"):
        one.receive(5)


def test_a_message_of_an_unknown_kind_is_refused(ends):
    one, _, raw = ends
    raw.sendall(struct.pack("<BI", 99, 0))
    with pytest.raises(ProtocolBroken, match="99"):
        one.receive(5)


def test_bytes_that_drip_do_not_extend_the_time_limit(ends):
    one, _, raw = ends
    ended = threading.Event()

    def drip():
        raw.sendall(struct.pack("<BI", Kind.RESULT, 100))
        while not ended.wait(0.05):
            raw.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    with pytest.raises(ChannelTimeout):
        one.receive(0.3)
    assert time.monotonic() - began < 3
    ended.set()
    thread.join()


def test_the_end_of_the_other_side_is_told_from_a_time_limit(ends):
    one, other, _ = ends
    with pytest.raises(ChannelTimeout):
        one.receive(0.01)
    other.close()
    with pytest.raises(ChannelClosed):
        one.receive(1)
    with pytest.raises(ChannelClosed):
        one.send(Kind.REFUSAL)


def test_labels_arrive_by_their_place_and_an_unknown_one_is_refused():
    found = Detections(
        np.ones((2, 4), np.float32), np.ones(2, np.float32), labelled=np.array(["plate", "FACE"])
    )
    faces = Faces.of(found, ("FACE", "plate"))
    assert faces.labels == [1, 0]
    assert faces.detections(("FACE", "plate")).labels.tolist() == ["plate", "FACE"]
    with pytest.raises(ProtocolBroken, match="unknown label"):
        faces.detections(("FACE",))


@pytest.fixture
def file_in_memory():
    file = os.memfd_create("pictures")
    yield file
    os.close(file)


def test_a_file_in_memory_is_read_as_far_as_it_was_asked_for_and_never_less(file_in_memory):
    content = bytes(range(256)) * 300
    write_file(file_in_memory, content)
    assert read_file(file_in_memory, len(content)) == content
    assert read_file(file_in_memory, 10) == content[:10]
    assert read_file(file_in_memory, 0) == b""
    with pytest.raises(ProtocolBroken, match="76,800 of 76,801 bytes"):
        read_file(file_in_memory, len(content) + 1)


def test_a_file_in_memory_that_can_not_be_written_whole_is_an_error(file_in_memory):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError):
            write_file(file_in_memory, bytes(20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.fstat(file_in_memory).st_size == 10


def sightings(count, faces):
    numbers = np.arange(count * 14, dtype=np.float32).reshape(count, 14) / 7
    landmarks = numbers[:, 4:].reshape(count, 5, 2).copy()
    landmarks[:1] = np.nan
    return Sightings(
        numbers[:, :4], landmarks, numbers[:, 0], np.arange(count, dtype=np.intp) % max(faces, 1)
    )


@pytest.mark.parametrize(
    ("faces", "count"),
    [(0, None), (3, None), (0, 0), (2, 5)],
    ids=["none", "plain", "empty", "many"],
)
def test_detections_arrive_bit_for_bit(faces, count):
    boxes = np.random.default_rng(1).random((faces, 4)).astype(np.float32)
    scores = boxes[:, 0].copy()
    merged = None if count is None else sightings(count, faces)
    sent = Detections(boxes, scores, merged, left_out=float(np.float32(0.1)))
    classes = np.arange(faces) + 1
    with_classes = replace(sent, classes=classes)

    _, labelled = parsed_answers(packed_answers([sent, with_classes]))
    assert np.array_equal(labelled.classes, classes)
    assert (labelled.merged_from is None) == (merged is None)

    _, arrived, _ = parsed_answers(packed_answers([Detections.none(), sent, sent]))

    assert arrived.classes is None
    assert arrived.left_out == sent.left_out
    assert np.array_equal(arrived.boxes_xyxy, boxes)
    assert arrived.scores.dtype == np.float32
    assert (arrived.merged_from is None) == (merged is None)
    if merged is not None:
        for name in ("boxes_xyxy", "landmarks", "slack", "face"):
            one, other = getattr(arrived.merged_from, name), getattr(merged, name)
            assert one.dtype == other.dtype
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
