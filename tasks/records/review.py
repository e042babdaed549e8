"""Pictures that somebody should look at, because they were held back, or published with a doubt."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from tasks.messages import AnonymizeOptions, AnonymizeReport, AnonymizeRequest
from tasks.records.ledger import Ledger

State = Literal["held", "flagged"]


@dataclass(frozen=True)
class Doubt:
    """Why somebody should look at a picture: a `state` of ``held`` has no output, ``flagged`` has
    one.

    `etag` is the version of the source. `faces` counts the faces that were hidden and `left` those
    that the last check still found, where that is known. `boxes_xyxy` and `left_xyxy` have the
    first MOST_BOXES of each, in whole pixels of the upright picture. `options` are those of the
    request, `destination` is where it asked for. `time` is in seconds since the epoch. It holds
    boxes, and never pixels.
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

    def released(self) -> AnonymizeOptions:
        """The options with which it is published as it would be, if it is still the same
        version.
        """
        return AnonymizeOptions.of({**self.options, "release": self.etag})

    def with_more(self, more: AnonymizeOptions) -> AnonymizeOptions:
        """The options with which it is made anew: those that it had, what `more` asks for, and its
        areas too.
        """
        had = AnonymizeOptions.of(self.options)
        return AnonymizeOptions.parse(
            method=more.method or had.method,
            region=more.region or had.region,
            exempt=had.exempt + more.exempt,
            extra=had.extra + more.extra,
        )


DOUBTS = Ledger("veil:review", Doubt)


def note(redis: Any, request: AnonymizeRequest, report: AnonymizeReport) -> None:
    """Put the picture of `report` on the list if there is a reason to, else take it off: its output
    is as it should be.

    An entry of another version of the source is replaced, or goes.
    """
    if report.reason is None:
        DOUBTS.discard(redis, report.source)
        return
    doubt = Doubt(
        source=report.source,
        etag=report.source_etag or "",
        recipe=report.recipe,
        state="held" if report.status == "held" else "flagged",
        reason=report.reason,
        time=time.time(),
        destination=None if request.destination is None else str(request.destination),
        boxes_xyxy=report.boxes_xyxy or [],
        left_xyxy=report.left_xyxy or [],
        options=report.options or {},
        faces=report.faces,
        left=report.left,
    )
    DOUBTS.record(redis, doubt)
