"""The review list: pictures that were held, or published although a person should check them."""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..messages import AnonymizeOptions, AnonymizeReport
from ..routes import Routed
from .ledger import Ledger, has_all, name_of

State = Literal["held", "flagged"]


@dataclass(frozen=True)
class ReviewEntry:
    """A picture that a person should review, with the boxes of its faces but without pixels.

    - `state`: ``held`` for a picture without an output, ``flagged`` for one with an output.
    - `etag`: the version of the source.
    - `time`: in seconds since the epoch.
    - `destination`: the address of the output, or None for the default one of the route.
    - `options`: those of the request.
    - `faces`: the number of faces that were hidden, if known. `boxes_xyxy` contains the first
      MAX_BOXES of their boxes, in whole pixels of the upright picture.
    - `labels`: the number of objects by label, and `box_labels` the label of each of `boxes_xyxy`,
      if the worker's models find other objects than faces too; else both are None.
    - `left`: the number of faces that the last residual check still found, if known. `left_xyxy`
      contains the first MAX_BOXES of their boxes.
    """

    source: str
    etag: str
    recipe: str
    state: State
    reason: str
    time: float
    destination: str | None = None
    boxes_xyxy: list[list[int]] = field(default_factory=list)
    left_xyxy: list[list[int]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    faces: int | None = None
    left: int | None = None
    labels: dict[str, int] | None = None
    box_labels: list[str] | None = None

    @property
    def name(self) -> str:
        return name_of(self.source, self.destination)

    def release_options(self) -> AnonymizeOptions:
        """Return the options with which this version of the source is published as it is."""
        return AnonymizeOptions.of({**self.options, "release": self.etag})

    def redo_options(self, more: AnonymizeOptions) -> AnonymizeOptions:
        """Return the options of the request, overridden by `more`, with the areas of both."""
        return AnonymizeOptions.of(self.options).with_more(more, self.etag)

    def with_asked(self, more: AnonymizeOptions) -> AnonymizeOptions:
        """Return the options `more`, which also hide what this entry asks for.

        They are for a request that does not come from the review list: its output takes the place
        of one that may still wait.
        """
        asked = AnonymizeOptions.of(self.options)
        hidden = AnonymizeOptions(method=asked.method, region=asked.region, extra=asked.extra)
        return hidden.with_more(more, more.version)

    def asked_for(self, options: AnonymizeOptions) -> "ReviewEntry":
        """Return the entry of a picture that was requested again with `options`.

        Until a worker has made it, a further request must hide the same areas, because its output
        takes the place of the other one. What keeps faces clear does not stay.
        """
        kept = {"method": options.method, "region": options.region, "extra": options.extra}
        asked = AnonymizeOptions.of(self.options).model_copy(update=kept)
        return replace(self, options=asked.to_json())


REVIEW_LIST = Ledger("veil:review", ReviewEntry)
DESK = "veil:review:desk"  # the address of the review desk, as long as one is open
DESK_SECONDS = 60  # without a sign of life


def entry_of(redis: Any, routed: Routed, etag: str | None) -> ReviewEntry | None:
    """Return the entry of an output for the version `etag` of its source; None if it has none."""
    source = str(routed.request.source)
    names = [name_of(source, named) for named in routed.destinations]
    entries = REVIEW_LIST.find(redis, names).values()
    return next((entry for entry in entries if entry.etag == etag), None)


def announce_desk(redis: Any, address: str) -> None:
    """Record that a review desk is open at `address`. It calls this again and again."""
    redis.set(DESK, address, ex=DESK_SECONDS)


def desk_address(redis: Any) -> str | None:
    """Return the address of the review desk; None if none is open."""
    stored = redis.get(DESK)
    return None if stored is None else str(stored.decode())


def update(redis: Any, routed: Routed, report: AnonymizeReport) -> None:
    """Put the picture of `report` on the review list if it has a reason; else take it off.

    This replaces or removes the entry of another version of the source. The entry of a picture that
    was held stays if the output that exists already is an older one, without what was asked for.
    """
    if report.reason is None:
        if report.status == "skipped" and _is_held_since(redis, routed, report):
            return
        REVIEW_LIST.discard(redis, report.source, routed.destinations)
        return
    entry = ReviewEntry(
        source=report.source,
        etag=report.source_etag or "",
        recipe=report.recipe,
        state="held" if report.status == "held" else "flagged",
        reason=report.reason,
        time=time.time(),
        destination=routed.destinations[0],
        boxes_xyxy=report.boxes_xyxy or [],
        left_xyxy=report.left_xyxy or [],
        options=report.options or {},
        faces=report.faces,
        left=report.left,
        labels=report.labels,
        box_labels=report.box_labels,
    )
    REVIEW_LIST.record(redis, entry)


def _is_held_since(redis: Any, routed: Routed, report: AnonymizeReport) -> bool:
    """Return whether this version is held by a request for more than its output was made with."""
    names = [name_of(report.source, named) for named in routed.destinations]
    return any(
        entry.state == "held"
        and entry.etag == report.source_etag
        and not has_all(report.options or {}, entry.options)
        for entry in REVIEW_LIST.find(redis, names).values()
    )
