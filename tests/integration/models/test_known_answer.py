"""A model that gives wrong answers publishes nothing: damaged default models, and users' models."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

from tasks.errors import DetectionFailed, ModelInvalid
from worker import cli
from worker.anonymizer import Stopwatch
from worker.bootstrap import build_anonymizer
from worker.detection.centerface import known_face
from worker.detection.centerface.default import WEIGHTS, default_folder
from worker.detection.litert import QuantizedModel
from worker.models import load_model, load_untested_model
from worker.settings import WorkerSettings

ENGINES = ("litert", "tensorflow")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_default_model_answers_as_it_was_recorded(engine):
    """Run `python -m tools.benchmarks.known_face` if this fails after a change of the model."""
    model = load_model(WorkerSettings(engine=engine))

    for view in known_face.VIEWS:
        now, recorded = (
            known_face.answer(known_face.confident_detections(model, view.canvas()[0])),
            known_face.answers()[engine],
        )
        assert now["score"] == pytest.approx(recorded[view.name]["score"], abs=0.01)


@pytest.fixture(scope="module")
def weaker(tmp_path_factory):
    """The cache of a default model whose weights are a little too small."""
    from worker.detection.centerface import network as centerface

    network = onnx.load_model_from_string(WEIGHTS.fetch())
    for weights in network.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.ndim == 4:
            spoiled = values * np.float32(0.97)
            weights.CopyFrom(numpy_helper.from_array(spoiled, weights.name))
    cache = tmp_path_factory.mktemp("cache")
    folder = cache / "veil" / default_folder().name
    centerface.build(network.SerializeToString(), folder)
    (folder / "veil.json").write_text(json.dumps({"score_threshold": 0.17}))
    return cache


@pytest.mark.parametrize("engine", ENGINES)
def test_a_spoiled_default_model_is_refused_before_anything_is_done(weaker, monkeypatch, engine):
    monkeypatch.setenv("XDG_CACHE_HOME", str(weaker))

    with pytest.raises(ModelInvalid) as raised:
        build_anonymizer(WorkerSettings(engine=engine))

    assert default_folder().name in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_with_a_spoiled_model_no_command_works(
    veil, refused_worker, weaker, unattended, worker_settings, samples, tmp_path
):
    environment = {**worker_settings(unattended), "XDG_CACHE_HOME": str(weaker)}
    unattended.send("s3://raw/a.jpg")
    commands = (
        ("model", "info"),
        ("anonymize", samples["admiral.jpg"], "--output", tmp_path / "out"),
        ("receipt", "verify", "s3://clean", "--redetect"),
    )
    ended = [veil(*command, environment=environment, cwd=tmp_path) for command in commands]
    for done in (*ended, refused_worker(environment)):
        assert done.returncode not in (0, None), done.args
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert "ModelInvalid" in line
        assert "the default model fails its test on this machine (litert on CPU" in line
        assert "veil model build" in line
    assert unattended.client.llen("uploads") == 1
    assert not list(tmp_path.rglob("*.jpg"))


def test_maps_that_stop_being_finite_publish_nothing(monkeypatch, samples):
    anonymizer = build_anonymizer(WorkerSettings(engine="litert"))
    content = samples["admiral.jpg"].read_bytes()
    assert len(anonymizer.anonymize(content, Stopwatch()).detections)
    real = QuantizedModel._maps

    for value in (np.nan, np.inf, -np.inf):
        monkeypatch.setattr(
            QuantizedModel, "_maps", lambda *given, v=value: np.full_like(real(*given), v)
        )
        with pytest.raises(DetectionFailed, match="not finite") as raised:
            anonymizer.anonymize(content, Stopwatch())
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_decoder_in_the_graph_refuses_maps_that_are_not_finite(value):
    from worker.detection.centerface import network as centerface
    from worker.detection.centerface.maps import DEFAULT_LAYOUT
    from worker.detection.tf import tf

    def decode(maps):
        extent = tf.constant(maps.shape[1:3], tf.float32)
        return centerface._decode(tf.constant(maps), DEFAULT_LAYOUT, extent)

    maps = np.full((1, 32, 32, 15), -12, np.float32)
    assert int(decode(maps)["num_detections"][0]) == 0
    for channel in (0, 2, 14):
        spoiled = maps.copy()
        spoiled[0, 3, 5, channel] = value
        with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
            decode(spoiled)


# --- models of one's own

BOX = (0.2, 0.3, 0.6, 0.7)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """``own(outputs)`` writes a SavedModel that answers `outputs` of the canvas's height and width.

    With `only_bright` it answers so only for a picture that is bright throughout, and finds nothing
    in others.
    """
    from worker.detection.tf import tf

    def write(outputs, only_bright=False, batch=None):
        module = tf.Module()
        spec = tf.TensorSpec([batch, None, None, 3], tf.uint8, name="input_tensor")

        @tf.function(input_signature=[spec], autograph=False)
        def detect(input_tensor):
            pictures, height, width = (
                tf.cast(tf.shape(input_tensor)[i], tf.float32) for i in range(3)
            )
            answers = outputs(pictures, height, width)
            if not only_bright:
                return answers
            seen = tf.cast(tf.reduce_min(input_tensor[:, :64, :64]) > 250, tf.float32)
            scores = tf.cast(answers["detection_scores"], tf.float32)
            counts = tf.cast(answers["num_detections"], tf.float32)
            hidden = {
                "detection_scores": tf.where(seen > 0, scores, tf.zeros_like(scores)),
                "num_detections": tf.where(seen > 0, counts, tf.zeros_like(counts)),
            }
            return {**answers, **hidden}

        folder = tmp_path_factory.mktemp("own")
        tf.saved_model.save(module, str(folder), signatures={"serving_default": detect})
        return folder

    return write


def one_face(box=BOX, score=0.95, count=1.0, faces=1, scale=None, **more):
    """Return outputs with the same face `faces` times.

    `scale` is "pixels" if the box is not in shares of the canvas.
    """

    def outputs(pictures, height, width):
        from worker.detection.tf import tf

        ones = tf.ones([tf.cast(pictures, tf.int32), faces])
        sides = tf.stack([height, width, height, width]) if scale == "pixels" else tf.ones([4])
        answers = {
            "detection_boxes": ones[..., None] * tf.constant(box, tf.float32) * sides,
            "detection_scores": score * ones,
            "detection_classes": ones,
            "num_detections": count * ones[:, 0],
        }
        return {**answers, **{name: change(answers) for name, change in more.items()}}

    return outputs


def landmarks(value):
    def change(answers):
        from worker.detection.tf import tf

        return tf.zeros_like(answers["detection_boxes"])[..., :1, None] * tf.ones([5, 2]) + value

    return change


def cast(name, kind):
    def change(answers):
        from worker.detection.tf import tf

        return tf.cast(answers[name], kind)

    return change


NONSENSE = {
    "boxes in pixels": (
        one_face(scale="pixels"),
        "detection_boxes must be shares of the picture, 0 to 1",
    ),
    "boxes in percent": (one_face(box=(20, 30, 60, 70)), "must be shares"),
    "whole canvas in pixels": (one_face(box=(0, 0, 1, 1), scale="pixels"), "must be shares"),
    "boxes beside": (one_face(box=(1.2, 0.3, 1.6, 0.7)), "must be shares"),
    "inverted": (one_face(box=(0.6, 0.3, 0.2, 0.7)), "must be y1 x1 y2 x2"),
    "empty": (one_face(box=(0.2, 0.3, 0.2, 0.7)), "must be y1 x1 y2 x2"),
    "all zero boxes": (one_face(box=(0, 0, 0, 0)), "must be y1 x1 y2 x2"),
    "infinite": (one_face(box=(0.2, 0.3, 0.6, np.inf)), "not finite in detection_boxes"),
    "scores in percent": (one_face(score=95.0), "from 0 to 1"),
    "logits": (one_face(score=-3.0), "from 0 to 1"),
    "scores that are NaN": (one_face(score=np.nan), "not finite in detection_scores"),
    "NaN and none counted": (one_face(score=np.nan, count=0.0), "not finite in detection_scores"),
    "half a face": (one_face(count=0.5), "num_detections must be a whole number"),
    "fewer than none": (one_face(count=-1.0), "num_detections must be a whole number"),
    "infinitely many": (one_face(count=np.inf), "num_detections must be a whole number|counts inf"),
    "more than returned": (one_face(count=2.0), "counts 2 detections and returns 1"),
    "fewer than returned": (one_face(count=1.0, faces=3), "has a face beyond them"),
    "none counted": (one_face(count=0.0), "has a face beyond them"),
    "landmarks in pixels": (
        one_face(detection_keypoints=landmarks(150.0)),
        "detection_keypoints must be shares",
    ),
    "landmarks that are NaN": (
        one_face(detection_keypoints=landmarks(np.nan)),
        "not finite in detection_keypoints",
    ),
    "integer scores": (
        one_face(detection_scores=cast("detection_scores", "uint8")),
        "detection_scores as uint8 .*, not floats",
    ),
    "integer boxes": (
        one_face(detection_boxes=cast("detection_boxes", "int32")),
        "detection_boxes as int32",
    ),
    "no batch": (
        one_face(detection_boxes=lambda found: found["detection_boxes"][0]),
        "detection_boxes as float32",
    ),
    "classes that are NaN": (
        one_face(detection_classes=lambda found: found["detection_classes"] * float("nan")),
        "not finite in detection_classes",
    ),
}


@pytest.mark.parametrize(("outputs", "said"), NONSENSE.values(), ids=NONSENSE)
def test_a_model_of_ones_own_that_answers_nonsense_does_not_start(own, outputs, said):
    folder = own(outputs)

    with pytest.raises(ModelInvalid, match=said) as raised:
        load_model(WorkerSettings(model=str(folder)))

    assert str(folder) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def bright_picture():
    target = io.BytesIO()
    Image.new("RGB", (320, 256), (255, 255, 255)).save(target, "PNG")
    return target.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        "boxes in pixels",
        "inverted",
        "infinite",
        "scores in percent",
        "logits",
        "half a face",
        "more than returned",
    ],
)
def test_nonsense_that_comes_later_fails_its_picture(own, kind):
    outputs, said = NONSENSE[kind]
    anonymizer = build_anonymizer(WorkerSettings(model=str(own(outputs, only_bright=True))))

    with pytest.raises(DetectionFailed, match=said) as raised:
        anonymizer.anonymize(bright_picture(), Stopwatch())

    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("faces", [1, 3])
def test_a_model_that_answers_the_same_whatever_it_sees_does_not_start(own, faces):
    folder = own(one_face(faces=faces, count=float(faces)))

    with pytest.raises(ModelInvalid, match="the same for a photograph and a blank picture"):
        load_model(WorkerSettings(model=str(folder)))


def info(environment, *flags):
    """Run `veil model info` in this process, which has TensorFlow already, and return its end."""
    done = CliRunner().invoke(
        cli.app, ["model", "info", *flags], env=environment, catch_exceptions=False
    )
    assert done.exit_code == 0, done.stderr
    return done


def test_a_model_that_finds_nothing_at_all_starts_with_a_warning(own):
    folder = own(one_face(score=0.0, box=(0, 0, 0, 0), count=0.0))
    done = info({"VEIL_MODEL": str(folder), "VEIL_LOG_FORMAT": "json"})

    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "warning"
    assert line["event"] == "the model does not find the known face"


# --- pins and `veil model info`


@pytest.fixture(scope="module")
def zipped(own, tmp_path_factory):
    folder = own(one_face(score=0.0))
    return shutil.make_archive(
        str(tmp_path_factory.mktemp("zip") / "saved_model"), "zip", folder
    ), folder


def test_a_model_in_s3_is_what_its_pin_says_or_nothing_starts(
    veil, s3, raw, place, zipped, tmp_path
):
    archive, folder = zipped
    raw.put(place + "saved_model.zip", Path(archive).read_bytes())
    environment = {
        **s3.environment(),
        "VEIL_MODEL": raw.uri(place + "saved_model.zip"),
        "VEIL_LOG_FORMAT": "json",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    free = info(environment, "--json")
    digest = json.loads(free.stdout)["digest"]
    assert digest == load_untested_model(WorkerSettings(model=str(folder))).digest
    (warning,) = (
        line for line in map(json.loads, free.stderr.splitlines()) if "pinned" in line["event"]
    )
    assert (warning["address"], warning["digest"]) == (environment["VEIL_MODEL"], digest)

    pinned = info({**environment, "VEIL_MODEL_SHA256": digest.upper()}, "--json")
    assert "pinned" not in pinned.stderr

    refused = veil("model", "info", environment={**environment, "VEIL_MODEL_SHA256": "0" * 64})
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert "ModelInvalid" in line
    assert digest in line
    assert environment["VEIL_MODEL"] in line
    assert f"not {'0' * 64}, its pin: not used" in line


def test_info_tells_the_faces_of_a_file(veil, samples):
    done = veil("model", "info", "--json", "--picture", samples["astronaut.png"])
    told = json.loads(done.stdout)

    assert told["engine"] == "litert"
    picture = told["picture"]
    assert (picture["format"], picture["width"], picture["height"]) == ("PNG", 512, 512)
    ((face,),) = picture["frames"]
    x1, y1, x2, y2 = face["box_xyxy"]
    assert face["score"] > 0.8
    assert face["size"] == pytest.approx([x2 - x1, y2 - y1], abs=0.2)
    assert len(face["landmarks"]) == 5
    assert all(x1 < x < x2 and y1 < y < y2 for x, y in face["landmarks"])

    plain = veil("model", "info", "--picture", samples["astronaut.png"])
    assert "PNG, 512 x 512, 1 frame(s), 1 face(s)" in plain.stdout
    assert "score 0.9" in plain.stdout


def test_info_says_in_one_line_what_is_wrong_with_a_file(veil, tmp_path):
    (tmp_path / "a.txt").write_text("no picture")

    for path in (tmp_path / "a.txt", tmp_path / "nothing.jpg", tmp_path):
        done = veil("model", "info", "--picture", path, environment={"VEIL_LOG_FORMAT": "json"})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].startswith("veil: UnreadableImage: ")
