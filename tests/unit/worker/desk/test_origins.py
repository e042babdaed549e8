"""The origins of the desk's pages, as browsers and proxies write them."""

import pytest

from tasks.errors import SettingsInvalid
from worker.desk.origins import Origins, Proxies
from worker.settings import WorkerSettings


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


@pytest.mark.parametrize(
    ("address", "is_proxy"),
    [
        ("10.4.7.9", True),
        ("10.5.0.1", False),
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("fd00::7", True),
        ("fd01::7", False),
        ("::1", False),
        (None, False),
    ],
)
def test_proxies_have_addresses_or_networks(address, is_proxy):
    assert (address in Proxies.of(("10.4.0.0/16", "127.0.0.1", "fd00::/64"))) is is_proxy


@pytest.mark.parametrize("proxies", ["proxy.internal", "10.4.0.1/16", "10.4.0.0-10.4.0.9"])
def test_what_is_no_address_of_a_proxy_is_refused_by_name(monkeypatch, proxies):
    monkeypatch.setenv("VEIL_REVIEW_PROXIES", f"127.0.0.1,{proxies}")
    with pytest.raises(SettingsInvalid, match=f"VEIL_REVIEW_PROXIES: '{proxies}' is no address"):
        WorkerSettings.load()
