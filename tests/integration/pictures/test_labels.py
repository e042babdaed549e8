"""Two models and three labels: from the queue to outputs, receipts, reviews and a mixed fleet.

The default model finds faces. A model of the user's finds blue plates and green documents.
"""

import io
import json
import urllib.request

import numpy as np
import platformdirs
import pytest
from PIL import Image
from structlog.testing import capture_logs
from typer.testing import CliRunner

from tasks.errors import SettingsInvalid
from tasks.records.review import REVIEW_LIST
from tasks.status import read as read_status
from tests import command
from tools.benchmarks.plates import hidden_pixels, is_hidden, judged
from tools.local import street
from tools.local.servers import HOST, free_port
from training.centerface import model as centerface
from worker import cli
from worker.anonymizer import Stopwatch
from worker.bootstrap import build_anonymizer, build_pipeline
from worker.detection import plates
from worker.detection.centerface.known_face import photograph
from worker.detection.centerface.measuring import calibrated
from worker.detection.centerface.network import in_eight_bits
from worker.settings import WorkerSettings

BLUE, GREEN = (20, 30, 230), (20, 230, 30)
PLATE, DOCUMENT = (250, 40, 330, 70), (250, 110, 330, 190)  # x1 y1 x2 y2, beside the portrait
EDGE = 3  # pixels by which JPEG shifts the edge of a colour
RULES = "plate: method=fill margin=0; document: hold"


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """The folder of a model with the classes 1, plates, and 2, documents."""
    from worker.detection.tf import tf

    def span(seen):
        """Return the first and last true index in each row of bool [n, length], by its length."""
        length = tf.shape(seen)[1]
        first = tf.argmax(tf.cast(seen, tf.int32), axis=1, output_type=tf.int32)
        reverse = tf.argmax(tf.cast(tf.reverse(seen, [1]), tf.int32), axis=1, output_type=tf.int32)
        return first / length, (length - reverse) / length

    def found(pictures, channel):
        values = tf.cast(pictures, tf.int32)
        strongest = values[..., channel] - tf.reduce_max(
            tf.concat([values[..., :channel], values[..., channel + 1 :]], axis=-1), axis=-1
        )
        seen = strongest > 120
        top, bottom = span(tf.reduce_any(seen, axis=2))
        left, right = span(tf.reduce_any(seen, axis=1))
        box = tf.cast(tf.stack([top, left, bottom, right], axis=-1), tf.float32)
        return box, 0.9 * tf.cast(tf.reduce_any(seen, axis=[1, 2]), tf.float32)

    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)], autograph=False)
    def detect(pictures):
        plates, documents = found(pictures, 2), found(pictures, 1)
        scores = tf.stack([plates[1], documents[1]], axis=1)
        return {
            "detection_boxes": tf.stack([plates[0], documents[0]], axis=1),
            "detection_scores": scores,
            "detection_classes": tf.ones_like(scores) * [[1.0, 2.0]],
            "num_detections": 2 * tf.ones_like(scores)[:, 0],
        }

    folder = tmp_path_factory.mktemp("colours")
    tf.saved_model.save(module, str(folder), signatures={"serving_default": detect})
    labels = {"labels": {"1": "plate", "2": "document"}}
    (folder / "veil.json").write_text(json.dumps(labels))
    return folder


@pytest.fixture(scope="module")
def scene(portrait):
    """``scene(plate, document)`` returns a JPEG of a face, and of the objects that are wanted."""
    with Image.open(io.BytesIO(portrait)) as image:
        face = image.convert("RGB")

    def make(plate=False, document=False):
        canvas = Image.new("RGB", (360, 220), (128, 120, 112))
        canvas.paste(face, (0, 0))
        for is_shown, box, colour in ((plate, PLATE, BLUE), (document, DOCUMENT, GREEN)):
            if is_shown:
                canvas.paste(colour, box)
        target = io.BytesIO()
        canvas.save(target, "JPEG", quality=95, subsampling=0)
        return target.getvalue()

    return make


@pytest.fixture(scope="module")
def fleet(new_queue):
    queue = new_queue()
    queue.client.flushdb()
    return queue


@pytest.fixture(scope="module")
def settings(fleet, worker_settings, colours):
    """The settings of a worker with two models and three labels."""
    return {
        **worker_settings(fleet),
        "VEIL_MODELS": f"default,{colours}",
        "VEIL_RULES": RULES,
        "VEIL_METRICS": f"{HOST}:{free_port()}",
    }


