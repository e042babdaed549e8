"""The wire contract: what a producer may request, and what a worker reports."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .addresses import ObjectUri
from .errors import InvalidRequest
from .wrong_values import in_words

Status = Literal["anonymized", "skipped", "held"]
NO_FACE_FOUND = "no face found"
NO_FACE_HIDDEN = "no face was hidden: the request or a rule leaves those found visible"
HELD_BY_A_RULE = "an object with the rule hold was found"
REASONS = (
    NO_FACE_FOUND,
    NO_FACE_HIDDEN,
    "faces still found in the output",
    "objects still found in the output",
    HELD_BY_A_RULE,
)


def _known_reason(value: str) -> str:
    """Return a reason. Raises ValueError for a text that is none of REASONS."""
    if value not in REASONS and not value.startswith(f"{HELD_BY_A_RULE}: "):
        raise ValueError(f"{value!r:.80} is no reason")
    return value


Reason = Annotated[str, AfterValidator(_known_reason)]
"""The reason why a picture is held, or is published but put on the review list.

It is one of REASONS. That of a rule goes on with the labels of the objects, as in ``…: plate``.
"""
Check = Literal["off", "same", "clear", "left"]
"""The result of the residual check.

It is ``off`` if there was no check, ``same`` if the output has the pixels that were searched
already, ``clear`` if no face was found, and ``left`` if faces were found, or shown by the output
although they should be hidden.
"""
Method = Literal["surround", "blur", "pixelate", "fill"]
Shape = Literal["rectangle", "ellipse"]

Model = TypeVar("Model", bound=BaseModel)

TASK = "veil.anonymize_image"
UPLOADS = "uploads"
BACKFILL = "backfill"
QUEUES = (UPLOADS, BACKFILL)  # in strict priority: an upload never waits for a backfill

# The header with the time at which a message was first queued, in seconds since the epoch.
QUEUED_AT_HEADER = "veil_queued_at"
# The header with the name of the backfill run that a message belongs to.
RUN_HEADER = "veil_run"
# The header in which the transport passes on why it refused a message: a mapping with `defect` and
# `sample`. The transport drops this header if a sender sets it.
REFUSED_HEADER = "veil_refused"

FACE = "FACE"
"""The label of faces, and of everything that a model without labels finds."""
MAX_LABEL_LENGTH = 64  # characters


def held_by_a_rule(labels: Iterable[str]) -> Reason:
    """Return the reason to hold a picture with objects of `labels`, whose rules say `hold`."""
    names = [FACE.lower() if label == FACE else label for label in labels]
    return f"{HELD_BY_A_RULE}: {', '.join(names)}"


RULES_EXAMPLE = '{"plate": {"method": "fill", "margin": 0.2}}'
MAX_RULES = 100  # labels that a request may have rules for

REGIONS = {"top": 0.7, "full": 1.0}
LOWEST_REGION = 0.5  # the smallest share of a face that may be hidden
MAX_AREAS = 1000  # of each kind; a request with more is refused
MAX_BOXES = 100  # boxes in a report, the highest scores first; the receipt has all
MAX_COORDINATE = 1_000_000  # pixels; no picture is larger
MIN_POLYGON, MAX_POLYGON = 6, 400  # numbers of a polygon, two for each corner


def _named_region(value: Any) -> Any:
    """Return the share that `value` names, or `value` itself. Raises ValueError for no share."""
    share = REGIONS.get(value, value) if isinstance(value, str) else value
    try:
        is_share = LOWEST_REGION <= float(share) <= 1
    except (TypeError, ValueError, OverflowError):
        is_share = False
    if not is_share:
        raise ValueError("must be top, full, or a number from 0.5 to 1")
    return share


def _areas(value: Any) -> Any:
    """Return a list as a tuple, because JSON has lists only. Raises ValueError for no list."""
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list of areas, such as [[300, 40, 420, 200]]")
    return tuple(value)


def _area(value: Any) -> Any:
    """Return an area as a tuple, because JSON has lists only. Raises ValueError for no area."""
    sides = tuple(value) if isinstance(value, list | tuple) else ()
    are_pixels = all(type(side) is int and 0 <= side <= MAX_COORDINATE for side in sides)
    if are_pixels and MIN_POLYGON <= len(sides) <= MAX_POLYGON and len(sides) % 2 == 0:
        return _polygon(sides)
    if len(sides) != 4 or not are_pixels:
        raise ValueError(
            "an area needs four whole numbers: x1, y1, x2, y2, in pixels of the upright picture, "
            f"from 0 to {MAX_COORDINATE}; or the x and y of three corners or more"
        )
    x1, y1, x2, y2 = sides
    if not (x1 < x2 and y1 < y2):
        raise ValueError("an area is x1, y1, x2, y2 with x1 < x2 and y1 < y2")
    return sides


def _polygon(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Return a polygon. Raises ValueError if it has no pixels."""
    xs, ys = sides[::2], sides[1::2]
    if min(xs) == max(xs) or min(ys) == max(ys):
        raise ValueError("the corners of a polygon lie on a line")
    return sides


