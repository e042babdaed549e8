"""The order in which the desk shows pictures."""

import pytest

from worker.desk.items import Item, after, merged


def item(name, time=0.0, state="held", number=None, output=None, reason=""):
    source = f"s3://raw/{name}"
    return Item(name, state, source, output, None, "e", reason, time, number=number)


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


def test_a_flagged_picture_with_a_low_score_is_one_picture_with_both_reasons():
    held = item("held", 1.0, "held", output="s3://clean/held", reason="no face found")
    flagged = item("flagged", 2.0, "flagged", output="s3://clean/flagged", reason="faces left")
    same = item("same", 0.0, "low score", output="s3://clean/flagged", reason="lowest score 0.20")
    late = item("late", 9.0, "low score", output="s3://clean/late")
    older = item("older", 3.0, "low score", output="s3://clean/held")

    found = merged([held, flagged], [late, same, older])

    assert [one.id for one in found] == ["held", "flagged", "older", "late"]
    assert found[1].reason == "faces left; lowest score 0.20"
    assert found[1].version == flagged.version
    assert found[0] == held
