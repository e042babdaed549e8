"""The pictures on the desk: those of the review list, those below a score, and samples."""

import hashlib
import json
import threading
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import structlog

from tasks.addresses import ObjectUri
from tasks.errors import QueueUnavailable, VeilError, log_fields
from tasks.messages import AnonymizeOptions, AnonymizeRequest
from tasks.records import review, samples
from tasks.records.ledger import name_of
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tasks.records.samples import SampledPicture
from tasks.redis.errors import connected
from tasks.routes import Routed, Routes

log = structlog.get_logger("veil")

ID_DIGITS = 24
MAX_SHOWN = 1000
MAX_DECIDED = 10_000
DECIDED_SECONDS = 600.0
REFRESH_SECONDS = 2.0
MAX_AGE_SECONDS = 30.0  # The desk reads the list more often, also while nobody is there.

Value = TypeVar("Value")
State = Literal["held", "flagged", "low score", "sample"]
FILTERS: tuple[State, ...] = ("held", "flagged", "low score")


@dataclass(frozen=True)
class Item:
    """A picture on the desk.

    `etag` is the version of the source, `output_etag` that of the output if it is known. `source`
    is None for an output of a sample whose source is not known. `destination` is the one of the
    request, None for the default. `labels` and `box_labels` are those of ReviewEntry. `sample` and
    `number` are those of a sampled picture, and `marked_at` is the time of its mark.
    """

    id: str
    state: State
    source: str | None
    output: str | None
    destination: str | None
    etag: str | None
    reason: str
    time: float
    boxes_xyxy: list[list[int]] = field(default_factory=list)
    left_xyxy: list[list[int]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    faces: int | None = None
    labels: dict[str, int] | None = None
    box_labels: list[str] | None = None
    output_etag: str | None = None
    width: int | None = None
    height: int | None = None
    sample: str | None = None
    number: int | None = None
    marked_at: float | None = None

    @property
    def title(self) -> str:
        """The address for people."""
        return self.source or self.output or ""

    @property
    def version(self) -> str:
        """The digest of what a reviewer sees of the picture. Each version is decided by itself."""
        seen = [self.state, self.etag, self.output_etag, self.time, self.options, self.marked_at]
        content = json.dumps(seen)
        return hashlib.sha256(content.encode()).hexdigest()[:ID_DIGITS]

    def redo_options(self, more: AnonymizeOptions) -> AnonymizeOptions:
        """Return the options of the request, overridden by `more`, with the areas of both.

        A version that was released on the desk stays so.
        """
        options = self.as_entry().redo_options(more)
        if self.state == "sample" or self.options.get("release") != self.etag:
            return options
        return AnonymizeOptions.of({**options.to_json(), "release": self.etag})

    def release_options(self) -> AnonymizeOptions:
        """Return the options with which this version of the source is published as it is."""
        return self.as_entry().release_options()

    def as_entry(self) -> ReviewEntry:
        """Return the picture as an entry of the review list."""
        state: Literal["held", "flagged"] = "held" if self.state == "held" else "flagged"
        return ReviewEntry(
            self.source or "", self.etag or "", "", state, self.reason, 0, options=self.options
        )


def order_of(item: Item) -> tuple[bool, float, int, str]:
    """Return the place of `item` on the list, as a key to sort by.

    The oldest comes first, and those of a low score last. A sample is in the order of its drawing.
    """
    return item.state == "low score", item.time, item.number or 0, item.id


def item_of(entry: ReviewEntry, routes: Routes) -> Item:
    """Return the item of an entry of the review list."""
    routed = routed_of(entry.source, entry.destination, routes)
    return Item(
        id=id_of("review", name_of(entry.source, entry.destination)),
        state=entry.state,
        source=entry.source,
        output=None if routed is None else str(routed.destination),
        destination=entry.destination,
        etag=entry.etag,
        reason=entry.reason,
        time=entry.time,
        boxes_xyxy=entry.boxes_xyxy,
        left_xyxy=entry.left_xyxy,
        options=entry.options,
        faces=entry.faces,
        labels=entry.labels,
        box_labels=entry.box_labels,
    )


def item_of_sample(name: str, number: int, picture: SampledPicture, created: float = 0.0) -> Item:
    """Return the item of an output of a sample, which was `created` at that time."""
    return Item(
        id=id_of("sample", f"{name}\n{number}"),
        state="sample",
        source=picture.source,
        output=picture.output,
        destination=picture.output,
        etag=picture.source_etag,
        reason=f"picture {number + 1} of the sample {name}",
        time=created,
        boxes_xyxy=picture.boxes_xyxy,
        options=picture.options,
        faces=len(picture.boxes_xyxy),
        output_etag=picture.etag,
        width=picture.width,
        height=picture.height,
        sample=name,
        number=number,
    )


def routed_of(source: str, destination: str | None, routes: Routes) -> Routed | None:
    """Return the request for a picture with its route; None if no route leads there any more."""
    try:
        return routes.resolve(AnonymizeRequest.parse(source=source, destination=destination))
    except VeilError:
        return None


def id_of(kind: str, name: str) -> str:
    """Return the id of a picture: a digest, so that no key gets into an address of the desk."""
    content = f"{kind}\0{name}".encode("utf-8", "backslashreplace")
    return hashlib.sha256(content).hexdigest()[:ID_DIGITS]


class Items:
    """The pictures on the desk, as they were in Redis at most a few seconds ago.

    Threads share one object. A page never waits for the list to be read again: it gets the present
    one, and another thread reads. What a decision is about is always read anew, see `present`.
    """

    def __init__(self, redis: Any, routes: Routes) -> None:
        self._redis = redis
        self._routes = routes
        self._reading = threading.Lock()
        self._read_at = float("-inf")
        self._review: dict[str, Item] = {}
        self._low: dict[str, Item] = {}
        self._samples: dict[str, list[Item]] = {}
        self._of_samples: dict[str, Item] = {}
        self._shown: OrderedDict[str, Item] = OrderedDict()
        self._requested: OrderedDict[str, Item] = OrderedDict()
        self._decided: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._asked: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def listed(self, state: str | None = None) -> list[Item]:
        """Return the pictures to decide on, oldest first, or those of one state."""
        self._refresh()
        return [item for item in self._merged() if state is None or item.state == state]

    def counts(self) -> dict[str, int]:
        """Return the number of pictures of each state."""
        self._refresh()
        counts: dict[str, int] = dict.fromkeys(FILTERS, 0)
        for item in self._merged():
            counts[item.state] += 1
        return counts

    def _merged(self) -> list[Item]:
        return merged([*self._review.values()], [*self._low.values()])

    def find(self, identity: str) -> Item | None:
        """Return the picture with this id; None if it is gone."""
        self._refresh()
        for known in (self._review, self._low, self._of_samples, self._shown):
            if item := known.get(identity):
                return item
        return None

    def keep(self, item: Item) -> None:
        """Keep a picture that is shown, also when it leaves the list: its new output is shown."""
        _remember(self._shown, item.id, item, MAX_SHOWN)

    def keep_requested(self, item: Item, options: AnonymizeOptions) -> Item:
        """Return `item` as it was requested again with `options`, and keep it.

        A reviewer who sees its new output can request it once more, also when it has left the list.
        """
        requested = replace(item, options=options.to_json(), output_etag=None, time=time.time())
        _remember(self._requested, item.id, requested, MAX_SHOWN)
        return requested

    def requested(self, identity: str, version: str) -> Item | None:
        """Return the picture of this `version` that was requested; None if there is none."""
        item = self._requested.get(identity)
        return item if item is not None and item.version == version else None

    def present(self, item: Item) -> Item | None:
        """Return `item` as it is in Redis now; None if it is no longer on the list or the sample.

        A sampled picture that somebody has marked since is another version.
        """
        if item.sample is not None:
            return self._sampled(item)
        if item.state not in ("held", "flagged"):
            return item
        entry = self._entry(item)
        if entry is None:
            return None
        found = item_of(entry, self._routes)
        return merged([found], self._low_of(found))[0]

    def entry(self, item: Item) -> ReviewEntry | None:
        """Return the entry of this version of a picture on the review list, if it has one now.

        An output of a sample or with a low score may have one, too. Else what was requested last
        takes its place.
        """
        if item.source is None:
            return None
        routed = routed_of(item.source, item.destination, self._routes)
        if routed is None:
            return None
        with connected():
            found = review.entry_of(self._redis, routed, item.etag)
        requested = self._requested.get(item.id)
        if found or item.state in ("held", "flagged") or requested is None:
            return found
        return requested.as_entry() if requested.etag == item.etag else None

    def _entry(self, item: Item) -> ReviewEntry | None:
        name = name_of(item.source or "", item.destination)
        with connected():
            return REVIEW_LIST.find(self._redis, [name]).get(name)

    def sample(self, name: str) -> list[Item]:
        """Return the pictures of a sample, in the order in which they were drawn.

        If Redis has lost it, a sample of the same name may have been drawn of other outputs.
        """
        with connected():
            created = samples.created(self._redis, name)
        if created is None:
            return []
        known = self._samples.get(name, [])
        if known and known[0].time == created:
            return known
        with connected():
            found = samples.find(self._redis, name)
        if found is None:
            return []
        items = [
            item_of_sample(name, number, picture, found.created)
            for number, picture in enumerate(found.pictures)
        ]
        self._samples[name] = items
        self._of_samples |= {item.id: item for item in items}
        return items

    def _sampled(self, item: Item) -> Item | None:
        assert item.sample is not None
        assert item.number is not None
        drawn = self.sample(item.sample)
        if item.number >= len(drawn):
            return None
        with connected():
            mark = samples.mark_of(self._redis, item.sample, item.number)
        return replace(drawn[item.number], marked_at=None if mark is None else mark.time)

    def remove(self, item: Item) -> None:
        """Take this version of a picture, which was decided on, off the desk.

        Redis has it until a worker has done what was decided. If none does, it comes back after
        DECIDED_SECONDS.
        """
        _remember(self._decided, item.id, (item.version, time.monotonic()), MAX_DECIDED)
        self._review.pop(item.id, None)
        for low in self._low_of(item):
            self._low.pop(low.id, None)
        self._low.pop(item.id, None)

    def remove_asked_for(self, item: Item, entry: ReviewEntry) -> None:
        """Take a picture off the desk whose `entry` has the areas that were asked for now.

        If its request fails, whoever has drawn them decides on it as she sees it.
        """
        asked = replace(item, time=entry.time, options=entry.options)
        _remember(self._asked, item.id, (asked.version, item.version), MAX_DECIDED)
        self.remove(asked)

    def is_version(self, item: Item, version: str) -> bool:
        """Return whether `item` is the picture that was shown as `version`."""
        return version == item.version or (item.version, version) == self._asked.get(item.id)

    def _low_of(self, item: Item) -> list[Item]:
        """Return the low score of a flagged picture, if it has one."""
        if item.state != "flagged" or item.output is None:
            return []
        low = self._low.get(id_of("low", item.output))
        return [] if low is None else [low]

    def _is_decided(self, item: Item) -> bool:
        version, since = self._decided.get(item.id, ("", 0.0))
        is_same = version == item.version or self._asked.get(item.id) == (version, item.version)
        return is_same and time.monotonic() - since < DECIDED_SECONDS

    def add_low_scores(self, items: Iterable[Item]) -> None:
        """Add pictures with a doubtful face."""
        for item in items:
            self._low[item.id] = item

    def read(self) -> None:
        """Read the review list. Raises QueueUnavailable."""
        with self._reading:
            with connected():
                entries = list(REVIEW_LIST.entries(self._redis))
            found = [item_of(entry, self._routes) for entry in entries]
            items = sorted(found, key=order_of)
            self._review = {item.id: item for item in items if not self._is_decided(item)}
            self._read_at = time.monotonic()

    def _refresh(self) -> None:
        """Have the list read by another thread if it is old; wait only if it is very old."""
        age = time.monotonic() - self._read_at
        if age > MAX_AGE_SECONDS:
            self.read()
        elif age > REFRESH_SECONDS and not self._reading.locked():
            threading.Thread(target=self._try_to_read, daemon=True).start()

    def _try_to_read(self) -> None:
        try:
            self.read()
        except QueueUnavailable as error:
            log.warning("review list not read", **log_fields(error))


def _remember(known: OrderedDict[str, Value], identity: str, value: Value, limit: int) -> None:
    """Keep `value` as the newest in `known`, and forget the oldest ones beyond `limit`."""
    known[identity] = value
    known.move_to_end(identity)
    while len(known) > limit:
        known.popitem(last=False)


def merged(listed: Iterable[Item], low: Iterable[Item]) -> list[Item]:
    """Return the pictures `listed`, in this order, and then those with a `low` score, oldest first.

    A flagged picture with a low score is one picture, with both reasons.
    """
    low_scores = {item.output: item for item in sorted(low, key=order_of)}
    found = []
    for item in listed:
        other = low_scores.pop(item.output, None) if item.state == "flagged" else None
        reason = item.reason if other is None else f"{item.reason}; {other.reason}"
        found.append(item if other is None else replace(item, reason=reason))
    return [*found, *low_scores.values()]


def after(items: Sequence[Item], shown: Item | None, step: int) -> Iterator[Item]:
    """Yield `items` in a ring, from the one after `shown`; with a `step` of -1 backwards.

    `shown` may have left the list, as it does once it is decided on.
    """
    if shown is None:
        start = 0 if step > 0 else -1
    elif step > 0:
        start = bisect_right(items, order_of(shown), key=order_of)
    else:
        start = bisect_left(items, order_of(shown), key=order_of) - 1
    for number in range(len(items)):
        item = items[(start + number * step) % len(items)]
        if shown is None or item.id != shown.id:
            yield item


def drop_entry(redis: Any, item: Item) -> None:
    """Take the entry of `item` off the review list, unless a worker has recorded another since."""

    def is_same(entry: ReviewEntry) -> bool:
        return (entry.etag, entry.time) == (item.etag, item.time)

    with connected():
        REVIEW_LIST.drop_one(redis, name_of(item.source or "", item.destination), is_same)


def output_uri(item: Item) -> ObjectUri | None:
    """Return the address of the output; None if no route leads there."""
    return None if item.output is None else ObjectUri.parse(item.output)
