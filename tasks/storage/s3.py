"""Read, write, delete and list S3 objects."""

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import dropwhile
from typing import Any, Self

import structlog

from ..addresses import AMBIGUOUS, MAX_KEY_BYTES, ObjectUri, PrefixUri, plain
from ..backoff import patiently
from ..errors import (
    AccessDenied,
    ImageTooLarge,
    InvalidRequest,
    NothingFound,
    ObjectNotFound,
    StorageRejected,
    StorageUnavailable,
)
from ..settings import Settings
from .access import Access, Accesses, Place
from .aws_errors import CHANGED, code, knows_no_condition, status, translated
from .upload_headers import PLAIN, UploadHeaders

# A read waits for all of its bytes. Small reads notice early that a slow download misses its
# deadline.
CHUNK_BYTES = 1 << 14
PAGE_KEYS = 1000  # of a listing, the most that S3 returns at once
SLASHES_OF_NO_KEY = "/" * 8  # put before a key to make one that nobody uses
# The last character of Unicode: keys that begin with a prefix sort before the prefix and it.
LAST_CHARACTER = "\U0010ffff"

log = structlog.get_logger("veil")


@dataclass(frozen=True)
class StoredObject:
    """The attributes of an object in S3.

    `etag` has no quotes, `size` is in bytes. `metadata` has lower-case names. Listings lack it, and
    the headers that follow `modified`.
    """

    uri: ObjectUri
    etag: str
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    modified: datetime | None = None
    cache_control: str | None = None
    content_encoding: str | None = None


@dataclass(frozen=True)
class OpenObject:
    """An object whose headers have arrived. Its content is not read yet."""

    stored: StoredObject
    read: Callable[[int, float], bytes]
    """``read(max_bytes, seconds)`` returns the content.

    It raises ImageTooLarge over the limit and StorageUnavailable after the deadline.
    """
    digest: Callable[[float], str]
    """``digest(seconds)`` returns the SHA-256 of the content in hex, and keeps no content.

    It raises StorageUnavailable after the deadline.
    """


Lister = Callable[[str, str], Iterator[StoredObject]]
"""A function of a prefix and of a key: yields the objects below the prefix after the key."""


