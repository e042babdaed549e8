"""The places of a bulk command: a prefix of sources and the prefix of their outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from ..addresses import ObjectUri, PrefixUri
from ..errors import BucketNotAllowed, InvalidRequest
from ..output_names import output_key, source_keys
from ..routes import RESERVED, Route, Routes
from ..signatures import Key
from ..storage.marks import Marks


@dataclass(frozen=True)
class Places:
    """The sources below `source` and their outputs below `output`, both within `route`.

    `marks` recognise the source of an output.
    """

    route: Route
    source: PrefixUri
    output: PrefixUri
    marks: Marks = field(default=Marks(), compare=False)

    @classmethod
    def find(
        cls, source: str, output: str | None, routes: Routes, keys: Sequence[Key] = ()
    ) -> Self:
        """Return the places at two addresses. `output` is where the route leads by default.

        `keys` are the receipt keys. Raises BucketNotAllowed if no route leads from one to the
        other, InvalidRequest if `output` is reserved for receipts.
        """
        sources = PrefixUri.parse(source)
        if route := routes.of_source(sources):
            outputs = PrefixUri.parse(output) if output else route.outputs_of(sources)
            if outputs.is_below(route.destination):
                if route.destination.rest(outputs).startswith(RESERVED):
                    raise InvalidRequest(f"{outputs} is kept for receipts: name another place")
                return cls(route, sources, outputs, Marks(keys))
        advice = "add a route" if route else routes.advice(sources)
        raise BucketNotAllowed(
            f"no route of {routes.setting} leads from {source} to {output or 'anywhere'}: {advice}"
        )

    @classmethod
    def of_outputs(cls, output: PrefixUri, routes: Routes, keys: Sequence[Key] = ()) -> Self:
        """Return the places with outputs below `output`, and with the sources that its route gives.

        Raises BucketNotAllowed if no route leads there, InvalidRequest if receipts are kept there.
        """
        route = routes.of_destination(output)
        if route is None:
            raise BucketNotAllowed(
                f"no route of {routes.setting} leads to {output}: "
                f"{routes.advice_on_outputs(output)}"
            )
        if route.destination.rest(output).startswith(RESERVED):
            raise InvalidRequest(f"{output} is kept for receipts: name the outputs")
        return cls(route, route.sources_of(output), output, Marks(keys))

    def key(self, source: ObjectUri) -> str:
        """Return the key of the output of `source`, without the prefix of the outputs."""
        return output_key(self.source.relative(source), self.route.heif_suffix)

    def source_of(self, key: str, metadata: Mapping[str, str]) -> ObjectUri:
        """Return the source of the output `key`, which has `metadata`.

        If the output is marked with none of the sources that it may have, this is that of its key.
        """
        for source_key in source_keys(key, self.route.heif_suffix):
            source = self.source.join(source_key)
            if self.marks.is_source(metadata, source):
                return source
        return self.source.join(key)

    def destination(self, key: str) -> ObjectUri:
        """Return the address of the output of `key`."""
        return self.output.join(key)

    def asked_destination(self, key: str) -> ObjectUri | None:
        """Return the destination that a message for `key` must name; None for the route's own."""
        return None if self.output == self.route.outputs_of(self.source) else self.destination(key)

    def receipt_key(self, key: str) -> str:
        """Return the key of a picture in its receipts: the one below the route's destination."""
        return self.route.destination.rest(self.output) + key
