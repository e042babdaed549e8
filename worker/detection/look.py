"""Settings of the passes of detection, and their presets."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Look:
    """The passes of detection over a picture.

    `scales` are the longer sides of the passes in pixels. A small picture is enlarged up to
    `max_enlargement` times, and not beyond a longer side of `enlarge_to`. `mirrored` passes come on
    top, and so do `turned` ones, for pictures and heads that lie on their side or stand upside
    down: ``never``, when in ``doubt``, or ``always``. `smallest_face` is the side, in pixels of the
    picture, of the smallest face that the finest pass has to show at a size that the detector
    finds, whatever the picture's dimensions.
    """

    scales: tuple[int, ...]
    max_enlargement: float
    enlarge_to: int
    mirrored: bool
    turned: Literal["never", "doubt", "always"]
    smallest_face: int = 24

    @property
    def passes(self) -> int:
        """The number of passes over one view of a picture, from which its time limit follows."""
        upright = len(self.scales) * (1 + self.mirrored)
        probes = {"never": 0, "doubt": 1, "always": max(1, len(self.scales) - 1)}[self.turned]
        return upright + 3 * probes + (len(self.scales) if probes else 0)


PRESETS = {
    "fast": Look((480, 896), 2.0, 896, mirrored=False, turned="never", smallest_face=48),
    "balanced": Look((480, 960, 1920), 2.0, 960, mirrored=False, turned="doubt"),
    "thorough": Look((480, 800, 1920), 3.0, 1280, mirrored=True, turned="always", smallest_face=14),
}
