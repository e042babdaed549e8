"""Evaluation by label: each label has its own detections, threshold and report."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools", reason="pip install 'veil[worker,training]'")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasks.errors import ModelInvalid, SettingsInvalid
from training.data import formats, importing
from training.data.importing import Choice
from training.evaluation import evaluating, report
from training.evaluation.evaluating import FLOOR
from training.run import stated
from worker.detection.faces import Detections
from worker.detection.presets import PassSettings
from worker.settings import WorkerSettings

SCORES = 0.6, 0.7, 0.8

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


def model(folder, labels, plate=PLATE):
    """Return a model that finds the face, the plate in another place, and a false alarm."""
    (folder / "veil.json").write_text(json.dumps({"labels": labels}))
    boxes = np.array([FACE, plate, ALARM], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.6], np.float32), classes=np.array([1, 2, 2]))
    return SimpleNamespace(
        folder=folder,
        digest=str(folder),
        score_threshold=0.7,
        fixed_size=None,
        predict=lambda batch: [replace(found) for _ in batch],
    )


def evaluate(
    dataset, monkeypatch, made, alarms=0.0, *, address="run", compare=False, settings=None
):
    monkeypatch.setattr(evaluating, "load", lambda address, settings: made)
    settings = settings or WorkerSettings()
    return evaluating.evaluate(address, dataset, "train", settings, LOOK, alarms, compare)


def test_each_label_is_measured_and_reported_by_itself(dataset, tmp_path, monkeypatch):
    made = model(tmp_path, {"1": "FACE", "2": "plate"})

    faces, plates = evaluate(dataset, monkeypatch, made)

    assert (faces.label, plates.label) == ("FACE", "plate")
    assert faces.proposed == 0.8999  # the score in 32 bits is below 0.9
    assert plates.proposed == pytest.approx(0.8)
    # An export has one threshold for all labels.
    assert faces.threshold == plates.threshold == plates.proposed
    assert faces.hidden.exposed == plates.hidden.exposed == 0
    assert faces.hidden.faces == plates.hidden.faces == 3
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
    its = stated(content)["labels"]
    assert its["FACE"]["threshold"] == its["plate"]["threshold"] == 0.8
    text = (tmp_path / "report" / "report.md").read_text()
    assert (
        "| [FACE](FACE/report.md) | run | 1.000 | 1.000 | 1.000 | 0.800 | 0.00 | 0 of 3 |" in text
    )
    assert "| run, as served | 1.000 | 1.000 | 1.000 | 0.700 | 0.00 | 0 of 3 |" in text
    assert (tmp_path / "report" / "plate" / "precision_recall.png").is_file()
    assert "`VEIL_RULES` sets" in (tmp_path / "report" / "plate" / "report.md").read_text()


def test_a_model_that_finds_nothing_has_no_precision(dataset, tmp_path, monkeypatch):
    made = model(tmp_path, {"1": "FACE", "2": "plate"})
    made.predict = lambda batch: [Detections.none() for _ in batch]

    figures = evaluate(dataset, monkeypatch, made)
    content = report.write(
        figures, dataset, "train", "at once", tmp_path / "report", alarms=0, chosen_on="", run=None
    )

    assert [each["precision"] for each in content["models"]] == [None, None]
    assert "| precision | – |" in (tmp_path / "report" / "FACE" / "report.md").read_text()


def test_each_label_is_searched_for_in_the_passes_of_a_worker(dataset, tmp_path, monkeypatch):
    looks = {}

    def detector_of(label, infer, look, *others):
        looks[label] = look
        return SimpleNamespace(detect=lambda pixels: Detections.none())

    monkeypatch.setattr(evaluating, "detector_of", detector_of)
    made = model(tmp_path, {"1": "FACE", "2": "plate"})
    monkeypatch.setattr(evaluating, "load", lambda address, settings: made)
    settings = WorkerSettings(scales="128", rules="plate: scales=64")

    evaluating.evaluate("run", dataset, "train", settings, None, 0.0, False)

    assert looks["FACE"].scales == (128,)
    assert looks["FACE"].turned != "never"
    assert (looks["plate"].scales, looks["plate"].turned) == ((64,), "never")


@pytest.mark.parametrize(("look", "recall"), [(None, 1), (LOOK, 0)])
def test_pictures_are_searched_in_the_views_of_a_worker_or_looked_at_once(
    look, recall, dataset, tmp_path, monkeypatch
):
    def detect(pixels):
        """Find the face where a dark picture is brightened."""
        is_bright = pixels.mean() > 60
        boxes = np.array([FACE], np.float32)[: int(is_bright)]
        return Detections(boxes, np.full(len(boxes), 0.9, np.float32))

    for picture in dataset.pictures:
        dark = dataset.pixels(picture) // 8
        Image.fromarray(dark).save(dataset.folder / picture.file)
    monkeypatch.setattr(evaluating, "detector_of", lambda *_: SimpleNamespace(detect=detect))
    monkeypatch.setattr(evaluating, "load", lambda *_: model(tmp_path, {"1": "FACE", "2": "plate"}))
    alone = replace(dataset, labels=("FACE",))

    (figures,) = evaluating.evaluate(
        "run", alone, "train", WorkerSettings(), look, 0.0, False, threshold=0.5
    )

    assert figures.summary()["recall"] == recall


@pytest.mark.parametrize(("quiet_from", "threshold"), [(0.7, 0.7), (0.8, 0.8), (1.0, None)])
def test_the_proposed_threshold_is_measured_and_raised_until_it_holds(
    quiet_from, threshold, dataset, tmp_path, monkeypatch
):
    faces = dict(
        zip([dataset.pixels(each).sum() for each in dataset.pictures], SCORES, strict=True)
    )

    def detector_of(label, infer, look, lowest, takes):
        """Find a face in each picture and, from FLOOR to `quiet_from`, a false alarm too."""

        def detect(pixels):
            rows = [(FACE, faces[pixels.sum()])]
            if FLOOR < lowest < quiet_from:
                rows.append((ALARM, 0.99))
            rows = [row for row in rows if row[1] >= lowest]
            boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
            return Detections(boxes, np.array([score for _, score in rows], np.float64))

        return SimpleNamespace(detect=detect)

    monkeypatch.setattr(evaluating, "detector_of", detector_of)
    alone = replace(dataset, labels=("FACE",))

    (figures,) = evaluate(alone, monkeypatch, model(tmp_path, {"1": "FACE"}))

    assert figures.curve.alarms.max() == 0
    assert figures.proposed == (threshold and pytest.approx(threshold))
    assert figures.threshold == pytest.approx(threshold or 0.5)
    assert figures.summary()["false_alarms_a_picture"] == (0 if threshold else 1)


@pytest.mark.parametrize("lowest_quiet", [0.06, 0.32, 0.54, 0.8, 0.98])
def test_the_lowest_of_many_scores_is_proposed(lowest_quiet, dataset, tmp_path, monkeypatch):
    scores = np.linspace(0.06, 0.98, 47)

    def detector_of(label, infer, look, lowest, takes):
        """Find a face, and at other thresholds than FLOOR false alarms below `lowest_quiet`."""
        is_found = [1.0, *(scores[scores >= lowest] if lowest in (FLOOR, 0.5) else [])]
        boxes = [FACE, *([ALARM] * (len(is_found) - 1))]
        if FLOOR < lowest < lowest_quiet - 0.01:
            boxes.append(ALARM)
            is_found.append(0.99)
        found = Detections(np.array(boxes, np.float32), np.array(is_found, np.float64))
        return SimpleNamespace(detect=lambda pixels: found)

    monkeypatch.setattr(evaluating, "detector_of", detector_of)
    alone = replace(dataset, labels=("FACE",))

    (figures,) = evaluate(alone, monkeypatch, model(tmp_path, {"1": "FACE"}))

    assert figures.proposed == pytest.approx(lowest_quiet, abs=1e-3)
    assert figures.summary()["false_alarms_a_picture"] == 0


def test_the_written_detections_give_the_average_precision_of_the_report(
    dataset, tmp_path, monkeypatch
):
    made = model(tmp_path, {"1": "FACE", "2": "plate"})
    figures = evaluate(dataset, monkeypatch, made)
    folder = tmp_path / "report"
    about = {"alarms": 0, "chosen_on": "train", "run": None}
    report.write(figures, dataset, "train", "at once", folder, **about)

    for label, precision in (("FACE", 1), ("plate", figures[1].precision["AP50"])):
        labels = COCO(str(folder / label / "labels.json"))
        assert {each["file_name"] for each in labels.dataset["images"]} == {
            each.file for each in dataset.pictures
        }
        found = labels.loadRes(str(folder / label / "detections.json"))
        coco = COCOeval(labels, found, "bbox")
        coco.evaluate()
        coco.accumulate()
        coco.summarize()
        assert coco.stats[1] == pytest.approx(precision, abs=1e-4)


def test_a_plate_is_exposed_unless_nearly_all_of_it_is_hidden(dataset, tmp_path, monkeypatch):
    made = model(tmp_path, {"2": "FACE", "1": "plate"})  # takes plates for faces

    _, plates = evaluate(dataset, monkeypatch, made)

    assert plates.hidden.exposed == 3


def test_a_model_must_state_each_label_of_several(dataset, tmp_path, monkeypatch):
    with pytest.raises(ModelInvalid, match="no class for the label plate: it has FACE"):
        evaluate(dataset, monkeypatch, model(tmp_path, {"1": "FACE"}))

    assert evaluating.class_numbers(tmp_path / "none", ["FACE"]) == {"FACE": None}
    with pytest.raises(ModelInvalid, match=r"no labels in its veil\.json"):
        evaluating.class_numbers(tmp_path / "none", ["FACE", "plate"])


@pytest.mark.parametrize(
    ("settings", "thresholds"),
    [
        ({}, (0.7, 0.7)),
        ({"score_threshold": 0.5}, (0.5, 0.5)),
        ({"rules": "plate: threshold=0.85"}, (0.7, 0.85)),
    ],
)
def test_a_model_is_also_measured_at_the_threshold_of_a_worker(
    settings, thresholds, dataset, tmp_path, monkeypatch
):
    made = model(tmp_path, {"1": "FACE", "2": "plate"})

    faces, plates = evaluate(dataset, monkeypatch, made, settings=WorkerSettings(**settings))

    assert (faces.as_served.threshold, plates.as_served.threshold) == thresholds
    assert faces.as_served.exposed == 0
    assert plates.as_served.exposed == (3 if thresholds[1] > 0.8 else 0)
    alarms = 1.0 if thresholds[1] < 0.6 else 0.0
    assert plates.summary()["as_served"]["false_alarms_a_picture"] == alarms
    assert plates.threshold == pytest.approx(0.8)


def test_a_run_has_no_threshold_of_its_own(dataset, tmp_path, monkeypatch):
    made = model(tmp_path, {"1": "FACE", "2": "plate"})
    (tmp_path / "run.json").write_text("{}")
    address = str(tmp_path)

    figures = evaluate(dataset, monkeypatch, made, address=address)
    assert [each.as_served for each in figures] == [None, None]
    settings = WorkerSettings(score_threshold=0.5)
    figures = evaluate(dataset, monkeypatch, made, address=address, settings=settings)
    assert [each.as_served.threshold for each in figures] == [0.5, 0.5]


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """The models that come with Veil, by name, in place of the real ones."""
    found = {}
    for name, label in evaluating.BUNDLED.items():
        (tmp_path / name).mkdir()
        found[name] = model(tmp_path / name, {"1" if name == "default" else "2": label})
    (tmp_path / "default" / "veil.json").unlink()
    monkeypatch.setattr(evaluating, "bundled_model", lambda name, settings: found[name])
    return found


def test_each_label_is_compared_with_the_bundled_model_that_finds_it(
    dataset, tmp_path, monkeypatch, bundled
):
    made = model(tmp_path, {"2": "FACE", "1": "plate"})  # takes plates for faces

    figures = evaluate(dataset, monkeypatch, made, compare=True)

    names = [(each.name, each.label) for each in figures]
    assert names == [("run", "FACE"), ("bundled", "FACE"), ("run", "plate"), ("bundled", "plate")]
    assert [each.hidden.exposed for each in figures] == [3, 0, 3, 0]


@pytest.mark.parametrize(("address", "label"), [("default", "FACE"), ("plates", "plate")])
def test_a_bundled_model_is_measured_for_its_label_and_not_compared_with_itself(
    address, label, dataset, monkeypatch, bundled
):
    made = bundled[address]
    figures = evaluate(dataset, monkeypatch, made, address=address, compare=True)
    assert [(each.name, each.label) for each in figures] == [(address, label)]

    if address == "default":
        return
    # The same model by its folder, for a data set of this label alone.
    alone = replace(dataset, labels=("plate",))
    figures = evaluate(alone, monkeypatch, made, address=str(made.folder), compare=True)
    assert [each.label for each in figures] == ["plate"]


def test_a_bundled_model_is_refused_for_a_data_set_without_its_label(dataset, monkeypatch, bundled):
    faces = replace(dataset, labels=("FACE",))
    with pytest.raises(ModelInvalid, match=r"plates finds plate, .* has FACE: .* --classes plate"):
        evaluate(faces, monkeypatch, bundled["plates"], address="plates")


@pytest.mark.parametrize(("rules", "exposed"), [("", 0), ("plate: margin=0", 3)])
def test_objects_are_hidden_with_the_margin_of_a_worker(
    rules, exposed, dataset, tmp_path, monkeypatch
):
    made = model(tmp_path, {"1": "FACE", "2": "plate"}, plate=[75, 64, 105, 76])

    _, plates = evaluate(dataset, monkeypatch, made, settings=WorkerSettings(rules=rules))

    assert plates.as_served.exposed == exposed


@pytest.mark.parametrize("rule", ["ignore", "smallest=100000"])
def test_what_a_rule_leaves_visible_is_exposed_as_served(rule, dataset, tmp_path, monkeypatch):
    made = model(tmp_path, {"1": "FACE", "2": "plate"})

    settings = WorkerSettings(rules=f"plate: {rule}")
    faces, plates = evaluate(dataset, monkeypatch, made, settings=settings)

    assert (faces.as_served.exposed, plates.as_served.exposed) == (0, 3)
    assert plates.summary()["as_served"]["recall"] == 0
    assert plates.hidden.exposed == 0  # The model itself finds them.


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        ("hat: ignore", "no model finds hat: choose from FACE, plate"),
        ("FACE: ignore; plate: ignore", "ignores every label"),
    ],
)
def test_rules_with_which_no_worker_starts_are_refused(
    rules, fault, dataset, tmp_path, monkeypatch
):
    made = model(tmp_path, {"1": "FACE", "2": "plate"})
    with pytest.raises(SettingsInvalid, match=fault):
        evaluate(dataset, monkeypatch, made, settings=WorkerSettings(rules=rules))
