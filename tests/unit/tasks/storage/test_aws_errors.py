"""Errors of botocore: each becomes a VeilError that says who must act, without secrets."""

import email.utils
import http.client
import inspect
import re
import socket
import time

import boto3.exceptions
import botocore.exceptions
import botocore.parsers
import pytest
import s3transfer.exceptions
import urllib3.exceptions
from urllib3.util.ssl_match_hostname import CertificateError

from tasks import errors
from tasks.addresses import ObjectUri
from tasks.errors import Permanent, Transient, VeilError
from tasks.storage.aws_errors import (
    CREDENTIAL_CALLS,
    DENIED,
    LATER,
    LONGEST_RETRY_AFTER,
    MISSING,
    REFUSED,
    translate,
    translated,
)

PLACE = ObjectUri("raw", "in/a.jpg")
SECRET = "hunter2-secret"
WORDS = f"Ask the\nproxy at http://user:{SECRET}@proxy:3128."

# Errors in botocore's own service models, raised while a client is made from a damaged
# installation.
NOT_FROM_A_CALL = {"MissingServiceIdError", "UndefinedModelAttributeError"}

CONNECTION = {
    "ChecksumError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "EndpointConnectionError",
    "FlexibleChecksumError",
    "HTTPClientError",
    "IncompleteReadError",
    "ProxyConnectionError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "SSLError",
}
CREDENTIALS = {
    "CredentialRetrievalError",
    "MetadataRetrievalError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}


def error_classes(module):
    classes = {
        c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Exception)
    }
    return sorted(
        (c for c in classes if not issubclass(c, Warning)), key=lambda c: (c.__module__, c.__name__)
    )


def an_instance(cls):
    """Return an error of `cls` whose text holds SECRET, like an address with a password."""
    if issubclass(cls, botocore.exceptions.ClientError):
        return cls({"Error": {"Code": "SlowDown", "Message": WORDS}}, "GetObject")
    error = cls.__new__(cls)
    Exception.__init__(error, f"could not reach http://user:{SECRET}@proxy:3128")
    return error


def an_answer(code, status, operation="GetObject"):
    response = {
        "Error": {"Code": code, "Message": WORDS},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}},
    }
    return botocore.exceptions.ClientError(response, operation)


def raised(error):
    """Return the error that a caller of ObjectStore gets for `error`."""
    with pytest.raises(VeilError) as caught, translated(PLACE):
        raise error
    return caught.value


@pytest.mark.parametrize("cls", error_classes(botocore.exceptions), ids=lambda cls: cls.__name__)
def test_every_error_class_of_botocore_is_translated(cls):
    if cls.__name__ in NOT_FROM_A_CALL:
        assert not issubclass(cls, botocore.exceptions.BotoCoreError)
        return
    error = raised(an_instance(cls))
    assert isinstance(error, Transient | Permanent)
    assert getattr(errors, type(error).__name__) is type(error)
    assert isinstance(error, Transient) or cls.__name__ not in CONNECTION
    assert (type(error) is errors.CredentialsRefused) or cls.__name__ not in CREDENTIALS
    assert SECRET not in str(error)
    assert str(PLACE) in str(error)


def test_an_unreachable_store_is_named_without_a_password():
    tried = f"http://user:{SECRET}@store.internal:8333/raw?list-type=2"
    error = raised(botocore.exceptions.EndpointConnectionError(endpoint_url=tried, error="refused"))
    assert str(error) == (
        f"{PLACE}: S3 can't be reached at store.internal:8333 (EndpointConnectionError): "
        "check the network and VEIL_S3_ENDPOINT"
    )


def test_the_names_in_these_tables_are_botocores():
    names = {cls.__name__ for cls in error_classes(botocore.exceptions)}
    assert names >= CONNECTION | CREDENTIALS | NOT_FROM_A_CALL


