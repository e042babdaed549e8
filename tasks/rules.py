"""Rules in text, as VEIL_RULES and the flag --rule have them, become the fields of Rule."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from .messages import FACE, label_of

Kind = TypeVar("Kind")

EXAMPLE = "plate: region=full margin=0.2; document: hold"
# Names in a rule that need no value: `hold` stands for `hold=true`.
FLAGS = ("hold", "ignore")
TRUTHS = {"true": True, "false": False}
EVERY_OTHER = "*"  # the label of the rule for all other objects than faces without one


def parse_rules(text: str) -> dict[str, dict[str, Any]]:
    """Return the values of each rule in `text` by label.

    Rules are separated by semicolons or line ends, a label from its rule by a colon, and the values
    of a rule by spaces: EXAMPLE is one. The values are not checked. Raises ValueError, in one line,
    for a text of another form.
    """
    rules: dict[str, dict[str, Any]] = {}
    for part in re.split(r"[;\n]", text):
        if not part.strip():
            continue
        name, colon, values = part.partition(":")
        label = name.strip() if name.strip() == EVERY_OTHER else label_of(name)
        if not colon:
            raise ValueError(f"{part.strip()!r:.80} is no rule: write {EXAMPLE}")
        if label in rules:
            raise ValueError(f"there are two rules for {label}")
        rules[label] = dict(_values(values))
    return rules


def rule_for(rules: Mapping[str, Kind], label: str) -> Kind | None:
    """Return the rule for `label`, or None.

    The rule EVERY_OTHER is not for faces: whoever wants to leave them visible must name them.
    """
    return rules.get(label, None if label == FACE else rules.get(EVERY_OTHER))


def _values(text: str) -> Iterator[tuple[str, Any]]:
    for word in text.split():
        name, sign, value = word.partition("=")
        if not sign and name not in FLAGS:
            raise ValueError(f"{word!r:.80} has no value: write {name:.40}=…, as in {EXAMPLE}")
        yield name, _typed(value) if sign else True


def _typed(text: str) -> Any:
    """Return `text` as a truth value, a list or a number, or unchanged if it is none of them."""
    if text in TRUTHS:
        return TRUTHS[text]
    if "," in text:
        return [_typed(part) for part in text.split(",") if part]
    kinds: tuple[Callable[[str], Any], ...] = (int, float)
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            pass
    return text
