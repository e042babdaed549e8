"""The review desk in a real browser: log in, draw, redo, see the new output, accept; several people
at once; keyboard only; a narrow screen; and 10,000 pictures.

``SCREENSHOTS=docs make test ARGS=tests/acceptance/test_review_page.py`` makes the pictures of
docs/review.md.
"""

import io
import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tasks.app import create_app
from tasks.records import samples
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tasks.records.samples import Sample, SampledPicture
from tasks.settings import Settings
from tasks.storage import receipts
from tests.browser import axe_script, chromium, console, serious_problems
from tests.desk import Client, Desk
from tools.local.servers import Server, start_redis, start_s3

SCREENSHOTS = os.environ.get("SCREENSHOTS")
WAIT_SECONDS = 60
ROUTE = "s3://raw=s3://clean"
HOSTILE = '<img src=x onerror="document.title=1">.jpg'
PASSWORD = "a password for tests"
PICTURES = 10_000
MANY_TIMES = 10
FIRST_PAGE_SECONDS, NEXT_SECONDS = 0.3, 0.2


class Stack:
    """The servers, a worker that misses faces, and the desk."""

    def __init__(self, redis, s3, desk):
        self.desk = desk
        self.s3 = s3.client()
        url = redis.environment()["VEIL_REDIS_URL"]
        password = redis.environment().get("VEIL_REDIS_PASSWORD")
        self.redis = create_app(Settings(redis_url=url, redis_password=password)).backend.client

    def put(self, bucket, key, content):
        answer = self.s3.put_object(Bucket=bucket, Key=key, Body=content)
        return answer["ETag"].strip('"')

    def list(self, key, content, state="held", reason="no face found", output=None, **fields):
        """Put a picture onto the review list."""
        etag = self.put("raw", key, content)
        if output is not None:
            self.put("clean", key, output)
        entry = ReviewEntry(f"s3://raw/{key}", etag, "r", state, reason, time.time(), **fields)
        REVIEW_LIST.record(self.redis, entry)


