"""Who must act on an error of the store, for a report on a route."""

from tasks.causes import causes
from tasks.errors import (
    AccessDenied,
    CredentialsRefused,
    ObjectNotFound,
    StorageRejected,
    StorageUnavailable,
    VeilError,
)
from tasks.storage import aws_errors

CREATES_BUCKET = "whoever manages the buckets must create this one, or correct the route"
ALLOWS = "whoever manages the policies of the bucket and the role must allow {}"
ALLOWS_KEY = (
    "whoever manages the key must let the role use it: its key policy must allow "
    "kms:GenerateDataKey and kms:Decrypt"
)
TRUSTS = (
    "whoever manages the role must let these credentials assume it: its trust policy, its external "
    "id, and the permission sts:AssumeRole"
)
SETS_CLOCK = "whoever runs this machine must set its clock"
GIVES_CREDENTIALS = "whoever runs this process must give it other credentials"
NAMES_STORE = "whoever runs this process must name an S3 store in VEIL_S3_ENDPOINT"
NAMES_REGION = "whoever runs this process must correct VEIL_S3_REGION"
RUNS_STORE = "whoever runs the store must act, or VEIL_S3_… names another one"
SETS_HEADERS = (
    "whoever runs this process must change VEIL_UPLOAD_… or VEIL_RECEIPT_…, or whoever runs the "
    "store must accept them"
)


def who_acts(error: VeilError, permission: str) -> str | None:
    """Return who must act on `error`, which ended an attempt to use `permission`.

    Return None if its message says all that is known.
    """
    if duty := _duty_by_answer(error):
        return duty
    # A destination is unavailable for a reason of another class.
    for cause in causes(error, is_context_followed=True):
        for kind, duty in BY_CLASS.items():
            if isinstance(cause, kind):
                return duty.format(permission)
    return None


BY_CLASS: dict[type[VeilError], str] = {
    ObjectNotFound: CREATES_BUCKET,
    AccessDenied: ALLOWS,
    CredentialsRefused: GIVES_CREDENTIALS,
    StorageUnavailable: RUNS_STORE,
    StorageRejected: SETS_HEADERS,
}


def _duty_by_answer(error: VeilError) -> str | None:
    """Return who must act if the answer of the store says more than the class of `error`."""
    answer = aws_errors.answer_behind(error)
    if answer is None:
        return None
    if answer.operation_name in aws_errors.CREDENTIAL_CALLS:
        return TRUSTS
    if aws_errors.refuses_clock(answer):
        return SETS_CLOCK
    if aws_errors.is_of_no_store(answer):
        return NAMES_STORE
    if aws_errors.code(answer) in aws_errors.ELSEWHERE:
        return NAMES_REGION
    if aws_errors.names_key(answer):
        return ALLOWS_KEY
    return None
