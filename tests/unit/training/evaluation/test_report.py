"""The report of an evaluation, in the parts that others use."""

import pytest

pytest.importorskip("pycocotools", reason="pip install 'veil[worker,training]'")

from training.evaluation import report
from training.evaluation.report import threshold_lines
from training.run import CURVES, Recipe, Run, stated
from worker.detection.evaluation import drawbacks_of, evaluations

RESULT = {"threshold": 0.5, "exposed": 4, "faces": 69, "spill": 0.0019, "mAP": 0.7}
OWN = {"model": "run", "label": "FACE", "proposed_threshold": 0.5, **RESULT}
BUNDLED = {**OWN, "model": "bundled", "proposed_threshold": None, "threshold": 0.17, "exposed": 2}


def content(**changes):
    about = {"data": "d", "split": "val", "pictures": 9, "look": "at 256 px", "alarms": 0.1}
    results = {"proposed_threshold": 0.5, "chosen_on": "val", "models": [OWN, BUNDLED]}
    return {**about, **results, **changes}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "proposed threshold: 0.5"),
        (
            {"proposed_threshold": None},
            "no threshold proposed: none up to 0.99 finds a face with at most 0.1 false alarms "
            "a picture; measured at 0.5",
        ),
        ({"split": "test"}, "proposed threshold: 0.5, by the evaluation of the split val"),
        (
            {"split": "test", "chosen_on": "test"},
            "proposed threshold: 0.5; `veil train export` uses that of the split val only",
        ),
    ],
)
def test_the_line_says_where_the_threshold_comes_from_or_that_there_is_none(changes, line):
    assert threshold_lines(content(**changes)) == [line]


def test_lines_say_which_labels_have_a_threshold_and_where_it_is_not_that_of_the_figures():
    plates = {**OWN, "label": "plate", "proposed_threshold": 0.7}
    hats = {**OWN, "label": "hat", "proposed_threshold": None}

    assert threshold_lines(content(models=[OWN, BUNDLED, plates, hats])) == [
        "proposed threshold: 0.5, the lowest of FACE 0.5, plate 0.7",
        "no threshold proposed for hat: none up to 0.99 finds one with at most 0.1 false alarms "
        "a picture",
    ]
    assert threshold_lines(content(models=[plates], proposed_threshold=0.7)) == [
        "proposed threshold: 0.7; measured at 0.5, the lowest of all labels"
    ]


def test_an_exported_model_states_both_results():
    (evaluation,) = evaluations(stated(content()))

    assert (evaluation.own.exposed, evaluation.bundled.exposed, evaluation.faces) == (4, 2, 69)
    assert "mAP" not in stated(content())
    (alone,) = evaluations(stated(content(models=[OWN])))
    assert alone.bundled is None


def test_an_exported_model_states_the_comparison_of_each_label():
    models = [OWN, BUNDLED, {**OWN, "label": "plate"}, {**BUNDLED, "label": "plate", "exposed": 3}]

    faces, plates = evaluations(stated(content(models=models)))

    assert (faces.bundled.exposed, plates.bundled.exposed) == (2, 3)
    assert len(drawbacks_of(stated(content(models=models)))) == 2


def test_the_report_of_a_run_lists_its_labels_in_words(tmp_path):
    labels = "bare", "mask"
    recipe = Recipe("centerface", 128, 1, 1, 0.01, 3, False, "none", "float32", labels)
    run = Run.open(tmp_path / "run", recipe, "d" * 64)
    run.folder.mkdir(exist_ok=True)
    (run.folder / CURVES).touch()

    lines = report._training(run, tmp_path)

    assert "| classes | bare, mask |" in lines
    assert any(line.startswith("0 of 1 step of the recipe") for line in lines)