@pytest.fixture(scope="module")
def stack(clean_environment, programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("review-page")
    servers = []
    try:
        redis = start_redis(folder / "redis")
        servers.append(redis.server)
        s3 = start_s3(folder / "s3", ("raw", "clean"))
        servers.append(s3.server)
        environment = {**redis.environment(), **s3.environment(), "VEIL_ROUTES": ROUTE}
        misses = {"VEIL_SCORE_THRESHOLD": "0.99", "VEIL_NO_FACES": "hold"}
        worker = Server(
            "worker",
            [programs / "veil", "worker"],
            folder / "worker.log",
            {**environment, **misses},
        )
        servers.append(worker)
        worker.start()
        desk = Desk(
            programs,
            folder,
            {**environment, "VEIL_REVIEW_PASSWORD": PASSWORD},
            "--show-sources",
            reviewers=("zoe",),
        )
        with desk:
            yield Stack(redis, s3, desk)
    finally:
        for server in reversed(servers):
            server.stop()


@pytest.fixture(scope="module")
def new_browser(system_program, tmp_path_factory):
    """``new_browser(size)`` starts a browser that ends with the tests."""
    started = []

    def start(size=(1400, 900)):
        started.append(chromium(system_program, tmp_path_factory.mktemp("chromium"), size))
        return started[-1]

    start.browsers = started
    yield start
    for browser in started:
        browser.quit()


@pytest.fixture(scope="module")
def browser(new_browser):
    return new_browser()


@pytest.fixture
def empty(stack, new_browser):
    """The desk without a picture and without a page that could claim one."""
    for browser in new_browser.browsers:
        browser.get("about:blank")
    stack.redis.flushdb()
    client = Client(stack.desk.address)
    client.get("/login")
    client.post("/login", {"secret": PASSWORD, "name": "nobody"})
    deadline = time.monotonic() + WAIT_SECONDS
    while client.get("/api/list").json["count"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return stack


@pytest.fixture(scope="module")
def photographs(samples):
    return {name: path.read_bytes() for name, path in samples.items()}


def until(browser, condition, seconds=WAIT_SECONDS):
    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(lambda _: condition())


def show_login(browser, stack):
    browser.get(f"{stack.desk.address}/files/style.css")  # whose cookies are then deleted
    browser.delete_all_cookies()
    browser.get(f"{stack.desk.address}/login")


def log_in(browser, stack, name="ana"):
    show_login(browser, stack)
    browser.find_element(By.ID, "name").send_keys(name)
    browser.find_element(By.ID, "secret").send_keys(PASSWORD, Keys.ENTER)
    until(browser, lambda: browser.find_elements(By.ID, "rows"))


def text(browser, identity):
    return browser.find_element(By.ID, identity).text


def press(browser, *keys):
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def is_shown(browser, key):
    def is_there():
        viewer = browser.find_element(By.ID, "viewer")
        is_busy = viewer.get_attribute("aria-busy") == "true"
        return text(browser, "title") == f"s3://raw/{key}" and not is_busy

    return until(browser, is_there)


def image_of(browser):
    """The size of the output that is shown, once it is decoded."""
    script = (
        "const done = arguments[0];"
        "const image = document.querySelector('#output image');"
        "if (!image) done(null); else { const probe = new Image();"
        " probe.onload = () => done([probe.naturalWidth, probe.naturalHeight]);"
        " probe.onerror = () => done(null); probe.src = image.href.baseVal; }"
    )
    return browser.execute_async_script(script)


def drag(browser, place, box_xyxy):
    """Draw a box, in pixels of the picture, with the mouse."""
    script = (
        "const matrix = document.getElementById(arguments[0]).getScreenCTM();"
        "const at = (x, y) => { const p = new DOMPoint(x, y).matrixTransform(matrix);"
        " return [p.x, p.y]; };"
        "const [x1, y1, x2, y2] = arguments[1]; return [...at(x1, y1), ...at(x2, y2)];"
    )
    x1, y1, x2, y2 = map(round, browser.execute_script(script, place, list(box_xyxy)))
    action = ActionChains(browser, duration=50)
    action.w3c_actions.pointer_action.move_to_location(x1, y1)
    action.w3c_actions.pointer_action.pointer_down()
    action.w3c_actions.pointer_action.move_to_location((x1 + x2) // 2, (y1 + y2) // 2)
    action.w3c_actions.pointer_action.move_to_location(x2, y2)
    action.w3c_actions.pointer_action.pointer_up()
    action.perform()


def take_screenshot(browser, name):
    if SCREENSHOTS:
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


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


def test_two_reviewers_work_at_once_and_never_on_one_picture(
    browser, new_browser, empty, photographs
):
    for number in range(3):
        empty.list(
            f"{number}.jpg", photographs["coffee.jpg"], "flagged", output=photographs["coffee.jpg"]
        )
    other = new_browser()
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    log_in(other, empty, "ben")
    is_shown(other, "1.jpg")
    other.find_elements(By.CSS_SELECTOR, "#rows button")[0].click()
    until(other, lambda: "Another reviewer" in text(other, "status"))
    press(other, Keys.ENTER)
    is_shown(other, "2.jpg")
    press(browser, "n")
    until(browser, lambda: "Nothing else" in text(browser, "status"))
    assert text(browser, "title") == "s3://raw/0.jpg"


def listed_count(stack):
    return REVIEW_LIST.count(stack.redis)


def flagged(stack, photographs, *keys, name="admiral.jpg"):
    for key in keys:
        stack.list(key, photographs[name], "flagged", output=photographs[name])


def answer(browser, name):
    """Give the answer ``name`` to a question."""
    dialog = browser.find_element(By.ID, "confirm")
    until(browser, dialog.is_displayed)
    dialog.find_element(By.XPATH, f".//button[text()='{name}']").click()


def thumbs(browser):
    return browser.find_elements(By.CSS_SELECTOR, "#rows .thumb")


def focused(browser):
    return browser.switch_to.active_element.get_attribute("id")


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


def test_a_decision_leaves_the_focus_on_the_next_picture(browser, empty, photographs):
    flagged(empty, photographs, "f0.jpg", "f2.jpg")
    for key in ("f1.jpg", "f3.jpg"):
        empty.list(key, photographs["admiral.jpg"])
    log_in(browser, empty)
    until(browser, lambda: len(thumbs(browser)) == 4)
    for key, place in (("f1.jpg", "source"), ("f2.jpg", "output")):
        browser.find_element(By.XPATH, f"//*[@id='rows']//button[@title='s3://raw/{key}']").click()
        is_shown(browser, key)
        assert focused(browser) == place
        browser.find_element(By.ID, "drop").click()
        until(browser, lambda: text(browser, "status") == "Dropped from the list.")
        assert focused(browser) in ("output", "source")
    assert listed_count(empty) == 2
    is_shown(browser, "f3.jpg")
    press(browser, Keys.ENTER)
    until(browser, browser.find_element(By.ID, "confirm").is_displayed)  # and is not dropped
    assert listed_count(empty) == 2


def test_a_key_that_comes_too_early_is_answered_and_decides_nothing(browser, empty, photographs):
    flagged(empty, photographs, "0.jpg", "1.jpg")
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    browser.execute_script(
        "for (const key of ['n', 'd'])"
        " document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
    )
    is_shown(browser, "1.jpg")
    assert text(browser, "status").startswith("Not yet")
    assert listed_count(empty) == 2


def status_of(browser, part):
    return until(browser, lambda: part in text(browser, "status"))


def test_an_output_that_is_not_shown_is_not_accepted_and_the_page_says_so(
    browser, empty, photographs
):
    """The good news of the picture before must not take the place of what is wrong with this."""
    flagged(empty, photographs, "0.jpg")
    empty.list("1.jpg", photographs["admiral.jpg"], "flagged", output=b"no picture")
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    press(browser, "d")
    is_shown(browser, "1.jpg")
    status_of(browser, "Dropped from the list. It can't be accepted")
    assert not browser.find_element(By.ID, "accept").is_enabled()
    press(browser, Keys.ENTER)
    assert browser.find_element(By.ID, "redo").is_enabled()
    assert text(browser, "title") == "s3://raw/1.jpg"
    assert listed_count(empty) == 1


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
        "const real = fetch; window.asked = 0;"
        "window.fetch = async (path, options) => {"
        " if (path === '/api/next' && JSON.parse(options.body).id) {"
        "  window.asked += 1; await new Promise((go) => setTimeout(go, 2000)); }"
        " return real(path, options); };"
    )
    press(browser, "r")
    until(browser, lambda: browser.execute_script("return window.asked"))
    press(browser, "n")
    is_shown(browser, "held-1.jpg")
    time.sleep(3)
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


def test_the_page_of_a_proxy_in_place_of_an_answer_is_no_decision(browser, empty, photographs):
    """It is said, and what the reviewer has pressed since does not take her away from it."""
    flagged(empty, photographs, "0.jpg", "1.jpg")
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    browser.execute_script(
        "const real = fetch; window.fetch = async (path, options) =>"
        " path.startsWith('/api/decide/') ? new Response('<p>Log in') : real(path, options);"
        "for (const key of ['d', 'n'])"
        " document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
    )
    status_of(browser, "The decision may count")
    is_shown(browser, "0.jpg")
    assert listed_count(empty) == 2


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


def test_the_address_of_a_token_counts_also_in_a_tab_that_shows_the_login(browser, empty):
    show_login(browser, empty)
    browser.find_element(By.ID, "name").send_keys(" ")
    browser.find_element(By.ID, "secret").send_keys(PASSWORD, Keys.ENTER)
    until(browser, lambda: text(browser, "problem").startswith("Enter your name"))
    browser.get(empty.desk.logins["zoe"])  # of which only the fragment differs
    until(browser, lambda: browser.find_elements(By.ID, "rows"))


def test_a_hostile_name_is_only_a_name(browser, empty, photographs):
    empty.list(HOSTILE, photographs["coffee.jpg"], "flagged", output=photographs["coffee.jpg"])
    log_in(browser, empty)
    is_shown(browser, HOSTILE)
    assert browser.title == "Veil review"
    assert not browser.find_elements(By.CSS_SELECTOR, "img[src=x]")


def test_an_ended_session_says_so(browser, empty, photographs):
    for number in range(2):
        empty.list(
            f"{number}.jpg", photographs["coffee.jpg"], "flagged", output=photographs["coffee.jpg"]
        )
    log_in(browser, empty)
    is_shown(browser, "0.jpg")
    press(browser, "s")
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#source image"))
    browser.delete_cookie("veil_session")
    press(browser, Keys.ENTER)
    until(browser, lambda: browser.find_element(By.ID, "ended").is_displayed())
    for _ in range(3):
        press(browser, Keys.ESCAPE)
        assert browser.find_element(By.ID, "ended").is_displayed()
    assert not browser.find_elements(By.CSS_SELECTOR, "main image, main img")
    assert REVIEW_LIST.count(empty.redis) == 2
    assert not empty.redis.llen("uploads")


def sample_of(desk, photograph):
    """Put a sample of two pictures onto the desk, and return it."""
    pictures = []
    for number in range(2):
        etag = desk.put("clean", f"s{number}.jpg", photograph)
        pictures.append(
            SampledPicture(f"s3://clean/s{number}.jpg", etag, ROUTE, width=341, height=400)
        )
    drawn = Sample("5a3b1e00", ["s3://clean"], 1, 900, time.time(), pictures)
    samples.store(desk.redis, drawn)
    return drawn


def test_an_unfinished_sample_is_opened_if_nothing_else_is_to_review(browser, empty, photographs):
    log_in(browser, empty)
    until(browser, lambda: text(browser, "list-note") == "Nothing to review here.")
    sample_of(empty, photographs["admiral.jpg"])  # it appears by itself
    until(browser, lambda: text(browser, "title") == "s3://clean/s0.jpg")
    chooser = browser.find_element(By.ID, "samples")
    assert chooser.get_property("value") == "5a3b1e00"


def test_a_sample_is_marked_with_the_keyboard(browser, empty, photographs):
    empty.list("2026/coffee.jpg", photographs["coffee.jpg"])
    log_in(browser, empty)
    is_shown(browser, "2026/coffee.jpg")
    drawn = sample_of(empty, photographs["admiral.jpg"])
    chooser = browser.find_element(By.ID, "samples")
    until(browser, lambda: len(chooser.find_elements(By.TAG_NAME, "option")) == 2)
    chooser.send_keys("5")
    until(browser, lambda: text(browser, "title") == "s3://clean/s0.jpg")
    until(browser, lambda: image_of(browser))
    drag(browser, "output", (110, 60, 230, 240))
    assert "exposed face: 120 × 180 px" in text(browser, "shapes")
    take_screenshot(browser, "review-sample")
    press(browser, Keys.ENTER)
    until(browser, lambda: text(browser, "title") == "s3://clean/s1.jpg")
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
    until(browser, lambda: text(browser, "title") == "s3://clean/s1.jpg")
    until(browser, lambda: image_of(browser))
    press(browser, "p")
    until(browser, lambda: text(browser, "shapes").count("exposed face") == 2)
    until(browser, lambda: image_of(browser))
    press(browser, Keys.DELETE, "n")
    until(browser, lambda: text(browser, "title") == "s3://clean/s1.jpg")
    until(browser, lambda: image_of(browser))
    press(browser, "p")
    until(browser, lambda: text(browser, "shapes").count("exposed face") == 1)
    until(browser, lambda: image_of(browser))
    press(browser, Keys.ENTER)
    until(browser, lambda: text(browser, "title") == "s3://clean/s1.jpg")
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
    until(browser, lambda: text(browser, "title") == "s3://clean/s2.jpg")
    until(browser, lambda: "can't be shown" in text(browser, "status"))
    assert not browser.find_element(By.ID, "accept").is_enabled()
    press(browser, Keys.ENTER, "n")
    until(browser, lambda: text(browser, "title") == "s3://clean/s0.jpg")
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


@pytest.fixture
def phone(new_browser):
    return new_browser((500, 900))


def test_a_narrow_screen_shows_everything(phone, empty, photographs):
    empty.list("1.jpg", photographs["admiral.jpg"], "flagged", output=photographs["admiral.jpg"])
    log_in(phone, empty)
    is_shown(phone, "1.jpg")
    width, inner = phone.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert width <= inner
    for identity in ("redo", "accept", "drop", "next", "zoom-in"):
        button = phone.find_element(By.ID, identity)
        assert button.is_displayed()
        assert button.size["height"] >= 32
    phone.find_element(By.CSS_SELECTOR, "[data-tool=extra]").click()
    phone.execute_script("document.getElementById('stage').scrollIntoView()")
    drag(phone, "output", (100, 100, 200, 200))
    assert "hide: 100 × 100 px" in text(phone, "shapes")
    take_screenshot(phone, "review-narrow")


def test_a_screen_of_400_pixels_shows_the_picture_first(phone, empty, photographs):
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    phone.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    flagged(empty, photographs, *(f"{number}.jpg" for number in range(9)))
    log_in(phone, empty)
    is_shown(phone, "0.jpg")
    sample_of(empty, photographs["admiral.jpg"])
    chooser = phone.find_element(By.ID, "samples")
    until(phone, lambda: len(chooser.find_elements(By.TAG_NAME, "option")) == 2)

    def top():
        return phone.execute_script(
            "return document.getElementById('viewer').getBoundingClientRect().top"
        )

    assert phone.execute_script("return scrollY") == 0
    assert -1 < top() < 400
    width, inner = phone.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert width <= inner == 400
    until(phone, lambda: len(thumbs(phone)) == 9)
    row = phone.find_elements(By.CSS_SELECTOR, "#rows button")[8]
    phone.execute_script("arguments[0].scrollIntoView()", row)
    row.click()
    is_shown(phone, "8.jpg")
    assert -1 < top() < 400
    phone.execute_script("scrollTo(0, 0)")
    phone.find_element(By.ID, "help-button").click()
    assert phone.find_element(By.CSS_SELECTOR, "#help kbd").is_displayed()
    phone.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_people_with_disabilities_can_use_every_page(browser, empty, photographs):
    script = axe_script()
    show_login(browser, empty)
    assert serious_problems(browser, script) == []
    empty.list("1.jpg", photographs["admiral.jpg"], "flagged", output=photographs["admiral.jpg"])
    log_in(browser, empty)
    is_shown(browser, "1.jpg")
    press(browser, "h", "i")
    assert serious_problems(browser, script) == []
    press(browser, "?")
    assert serious_problems(browser, script) == []


def test_ten_thousand_pictures_feel_instant(browser, empty, photographs):
    picture = io.BytesIO()
    with Image.open(io.BytesIO(photographs["gallery.jpg"])) as image:
        image.resize((1155, 866)).save(picture, "JPEG", quality=90)  # 1 MP
    etag = empty.put("raw", "p/0.jpg", picture.getvalue())
    shown = 12
    for number in range(shown):
        empty.put("raw", f"p/{number}.jpg", picture.getvalue())
        empty.put("clean", f"p/{number}.jpg", picture.getvalue())
    with empty.redis.pipeline() as pipe:
        for number in range(PICTURES):
            source = f"s3://raw/p/{number}.jpg"
            boxes = [[number, 1, number + 9, 9]] * 20
            entry = ReviewEntry(source, etag, "r", "flagged", "x", number, boxes_xyxy=boxes)
            pipe.hset(REVIEW_LIST.key, source, json.dumps(vars(entry)))
        pipe.execute()
    log_in(browser, empty)
    until(browser, lambda: "of 10,000" in text(browser, "list-note"))
    is_shown(browser, "p/0.jpg")
    time.sleep(3)  # the desk reads the list, and the browser fetches ahead

    seconds = []
    for _ in range(5):
        took = browser.execute_async_script(
            "const done = arguments[0]; const began = performance.now();"
            "fetch('/api/list?state=&sample=&from=0').then(answer => answer.json())"
            ".then(() => done(performance.now() - began))"
        )
        seconds.append(took / 1000)
    first_page = sorted(seconds)[2]

    script = (
        "const done = arguments[0]; const title = document.getElementById('title');"
        "const output = document.getElementById('output'); const before = title.textContent;"
        "const began = performance.now();"
        "const look = () => { const image = output.querySelector('image');"
        " if (title.textContent !== before && image) { const probe = new Image();"
        "  probe.onload = () => done(performance.now() - began); probe.src = image.href.baseVal; }"
        " else setTimeout(look, 2); };"
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'n', bubbles: true}));"
        "look();"
    )
    pauses = []
    for _ in range(7):
        pauses.append(browser.execute_async_script(script) / 1000)
        time.sleep(1)  # as long as a reviewer looks at it, at least
    next_picture = sorted(pauses)[3]
    print(f"first page {first_page:.3f} s, next picture {next_picture:.3f} s")
    # The figures depend on the machine. What would make a desk of many pictures slow, such as
    # reading all of them for each page, takes many times as long.
    assert first_page < MANY_TIMES * FIRST_PAGE_SECONDS
    assert next_picture < MANY_TIMES * NEXT_SECONDS
