"""``veil enqueue --wait``: what it prints about a picture."""

import json

import pytest

from worker.commands.enqueue import _print

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
    _print({**REPORT, **fields}, as_json=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (rf"s3://raw/a\n.jpg: {expected}" if expected else "")


def test_with_json_the_report_is_one_object(capsys):
    line = {**REPORT, **WARNED}
    _print(line, as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == line
    assert printed.err == ""
