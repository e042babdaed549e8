"""The work that ``veil dead`` and ``veil review`` share: each has a ledger of pictures in Redis."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic

from tasks.addresses import ObjectUri
from tasks.errors import InvalidRequest
from tasks.messages import AnonymizeOptions
from tasks.publishing import Publisher, Wanted
from tasks.records import ledger
from tasks.records.ledger import Entry, Item, Ledger
from tasks.redis.errors import connected
from worker.commands import waiting
from worker.commands.queue import wait_for_room
from worker.printing import print_note, print_summary, printable, summarized

if TYPE_CHECKING:
    from tasks.app import App

Condition = Callable[[Item], bool]


class LedgerEntries(Generic[Item]):
    """The entries of a ledger, as commands print, enqueue and drop them.

    Where `sources` are given, an entry that is missing is noted on standard error. Every method
    raises QueueUnavailable.
    """

    def __init__(self, celery: "App", entries: Ledger[Item], name: str) -> None:
        """`name` is what users call an entry, such as "dead letter"."""
        self._celery = celery
        self._redis = celery.backend.client
        self._ledger = entries
        self._name = name

    def oldest_first(self) -> Iterator[Item]:
        """Yield all entries, oldest first; a ledger too large to sort in memory in no order."""
        with connected():
            count = self._ledger.count(self._redis)
        if count > ledger.MAX_SORTED:
            print_note(f"more than {ledger.MAX_SORTED:,} pictures: in no order")
        for batch in _batches(self._ledger.oldest_first(self._redis)):
            yield from batch

    def listed(self, as_json: bool, condition: Condition[Item] | None = None) -> Iterator[Item]:
        """Yield the entries that meet `condition`, oldest first; for people, note if none does."""
        is_empty = True
        for entry in self.oldest_first():
            if condition is None or condition(entry):
                is_empty = False
                yield entry
        if is_empty and not as_json:
            print_note(f"no {self._name}" + (" meets the condition" if condition else ""))

    def values(self, value_of: Callable[[Item], str]) -> list[str]:
        """Return the values that `value_of` has for the entries, sorted and without repetitions."""
        with connected():
            return sorted(set(map(value_of, self._ledger.entries(self._redis))))

    def show(self, source: str, as_json: bool) -> bool:
        """Print all fields of the entries of `source`, for people those that are set.

        Return whether there is one.
        """
        found = self._of([source])
        for number, entry in enumerate(found.values()):
            if as_json:
                print(json.dumps(asdict(entry)))
                continue
            if number:
                print()
            for name, value in asdict(entry).items():
                if value is not None:
                    shown = iso_time(value) if name in ("time", "first_time") else str(value)
                    print(f"{name}: {printable(shown)}")
        return bool(found)

    def enqueue(
        self,
        sources: Sequence[str],
        options: Callable[[Item], AnonymizeOptions | None],
        queue: str,
        as_json: bool,
        condition: Condition[Item] | None = None,
        is_settled: Condition[Item] | None = None,
        asked_for: Callable[[Item, AnonymizeOptions], Item] | None = None,
        wait_seconds: float | None = None,
    ) -> bool:
        """Put pictures on `queue`, each with its `options`: those of `sources`, or of all entries.

        `condition` selects among all entries. The entries stay in the ledger until their pictures
        come through, but those that `is_settled` is true for are removed, and `asked_for` returns
        what takes the place of an entry. With `wait_seconds`, wait for the results, and give up
        this time after the last one.

        Return whether all `sources` had an entry, or any entry was selected, every picture could be
        put on the queue, and none that was waited for failed.
        """
        found = self._of(sources)
        entries = iter(found.values()) if sources else self._selected(condition)
        waits = wait_seconds is not None
        publisher = Publisher(self._celery)
        enqueued = refused = 0
        waited_for: dict[str, Wanted] = {}

        def summarize() -> None:
            print_summary(f"{enqueued:,} enqueued")

        with summarized(summarize), closing(publisher):
            for batch in _batches(entries):
                chosen = _wanted(batch, options)
                wanted = [picture for _, picture in chosen]
                wait_for_room(self._redis, queue)
                also_write = None if asked_for is None else self._replacing(chosen, asked_for)
                task_ids = publisher.publish(
                    wanted, queue, also_write=also_write, keep_results=waits
                )
                enqueued += len(wanted)
                refused += len(batch) - len(wanted)
                if is_settled is not None:
                    self._drop([entry.name for entry, _ in chosen if is_settled(entry)])
                if waits:
                    waited_for.update(zip(task_ids, wanted, strict=True))
                elif as_json:
                    for picture in wanted:
                        print(json.dumps({**waiting.requested(picture), "queue": queue}))
        if not sources and not enqueued + refused:
            return self._none_selected(condition)
        is_complete = not refused and self._has_all(found, sources)
        if wait_seconds is None or not waited_for:
            return is_complete
        endings = waiting.wait(self._celery, waited_for, queue, wait_seconds, as_json)
        return is_complete and endings.are_good

    def drop(
        self, sources: Sequence[str], as_json: bool, condition: Condition[Item] | None = None
    ) -> bool:
        """Forget the entries of `sources`, or those that meet `condition`, or all.

        Return whether all `sources` had an entry, or any entry was selected.
        """
        found = self._of(sources)
        dropped = 0

        def summarize() -> None:
            if as_json:
                print(json.dumps({"dropped": dropped}))
            else:
                print_summary(f"{dropped:,} dropped")

        with summarized(summarize), connected():
            if sources:
                dropped = self._ledger.drop(self._redis, list(found))
            elif condition is not None:
                for count in self._ledger.drop_where(self._redis, condition):
                    dropped += count
            else:
                dropped = self._ledger.drop_all(self._redis)
        if not sources and not dropped:
            return self._none_selected(condition)
        return self._has_all(found, sources)

    def _replacing(
        self,
        chosen: Sequence[tuple[Item, Wanted]],
        asked_for: Callable[[Item, AnonymizeOptions], Item],
    ) -> Callable[[Any], None]:
        """Return a function of a Redis pipeline that changes the entries of requested pictures."""

        def replace(pipe: Any) -> None:
            for entry, picture in chosen:
                if picture.options is not None:
                    self._ledger.replace(pipe, entry, asked_for(entry, picture.options))

        return replace

    def _drop(self, names: Sequence[str]) -> None:
        with connected():
            self._ledger.drop(self._redis, names)

    def _none_selected(self, condition: Condition[Item] | None) -> bool:
        """Print that nothing was done, and return that the work is not complete."""
        match = "" if condition is None else " meets the condition"
        print_note(f"no {self._name}{match}: nothing was done")
        return False

    def _of(self, sources: Iterable[str]) -> dict[str, Item]:
        """Return the entries of `sources` by name, and note the sources without one."""
        recorded = [_as_recorded(source) for source in dict.fromkeys(sources)]
        with connected():
            found = self._ledger.of_sources(self._redis, recorded)
        present = {entry.source for entry in found.values()}
        for source in recorded:
            if source not in present:
                print_note(f"no {self._name} of {printable(source)}")
        return found

    def _has_all(self, found: Mapping[str, Item], sources: Iterable[str]) -> bool:
        """Return whether each of `sources` has an entry among those `found`."""
        return {entry.source for entry in found.values()}.issuperset(map(_as_recorded, sources))

    def _selected(self, condition: Condition[Item] | None) -> Iterator[Item]:
        for entry in self._ledger.entries(self._redis):
            if condition is None or condition(entry):
                yield entry


def address_of(entry: Entry) -> str:
    """Return the source of `entry`, with the destination if one was requested."""
    return " → ".join(filter(None, (entry.source, entry.destination)))


def time_of(entry: Entry) -> str:
    """Return the time of `entry` in ISO 8601, UTC."""
    return iso_time(entry.time)


def iso_time(seconds: float) -> str:
    """Return a time, in seconds since the epoch, in ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _as_recorded(source: str) -> str:
    """Return an address as workers record it: characters without UTF-8 are escaped."""
    return source.encode("utf-8", "backslashreplace").decode()


def _batches(entries: Iterator[Item]) -> Iterator[list[Item]]:
    """Yield `entries`, which are read from Redis meanwhile, in batches. Raise QueueUnavailable."""
    while True:
        with connected():
            batch = list(islice(entries, ledger.BATCH_SIZE))
        if not batch:
            return
        yield batch


def _wanted(
    entries: Iterable[Item], options: Callable[[Item], AnonymizeOptions | None]
) -> list[tuple[Item, Wanted]]:
    """Return `entries` and their pictures; note those whose message was never a valid request."""
    wanted = []
    for entry in entries:
        try:
            source = ObjectUri.parse(entry.source)
            destination = None
            if entry.destination is not None:
                destination = ObjectUri.parse(entry.destination)
            wanted.append((entry, Wanted(source, destination, options=options(entry))))
        except InvalidRequest as error:
            name = printable(entry.source)
            reason = "it names no picture" if "://" not in name else printable(str(error))
            print_note(f"{name} can't be tried again, only dropped: {reason}")
    return wanted
