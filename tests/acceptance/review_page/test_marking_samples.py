"""The review desk in a real browser: the outputs of a sample, which a reviewer marks."""

import time

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tasks.records import samples
from tasks.records.samples import Sample, SampledPicture
from tests.acceptance.review_page.page import (
    ROUTE,
    drag,
    image_of,
    is_ready,
    is_shown,
    log_in,
    press,
    sample_of,
    status_of,
    take_screenshot,
    text,
    until,
)


def test_an_unfinished_sample_is_opened_if_nothing_else_is_to_review(browser, empty, photographs):
    log_in(browser, empty)
    until(browser, lambda: text(browser, "list-note") == "Nothing to review here.")
    sample_of(empty, photographs["admiral.jpg"])  # it appears by itself
    is_ready(browser, "s3://clean/s0.jpg")
    chooser = browser.find_element(By.ID, "samples")
    assert chooser.get_property("value") == "5a3b1e00"


def test_a_sample_is_marked_with_the_keyboard(browser, empty, photographs):
    empty.list("2026/coffee.jpg", photographs["coffee.jpg"])
    drawn = sample_of(empty, photographs["admiral.jpg"])
    log_in(browser, empty)
    is_shown(browser, "2026/coffee.jpg")
    chooser = browser.find_element(By.ID, "samples")
    until(browser, lambda: len(chooser.find_elements(By.TAG_NAME, "option")) == 2)
    chooser.send_keys("5")
    is_ready(browser, "s3://clean/s0.jpg")
    until(browser, lambda: image_of(browser))
    drag(browser, "output", (110, 60, 230, 240))
    assert "exposed face: 120 × 180 px" in text(browser, "shapes")
    take_screenshot(browser, "review-sample")
    press(browser, Keys.ENTER)
    is_ready(browser, "s3://clean/s1.jpg")
    press(browser, Keys.ENTER)
    until(browser, lambda: len(samples.marks(empty.redis, drawn.name)) == 2)
    marks = samples.marks(empty.redis, drawn.name)
    assert marks[1].exposed_xyxy == []
    ((x1, y1, x2, y2),) = marks[0].exposed_xyxy
    assert (x2 - x1, y2 - y1) == (120, 180)
    assert marks[0].by == "ana"


