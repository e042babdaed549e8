"""The wire contract: what a producer may ask, and what a worker reports."""

import hashlib
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
)

from tasks.addresses import ObjectUri
from tasks.errors import InvalidRequest

Status = Literal["anonymized", "skipped", "held"]
Reason = Literal["no face found", "faces still found in the output"]
"""Why a picture is held back, or published for somebody to look at."""
Method = Literal["surround", "blur", "pixelate", "fill"]

Model = TypeVar("Model", bound=BaseModel)

TASK = "veil.anonymize_image"
UPLOADS = "uploads"
BACKFILL = "backfill"
QUEUES = (UPLOADS, BACKFILL)  # strict priority: an upload never waits for a backfill

# of each message: when it was first put on the queue, in seconds since the epoch
QUEUED_AT_HEADER = "veil_queued_at"
RUN_HEADER = "veil_run"  # the run of a backfill that the message belongs to
# why the transport can't take the message: `defect` and `sample`; never a sender's
REFUSED_HEADER = "veil_refused"

REGIONS = {"top": 0.7, "full": 1.0}
MOST_AREAS = 1000  # of each kind; a request with more is refused
MOST_BOXES = 100  # in a report, the surest first; the receipt has all
FURTHEST = 1_000_000  # pixels: no picture is larger


def _region(value: Any) -> Any:
    return REGIONS.get(value, value) if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """JSON knows lists only."""
    return tuple(value) if isinstance(value, list) else value


def _has_inside(area: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = area
    if not (x1 < x2 and y1 < y2):
        raise ValueError("an area is x1 y1 x2 y2 with x1 < x2 and y1 < y2")
    return area


Region = Annotated[float, BeforeValidator(_region), Field(ge=0.5, le=1)]
"""Share of a face that is hidden, from its top: a number, ``top`` or ``full``."""

Side = Annotated[int, Field(ge=0, le=FURTHEST)]
Area = Annotated[
    tuple[Side, Side, Side, Side], BeforeValidator(_listed), AfterValidator(_has_inside)
]
"""x1 y1 x2 y2 in pixels of the upright picture."""

Areas = Annotated[tuple[Area, ...], BeforeValidator(_listed), Field(max_length=MOST_AREAS)]

Etag = Annotated[str, Field(min_length=1, max_length=256)]
"""What S3 calls a version of an object, without quotation marks."""


class AnonymizeOptions(BaseModel):
    """What one picture asks for in place of the worker's settings.

    `method` and `region` as in the settings VEIL_METHOD and VEIL_REGION. A face that lies at least
    half in one of the areas `exempt` stays clear; the areas `extra` are hidden whole, whatever is
    in them. `release` is the version of the source that somebody looked at: of that one, nothing is
    held back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Method | None = None
    region: Region | None = None
    exempt: Areas = ()
    extra: Areas = ()
    release: Etag | None = None

    @classmethod
    def parse(cls, /, **fields: Any) -> Self:
        """The options; raises InvalidRequest, in one line, for anything that is none."""
        return _parsed(cls, fields)

    @classmethod
    def of(cls, value: Any) -> Self:
        """The options that `value`, as it came out of JSON, says; raises InvalidRequest if it says
        none.
        """
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise InvalidRequest("not a valid request: options: give a JSON object")
        return cls.parse(**value)

    def to_json(self) -> dict[str, Any]:
        """What is asked for. What is not is left out, so that workers of an older version take it
        too.
        """
        return self.model_dump(mode="json", exclude_defaults=True)

    def for_version(self, etag: str) -> Self:
        """The options as they are for the source version `etag`: the release of another one is
        none.
        """
        return self if self.release in (None, etag) else self.model_copy(update={"release": None})

    def recipe(self, base: str) -> str:
        """The recipe of an output made with these options by a worker whose own is `base`.

        Of `release` only that there is one counts: recipes are public, and an ETag can be the MD5
        of the original.
        """
        if self == type(self)():
            return base
        public = (
            self if self.release is None else self.model_copy(update={"release": "this version"})
        )
        return f"{base}-{hashlib.sha256(public.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:8]}"


class AnonymizeRequest(BaseModel):
    """Anonymize the object `source`.

    `destination` is the output's address, or None for the route's own; `options` replace settings
    for this picture.
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
        """The request in a message; raises InvalidRequest, in one line, for anything that is not
        one.
        """
        return _parsed(cls, fields)


def _parsed(model: type[Model], fields: dict[str, Any]) -> Model:
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"not a valid request: {name:.100}: {message}") from None


@dataclass(frozen=True, kw_only=True)
class AnonymizeReport:
    """What came of one picture. Celery carries it as JSON; Flower shows its ``repr``.

    `status` is ``anonymized`` (an output was written), ``skipped`` (the stored output is already
    the one that would be made) or ``held`` (there is a `reason` not to publish it, and the setting
    holds such pictures back). An output that was written has a `reason` if somebody should look at
    it. Sizes are pixels and bytes; `seconds` maps each stage to its duration. `faces` counts the
    faces, `boxes_xyxy` has the MOST_BOXES strongest of them, in whole pixels of the upright
    picture. `found_by_check` counts the faces that were found in the output only, `left` those that
    the last check still found, and `left_xyxy` has the first MOST_BOXES of these. The receipt has
    all boxes. `source_etag` is the version of the source, `options` are what was asked for in place
    of settings.
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

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, without what is not known."""
        return {name: value for name, value in vars(self).items() if value is not None}

    __json__ = to_json  # kombu's encoder looks for this name

    def __repr__(self) -> str:
        """One line for people, what matters most first: Flower's table shows its beginning."""
        faces = {None: "", 0: "no face", 1: "1 face"}.get(self.faces, f"{self.faces} faces")
        parts = (
            self.status,
            self.reason or "",
            "" if self.reason == "no face found" else faces,
            f"{self.found_by_check} by the check" if self.found_by_check else "",
            "" if self.lowest_score is None else f"lowest score {self.lowest_score:.2f}",
            self.destination or "",
            "" if self.format is None else f"{self.format} {self.width}×{self.height}",
            "" if self.bytes_in is None else f"{self.bytes_in:,} bytes in",
            "" if self.bytes_out is None else f"{self.bytes_out:,} out",
            *(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items()),
        )
        return " · ".join(part for part in parts if part)
