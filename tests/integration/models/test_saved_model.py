"""A user's SavedModel works from the model to S3, or is refused in one line."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tasks.errors import DetectionFailed, ModelInvalid
from tasks.messages import AnonymizeOptions, AnonymizeRequest
from tests.pipelines import run as run_pipeline
from worker.anonymizer import Stopwatch
from worker.settings import WorkerSettings

ANY_SIZE = [None, None, None, 3]
GOOD_SHAPES = {
    "batches and pictures of any size": ANY_SIZE,
    "one picture at a time": [1, None, None, 3],
    "one picture of one size": [1, 320, 320, 3],
    "batches of pictures of one size": [None, 256, 384, 3],
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """``build(change)`` writes a model that finds a bright square; `change` spoils its answers."""
    from worker.detection.tf import tf

    def edges(seen):
        """Return the first and last true index in each row of bool [n, length], by its length."""
        length = tf.shape(seen)[1]
        first = tf.argmax(tf.cast(seen, tf.int32), axis=1, output_type=tf.int32)
        last = length - tf.argmax(
            tf.cast(tf.reverse(seen, [1]), tf.int32), axis=1, output_type=tf.int32
        )
        return first / length, last / length

    def find(pictures):
        bright = tf.reduce_all(tf.cast(pictures, tf.int32) > 235, axis=-1)
        top, bottom = edges(tf.reduce_any(bright, axis=2))
        left, right = edges(tf.reduce_any(bright, axis=1))
        seen = tf.cast(tf.reduce_any(bright, axis=[1, 2]), tf.float32)
        return {
            "detection_boxes": tf.cast(
                tf.stack([top, left, bottom, right], axis=-1)[:, None], tf.float32
            ),
            "detection_scores": 0.9 * seen[:, None],
            "detection_classes": tf.ones_like(seen)[:, None],
            "num_detections": seen,
        }

    def write(
        shape=ANY_SIZE, dtype=tf.uint8, change=lambda found: found, signature="serving_default"
    ):
        module = tf.Module()
        spec = tf.TensorSpec(shape, dtype, name="input_tensor")

        @tf.function(input_signature=[spec], autograph=False)
        def detect(input_tensor):
            return change(
                find(tf.reshape(input_tensor, [-1, *tf.unstack(tf.shape(input_tensor)[-3:])]))
            )

        folder = tmp_path_factory.mktemp("model")
        tf.saved_model.save(module, str(folder), signatures={signature: detect})
        return folder

    return write


def settings_of(folder, batch_size=4, **settings):
    return WorkerSettings(
        model=str(folder),
        batch_size=batch_size,
        batch_wait_seconds=0.05,
        scales=(256, 512),
        closer_to=0,
        region=1.0,
        **settings,
    )


def pipeline_of(folder, store=None, **settings):
    from worker.bootstrap import build_pipeline

    return build_pipeline(settings_of(folder, **settings), store)


def picture_with_square(left, top, side, width=420, height=300):
    """Return a dark picture with a bright square, in which neighbouring pixels always differ."""
    chance = np.random.default_rng(left)
    pixels = chance.integers(0, 90, (height, width, 3), np.uint8)
    pixels[top : top + side, left : left + side] = chance.integers(
        238, 255, (side, side, 3), np.uint8
    )
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


@pytest.mark.parametrize("shape", GOOD_SHAPES.values(), ids=GOOD_SHAPES)
def test_a_model_hides_each_face_where_it_saw_it(build, store, raw, clean, place, shape):
    pipeline = pipeline_of(build(shape), store)
    places = {
        f"{place}{left}.png": (left, 40 + left // 3, 60 + left // 8) for left in (20, 90, 160, 230)
    }
    for key, (left, top, side) in places.items():
        raw.put(key, picture_with_square(left, top, side))

    def run(key):
        return run_pipeline(pipeline, AnonymizeRequest.parse(source=raw.uri(key)))

    # They are sent at once, so they share batches. None may get the box of another.
    with ThreadPoolExecutor(len(places)) as pool:
        reports = dict(zip(places, pool.map(run, places), strict=True))

    for key, (left, top, side) in places.items():
        ((x1, y1, x2, y2),) = reports[key].boxes_xyxy
        assert np.abs(np.array([x1, y1, x2, y2]) - [left, top, left + side, top + side]).max() <= 4
        with clean.open(key) as output, raw.open(key) as source:
            after, before = np.asarray(output), np.asarray(source)
        square = slice(top, top + side), slice(left, left + side)
        assert before[square].min() > 230
        assert after[square].max() < 200
        outside = np.ones(before.shape[:2], bool)
        outside[max(0, top - side) : top + 2 * side, max(0, left - side) : left + 2 * side] = False
        assert (after[outside] == before[outside]).all()


def test_a_picture_without_a_face_is_published_as_it_was(build, store, raw, clean, place):
    target = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 160, (200, 300, 3), np.uint8)).save(
        target, "PNG"
    )
    source = raw.put(place + "a.png", target.getvalue())

    report = run_pipeline(pipeline_of(build(), store), AnonymizeRequest.parse(source=source))

    assert (report.status, report.faces) == ("anonymized", 0)
    with clean.open(place + "a.png") as output, raw.open(place + "a.png") as before:
        assert (np.asarray(output) == np.asarray(before)).all()


@pytest.mark.parametrize(
    ("keypoints", "side"),
    [(5, "right"), (17, "top"), (0, "top")],
    ids=["five", "seventeen", "none"],
)
def test_a_model_that_tells_where_eyes_and_mouth_are_decides_which_end_is_hidden(
    build, keypoints, side
):
    """The faces lie on their left side: the eyes are on the right, midway up."""

    def with_keypoints(found):
        from worker.detection.tf import tf

        top, left, bottom, right = tf.unstack(found["detection_boxes"], axis=-1)
        middle = (top + bottom) / 2
        eyes, mouth = (
            tf.stack([middle, left + share * (right - left)], axis=-1) for share in (0.7, 0.3)
        )
        points = [eyes, eyes, *[mouth] * (keypoints - 2)] if keypoints else []
        return {**found, **({"detection_keypoints": tf.stack(points, axis=2)} if points else {})}

    from worker.bootstrap import build_anonymizer

    model = build_anonymizer(settings_of(build(change=with_keypoints), turned="never"))
    file = picture_with_square(100, 80, 100)
    result = model.anonymize(file, Stopwatch(), AnonymizeOptions(method="fill", region=0.6))
    after = np.asarray(Image.open(io.BytesIO(result.content)))
    hidden = (after[85:175, 105:195] == 0).all(axis=-1)
    corner = {"right": hidden[:, :15], "top": hidden[-15:]}[side]
    assert hidden.mean() > 0.6
    assert not corner.any()


@pytest.mark.parametrize("capacity", [50, None], ids=["fifty", "not stated"])
def test_more_faces_than_a_model_returns_are_all_hidden(tmp_path, capacity):
    """The model returns the brightest cells of 8 x 8 pixels, at most 50 or 100 of one canvas.

    With 100 it does not say that it left some out.
    """
    from worker.bootstrap import build_anonymizer
    from worker.detection.tf import tf

    most = capacity or 100
    module = tf.Module()

    @tf.function(
        input_signature=[tf.TensorSpec(ANY_SIZE, tf.uint8, name="input_tensor")], autograph=False
    )
    def detect(pictures):
        light = tf.nn.max_pool2d(tf.cast(pictures[..., :1], tf.float32) / 255, 8, 8, "SAME")
        size = tf.cast(tf.shape(light)[1:3], tf.float32)
        cells = tf.reshape(light, [tf.shape(light)[0], -1])
        scores, index = tf.math.top_k(cells, tf.minimum(most, tf.shape(cells)[1]))
        corner = tf.cast(
            tf.stack([index // tf.shape(light)[2], index % tf.shape(light)[2]], axis=-1), tf.float32
        )
        scores = tf.where(scores > 0.8, scores, 0.0)
        count = tf.reduce_sum(tf.cast(scores > 0, tf.float32), axis=1)
        boxes = tf.concat([(corner - 0.2) / size, (corner + 1.2) / size], axis=-1)
        if capacity:
            room = [[0, 0], [0, most - tf.shape(scores)[1]]]
            boxes, scores = tf.pad(boxes, [*room, [0, 0]]), tf.pad(scores, room)
            boxes, scores = (
                tf.ensure_shape(boxes, [None, most, 4]),
                tf.ensure_shape(scores, [None, most]),
            )
        return {
            "detection_boxes": boxes,
            "detection_scores": scores,
            "detection_classes": tf.ones_like(scores),
            "num_detections": count,
        }

    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": detect})
    pixels = np.random.default_rng(5).integers(40, 160, (320, 480, 3), np.uint8)
    faces = [(left, top) for top in range(10, 300, 24) for left in range(10, 460, 26)]
    for left, top in faces:
        pixels[top : top + 10, left : left + 10] = 255
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")

    result = build_anonymizer(settings_of(tmp_path, batch_size=1, method="fill")).anonymize(
        target.getvalue(), Stopwatch()
    )

    assert len(faces) > 2 * most
    after = np.asarray(Image.open(io.BytesIO(result.content)))
    assert not [
        place
        for place in faces
        if (after[place[1] : place[1] + 10, place[0] : place[0] + 10] == 255).any()
    ]


def changed(**outputs):
    """Replace outputs of the model; None removes one."""

    def change(found):
        found |= {name: make and make(found[name]) for name, make in outputs.items()}
        return {name: value for name, value in found.items() if value is not None}

    return change


def nan_everywhere(boxes):
    return boxes * float("nan")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"shape": [4, None, None, 3]}, "batches of exactly 4"),
        ({"shape": [None, None, 3]}, "not uint8"),
        ({"shape": [None, None, None, 1]}, "not uint8"),
        ({"dtype": "float32"}, "not uint8"),
        ({"change": changed(detection_scores=None)}, "does not return detection_scores"),
        (
            {"change": changed(detection_boxes=None, num_detections=None)},
            "detection_boxes, num_detections",
        ),
        (
            {"change": changed(num_detections=lambda n: n + 1, detection_boxes=nan_everywhere)},
            "not finite",
        ),
        ({"change": changed(num_detections=nan_everywhere)}, "fails on a black picture"),
        (
            {"change": changed(detection_boxes=lambda boxes: boxes[..., :3])},
            "fails on a black picture",
        ),
        ({"change": changed(num_detections=lambda n: n + 5)}, "counts 5 detections and returns 1"),
        ({"signature": "predict"}, "no signature serving_default"),
    ],
    ids=[
        "a batch of four",
        "three dimensions",
        "one channel",
        "float pixels",
        "no scores",
        "no boxes and no count",
        "boxes that are not numbers",
        "a count that is not a number",
        "boxes of three sides",
        "more boxes counted than returned",
        "another signature",
    ],
)
def test_a_model_that_breaks_the_contract_is_refused_in_one_line(build, model, message):
    folder = build(**model)

    with pytest.raises(ModelInvalid, match=message) as raised:
        pipeline_of(folder)

    assert str(folder) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelInvalid, match=r"holds no saved_model\.pb: give the folder"):
        pipeline_of(tmp_path)
    inner = tmp_path / "saved_model"
    inner.mkdir()
    (inner / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelInvalid, match=f"give {inner}$"):
        pipeline_of(tmp_path)


def test_a_damaged_model_is_refused_in_one_line(build):
    folder = build()
    (folder / "saved_model.pb").write_bytes(b"\0" * 1000)

    with pytest.raises(ModelInvalid, match="can't be loaded") as raised:
        pipeline_of(folder)

    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        changed(detection_boxes=lambda boxes: boxes / (boxes - boxes)),
        changed(detection_boxes=lambda boxes: boxes[..., ::-1]),
    ],
    ids=["no numbers", "corners in the wrong order"],
)
def test_a_model_that_loses_its_mind_over_a_face_publishes_nothing(
    build, store, raw, clean, place, change
):
    """The model passes the check on a black picture, in which it finds nothing."""
    pipeline = pipeline_of(build(change=change), store)
    source = raw.put(place + "a.png", picture_with_square(150, 90, 70))

    with pytest.raises(DetectionFailed) as raised:
        run_pipeline(pipeline, AnonymizeRequest.parse(source=source))

    assert len(str(raised.value).splitlines()) == 1
    assert clean.keys(place) == []


def test_a_worker_without_its_model_says_so_in_one_line_and_takes_no_message(
    unattended, s3, refused_worker, tmp_path, worker_settings
):
    unattended.send("s3://raw/a.jpg")
    settings = {**worker_settings(unattended), "VEIL_MODEL": str(tmp_path / "nowhere")}

    done = refused_worker(settings)

    assert done.returncode not in (0, None)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "ModelInvalid" in line
    assert str(tmp_path / "nowhere") in line
    assert "VEIL_MODEL" in line
    assert unattended.client.llen("uploads") == 1
    assert unattended.client.hlen("unacked") == 0


def test_a_model_that_never_answers_ends_its_worker_and_leaves_the_picture_to_the_next(
    build, new_queue, worker_settings, start_worker, programs, raw, place
):
    def never(found):
        from worker.detection.tf import tf

        # The model finds nothing in the black picture that warms it up.
        seen = tf.reduce_max(found["num_detections"])
        waited = tf.while_loop(
            lambda _: seen > 0, lambda turns: (turns + 1.0,), [tf.constant(0.0)]
        )[0]
        return {**found, "num_detections": found["num_detections"] + waited}

    queue = new_queue()
    queue.client.flushdb()
    raw.put(place + "a.png", picture_with_square(90, 60, 80))
    settings = {
        **worker_settings(queue),
        "VEIL_MODEL": str(build(change=never)),
        "VEIL_DETECT_SECONDS": "1",
    }
    with start_worker([programs / "veil", "worker"], settings) as worker:
        queue.send(raw.uri(place + "a.png"))

        assert worker.server.process.wait(60) == 70

        (line,) = worker.lines("stalled")
    assert line["what"] == "a batch in the detector"
    assert line["seconds"] > 1
    assert queue.client.hlen("unacked") >= 1
    assert queue.dead() == {}
