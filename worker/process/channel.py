"""Messages between a worker and one of its picture processes, over a socket.

A picture process handles untrusted bytes, so the worker takes it for hostile: it unpickles nothing,
and whatever does not have the expected form raises ProtocolBroken.
"""

import json
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from tasks.errors import (
    DetectionFailed,
    DetectorUnavailable,
    EmptyObject,
    ImageTooLarge,
    InvalidRequest,
    UnreadableImage,
    UnsupportedImage,
    VeilError,
)
from tasks.messages import MAX_COORDINATE, AnonymizeOptions, Check, Reason, Rule
from worker.anonymizer import Limits
from worker.detection.faces import Detections, Sightings
from worker.detection.labelled import Search
from worker.detection.tiled import MAX_CANVASES_AT_ONCE, ModelInput
from worker.images.formats import CONTENT_TYPES
from worker.images.viewing import View
from worker.masking.regions import MaskStyle
from worker.metadata.kept import Kept

HEADER = struct.Struct("<BI")  # the kind and the length in bytes of a message
MAX_FACES = 500_000  # of one kind in a result
MAX_MESSAGE_BYTES = 64 << 20  # Each face has about 90 bytes.
MAX_ERROR_LENGTH = 2000  # characters
MAX_NOTE, MAX_NOTES = 500, 20  # characters of a note on a file, and such notes
# The errors that the anonymizer raises. A picture process can raise no other error in a worker.
ERRORS: dict[str, type[VeilError]] = {
    error.__name__: error
    for error in (
        DetectionFailed,
        DetectorUnavailable,
        EmptyObject,
        ImageTooLarge,
        InvalidRequest,
        UnreadableImage,
        UnsupportedImage,
    )
}
OUT_OF_MEMORY = MemoryError.__name__


class ChannelClosed(Exception):
    """The other end is gone."""


class ChannelTimeout(Exception):
    """The other end did not do something in time."""


class ProtocolBroken(Exception):
    """A message does not have the expected form."""


class Kind(IntEnum):
    """The kinds of messages."""

    # From the worker.
    CONFIGURATION = 1
    WORK = 2
    ANSWER = 3  # the detections in canvases
    REFUSAL = 4  # the detector failed, so the work ends
    # From the picture process.
    READY = 10
    STAGE = 11
    CANVASES = 12
    RESULT = 13
    FAILURE = 14
    BUG = 15


class Channel:
    """One end of the socket. Only one thread may use it at a time."""

    def __init__(self, end: socket.socket, send_seconds: float | None = None) -> None:
        """Wait at most `send_seconds` for the other end to take a message; None for ever."""
        self._socket = end
        self._send_seconds = send_seconds
        self._timeout = end.gettimeout()

    def close(self) -> None:
        self._socket.close()

    def send(self, kind: Kind, content: bytes = b"") -> None:
        """Send a message. Raises ChannelClosed, and ChannelTimeout after `send_seconds`."""
        self._set_timeout(self._send_seconds)
        try:
            self._socket.sendall(HEADER.pack(kind, len(content)) + content)
        except TimeoutError:
            raise ChannelTimeout from None
        except OSError:
            raise ChannelClosed from None

    def receive(self, seconds: float | None = None) -> tuple[Kind, bytes]:
        """Return the next message, its kind and content.

        Raises ChannelTimeout after `seconds`, ChannelClosed, and ProtocolBroken for an unknown kind
        or a message of more than MAX_MESSAGE_BYTES.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        number, length = HEADER.unpack(self._read(HEADER.size, deadline))
        try:
            kind = Kind(number)
        except ValueError:
            raise ProtocolBroken(f"a message of the unknown kind {number}") from None
        if length > MAX_MESSAGE_BYTES:
            raise ProtocolBroken(f"a message of {length:,} bytes")
        return kind, self._read(length, deadline)

    def _read(self, length: int, deadline: float | None) -> bytes:
        content = bytearray()
        while len(content) < length:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise ChannelTimeout
            self._set_timeout(remaining)
            try:
                part = self._socket.recv(min(length - len(content), 1 << 20))
            except TimeoutError:
                raise ChannelTimeout from None
            except OSError:
                raise ChannelClosed from None
            if not part:
                raise ChannelClosed
            content += part
        return bytes(content)

    def _set_timeout(self, seconds: float | None) -> None:
        """Set the socket's timeout if it changes: a sandbox may refuse the system call."""
        if seconds != self._timeout:
            self._socket.settimeout(seconds)
            self._timeout = seconds


