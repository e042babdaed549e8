"""Addresses of S3 objects and of the places that hold them."""

import re
from dataclasses import dataclass
from typing import Self

from tasks.errors import InvalidRequest

MAX_KEY_BYTES = 1024  # Amazon S3 user guide, "Naming Amazon S3 objects"
SLASHES = re.compile(r"[/\\]+")
AMBIGUOUS = re.compile(r"^[/\\]+|//+|\\+")
BUCKET = re.compile(
    r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]"
)  # same guide, "General purpose bucket naming rules"


@dataclass(frozen=True)
class ObjectUri:
    """The address ``s3://bucket/key`` of one object. The key is taken literally, never
    URL-decoded.
    """

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidRequest when `text` is not the address of one object."""
        bucket, key = _split(text)
        if not key or key.endswith("/"):
            raise InvalidRequest(f"{text!r:.200} names no object: use s3://BUCKET/KEY")
        return cls(bucket, key)

    @property
    def is_ambiguous(self) -> bool:
        """Return whether a store that keeps files takes the key for another one."""
        return AMBIGUOUS.search(self.key) is not None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class PrefixUri:
    """A place for objects, ``s3://bucket`` or ``s3://bucket/prefix/``; `prefix` is empty or ends
    with a slash.
    """

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidRequest when `text` is not an s3:// address."""
        bucket, key = _split(text)
        return cls(bucket, key.rstrip("/") + "/" if key.strip("/") else "")

    def contains(self, uri: ObjectUri) -> bool:
        return (
            uri.bucket == self.bucket and uri.key.startswith(self.prefix) and uri.key != self.prefix
        )

    def is_below(self, other: "PrefixUri") -> bool:
        return self.bucket == other.bucket and self.prefix.startswith(other.prefix)

    def overlaps(self, other: "PrefixUri") -> bool:
        shorter, longer = sorted((self.prefix, other.prefix), key=len)
        return self.bucket == other.bucket and longer.startswith(shorter)

    def relative(self, uri: ObjectUri) -> str:
        """The key of `uri` below this place."""
        return uri.key.removeprefix(self.prefix)

    def rest(self, below: "PrefixUri") -> str:
        """The prefix of `below`, which is below this place, without this place's own."""
        return below.prefix.removeprefix(self.prefix)

    def join(self, relative: str) -> ObjectUri:
        return ObjectUri(self.bucket, self.prefix + relative)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def plain(key: str) -> str:
    r"""Return the key for which a store that keeps files takes `key`: ``a/b`` for ``/a//b`` and
    ``a\b``.
    """
    return SLASHES.sub("/", key).lstrip("/")


def _split(text: str) -> tuple[str, str]:
    scheme, _, rest = text.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not BUCKET.fullmatch(bucket):
        raise InvalidRequest(f"{text!r:.200} is not an address like s3://BUCKET/KEY")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{text!r:.200} is not valid Unicode") from None
    if size > MAX_KEY_BYTES:
        raise InvalidRequest(
            f"the key of {text!r:.100}… has {size} bytes, S3 allows {MAX_KEY_BYTES}"
        )
    if not {".", ".."}.isdisjoint(key.split("/")):
        # A store that keeps files would walk them, past the end of a route.
        raise InvalidRequest(f"{text!r:.200} has a '.' or '..' between its slashes")
    return bucket, key
