"""The status of the work, read from Redis: queues, outcomes, and runs of backfills."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import ResponseError

from .bulk import runs as stored_runs
from .publishing import announced_labels, announced_recipe, announced_recipes
from .records import dead_letters, outcomes, queues, review
from .records.queues import QueueStatus
from .redis import durability
from .redis.clients import try_writing
from .redis.errors import connected, lacks_right, queue_unavailable

DONE = ("anonymized", "skipped", "held")
FAILED = "dead"
OUTCOMES = (*DONE, FAILED, outcomes.MALFORMED)


@dataclass(frozen=True, kw_only=True)
class Status:
    """The status of all work.

    `stray` has the lists with messages for Veil that no worker reads, and `risks` a line for each
    setting of Redis with which it may lose messages. `refusal` says why Redis takes no messages, as
    if it is full, and is None if it takes them. `in_flight` counts the messages that workers hold.
    `outcomes` counts pictures by outcome since this Redis was first
    used; its ``malformed`` counts those of its ``dead`` whose message no worker can read. `dead`
    counts the present dead letters, `to_review` the pictures on the review list. `review_desk` is
    the address of the review desk, None if none is open.

    `per_second` is the rate of the work that is being done, or 0 if it is unknown: see
    tasks.records.outcomes.recent_rate. `seconds_left` is the time that the messages on the queues
    and in flight take at that rate, or None if the rate is 0. `recipe` is that of the worker that
    started last, and `labels` are those that it finds. `routes` are those of the routes file, by
    name; their outcomes add up to `outcomes`.
    """

    queues: Sequence[QueueStatus]
    stray: Sequence[QueueStatus]
    risks: Sequence[str]
    refusal: str | None
    in_flight: int
    outcomes: Mapping[str, int]
    dead: int
    to_review: int
    review_desk: str | None
    per_second: float
    seconds_left: float | None
    recipe: str | None
    labels: Sequence[str]
    routes: Sequence["RouteStatus"]


@dataclass(frozen=True, kw_only=True)
class RouteStatus:
    """The status of a route with a name: its pictures by outcome, and its recipe if known.

    `route` is None for the pictures and messages that are in no such route.
    """

    route: str | None
    outcomes: Mapping[str, int]
    recipe: str | None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The status of one run of a backfill. Times are in seconds since the epoch.

    Of the `listed` sources, `skipped` needed no work and `enqueued` were put on the queue. Of the
    enqueued ones `done` and `failed` have ended and `left` have not. Of the `uncounted` ones no
    message is left, and no outcome was counted. A picture whose message was delivered twice counts
    twice.

    `state` is ``running`` while sources are listed, ``listed`` while pictures are `left` after
    that, ``uncounted`` if none are left and some are `uncounted`, ``finished``, ``stopped``,
    ``cancelled``, or ``abandoned`` if a running run has shown no sign of life since the time
    `abandoned_since`, because its process was killed.

    `percent` and `seconds_left` are None while the listing is not complete. `percent` leaves the
    `uncounted` out. `seconds_left` assumes the rate `per_second` of all workers.
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
    uncounted: int
    percent: float | None
    per_second: float
    seconds_left: float | None
    started: float | None
    updated: float | None
    abandoned_since: float | None


def read(redis: Any) -> Status:
    """Return the status of all work. Raises QueueUnavailable."""
    with connected():
        waiting = queues.statuses(redis)
        in_flight = queues.in_hand(redis)
        pictures = _pictures(waiting, in_flight)
        per_second = outcomes.per_second(redis, is_idle=not pictures)
        totals, of_routes = outcomes.totals_and_routes(redis)
        return Status(
            queues=waiting,
            stray=queues.StrayMessages().read(redis),
            risks=durability.risks(redis),
            refusal=_refusal(redis),
            in_flight=in_flight,
            outcomes=dict.fromkeys(OUTCOMES, 0) | totals,
            dead=dead_letters.LETTERS.count(redis),
            to_review=review.REVIEW_LIST.count(redis),
            review_desk=review.desk_address(redis),
            per_second=per_second,
            seconds_left=_seconds_left(pictures, per_second),
            recipe=announced_recipe(redis),
            labels=announced_labels(redis),
            routes=_routes(announced_recipes(redis), totals, of_routes),
        )


def without_rate(work: Status) -> Status:
    """Return `work` with an unknown rate, and so a time left only if nothing is left."""
    pictures = _pictures(work.queues, work.in_flight)
    return replace(work, per_second=0.0, seconds_left=_seconds_left(pictures, 0.0))


def run_without_rate(run: RunStatus) -> RunStatus:
    """Return `run` with an unknown rate, and so a time left only if nothing is left."""
    return replace(run, per_second=0.0, seconds_left=None if run.left else run.seconds_left)


def _pictures(waiting: Sequence[QueueStatus], in_flight: int) -> int:
    return in_flight + sum(queue.waiting for queue in waiting)


def _refusal(redis: Any) -> str | None:
    """Return why Redis takes no messages; None if it takes them, or this user must not try."""
    try:
        try_writing(redis)
    except ResponseError as error:
        return None if lacks_right(error) else str(queue_unavailable(error))
    return None


def _routes(
    recipes: Mapping[str, str], totals: Mapping[str, int], counts: Mapping[str, dict[str, int]]
) -> list[RouteStatus]:
    """Return the routes that the worker that started last has, and those with outcomes.

    The last one has those of the `totals` that are in no route with a name, if there are any.
    """
    nothing = dict.fromkeys((*DONE, FAILED), 0)
    found = [
        RouteStatus(route=name, outcomes=nothing | counts.get(name, {}), recipe=recipes.get(name))
        for name in sorted(recipes.keys() | counts.keys())
    ]
    others = {
        outcome: totals.get(outcome, 0) - sum(route.outcomes[outcome] for route in found)
        for outcome in nothing
    }
    if found and any(others.values()):
        found.append(RouteStatus(route=None, outcomes=others, recipe=None))
    return found


def read_run(redis: Any, run: str) -> RunStatus | None:
    """Return the status of `run`, or None if Redis has no such run. Raises QueueUnavailable."""
    if not outcomes.RUN_NAME.fullmatch(run):
        return None
    with connected():
        stored = stored_runs.read_leniently(redis, run)
        if stored is None:
            return None
        ended = outcomes.of_run(redis, run)
        is_through = False
        if stored.state in ("finished", "cancelled") and _missing(stored, ended):
            is_through = stored_runs.is_through(redis, stored)
            ended = outcomes.of_run(redis, run)  # Pictures may have ended since.
        per_second = outcomes.per_second(redis, is_idle=is_through or not _missing(stored, ended))
        abandoned_since = stored_runs.abandoned_since(redis, run, stored.state)
    return _run_status(run, stored, ended, is_through, per_second, abandoned_since)


def runs(redis: Any) -> list[RunStatus]:
    """Return all runs in Redis, the last updated first. Raises QueueUnavailable."""
    with connected():
        names = stored_runs.names(redis)
    found = []
    for name in names:
        status = read_run(redis, name)
        if status is not None:  # Redis may have dropped the run since its name was listed.
            found.append(status)
    return sorted(found, key=lambda status: (-(status.updated or 0), status.run))


def _seconds_left(pictures: int, per_second: float) -> float | None:
    if not pictures:
        return 0.0
    return round(pictures / per_second, 1) if per_second else None


def _done(ended: Mapping[str, int]) -> int:
    return sum(ended.get(outcome, 0) for outcome in DONE)


def _missing(stored: stored_runs.Run, ended: Mapping[str, int]) -> int:
    """Return the number of enqueued pictures of a run without an outcome."""
    return max(stored.enqueued - _done(ended) - ended.get(FAILED, 0), 0)


def _run_status(
    run: str,
    stored: stored_runs.Run,
    ended: Mapping[str, int],
    is_through: bool,
    per_second: float,
    abandoned_since: float | None,
) -> RunStatus:
    enqueued, skipped = stored.enqueued, stored.skipped
    missing = _missing(stored, ended)
    left = 0 if is_through else missing
    is_listed = stored.state == "finished"
    state = stored_runs.shown_state(stored, enqueued - missing, is_through)
    return RunStatus(
        run=run,
        state=state if abandoned_since is None else "abandoned",
        source=stored.source,
        destination=stored.destination,
        listed=stored.listed,
        skipped=skipped,
        enqueued=enqueued,
        done=_done(ended),
        failed=ended.get(FAILED, 0),
        left=left,
        uncounted=missing - left,
        percent=_percent(skipped + enqueued, missing) if is_listed else None,
        per_second=per_second,
        seconds_left=_seconds_left(left, per_second) if is_listed else None,
        started=stored.started or None,
        updated=stored.updated or None,
        abandoned_since=abandoned_since,
    )


def _percent(total: int, left: int) -> float:
    return round(100 * (total - left) / total, 1) if total else 100.0
