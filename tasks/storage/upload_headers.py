"""The headers of uploads: encryption, storage class, tags, and what else S3 takes with a PUT."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self
from urllib.parse import urlencode

from ..errors import InvalidRequest

Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]
Checksum = Literal["CRC32", "SHA1", "SHA256"]  # the algorithms of boto3 without further packages
Acl = Literal[
    "private", "public-read", "authenticated-read", "aws-exec-read", "bucket-owner-read",
    "bucket-owner-full-control",
]  # fmt: skip
# Whoever may read an output must not read its receipt too.
ReceiptAcl = Literal["private", "bucket-owner-read", "bucket-owner-full-control"]
STORAGE_CLASS = re.compile(r"[A-Z0-9_-]{1,64}")
# Objects in these classes can't be read without a restoration, and workers read their outputs.
ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")
HEADER_TEXT = re.compile(r"[\x20-\x7e]{1,1024}")
MAX_TAGS = 10  # of an object; Amazon S3 user guide, "Categorizing your objects using tags"
TAG_NAME = re.compile(r"[\w\s+\-=._:/@]{1,128}")
TAG_VALUE = re.compile(r"[\w\s+\-=._:/@]{0,256}")
SYSTEM_TAGS = "aws:"  # the beginning of the names of tags that only Amazon sets
OWN_METADATA = "veil-"  # the beginning of the names of the metadata that Veil writes itself
METADATA_NAME = re.compile(r"[a-z0-9!#$&'*.^_`|~-]{1,128}")


@dataclass(frozen=True, kw_only=True)
class UploadHeaders:
    """The headers of an upload, besides its content type and metadata.

    None leaves a header out. `tags` are names and values. Raises ValueError for values that
    contradict each other.
    """

    encryption: Encryption | None = None
    kms_key: str | None = None
    bucket_key: bool | None = None
    storage_class: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    acl: Acl | None = None
    cache_control: str | None = None
    content_disposition: str | None = None
    checksum: Checksum | None = None

    def __post_init__(self) -> None:
        uses_kms = self.encryption in ("aws:kms", "aws:kms:dsse")
        if self.kms_key and not uses_kms:
            raise ValueError("a KMS key needs the encryption aws:kms or aws:kms:dsse")
        if self.bucket_key is not None and self.encryption != "aws:kms":
            raise ValueError("a bucket key needs the encryption aws:kms")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of boto3's `put_object`."""
        arguments = {
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key,
            "BucketKeyEnabled": self.bucket_key,
            "StorageClass": self.storage_class,
            "Tagging": urlencode(self.tags) or None,
            "ACL": self.acl,
            "CacheControl": self.cache_control,
            "ContentDisposition": self.content_disposition,
            "ChecksumAlgorithm": self.checksum,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def with_tags(self, tags: Mapping[str, str]) -> Self:
        """Return these headers with `tags` of a source added; tags of the settings take precedence.

        Raises InvalidRequest for more tags than S3 allows.
        """
        copied = {name: text for name, text in tags.items() if not name.startswith(SYSTEM_TAGS)}
        merged = {**copied, **dict(self.tags)}
        if len(merged) > MAX_TAGS:
            raise InvalidRequest(
                f"the source has {len(copied)} tags, and VEIL_UPLOAD_TAGS adds "
                f"{len(merged) - len(copied)}: S3 allows {MAX_TAGS}"
            )
        return replace(self, tags=tuple(merged.items()))


PLAIN = UploadHeaders()


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The parts of its source that an output keeps: metadata by name, tags, Cache-Control."""

    metadata: tuple[str, ...] = ()
    tags: bool = False
    cache_control: bool = False


@dataclass(frozen=True, kw_only=True)
class Uploads:
    """The headers of outputs and of receipts on a route."""

    output: UploadHeaders = PLAIN
    receipt: UploadHeaders = PLAIN
    kept: Kept = field(default_factory=Kept)


PLAIN_UPLOADS = Uploads()


def parse_tags(text: str) -> tuple[tuple[str, str], ...]:
    """Return the tags in ``NAME=VALUE,NAME=VALUE``. Raises ValueError for any other text."""
    tags: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = part.partition("=")
        if not sign or not TAG_NAME.fullmatch(name) or not TAG_VALUE.fullmatch(value):
            raise ValueError(
                f"{part!r:.100} is no tag: use NAME=VALUE, of letters, digits, spaces and +-=._:/@"
            )
        if name.lower().startswith(SYSTEM_TAGS):
            raise ValueError(f"{name:.100}: names that begin with {SYSTEM_TAGS} are reserved")
        if name in tags:
            raise ValueError(f"the tag {name:.100} is given twice")
        tags[name] = value
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags: S3 allows {MAX_TAGS}")
    return tuple(tags.items())


def check_storage_class(name: str) -> str:
    """Return `name`. Raises ValueError for a class from which outputs can't be read at once."""
    if name in ARCHIVED:
        raise ValueError(f"objects of the class {name} can't be read at once: choose GLACIER_IR")
    if not STORAGE_CLASS.fullmatch(name):
        raise ValueError("must be the name of a storage class, in capitals, like STANDARD_IA")
    return name


def check_header(text: str) -> str:
    """Return `text`. Raises ValueError for text that no header can have."""
    if not HEADER_TEXT.fullmatch(text):
        raise ValueError("must be at most 1,024 ASCII characters on one line")
    return text


def check_metadata_name(name: str) -> str:
    """Return the name of metadata as S3 has it, in lower case. Raises ValueError."""
    name = name.strip().lower().removeprefix("x-amz-meta-")
    if not METADATA_NAME.fullmatch(name) or name.startswith(OWN_METADATA):
        raise ValueError(
            f"{name!r:.100} is no name of user metadata; those with {OWN_METADATA} are Veil's own"
        )
    return name
