"""The S3 client without a store: wrong settings, and the addresses that it calls."""

import re
from types import SimpleNamespace

import pytest
from botocore.awsrequest import AWSResponse

from tasks import errors
from tasks.addresses import ObjectUri
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore

SCOPE = re.compile(r"Credential=any/\d{8}/([^/]+)/s3/")
AMAZON = "https://raw.s3.amazonaws.com/a.jpg"
STORE = "http://store.test:9000"


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("AWS_PROFILE", "nobody", "nobody"),
        ("AWS_REGION", "eu west", "eu west"),
        ("VEIL_S3_REGION", "eu west", "eu west"),
        ("AWS_REGION", "europe", "europe is no region of Amazon S3, such as eu-central-1"),
        ("VEIL_S3_ENDPOINT", "http://under_score:9000", "endpoint"),
    ],
)
def test_a_client_that_cannot_be_made_is_a_wrong_setting(monkeypatch, variable, value, complaint):
    monkeypatch.setenv(variable, value)
    with pytest.raises(errors.SettingsInvalid, match=complaint):
        ObjectStore.connect(Settings.load())


@pytest.fixture
def called(monkeypatch, tmp_path):
    """``called(profile, **variables)`` returns the URL and the region of a request.

    `profile` is the text of the default profile in boto3's file.
    """

    def call(profile="", **variables):
        config = tmp_path / "config"
        config.write_text(f"[default]\n{profile}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        requests = []

        def answer(request, **_):
            requests.append(request)
            empty = SimpleNamespace(stream=lambda *_, **__: iter(()))
            return AWSResponse(request.url, 404, {}, empty)

        store = ObjectStore.connect(Settings.load())
        store._accesses.sources.client.meta.events.register("before-send.s3.HeadObject", answer)
        assert store.head(ObjectUri("raw", "a.jpg")) is None
        (request,) = requests
        return request.url, SCOPE.search(request.headers["Authorization"].decode())[1]

    return call


@pytest.mark.parametrize(
    ("variables", "profile", "region"),
    [
        ({}, "", "us-east-1"),
        ({"VEIL_S3_REGION": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "", "us-east-1"),
        ({}, "region = eu-north-1", "eu-north-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "region = eu-north-1", "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-west-2"}, "", "eu-west-2"),
        ({"AWS_REGION": "eu-west-2", "VEIL_S3_REGION": "eu-west-3"}, "", "eu-west-3"),
        ({"AWS_REGION": "eu-west-2", "VEIL_S3_REGION": ""}, "", "eu-west-2"),
    ],
)
def test_the_region_is_the_setting_or_that_of_boto3(called, variables, profile, region):
    url, signed_for = called(profile, **variables)
    assert signed_for == region
    assert url == AMAZON.replace("s3", "s3" if region == "us-east-1" else f"s3.{region}")


@pytest.mark.parametrize(
    ("variables", "profile", "url"),
    [
        ({}, "", AMAZON),
        ({"AWS_ENDPOINT_URL_S3": STORE}, "", f"{STORE}/raw/a.jpg"),
        ({"AWS_ENDPOINT_URL": STORE}, "", f"{STORE}/raw/a.jpg"),
        ({}, f"endpoint_url = {STORE}", f"{STORE}/raw/a.jpg"),
        (
            {"VEIL_S3_ENDPOINT": STORE, "AWS_ENDPOINT_URL_S3": "http://other.test"},
            "",
            f"{STORE}/raw/a.jpg",
        ),
    ],
)
def test_the_endpoint_is_the_setting_or_that_of_boto3(called, variables, profile, url):
    assert called(profile, **variables)[0] == url


@pytest.mark.parametrize(
    ("addressing", "endpoint", "profile", "url"),
    [
        ("auto", "", "", AMAZON),
        ("virtual", "", "", AMAZON),
        ("path", "", "", "https://s3.amazonaws.com/raw/a.jpg"),
        ("auto", STORE, "", f"{STORE}/raw/a.jpg"),
        ("path", STORE, "s3 =\n  addressing_style = virtual", f"{STORE}/raw/a.jpg"),
        ("virtual", STORE, "", "http://raw.store.test:9000/a.jpg"),
        ("auto", STORE, "s3 =\n  addressing_style = virtual", "http://raw.store.test:9000/a.jpg"),
        ("virtual", "http://127.0.0.1:9000", "", "http://127.0.0.1:9000/raw/a.jpg"),
    ],
)
def test_the_bucket_is_in_the_host_or_in_the_path(called, addressing, endpoint, profile, url):
    variables = {"VEIL_S3_ADDRESSING": addressing, "VEIL_S3_ENDPOINT": endpoint}
    assert called(profile, **variables)[0] == url
