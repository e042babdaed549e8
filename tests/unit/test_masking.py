"""Masking: nothing of a hidden region is left in the output, and nothing else is touched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.masking import METHODS, MaskStyle, hide, regions

KINDS = {
    "gray": ((), np.uint8),
    "gray and alpha": ((2,), np.uint8),
    "RGB": ((3,), np.uint8),
    "RGBA or CMYK": ((4,), np.uint8),
    "16-bit gray": ((), np.uint16),
}
STYLES = st.builds(
    MaskStyle,
    method=st.sampled_from(sorted(METHODS)),
    region=st.sampled_from([0.5, 0.7, 1.0]) | st.floats(0.5, 1),
    margin=st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1),
)
SIDES = st.integers(1, 48)
CORNERS = st.floats(-20, 60, width=32)


@st.composite
def boxes(draw, most=5):
    """Boxes anywhere: within the picture, over its edges, beyond them, empty, touching and nested."""
    corners = draw(st.lists(st.tuples(CORNERS, CORNERS, CORNERS, CORNERS), max_size=most))
    made = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    if made and draw(st.booleans()):
        x1, y1, x2, y2 = made[0]
        made.append((x2, y1, x2 + 5, y2))  # touching
        made.append(((2 * x1 + x2) / 3, (2 * y1 + y2) / 3, (x1 + 2 * x2) / 3, (y1 + 2 * y2) / 3))  # nested
    return np.array(made, np.float32).reshape(-1, 4)


def noise(height, width, kind="RGB", seed=0):
    channels, dtype = KINDS[kind]
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, *channels), dtype, True)


def covered(picture, boxes_xyxy, style):
    mask = np.zeros(picture.shape[:2], bool)
    for x1, y1, x2, y2 in regions(boxes_xyxy, style, picture.shape[1], picture.shape[0]):
        mask[y1:y2, x1:x2] = True
    return mask


def box(*sides):
    return np.array([sides], np.float32)


# --- which region ---------------------------------------------------------------------------------------------


@given(boxes(), STYLES, SIDES, SIDES)
def test_regions_are_whole_pixels_within_the_picture(some, style, width, height):
    found = regions(some, style, width, height)
    assert np.issubdtype(found.dtype, np.integer)
    x1, y1, x2, y2 = found.T
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all()


@given(boxes(most=3), STYLES)
def test_the_promised_share_of_each_box_is_hidden(some, style):
    height = width = 64
    mask = covered(np.zeros((height, width)), some, style)
    for x1, y1, x2, y2 in some:
        lower = y1 + (y2 - y1) * style.region
        rows = slice(max(0, int(np.floor(y1))), max(0, int(np.floor(lower))))
        columns = slice(max(0, int(np.floor(x1))), max(0, int(np.floor(x2))))
        if x2 > x1 and lower > y1:
            assert mask[rows, columns].all()


@pytest.mark.parametrize(
    ("region", "margin", "expected"),
    [
        (1.0, 0.0, (20, 10, 40, 50)),
        (0.5, 0.0, (20, 10, 40, 30)),
        (0.75, 0.0, (20, 10, 40, 40)),
        (0.5, 0.25, (15, 0, 45, 30)),
        (1.0, 0.25, (15, 0, 45, 60)),
        (1.0, 0.1, (18, 6, 42, 54)),
        (0.95, 0.25, (15, 0, 45, 48)),
    ],
)
def test_a_region_is_the_top_of_the_box_and_only_a_full_one_is_widened_below(region, margin, expected):
    found = regions(box(20, 10, 40, 50), MaskStyle("fill", region, margin), 100, 100)
    assert found.tolist() == [list(expected)]


def test_the_lower_part_of_a_face_is_left_as_it_was():
    picture = noise(60, 60)
    hidden = hide(picture, box(20, 10, 40, 50), MaskStyle("fill", 0.5, 0.0))
    assert (hidden[10:30, 20:40] == 0).all()
    assert np.array_equal(hidden[30:], picture[30:])


def test_a_fraction_of_a_pixel_is_hidden_as_a_whole_one():
    found = regions(box(10.9, 10.9, 11.1, 11.1), MaskStyle("fill", 1.0, 0.0), 100, 100)
    assert found.tolist() == [[10, 10, 12, 12]]


@pytest.mark.parametrize(
    "outside", [(-20, 5, -10, 15), (100, 5, 120, 15), (5, -20, 15, -10), (5, 100, 15, 120), (5, 5, 5, 15)]
)
def test_a_box_outside_the_picture_or_without_area_hides_nothing(outside):
    picture = noise(50, 50)
    assert np.array_equal(hide(picture, box(*outside), MaskStyle(margin=0.0)), picture)


# --- what is left ---------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(kind=st.sampled_from(sorted(KINDS)), some=boxes(), style=STYLES, width=SIDES, height=SIDES)
def test_nothing_of_a_region_is_in_the_output_and_nothing_outside_changes(kind, some, style, width, height):
    picture, other = noise(height, width, kind, 1), noise(height, width, kind, 2)
    mask = covered(picture, some, style)
    other[~mask] = picture[~mask]
    before = picture.copy()

    hidden = hide(picture, some, style)

    assert hidden.shape == picture.shape
    assert hidden.dtype == picture.dtype
    assert np.array_equal(hidden[~mask], picture[~mask])
    assert np.array_equal(picture, before)
    # The same surroundings give the same bytes, whoever was in the regions.
    assert np.array_equal(hidden, hide(other, some, style))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_each_pixel_of_a_region_alone_leaves_no_trace(kind, method):
    style = MaskStyle(method, 0.7, 0.1)
    some = np.array([(1, 1, 6, 6), (6.5, 2, 9, 7), (3, 3, 4, 4)], np.float32)
    picture = noise(9, 12, kind)
    expected = hide(picture, some, style)
    top = np.iinfo(picture.dtype).max
    for row, column in np.argwhere(covered(picture, some, style)):
        for value in (0, top):
            changed = picture.copy()
            changed[row, column] = value
            assert np.array_equal(hide(changed, some, style), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (33, 20)])
def test_a_face_that_fills_the_picture_is_hidden_by_one_tone(kind, method, size):
    picture = noise(*size, kind)
    hidden = hide(picture, box(-5, -5, 50, 50), MaskStyle(method, 1.0, 0.0))
    assert len(np.unique(hidden)) == 1
    assert np.array_equal(hidden, hide(noise(*size, kind, 5), box(-5, -5, 50, 50), MaskStyle(method, 1.0, 0.0)))


@pytest.mark.parametrize("method", METHODS)
def test_without_boxes_the_picture_is_an_equal_copy(method):
    picture = noise(20, 30)
    hidden = hide(picture, np.zeros((0, 4), np.float32), MaskStyle(method))
    assert np.array_equal(hidden, picture)
    assert not np.shares_memory(hidden, picture)


@given(boxes(), STYLES)
def test_the_same_input_gives_the_same_bytes(some, style):
    picture = noise(40, 30)
    assert hide(picture, some, style).tobytes() == hide(np.asfortranarray(picture), some, style).tobytes()


@given(boxes(), STYLES, st.randoms(use_true_random=False))
def test_the_order_of_the_boxes_hides_the_same_pixels(some, style, chance):
    picture = noise(40, 30)
    order = list(range(len(some)))
    chance.shuffle(order)
    assert np.array_equal(hide(picture, some, style), hide(picture, some[order], style))


def test_a_read_only_picture_can_be_hidden():
    picture = noise(20, 20)
    picture.flags.writeable = False
    assert (hide(picture, box(5, 5, 10, 10), MaskStyle("fill", 1.0, 0.0))[5:10, 5:10] == 0).all()


# --- surround -------------------------------------------------------------------------------------------------


@given(kind=st.sampled_from(sorted(KINDS)), some=boxes(most=1), margin=st.floats(0, 0.5))
def test_surround_stays_between_the_darkest_and_the_brightest_around(kind, some, margin):
    picture = noise(40, 40, kind)
    style = MaskStyle("surround", 1.0, margin)
    mask = covered(picture, some, style)
    if mask.any() and not mask.all():
        picture[mask] = 0
        picture[~mask] = picture[~mask] // 4 + 100
        hidden = hide(picture, some, style)
        around = picture[~mask]
        assert (hidden[mask] >= around.min(axis=0)).all()
        assert (hidden[mask] <= around.max(axis=0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_surround_of_one_colour_is_that_colour(kind):
    channels, dtype = KINDS[kind]
    colour = (np.arange(1, max(channels, default=1) + 1) * np.iinfo(dtype).max // 5).astype(dtype)
    picture = noise(50, 50, kind)
    style = MaskStyle("surround", 0.7, 0.1)
    some = np.array([(5, 5, 20, 25), (30, 20, 49, 49)], np.float32)
    picture[~covered(picture, some, style)] = colour if channels else colour[0]
    hidden = hide(picture, some, style)
    assert np.array_equal(hidden, np.broadcast_to(colour if channels else colour[0], picture.shape))


def test_surround_carries_a_gradient_across_the_face():
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None], 100, axis=0)
    style = MaskStyle("surround", 1.0, 0.0)
    hidden = hide(
        np.where(covered(ramp, box(40, 40, 60, 60), style), 255, ramp).astype(np.uint8), box(40, 40, 60, 60), style
    )
    middle = hidden[50, 40:60].astype(int)
    assert (np.diff(middle) >= -2).all()
    assert middle[-1] - middle[0] > 10
    assert abs(int(hidden[50, 50]) - 100) < 12


@pytest.mark.parametrize("gap", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbours_face_never_colours_a_region(kind, gap):
    style = MaskStyle("surround", 1.0, 0.0)
    some = np.array([(10, 10, 30, 30), (30 + gap, 10, 50 + gap, 30)], np.float32)
    picture = noise(40, 70, kind)
    picture[~covered(picture, some, style)] = 100
    for value in (0, np.iinfo(picture.dtype).max):
        picture[10:30, 30 + gap : 50 + gap] = value
        hidden = hide(picture, some, style)
        assert (hidden == 100).all()


@pytest.mark.parametrize(
    "pair",
    [
        [(10, 10, 20, 20), (20, 10, 30, 20)],
        [(10, 10, 20, 20), (20, 20, 30, 30)],
        [(10, 10, 20, 20), (15, 5, 25, 30)],
        [(10, 10, 30, 30), (15, 15, 20, 20)],
        [(10, 10, 20, 20), (10, 10, 20, 20)],
    ],
    ids=["side by side", "corner to corner", "overlapping", "nested", "twice"],
)
def test_regions_that_meet_are_hidden_as_one_without_a_seam_of_faces(pair):
    style = MaskStyle("surround", 1.0, 0.0)
    some = np.array(pair, np.float32)
    picture = np.full((40, 40, 3), 60, np.uint8)
    picture[covered(picture, some, style)] = noise(40, 40)[covered(picture, some, style)]
    assert (hide(picture, some, style) == 60).all()


def test_a_face_at_every_edge_and_corner_is_hidden():
    style = MaskStyle("surround", 1.0, 0.0)
    some = np.array([(x, y, x + 10, y + 10) for x in (-5, 25, 55) for y in (-5, 25, 55)], np.float32)
    picture = np.full((60, 60, 3), 90, np.uint8)
    picture[covered(picture, some, style)] = 255
    assert (hide(picture, some, style) == 90).all()


def test_fill_paints_the_black_it_is_given():
    clear = np.full((20, 20, 4), 200, np.uint8)
    hidden = hide(clear, np.array([[5, 5, 15, 15]], np.float32), MaskStyle("fill", 1.0, 0.0), black=(0, 0, 0, 255))
    assert hidden[10, 10].tolist() == [0, 0, 0, 255]
    assert hidden[0, 0].tolist() == [200] * 4
