"""A headless Chromium that shows pictures, for tests and `make corpus`."""

import base64
import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service

from worker.pixels import Array

OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb")
SECONDS = 60
# Decodes a picture, and returns its pixels in sRGB as a PNG, or nothing if it is not shown.
SHOW = """
const [address, done] = arguments;
const image = new Image();
image.onerror = () => done(null);
image.onload = () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  done(canvas.toDataURL("image/png"));
};
image.src = address;
"""


class Browser:
    """A browser that is running."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def pixels(self, content: bytes) -> Array | None:
        """Return the first frame of a picture file, uint8 RGBA [h, w, 4].

        Return None if the picture is not shown, or too large for a canvas.
        """
        address = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
        try:
            shown = self._driver.execute_async_script(SHOW, address)
        except WebDriverException:
            return None
        encoded = (shown or "").partition(",")[2]
        if not encoded:
            return None
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            return np.asarray(image.convert("RGBA"))


@contextmanager
def browser() -> Iterator[Browser | None]:
    """Yield a browser, or None where Chromium and its driver are not installed."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for option in (*OPTIONS, f"--user-data-dir={folder}"):
            options.add_argument(option)
        service = Service(
            chromedriver, service_args=["--log-level=OFF"], log_output=subprocess.DEVNULL
        )
        driver = webdriver.Chrome(options=options, service=service)
        driver.set_script_timeout(SECONDS)
        try:
            yield Browser(driver)
        finally:
            driver.quit()
