"""The settings of detection's passes, and their presets."""

from dataclasses import dataclass
from typing import Literal

Turned = Literal["never", "doubt", "always"]
# No added pass is more than this many times as fine as the one before it. A face that the tiles of
# the finer pass cut is then small enough to lie whole in the coarser one.
MAX_STEP_FACTOR = 3.01
# With larger steps, blurred faces are clear in neither of two passes: see docs/detection.md.
THOROUGH_STEP_FACTOR = 1.8


# A recipe is a digest over these fields, their names included: renaming one changes every recipe.
@dataclass(frozen=True)
class PassSettings:
    """The passes of detection over a picture.

    `scales` are the longer sides of the passes, in pixels. Small pictures are enlarged by at most
    `max_enlargement`, and to a longer side of at most `enlarge_to` pixels. `mirrored` adds a
    mirrored pass to each. `turned` adds passes over the turned picture, which find pictures and
    heads that lie on their side or stand upside down: ``never``, ``always``, or when in ``doubt``
    about what the upright passes found. `smallest_face` is the side, in pixels of the picture, of
    the smallest face that the finest pass must show large enough for the model, whatever the
    picture's dimensions. Closer passes show unclear places of the picture as if its longer side had
    up to `closer_to` pixels.
    """

    scales: tuple[int, ...]
    max_enlargement: float
    enlarge_to: int
    mirrored: bool
    turned: Turned
    smallest_face: int = 24
    closer_to: int = 0

    @property
    def closer_step(self) -> float:
        """The most that a closer pass is finer than the pass before it, as a factor.

        A search with mirrored passes is after every face, so it comes closer in smaller steps.
        """
        return THOROUGH_STEP_FACTOR if self.mirrored else MAX_STEP_FACTOR

    @property
    def passes(self) -> int:
        """The number of passes over a picture, from which its time limit follows."""
        upright = len(self.scales) * (1 + self.mirrored)
        probes = {"never": 0, "doubt": 1, "always": max(1, len(self.scales) - 1)}[self.turned]
        repeated = len(self.scales) if probes else 0
        return upright + 3 * probes + repeated


PRESETS = {
    "fast": PassSettings((256, 896), 2.0, 640, mirrored=False, turned="never", smallest_face=48),
    "balanced": PassSettings(
        (256, 480, 960), 3.0, 640, mirrored=False, turned="doubt", closer_to=1920
    ),
    "thorough": PassSettings(
        (256, 480, 960),
        4.0,
        800,
        mirrored=True,
        turned="always",
        smallest_face=14,
        closer_to=2880,
    ),
}
