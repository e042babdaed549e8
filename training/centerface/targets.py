"""The targets of CenterFace for one picture: a heat map for each class, and boxes at centres."""

import numpy as np
from numpy.typing import NDArray

from training.augmentation import Example
from worker.detection.centerface.maps import STRIDE

Floats = NDArray[np.float32]

IGNORED = -1.0  # in a heat map: a point that counts neither as an object nor as background
# A box whose corners are this radius of the heat map away still overlaps the object by this: Law
# and Deng, "CornerNet", ECCV 2018, section 3.2, and Zhou et al. after them.
MIN_OVERLAP = 0.7


def targets(example: Example, side: int, classes: int) -> dict[str, Floats]:
    """Return the expected maps for `example`, a square of `side` pixels.

    ``faces``, float32 [h, w, classes], is 1 at the centre of an object of the class and falls like
    a Gaussian around it; it is IGNORED in ignored areas. ``boxes``, float32 [h, w, 5], has at each
    centre the logarithm of the object's size, the offset of its centre (y x each), and 1.
    """
    points = side // STRIDE
    faces = np.zeros((points, points, classes), np.float32)
    boxes = np.zeros((points, points, 5), np.float32)
    scaled = example.faces / np.float32(STRIDE)
    sizes = scaled[:, 2:] - scaled[:, :2]
    # Of two objects with one centre, the smaller one stays.
    for row in np.argsort(-sizes.prod(axis=1), kind="stable"):
        centre = (scaled[row, :2] + scaled[row, 2:]) / 2
        column, line = np.minimum(centre.astype(int), points - 1)
        _draw(faces[..., example.classes[row]], line, column, sizes[row])
        offset = centre - (column, line) - np.float32(0.5)
        boxes[line, column] = [*np.log(sizes[row, ::-1]), *offset[::-1], 1]
    _ignore(faces, boxes[..., 4] > 0, example.ignored / np.float32(STRIDE))
    return {"faces": faces, "boxes": boxes}


def _draw(heat: Floats, line: int, column: int, size: Floats) -> None:
    """Draw a Gaussian around an object's centre into `heat`, which keeps larger values."""
    radius = int(_radius(*size.tolist()))
    sigma = (2 * radius + 1) / 6
    top, left = max(line - radius, 0), max(column - radius, 0)
    window = heat[top : line + radius + 1, left : column + radius + 1]
    rows = np.arange(window.shape[0])[:, None] + top - line
    columns = np.arange(window.shape[1]) + left - column
    np.maximum(window, np.exp(-(rows**2 + columns**2) / (2 * sigma**2)), out=window)


def _radius(width: float, height: float) -> float:
    """Return the largest distance of corners at which boxes overlap by MIN_OVERLAP.

    It is that of the worst of three cases: a box that is shifted, one inside, and one around.
    """
    both, area = width + height, width * height
    shifted = both - np.sqrt(both**2 - 4 * area * (1 - MIN_OVERLAP) / (1 + MIN_OVERLAP))
    inside = both - np.sqrt(both**2 - 4 * area * (1 - MIN_OVERLAP))
    around = np.sqrt(both**2 + 4 * area * (1 / MIN_OVERLAP - 1)) - both
    return float(min(shifted / 2, inside / 4, around / 4))


def _ignore(faces: Floats, is_centre: NDArray[np.bool_], areas: Floats) -> None:
    """Mark the points whose middles are in `areas` as ignored, but not the centres of objects."""
    middles = np.arange(len(faces)) + 0.5
    for x1, y1, x2, y2 in areas:
        rows, columns = (middles > y1) & (middles < y2), (middles > x1) & (middles < x2)
        faces[rows[:, None] & columns & ~is_centre] = IGNORED
