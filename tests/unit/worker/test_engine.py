"""The public engine: files and arrays in a Python program, with the errors of a worker."""

import copy
import gc
import io
import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import worker
from tasks.errors import (
    DetectionFailed,
    DetectorUnavailable,
    EmptyObject,
    ImageTooLarge,
    InvalidRequest,
    ModelInvalid,
    SettingsInvalid,
    UnreadableImage,
    UnsupportedImage,
)
from tasks.messages import AnonymizeOptions
from worker import Anonymizer
from worker.detection.faces import Detections


@pytest.fixture(scope="module")
def anonymizer(clean_environment):
    return Anonymizer.from_settings(max_pixels=1_000_000, max_bytes=1_000_000)


@pytest.fixture(scope="module")
def pixels(portrait):
    return np.asarray(Image.open(io.BytesIO(portrait)).convert("RGB"))


def test_the_standard_output_of_a_program_is_its_own(capfd):
    Anonymizer.from_settings()
    assert capfd.readouterr().out == ""


class Finds:
    """A detector that calls `during` and finds one face."""

    def __init__(self, during=lambda: None):
        self._during = during

    def detect(self, picture):
        self._during()
        return Detections(np.array([(20, 20, 60, 60)], np.float32), np.array([0.9], np.float32))


def test_a_file_comes_back_in_its_format_with_its_faces_hidden(anonymizer, portrait, pixels):
    result = anonymizer.anonymize(portrait)
    clean = Image.open(io.BytesIO(result.content))
    assert (clean.format, result.format) == ("JPEG", "JPEG")
    assert clean.size == (result.width, result.height)
    assert result.detections.boxes_xyxy.shape == (1, 4)
    assert result.detections.scores.shape == (1,)
    x1, y1, x2, y2 = result.detections.boxes_xyxy[0].round().astype(int)
    upper = np.s_[y1 : y1 + (y2 - y1) // 2, x1:x2]
    assert np.abs(np.asarray(clean).astype(int) - pixels)[upper].mean() > 20


def test_an_array_comes_back_with_the_faces_hidden_that_detect_finds(anonymizer, pixels):
    before = pixels.copy()
    result = anonymizer.anonymize_array(pixels)
    assert np.array_equal(pixels, before)
    assert (result.pixels.dtype, result.pixels.shape) == (np.uint8, pixels.shape)
    found = anonymizer.detect(pixels)
    assert found.boxes_xyxy.tolist() == result.detections.boxes_xyxy.tolist()
    x1, y1, x2, y2 = found.boxes_xyxy[0].round().astype(int)
    assert (result.pixels != pixels)[y1 : y1 + (y2 - y1) // 2, x1:x2].mean() > 0.8


def test_an_array_and_a_lossless_file_of_it_have_the_same_output(anonymizer, pixels):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    file = anonymizer.anonymize(target.getvalue())
    assert np.array_equal(
        Image.open(io.BytesIO(file.content)), anonymizer.anonymize_array(pixels).pixels
    )


def test_a_path_and_its_bytes_have_the_same_output(anonymizer, portrait, tmp_path):
    path = tmp_path / "portrait.jpg"
    path.write_bytes(portrait)
    expected = anonymizer.anonymize(portrait)
    for file in (path, str(path)):
        assert anonymizer.anonymize(file).content == expected.content
    boxes = expected.detections.boxes_xyxy.tolist()
    for file in (path, str(path), portrait):
        assert anonymizer.detect(file).boxes_xyxy.tolist() == boxes
    assert path.read_bytes() == portrait


def test_a_path_that_is_missing_or_too_large_is_an_error(anonymizer, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        anonymizer.anonymize(tmp_path / "missing.jpg")
    (tmp_path / "large.jpg").write_bytes(bytes(1_000_001))
    with pytest.raises(ImageTooLarge, match="VEIL_MAX_BYTES"):
        anonymizer.anonymize(tmp_path / "large.jpg")


@pytest.mark.timeout(60)
def test_a_device_without_an_end_is_too_large(anonymizer):
    with pytest.raises(ImageTooLarge, match="VEIL_MAX_BYTES"):
        anonymizer.anonymize("/dev/zero")
    with Path("/dev/zero").open("rb") as endless, pytest.raises(ImageTooLarge):
        anonymizer.detect(endless)


def test_what_can_not_be_read_as_a_file_is_an_error_of_veil(anonymizer, portrait, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(portrait)
    closed = path.open("rb")
    closed.close()
    with path.open(encoding="utf-8") as text:
        for given, said in (
            (text, "in binary mode"),
            (io.StringIO("a"), "in binary mode"),
            ("a\0b", "null"),
            (closed, "closed"),
        ):
            with pytest.raises(InvalidRequest, match=said):
                anonymizer.anonymize(given)


def test_a_pillow_image_and_its_array_have_the_same_output(anonymizer, pixels):
    expected = anonymizer.anonymize_array(pixels)
    image = Image.fromarray(pixels)
    result = anonymizer.anonymize_array(image)
    assert np.array_equal(result.pixels, expected.pixels)
    assert np.array_equal(result.image, expected.pixels)
    assert np.array_equal(image, pixels)
    boxes = anonymizer.detect(image).boxes_xyxy
    assert boxes.tolist() == expected.detections.boxes_xyxy.tolist()


def test_a_pillow_image_of_a_file_is_turned_upright(anonymizer, portrait, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Viewers rotate the picture by 90° clockwise.
    path = tmp_path / "turned.png"
    Image.fromarray(np.rot90(pixels)).save(path, exif=exif)
    with Image.open(path) as image:
        result = anonymizer.anonymize_array(image)
    assert np.array_equal(result.pixels, anonymizer.anonymize_array(pixels).pixels)


def test_a_grey_pillow_image_becomes_rgb(anonymizer):
    result = anonymizer.anonymize_array(Image.new("L", (64, 48), 128))
    assert (result.pixels == 128).all()
    assert result.image.size == (64, 48)


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK", "I;16", "F"])
def test_a_pillow_image_of_another_mode_is_refused_with_the_remedy(anonymizer, mode):
    with pytest.raises(UnsupportedImage, match=r"convert\('RGB'\)"):
        anonymizer.detect(Image.new(mode, (8, 8)))


def test_a_pillow_image_of_a_damaged_file_is_unreadable(anonymizer, portrait):
    with Image.open(io.BytesIO(portrait[:2000])) as image, pytest.raises(UnreadableImage):
        anonymizer.anonymize_array(image)


def test_options_are_an_object_or_a_dict(anonymizer, portrait, pixels):
    given = {"region": "full", "extra": [[0, 0, 9, 9]]}
    options = AnonymizeOptions.parse(**given)
    expected = anonymizer.anonymize(portrait, options).content
    assert anonymizer.anonymize(portrait, given).content == expected
    assert expected != anonymizer.anonymize(portrait).content
    expected = anonymizer.anonymize_array(pixels, options).pixels
    assert np.array_equal(anonymizer.anonymize_array(pixels, given).pixels, expected)
    with pytest.raises(InvalidRequest, match=r"extra\.0: an area needs four whole numbers"):
        anonymizer.anonymize(portrait, {"extra": [[0, 0, 9]]})
    with pytest.raises(InvalidRequest, match="options"):
        anonymizer.anonymize_array(pixels, "full")


def test_a_result_is_short_in_a_notebook(anonymizer, portrait, pixels):
    for result in (anonymizer.anonymize(portrait), anonymizer.anonymize_array(pixels)):
        assert len(repr(result)) < 400
        assert "boxes_xyxy" in repr(result)


def test_views_of_arrays_are_taken_as_they_look(anonymizer, pixels):
    flipped = pixels[:, ::-1]
    contiguous = np.ascontiguousarray(flipped)
    assert np.array_equal(
        anonymizer.anonymize_array(flipped).pixels, anonymizer.anonymize_array(contiguous).pixels
    )


def test_an_output_without_faces_shares_no_memory_with_its_input(anonymizer):
    blank = np.full((64, 64, 3), 128, np.uint8)
    result = anonymizer.anonymize_array(blank)
    assert np.array_equal(result.pixels, blank)
    assert not np.shares_memory(result.pixels, blank)


def test_an_array_that_changes_during_the_work_leaves_no_clear_pixels(anonymizer, monkeypatch):
    given = np.full((80, 80, 3), 10, np.uint8)
    monkeypatch.setattr(anonymizer._anonymizer, "_detector", Finds(lambda: given.fill(255)))
    assert anonymizer.anonymize_array(given).pixels.max() == 10


NOT_ARRAYS = [
    [[[1, 2, 3]]],
    None,
    Image.new("RGBA", (8, 8)),
    np.ma.masked_array(np.zeros((8, 8, 3), np.uint8)),
    np.zeros((8, 8, 3)),
    np.zeros((8, 8, 3), np.int8),
    np.zeros((8, 8, 3), np.uint16),
    np.zeros((8, 8, 3), bool),
    np.zeros((8, 8), np.uint8),
    np.zeros((8, 8, 1), np.uint8),
    np.zeros((8, 8, 4), np.uint8),
    np.zeros((3, 8, 8), np.uint8),
    np.zeros((1, 8, 8, 3), np.uint8),
    np.zeros((0, 8, 3), np.uint8),
    np.zeros((8, 0, 3), np.uint8),
]


@pytest.mark.parametrize("given", NOT_ARRAYS, ids=range(len(NOT_ARRAYS)))
@pytest.mark.parametrize("method", ["anonymize_array", "detect"])
def test_anything_but_rgb_in_8_bits_is_refused_by_name(anonymizer, given, method):
    with pytest.raises((UnsupportedImage, InvalidRequest)) as error:
        getattr(anonymizer, method)(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["anonymize_array", "detect"])
def test_what_is_no_picture_is_told_what_each_method_takes(anonymizer, method):
    said = "a NumPy array or a Pillow image or, for anonymize and detect, a file .*, not list"
    with pytest.raises(InvalidRequest, match=said):
        getattr(anonymizer, method)([[0, 0, 0]])


@pytest.mark.parametrize("method", ["anonymize_array", "detect"])
def test_an_array_over_the_limit_is_refused(anonymizer, method):
    with pytest.raises(ImageTooLarge, match="VEIL_MAX_PIXELS"):
        getattr(anonymizer, method)(np.zeros((1000, 1001, 3), np.uint8))
    with pytest.raises(ImageTooLarge, match="VEIL_MAX_PIXELS"):
        getattr(anonymizer, method)(Image.new("RGB", (1000, 1001)))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", EmptyObject),
        (b"no picture", UnreadableImage),
        (bytes(1_000_001), ImageTooLarge),
        (bytearray(b"\xff\xd8"), UnreadableImage),
        (io.BytesIO(bytes(1_000_001)), ImageTooLarge),
        (7, InvalidRequest),
        (None, InvalidRequest),
        (io.StringIO("text"), InvalidRequest),
    ],
)
def test_a_file_that_cannot_be_anonymized_raises_what_a_worker_does(anonymizer, content, error):
    with pytest.raises(error):
        anonymizer.anonymize(content)


def test_bytes_of_any_type_and_open_files_are_taken(anonymizer, portrait, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(portrait)
    expected = anonymizer.anonymize(portrait).content
    with path.open("rb") as buffered, path.open("rb", buffering=0) as raw:
        for given in (bytearray(portrait), memoryview(portrait), buffered, raw):
            assert anonymizer.anonymize(given).content == expected
    faces = anonymizer.detect(io.BytesIO(portrait))
    assert faces.boxes_xyxy.tolist() == anonymizer.detect(portrait).boxes_xyxy.tolist()


def test_a_failure_of_the_detector_is_an_error_and_not_an_output(
    anonymizer, pixels, portrait, monkeypatch
):
    def fail():
        raise DetectionFailed("the model failed")

    monkeypatch.setattr(anonymizer._anonymizer, "_detector", Finds(fail))
    for work in (anonymizer.anonymize_array, anonymizer.detect):
        with pytest.raises(DetectionFailed):
            work(pixels)
    with pytest.raises(DetectionFailed):
        anonymizer.anonymize(portrait)


def test_settings_come_from_the_environment_and_arguments_take_precedence(anonymizer, monkeypatch):
    monkeypatch.setenv("VEIL_NO_FACES", "hold")
    blank = np.full((64, 64, 3), 128, np.uint8)
    held = Anonymizer.from_settings().anonymize_array(blank)
    assert (held.pixels, held.reason) == (None, "no face found")
    assert Anonymizer.from_settings(no_faces="publish").anonymize_array(blank).pixels is not None


@pytest.mark.parametrize("values", [{"preset": "quick"}, {"max_pixels": -1}])
def test_a_setting_that_is_wrong_is_refused(values):
    with pytest.raises(SettingsInvalid, match=f"VEIL_{next(iter(values)).upper()}"):
        Anonymizer.from_settings(**values)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prest", "prest is not the name of a setting here: write preset="),
        ("VEIL_METHOD", "VEIL_METHOD is not the name of a setting here: write method="),
        ("METHOD", "write method="),
        ("colour", "docs/settings.md lists all settings"),
    ],
)
def test_a_wrong_name_of_a_setting_is_refused_with_the_argument_to_write(name, said):
    with pytest.raises(SettingsInvalid, match=said):
        Anonymizer.from_settings(**{name: "fill"})


@pytest.mark.parametrize("name", ["redis_url", "routes", "upload_acl", "review_url"])
def test_a_setting_that_changes_no_picture_is_refused(name):
    with pytest.raises(SettingsInvalid, match=f"VEIL_{name.upper()} changes no picture"):
        Anonymizer.from_settings(**{name: "x"})


def test_a_misspelt_variable_is_refused(monkeypatch):
    monkeypatch.setenv("VEIL_PRESETS", "fast")
    with pytest.raises(SettingsInvalid, match="did you mean VEIL_PRESET"):
        Anonymizer.from_settings()


def test_a_misspelt_name_of_worker_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Anonymiser"):
        worker.Anonymiser  # noqa: B018


@pytest.mark.parametrize("address", ["s3://raw/a.jpg", "https://example.com/a.jpg"])
def test_an_address_is_no_path(anonymizer, address):
    with pytest.raises(UnsupportedImage, match=f"^{address} is an address"):
        anonymizer.anonymize(address)


def test_a_model_may_be_a_path(tmp_path):
    with pytest.raises(ModelInvalid, match=r"gone does not exist"):
        Anonymizer.from_settings(model=tmp_path / "gone")


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_anonymizer_is_not_copied(anonymizer, duplicate):
    with pytest.raises(TypeError, match="create one in each process"):
        duplicate(anonymizer)


def test_a_forked_process_is_told_to_create_its_own(anonymizer, pixels):
    def work(answers):
        for method in (anonymizer.anonymize_array, anonymizer.detect):
            try:
                method(pixels)
            except Exception as error:
                answers.put((type(error), str(error)))

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=work, args=(answers,))
    process.start()
    for _ in range(2):
        kind, message = answers.get(timeout=9)  # before VEIL_DETECT_SECONDS have passed
        assert kind is DetectorUnavailable
        assert "create one in each process" in message
    process.join()


def test_an_anonymizer_that_is_dropped_stops_its_threads(clean_environment):
    def inference():
        return {thread for thread in threading.enumerate() if thread.name == "inference"}

    before = inference()
    dropped = Anonymizer.from_settings()
    (started,) = (inference() - before,)
    assert started
    del dropped
    gc.collect()
    for thread in started:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in started)