@pytest.fixture(scope="module")
def worker(settings, start_worker, programs):
    with start_worker([programs / "veil", "worker"], settings) as started:
        yield started


@pytest.fixture
def veil_here(settings, tmp_path):
    """``veil_here(*arguments)`` runs a command with the settings of the worker."""

    def run(*arguments, **changes):
        return command.run([str(one) for one in arguments], {**settings, **changes}, None, tmp_path)

    return run


def pixels(bucket, key):
    return np.asarray(bucket.open(key).convert("RGB")).astype(int)


def inside(values, box):
    x1, y1, x2, y2 = box
    return values[y1 + EDGE : y2 - EDGE, x1 + EDGE : x2 - EDGE]


def receipt_of(clean, key):
    (name,) = clean.keys(f".veil/receipts/{key}.")
    return json.loads(clean.get(name))


def test_each_label_is_hidden_by_its_rule_and_named_everywhere(
    worker, fleet, raw, clean, place, scene, veil_here
):
    source = raw.put(place + "a.jpg", scene(plate=True))
    report = fleet.report(source)

    assert report["status"] == "anonymized"
    assert (report["faces"], report["labels"]) == (1, {"FACE": 1, "plate": 1, "document": 0})
    assert sorted(report["box_labels"]) == ["FACE", "plate"]
    before = np.asarray(Image.open(io.BytesIO(scene(plate=True))).convert("RGB")).astype(int)
    after = pixels(clean, place + "a.jpg")
    assert inside(after, PLATE).max() < 40  # filled with black, without a margin
    face = report["boxes_xyxy"][report["box_labels"].index("FACE")]
    assert np.abs(inside(after, face)[: (face[3] - face[1]) // 2] - 128).max() < 127  # not black
    assert np.abs(inside(after, face) - inside(before, face)).mean() > 10
    receipt = receipt_of(clean, place + "a.jpg")
    assert sorted(one.get("label", "FACE") for one in receipt["faces"]) == ["FACE", "plate"]
    assert {"model", "model 2", "engine 2"} <= receipt["made_with"].keys()
    assert fleet.report(source)["status"] == "skipped"
    assert list(read_status(fleet.client).labels) == ["FACE", "plate", "document"]

    verified = veil_here("receipt", "verify", clean.uri(place + "a.jpg"), "--redetect")
    assert verified.returncode == 0, verified.stdout
    places = [f"s3://raw/{place}", f"s3://clean/{place}"]
    reconciled = veil_here("reconcile", *places)
    assert reconciled.returncode == 0, reconciled.stdout


def test_metrics_count_the_labels_that_the_models_state(worker, fleet, raw, place, scene, settings):
    fleet.report(raw.put(place + "a.jpg", scene(plate=True)))
    with urllib.request.urlopen(f"http://{settings['VEIL_METRICS']}/metrics") as page:
        lines = page.read().decode().splitlines()
    counted = {line.split()[0] for line in lines if line.startswith("veil_objects_total{")}
    assert counted == {
        f'veil_objects_total{{label="{one}"}}' for one in ("FACE", "plate", "document")
    }


def test_what_must_be_held_is_held_until_it_is_released(
    worker, fleet, raw, clean, place, scene, veil_here, wait_until
):
    source = raw.put(place + "a.jpg", scene(plate=True, document=True))
    report = fleet.report(source)

    assert (report["status"], report["labels"]["document"]) == ("held", 1)
    assert report["reason"] == "an object with the rule hold was found: document"
    assert clean.head(place + "a.jpg") is None
    (entry,) = REVIEW_LIST.of_sources(fleet.client, [source]).values()
    assert sorted(entry.box_labels) == ["FACE", "document", "plate"]
    shown = veil_here("review", "show", source)
    assert "document" in shown.stdout

    assert veil_here("review", "release", source, "--wait").returncode == 0
    after = pixels(clean, place + "a.jpg")
    assert inside(after, PLATE).max() < 40
    red, green, blue = np.moveaxis(inside(after, DOCUMENT), -1, 0)
    assert (green - np.maximum(red, blue)).max() < 50  # hidden too
    wait_until(lambda: source not in {one.source for one in REVIEW_LIST.entries(fleet.client)})


def test_options_of_a_request_speak_of_labels(worker, fleet, raw, clean, place, scene, veil_here):
    source = raw.put(place + "a.jpg", scene(plate=True, document=True))
    rules = {"plate": {"ignore": True}, "document": {"hold": False}}
    report = fleet.report(source, options={"rules": rules})

    assert report["status"] == "anonymized"
    assert report["labels"] == {"FACE": 1, "plate": 0, "document": 1}
    assert (inside(pixels(clean, place + "a.jpg"), PLATE)[..., 2] > 150).all()
    assert receipt_of(clean, place + "a.jpg")["options"] == {"rules": rules}

    # A redo of another rule keeps the rest.
    redone = veil_here("enqueue", source, "--rule", "document: ignore hold=false", "--wait")
    assert redone.returncode == 0, redone.stderr
    assert (inside(pixels(clean, place + "a.jpg"), DOCUMENT)[..., 1] > 150).all()

    unknown = fleet.send(source, options={"rules": {"plat": {"method": "fill"}}})
    state, error = fleet.outcome(unknown)
    assert state == "FAILURE"
    assert "choose from FACE, plate, document" in str(error)


def test_old_messages_and_receipts_and_new_workers(
    worker, fleet, worker_settings, start_worker, programs, raw, clean, place, scene
):
    """An old receipt has no labels, and neither has that of a worker with the default model."""
    source = raw.put(place + "a.jpg", scene(plate=True))
    faces_only = worker_settings(fleet)
    before = fleet.report(source)
    worker.server.stop()
    try:
        with start_worker([programs / "veil", "worker"], faces_only):
            default = fleet.report(source)
            assert default["status"] == "anonymized"
            assert default["recipe"] != before["recipe"]
            assert "labels" not in default
            assert not any("label" in one for one in receipt_of(clean, place + "a.jpg")["faces"])
            # A message of an earlier version has the same options.
            full = fleet.report(source, None, {"region": "full"})
            assert full["recipe"].partition("-")[0] == default["recipe"]
            assert fleet.report(source)["status"] == "skipped"
    finally:
        worker.start()
    # The options in the receipt of the other worker still count, and the plate is hidden again.
    again = fleet.report(source)
    assert (again["status"], again["labels"]["plate"]) == ("anonymized", 1)
    assert again["options"] == {"region": 1.0}
    assert inside(pixels(clean, place + "a.jpg"), PLATE).max() < 40


def test_files_and_python_speak_of_labels(colours, scene, tmp_path, veil):
    (tmp_path / "a.jpg").write_bytes(scene(plate=True))
    environment = {"VEIL_MODELS": f"default,{colours}"}
    done = veil("anonymize", tmp_path / "a.jpg", "--detect-only", "--json", environment=environment)
    (line,) = map(json.loads, done.stdout.splitlines()[-1:])
    assert (line["faces"], sorted(line["labels"])) == (1, ["FACE", "plate"])

    from worker import Anonymizer

    anonymizer = Anonymizer.from_settings(
        models=["default", str(colours)], rules={"FACE": {"ignore": True}}
    )
    result = anonymizer.anonymize(tmp_path / "a.jpg")
    assert result.detections.labels.tolist() == ["plate"]
    held = anonymizer.anonymize(tmp_path / "a.jpg", {"rules": {"plate": {"hold": True}}})
    reason = "an object with the rule hold was found: plate"
    assert (held.content, held.reason) == (None, reason)


def test_faces_that_stay_visible_are_logged_once_whatever_the_routes(colours, tmp_path):
    route = '[routes.{0}]\nsource = "s3://{0}"\ndestination = "s3://clean/{0}"\nmethod = "fill"\n'
    (tmp_path / "routes.toml").write_text(route.format("north") + route.format("south"))
    with capture_logs() as lines:
        build_pipeline(
            WorkerSettings(
                models=[str(colours)], routes_file=str(tmp_path / "routes.toml"), processes=0
            ),
            None,
        )
    warnings = [line for line in lines if line["event"] == "faces are not searched for"]
    assert [line["labels"] for line in warnings] == ["plate, document"]


def test_model_info_shows_the_labels_and_their_rules(colours, veil):
    environment = {"VEIL_MODELS": f"default,{colours}", "VEIL_RULES": RULES}
    # This process has TensorFlow already.
    flags = ["model", "info", "--json"]
    done = CliRunner().invoke(cli.app, flags, env=environment, catch_exceptions=False)
    models = json.loads(done.stdout.splitlines()[-1])["models"]
    labels = {one["label"]: one for model in models for one in model["labels"]}
    assert list(labels) == ["FACE", "plate", "document"]
    assert (labels["plate"]["method"], labels["plate"]["region"]) == ("fill", 1.0)
    assert labels["document"]["hold"]

    wrong = veil("model", "info", environment={**environment, "VEIL_RULES": "plat: hold"})
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].endswith(
        "VEIL_RULES: no model finds plat: choose from FACE, plate, document"
    )


def test_plates_are_refused_in_a_line_without_their_detector(tmp_path, monkeypatch):
    monkeypatch.setattr(plates, "FOLDER", tmp_path)
    with pytest.raises(SettingsInvalid, match="this installation of Veil has no plate detector"):
        WorkerSettings.load(plates=True)


@pytest.fixture(scope="module")
def plate_detector():
    return build_anonymizer(WorkerSettings(models="plates"))


def test_the_plate_detector_hides_the_plates_of_a_drawn_street(plate_detector, tmp_path):
    picture = street.make(tmp_path, platformdirs.user_cache_path("veil"))

    found = plate_detector.detect_file(picture.read_bytes()).detections

    hidden = hidden_pixels(found, plate_detector.treatments, street.SIZE)
    for car in street.CARS:
        x, y = car.at
        wide = 0.34 * car.width
        top = y - 0.34 * car.width
        box = [x - wide / 2, top, x + wide / 2, top + wide * 110 / 520]
        assert is_hidden(hidden, box), car.plate
    assert hidden.mean() < 0.1


def test_the_plate_detector_hides_most_plates_of_photographs(data):
    """docs/plates.md has the figures of all pictures."""
    pictures = judged(data("plates_dev"), every=8)
    seen = [plate for picture in pictures for plate in picture.plates]
    assert sum(plate.is_hidden for plate in seen) > 0.7 * len(seen)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder like that of the plate detector, in 8 bits alone, whose plates are faces."""
    network = centerface.with_labels(
        centerface.published(), ["plate"], ["plate"], np.random.default_rng(1)
    )
    calibration = calibrated(network, [photograph()])
    folder = tmp_path_factory.mktemp("plates")
    flatbuffer = in_eight_bits(network, calibration.scales, calibration.ranges)
    (folder / "network.tflite").write_bytes(flatbuffer)
    maps = {"classes": 1, "landmarks": 0}
    described = {"score_threshold": 0.3, "labels": {"1": "plate"}, "maps": maps}
    (folder / "veil.json").write_text(json.dumps(described))
    return folder


def test_the_plate_detector_of_the_package_runs_beside_the_default_model(
    stand_in, scene, monkeypatch, capsys
):
    from worker.bootstrap import build_file_anonymizer

    monkeypatch.setattr(plates, "FOLDER", stand_in)
    alone = build_file_anonymizer(WorkerSettings(), pictures=1)
    capsys.readouterr()
    both = build_file_anonymizer(WorkerSettings(plates=True), pictures=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "detector ready" in line]
    assert len(lines) == 2
    assert "the model does not find the known face" not in "".join(lines)

    faces = alone.detect_file(scene()).detections
    found = both.detect_file(scene()).detections
    assert sorted(found.labels) == ["FACE", "plate"]
    of_faces = found[found.labels == "FACE"]
    np.testing.assert_array_equal(of_faces.boxes_xyxy, faces.boxes_xyxy)
    np.testing.assert_array_equal(of_faces.scores, faces.scores)
    assert both.recipe != alone.recipe
    # The whole face is hidden by the rule of plates, and only its top by that of faces.
    outputs = [one.anonymize(scene(), Stopwatch()).content for one in (alone, both)]
    top, whole = (np.asarray(Image.open(io.BytesIO(one)), int) for one in outputs)
    x1, y1, x2, y2 = faces.boxes_xyxy[0].astype(int)
    chin = np.s_[y2 - (y2 - y1) // 6 : y2, (x1 + x2) // 2 - 10 : (x1 + x2) // 2 + 10]
    before = np.asarray(Image.open(io.BytesIO(scene())), int)
    assert np.abs(top - before)[chin].mean() < 3 < np.abs(whole - before)[chin].mean()


def test_a_pin_in_the_list_of_models_is_checked(colours):
    from tasks.errors import ModelInvalid
    from worker.models import load_models

    with pytest.raises(ModelInvalid, match="its pin: not used"):
        load_models(WorkerSettings(models=f"{colours}#sha256={'0' * 64}"))