class ObjectStore:
    """The S3 calls that Veil makes. Every method raises only VeilError."""

    def __init__(
        self, client: Any, page_keys: int = PAGE_KEYS, accesses: Accesses | None = None
    ) -> None:
        """`client` is boto3's for S3, unless there are `accesses`.

        Listings ask for `page_keys` keys at once.
        """
        self._accesses = accesses or Accesses(Access(client), Access(client))
        self._page_keys = page_keys
        self._has_conditional_put = True  # assumed until the store refuses a condition
        self._folds_keys: dict[str, bool] = {}  # by bucket, see check_name
        self._listers: dict[str, Lister] = {}

    @classmethod
    def connect(cls, settings: Settings, connections: int = 10) -> Self:
        """Return a store for `settings` with a pool of `connections`, opened on the first calls.

        Raises SettingsInvalid if the endpoint, the region or boto3's own configuration can't be
        used.
        """
        return cls(None, accesses=Accesses.connect(settings, connections))

    def owner_of(self, place: Place) -> str | None:
        """Return the account to which the bucket of `place` must belong, if any is configured."""
        return self._accesses.of(place).arguments.get("ExpectedBucketOwner")

    def _call(
        self, place: Place, operation: str, via: Place | None = None, **arguments: Any
    ) -> Any:
        """Return the answer to a call on `place`. Raises a VeilError.

        The credentials are those for `via`, if that is given.
        """
        access = self._accesses.of(via or place)
        with translated(place):
            return access.call(operation, Bucket=place.bucket, **arguments)

    @contextmanager
    def open(self, uri: ObjectUri) -> Iterator[OpenObject]:
        """Request an object, so that its size and ETag are known before its content is read."""
        answer = self._call(uri, "get_object", Key=uri.key)
        stored = _stored(uri, answer)

        def read(max_bytes: int, seconds: float) -> bytes:
            if stored.size > max_bytes:
                raise ImageTooLarge(f"{uri} has {stored.size:,} bytes, the limit is {max_bytes:,}")
            return b"".join(_chunks(stored, answer["Body"], seconds))

        def digest(seconds: float) -> str:
            sha256 = hashlib.sha256()
            for chunk in _chunks(stored, answer["Body"], seconds):
                sha256.update(chunk)
            return sha256.hexdigest()

        with closing(answer["Body"]):
            self.check_name(uri, known=uri)
            yield OpenObject(stored, read, digest)

    def chunks(self, uri: ObjectUri, seconds: float) -> Generator[bytes]:
        """Yield the content of an object of any size.

        Raises StorageUnavailable if it takes longer than `seconds`, or ends early.
        """
        answer = self._call(uri, "get_object", Key=uri.key)
        with closing(answer["Body"]):
            yield from _chunks(_stored(uri, answer), answer["Body"], seconds)

    def head(self, uri: ObjectUri) -> StoredObject | None:
        """Return the attributes of an object; None if there is no such object."""
        try:
            stored = self._head(uri)
        except ObjectNotFound:
            return None
        self.check_name(uri, known=uri)
        return stored

    def _head(self, uri: ObjectUri, via: Place | None = None) -> StoredObject:
        return _stored(uri, self._call(uri, "head_object", via, Key=uri.key))

    def tags(self, uri: ObjectUri) -> dict[str, str]:
        """Return the tags of an object."""
        answer = self._call(uri, "get_object_tagging", Key=uri.key)
        return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}

    def check_name(self, place: Place, known: ObjectUri | None = None) -> None:
        r"""Raise InvalidRequest if the store takes the key of `place` for another key.

        Stores that keep objects as files take ``a//b`` and ``a\b`` for ``a/b``, and ``/b`` for
        ``b``. Amazon S3 distinguishes all of them. A store is one of the former if it also finds an
        object, `known` or any of the bucket, under its key with more slashes.
        """
        key = place.key if isinstance(place, ObjectUri) else place.prefix
        if (found := AMBIGUOUS.search(key)) and self._folds(place, known):
            is_leading = found.start() == 0
            part = "a slash at the beginning of a key" if is_leading else f"{found[0]} in a key"
            raise InvalidRequest(
                f"{place}: this store does not tell {part} from a single /: "
                f"use s3://{place.bucket}/{plain(key)}"
            )

    def _folds(self, place: Place, known: ObjectUri | None) -> bool:
        bucket = place.bucket
        if bucket not in self._folds_keys:
            known = known or self._any_plain(place)
            if known is None:
                return False  # An empty bucket holds no object that could be confused with another.
            self._folds_keys[bucket] = self._finds_behind_slashes(known, place)
        return self._folds_keys[bucket]

    def _any_plain(self, place: Place) -> ObjectUri | None:
        """Return an object of a bucket whose key is not ambiguous; None if there is none."""
        uris = (stored.uri for stored in self._list(place.bucket, "", "", via=place))
        return next((uri for uri in uris if not uri.is_ambiguous), None)

    def _finds_behind_slashes(self, known: ObjectUri, via: Place) -> bool:
        slashes = SLASHES_OF_NO_KEY[: max(MAX_KEY_BYTES - len(known.key.encode()), 1)]
        try:
            self._head(ObjectUri(known.bucket, slashes + known.key), via)
        except (ObjectNotFound, AccessDenied, StorageRejected):
            # S3 denies access to a missing object where the keys may not be listed.
            return False
        return True

    def put(
        self,
        uri: ObjectUri,
        content: bytes,
        content_type: str,
        metadata: Mapping[str, str],
        headers: UploadHeaders = PLAIN,
        **condition: str,
    ) -> None:
        """Write one object atomically, with a checksum that S3 verifies.

        `condition` is IfMatch or IfNoneMatch, as boto3 names them.
        """
        with translated(uri):
            self._accesses.of(uri).put(
                content,
                Bucket=uri.bucket,
                Key=uri.key,
                ContentType=content_type,
                Metadata=dict(metadata),
                **headers.arguments(),
                **condition,
            )

    def put_in_place_of(
        self,
        known: StoredObject | None,
        uri: ObjectUri,
        content: bytes,
        content_type: str,
        metadata: Mapping[str, str],
        headers: UploadHeaders = PLAIN,
    ) -> bool:
        """Write one object if the current one is still `known`, None for no object.

        Return whether it was written. If an answer was lost, the current object may be the new one,
        and the result is False. In a store that refuses conditional writes, the current object is
        compared right before it is replaced, so a change in the instant between is overwritten.
        """
        if self._has_conditional_put:
            is_written = self._put_conditionally(
                known, uri, content, content_type, metadata, headers
            )
            if is_written is not None:
                return is_written
        current = self.head(uri)
        if (current and current.etag) != (known and known.etag):
            return False
        self.put(uri, content, content_type, metadata, headers)
        if self._has_conditional_put:
            # The store has taken the same object without a condition.
            self._has_conditional_put = False
            log.warning(
                "store has no conditional writes",
                effect="outputs are compared right before they are written",
            )
        return True

    def _put_conditionally(
        self,
        known: StoredObject | None,
        uri: ObjectUri,
        content: bytes,
        content_type: str,
        metadata: Mapping[str, str],
        headers: UploadHeaders,
    ) -> bool | None:
        """Write as `put_in_place_of` does; return None if the store may not know conditions."""
        condition = {"IfNoneMatch": "*"} if known is None else {"IfMatch": f'"{known.etag}"'}
        try:
            self.put(uri, content, content_type, metadata, headers, **condition)
        except ObjectNotFound as error:
            if known is None or code(error.__cause__) == "NoSuchBucket":
                raise
            return False
        except (StorageRejected, StorageUnavailable) as error:
            if status(error.__cause__) in CHANGED:
                return False
            if not knows_no_condition(error):
                raise
            return None
        return True

    def delete(self, uri: ObjectUri) -> None:
        """Delete one object. A missing object is no error."""
        self._call(uri, "delete_object", Key=uri.key)

    def delete_version(self, uri: ObjectUri, etag: str) -> bool:
        """Delete an object if its ETag is still `etag`, and return whether it was deleted.

        A bucket with versioning keeps the version. For a missing object the result is False, in a
        store that checks the condition.
        """
        try:
            self._call(uri, "delete_object", Key=uri.key, IfMatch=f'"{etag}"')
        except ObjectNotFound:
            return False
        except StorageRejected as error:
            if status(error.__cause__) in CHANGED:
                return False
            raise
        return True

    def list(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose keys begin with `prefix` and come after the key `after`.

        Folder markers are left out. The order is the store's: in Amazon S3 that of the keys' UTF-8
        bytes, in stores that keep objects as files folder by folder.
        """
        listed = self._list(bucket, prefix, _just_before(after))
        if not after:
            return listed
        return dropwhile(lambda stored: _is_up_to(stored.uri.key, after), listed)

    def list_as(self, bucket: str, lister: Lister) -> None:
        """Have `lister` answer the calls of `listing` for `bucket`."""
        self._listers[bucket] = lister

    def listing(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[StoredObject]:
        """Yield the objects as `list` does, or as an inventory has them (see `list_as`)."""
        return self._listers.get(bucket, partial(self.list, bucket))(prefix, after)

    def require_any(self, place: PrefixUri) -> None:
        """Raise NothingFound if there is no object below `place`: its address may be mistyped."""
        if next(self.listing(place.bucket, place.prefix), None) is None:
            raise NothingFound(f"no object below {place}: correct the address")

    def _list(
        self, bucket: str, prefix: str, after: str, via: Place | None = None
    ) -> Iterator[StoredObject]:
        """Yield the objects below `prefix` page by page.

        If a page of SeaweedFS ends at the key ``a``, the objects in the folder ``a/`` are missing
        from the next page, and the page may even be called the last one. Each page therefore
        begins just before the last key of the page before, and a full page is never the last one.

        A store that becomes unavailable after the first page is waited for as `patiently` does.
        """
        if prefix:
            self.check_name(PrefixUri(bucket, prefix))
        start = {"StartAfter": after} if after else {}
        last = ""
        page = self._list_page(bucket, prefix, start, via)
        while True:
            found = page.get("Contents", ())
            is_full = len(found) >= self._page_keys
            found = [item for item in found if not last or not _is_up_to(item["Key"], last)]
            for item in found:
                if not item["Key"].endswith("/"):
                    yield _listed(bucket, item)
            if found and (is_full or page["IsTruncated"]):
                last = found[-1]["Key"]
                start = {"StartAfter": _just_before(last)}
            elif page["IsTruncated"]:
                start = {"ContinuationToken": page["NextContinuationToken"]}
            else:
                return
            page = patiently(partial(self._list_page, bucket, prefix, start, via))

    def _list_page(
        self, bucket: str, prefix: str, start: Mapping[str, str], via: Place | None
    ) -> dict[str, Any]:
        page: dict[str, Any] = self._call(
            PrefixUri(bucket, prefix),
            "list_objects_v2",
            via,
            Prefix=prefix,
            MaxKeys=self._page_keys,
            **start,
        )
        _check_whole(page, "IsTruncated")
        if page["IsTruncated"]:
            _check_whole(page, "NextContinuationToken")
        return page


def _chunks(stored: StoredObject, body: Any, seconds: float) -> Iterator[bytes]:
    """Yield the content of `stored` from `body`.

    Raises StorageUnavailable if it takes longer than `seconds`, or ends early.
    """
    deadline, arrived = time.monotonic() + seconds, 0
    with translated(stored.uri):
        while chunk := body.read(CHUNK_BYTES):
            arrived += len(chunk)
            yield chunk
            if time.monotonic() > deadline:
                raise StorageUnavailable(f"{stored.uri} did not arrive within {seconds:g} s")
    if arrived != stored.size:
        raise StorageUnavailable(f"{stored.uri}: {arrived:,} of {stored.size:,} bytes arrived")


def _just_before(key: str) -> str:
    """Return a key to list after that comes closely before `key`.

    SeaweedFS takes ``a`` there for the folder ``a/``, and leaves out the objects in it.
    """
    if not key or key.endswith("/"):
        return key
    before = ord(key[-1]) - 1
    if before < 0x20 or before in (0xFFFE, 0xFFFF) or 0xD800 <= before <= 0xDFFF:
        return key[:-1]  # XML does not allow such a character.
    return key[:-1] + chr(before) + LAST_CHARACTER


def _is_up_to(key: str, last: str) -> bool:
    """Return whether `key` is `last`, or comes before it in both orders of listings."""
    return key <= last and key.split("/") <= last.split("/")


def _check_whole(answer: Mapping[str, Any], *expected: str) -> None:
    """Raise StorageUnavailable for an answer that was cut off within its headers.

    botocore takes such an answer for one without content.
    """
    if missing := [name for name in expected if name not in answer]:
        raise StorageUnavailable(f"S3's answer was cut off: it has no {missing[0]}")


def _listed(bucket: str, item: Mapping[str, Any]) -> StoredObject:
    uri = ObjectUri(bucket, item["Key"])
    return StoredObject(uri, item["ETag"].strip('"'), item["Size"], modified=item["LastModified"])


def _stored(uri: ObjectUri, answer: Mapping[str, Any]) -> StoredObject:
    _check_whole(answer, "ETag", "ContentLength")
    metadata = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
    return StoredObject(
        uri,
        answer["ETag"].strip('"'),
        answer["ContentLength"],
        metadata,
        answer.get("LastModified"),
        answer.get("CacheControl"),
        answer.get("ContentEncoding"),
    )
