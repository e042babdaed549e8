"""Commands that wait: what they print about a picture, and their summary."""

import json

import pytest

from worker.commands.waiting import WITHOUT_RESULT, Endings, _print

REPORT = {"task_id": "t", "status": "anonymized", "source": "s3://raw/a\n.jpg", "faces": 1}
REVIEWED = {"status": "held", "reason": "no face found"}
WARNED = {"warning": "older receipts stay"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        (WARNED, "anonymized, older receipts stay\n"),
        (REVIEWED, "held, no face found\n"),
        (
            {**REVIEWED, **WARNED},
            "held, no face found; older receipts stay\n",
        ),
    ],
)
def test_a_remark_is_a_line_for_people_on_standard_error(capsys, fields, expected):
    _print({**REPORT, **fields}, REPORT["source"], as_json=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (rf"s3://raw/a\n.jpg: {expected}" if expected else "")


def test_with_json_the_report_is_one_object(capsys):
    line = {**REPORT, **WARNED}
    _print(line, line["source"], as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == line
    assert printed.err == ""


@pytest.mark.parametrize(("fields", "are_good"), [({}, True), (WARNED, False)])
def test_a_held_picture_with_an_older_output_is_not_a_good_ending(fields, are_good):
    endings = Endings({WITHOUT_RESULT: 1})
    endings.add("held", {**REVIEWED, **fields})
    assert endings.are_good is are_good
    assert str(endings) == "1 held (veil review list)"


@pytest.mark.parametrize(
    ("counts", "expected", "are_good"),
    [
        ({}, "none has ended", True),
        ({"anonymized": 1200, "skipped": 3}, "1,200 anonymized, 3 skipped", True),
        ({"held": 2, "anonymized": 1}, "1 anonymized, 2 held (veil review list)", True),
        ({"dead": 1}, "1 dead (veil dead list)", False),
        ({"anonymized": 1, WITHOUT_RESULT: 4}, "1 anonymized, 4 without a result", False),
    ],
)
def test_the_summary_counts_each_outcome_and_names_the_next_step(counts, expected, are_good):
    endings = Endings(counts)
    assert str(endings) == expected
    assert endings.are_good is are_good
