"""Samples of outputs that people review, and their marks, in Redis.

A sample is drawn once. Its pictures and its marks are hashes, so that several people can mark
pictures at once.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

KEY = "veil:sample:"
NAMES = "veil:samples"  # the hash of all samples: their names, and their headers as JSON
PICTURES_SUFFIX = ":pictures"
MARKS_SUFFIX = ":marks"

Boxes = list[list[int]]


@dataclass(frozen=True)
class SampledPicture:
    """A drawn output: its version, its size in pixels, and what was hidden in it.

    `boxes_xyxy` are those of faces, and `others_xyxy` those of objects with another label, which
    `other_labels` has, unless an earlier version stored the sample. `source` is the address of its
    source, if it is at the default place of the `route`. `options` are those that the receipt has.
    An output without a receipt has no `width` and `height`.
    """

    output: str
    etag: str
    route: str
    source: str | None = None
    source_etag: str | None = None
    width: int | None = None
    height: int | None = None
    boxes_xyxy: Boxes = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    others_xyxy: Boxes = field(default_factory=list)
    other_labels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Mark:
    """A reviewer's finding in a picture: the boxes of the faces that are still recognisable.

    `others_xyxy` are the boxes of other objects that a file of marks has, by their label.
    A picture `is_gone` that was replaced or deleted since it was drawn: nobody can mark it.
    """

    exposed_xyxy: Boxes
    by: str = ""
    time: float = 0.0
    is_gone: bool = False
    others_xyxy: dict[str, Boxes] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A sample of the outputs below `addresses`, of which there were `count`."""

    name: str
    addresses: list[str]
    seed: int
    count: int
    created: float
    pictures: list[SampledPicture] = field(default_factory=list)


def store(redis: Any, sample: Sample) -> None:
    """Store a new sample."""
    header = {**asdict(replace(sample, pictures=[])), "drawn": len(sample.pictures)}
    fields = {str(n): json.dumps(asdict(one)) for n, one in enumerate(sample.pictures)}
    with redis.pipeline() as pipe:
        pipe.delete(KEY + sample.name + PICTURES_SUFFIX, KEY + sample.name + MARKS_SUFFIX)
        if fields:
            pipe.hset(KEY + sample.name + PICTURES_SUFFIX, mapping=fields)
        pipe.hset(NAMES, sample.name, json.dumps(header))
        pipe.execute()


def headers(redis: Any) -> list[dict[str, Any]]:
    """Return the headers of all samples, newest first, with `drawn` and `marked` pictures."""
    found = [json.loads(value) for value in redis.hvals(NAMES)]
    for header in found:
        header["marked"] = int(redis.hlen(KEY + header["name"] + MARKS_SUFFIX))
    return sorted(found, key=lambda header: -float(header["created"]))


def find(redis: Any, name: str) -> Sample | None:
    """Return the sample `name` with its pictures; None if there is none."""
    value = redis.hget(NAMES, name)
    if value is None:
        return None
    header = json.loads(value)
    stored: Mapping[bytes, bytes] = redis.hgetall(KEY + name + PICTURES_SUFFIX)
    pictures = [_picture(stored[number]) for number in sorted(stored, key=int)]
    return Sample(
        header["name"],
        header["addresses"],
        header["seed"],
        header["count"],
        header["created"],
        pictures,
    )


def created(redis: Any, name: str) -> float | None:
    """Return the time at which the sample `name` was drawn; None if there is none."""
    value = redis.hget(NAMES, name)
    return None if value is None else float(json.loads(value)["created"])


def mark(
    redis: Any, name: str, number: int, exposed_xyxy: Iterable[Sequence[int]], by: str
) -> float:
    """Record what `by` found in the picture `number`, in place of an earlier mark.

    Returns the time of the mark.
    """
    boxes = [list(box) for box in exposed_xyxy]
    marked_at = time.time()
    value = json.dumps({"exposed_xyxy": boxes, "by": by, "time": marked_at})
    redis.hset(KEY + name + MARKS_SUFFIX, str(number), value)
    return marked_at


def skip(redis: Any, name: str, number: int, by: str) -> None:
    """Record that the picture `number` can't be marked any more; an earlier mark stays."""
    value = json.dumps(asdict(Mark([], by, time.time(), is_gone=True)))
    redis.hsetnx(KEY + name + MARKS_SUFFIX, str(number), value)


def marks(redis: Any, name: str) -> dict[int, Mark]:
    """Return the marks of the sample `name` by the number of the picture."""
    stored = redis.hgetall(KEY + name + MARKS_SUFFIX)
    return {int(number): Mark(**json.loads(value)) for number, value in stored.items()}


def mark_of(redis: Any, name: str, number: int) -> Mark | None:
    """Return the mark of the picture `number`; None if it has none."""
    value = redis.hget(KEY + name + MARKS_SUFFIX, str(number))
    return None if value is None else Mark(**json.loads(value))


def _picture(value: bytes) -> SampledPicture:
    return SampledPicture(**json.loads(value))
