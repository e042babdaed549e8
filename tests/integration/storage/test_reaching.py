"""Stores and services that can't be reached: the error names the one, the cause and the setting."""

import ssl
from urllib.parse import urlsplit

import pytest

from tasks.errors import StorageUnavailable
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from tests.integration.certificates import write_certificate
from tests.integration.receivers import Receiver
from tools.local.servers import HOST, free_port


@pytest.fixture
def private(tmp_path, monkeypatch):
    """A server with TLS that is no store, whose issuer is trusted."""
    folder = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    started = Receiver(context=context)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "certificate.pem"))
    yield started
    started.close()


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def reason(**settings):
    """Return why the first object of a bucket can't be listed."""
    store = ObjectStore.connect(Settings(**settings))
    with pytest.raises(StorageUnavailable) as raised:
        next(store.list("raw"), None)
    return str(raised.value)


def test_a_certificate_for_another_host_is_called_so(private):
    found = reason(s3_endpoint=f"https://localhost:{urlsplit(private.url).port}")
    assert found.endswith("its certificate is for another host: correct VEIL_S3_ENDPOINT")


def test_an_issuer_that_is_not_trusted_is_called_so(private, monkeypatch):
    monkeypatch.delenv("AWS_CA_BUNDLE")
    found = reason(s3_endpoint=private.url)
    assert found.endswith("name the file of its issuer in AWS_CA_BUNDLE")


def test_an_endpoint_with_a_path_that_the_store_takes_for_a_bucket_is_to_be_corrected(
    s3, monkeypatch
):
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    found = reason(s3_endpoint=f"{s3.endpoint}/sub")
    assert found == "s3://raw/: the store takes 'sub' for the bucket: correct VEIL_S3_ENDPOINT"


def test_an_unreachable_sts_is_not_called_the_store(s3, monkeypatch):
    server = f"{HOST}:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{server}")
    found = reason(
        s3_endpoint=s3.endpoint, s3_source_role="arn:aws:iam::123456789012:role/veil-sources"
    )
    assert found == (
        f"s3://raw/: STS, which assumes roles, can't be reached at {server} "
        "(EndpointConnectionError): check the network and AWS_ENDPOINT_URL_STS"
    )
