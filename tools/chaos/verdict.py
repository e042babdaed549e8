"""What became of the pictures of a chaos run, from what is in the store, in Redis and in the workers' logs."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.routes import RESERVED
from tasks.storage import receipts

UNCHANGED = 12  # levels that lossy compression alone may change
CLEAR_SHARE = 0.5  # of a face's hidden part that is as it was


@dataclass(frozen=True)
class Version:
    """One version of an object, the newest or an older one."""

    key: str
    etag: str
    id: str


def versions(client: Any, bucket: str) -> list[Version]:
    """All versions of all objects of `bucket`."""
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
    items = (item for page in pages for item in page.get("Versions", ()))
    return [Version(item["Key"], item["ETag"].strip('"'), item["VersionId"]) for item in items]


def lost(keys: Iterable[str], outputs: Iterable[str], dead: Iterable[str]) -> list[str]:
    """The pictures that are neither in the output nor a dead letter."""
    return sorted(set(keys) - set(outputs) - set(dead))


def doubled(keys: Iterable[str], written: Sequence[Version]) -> list[str]:
    """Outputs that nobody asked for, and outputs with more than one receipt."""
    wanted = set(keys)
    odd = {version.key for version in written if not version.key.startswith(RESERVED)} - wanted
    named: Counter[str] = Counter()
    for name in {version.key for version in written if version.key.startswith(receipts.FOLDER)}:
        made = receipts.parse(name.removeprefix(receipts.FOLDER))
        named[made.key if made else name] += 1
    return sorted(odd | {key for key, count in named.items() if count > 1 or key not in wanted})


def is_clear(source: bytes, output: bytes, boxes: Sequence[Sequence[int]], region: float) -> bool:
    """Whether `output` shows one of the faces in `boxes`, x1 y1 x2 y2, in its top `region` as `source` does."""
    if source == output:
        return True
    before, after = (np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.int16) for file in (source, output))
    if before.shape != after.shape:
        return True
    for x1, y1, x2, y2 in boxes:
        hidden = np.s_[max(y1, 0) : y1 + round((y2 - y1) * region), max(x1, 0) : x2]
        same = np.abs(before[hidden] - after[hidden]).max(axis=2) <= UNCHANGED
        if same.size and same.mean() > CLEAR_SHARE:
            return True
    return False


def redeliveries(logs: Iterable[Path], died: Mapping[int, float]) -> list[float]:
    """Seconds from the death of a process to the next delivery of each picture that it had at work, sorted.

    `died` is when, by process id. Where a picture's next process died as well, it counts from that death on.
    """
    taken_over = [line for path in logs for line in _lines(path, "taken over, to work on alone")]
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
    """The value below which `share` of the sorted `values` lie, rounded up to one of them; None without any."""
    if not values:
        return None
    return round(values[min(len(values) - 1, int(share * len(values)))], 2)
