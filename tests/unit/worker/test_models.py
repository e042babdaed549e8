"""A model that is worse than the bundled detector, damaged, or no model at all."""

import json
from types import SimpleNamespace

import pytest

from tasks.errors import ModelInvalid
from worker import models
from worker.detection.centerface import known_face
from worker.settings import WorkerSettings


@pytest.mark.parametrize(("exposed", "warnings"), [(4, 1), (2, 0)])
def test_a_model_that_was_evaluated_as_worse_is_loaded_with_a_warning(
    exposed, warnings, tmp_path, monkeypatch, capsys
):
    result = {"threshold": 0.5, "faces": 69, "exposed": exposed, "spill": 0.01}
    evaluation = {**result, "bundled": {**result, "exposed": 2}}
    (tmp_path / "veil.json").write_text(json.dumps({"evaluation": evaluation}))
    model = SimpleNamespace(folder=tmp_path, name="own", score_threshold=0.5)
    monkeypatch.setattr(models, "load_untested_model", lambda settings: model)
    monkeypatch.setattr(known_face, "try_own", lambda *_: None)

    assert models.load_model(WorkerSettings(model=str(tmp_path))) is model

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == warnings
    for line in lines:
        assert "the model hides faces worse than the bundled detector" in line
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
    with pytest.raises(ModelInvalid, match="is a training run: set VEIL_MODEL to what `veil train"):
        models.load_folder(WorkerSettings(), tmp_path)
