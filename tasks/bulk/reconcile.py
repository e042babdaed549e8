"""Reconcile sources with outputs: find pictures that are not current, and enqueue them again."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from ..addresses import ObjectUri
from ..backoff import ReportingBackoff
from ..errors import NothingFound
from ..publishing import Wanted
from ..records import dead_letters
from ..records.ledger import name_of
from ..redis.errors import connected
from ..storage import receipts
from ..storage.receipts import ReceiptName
from ..storage.s3 import ObjectStore, StoredObject
from .comparison import Compared, Settled, compare, read_receipt, settle
from .in_order import in_order
from .places import Places

THREADS = 32  # concurrent calls to S3
BATCH = 500  # findings that are looked up among the dead letters, and published, together
TICK = 1000  # keys from one report of progress to the next

State = Literal[
    "current", "missing", "stale", "held", "taken", "orphan", "refused", "unknown key", "dead",
    "archived", "source unknown",
]  # fmt: skip
WRONG: tuple[State, ...] = (
    "missing", "stale", "taken", "orphan", "refused", "unknown key", "dead",
)  # fmt: skip
UNREPORTED: tuple[State, ...] = ("current", "archived", "source unknown")
REPAIRABLE: tuple[State, ...] = ("missing", "stale")  # not "dead": somebody must act first


@dataclass(frozen=True)
class Only:
    """A choice of findings by the receipts of their outputs.

    By default it takes all pictures that are not current. `other_recipe` takes outputs of another
    recipe and pictures that it held, `below_score` takes outputs with a face of a lower score.
    """

    other_recipe: bool = False
    below_score: float | None = None

    @property
    def everything(self) -> bool:
        return not self.other_recipe and self.below_score is None


@dataclass(frozen=True)
class Finding:
    """A picture that is not current, or has doubtful faces, and the `reason` for the finding.

    `source` is None if the name of the output is hashed, and no source has this name. `version` is
    the source as it is now, None if it is gone. `lowest_score` is only set if findings are chosen
    by their score. `is_wanted` says whether they were chosen. `older_output` is true for a held
    picture of which an older output is still published.
    """

    state: State
    source: ObjectUri | None
    output: ObjectUri
    reason: str
    version: StoredObject | None = None
    lowest_score: float | None = None
    is_wanted: bool = True
    enqueued: bool = False
    older_output: bool = False

    def wanted(self, places: Places) -> Wanted:
        """Return the picture to publish, so that a worker makes its output again."""
        assert self.source is not None
        etag = None if self.version is None else self.version.etag
        return Wanted(self.source, places.asked_destination(places.key(self.source)), etag)

    def destinations(self, places: Places) -> tuple[str | None, ...]:
        """Return the destinations in requests that lead to the output; None for the default."""
        assert self.source is not None
        named = str(self.output)
        is_default = places.asked_destination(places.key(self.source)) is None
        return (None, named) if is_default else (named,)

    def letter_names(self, places: Places) -> list[str]:
        """Return the names that a dead letter of the picture can have."""
        source = str(self.source)
        # Version 0.2.0 and before named a letter for the source alone, whatever its destination.
        return [source, *(name_of(source, named) for named in self.destinations(places))]


Publish = Callable[[Sequence[Wanted]], None]


class Reconciliation:
    """A comparison of two places.

    `counts` has the pictures so far by state, without those that are not current and were not
    chosen. Of the held ones, `held_with_output` have an older output that is still published.
    `is_complete` is true at the end, `is_at_limit` if the limit of findings ended it before.
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
        suffixes: tuple[str, ...] = (),
        *,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare a comparison. Nothing is read before `findings`.

        `redis` has the dead letters. Without a `recipe`, outputs of any recipe are current.
        `on_tick` gets the number of keys since its last call. With `sources_deleted` an output
        without a source is archived, and no orphan, if it has its receipt. With `suffixes`, other
        keys are left out; upper and lower case are the same. `tell` gets a line when Redis can't be
        used any more, and one when it can be again.
        """
        self.counts: Counter[State] = Counter()
        self.held_with_output = 0
        self.enqueued = 0
        self.is_complete = self.is_at_limit = False
        self._store = store
        self._places = places
        self._recipe = recipe
        self._redis = redis
        self._only = only
        self._sources_deleted = sources_deleted
        self._on_tick = on_tick
        self._is_empty = True
        self._backoff = ReportingBackoff(tell)
        self._suffixes = tuple(suffix.lower() for suffix in suffixes) or ("",)

    @property
    def wrong(self) -> int:
        return sum(self.counts[state] for state in WRONG)

    def findings(
        self, publish: Publish | None = None, limit: int | None = None
    ) -> Iterator[Finding]:
        """Yield the chosen findings, at most `limit`, in listing order.

        `publish` gets those that a worker can repair, before they are yielded. Memory does not grow
        with the number of keys. It waits while Redis can't be used. Raises NothingFound at the end
        if there was no picture.
        """
        examined = self._examined()
        while limit is None or limit > 0:
            batch = list(islice(examined, BATCH))
            if not batch:
                self._require_pictures()
                self.is_complete = True
                return
            self._is_empty = False
            found = self._with_dead_letters(batch)
            chosen = [finding for finding in found if finding.is_wanted]
            good = [each for each in found if not each.is_wanted and each.state in UNREPORTED]
            self.counts.update(finding.state for finding in (*chosen, *good))
            self.held_with_output += sum(finding.older_output for finding in chosen)
            chosen = chosen[:limit]
            if limit is not None:
                limit -= len(chosen)
            yield from self._published(chosen, publish) if publish else chosen
        self.is_at_limit = True

    def _require_pictures(self) -> None:
        """Raise NothingFound if nothing was compared."""
        if self._is_empty and not self.counts.total():
            source, output = self._places.source, self._places.output
            suffixed = "" if self._suffixes == ("",) else " with this suffix"
            raise NothingFound(
                f"no source below {source} and no output below {output}{suffixed}: "
                "correct the addresses"
            )

    def _examined(self) -> Iterator[Finding]:
        """Yield the settled findings."""
        for finding in in_order(self._examine, self._doubtful(), THREADS):
            if finding is not None:
                yield finding

    def _doubtful(self) -> Iterator[Compared]:
        """Yield the pictures that may not be current, and current ones if scores are asked for."""
        all_compared = compare(self._store, self._places, self._recipe)
        for number, compared in enumerate(all_compared, start=1):
            if number % TICK == 0:
                self._on_tick(TICK)
            name = compared.source.uri.key if compared.source else compared.key
            if not name.lower().endswith(self._suffixes):
                continue
            if compared.is_current and self._only.below_score is None:
                self.counts["current"] += 1
            else:
                yield compared

    def _examine(self, compared: Compared) -> Finding | None:
        """Return the finding on a picture.

        Return None if both its objects are gone, or if it is reported as a source.
        """
        if compared.is_current:
            settled = Settled(compared.key, "current", compared.source, None)
            name: ReceiptName | None = compared.receipts[0]
        else:
            found = settle(self._store, self._places, self._recipe, compared)
            if found is None or (compared.source is None and found.state != "orphan"):
                return None
            settled, name = found, _receipt_name(found)
        finding = Finding(
            self._state(settled),
            settled.source_uri(self._store, self._places),
            self._places.destination(settled.key),
            _reason(self._places, settled, name, self._recipe),
            settled.source,
            older_output=settled.state == "held" and settled.output is not None,
        )
        return self._chosen(finding, name)

    def _state(self, settled: Settled) -> State:
        """Return the state of a picture; its receipt decides about an output without a source.

        An output whose request named its destination is marked with another source than the one
        that belongs to its place.
        """
        if settled.state != "orphan" or settled.output is None:
            return settled.state
        output, places = settled.output, self._places
        receipt = read_receipt(self._store, places, ReceiptName.of_output(settled.key, output))
        if receipt is None or receipt.output_bytes != output.size:
            return "orphan"
        source = settled.source_uri(self._store, places)
        if source is None:
            is_own = places.route.names.may_be_default(settled.key)
        else:
            is_own = places.marks.is_source(output.metadata, source)
        if not is_own:
            return "source unknown"
        return "archived" if self._sources_deleted else "orphan"

    def _chosen(self, finding: Finding, name: ReceiptName | None) -> Finding:
        """Return `finding` with `is_wanted`, and with its score if that decides."""
        only = self._only
        if only.everything:
            return replace(finding, is_wanted=finding.state not in UNREPORTED)
        if name is None:
            return replace(finding, is_wanted=False)
        if only.other_recipe and receipts.is_of_recipe(name.recipe, self._recipe):
            return replace(finding, is_wanted=False)
        if only.below_score is None:
            return finding
        receipt = read_receipt(self._store, self._places, name)
        if receipt is None:
            return finding  # The score is unknown, so somebody should see the picture.
        score = receipt.lowest_score
        is_wanted = score is not None and score < only.below_score
        return replace(finding, lowest_score=score, is_wanted=is_wanted)

    def _with_dead_letters(self, batch: Sequence[Finding]) -> list[Finding]:
        """Return `batch`, in which pictures that have a dead letter are dead."""
        names: list[str] = []
        for finding in batch:
            if finding.state in REPAIRABLE:
                names += finding.letter_names(self._places)

        def read() -> Mapping[str, dead_letters.DeadLetter]:
            with connected():
                return dead_letters.LETTERS.find(self._redis, names)

        letters = self._backoff.until_reached(read)
        return [_dead(finding, letters, self._places) for finding in batch]

    def _published(self, chosen: Sequence[Finding], publish: Publish) -> Iterator[Finding]:
        repairable = [finding for finding in chosen if finding.state in REPAIRABLE]
        if repairable:
            wanted = [finding.wanted(self._places) for finding in repairable]
            self._backoff.until_reached(lambda: publish(wanted))
        self.enqueued += len(repairable)
        for finding in chosen:
            yield replace(finding, enqueued=finding.state in REPAIRABLE)


def _receipt_name(settled: Settled) -> ReceiptName | None:
    """Return the name of the receipt that decides about the recipe and the score of a picture.

    It is that of the output, by its metadata, or that of a hold by another recipe. It is None for a
    picture with neither.
    """
    if settled.hold is not None:
        return settled.hold
    if settled.state not in ("current", "stale") or settled.output is None:
        return None
    return ReceiptName.of_output(settled.key, settled.output)


def _reason(places: Places, settled: Settled, name: ReceiptName | None, recipe: str | None) -> str:
    if settled.state == "missing":
        return "no output" if settled.output is None else "something else is in its place"
    if settled.state == "orphan":
        return "no source"
    if settled.state == "held":
        reason = settled.reason or "no face found"
        return reason if settled.output is None else f"{reason}; an older output is published"
    if settled.state in ("taken", "refused", "unknown key"):
        return settled.reason or ""
    assert name is not None
    if settled.state == "current":
        return "faces with low scores"
    assert settled.source is not None
    if settled.reason is not None:
        return settled.reason
    reasons = []
    if not places.marks.is_version(name.etag, settled.source.uri, settled.source.etag):
        reasons.append("source changed")
    if not receipts.is_of_recipe(name.recipe, recipe):
        reasons.append("other recipe")
    return ", ".join(reasons)


def _dead(
    finding: Finding, letters: Mapping[str, dead_letters.DeadLetter], places: Places
) -> Finding:
    """Return `finding`, as dead if one of `letters` is of this version of its source."""
    if finding.state not in REPAIRABLE:
        return finding
    destinations = finding.destinations(places)
    found = [letters[name] for name in finding.letter_names(places) if name in letters]
    letter = next((each for each in found if each.destination in destinations), None)
    if letter is None:
        return finding
    modified = finding.version and finding.version.modified
    if modified and modified.timestamp() > letter.time:
        return finding  # The source was replaced, and no worker has tried the new version.
    return replace(finding, state="dead", reason=f"{letter.error}: {letter.message}")
