"""Routes: the allow-list of sources and destinations, and the addresses of outputs."""

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

from .addresses import MAX_KEY_BYTES, ObjectUri, PrefixUri
from .errors import BucketNotAllowed, InvalidRequest
from .messages import AnonymizeRequest
from .output_names import OutputNames

MAX_NAMED = 5  # routes that a message names
RESERVED = ".veil/"  # the folder of receipts below every destination, closed to outputs

Priority = Literal["high", "normal", "low"]
# The priorities of messages: those with the least are taken first. Each has a list of its own,
# because they are steps of kombu's.
PRIORITIES: Mapping[Priority, int] = {"high": 0, "normal": 3, "low": 6}


@dataclass(frozen=True)
class Route:
    """Permission to read pictures below `source` and to write their outputs below `destination`.

    The key of an output, relative to `destination`, follows from that of its source, relative to
    `source`, by `names`. A route of the routes file has a `name`. With `suffixes`, it takes no
    other keys; upper and lower case are the same. `settings` are the settings of workers that are
    different on this route. `priority` is that of its messages; None if no route has one.
    """

    source: PrefixUri
    destination: PrefixUri
    name: str | None = None
    suffixes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    names: OutputNames = field(default_factory=OutputNames)
    priority: Priority | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return a route from ``s3://SOURCE=s3://DESTINATION``; raise InvalidRequest otherwise."""
        # Only an equals sign before an address separates the two: prefixes like day=1/ are common.
        source, *destination = re.split(r"\s*=\s*(?=s3://)", text.strip())
        if len(destination) != 1:
            hint = "; a comma separates routes" if len(destination) > 1 else ""
            raise InvalidRequest(f"{text!r:.200} is not a route like s3://raw=s3://clean{hint}")
        return cls(parse_place(source), parse_place(destination[0]))

    def takes(self, key: str) -> bool:
        """Return whether the route takes a source with this key."""
        return not self.suffixes or key.lower().endswith(self.suffixes)

    def suffixes_among(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Return the suffixes of keys that the route takes and `asked` names; none for any key.

        Either may be empty, for any key. Raises InvalidRequest if no key has a suffix of both.
        """
        taken = self.suffixes
        if not asked or not taken:
            return tuple(asked) or taken
        wanted = tuple(suffix.lower() for suffix in asked)
        both = {suffix for suffix in wanted if suffix.endswith(taken)}
        both |= {suffix for suffix in taken if suffix.endswith(wanted)}
        if not both:
            raise InvalidRequest(
                f"the route {self.name} only takes keys with {', '.join(taken)}, and none "
                f"with {', '.join(wanted)}"
            )
        return tuple(sorted(both))

    def output_of(self, source: ObjectUri) -> ObjectUri:
        """Return the default address of the output of `source`, which is in the source."""
        return self.destination.join(self.names.output_key(self.source.relative(source)))

    def outputs_of(self, sources: PrefixUri) -> PrefixUri:
        """Return the default prefix of the outputs of `sources`, which is in the source.

        Hashed names have no folders, so it also has the outputs of all other sources.
        """
        if self.names.are_hashed:
            return self.destination
        rest = self.source.rest(sources)
        return PrefixUri(self.destination.bucket, self.destination.prefix + rest)

    def sources_of(self, outputs: PrefixUri) -> PrefixUri:
        """Return the default prefix of the sources of `outputs`, which is in the destination."""
        if self.names.are_hashed:
            return self.source
        rest = self.destination.rest(outputs)
        return PrefixUri(self.source.bucket, self.source.prefix + rest)

    def __str__(self) -> str:
        return f"{self.source}={self.destination}"


@dataclass(frozen=True)
class Routed:
    """A request with its route and the address of its output."""

    request: AnonymizeRequest
    route: Route
    destination: ObjectUri

    @property
    def destinations(self) -> tuple[str | None, ...]:
        """The destinations in a request that lead to this output; None if it is the default."""
        named = str(self.destination)
        is_default = self.destination == self.route.output_of(self.request.source)
        return (None, named) if is_default else (named,)


@dataclass(frozen=True)
class Routes:
    """All routes of a setup. A source or an output belongs to one of them at most.

    `setting` is the setting that has them. Raises InvalidRequest if a source and a destination
    overlap, because an output could then be taken for a source, or if two sources or two
    destinations overlap.
    """

    routes: tuple[Route, ...]
    setting: str = "VEIL_ROUTES"

    def __post_init__(self) -> None:
        if problems := list(_overlaps(self.routes)):
            raise InvalidRequest("; ".join(problems))

    @classmethod
    def parse(cls, *texts: str) -> Self:
        """Return the routes in `texts`, one in each; see Route.parse."""
        return cls(tuple(Route.parse(text) for text in texts))

    def with_heif_suffix(self, suffix: str) -> "Routes":
        """Return the routes with another suffix for the outputs of HEIC; empty to keep theirs."""
        changed = []
        for route in self.routes:
            names = replace(route.names, heif_suffix=suffix)
            changed.append(replace(route, names=names))
        return replace(self, routes=tuple(changed))

    def __iter__(self) -> Iterator[Route]:
        return iter(self.routes)

    @property
    def sources(self) -> list[PrefixUri]:
        return [route.source for route in self.routes]

    def of_source(self, place: PrefixUri) -> Route | None:
        """Return the route whose source is `place` or contains it; None if there is none."""
        return next((route for route in self if place.is_below(route.source)), None)

    def of_destination(self, place: PrefixUri) -> Route | None:
        """Return the route whose destination is `place` or contains it; None if there is none."""
        return next((route for route in self if place.is_below(route.destination)), None)

    def advice(self, place: PrefixUri) -> str:
        """Return what to do about `place`, which is in no source: use one below it, or add one."""
        sources = [str(source) for source in self.sources_below(place)]
        return f"routes begin below: {_listed(sources)}" if sources else "add a route"

    def sources_below(self, place: PrefixUri) -> list[PrefixUri]:
        """Return the sources that are `place` or lie in it."""
        return [source for source in self.sources if source.is_below(place)]

    def advice_on_outputs(self, place: PrefixUri) -> str:
        """Return such a text for `place` if it is in no destination."""
        destinations = [route.destination for route in self]
        found = [str(each) for each in destinations if each.is_below(place)]
        return f"routes lead below: {_listed(found)}" if found else "add a route"

    def has_source(self, uri: ObjectUri) -> bool:
        """Return whether `uri` is in the source of a route, or is the marker of its folder."""
        return any(source.begins(uri) for source in self.sources)

    def takes(self, uri: ObjectUri) -> bool:
        """Return whether the route of `uri`, which is in a source, takes its key."""
        return all(route.takes(uri.key) for route in self if route.source.begins(uri))

    def priority_of(self, source: ObjectUri) -> int:
        """Return the priority of messages for `source`: 0, the first, if its route has none."""
        route = self.of_picture(source)
        return 0 if route is None or route.priority is None else PRIORITIES[route.priority]

    @cached_property
    def _by_source(self) -> list[Route]:
        return sorted(self.routes, key=_source)

    def of_picture(self, source: ObjectUri) -> Route | None:
        """Return the route whose source contains `source`; None if there is none.

        It may refuse the picture, as for its suffix.
        """
        # No source of a route is within another. So the last one that is not after `source` is the
        # only one that may contain it.
        position = bisect_right(self._by_source, (source.bucket, source.key), key=_source)
        route = self._by_source[position - 1] if position else None
        return route if route is not None and route.source.contains(source) else None

    def resolve(self, request: AnonymizeRequest) -> Routed:
        """Return `request` with its route and the address of its output.

        Raises BucketNotAllowed if no route leads from the source to the destination, and
        InvalidRequest if the output can't be stored there.
        """
        route = self.of_picture(request.source)
        if route is None:
            raise BucketNotAllowed(
                f"{request.source} is in no source of {self.setting}: add a route, or correct the "
                "address"
            )
        output = request.destination or route.output_of(request.source)
        self._check(route, request.source, output)
        return Routed(request, route, output)

    def _check(self, route: Route, source: ObjectUri, output: ObjectUri) -> None:
        if not route.takes(source.key):
            raise BucketNotAllowed(
                f"{source} has none of the suffixes of the route {route.name}: "
                f"{', '.join(route.suffixes)}"
            )
        if not route.destination.contains(output):
            raise BucketNotAllowed(
                f"{output} is outside {route.destination}, where {self.setting} lets outputs go"
            )
        check_output(route, output)


def parse_place(text: str) -> PrefixUri:
    """Return the place of a route in `text`. Raises InvalidRequest for one in RESERVED too."""
    place = PrefixUri.parse(text)
    if reserved_folder(place.prefix):
        raise InvalidRequest(
            f"{place} is in {RESERVED}, which is kept for receipts: choose another place"
        )
    return place


def reserved_folder(key: str) -> str | None:
    """Return the folder RESERVED in which `key` lies; None if it lies in none.

    `key` is relative to a destination. A destination below that one has such a folder too.
    """
    before, folder, _ = f"/{key}".partition(f"/{RESERVED}")
    return f"{before}{folder}"[1:] if folder else None


def check_output(route: Route, output: ObjectUri) -> None:
    """Raise InvalidRequest for an output in the destination of `route` that no worker writes."""
    if reserved_folder(route.destination.relative(output)):
        raise InvalidRequest(
            f"{output} is in {RESERVED}, which is kept for receipts: choose another key"
        )
    if len(output.key.encode()) > MAX_KEY_BYTES:
        raise InvalidRequest(
            f"the output's key {output.key!r:.100}… is longer than {MAX_KEY_BYTES} bytes"
        )


def _listed(places: Sequence[str]) -> str:
    more = f" and {len(places) - MAX_NAMED} more" if len(places) > MAX_NAMED else ""
    return ", ".join(places[:MAX_NAMED]) + more


def _overlaps(routes: tuple[Route, ...]) -> Iterator[str]:
    """Yield a line for each route, and each two routes, of which places overlap."""
    for route in routes:
        if route.source.overlaps(route.destination):
            yield (
                f"the route {_name(route)}: its source {route.source} and its destination "
                f"{route.destination} overlap: keep them apart"
            )
    for one, other in itertools.combinations(routes, 2):
        if found := ", ".join(_overlaps_of(one, other)):
            yield f"the routes {_name(one)} and {_name(other)}: {found}: keep them apart"


def _overlaps_of(one: Route, other: Route) -> Iterator[str]:
    """Yield the overlaps of the places of two routes."""
    for names, place, other_place in (
        ("sources {} and {}", one.source, other.source),
        ("destinations {} and {}", one.destination, other.destination),
        ("source {} and destination {}", one.source, other.destination),
        ("destination {} and source {}", one.destination, other.source),
    ):
        if place.overlaps(other_place):
            yield f"{names.format(place, other_place)} overlap"


def _source(route: Route) -> tuple[str, str]:
    return route.source.bucket, route.source.prefix


def _name(route: Route) -> str:
    return str(route) if route.name is None else route.name
