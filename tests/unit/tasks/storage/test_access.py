"""The ways to the store: what they refuse before the first call."""

import botocore.httpsession
import pytest

from tasks.errors import SettingsInvalid
from tasks.settings import Settings
from tasks.storage.access import Accesses

TLS, PLAIN = "https://store.internal", "http://store.internal"


@pytest.fixture
def config(monkeypatch, tmp_path):
    """The configuration of boto3, with the profile `known`."""
    path = tmp_path / "config"
    path.write_text("[profile known]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    return path


def connect(**settings):
    return Accesses.connect(Settings(s3_endpoint=settings.pop("endpoint", TLS), **settings), 1)


def test_profiles_that_boto3_does_not_know_are_named_with_their_settings(config):
    with pytest.raises(SettingsInvalid) as raised:
        connect(s3_source_profile="nosuch", s3_output_profile="other")
    assert str(raised.value).split("; ") == [
        "VEIL_S3_SOURCE_PROFILE: boto3 knows no profile 'nosuch': add it to ~/.aws/config",
        "VEIL_S3_OUTPUT_PROFILE: boto3 knows no profile 'other': add it to ~/.aws/config",
    ]
    connect(s3_source_profile="known", s3_output_profile="known")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read (No such file or directory)"),
        ("no certificate", "has no certificate in the PEM format"),
    ],
)
def test_a_file_of_authorities_that_no_connection_could_use_is_named(
    config, monkeypatch, tmp_path, content, said
):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
    with pytest.raises(SettingsInvalid) as raised:
        connect()
    assert str(raised.value) == f"AWS_CA_BUNDLE: {path} {said}"
    connect(endpoint=PLAIN)  # Without TLS nothing reads the file.


def test_a_file_of_authorities_is_accepted(config, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", botocore.httpsession.where())
    connect()


def test_the_file_of_authorities_of_a_profile_is_checked_too(config):
    config.write_text("[profile known]\nca_bundle = /nope\n")
    with pytest.raises(SettingsInvalid, match=r"/nope can't be read"):
        connect(s3_source_profile="known")
    connect()
