"""Events from an SQS queue, whose messages are deleted once their pictures are on Veil's queue."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

import boto3
import botocore.config
import botocore.exceptions as vendor
import structlog

from ..backoff import Backoff
from ..errors import (
    AccessDenied,
    EventsUnavailable,
    MalformedEvent,
    QueueUnavailable,
    SettingsInvalid,
    VeilError,
)
from ..publishing import Wanted
from ..settings import Settings
from ..storage.access import region_of
from ..storage.aws_errors import DENIED, NO_CREDENTIALS, UNREACHABLE
from .stopping import Stop, Stopped
from .trigger import SourceBackoff, Trigger

POLL_SECONDS = 20  # for which a call to SQS waits for messages; SQS allows no longer wait
MAX_MESSAGES = 10  # received by one call; SQS allows no more
# SQS hides received messages from other readers for this time. A try of Redis takes far less.
VISIBILITY_SECONDS = 120
READ_MARGIN_SECONDS = 10  # by which the timeout of a call exceeds POLL_SECONDS
AWS_HOST = re.compile(r"(?:.*\.)?sqs\.([a-z0-9-]+)\.(?:vpce\.)?amazonaws\.com(?:\.cn)?")
# Error codes of SQS.
NO_QUEUE = {"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"}
NOT_ALLOWED = DENIED | {
    "AccessDeniedException",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
}

log = structlog.get_logger("veil")


class EventQueue:
    """A queue of SQS. Every method raises only VeilError."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self.url = url

    @classmethod
    def connect(cls, settings: Settings, url: str, endpoint: str | None = None) -> "EventQueue":
        """Return the queue at `url`; the first call connects to it.

        `endpoint`, if given, is called in place of the URL's host. Raises SettingsInvalid for a URL
        that no queue can have.
        """
        parts = _split_queue_url(url)
        region = AWS_HOST.fullmatch(parts.hostname or "")
        config = botocore.config.Config(
            connect_timeout=settings.s3_connect_seconds,
            read_timeout=POLL_SECONDS + READ_MARGIN_SECONDS,
            # SqsSource retries, and logs it.
            retries={"mode": "standard", "total_max_attempts": 1},
            tcp_keepalive=True,
        )
        try:
            session = boto3.session.Session()
            client = session.client(
                "sqs",
                endpoint_url=endpoint or f"{parts.scheme}://{parts.netloc}",
                region_name=region[1] if region else region_of(session, settings),
                config=config,
            )
        except (vendor.BotoCoreError, ValueError) as error:
            raise SettingsInvalid(f"cannot create an SQS client: {error}") from None
        return cls(client, url)

    def has_redrive_policy(self) -> bool:
        with self._translated():
            answer = self._client.get_queue_attributes(
                QueueUrl=self.url, AttributeNames=["RedrivePolicy"]
            )
        return "RedrivePolicy" in answer.get("Attributes", {})

    def receive(self) -> list[dict[str, Any]]:
        """Return up to MAX_MESSAGES messages, and wait up to POLL_SECONDS for the first."""
        with self._translated():
            answer = self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=MAX_MESSAGES,
                WaitTimeSeconds=POLL_SECONDS,
                VisibilityTimeout=VISIBILITY_SECONDS,
                MessageSystemAttributeNames=["ApproximateReceiveCount"],
            )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    def hide(self, messages: Sequence[dict[str, Any]], seconds: int) -> None:
        """Hide `messages` from other readers for `seconds` from now."""
        entries: list[dict[str, Any]] = [
            {**entry, "VisibilityTimeout": seconds} for entry in _entries(messages)
        ]
        with self._translated():
            self._client.change_message_visibility_batch(QueueUrl=self.url, Entries=entries)

    def delete(self, messages: Sequence[dict[str, Any]]) -> int:
        """Delete `messages`; return how many of them SQS failed to delete."""
        with self._translated():
            answer = self._client.delete_message_batch(
                QueueUrl=self.url, Entries=_entries(messages)
            )
        return len(answer.get("Failed", ()))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except vendor.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            if code in NO_QUEUE:
                raise SettingsInvalid(f"{self.url}: there is no such queue") from None
            if code in NOT_ALLOWED or status in (401, 403):
                raise AccessDenied(
                    f"{self.url}: SQS denies access ({code}): check the credentials"
                ) from None
            raise EventsUnavailable(f"{self.url}: SQS answers {status or ''} {code}") from None
        except NO_CREDENTIALS as error:
            raise AccessDenied(
                f"{self.url}: no usable credentials ({type(error).__name__})"
            ) from None
        except (vendor.BotoCoreError, *UNREACHABLE) as error:
            raise EventsUnavailable(
                f"{self.url}: cannot reach SQS ({type(error).__name__})"
            ) from None


