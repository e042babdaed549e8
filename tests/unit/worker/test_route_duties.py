"""The report on a route names who must act, by the cause of an error and not by its class."""

import time
from contextlib import nullcontext
from email.utils import formatdate

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from tasks.addresses import ObjectUri
from tasks.errors import VeilError
from tasks.storage.aws_errors import translate, translated
from worker import route_duties
from worker.outputs import destination_errors
from worker.route_duties import who_acts

PLACE = ObjectUri("clean", "a.jpg")
YESTERDAY = formatdate(time.time() - 86400)


def answer(code, status, operation="PutObject", message="", date=None):
    headers = {"date": date} if date else {}
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    error = {"Code": code, "Message": message}
    return ClientError({"Error": error, "ResponseMetadata": metadata}, operation)


CASES = {
    "missing bucket": (answer("NoSuchBucket", 404), route_duties.CREATES_BUCKET),
    "denied": (answer("AccessDenied", 403), "must allow s3:PutObject"),
    "key": (answer("AccessDenied", 403, message="no kms:Decrypt"), route_duties.ALLOWS_KEY),
    "role": (answer("AccessDenied", 403, "AssumeRole"), "its trust policy"),
    "key of access": (answer("InvalidAccessKeyId", 403), route_duties.GIVES_CREDENTIALS),
    "clock": (answer("403", 403, date=YESTERDAY), route_duties.SETS_CLOCK),
    "no store": (answer("405", 405), route_duties.NAMES_STORE),
    "website": (answer("404", 404, "ListObjectsV2"), route_duties.NAMES_STORE),
    "region": (answer("PermanentRedirect", 301), route_duties.NAMES_REGION),
    "outage": (answer("SlowDown", 503), route_duties.RUNS_STORE),
    "network": (EndpointConnectionError(endpoint_url="http://a"), route_duties.RUNS_STORE),
    "header": (answer("InvalidStorageClass", 400), route_duties.SETS_HEADERS),
}


@pytest.mark.parametrize("is_output", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_cause_says_who_must_act(case, is_output):
    cause, expected = CASES[case]
    meaning = destination_errors() if is_output else nullcontext()
    with pytest.raises(VeilError) as raised, meaning, translated(PLACE):
        raise cause
    assert expected in who_acts(raised.value, "s3:PutObject")


def test_a_server_that_is_no_store_is_named():
    error = translate(answer("405", 405), PLACE)
    assert "this is no S3 store: check VEIL_S3_ENDPOINT" in str(error)
