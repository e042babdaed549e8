"""Areas of a request: boxes, and polygons, which count as boxes and shares of boxes."""

import math
from collections.abc import Sequence

Area = Sequence[float]
"""A box, x1 y1 x2 y2, or a polygon, x1 y1 x2 y2 x3 y3 …, in pixels of the upright picture."""

Box = tuple[float, float, float, float]
Point = tuple[float, float]

BOX_NUMBERS = 4
MAX_STRIPS = 64  # boxes that cover a polygon


def is_polygon(area: Area) -> bool:
    return len(area) > BOX_NUMBERS


def bounds(area: Area) -> Box:
    """Return the smallest box around `area`."""
    xs, ys = area[::2], area[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def covering(area: Area) -> list[Box]:
    """Return boxes that together cover `area`, and not much more.

    A polygon is cut into strips, each as wide as the polygon is there: a notch in its side is
    covered too.
    """
    x1, y1, x2, y2 = bounds(area)
    if not is_polygon(area):
        return [(x1, y1, x2, y2)]
    height = max(1, math.ceil((y2 - y1) / MAX_STRIPS))
    strips = []
    top = y1
    while top < y2:
        bottom = min(top + height, y2)
        part = _clipped(_points(area), (x1, top, x2, bottom))
        if part:
            xs = [x for x, _ in part]
            strips.append((min(xs), top, max(xs), bottom))
        top = bottom
    return strips


def share_inside(box: Box, area: Area) -> float:
    """Return the share of `box` that lies in `area`; 0 for a box without pixels."""
    x1, y1, x2, y2 = box
    size = (x2 - x1) * (y2 - y1)
    return _size(_clipped(_points(area), box)) / size if size > 0 else 0.0


def _points(area: Area) -> list[Point]:
    if is_polygon(area):
        return list(zip(area[::2], area[1::2], strict=True))
    x1, y1, x2, y2 = area
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _clipped(points: list[Point], box: Box) -> list[Point]:
    """Return the part of a polygon in `box`, by the method of Sutherland and Hodgman."""
    x1, y1, x2, y2 = box
    # Each side: the axis, its value, and the direction in which the inside lies.
    for axis, limit, direction in ((0, x1, 1), (0, x2, -1), (1, y1, 1), (1, y2, -1)):
        kept: list[Point] = []
        for before, point in zip([*points[-1:], *points[:-1]], points, strict=True):
            is_in = direction * (point[axis] - limit) >= 0
            was_in = direction * (before[axis] - limit) >= 0
            if is_in != was_in:
                share = (limit - before[axis]) / (point[axis] - before[axis])
                kept.append(
                    (
                        before[0] + share * (point[0] - before[0]),
                        before[1] + share * (point[1] - before[1]),
                    )
                )
            if is_in:
                kept.append(point)
        points = kept
    return points


def _size(points: list[Point]) -> float:
    """Return the area of a polygon, by the formula of Gauss."""
    total = 0.0
    for (x1, y1), (x2, y2) in zip([*points[-1:], *points[:-1]], points, strict=True):
        total += x1 * y2 - x2 * y1
    return abs(total) / 2
