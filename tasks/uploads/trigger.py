"""Uploads: the choice of the events that ask for a picture, and their way onto the queue."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from tasks import metrics
from tasks.addresses import ObjectUri, PrefixUri, plain
from tasks.errors import BucketNotAllowed, InvalidRequest, MalformedEvent
from tasks.messages import UPLOADS, AnonymizeRequest
from tasks.publishing import Publisher, Wanted
from tasks.routes import Routes
from tasks.uploads.events import Event, Parsed, parse

MOST_REFUSALS_LOGGED = 10  # of one message or page; the others are counted in one line
MOST_AT_ONCE = 1000  # pictures in one transaction: Redis serves nobody else while it runs

log = structlog.get_logger("veil")


@dataclass
class Chosen:
    """The pictures to make, a count of those not wanted, and a line for each key that no worker
    takes.
    """

    pictures: list[Wanted] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


class Selection:
    """Which objects are wanted: those in a source of the routes, so never an output, below a prefix
    and with a suffix.

    Without prefixes or suffixes all of them are; suffixes are compared without regard to case.
    """

    def __init__(
        self,
        routes: Routes,
        prefixes: Sequence[str] = (),
        suffixes: Sequence[str] = (),
    ) -> None:
        """Raises InvalidRequest for a prefix that is no address, BucketNotAllowed for one in no
        route's source.
        """
        self._routes = routes
        self.places = [PrefixUri.parse(prefix) for prefix in prefixes] or routes.sources
        self._suffixes = tuple(suffix.lower() for suffix in suffixes)
        for place in self.places:
            if routes.of_source(place) is None:
                raise BucketNotAllowed(
                    f"{place} is in no source of VEIL_ROUTES: add a route, or correct the prefix"
                )

    def choose(self, events: Sequence[Event]) -> Chosen:
        """What is wanted of `events`."""
        chosen = Chosen()
        for event in events:
            if reason := self._unwanted(event):
                chosen.ignored[reason] += 1
                continue
            try:
                source = ObjectUri.parse(f"s3://{event.bucket}/{event.key}")
                self._routes.resolve(AnonymizeRequest(source=source))
                if event.is_file and source.is_ambiguous:
                    raise InvalidRequest(
                        f"{source}: its store takes this key for {plain(source.key)!r}"
                    )
            except (InvalidRequest, BucketNotAllowed) as error:
                # S3 allows such keys, and no worker would take them.
                chosen.ignored["refused"] += 1
                chosen.refused.append(str(error))
                continue
            chosen.pictures.append(Wanted(source, etag=event.etag))
        return chosen

    def _unwanted(self, event: Event) -> str | None:
        uri = ObjectUri(event.bucket, event.key)
        if not self._routes.has_source(uri):
            return "outside"
        if not event.key or event.key.endswith("/"):
            return "folder"
        if not any(place.contains(uri) for place in self.places):
            return "filtered"
        if self._suffixes and not event.key.lower().endswith(self._suffixes):
            return "filtered"
        return None


class Trigger:
    """The way of every message, whichever source it comes from: read, chosen, published,
    counted.
    """

    def __init__(self, publisher: Publisher, selection: Selection, source: metrics.Source) -> None:
        """`source` names in the metrics where the messages come from."""
        self.selection = selection
        self.queued = 0  # pictures
        self.malformed = 0  # messages
        self.ignored: Counter[str] = Counter()  # events, by reason
        self._publisher = publisher
        self._source = source
        self._untold: Counter[str] = Counter()
        metrics.begin_hearing(source)

    def read(self, body: Any) -> list[Wanted]:
        """Return the pictures that a message asks for; MalformedEvent if it is none that is
        known.
        """
        try:
            parsed = parse(body)
        except MalformedEvent:
            self.malformed += 1
            metrics.heard(self._source, "malformed")
            raise
        return self.choose(parsed)

    def choose(self, parsed: Parsed) -> list[Wanted]:
        """Return the pictures that events ask for, each of which can be published. Log what is
        refused.
        """
        chosen = self.selection.choose(parsed.written)
        refused = parsed.refused + chosen.refused
        for line in refused[:MOST_REFUSALS_LOGGED]:
            log.warning("key refused", message=line)
        if (more := len(refused) - MOST_REFUSALS_LOGGED) > 0:
            log.warning("more keys refused", keys=more)
        unwanted = chosen.ignored + parsed.ignored + Counter(refused=len(parsed.refused))
        for counts in (self.ignored, self._untold):
            counts.update(unwanted)
        metrics.heard(self._source, "refused", len(refused))
        metrics.heard(self._source, "ignored", unwanted.total() - len(refused))
        return chosen.pictures

    def publish(
        self,
        pictures: Sequence[Wanted],
        queue: str = UPLOADS,
        along: Callable[[Any], None] | None = None,
    ) -> None:
        """Put `pictures` on `queue`, each once, with what `along` adds to the last of them, and log
        one line.

        Raises QueueUnavailable when it is not certain that Redis has them all; to publish them
        again is safe.
        """
        distinct = list(dict.fromkeys(pictures))
        last = max(0, len(distinct) - 1) // MOST_AT_ONCE * MOST_AT_ONCE
        for start in range(0, last, MOST_AT_ONCE):
            self._publisher.publish(distinct[start : start + MOST_AT_ONCE], queue)
        self._publisher.publish(distinct[last:], queue, also_write=along)
        if distinct:
            told, self._untold = self._untold, Counter()
            log.info(
                "queued",
                pictures=len(distinct),
                queue=queue,
                **({"ignored": dict(told)} if told else {}),
            )
        self.queued += len(distinct)
        metrics.heard(self._source, "queued", len(distinct))
