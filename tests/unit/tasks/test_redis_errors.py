"""Errors of Redis say what failed, where, and who must act."""

import socket

import pytest
import redis

from tasks.errors import QueueUnavailable
from tasks.redis_errors import connected, queue_unavailable

SECRET = "hunter2hunter2"


def ping(url):
    """Return the error of a ping at `url`, as Veil reports it."""
    with pytest.raises(QueueUnavailable) as raised, connected():
        redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=0.2).ping()
    return str(raised.value)


def test_a_port_at_which_nobody_listens_is_named_with_its_reason():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    message = ping(f"redis://user:{SECRET}@127.0.0.1:{port}/0")
    assert f"connecting to 127.0.0.1:{port}. Connection refused" in message
    assert message.endswith(": check VEIL_REDIS_URL")
    assert SECRET not in message


def test_a_certificate_file_that_is_missing_is_named():
    message = ping(f"rediss://:{SECRET}@127.0.0.1:1/0?ssl_ca_certs=no.pem")
    assert "127.0.0.1:1" in message
    assert SECRET not in message


def test_a_server_that_never_answers_is_named_a_timeout():
    with socket.create_server(("127.0.0.1", 0)) as server:
        message = ping(f"redis://:{SECRET}@127.0.0.1:{server.getsockname()[1]}/0")
    assert "Timeout" in message
    assert SECRET not in message


def test_an_error_of_another_library_is_named_by_its_type_alone():
    message = str(queue_unavailable(OSError(f"{SECRET}")))
    assert message == "Redis can't be used (OSError): check VEIL_REDIS_URL"
