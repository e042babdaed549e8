"""Producers and workers use a Redis with TLS only if they trust its certificate.

TLS ends in front of the real Redis, as with a proxy or in a cloud.
"""

import contextlib
import ipaddress
import socket
import ssl
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.errors import QueueUnavailable
from tasks.publishing import Publisher, Wanted
from tasks.settings import Settings
from tests.integration.conftest import Worker
from tools.local.servers import HOST, Server

STUB = Path(__file__).with_name("stub_worker.py")
ROOT = STUB.parents[2]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for HOST and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem = serialization.Encoding.PEM
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    return folder


@pytest.fixture
def tls_port(certificate, unattended):
    """The port at which TLS leads to the Redis of `unattended`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
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
            context.wrap_socket(near, server_side=True) as inside,
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


def test_a_certificate_that_nobody_vouches_for_is_refused(unattended, tls_port):
    url = f"rediss://{HOST}:{tls_port}/{unattended.database}"
    app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
    with pytest.raises(QueueUnavailable, match="check the host and ssl_ca_certs in VEIL_REDIS_URL"):
        Publisher(app).publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")
    assert unattended.client.llen("uploads") == 0


def test_a_client_without_tls_at_a_port_with_tls_is_told_so(unattended, tls_port):
    url = f"redis://{HOST}:{tls_port}/{unattended.database}"
    app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
    with pytest.raises(QueueUnavailable, match="begins with rediss:// if this port speaks TLS"):
        Publisher(app).publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")


def test_a_client_with_tls_at_a_port_without_is_told_so(unattended):
    url = f"rediss://{HOST}:{unattended.redis.port}/{unattended.database}"
    app = create_app(Settings(redis_url=url, redis_password=unattended.redis.password))
    with pytest.raises(QueueUnavailable, match="this port does not speak TLS: use redis://"):
        Publisher(app).publish([Wanted(ObjectUri("raw", "a.jpg"))], "uploads")
