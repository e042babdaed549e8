"""The order in which the desk shows pictures."""

import pytest

from worker.desk.items import Item, after


def item(name, time=0.0, state="held", number=None):
    return Item(name, state, f"s3://raw/{name}", None, None, "e", "", time, number=number)


A, B, C = item("a", 1.0), item("b", 2.0), item("c", 2.0)
LOW = item("0", 0.5, "low score")
ALL = [A, B, C, LOW]


def names(items, shown, step=1):
    return "".join(found.id for found in after(items, shown, step))


@pytest.mark.parametrize(
    ("shown", "forward", "backward"),
    [(None, "abc0", "0cba"), (A, "bc0", "0cb"), (B, "c0a", "a0c"), (LOW, "abc", "cba")],
)
def test_the_next_picture_is_the_one_after_the_shown_one_in_a_ring(shown, forward, backward):
    assert names(ALL, shown) == forward
    assert names(ALL, shown, -1) == backward


@pytest.mark.parametrize(
    ("decided", "forward", "backward"), [(A, "bc0", "0cb"), (B, "c0a", "a0c"), (LOW, "abc", "cba")]
)
def test_the_desk_goes_on_at_the_place_of_a_picture_that_has_left_the_list(
    decided, forward, backward
):
    left = [found for found in ALL if found is not decided]
    assert names(left, decided) == forward
    assert names(left, decided, -1) == backward


def test_several_decided_pictures_and_a_filter_do_not_lead_back_to_the_start():
    assert names([A, LOW], C) == "0a"
    assert names([LOW], A) == "0"
    assert names([], A) == ""


def test_pictures_of_a_sample_come_as_they_were_drawn():
    drawn = [item(name, state="sample", number=number) for number, name in enumerate("zyx")]
    assert names(drawn, drawn[0]) == "yx"
    assert names(drawn, drawn[0], -1) == "xy"
    assert names(drawn, A) == "zyx"  # from the list to a sample
