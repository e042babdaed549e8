"""Some pictures of a data set with their boxes drawn, so that wrong boxes are seen at once."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from training import sheets
from training.data.dataset import FACE, Dataset, Picture
from worker.pixels import Pixels

SAMPLES, COLUMNS = 9, 3
TILE = 320  # pixels
TEXT = 0.5  # scale of the names of labels


def write(dataset: Dataset, path: Path) -> int:
    """Write a sheet of up to SAMPLES pictures with boxes to `path`, and return their number.

    The pictures are named by content, so that every n-th of them is a random choice.
    """
    with_boxes = [picture for picture in dataset.pictures if picture.faces or picture.ignore]
    chosen = with_boxes[:: math.ceil(len(with_boxes) / SAMPLES)]
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
    for number, label in enumerate(labels):
        for box in picture.boxes_of(number):
            corners = [side * scale for side in box]
            sheets.draw(tile, corners, sheets.LABELLED)
            if tuple(labels) != (FACE,):
                corner = round(corners[0]), round(corners[1]) - 4
                cv2.putText(tile, label, corner, cv2.FONT_HERSHEY_SIMPLEX, TEXT, sheets.LABELLED)
    return tile
