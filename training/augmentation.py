"""One picture and its faces, changed at random as cameras and people change them, or only made to fit the network."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.detection.detector import PADDING
from worker.pixels import Pixels

Boxes = NDArray[np.float32]
Random = np.random.Generator

# Shares of the examples that are changed so.
CROPPED, GRAY, BLURRED, COMPRESSED, COVERED = 0.7, 0.08, 0.15, 0.3, 0.25
SMALLEST_FACE, LARGEST_FACE = (
    12.0,
    0.6,
)  # that a crop makes of the face that it is drawn around: pixels, share of a side
MOST_ENLARGED = 2.5
LEAST_SHOWN = 0.35  # share of a face that a crop leaves: below, what is left is ignored
TINIEST = 4.0  # pixels: a side below which a face is ignored, because nothing of it can be seen
QUALITY = 25, 90  # of a JPEG
COVER_FROM = 0.35, 0.65  # share of the face's height at which an occluder begins


@dataclass(frozen=True)
class Example:
    """uint8 RGB [h, w, 3]; `faces` [n, 4] and `ignored` [m, 4] are x1 y1 x2 y2 in its pixels, float32."""

    pixels: Pixels
    faces: Boxes
    ignored: Boxes


def fitted(example: Example, side: int) -> Example:
    """The whole picture at the upper left of a square of `side` pixels, as a detection pass sees it."""
    factor = side / max(example.pixels.shape[:2])
    return _too_small_ignored(_window(example, factor, 0.0, 0.0, side))


def augmented(example: Example, side: int, random: Random) -> Example:
    """A square of `side` pixels that shows some of the picture, changed."""
    if random.random() < 0.5:
        example = _mirrored(example)
    if random.random() < CROPPED and len(example.faces):
        made = _around_a_face(example, side, random)
    else:
        made = _whole(example, side, random)
    made = _too_small_ignored(made)
    pixels = made.pixels
    if random.random() < COVERED and len(made.faces):
        pixels = _covered(pixels, made.faces[random.integers(len(made.faces))], random)
    pixels = _recoloured(pixels, random)
    if random.random() < BLURRED:
        pixels = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.4, 2.0)).astype(np.uint8)
    if random.random() < COMPRESSED:
        pixels = _compressed(pixels, int(random.integers(*QUALITY)))
    return replace(made, pixels=pixels)


def _mirrored(example: Example) -> Example:
    width = example.pixels.shape[1]

    def other_side(boxes: Boxes) -> Boxes:
        return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)

    return Example(
        np.ascontiguousarray(example.pixels[:, ::-1]), other_side(example.faces), other_side(example.ignored)
    )


def _whole(example: Example, side: int, random: Random) -> Example:
    """The picture somewhat smaller or larger than the square, at a random place."""
    height, width = example.pixels.shape[:2]
    factor = min(side / max(height, width) * random.uniform(0.5, 1.25), MOST_ENLARGED)
    left, top = (random.uniform(min(0, room), max(0, room)) for room in (width * factor - side, height * factor - side))
    return _window(example, factor, left, top, side)


def _around_a_face(example: Example, side: int, random: Random) -> Example:
    """A crop in which one face, drawn at random, has a size drawn at random: small faces are seen as often as large."""
    x1, y1, x2, y2 = example.faces[random.integers(len(example.faces))]
    its = max(float((x2 - x1) * (y2 - y1)) ** 0.5, 1.0)
    wanted = np.exp(random.uniform(np.log(SMALLEST_FACE), np.log(LARGEST_FACE * side)))
    factor = min(wanted / its, MOST_ENLARGED)
    # Anywhere in the square, as long as the face is.
    left, top = (
        random.uniform(min(last * factor - side, first * factor), max(last * factor - side, first * factor))
        for first, last in ((x1, x2), (y1, y2))
    )
    return _window(example, factor, left, top, side)


def _window(example: Example, factor: float, left: float, top: float, side: int) -> Example:
    """The square of `side` pixels whose corner is at `left` `top` of the picture resized by `factor`."""
    shift = np.array([[factor, 0, -left], [0, factor, -top]], np.float64)
    pixels, shift = _reduced(example.pixels, factor, shift)
    drawn = cv2.warpAffine(
        pixels,
        shift,
        (side, side),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(PADDING, PADDING, PADDING),
    )
    corner = np.array([left, top] * 2, np.float32)
    faces, ignored = (boxes * np.float32(factor) - corner for boxes in (example.faces, example.ignored))
    shown = faces.clip(0, side)
    left_of = _areas(shown) / np.maximum(_areas(faces), 1e-6)
    inside = _areas(shown) > 0
    kept, cut = inside & (left_of >= LEAST_SHOWN), inside & (left_of < LEAST_SHOWN)
    ignored = np.concatenate([ignored.clip(0, side), shown[cut]])
    return Example(drawn.astype(np.uint8), shown[kept], ignored[_areas(ignored) > 0])


def _reduced(pixels: Pixels, factor: float, shift: NDArray[np.float64]) -> tuple[Pixels, NDArray[np.float64]]:
    """For a `factor` below 1: the pixels averaged down first, and what is left to do; warping alone would alias."""
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
    return replace(example, faces=example.faces[~tiny], ignored=np.concatenate([example.ignored, example.faces[tiny]]))


def _covered(pixels: Pixels, face: Boxes, random: Random) -> Pixels:
    """Something before the lower face: a mask, a scarf, a hand, of one colour with a little shade."""
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
    rows = np.linspace(random.uniform(0.8, 1.2), random.uniform(0.8, 1.2), len(pixels))[:, None, None]
    cloth = (random.integers(0, 256, 3) * rows + random.normal(0, 4, (*pixels.shape[:2], 1))).clip(0, 255)
    return np.where(hidden[..., None] > 0, cloth, pixels).astype(np.uint8)


def _recoloured(pixels: Pixels, random: Random) -> Pixels:
    """Another exposure, contrast, saturation and white balance; sometimes gray, as at night."""
    planes = pixels.astype(np.float32)
    gray = planes @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    saturation = 0.0 if random.random() < GRAY else random.uniform(0.6, 1.4)
    planes = gray[..., None] + np.float32(saturation) * (planes - gray[..., None])
    balance = random.uniform(0.88, 1.12, 3).astype(np.float32) * np.float32(np.exp(random.uniform(-0.5, 0.4)))
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
    found: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)
    return found
