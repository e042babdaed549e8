"""A model that is worse than the bundled detector, damaged, or no model at all."""

import json
import re
from types import SimpleNamespace

import pytest

from tasks.errors import ModelInvalid
from worker import models
from worker.detection.centerface import known_face
from worker.settings import WorkerSettings


@pytest.mark.parametrize(("exposed", "warnings"), [(4, 1), (2, 0)])
@pytest.mark.parametrize("setting", ["VEIL_MODEL", "VEIL_MODELS"])
def test_a_model_that_was_evaluated_as_worse_is_loaded_with_a_warning(
    exposed, warnings, setting, tmp_path, monkeypatch, capsys
):
    result = {"threshold": 0.5, "faces": 69, "exposed": exposed, "spill": 0.01}
    evaluation = {**result, "bundled": {**result, "exposed": 2}}
    (tmp_path / "veil.json").write_text(json.dumps({"evaluation": evaluation}))
    model = SimpleNamespace(folder=tmp_path, name="own", score_threshold=0.5)
    monkeypatch.setattr(models, "load_untested_model", lambda settings: model)
    monkeypatch.setattr(known_face, "try_own", lambda *_: None)

    monkeypatch.setenv(setting, str(tmp_path))
    (loaded,) = models.load_models(WorkerSettings.load())
    assert loaded.model is model

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == warnings
    for line in lines:
        assert "the model did badly in its own evaluation" in line
        assert re.search(rf"take it out of {setting}\b", line)
        assert "4 of 69 faces stay exposed, 2 with the bundled detector" in line


@pytest.mark.parametrize("engine", ["litert", "auto", "tensorflow"])
def test_a_folder_with_a_network_in_8_bits_alone_is_judged_by_it(engine, tmp_path):
    """LiteRT runs such a folder on every machine, so it needs no graph; this network is damaged."""
    pytest.importorskip("ai_edge_litert", reason="pip install 'veil[worker]'")
    (tmp_path / "network.tflite").write_bytes(b"network")

    with pytest.raises(ModelInvalid, match=r"^network\.tflite of .* fails on a black picture"):
        models.load_folder(WorkerSettings(engine=engine), tmp_path)


def test_a_training_run_is_no_model(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelInvalid, match="is a training run: give what `veil train"):
        models.load_folder(WorkerSettings(), tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("VEIL_MODEL", "gone", "gone does not exist: give the folder of a SavedModel"),
        ("VEIL_MODELS", "gone.zip", "gone.zip does not exist: give the folder of a SavedModel"),
        ("VEIL_MODELS", "defualt", "defualt does not exist: did you mean default, a name for"),
        ("VEIL_MODELS", "Plate", "Plate does not exist: did you mean plates, a name for"),
        ("VEIL_MODEL", "default", "default does not exist: as a name it is for VEIL_MODELS"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_its_setting(setting, value, said, monkeypatch):
    monkeypatch.setenv(setting, value)

    with pytest.raises(ModelInvalid) as refused:
        models.load_models(WorkerSettings.load())

    assert str(refused.value).startswith(f"{setting}: {said}")
