"""Numbers of objects by label, as texts for people."""

import pytest

from tasks.messages import FACE
from worker.object_counts import counted_objects


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], "0 faces"),
        ([FACE], "1 face"),
        (["plate", "document", "plate"], "0 faces, 1 document, 2 plates"),
        ([FACE] * 1200, "1,200 faces"),
    ],
)
def test_faces_come_first_and_labels_that_were_not_found_are_left_out(labels, text):
    assert counted_objects(labels) == text
