"""Draw a random sample of outputs, with the faces that their receipts say are hidden."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.addresses import PrefixUri
from tasks.bulk.comparison import find_receipt, list_outputs
from tasks.bulk.places import Places
from tasks.errors import BucketNotAllowed, NothingFound
from tasks.messages import FACE
from tasks.records.samples import Sample, SampledPicture
from tasks.routes import Routes
from tasks.signatures import Key
from tasks.storage.receipts import ReceiptName
from tasks.storage.s3 import ObjectStore, StoredObject
from worker.sampling.drawing import Sample as Drawing

NAME_DIGITS = 8


@dataclass(frozen=True)
class SampleRequest:
    """A sample to draw: so many `pictures` of the outputs below `addresses`, by a `seed`."""

    addresses: list[str]
    pictures: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the sample: a digest of what it is drawn from, and how."""
        content = "\n".join([*self.addresses, str(self.pictures), str(self.seed)])
        digest = hashlib.sha256(content.encode("utf-8", "backslashreplace"))
        return digest.hexdigest()[:NAME_DIGITS]


def draw(store: ObjectStore, routes: Routes, keys: Sequence[Key], request: SampleRequest) -> Sample:
    """Return the sample of `request`, each output equally likely, from one listing.

    Raises NothingFound if there is no output, BucketNotAllowed for an address without a route.
    """
    drawing: Drawing[tuple[Places, StoredObject]] = Drawing(request.pictures, request.seed)
    for places in _places(request.addresses, routes, keys):
        for stored in list_outputs(store, places):
            drawing.add(str(stored.uri), (places, stored))
    if not drawing.count:
        raise NothingFound(f"no output below {', '.join(request.addresses)}: correct the address")
    drawn = [sampled(store, places, stored) for places, stored in drawing.items]
    return Sample(request.name, request.addresses, request.seed, drawing.count, time.time(), drawn)


def sampled(store: ObjectStore, places: Places, stored: StoredObject) -> SampledPicture:
    """Return the output `stored` of `places` with the facts of its receipt."""
    output = store.head(stored.uri) or stored
    key = places.output.relative(output.uri)
    source = places.source_of(store, key, output.metadata)
    found = find_receipt(store, places, ReceiptName.of_output(key, output))
    receipt = found.accepted if found else None
    if receipt is None:
        return SampledPicture(str(output.uri), output.etag, str(places.route))
    hidden = list(zip(receipt.labels, receipt.faces, strict=True))
    others = [(label, one) for label, one in hidden if label != FACE]
    return SampledPicture(
        str(output.uri),
        output.etag,
        str(places.route),
        None if source is None else str(source),
        receipt.source_etag,
        receipt.width,
        receipt.height,
        [face["box_xyxy"] for label, face in hidden if label == FACE],
        receipt.options,
        [one["box_xyxy"] for _, one in others],
        [label for label, _ in others],
    )


def _places(addresses: Sequence[str], routes: Routes, keys: Sequence[Key]) -> Iterator[Places]:
    """Yield the places of the outputs: those at the addresses, or those of all routes below.

    An address below another one is left out, so that no output counts twice.
    """
    named = dict.fromkeys(PrefixUri.parse(address) for address in addresses)
    for place in named:
        if any(place.is_below(other) for other in named if other != place):
            continue
        below = [route for route in routes if route.destination.is_below(place)]
        if routes.of_destination(place):
            yield Places.of_outputs(place, routes, keys)
        elif below:
            for route in below:
                yield Places.of_outputs(route.destination, routes, keys)
        else:
            raise BucketNotAllowed(f"no route of {routes.setting} leads to {place}: add one")
