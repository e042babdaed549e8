"""Anchors: the reference boxes of the network, their targets, and boxes as offsets."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LEVELS = (3, 4, 5, 6, 7)  # levels of the feature pyramid: strides of 8 to 128 pixels
STRIDES = tuple(2**level for level in LEVELS)
MULTIPLE = STRIDES[-1]  # the sides of an input picture are multiples of this
# Tan et al. (EfficientDet, CVPR 2020) start at 4 strides for the objects of COCO. Faces are
# smaller, so the anchors start at 16 pixels.
SMALLEST = 2.0  # strides
OCTAVES = (0.0, 1 / 3, 2 / 3)
# Height by width of a face from the side or from above, from the front, and of a tall one.
ASPECTS = (1.0, 1.3, 1.7)
PER_POINT = len(OCTAVES) * len(ASPECTS)

# Lin et al. (Focal Loss for Dense Object Detection, ICCV 2017), section 4. Small faces seldom
# overlap any anchor by 0.5, so the best anchor of each face is positive too.
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
NEGATIVE, IGNORED, POSITIVE = 0.0, -1.0, 1.0

NMS_IOU = 0.5  # of two detections of one object; Tan et al., reference implementation

# The logarithm of the largest ratio of a box to its anchor, about 55. It bounds the output
# of an untrained network.
LARGEST_STRETCH = 4.0


def anchors(height: int, width: int) -> Floats:
    """Return the anchors of a picture whose sides are multiples of MULTIPLE.

    The array is float32 [a, 4], y1 x1 y2 x2 in pixels, in the order of the network's outputs:
    level, row, column, octave, aspect.
    """
    found = []
    for stride in STRIDES:
        rows, columns = np.meshgrid(
            np.arange(height // stride), np.arange(width // stride), indexing="ij"
        )
        centres = (np.stack([rows, columns], axis=-1).reshape(-1, 1, 2) + 0.5) * stride
        half = shapes(stride)[None] / 2
        found.append(np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4))
    return np.concatenate(found).astype(np.float32)


def shapes(stride: int) -> Floats:
    """Return height and width in pixels of the anchors at one point, float32 [PER_POINT, 2]."""
    sides = SMALLEST * stride * 2.0 ** np.repeat(OCTAVES, len(ASPECTS))
    stretch = np.sqrt(np.tile(ASPECTS, len(OCTAVES)))
    return np.stack([sides * stretch, sides / stretch], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class Targets:
    """The expected output of the network for one picture.

    `faces`, float32 [a, classes], is POSITIVE, NEGATIVE or IGNORED for each anchor. A row of
    `boxes`, float32 [a, 5], contains the offsets of the matched face and 1, or only zeros without a
    face.
    """

    faces: Floats
    boxes: Floats


def targets(
    grid: Floats, faces: Floats, ignored: Floats, kinds: NDArray[np.intp], classes: int
) -> Targets:
    """Match anchors with faces.

    `grid` [a, 4], `faces` [n, 4] and the `ignored` areas [m, 4] are y1 x1 y2 x2 in pixels. `kinds`
    [n] are the classes of the faces, below `classes`.
    """
    state = np.full((len(grid), classes), NEGATIVE, np.float32)
    offsets = np.zeros((len(grid), 5), np.float32)
    if len(ignored):
        centre = (grid[:, None, :2] + grid[:, None, 2:]) / 2
        within = np.all((centre > ignored[:, :2]) & (centre < ignored[:, 2:]), axis=2)
        state[within.any(axis=1)] = IGNORED
    if len(faces):
        shared = overlaps(grid, faces)
        face = shared.argmax(axis=1)
        best = shared.max(axis=1)
        state[best >= NEGATIVE_IOU] = IGNORED
        positive = best >= POSITIVE_IOU
        # Each face gets its best anchor, even below POSITIVE_IOU.
        closest = shared.argmax(axis=0)
        seen = shared[closest, np.arange(len(faces))] > 0
        face[closest[seen]] = np.flatnonzero(seen)
        positive[closest[seen]] = True
        state[positive] = NEGATIVE
        state[positive, kinds[face[positive]]] = POSITIVE
        offsets[positive, :4] = encoded(faces[face[positive]], grid[positive])
        offsets[positive, 4] = 1
    return Targets(state, offsets)


def overlaps(first: Floats, second: Floats) -> Floats:
    """Return the intersection over union, float32 [n, m], of boxes [n, 4] with boxes [m, 4]."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    opposite = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (opposite - corner).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    ratio: Floats = (shared / np.maximum(union, 1e-9)).astype(np.float32)
    return ratio


def encoded(boxes: Floats, grid: Floats) -> Floats:
    """Return `boxes` [n, 4] as offsets from the anchors `grid` [n, 4].

    The first two values are the distance of the centres in sides of the anchor, the others the
    logarithm of the ratio of the sides.
    """
    centre, size = _centre_size(boxes)
    its_centre, its_size = _centre_size(grid)
    offsets: Floats = np.concatenate(
        [(centre - its_centre) / its_size, np.log(size / its_size)], axis=1
    )
    return offsets


def decoded(offsets: Any, grid: Any, ops: Any) -> Any:
    """Return the boxes [..., a, 4] of `offsets` [..., a, 4] from the anchors `grid` [a, 4].

    This is the inverse of `encoded`; `ops` is keras.ops or numpy.
    """
    its_size = grid[..., 2:] - grid[..., :2]
    centre = (grid[..., :2] + grid[..., 2:]) / 2 + offsets[..., :2] * its_size
    half = ops.exp(ops.minimum(offsets[..., 2:], LARGEST_STRETCH)) * its_size / 2
    return ops.concatenate([centre - half, centre + half], axis=-1)


def bounded(boxes: Any, sides: Any, ops: Any) -> Any:
    """Return `boxes` [..., a, 4] with their centres in a picture of `sides` (height, width).

    Their own sides are between one pixel and twice the longer side of the picture. Without these
    bounds, workers refuse the boxes of a hardly trained network. `ops` is keras.ops or numpy.
    """
    centre = ops.maximum(ops.minimum((boxes[..., :2] + boxes[..., 2:]) / 2, sides), 0)
    half = ops.maximum(ops.minimum((boxes[..., 2:] - boxes[..., :2]) / 2, ops.max(sides)), 0.5)
    return ops.concatenate([centre - half, centre + half], axis=-1)


def _centre_size(boxes: Floats) -> tuple[Floats, Floats]:
    size: Floats = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(1e-3))
    centre: Floats = (boxes[:, :2] + boxes[:, 2:]) / np.float32(2)
    return centre, size