@pytest.mark.parametrize(
    "error",
    [
        urllib3.exceptions.ProtocolError("Connection broken", http.client.IncompleteRead(b"")),
        urllib3.exceptions.ReadTimeoutError(None, f"http://u:{SECRET}@h/", "timed out"),
        urllib3.exceptions.DecodeError("bad gzip"),
        socket.gaierror(-2, "Name or service not known"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        OSError(5, "Input/output error"),
        botocore.parsers.ResponseParserError(f"Unable to parse response: <html>{SECRET}"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_breaks_below_botocore_is_worth_another_try(error):
    translated = raised(error)
    assert type(translated) is errors.StorageUnavailable
    assert SECRET not in str(translated)
    assert "check" in str(translated)
    assert str(translated).endswith("VEIL_S3_ENDPOINT")


def test_a_store_that_does_not_answer_in_time_has_the_advice_of_one_that_refuses():
    tried = "http://store.internal:8333/raw"
    error = raised(botocore.exceptions.ReadTimeoutError(endpoint_url=tried))
    assert str(error) == (
        f"{PLACE}: S3 can't be reached at store.internal:8333 (ReadTimeoutError): "
        "check the network and VEIL_S3_ENDPOINT"
    )


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        (f"http://store.internal/{PLACE.bucket}/a", "S3 can't be reached at store.internal "),
        (f"http://store.internal/sub/{PLACE.bucket}?a", "S3 can't be reached at store.internal "),
        (f"http://{PLACE.bucket}.store.internal/a", f"S3 can't be reached at {PLACE.bucket}.stor"),
        ("https://sts.internal:8443/", "STS, which assumes roles, can't be reached at sts.inter"),
    ],
)
def test_the_service_that_can_not_be_reached_is_named_with_its_setting(tried, expected):
    error = raised(botocore.exceptions.ConnectTimeoutError(endpoint_url=tried))
    assert type(error) is errors.StorageUnavailable
    assert str(error).startswith(f"{PLACE}: {expected}")
    setting = "AWS_ENDPOINT_URL_STS" if "sts" in tried else "VEIL_S3_ENDPOINT"
    assert str(error).endswith(f": check the network and {setting}")


def test_a_certificate_without_the_buckets_host_has_the_advice_to_address_by_path():
    failed = botocore.exceptions.SSLError(
        endpoint_url=f"https://{PLACE.bucket}.store.internal/a", error="hostname doesn't match"
    )
    failed.__cause__ = CertificateError("hostname doesn't match")
    assert str(raised(failed)).endswith(
        ": its certificate is for another host: correct VEIL_S3_ENDPOINT, or set "
        "VEIL_S3_ADDRESSING=path if the store has no host for each bucket"
    )


@pytest.mark.parametrize(
    "cls",
    [*error_classes(boto3.exceptions), *error_classes(s3transfer.exceptions)],
    ids=lambda cls: cls.__name__,
)
def test_any_error_of_boto3s_transfers_has_a_translation(cls):
    # No call of ObjectStore raises these today. They are translated in case a later one does.
    error = translate(an_instance(cls), PLACE)
    assert isinstance(error, VeilError)
    assert SECRET not in str(error)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("NoSuchKey", 404, errors.ObjectNotFound),
        ("NoSuchBucket", 404, errors.ObjectNotFound),
        ("NoSuchVersion", 404, errors.ObjectNotFound),
        ("404", 404, errors.ObjectNotFound),
        ("", 404, errors.ObjectNotFound),
        ("AccessDenied", 403, errors.AccessDenied),
        ("403", 403, errors.AccessDenied),
        ("SomethingNew", 403, errors.AccessDenied),
        ("SomethingNew", 401, errors.AccessDenied),
        ("InvalidAccessKeyId", 403, errors.CredentialsRefused),
        ("SignatureDoesNotMatch", 403, errors.CredentialsRefused),
        ("ExpiredToken", 400, errors.CredentialsRefused),
        ("RequestTimeTooSkewed", 403, errors.CredentialsRefused),
        ("SlowDown", 503, errors.StorageUnavailable),
        ("ServiceUnavailable", 503, errors.StorageUnavailable),
        ("InternalError", 500, errors.StorageUnavailable),
        ("RequestTimeout", 400, errors.StorageUnavailable),
        ("ThrottlingException", 400, errors.StorageUnavailable),
        ("OperationAborted", 409, errors.StorageUnavailable),
        ("SomethingNew", 429, errors.StorageUnavailable),
        ("408", 408, errors.StorageUnavailable),
        ("502", 502, errors.StorageUnavailable),
        ("504", 504, errors.StorageUnavailable),
        ("SomethingNew", 599, errors.StorageUnavailable),
        ("", 400, errors.StorageUnavailable),
        ("400", 400, errors.StorageUnavailable),
        ("InvalidRequest", 400, errors.StorageRejected),
        ("KeyTooLongError", 400, errors.StorageRejected),
        ("EntityTooLarge", 400, errors.StorageRejected),
        ("PermanentRedirect", 301, errors.StorageUnavailable),
        ("AuthorizationHeaderMalformed", 400, errors.StorageUnavailable),
        ("PreconditionFailed", 412, errors.StorageRejected),
        ("QuotaExceeded", 400, errors.StorageRejected),
        ("", 0, errors.StorageRejected),
    ],
)
def test_an_answer_of_s3_says_who_must_act(code, status, expected):
    error = raised(an_answer(code, status))
    assert type(error) is expected
    assert str(error).startswith(str(PLACE))
    assert SECRET not in str(error)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("AccessDenied", 403),
        ("QuotaExceeded", 403),
        ("SignatureDoesNotMatch", 403),
        ("RequestTimeTooSkewed", 403),
        ("SlowDown", 503),
        ("PermanentRedirect", 301),
        ("XMinioStorageFull", 507),
        ("InvalidStorageClass", 400),
    ],
)
def test_the_stores_own_words_are_part_of_the_error_without_passwords(code, status):
    assert f"{code}: Ask the proxy at http://proxy:3128" in str(raised(an_answer(code, status)))


