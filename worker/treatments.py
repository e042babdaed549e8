"""The treatment of the objects of each label: settings, rules and the options of a request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tasks.errors import InvalidRequest
from tasks.messages import FACE, AnonymizeOptions, Rule
from tasks.rules import rule_for
from worker.detection.faces import Detections
from worker.masking.filling import INDEPENDENT
from worker.masking.regions import WHOLE, MaskStyle, Part

# The margin of other objects than faces, unless a rule has one. Boxes of plates that people drew
# often include the frame and some of the car: docs/plates.md has the figures.
OTHER_MARGIN = 0.4

AS_CONFIGURED = AnonymizeOptions()


@dataclass(frozen=True)
class Treatment:
    """The treatment of the objects of one label; Rule explains the names."""

    style: MaskStyle
    smallest: int = 0
    hold: bool = False
    ignore: bool = False

    def hides_as_much_as(self, other: "Treatment") -> bool:
        """Return whether no object is visible, or published, that `other` hides or holds."""
        style, least = self.style, other.style
        is_safe = style.method in INDEPENDENT or least.method not in INDEPENDENT
        is_safe &= style.shape != "ellipse" or least.shape == "ellipse"
        is_safe &= style.region >= least.region and style.margin >= least.margin
        is_safe &= self.smallest <= other.smallest
        return is_safe and self.hold >= other.hold and self.ignore <= other.ignore


@dataclass(frozen=True)
class Treatments:
    """The treatments of all `labels` that the models of a worker find.

    `style` is that of faces without a rule, and `rules` are those of the settings.
    """

    style: MaskStyle
    labels: tuple[str, ...] = (FACE,)
    rules: Mapping[str, Rule] = field(default_factory=dict)

    def of(self, label: str, options: AnonymizeOptions = AS_CONFIGURED) -> Treatment:
        """Return the treatment of `label` in a picture with `options`."""
        style = self.style
        if label != FACE:
            style = replace(style, region=WHOLE, margin=OTHER_MARGIN, shape="rectangle")
        known = Treatment(style)
        if rule := rule_for(self.rules, label):
            known = _changed(known, rule)
        region = options.region if label == FACE else None
        known = _changed(known, Rule(method=options.method, region=region))
        known = _changed(known, options.rules.get(label, Rule()))
        # A request to ignore what a rule of the settings holds must also say `hold=false`.
        return replace(known, ignore=known.ignore and not known.hold)

    def check(self, options: AnonymizeOptions) -> None:
        """Raise InvalidRequest for options with a defect."""
        if defect := self.defect(options):
            labels = ", ".join(self.labels)
            raise InvalidRequest(
                f"the request has {defect}: choose from {labels}, and leave one to be hidden"
            )

    def defect(self, options: AnonymizeOptions) -> str | None:
        """Return the rule of a label that no model finds, or rules that hide nothing, in words.

        What a rule of an unknown label should hide or show is unknown. Rules that ignore every
        label would publish the source.
        """
        for label in options.rules:
            if label not in self.labels:
                return f"a rule for {label}, which the worker's models do not find"
        if all(self.of(label, options).ignore for label in self.labels):
            return "rules that ignore every label"
        return None

    def leaves_visible(self, options: AnonymizeOptions) -> bool:
        """Return whether an exempt area or a rule can leave objects visible in a picture.

        They are faces, and objects of a label that has a rule in `options`.
        """
        ruled = [self.of(label, options) for label in (FACE, *options.rules)]
        return bool(options.exempt) or any(one.ignore or one.smallest for one in ruled)

    def wanted(self, found: Detections, options: AnonymizeOptions) -> Detections:
        """Return the objects of `found` that are not to be ignored.

        The side of one that the picture's edge cuts is that of its sightings, which reach beyond.
        """
        labels, sightings = found.labels, found.sightings
        sides = (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).min(axis=1)
        seen = sightings.boxes_xyxy
        np.maximum.at(sides, sightings.face, (seen[:, 2:] - seen[:, :2]).min(axis=1))
        is_wanted = np.ones(len(found), bool)
        for label in np.unique(labels):
            treatment = self.of(str(label), options)
            is_dropped = treatment.ignore | (sides < treatment.smallest)
            is_wanted[(labels == label) & is_dropped] = False
        return found if is_wanted.all() else found[is_wanted]

    @property
    def sought(self) -> str | None:
        """The label without which a picture counts as one without faces; None for any label."""
        return FACE if FACE in self.labels else None

    def to_hold(self, labels: Iterable[str], options: AnonymizeOptions) -> list[str]:
        """Return those of `labels` whose objects keep a picture from being published, sorted."""
        return sorted(label for label in set(map(str, labels)) if self.of(label, options).hold)

    def parts(self, found: Detections, options: AnonymizeOptions) -> list[Part]:
        """Return the sightings of `found` by label, each with its style; faces come first.

        The first part is always there: further areas of a request are hidden in its style.
        """
        others = {str(label) for label in np.unique(found.labels)} - {FACE}
        parts = []
        for label in (FACE, *sorted(others)):
            sightings = found.sightings
            chosen = sightings[found.labels[sightings.face] == label] if others else sightings
            parts.append(Part(chosen, self.of(label, options).style))
        return parts

    def without_weaker(self, options: AnonymizeOptions) -> AnonymizeOptions:
        """Return the part of `options` that hides at least as much as the settings do."""
        kept = AnonymizeOptions(extra=options.extra)
        changes: list[dict[str, Any]] = [{"method": options.method}]
        if options.region is not None and options.region > self.of(FACE).style.region:
            changes.append({"region": options.region})
        for label, rule in options.rules.items():
            if label in self.labels:
                changes.append({"rules": {label: rule}})
        for change in changes:
            changed = kept.model_copy(update=_joined(kept, change))
            if all(self._hides_more(label, changed) for label in self.labels):
                kept = changed
        return kept

    def _hides_more(self, label: str, options: AnonymizeOptions) -> bool:
        return self.of(label, options).hides_as_much_as(self.of(label))


def _joined(options: AnonymizeOptions, change: dict[str, Any]) -> dict[str, Any]:
    """Return `change` with the rules that `options` have already."""
    return {**change, "rules": {**options.rules, **change.get("rules", {})}}


def _changed(treatment: Treatment, rule: Rule) -> Treatment:
    """Return `treatment` with the values that `rule` has."""
    values = {
        name: value for name in Rule.model_fields if (value := getattr(rule, name)) is not None
    }
    of_style = {"method", "region", "margin", "shape"}
    style = replace(treatment.style, **{name: values[name] for name in of_style & values.keys()})
    others = {name: values[name] for name in values.keys() - of_style}
    return replace(treatment, style=style, **others)
