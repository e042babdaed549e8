"""The review desk in a real browser: draw, redo, see the new output, accept; keyboard only."""

import io
import time

from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tasks.storage import receipts
from tests.acceptance.review_page.page import (
    answer,
    drag,
    flagged,
    image_of,
    is_shown,
    listed_count,
    log_in,
    press,
    status_of,
    take_screenshot,
    text,
    thumbs,
    until,
)
from tests.browser import console


def test_a_missed_face_is_drawn_redone_seen_and_accepted(browser, empty, photographs):
    face = (110, 60, 230, 240)
    empty.list("2026/admiral.jpg", photographs["admiral.jpg"])
    empty.list("2026/coffee.jpg", photographs["coffee.jpg"])
    log_in(browser, empty)
    is_shown(browser, "2026/admiral.jpg")
    # The page keeps no source: its address ends once the picture is drawn.
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#source image"))
    browser.find_element(By.CSS_SELECTOR, "[data-tool=extra]").click()
    drag(browser, "source", face)
    assert "hide: 120 × 180 px" in text(browser, "shapes")
    take_screenshot(browser, "review-desk")
    browser.find_element(By.ID, "redo").click()
    until(browser, lambda: text(browser, "status").startswith("Done"))
    assert image_of(browser) == [341, 400]

    output = empty.s3.get_object(Bucket="clean", Key="2026/admiral.jpg")["Body"].read()
    before, after = (
        Image.open(io.BytesIO(content)).convert("RGB").crop((150, 110, 190, 150))
        for content in (photographs["admiral.jpg"], output)
    )
    difference = [abs(a - b) for a, b in zip(before.tobytes(), after.tobytes(), strict=True)]
    assert sum(difference) / len(difference) > 10

    press(browser, Keys.ENTER)
    is_shown(browser, "2026/coffee.jpg")
    press(browser, Keys.ENTER)
    dialog = browser.find_element(By.ID, "confirm")
    assert dialog.is_displayed()
    browser.find_element(By.ID, "confirm-no").click()
    assert not empty.s3.list_objects_v2(Bucket="clean", Prefix="2026/coffee").get("Contents")
    press(browser, Keys.ENTER)
    until(browser, lambda: dialog.is_displayed())
    assert "Publish s3://raw/2026/coffee.jpg, with nothing hidden?" in dialog.text
    press(browser, Keys.ENTER)
    until(browser, lambda: text(browser, "status").startswith("Done"))
    assert empty.s3.list_objects_v2(Bucket="clean", Prefix="2026/coffee").get("Contents")
    assert image_of(browser)
    press(browser, Keys.ENTER)
    until(browser, lambda: text(browser, "title") == "Nothing chosen")
    assert console(browser) == []


