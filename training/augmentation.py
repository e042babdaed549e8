"""Random augmentation of a picture and its faces, and the plain resizing of validation pictures."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.detection.canvas import PADDING_GRAY
from worker.pixels import Pixels

Boxes = NDArray[np.float32]
Random = np.random.Generator

# Shares of the examples to which each change is applied.
CROPPED, GRAY, BLURRED, COMPRESSED, COVERED = 0.7, 0.08, 0.15, 0.3, 0.25
# A crop around a face scales the face to between 12 pixels and this share of the side of the
# square.
SMALLEST_FACE, LARGEST_FACE = 12.0, 0.6
MOST_ENLARGED = 2.5
LEAST_SHOWN = 0.35  # a face of which a crop keeps a smaller share becomes an ignored area
TINIEST = 4.0  # pixels; a smaller face shows no features and becomes an ignored area
QUALITY = 25, 90  # range of JPEG qualities
COVER_FROM = 0.35, 0.65  # range of the upper edge of an occluder, as a share of the face's height


@dataclass(frozen=True)
class Example:
    """A picture, uint8 RGB [h, w, 3], with its labels.

    `faces` [n, 4] and `ignored` [m, 4] are float32, x1 y1 x2 y2 in pixels of the picture. `classes`
    [n] are the classes of the faces, from 0 on.
    """

    pixels: Pixels
    faces: Boxes
    ignored: Boxes
    classes: NDArray[np.intp]


def fitted(example: Example, side: int) -> Example:
    """Return the whole picture at the upper left of a square, as in a detection pass."""
    factor = side / max(example.pixels.shape[:2])
    return _too_small_ignored(_window(example, factor, 0.0, 0.0, side))


def augmented(example: Example, side: int, random: Random, coverable: int | None = 0) -> Example:
    """Return a square of `side` pixels with a random part of the picture, randomly changed.

    `coverable` is the class of which an object may be covered; None if there is no such class.
    """
    if random.random() < 0.5:
        example = _mirrored(example)
    if random.random() < CROPPED and len(example.faces):
        made = _around_a_face(example, side, random)
    else:
        made = _whole(example, side, random)
    made = _too_small_ignored(made)
    pixels = made.pixels
    faces = made.faces[made.classes == coverable]
    if random.random() < COVERED and len(faces):
        pixels = _covered(pixels, faces[random.integers(len(faces))], random)
    pixels = _recoloured(pixels, random)
    if random.random() < BLURRED:
        pixels = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.4, 2.0)).astype(np.uint8)
    if random.random() < COMPRESSED:
        pixels = _compressed(pixels, int(random.integers(*QUALITY)))
    return replace(made, pixels=pixels)


def _mirrored(example: Example) -> Example:
    width = example.pixels.shape[1]

    def other_side(boxes: Boxes) -> Boxes:
        return np.stack(
            [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
        )

    return Example(
        np.ascontiguousarray(example.pixels[:, ::-1]),
        other_side(example.faces),
        other_side(example.ignored),
        example.classes,
    )


def _whole(example: Example, side: int, random: Random) -> Example:
    """Return the picture at 0.5 to 1.25 times the size of the square, at a random position."""
    height, width = example.pixels.shape[:2]
    factor = min(side / max(height, width) * random.uniform(0.5, 1.25), MOST_ENLARGED)
    left, top = (
        random.uniform(min(0, room), max(0, room))
        for room in (width * factor - side, height * factor - side)
    )
    return _window(example, factor, left, top, side)


def _around_a_face(example: Example, side: int, random: Random) -> Example:
    """Return a crop around a random face, scaled to a random size.

    The logarithm of the size is uniform, so that small faces are as frequent as large ones.
    """
    x1, y1, x2, y2 = example.faces[random.integers(len(example.faces))]
    its = max(float((x2 - x1) * (y2 - y1)) ** 0.5, 1.0)
    wanted = np.exp(random.uniform(np.log(SMALLEST_FACE), np.log(LARGEST_FACE * side)))
    factor = min(wanted / its, MOST_ENLARGED)
    # The position is random, but the square contains the whole face if it can.
    left, top = (
        random.uniform(
            min(last * factor - side, first * factor), max(last * factor - side, first * factor)
        )
        for first, last in ((x1, x2), (y1, y2))
    )
    return _window(example, factor, left, top, side)


def _window(example: Example, factor: float, left: float, top: float, side: int) -> Example:
    """Return the square of `side` pixels at `left` `top` of the picture resized by `factor`."""
    shift = np.array([[factor, 0, -left], [0, factor, -top]], np.float64)
    pixels, shift = _reduced(example.pixels, factor, shift)
    drawn = cv2.warpAffine(
        pixels,
        shift,
        (side, side),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PADDING_GRAY, PADDING_GRAY, PADDING_GRAY),
    )
    corner = np.array([left, top] * 2, np.float32)
    faces, ignored = (
        boxes * np.float32(factor) - corner for boxes in (example.faces, example.ignored)
    )
    shown = faces.clip(0, side)
    left_of = _areas(shown) / np.maximum(_areas(faces), 1e-6)
    inside = _areas(shown) > 0
    kept, cut = inside & (left_of >= LEAST_SHOWN), inside & (left_of < LEAST_SHOWN)
    ignored = np.concatenate([ignored.clip(0, side), shown[cut]])
    return Example(
        drawn.astype(np.uint8), shown[kept], ignored[_areas(ignored) > 0], example.classes[kept]
    )


def _reduced(
    pixels: Pixels, factor: float, shift: NDArray[np.float64]
) -> tuple[Pixels, NDArray[np.float64]]:
    """Return the pixels and the transformation that remains to be applied to them.

    For a `factor` below 1 the pixels are averaged down first, because warping alone would alias.
    """
    if factor >= 1:
        return pixels, shift
    height, width = pixels.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    rest = shift.copy()
    rest[0, 0], rest[1, 1] = width * factor / size[0], height * factor / size[1]
    return small, rest


def _too_small_ignored(example: Example) -> Example:
    tiny = np.sqrt(_areas(example.faces)) < TINIEST
    return replace(
        example,
        faces=example.faces[~tiny],
        classes=example.classes[~tiny],
        ignored=np.concatenate([example.ignored, example.faces[tiny]]),
    )


def _covered(pixels: Pixels, face: Boxes, random: Random) -> Pixels:
    """Return the picture with an occluder over the lower face, like a mask, a scarf or a hand."""
    x1, y1, x2, y2 = face
    width, height = x2 - x1, y2 - y1
    top = y1 + height * random.uniform(*COVER_FROM)
    bottom, middle = y2 + height * random.uniform(-0.05, 0.15), (x1 + x2) / 2
    half = width * random.uniform(0.4, 0.6)
    corners = np.array(
        [
            (middle - half, top + height * random.uniform(-0.05, 0.1)),
            (middle, top - height * random.uniform(0, 0.1)),
            (middle + half, top + height * random.uniform(-0.05, 0.1)),
            (middle + half * random.uniform(0.5, 1), bottom),
            (middle - half * random.uniform(0.5, 1), bottom),
        ]
    )
    hidden = np.zeros(pixels.shape[:2], np.uint8)
    cv2.fillPoly(hidden, [corners.round().astype(np.int32)], 255)
    rows = np.linspace(random.uniform(0.8, 1.2), random.uniform(0.8, 1.2), len(pixels))[
        :, None, None
    ]
    cloth = (random.integers(0, 256, 3) * rows + random.normal(0, 4, (*pixels.shape[:2], 1))).clip(
        0, 255
    )
    return np.where(hidden[..., None] > 0, cloth, pixels).astype(np.uint8)


def _recoloured(pixels: Pixels, random: Random) -> Pixels:
    """Return the picture with a random exposure, contrast, saturation and white balance.

    A share GRAY of the pictures loses its colours, as pictures of cameras at night do.
    """
    planes = pixels.astype(np.float32)
    gray = planes @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    saturation = 0.0 if random.random() < GRAY else random.uniform(0.6, 1.4)
    planes = gray[..., None] + np.float32(saturation) * (planes - gray[..., None])
    balance = random.uniform(0.88, 1.12, 3).astype(np.float32) * np.float32(
        np.exp(random.uniform(-0.5, 0.4))
    )
    contrast = np.float32(random.uniform(0.75, 1.25))
    mean = gray.mean()
    changed: Pixels = ((planes * balance - mean) * contrast + mean).clip(0, 255).astype(np.uint8)
    return changed


def _compressed(pixels: Pixels, quality: int) -> Pixels:
    _, content = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    again = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert again is not None
    return np.ascontiguousarray(again[..., ::-1]).astype(np.uint8)


def _areas(boxes: Boxes) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]).clip(0) * (
        boxes[:, 3] - boxes[:, 1]
    ).clip(0)
    return found
