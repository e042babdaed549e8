"""Exposed faces by group: intervals of rates, odds ratios within strata, rows of the table."""

import math

import pytest

from tools.benchmarks.groups import LEAST_SIDE, Face, rows
from tools.benchmarks.harness.rates import Rate, Stratum, mantel_haenszel


@pytest.mark.parametrize(
    ("hits", "cases", "low", "high"),
    # The interval of 0 of n ends at z² / (n + z²), and that of n of n is its mirror image.
    [(0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (10, 20, 0.2993, 0.7007), (0, 0, 0.0, 1.0)],
)
def test_a_rate_has_the_interval_of_wilson(hits, cases, low, high):
    assert Rate(hits, cases).interval == pytest.approx((low, high), abs=1e-4)


def test_the_ratio_of_one_stratum_is_that_of_its_table_with_woolfs_interval():
    found = mantel_haenszel([Stratum(Rate(10, 100), Rate(5, 200))])

    ratio = (10 * 195) / (90 * 5)
    deviation = math.sqrt(1 / 10 + 1 / 90 + 1 / 5 + 1 / 195)
    assert found.value == pytest.approx(ratio)
    assert math.log(found.high / ratio) / 1.959964 == pytest.approx(deviation, rel=1e-3)
    assert found.low * found.high == pytest.approx(ratio**2)


def test_strata_take_out_what_explains_a_difference():
    # Half of the faces of either kind is exposed among the small ones, and a tenth among the large.
    strata = [Stratum(Rate(50, 100), Rate(5, 10)), Stratum(Rate(1, 10), Rate(10, 100))]

    assert mantel_haenszel(strata).value == pytest.approx(1)
    together = mantel_haenszel([Stratum(Rate(51, 110), Rate(15, 110))])
    assert together.low > 1.5


@pytest.mark.parametrize(
    "strata", [[], [Stratum(Rate(0, 10), Rate(2, 10))], [Stratum(Rate(3, 10), Rate(0, 0))]]
)
def test_a_ratio_without_cases_on_both_sides_is_not_stated(strata):
    assert mantel_haenszel(strata) is None


def test_the_rows_are_all_faces_then_sizes_states_and_people():
    faces = [
        Face(7.0, True, {"blur": 2, "skin": "Not Sure"}),
        Face(20.0, True, {"blur": 2, "occlusion": 0, "skin": "dark"}),
        Face(20.0, False, {"blur": 2, "occlusion": 0, "skin": "dark"}),
        Face(21.0, True, {"blur": 2, "occlusion": 0, "skin": "light"}),
        Face(21.0, False, {"blur": 2, "occlusion": 0, "skin": "light"}),
        Face(200.0, False, {"blur": 0, "occlusion": 2, "skin": "light"}),
    ]
    assert faces[0].side < LEAST_SIDE

    found = {(row.attribute, row.value): row for row in rows(faces)}

    assert found["all", ""].rate == Rate(3, 6)
    assert [value for attribute, value in found if attribute == "size"] == [
        "0-8 px",
        "16-32 px",
        "128 px and more",
    ]
    assert [value for attribute, value in found if attribute == "blur"] == ["clear", "heavy"]
    assert found["skin", "dark"].rate == Rate(1, 2)
    assert found["skin", "dark"].odds.value == pytest.approx(1)
    assert ("skin", "Not Sure") not in found
    assert found["size", "0-8 px"].summary()["exposed_rate"] == 1.0
