"""``veil dead``: the pictures that were given up, and what becomes of them."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice

from rich.console import Console

from tasks import dead_letters
from tasks.addresses import ObjectUri
from tasks.app import app
from tasks.dead_letters import DeadLetter
from tasks.errors import InvalidRequest
from tasks.messages import AnonymizeOptions
from tasks.publishing import Publisher, Wanted, connected
from tasks.queues import wait_for_room
from worker.reconciling import MOST_WAITING, printable, tell_full

AT_ONCE = 500


def list_all(as_json: bool) -> None:
    """Print every letter, oldest first."""
    redis = app.backend.client
    with connected():
        count = dead_letters.count(redis)
    if count > dead_letters.SORTED_AT_MOST:
        print(f"veil: more than {dead_letters.SORTED_AT_MOST:,} dead letters: in no order", file=sys.stderr)
    for batch in _batches(dead_letters.oldest_first(redis)):
        for letter in batch:
            print(json.dumps(asdict(letter)) if as_json else printable(_line(letter)))


def show(source: str, as_json: bool) -> bool:
    """Print the letter of `source`; whether there is one."""
    found = _of([source])
    for letter in found:
        if as_json:
            print(json.dumps(asdict(letter)))
            continue
        for name, value in {**asdict(letter), "time": _when(letter)}.items():
            print(f"{name}: {printable(str(value))}")
    return bool(found)


def retry(sources: list[str], error: str | None, queue: str, as_json: bool) -> bool:
    """Put the pictures of `sources`, or all with `error`, or all, on `queue`; whether that could be done.

    A letter stays until its picture is delivered, or dies anew.
    """
    redis = app.backend.client
    publisher = Publisher(app)
    sources = list(dict.fromkeys(sources))
    found = _of(sources)
    letters = iter(found) if sources else _with_error(error)
    enqueued, refused = 0, len(sources) - len(found)
    try:
        for batch in _batches(letters):
            wanted = [picture for letter in batch if (picture := _wanted(letter))]
            wait_for_room(redis, queue, MOST_WAITING, lambda waiting: tell_full(queue, waiting))
            publisher.publish(wanted, queue)
            enqueued, refused = enqueued + len(wanted), refused + len(batch) - len(wanted)
            for picture in wanted if as_json else ():
                print(json.dumps({"source": str(picture.source), "queue": queue}))
    finally:
        publisher.close()
    _tell(f"{enqueued:,} enqueued")
    return not refused


def drop(sources: list[str], error: str | None) -> bool:
    """Forget the letters of `sources`, or all with `error`, or all; whether there were such of all `sources`."""
    redis = app.backend.client
    sources = list(dict.fromkeys(sources))
    found = _of(sources)
    with connected():
        if sources:
            dropped = dead_letters.drop(redis, [letter.source for letter in found])
        else:
            dropped = dead_letters.drop_all(redis) if error is None else dead_letters.drop_error(redis, error)
    _tell(f"{dropped:,} dropped")
    return len(found) == len(sources)


def _of(sources: list[str]) -> list[DeadLetter]:
    """The letters of `sources`; tells where there is none."""
    keys = [source.encode("utf-8", "backslashreplace").decode() for source in sources]  # as workers record them
    with connected():
        found = dead_letters.of(app.backend.client, keys)
    for key in keys:
        if key not in found:
            print(f"veil: no dead letter of {printable(key)}", file=sys.stderr)
    return list(found.values())


def _batches(letters: Iterator[DeadLetter]) -> Iterator[list[DeadLetter]]:
    while True:
        with connected():
            batch = list(islice(letters, AT_ONCE))
        if not batch:
            return
        yield batch


def _with_error(error: str | None) -> Iterator[DeadLetter]:
    return (letter for letter in dead_letters.entries(app.backend.client) if error in (None, letter.error))


def _wanted(letter: DeadLetter) -> Wanted | None:
    """The request that was given up; None, and a word about it, if it never was one."""
    try:
        destination = None if letter.destination is None else ObjectUri.parse(letter.destination)
        options = None if letter.options is None else AnonymizeOptions.of(letter.options)
        return Wanted(ObjectUri.parse(letter.source), destination, options=options)
    except InvalidRequest as error:
        print(f"veil: can't be tried again, only dropped: {printable(str(error))}", file=sys.stderr)
        return None


def _line(letter: DeadLetter) -> str:
    return f"{_when(letter)}  {letter.source}  {letter.error}: {letter.message}"


def _when(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.time, UTC).isoformat(timespec="seconds")


def _tell(line: str) -> None:
    Console(stderr=True).print(line, highlight=False)
