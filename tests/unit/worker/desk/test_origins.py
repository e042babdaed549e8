"""The origins of the desk's pages, as browsers and proxies write them."""

import pytest

from worker.desk.origins import Origins


@pytest.mark.parametrize(
    ("url", "page", "hosts"),
    [
        ("http://127.0.0.1:8600", "http://127.0.0.1:8600", {"127.0.0.1:8600"}),
        ("http://[::1]:8600", "http://[::1]:8600", {"[::1]:8600"}),
        ("http://localhost:80", "http://localhost", {"localhost", "localhost:80"}),
        (
            "https://Review.Example",
            "https://review.example",
            {"review.example", "review.example:443"},
        ),
        (
            "https://review.example:443",
            "https://review.example",
            {"review.example", "review.example:443"},
        ),
    ],
)
def test_a_default_port_may_be_left_out(url, page, hosts):
    assert Origins.of([url]) == Origins(frozenset({page}), frozenset(hosts))
