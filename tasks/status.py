"""How the work stands, from what Redis has: queues, what is in hand, what came of it, and runs of
backfills.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.bulk import runs as stored_runs
from tasks.publishing import announced_recipe
from tasks.records import dead_letters, outcomes, queues, review
from tasks.records.queues import QueueStatus
from tasks.redis_errors import connected

DONE = ("anonymized", "skipped", "held")
FAILED = "dead"
OUTCOMES = (*DONE, FAILED, outcomes.MALFORMED)


@dataclass(frozen=True, kw_only=True)
class Status:
    """All of the work. `outcomes` counts pictures since this Redis is used, and as ``malformed``
    those of its ``dead`` whose message no worker can take; `dead` counts those that are given up
    now, `to_review` those that await somebody's look.

    `per_second` is the rate of the last minutes, `seconds_left` what the waiting messages take at
    it, if that is known.
    """

    queues: Sequence[QueueStatus]
    in_flight: int
    outcomes: Mapping[str, int]
    dead: int
    to_review: int
    per_second: float
    seconds_left: float | None
    recipe: str | None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run of a stored_runs. `listed` sources, of which `skipped` needed nothing, and `enqueued`
    ones.

    Of these `done` and `failed` have ended and `left` have not; one whose message came twice counts
    twice. `percent` and `seconds_left`, at the rate `per_second` of all workers, are of what is
    listed: a `state` of ``finished`` says that this is all. Times are seconds since the epoch.
    """

    run: str
    state: str
    source: str
    destination: str
    listed: int
    skipped: int
    enqueued: int
    done: int
    failed: int
    left: int
    percent: float
    per_second: float
    seconds_left: float | None
    started: float | None
    updated: float | None


def read(redis: Any) -> Status:
    """How everything stands. Raises QueueUnavailable."""
    with connected():
        waiting, in_flight = queues.statuses(redis), queues.in_hand(redis)
        to_review = review.REVIEW_LIST.count(redis)
        dead, recipe = dead_letters.LETTERS.count(redis), announced_recipe(redis)
        totals, per_second = (
            dict.fromkeys(OUTCOMES, 0) | outcomes.totals(redis),
            outcomes.per_second(redis),
        )
    return Status(
        queues=waiting,
        in_flight=in_flight,
        outcomes=totals,
        dead=dead,
        to_review=to_review,
        per_second=per_second,
        seconds_left=_seconds(sum(queue.waiting for queue in waiting), per_second),
        recipe=recipe,
    )


def read_run(redis: Any, run: str) -> RunStatus | None:
    """How the run `run` stands; None if Redis knows none of that name. Raises QueueUnavailable."""
    if not outcomes.RUN_NAME.fullmatch(run):
        return None
    with connected():
        stored = stored_runs.read_leniently(redis, run)
        if stored is None:
            return None
        ended, per_second = outcomes.of_run(redis, run), outcomes.per_second(redis)
    return _run_status(run, stored, ended, per_second)


def runs(redis: Any) -> list[RunStatus]:
    """The runs that Redis remembers, the one that moved last first. Raises QueueUnavailable."""
    with connected():
        names = stored_runs.names(redis)
    found = [status for name in names if (status := read_run(redis, name))]
    return sorted(found, key=lambda status: (-(status.updated or 0), status.run))


def _seconds(pictures: int, per_second: float) -> float | None:
    if not pictures:
        return 0.0
    return round(pictures / per_second, 1) if per_second else None


def _run_status(
    run: str, stored: stored_runs.Run, ended: Mapping[str, int], per_second: float
) -> RunStatus:
    enqueued, skipped = stored.enqueued, stored.skipped
    done, failed = sum(ended.get(status, 0) for status in DONE), ended.get(FAILED, 0)
    left = max(enqueued - done - failed, 0)
    known = skipped + enqueued
    return RunStatus(
        run=run,
        state=stored.state,
        source=stored.source,
        destination=stored.destination,
        listed=stored.listed,
        skipped=skipped,
        enqueued=enqueued,
        done=done,
        failed=failed,
        left=left,
        percent=round(100 * (known - left) / known, 1) if known else 100.0,
        per_second=per_second,
        seconds_left=_seconds(left, per_second),
        started=stored.started or None,
        updated=stored.updated or None,
    )