@dataclass(frozen=True)
class Handling:
    """The part of the settings that may be different on each route.

    `searches` are those in each picture, whose time limit together is `detect_seconds`.
    """

    style: MaskStyle
    limits: Limits
    hold_without_faces: bool
    verify: Literal["off", "flag", "hold"]
    keep: Kept
    searches: tuple[Search, ...]
    detect_seconds: float


@dataclass(frozen=True)
class Configuration(Handling):
    """The part of the settings and of the models that a picture process needs.

    `labels` are those that the models find, and `rules` those of the settings. `inputs` has the
    input of each model. `memory_bytes` is the address space that the process may use for a picture,
    and `output_bytes` the size of the largest output. A process that `runs_for_long` returns freed
    memory to the system, which costs time.
    """

    labels: tuple[str, ...]
    rules: Mapping[str, Rule]
    inputs: tuple[ModelInput, ...]
    memory_bytes: int
    output_bytes: int
    runs_for_long: bool


@dataclass(frozen=True)
class Work:
    """One picture: the size of its file in bytes, its options, and whether an output is needed.

    With a `view` nothing is detected or hidden, and the output is that view. Without a `handling`,
    that of the configuration counts.
    """

    size: int
    options: AnonymizeOptions
    detect_only: bool
    view: View | None = None
    handling: Handling | None = None


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4)]
Score = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Side = Annotated[int, Field(ge=1, le=MAX_COORDINATE)]
CanvasSize = Annotated[list[Side], Field(min_length=2, max_length=2)]
StageName = Literal["decode", "detect", "mask", "encode", "verify"]
Activity = Literal["decoding", "detecting", "masking", "encoding", "verifying"]


@checked_dataclass(frozen=True, config=STRICT)
class Faces:
    """The boxes and scores of Detections, [n, 4] and [n], and their labels.

    Labels are places among those of the configuration. They are None if all objects are faces.
    """

    boxes_xyxy: Annotated[list[Box], Field(max_length=MAX_FACES)]
    scores: Annotated[list[Score], Field(max_length=MAX_FACES)]
    labels: Annotated[list[Count], Field(max_length=MAX_FACES)] | None = None

    @classmethod
    def of(cls, detections: Detections, labels: Sequence[str]) -> "Faces":
        """Return the `detections`, whose labels are among `labels`."""
        places = None
        if detections.labelled is not None:
            places = [labels.index(label) for label in detections.labelled]
        return cls(detections.boxes_xyxy.tolist(), detections.scores.tolist(), places)

    @model_validator(mode="after")
    def _check_numbers(self) -> "Faces":
        if len(self.boxes_xyxy) != len(self.scores):
            raise ValueError("boxes and scores of different numbers")
        if self.labels is not None and len(self.labels) != len(self.scores):
            raise ValueError("labels and scores of different numbers")
        return self

    def detections(self, labels: Sequence[str]) -> Detections:
        """Return the Detections; raise ProtocolBroken for a label that is not among `labels`."""
        boxes = np.array(self.boxes_xyxy, np.float32).reshape(-1, 4)
        detections = Detections(boxes, np.array(self.scores, np.float32))
        if self.labels is None:
            return detections
        if max(self.labels, default=0) >= len(labels):
            raise ProtocolBroken("an object of an unknown label")
        named = np.array([labels[place] for place in self.labels], np.str_)
        return replace(detections, labelled=named)


@checked_dataclass(frozen=True, config=STRICT)
class Result:
    """The outcome of one picture; its output, of `size` bytes, lies in shared memory.

    `size` is None without an output. `detected` and `near` count the detector's faces, and those
    near the threshold.
    """

    size: Count | None
    format: Literal[tuple(CONTENT_TYPES)]  # type: ignore[valid-type]
    width: Side
    height: Side
    faces: Faces
    verdict: Check
    added: Faces
    remaining: Faces
    reason: Reason | None
    notes: Annotated[list[Annotated[str, Field(max_length=MAX_NOTE)]], Field(max_length=MAX_NOTES)]
    seconds: dict[StageName, Annotated[float, Field(ge=0)]]
    detected: Count
    near: Count


@checked_dataclass(frozen=True, config=STRICT)
class Failure:
    """A VeilError, or the end of the memory (OUT_OF_MEMORY)."""

    error: Literal[(*ERRORS, OUT_OF_MEMORY)]  # type: ignore[valid-type]
    message: Annotated[str, Field(max_length=MAX_ERROR_LENGTH)]


