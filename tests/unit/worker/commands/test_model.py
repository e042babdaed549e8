"""``veil model info`` on a model that states its evaluation."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tasks.errors import ModelInvalid
from worker import models
from worker.commands.model import app
from worker.settings import WorkerSettings


@pytest.fixture
def model(tmp_path, monkeypatch):
    result = {"threshold": 0.5, "faces": 69, "exposed": 4, "spill": 0.0019}
    evaluation = {**result, "bundled": {**result, "exposed": 2, "spill": 0.0104}}
    (tmp_path / "veil.json").write_text(json.dumps({"evaluation": evaluation}))

    def load_model(settings, named_in):
        return SimpleNamespace(
            folder=Path(tmp_path),
            name=settings.model or "default",
            engine="tensorflow",
            digest=("d" if settings.model else "e") * 64,
            score_threshold=0.5,
            fixed_size=None,
            device="CPU",
        )

    monkeypatch.setattr(models, "load_model", load_model)
    monkeypatch.setenv("VEIL_MODEL", str(tmp_path))


def info(*flags):
    done = CliRunner().invoke(app, ["info", *flags], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_info_compares_the_model_with_the_bundled_detector(model):
    assert (
        "evaluation: 4 of 69 faces exposed and 0.19% of other pixels hidden at 0.5; with the "
        "bundled detector 2 of 69 faces exposed and 1.04% of other pixels hidden"
    ) in info().splitlines()
    (evaluation,) = json.loads(info("--json"))["evaluation"]
    assert evaluation["bundled"] == {"exposed": 2, "spill": 0.0104}


def test_info_has_the_evaluation_of_each_label_of_each_of_several_models(
    model, tmp_path, monkeypatch
):
    result = {"threshold": 0.4, "faces": 67, "exposed": 62, "spill": 0.01}
    evaluation = {**result, "bundled": None, "labels": {"plate": result}}
    stated = {"labels": {"1": "plate"}, "evaluation": evaluation}
    (tmp_path / "veil.json").write_text(json.dumps(stated))
    monkeypatch.delenv("VEIL_MODEL")
    monkeypatch.setenv("VEIL_MODELS", f"default,{tmp_path}")

    assert [line for line in info().splitlines() if line.startswith("evaluation")] == [
        "evaluation: 62 of 67 objects of the label plate exposed and 1.00% of other pixels hidden "
        "at 0.4"
    ]
    default, own = json.loads(info("--json"))["models"]
    assert "evaluation" not in default
    assert [label["label"] for label in default["labels"]] == ["FACE"]
    assert own["evaluation"][0]["label"] == "plate"


def test_a_model_in_a_folder_and_in_its_zip_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.delenv("VEIL_MODEL")
    monkeypatch.setenv("VEIL_MODELS", f"{tmp_path},{tmp_path}.zip")
    with pytest.raises(ModelInvalid, match=r"VEIL_MODELS: .*\.zip is the same model as .*: leave"):
        models.load_models(WorkerSettings.load())


def test_info_is_in_words(model, tmp_path, monkeypatch):
    (tmp_path / "veil.json").write_text(json.dumps({"labels": {"1": "plate"}}))
    monkeypatch.setenv("VEIL_RULES", "plate: hold")

    assert "fixed_size: none, it takes any size" in info().splitlines()
    (label,) = (line for line in info().splitlines() if line.startswith("label plate"))
    assert "hold yes, ignore no" in label
    assert json.loads(info("--json"))["fixed_size"] is None


def test_info_warns_if_faces_are_not_searched_for(model, tmp_path):
    def info():
        return CliRunner().invoke(app, ["info"], catch_exceptions=False).stderr

    assert "faces are not searched for" not in info()

    (tmp_path / "veil.json").write_text(json.dumps({"labels": {"1": "plate"}}))

    assert info().count("faces are not searched for") == 1


def test_info_has_no_evaluation_of_the_default_model(model, monkeypatch):
    monkeypatch.delenv("VEIL_MODEL")

    assert "evaluation" not in json.loads(info("--json"))
