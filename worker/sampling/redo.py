"""Request pictures with a miss again, with the missed faces as extra areas."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.addresses import ObjectUri, PrefixUri
from tasks.bulk.places import Places
from tasks.errors import BucketNotAllowed
from tasks.messages import UPLOADS, AnonymizeOptions, AnonymizeRequest
from tasks.publishing import Publisher, Wanted
from tasks.records import review
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tasks.records.samples import SampledPicture
from tasks.redis.errors import connected
from tasks.routes import Routes
from tasks.signatures import Key
from tasks.storage.s3 import ObjectStore
from worker.sampling.acceptance import Finding
from worker.sampling.outputs import sampled

if TYPE_CHECKING:
    from tasks.app import App


def enqueue(
    celery: "App",
    store: ObjectStore,
    routes: Routes,
    keys: Sequence[Key],
    misses: Sequence[Finding],
) -> int:
    """Put the pictures of `misses` on the queue, and return their number.

    Those whose source is not known, is gone or was replaced are left out, and those whose misses
    were requested before. Raises QueueUnavailable, and the errors of the store.
    """
    asked: list[Wanted] = []
    listed: list[tuple[ReviewEntry, ReviewEntry]] = []  # as they are, and as they shall be
    for miss in misses:
        finding = _at_present(store, routes, keys, miss)
        if finding is None:
            continue
        entry = _entry_of(celery.backend.client, routes, finding.picture)
        wanted = wanted_again(finding, entry)
        if wanted is None or wanted.options is None:
            continue
        asked.append(wanted)
        if entry is not None:
            listed.append((entry, entry.asked_for(wanted.options)))

    def also_write(pipe: Any) -> None:
        for entry, changed in listed:
            REVIEW_LIST.replace(pipe, entry, changed)

    with closing(Publisher(celery)) as publisher:
        publisher.publish(asked, UPLOADS, also_write=also_write)
    return len(asked)


def wanted_again(finding: Finding, entry: ReviewEntry | None = None) -> Wanted | None:
    """Return the request that hides the misses too, beside the options of the receipt.

    It hides what the `entry` of the picture on the review list asks for, which may still wait. None
    if the source is not known, or if the misses are among the options of the receipt.
    """
    picture = finding.picture
    before = AnonymizeOptions.of(picture.options)
    misses = [tuple(box) for box in finding.exposed_xyxy if tuple(box) not in before.extra]
    if picture.source is None or not misses:
        return None
    more = AnonymizeOptions.parse(extra=misses)
    if entry is not None:
        more = entry.with_asked(more)
    options = before.with_more(more, picture.source_etag)
    return Wanted(ObjectUri.parse(picture.source), ObjectUri.parse(picture.output), options=options)


def _entry_of(redis: Any, routes: Routes, picture: SampledPicture) -> ReviewEntry | None:
    request = AnonymizeRequest.parse(source=picture.source, destination=picture.output)
    with connected():
        return review.entry_of(redis, routes.resolve(request), picture.source_etag)


def _at_present(
    store: ObjectStore, routes: Routes, keys: Sequence[Key], finding: Finding
) -> Finding | None:
    """Return `finding` with the facts of its output as it is now.

    Since it was drawn, the output may have been made again with further areas, and a request with
    the options of that time would show what they hide. None if the source was deleted or replaced:
    the areas of one version are at other places of another, where they may keep a face clear.
    """
    drawn = finding.picture
    output = store.head(ObjectUri.parse(drawn.output))
    if drawn.source is None or output is None:
        return None
    try:
        places = Places.of_outputs(_folder_of(output.uri), routes, keys)
    except BucketNotAllowed:
        return None
    now = sampled(store, places, output)
    source = store.head(ObjectUri.parse(drawn.source))
    versions = {now.source_etag, None if source is None else source.etag}
    if now.source != drawn.source or versions != {drawn.source_etag}:
        return None
    return replace(finding, picture=now)


def _folder_of(output: ObjectUri) -> PrefixUri:
    folder = output.key.rpartition("/")[0]
    return PrefixUri(output.bucket, f"{folder}/" if folder else "")
