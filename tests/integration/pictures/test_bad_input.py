"""Pictures that cannot be anonymized become dead letters with a reason, and stop no others."""

import io

import numpy as np
import pytest
from PIL import Image

from tasks import errors
from tasks.records import dead_letters


def as_jpeg(image):
    target = io.BytesIO()
    image.save(target, "JPEG", quality=90)
    return target.getvalue()


@pytest.fixture
def refused(worker, queue, raw, clean, portrait, place):
    """Check that a message fails by `name`, leaves a letter and no output, and stops no worker."""

    def check(name, /, *arguments, message="", letter=None, **named):
        result = queue.send(*arguments, **named)
        state, error = queue.outcome(result)
        assert (state, type(error)) == ("FAILURE", getattr(errors, name))
        assert message in str(error)
        assert str(error)
        assert len(str(error).splitlines()) == 1
        letters = dead_letters.LETTERS.entries(queue.client)
        (kept,) = (each for each in letters if each.task_id == result.id)
        without_source = f"message {result.id}"
        has_source = arguments and arguments[0] is not None
        assert kept.source == (letter or (str(arguments[0]) if has_source else without_source))
        assert (kept.error, kept.message, kept.attempts) == (name, str(error), 1)
        assert clean.keys(place) == []
        good = raw.put(place + "good.jpg", portrait)
        assert queue.report(good)["status"] == "anonymized"

    return check


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), {}),
        ((None,), {}),
        ((17,), {}),
        ((True,), {}),
        ((["s3://raw/a.jpg"],), {}),
        (("s3://raw/a.jpg", None, "fill"), {}),
        (("s3://raw/a.jpg", None, {"method": "smear"}), {}),
        (("s3://raw/a.jpg", None, {"extra": [[0, 0, 9, 9]] * 1001}), {}),
        (({"source": "s3://raw/a.jpg"},), {}),
        (("",), {}),
        (("a.jpg",), {}),
        (("http://raw/a.jpg",), {}),
        (("s3://raw",), {}),
        (("s3://raw/folder/",), {}),
        (("s3://UPPER/a.jpg",), {}),
        (("s3://raw/" + "k" * 1025,), {}),
        (("s3://raw/\ud800.jpg",), {}),
        (("s3://raw/a.jpg", 5), {}),
        (("s3://raw/a.jpg", "s3://clean"), {}),
        (("s3://raw/a.jpg", None, "extra"), {}),
        (("s3://raw/a.jpg",), {"quality": 5}),
        (("s3://raw/a.jpg",), {"cls": 5}),
        (("s3://raw/a.jpg",), {"callback": {"url": "http://127.0.0.1/"}}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_message_that_is_no_request_is_refused(refused, queue, arguments, named):
    source = arguments[0] if arguments else None
    stored_as = (
        None if source is None else str(source)[:1100].encode("utf-8", "backslashreplace").decode()
    )
    refused("InvalidRequest", *arguments, letter=stored_as or None, **named)


def test_an_argument_that_celery_itself_would_stumble_over_is_refused_by_name(
    refused, raw, portrait, place
):
    """Celery calls a task with a `self` of its own."""
    refused("InvalidRequest", raw.put(place + "a.jpg", portrait), self=5, message="argument self")


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("s3://other/a.jpg", None),
        ("s3://clean/a.jpg", None),
        ("s3://raw/a.jpg", "s3://other/a.jpg"),
        ("s3://raw/a.jpg", "s3://raw/b.jpg"),
        ("s3://other/in/a.jpg", "s3://clean/a.jpg"),
    ],
)
def test_a_place_outside_the_routes_is_refused_before_it_is_touched(refused, source, destination):
    refused("BucketNotAllowed", source, destination, message="VEIL_ROUTES")


def test_a_missing_object_is_refused(refused, raw, place):
    refused("ObjectNotFound", raw.uri(place + "missing.jpg"), message="missing.jpg does not exist")


def test_a_missing_source_bucket_is_refused(refused):
    refused("ObjectNotFound", "s3://absent/a.jpg", message="the bucket does not exist")


def test_an_empty_object_is_refused(refused, raw, place):
    refused("EmptyObject", raw.put(place + "a.jpg", b""))


@pytest.mark.parametrize(
    "content", [b"hello\n" * 100, b"\0" * 5000, b"<html></html>", b"\xff\xd8\xff\xe0", b"\x89PNG"]
)
def test_what_is_no_picture_is_refused_whatever_its_name(refused, raw, place, content):
    refused("UnreadableImage", raw.put(place + "a.jpg", content))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_jpeg_is_refused_and_never_half_delivered(refused, raw, samples, place, share):
    whole = samples["gallery.jpg"].read_bytes()
    refused("UnreadableImage", raw.put(place + "a.jpg", whole[: int(len(whole) * share)]))