Region = Annotated[float, BeforeValidator(_named_region), Field(ge=LOWEST_REGION, le=1)]
"""The share of a face that is hidden, from its top: a number, ``top`` or ``full``."""

Area = Annotated[tuple[int, ...], BeforeValidator(_area)]
"""A box, x1 y1 x2 y2, or a polygon, x1 y1 x2 y2 x3 y3 …, in pixels of the upright picture."""

Areas = Annotated[tuple[Area, ...], BeforeValidator(_areas), Field(max_length=MAX_AREAS)]


def label_of(value: str) -> str:
    """Return the label in `value`, whose letters may be of any case if it is FACE.

    Raises ValueError for a text that a rule can't name.
    """
    label = value.strip()
    has_length = 1 <= len(label) <= MAX_LABEL_LENGTH
    if not has_length or not label.isprintable() or re.search("[:;*]", label):
        raise ValueError(
            f"{value!r:.80} is no label: a label has 1 to {MAX_LABEL_LENGTH} printable characters, "
            "and none of : ; *"
        )
    return FACE if label.upper() == FACE else label


def _one_for_each(rules: Any) -> Any:
    """Return `rules` by label, of which FACE may be in any case.

    Raises ValueError for another form, and for two rules of one label.
    """
    if not isinstance(rules, dict) or any(isinstance(one, str) for one in rules.values()):
        raise ValueError(f"give an object with an object for each label, such as {RULES_EXAMPLE}")
    names = list(rules)
    stripped = [name.strip() for name in names if isinstance(name, str)]
    labels = [FACE if name.upper() == FACE else name for name in stripped]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"there are two rules for {twice:.80}")
    return rules


def _without_empty(rules: "dict[str, Rule]") -> "dict[str, Rule]":
    """Return `rules` by label, without those that change nothing: their order changes no recipe."""
    return {label: rules[label] for label in sorted(rules) if rules[label] != Rule()}


Etag = Annotated[str, Field(min_length=1, max_length=256)]
"""S3's name for a version of an object, without quotation marks."""


