"""The rate of the work that is being done, from the times at which pictures ended."""

import pytest

from tasks.records.outcomes import MIN_RATE_SECONDS, RATE_SECONDS, RECENT_KEPT, recent_rate

NOW = 1_800_000_000.0


def ended(*seconds_ago):
    return [NOW - seconds for seconds in seconds_ago]


def test_the_first_eight_seconds_of_work_have_their_own_rate():
    times = ended(*range(9))  # one picture a second, since eight seconds
    assert recent_rate(times, NOW) == pytest.approx(1.0)


@pytest.mark.parametrize("times", [[], ended(0), ended(120), ended(RATE_SECONDS + 1)])
def test_a_rate_needs_two_pictures_of_the_last_minutes(times):
    assert recent_rate(times, NOW) == 0


def test_pictures_that_ended_together_are_not_a_huge_rate():
    assert recent_rate(ended(0.01, 0.01, 0.01, 0.0), NOW) == pytest.approx(3 / MIN_RATE_SECONDS)


def test_work_before_a_pause_does_not_slow_down_the_present_work():
    times = ended(*range(5), *range(200, 210))
    assert recent_rate(times, NOW) == pytest.approx(1.0)


def test_pictures_that_take_longer_than_a_pause_have_a_rate():
    assert recent_rate(ended(10, 100, 190, 280), NOW) == pytest.approx(1 / 100)


def test_the_rate_falls_once_nothing_ends_any_more_and_is_unknown_after_a_pause():
    times = ended(*range(20, 30))
    assert recent_rate(times, NOW) == pytest.approx(9 / 29)
    assert recent_rate(times, NOW + 20) == 0
    slow = ended(20, 70)
    assert recent_rate(slow, NOW + 60) == pytest.approx(1 / 130)
    assert recent_rate(slow, NOW + 90) == 0


def test_idle_workers_have_the_rate_of_their_last_work_until_it_is_over():
    times = ended(*range(20, 30))
    assert recent_rate(times, NOW, is_idle=True) == pytest.approx(1.0)
    assert recent_rate(times, NOW + 20, is_idle=True) == 0


def test_a_fast_fleet_has_the_rate_of_the_times_that_are_kept():
    times = [NOW - number / 400 for number in range(RECENT_KEPT)]
    assert recent_rate(times, NOW) == pytest.approx(400, rel=0.01)


def test_the_order_of_the_times_does_not_matter():
    """Workers push their times as they come, and their clocks differ."""
    assert recent_rate(ended(2, 0, 1, -0.5), NOW) == recent_rate(ended(-0.5, 0, 1, 2), NOW)
