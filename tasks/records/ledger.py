"""Pictures that wait for somebody, each with what is known of it, in one Redis hash keyed by the
source's address.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from tasks import lua

AT_ONCE = 500
SORTED_AT_MOST = 100_000  # in memory, 30 MB

DROP = lua.load(__package__, "drop")


class Entry(Protocol):
    """A dataclass of JSON values. `time` is seconds since the epoch."""

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
    """The entries of one `kind`, in the Redis hash `key`."""

    key: str
    kind: type[Item]

    def record(self, redis: Any, entry: Item) -> None:
        """Keep `entry`, in the place of an older one of the same source."""
        redis.hset(self.key, entry.source, json.dumps(asdict(entry)))

    def discard(self, redis: Any, source: str) -> None:
        """Forget the entry of `source`, if there is one. `redis` may be a pipeline."""
        redis.hdel(self.key, source)

    def count(self, redis: Any) -> int:
        """How many there are."""
        return int(redis.hlen(self.key))

    def entries(self, redis: Any) -> Iterator[Item]:
        """All entries, in no order. One that is replaced meanwhile can come twice."""
        for _, value in redis.hscan_iter(self.key, count=AT_ONCE):
            yield self._parse(value)

    def of(self, redis: Any, sources: Sequence[str]) -> dict[str, Item]:
        """The entries of `sources`, as far as there are any."""
        found = redis.hmget(self.key, list(sources)) if sources else ()
        return {
            source: self._parse(value)
            for source, value in zip(sources, found, strict=True)
            if value is not None
        }

    def oldest_first(self, redis: Any) -> Iterator[Item]:
        """All entries by their time, or in no order if there are more than SORTED_AT_MOST."""
        if self.count(redis) > SORTED_AT_MOST:
            yield from self.entries(redis)
            return
        dated = sorted(
            {entry.source: entry.time for entry in self.entries(redis)}.items(),
            key=lambda item: item[1],
        )
        for start in range(0, len(dated), AT_ONCE):
            yield from self.of(
                redis, [source for source, _ in dated[start : start + AT_ONCE]]
            ).values()

    def drop(self, redis: Any, sources: Sequence[str]) -> int:
        """Forget the entries of `sources`; how many there were."""
        return int(redis.hdel(self.key, *sources)) if sources else 0

    def drop_where(self, redis: Any, condition: Callable[[Item], bool]) -> int:
        """Forget every entry of which `condition` is true; how many there were."""
        dropped = 0
        for source, value in redis.hscan_iter(self.key, count=AT_ONCE):
            if condition(self._parse(value)):
                dropped += int(redis.eval(DROP, 1, self.key, source, value))
        return dropped

    def drop_all(self, redis: Any) -> int:
        """Forget every entry; how many there were."""
        with redis.pipeline() as pipe:
            pipe.hlen(self.key)
            pipe.delete(self.key)
            return int(pipe.execute()[0])

    def _parse(self, value: bytes) -> Item:
        return self.kind(**json.loads(value))
