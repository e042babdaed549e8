"""A CMYK JPEG without Adobe's marker is read and written as a browser shows it."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.browser import chromium
from worker import images

WIDTH, HEIGHT = 64, 48
PIXELS = """
const [address, done] = [arguments[0], arguments[1]];
const image = new Image();
image.onload = () => {
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  done(Array.from(context.getImageData(0, 0, image.width, image.height).data));
};
image.onerror = () => done(null);
image.src = address;
"""


@pytest.fixture(scope="module")
def browser(system_program, tmp_path_factory):
    started = chromium(system_program, tmp_path_factory.mktemp("chromium"))
    started.get("data:text/html,<title>inks</title>")
    yield started
    started.quit()


def shown(browser, content):
    """Return the pixels of a JPEG as the browser shows them."""
    address = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    values = browser.execute_async_script(PIXELS, address)
    return np.array(values, int).reshape(HEIGHT, WIDTH, 4)[..., :3]


def inks(marked):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = np.stack([x * 3, y * 4, x + y, 200 - x - y], axis=-1).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(planes, "CMYK").save(target, "JPEG", quality=95)
    content = target.getvalue()
    at = content.index(b"\xff\xee")
    end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
    return content if marked else content[:at] + content[end:]


@pytest.mark.parametrize("marked", [True, False])
def test_inks_are_read_and_written_as_a_browser_shows_them(browser, marked):
    content = inks(marked)
    before = shown(browser, content)
    picture = images.decode(content, 10**6)
    assert np.abs(picture.frames[0].on_white() - before).mean() < 3
    output = images.encode(picture, [frame.pixels for frame in picture.frames])
    assert np.abs(shown(browser, output) - before).mean() < 3