class Rule(BaseModel):
    """The treatment of the objects of one label. A value that is None replaces nothing.

    `method`, `region`, `margin` and `shape` have the values of the settings VEIL_METHOD and so on.
    An object whose shorter side has less than `smallest` pixels stays visible. A picture with an
    object to `hold` is not published before a person has reviewed it. Objects to `ignore` stay
    visible.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    method: Method | None = None
    region: Region | None = None
    margin: float | None = Field(None, ge=0, le=1)
    shape: Shape | None = None
    smallest: int | None = Field(None, ge=0, le=MAX_COORDINATE)
    hold: bool | None = None
    ignore: bool | None = None

    @model_validator(mode="after")
    def _check_contradiction(self) -> Self:
        if self.hold and self.ignore:
            raise ValueError("hold and ignore contradict each other: choose one")
        return self

    @property
    def shows_more(self) -> bool:
        """True if the rule can leave objects visible, or publish a picture without a review."""
        return bool(self.ignore or self.smallest or self.hold is False)

    def without_more(self) -> Self:
        """Return the rule without the values that show more."""
        if not self.shows_more:
            return self
        hold = self.hold or None
        return self.model_copy(update={"ignore": None, "smallest": None, "hold": hold})


Label = Annotated[str, AfterValidator(label_of)]

Rules = Annotated[
    dict[Label, Rule],
    Field(max_length=MAX_RULES),
    BeforeValidator(_one_for_each),
    AfterValidator(_without_empty),
]
"""Rules by label."""


class AnonymizeOptions(BaseModel):
    """Options of one picture, which replace the worker's settings.

    `method` is the method for all labels, and `region` the region of faces; they have the values of
    the settings VEIL_METHOD and VEIL_REGION. An object of which at least half is in one of the
    areas `exempt` stays visible. The areas `extra` are hidden completely. An area is a box or a
    polygon. `version` is the version of the source that the options are for: in another one,
    nothing is exempt, and the values of rules that show more do not apply. `release` is the version
    that a person has reviewed, which is never held. `rules` are rules by label, which replace those
    of VEIL_RULES value by value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    method: Method | None = None
    region: Region | None = None
    exempt: Areas = ()
    extra: Areas = ()
    version: Etag | None = None
    release: Etag | None = None
    rules: Rules = Field(default_factory=dict)

    @classmethod
    def parse(cls, /, **fields: Any) -> Self:
        """Return the options with these `fields`.

        Raises InvalidRequest, with a message of one line, if they are invalid.
        """
        return _parsed(cls, fields)

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return the options in `value`, which was decoded from JSON.

        Raises InvalidRequest if `value` is no valid set of options.
        """
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise InvalidRequest("not a valid request: options: give a JSON object")
        return cls.parse(**value)

    def to_json(self) -> dict[str, Any]:
        """Return the options that are set, as JSON values.

        Unset options are left out, so that workers of an older version accept the rest.
        """
        return self.model_dump(mode="json", exclude_defaults=True)

    __json__ = to_json  # the name that kombu's encoder calls

    @property
    def shows_more(self) -> bool:
        """True if the options can show objects, or publish pictures, that the settings would not.

        The style of masks, `method` and `region`, does not count.
        """
        return bool(self.exempt) or any(rule.shows_more for rule in self.rules.values())

    @property
    def lacks_version(self) -> bool:
        """True if the options show more, in whichever version of the source a worker finds."""
        return self.shows_more and self.version is None and self.release is None

    def pinned(self, etag: str) -> Self:
        """Return the options, for the version `etag` alone if they lack a version."""
        return self.model_copy(update={"version": etag}) if self.lacks_version else self

    def with_more(self, more: "AnonymizeOptions", etag: str | None) -> Self:
        """Return these options, overridden by `more`, with the areas of both.

        They are for the version `etag` of the source, if it is known, whose release stays if `more`
        only has areas to hide. Rules are overridden value by value. Raises InvalidRequest for more
        areas than a request may have, and for values of a rule that contradict each other.
        """
        rules: dict[str, dict[str, Any]] = {}
        for options in (self, more):
            for label, rule in options.rules.items():
                rules.setdefault(label, {}).update(rule.model_dump(exclude_none=True))
        joined = type(self).parse(
            method=more.method or self.method,
            region=more.region or self.region,
            exempt=_with_new(self.exempt, more.exempt),
            extra=_with_new(self.extra, more.extra),
            rules=rules,
        )
        if etag:
            joined = joined.pinned(etag)
        return joined.with_release_of(self, etag)

    def with_release_of(self, earlier: "AnonymizeOptions", etag: str | None) -> Self:
        """Return these options, with the release of `earlier` if they only add areas to hide.

        It must be the release of the version `etag`. What a person has reviewed stays visible or is
        hidden.
        """
        released = self.model_copy(update={"release": earlier.release, "version": earlier.version})
        only_adds = released.model_copy(update={"extra": earlier.extra}) == earlier
        is_released = etag is not None and earlier.release == etag
        if is_released and only_adds and set(earlier.extra) < set(self.extra):
            return released
        return self

    def for_version(self, etag: str) -> Self:
        """Return the options for the source version `etag`, without the release of another one.

        What shows more in another version goes, too: in this one it shows other faces.
        """
        if {self.release, self.version} <= {None, etag}:
            return self
        release = etag if self.release == etag else None
        rules = _without_empty({name: rule.without_more() for name, rule in self.rules.items()})
        change = {"release": release, "version": None, "exempt": (), "rules": rules}
        return self.model_copy(update=change)

    def recipe(self, base: str) -> str:
        """Return the recipe of an output made with these options by a worker with recipe `base`.

        No ETag affects the recipe, only the presence of `release`: recipes are public, and an ETag
        can be the MD5 of the original.
        """
        public = self.model_copy(update={"version": None})
        if public == type(self)():
            return base
        if self.release is not None:
            public = public.model_copy(update={"release": "this version"})
        content = public.model_dump_json(exclude_defaults=True).encode()
        return f"{base}-{hashlib.sha256(content).hexdigest()[:8]}"


def _with_new(areas: Areas, more: Areas) -> Areas:
    """Return `areas` and those of `more` that are not among them."""
    return areas + tuple(area for area in more if area not in areas)


class AnonymizeRequest(BaseModel):
    """A request to anonymize the object `source`.

    `destination` is the output's address, or None for the default address of the route. `options`
    replace settings for this picture.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True
    )

    source: ObjectUri
    destination: ObjectUri | None = Field(None)
    options: AnonymizeOptions | None = Field(None)

    @field_validator("source", "destination", mode="before")
    @classmethod
    def _parse_uri(cls, value: Any) -> Any:
        return ObjectUri.parse(value) if isinstance(value, str) else value

    @classmethod
    def parse(cls, /, **fields: Any) -> Self:
        """Return the request with these `fields`.

        Raises InvalidRequest, with a message of one line, if they are invalid.
        """
        return _parsed(cls, fields)