def test_everything_works_with_the_keyboard_alone(browser, empty, photographs):
    for key in ("1.jpg", "2.jpg", "3.jpg"):
        if key == "2.jpg":  # is made again, so nothing that no worker wrote may be in its place
            empty.list(key, photographs["admiral.jpg"])
            empty.s3.delete_object(Bucket="clean", Key=key)
            continue
        empty.list(key, photographs["admiral.jpg"], "flagged", output=photographs["admiral.jpg"])
    log_in(browser, empty)
    is_shown(browser, "1.jpg")
    press(browser, "n")
    is_shown(browser, "2.jpg")
    press(browser, "p")
    is_shown(browser, "1.jpg")
    press(browser, Keys.ARROW_RIGHT)
    is_shown(browser, "2.jpg")
    press(browser, "+", "+")
    view = browser.find_element(By.ID, "output").get_dom_attribute("viewBox")
    assert float(view.split()[2]) < 200
    press(browser, "0", "h", "i", Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert "hide: 68 × 68 px" in text(browser, "shapes")
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(
        Keys.SHIFT
    ).perform()
    assert "hide: 68 × 71 px" in text(browser, "shapes")
    press(browser, Keys.ESCAPE, "r")
    until(browser, lambda: text(browser, "status").startswith("Done"))
    press(browser, Keys.ENTER)
    is_shown(browser, "3.jpg")
    press(browser, "d")
    is_shown(browser, "1.jpg")
    press(browser, "?")
    assert browser.find_element(By.ID, "help").is_displayed()
    press(browser, Keys.ESCAPE)
    press(browser, Keys.ENTER)
    until(browser, lambda: text(browser, "title") == "Nothing chosen")


def test_nothing_that_was_drawn_is_lost_silently(browser, empty, photographs):
    flagged(empty, photographs, "0.jpg", "1.jpg")
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    press(browser, "h", "i", "n")
    is_shown(browser, "1.jpg")
    assert text(browser, "shapes") == ""
    press(browser, "p")
    is_shown(browser, "0.jpg")
    until(browser, lambda: "hide:" in text(browser, "shapes"))
    leaves_at_once = browser.execute_script(
        "return dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    )
    assert not leaves_at_once
    for key in (Keys.ENTER, "d"):
        press(browser, key)
        dialog = browser.find_element(By.ID, "confirm")
        until(browser, dialog.is_displayed)
        assert "You drew 1 area that is not hidden" in dialog.text
        answer(browser, "Cancel")
        until(browser, lambda: "hide:" in text(browser, "shapes"))
    browser.find_element(By.CSS_SELECTOR, "#lists [data-state=flagged]").click()
    is_shown(browser, "1.jpg")
    press(browser, "n")
    is_shown(browser, "0.jpg")
    until(browser, lambda: "hide:" in text(browser, "shapes"))
    assert listed_count(empty) == 2
    press(browser, Keys.ENTER)
    answer(browser, "Go on without it")
    is_shown(browser, "1.jpg")


def test_an_open_polygon_is_closed_or_asked_for_and_never_dropped(browser, empty, photographs):
    flagged(empty, photographs, "0.jpg", "1.jpg")
    log_in(browser, empty)
    is_shown(browser, "0.jpg")

    def click(*corners):
        for x, y in corners:
            drag(browser, "output", (x, y, x, y))

    press(browser, "g")
    click((50, 50), (150, 50))
    for key in ("r", "d", Keys.ENTER, "h"):
        press(browser, key)
        assert "The polygon is not closed" in text(browser, "status")
    press(browser, "n")
    is_shown(browser, "1.jpg")
    press(browser, "p")
    is_shown(browser, "0.jpg")
    click((150, 150))
    press(browser, "h")
    assert "hide: 100 × 100 px" in text(browser, "shapes")
    assert listed_count(empty) == 2


def test_nothing_stays_clear_that_was_drawn_on_another_version_of_the_source(
    browser, empty, photographs
):
    empty.list("0.jpg", photographs["admiral.jpg"])
    empty.list("1.jpg", photographs["admiral.jpg"])
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    press(browser, "c", "i", "h", "i")
    assert "keep clear" in text(browser, "shapes")
    press(browser, "n")
    is_shown(browser, "1.jpg")
    empty.list("0.jpg", photographs["gallery.jpg"])
    press(browser, "p")
    is_shown(browser, "0.jpg")
    status_of(browser, "changed since you drew on it")
    assert "hide:" in text(browser, "shapes")
    assert "keep clear" not in text(browser, "shapes")


def test_a_picture_that_is_held_again_does_not_come_back_over_the_next_one(
    browser, empty, photographs
):
    empty.list("held-0.jpg", photographs["coffee.jpg"])
    empty.list("held-1.jpg", photographs["coffee.jpg"])
    log_in(browser, empty)
    is_shown(browser, "held-0.jpg")
    browser.execute_script(
        "const real = fetch; const isOver = new Promise((go) => { window.letGo = go; });"
        "window.fetch = async (path, options) => {"
        " if (path !== '/api/next' || !JSON.parse(options.body).id) return real(path, options);"
        " window.isAsked = true; await isOver; const answer = await real(path, options);"
        " window.isAnswered = true; return answer; };"
    )
    press(browser, "r")
    until(browser, lambda: browser.execute_script("return window.isAsked"))
    press(browser, "n")
    browser.execute_script("window.letGo()")
    until(browser, lambda: browser.execute_script("return window.isAnswered"))
    is_shown(browser, "held-1.jpg")
    time.sleep(1)
    is_shown(browser, "held-1.jpg")


def test_method_and_region_are_those_of_one_picture(browser, empty, photographs):
    flagged(empty, photographs, "0.jpg", "1.jpg")
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    for identity in ("method", "region"):
        browser.find_element(By.ID, identity).find_elements(By.TAG_NAME, "option")[1].click()
    browser.find_element(By.ID, "next").click()
    is_shown(browser, "1.jpg")
    for identity in ("method", "region"):
        assert browser.find_element(By.ID, identity).get_property("value") == ""


def test_a_held_picture_shows_its_labels_what_is_published_and_what_a_release_hides(
    browser, empty, photographs
):
    empty.list(
        "plate.jpg",
        photographs["admiral.jpg"],
        reason="an object with the rule hold was found: plate",
        output=photographs["admiral.jpg"],
        faces=1,
        labels={"FACE": 1, "plate": 1},
        boxes_xyxy=[[110, 60, 230, 240], [20, 300, 120, 340]],
        box_labels=["FACE", "plate"],
        options={"rules": {"plate": {"hold": True}}},
    )
    log_in(browser, empty)
    is_shown(browser, "plate.jpg")
    assert "1 face, 1 plate found" in text(browser, "facts")
    assert "rule hold was found: plate" in text(browser, "facts")
    labels = browser.find_elements(By.CSS_SELECTOR, "#source text.label")
    assert [label.text for label in labels] == ["plate"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#source .shape.found.other")) == 1
    assert text(browser, "accept-name") == "Publish, with 1 face and 1 plate hidden"
    caption = browser.find_element(By.CSS_SELECTOR, "#output-figure figcaption")
    assert caption.text == "held: an earlier output is published"
    assert image_of(browser) == [341, 400]
    assert not browser.find_element(By.ID, "sources").is_enabled()
    until(browser, lambda: "held" in [thumb.text for thumb in thumbs(browser)])


def test_an_output_that_was_made_again_can_be_made_once_more(browser, empty, photographs):
    empty.list("again.jpg", photographs["admiral.jpg"])
    log_in(browser, empty)
    is_shown(browser, "again.jpg")
    for number in range(2):
        press(browser, "h", "i", *[Keys.ARROW_LEFT] * 20 * number, "r")
        until(browser, lambda: text(browser, "status").startswith("Done"))
        assert text(browser, "shapes") == ""
        hidden = browser.find_elements(By.CSS_SELECTOR, "#output .shape.was-extra")
        assert len(hidden) == number + 1
        assert text(browser, "facts").startswith("published")
        press(browser, Keys.ESCAPE)
    press(browser, Keys.ENTER)
    until(browser, lambda: text(browser, "title") == "Nothing chosen")


def test_a_request_goes_on_while_the_desk_does_not_answer(browser, empty, photographs):
    """The page must not say that nothing is published: a worker publishes it."""
    empty.list("away.jpg", photographs["admiral.jpg"])
    log_in(browser, empty)
    is_shown(browser, "away.jpg")
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/api/result/*"]})
    press(browser, Keys.ENTER, Keys.ENTER)
    until(browser, lambda: "asking again" in text(browser, "status"))
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    until(browser, lambda: text(browser, "status").startswith("Done"))


def test_nothing_is_kept_clear_on_an_output_of_another_version_if_the_source_is_not_shown(
    browser, empty, photographs
):
    empty.list("0.jpg", photographs["admiral.jpg"])
    empty.s3.put_object(
        Bucket="clean",
        Key="0.jpg",
        Body=photographs["admiral.jpg"],
        Metadata={receipts.SOURCE_ETAG: "another"},
    )
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    assert browser.find_element(By.CSS_SELECTOR, "[data-tool=exempt]").is_displayed()
    press(browser, "c", "i", "h", "i")
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/source/*"]})
    press(browser, "n")  # nothing else is left, so it stays
    browser.find_elements(By.CSS_SELECTOR, "#rows button")[0].click()
    status_of(browser, "does not answer")
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    assert not browser.find_element(By.CSS_SELECTOR, "[data-tool=exempt]").is_displayed()
    assert "keep clear" not in text(browser, "shapes")
    assert "hide:" in text(browser, "shapes")
