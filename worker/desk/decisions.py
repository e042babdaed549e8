"""Carry out what reviewers decide: record it first, then queue, drop or mark."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import InvalidRequest, ObjectNotFound, SourceChanged, VeilError
from tasks.messages import UPLOADS, AnonymizeOptions
from tasks.publishing import Publisher, Wanted
from tasks.records import samples
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tasks.redis.errors import connected
from tasks.routes import Route, Routes
from tasks.signatures import Key
from tasks.storage import decisions, receipts
from tasks.storage.decisions import Action, Decision
from tasks.storage.marks import Marks
from tasks.storage.s3 import ObjectStore
from tasks.storage.upload_headers import PLAIN, UploadHeaders
from worker.desk.items import Item, Items, drop_entry, output_uri

if TYPE_CHECKING:
    from tasks.app import App

BOX_SIDES = 4
NO_HEADERS: Mapping[Route, UploadHeaders] = MappingProxyType({})
IMPOSSIBLE: dict[Action, str] = {
    "mark": "only pictures of a sample are marked",
    "drop": "a picture of a sample is marked, not dropped",
    "accept": "only an output with a low score is accepted as it is",
    "redo": "the source of this output is not known",
    "release": "only a held or flagged version with a known source is released",
}


@dataclass(frozen=True)
class Choice:
    """A reviewer's choice as the page sends it."""

    action: Action
    options: AnonymizeOptions
    exposed_xyxy: list[list[int]]


@dataclass(frozen=True)
class Decided:
    """The task that a decision led to, and the version of the picture from then on.

    A mark leads to no task.
    """

    task: str | None
    version: str


