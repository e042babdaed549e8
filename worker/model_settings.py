"""The models of a worker and the rules of their labels, as the settings name them."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tasks.messages import Rule, label_of
from tasks.rules import EVERY_OTHER, parse_rules
from tasks.settings import PREFIX
from worker.detection import plates
from worker.detection.presets import Turned

DEFAULT, PLATES = "default", "plates"
"""The names of the models that come with Veil, in VEIL_MODELS."""
PIN = "#sha256="
SHA256 = re.compile(r"[0-9a-f]{64}")
MIN_SCALE, MAX_SCALE = 64, 8192


@dataclass(frozen=True)
class ModelAddress:
    """A model: its folder, ZIP or ``s3://`` address, None for the default one, and its pin.

    `setting` is the name of the setting that names it.
    """

    address: str | None = None
    sha256: str | None = None
    setting: str = field(default=f"{PREFIX}MODEL", compare=False)

    @classmethod
    def parse(cls, text: str, setting: str = f"{PREFIX}MODELS") -> "ModelAddress":
        """Return the model that an entry of VEIL_MODELS names.

        Raises ValueError for a pin that is no digest, for the pin of a model that comes with Veil,
        and if this installation has no plate detector.
        """
        address, sign, pin = (part.strip() for part in text.partition(PIN))
        if sign and not SHA256.fullmatch(pin.lower()):
            raise ValueError(f"{text:.200}: {PIN} must be followed by 64 hexadecimal digits")
        if address in (DEFAULT, PLATES) and sign:
            raise ValueError(f"{address} comes with Veil and needs no {PIN}")
        if address == DEFAULT:
            return cls(setting=setting)
        if address == PLATES:
            return cls(str(plates.folder()), setting=setting)
        if not address:
            raise ValueError(f"{text:.200} names no model")
        return cls(address, pin.lower() or None, setting)


def _sides(value: Any) -> Any:
    """Return one side, or a list of sides, as a sorted tuple."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not sides or not all(type(one) is int and MIN_SCALE <= one <= MAX_SCALE for one in sides):
        raise ValueError(f"give one or more sides from {MIN_SCALE} to {MAX_SCALE}")
    return tuple(sorted(set(sides)))


class LabelSettings(Rule):
    """A rule of the settings: the treatment of a label's objects, and the search for them.

    The names that Rule does not have are those of settings of all labels: VEIL_SCORE_THRESHOLD,
    VEIL_PRESET, VEIL_SCALES and VEIL_TURNED.
    """

    threshold: float | None = Field(None, gt=0, lt=1)
    preset: Literal["fast", "balanced", "thorough"] | None = None
    scales: Annotated[tuple[int, ...], BeforeValidator(_sides)] | None = None
    turned: Turned | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        """Refuse unknown names with the known ones."""
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(f"{name:.40}: unknown, choose from {', '.join(cls.model_fields)}")
        return values

    @property
    def rule(self) -> Rule:
        """The treatment alone."""
        return Rule(**{name: getattr(self, name) for name in Rule.model_fields})


def _rules(value: Any) -> Any:
    return parse_rules(value) if isinstance(value, str) else value


def _label_or_star(value: str) -> str:
    return value if value.strip() == EVERY_OTHER else label_of(value)


LabelRules = Annotated[
    dict[Annotated[str, AfterValidator(_label_or_star)], LabelSettings], BeforeValidator(_rules)
]
"""Rules by label, or the text of them: see tasks.rules."""
