"""The memory of a worker over time, with pictures of all kinds and sizes.

The benchmark uses real Redis, a real store, one ``veil worker``, and a queue that is never empty.
It lasts at least MINUTES and PICTURES (2,000 take longer than the default time on a small machine).
"""

import json
import os
import random
import time
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from tasks.addresses import ObjectUri
from tasks.publishing import Wanted
from tasks.records import queues
from tools.benchmarks.harness import machine, pictures
from tools.local import stack
from tools.local.processes import children
from tools.local.stack import CLEAN, RAW, Stack

MINUTES, PICTURES = 5.0, 0
# The format of each kind of picture, its size in megapixels, and its number among 40.
MIX = (
    ("JPEG", 0.1, 10), ("JPEG", 1.0, 10), ("JPEG", 12.0, 1), ("PNG", 0.1, 4), ("PNG", 1.0, 2),
    ("WEBP", 0.1, 4), ("WEBP", 1.0, 3), ("TIFF", 0.5, 2), ("GIF", 0.1, 1), ("BMP", 0.1, 1),
    ("AVIF", 0.5, 1), ("JPEG2000", 0.5, 1),
)  # fmt: skip
AHEAD = 50  # messages in the queue at least
LOOK_SECONDS = 0.5
SEED = 1


def run() -> None:
    """Print a line each minute, and a summary that compares the last quarter with the second."""
    minutes = float(os.environ.get("MINUTES") or MINUTES)
    least = int(os.environ.get("PICTURES") or PICTURES)
    with stack.started() as running:
        keys = _uploaded(running)
        worker = running.worker()
        samples = _sampled(running, keys, minutes * 60, least)
        peak = _peak(worker.pid)
    summary = {
        "bench": "soak",
        "summary": True,
        **_summary(samples),
        "peak_mib": peak // machine.MIB,
    }
    print(json.dumps(summary), flush=True)
    Console(stderr=True, width=120, highlight=False).print(
        f"{summary['pictures']:,} pictures in {summary['minutes']:.1f} minutes; "
        "resident at the end "
        f"{summary['rss_mib']:,} MiB, {summary['peak_mib']:,} MiB at most; the last quarter has "
        f"{summary['last_to_second_quarter']:.3f} of the second's"
    )


def _sampled(
    running: Stack, keys: list[str], seconds: float, least: int
) -> list[tuple[float, int, int]]:
    """Return samples of seconds, finished pictures and resident bytes, two per second."""
    worker, chance = running.workers[0], random.Random(SEED)
    samples: list[tuple[float, int, int]] = []
    started = time.monotonic()
    published = reported = done = 0
    now = 0.0
    while now < seconds or done < least:
        worker.check_alive()
        if queues.depth(running.client, "uploads") < AHEAD:
            outputs = (
                ObjectUri(CLEAN, f"{number:07}") for number in range(published, published + AHEAD)
            )
            wanted = [Wanted(ObjectUri(RAW, chance.choice(keys)), output) for output in outputs]
            running.publisher.publish(wanted, "uploads")
            published += AHEAD
        time.sleep(LOOK_SECONDS)
        now, done = time.monotonic() - started, running.anonymized()
        samples.append((now, done, machine.resident_bytes(worker.pid)))
        if now >= 60 * (reported + 1):
            reported += 1
            line = {
                "bench": "soak",
                "minute": reported,
                "pictures": done,
                "rss_mib": samples[-1][2] // machine.MIB,
            }
            print(json.dumps(line), flush=True)
    return samples


def _summary(samples: list[tuple[float, int, int]]) -> dict[str, Any]:
    """Return the means of the quarters in MiB, and the ratio of the last to the second."""
    seconds, done, _ = samples[-1]
    quarters: list[list[int]] = [[], [], [], []]
    for at, _, resident in samples:
        quarters[min(3, int(4 * at / seconds))].append(resident)
    means = [mean(quarter) if quarter else float(samples[-1][2]) for quarter in quarters]
    return {
        "minutes": round(seconds / 60, 2),
        "pictures": done,
        "pictures_per_second": round(done / seconds, 2),
        "rss_mib": samples[-1][2] // machine.MIB,
        "quarters_mib": [round(each / machine.MIB) for each in means],
        "last_to_second_quarter": round(means[3] / means[1], 4),
    }


def _peak(pid: int) -> int:
    """Return the sum of the peak resident sizes of a process and its children, in bytes.

    They need not have been at the same time, so this is an upper bound.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    own = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return own + sum(map(_peak, children(pid)))


def _uploaded(running: Stack) -> list[str]:
    keys = []
    for form, megapixels, count in MIX:
        for number, image in enumerate(pictures.of_size(count, megapixels)):
            key = f"{form.lower()}-{megapixels:g}/{number}"
            running.upload([(key, pictures.encoded(image, form))])
            keys.append(key)
    return keys