class Desk:
    """Decides on pictures. Each decision is recorded beside the receipts before it takes effect."""

    def __init__(
        self,
        celery: "App",
        store: ObjectStore,
        routes: Routes,
        keys: Sequence[Key],
        items: Items,
        headers: Mapping[Route, UploadHeaders] = NO_HEADERS,
    ) -> None:
        """`headers` go with the records of a route, as with its receipts."""
        self._headers = headers
        self._celery = celery
        self._redis = celery.backend.client
        self._store = store
        self._routes = routes
        self._keys = keys
        self._items = items

    def decide(self, item: Item, choice: Choice, by: str) -> Decided | None:
        """Carry out the decision of the reviewer `by`, and return what it led to, if anything.

        Raises SourceChanged if the picture is not the one that was shown any more, InvalidRequest
        for a choice that the picture does not have, and the errors of Redis and of the store.
        Nothing is queued then. The low score of an output that was replaced leaves the desk, and a
        picture of a sample is skipped.
        """
        try:
            self._check_version(item, needs_source=choice.action in ("redo", "release"))
        except (ObjectNotFound, SourceChanged):
            if item.state == "low score":
                self._items.remove(item)
            if item.sample is not None:
                self.skip_if_gone(item, by)
            raise
        entry = self._items.entry(item) if choice.action == "redo" else None
        options = self._options(item, choice, entry)
        self._record(item, choice, options, by)
        if choice.action == "mark":
            assert item.sample is not None
            assert item.number is not None
            with connected():
                marked_at = samples.mark(
                    self._redis, item.sample, item.number, choice.exposed_xyxy, by
                )
            return Decided(None, replace(item, marked_at=marked_at).version)
        if choice.action in ("drop", "accept"):
            if item.state in ("held", "flagged"):
                drop_entry(self._redis, item)
            self._items.remove(item)
            return None
        task_id = self._enqueue(item, options, entry)
        if entry is not None and item.state in ("held", "flagged"):
            self._items.remove_asked_for(item, entry.asked_for(options))
        elif item.sample is None:
            self._items.remove(item)
        return Decided(task_id, self._items.keep_requested(item, options).version)

    def skip_if_gone(self, item: Item, by: str) -> bool:
        """Return whether a sampled output was replaced or deleted since it was drawn.

        Nobody can mark it then, and unless it is marked already, the sample goes on without it.
        """
        assert item.sample is not None
        assert item.number is not None
        if not self._is_other_output(item):
            return False
        with connected():
            samples.skip(self._redis, item.sample, item.number, by)
        return True

    def has_output(self, item: Item) -> tuple[bool | None, bool]:
        """Return whether an output is published, for a held picture an earlier one.

        None says that the store does not tell. The second value says that the output is marked as
        one of another version of the source: areas of the held version are at other places in it.
        """
        uri = output_uri(item)
        if item.state != "held" or uri is None:
            return item.state != "held", False
        try:
            output = self._store.head(uri)
        except VeilError:
            return None, False
        if output is None:
            return False, False
        mark = output.metadata.get(receipts.SOURCE_ETAG)
        source = ObjectUri.parse(item.source or "")
        is_same = mark is None or Marks(self._keys).is_version(mark, source, item.etag or "")
        return True, not is_same

    def _check_version(self, item: Item, needs_source: bool) -> None:
        """Raise SourceChanged if the source or the output was replaced since it was listed.

        A source that was deleted matters only to what `needs_source`. A sample is marked whatever
        became of the sources of its outputs.
        """
        if item.source is not None and (needs_source or item.sample is None):
            source = self._store.head(ObjectUri.parse(item.source))
            if source is None:
                if needs_source:
                    advice = "drop it" if item.sample is None else "press n"
                    raise ObjectNotFound(f"{item.source} was deleted since it was listed: {advice}")
            elif item.etag and source.etag != item.etag:
                raise SourceChanged(
                    f"{item.source} was replaced since it was listed: press n. The new version is "
                    "listed if it needs a review"
                )
        if self._is_other_output(item):
            raise SourceChanged(f"{item.output} was replaced since it was listed: press n")

    def _is_other_output(self, item: Item) -> bool:
        if item.output_etag is None or item.output is None:
            return False
        output = self._store.head(ObjectUri.parse(item.output))
        return output is None or output.etag != item.output_etag

    def _options(self, item: Item, choice: Choice, entry: ReviewEntry | None) -> AnonymizeOptions:
        """Return the options of the request that follows; raise InvalidRequest for none.

        They hide what the `entry` on the review list asks for, too.
        """
        is_sampled = item.sample is not None
        is_possible = {
            "mark": is_sampled,
            "drop": not is_sampled,
            "accept": item.state == "low score",
            "redo": item.source is not None,
            "release": bool(item.source and item.etag and not is_sampled),
        }
        if not is_possible[choice.action]:
            raise InvalidRequest(IMPOSSIBLE[choice.action])
        if choice.action == "release":
            return item.release_options()
        if choice.action != "redo":
            return AnonymizeOptions()
        more = choice.options if entry is None else entry.with_asked(choice.options)
        return item.redo_options(more)

    def _record(
        self, item: Item, choice: Choice, options: AnonymizeOptions, by: str
    ) -> ObjectUri | None:
        output = output_uri(item)
        route = self._route_of(output)
        if output is None or route is None:
            if choice.action == "drop":
                return None  # Nothing of the picture is published, nor can it be.
            raise InvalidRequest(
                f"no route of {self._routes.setting} leads to the output of {item.title}"
            )
        decision = Decision(
            action=choice.action,
            by=by,
            at=decisions.now(),
            source_etag=item.etag,
            output_etag=item.output_etag,
            reason=item.reason,
            options=options.to_json(),
            exposed_xyxy=choice.exposed_xyxy if choice.action == "mark" else None,
            sample=item.sample,
        )
        source = None if item.source is None else ObjectUri.parse(item.source)
        return decisions.record(
            self._store,
            route.destination,
            output,
            source,
            decision,
            self._keys,
            self._headers.get(route, PLAIN),
        )

    def _route_of(self, output: ObjectUri | None) -> Route | None:
        if output is None:
            return None
        folder = output.key.rpartition("/")[0]
        place = PrefixUri(output.bucket, f"{folder}/" if folder else "")
        return self._routes.of_destination(place)

    def _enqueue(self, item: Item, options: AnonymizeOptions, entry: ReviewEntry | None) -> str:
        """Request the picture again. Its `entry` on the review list gets the options, too."""

        def also_write(pipe: Any) -> None:
            if entry is not None:
                REVIEW_LIST.replace(pipe, entry, entry.asked_for(options))

        assert item.source is not None
        destination = None if item.destination is None else ObjectUri.parse(item.destination)
        wanted = Wanted(ObjectUri.parse(item.source), destination, options=options)
        with closing(Publisher(self._celery)) as publisher:
            (task_id,) = publisher.publish(
                [wanted], UPLOADS, also_write=also_write, keep_results=True
            )
        return task_id


def choice_of(fields: dict[str, Any]) -> Choice:
    """Return the choice in the JSON of a page. Raises InvalidRequest."""
    action = next((known for known in IMPOSSIBLE if known == fields.get("action")), None)
    if action is None:
        raise InvalidRequest(f"a decision is one of {', '.join(IMPOSSIBLE)}")
    options = AnonymizeOptions.of(
        {
            name: fields[name]
            for name in ("method", "region", "exempt", "extra")
            if fields.get(name) not in (None, "")
        }
    )
    exposed = AnonymizeOptions.parse(extra=fields.get("exposed") or []).extra
    if any(len(area) != BOX_SIDES for area in exposed):
        raise InvalidRequest("an exposed face is marked with a box: x1, y1, x2, y2")
    return Choice(action, options, [list(area) for area in exposed])
