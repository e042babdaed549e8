"""The queue of SQS: its address, the translation of its errors, and its batch calls."""

import botocore.exceptions as vendor
import pytest

from tasks.errors import AccessDenied, EventsUnavailable, SettingsInvalid
from tasks.settings import Settings
from tasks.uploads.sqs import EventQueue

URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/uploads"
MESSAGES = [{"ReceiptHandle": "a", "Body": "{}"}, {"ReceiptHandle": "b", "Body": "{}"}]


class Client:
    """A client of SQS that raises `error`, or records the entries of its batch calls."""

    def __init__(self, error=None, failed=()):
        self.error = error
        self.failed = failed
        self.entries = []

    def receive_message(self, **_):
        raise self.error

    def change_message_visibility_batch(self, **arguments):
        self.entries = arguments["Entries"]

    def delete_message_batch(self, **arguments):
        self.entries = arguments["Entries"]
        return {"Failed": self.failed} if self.failed else {}


def client_error(code, status=400):
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return vendor.ClientError(response, "ReceiveMessage")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "uploads",
        "https://",
        "ftp://host/1/q",
        "https://host",
        "https://host/q",
        "http://[::1/1/q",
    ],
)
def test_an_address_that_no_queue_can_have_is_refused(url):
    with pytest.raises(SettingsInvalid, match="is not the URL of an SQS queue"):
        EventQueue.connect(Settings(), url)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        (URL, "eu-central-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1"),
        ("https://vpce-0a.sqs.us-west-2.vpce.amazonaws.com/1/q", "us-west-2"),
        ("http://127.0.0.1:9324/1/q", "ap-south-1"),
    ],
)
def test_the_region_is_that_of_the_address_or_of_the_settings(url, region):
    queue = EventQueue.connect(Settings(s3_region="ap-south-1"), url)
    assert queue._client.meta.region_name == region


def test_the_region_of_other_addresses_is_that_of_boto3_without_a_setting(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    queue = EventQueue.connect(Settings(), "http://127.0.0.1:9324/1/q")
    assert queue._client.meta.region_name == "eu-west-2"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (client_error("AWS.SimpleQueueService.NonExistentQueue"), SettingsInvalid),
        (client_error("QueueDoesNotExist"), SettingsInvalid),
        (client_error("AccessDeniedException"), AccessDenied),
        (client_error("InvalidClientTokenId", 403), AccessDenied),
        (client_error("Anything", 401), AccessDenied),
        (client_error("InternalError", 500), EventsUnavailable),
        (client_error("Throttling"), EventsUnavailable),
        (vendor.NoCredentialsError(), AccessDenied),
        (vendor.EndpointConnectionError(endpoint_url=URL), EventsUnavailable),
        (vendor.ReadTimeoutError(endpoint_url=URL), EventsUnavailable),
        (ConnectionResetError(), EventsUnavailable),
    ],
)
def test_errors_of_sqs_are_translated(error, expected):
    with pytest.raises(expected) as raised:
        EventQueue(Client(error), URL).receive()
    assert len(str(raised.value).splitlines()) == 1


def test_batch_calls_have_an_entry_for_each_message():
    client = Client()
    EventQueue(client, URL).hide(MESSAGES, 30)
    assert client.entries == [
        {"Id": "0", "ReceiptHandle": "a", "VisibilityTimeout": 30},
        {"Id": "1", "ReceiptHandle": "b", "VisibilityTimeout": 30},
    ]


def test_messages_that_sqs_fails_to_delete_are_counted():
    client = Client(failed=[{"Id": "1"}])
    assert EventQueue(client, URL).delete(MESSAGES) == 1
    assert [entry["ReceiptHandle"] for entry in client.entries] == ["a", "b"]
