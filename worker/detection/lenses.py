"""Pictures of bent lenses: views of them as a plain lens would show them, and the way back.

A face near the edge of a fisheye picture is squashed, and one near a pole or across the seam of a
360° picture is bent or cut. Detectors are trained on neither, so they get plain views in addition.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.detection.canvas import Pyramid
from worker.detection.faces import Boxes, Detections, Points, Sightings, box_sides
from worker.pixels import Pixels

# The angle between the axis of a fisheye lens and the edge of its image, which the picture does not
# tell. Lenses have 70° to 100°, and a plain view of more than 80° shows little but its edges. With
# views that assumed 65° to 78° for images of 72°, 3 to 5 of 244 faces stayed exposed, without 47.
FISHEYE_ANGLE = math.radians(72)
# The longest side of a view, in pixels. Larger pictures are not searched in more detail either.
MAX_VIEW_SIDE = 4096
# The image of a lens ends within this share of its corner's distance from the centre: a circle
# within 0.71, a rectangle at 1.
MAX_CORNER_SHARE = 0.88
# Pixels up to this level are black. This share of the others may be noise outside of the image.
BLACK_LEVEL, NOISE_SHARE = 16, 0.001
# The share of the ellipse in the image's frame that the image fills at least.
MIN_FILLED_SHARE = 0.6
SEARCHED_SIDE = 256  # pixels of the reduced picture in which the image of a lens is searched
# A 360° picture in equirectangular projection is twice as wide as high, and its left and its right
# edge differ as neighbouring columns do: at most by this many times as much, and these levels. Its
# edges go from zenith to nadir: the middle half of their values has at least this range, in levels.
# That of a margin has less.
ASPECT, MAX_ASPECT_ERROR = 2.0, 0.01
MAX_SEAM_RATIO, SEAM_LEVELS = 1.5, 4.0
MIN_EDGE_RANGE = 8.0
# The views of a 360° picture are the sides of a cube, enlarged by this factor so that they overlap.
CUBE_OVERLAP = 1.2
# The points of a face's outline that are followed to the picture.
OUTLINE = 16
STRIP = 256  # rows of a view that are drawn at once, which bounds the memory for coordinates


@dataclass(frozen=True)
class View:
    """A plain view of a picture.

    `to_picture` takes points of the view, float32 [..., 2], and returns those of the picture that
    are shown there. A picture that wraps around has the `period` of its width, in pixels.
    """

    pixels: Pixels
    to_picture: Callable[[Points], Points]
    period: int | None = None

    def detections(self, found: Detections) -> Detections:
        """Return the faces `found` in the view in pixels of the picture."""
        sightings = self._moved(found.sightings)
        own = Detections(self._boxes(found.boxes_xyxy), found.scores, sightings)
        if self.period is None:
            return own
        # Across the seam, each side shows a part.
        return Detections.joined([_shifted(own, by) for by in (0, -self.period, self.period)])

    def sightings(self, found: Sightings) -> Sightings:
        """Return the sightings `found` in the view in pixels of the picture."""
        scores = np.zeros(len(found), np.float32)
        return self.detections(Detections(found.boxes_xyxy, scores, found)).sightings

    def _moved(self, found: Sightings) -> Sightings:
        boxes = self._boxes(found.boxes_xyxy)
        growth = box_sides(boxes) / np.maximum(box_sides(found.boxes_xyxy), 1)
        slack = (found.slack * growth).astype(np.float32)
        landmarks = self._in_picture(found.landmarks, found.boxes_xyxy)
        return Sightings(boxes, landmarks, slack, found.face)

    def _boxes(self, boxes: Boxes) -> Boxes:
        """Return the boxes around the ellipses in `boxes`, in pixels of the picture."""
        angles = np.linspace(0, 2 * np.pi, OUTLINE, endpoint=False)
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
        corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
        outline = self._in_picture((corner + unit * size).astype(np.float32), boxes)
        return np.concatenate([outline.min(axis=1), outline.max(axis=1)], axis=1)

    def _in_picture(self, points: Points, boxes: Boxes) -> Points:
        """Return `points` [n, m, 2] of the faces in `boxes` [n, 4], in pixels of the picture.

        Those of a face across the seam may lie beyond the picture's edge.
        """
        moved = self.to_picture(points)
        if self.period is not None:
            centres = self.to_picture(boxes.reshape(-1, 2, 2).mean(axis=1, dtype=np.float32))
            away = (centres[:, None, 0] - moved[..., 0]) / self.period
            moved[..., 0] += np.round(away) * self.period
        return moved


def plain_views(picture: Pixels) -> Iterator[View]:
    """Yield plain views of `picture`, uint8 RGB [h, w, 3]; none if no bent lens took it."""
    if image := fisheye_image(picture):
        yield _fisheye_view(picture, image)
    elif is_panorama(picture):
        yield from _cube_views(picture)


def _shifted(found: Detections, by: int) -> Detections:
    offset = np.array([by, 0], np.float32)
    sightings = found.sightings
    moved = replace(
        sightings,
        boxes_xyxy=sightings.boxes_xyxy + np.tile(offset, 2),
        landmarks=sightings.landmarks + offset,
    )
    return Detections(found.boxes_xyxy + np.tile(offset, 2), found.scores, moved)


# --- fisheye


@dataclass(frozen=True)
class Circle:
    """The image of a fisheye lens: its centre and its radius, in pixels of the picture."""

    x: float
    y: float
    radius: float


def fisheye_image(picture: Pixels) -> Circle | None:
    """Return the image of a fisheye lens in `picture`, which is black around it; None without one.

    The image may be cut above and below, or at the sides.
    """
    factor = min(1.0, SEARCHED_SIDE / max(picture.shape[:2]))
    red, green, blue = cv2.split(Pyramid(picture).resized(factor))
    is_lit = cv2.max(cv2.max(red, green), blue) > BLACK_LEVEL
    lit = np.count_nonzero(is_lit)
    if not lit:
        return None
    (top, bottom), (left, right) = _range(is_lit.sum(axis=1)), _range(is_lit.sum(axis=0))
    x, y = (left + right) / 2, (top + bottom) / 2
    across, down = max(right - left, 1) / 2, max(bottom - top, 1) / 2
    height, width = is_lit.shape
    # The distances of the far edges of columns and rows from the centre.
    away = np.abs(np.arange(width) + 0.5 - x) + 0.5
    off = np.abs(np.arange(height) + 0.5 - y) + 0.5
    farthest = MAX_CORNER_SHARE * math.hypot(across, down)
    # Nearly every picture is lit in its corners, and needs no more than this.
    is_beyond = away**2 + off[:, None] ** 2 > farthest**2 * (1 + 1e-9)
    if np.count_nonzero(is_lit & is_beyond) >= NOISE_SHARE * lit + 2:
        return None
    rows, columns = np.nonzero(is_lit)
    radius = float(np.quantile(np.hypot(away[columns], off[rows]), 1 - NOISE_SHARE))
    if radius > farthest:
        return None
    lines, points = np.indices(is_lit.shape) + 0.5
    is_inside = ((points - x) / across) ** 2 + ((lines - y) / down) ** 2 < 1
    if not is_inside.any() or is_lit[is_inside].mean() < MIN_FILLED_SHARE:
        return None
    return Circle(x / factor, y / factor, radius / factor)


def _range(counts: NDArray[np.intp]) -> tuple[int, int]:
    """Return where the rows or columns with so many lit pixels begin and end, apart from noise."""
    before = counts.cumsum()
    noise = NOISE_SHARE * before[-1]
    first, last = np.searchsorted(before, [noise, before[-1] - noise], side="right")
    return int(first), min(int(last), len(counts) - 1) + 1


def _fisheye_view(picture: Pixels, image: Circle) -> View:
    """Return the view of a plain lens on the axis of an equidistant fisheye lens."""
    side = min(MAX_VIEW_SIDE, max(1, round(2 * image.radius)))
    edge = math.tan(FISHEYE_ANGLE)
    centre = np.array([image.x, image.y], np.float32)

    def to_picture(points: Points) -> Points:
        plain = (points * np.float32(2 / side) - 1) * np.float32(edge)
        distance = np.maximum(np.linalg.norm(plain, axis=-1, keepdims=True), 1e-6)
        radius = np.arctan(distance) * (image.radius / FISHEYE_ANGLE)
        return np.asarray(centre + plain / distance * radius, np.float32)

    return View(_drawn(picture, side, to_picture), to_picture)


# --- 360°


def is_panorama(picture: Pixels) -> bool:
    """Return whether `picture` shows all directions, in equirectangular projection."""
    height, width = picture.shape[:2]
    if abs(width / height / ASPECT - 1) > MAX_ASPECT_ERROR or width < 4:
        return False
    edges = picture[:, [0, -1, 1, -2]].astype(np.float32)
    low, high = np.quantile(edges[:, :2], [0.25, 0.75], axis=0)
    if (high - low).max() < MIN_EDGE_RANGE:
        return False
    seam = np.abs(edges[:, 0] - edges[:, 1]).mean()
    usual = np.abs(edges[:, :2] - edges[:, 2:]).mean()
    return bool(seam <= MAX_SEAM_RATIO * usual + SEAM_LEVELS)


def _cube_views(picture: Pixels) -> Iterator[View]:
    """Yield the sides of a cube around the camera: four to the sides, and those of both poles."""
    height, width = picture.shape[:2]
    side = min(MAX_VIEW_SIDE, max(1, round(width / 4 * CUBE_OVERLAP)))
    for yaw, pitch in ((0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, -1)):
        to_picture = _cube_side(yaw * math.pi / 2, pitch * math.pi / 2, side, width, height)
        yield View(_drawn(picture, side, to_picture), to_picture, width)


def _cube_side(
    yaw: float, pitch: float, side: int, width: int, height: int
) -> Callable[[Points], Points]:
    """Return the way from a view in the direction `yaw` and `pitch` to the panorama."""
    turned = np.array(_about_y(yaw)) @ np.array(_about_x(pitch))

    def to_picture(points: Points) -> Points:
        plain = (points * np.float32(2 / side) - 1) * np.float32(CUBE_OVERLAP)
        ahead = np.concatenate([plain, np.ones((*plain.shape[:-1], 1))], axis=-1) @ turned.T
        longitude = np.arctan2(ahead[..., 0], ahead[..., 2])
        latitude = np.arctan2(ahead[..., 1], np.hypot(ahead[..., 0], ahead[..., 2]))
        x = (longitude / (2 * np.pi) + 0.5) * width
        y = (latitude / np.pi + 0.5) * height
        return np.stack([x, y], axis=-1).astype(np.float32)

    return to_picture


def _about_x(angle: float) -> list[list[float]]:
    return [
        [1, 0, 0],
        [0, math.cos(angle), -math.sin(angle)],
        [0, math.sin(angle), math.cos(angle)],
    ]


def _about_y(angle: float) -> list[list[float]]:
    return [
        [math.cos(angle), 0, math.sin(angle)],
        [0, 1, 0],
        [-math.sin(angle), 0, math.cos(angle)],
    ]


def _drawn(picture: Pixels, side: int, to_picture: Callable[[Points], Points]) -> Pixels:
    """Return the square view of `side` pixels; what the picture does not show is black."""
    view = np.zeros((side, side, 3), np.uint8)
    columns = np.arange(side, dtype=np.float32) + 0.5
    for first in range(0, side, STRIP):
        rows = columns[first : first + STRIP]
        places = np.stack(np.meshgrid(columns, rows), axis=-1)
        at = to_picture(places) - 0.5
        view[first : first + STRIP] = cv2.remap(
            picture, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )
    return view
