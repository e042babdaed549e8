"""The evaluation that an exported model states about itself."""

import json

import pytest

from worker.detection.evaluation import drawbacks_of, evaluations, stated_evaluations

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
    assert drawbacks_of(stated(exposed, spill)) == drawbacks


def test_both_drawbacks_are_stated():
    assert len(drawbacks_of(stated(9, 0.9))) == 2


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", json.dumps({"evaluation": "good"}), '{"evaluation": {"bundled": 3}}',
     '{"evaluation": {"bundled": null, "labels": ["plate"]}}'],
)  # fmt: skip
def test_a_model_may_state_no_evaluation(content, tmp_path):
    assert stated_evaluations(tmp_path) == ()
    (tmp_path / "veil.json").write_text(content)

    assert stated_evaluations(tmp_path) == ()


@pytest.mark.parametrize(
    ("label", "exposed", "said"),
    [
        ("plate", 62, "62 of 69 objects of the label plate stay exposed, 10% or more"),
        ("FACE", 7, "7 of 69 faces stay exposed, 10% or more"),
        ("plate", 6, None),
        ("plate", 0, None),
    ],
)
def test_without_a_detector_to_compare_with_the_share_of_exposed_objects_counts(
    label, exposed, said
):
    """Exports of earlier versions compared the label FACE alone."""
    result = {key: value for key, value in stated(exposed, 0.5).items() if key != "bundled"}

    found = drawbacks_of({**result, "bundled": None, "labels": {label: result}})

    assert found == ([said] if said else [])


def test_each_label_has_its_own_comparison():
    labels = {"FACE": stated(0, 0.0), "plate": stated(9, 0.02, bundled=BUNDLED)}

    faces, plates = evaluations({**stated(0, 0.0), "labels": labels})

    assert faces.drawbacks() == []
    assert plates.drawbacks() == [
        "9 of 69 objects of the label plate stay exposed, 2 with the bundled detector",
        "2.00% of the pixels away from objects of the label plate are hidden, 1.04% with the "
        "bundled detector",
    ]


def test_the_evaluation_is_in_veil_json(tmp_path):
    (tmp_path / "veil.json").write_text(json.dumps({"evaluation": stated(4, 0.0019)}))

    (evaluation,) = stated_evaluations(tmp_path)

    assert (evaluation.own.exposed, evaluation.bundled.exposed) == (4, 2)
    assert evaluation.threshold == 0.55
