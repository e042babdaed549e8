"""The wire contract: what a producer may ask, and what a worker reports."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.addresses import ObjectUri
from tasks.errors import InvalidRequest

Status = Literal["anonymized", "skipped", "held"]


class AnonymizeRequest(BaseModel):
    """Anonymize the object `source`; `destination` is the output's address, or None for the route's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    source: ObjectUri
    destination: ObjectUri | None = Field(None)

    @field_validator("source", "destination", mode="before")
    @classmethod
    def _parse_uri(cls, value: Any) -> Any:
        return ObjectUri.parse(value) if isinstance(value, str) else value

    @classmethod
    def parse(cls, /, **fields: Any) -> Self:
        """The request in a message; raises InvalidRequest, in one line, for anything that is not one."""
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise InvalidRequest(f"not a valid request: {name:.100}: {first['msg']}") from None


@dataclass(frozen=True, kw_only=True)
class AnonymizeReport:
    """What came of one picture. Celery carries it as JSON; Flower shows its ``repr``.

    `status` is ``anonymized`` (an output was written), ``skipped`` (the stored output is already the one
    that would be made) or ``held`` (no face was found and the setting holds such pictures back).
    Sizes are pixels and bytes; `seconds` maps each stage to its duration; `boxes_xyxy` are the faces, in whole
    pixels of the upright picture, strongest first.
    """

    status: Status
    faces: int | None = None
    lowest_score: float | None = None
    source: str
    destination: str | None
    recipe: str
    format: str | None = None
    width: int | None = None
    height: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    boxes_xyxy: list[list[int]] | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    __json__ = to_json  # kombu's encoder looks for this name

    def __repr__(self) -> str:
        """One line for people, what matters most first: Flower's table shows its beginning."""
        faces = {None: "", 0: "no face", 1: "1 face"}.get(self.faces, f"{self.faces} faces")
        parts = (
            self.status,
            faces,
            "" if self.lowest_score is None else f"lowest score {self.lowest_score:.2f}",
            self.destination or "",
            "" if self.format is None else f"{self.format} {self.width}×{self.height}",
            "" if self.bytes_in is None else f"{self.bytes_in:,} bytes in",
            "" if self.bytes_out is None else f"{self.bytes_out:,} out",
            *(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items()),
        )
        return " · ".join(part for part in parts if part)
