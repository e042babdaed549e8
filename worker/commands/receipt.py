"""``veil receipt verify``: whether outputs and sources are what their receipts say, a line each."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from tasks.bulk.verify import THREADS, Audit, Compare, Disposal, Look, Verdict
from tasks.storage.s3 import ObjectStore
from worker.commands.progress import progress_bar
from worker.printing import printable
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from tasks.storage.receipts import Receipt

LISTINGS = 2


def run(
    settings: WorkerSettings,
    addresses: Sequence[str],
    source: str | None,
    redetect: bool,
    disposal: Disposal | None,
    as_json: bool,
) -> bool:
    """Tell of each output at or below `addresses` whether it is as its receipt says; whether all
    are.
    """
    threads = (
        settings.concurrency if redetect or disposal else THREADS
    )  # pictures that are decoded at once
    store = ObjectStore.connect(settings, connections=3 * threads + LISTINGS)
    audit = Audit(
        store,
        settings.parsed_routes(),
        settings.fetch_seconds,
        settings.receipt_keys(),
        look=_look(settings) if redetect else None,
        disposal=disposal,
        threads=threads,
    )
    counts: Counter[str] = Counter()
    checked = good = 0
    started = time.monotonic()
    with progress_bar("verified") as bar:
        for address in addresses:
            for verdict in audit.verdicts(address, source):
                checked, good = checked + 1, good + verdict.is_good
                counts.update(verdict.states)
                _print(verdict, as_json)
                bar.advance()
    _summarize(checked, good, counts, time.monotonic() - started, as_json)
    return checked == good


def _look(settings: WorkerSettings) -> Look:
    """Looks for faces as a worker with these settings would; those of the receipt and its exempt
    areas may be there.
    """
    import numpy as np

    from tasks.messages import AnonymizeOptions
    from worker import images, logs
    from worker.bootstrap import build_anonymizer, mask_style
    from worker.detection.faces import Sightings, outside
    from worker.masking import regions

    logs.configure(settings.log_format)

    anonymizer = build_anonymizer(settings)
    style = replace(mask_style(settings), region=regions.WHOLE)

    def look(content: bytes, receipt: "Receipt") -> bool:
        picture = images.decode(content, settings.max_pixels, settings.max_frames)
        options = AnonymizeOptions.of(receipt.options)
        boxes = np.array([face["box_xyxy"] for face in receipt.faces], np.float32).reshape(-1, 4)
        hidden = regions.regions(
            Sightings.of(boxes), style, picture.width, picture.height, options.extra
        )
        return all(
            regions.eyes_hidden(
                outside(found, options.exempt), hidden, picture.width, picture.height
            ).all()
            for found in anonymizer.detect_frames(picture)
        )

    return look


def comparison(settings: WorkerSettings) -> Compare:
    """Return what compares outputs with their sources, outside of what workers with these settings
    hide.
    """
    import cv2
    import numpy as np

    from tasks.messages import AnonymizeOptions
    from worker import images, likeness
    from worker.bootstrap import mask_style

    cv2.utils.logging.setLogLevel(
        cv2.utils.logging.LOG_LEVEL_SILENT
    )  # files that it does not read are no news
    style = mask_style(settings)

    def compare(output: bytes, source: bytes, receipt: "Receipt") -> bool:
        before, after = (
            images.decode(each, settings.max_pixels, settings.max_frames)
            for each in (source, output)
        )
        if not (likeness.is_confirmed(source, before) and likeness.is_confirmed(output, after)):
            return False
        boxes = np.array([face["box_xyxy"] for face in receipt.faces], np.float32).reshape(-1, 4)
        extra = AnonymizeOptions.of(receipt.options).extra
        hidden = likeness.hidden_by(
            boxes, extra, style, before, min(settings.pass_settings().scales)
        )
        return likeness.is_alike(before, after, hidden)

    return compare


def _print(verdict: Verdict, as_json: bool) -> None:
    if as_json:
        told = {
            "output": str(verdict.output),
            "receipt": None if verdict.receipt is None else str(verdict.receipt),
            "states": list(verdict.states),
            "good": verdict.is_good,
        }
        print(json.dumps(told), flush=True)
        return
    print(f"{', '.join(verdict.states):<16} {printable(str(verdict.output))}")


def _summarize(
    checked: int, good: int, counts: Counter[str], seconds: float, as_json: bool
) -> None:
    if as_json:
        summary = {
            "checked": checked,
            "good": good,
            "states": dict(counts),
            "seconds": round(seconds, 3),
        }
        print(json.dumps({"summary": summary}))
        return
    told = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    Console(stderr=True).print(f"{checked:,} verified: {told} in {seconds:.1f} s", highlight=False)
