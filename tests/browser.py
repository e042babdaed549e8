"""A headless Chromium for tests of pages, and axe-core, which judges whether all people can use
them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
)
AXE = Path(sys.prefix) / "axe.min.js"  # `make test` fetches it; it is no package
SERIOUS = ("serious", "critical")


def chromium(system_program, folder, size=(1280, 900)):
    """Return a browser with a window of `size`, whose console is kept."""
    service = Service(
        system_program("chromedriver"),
        service_args=["--log-level=OFF"],
        log_output=subprocess.DEVNULL,
    )
    options = webdriver.ChromeOptions()
    options.binary_location = system_program("chromium")
    width, height = size
    own = (f"--user-data-dir={folder}", f"--window-size={width},{height}")
    for option in (*CHROMIUM_OPTIONS, *own):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=service)


def axe_script():
    """Return axe-core, or skip the test if it is not on this machine."""
    if not AXE.is_file():
        pytest.skip(f"axe-core is not on this machine: make {AXE.parent.name}/{AXE.name}")
    return AXE.read_text(encoding="utf-8")


def serious_problems(browser, script):
    """Return the serious problems that axe-core finds on the page, with their elements."""
    # Selenium's own scripts are not subject to the policy of the page.
    browser.execute_script(script)
    answer = browser.execute_async_script(
        "const done = arguments[0];"
        "axe.run().then(found => done(JSON.stringify(found.violations)),"
        " error => done(JSON.stringify([{id: String(error), impact: 'critical', nodes: []}])))"
    )
    return [
        (problem["id"], [node["html"][:120] for node in problem["nodes"]])
        for problem in json.loads(answer)
        if problem["impact"] in SERIOUS
    ]


def console(browser):
    """Return the messages of the console: errors of scripts, and what the policy refused."""
    return [entry["message"] for entry in browser.get_log("browser")]
