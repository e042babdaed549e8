"""The plan of the passes over a picture: their sizes and orientations, and when to add more."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from worker.detection.canvas import MAX_CANVAS_SIDE, Pyramid
from worker.detection.faces import Points
from worker.detection.presets import MAX_STEP_FACTOR, PassSettings, Turned
from worker.pixels import Pixels

# These figures were chosen with `python -m tools.benchmarks.tuning`. docs/detection.md says what
# they bring and cost.

# Passes whose sizes differ by less than this factor find the same faces.
MIN_SEPARATION_FACTOR = 1.45
# A finer pass finds no more faces unless it is this many times as fine as the finest one.
MIN_GAIN_FACTOR = 1.16
# The side, in pixels of a pass, of faces of which CenterFace finds 7 in 10, and suspects more than
# 8 in 10, so that a closer pass follows there. From the second side on it finds 9 in 10.
READABLE_SIDE, CLEAR_SIDE = 10, 15
# The ratio of the longer to the shorter side, beyond which a picture (a screenshot, a panorama)
# gets finer passes than the preset's.
MAX_PRESET_ASPECT = 2
# A probe shows the picture with a longer side of this many pixels, and is at least this share as
# fine as the finest pass over the whole picture.
PROBE_SIDE, MIN_PROBE_SHARE = 480, 0.25


@dataclass(frozen=True)
class Pass:
    """One run of the model over the picture, at one size and orientation.

    The picture is resized by `factor`, then turned by `quarter_turns` counter-clockwise, then
    `mirrored`. `is_finest` and `is_coarsest` tell its place among all passes. `is_coarser` marks
    passes over the whole picture that are not the finest such ones, and `is_for_large` the coarsest
    of several, which is there for large faces.
    `is_probe` marks a pass over the turned picture that is made on suspicion: only its confident
    detections count. A closer pass has `places`, x y in pixels of the picture, and leaves out the
    tiles that contain none of them.
    """

    factor: float
    quarter_turns: int = 0
    mirrored: bool = False
    is_finest: bool = True
    is_coarsest: bool = True
    is_for_large: bool = False
    is_coarser: bool = False
    is_probe: bool = False
    places: Points | None = None

    def image_of(self, picture: Pyramid) -> "PassImage":
        """Return the image that this pass shows of `picture`."""
        # The picture may be large, so it is resized before it is turned.
        pixels = np.rot90(picture.resized(self.factor), self.quarter_turns)
        if self.mirrored:
            pixels = pixels[:, ::-1]
        width, height = picture.width, picture.height
        if self.quarter_turns % 2:
            width, height = height, width
        return PassImage(self, pixels, width, height)


@dataclass(frozen=True)
class PassImage:
    """The image of a pass: `pixels` [height, width, 3], and the way back to the upright picture.

    `turned_width` and `turned_height` are those of the turned picture before it was resized.
    """

    plan: Pass
    pixels: Pixels
    turned_width: int
    turned_height: int

    @property
    def pixel_size(self) -> NDArray[np.float32]:
        """The width and the height of a pixel of this image, in pixels of the picture."""
        height, width = self.pixels.shape[:2]
        return np.array([self.turned_width / width, self.turned_height / height], np.float32)

    def to_picture(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `points` [..., 2], x y in this image, as points of the upright picture."""
        scaled = points * self.pixel_size
        x, y = scaled[..., 0], scaled[..., 1]
        width, height = self.turned_width, self.turned_height
        if self.plan.mirrored:
            x = width - x
        for _ in range(self.plan.quarter_turns):
            x, y = height - y, x
            width, height = height, width
        return np.stack([x, y], axis=-1)


