"""Which places may be read and where their outputs go: the allow-list and the output key in one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tasks.addresses import MAX_KEY_BYTES, ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed, InvalidRequest
from tasks.messages import AnonymizeRequest

RESERVED = ".veil/"  # below every destination; no output goes there


@dataclass(frozen=True)
class Route:
    """Pictures below `source` may be read; their outputs go below `destination`, at the same
    relative key.
    """

    source: PrefixUri
    destination: PrefixUri

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidRequest unless `text` is ``s3://SOURCE=s3://DESTINATION``."""
        # Only the one before an address parts the two: prefixes like day=1/ are common.
        source, *destination = re.split(r"\s*=\s*(?=s3://)", text.strip())
        if len(destination) != 1:
            raise InvalidRequest(f"{text!r:.200} is not a route like s3://raw=s3://clean")
        return cls(PrefixUri.parse(source), PrefixUri.parse(destination[0]))

    def outputs_of(self, sources: PrefixUri) -> PrefixUri:
        """Where the outputs of `sources`, a place within the route's source, go by themselves."""
        return PrefixUri(
            self.destination.bucket, self.destination.prefix + self.source.rest(sources)
        )

    def __str__(self) -> str:
        return f"{self.source}={self.destination}"


def check(routes: Sequence[Route]) -> None:
    """Raise InvalidRequest where an output could be taken for a source, or two sources share an
    output.
    """
    for route in routes:
        for other in routes:
            if route.source.overlaps(other.destination):
                raise InvalidRequest(
                    f"source {route.source} and destination {other.destination} overlap: keep them apart"
                )
            if route is not other and route.source.overlaps(other.source):
                raise InvalidRequest(
                    f"sources {route.source} and {other.source} overlap: keep them apart"
                )
            if route is not other and route.destination.overlaps(other.destination):
                raise InvalidRequest(
                    f"destinations {route.destination} and {other.destination} overlap: keep them apart"
                )


@dataclass(frozen=True)
class Routed:
    """A request with its route and the address of its output."""

    request: AnonymizeRequest
    route: Route
    destination: ObjectUri


def find(request: AnonymizeRequest, routes: Sequence[Route]) -> Routed:
    """Return `request` with its route; raise BucketNotAllowed if no route leads there from its
    source.
    """
    for route in routes:
        if route.source.contains(request.source):
            target = request.destination or route.destination.join(
                route.source.relative(request.source)
            )
            if not route.destination.contains(target):
                raise BucketNotAllowed(
                    f"{target} is outside {route.destination}, where VEIL_ROUTES lets outputs go"
                )
            if route.destination.relative(target).startswith(RESERVED):
                raise InvalidRequest(
                    f"{target} is in {RESERVED}, which is kept for receipts: choose another key"
                )
            if len(target.key.encode()) > MAX_KEY_BYTES:
                raise InvalidRequest(
                    f"the output's key {target.key!r:.100}… is longer than {MAX_KEY_BYTES} bytes"
                )
            return Routed(request, route, target)
    raise BucketNotAllowed(
        f"{request.source} is in no source of VEIL_ROUTES: add a route, or correct the address"
    )
