"""From labelled pictures to a served model: four commands, and the exported model's contract."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("pycocotools", reason="pip install 'veil[worker,training]'")

from tasks.errors import ModelInvalid, OutputFailed, TrainingFailed
from tasks.storage.s3 import ObjectStore
from tests import label_formats
from tests.networks import shallow_b0, small_network
from training import checkpoint, exporting
from training.backend import keras
from training.cli import app
from training.efficientdet import detections
from training.efficientdet import network as efficientdet_network
from training.efficientdet.anchors import LARGEST_STRETCH, PER_POINT
from training.efficientdet.model import SIZES, Size, efficientdet
from training.efficientdet.network import EfficientDet
from training.run import EVALUATION, WEIGHTS, Recipe, Run
from worker.detection import own_model
from worker.detection.credible import credible
from worker.detection.evaluation import stated_evaluations
from worker.detection.model import digest_of, stated_threshold
from worker.detection.saved_model import SavedModel
from worker.models import load_model
from worker.settings import WorkerSettings

RECIPE = Recipe("d0", 128, 2, 2, 0.001, 0, False, "none", "float32")
PROPOSED = 0.31  # the threshold that an evaluation of the run proposed
RESULT = {"threshold": PROPOSED, "exposed": 4, "faces": 69, "spill": 0.0019}
EVALUATED = {
    "data": "d" * 64,
    "split": "val",
    "pictures": 9,
    "look": "at 256 px",
    "proposed_threshold": PROPOSED,
    "models": [RESULT, {**RESULT, "threshold": 0.17, "exposed": 2}],
}


# The score of all anchors of the untrained network: the model reports them, and none is a face.
SCORE = 0.15


@pytest.fixture(scope="module", autouse=True)
def small_network_of_every_part():
    """Give D0 a shallow backbone and a narrow pyramid, which are built and saved quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "EfficientNetB0", shallow_b0)
        patch.setitem(SIZES, "d0", Size("EfficientNetB0", 128, channels=16, layers=1))
        yield


def logit(score):
    return np.log(score / (1 - score))


