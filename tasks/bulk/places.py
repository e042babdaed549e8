"""The places of a bulk command: a prefix of sources and the prefix of their outputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from ..addresses import ObjectUri, PrefixUri
from ..errors import BucketNotAllowed, InvalidRequest
from ..routes import Route, Routes, reserved_folder
from ..signatures import Key
from ..storage.marks import Marks
from ..storage.s3 import ObjectStore, StoredObject
from .source_index import SortedSources, SourceIndex


@dataclass(frozen=True)
class Places:
    """The sources below `source` and their outputs below `output`, both within `route`.

    `marks` recognise the source of an output. `index` has the sources if names are hashed.
    """

    route: Route
    source: PrefixUri
    output: PrefixUri
    marks: Marks = field(default=Marks(), compare=False)
    index: SourceIndex = field(default_factory=SourceIndex, compare=False, repr=False)

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
                if reserved_folder(route.destination.rest(outputs)):
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
        if reserved_folder(route.destination.rest(output)):
            raise InvalidRequest(f"{output} is kept for receipts: name the outputs")
        return cls(route, route.sources_of(output), output, Marks(keys))

    @property
    def are_hashed(self) -> bool:
        return self.route.names.are_hashed

    @property
    def are_mixed(self) -> bool:
        """True if outputs of sources outside of `source` are among the outputs."""
        return self.are_hashed and self.source != self.route.source

    def key(self, source: ObjectUri) -> str:
        """Return the key of the output of `source`, without the prefix of the outputs."""
        base = self.route.source if self.are_hashed else self.source
        return self.route.names.output_key(base.relative(source))

    def list_sources(self, store: ObjectStore, after: str = "") -> Iterator[StoredObject]:
        """Yield the sources after the source `after`, which has no prefix of the sources.

        They come in the order of their outputs: as they are listed, or with hashed names sorted.
        """
        if self.are_hashed:
            start = self.key(self.source.join(after)) if after else ""
            return self._sorted_sources(store).after(start)
        start = self.source.prefix + after if after else ""
        return store.listing(self.source.bucket, self.source.prefix, start)

    def possible_sources(self, store: ObjectStore, key: str) -> list[ObjectUri]:
        """Return the sources that the output `key` may have by its name, the likeliest first.

        With hashed names there is one, or none if no source has this name.
        """
        if not self.are_hashed:
            return self._sources_by_name(key)
        found = self._sorted_sources(store).find(key)
        return [] if found is None else [found]

    def source_of(
        self, store: ObjectStore, key: str, metadata: Mapping[str, str]
    ) -> ObjectUri | None:
        """Return the source with which the output `key` is marked; None if it is none of its own.

        The output may be from before the route hashed its names.
        """
        for source in (*self._sources_by_name(key), *self.possible_sources(store, key)):
            if self.marks.is_source(metadata, source):
                return source
        return None

    def renewed_sources(self, store: ObjectStore) -> SortedSources:
        """List the sources again, also those that an inventory lacks, and return them sorted."""
        return self.index.renew(store.list, self.source, self.key)

    def _sorted_sources(self, store: ObjectStore) -> SortedSources:
        return self.index.sources(store.listing, self.source, self.key)

    def _sources_by_name(self, key: str) -> list[ObjectUri]:
        return [self.source.join(source_key) for source_key in self.route.names.source_keys(key)]

    def destination(self, key: str) -> ObjectUri:
        """Return the address of the output of `key`."""
        return self.output.join(key)

    def asked_destination(self, key: str) -> ObjectUri | None:
        """Return the destination that a message for `key` must name; None for the route's own."""
        return None if self.output == self.route.outputs_of(self.source) else self.destination(key)

    def receipt_key(self, key: str) -> str:
        """Return the key of a picture in its receipts: the one below the route's destination."""
        return self.route.destination.rest(self.output) + key