def test_long_words_are_cut():
    error = an_answer("InvalidArgument", 400)
    error.response["Error"]["Message"] = "x" * 10_000
    assert len(str(raised(error))) < 400


@pytest.mark.parametrize("text", ["Forbidden", "", None, "AccessDenied"])
def test_words_that_say_nothing_are_left_out(text):
    error = an_answer("AccessDenied", 403)
    error.response["Error"]["Message"] = text
    assert "S3 denies access (AccessDenied): " in str(raised(error))


@pytest.mark.parametrize(
    ("code", "ahead", "named"),
    [
        ("RequestTimeTooSkewed", 3600, "3,600 s ahead"),
        ("SignatureDoesNotMatch", -1800, "1,800 s behind"),
        ("403", -1800, "1,800 s behind"),  # a HEAD
    ],
)
def test_a_wrong_clock_is_named_with_its_error(code, ahead, named):
    error = an_answer(code, 403)
    there = email.utils.formatdate(time.time() - ahead, usegmt=True)
    error.response["ResponseMetadata"]["HTTPHeaders"] = {"date": there}
    translated = raised(error)
    assert type(translated) is errors.CredentialsRefused
    assert "the clock of this machine" in str(translated)
    seconds = int(named.split()[0].replace(",", ""))
    found = re.search(r"it is ([\d,]+) s (ahead|behind)", str(translated))
    assert abs(int(found[1].replace(",", "")) - seconds) <= 2
    assert found[2] == named.split()[2]


def test_a_refused_signature_with_a_right_clock_is_one_of_the_credentials():
    error = an_answer("SignatureDoesNotMatch", 403)
    now = email.utils.formatdate(usegmt=True)
    error.response["ResponseMetadata"]["HTTPHeaders"] = {"date": now}
    assert "refuses the credentials" in str(raised(error))


@pytest.mark.parametrize("call", CREDENTIAL_CALLS)
def test_a_role_that_is_refused_makes_no_picture_a_dead_letter(call):
    error = raised(an_answer("AccessDenied", 403, call))
    assert type(error) is errors.CredentialsRefused
    assert "the role" in str(error)


def test_a_bucket_in_another_region_names_that_region():
    error = an_answer("AuthorizationHeaderMalformed", 400)
    error.response["Error"]["Region"] = "eu-west-3"
    assert "set VEIL_S3_REGION to eu-west-3" in str(raised(error))


@pytest.mark.parametrize(
    "response", [{}, {"Error": {}}, {"Error": {"Code": None}}, {"ResponseMetadata": {}}]
)
def test_an_answer_without_particulars_is_named_all_the_same(response):
    assert isinstance(raised(botocore.exceptions.ClientError(response, "GetObject")), VeilError)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("86400", LONGEST_RETRY_AFTER),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("9" * 400, None),
    ],
)
def test_the_pause_that_s3_asks_for_is_known_and_bounded(value, seconds):
    error = an_answer("SlowDown", 503)
    error.response["ResponseMetadata"]["HTTPHeaders"] = {"retry-after": value}
    expected = LONGEST_RETRY_AFTER if value == "9" * 400 else seconds
    assert raised(error).retry_after == expected


def test_a_pause_may_be_given_as_a_date():
    error = an_answer("SlowDown", 503)
    at = email.utils.formatdate(time.time() + 30, usegmt=True)
    error.response["ResponseMetadata"]["HTTPHeaders"] = {"retry-after": at}
    assert 25 < raised(error).retry_after <= 30
    error.response["ResponseMetadata"]["HTTPHeaders"] = {
        "retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"
    }
    assert raised(error).retry_after == 0


def test_no_error_code_is_in_two_tables():
    tables = [MISSING, DENIED, REFUSED, LATER]
    assert len(set().union(*tables)) == sum(map(len, tables))


def test_an_error_that_has_its_name_keeps_it():
    error = errors.ImageTooLarge("too large")
    assert raised(error) is error


def test_a_bug_is_not_taken_for_a_storage_error():
    with pytest.raises(ZeroDivisionError), translated(PLACE):
        raise ZeroDivisionError
