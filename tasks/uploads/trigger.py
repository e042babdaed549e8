"""The trigger: choose the events that report a picture, and put their messages on the queue."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from ..addresses import ObjectUri, PrefixUri, plain
from ..backoff import Backoff
from ..errors import BucketNotAllowed, InvalidRequest, MalformedEvent, VeilError
from ..line_limit import LineLimit
from ..messages import UPLOADS, AnonymizeRequest
from ..publishing import Publisher, Wanted
from ..routes import Routes
from ..telemetry import metrics
from .events import Event, Parsed, parse

IGNORED_LOG_SECONDS = 60.0  # between two lines that count ignored events
MAX_LOGGED_KEY = 1024  # characters; a key in an event may have any length
# Pictures in one transaction. Redis serves no other client while a transaction runs.
MAX_TRANSACTION_SIZE = 1000

log = structlog.get_logger("veil")


@dataclass
class Chosen:
    """The result of a filter.

    `pictures` are to be anonymized, `ignored` counts the other events by reason, `examples` has the
    first of them for each reason, and `refused` has a line for each key that no worker accepts.
    """

    pictures: list[Wanted] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Event] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


class EventFilter:
    """A filter for objects in the source of a route, below one of the prefixes, with a suffix.

    Without prefixes the sources of all routes count, and without suffixes every key. Suffixes are
    compared without regard to case. Outputs never pass, because no source contains them.
    """

    def __init__(
        self,
        routes: Routes,
        prefixes: Sequence[str] = (),
        suffixes: Sequence[str] = (),
    ) -> None:
        """Filter by `routes`.

        Raises InvalidRequest for a prefix that is not an address, and BucketNotAllowed for one that
        is outside the sources of all routes.
        """
        self.checks = {
            "outside": routes.setting,
            "filtered": "--prefix and --suffix, and the suffixes of the route",
        }
        self._routes = routes
        self.prefixes = [PrefixUri.parse(prefix) for prefix in prefixes] or routes.sources
        self._suffixes = tuple(suffix.lower() for suffix in suffixes)
        for prefix in self.prefixes:
            if routes.of_source(prefix) is None:
                raise BucketNotAllowed(
                    f"{prefix} is in no source of {routes.setting}: "
                    f"{routes.advice(prefix)}, or correct the prefix"
                )

    def choose(self, events: Sequence[Event]) -> Chosen:
        """Return the pictures among `events`, each of which a worker accepts."""
        chosen = Chosen()
        for event in events:
            if reason := self._reason_to_ignore(event):
                chosen.ignored[reason] += 1
                chosen.examples.setdefault(reason, event)
                continue
            try:
                source = self._checked_source(event)
            except (InvalidRequest, BucketNotAllowed) as error:
                # S3 allows such keys, but no worker accepts them.
                chosen.ignored["refused"] += 1
                chosen.refused.append(str(error))
                continue
            chosen.pictures.append(Wanted(source, etag=event.etag))
        return chosen

    def _checked_source(self, event: Event) -> ObjectUri:
        source = ObjectUri.parse(f"s3://{event.bucket}/{event.key}")
        self._routes.resolve(AnonymizeRequest(source=source))
        if event.is_file and source.is_ambiguous:
            raise InvalidRequest(f"{source}: its store takes this key for {plain(source.key)!r}")
        return source

    def _reason_to_ignore(self, event: Event) -> str | None:
        uri = ObjectUri(event.bucket, event.key)
        if not self._routes.has_source(uri):
            return "outside"
        if not event.key or event.key.endswith("/"):
            return "folder"
        if not any(prefix.contains(uri) for prefix in self.prefixes):
            return "filtered"
        if not self._routes.takes(uri):
            return "filtered"
        if self._suffixes and not event.key.lower().endswith(self._suffixes):
            return "filtered"
        return None


class SourceBackoff(Backoff):
    """The tries to read a source of events. The metrics show its outages."""

    def __init__(self, server: str, source: metrics.Source) -> None:
        super().__init__(server)
        self._source = source
        metrics.set_source_up(source, True)

    def report_outage(self, error: VeilError) -> None:
        super().report_outage(error)
        metrics.set_source_up(self._source, False)

    def report_recovery(self, seconds: float) -> None:
        super().report_recovery(seconds)
        metrics.set_source_up(self._source, True)


class Trigger:
    """Turns the messages of one source of events into messages for workers.

    It parses them, filters their events, publishes the pictures, and counts all of this.
    """

    def __init__(
        self,
        publisher: Publisher,
        event_filter: EventFilter,
        source: metrics.Source,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count events in the metrics as those of `source`."""
        self.filter = event_filter
        self.queued = 0  # pictures
        self.malformed = 0  # messages
        self.ignored: Counter[str] = Counter()  # events, by reason
        self._publisher = publisher
        self._source = source
        self._clock = clock
        self._ignored_since_log: Counter[str] = Counter()
        self._log_ignored_at = clock() + IGNORED_LOG_SECONDS
        self._refused_lines = LineLimit(clock)
        metrics.initialize_events(source)

    def read(self, body: Any) -> list[Wanted]:
        """Return the pictures that a message reports.

        Raises MalformedEvent if it is not a message of an object store.
        """
        try:
            parsed = parse(body)
        except MalformedEvent:
            self.malformed += 1
            metrics.count_events(self._source, "malformed")
            raise
        return self.choose(parsed)

    def choose(self, parsed: Parsed) -> list[Wanted]:
        """Return the pictures among the events in `parsed`, and log the refused ones.

        Of the ignored events, log the first of each reason, and at most once a minute their number.
        """
        chosen = self.filter.choose(parsed.written)
        refused = parsed.refused + chosen.refused
        self._log_refused(refused)
        ignored = chosen.ignored + parsed.ignored + Counter(refused=len(parsed.refused))
        self._log_first_ignored(ignored, chosen.examples)
        self.ignored.update(ignored)
        self._ignored_since_log.update(ignored)
        if self._ignored_since_log and self._clock() >= self._log_ignored_at:
            log.info("events ignored", ignored=self._take_ignored())
        metrics.count_events(self._source, "refused", len(refused))
        metrics.count_events(self._source, "ignored", ignored.total() - len(refused))
        return chosen.pictures

    def publish(
        self,
        pictures: Sequence[Wanted],
        queue: str = UPLOADS,
        along: Callable[[Any], None] | None = None,
    ) -> None:
        """Put `pictures` on `queue`, without duplicates, and log one line for all of them.

        `along` adds commands to the pipeline of the last transaction. Raises QueueUnavailable if it
        is uncertain whether Redis has all pictures. They may then be published again.
        """
        distinct = list(dict.fromkeys(pictures))
        last = max(0, len(distinct) - 1) // MAX_TRANSACTION_SIZE * MAX_TRANSACTION_SIZE
        for start in range(0, last, MAX_TRANSACTION_SIZE):
            self._publisher.publish(distinct[start : start + MAX_TRANSACTION_SIZE], queue)
        self._publisher.publish(distinct[last:], queue, also_write=along)
        if distinct:
            self._log_queued(len(distinct), queue)
        self.queued += len(distinct)
        metrics.count_events(self._source, "queued", len(distinct))

    def _log_refused(self, refused: Sequence[str]) -> None:
        for line in refused:
            if self._refused_lines.allows():
                log.warning("key refused", message=line)
        if more := self._refused_lines.take_left_out():
            log.warning("more keys refused", keys=more)

    def _log_first_ignored(self, ignored: Counter[str], examples: Mapping[str, Event]) -> None:
        """Log one line for each reason in `ignored` for which no event was ignored before."""
        for reason in ignored.keys() - self.ignored.keys() - {"refused"}:
            checks = self.filter.checks
            fields = {"check": checks[reason]} if reason in checks else {}
            if example := examples.get(reason):
                fields |= {"bucket": example.bucket, "key": example.key[:MAX_LOGGED_KEY]}
            log.info("event ignored", reason=reason, **fields)

    def _log_queued(self, pictures: int, queue: str) -> None:
        """Log the number of queued pictures, and the events ignored since the last such line."""
        ignored = self._take_ignored()
        fields = {"ignored": ignored} if ignored else {}
        log.info("queued", pictures=pictures, queue=queue, **fields)

    def _take_ignored(self) -> dict[str, int]:
        """Return the numbers of events ignored since the last call, by reason."""
        ignored, self._ignored_since_log = self._ignored_since_log, Counter()
        self._log_ignored_at = self._clock() + IGNORED_LOG_SECONDS
        return dict(ignored)
