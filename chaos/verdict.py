"""What became of the pictures of a chaos run, from what is in the store, in Redis and in the workers' logs."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks import receipts

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
    odd = {version.key for version in written if not version.key.startswith(receipts.RESERVED)} - wanted
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
    """Seconds from the end of each process in `died` to the next start of each picture that it had at work, sorted."""
    seconds = []
    for path in logs:
        for text in path.read_text(errors="replace").splitlines():
            if '"begun again, alone"' not in text:
                continue
            line = json.loads(text)
            if line["last_pid"] in died:
                begun = datetime.fromisoformat(line["timestamp"]).timestamp()
                seconds.append(begun - died[line["last_pid"]])
    return sorted(seconds)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the sorted `values` lie, rounded up to one of them; None without any."""
    if not values:
        return None
    return round(values[min(len(values) - 1, int(share * len(values)))], 2)
