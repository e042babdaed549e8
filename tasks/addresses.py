"""Addresses of S3 objects and of prefixes that hold them."""

import re
from dataclasses import dataclass
from typing import Self

from .errors import InvalidRequest

MAX_KEY_BYTES = 1024  # Amazon S3 user guide, "Naming Amazon S3 objects"
# Amazon S3 user guide, "General purpose bucket naming rules"
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
BUCKET_RULE = "a bucket's name has 3 to 63 lower-case letters, digits, dots, hyphens, underscores"
SLASHES = re.compile(r"[/\\]+")
AMBIGUOUS = re.compile(r"^[/\\]+|//+|\\+")  # slashes that a store that keeps files may drop


@dataclass(frozen=True)
class ObjectUri:
    """The address ``s3://bucket/key`` of one object. The key is literal, never URL-decoded."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address in `text`; raise InvalidRequest if it names no single object."""
        bucket, key = _split(text)
        if not key or key.endswith("/"):
            raise InvalidRequest(f"{text!r:.200} names no object: use s3://BUCKET/KEY")
        return cls(bucket, key)

    @property
    def is_ambiguous(self) -> bool:
        """True if a store that keeps objects as files takes the key for another key."""
        return AMBIGUOUS.search(self.key) is not None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class PrefixUri:
    """The address ``s3://bucket`` or ``s3://bucket/prefix/`` of the objects below a prefix.

    `prefix` is empty or ends with a slash. That of a listing may end anywhere: the address then
    ends with a star.
    """

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the prefix in `text`; raise InvalidRequest if it is not an ``s3://`` address."""
        bucket, key = _split(text)
        return cls(bucket, key.rstrip("/") + "/" if key.strip("/") else "")

    def contains(self, uri: ObjectUri) -> bool:
        """Return whether `uri` is below this prefix."""
        return self.begins(uri) and uri.key != self.prefix

    def begins(self, uri: ObjectUri) -> bool:
        """Return whether `uri` is below this prefix, or is the marker of its folder."""
        return uri.bucket == self.bucket and uri.key.startswith(self.prefix)

    def is_below(self, other: "PrefixUri") -> bool:
        """Return whether this prefix is `other`, or within it."""
        return self.bucket == other.bucket and self.prefix.startswith(other.prefix)

    def overlaps(self, other: "PrefixUri") -> bool:
        return self.is_below(other) or other.is_below(self)

    def relative(self, uri: ObjectUri) -> str:
        """Return the key of `uri` without this prefix."""
        return uri.key.removeprefix(self.prefix)

    def rest(self, below: "PrefixUri") -> str:
        """Return the prefix of `below`, which is within this one, without this prefix."""
        return below.prefix.removeprefix(self.prefix)

    def join(self, relative: str) -> ObjectUri:
        """Return the address of the object `relative` below this prefix."""
        return ObjectUri(self.bucket, self.prefix + relative)

    def __str__(self) -> str:
        is_cut = self.prefix and not self.prefix.endswith("/")
        return f"s3://{self.bucket}/{self.prefix}{'*' if is_cut else ''}"


def plain(key: str) -> str:
    r"""Return the key that a store that keeps files takes `key` for.

    It is ``a/b`` for ``/a//b`` and for ``a\b``.
    """
    return SLASHES.sub("/", key).lstrip("/")


def _split(text: str) -> tuple[str, str]:
    scheme, _, rest = text.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not BUCKET.fullmatch(bucket):
        reason = f": {BUCKET_RULE}" if scheme == "s3" and bucket else ""
        raise InvalidRequest(f"{text!r:.200} is not an address like s3://BUCKET/KEY{reason}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{text!r:.200} is not valid Unicode") from None
    if size > MAX_KEY_BYTES:
        raise InvalidRequest(
            f"the key of {text!r:.100}… has {size} bytes, S3 allows {MAX_KEY_BYTES}"
        )
    if not {".", ".."}.isdisjoint(key.split("/")):
        # A store that keeps files would resolve them, and so leave the prefix of the route.
        raise InvalidRequest(f"{text!r:.200} has a '.' or '..' between its slashes")
    return bucket, key
