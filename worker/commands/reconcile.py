"""``veil reconcile``: what is wrong between two places, a line each, and the counts that prove the
rest right.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from tasks.app import app
from tasks.bulk.places import Places
from tasks.bulk.reconcile import THREADS, Finding, Only, Reconciliation, State
from tasks.errors import SettingsInvalid
from tasks.messages import BACKFILL
from tasks.publishing import Publisher, Wanted, announced_recipe, wait_for_room
from tasks.redis_errors import connected
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from worker.commands.progress import progress_bar
from worker.printing import printable

MOST_WAITING = 20_000  # messages; 1 kB of Redis each
LISTINGS = 3
SHOWN: tuple[State, ...] = (
    "current",
    "missing",
    "stale",
    "orphan",
    "refused",
    "unknown key",
    "dead",
    "held",
    "archived",
)
RARE: tuple[State, ...] = ("refused", "unknown key")  # people need not read that there is none


def run(
    settings: Settings,
    source: str,
    output: str | None,
    recipe: str | None,
    only: Only,
    sources_deleted: bool,
    enqueue: bool,
    limit: int | None,
    as_json: bool,
) -> bool:
    """Tell what is wrong, and enqueue what a worker can put right if asked; whether everything is
    as it should be.
    """
    places = Places.find(source, output, settings.parsed_routes(), settings.receipt_keys())
    store = ObjectStore.connect(settings, connections=THREADS + LISTINGS)
    redis = app.backend.client
    with connected():
        redis.ping()  # before a long reading, not after
    recipe = _recipe(recipe, only)
    publisher = Publisher(app)

    def publish(pictures: Sequence[Wanted]) -> None:
        wait_for_room(redis, BACKFILL, MOST_WAITING, lambda waiting: tell_full(BACKFILL, waiting))
        publisher.publish(pictures, BACKFILL)

    started = time.monotonic()
    try:
        with progress_bar("compared") as bar:
            reconciliation = Reconciliation(
                store, places, recipe, redis, only, sources_deleted, bar.advance
            )
            for finding in reconciliation.findings(publish if enqueue else None, limit):
                _print(finding, as_json)
    finally:
        publisher.close()
    _summarize(reconciliation, recipe, time.monotonic() - started, as_json)
    return reconciliation.is_complete and not reconciliation.wrong


def _recipe(given: str | None, only: Only) -> str | None:
    """The recipe that outputs should be of; None if nobody knows."""
    recipe = given or announced_recipe(app.backend.client)
    if recipe is None and only.other_recipe:
        raise SettingsInvalid("no worker has told its recipe yet: start one, or give --recipe")
    if recipe is None:
        print(
            "veil: no worker has told its recipe yet: only the versions of the sources count",
            file=sys.stderr,
        )
    return recipe


def tell_full(queue: str, waiting: int) -> None:
    print(
        f"veil: {waiting:,} messages wait on {queue}: going on once workers have made room",
        file=sys.stderr,
    )


def _print(finding: Finding, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_line(finding)), flush=True)
        return
    score = "" if finding.lowest_score is None else f" ({finding.lowest_score:g})"
    address = finding.output if finding.state == "orphan" else finding.source
    queued = ", enqueued" * finding.enqueued
    print(
        f"{finding.state:<8} {printable(str(address))}  {printable(finding.reason)}{score}{queued}"
    )


def _line(finding: Finding) -> dict[str, Any]:
    return {
        "state": finding.state,
        "source": str(finding.source),
        "output": str(finding.output),
        "reason": finding.reason,
        "lowest_score": finding.lowest_score,
        "enqueued": finding.enqueued,
    }


def _summarize(
    reconciliation: Reconciliation, recipe: str | None, seconds: float, as_json: bool
) -> None:
    counts = {state: reconciliation.counts[state] for state in SHOWN}
    if as_json:
        also = {
            "enqueued": reconciliation.enqueued,
            "recipe": recipe,
            "complete": reconciliation.is_complete,
        }
        print(json.dumps({"summary": {**counts, **also, "seconds": round(seconds, 3)}}))
        return
    told = [f"{count:,} {state}" for state, count in counts.items() if count or state not in RARE]
    if reconciliation.enqueued:
        told.append(f"{reconciliation.enqueued:,} enqueued")
    partly = "" if reconciliation.is_complete else " (stopped at the limit)"
    Console(stderr=True).print(f"{', '.join(told)} in {seconds:.1f} s{partly}", highlight=False)
