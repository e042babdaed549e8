"""The contact sheet of the demo: its size is bounded, whatever the number of pictures."""

import pytest
from PIL import Image

from tools.demo import contact_sheet


@pytest.mark.parametrize(
    ("count", "shown", "rows"), [(0, 0, 0), (1, 1, 1), (22, 22, 11), (500, 22, 11)]
)
def test_the_sheet_is_at_most_4000_pixels_high(tmp_path, count, shown, rows):
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    pair = contact_sheet.Pair("a.png", "0 faces", picture, picture, [])
    sheet = tmp_path / "sheet.jpg"
    assert contact_sheet.make([pair] * count, sheet) == shown
    with Image.open(sheet) as image:
        assert image.height == contact_sheet.GAP + rows * contact_sheet.ROW_HEIGHT <= 4000


def test_a_sample_is_spread_over_all_pictures(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        contact_sheet, "_open", lambda path: opened.append(path) or Image.new("RGB", (4, 4))
    )
    pairs = [contact_sheet.Pair(str(number), "0 faces", number, number, []) for number in range(44)]
    contact_sheet.make(pairs, tmp_path / "sheet.jpg")
    assert sorted(set(opened)) == list(range(0, 44, 2))
