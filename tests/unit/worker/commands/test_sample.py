"""``veil sample --training`` says which pictures may show objects that it can't label."""

import pytest

from tasks.records.samples import Mark, Sample, SampledPicture
from worker.commands.sample import _with_visible
from worker.sampling.acceptance import accept
from worker.settings import WorkerSettings


@pytest.mark.parametrize(
    ("options", "rules", "count"),
    [
        ({}, "", 0),
        ({"extra": [[0, 0, 9, 9]]}, "plate: ignore", 0),
        ({"rules": {"plate": {"ignore": True}}}, "", 1),
        ({"rules": {"plate": {"smallest": 40}}}, "", 1),
        ({"exempt": [[0, 0, 9, 9]]}, "", 1),
        ({}, "FACE: smallest=40", 1),
    ],
)
def test_pictures_in_which_a_request_left_objects_visible_are_counted(options, rules, count):
    picture = SampledPicture("s3://clean/a.jpg", "e", "s3://raw -> s3://clean", options=options)
    sample = Sample("name", ["s3://clean"], 0, 1, 0.0, [picture])
    result = accept(sample, {0: Mark([[1, 2, 30, 40]])})

    assert _with_visible(WorkerSettings(rules=rules), result) == count
