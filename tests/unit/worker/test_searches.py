"""Models, rules and labels become searches, and the recipe of faces alone stays as it was."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.errors import SettingsInvalid
from tasks.messages import FACE, Rule
from worker import anonymizer, bootstrap, searches
from worker.detection import plates
from worker.detection.centerface.default import DIGEST_IN_8_BITS, SCORE_THRESHOLD
from worker.detection.labelled import LabelledDetector
from worker.detection.presets import PRESETS
from worker.detection.tiled import ANY_SIZE
from worker.masking.regions import MaskStyle
from worker.searches import LoadedModel
from worker.settings import WorkerSettings
from worker.treatments import Treatments

PIN = "a" * 64


def loaded(settings, classes=None, threshold=0.4, digest="d" * 64):
    model = SimpleNamespace(name="own.zip", score_threshold=threshold, digest=digest)
    return LoadedModel(model, classes or {}, settings)


def planned(settings, *classes):
    """Return the searches of models with these `classes`, and the models."""
    each = searches.settings_of_models(settings)
    models = [loaded(one, known) for one, known in zip(each, classes, strict=True)]
    labels = searches.labels_to_hide(settings, models)
    return searches.searches_of(settings, models, [ANY_SIZE] * len(models), labels), models


def recipe(settings, found, models):
    labels = tuple(dict.fromkeys(search.label for search in found))
    rules = searches.rules_of_treatment(settings)
    treatments = Treatments(bootstrap.mask_style(settings), labels, rules)
    detector = LabelledDetector(found, [], 0, lambda *_: None)
    return bootstrap._recipe(settings, models, detector, treatments)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A plate detector that comes with Veil."""
    (tmp_path / "veil.json").write_text(json.dumps({"labels": {"1": "plate"}}))
    monkeypatch.setattr(plates, "FOLDER", tmp_path)
    return tmp_path


def test_the_recipe_of_the_default_configuration_is_that_of_earlier_versions(monkeypatch):
    """The figure was printed by a version that knew faces alone, with this version of pixels."""
    monkeypatch.setattr(anonymizer, "PIXELS_VERSION", 10)
    settings = WorkerSettings()
    model = loaded(settings, threshold=0.17, digest=PINNED_DIGEST)
    found = searches.searches_of(settings, [model], [ANY_SIZE], [FACE])
    assert recipe(settings, found, [model]) == "c5234e97c5cd0d94"


PINNED_DIGEST = "8a48f4c0bbb20fffa7d55b232cab72fa1e55aae9994d0a74c1c56c69e16ef0e0"


def test_a_rule_for_faces_has_the_recipe_of_the_setting():
    classes = [{}]
    by_rule = WorkerSettings(rules="FACE: region=full method=fill threshold=0.3")
    by_settings = WorkerSettings(region="full", method="fill", score_threshold=0.3)
    assert recipe(by_rule, *planned(by_rule, *classes)) == recipe(
        by_settings, *planned(by_settings, *classes)
    )


@pytest.mark.parametrize(
    "rules",
    [
        "plate: method=fill",
        "plate: margin=0.2",
        "plate: smallest=12",
        "plate: threshold=0.2",
        "plate: preset=fast",
        "plate: ignore",
        "FACE: smallest=12",
        "FACE: ignore",
    ],
)
def test_whatever_a_rule_decides_changes_the_recipe(rules, package):
    plain, ruled = WorkerSettings(plates=True), WorkerSettings(plates=True, rules=rules)
    classes = {}, {1: "plate"}
    assert recipe(plain, *planned(plain, *classes)) != recipe(ruled, *planned(ruled, *classes))


def test_to_hold_a_picture_changes_no_pixel_and_no_recipe(package):
    plain, ruled = WorkerSettings(plates=True), WorkerSettings(plates=True, rules="plate: hold")
    classes = {}, {1: "plate"}
    assert recipe(plain, *planned(plain, *classes)) == recipe(ruled, *planned(ruled, *classes))


def test_the_preset_of_a_rule_replaces_no_other_setting_of_passes_than_scales():
    stated = {"turned": "always", "smallest_face": 12, "scales": (100, 200)}
    settings = WorkerSettings(**stated, rules="FACE: preset=fast")
    passes = searches.passes_of(settings, FACE)
    assert (passes.turned, passes.smallest_face) == ("always", 12)
    assert passes.scales == PRESETS["fast"].scales


