"""The figures of a preview: each stratum counts by its pictures, and failures count as failures."""

import pytest

from tasks.messages import FACE
from worker.preview.capacity import Prices, capacity
from worker.preview.sheet import page
from worker.preview.sources import MAX_PREFIXES, OTHER_PREFIXES, SourcePicture, Strata, draw
from worker.preview.summary import summarize
from worker.preview.trial import Attempt, TriedPicture
from worker.preview.variants import Variant
from worker.sampling.sizes import face_size
from worker.settings import WorkerSettings


def a_picture(name, size=1000):
    return SourcePicture(f"s3://raw/{name}", name, size, bytes)


def anonymized(seconds, **fields):
    return Attempt("anonymized", 100, 100, seconds={"detect": seconds}, **fields)


def test_the_model_of_a_billion_pictures_is_that_of_the_documentation():
    billion = capacity(10**9, 0.104, 200e12, 48, Prices())
    assert billion.core_hours == pytest.approx(32_100, rel=0.01)
    assert billion.processor_dollars == pytest.approx(1_320, rel=0.05)
    assert billion.request_dollars == pytest.approx(11_205, rel=0.01)
    assert billion.storage_dollars_a_month == pytest.approx(4_600)
    assert billion.hours == billion.core_hours / 48


def test_strata_count_by_their_pictures():
    # 30 quick pictures and 10 slow ones; 4 of them are drawn.
    pictures = [a_picture(f"quick/{n}.jpg") for n in range(30)]
    pictures += [a_picture(f"slow/{n}.jpg") for n in range(10)]
    sample = draw(iter(pictures), 4, 1, "s3://raw")
    strata = sample.draw()
    tried = []
    for stratum in strata:
        for picture in stratum.drawn:
            seconds = 1.0 if picture.name.startswith("quick") else 5.0
            tried.append(TriedPicture(picture, [anonymized(seconds, output_bytes=500)]))
    made = summarize(
        "s3://raw",
        1,
        sample,
        strata,
        [Variant("current settings", WorkerSettings())],
        tried,
        2,
        Prices(),
        True,
    )
    (figures,) = made.variants
    assert figures.seconds_a_picture == pytest.approx(2.0)
    assert figures.whole.core_hours == pytest.approx(40 * 2 / 0.9 / 3600)
    assert figures.whole.output_bytes == 20_000
    assert {row["prefix"]: row["pictures"] for row in made.strata} == {"quick/": 30, "slow/": 10}


def test_faces_errors_and_reasons_are_counted():
    pictures = [a_picture(f"{n}.jpg") for n in range(3)]
    sample = draw(iter(pictures), 3, 1, "s3://raw")
    strata = sample.draw()
    attempts = iter(
        (
            anonymized(
                1.0,
                boxes_xyxy=[[0, 0, 20, 30], [0, 0, 99, 99], [5, 5, 60, 20]],
                scores=[0.95, 1.0, 0.8],
                labels=[FACE, FACE, "plate"],
            ),
            Attempt("held", 9, 9, seconds={"detect": 1.0}, reason="no face found"),
            Attempt("failed", error="UnreadableImage", message="cut short"),
        )
    )
    tried = [TriedPicture(picture, [next(attempts)]) for picture in strata[0].drawn]
    variants = [Variant("current settings", WorkerSettings())]
    made = summarize("s3://raw", 1, sample, strata, variants, tried, 1, Prices(), True)
    (figures,) = made.variants
    assert (figures.faces, figures.with_faces, figures.held, figures.failed) == (2, 1, 1, 1)
    assert (figures.labels, figures.found) == ({FACE: 2, "plate": 1}, "2 faces, 1 plate")
    assert figures.faces_by_size["below 24 px"] == figures.faces_by_size["above 96 px"] == 1
    assert (sum(figures.faces_by_size.values()), figures.scores[-1], sum(figures.scores)) == (
        2,
        2,
        2,
    )
    html = page(made).decode()
    assert '<th scope="col">plate</th>' in html
    assert '<span class="chip">2 faces, 1 plate</span>' in html
    assert figures.errors == {"UnreadableImage": 1}
    assert figures.reasons == {"no face found": 1}
    assert figures.whole.output_bytes == 0


def test_sizes_of_faces_are_by_the_shorter_side():
    assert face_size([0, 0, 23, 500]) == "below 24 px"
    assert face_size([10, 10, 34, 34]) == "24 to 48 px"


def test_a_listing_with_many_prefixes_has_few_strata():
    strata = Strata()
    found = {strata.of(a_picture(f"{n}/a.jpg"))[0] for n in range(3 * MAX_PREFIXES)}
    assert len(found) == MAX_PREFIXES + 1
    assert OTHER_PREFIXES in found
    assert strata.of(a_picture("a.jpg", 20_000_000)) == (OTHER_PREFIXES, "above 10 MB")
