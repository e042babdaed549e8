"""The sheet of samples: as many pictures as fit, each box with the whole name of its label."""

import numpy as np
import pytest
from PIL import Image

from training import sheets
from training.data import samples
from training.data.dataset import Dataset, Picture


def picture(number, boxes, classes=()):
    return Picture(f"{number}.png", f"{number:064}", 320, 320, boxes, (), "train", classes)


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (1, 1), (8, 8), (9, 9), (10, 9), (40, 9)])
def test_a_sheet_is_full_if_there_are_enough_pictures(count, shown, tmp_path):
    Image.new("RGB", (320, 320)).save(tmp_path / "a.png")
    pictures = [
        Picture("a.png", f"{i:064}", 320, 320, ((1, 1, 9, 9),), (), "train") for i in range(count)
    ]

    assert samples.write(Dataset(tmp_path, tuple(pictures), ""), tmp_path / "samples.jpg") == shown


def ink(boxes):
    """Return the number of plain pixels of paper in a tile with a name at the first of `boxes`."""
    labels = ("licence_plate", "bare")
    classes = (0, *(1 for _ in boxes[1:]))
    tile = samples._tile(np.zeros((320, 320, 3), np.uint8), picture(0, boxes, classes), labels)
    return int((tile == sheets.PAPER).all(axis=-1).sum())


@pytest.mark.parametrize("box", [(300, 100, 318, 150), (0, 0, 40, 60), (290, 0, 320, 20)])
def test_the_name_of_a_label_is_not_cut_at_the_edge(box):
    assert ink((box,)) == ink(((100, 100, 140, 150),))


def test_the_name_of_a_label_is_over_the_boxes_of_its_neighbours():
    alone = ink(((100, 100, 140, 150),))

    assert ink(((100, 100, 140, 150), (110, 92, 180, 180))) >= alone
