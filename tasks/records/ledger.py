"""Ledgers: pictures that a person must look after, one entry an output, each in one Redis hash."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ..redis import lua

BATCH_SIZE = 500  # entries in one answer of Redis
MAX_SORTED = 100_000  # entries whose names and times are sorted in memory, about 30 MB

DROP = lua.load(__package__, "drop")
FORGET_OLDER = lua.load(__package__, "forget_older")
REPLACE = lua.load(__package__, "replace")


class Entry(Protocol):
    """A dataclass of JSON values. `time` is in seconds since the epoch."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> str: ...

    @property
    def destination(self) -> str | None: ...

    @property
    def time(self) -> float: ...

    @property
    def name(self) -> str:
        """The name of the entry in its hash: that of `name_of`, unless it is not of an output."""


Item = TypeVar("Item", bound=Entry)


def name_of(source: str, destination: str | None) -> str:
    """Return the name of an entry in its hash.

    A source has an entry for each destination that was requested; None stands for the route's.
    """
    return source if destination is None else f"{source}\n{destination}"


def has_all(made: Any, asked: Any) -> bool:
    """Return whether the options `made` have all values of those `asked` for, both as JSON."""
    if isinstance(asked, dict) and isinstance(made, dict):
        return all(has_all(made.get(name), value) for name, value in asked.items())
    if isinstance(asked, list) and isinstance(made, list):
        return all(value in made for value in asked)
    return bool(made == asked)


@dataclass(frozen=True)
class Ledger(Generic[Item]):
    """The entries of one `kind`, as JSON in the Redis hash `key`.

    An entry has the name that `name_of` gives it. Version 0.2.0 and before kept one entry a source,
    whose name is the source, whatever its destination.
    """

    key: str
    kind: type[Item]

    def record(self, redis: Any, entry: Item) -> None:
        """Record `entry` in place of an older one of the same output. `redis` may be a pipeline."""
        redis.hset(self.key, entry.name, json.dumps(asdict(entry)))
        self._forget_older(redis, entry.source, entry.destination)

    def replace(self, redis: Any, entry: Item, changed: Item) -> None:
        """Record `changed` in place of `entry`, unless it has changed since it was read.

        `redis` may be a pipeline.
        """
        before, after = json.dumps(asdict(entry)), json.dumps(asdict(changed))
        redis.eval(REPLACE, 1, self.key, entry.name, before, after)

    def discard(self, redis: Any, source: str, destinations: Iterable[str | None]) -> None:
        """Remove the entries of an output, which any of `destinations` in a request leads to.

        `redis` may be a pipeline.
        """
        for destination in destinations:
            redis.hdel(self.key, name_of(source, destination))
            self._forget_older(redis, source, destination)

    def count(self, redis: Any) -> int:
        """Return the number of entries."""
        return int(redis.hlen(self.key))

    def entries(self, redis: Any) -> Iterator[Item]:
        """Yield all entries in no order. An entry that is replaced meanwhile may come twice."""
        for _, entry in self._items(redis):
            yield entry

    def find(self, redis: Any, names: Sequence[str]) -> dict[str, Item]:
        """Return the entries with these `names` that exist, by name."""
        if not names:
            return {}
        found = {}
        values = redis.hmget(self.key, list(names))
        for name, value in zip(names, values, strict=True):
            if value is not None:
                found[name] = self._parse(value)
        return found

    def of_sources(self, redis: Any, sources: Iterable[str]) -> dict[str, Item]:
        """Return all entries of `sources`, by name. This reads the whole ledger."""
        wanted = set(sources)
        if not wanted:
            return {}
        return {name: entry for name, entry in self._items(redis) if entry.source in wanted}

    def oldest_first(self, redis: Any) -> Iterator[Item]:
        """Yield all entries by time, or in no order if there are more than MAX_SORTED."""
        if self.count(redis) > MAX_SORTED:
            yield from self.entries(redis)
            return
        times = {name: entry.time for name, entry in self._items(redis)}
        names = iter(sorted(times, key=lambda name: times[name]))
        while batch := list(islice(names, BATCH_SIZE)):
            yield from self.find(redis, batch).values()

    def drop(self, redis: Any, names: Sequence[str]) -> int:
        """Remove the entries with these `names`, and return their number."""
        return int(redis.hdel(self.key, *names)) if names else 0

    def drop_where(self, redis: Any, condition: Callable[[Item], bool]) -> Iterator[int]:
        """Remove the entries for which `condition` is true, and yield 1 for each.

        An entry that a worker replaces meanwhile stays: 0 is yielded for it.
        """
        for name, value in redis.hscan_iter(self.key, count=BATCH_SIZE):
            if condition(self._parse(value)):
                yield int(redis.eval(DROP, 1, self.key, name, value))

    def drop_one(self, redis: Any, name: str, condition: Callable[[Item], bool]) -> bool:
        """Remove the entry `name` if `condition` is true for it, and return whether it did so.

        An entry that a worker replaces meanwhile stays.
        """
        value = redis.hget(self.key, name)
        if value is None or not condition(self._parse(value)):
            return False
        return bool(redis.eval(DROP, 1, self.key, name, value))

    def drop_all(self, redis: Any) -> int:
        """Remove all entries, and return their number."""
        with redis.pipeline() as pipe:
            pipe.hlen(self.key)
            pipe.delete(self.key)
            return int(pipe.execute()[0])

    def _forget_older(self, redis: Any, source: str, destination: str | None) -> None:
        if destination is not None:
            redis.eval(FORGET_OLDER, 1, self.key, source, destination)

    def _items(self, redis: Any) -> Iterator[tuple[str, Item]]:
        """Yield the name and the entry of all entries, in no order."""
        for name, value in redis.hscan_iter(self.key, count=BATCH_SIZE):
            yield name.decode(), self._parse(value)

    def _parse(self, value: bytes) -> Item:
        # json.loads reads what json.dumps has written of any message. pydantic's JSON parser would
        # refuse lone surrogates, which the options in a message can contain.
        stored = json.loads(value)
        known = {field.name for field in fields(self.kind)}
        return self.kind(**{name: stored[name] for name in known & stored.keys()})