def test_a_saved_mark_that_was_removed_stays_so_until_that_is_saved(browser, empty, photographs):
    drawn = sample_of(empty, photographs["admiral.jpg"])
    samples.mark(empty.redis, drawn.name, 0, [[10, 10, 50, 50], [60, 60, 90, 90]], "ben")
    log_in(browser, empty)
    is_ready(browser, "s3://clean/s1.jpg")
    until(browser, lambda: image_of(browser))
    press(browser, "p")
    until(browser, lambda: text(browser, "shapes").count("exposed face") == 2)
    until(browser, lambda: image_of(browser))
    press(browser, Keys.DELETE, "n")
    is_ready(browser, "s3://clean/s1.jpg")
    until(browser, lambda: image_of(browser))
    press(browser, "p")
    until(browser, lambda: text(browser, "shapes").count("exposed face") == 1)
    until(browser, lambda: image_of(browser))
    press(browser, Keys.ENTER)
    is_ready(browser, "s3://clean/s1.jpg")
    assert samples.marks(empty.redis, drawn.name)[0].exposed_xyxy == [[10, 10, 50, 50]]
    assert browser.execute_script(
        "return dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    )


def test_an_output_of_a_sample_that_is_not_shown_is_not_marked(browser, empty, photographs):
    """Its mark would count as a picture that somebody has reviewed, without a miss."""
    etag = empty.put("clean", "s2.jpg", b"no picture")
    unseen = SampledPicture("s3://clean/s2.jpg", etag, ROUTE, width=341, height=400)
    shown = sample_of(empty, photographs["admiral.jpg"]).pictures[0]
    drawn = Sample("5a3b1e01", ["s3://clean"], 1, 900, time.time() + 1, [unseen, shown])
    samples.store(empty.redis, drawn)
    log_in(browser, empty)
    is_ready(browser, "s3://clean/s2.jpg")
    until(browser, lambda: "can't be shown" in text(browser, "status"))
    assert not browser.find_element(By.ID, "accept").is_enabled()
    press(browser, Keys.ENTER, "n")
    is_ready(browser, "s3://clean/s0.jpg")
    until(browser, lambda: browser.find_element(By.ID, "accept").is_enabled())
    press(browser, Keys.ENTER)
    until(browser, lambda: samples.marks(empty.redis, drawn.name))
    assert list(samples.marks(empty.redis, drawn.name)) == [1]


def test_a_sample_with_a_redo_and_an_output_that_is_gone_finishes(browser, empty, photographs):
    empty.list("made.jpg", photographs["admiral.jpg"])
    log_in(browser, empty)
    is_shown(browser, "made.jpg")
    press(browser, Keys.ENTER, Keys.ENTER)
    until(browser, lambda: text(browser, "status").startswith("Done"))
    pictures = []
    for key in ("made.jpg", "gone.jpg"):
        if key == "gone.jpg":
            empty.put("clean", key, photographs["coffee.jpg"])
        etag = empty.s3.head_object(Bucket="clean", Key=key)["ETag"].strip('"')
        source_etag = empty.s3.head_object(Bucket="raw", Key="made.jpg")["ETag"].strip('"')
        output, source = f"s3://clean/{key}", f"s3://raw/{key}"
        pictures.append(SampledPicture(output, etag, ROUTE, source, source_etag, 341, 400))
    drawn = Sample("60de0001", ["s3://clean"], 1, 2, time.time(), pictures)
    samples.store(empty.redis, drawn)
    empty.put("clean", "gone.jpg", photographs["admiral.jpg"])
    press(browser, Keys.ENTER)  # nothing else is to review
    is_shown(browser, "made.jpg")
    assert "main" in browser.find_element(By.ID, "accept").get_attribute("class")
    press(browser, "r")
    assert "Mark a face first" in text(browser, "status")
    drag(browser, "output", (110, 60, 230, 240))
    press(browser, "r")
    until(browser, lambda: text(browser, "status").startswith("Done"))
    press(browser, Keys.ENTER)
    until(browser, lambda: len(samples.marks(empty.redis, drawn.name)) == 2)
    marked, gone = (samples.marks(empty.redis, drawn.name)[number] for number in range(2))
    assert len(marked.exposed_xyxy) == 1
    assert gone.is_gone
    until(browser, lambda: text(browser, "title") == "Nothing chosen")
    until(browser, lambda: "can't be marked" in text(browser, "rows"))
    browser.find_elements(By.CSS_SELECTOR, "#rows button")[1].click()
    until(browser, lambda: "can't be marked" in text(browser, "status"))


def test_a_miss_is_marked_before_its_redo_also_after_a_refusal(browser, empty, photographs):
    """The redo replaces the output: without the mark, the sample would go on as if it had none."""
    etags = [empty.put(bucket, "s0.jpg", photographs["admiral.jpg"]) for bucket in ("raw", "clean")]
    picture = SampledPicture("s3://clean/s0.jpg", etags[1], ROUTE, "s3://raw/s0.jpg", etags[0])
    drawn = Sample("5a3b1e03", ["s3://clean"], 1, 1, time.time(), [picture])
    samples.store(empty.redis, drawn)
    log_in(browser, empty)
    is_shown(browser, "s0.jpg")
    until(browser, lambda: image_of(browser))
    drag(browser, "output", (110, 60, 230, 240))
    (claim,) = empty.redis.keys("veil:review:claim:*")
    empty.redis.set(claim, "another session")
    press(browser, Keys.ENTER)
    status_of(browser, "another reviewer")
    empty.redis.delete(claim)
    press(browser, "r")
    until(browser, lambda: samples.marks(empty.redis, drawn.name))
    assert len(samples.marks(empty.redis, drawn.name)[0].exposed_xyxy) == 1
