"""Some pictures of a data set with their boxes drawn, so that wrong boxes are seen at once."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from training import sheets
from training.data.dataset import FACE, Dataset, Picture
from worker.pixels import Pixels

SAMPLES, COLUMNS = 9, 3
TILE = 320  # pixels
FONT, TEXT = cv2.FONT_HERSHEY_SIMPLEX, 0.4  # of the names of labels; TEXT is their scale


def write(dataset: Dataset, path: Path) -> int:
    """Write a sheet of up to SAMPLES pictures with boxes to `path`, and return their number.

    The pictures are named by content, so that every n-th of them is a random choice.
    """
    with_boxes = [picture for picture in dataset.pictures if picture.faces or picture.ignore]
    count = min(SAMPLES, len(with_boxes))
    chosen = [with_boxes[number * len(with_boxes) // count] for number in range(count)]
    tiles = [_tile(dataset.pixels(picture), picture, dataset.labels) for picture in chosen]
    path.write_bytes(sheets.encoded(sheets.sheet(tiles, TILE, COLUMNS), path.suffix))
    return len(tiles)


def _tile(pixels: Pixels, picture: Picture, labels: Sequence[str]) -> Pixels:
    """Return the whole picture in a square of TILE pixels, with its boxes."""
    scale = TILE / max(picture.width, picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    tile = np.full((TILE, TILE, 3), sheets.PAPER, np.uint8)
    tile[: size[1], : size[0]] = small
    for box in picture.ignore:
        sheets.draw(tile, [side * scale for side in box], sheets.IGNORED)
    named = [
        (label, [side * scale for side in box])
        for number, label in enumerate(labels)
        for box in picture.boxes_of(number)
    ]
    for _, corners in named:
        sheets.draw(tile, corners, sheets.LABELLED)
    if tuple(labels) != (FACE,):
        for label, corners in named:  # after all boxes, which would cover the names
            _write_name(tile, label, corners)
    return tile


def _write_name(tile: Pixels, label: str, corners: Sequence[float]) -> None:
    """Write `label` above its box, or within the tile as near as it fits, on a plain ground."""
    (width, above), below = cv2.getTextSize(label, FONT, TEXT, 1)
    x = max(0, min(round(corners[0]), TILE - width))
    y = max(above, round(corners[1]) - below)  # the line on which the letters stand
    tile[y - above : y + below, x : x + width] = sheets.PAPER
    cv2.putText(tile, label, (x, y), FONT, TEXT, sheets.LABELLED, 1, cv2.LINE_AA)