def finished_run(folder, model):
    """Return a finished run in `folder`, whose network is `model`."""
    made = Run.open(folder, RECIPE, "d" * 64)
    made._describe()
    checkpoint.save(made.folder / WEIGHTS, checkpoint.numbered("w", model.weights))
    (made.folder / EVALUATION).write_text(json.dumps(EVALUATED))
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of an untrained network."""
    model = efficientdet("d0")
    last = model.get_layer("faces_last")
    *kernels, bias = last.get_weights()
    last.set_weights([*kernels, np.full_like(bias, logit(SCORE))])
    return finished_run(tmp_path_factory.mktemp("run"), model)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return exporting.export(run, tmp_path_factory.mktemp("export") / "made", None)


@pytest.fixture(scope="module")
def served(exported):
    """The exported model, as a worker loads it."""
    return SavedModel(exported.folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_is_served_is_what_was_trained(exported):
    assert exported.difference < detections.TOLERANCE
    metadata = json.loads((exported.folder / "veil.json").read_text())
    assert metadata == exported.metadata
    assert metadata["score_threshold"] == PROPOSED
    assert metadata["recipe"] == RECIPE.digest
    assert metadata["data"] == "d" * 64
    assert metadata["network"] == "EfficientDet-D0"
    (evaluation,) = stated_evaluations(exported.folder)
    assert evaluation.own.exposed == 4


def test_a_run_is_saved_once_until_its_weights_change(run, exported, monkeypatch):
    (run.folder / "saved_model" / "saved_model.pb").stat()

    def save(self, model, run, folder):
        raise AssertionError("the run was saved again")

    monkeypatch.setattr(EfficientDet, "save", save)
    assert exporting.saved_model(run) == run.folder / "saved_model"

    whole = (run.folder / WEIGHTS).read_bytes()
    try:
        checkpoint.save(run.folder / WEIGHTS, {"w0": np.zeros(1)})
        with pytest.raises(TrainingFailed, match="the weights of another network"):
            exporting.saved_model(run)
    finally:
        (run.folder / WEIGHTS).write_bytes(whole)
    assert not list(run.folder.glob(".saved_model*"))


def test_a_saved_model_that_was_changed_is_saved_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientdet_network, "efficientdet", small_network)
    small = finished_run(tmp_path / "run", small_network("d0"))
    made = exporting.saved_model(small)
    before = digest_of(made)
    for name in ("saved_model.pb", "veil.json"):
        with (made / name).open("ab") as file:
            file.write(b"junk")
        assert digest_of(made) != before

        assert exporting.saved_model(small) == made
        assert json.loads((made / "veil.json").read_text())["labels"] == {"1": "FACE"}
        assert b"junk" not in (made / name).read_bytes()


def test_the_zip_is_the_folder(exported, cache):
    with zipfile.ZipFile(exported.zip) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    files = [path for path in exported.folder.rglob("*") if path.is_file()]
    assert inside == {
        path.relative_to(exported.folder).as_posix(): path.read_bytes() for path in files
    }

    unpacked = own_model.folder(str(exported.zip), lambda: None)
    assert digest_of(unpacked) == digest_of(exported.folder)
    assert stated_threshold(unpacked, exported.zip) == PROPOSED


def test_any_batch_and_any_size_are_taken(served):
    pictures = np.random.default_rng(1).integers(0, 256, (2, 192, 320, 3), np.uint8)

    both = served.predict(pictures)

    assert served.fixed_size is None
    for one, picture in zip(both, pictures, strict=True):
        (alone,) = served.predict(picture[None])
        assert len(one) == len(alone) > 0
        np.testing.assert_allclose(one.scores, alone.scores, atol=1e-4)
        assert (one.boxes_xyxy[:, 2:] > one.boxes_xyxy[:, :2]).all()


def test_no_box_is_in_the_padding_that_the_graph_adds(served):
    """Workers refuse boxes outside of the picture, and the network may find some in the padding."""
    height, width = 192, 320
    pictures = np.random.default_rng(2).integers(0, 256, (1, height, width, 3), np.uint8)

    (found,) = served.predict(pictures)

    assert len(found) > 0
    assert len(credible(found, width, height, 0.0)) == len(found)


def test_an_export_replaces_an_export_and_nothing_else(run, exported, tmp_path):
    before = exported.zip.read_bytes()
    again = exporting.export(run, exported.zip.parent, None)
    assert again.zip.read_bytes() == before

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("whole")
    for target, holds in (
        (tmp_path / "mine", r"something else \(thesis\.txt\)"),
        (run.folder, "a run"),
    ):
        with pytest.raises(OutputFailed, match=f"holds {holds}: choose another --to"):
            exporting.export(run, target, None)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "whole"
    assert (run.folder / WEIGHTS).is_file()
    assert not list(tmp_path.glob(".*.partial"))


def test_a_model_that_workers_refuse_is_not_exported(exported, tmp_path, monkeypatch):
    """Each of its boxes is as large as the photograph, and at this threshold each is a face."""
    monkeypatch.setattr(efficientdet_network, "efficientdet", small_network)
    model = small_network("d0")
    biases = {"faces_last": [logit(SCORE)], "boxes_last": [0, 0, LARGEST_STRETCH, LARGEST_STRETCH]}
    for name, bias in biases.items():
        kernel, _ = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([0 * kernel, np.tile(bias, PER_POINT)])
    large, to = finished_run(tmp_path / "run", model), tmp_path / "export"
    shutil.copytree(exported.folder.parent, to)
    before = (to / exporting.ZIP).read_bytes()

    assert exporting.refusal(large) is None  # nothing reaches the threshold of its evaluation
    content = {**large.evaluation(), "proposed_threshold": SCORE / 2}
    (large.folder / EVALUATION).write_text(json.dumps(content))
    assert exporting.refusal(large).startswith(f"{large.folder} covers 100% of a photograph")

    with pytest.raises(ModelInvalid) as refused:
        exporting.export(large, to, SCORE / 2)

    assert str(refused.value) == (
        f"{large.folder} covers 100% of a photograph with one face with what it finds, "
        "more than 80%: train it longer, or raise its score threshold, which is 0.075"
    )
    assert (to / exporting.ZIP).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "run"]


def test_a_run_that_is_not_finished_is_not_exported(tmp_path):
    with pytest.raises(TrainingFailed, match="isn't finished"):
        exporting.export(Run.open(tmp_path / "run", RECIPE, "d" * 64), tmp_path / "none", None)
    assert not (tmp_path / "none").exists()


def test_a_worker_serves_a_model_from_s3_and_fetches_it_once(
    exported,
    new_queue,
    worker_settings,
    start_worker,
    programs,
    raw,
    clean,
    place,
    portrait,
    tmp_path,
    monkeypatch,
):
    queue = new_queue()
    queue.client.flushdb()
    raw.put(place + "models/saved_model.zip", exported.zip.read_bytes())
    cache = tmp_path / "cache"
    settings = {
        **worker_settings(queue),
        "VEIL_MODEL": raw.uri(place + "models/saved_model.zip"),
        "VEIL_SCALES": "256",
        "VEIL_TURNED": "never",
        "XDG_CACHE_HOME": str(cache),
    }
    raw.put(place + "a.jpg", portrait)
    with start_worker([programs / "veil", "worker"], settings):
        report = queue.report(raw.uri(place + "a.jpg"))

    assert report["status"] == "anonymized"
    assert clean.head(place + "a.jpg") is not None
    (unpacked,) = (path for path in (cache / "veil" / "models").iterdir() if path.is_dir())
    before = (unpacked / "saved_model.pb").stat().st_mtime_ns

    # A second process finds the model in the cache.
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    again = WorkerSettings.load()
    assert own_model.folder(again.model, lambda: ObjectStore.connect(again)) == unpacked
    assert (unpacked / "saved_model.pb").stat().st_mtime_ns == before


def test_a_model_that_s3_does_not_have_is_one_line(veil, s3, raw, place, tmp_path):
    raw.put(place + "broken.zip", b"no zip")
    for key, said in (
        ("nothing.zip", "ObjectNotFound"),
        ("broken.zip", "is no ZIP that can be unpacked"),
    ):
        done = veil(
            "model",
            "info",
            environment={
                **s3.environment(),
                "VEIL_MODEL": raw.uri(place + key),
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
            },
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert said in line
        assert key in line


def train(*arguments):
    """Return the output of `veil train`, run in this process, which has TensorFlow already."""
    done = CliRunner().invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_four_commands_lead_from_labels_to_a_model_that_hides_faces(
    veil, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("VEIL_SCALES", "480")
    pictures = list(label_formats.annotations(data("masks")))[:8]
    label_formats.write_voc(pictures, tmp_path / "voc")
    label_formats.write_coco(pictures, tmp_path / "coco")
    digests = []
    for name in ("voc", "coco"):
        options = ["--to", tmp_path / f"set-{name}", "--val", 0.4, "--test", 0, "--json"]
        digests.append(train("import", tmp_path / name, *options)[0]["digest"])
    assert digests[0] == digests[1]

    fit = ["--start", "default", "--side", 64, "--batch", 2, "--steps", 3, "--json"]
    fit += ["--learning-rate", 0.00001]
    started, *told, finished = train("fit", tmp_path / "set-voc", "--to", tmp_path / "run", *fit)
    assert (started["event"], started["steps"], finished["event"]) == ("started", 3, "finished")
    assert [(line["step"], line["checkpoint"]) for line in told] == [
        (0, False),
        (1, False),
        (2, False),
        (3, True),
    ]

    look = ["--side", 256, "--no-compare", "--json"]
    (evaluation,) = train("evaluate", tmp_path / "run", tmp_path / "set-coco", *look)
    assert evaluation["data"] == digests[0]
    (figures,) = evaluation["models"]
    assert 0 < figures["AP50"] <= 1
    folder = tmp_path / "run" / "evaluation" / "val"
    report = (folder / "report.md").read_text()
    plots = ("precision_recall", "recall_by_false_alarms", "by_threshold", "curves")
    for name in plots:
        assert f"({name}.png)" in report
        with Image.open(folder / f"{name}.png") as plot:
            plot.load()

    look = ["--side", 256, "--to", tmp_path / "of-default", "--json"]
    (judged,) = train("evaluate", "default", tmp_path / "set-coco", *look)
    (figures,) = judged["models"]
    assert figures["as_served"]["threshold"] == 0.17
    assert figures["as_served"]["recall"] > 0.5

    (made,) = train(
        "export", tmp_path / "run", "--to", tmp_path / "export", "--threshold", 0.3, "--json"
    )
    assert made["data"] == digests[0]
    assert made["score_threshold"] == 0.3
    done = veil(
        "anonymize",
        pictures[0][0],
        "--output",
        tmp_path / "out",
        "--json",
        environment={
            "VEIL_MODEL": made["zip"],
            "VEIL_TURNED": "never",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["status"] == "anonymized"
    assert outcome["faces"] > 0


def test_a_folder_that_is_no_zip_and_no_model_is_refused(tmp_path):
    with pytest.raises(ModelInvalid, match=r"holds no saved_model\.pb"):
        load_model(WorkerSettings(model=str(tmp_path)))
