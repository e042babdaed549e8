"""Pure functions on pixels: which region of a face is hidden, and how."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
Image = NDArray[Any]

RING = 0.15  # width of the ring that `surround` fills from, as a share of the region's smaller side
SMALLEST_RING = 2  # pixels


@dataclass(frozen=True)
class MaskStyle:
    """How faces are hidden: the `method`, the share `region` of the box from its top, and the `margin` around."""

    method: str = "surround"
    region: float = 0.7
    margin: float = 0.1


def regions(boxes_xyxy: Boxes, style: MaskStyle, width: int, height: int) -> NDArray[np.intp]:
    """The rectangles to hide, [n, 4] x1 y1 x2 y2 in whole pixels within the picture.

    The region is the top `style.region` of each box, widened by the margin at the left, the right and
    the top. Only a full region is widened at the bottom too: the lower edge is what `region` promises.
    """
    x1, y1, x2, y2 = boxes_xyxy.astype(np.float64).reshape(-1, 4).T
    across, down = (x2 - x1) * style.margin, (y2 - y1) * style.margin
    lower = y2 + down if style.region >= 1 else y1 + (y2 - y1) * style.region
    rectangles = np.stack([np.floor(x1 - across), np.floor(y1 - down), np.ceil(x2 + across), np.ceil(lower)], axis=1)
    rectangles = rectangles.clip(0, [width, height, width, height]).astype(np.intp)
    return rectangles[(rectangles[:, 2] > rectangles[:, 0]) & (rectangles[:, 3] > rectangles[:, 1])]


def hide(picture: Image, boxes_xyxy: Boxes, style: MaskStyle, black: int | Sequence[int] = 0) -> Image:
    """A copy of `picture` with every face hidden.

    `picture` is uint8 or uint16, [height, width] or [height, width, channels]; `boxes_xyxy` is float32 [n, 4] in its
    pixels; `black` is a black pixel, one number or one a channel. Overlapping and touching regions are hidden
    as one, and no region is filled from pixels of another.
    """
    height, width = picture.shape[:2]
    rectangles = regions(boxes_xyxy, style, width, height)
    covered = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in rectangles:
        covered[y1:y2, x1:x2] = True
    result = picture.copy()
    for group in _touching(rectangles):
        ring = max(SMALLEST_RING, round(RING * min((group[:, 2:] - group[:, :2]).min(axis=1))))
        x1, y1 = (group[:, :2].min(axis=0) - ring).clip(0)
        x2, y2 = np.minimum(group[:, 2:].max(axis=0) + ring, (width, height))
        own = np.zeros((y2 - y1, x2 - x1), bool)
        for left, top, right, bottom in group:
            own[top - y1 : bottom - y1, left - x1 : right - x1] = True
        filled = METHODS[style.method](picture[y1:y2, x1:x2], covered[y1:y2, x1:x2], black)
        result[y1:y2, x1:x2][own] = filled[own]
    return result


def _touching(rectangles: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The rectangles in groups whose members overlap or touch, directly or through others."""
    groups: list[list[int]] = []
    for i, (x1, y1, x2, y2) in enumerate(rectangles):
        near = [
            group
            for group in groups
            if any(
                x1 <= rectangles[j][2] and rectangles[j][0] <= x2 and y1 <= rectangles[j][3] and rectangles[j][1] <= y2
                for j in group
            )
        ]
        groups = [group for group in groups if group not in near]
        groups.append([i, *(j for group in near for j in group)])
    return [rectangles[group] for group in groups]


def surround(crop: Image, covered: NDArray[np.bool_], black: int | Sequence[int]) -> Image:
    """`crop` with the `covered` pixels filled smoothly from the others; nothing of a covered pixel is used.

    Pull-push interpolation (Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4): average what is
    known while halving, then fill what is not while doubling. Cost is linear in the pixels of the crop. A crop
    that is covered whole becomes `black`.
    """
    if covered.all():
        return fill(crop, covered, black)
    weight = (~covered).astype(np.float32)
    planes = crop.reshape(*crop.shape[:2], -1).astype(np.float32)
    filled = _pull_push(planes * weight[..., None], weight)
    top = np.iinfo(crop.dtype).max
    return filled.round().clip(0, top).astype(crop.dtype).reshape(crop.shape)


def _pull_push(weighted: Image, weight: Image) -> Image:
    """Values [h, w, c] for every pixel, from values times weight and the weights [h, w], 0 to 1, themselves."""
    height, width = weight.shape
    known = weighted / np.maximum(weight, 1e-6)[..., None]
    if weight.min() >= 1 or height * width == 1:
        return known
    odd = height % 2, width % 2
    pad = ((0, odd[0]), (0, odd[1]))
    half = (weight.shape[1] + odd[1]) // 2, (weight.shape[0] + odd[0]) // 2
    smaller_weighted = _halve(np.pad(weighted, (*pad, (0, 0))), half)
    smaller_weight = _halve(np.pad(weight, pad), half)
    # Any known pixel makes its parent well known: otherwise the middle of a region fades to nothing.
    gain = np.minimum(1, 4 * smaller_weight) / np.maximum(smaller_weight, 1e-6)
    below = _pull_push(smaller_weighted * gain[..., None], smaller_weight * gain)
    above = cv2.resize(below, (width, height), interpolation=cv2.INTER_LINEAR).reshape(known.shape)
    share = weight[..., None]
    return share * known + (1 - share) * above


def _halve(values: Image, size: tuple[int, int]) -> Image:
    smaller = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    return smaller.reshape(size[1], size[0], *values.shape[2:])


def fill(crop: Image, covered: NDArray[np.bool_], black: int | Sequence[int]) -> Image:
    """`crop` with the `covered` pixels black."""
    result = crop.copy()
    result[covered] = black
    return result


METHODS: dict[str, Callable[[Image, NDArray[np.bool_], int | Sequence[int]], Image]] = {
    "surround": surround,
    "fill": fill,
}
