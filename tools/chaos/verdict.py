"""The verdict on a chaos run, from the store, the dead letters and the logs of the workers."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.routes import RESERVED
from tasks.storage import receipts

UNCHANGED = 12  # levels; lossy compression alone changes pixels by at most that much
CLEAR_SHARE = 0.5  # a face is visible if more than this share of its hidden part is unchanged


@dataclass(frozen=True)
class Version:
    """A version of an object, the newest or an older one."""

    key: str
    etag: str
    id: str


def versions(client: Any, bucket: str) -> list[Version]:
    """Return all versions of all objects of `bucket`."""
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
    items: list[dict[str, Any]] = []
    for page in pages:
        items += page.get("Versions", ())
    return [Version(item["Key"], item["ETag"].strip('"'), item["VersionId"]) for item in items]


def lost(keys: Iterable[str], outputs: Iterable[str], dead: Iterable[str]) -> list[str]:
    """Return the keys that have neither an output nor a dead letter."""
    return sorted(set(keys) - set(outputs) - set(dead))


def doubled(keys: Iterable[str], written: Sequence[Version]) -> list[str]:
    """Return outputs without a request, and outputs with more than one receipt."""
    wanted = set(keys)
    names = {version.key for version in written}
    found = {name for name in names if not name.startswith(RESERVED)} - wanted
    count: Counter[str] = Counter()
    for name in names:
        if name.startswith(receipts.FOLDER):
            made = receipts.parse(name.removeprefix(receipts.FOLDER))
            count[made.key if made else name] += 1
    found |= {key for key in count if count[key] > 1 or key not in wanted}
    return sorted(found)


def is_clear(source: bytes, output: bytes, boxes: Sequence[Sequence[int]], region: float) -> bool:
    """Return True if a face is visible in `output`: its top `region` is as in `source`.

    `boxes` are x1 y1 x2 y2 in pixels.
    """
    if source == output:
        return True
    before, after = _pixels(source), _pixels(output)
    if before.shape != after.shape:
        return True
    for x1, y1, x2, y2 in boxes:
        hidden = np.s_[max(y1, 0) : y1 + round((y2 - y1) * region), max(x1, 0) : x2]
        same = np.abs(before[hidden] - after[hidden]).max(axis=2) <= UNCHANGED
        if same.size and same.mean() > CLEAR_SHARE:
            return True
    return False


def _pixels(content: bytes) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int16)


def redeliveries(logs: Iterable[Path], died: Mapping[int, float]) -> list[float]:
    """Return the sorted seconds from the death of a process to the redelivery of its pictures.

    `died` contains the time of death by process id. If the next process of a picture died too, the
    time counts from the later death.
    """
    taken_over: list[dict[str, Any]] = []
    for path in logs:
        taken_over += _lines(path, "taken over, to work on alone")
    seconds = []
    holder: dict[str, int] = {}
    for line in sorted(taken_over, key=lambda line: str(line["timestamp"])):
        at = datetime.fromisoformat(line["timestamp"]).timestamp()
        before = {line["last_pid"], holder.get(line["output"])}
        holder[line["output"]] = line["pid"]
        if deaths := [died[pid] for pid in before if pid in died and died[pid] <= at]:
            seconds.append(at - max(deaths))
    return sorted(seconds)


def _lines(log: Path, event: str) -> Iterator[dict[str, Any]]:
    for text in log.read_text(errors="replace").splitlines():
        if f'"{event}"' in text:
            yield json.loads(text)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the percentile `share` of the sorted `values`, one of them; None if there are none."""
    if not values:
        return None
    position = min(len(values) - 1, int(share * len(values)))
    return round(values[position], 2)
