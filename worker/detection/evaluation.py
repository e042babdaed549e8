"""The evaluation of an exported model that its veil.json states, beside those of bundled ones."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.messages import FACE
from worker.detection.model import METADATA

MOST_EXPOSED = 0.1
"""The share of exposed objects from which on a model without a comparison is warned of."""


@dataclass(frozen=True)
class Result:
    """The objects that stayed exposed, and the share of hidden pixels away from labelled ones."""

    exposed: int
    spill: float


@dataclass(frozen=True)
class Evaluation:
    """The results for one label, of a model at `threshold`, in pictures with `faces` such objects.

    `bundled` has those of the detector that comes with Veil; None if none finds the label.
    """

    label: str
    faces: int
    threshold: float
    own: Result
    bundled: Result | None

    @classmethod
    def parse(cls, label: str, content: Any) -> "Evaluation":
        """Return the evaluation of `label` in `content`. Raises KeyError, TypeError, ValueError."""
        bundled = content["bundled"]
        return cls(
            label,
            int(content["faces"]),
            float(content["threshold"]),
            _result(content),
            None if bundled is None else _result(bundled),
        )

    @property
    def objects(self) -> str:
        """The name of the objects in a sentence."""
        return "faces" if self.label == FACE else f"objects of the label {self.label}"

    def drawbacks(self) -> list[str]:
        """Return a sentence for each respect in which the model hides objects badly.

        That is, worse than the bundled detector or, if there is none for the label, too few.
        """
        exposed = f"{self.own.exposed:,} of {self.faces:,} {self.objects} stay exposed"
        if self.bundled is None:
            is_bad = self.own.exposed >= max(MOST_EXPOSED * self.faces, 1)
            return [f"{exposed}, {MOST_EXPOSED:.0%} or more"] if is_bad else []
        found = []
        if self.own.exposed > self.bundled.exposed:
            found.append(f"{exposed}, {self.bundled.exposed:,} with the bundled detector")
        if self.own.spill > self.bundled.spill:
            found.append(
                f"{self.own.spill:.2%} of the pixels away from {self.objects} are hidden, "
                f"{self.bundled.spill:.2%} with the bundled detector"
            )
        return found


def evaluations(content: Any) -> tuple[Evaluation, ...]:
    """Return the evaluation of each label in `content`, which veil.json has; empty without any.

    The file of a model that Veil did not export may have anything of this name.
    """
    try:
        by_label = content.get("labels") or {FACE: content}
        main = FACE if FACE in by_label else next(iter(by_label))
        found = []
        for label, one in by_label.items():
            # Earlier exports state the bundled detector's results of the main label alone.
            bundled = content["bundled"] if label == main else None
            found.append(Evaluation.parse(label, {"bundled": bundled, **one}))
        return tuple(found)
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()


def drawbacks_of(content: Any) -> list[str]:
    """Return the drawbacks in the evaluation of each label in `content`, which veil.json has."""
    return [drawback for one in evaluations(content) for drawback in one.drawbacks()]


def stated_evaluations(folder: Path) -> tuple[Evaluation, ...]:
    """Return the evaluation of each label that veil.json in `folder` states."""
    try:
        return evaluations(json.loads((folder / METADATA).read_text())["evaluation"])
    except (OSError, KeyError, TypeError, ValueError):
        return ()


def _result(content: Any) -> Result:
    return Result(int(content["exposed"]), float(content["spill"]))
