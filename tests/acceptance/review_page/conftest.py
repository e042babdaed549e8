"""The review desk with its servers and a worker, and browsers that show its page."""

import pytest

from tests.acceptance.review_page.page import PASSWORD, ROUTE, Stack
from tests.browser import chromium
from tests.desk import Desk
from tools.local.servers import Server, start_redis, start_s3


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
    return stack


@pytest.fixture(scope="module")
def photographs(samples):
    return {name: path.read_bytes() for name, path in samples.items()}
