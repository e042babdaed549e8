"""Flower in a real browser: what a person sees of the pictures, and still sees after a restart.

``make test ARGS=tests/acceptance/test_flower_page.py SCREENSHOT=docs/flower.png`` makes the picture
of the documentation. The pictures then go through one after the other, so that each row has the
runtime of a picture alone: run it on a machine with nothing else to do.
"""

import io
import os
import re
import signal
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import chromium
from tools.local.servers import FLOWER_COLUMNS, Server, start_flower, start_redis, start_s3

SCREENSHOT = os.environ.get("SCREENSHOT")
SCREENSHOT_BYTES = 250_000
PAGE_SECONDS = 60
FOLDER = "2026/05/"
WINDOW = 1800, 1060


class Stack:
    """The services as the demo runs them, and the pictures that went through."""

    def __init__(self, redis, s3, worker, flower):
        self.redis, self.s3, self.worker, self.flower = redis, s3, worker, flower
        self.environment = worker.environment

    def put(self, key, content):
        self.s3.client().put_object(Bucket="raw", Key=FOLDER + key, Body=content)
        return f"s3://raw/{FOLDER}{key}"


@pytest.fixture(scope="module")
def stack(clean_environment, programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flower-page")
    servers = []
    try:
        redis = start_redis(folder / "redis")
        servers.append(redis.server)
        s3 = start_s3(folder / "s3", ("raw", "clean"))
        servers.append(s3.server)
        environment = {
            **redis.environment(),
            **s3.environment(),
            "VEIL_ROUTES": "s3://raw=s3://clean",
        }
        worker = Server("worker", [programs / "veil", "worker"], folder / "worker.log", environment)
        servers.append(worker)
        worker.start()
        flower = start_flower(folder / "flower", environment)
        servers.append(flower.server)
        yield Stack(redis, s3, worker, flower)
    finally:
        for server in reversed(servers):
            server.stop()


@pytest.fixture(scope="module")
def sent(stack, samples, veil):
    """The demo's photographs, a wall and half a file, all delivered or given up."""
    wall = io.BytesIO()
    Image.new("RGB", (320, 240), "gray").save(wall, "JPEG")
    contents = {name: path.read_bytes() for name, path in sorted(samples.items())}
    contents |= {
        "an empty wall +1.jpg": wall.getvalue(),
        "broken.jpg": contents["admiral.jpg"][:20_000],
    }
    sources = [stack.put(key, content) for key, content in contents.items()]
    for batch in [[source] for source in sources] if SCREENSHOT else [sources]:
        done = veil("enqueue", *batch, "--wait", environment=stack.environment)
        has_broken = any(source.endswith("/broken.jpg") for source in batch)
        assert done.returncode == has_broken, done.stderr
    return contents


@pytest.fixture(scope="module")
def browser(system_program, tmp_path_factory):
    started = chromium(system_program, tmp_path_factory.mktemp("chromium"), WINDOW)
    yield started
    started.quit()


def address(flower, password):
    return flower.address.replace("http://", f"http://veil:{password}@")


def rows(browser):
    """The table's rows as a person reads them: the text of each column, by the source."""
    texts = browser.execute_script(
        "return [...document.querySelectorAll('#tasks-table tbody tr[id]')]"
        ".map(row => [...row.querySelectorAll('td')].map(cell => cell.innerText))"
    )
    columns = [dict(zip(FLOWER_COLUMNS.split(","), cells, strict=True)) for cells in texts]
    return {row["args"]: row for row in columns}


def shown(browser, condition):
    """The rows, once they meet `condition`; the page is loaded anew until then."""

    def look(_):
        browser.execute_script("localStorage.clear()")  # where the page keeps its filter
        browser.refresh()
        WebDriverWait(browser, 10).until(
            lambda _: browser.find_elements(By.CSS_SELECTOR, "#tasks-table tbody tr")
        )
        found = rows(browser)
        return found if condition(found) else None

    return WebDriverWait(browser, PAGE_SECONDS).until(look)


@pytest.fixture
def tasks_page(browser, stack, sent):
    """The Tasks page with all that was sent at its end."""
    browser.get(address(stack.flower, stack.flower.password) + "/tasks")

    def is_complete(found):
        states = {row["state"] for row in found.values()}
        return states <= {"SUCCESS", "FAILURE"} and len(found) >= len(sent)

    return shown(browser, is_complete)


def test_a_wrong_password_shows_nothing(browser, stack):
    for password in ("wrong", ""):
        browser.get(address(stack.flower, password) + "/tasks")
        assert not browser.find_elements(By.ID, "tasks-table")
        assert "Task history" not in browser.page_source


def test_each_picture_is_a_row_with_its_source_its_state_and_what_came_of_it(
    browser, stack, sent, tasks_page
):
    assert set(tasks_page) == {f"s3://raw/{FOLDER}{key}" for key in sent}
    by_key = {source.rpartition("/")[2]: row for source, row in tasks_page.items()}

    assert by_key["astronaut.png"]["state"] == "SUCCESS"
    assert by_key["astronaut.png"]["result"].startswith("anonymized · 1 face · lowest score 0.")
    assert by_key["astronaut.png"]["runtime"].endswith("s")

    wall = by_key["an empty wall +1.jpg"]
    assert wall["state"] == "SUCCESS"
    assert wall["result"].startswith(
        f"anonymized · no face · s3://clean/{FOLDER}an empty wall +1.jpg"
    )

    broken = by_key["broken.jpg"]
    assert broken["state"] == "FAILURE"
    assert broken["exception"].startswith("UnreadableImage(")
    assert broken["result"] == ""

    assert {row["state"] for key, row in by_key.items() if key != "broken.jpg"} == {"SUCCESS"}
    if SCREENSHOT:
        wrap_exceptions(browser)
        browser.save_screenshot(SCREENSHOT)
        assert Path(SCREENSHOT).stat().st_size <= SCREENSHOT_BYTES


def wrap_exceptions(browser):
    """Show the texts of exceptions in full: Flower has them on one line, for which one scrolls."""
    browser.execute_script(
        "for (const row of document.querySelectorAll('#tasks-table tbody tr[id]')) {"
        "  const text = row.querySelectorAll('td')[arguments[0]];"
        "  text.classList.remove('text-nowrap');"
        "  text.style.minWidth = '23rem';"
        "}",
        FLOWER_COLUMNS.split(",").index("exception"),
    )


def test_the_first_columns_are_seen_without_scrolling(browser, tasks_page):
    right_edge = browser.execute_script(
        "return document.querySelectorAll('#tasks-table tbody tr[id] td')[arguments[0]]"
        ".getBoundingClientRect().right",
        FLOWER_COLUMNS.split(",").index("result"),
    )
    assert 0 < right_edge <= browser.execute_script("return window.innerWidth")


def test_failures_can_be_picked_out(browser, tasks_page):
    def press(state):
        browser.find_element(
            By.CSS_SELECTOR, f'.task-state-filter[data-task-state="{state}"]'
        ).click()

    press("FAILURE")
    WebDriverWait(browser, PAGE_SECONDS).until(lambda _: len(rows(browser)) == 1)
    assert [row["state"] for row in rows(browser).values()] == ["FAILURE"]
    press("")
    WebDriverWait(browser, PAGE_SECONDS).until(lambda _: len(rows(browser)) == len(tasks_page))


def test_a_row_leads_to_the_whole_of_its_picture(browser, stack, tasks_page):
    source = f"s3://raw/{FOLDER}gallery.jpg"
    browser.get(f"{address(stack.flower, stack.flower.password)}/task/{tasks_page[source]['uuid']}")
    text = browser.find_element(By.TAG_NAME, "body").text
    assert "veil.anonymize_image" in text
    assert source in text
    assert re.search(
        rf"16 faces · lowest score 0\.\d\d · s3://clean/{FOLDER}gallery.jpg · JPEG 1600×1200", text
    )
    for stage in ("fetch", "decode", "detect", "mask", "encode", "store"):
        assert f" · {stage} " in text


def test_the_stage_of_a_picture_in_hand_is_its_state(browser, stack, sent, veil):
    wall = stack.put("held up.jpg", sent["an empty wall +1.jpg"])
    stack.s3.server.process.send_signal(signal.SIGSTOP)
    try:
        assert veil("enqueue", wall, environment=stack.environment).returncode == 0
        browser.get(address(stack.flower, stack.flower.password) + "/tasks")
        shown(browser, lambda found: wall in found and found[wall]["state"] == "FETCHING")
    finally:
        stack.s3.server.process.send_signal(signal.SIGCONT)
    shown(browser, lambda found: found[wall]["state"] == "SUCCESS")


def test_the_history_survives_a_restart(browser, stack, tasks_page):
    stack.flower.server.stop()
    stack.worker.stop()  # nobody is left who could tell it anew
    stack.flower.server.start()
    browser.get("about:blank")

    def answers(_):
        stack.flower.server.check_alive()
        try:
            stack.flower.check()
        except OSError:
            return False
        return True

    WebDriverWait(browser, PAGE_SECONDS).until(answers)
    browser.get(address(stack.flower, stack.flower.password) + "/tasks")
    again = shown(browser, lambda found: len(found) >= len(tasks_page))
    assert again == tasks_page
