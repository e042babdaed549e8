"""Events from an SQS queue: a message is deleted once its pictures are on the queue of the
workers.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.config
import botocore.exceptions as vendor
import structlog

from tasks.backoff import Backoff
from tasks.errors import (
    AccessDenied,
    EventsUnavailable,
    MalformedEvent,
    QueueUnavailable,
    SettingsInvalid,
    VeilError,
)
from tasks.publishing import Wanted
from tasks.settings import Settings
from tasks.storage.aws_errors import DENIED, NO_CREDENTIALS, UNREACHABLE
from tasks.uploads.stopping import Stop, Stopped
from tasks.uploads.trigger import Trigger

POLL_SECONDS = 20  # the longest that SQS allows a call to wait
MESSAGES = 10  # the most that it hands out in one
VISIBILITY_SECONDS = 120  # for which it hides them; several times the longest try of Redis
AWS_HOST = re.compile(r"(?:.*\.)?sqs\.([a-z0-9-]+)\.(?:vpce\.)?amazonaws\.com(?:\.cn)?")
NO_QUEUE = {"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"}
NOT_ALLOWED = DENIED | {
    "AccessDeniedException",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
}

log = structlog.get_logger("veil")


class EventQueue:
    """The SQS calls that Veil makes. Every method raises only VeilError."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self._url = url

    @classmethod
    def connect(cls, settings: Settings, url: str, endpoint: str | None = None) -> "EventQueue":
        """The queue at `url`, whose host is asked unless `endpoint` is another. Connects on the
        first call.

        Raises SettingsInvalid for an address that no queue can have.
        """
        try:
            parts = urlsplit(url)
            usable = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and "/" in parts.path[1:]
            )
        except ValueError:
            usable = False
        if not usable:
            raise SettingsInvalid(
                f"{url!r:.200} is not the URL of an SQS queue, like https://sqs.REGION.amazonaws.com/ACCOUNT/NAME"
            )
        region = AWS_HOST.fullmatch(parts.hostname or "")
        config = botocore.config.Config(
            connect_timeout=settings.s3_connect_seconds,
            read_timeout=POLL_SECONDS + 10,
            retries={
                "mode": "standard",
                "total_max_attempts": 1,
            },  # the loop tries again, and says so
            tcp_keepalive=True,
        )
        try:
            client = boto3.session.Session().client(
                "sqs",
                endpoint_url=endpoint or f"{parts.scheme}://{parts.netloc}",
                region_name=region[1] if region else settings.s3_region,
                config=config,
            )
        except (vendor.BotoCoreError, ValueError) as error:
            raise SettingsInvalid(f"no SQS client can be made: {error}") from None
        return cls(client, url)

    def has_redrive_policy(self) -> bool:
        with self._translated():
            answer = self._client.get_queue_attributes(
                QueueUrl=self._url, AttributeNames=["RedrivePolicy"]
            )
        return "RedrivePolicy" in answer.get("Attributes", {})

    def receive(self) -> list[dict[str, Any]]:
        """The next messages, waiting for them."""
        with self._translated():
            answer = self._client.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=MESSAGES,
                WaitTimeSeconds=POLL_SECONDS,
                VisibilityTimeout=VISIBILITY_SECONDS,
                MessageSystemAttributeNames=["ApproximateReceiveCount"],
            )
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        return messages

    def hide(self, messages: Sequence[dict[str, Any]], seconds: int) -> None:
        """Keep `messages` from others for `seconds` from now."""
        entries = [
            {**_entry(i, message), "VisibilityTimeout": seconds}
            for i, message in enumerate(messages)
        ]
        with self._translated():
            self._client.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)

    def delete(self, messages: Sequence[dict[str, Any]]) -> int:
        """Remove `messages`; how many SQS kept all the same."""
        entries = [_entry(i, message) for i, message in enumerate(messages)]
        with self._translated():
            answer = self._client.delete_message_batch(QueueUrl=self._url, Entries=entries)
        return len(answer.get("Failed", ()))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except vendor.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            if code in NO_QUEUE:
                raise SettingsInvalid(f"{self._url}: there is no such queue") from None
            if code in NOT_ALLOWED or status in (401, 403):
                raise AccessDenied(
                    f"{self._url}: SQS denies access ({code}): check the credentials"
                ) from None
            raise EventsUnavailable(f"{self._url}: SQS answers {status or ''} {code}") from None
        except NO_CREDENTIALS as error:
            raise AccessDenied(
                f"{self._url}: no usable credentials ({type(error).__name__})"
            ) from None
        except (vendor.BotoCoreError, *UNREACHABLE) as error:
            raise EventsUnavailable(
                f"{self._url}: SQS can't be reached ({type(error).__name__})"
            ) from None


def _entry(number: int, message: dict[str, Any]) -> dict[str, str]:
    return {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}


class SqsSource:
    """Takes messages from `queue` to `trigger`."""

    def __init__(self, queue: EventQueue, trigger: Trigger) -> None:
        self._queue = queue
        self._trigger = trigger
        self._sqs = Backoff("sqs")
        self._redis = Backoff("redis")

    def run(self, stop: Stop) -> None:
        """Until told to stop. Raises SettingsInvalid or AccessDenied for a queue that can't be used
        from the start.
        """
        with suppress(Stopped):
            self._check(stop)
            while not stop.requested:
                try:
                    with stop.cut_short():
                        messages = self._queue.receive()
                    self._sqs.succeeded()
                    self.take(messages, stop)
                except VeilError as error:
                    stop.wait(self._sqs.failed(error))

    def take(self, messages: Sequence[dict[str, Any]], stop: Stop) -> None:
        """Publish what `messages` ask for, then delete them. One that is malformed is left for the
        redrive policy.
        """
        pictures: list[Wanted] = []
        read = []
        for message in messages:
            try:
                pictures += self._trigger.read(message.get("Body"))
                read.append(message)
            except MalformedEvent as error:
                times = message.get("Attributes", {}).get("ApproximateReceiveCount")
                log.warning(
                    "malformed", message=str(error), sqs=message.get("MessageId"), received=times
                )
        if read and self._publish(pictures, read, stop) and (kept := self._queue.delete(read)):
            log.warning(
                "not deleted", messages=kept
            )  # they come again, and their pictures are skipped

    def _publish(
        self, pictures: Sequence[Wanted], messages: Sequence[dict[str, Any]], stop: Stop
    ) -> bool:
        """Whether `pictures` are on the queue. While Redis is away `messages` stay hidden; at the
        end they go back.
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
        """Whether the queue is there, and gives up what is malformed."""
        while not stop.requested:
            try:
                with stop.cut_short():
                    redrives = self._queue.has_redrive_policy()
            except EventsUnavailable as error:
                stop.wait(self._sqs.failed(error))
                continue
            self._sqs.succeeded()
            if not redrives:
                log.warning(
                    "no redrive policy",
                    message="what is malformed comes back until SQS drops it for its age",
                )
            return
