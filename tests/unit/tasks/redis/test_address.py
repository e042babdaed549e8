"""Addresses of sentinels: the forms that are read, and those that are refused."""

import shutil
import ssl

import botocore.httpsession
import pytest

from tasks.errors import SettingsInvalid
from tasks.settings import Settings

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sentinel://one", [("one", 26379)]),
        ("sentinel://one:1,two:2,three/3", [("one", 1), ("two", 2), ("three", 26379)]),
        ("sentinel://[::1]:1,[::2]/0", [("::1", 1), ("::2", 26379)]),
        ("sentinel://one:1;sentinel://two:2/0", [("one", 1), ("two", 2)]),
        ("sentinels://veil@one:1,two:2/0", [("one", 1), ("two", 2)]),
        ("redis://one:1/0", []),
    ],
)
def test_sentinels_are_read(url, expected):
    assert list(Settings.load(redis_url=url).redis_sentinels()) == expected


@pytest.mark.parametrize(
    "hosts",
    ["", ",", "one,", "one:port", "one:0", "one:70000", "one two", "one,user@two", "one/0,two/0"],
)
def test_wrong_sentinels_are_refused_without_their_password(hosts):
    with pytest.raises(SettingsInvalid, match="sentinel://HOST:PORT,HOST:PORT/0") as raised:
        Settings.load(redis_url=f"sentinel://veil:{SECRET}@{hosts}")
    assert SECRET not in str(raised.value)


def test_the_address_has_the_user_and_the_database_of_redis():
    settings = Settings.load(redis_url="sentinel://veil@one:1,two:2/3", redis_password=SECRET)
    assert settings.broker_url() == f"redis://veil:{SECRET}@one:1/3"
    expected = f"sentinel://veil:{SECRET}@one:1/3;sentinel://veil:{SECRET}@two:2/3"
    assert settings.sentinel_url() == expected
    assert settings.redis_server() == "one:1,two:2"
    assert settings.transport_options()["master_name"] == "mymaster"
    assert settings.transport_options()["sentinel_kwargs"] == {}


def test_the_sentinels_have_a_password_of_their_own_and_the_tls_of_redis(tmp_path):
    authority = tmp_path / "ca.pem"
    shutil.copy(botocore.httpsession.where(), authority)
    settings = Settings.load(
        redis_url=f"sentinels://one,two/0?ssl_ca_certs={authority}",
        redis_service="queue",
        redis_sentinel_user="watcher",
        redis_sentinel_password=SECRET,
    )
    tls = {"ssl_ca_certs": str(authority), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert settings.tls_options() == tls
    options = settings.transport_options()
    assert options["master_name"] == "queue"
    access = {"username": "watcher", "password": SECRET}
    assert options["sentinel_kwargs"] == {**tls, **access, "ssl": True}
    assert SECRET not in repr(settings)


@pytest.mark.parametrize("name", ["service", "sentinel_user", "sentinel_password"])
def test_settings_of_sentinels_need_sentinels(name):
    with pytest.raises(SettingsInvalid, match=f"VEIL_REDIS_{name.upper()} needs sentinels"):
        Settings.load(**{f"redis_{name}": "any"})
    assert Settings.load(**{f"redis_{name}": ""}).redis_sentinels() == ()


@pytest.mark.parametrize("prefix", ["*", "a b", "é", "a" * 65])
def test_a_prefix_has_no_characters_with_a_meaning_in_patterns(prefix):
    with pytest.raises(SettingsInvalid, match="VEIL_REDIS_PREFIX"):
        Settings.load(redis_prefix=prefix)