def upright_passes(
    width: int, height: int, settings: PassSettings, fixed_size: tuple[int, int] | None = None
) -> list[Pass]:
    """Return the passes over an upright picture of `width` x `height` pixels, coarsest first.

    A mirrored pass follows the pass that it repeats. `fixed_size` is the (height, width) of a
    model that takes no other size: it gets the whole picture once, and finer passes if they are
    needed to show the smallest face.
    """
    longer = max(height, width)
    # Enlarging shows the model smaller faces up to a point. Beyond it, only pixels that the picture
    # has add detail.
    max_factor = min(settings.max_enlargement, max(1, settings.enlarge_to / longer))
    if fixed_size:
        factors = [min(fixed_size[0] / height, fixed_size[1] / width)]
    else:
        factors = _preset_factors(longer, settings.scales, max_factor)
    least_finest = min(1, READABLE_SIDE / settings.smallest_face)
    # A long picture gets passes as fine as its parts of MAX_PRESET_ASPECT would get.
    part = MAX_PRESET_ASPECT * min(height, width)
    if longer > max(part, MAX_CANVAS_SIDE) and not fixed_size:
        least_finest = max(least_finest, min(max(settings.scales) / part, max_factor))
    factors = _refined(factors, least_finest)
    has_closer = not fixed_size and bool(closer_factors(factors[-1], longer, settings))
    passes = []
    for factor in factors:
        plan = Pass(
            factor,
            is_finest=factor == factors[-1] and not has_closer,
            is_coarsest=factor == factors[0],
            is_for_large=factor == factors[0] < factors[-1],
            is_coarser=factor < factors[-1],
        )
        passes.append(plan)
        if settings.mirrored:
            passes.append(replace(plan, mirrored=True))
    return passes


def closer_factors(
    finest: float, longer: int, settings: PassSettings, *, is_crowd: bool = False
) -> list[float]:
    """Return the factors of the closer passes that may follow, in ascending order.

    `finest` is the factor of the finest pass over the whole picture, whose longer side has `longer`
    pixels. The last factor enlarges the picture as far as the settings allow, or shows the smallest
    face clearly, or a crowd twice as large.
    """
    clear = min(1, max(CLEAR_SIDE / settings.smallest_face, 2 * finest if is_crowd else 0))
    closest = min(settings.max_enlargement, max(clear, settings.closer_to / longer))
    if closest < MIN_SEPARATION_FACTOR * finest:
        return []
    steps = math.ceil(math.log(closest / finest, settings.closer_step))
    return [finest * (closest / finest) ** (step / steps) for step in range(1, steps + 1)]


def _preset_factors(longer: int, scales: Iterable[int], max_factor: float) -> list[float]:
    """Return the factors by which passes of `scales` resize a picture, in ascending order.

    `longer` is the picture's longer side. Of passes of nearly the same size, the finest stays.
    """
    factors: list[float] = []
    for side in sorted(scales):
        factor = min(side / longer, max_factor)
        if factors and factor <= MIN_SEPARATION_FACTOR * factors[-1]:
            factors.pop()
        factors.append(factor)
    return factors


def _refined(factors: list[float], least_finest: float) -> list[float]:
    """Return `factors`, in ascending order, and more until the finest is about `least_finest`.

    No added factor is more than MAX_STEP_FACTOR times the one before. The passes of the preset
    stay, so that a picture that gets more passes loses no face.
    """
    if MIN_GAIN_FACTOR * factors[-1] >= least_finest:
        return factors
    added = [least_finest]
    while added[0] > MAX_STEP_FACTOR * factors[-1]:
        added.insert(0, added[0] / MAX_STEP_FACTOR)
    return [*factors, *added]


def closer_passes(
    whole: Sequence[Pass], factor: float, places: Points, is_finest: bool
) -> list[Pass]:
    """Return passes at `factor` over the `places` that the finest of `whole` leave unclear."""
    return [
        replace(plan, factor=factor, is_finest=is_finest, is_coarsest=False, places=places)
        for plan in whole
        if plan.factor == whole[-1].factor
    ]


def crowd_pass(finest: Pass, crowd: Points) -> Pass | None:
    """Return a pass twice as fine as `finest` over the `crowd` that it found.

    Return None if there is no crowd, or if `finest` has nearly all pixels of the picture.
    """
    if not len(crowd) or MIN_GAIN_FACTOR * finest.factor >= 1:
        return None
    factor = min(1, 2 * finest.factor)
    return replace(
        finest, factor=factor, mirrored=False, is_finest=True, is_coarsest=False, places=crowd
    )


def planned_probes(whole: Sequence[Pass], longer: int, turned: Turned) -> list[Pass]:
    """Return the passes to repeat over the turned picture, whose longer side has `longer` pixels.

    `whole` are the upright passes, coarsest first. The last one returned decides whether the whole
    picture lies on its side. With `turned` ``always`` all passes but the finest are repeated too.
    """
    finest = whole[-1].factor
    factor = max(min(finest, PROBE_SIDE / longer), MIN_PROBE_SHARE * finest)
    chosen = Pass(factor, is_finest=False, is_coarsest=False)
    if turned != "always":
        return [chosen]
    others = [
        one
        for one in whole
        if not (one.mirrored or one.is_for_large) and factor < one.factor < finest
    ]
    return [*others, chosen]