def test_plates_have_the_passes_of_the_preset_but_no_turned_ones(package):
    settings = WorkerSettings(plates=True, preset="thorough")
    (faces, found), _ = planned(settings, {}, {1: "plate"})
    assert faces.settings == PRESETS["thorough"]
    assert (found.label, found.model, found.settings.turned) == ("plate", 1, "never")
    assert found.settings.scales == PRESETS["thorough"].scales
    (_, found), _ = planned(WorkerSettings(plates=True, turned="always"), {}, {1: "plate"})
    assert found.settings.turned == "always"


def test_a_rule_decides_threshold_and_passes(package):
    rules = "plate: threshold=0.2 preset=fast scales=512; FACE: turned=never"
    settings = WorkerSettings(plates=True, rules=rules, score_threshold=0.6)
    (faces, found), _ = planned(settings, {}, {1: "plate"})
    assert (faces.score_threshold, faces.settings.turned) == (0.6, "never")
    assert (found.score_threshold, found.settings.scales) == (0.2, (512,))
    assert found.settings.smallest_face == PRESETS["fast"].smallest_face


def test_the_threshold_of_the_settings_is_that_of_the_first_model(package):
    settings = WorkerSettings(plates=True, score_threshold=0.6)
    (faces, found), _ = planned(settings, {}, {1: "plate"})
    assert (faces.score_threshold, found.score_threshold) == (0.6, 0.4)


def test_classes_of_one_label_are_one_search():
    settings = WorkerSettings(model="any")
    found, _ = planned(settings, {1: "plate", 2: FACE, 3: "plate"})
    assert [search.label for search in found] == ["plate", FACE]


def test_a_rule_of_an_unknown_label_is_refused_and_so_are_rules_that_leave_nothing():
    with pytest.raises(SettingsInvalid, match="no model finds plat: choose from FACE"):
        planned(WorkerSettings(rules="plat: hold"), {})
    with pytest.raises(SettingsInvalid, match="ignores every label: FACE"):
        planned(WorkerSettings(rules="FACE: ignore"), {})


def test_all_searches_fit_into_the_time_of_a_picture(package):
    settings = WorkerSettings(plates=True, preset="thorough", verify="hold")
    found, _ = planned(settings, {}, {1: "plate"})
    seconds = searches.seconds_of(settings, found)
    assert 2 * 3 * seconds <= settings.anonymizer_seconds()
    alone, _ = planned(WorkerSettings(), {})
    assert searches.seconds_of(WorkerSettings(), alone) == 10 * PRESETS["balanced"].passes


def test_the_lowest_threshold_is_that_of_the_most_careful_label(tmp_path):
    (tmp_path / "veil.json").write_text(
        json.dumps({"score_threshold": 0.5, "labels": {"1": "face", "2": "plate"}})
    )
    lowest = searches.lowest_threshold
    assert lowest(WorkerSettings(model="any"), tmp_path, "any") == 0.5
    ruled = WorkerSettings(model="any", rules="plate: threshold=0.2")
    assert lowest(ruled, tmp_path, "any") == 0.2
    assert lowest(WorkerSettings(), Path("/none"), "any") == 0.5


def test_the_rules_of_a_treatment_say_nothing_of_searches():
    settings = WorkerSettings(rules="plate: threshold=0.2 hold; *: scales=256 ignore")
    assert searches.rules_of_treatment(settings) == {
        "plate": Rule(hold=True),
        "*": Rule(ignore=True),
    }


def test_the_default_model_has_one_label():
    assert loaded(WorkerSettings()).labels == (FACE,)
    assert SCORE_THRESHOLD == 0.17
    assert len(DIGEST_IN_8_BITS) == 64
    assert bootstrap.mask_style(WorkerSettings()) == MaskStyle(feather=0.05)


@pytest.mark.parametrize(
    ("rules", "first", "second"),
    [
        ("", "raise VEIL_SCORE_THRESHOLD", 'set VEIL_RULES="plate: threshold=…" above 0.4'),
        (
            "*: threshold=0.2; FACE: threshold=0.3",
            'set VEIL_RULES="FACE: threshold=…" above 0.3',
            'set VEIL_RULES="plate: threshold=…" above 0.2',
        ),
    ],
)
def test_a_picture_with_too_many_objects_is_refused_with_the_setting_that_helps(
    rules, first, second
):
    (faces, plate), _ = planned(
        WorkerSettings(models="default,own.zip", rules=rules), {}, {1: "plate"}
    )

    for error in (
        plate.too_many.in_many_parts(),
        plate.too_many.in_a_small_part(100, "24 x 24"),
    ):
        assert str(error).startswith("the model own.zip return")
        assert "objects of the label plate" in str(error)
        assert f": {second}, or export" in str(error)
    assert f": {first}, or export" in str(faces.too_many.in_many_parts())
