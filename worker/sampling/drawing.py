"""Draw random samples from a listing, in one pass and in bounded memory.

Each picture has a rank: a digest of the seed and of its name. A sample has the lowest ranks, so it
depends on the seed and on the pictures, and not on the order in which a store lists them.
"""

import hashlib
import heapq
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

RANK_BYTES = 16

Item = TypeVar("Item")


def rank(seed: int, name: str) -> int:
    """Return the rank of the picture `name`: a number that looks random, the same for a seed."""
    message = f"{seed}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(message).digest()[:RANK_BYTES], "big")


class Sample(Generic[Item]):
    """At most `size` of the items that are added, each equally likely, and the number of all."""

    def __init__(self, size: int, seed: int) -> None:
        self.count = 0
        self._size = size
        self._seed = seed
        # A heap whose first entry has the highest rank; names tell entries of one rank apart.
        self._lowest: list[tuple[int, str, Item]] = []

    def add(self, name: str, item: Item) -> None:
        """Offer `item`. A `name` that comes twice counts twice."""
        self.count += 1
        entry = (-rank(self._seed, name), name, item)
        if len(self._lowest) < self._size:
            heapq.heappush(self._lowest, entry)
        elif self._lowest and entry[0] > self._lowest[0][0]:
            heapq.heapreplace(self._lowest, entry)

    @property
    def items(self) -> list[Item]:
        """The items that were drawn, lowest rank first: each beginning is a sample, too."""
        ordered = sorted(self._lowest, key=lambda entry: -entry[0])
        return [item for _, _, item in ordered]


@dataclass
class Stratum(Generic[Item]):
    """The pictures of one kind: their number, their bytes, and the sample of them."""

    sample: Sample[Item]
    size_bytes: int = 0
    drawn: list[Item] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.sample.count


class StratifiedSample(Generic[Item]):
    """A sample with a share of each stratum: as many as its share of all pictures, at least one.

    If there are more strata than pictures to draw, the largest strata have one each.
    """

    def __init__(self, size: int, seed: int, stratum_of: Callable[[Item], Hashable]) -> None:
        self.strata: dict[Hashable, Stratum[Item]] = {}
        self._size = size
        self._seed = seed
        self._stratum_of = stratum_of

    def add(self, name: str, item: Item, size_bytes: int) -> None:
        key = self._stratum_of(item)
        if key not in self.strata:
            self.strata[key] = Stratum(Sample(self._size, self._seed))
        stratum = self.strata[key]
        stratum.sample.add(name, item)
        stratum.size_bytes += size_bytes

    @property
    def count(self) -> int:
        return sum(stratum.count for stratum in self.strata.values())

    @property
    def size_bytes(self) -> int:
        return sum(stratum.size_bytes for stratum in self.strata.values())

    def draw(self) -> list[Stratum[Item]]:
        """Return the strata, largest first, each with its drawn pictures."""
        ordered = sorted(self.strata.values(), key=lambda stratum: -stratum.count)
        shares = allocate(self._size, [stratum.count for stratum in ordered])
        for stratum, share in zip(ordered, shares, strict=True):
            stratum.drawn = stratum.sample.items[:share]
        return ordered


def allocate(size: int, counts: Iterable[int]) -> list[int]:
    """Return how many of `size` pictures to draw from strata of so many pictures, largest first.

    Each stratum gets one, as far as they suffice. The others go by the method of Webster, to the
    stratum that is the farthest below its share.
    """
    counts = list(counts)
    shares = [0] * len(counts)
    for number in range(min(size, len(counts))):
        shares[number] = min(1, counts[number])
    claims = [
        (-count / (2 * share + 1), number)
        for number, (count, share) in enumerate(zip(counts, shares, strict=True))
        if count > share
    ]
    heapq.heapify(claims)
    remaining = size - sum(shares)
    while remaining > 0 and claims:
        _, number = heapq.heappop(claims)
        shares[number] += 1
        remaining -= 1
        if shares[number] < counts[number]:
            claim = -counts[number] / (2 * shares[number] + 1)
            heapq.heappush(claims, (claim, number))
    return shares
