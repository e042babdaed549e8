"""The page of the review desk as a reviewer uses it, and the stack behind it.

``SCREENSHOTS=docs make test ARGS=tests/acceptance/review_page`` makes the pictures of
docs/review.md.
"""

import os
import time
from pathlib import Path

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tasks.app import create_app
from tasks.records import samples
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tasks.records.samples import Sample, SampledPicture
from tasks.routes import Routes
from tasks.settings import Settings
from tests.desk import Client
from worker.desk import items

SCREENSHOTS = os.environ.get("SCREENSHOTS")
WAIT_SECONDS = 60
ROUTE = "s3://raw=s3://clean"
PASSWORD = "a password for tests"


class Stack:
    """The servers, a worker that misses faces, and the desk."""

    def __init__(self, redis, s3, desk):
        self.desk = desk
        self.s3 = s3.client()
        url = redis.environment()["VEIL_REDIS_URL"]
        password = redis.environment().get("VEIL_REDIS_PASSWORD")
        self.redis = create_app(Settings(redis_url=url, redis_password=password)).backend.client
        self._client = None

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

    def wait_until_read(self):
        """Wait until the desk has read the review list, so that a page shows it at once."""
        if self._client is None:
            self._client = Client(self.desk.address)
            self._client.get("/login")
            self._client.post("/login", {"secret": PASSWORD, "name": "nobody"})
        routes = Routes.parse(ROUTE)
        listed = {items.item_of(each, routes).version for each in REVIEW_LIST.entries(self.redis)}
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            shown = self._client.get("/api/list").json
            versions = {row["version"] for row in shown["rows"]}
            if shown["count"] == len(listed) and versions <= listed:
                return
            assert time.monotonic() < deadline
            time.sleep(0.1)


def until(browser, condition, seconds=WAIT_SECONDS):
    return WebDriverWait(browser, seconds, poll_frequency=0.1).until(lambda _: condition())


def show_login(browser, stack):
    browser.get(f"{stack.desk.address}/files/style.css")  # whose cookies are then deleted
    browser.delete_all_cookies()
    browser.get(f"{stack.desk.address}/login")


def log_in(browser, stack, name="ana"):
    stack.wait_until_read()
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
    return is_ready(browser, f"s3://raw/{key}")


def is_ready(browser, title):
    """Wait until the picture with this title is shown, and takes keys."""

    def is_there():
        viewer = browser.find_element(By.ID, "viewer")
        is_busy = viewer.get_attribute("aria-busy") == "true"
        return text(browser, "title") == title and not is_busy

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


def status_of(browser, part):
    return until(browser, lambda: part in text(browser, "status"))


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
