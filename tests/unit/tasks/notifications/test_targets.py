"""The signature of notifications, and the targets that are refused at the start."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tasks.errors import SettingsInvalid
from tasks.notifications.address import secret_bytes
from tasks.notifications.targets import Aws, NotAccepted, signed
from tasks.settings import Settings

KEY = "k" * 32


def test_the_signature_is_that_of_the_example_of_standard_webhooks():
    keys = [secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    headers = signed(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1614265330.9)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("https://host/path", KEY),
        ("https://host:8080", f"{KEY},{KEY}"),
        ("http://127.0.0.1:8080/hook", KEY),
        ("http://127.9.0.1/", KEY),
        ("http://[::1]:8080/", KEY),
        ("http://localhost", KEY),
        ("arn:aws:sqs:eu-central-1:123456789012:outcomes", None),
        ("arn:aws-cn:sns:cn-north-1:123456789012:outcomes", None),
    ],
)
def test_targets_are_accepted(target, key):
    assert Settings.load(notify=target, notify_key=key).notify == target


@pytest.mark.parametrize(
    ("target", "key", "expected"),
    [
        ("host/path", KEY, "https:// address of a webhook, or the ARN"),
        ("ftp://host", KEY, "https:// address of a webhook, or the ARN"),
        ("http://host:8080/", KEY, "http:// is accepted for loopback addresses alone"),
        ("http://10.0.0.1/", KEY, "http:// is accepted for loopback addresses alone"),
        ("http://localhost.example.com/", KEY, "http:// is accepted for loopback addresses alone"),
        ("https://", KEY, "https:// address of a webhook, or the ARN"),
        ("https://host:port/", KEY, "https:// address of a webhook, or the ARN"),
        ("https://user:hunter2@host/", KEY, "https:// address of a webhook, or the ARN"),
        ("arn:aws:sqs:eu-central-1:1:outcomes", KEY, "https:// address of a webhook, or the ARN"),
        ("arn:aws:s3:::bucket", KEY, "https:// address of a webhook, or the ARN"),
        ("https://host/", None, "needs VEIL_NOTIFY_KEY"),
        ("https://host/", "short", "needs 32 characters or more"),
        ("https://host/", "whsec_" + "*" * 32, "must be base64"),
    ],
)
def test_others_are_refused_without_their_secrets(target, key, expected):
    with pytest.raises(SettingsInvalid, match="VEIL_NOTIFY") as raised:
        Settings.load(notify=target, notify_key=key)
    assert expected in str(raised.value)
    assert "hunter2" not in str(raised.value)


class Page(BaseHTTPRequestHandler):
    """The page of a proxy, in place of the answer of AWS."""

    def do_POST(self):
        body = b"<html>sign in"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_an_answer_that_is_not_that_of_aws_accepts_no_event(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Page)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    target = Aws("arn:aws:sns:eu-central-1:123456789012:outcomes")
    try:
        with pytest.raises(NotAccepted, match="outcomes"):
            asyncio.run(target.send({"id": "1"}))
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
