"""The result of a sample: which faces count, and what the report says."""

from dataclasses import replace

import pytest

from tasks.records.samples import Mark, Sample, SampledPicture
from worker.sampling.acceptance import (
    accept,
    low_end,
    percent,
    percent_down,
    percent_up,
    says_nothing,
)
from worker.sampling.redo import wanted_again
from worker.sampling.report import page

HOSTILE = "s3://clean/<img src=x onerror=alert(1)>.jpg"


def a_sample(*pictures):
    return Sample("0a1b2c3d", ["s3://clean/2026"], 1, 5000, 1.8e9, list(pictures))


def a_picture(number, boxes=(), route="s3://raw/=s3://clean/"):
    output = f"s3://clean/{number}.jpg"
    return SampledPicture(output, "e", route, f"s3://raw/{number}.jpg", "e", 100, 80, list(boxes))


def test_no_miss_in_300_pictures():
    sample = a_sample(*(a_picture(number, [[0, 0, 50, 50]]) for number in range(300)))
    result = accept(sample, {number: Mark([]) for number in range(300)})
    assert result.is_complete
    assert result.statement == (
        "No miss in 300 pictures: fewer than 1 % of all pictures have an exposed face, "
        "at 95 % (one-sided)."
    )
    assert (result.faces.found, result.faces.of) == (0, 300)
    assert result.needed[0.01] == 299


def test_a_marked_face_that_was_hidden_badly_counts_once_and_a_missed_one_in_addition():
    hidden = [[0, 0, 40, 40], [60, 60, 80, 80]]
    result = accept(a_sample(a_picture(1, hidden)), {0: Mark([[2, 2, 42, 42], [0, 50, 10, 60]])})
    assert (result.faces.found, result.faces.of) == (2, 3)
    assert (result.by_size["below 24 px"].found, result.by_size["below 24 px"].of) == (1, 2)
    assert (result.by_size["24 to 48 px"].found, result.by_size["24 to 48 px"].of) == (1, 1)


def test_pictures_that_are_not_reviewed_count_nowhere_and_are_named():
    result = accept(a_sample(a_picture(1), a_picture(2)), {0: Mark([])})
    assert (result.reviewed, result.is_complete) == (1, False)
    assert result.pictures.of == 1
    assert b"not complete" in page(result)
    nothing = accept(a_sample(a_picture(1)), {})
    assert nothing.statement == "No picture has been reviewed."
    assert "in 1 picture:" in result.statement
    assert b"of 2 pictures" in page(result)
    assert (nothing.pictures.low, nothing.pictures.high) == (0.0, 1.0)


def test_a_picture_that_is_gone_counts_nowhere_and_the_sample_is_complete_without_it():
    gone = Mark([], is_gone=True)
    result = accept(a_sample(a_picture(1), a_picture(2)), {0: Mark([]), 1: gone})
    assert (result.reviewed, result.skipped, result.is_complete) == (1, 1, True)
    assert result.pictures.of == 1
    assert result.to_json()["skipped"] == 1
    assert b"1 of 2 pictures can't be marked" in page(result)
    unseen = accept(a_sample(a_picture(1)), {0: gone})
    assert (unseen.unreviewed, unseen.is_complete) == (0, False)  # nobody has looked at anything


def test_each_route_has_its_own_rates():
    sample = a_sample(a_picture(1), a_picture(2, route="s3://b/=s3://c/"))
    result = accept(sample, {0: Mark([]), 1: Mark([[0, 0, 9, 9]])})
    found = {route: pictures.found for route, (pictures, _) in result.by_route.items()}
    assert found == {"s3://raw/=s3://clean/": 0, "s3://b/=s3://c/": 1}


def test_the_report_escapes_what_comes_from_outside_and_loads_nothing():
    picture = SampledPicture(HOSTILE, "e", "s3://raw/=s3://clean/")
    html = page(accept(a_sample(picture), {0: Mark([[0, 0, 9, 9]], "<script>")})).decode()
    assert "<img" not in html
    assert "<script>&" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert "default-src &#x27;none&#x27;" in html or "default-src 'none'" in html


