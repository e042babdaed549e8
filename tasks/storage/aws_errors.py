"""The only translation of errors of boto3 and S3 into those of tasks.errors."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import botocore.exceptions as vendor
import botocore.parsers
import urllib3.exceptions
from urllib3.exceptions import NameResolutionError
from urllib3.util.ssl_match_hostname import CertificateError

from .. import tls_errors
from ..addresses import ObjectUri, PrefixUri
from ..causes import causes
from ..errors import (
    AccessDenied,
    CredentialsRefused,
    ObjectNotFound,
    StorageRejected,
    StorageUnavailable,
    VeilError,
)

MAX_WORDS = 300  # characters of the store's own words in a message
SKEW_SECONDS = 900  # by which a clock may differ from that of Amazon S3
LONGEST_RETRY_AFTER = 300.0  # seconds; a longer Retry-After of a store is cut to it

# Error codes by who must act. Source: Amazon S3 API reference, "Error responses".
MISSING = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "404"}
DENIED = {
    "AccessDenied", "AccountProblem", "AllAccessDisabled", "Forbidden", "InvalidSecurity",
    "NotSignedUp", "UnauthorizedAccess", "401", "403",
}  # fmt: skip
ELSEWHERE = {  # codes of a bucket in another region
    "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect",
    "TemporaryRedirect",
}  # fmt: skip
# Calls that get the credentials for a call to S3. Their refusal affects every picture.
CREDENTIAL_CALLS = (
    "AssumeRole", "AssumeRoleWithWebIdentity", "AssumeRoleWithSAML", "GetRoleCredentials",
    "CreateToken", "AssumeRoleForPodIdentity",
)  # fmt: skip
REFUSED = {  # codes for credentials that S3 accepts for no call
    "AuthFailure", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
LATER = {
    "BandwidthLimitExceeded", "InternalError", "OperationAborted", "RequestLimitExceeded",
    "RequestTimeout", "RequestTimeoutException", "RequestThrottled", "ServiceUnavailable",
    "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "TooManyRequestsException",
}  # fmt: skip
NO_STORE = (405, 501)  # HTTP statuses of servers that know no methods but GET and POST
NO_TEXT = ("", "403")  # botocore's codes of an answer 403 without a body
NO_CODE = ("", "400")  # botocore's codes of an answer 400 that has none
REPEATED = ("Forbidden", "Not Found", "Bad Request")  # botocore's texts for answers without one
WITH_PASSWORD = re.compile(r"//[^/@\s]*@")
CHANGED = (409, 412)  # HTTP statuses: another client changed the object that a call depends on
STORE, ROLES = "VEIL_S3_ENDPOINT", "AWS_ENDPOINT_URL_STS"  # the settings with addresses
STS = "STS, which assumes roles,"
PATH = "VEIL_S3_ADDRESSING=path"
WANTS_TLS = ", which begins with https:// if this port speaks TLS"
UNREACHABLE = (
    vendor.HTTPClientError,
    vendor.ConnectionError,
    vendor.IncompleteReadError,
    vendor.FlexibleChecksumError,
    vendor.ChecksumError,
    vendor.EventStreamError,
    vendor.WaiterError,
    # The answer was cut off, or is the page of a proxy.
    botocore.parsers.ResponseParserError,
    urllib3.exceptions.HTTPError,
    OSError,
)
NO_CREDENTIALS = (
    vendor.NoCredentialsError,
    vendor.PartialCredentialsError,
    vendor.CredentialRetrievalError,
    vendor.TokenRetrievalError,
    vendor.NoAuthTokenError,
    vendor.UnauthorizedSSOTokenError,
    vendor.SSOError,
    vendor.MetadataRetrievalError,
    vendor.LoginError,
    vendor.ProfileNotFound,
    RuntimeError,  # raised by botocore for refreshed credentials that have expired already
)


@contextmanager
def translated(place: ObjectUri | PrefixUri) -> Iterator[None]:
    """Raise the VeilError for an error of an S3 call on `place`."""
    try:
        yield
    except VeilError:
        raise
    except (vendor.BotoCoreError, vendor.ClientError, *UNREACHABLE, *NO_CREDENTIALS) as error:
        raise translate(error, place) from error


def translate(error: Exception, place: ObjectUri | PrefixUri) -> VeilError:
    """Return the VeilError that says who must act on an error of botocore or of its connection."""
    if isinstance(error, vendor.ClientError):
        return _translate_answer(error, place)
    kind = type(error).__name__
    if isinstance(error, NO_CREDENTIALS):
        return CredentialsRefused(
            f"{place}: no usable S3 credentials ({kind}): check AWS_ACCESS_KEY_ID and its secret"
        )
    if isinstance(error, UNREACHABLE):
        server = urlsplit(_tried(error)).netloc.rpartition("@")[2]
        at = f" at {server}" if server else ""
        name, setting = ("S3", STORE) if _tries_store(error, place) else (STS, ROLES)
        advice = _advice(error, place, setting)
        return StorageUnavailable(f"{place}: {name} can't be reached{at} ({kind}){advice}")
    return StorageRejected(f"{place}: S3 call refused before it was sent ({kind})")


def _tried(error: Exception) -> str:
    """Return the address that was tried if `error` names it, else nothing."""
    return str(getattr(error, "kwargs", {}).get("endpoint_url", ""))


def _tries_store(error: Exception, place: ObjectUri | PrefixUri) -> bool:
    """Return whether the failed call was one to the store of `place`, whose address has the bucket.

    Otherwise it was to get the credentials for such a call.
    """
    tried = _tried(error)
    in_path = place.bucket in urlsplit(tried).path.split("/")
    return not tried or in_path or _names_bucket_in_host(error, place)


def _advice(error: Exception, place: ObjectUri | PrefixUri, setting: str) -> str:
    """Return what to do about a connection for `place` that failed with `error`.

    `setting` is the one that has the address.
    """
    in_host = _names_bucket_in_host(error, place)
    or_path = f", or set {PATH} if the store has no host for each bucket" if in_host else ""
    if any(isinstance(each, CertificateError) for each in causes(error, is_context_followed=True)):
        return f": its certificate is for another host: correct {setting}{or_path}"
    if tls_errors.distrusts(error):
        return ": its certificate is not trusted: name the file of its issuer in AWS_CA_BUNDLE"
    if tls_errors.speaks_no_tls(error):
        return f": this port does not speak TLS: use http:// in {setting}, or another port"
    if isinstance(error, vendor.ConnectionClosedError) and _tried(error).startswith("http://"):
        return f": check {setting}{WANTS_TLS}"
    if in_host and isinstance(error.__context__, NameResolutionError):
        return f": this host does not resolve: check the network and {setting}{or_path}"
    if isinstance(error, botocore.parsers.ResponseParserError):
        return f": the answer is not that of a store: check {setting}"
    return f": check the network and {setting}"


def _names_bucket_in_host(error: Exception, place: ObjectUri | PrefixUri) -> bool:
    """Return whether the address that was tried has the bucket of `place` before the host."""
    return (urlsplit(_tried(error)).hostname or "").startswith(f"{place.bucket}.")


def _prefix_advice(place: ObjectUri | PrefixUri) -> str:
    """Return what to do if an object was meant as a prefix, as a name without a suffix may be."""
    may_be_prefix = isinstance(place, ObjectUri) and "." not in place.key.rpartition("/")[2]
    return "; for what is below a prefix: veil enqueue --prefix" if may_be_prefix else ""


def _translate_answer(error: vendor.ClientError, place: ObjectUri | PrefixUri) -> VeilError:
    name, http, said = code(error), status(error), words(error)
    named = f"{name}: {said}" if said else name
    if refused := _credentials_refused(error, place, named) or _no_store(error, place):
        return refused
    if name == "NoSuchBucket":
        return ObjectNotFound(
            f"{place}: the bucket does not exist: create it, or correct the address"
        )
    if name in MISSING or (not name and http == 404):
        return ObjectNotFound(f"{place} does not exist{_prefix_advice(place)}")
    if name in ELSEWHERE:
        region = error.response.get("Error", {}).get("Region") or "that of the bucket"
        return StorageUnavailable(
            f"{place}: the bucket is in another region ({named}): set VEIL_S3_REGION to {region}"
        )
    if name in LATER or http in (408, 429) or http >= 500:
        unavailable = StorageUnavailable(f"{place}: S3 answers {http or ''} {named}")
        unavailable.retry_after = _retry_after(error)
        return unavailable
    if name == "InvalidObjectState":
        return StorageRejected(f"{place} is archived: restore it first")
    if name in DENIED or http in (401, 403):
        return AccessDenied(
            f"{place}: S3 denies access ({named}): check the credentials and the bucket's policy"
        )
    if http == 400 and name in NO_CODE:
        # A server with TLS answers so to a request without TLS, and Amazon S3 to a HEAD with an
        # expired token. Both affect every picture, so none may end as a dead letter.
        return StorageUnavailable(
            f"{place}: S3 answers 400 without a reason: check the credentials, and "
            f"{STORE}{WANTS_TLS}"
        )
    return StorageRejected(f"{place}: S3 answers {http or ''} {named}")


def _no_store(error: vendor.ClientError, place: ObjectUri | PrefixUri) -> StorageUnavailable | None:
    """Return the error for an answer from a wrong endpoint, else None."""
    missing = error.response.get("Error", {}).get("BucketName") or place.bucket
    if code(error) == "NoSuchBucket" and missing != place.bucket:
        # The first part of the endpoint's path, or of its host.
        return StorageUnavailable(
            f"{place}: the store takes {missing!r:.60} for the bucket: correct {STORE}"
        )
    if not is_of_no_store(error):
        return None
    return StorageUnavailable(
        f"{place}: the server answers {status(error)}, and not as a store does: this is no S3 "
        "store: check VEIL_S3_ENDPOINT"
    )


def answer_behind(error: VeilError) -> vendor.ClientError | None:
    """Return the answer of the store for which `error` was raised, or None without one."""
    for cause in causes(error, is_context_followed=True):
        if isinstance(cause, vendor.ClientError):
            return cause
    return None


def is_of_no_store(error: vendor.ClientError) -> bool:
    """Return whether the answer is that of another server, such as a website or a webhook.

    A store describes an error in XML; botocore takes the status for the code if there is none. An
    answer to HEAD never has one, and some stores have none for a missing key.
    """
    if code(error) != str(status(error)):
        return False
    is_missing_listing = status(error) == 404 and error.operation_name.startswith("List")
    return status(error) in NO_STORE or is_missing_listing


def refuses_clock(error: vendor.ClientError) -> bool:
    """Return whether the answer refuses a request for the clock of this machine."""
    return _clock_skew(error) is not None


def names_key(error: vendor.ClientError) -> bool:
    """Return whether the answer refuses a request for a key of KMS."""
    return code(error).startswith("KMS.") or "kms" in words(error).lower()


def _credentials_refused(
    error: vendor.ClientError, place: ObjectUri | PrefixUri, named: str
) -> CredentialsRefused | None:
    """Return the error for an answer that refuses the credentials or the clock, else None."""
    if error.operation_name in CREDENTIAL_CALLS:
        return CredentialsRefused(
            f"{place}: no usable S3 credentials ({error.operation_name}: {named}): check the role, "
            "its trust policy and its external id"
        )
    if skew := _clock_skew(error):
        return CredentialsRefused(
            f"{place}: S3 refuses the clock of this machine ({named}): {skew}"
        )
    if code(error) in REFUSED:
        return CredentialsRefused(
            f"{place}: S3 refuses the credentials ({named}): check or renew them"
        )
    return None


def _clock_skew(error: vendor.ClientError) -> str | None:
    """Return by how much the clock is wrong, if that is the reason for a refusal; else None.

    A HEAD has no code, so the answer's Date tells.
    """
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        seconds = time.time() - parsedate_to_datetime(str(headers.get("date", ""))).timestamp()
    except (ValueError, OverflowError):
        seconds = 0.0
    is_refused = code(error) in REFUSED or (code(error) in NO_TEXT and status(error) == 403)
    if code(error) != "RequestTimeTooSkewed" and not (is_refused and abs(seconds) > SKEW_SECONDS):
        return None
    if abs(seconds) < 1:
        return "set it, for instance with NTP"
    return (
        f"it is {abs(seconds):,.0f} s {'ahead' if seconds > 0 else 'behind'}: set it, as with NTP"
    )


def knows_no_condition(error: VeilError) -> bool:
    """Return whether a store may have refused a write because it knows no conditions.

    Such stores answer 501, or 400 for the header.
    """
    http = status(error.__cause__)
    is_rejected = isinstance(error, StorageRejected) or code(error.__cause__) in NO_CODE
    return http == 501 or (http == 400 and is_rejected)


def code(error: BaseException | None) -> str:
    """Return the code of S3's answer; empty for an error without an answer."""
    response = error.response if isinstance(error, vendor.ClientError) else {}
    return str(response.get("Error", {}).get("Code", ""))


def words(error: BaseException | None) -> str:
    """Return the message in S3's answer, cut to one short line; empty if there is none.

    Addresses with a password are left out.
    """
    response = error.response if isinstance(error, vendor.ClientError) else {}
    text = " ".join(str(response.get("Error", {}).get("Message") or "").split())
    text = WITH_PASSWORD.sub("//", text)
    is_phrase = text in REPEATED or text == code(error)
    return "" if is_phrase else text[:MAX_WORDS].rstrip(".")


def status(error: BaseException | None) -> int:
    """Return the HTTP status of S3's answer; 0 for an error without an answer."""
    response = error.response if isinstance(error, vendor.ClientError) else {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def _retry_after(error: vendor.ClientError) -> float | None:
    """Return the seconds in an answer's Retry-After, at most LONGEST_RETRY_AFTER.

    The value is a number of seconds or a date (RFC 9110, section 10.2.3). Return None if there is
    no such header, or no such value.
    """
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    value = str(headers.get("retry-after", ""))
    try:
        if value.isdecimal():
            seconds = float(value)
        else:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
