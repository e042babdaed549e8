"""A failure at any stage publishes nothing: no output appears, and an older one stays unchanged."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from tasks import errors
from tasks.messages import AnonymizeRequest
from tasks.routes import Routes
from tests.pipelines import run as run_pipeline
from worker.anonymizer import Anonymizer, Limits
from worker.detection.faces import Detections
from worker.masking import filling
from worker.masking.regions import MaskStyle
from worker.pipeline import Pipeline

STAGES = ("fetching", "decoding", "detecting", "masking", "encoding", "verifying", "storing")


class OneFace:
    """A detector that finds the same face in every picture."""

    def detect(self, picture):
        return Detections(np.array([[20, 20, 60, 70]], np.float32), np.array([0.9], np.float32))


class Failing:
    """A detector that raises the given error."""

    def __init__(self, error):
        self.error = error

    def detect(self, picture):
        raise self.error


class SecondLookFails(OneFace):
    """A detector that finds a face in a picture the first time and fails the second time."""

    looks = 0

    def detect(self, picture):
        self.looks += 1
        if self.looks == 2:
            raise errors.DetectorUnavailable("no answer")
        return super().detect(picture)


@pytest.fixture
def pipeline(store):
    """``pipeline(…)`` returns a pipeline whose `recipe` makes older outputs count as outdated."""

    def make(detector=None, recipe="new", store=store, **limits):
        bounds = {"max_bytes": 1 << 24, "max_pixels": 10**7, "fetch_seconds": 20.0, **limits}
        return Pipeline(
            store=store,
            anonymizer=Anonymizer(
                detector=detector or OneFace(),
                style=MaskStyle(),
                limits=Limits(**bounds),
                recipe=recipe,
                verify="flag",
            ),
            routes=Routes.parse("s3://raw=s3://clean"),
        )

    return make


def picture_file(kind="PNG", mode="RGB", size=(200, 160)):
    noise = np.random.default_rng(5).integers(0, 255, (size[1], size[0], len(mode)), np.uint8)
    target = io.BytesIO()
    Image.fromarray(noise).save(target, kind)
    return target.getvalue()


@pytest.fixture(params=[False, True], ids=["no output yet", "an older output"])
def published(request, pipeline, raw, clean, place):
    """Run a pipeline that must fail, and check that its destination has not changed."""

    @contextlib.contextmanager
    def unchanged(content):
        key = place + "a.png"
        task = AnonymizeRequest.parse(source=raw.put(key, picture_file()))
        if request.param:
            run_pipeline(pipeline(recipe="old"), task)
        before, bytes_before = clean.head(key), request.param and clean.get(key)
        raw.put(key, content)
        yield task
        after = clean.head(key)
        if not request.param:
            assert before is None
            assert after is None
            assert clean.keys(place) == []
            return
        assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])
        assert after["Metadata"] == before["Metadata"]
        assert clean.get(key) == bytes_before

    return unchanged


class Injected(Exception):
    """An unexpected failure."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_at_any_stage_publishes_nothing(published, pipeline, stage):
    def fail_at(begun):
        if begun == stage:
            raise Injected

    with published(picture_file()) as request, pytest.raises(Injected):
        run_pipeline(pipeline(), request, on_stage=fail_at)


def test_without_a_failure_the_same_picture_is_published(pipeline, raw, clean, place):
    """Check the premise of the other tests: without a failure the picture is published."""
    request = AnonymizeRequest.parse(source=raw.put(place + "a.png", picture_file()))
    run_pipeline(pipeline(recipe="old"), request)

    report = run_pipeline(pipeline(recipe="new"), request)

    assert report.status == "anonymized"
    assert clean.head(place + "a.png")["Metadata"]["veil-recipe"] == "new"