@checked_dataclass(frozen=True, config=STRICT)
class Bug:
    """Any other exception: its class, its message without data, and where it was raised."""

    error: Annotated[str, Field(max_length=100, pattern=r"^\w+$")]
    message: Annotated[str, Field(max_length=MAX_ERROR_LENGTH)]
    raised_at: Annotated[list[Annotated[str, Field(max_length=500)]], Field(max_length=50)]


@checked_dataclass(frozen=True, config=STRICT)
class Ready:
    """The process waits for work. `unprotected` says why its system calls are not filtered."""

    unprotected: Annotated[str, Field(max_length=MAX_ERROR_LENGTH)] | None


@checked_dataclass(frozen=True, config=STRICT)
class Stage:
    """The beginning of a stage."""

    activity: Activity


@checked_dataclass(frozen=True, config=STRICT)
class Canvases:
    """Canvases whose detections by a `model` are needed, one after the other in shared memory.

    `sizes` has the height and the width of each, uint8 RGB [height, width, 3].
    """

    sizes: Annotated[list[CanvasSize], Field(min_length=1, max_length=MAX_CANVASES_AT_ONCE)]
    model: Count = 0


Message = Configuration | Work | Ready | Stage | Canvases | Result | Failure | Bug
KINDS: dict[type[Any], Kind] = {
    Configuration: Kind.CONFIGURATION,
    Work: Kind.WORK,
    Ready: Kind.READY,
    Stage: Kind.STAGE,
    Canvases: Kind.CANVASES,
    Result: Kind.RESULT,
    Failure: Kind.FAILURE,
    Bug: Kind.BUG,
}
ADAPTERS: dict[Kind, TypeAdapter[Any]] = {kind: TypeAdapter(form) for form, kind in KINDS.items()}


def packed(message: Message) -> tuple[Kind, bytes]:
    """Return the kind and the content of `message`, the arguments of Channel.send."""
    kind = KINDS[type(message)]
    return kind, ADAPTERS[kind].dump_json(message)


def parsed(kind: Kind, content: bytes) -> Any:
    """Return the Message of `kind` in `content`; raise ProtocolBroken if it is none."""
    adapter = ADAPTERS.get(kind)
    if adapter is None:
        raise ProtocolBroken(f"the message {kind.name} has no content")
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise ProtocolBroken(f"{kind.name}: {place}: {first['msg'][:200]}") from None


def write_file(file: int, content: bytes) -> None:
    """Write `content` to the beginning of a file in memory. Raises OSError.

    A call of the system writes 2 GiB at most, and less if memory is short.
    """
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.pwrite(file, remaining, len(content) - len(remaining)) :]


def read_file(file: int, size: int) -> bytes:
    """Return the first `size` bytes of a file in memory; raise ProtocolBroken if it has fewer.

    A call of the system reads 2 GiB at most.
    """
    parts = []
    position = 0
    while position < size:
        part = os.pread(file, size - position, position)
        if not part:
            raise ProtocolBroken(f"a file of {position:,} of {size:,} bytes")
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def packed_answers(answers: Sequence[Detections]) -> bytes:
    """Return all of `answers`, of whatever dtypes and shapes, for `parsed_answers`."""
    heads = []
    contents = []
    for answer in answers:
        arrays = [np.asarray(answer.boxes_xyxy), np.asarray(answer.scores)]
        if (sightings := answer.merged_from) is not None:
            parts = (sightings.boxes_xyxy, sightings.landmarks, sightings.slack, sightings.face)
            arrays += [np.asarray(part) for part in parts]
        if answer.classes is not None:
            arrays.append(np.asarray(answer.classes))
        forms = [(array.dtype.str, array.shape) for array in arrays]
        heads.append((float(answer.left_out), answer.classes is not None, forms))
        contents += [array.tobytes() for array in arrays]
    return b"\n".join([json.dumps(heads).encode(), b"".join(contents)])


def parsed_answers(content: bytes) -> list[Detections]:
    """Return the Detections of `packed_answers`. A picture process trusts its worker."""
    head, _, rest = content.partition(b"\n")
    answers = []
    position = 0
    for left_out, has_classes, forms in json.loads(head):
        arrays = []
        for dtype, shape in forms:
            array = np.frombuffer(rest, np.dtype(dtype), int(np.prod(shape)), position)
            arrays.append(array.reshape(shape).copy())
            position += array.nbytes
        classes = arrays.pop() if has_classes else None
        boxes, scores, *more = arrays
        sightings = Sightings(*more) if more else None
        answers.append(Detections(boxes, scores, sightings, left_out, classes))
    return answers
