"""The sheet of ``veil preview`` in a real browser, opened from disk, and the figures for machines.

``SCREENSHOT_PREVIEW=docs/preview.png make test ARGS=tests/acceptance/test_preview_sheet.py`` makes
the picture of docs/review.md.
"""

import json
import os
import stat

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tasks.records.samples import Mark, Sample, SampledPicture
from tests.browser import axe_script, chromium, console, serious_problems
from worker.sampling import report
from worker.sampling.acceptance import accept

SCREENSHOT = os.environ.get("SCREENSHOT_PREVIEW")
# A name that would run a script if it were not escaped. File systems allow no slash in it.
HOSTILE = '<img src=x onerror="document.title=1">.jpg'
# The words of the elements that a selector finds, of which a part is on another line.
BROKEN_WORDS = """
const range = document.createRange(), broken = [];
for (const element of document.querySelectorAll(arguments[0])) {
  const texts = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    for (const word of texts.currentNode.data.matchAll(/[^\\s/-]+/g)) {
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map(one => Math.round(one.top)));
      if (lines.size > 1) broken.push(word[0]);
    }
  }
}
return broken;
"""


def broken_words(browser, selector):
    return browser.execute_script(BROKEN_WORDS, selector)


def narrow(browser):
    """Give the page the width of a phone."""
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def widen(browser):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def folder(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("preview") / "archive"
    for name in ("admiral.jpg", "coffee.jpg", "office.webp", "sideways.jpg"):
        target = folder / "2026" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(samples[name].read_bytes())
    (folder / HOSTILE).write_bytes(samples["admiral.jpg"].read_bytes()[:20_000])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def sheet(folder, veil):
    """The sheet of all pictures with two settings, as the command wrote it."""
    path = folder.parent / "sheet.html"
    before = sorted(folder.rglob("*"))
    done = veil("preview", folder, "--compare", "region=full", "-o", path)
    assert done.returncode == 1, done.stderr  # one of them is cut off
    assert "it holds clear pictures" in done.stderr
    assert sorted(folder.rglob("*")) == before
    return path


@pytest.fixture(scope="module")
def browser(system_program, tmp_path_factory):
    started = chromium(system_program, tmp_path_factory.mktemp("chromium"))
    yield started
    started.quit()


@pytest.fixture
def page(browser, sheet):
    browser.get(sheet.as_uri())
    return browser


def test_the_sheet_is_for_its_owner_alone(sheet):
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    assert b"http://" not in sheet.read_bytes()
    assert b"https://" not in sheet.read_bytes()


def test_the_sheet_says_what_was_found_and_what_failed(page):
    text = page.find_element(By.TAG_NAME, "body").text
    assert (
        "This file holds clear pictures" in page.find_element(By.CSS_SELECTOR, "[role=alert]").text
    )
    assert "5 of 5 pictures" in text
    assert "3 of 5" in text  # with faces
    assert "UnreadableImage" in text
    assert HOSTILE in text
    assert page.title == f"Veil preview of {page.title.removeprefix('Veil preview of ')}"
    assert console(page) == []
    if SCREENSHOT:
        page.save_screenshot(SCREENSHOT)


def test_the_slider_shows_more_of_the_source_by_mouse_and_by_key(page):
    slider = page.find_element(By.CSS_SELECTOR, ".compare input[type=range]")
    over = page.find_element(By.CSS_SELECTOR, ".compare .over")
    assert "50%" in over.value_of_css_property("clip-path")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert "51%" in over.value_of_css_property("clip-path")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    quarter = -slider.size["width"] // 4
    ActionChains(page).move_to_element_with_offset(slider, quarter, 0).click().perform()
    assert 20 <= int(slider.get_attribute("value")) <= 30


def test_boxes_and_other_settings_show_on_demand(page):
    drawings = page.find_elements(By.CSS_SELECTOR, "[data-variant='0'] .compare svg")
    assert not any(drawing.is_displayed() for drawing in drawings)
    page.find_element(By.ID, "boxes").click()
    assert all(drawing.is_displayed() for drawing in drawings)
    assert page.find_elements(By.CSS_SELECTOR, "[data-variant='0'] svg text")[0].text.startswith(
        "0."
    )

    page.find_element(By.CSS_SELECTOR, "[data-choose='1']").click()
    assert not any(drawing.is_displayed() for drawing in drawings)
    assert page.find_element(By.CSS_SELECTOR, "[data-variant='1'] .compare").is_displayed()


def test_all_pictures_of_the_sheet_are_shown(page):
    sizes = page.execute_script(
        "return Promise.all([...document.images].map(image => { image.loading = 'eager';"
        " return image.decode().then(() => image.naturalWidth); }))"
    )
    assert len(sizes) == 4 * 2 * 2
    assert min(sizes) > 100


def test_people_with_disabilities_can_use_the_sheet(page):
    script = axe_script()
    assert serious_problems(page, script) == []


def test_the_sheet_fits_a_phone_and_breaks_no_address_inside_a_word(page):
    """Tables that are too wide scroll by themselves."""
    narrow(page)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") == 400
        assert page.find_elements(By.CSS_SELECTOR, "#failures ~ .scroll td.text wbr")
        assert broken_words(page, "#failures ~ .scroll td.text") == []
    finally:
        widen(page)


def test_the_report_of_a_sample_fits_a_phone(browser, tmp_path):
    marked = SampledPicture("s3://camera-clean/2026/11/30/platform-3/IMG_0001.jpg", "e", "r")
    sample = Sample("0a1b2c3d", ["s3://camera-clean/2026"], 1, 1, 1.8e9, [marked])
    report.write(tmp_path / "report.html", accept(sample, {0: Mark([[0, 0, 9, 9]], "marks.jsonl")}))
    browser.get((tmp_path / "report.html").as_uri())
    assert broken_words(browser, "td.text") == []
    narrow(browser)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") == 400
        assert broken_words(browser, "td.text") == []
        assert serious_problems(browser, axe_script()) == []
    finally:
        widen(browser)


def test_a_sheet_without_originals_has_no_clear_pixel(folder, veil, tmp_path):
    path = tmp_path / "sheet.html"
    done = veil("preview", folder, "--no-originals", "--suffix", ".webp", "-o", path)
    assert done.returncode == 0, done.stderr
    page = path.read_text()
    assert "clear pictures" not in page + done.stderr
    assert page.count("data:image/jpeg") == 1


def test_the_figures_for_machines_are_reproducible_and_write_no_file(folder, veil, tmp_path):
    arguments = ("preview", folder, "--sample", 2, "--seed", 5, "--cores", 8, "--json")
    one, two = (veil(*arguments, cwd=tmp_path) for _ in range(2))
    figures, again = json.loads(one.stdout), json.loads(two.stdout)
    assert list(tmp_path.iterdir()) == []
    assert figures["pictures"] == 5
    assert [row["source"] for row in figures["sample"]] == [
        row["source"] for row in again["sample"]
    ]
    assert len(figures["sample"]) == 2
    whole = figures["variants"][0]["whole"]
    assert whole["cores"] == 8
    assert whole["hours"] == pytest.approx(whole["core_hours"] / 8)
    assert "after" not in one.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere",), 2, "is no folder and no s3:// address"),
        (("s3://no_bucket!/x",), 2, "is not an address like"),
        ((".", "-o", "no/such/folder.html"), 2, "can't be written"),
        ((".",), 1, "no picture at ."),
    ],
)
def test_what_can_not_be_previewed_is_refused(veil, tmp_path, arguments, code, message):
    done = veil("preview", *arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
