"""S3 objects: reading, writing and listing."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import dropwhile
from typing import Any, Self

import boto3
import botocore.config
import botocore.exceptions as vendor
import botocore.parsers
import structlog

from tasks.addresses import AMBIGUOUS, MAX_KEY_BYTES, ObjectUri, PrefixUri, plain
from tasks.errors import (
    AccessDenied,
    ImageTooLarge,
    InvalidRequest,
    ObjectNotFound,
    SettingsInvalid,
    StorageRejected,
    StorageUnavailable,
)
from tasks.settings import Settings
from tasks.storage.aws_errors import CHANGED, code, knows_no_condition, status, translated

S3_ATTEMPTS = 3  # of one call, botocore's own retries included
CHUNK_BYTES = (
    1 << 14
)  # a read waits for all of its bytes, so small ones let a slow download meet its deadline
PAGE_KEYS = 1000  # as many as S3 gives at once
SLASHES_OF_NO_KEY = "/" * 8  # nobody begins a key with them
LAST_CHARACTER = (
    "\U0010ffff"  # of Unicode: what begins with a prefix sorts before the prefix and this
)

log = structlog.get_logger("veil")


@dataclass(frozen=True)
class StoredObject:
    """What S3 says of an object. `etag` has no quotes.

    `metadata` has lower-case names, and is known of single objects only.
    """

    uri: ObjectUri
    etag: str
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    modified: datetime | None = None


@dataclass(frozen=True)
class OpenObject:
    """An object whose header has arrived and whose bytes have not."""

    stored: StoredObject
    read: Callable[[int, float], bytes]
    """``read(max_bytes, seconds)``: the content; ImageTooLarge over the limit, StorageUnavailable
    when late.
    """
    digest: Callable[[float], str]
    """``digest(seconds)``: SHA-256 of the content in hex, which is not kept; StorageUnavailable
    when late.
    """


class ObjectStore:
    """The S3 calls that Veil makes. Every method raises only VeilError."""

    def __init__(self, client: Any, page_keys: int = PAGE_KEYS) -> None:
        """`page_keys` is how many keys of a listing are asked for at once."""
        self._client = client
        self._page_keys = page_keys
        self._has_conditional_put = True  # until it says that it has not
        self._folds_keys: dict[str, bool] = {}  # by bucket

    @classmethod
    def connect(cls, settings: Settings, connections: int = 10) -> Self:
        """A store for `settings`; `connections` is the size of its pool. Connects on the first
        call.

        Raises SettingsInvalid when the endpoint, the region or boto3's own configuration can't be
        used.
        """
        config = botocore.config.Config(
            connect_timeout=settings.s3_connect_seconds,
            read_timeout=settings.s3_read_seconds,
            max_pool_connections=connections,
            retries={"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
            tcp_keepalive=True,
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
        )
        try:
            client = boto3.session.Session().client(
                "s3",
                endpoint_url=settings.s3_endpoint,
                region_name=settings.s3_region,
                config=config,
            )
        except (vendor.BotoCoreError, ValueError) as error:
            raise SettingsInvalid(f"no S3 client can be made: {error}") from None
        return cls(client)

    @contextmanager
    def open(self, uri: ObjectUri) -> Iterator[OpenObject]:
        """Ask for an object: its size and ETag are known before any of its bytes is read."""
        with translated(uri):
            answer = self._client.get_object(Bucket=uri.bucket, Key=uri.key)
        stored = _stored(uri, answer)

        def arriving(seconds: float) -> Iterator[bytes]:
            deadline, arrived = time.monotonic() + seconds, 0
            with translated(uri):
                while chunk := answer["Body"].read(CHUNK_BYTES):
                    arrived += len(chunk)
                    yield chunk
                    if time.monotonic() > deadline:
                        raise StorageUnavailable(f"{uri} did not arrive within {seconds:g} s")
            if arrived != stored.size:
                raise StorageUnavailable(f"{uri}: {arrived:,} of {stored.size:,} bytes arrived")

        def read(max_bytes: int, seconds: float) -> bytes:
            if stored.size > max_bytes:
                raise ImageTooLarge(f"{uri} has {stored.size:,} bytes, the limit is {max_bytes:,}")
            return b"".join(arriving(seconds))

        def digest(seconds: float) -> str:
            sha256 = hashlib.sha256()
            for chunk in arriving(seconds):
                sha256.update(chunk)
            return sha256.hexdigest()

        with closing(answer["Body"]):
            self.check_name(uri, known=uri)
            yield OpenObject(stored, read, digest)

    def head(self, uri: ObjectUri) -> StoredObject | None:
        """What S3 says of an object, or None if there is none."""
        try:
            stored = self._head(uri)
        except ObjectNotFound:
            return None
        self.check_name(uri, known=uri)
        return stored

    def _head(self, uri: ObjectUri) -> StoredObject:
        with translated(uri):
            return _stored(uri, self._client.head_object(Bucket=uri.bucket, Key=uri.key))

    def check_name(self, place: ObjectUri | PrefixUri, known: ObjectUri | None = None) -> None:
        r"""Raise InvalidRequest if the store takes the key of `place` for another key.

        Stores that keep files take ``a//b`` and ``a\b`` for ``a/b``, and ``/b`` for ``b``; Amazon
        S3 keeps all of them apart. A store is one of the former if an object in it, `known` or any
        of the bucket, is also found behind more slashes.
        """
        key = place.key if isinstance(place, ObjectUri) else place.prefix
        if (found := AMBIGUOUS.search(key)) and self._folds(place.bucket, known):
            part = (
                "a slash at the beginning of a key"
                if found.start() == 0
                else f"{found[0]} in a key"
            )
            raise InvalidRequest(
                f"{place}: this store does not tell {part} from a single /: use s3://{place.bucket}/{plain(key)}"
            )

    def _folds(self, bucket: str, known: ObjectUri | None) -> bool:
        if bucket not in self._folds_keys:
            if known is None:
                uris = (stored.uri for stored in self._list(bucket, "", ""))
                known = next((uri for uri in uris if not uri.is_ambiguous), None)
            if known is None:
                return False  # as yet there is nothing that could be taken for something else
            slashes = SLASHES_OF_NO_KEY[: max(MAX_KEY_BYTES - len(known.key.encode()), 1)]
            try:
                self._head(ObjectUri(known.bucket, slashes + known.key))
                self._folds_keys[bucket] = True
            except (
                ObjectNotFound,
                AccessDenied,
                StorageRejected,
            ):  # where keys may not be listed, S3 denies access
                self._folds_keys[bucket] = False
        return self._folds_keys[bucket]

    def put(
        self,
        uri: ObjectUri,
        content: bytes,
        content_type: str,
        metadata: Mapping[str, str],
        **condition: str,
    ) -> None:
        """Write one object, all of it or nothing; botocore sends a checksum that S3 verifies.

        `condition` is IfMatch or IfNoneMatch, as boto3 names them.
        """
        with translated(uri):
            self._client.put_object(
                Bucket=uri.bucket,
                Key=uri.key,
                Body=content,
                ContentType=content_type,
                Metadata=dict(metadata),
                **condition,
            )

    def put_in_place_of(
        self,
        known: StoredObject | None,
        uri: ObjectUri,
        content: bytes,
        content_type: str,
        metadata: Mapping[str, str],
    ) -> bool:
        """Write one object if what is there still is `known`, None for nothing; return whether it
        was.

        After an answer that was lost, the object that is there may be the one that was to be
        written. A store that refuses conditional writes is asked right before writing what is
        there, which leaves an instant.
        """
        if self._has_conditional_put:
            condition = {"IfNoneMatch": "*"} if known is None else {"IfMatch": f'"{known.etag}"'}
            try:
                self.put(uri, content, content_type, metadata, **condition)
                return True
            except ObjectNotFound as error:
                if known is None or code(error.__cause__) == "NoSuchBucket":
                    raise
                return False
            except (StorageRejected, StorageUnavailable) as error:
                if status(error.__cause__) in CHANGED:
                    return False
                if not knows_no_condition(error):
                    raise
        there = self.head(uri)
        if (there and there.etag) != (known and known.etag):
            return False
        self.put(uri, content, content_type, metadata)
        if (
            self._has_conditional_put
        ):  # it was the condition that the store refused, and not the object
            self._has_conditional_put = False
            log.warning(
                "store has no conditional writes",
                effect="outputs are compared right before they are written",
            )
        return True

    def delete(self, uri: ObjectUri) -> None:
        """Remove one object; that there is none is no error."""
        with translated(uri):
            self._client.delete_object(Bucket=uri.bucket, Key=uri.key)

    def delete_version(self, uri: ObjectUri, etag: str) -> bool:
        """Remove an object if its version is still `etag`; whether it was. A bucket with versions
        keeps that one.

        Of an object that is not there it never was, by a store that looks at the condition.
        """
        try:
            with translated(uri):
                self._client.delete_object(Bucket=uri.bucket, Key=uri.key, IfMatch=f'"{etag}"')
        except ObjectNotFound:
            return False
        except StorageRejected as error:
            if status(error.__cause__) in CHANGED:
                return False
            raise
        return True

    def list(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[StoredObject]:
        """The objects whose keys begin with `prefix`, those after the key `after`, without folder
        markers.

        They come in the order of the store: Amazon's is that of the keys' UTF-8 bytes, and stores
        that keep files go folder by folder.
        """
        listed = self._list(bucket, prefix, _just_before(after))
        if not after:
            return listed
        return dropwhile(lambda stored: _is_up_to(stored.uri.key, after), listed)

    def _list(self, bucket: str, prefix: str, after: str) -> Iterator[StoredObject]:
        options = {"StartAfter": after} if after else {}
        paging = {"PageSize": self._page_keys}
        paginator = self._client.get_paginator("list_objects_v2")
        if prefix:
            self.check_name(PrefixUri(bucket, prefix))
        with translated(PrefixUri(bucket, prefix)):
            for page in paginator.paginate(
                Bucket=bucket, Prefix=prefix, PaginationConfig=paging, **options
            ):
                _check_whole(
                    page,
                    "IsTruncated",
                    *(["NextContinuationToken"] if page.get("IsTruncated") else []),
                )
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/"):
                        uri = ObjectUri(bucket, item["Key"])
                        yield StoredObject(
                            uri,
                            item["ETag"].strip('"'),
                            item["Size"],
                            modified=item["LastModified"],
                        )


def _just_before(key: str) -> str:
    """A key with hardly any between it and `key`, to list after.

    SeaweedFS takes ``a`` there for the folder ``a/``, and leaves out what is in it.
    """
    if not key or key.endswith("/"):
        return key
    before = ord(key[-1]) - 1
    if before < 0x20 or before in (0xFFFE, 0xFFFF) or 0xD800 <= before <= 0xDFFF:
        return key[:-1]  # no character for XML
    return key[:-1] + chr(before) + LAST_CHARACTER


def _is_up_to(key: str, last: str) -> bool:
    """Whether `key` is `last`, or before it in either order that listings come in."""
    return key <= last and key.split("/") <= last.split("/")


def _check_whole(answer: Mapping[str, Any], *expected: str) -> None:
    """Refuse an answer that was cut off within its headers: botocore takes it for one without
    content.
    """
    if missing := [name for name in expected if name not in answer]:
        raise StorageUnavailable(f"S3's answer was cut off: it has no {missing[0]}")


def _stored(uri: ObjectUri, answer: Mapping[str, Any]) -> StoredObject:
    _check_whole(answer, "ETag", "ContentLength")
    metadata = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
    return StoredObject(
        uri,
        answer["ETag"].strip('"'),
        answer["ContentLength"],
        metadata,
        answer.get("LastModified"),
    )