def test_a_source_that_hangs_while_it_is_fetched_publishes_nothing(
    published, pipeline, s3, store_at, line
):
    with published(picture_file(size=(600, 400))) as request:
        line.download = 100_000
        stalled = store_at(s3, endpoint=line.endpoint, s3_read_seconds=0.5)
        with pytest.raises(errors.StorageUnavailable):
            run_pipeline(pipeline(store=stalled), request)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", errors.EmptyObject),
        (b"no picture", errors.UnreadableImage),
        (picture_file()[:40_000], errors.UnreadableImage),
        (picture_file("JPEG")[:9_000], errors.UnreadableImage),
        (picture_file("WEBP")[:9_000], errors.UnreadableImage),
        (picture_file("TIFF")[:40_000], errors.UnreadableImage),
        (picture_file("GIF")[:9_000], errors.UnreadableImage),
        (picture_file("ICO"), errors.UnsupportedImage),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "cut WebP", "cut TIFF", "cut GIF", "ICO"],
)
def test_what_is_not_decoded_as_a_whole_publishes_nothing(published, pipeline, content, error):
    with published(content) as request, pytest.raises(error):
        run_pipeline(pipeline(), request)


@pytest.mark.parametrize(
    "error",
    [
        errors.DetectorUnavailable("late"),
        errors.DetectionFailed("failed"),
        MemoryError(),
        RuntimeError("bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_detector_that_fails_publishes_nothing(published, pipeline, error):
    with published(picture_file()) as request, pytest.raises(type(error)):
        run_pipeline(pipeline(Failing(error)), request)


def test_a_detector_that_fails_at_the_second_look_publishes_nothing(published, pipeline):
    with published(picture_file(mode="RGBA")) as request, pytest.raises(errors.DetectorUnavailable):
        run_pipeline(pipeline(SecondLookFails()), request)


def test_a_detector_that_fails_on_the_output_publishes_nothing(published, pipeline):
    with published(picture_file()) as request, pytest.raises(errors.DetectorUnavailable):
        run_pipeline(pipeline(SecondLookFails()), request)


def test_a_mask_that_fails_publishes_nothing(published, pipeline, monkeypatch):
    def fail(*_):
        raise Injected

    with published(picture_file()) as request:
        monkeypatch.setitem(filling.METHODS, MaskStyle().method, fail)
        with pytest.raises(Injected):
            run_pipeline(pipeline(), request)


def test_an_encoder_that_fails_after_its_first_bytes_publishes_nothing(
    published, pipeline, monkeypatch
):
    def fail(self, target, *_, **__):
        target.write(b"\x89PNG")
        raise OSError("encoder error")

    with published(picture_file()) as request:
        monkeypatch.setattr(Image.Image, "save", fail)
        with pytest.raises(OSError, match="encoder error"):
            run_pipeline(pipeline(), request)


def test_an_upload_that_is_cut_publishes_nothing(published, pipeline, s3, store_at, line):
    with published(picture_file(size=(600, 400))) as request:
        line.upload, line.cut = 100_000, True
        unlucky = store_at(s3, endpoint=line.endpoint, s3_read_seconds=2)
        with pytest.raises(errors.StorageUnavailable):
            run_pipeline(pipeline(store=unlucky), request)


@pytest.mark.parametrize(
    ("limits", "error"),
    [({"max_bytes": 90_000}, errors.ImageTooLarge), ({"max_pixels": 31_999}, errors.ImageTooLarge)],
    ids=["bytes", "pixels"],
)
def test_a_picture_over_a_limit_publishes_nothing(published, pipeline, limits, error):
    with published(picture_file()) as request, pytest.raises(error):
        run_pipeline(pipeline(**limits), request)


# A warning ends no worker, so it must not end the test.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "box",
    [[np.nan] * 4, [20, 20, np.nan, 70], [60, 20, 20, 70], [20, 70, 60, 20]],
    ids=lambda box: str(box),
)
def test_a_face_that_has_no_place_publishes_nothing(published, pipeline, box):
    class Confused:
        def detect(self, picture):
            return Detections(
                np.array([[20, 20, 60, 70], box], np.float32), np.array([0.9, 0.8], np.float32)
            )

    with published(picture_file()) as request, pytest.raises(errors.DetectionFailed):
        run_pipeline(pipeline(Confused()), request)
