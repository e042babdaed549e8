"""Evaluation by label: each label has its own detections, threshold and report."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools", reason="pip install 'veil[worker,training]'")

from tasks.errors import ModelInvalid
from training.data import formats, importing
from training.data.importing import Choice
from training.evaluation import evaluating, report
from training.run import stated
from worker.detection.faces import Detections
from worker.detection.presets import PassSettings
from worker.settings import WorkerSettings

FACE, PLATE, ALARM = [10, 10, 40, 50], [60, 60, 110, 80], [10, 90, 30, 110]
LOOK = PassSettings((128,), 1.0, 128, mirrored=False, turned="never")


@pytest.fixture
def dataset(tmp_path):
    images = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (128, 128, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        objects = [{"box": FACE, "label": "face"}, {"box": PLATE, "label": "plate"}]
        images.append({"file": f"{i}.png", "objects": objects})
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images}))
    labelled = formats.read(tmp_path / "annotations.json", None, [])
    choice = Choice.of({}, 0, 0, ["face", "plate"])
    return importing.run(labelled, tmp_path / "set", choice).dataset


def model(folder, labels):
    """Return a model that finds the face, the plate in another place, and a false alarm."""
    (folder / "veil.json").write_text(json.dumps({"labels": labels}))
    boxes = np.array([FACE, PLATE, ALARM], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.6], np.float32), classes=np.array([1, 2, 2]))
    return SimpleNamespace(
        folder=folder, fixed_size=None, predict=lambda batch: [replace(found) for _ in batch]
    )


def evaluate(dataset, monkeypatch, made, alarms=0.0):
    monkeypatch.setattr(evaluating, "load", lambda address, settings: made)
    settings = WorkerSettings()
    return evaluating.evaluate("run", dataset, "train", settings, LOOK, alarms, compare=False)


def test_each_label_is_measured_and_reported_by_itself(dataset, tmp_path, monkeypatch):
    made = model(tmp_path, {"1": "FACE", "2": "plate"})

    faces, plates = evaluate(dataset, monkeypatch, made)

    assert (faces.label, plates.label) == ("FACE", "plate")
    assert faces.threshold == pytest.approx(0.9)
    assert plates.threshold == pytest.approx(0.8)
    assert faces.exposed == plates.exposed == 0
    assert faces.faces == plates.faces == 3
    assert plates.precision["AP50"] == 1

    content = report.write(
        [faces, plates],
        dataset,
        "train",
        "at once",
        tmp_path / "report",
        alarms=0,
        chosen_on="train",
        run=None,
    )

    assert content["proposed_threshold"] == 0.8
    assert stated(content)["labels"]["plate"]["threshold"] == 0.8
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "| [FACE](FACE/report.md) | run | 1.000 | 1.000 | 1.000 | 0.900 | 0.00 | 0 of 3 |" in text
    )
    assert (tmp_path / "report" / "plate" / "precision_recall.png").is_file()
    assert "VEIL_REGION=full" in (tmp_path / "report" / "plate" / "report.md").read_text()


def test_a_plate_is_exposed_unless_nearly_all_of_it_is_hidden(dataset, tmp_path, monkeypatch):
    made = model(tmp_path, {"2": "FACE", "1": "plate"})  # takes plates for faces

    _, plates = evaluate(dataset, monkeypatch, made)

    assert plates.exposed == 3


def test_a_model_must_state_each_label_of_several(dataset, tmp_path, monkeypatch):
    with pytest.raises(ModelInvalid, match="no class for the label plate: it has FACE"):
        evaluate(dataset, monkeypatch, model(tmp_path, {"1": "FACE"}))

    assert evaluating.class_numbers(tmp_path / "none", ["FACE"]) == {"FACE": None}
    with pytest.raises(ModelInvalid, match=r"no labels in its veil\.json"):
        evaluating.class_numbers(tmp_path / "none", ["FACE", "plate"])
