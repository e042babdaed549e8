"""The likely causes of refused uploads, for the people who configure workers and policies."""

from collections.abc import Iterator

from botocore.exceptions import ClientError

from ..errors import VeilError
from .aws_errors import code, names_key, words
from .upload_headers import UploadHeaders

# Codes of refusals that concern one object: its key, its size or its metadata. All other refusals
# of an upload concern its headers or its bucket, and so every picture of the route.
OF_ONE_OBJECT = (
    "BadDigest", "EntityTooLarge", "EntityTooSmall", "InvalidDigest", "InvalidObjectName",
    "InvalidURI", "KeyTooLong", "KeyTooLongError", "MaxMessageLengthExceeded", "MetadataTooLarge",
    "InvalidObjectState", "XMinioInvalidObjectName",
)  # fmt: skip
BY_CODE = {
    "AccessControlListNotSupported": "the bucket has no ACLs: leave VEIL_UPLOAD_ACL empty",
    "InvalidStorageClass": "the store does not know VEIL_UPLOAD_STORAGE_CLASS",
    "InvalidTag": "the store refuses VEIL_UPLOAD_TAGS or VEIL_RECEIPT_TAGS",
    "InvalidEncryptionAlgorithmError": "the store does not know VEIL_UPLOAD_ENCRYPTION",
    "NotImplemented": "the store does not know a header of VEIL_UPLOAD_…",
}


def likely_cause(error: VeilError, headers: UploadHeaders, owner: str | None) -> str | None:
    """Return why the store may have refused a PUT with `headers`, or None.

    `owner` is the account to which the bucket must belong, if that was sent.
    """
    if isinstance(error.__cause__, ClientError) and names_key(error.__cause__):
        return _kms_cause(headers)
    name, answer = code(error.__cause__), words(error.__cause__).lower()
    if name in BY_CODE:
        return BY_CODE[name]
    if name in ("InternalError", "500") and headers.encryption not in (None, "AES256"):
        return (
            f"a store without KMS can't encrypt with {headers.encryption} (VEIL_UPLOAD_ENCRYPTION)"
        )
    if name not in ("AccessDenied", "403"):
        return None
    for action in ("PutObjectTagging", "PutObjectAcl"):
        if action.lower() in answer:
            return f"the policy of the worker must allow s3:{action}"
    return "; ".join(_causes_of_denial(headers, owner))


def _causes_of_denial(headers: UploadHeaders, owner: str | None) -> Iterator[str]:
    yield "the policy of the worker must allow s3:PutObject"
    if headers.encryption is None:
        yield "a bucket policy may demand encryption (VEIL_UPLOAD_ENCRYPTION)"
    elif headers.encryption != "AES256":
        yield _kms_cause(headers)
    if headers.tags:
        yield "tags need s3:PutObjectTagging"
    if headers.acl:
        yield "an ACL needs s3:PutObjectAcl"
    if owner:
        yield f"the bucket may belong to another account than {owner} (VEIL_S3_OUTPUT_OWNER)"


def _kms_cause(headers: UploadHeaders) -> str:
    key = f"of {headers.kms_key}" if headers.kms_key else "of the bucket's key"
    return (
        f"the key policy {key}, and that of the worker, must allow kms:GenerateDataKey and "
        "kms:Decrypt"
    )
