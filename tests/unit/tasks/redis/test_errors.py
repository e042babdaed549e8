"""Errors of Redis say what failed, where, and who must act."""

import socket
import threading
from contextlib import contextmanager

import pytest
import redis

from tasks.errors import QueueUnavailable
from tasks.redis.errors import connected, queue_unavailable, refusal, right_refusal

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


def test_a_port_without_tls_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        message = ping(f"rediss://:{SECRET}@127.0.0.1:{server.getsockname()[1]}/0")
    assert message.endswith(
        "this port does not speak TLS: use redis:// in VEIL_REDIS_URL, or another port"
    )
    with answering(lambda connection: connection.sendall(b"-ERR unknown command\r\n")) as port:
        message = ping(f"rediss://:{SECRET}@127.0.0.1:{port}/0")
    assert "this port does not speak TLS" in message


def test_a_port_that_closes_connections_may_want_tls():
    with answering(lambda connection: None) as port:
        message = ping(f"redis://:{SECRET}@127.0.0.1:{port}/0")
    assert message.endswith(
        "check VEIL_REDIS_URL: a port with TLS needs rediss:// there, and ssl_certfile and "
        "ssl_keyfile if it asks for client certificates"
    )


@pytest.mark.parametrize(
    ("error", "refuses"),
    [
        (redis.AuthenticationError("WRONGPASS"), True),
        (redis.ResponseError("DB index is out of range"), True),
        (redis.ResponseError("MISCONF"), False),
        (redis.exceptions.NoPermissionError("no permissions to run 'ping'"), False),
        (redis.BusyLoadingError("LOADING"), False),
        (redis.ConnectionError("Connection refused"), False),
        (OSError(), False),
    ],
)
def test_a_refusal_is_an_answer_that_stays_until_the_settings_change(error, refuses):
    assert (refusal(error) is not None) == refuses


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("No permissions to access a key", "the key 'team:uploads'"),
        (
            "this user has no permissions to access one of the keys used as arguments",
            "the key 'team:uploads'",
        ),
        ("User team has no permissions to run the 'keys' command", "'keys'"),
        ("this user has no permissions to run the 'llen' command or its subcommand", "'llen'"),
    ],
)
def test_a_key_or_a_command_that_the_user_may_not_use_is_named_with_what_to_do(text, named):
    error = redis.exceptions.NoPermissionError(text)
    found = right_refusal(error, "team:uploads")
    assert named in found
    for advice in (found, str(queue_unavailable(error))):
        assert "docs/permissions.md" in advice
        assert "VEIL_REDIS_PREFIX" in advice
    assert right_refusal(redis.ResponseError("a key"), "team:uploads") is None


@contextmanager
def answering(answer):
    """A server that calls `answer` with its first connection and closes it; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
