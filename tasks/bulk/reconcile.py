"""What is wrong between sources and outputs, proven picture by picture, and what of it a worker can
put right.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from tasks.addresses import ObjectUri
from tasks.bulk.comparison import Compared, Settled, compare, read_receipt, settle
from tasks.bulk.in_order import in_order
from tasks.bulk.places import Places
from tasks.publishing import Wanted
from tasks.records import dead_letters
from tasks.redis_errors import connected
from tasks.storage import receipts
from tasks.storage.receipts import Made
from tasks.storage.s3 import ObjectStore, StoredObject

THREADS = 32  # that ask S3 at once
AT_ONCE = 500  # findings that are looked up among the dead letters, and put on the queue, together
TICK = 1000

State = Literal[
    "current", "missing", "stale", "held", "orphan", "refused", "unknown key", "dead", "archived"
]
WRONG: tuple[State, ...] = ("missing", "stale", "orphan", "refused", "unknown key", "dead")
UNTOLD: tuple[State, ...] = ("current", "archived")
REPAIRABLE: tuple[State, ...] = (
    "missing",
    "stale",
)  # a dead picture needs somebody to look at it first


@dataclass(frozen=True)
class Only:
    """Which findings are wanted, by what their outputs are; all that are not current, unless
    something is set.
    """

    other_recipe: bool = False
    below_score: float | None = None

    @property
    def everything(self) -> bool:
        return not self.other_recipe and self.below_score is None


@dataclass(frozen=True)
class Finding:
    """A picture that is not current, or one whose faces are doubtful, and why it is told.

    `version` is the source as it is now, None where there is none. `lowest_score` is known where it
    was asked for.
    """

    state: State
    source: ObjectUri
    output: ObjectUri
    reason: str
    version: StoredObject | None = None
    lowest_score: float | None = None
    is_wanted: bool = True
    enqueued: bool = False

    def wanted(self, places: Places) -> Wanted:
        """The request that makes it anew."""
        etag = None if self.version is None else self.version.etag
        return Wanted(self.source, places.asked_destination(places.key(self.source)), etag)


Publish = Callable[[Sequence[Wanted]], None]


class Reconciliation:
    """One reading of two places.

    `counts` has, by state, what was seen so far, wanted or not; `is_complete` once everything was.
    """

    def __init__(
        self,
        store: ObjectStore,
        places: Places,
        recipe: str | None,
        redis: Any,
        only: Only = Only(),
        sources_deleted: bool = False,
        on_tick: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`redis` has the dead letters. Without a `recipe` any will do. `on_tick` gets the number
        of further keys.

        With `sources_deleted` an output without a source is archived, and no orphan, if it has its
        receipt.
        """
        self.counts: Counter[State] = Counter()
        self.enqueued = 0
        self.is_complete = False
        self._store = store
        self._places = places
        self._recipe = recipe
        self._redis = redis
        self._only = only
        self._sources_deleted = sources_deleted
        self._on_tick = on_tick

    @property
    def wrong(self) -> int:
        return sum(self.counts[state] for state in WRONG)

    def findings(
        self, publish: Publish | None = None, limit: int | None = None
    ) -> Iterator[Finding]:
        """What is wanted, at most `limit` of it, in the order of the store; memory does not grow
        with the keys.

        What a worker can put right is given to `publish` before it is told.
        """
        examined = self._examined()
        while limit is None or limit > 0:
            batch = list(islice(examined, AT_ONCE))
            if not batch:
                self.is_complete = True
                return
            found = self._with_dead_letters(batch)
            self.counts.update(finding.state for finding in found)
            wanted = [finding for finding in found if finding.is_wanted][:limit]
            if limit is not None:
                limit -= len(wanted)
            yield from self._published(wanted, publish) if publish else wanted

    def _examined(self) -> Iterator[Finding]:
        """What is not current, and what is asked for by its score, each settled."""
        return (
            finding for finding in in_order(self._examine, self._doubtful(), THREADS) if finding
        )

    def _doubtful(self) -> Iterator[Compared]:
        for number, compared in enumerate(
            compare(self._store, self._places, self._recipe), start=1
        ):
            if number % TICK == 0:
                self._on_tick(TICK)
            if compared.is_current and self._only.below_score is None:
                self.counts["current"] += 1
            else:
                yield compared

    def _examine(self, compared: Compared) -> Finding | None:
        """What there is to tell; None of a picture that is gone, or is told of as a source."""
        if compared.is_current:
            settled = Settled(compared.key, "current", compared.source, None)
            made: Made | None = compared.made[0]
        else:
            found = settle(self._store, self._places, self._recipe, compared)
            if found is None or (compared.source is None and found.state != "orphan"):
                return None
            settled, made = found, _made(found)
        finding = Finding(
            "archived" if self._is_archived(settled) else settled.state,
            self._places.source.join(settled.key),
            self._places.destination(settled.key),
            _reason(self._places, settled, made, self._recipe),
            settled.source,
        )
        return self._chosen(finding, made)

    def _is_archived(self, settled: Settled) -> bool:
        if settled.state != "orphan" or settled.output is None or not self._sources_deleted:
            return False
        receipt = read_receipt(self._store, self._places, Made.said_by(settled.key, settled.output))
        return receipt is not None and receipt.output_bytes == settled.output.size

    def _chosen(self, finding: Finding, made: Made | None) -> Finding:
        if self._only.everything:
            return replace(finding, is_wanted=finding.state not in UNTOLD)
        if made is None or (self._only.other_recipe and receipts.is_of(made.recipe, self._recipe)):
            return replace(finding, is_wanted=False)
        if self._only.below_score is None:
            return finding
        receipt = read_receipt(self._store, self._places, made)
        score = None if receipt is None else receipt.lowest_score
        # Without a receipt nobody knows, and somebody should look.
        is_wanted = receipt is None or (score is not None and score < self._only.below_score)
        return replace(finding, lowest_score=score, is_wanted=is_wanted)

    def _with_dead_letters(self, batch: Sequence[Finding]) -> list[Finding]:
        asked = [str(finding.source) for finding in batch if finding.state in REPAIRABLE]
        with connected():
            letters = dead_letters.LETTERS.find(self._redis, asked)
        return [_dead(finding, letters.get(str(finding.source))) for finding in batch]

    def _published(self, wanted: Sequence[Finding], publish: Publish) -> Iterator[Finding]:
        repaired = [
            finding.wanted(self._places) for finding in wanted if finding.state in REPAIRABLE
        ]
        if repaired:
            publish(repaired)
        self.enqueued += len(repaired)
        for finding in wanted:
            yield replace(finding, enqueued=finding.state in REPAIRABLE)


