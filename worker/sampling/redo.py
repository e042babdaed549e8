"""Request pictures with a miss again, with the missed faces as extra areas."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.addresses import ObjectUri, PrefixUri
from tasks.bulk.places import Places
from tasks.errors import BucketNotAllowed
from tasks.messages import UPLOADS, AnonymizeOptions
from tasks.publishing import Publisher, Wanted
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
    present = [_at_present(store, routes, keys, finding) for finding in misses]
    wanted = [wanted_again(finding) for finding in present if finding is not None]
    asked = [one for one in wanted if one is not None]
    with closing(Publisher(celery)) as publisher:
        publisher.publish(asked, UPLOADS)
    return len(asked)


def wanted_again(finding: Finding) -> Wanted | None:
    """Return the request that hides the misses too, beside the options of the receipt.

    None if the source is not known, or if the misses are among these options.
    """
    picture = finding.picture
    before = AnonymizeOptions.of(picture.options)
    misses = [tuple(box) for box in finding.exposed_xyxy if tuple(box) not in before.extra]
    if picture.source is None or not misses:
        return None
    options = before.with_more(AnonymizeOptions.parse(extra=misses), picture.source_etag)
    return Wanted(ObjectUri.parse(picture.source), ObjectUri.parse(picture.output), options=options)


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
