"""``veil model info`` on a model that states its evaluation."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from worker import models
from worker.commands.model import app


@pytest.fixture
def model(tmp_path, monkeypatch):
    result = {"threshold": 0.5, "faces": 69, "exposed": 4, "spill": 0.0019}
    evaluation = {**result, "bundled": {**result, "exposed": 2, "spill": 0.0104}}
    (tmp_path / "veil.json").write_text(json.dumps({"evaluation": evaluation}))
    model = SimpleNamespace(
        folder=Path(tmp_path),
        engine="tensorflow",
        digest="d" * 64,
        score_threshold=0.5,
        fixed_size=None,
        device="CPU",
    )
    monkeypatch.setattr(models, "load_model", lambda settings: model)
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
    assert json.loads(info("--json"))["evaluation"]["bundled"] == {"exposed": 2, "spill": 0.0104}


def test_info_has_no_evaluation_of_the_default_model(model, monkeypatch):
    monkeypatch.delenv("VEIL_MODEL")

    assert "evaluation" not in json.loads(info("--json"))
