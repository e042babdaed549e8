"""VEIL_MODELS, VEIL_PLATES and VEIL_RULES name models and rules, or are refused in one line."""

import json

import pytest

from tasks.errors import SettingsInvalid
from worker.detection import plates
from worker.model_settings import ModelAddress
from worker.settings import WorkerSettings, table

PIN = "a" * 64


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "veil.json").write_text(json.dumps({"labels": {"1": "plate"}}))
    monkeypatch.setattr(plates, "FOLDER", tmp_path)
    return tmp_path


def addresses(**values):
    return WorkerSettings.load(**values).model_addresses()


def test_one_model_is_named_as_before():
    assert addresses() == (ModelAddress(),)
    assert addresses(model="/a", model_sha256=PIN) == (ModelAddress("/a", PIN),)


def test_several_models_are_named_in_their_order():
    several = f"default, s3://models/a b#1.zip #sha256={PIN.upper()}, /b"
    assert addresses(models=several) == (
        ModelAddress(),
        ModelAddress("s3://models/a b#1.zip", PIN),
        ModelAddress("/b"),
    )


def test_the_plate_detector_runs_beside_the_other_models(package):
    bundled = ModelAddress(str(package))
    assert addresses(plates=True) == (ModelAddress(), bundled)
    assert addresses(plates=True, model="/a") == (ModelAddress("/a"), bundled)
    assert addresses(plates=True, models="/a,plates") == (ModelAddress("/a"), bundled)
    assert addresses(models="plates") == (bundled,)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"models": "/a,/a"}, "VEIL_MODELS: a model is named twice"),
        ({"models": "/a", "model": "/b"}, "put both into VEIL_MODELS"),
        ({"models": "/a#sha256=12"}, "64 hexadecimal digits"),
        ({"models": f"default#sha256={PIN}"}, "needs no #sha256="),
        ({"models": f"#sha256={PIN}"}, "names no model"),
        ({"rules": "plate"}, "VEIL_RULES: 'plate' is no rule"),
        ({"rules": "plate: colour=red"}, "VEIL_RULES: plate: colour: unknown, choose from method"),
        ({"rules": "plate: region=0.2"}, "VEIL_RULES: plate: region: must be top, full"),
        ({"rules": "plate: hold ignore"}, "plate: hold and ignore contradict each other"),
        ({"rules": "plate: threshold=2"}, "VEIL_RULES: plate: threshold: "),
        ({"rules": "plate: scales=5"}, "VEIL_RULES: plate: scales: give one or more sides from 64"),
        ({"rules": "plate: preset=quick"}, "VEIL_RULES: plate: preset: "),
        ({"rules": "plate: hold=maybe"}, "VEIL_RULES: plate: hold: "),
    ],
)
def test_wrong_values_are_refused_in_a_line(values, reason):
    with pytest.raises(SettingsInvalid) as refused:
        WorkerSettings.load(**values)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_plates_without_their_detector_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plates, "FOLDER", tmp_path / "none")
    for values in ({"plates": True}, {"models": "default,plates"}):
        with pytest.raises(
            SettingsInvalid, match="this installation of Veil has no plate detector"
        ):
            WorkerSettings.load(**values)


def test_rules_come_from_the_environment_and_from_python(monkeypatch):
    monkeypatch.setenv("VEIL_RULES", "face: region=full; *: scales=512,256 ignore")
    rules = WorkerSettings.load().rules
    assert (rules["FACE"].region, rules["*"].scales, rules["*"].ignore) == (1.0, (256, 512), True)
    same = {"FACE": {"region": "full"}, "*": {"scales": [256, 512], "ignore": True}}
    assert WorkerSettings.load(rules=same).rules == rules


def test_the_table_has_no_default_rules():
    assert {variable: default for variable, default, _ in table()}["VEIL_RULES"] == ""
