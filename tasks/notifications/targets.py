"""The targets of notifications: a signed webhook, an SQS queue, an SNS topic."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from .. import tls_errors
from ..errors import VeilError
from ..storage.aws_errors import NO_CREDENTIALS, UNREACHABLE
from .address import ARN, secret_bytes
from .events import CONTENT_TYPE, Event

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0  # for the whole request, so that a target that hangs holds up nothing
MAX_ANSWER_BYTES = 1 << 20
# A target answers these to one event; any other refusal concerns all events.
EVENT_STATUSES = (400, 409, 413, 422)


class NotAccepted(VeilError):
    """The target of notifications can't be reached, or accepts no events now."""


class EventRefused(VeilError):
    """The target of notifications refuses one event."""


class Target(Protocol):
    """A place that accepts events."""

    async def send(self, event: Event) -> None:
        """Return when the target has accepted `event`. Raises NotAccepted or EventRefused."""


class Webhook(Target):
    """An HTTP server to which events are posted, signed as Standard Webhooks describes.

    The signature covers the id, the time of the request and the body. A receiver refuses times that
    are more than five minutes away, and ids that it has accepted before.
    """

    def __init__(self, url: str, secrets: Sequence[str]) -> None:
        self._url = url
        self._keys = [secret_bytes(secret) for secret in secrets]

    async def send(self, event: Event) -> None:
        body = json.dumps(event).encode()
        request = HTTPRequest(
            self._url,
            "POST",
            {"Content-Type": CONTENT_TYPE, **signed(self._keys, event["id"], body, time.time())},
            body,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=ANSWER_SECONDS,
            follow_redirects=False,
            user_agent="veil",
        )
        try:
            client = AsyncHTTPClient(max_body_size=MAX_ANSWER_BYTES)
            answer = await client.fetch(request, raise_error=False)
        except (HTTPClientError, OSError, ValueError) as error:
            raise NotAccepted(f"{self._host}: {error!s:.200}{_advice(error)}") from None
        if answer.code in EVENT_STATUSES:
            raise EventRefused(f"{self._host} answers {answer.code}")
        if not 200 <= answer.code < 300:
            reason = answer.error if answer.code == 599 else answer.code
            raise NotAccepted(f"{self._host} answers {reason!s:.200}")

    @property
    def _host(self) -> str:
        return urlsplit(self._url).hostname or ""


def _advice(error: Exception) -> str:
    """Return what to check about a connection that failed with `error`, or nothing."""
    if tls_errors.distrusts(error):
        return (
            ": the certificate is not trusted: check the host in VEIL_NOTIFY, or name the file of "
            "its issuer in SSL_CERT_FILE"
        )
    if tls_errors.speaks_no_tls(error):
        return ": this port does not speak TLS: check VEIL_NOTIFY"
    return ""


class Aws(Target):
    """An SQS queue or an SNS topic."""

    def __init__(self, arn: str) -> None:
        import boto3  # takes half a second, and a webhook does not need it

        match = ARN.fullmatch(arn)
        assert match, arn
        self._arn = arn
        service, region, account, self._name = match.groups()
        retries = {"total_max_attempts": 1}
        config = Config(
            connect_timeout=CONNECT_SECONDS, read_timeout=ANSWER_SECONDS, retries=retries
        )
        self._client = boto3.client(service, region_name=region, config=config)
        self._account = account
        self._queue: str | None = None
        self._put: Callable[[str], Any] = self._to_queue if service == "sqs" else self._to_topic

    async def send(self, event: Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._put, json.dumps(event))
        except (ClientError, BotoCoreError, *UNREACHABLE, *NO_CREDENTIALS) as error:
            raise NotAccepted(f"{self._name}: {error!s:.300}") from None

    def _to_queue(self, body: str) -> None:
        if self._queue is None:
            answer = self._client.get_queue_url(
                QueueName=self._name, QueueOwnerAWSAccountId=self._account
            )
            self._queue = answer["QueueUrl"]
        self._client.send_message(QueueUrl=self._queue, MessageBody=body)

    def _to_topic(self, body: str) -> None:
        self._client.publish(TopicArn=self._arn, Message=body)


def connect(address: str, secrets: Sequence[str]) -> Target:
    """Return the target at `address`, which `address.check` accepts."""
    return Aws(address) if ARN.fullmatch(address) else Webhook(address, secrets)


def signed(keys: Sequence[bytes], key: str, body: bytes, now: float) -> dict[str, str]:
    """Return the headers of Standard Webhooks for the event with the id `key`."""
    seconds = str(int(now))
    content = b".".join([key.encode(), seconds.encode(), body])
    signatures = []
    for each in keys:
        digest = hmac.new(each, content, hashlib.sha256).digest()
        signatures.append(f"v1,{base64.b64encode(digest).decode()}")
    return {
        "webhook-id": key,
        "webhook-timestamp": seconds,
        "webhook-signature": " ".join(signatures),
    }
