"""Masking: the output has nothing of a hidden region, and everything else is unchanged."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import SIDES, STYLES, boxes
from worker.detection.faces import Detections, Sightings
from worker.masking import filling, hiding, regions
from worker.masking.filling import INDEPENDENT, METHODS
from worker.masking.hiding import CELLS_ACROSS
from worker.masking.regions import MaskStyle, Part

KINDS = {
    "gray": ((), np.uint8),
    "gray and alpha": ((2,), np.uint8),
    "RGB": ((3,), np.uint8),
    "RGBA or CMYK": ((4,), np.uint8),
    "16-bit gray": ((), np.uint16),
}


def noise(height, width, kind="RGB", seed=0):
    channels, dtype = KINDS[kind]
    return np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, (height, width, *channels), dtype, True
    )


def hide(picture, boxes_xyxy, style, **options):
    return hiding.hide(picture, Sightings.of(boxes_xyxy), style, **options)


def rectangles_of(boxes_xyxy, style, width, height, **options):
    return regions.regions(Sightings.of(boxes_xyxy), style, width, height, **options).rectangles


def covered(picture, boxes_xyxy, style):
    """Return which pixels are in a region: those that `fill` paints black in a white picture."""
    blank = np.full(picture.shape[:2], 255, np.uint8)
    return hide(blank, boxes_xyxy, replace(style, method="fill", feather=0.0)) == 0


def touched(picture, boxes_xyxy, style):
    """Return which pixels are in a region or in the soft edge around one."""
    # The outermost part of an edge changes pixels of 16 bits only.
    blank = np.full(picture.shape[:2], 65_535, np.uint16)
    grown = hide(blank, boxes_xyxy, replace(style, method="fill"))
    return grown < 65_535


def box(*sides):
    return np.array([sides], np.float32)


# --- which region


@given(boxes(most=3), STYLES)
def test_the_promised_share_of_each_box_is_hidden(some, style):
    height = width = 64
    mask = covered(np.zeros((height, width)), some, replace(style, shape="rectangle"))
    for x1, y1, x2, y2 in some:
        lower = y1 + (y2 - y1) * style.region
        rows = slice(max(0, int(np.floor(y1))), max(0, int(np.floor(lower))))
        columns = slice(max(0, int(np.floor(x1))), max(0, int(np.floor(x2))))
        if x2 > x1 and lower > y1:
            assert mask[rows, columns].all()


def test_the_lower_part_of_a_face_is_left_as_it_was():
    picture = noise(60, 60)
    hidden = hide(picture, box(20, 10, 40, 50), MaskStyle("fill", 0.5, 0.0))
    assert (hidden[10:30, 20:40] == 0).all()
    assert np.array_equal(hidden[30:], picture[30:])


@pytest.mark.parametrize(
    "outside",
    [(-20, 5, -10, 15), (100, 5, 120, 15), (5, -20, 15, -10), (5, 100, 15, 120), (5, 5, 5, 15)],
)
def test_a_box_outside_the_picture_or_without_area_hides_nothing(outside):
    picture = noise(50, 50)
    assert np.array_equal(hide(picture, box(*outside), MaskStyle(margin=0.0)), picture)


@pytest.mark.parametrize("size", [4, 9, 30, 61])
@pytest.mark.parametrize("region", [0.6, 0.7, 1.0])
def test_an_ellipse_hides_the_eyes_and_leaves_the_corners(size, region):
    some = box(20, 20, 20 + size, 20 + 1.3 * size)
    mask = covered(np.zeros((110, 110)), some, MaskStyle("fill", region, 0.1, "ellipse"))
    assert mask[
        20 + int(0.26 * size) : 20 + int(0.78 * size), 20 + int(0.1 * size) : 20 + int(0.9 * size)
    ].all()
    x1, y1, x2, _ = rectangles_of(some, MaskStyle("fill", region, 0.1, "ellipse"), 110, 110)[0]
    assert not mask[y1, x1]
    assert not mask[y1, x2 - 1]
    assert mask.sum() < covered(np.zeros((110, 110)), some, MaskStyle("fill", region, 0.1)).sum()


def looking(*ups, box_xyxy=(20, 20, 60, 60)):
    """Return a face in `box_xyxy` for each of `ups`, the way from mouth to eyes in pixels."""
    x1, y1, x2, y2 = box_xyxy
    middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    landmarks = [
        [middle + np.array(up) / 2] * 2 + [middle] + [middle - np.array(up) / 2] * 2 for up in ups
    ]
    return Sightings.of(
        np.array([box_xyxy] * len(ups), np.float32), np.array(landmarks, np.float32)
    )


def test_a_tilted_face_keeps_only_the_corner_that_its_chin_is_in():
    mask = (
        hiding.hide(
            np.full((80, 80), 255, np.uint8), looking((12, -12)), MaskStyle("fill", 0.7, 0.0)
        )
        == 0
    )
    assert mask[20:48, 20:60].all()
    assert mask[20:60, 32:60].all()
    assert not mask[48:60, 20:32].any()


def test_sightings_of_one_face_are_hidden_together():
    seen = replace(
        Sightings.of(np.array([(10, 10, 30, 30), (12, 16, 30, 40)], np.float32)),
        face=np.array([0, 0]),
    )
    mask = hiding.hide(np.full((60, 60), 255, np.uint8), seen, MaskStyle("fill", 0.5, 0.0)) == 0
    assert mask[10:20, 10:30].all()
    assert mask[16:28, 12:30].all()
    assert mask.sum() == 10 * 20 + 8 * 18


def test_extra_areas_are_hidden_whole_and_as_they_are():
    picture = noise(60, 60)
    hidden = hide(
        picture, np.zeros((0, 4), np.float32), MaskStyle("fill", 0.5, 0.3), extra=[(10, 20, 30, 50)]
    )
    mask = np.zeros((60, 60), bool)
    mask[20:50, 10:30] = True
    assert (hidden[mask] == 0).all()
    assert np.array_equal(hidden[~mask], picture[~mask])


# --- what remains


@settings(max_examples=80)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    some=boxes(),
    method=st.sampled_from(INDEPENDENT),
    style=STYLES,
    width=SIDES,
    height=SIDES,
)
def test_nothing_of_a_region_is_in_the_output_and_nothing_outside_changes(
    kind, some, method, style, width, height
):
    style = replace(style, method=method)
    picture, other = noise(height, width, kind, 1), noise(height, width, kind, 2)
    mask, edge = covered(picture, some, style), touched(picture, some, style)
    other[~mask] = picture[~mask]
    before = picture.copy()

    hidden = hide(picture, some, style)

    assert hidden.shape == picture.shape
    assert hidden.dtype == picture.dtype
    assert np.array_equal(hidden[~edge], picture[~edge])
    assert np.array_equal(picture, before)
    # The same surroundings give the same bytes, whatever was in the regions.
    assert np.array_equal(hidden, hide(other, some, style))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", INDEPENDENT)
def test_each_pixel_of_a_region_alone_leaves_no_trace(kind, method):
    style = MaskStyle(method, 0.7, 0.1, feather=0.3)
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
@pytest.mark.parametrize("most_grains", [1 << 21, 100], ids=["by the ring", "by the area"])
def test_a_large_region_is_filled_from_squares_that_hold_none_of_it(kind, most_grains, monkeypatch):
    monkeypatch.setattr(filling, "MAX_GRAINS", most_grains)
    grains = []
    kept = METHODS["surround"]
    monkeypatch.setitem(METHODS, "surround", lambda hole: grains.append(hole.grain) or kept(hole))
    style = MaskStyle("surround", 0.7, 0.1, feather=0.05)
    some = np.array([(61, 42, 261, 291), (300, 150, 333, 177)], np.float32)
    picture, other = noise(331, 353, kind, 1), noise(331, 353, kind, 2)
    mask = covered(picture, some, style)
    other[~mask] = picture[~mask]

    hidden = hide(picture, some, style)

    assert max(grains) >= 4
    assert np.array_equal(hidden, hide(other, some, style))
    monkeypatch.setattr(filling, "STRIP_PIXELS", 353 * 20)
    assert np.array_equal(hidden, hide(picture, some, style))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", INDEPENDENT)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (33, 20)])
def test_a_face_that_fills_the_picture_is_hidden_by_one_tone(kind, method, size):
    picture = noise(*size, kind)
    hidden = hide(picture, box(-5, -5, 50, 50), MaskStyle(method, 1.0, 0.0))
    assert len(np.unique(hidden)) == 1
    assert np.array_equal(
        hidden, hide(noise(*size, kind, 5), box(-5, -5, 50, 50), MaskStyle(method, 1.0, 0.0))
    )


@pytest.mark.parametrize("method", METHODS)
def test_without_boxes_the_picture_is_an_equal_copy(method):
    picture = noise(20, 30)
    hidden = hide(picture, np.zeros((0, 4), np.float32), MaskStyle(method))
    assert np.array_equal(hidden, picture)
    assert not np.shares_memory(hidden, picture)


@given(boxes(), STYLES)
def test_the_same_input_gives_the_same_bytes(some, style):
    picture = noise(40, 30)
    assert (
        hide(picture, some, style).tobytes()
        == hide(np.asfortranarray(picture), some, style).tobytes()
    )


@given(boxes(), STYLES, st.randoms(use_true_random=False))
def test_the_order_of_the_boxes_hides_the_same_pixels(some, style, chance):
    picture = noise(40, 30)
    order = list(range(len(some)))
    chance.shuffle(order)
    assert np.array_equal(hide(picture, some, style), hide(picture, some[order], style))


@settings(max_examples=40)
@given(kind=st.sampled_from(sorted(KINDS)), some=boxes(), style=STYLES, width=SIDES, height=SIDES)
def test_a_region_is_hidden_alike_in_one_piece_and_strip_by_strip(kind, some, style, width, height):
    picture = noise(height, width, kind)
    whole = hide(picture, some, style)
    for strip_pixels in (1, 4 * width, 7 * width):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filling, "STRIP_PIXELS", strip_pixels)
            assert np.array_equal(hide(picture, some, style), whole)


def test_a_read_only_picture_can_be_hidden():
    picture = noise(20, 20)
    picture.flags.writeable = False
    assert (hide(picture, box(5, 5, 10, 10), MaskStyle("fill", 1.0, 0.0))[5:10, 5:10] == 0).all()


# --- surround


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


@pytest.mark.parametrize("border", [1, 2, 5, 20])
def test_a_border_thinner_than_the_squares_of_a_large_hole_is_filled_from_too(border):
    picture = np.zeros((700, 700, 3), np.uint8)
    inside = slice(border, 700 - border)
    picture[:] = 99
    picture[inside, inside] = noise(700 - 2 * border, 700 - 2 * border)
    hidden = hide(
        picture, box(border, border, 700 - border, 700 - border), MaskStyle("surround", 1.0, 0.0)
    )
    assert (hidden == 99).all()


def test_an_area_far_larger_than_the_picture_costs_no_more_than_the_picture():
    tracemalloc.start()
    try:
        hidden = hide(
            noise(90, 110),
            np.zeros((0, 4), np.float32),
            MaskStyle(feather=0.5),
            extra=[(-1e6, -1e6, 1e6, 1e6)],
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (hidden == 0).all()
    assert peak < 5_000_000


def test_surround_carries_a_gradient_across_the_face():
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None], 100, axis=0)
    style = MaskStyle("surround", 1.0, 0.0)
    hidden = hide(
        np.where(covered(ramp, box(40, 40, 60, 60), style), 255, ramp).astype(np.uint8),
        box(40, 40, 60, 60),
        style,
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
    some = np.array(
        [(x, y, x + 10, y + 10) for x in (-5, 25, 55) for y in (-5, 25, 55)], np.float32
    )
    picture = np.full((60, 60, 3), 90, np.uint8)
    picture[covered(picture, some, style)] = 255
    assert (hide(picture, some, style) == 90).all()


def test_fill_paints_the_black_it_is_given():
    clear = np.full((20, 20, 4), 200, np.uint8)
    hidden = hide(
        clear,
        np.array([[5, 5, 15, 15]], np.float32),
        MaskStyle("fill", 1.0, 0.0),
        black=(0, 0, 0, 255),
    )
    assert hidden[10, 10].tolist() == [0, 0, 0, 255]
    assert hidden[0, 0].tolist() == [200] * 4


# --- the soft edge


@pytest.mark.parametrize("method", METHODS)
def test_a_soft_edge_lies_outside_the_region_and_fades(method):
    picture = np.full((80, 80), 200, np.uint8)
    picture[30:50, 30:50] = 100
    hard, soft = (
        hide(picture, box(30, 30, 50, 50), MaskStyle(method, 1.0, 0.0, feather=f))
        for f in (0.0, 0.5)
    )
    assert np.array_equal(hard[30:50, 30:50] == 0, soft[30:50, 30:50] == 0)
    assert np.array_equal(hard[:30], picture[:30])
    assert np.array_equal(soft[:19], picture[:19])
    if method == "fill":
        across = soft[40, 50:61].astype(int)
        assert (np.diff(across) > 0).all()
        assert across[0] > 0
        assert across[-1] == 200


@settings(max_examples=30)
@given(some=boxes(most=3), style=STYLES)
def test_the_soft_edge_is_no_wider_than_asked_for(some, style):
    picture = noise(64, 64)
    found = regions.regions(Sightings.of(some), replace(style, shape="rectangle"), 64, 64)
    far = np.ones((64, 64), bool)
    for (x1, y1, x2, y2), side in zip(found.rectangles, found.sides, strict=True):
        reach = round(style.feather * side) + 1
        far[max(0, y1 - reach) : y2 + reach, max(0, x1 - reach) : x2 + reach] = False
    hidden = hide(picture, some, replace(style, shape="rectangle"))
    assert np.array_equal(hidden[far], picture[far])


# --- blur and pixelate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 7, 30, 200])
def test_pixelate_keeps_a_few_tones_whatever_the_size_of_the_face(kind, size):
    picture = noise(size + 20, size + 20, kind)
    hidden = hide(picture, box(10, 10, 10 + size, 10 + size), MaskStyle("pixelate", 1.0, 0.0))
    region = hidden[10 : 10 + size, 10 : 10 + size].reshape(size * size, -1)
    assert len(np.unique(region, axis=0)) <= (CELLS_ACROSS + 1) ** 2


@pytest.mark.parametrize("method", ["blur", "pixelate"])
@pytest.mark.parametrize("size", [6, 30, 200])
def test_detail_finer_than_a_cell_is_gone(method, size):
    picture = np.full((size + 20, size + 20), 255, np.uint8)
    picture[::2] = 0
    hidden = hide(picture, box(10, 10, 10 + size, 10 + size), MaskStyle(method, 1.0, 0.0))
    region = hidden[10 : 10 + size, 10 : 10 + size].astype(int)
    assert region.std() < 20
    assert abs(region.mean() - 127) < 20


def test_blur_has_no_edges_where_pixelate_has():
    picture = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None], 120, axis=0)
    steps = {
        method: np.abs(
            np.diff(
                hide(picture, box(10, 10, 100, 100), MaskStyle(method, 1.0, 0.0))[50, 12:98].astype(
                    int
                )
            )
        )
        for method in ("blur", "pixelate")
    }
    assert steps["blur"].max() < 6 < 30 < steps["pixelate"].max()


@pytest.mark.parametrize("method", ["blur", "pixelate"])
def test_a_neighbours_face_is_no_part_of_a_cell(method):
    style = MaskStyle(method, 1.0, 0.0)
    some = np.array([(10, 10, 30, 30), (33, 10, 53, 30)], np.float32)
    picture = np.full((40, 70, 3), 60, np.uint8)
    picture[10:30, 33:53] = 255
    hidden = hide(picture, some, style)
    assert (hidden[10:30, 10:30] == 60).all()
    assert (hidden[10:30, 33:53] == 255).all()


@pytest.mark.parametrize("method", METHODS)
def test_many_faces_in_one_large_picture_are_hidden_each_at_the_cost_of_its_own_region(
    method, monkeypatch
):
    windows = []
    kept = METHODS[method]
    monkeypatch.setitem(
        METHODS, method, lambda hole: windows.append(hole.pixels.shape) or kept(hole)
    )
    corners = np.array(
        [(x, y, x + 20, y + 20) for x in range(0, 2000, 100) for y in range(0, 2000, 100)],
        np.float32,
    )
    hide(np.zeros((2000, 2000), np.uint8), corners, MaskStyle(method))
    assert len(windows) == len(corners)
    assert max(height * width for height, width, _ in windows) <= 40 * 40


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gap", [2, 4, 6])
def test_hiding_a_face_leaves_its_close_neighbour_hidden(method, gap):
    """The surroundings of the second region reach into the first."""
    picture = noise(80, 140)
    pair = np.array([[20, 20, 60, 60], [60 + gap, 20, 100 + gap, 60]], np.float32)

    hidden = hide(picture, pair, MaskStyle(method, region=1.0, margin=0.0))

    for x1, _, x2, _ in pair.astype(int):
        same = (hidden[20:60, x1:x2] == picture[20:60, x1:x2]).all(axis=-1)
        assert same.mean() < 0.01


# --- many faces


def crowd(seed, width, height):
    """Return up to 300 faces of one to three sightings, in every position to each other.

    Some lie on their side, and of some it is unclear which side is up.
    """
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 301))
    corners = random.uniform(-10, max(width, height), (count, 2))
    sides = random.choice([4, 12, 40, 150], (count, 1), p=[0.4, 0.4, 0.15, 0.05]) * random.uniform(
        0.5, 1.5, (count, 2)
    )
    if random.random() < 0.4:
        corners, sides = np.floor(corners / 10) * 10, np.ceil(sides / 10) * 10
    face = np.sort(np.concatenate([np.arange(count), random.integers(0, count, count)]))
    corners = corners[face] + random.choice([0, 2]) * random.uniform(-1, 1, (len(face), 2))
    sides = sides[face]
    landmarks = corners[:, None] + random.uniform(0, 1, (len(face), 5, 2)) * sides[:, None]
    landmarks[random.random(len(face)) < 0.5] = np.nan
    boxes_xyxy = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    slack = (random.random(len(face)) * random.choice([0, 4])).astype(np.float32)
    seen = Sightings(boxes_xyxy, landmarks.astype(np.float32), slack, face)
    extra = np.sort(
        random.uniform(-10, max(width, height), (int(random.integers(4)), 2, 2)), axis=1
    ).reshape(-1, 4)
    return seen, extra.tolist()


def groups_one_by_one(everything, style):
    """Return what `_groups` does, by walking from face to face and comparing all of them."""
    grown = style.feather * everything.sides[:, None] + 1
    first, last = everything.rectangles[:, :2] - grown, everything.rectangles[:, 2:] + grown
    faces = [np.flatnonzero(everything.faces == face) for face in np.unique(everything.faces)]
    around = [(*first[rows].min(axis=0), *last[rows].max(axis=0)) for rows in faces]
    left, groups = list(range(len(faces))), []
    while left:
        group, edge = [], [left.pop(0)]
        while edge:
            here = edge.pop()
            group.append(here)
            x1, y1, x2, y2 = around[here]
            near = [
                face
                for face in left
                if around[face][0] < x2
                and x1 < around[face][2]
                and around[face][1] < y2
                and y1 < around[face][3]
            ]
            left = [face for face in left if face not in near]
            edge += near
        groups.append(sorted(row for face in group for row in faces[face]))
    return groups


def hidden_one_by_one(picture, seen, style, extra):
    """Return what `hide` does, with the regions of the other groups drawn anew for each group."""
    height, width = picture.shape[:2]
    everything = regions.regions(seen, style, width, height, extra)
    result = picture.copy()
    for rows in groups_one_by_one(everything, style):
        group, others = everything[rows], everything[np.setdiff1d(np.arange(len(everything)), rows)]
        feather = round(style.feather * group.sides.min())
        ring = max(hiding.MIN_RING, round(hiding.RING_SHARE * group.sides.min()))
        first, last = group.rectangles[:, :2].min(axis=0), group.rectangles[:, 2:].max(axis=0)
        x1, y1 = np.maximum(first - feather - ring, 0)
        x2, y2 = np.minimum(last + feather + ring, (width, height))
        hole = filling.Hole(
            picture[y1:y2, x1:x2].reshape(y2 - y1, x2 - x1, -1),
            hiding._opacity(group, (x1, y1, x2, y2), feather),
            regions.covered_pixels(others, (x1, y1, x2, y2)),
            filling.grain_of(ring, int((last - first).prod())),
            max(hiding.MIN_CELL, math.ceil(group.sides.max() / CELLS_ACROSS)),
            0,
        )
        filling.replace_pixels(result[y1:y2, x1:x2], hole, style.method)
    return result


@pytest.mark.parametrize("seed", range(40))
def test_faces_of_a_crowd_are_hidden_as_if_each_was_compared_with_each(seed):
    random = np.random.default_rng(seed + 1000)
    width, height = (int(side) for side in random.integers(1, 400, 2))
    seen, extra = crowd(seed, width, height)
    style = MaskStyle(
        sorted(METHODS)[seed % 4],
        float(random.choice([0.5, 0.7, 1])),
        float(random.choice([0, 0.1, 0.5])),
        str(random.choice(["rectangle", "ellipse"])),
        float(random.choice([0, 0.05, 0.2])),
    )
    picture = noise(height, width, sorted(KINDS)[seed % 5], seed)
    everything = regions.regions(seen, style, width, height, extra)
    assert [rows.tolist() for rows in hiding._groups(everything, style)] == groups_one_by_one(
        everything, style
    )
    assert np.array_equal(
        hiding.hide(picture, seen, style, extra=extra),
        hidden_one_by_one(picture, seen, style, extra),
    )


@pytest.mark.parametrize("seed", range(20))
def test_eyes_of_a_crowd_are_hidden_as_if_each_was_compared_with_each_region(seed):
    seen, extra = crowd(seed, 300, 200)
    some = crowd(seed + 1000, 300, 200)[0]
    hidden = regions.regions(
        some, MaskStyle(region=1.0, shape="ellipse" if seed % 2 else "rectangle"), 300, 200, extra
    )
    bands = regions.eye_bands(seen).clip(0, [300, 200] * 2)
    exposed = set()
    for face, (x1, y1, x2, y2) in zip(seen.face.tolist(), bands, strict=True):
        window = math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)
        if window[0] < window[2] and window[1] < window[3]:
            share = regions.covered_pixels(hidden, window).mean()
            exposed |= {face} if share < regions.MIN_EYES_HIDDEN else set()
    count = int(seen.face.max()) + 1
    found = Detections(np.zeros((count, 4), np.float32), np.ones(count, np.float32), seen)
    expected = [face not in exposed for face in range(count)]
    assert regions.eyes_hidden(found, hidden, 300, 200).tolist() == expected


def tiles(columns, rows, side, gap):
    """Return boxes of one size beside each other, `gap` pixels apart."""
    x, y = np.meshgrid(np.arange(columns) * (side + gap), np.arange(rows) * (side + gap))
    return np.stack([x, y, x + side, y + side], axis=-1).reshape(-1, 4).astype(np.float32)


WALL = tiles(125, 80, 10, 0)  # 10,000 faces that touch
APART = tiles(60, 40, 10, 20)
SMALLER_WALL = tiles(50, 40, 10, 0)  # each is hidden twice by every method
FEWER_APART = tiles(36, 28, 10, 20)


@pytest.mark.parametrize("method", INDEPENDENT)
@pytest.mark.parametrize(
    ("some", "groups"),
    [(SMALLER_WALL, 1), (FEWER_APART, len(FEWER_APART))],
    ids=["a wall", "apart"],
)
@pytest.mark.parametrize("feather", [0.0, 0.2])
def test_nothing_of_thousands_of_faces_is_left(some, groups, method, feather):
    style = MaskStyle(method, 1.0, 0.0, feather=feather)
    width, height = some[:, 2:].max(axis=0).astype(int) + 20
    picture, other = noise(height, width, seed=1), noise(height, width, seed=2)
    mask = covered(picture, some, style)
    other[~mask] = picture[~mask]

    hidden = hide(picture, some, style)

    assert (
        len(hiding._groups(regions.regions(Sightings.of(some), style, width, height), style))
        == groups
    )
    assert np.array_equal(hidden, hide(other, some, style))
    assert mask.sum() == len(some) * 100


@pytest.mark.parametrize("some", [WALL, APART], ids=["a wall", "apart"])
def test_thousands_of_faces_are_hidden_and_checked_by_looking_at_the_regions_near_each(
    some, monkeypatch
):
    considered = []
    kept = regions.covered_pixels

    def counting(some, window):
        considered.append(len(some))
        return kept(some, window)

    for module in (hiding, regions):
        monkeypatch.setattr(module, "covered_pixels", counting)
    width, height = some[:, 2:].max(axis=0).astype(int) + 20
    style = MaskStyle("fill", feather=0.05)
    hide(np.zeros((height, width), np.uint8), some, style)
    assert sum(considered) <= 20 * len(some)

    considered.clear()
    hidden = regions.regions(Sightings.of(some), style, width, height)
    found = Detections(some, np.ones(len(some), np.float32))
    assert regions.eyes_hidden(found, hidden, width, height).all()
    assert sum(considered) <= 2 * len(some)


def test_ten_thousand_faces_are_grouped_without_a_table_of_all_pairs():
    everything = regions.regions(Sightings.of(WALL), MaskStyle(region=1.0), 1250, 800)
    tracemalloc.start()
    try:
        assert len(hiding._groups(everything, MaskStyle())) == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000


# --- parts with styles of their own


def parts(*described):
    """Return a part for each box and method."""
    return [
        Part(Sightings.of(box(*sides)), MaskStyle(method, 1.0, 0.0)) for sides, method in described
    ]


def test_each_part_is_hidden_in_its_style():
    picture = noise(80, 80, seed=3)
    hidden, _ = hiding.hide_and_mark(
        picture, parts(((5, 5, 25, 25), "fill"), ((45, 45, 65, 65), "pixelate"))
    )
    assert (hidden[5:25, 5:25] == 0).all()
    alone = hide(picture, box(45, 45, 65, 65), MaskStyle("pixelate", 1.0, 0.0))
    assert np.array_equal(hidden[45:65, 45:65], alone[45:65, 45:65])


@pytest.mark.parametrize("kept", ["blur", "pixelate"])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_where_parts_overlap_the_method_that_keeps_nothing_wins(kept, is_reversed):
    both = parts(((10, 10, 50, 50), kept), ((20, 20, 40, 40), "fill"))
    hidden, _ = hiding.hide_and_mark(noise(80, 80, seed=3), both[::-1] if is_reversed else both)
    assert (hidden[20:40, 20:40] == 0).all()
    assert hidden[10:20, 10:50].all()


def test_no_part_is_filled_from_the_pixels_of_another():
    picture = np.full((60, 60), 100, np.uint8)
    picture[20:40, 20:40] = 250
    both = parts(((20, 20, 30, 40), "surround"), ((30, 20, 40, 40), "surround"))
    assert (hiding.hide_and_mark(picture, both)[0][20:40, 20:40] == 100).all()


def test_further_areas_have_the_style_of_the_first_part():
    hidden, _ = hiding.hide_and_mark(
        np.full((60, 60), 100, np.uint8),
        parts(((0, 0, 5, 5), "fill"), ((50, 50, 55, 55), "surround")),
        extra=[(20, 20, 30, 30)],
    )
    assert (hidden[20:30, 20:30] == 0).all()
    assert (hidden[50:55, 50:55] == 100).all()
