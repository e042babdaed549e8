"""The residual check: faces that are found in the output are hidden, flagged or held back."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image

from tasks import messages
from tasks.errors import UnreadableImage
from tasks.messages import AnonymizeOptions
from worker import images
from worker.anonymizer import Anonymizer, Limits, Stopwatch
from worker.detection.faces import Detections
from worker.detection.labelled import Search
from worker.detection.presets import PRESETS
from worker.detection.tiled import ModelInput
from worker.detection.tracks import MAX_MISSED_FRAMES
from worker.masking.filling import METHODS
from worker.masking.hiding import hide
from worker.masking.regions import MaskStyle
from worker.residual_check import MAX_CHECKS, ResidualCheck, exposed, least_score
from worker.treatments import AS_CONFIGURED, Treatments

FACE, OTHER = (30, 20, 60, 60), (70, 10, 90, 30)
LIMITS = Limits(max_bytes=10**6, max_pixels=10**6, fetch_seconds=5)
STYLE = MaskStyle("fill", 0.7, 0.0)


class FindsInTurn:
    """A detector that finds the next boxes at each call, and the last ones from then on."""

    def __init__(self, *answers):
        self.pictures = []
        self._answers = answers

    def detect(self, picture):
        boxes = self._answers[min(len(self.pictures), len(self._answers) - 1)]
        self.pictures.append(picture)
        scores = np.linspace(0.9, 0.8, len(boxes), dtype=np.float32) * np.float32(
            0.9 ** len(self.pictures)
        )
        return Detections(np.array(boxes, np.float32).reshape(-1, 4), scores)


class FindsAnother:
    """A detector that finds a face in another place at each call."""

    def __init__(self):
        self.pictures = []

    def detect(self, picture):
        self.pictures.append(picture)
        x = 10 * len(self.pictures)
        return Detections(np.array([(x, 60, x + 9, 72)], np.float32), np.array([0.5], np.float32))


def checking(detector, verify="flag", style=STYLE, **options):
    limits = options.pop("limits", LIMITS)
    return Anonymizer(detector=detector, style=style, limits=limits, verify=verify, **options)


def photograph(form="PNG", seed=0, **options):
    pixels = np.random.default_rng(seed).integers(1, 256, (80, 100, 3), np.uint8, endpoint=False)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form, **options)
    return target.getvalue()


def animation(form, *seeds, **options):
    frames = [Image.open(io.BytesIO(photograph(seed=seed))) for seed in seeds]
    target = io.BytesIO()
    frames[0].save(target, form, save_all=True, append_images=frames[1:], duration=100, **options)
    return target.getvalue()


def frames(file):
    image = Image.open(io.BytesIO(file))
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        yield np.asarray(image.convert("RGB")).astype(int)


def is_hidden(pixels, box):
    x1, y1, x2, y2 = box
    upper = pixels[y1 : y1 + round(0.7 * (y2 - y1)), x1:x2]
    return bool((upper == 0).all())


def test_a_face_that_is_found_in_the_output_is_hidden_too():
    detector = FindsInTurn([FACE], [OTHER], [])
    result = checking(detector).anonymize(photograph(), Stopwatch())
    (pixels,) = frames(result.content)
    assert is_hidden(pixels, FACE)
    assert is_hidden(pixels, OTHER)
    assert len(detector.pictures) == 3
    assert (result.checked.verdict, result.reason) == ("clear", None)
    assert result.checked.added.boxes_xyxy.tolist() == [list(OTHER)]
    assert len(result.checked.remaining) == 0
    assert result.detections.boxes_xyxy.tolist() == [list(FACE), list(OTHER)]


def test_the_output_itself_is_looked_at():
    detector = FindsInTurn([FACE], [])
    result = checking(detector).anonymize(photograph("JPEG"), Stopwatch())
    assert np.array_equal(
        detector.pictures[1], images.decode(result.content, 10**6, 1).frames[0].pixels
    )
    assert not np.array_equal(detector.pictures[1], detector.pictures[0])


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
def test_a_face_that_is_found_again_where_it_is_hidden_does_not_count(method, shape):
    lower = (30, 32, 60, 72)  # The mouth and chin of FACE, which the detector takes for a face.
    detector = FindsInTurn([FACE], [FACE, lower])
    result = checking(detector, style=replace(STYLE, method=method, shape=shape)).anonymize(
        photograph(), Stopwatch()
    )
    assert len(detector.pictures) == 2
    assert (result.checked.verdict, len(result.checked.added), result.reason) == ("clear", 0, None)


@pytest.mark.parametrize("verify", ["flag", "hold"])
def test_a_picture_in_which_faces_are_found_without_end_is_flagged_or_held(verify):
    detector = FindsAnother()
    result = checking(detector, verify).anonymize(photograph(), Stopwatch())
    assert len(detector.pictures) == 1 + MAX_CHECKS
    assert result.reason == "faces still found in the output"
    assert result.checked.verdict == "left"
    assert len(result.checked.added) == MAX_CHECKS
    x = 10 * (1 + MAX_CHECKS)
    assert result.checked.remaining.boxes_xyxy.tolist() == [[x, 60, x + 9, 72]]
    assert (result.content is None) == (verify == "hold")


@pytest.mark.parametrize("verify", ["flag", "hold"])
def test_an_array_is_looked_at_again_as_a_file_is(verify):
    detector = FindsInTurn([FACE], [OTHER], [])
    pixels = np.random.default_rng(0).integers(1, 256, (80, 100, 3), np.uint8)
    result = checking(detector, verify).anonymize_array(pixels)
    assert is_hidden(result.pixels, FACE)
    assert is_hidden(result.pixels, OTHER)
    assert (len(detector.pictures), result.checked.verdict, result.reason) == (3, "clear", None)

    result = checking(FindsAnother(), verify).anonymize_array(pixels)
    assert result.reason == "faces still found in the output"
    assert (result.pixels is None) == (verify == "hold")


def test_of_a_flagged_picture_all_is_hidden_that_was_found():
    result = checking(FindsAnother()).anonymize(photograph(), Stopwatch())
    (pixels,) = frames(result.content)
    assert all(
        is_hidden(pixels, box)
        for box in ((10 * n, 60, 10 * n + 9, 72) for n in range(1, 2 + MAX_CHECKS))
    )


def test_a_released_picture_is_published_as_it_would_be():
    flagged = checking(FindsAnother(), "flag").anonymize(photograph(), Stopwatch())
    released = checking(FindsAnother(), "hold").anonymize(
        photograph(), Stopwatch(), AnonymizeOptions(release="version")
    )
    assert released.content == flagged.content
    assert (released.reason, len(released.checked.remaining)) == (None, 1)


def test_a_released_picture_without_faces_is_published():
    made = checking(FindsInTurn([]), "off", hold_without_faces=True)
    assert made.anonymize(photograph(), Stopwatch()).reason == "no face found"
    released = made.anonymize(photograph(), Stopwatch(), AnonymizeOptions(release="version"))
    assert released.content is not None
    assert released.reason is None


def test_an_exempt_area_stays_exempt_and_an_extra_one_counts_as_hidden():
    options = AnonymizeOptions(exempt=((65, 5, 95, 35),), extra=((5, 50, 20, 75),))
    detector = FindsInTurn([FACE, OTHER], [OTHER, (5, 50, 20, 75)])
    result = checking(detector, "hold").anonymize(photograph(), Stopwatch(), options)
    assert result.detections.boxes_xyxy.tolist() == [list(FACE)]
    assert (result.checked.verdict, len(detector.pictures)) == ("clear", 2)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_an_output_with_the_pixels_that_were_looked_at_is_not_looked_at_again(form):
    detector = FindsInTurn([])
    result = checking(detector, "hold").anonymize(photograph(form), Stopwatch())
    assert (len(detector.pictures), result.checked.verdict) == (1, "same")
    assert result.content is not None


def test_a_lossy_output_is_looked_at_again_even_where_nothing_was_hidden():
    detector = FindsInTurn([], [FACE], [])
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 3  # so that it is encoded anew
    source = photograph("WEBP", quality=50, exif=turned)
    result = checking(detector).anonymize(source, Stopwatch())
    assert result.checked.added.boxes_xyxy.tolist() == [list(FACE)]


def test_of_an_animation_only_frames_with_other_pixels_are_looked_at_again():
    last = MAX_MISSED_FRAMES + 1  # The first frame in which FACE no longer counts as missed.
    detector = FindsInTurn([FACE], *[[]] * last, [OTHER], [])
    result = checking(detector).anonymize(animation("PNG", *range(last + 1)), Stopwatch())
    shown = list(frames(result.content))
    assert len(detector.pictures) == (last + 1) + last + last
    assert [is_hidden(frame, FACE) for frame in shown] == [True] * last + [False]
    assert [is_hidden(frame, OTHER) for frame in shown] == [True] + [False] * last


def test_where_frames_of_the_output_were_joined_a_face_is_hidden_in_all():
    # The frames differ only by the hidden face.
    pictures = [np.array(Image.open(io.BytesIO(photograph()))) for _ in range(2)]
    x1, y1, x2, _ = FACE
    pictures[1][y1 : y1 + 28, x1:x2] = 200
    target = io.BytesIO()
    made = [Image.fromarray(pixels) for pixels in pictures]
    made[0].save(target, "PNG", save_all=True, append_images=made[1:], duration=100)
    detector = FindsInTurn([FACE], [FACE], [OTHER], [])
    result = checking(detector).anonymize(target.getvalue(), Stopwatch())
    assert [
        is_hidden(pixels, box) for pixels in frames(result.content) for box in (FACE, OTHER)
    ] == [True, True]
    assert result.checked.verdict == "clear"


def test_checks_end_when_another_one_would_take_too_long():
    detector = FindsAnother()
    result = checking(detector, limits=replace(LIMITS, detection_seconds=1e-9)).anonymize(
        photograph(), Stopwatch()
    )
    assert len(detector.pictures) == 2
    assert result.checked.verdict == "left"


def test_an_output_that_cannot_be_read_back_is_none(monkeypatch):
    written = images.encode
    monkeypatch.setattr(images, "encode", lambda *arguments: written(*arguments)[:-30])
    with pytest.raises(UnreadableImage, match="the output can't be read back"):
        checking(FindsInTurn([FACE])).anonymize(photograph(), Stopwatch())


def test_without_the_check_a_picture_is_looked_at_once():
    detector = FindsAnother()
    result = checking(detector, "off").anonymize(photograph(), Stopwatch())
    assert (len(detector.pictures), result.checked.verdict, result.reason) == (1, "off", None)


def test_the_check_is_a_stage_of_its_own():
    heard = []
    watch = Stopwatch(heard.append)
    checking(FindsAnother()).anonymize(photograph(), watch)
    assert heard == ["decoding", "detecting", "masking", "encoding", "verifying"]
    assert list(watch.seconds)[-1] == "verify"


def faces(*boxes):
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.9, "f4"))


def noise(seed=0, shape=(80, 100, 3)):
    return np.random.default_rng(seed).integers(1, 256, shape, np.uint8, endpoint=False)


def compared(pictures, outputs, found, mode="RGB"):
    """Return what the check says of `outputs`, in which detection finds nothing."""
    check = ResidualCheck(
        decode=lambda output: output,
        find=lambda picture: [Detections.none() for _ in picture.frames],
        redo=lambda more: None,
        treatments=Treatments(STYLE),
        options=AS_CONFIGURED,
        max_seconds=60,
    )
    picture, output = (
        images.Picture(tuple(images.Frame(pixels, mode) for pixels in several), "PNG")
        for several in (pictures, outputs)
    )
    return check.run(picture, found, output)[1]


def test_a_face_whose_mask_is_at_another_place_is_left():
    found = faces(FACE, OTHER)
    output = hide(noise(), faces(FACE, (10, 50, 30, 70)).sightings, STYLE)
    checked = compared([noise()], [output], [found])

    assert (checked.verdict, checked.reason) == ("left", "faces still found in the output")
    assert checked.remaining.boxes_xyxy.tolist() == [list(OTHER)]
    assert len(checked.added) == 0


def test_the_picture_in_place_of_its_output_has_all_its_faces_left():
    checked = compared([noise()], [noise()], [faces(FACE, OTHER)])

    assert checked.verdict == "left"
    assert checked.remaining.boxes_xyxy.tolist() == [list(FACE), list(OTHER)]


def test_an_output_of_another_size_has_all_its_faces_left():
    output = hide(noise(), faces(FACE).sightings, STYLE)[:-8]

    assert compared([noise()], [output], [faces(FACE)]).verdict == "left"


def test_each_frame_is_compared_with_its_own():
    pictures = [noise(seed) for seed in range(3)]
    outputs = [hide(picture, faces(FACE).sightings, STYLE) for picture in pictures]

    assert compared(pictures, outputs, [faces(FACE)] * 3).verdict == "clear"
    outputs[1] = pictures[1]
    checked = compared(pictures, outputs, [faces(FACE)] * 3)
    assert checked.remaining.boxes_xyxy.tolist() == [list(FACE)]


def test_transparency_may_stay_as_it_is():
    picture = noise(shape=(80, 100, 4))
    output = hide(picture, faces(FACE).sightings, STYLE)
    output[..., 3] = picture[..., 3]

    assert compared([picture], [output], [faces(FACE)], "RGBA").verdict == "clear"


@pytest.mark.parametrize("verify", ["flag", "hold"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_masks_at_the_right_places_are_accepted(form, verify):
    result = checking(FindsInTurn([FACE, OTHER], []), verify).anonymize(
        photograph(form), Stopwatch()
    )

    assert (result.checked.verdict, result.reason) == ("clear", None)


def test_of_the_faces_that_are_found_in_the_output_only_strong_ones_count():
    detector = FindsInTurn([FACE], [OTHER], [])  # The score of OTHER is 0.73.
    strict = checking(detector, least_check_score=0.75).anonymize(photograph(), Stopwatch())

    assert (strict.checked.verdict, len(strict.checked.added)) == ("clear", 0)
    assert len(detector.pictures) == 2
    lenient = checking(FindsInTurn([FACE], [OTHER], []), least_check_score=0.7).anonymize(
        photograph(), Stopwatch()
    )
    assert lenient.checked.added.boxes_xyxy.tolist() == [list(OTHER)]


def search(label, threshold):
    takes = ModelInput()
    passes = PRESETS["balanced"]
    return Search(label, 0, passes, threshold, threshold, takes, seconds=1, classes={})


def test_the_score_that_counts_follows_from_the_threshold_of_faces():
    assert least_score([search(messages.FACE, 0.2), search("plate", 0.1)]) == pytest.approx(0.6)
    both = [search(messages.FACE, 0.5), search(messages.FACE, 0.4)]
    assert least_score(both) == pytest.approx(0.7)


# --- by a receipt

BESIDE = (45, 20, 75, 60)  # partly at the mask of FACE


def shown_by_receipt(output, source, *answers, least=0.0):
    """Return the boxes that count as shown, by a receipt of FACE; detection `answers` in turn."""
    detector = FindsInTurn(*answers)

    def picture(pixels):
        return images.Picture((images.Frame(pixels, "RGB"),), "PNG")

    shown = exposed(
        picture(output),
        None if source is None else picture(source),
        Detections(np.array([FACE], np.float32), np.array([0.9], np.float32)),
        lambda found_in: [detector.detect(frame.pixels) for frame in found_in.frames],
        Treatments(STYLE),
        AS_CONFIGURED,
        least,
    )
    return [tuple(box) for box in Detections.joined(shown).boxes_xyxy.tolist()]


@pytest.fixture
def pair():
    """A picture, and its output in which FACE is hidden."""
    pixels = next(frames(photograph())).astype(np.uint8)
    boxes = np.array([FACE], np.float32)
    hidden = hide(pixels, Detections(boxes, np.ones(1, np.float32)).sightings, STYLE)
    return pixels, hidden


def test_by_a_receipt_what_it_hides_is_not_shown(pair):
    source, output = pair
    assert shown_by_receipt(output, source, [FACE]) == []
    assert shown_by_receipt(output, None, [FACE]) == []


def test_by_a_receipt_a_hidden_face_that_looks_as_in_the_source_is_shown(pair):
    source, _ = pair
    assert shown_by_receipt(source, source, []) == [FACE]
    assert shown_by_receipt(source, None, []) == []  # There is nothing to compare.


def test_by_a_receipt_a_face_that_it_does_not_have_is_shown(pair):
    source, output = pair
    assert shown_by_receipt(output, source, [OTHER]) == [OTHER]
    assert shown_by_receipt(output, None, [OTHER]) == [OTHER]
    assert shown_by_receipt(output, source, [OTHER], least=0.9) == []


def test_by_a_receipt_a_face_at_a_mask_is_an_echo_unless_the_source_has_it(pair):
    source, output = pair
    assert shown_by_receipt(output, source, [BESIDE], [FACE]) == []
    assert shown_by_receipt(output, source, [BESIDE], [FACE, BESIDE]) == [BESIDE]
    assert shown_by_receipt(output, None, [BESIDE]) == [BESIDE]
