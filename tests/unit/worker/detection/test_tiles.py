"""Tiles: they cover an image, overlap as far as asked, and have one size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.detection.tiles import quarters, tiles

SIDES = st.integers(1, 3000)


def covered(height, width, parts):
    seen = np.zeros((height, width), np.uint8)
    for rows, columns in parts:
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        seen[rows, columns] = 1
    return seen.all()


@given(SIDES, SIDES, st.integers(64, 600), st.integers(64, 600), st.floats(0, 0.5))
def test_tiles_cover_the_view_with_parts_of_one_size(height, width, rows, columns, share):
    overlap = int(min(rows, columns) * share)
    parts = list(tiles(height, width, (rows, columns), overlap))
    assert covered(height, width, parts)
    ((tile_height, tile_width),) = {(r.stop - r.start, c.stop - c.start) for r, c in parts}
    assert tile_height <= rows
    assert tile_width <= columns


@given(SIDES, st.integers(64, 600), st.floats(0, 0.5), st.data())
def test_what_is_no_longer_than_the_overlap_lies_whole_in_one_tile(length, side, share, data):
    overlap = int(side * share)
    spans = [rows for rows, _ in tiles(length, 1, (side, 1), overlap)]
    size = data.draw(st.integers(1, max(1, min(overlap, length))))
    start = data.draw(st.integers(0, length - size))
    assert any(span.start <= start and start + size <= span.stop for span in spans)


def test_a_view_that_fits_is_one_tile():
    assert list(tiles(1920, 1280, (1920, 1920), 192)) == [(slice(0, 1920), slice(0, 1280))]


def test_tiles_are_as_few_as_can_be():
    assert len(list(tiles(1440, 5760, (1920, 1920), 192))) == 4
    assert len(list(tiles(1921, 1920, (1920, 1920), 192))) == 2


@given(st.integers(2, 2000), st.integers(2, 2000))
def test_quarters_cover_a_view_and_are_smaller(height, width):
    parts = list(quarters(height, width, 192))
    assert len(parts) == 4
    assert covered(height, width, parts)
    for rows, columns in parts:
        assert rows.stop - rows.start < height
        assert columns.stop - columns.start < width


@pytest.mark.parametrize(("side", "shared"), [(1920, 192), (300, 75)])
def test_quarters_share_what_a_quarter_of_a_side_allows(side, shared):
    (above, _), _, (below, _), _ = quarters(side, side, 192)
    assert above.stop - below.start >= shared