def test_a_truncated_png_is_refused(refused, raw, samples, place):
    whole = samples["hallway.png"].read_bytes()
    refused("UnreadableImage", raw.put(place + "a.png", whole[: len(whole) // 2]))


def test_a_picture_of_too_many_pixels_is_refused_although_its_file_is_small(
    refused, raw, place, environment
):
    side = int(int(environment["VEIL_MAX_PIXELS"]) ** 0.5) + 1
    target = io.BytesIO()
    Image.new("1", (side, side)).save(target, "PNG")
    assert len(target.getvalue()) < 100_000
    refused("ImageTooLarge", raw.put(place + "a.png", target.getvalue()), message="VEIL_MAX_PIXELS")


def test_an_object_of_too_many_bytes_is_refused_although_its_picture_is_small(
    refused, raw, portrait, place, environment
):
    size = int(environment["VEIL_MAX_BYTES"]) + 1
    refused(
        "ImageTooLarge",
        raw.put(place + "a.jpg", portrait.ljust(size, b"\0")),
        message=f"{size:,} bytes",
    )


def test_a_format_that_is_not_handled_is_refused_by_its_name(refused, raw, samples, place):
    target = io.BytesIO()
    with Image.open(samples["astronaut.png"]) as image:
        image.save(target, "ICO")
    refused("UnsupportedImage", raw.put(place + "a.jpg", target.getvalue()), message="ICO")


def test_every_frame_of_an_animation_is_anonymized(worker, queue, raw, clean, samples, place):
    target = io.BytesIO()
    with Image.open(samples["astronaut.png"]) as image:
        first = image.crop((120, 0, 340, 220))
        frames = [first, first.transpose(Image.Transpose.FLIP_LEFT_RIGHT), first]
        frames[0].save(
            target, "WEBP", save_all=True, append_images=frames[1:], duration=100, quality=90
        )

    report = queue.report(raw.put(place + "a.webp", target.getvalue()))

    assert (report["status"], report["faces"], report["format"]) == ("anonymized", 3, "WEBP")
    with Image.open(io.BytesIO(clean.get(place + "a.webp"))) as after:
        assert after.n_frames == 3


def test_a_foreign_object_at_the_destination_is_never_replaced(
    worker, queue, raw, clean, portrait, place
):
    source = raw.put(place + "a.jpg", portrait)
    clean.put(place + "a.jpg", b"somebody else's")

    state, error = queue.outcome(queue.send(source))

    assert (state, type(error)) == ("FAILURE", errors.DestinationTaken)
    assert clean.get(place + "a.jpg") == b"somebody else's"
    assert queue.dead()[source].error == "DestinationTaken"


def test_the_output_of_another_source_is_never_replaced(
    worker, queue, raw, clean, portrait, samples, place
):
    first = raw.put(place + "a.jpg", portrait)
    second = raw.put(place + "b.jpg", samples["admiral.jpg"].read_bytes())
    queue.report(first)
    before = clean.get(place + "a.jpg")

    state, error = queue.outcome(queue.send(second, clean.uri(place + "a.jpg")))

    assert (state, type(error)) == ("FAILURE", errors.DestinationTaken)
    assert clean.get(place + "a.jpg") == before
    letter = queue.dead()[second]
    assert letter.destination == clean.uri(place + "a.jpg")
    assert letter.worker
    assert letter.task_id


def test_a_dead_letter_goes_once_its_picture_is_delivered(worker, queue, raw, portrait, place):
    source = raw.uri(place + "late.jpg")
    queue.outcome(queue.send(source))
    assert queue.dead()[source].error == "ObjectNotFound"
    raw.put(place + "late.jpg", portrait)

    assert queue.report(source)["status"] == "anonymized"

    assert source not in queue.dead()


def test_bad_pictures_among_good_ones_cost_only_themselves(
    worker, queue, raw, clean, portrait, samples, place
):
    whole = samples["admiral.jpg"].read_bytes()
    noise = as_jpeg(
        Image.fromarray(np.random.default_rng(3).integers(0, 255, (90, 90, 3), np.uint8))
    )
    contents = [portrait, whole[:9000], b"", noise, b"x", portrait]

    sent = [
        queue.send(raw.put(f"{place}{number}.jpg", content))
        for number, content in enumerate(contents)
    ]
    states = [queue.outcome(result)[0] for result in sent]

    assert states == ["SUCCESS", "FAILURE", "FAILURE", "SUCCESS", "FAILURE", "SUCCESS"]
    assert clean.keys(place) == [f"{place}{number}.jpg" for number in (0, 3, 5)]