# Texts in place of pydantic's, by its type of error.
PLAIN_MESSAGES = {
    "dataclass_exact_type": "must be an address like s3://BUCKET/KEY",
    "missing": "must be given",
    "model_type": "give a JSON object",
}


def _parsed(model: type[Model], fields: dict[str, Any]) -> Model:
    try:
        return model(**fields)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        # A misspelt name also leaves the right one missing, so it is reported first.
        first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known: type[BaseModel] = model if len(first["loc"]) == 1 else AnonymizeOptions
            known = Rule if "rules" in first["loc"] else known
            message = f"unknown, choose from {', '.join(known.model_fields)}"
        else:
            message = PLAIN_MESSAGES.get(first["type"]) or in_words(first)
        raise InvalidRequest(f"not a valid request: {name:.100}: {message}") from None


@dataclass(frozen=True, kw_only=True)
class AnonymizeReport:
    """The outcome of one picture. Celery stores it as JSON; Flower shows its ``repr``.

    - `status`: ``anonymized`` if an output was written, ``skipped`` if the stored output already is
      the one that would be written, ``held`` if there is a `reason` not to publish the picture and
      the settings hold such pictures.
    - `reason`: also set for an output that was written and should be reviewed.
    - `faces`: the number of faces; None if the worker's models find none. `boxes_xyxy` contains the
      MAX_BOXES boxes with the highest scores, in whole pixels of the upright picture. The receipt
      contains all boxes.
    - `labels`: the number of objects by label, and `box_labels` the label of each of `boxes_xyxy`.
      Both are None if the worker's models only find faces.
    - `found_by_check`: the number of faces that only the residual check found.
    - `left`: the number of faces that the last residual check still found, or that the output shows
      although they should be hidden. `left_xyxy` contains the first MAX_BOXES of their boxes.
    - `width` and `height` are in pixels, `bytes_in` and `bytes_out` in bytes.
    - `seconds`: the duration of each stage by its name.
    - `source_etag`: the version of the source.
    - `options`: the options of the request.
    - `notes`: faults of the source's file that changed no pixel.
    - `warning`: says that an older output of a held picture is still published, or why older
      receipts of the output were not deleted.
    """

    status: Status
    faces: int | None = None
    lowest_score: float | None = None
    source: str
    destination: str | None
    recipe: str
    reason: Reason | None = None
    found_by_check: int | None = None
    left: int | None = None
    left_xyxy: list[list[int]] | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    boxes_xyxy: list[list[int]] | None = None
    source_etag: str | None = None
    options: dict[str, Any] | None = None
    notes: list[str] | None = None
    warning: str | None = None
    labels: dict[str, int] | None = None
    box_labels: list[str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, without the fields that are None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    __json__ = to_json  # the name that kombu's encoder calls

    def __repr__(self) -> str:
        """Return one line for people.

        The most important comes first, because Flower's table shows only the beginning.
        """
        stages = [f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items()]
        return " · ".join([self.status, *self._finding(), *self._file(), *stages])

    def _finding(self) -> Iterator[str]:
        if self.reason:
            yield self.reason
        if self.faces is not None and self.reason not in (NO_FACE_FOUND, NO_FACE_HIDDEN):
            yield {0: "no face", 1: "1 face"}.get(self.faces, f"{self.faces} faces")
        for label, count in (self.labels or {}).items():
            if label != FACE:
                yield f"{count} {label}"
        if self.found_by_check:
            yield f"{self.found_by_check} by the check"
        if self.lowest_score is not None:
            yield f"lowest score {self.lowest_score:.2f}"

    def _file(self) -> Iterator[str]:
        if self.destination:
            yield self.destination
        if self.format is not None:
            yield f"{self.format} {self.width}×{self.height}"
        if self.bytes_in is not None:
            yield f"{self.bytes_in:,} bytes in"
        if self.bytes_out is not None:
            yield f"{self.bytes_out:,} out"
        yield from self.notes or ()
        if self.warning:
            yield self.warning