def _made(settled: Settled) -> Made | None:
    """What the output of a picture says of itself; None where there is none of it."""
    if settled.state not in ("current", "stale") or settled.output is None:
        return None
    return Made.said_by(settled.key, settled.output)


def _reason(places: Places, settled: Settled, made: Made | None, recipe: str | None) -> str:
    if settled.state == "missing":
        return "no output" if settled.output is None else "something else is in its place"
    if settled.state == "orphan":
        return "no source"
    if settled.state == "held":
        return settled.reason or "no face found"
    if settled.state in ("refused", "unknown key"):
        return settled.reason or ""
    assert made is not None
    if settled.state == "current":
        return "faces with low scores"
    assert settled.source is not None
    if settled.reason is not None:
        return settled.reason
    changed = not places.marks.is_version(made.etag, settled.source.uri, settled.source.etag)
    reasons = ["source changed"] * changed + ["other recipe"] * (
        not receipts.is_of(made.recipe, recipe)
    )
    return ", ".join(reasons)


def _dead(finding: Finding, letter: dead_letters.DeadLetter | None) -> Finding:
    """`finding`, dead if its `letter` is of this version of its source."""
    if letter is None or finding.state not in REPAIRABLE:
        return finding
    modified = finding.version and finding.version.modified
    if modified and modified.timestamp() > letter.time:
        return finding  # replaced since, and nobody has tried that one
    return replace(finding, state="dead", reason=f"{letter.error}: {letter.message}")
