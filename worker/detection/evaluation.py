"""The evaluation of an exported model that its veil.json states, beside that of the bundled one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.detection.model import METADATA


@dataclass(frozen=True)
class Result:
    """The faces that stayed exposed, and the share of pixels hidden beside all labelled faces."""

    exposed: int
    spill: float


@dataclass(frozen=True)
class Evaluation:
    """The results of a model at `threshold` and of the bundled one, in pictures with `faces`."""

    faces: int
    threshold: float
    own: Result
    bundled: Result

    @classmethod
    def parse(cls, content: Any) -> "Evaluation | None":
        """Return the evaluation in `content`, as veil.json has it; None if it has none."""
        try:
            own, bundled = content, content["bundled"]
            return cls(
                int(content["faces"]),
                float(content["threshold"]),
                Result(int(own["exposed"]), float(own["spill"])),
                Result(int(bundled["exposed"]), float(bundled["spill"])),
            )
        except (KeyError, TypeError, ValueError):
            # The file of a model that Veil did not export may have anything of this name.
            return None

    def drawbacks(self) -> list[str]:
        """Return a sentence for each respect in which the bundled detector hides faces better."""
        found = []
        if self.own.exposed > self.bundled.exposed:
            found.append(
                f"{self.own.exposed:,} of {self.faces:,} faces stay exposed, "
                f"{self.bundled.exposed:,} with the bundled detector"
            )
        if self.own.spill > self.bundled.spill:
            found.append(
                f"{self.own.spill:.2%} of the pixels away from faces are hidden, "
                f"{self.bundled.spill:.2%} with the bundled detector"
            )
        return found


def stated_evaluation(folder: Path) -> Evaluation | None:
    """Return the evaluation that veil.json in `folder` states; None if it states none."""
    try:
        return Evaluation.parse(json.loads((folder / METADATA).read_text())["evaluation"])
    except (OSError, KeyError, TypeError, ValueError):
        return None
