"""What ``veil dead`` and ``veil review`` share: entries read from a ledger, printed, put on a queue
again, dropped.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice

from rich.console import Console

from tasks.addresses import ObjectUri
from tasks.app import app
from tasks.errors import InvalidRequest
from tasks.messages import AnonymizeOptions
from tasks.publishing import Publisher, Wanted, wait_for_room
from tasks.records import ledger
from tasks.records.ledger import Entry, Item, Ledger
from tasks.redis_errors import connected
from worker.commands.reconcile import MOST_WAITING, tell_full
from worker.printing import printable


def oldest_first(entries: Ledger[Item]) -> Iterator[Item]:
    """All entries, oldest first; tells where there are too many for that. Raises
    QueueUnavailable.
    """
    redis = app.backend.client
    with connected():
        count = entries.count(redis)
    if count > ledger.MAX_SORTED:
        print(f"veil: more than {ledger.MAX_SORTED:,} pictures: in no order", file=sys.stderr)
    for batch in batches(entries.oldest_first(redis)):
        yield from batch


def of(entries: Ledger[Item], sources: Iterable[str], name: str) -> list[Item]:
    """The entries of `sources`; tells of which there is no `name`. Raises QueueUnavailable."""
    # As workers record them.
    keys = [
        source.encode("utf-8", "backslashreplace").decode() for source in dict.fromkeys(sources)
    ]
    with connected():
        found = entries.find(app.backend.client, keys)
    for key in keys:
        if key not in found:
            print(f"veil: no {name} of {printable(key)}", file=sys.stderr)
    return list(found.values())


def show(found: Iterable[Entry], as_json: bool) -> None:
    """Print all that is known of each."""
    for entry in found:
        if as_json:
            print(json.dumps(asdict(entry)))
            continue
        for name, value in {**asdict(entry), "time": when(entry)}.items():
            print(f"{name}: {printable(str(value))}")


def enqueue(
    entries: Iterator[Item],
    options: Callable[[Item], AnonymizeOptions | None],
    queue: str,
    as_json: bool,
) -> bool:
    """Put the pictures of `entries` on `queue`, each with its `options`; whether all of them could
    be put there.
    """
    redis = app.backend.client
    publisher = Publisher(app)
    enqueued = refused = 0
    try:
        for batch in batches(entries):
            wanted = [picture for entry in batch if (picture := _wanted(entry, options))]
            wait_for_room(redis, queue, MOST_WAITING, lambda waiting: tell_full(queue, waiting))
            publisher.publish(wanted, queue)
            enqueued, refused = enqueued + len(wanted), refused + len(batch) - len(wanted)
            for picture in wanted if as_json else ():
                print(json.dumps({"source": str(picture.source), "queue": queue}))
    finally:
        publisher.close()
    tell(f"{enqueued:,} enqueued")
    return not refused


def drop(
    entries: Ledger[Item], sources: list[str], condition: Callable[[Item], bool] | None, name: str
) -> bool:
    """Forget the entries of `sources`, or those of which `condition` is true, or all.

    Whether there were such of all `sources`.
    """
    redis = app.backend.client
    found = of(entries, sources, name)
    with connected():
        if sources:
            dropped = entries.drop(redis, [entry.source for entry in found])
        else:
            dropped = (
                entries.drop_all(redis)
                if condition is None
                else entries.drop_where(redis, condition)
            )
    tell(f"{dropped:,} dropped")
    return len(found) == len(set(sources))


def batches(entries: Iterator[Item]) -> Iterator[list[Item]]:
    """`entries`, as they come from Redis, some at a time. Raises QueueUnavailable."""
    while True:
        with connected():
            batch = list(islice(entries, ledger.BATCH_SIZE))
        if not batch:
            return
        yield batch


def when(entry: Entry) -> str:
    """The time of `entry`, for people."""
    return datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="seconds")


def tell(line: str) -> None:
    """Say on standard error what was done."""
    Console(stderr=True).print(line, highlight=False)


def _wanted(entry: Item, options: Callable[[Item], AnonymizeOptions | None]) -> Wanted | None:
    """The request for the picture of `entry`; None, and a word about it, if it never was one."""
    try:
        destination = None if entry.destination is None else ObjectUri.parse(entry.destination)
        return Wanted(ObjectUri.parse(entry.source), destination, options=options(entry))
    except InvalidRequest as error:
        print(f"veil: can't be tried again, only dropped: {printable(str(error))}", file=sys.stderr)
        return None
