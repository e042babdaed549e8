"""Request pictures with a miss again, with the missed faces as extra areas."""

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from tasks.addresses import ObjectUri
from tasks.messages import UPLOADS, AnonymizeOptions
from tasks.publishing import Publisher, Wanted
from worker.sampling.acceptance import Finding

if TYPE_CHECKING:
    from tasks.app import App


def enqueue(celery: "App", misses: Sequence[Finding]) -> int:
    """Put the pictures of `misses` on the queue, and return their number.

    Those whose source is not known are left out. Raises QueueUnavailable.
    """
    wanted = [one for one in map(wanted_again, misses) if one is not None]
    with closing(Publisher(celery)) as publisher:
        publisher.publish(wanted, UPLOADS)
    return len(wanted)


def wanted_again(finding: Finding) -> Wanted | None:
    """Return the request that hides the misses too, beside the options of the receipt."""
    picture = finding.picture
    if picture.source is None:
        return None
    before = AnonymizeOptions.of(picture.options)
    extra = [*before.extra, *(tuple(box) for box in finding.exposed_xyxy)]
    options = before.model_copy(update={"release": None})
    options = AnonymizeOptions.of({**options.to_json(), "extra": [list(area) for area in extra]})
    return Wanted(ObjectUri.parse(picture.source), ObjectUri.parse(picture.output), options=options)