def _split_queue_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        # The path of a queue's URL is /ACCOUNT/NAME.
        if parts.scheme in ("http", "https") and parts.hostname and "/" in parts.path[1:]:
            return parts
    except ValueError:
        pass
    raise SettingsInvalid(
        f"{url!r:.200} is not the URL of an SQS queue, "
        "like https://sqs.REGION.amazonaws.com/ACCOUNT/NAME"
    )


def _entries(messages: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the entries of a batch call of SQS for `messages`."""
    return [
        {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
        for number, message in enumerate(messages)
    ]


class SqsSource:
    """Passes the messages of `queue` to `trigger`."""

    def __init__(self, queue: EventQueue, trigger: Trigger) -> None:
        self._queue = queue
        self._trigger = trigger
        self._sqs = SourceBackoff("sqs", "sqs")
        self._redis = Backoff("redis")

    def run(self, stop: Stop) -> None:
        """Receive messages until `stop` is requested.

        Raises SettingsInvalid or AccessDenied if the queue cannot be used at the start. All later
        errors are retried.
        """
        with suppress(Stopped):
            self._check(stop)
            while not stop.requested:
                try:
                    with stop.interruptible():
                        messages = self._queue.receive()
                    self._sqs.succeeded()
                    self.take(messages, stop)
                except VeilError as error:
                    stop.wait(self._sqs.failed(error))

    def take(self, messages: Sequence[dict[str, Any]], stop: Stop) -> None:
        """Publish the pictures that `messages` report, then delete these messages.

        A malformed message is not deleted, so that the redrive policy of the queue applies to it.
        """
        pictures: list[Wanted] = []
        well_formed = []
        for message in messages:
            try:
                pictures += self._trigger.read(message.get("Body"))
                well_formed.append(message)
            except MalformedEvent as error:
                received = message.get("Attributes", {}).get("ApproximateReceiveCount")
                log.warning(
                    "malformed", message=str(error), sqs=message.get("MessageId"), received=received
                )
        if not well_formed or not self._publish(pictures, well_formed, stop):
            return
        if remaining := self._queue.delete(well_formed):
            # SQS delivers these messages again, and the workers then skip their pictures.
            log.warning("not deleted", messages=remaining)

    def _publish(
        self, pictures: Sequence[Wanted], messages: Sequence[dict[str, Any]], stop: Stop
    ) -> bool:
        """Put `pictures` on the queue; return False if a stop is requested before that succeeds.

        `messages` stay hidden while Redis is away. On a stop they become visible again at once.
        """
        hidden_at = time.monotonic()
        while pictures:
            try:
                self._trigger.publish(pictures)
                break
            except QueueUnavailable as error:
                pause = self._redis.failed(error)
            if stop.wait(pause):
                self._queue.hide(messages, 0)
                return False
            if time.monotonic() - hidden_at > VISIBILITY_SECONDS / 3:
                self._queue.hide(messages, VISIBILITY_SECONDS)
                hidden_at = time.monotonic()
        self._redis.succeeded()
        return True

    def _check(self, stop: Stop) -> None:
        """Check that the queue exists, warn if it has no redrive policy, and log that it is used.

        Without one, SQS delivers malformed messages again and again.
        """
        while not stop.requested:
            try:
                with stop.interruptible():
                    redrives = self._queue.has_redrive_policy()
            except EventsUnavailable as error:
                stop.wait(self._sqs.failed(error))
                continue
            self._sqs.succeeded()
            if not redrives:
                log.warning(
                    "no redrive policy",
                    message="malformed messages come back until their retention period ends",
                )
            log.info("watching", sqs=self._queue.url)
            return
