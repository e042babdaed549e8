"""Producers and workers use a Redis with TLS only if they trust its certificate.

TLS ends in front of the real Redis, as with a proxy or in a cloud.
"""

import contextlib
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.errors import QueueUnavailable, SettingsInvalid
from tasks.publishing import Publisher, Wanted
from tasks.settings import Settings
from tests.integration.certificates import write_certificate
from tests.integration.conftest import Worker
from tests.integration.lying_sentinel import LyingSentinel
from tools.local.sentinels import SERVICE
from tools.local.servers import HOST, Server

STUB = Path(__file__).parents[1] / "stub_worker.py"
ROOT = STUB.parents[2]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A folder with a self-signed certificate for HOST and its key, as PEM files."""
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def client_certificate(tmp_path_factory):
    """Another such folder."""
    return write_certificate(tmp_path_factory.mktemp("client"))


@pytest.fixture
def server_context(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    return context


@pytest.fixture
def tls_port(server_context, unattended):
    """The port at which TLS leads to the Redis of `unattended`."""
    listener = socket.create_server((HOST, 0))

    def pump(source, sink):
        with contextlib.suppress(OSError, ValueError):
            while chunk := source.recv(65536):
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve(near):
        with (
            contextlib.suppress(OSError),
            server_context.wrap_socket(near, server_side=True) as inside,
            socket.create_connection((HOST, unattended.redis.port)) as far,
        ):
            threading.Thread(target=pump, args=(far, inside), daemon=True).start()
            pump(inside, far)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=serve, args=(near,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_producers_and_workers_meet_at_a_redis_with_a_certificate_they_trust(
    unattended, tls_port, certificate, tmp_path, wait_until
):
    url = (
        f"rediss://{HOST}:{tls_port}/{unattended.database}"
        f"?ssl_ca_certs={certificate / 'certificate.pem'}"
    )
    environment = {
        "VEIL_REDIS_URL": url,
        "VEIL_REDIS_PASSWORD": unattended.redis.password,
        "VEIL_LEASE_SECONDS": "2",
        "PYTHONPATH": str(ROOT),
    }
    worker = Worker(
        Server(
            "worker", [sys.executable, STUB, tmp_path / "journal"], tmp_path / "log", environment
        )
    )
    app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
    try:
        worker.start()
        # The picture takes longer than a lease.
        result = app.send_task("veil.anonymize_image", ("s3://raw/sleep-3/a.jpg",))
        assert result.get(timeout=60)["status"] == "anonymized"
        wait_until(lambda: not unattended.client.hlen("unacked"), 20)
        assert not worker.lines("queue unavailable")
        assert not worker.lines("messages taken back")
    finally:
        worker.server.stop()
        app.close()


def test_sentinels_and_the_redis_that_they_name_speak_tls(
    unattended, tls_port, server_context, certificate
):
    with LyingSentinel(tls_port, 0, server_context) as sentinel:

        def connect(options):
            app = create_app(
                Settings(
                    redis_url=f"sentinels://{HOST}:{sentinel.address[1]}/{unattended.database}{options}",
                    redis_service=SERVICE,
                    redis_password=unattended.redis.password,
                )
            )
            app.conf.broker_transport_options["sentinel_kwargs"]["protocol"] = 2
            return app

        app = connect(f"?ssl_ca_certs={certificate / 'certificate.pem'}")
        with contextlib.closing(Publisher(app)) as publisher:
            publisher.publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")
        app.send_task("veil.anonymize_image", ("s3://raw/b.jpg",))
        assert unattended.client.llen("uploads") == 2
        with (
            contextlib.closing(Publisher(connect(""))) as publisher,
            pytest.raises(
                QueueUnavailable, match=r"no sentinel answers.*certificate verify failed"
            ),
        ):
            publisher.publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")


def test_a_certificate_that_nobody_vouches_for_is_refused(unattended, tls_port):
    url = f"rediss://{HOST}:{tls_port}/{unattended.database}"
    app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
    with pytest.raises(QueueUnavailable, match="check the host and ssl_ca_certs in VEIL_REDIS_URL"):
        Publisher(app).publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")
    assert unattended.client.llen("uploads") == 0


def test_a_client_without_tls_at_a_port_with_tls_is_told_so(unattended, tls_port):
    url = f"redis://{HOST}:{tls_port}/{unattended.database}"
    app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
    with pytest.raises(QueueUnavailable, match="a port with TLS needs rediss:// there"):
        Publisher(app).publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")


def test_a_client_with_tls_at_a_port_without_is_told_so_without_a_retry(unattended):
    url = f"rediss://{HOST}:{unattended.redis.port}/{unattended.database}"
    app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
    began = time.monotonic()
    with pytest.raises(QueueUnavailable, match="this port does not speak TLS: use redis://"):
        Publisher(app).publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")
    # Redis without TLS does not answer a handshake, which ends after 5 seconds.
    assert time.monotonic() - began < 9


def test_a_command_with_tls_at_a_port_without_ends_at_once(veil, unattended):
    url = f"rediss://{HOST}:{unattended.redis.port}/{unattended.database}"
    environment = {**unattended.environment, "VEIL_REDIS_URL": url}
    began = time.monotonic()
    done = veil("enqueue", "s3://raw/a.jpg", environment=environment)
    assert time.monotonic() - began < 20
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "this port does not speak TLS: use redis:// in VEIL_REDIS_URL" in line


@pytest.fixture
def mutual(server_context, client_certificate, certificate, unattended, tls_port):
    """``mutual(folder)`` enqueues a picture with the client certificate in `folder`.

    The server accepts only the client certificate of `client_certificate`.
    """
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(client_certificate / "certificate.pem")

    def enqueue(folder=None):
        url = (
            f"rediss://{HOST}:{tls_port}/{unattended.database}"
            f"?ssl_ca_certs={certificate / 'certificate.pem'}"
        )
        if folder:
            url += f"&ssl_certfile={folder}/certificate.pem&ssl_keyfile={folder}/key.pem"
        app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
        with contextlib.closing(Publisher(app)) as publisher:
            publisher.publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")

    return enqueue


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_asks_for_a_client_certificate_takes_the_right_one_alone(
    mutual, server_context, client_certificate, certificate, unattended, version
):
    server_context.maximum_version = version
    for wrong in (None, certificate):
        with pytest.raises(QueueUnavailable, match="ssl_certfile and ssl_keyfile") as raised:
            mutual(wrong)
        assert "begins with rediss://" not in str(raised.value)
    assert unattended.client.llen("uploads") == 0

    mutual(client_certificate)
    assert unattended.client.llen("uploads") == 1


def test_a_client_certificate_that_can_not_be_used_is_named_by_its_option(
    certificate, client_certificate, tmp_path
):
    def problem(**files):
        options = "&".join(f"ssl_{name}={path}" for name, path in files.items())
        try:
            Settings.load(redis_url=f"rediss://{HOST}:1/0?{options}")
        except SettingsInvalid as error:
            return str(error)
        return None

    own, key = client_certificate / "certificate.pem", client_certificate / "key.pem"
    both = tmp_path / "both.pem"
    both.write_bytes(own.read_bytes() + key.read_bytes())
    locked = tmp_path / "locked.pem"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open"),
        )
    )
    assert problem(certfile=own, keyfile=key) is None
    assert problem(certfile=both) is None
    assert problem(certfile=own, keyfile=locked, password="open") is None
    assert "ssl_certfile needs ssl_keyfile" in problem(certfile=own)
    assert "ssl_keyfile needs ssl_certfile" in problem(keyfile=key)
    other = certificate / "key.pem"
    assert "ssl_keyfile is not that of the certificate" in problem(certfile=own, keyfile=other)
    assert "in the PEM format" in problem(certfile=key, keyfile=own)
    assert "an encrypted key needs ssl_password" in problem(certfile=own, keyfile=locked)
