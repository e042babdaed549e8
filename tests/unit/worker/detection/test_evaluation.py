"""The evaluation that an exported model states about itself."""

import json

import pytest

from worker.detection.evaluation import Evaluation, stated_evaluation

BUNDLED = {"threshold": 0.17, "exposed": 2, "faces": 69, "spill": 0.0104}


def stated(exposed, spill, bundled=BUNDLED):
    return {
        "threshold": 0.55,
        "faces": 69,
        "exposed": exposed,
        "spill": spill,
        "bundled": bundled,
    }


@pytest.mark.parametrize(
    ("exposed", "spill", "drawbacks"),
    [
        (2, 0.0104, []),
        (0, 0.0, []),
        (4, 0.0019, ["4 of 69 faces stay exposed, 2 with the bundled detector"]),
        (
            1,
            0.25,
            ["25.00% of the pixels away from faces are hidden, 1.04% with the bundled detector"],
        ),
    ],
)
def test_drawbacks_are_where_the_bundled_detector_is_better(exposed, spill, drawbacks):
    assert Evaluation.parse(stated(exposed, spill)).drawbacks() == drawbacks


def test_both_drawbacks_are_stated():
    assert len(Evaluation.parse(stated(9, 0.9)).drawbacks()) == 2


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", json.dumps({"evaluation": "good"}), '{"evaluation": {"bundled": 3}}',
     json.dumps({"evaluation": stated(4, 0.5, bundled=None)})],
)  # fmt: skip
def test_a_model_without_a_comparison_has_no_evaluation(content, tmp_path):
    assert stated_evaluation(tmp_path) is None
    (tmp_path / "veil.json").write_text(content)

    assert stated_evaluation(tmp_path) is None


def test_the_evaluation_is_in_veil_json(tmp_path):
    (tmp_path / "veil.json").write_text(json.dumps({"evaluation": stated(4, 0.0019)}))

    evaluation = stated_evaluation(tmp_path)

    assert (evaluation.own.exposed, evaluation.bundled.exposed) == (4, 2)
    assert evaluation.threshold == 0.55
