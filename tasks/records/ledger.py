"""Ledgers: pictures that a person must look after, one entry a source, each in one Redis hash."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from .. import lua

BATCH_SIZE = 500  # entries in one answer of Redis
MAX_SORTED = 100_000  # entries whose sources and times are sorted in memory, about 30 MB

DROP = lua.load(__package__, "drop")


class Entry(Protocol):
    """A dataclass of JSON values. `time` is in seconds since the epoch."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> str: ...

    @property
    def destination(self) -> str | None: ...

    @property
    def time(self) -> float: ...


Item = TypeVar("Item", bound=Entry)


@dataclass(frozen=True)
class Ledger(Generic[Item]):
    """The entries of one `kind`, as JSON in the Redis hash `key`."""

    key: str
    kind: type[Item]

    def record(self, redis: Any, entry: Item) -> None:
        """Record `entry` in place of an older one of the same source. `redis` may be a pipeline."""
        redis.hset(self.key, entry.source, json.dumps(asdict(entry)))

    def discard(self, redis: Any, source: str) -> None:
        """Remove the entry of `source`, if there is one. `redis` may be a pipeline."""
        redis.hdel(self.key, source)

    def count(self, redis: Any) -> int:
        """Return the number of entries."""
        return int(redis.hlen(self.key))

    def entries(self, redis: Any) -> Iterator[Item]:
        """Yield all entries in no order. An entry that is replaced meanwhile may come twice."""
        for _, value in redis.hscan_iter(self.key, count=BATCH_SIZE):
            yield self._parse(value)

    def find(self, redis: Any, sources: Sequence[str]) -> dict[str, Item]:
        """Return the entries of those `sources` that have one."""
        if not sources:
            return {}
        found = {}
        values = redis.hmget(self.key, list(sources))
        for source, value in zip(sources, values, strict=True):
            if value is not None:
                found[source] = self._parse(value)
        return found

    def oldest_first(self, redis: Any) -> Iterator[Item]:
        """Yield all entries by time, or in no order if there are more than MAX_SORTED."""
        if self.count(redis) > MAX_SORTED:
            yield from self.entries(redis)
            return
        times = {entry.source: entry.time for entry in self.entries(redis)}
        sources = iter(sorted(times, key=lambda source: times[source]))
        while batch := list(islice(sources, BATCH_SIZE)):
            yield from self.find(redis, batch).values()

    def drop(self, redis: Any, sources: Sequence[str]) -> int:
        """Remove the entries of `sources`, and return their number."""
        return int(redis.hdel(self.key, *sources)) if sources else 0

    def drop_where(self, redis: Any, condition: Callable[[Item], bool]) -> int:
        """Remove the entries for which `condition` is true, and return their number.

        An entry that a worker replaces meanwhile stays.
        """
        dropped = 0
        for source, value in redis.hscan_iter(self.key, count=BATCH_SIZE):
            if condition(self._parse(value)):
                dropped += int(redis.eval(DROP, 1, self.key, source, value))
        return dropped

    def drop_all(self, redis: Any) -> int:
        """Remove all entries, and return their number."""
        with redis.pipeline() as pipe:
            pipe.hlen(self.key)
            pipe.delete(self.key)
            return int(pipe.execute()[0])

    def _parse(self, value: bytes) -> Item:
        # json.loads reads what json.dumps has written of any message. pydantic's JSON parser would
        # refuse lone surrogates, which the options in a message can contain.
        return self.kind(**json.loads(value))
