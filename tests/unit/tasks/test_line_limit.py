"""The limit on log lines: ten are written, the others are counted once a minute."""

from tasks.line_limit import COUNT_SECONDS, MAX_LINES, LineLimit


def test_ten_lines_are_written_and_the_others_counted_once_a_minute():
    now = 100.0
    limit = LineLimit(lambda: now)
    assert sum(limit.allows() for _ in range(25)) == MAX_LINES
    assert limit.take_left_out() == 15
    assert not any(limit.allows() for _ in range(7))
    assert limit.take_left_out() == 0
    now += COUNT_SECONDS - 1
    assert not limit.allows()
    assert limit.take_left_out() == 0
    now += 1
    assert limit.take_left_out() == 8
    assert limit.take_left_out() == 0


def test_after_a_minute_without_a_line_ten_are_written_again():
    now = 100.0
    limit = LineLimit(lambda: now)
    for _ in range(MAX_LINES + 1):
        limit.allows()
    now += COUNT_SECONDS - 1
    assert not limit.allows()
    now += COUNT_SECONDS
    assert sum(limit.allows() for _ in range(25)) == MAX_LINES
    assert limit.take_left_out() == 17
