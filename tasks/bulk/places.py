"""Places: sources and their outputs, as a command over a whole bucket names them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed, InvalidRequest
from tasks.routes import RESERVED, Route
from tasks.signatures import Key
from tasks.storage.marks import Marks


@dataclass(frozen=True)
class Places:
    """Sources below `source` and their outputs below `output`, both within `route`.

    `marks` tell which output is of which source.
    """

    route: Route
    source: PrefixUri
    output: PrefixUri
    marks: Marks = field(default=Marks(), compare=False)

    @classmethod
    def find(
        cls, source: str, output: str | None, routes: Sequence[Route], keys: Sequence[Key] = ()
    ) -> Self:
        """Return the places at two addresses; `output` is by default where the route leads.

        `keys` are those for receipts. Raises BucketNotAllowed if no route leads from one to the
        other, InvalidRequest if `output` is kept for receipts.
        """
        read = PrefixUri.parse(source)
        for route in routes:
            if read.is_below(route.source):
                written = PrefixUri.parse(output) if output else route.outputs_of(read)
                if written.is_below(route.destination):
                    if route.destination.rest(written).startswith(RESERVED):
                        raise InvalidRequest(f"{written} is kept for receipts: name another place")
                    return cls(route, read, written, Marks(keys))
        raise BucketNotAllowed(
            f"no route of VEIL_ROUTES leads from {source} to {output or 'anywhere'}: add one"
        )

    @classmethod
    def of_outputs(
        cls, output: PrefixUri, routes: Sequence[Route], keys: Sequence[Key] = ()
    ) -> Self:
        """Return the places with outputs below `output`, and with the sources that the route gives
        them.

        Raises BucketNotAllowed if no route leads there, InvalidRequest if receipts are kept there.
        """
        for route in routes:
            if output.is_below(route.destination):
                rest = route.destination.rest(output)
                if rest.startswith(RESERVED):
                    raise InvalidRequest(f"{output} is kept for receipts: name the outputs")
                source = PrefixUri(route.source.bucket, route.source.prefix + rest)
                return cls(route, source, output, Marks(keys))
        raise BucketNotAllowed(f"no route of VEIL_ROUTES leads to {output}: add one")

    def key(self, source: ObjectUri) -> str:
        """Return the key that names a picture in both places."""
        return self.source.relative(source)

    def destination(self, key: str) -> ObjectUri:
        return self.output.join(key)

    def asked_destination(self, key: str) -> ObjectUri | None:
        """Return the destination that a request for `key` must name; None if the route leads
        there.
        """
        return None if self.output == self.route.outputs_of(self.source) else self.destination(key)

    def made_key(self, key: str) -> str:
        """Return the key that receipts have for a picture: the one below the route's
        destination.
        """
        return self.route.destination.rest(self.output) + key