def test_the_lower_end_of_a_rate_is_not_0_where_something_was_found():
    """The faces of one picture hide half of all faces: the effective number is below 2."""
    hidden = [[x, 0, x + 30, 30] for x in range(0, 3000, 40)]
    marks = {0: Mark([]), 1: Mark([[0, 50, 30, 80]])}
    faces = accept(a_sample(a_picture(1, hidden), a_picture(2)), marks).faces
    assert (faces.found, percent(faces.low), low_end(faces)) == (1, "0 %", "> 0 %")
    assert percent(faces.high) != "0 %"


def test_a_sample_of_the_whole_archive_is_exact():
    pictures = [a_picture(number, [[0, 0, 50, 50]]) for number in range(21)]
    marks = {number: Mark([[60, 60, 70, 70]] if number == 0 else []) for number in range(21)}
    sample = replace(a_sample(*pictures), count=21)
    result = accept(sample, marks)
    assert result.statement == (
        "1 picture with a miss in 21 pictures, which are all of the archive."
    )
    assert (result.pictures.low, result.pictures.high) == (1 / 21, 1 / 21)
    assert (result.faces.low, result.faces.upper_bound) == (1 / 22, 1 / 22)
    assert b"The rates are exact" in page(result)
    assert not accept(sample, dict(list(marks.items())[:20])).is_census


def test_a_bound_of_all_pictures_is_not_said():
    result = accept(a_sample(a_picture(1)), {0: Mark([[0, 0, 9, 9]])})
    assert result.statement == (
        "1 picture with a miss in 1 picture: too few without one to say how many of all pictures "
        "have one."
    )
    assert not says_nothing(accept(a_sample(a_picture(1, [[0, 0, 9, 9]])), {0: Mark([])}).faces)
    assert says_nothing(accept(a_sample(a_picture(1)), {0: Mark([])}).faces)


def test_plates_are_no_faces():
    hidden = [[0, 0, 20, 20]]
    picture = replace(a_picture(1, hidden), others_xyxy=[[40, 40, 60, 50]])
    result = accept(a_sample(picture), {0: Mark([[70, 10, 90, 30]])})
    assert (result.faces.found, result.faces.of) == (1, 2)


def test_an_address_breaks_after_its_slashes():
    result = accept(a_sample(a_picture("2026/a&b")), {0: Mark([[0, 0, 9, 9]])})
    assert b"s3://clean/<wbr>2026/<wbr>a&amp;b.jpg</td>" in page(result)


def test_a_redo_keeps_the_options_and_hides_the_misses_too():
    picture = SampledPicture(
        "s3://clean/1.jpg",
        "e",
        "s3://raw/=s3://clean/",
        "s3://raw/1.jpg",
        options={"region": 0.9, "extra": [[0, 0, 5, 5]], "release": "e"},
    )
    (finding,) = accept(a_sample(picture), {0: Mark([[1, 2, 3, 4]])}).misses
    wanted = wanted_again(finding)
    assert str(wanted.source) == "s3://raw/1.jpg"
    assert wanted.options.to_json() == {"region": 0.9, "extra": [[0, 0, 5, 5], [1, 2, 3, 4]]}


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (4.4e-16, "0 %"),
        (3e-7, "0.00003 %"),
        (0.001, "0.1 %"),
        (0.0099, "0.99 %"),
        (0.01, "1.0 %"),
        (1, "100.0 %"),
    ],
)
def test_percentages_have_the_digits_that_matter(share, text):
    assert percent(share) == text


def test_288_pictures_are_not_said_to_show_what_takes_299():
    """Their bound is 1.035 %."""
    sample = a_sample(*(a_picture(number) for number in range(299)))
    short = accept(sample, {number: Mark([]) for number in range(288)})
    assert "fewer than 1.1 % of all pictures" in short.statement
    enough = accept(sample, {number: Mark([]) for number in range(299)})
    assert "fewer than 1.0 % of all pictures" in enough.statement


@pytest.mark.parametrize(
    ("share", "down", "up"),
    [
        (0, "0 %", "0 %"),
        (0.01, "1.0 %", "1.0 %"),
        (0.0103, "1.0 %", "1.1 %"),
        (0.00991, "0.99 %", "1 %"),
        (0.000521, "0.052 %", "0.053 %"),
        (0.29, "29.0 %", "29.0 %"),
        (1, "100.0 %", "100.0 %"),
    ],
)
def test_the_ends_of_an_interval_are_rounded_outwards(share, down, up):
    assert (percent_down(share), percent_up(share)) == (down, up)
