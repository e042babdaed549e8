"""Marks of outputs and of receipts' names: they identify the source and its version.

People who must learn nothing of the original may see both. With a key a mark is
``hmac-KEY-DIGEST``, the id of the key and a keyed digest, so that nobody without the key can test a
guess. Without a key the marks are the SHA-256 of the source's address, and its ETag. Marks made
with any known key, and marks made without a key, are recognised.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

from ..addresses import ObjectUri
from ..signatures import Key
from .receipts import SOURCE, SOURCE_ETAG, ReceiptName

# The name of a receipt has room for such a mark: receipts.ETAG matches it.
KEYED = re.compile(r"hmac-([0-9a-f]{8})-[0-9a-f]{32}")
DIGITS = 32  # hex digits of the digest in a mark, 128 bits


class Marks:
    """Makes marks with the first of its keys, and recognises those of all."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        """Without `keys`, anybody can test a guess at the source against the marks."""
        self.keys = tuple(keys)
        self._keys = {key.id: key for key in keys}
        self._first = next(iter(keys), None)

    @property
    def are_keyed(self) -> bool:
        return self._first is not None

    def source(self, source: ObjectUri) -> str:
        """Return the mark of an address.

        It is a digest because the 2 kB of S3 metadata do not hold every address.
        """
        return _source(source, self._first)

    def version(self, source: ObjectUri, etag: str) -> str:
        """Return the mark of a version.

        With a key it depends on the address too. Otherwise people who may upload pictures could
        upload a guess, and compare the marks of both outputs.
        """
        return _version(source, etag, self._first)

    def is_source(self, metadata: Mapping[str, str], source: ObjectUri) -> bool:
        """Return whether an output with `metadata` is one of `source`."""
        mark = metadata.get(SOURCE, "")
        return mark == _source(source, self._key_of(mark))

    def is_version(self, mark: str, source: ObjectUri, etag: str) -> bool:
        """Return whether `mark`, in metadata or in a receipt's name, is of this version."""
        expected = _version(source, etag, self._key_of(mark))
        return mark in (expected, ReceiptName.of("", "", expected).etag)

    def missing_key(self, *marks: str | None) -> str | None:
        """Return the id of the first unknown key that `marks` were made with; None if none."""
        for mark in marks:
            found = KEYED.fullmatch(mark or "")
            if found and found[1] not in self._keys:
                return found[1]
        return None

    def missing_key_of(self, metadata: Mapping[str, str]) -> str | None:
        """Return the id of an unknown key that the marks in `metadata` were made with."""
        return self.missing_key(metadata.get(SOURCE), metadata.get(SOURCE_ETAG))

    def _key_of(self, mark: str) -> Key | None:
        found = KEYED.fullmatch(mark)
        return self._keys.get(found[1]) if found else None


def is_keyed(mark: str | None) -> bool:
    """Return whether `mark` was made with a key."""
    return KEYED.fullmatch(mark or "") is not None


def _source(source: ObjectUri, key: Key | None) -> str:
    address = str(source).encode()
    return _keyed(key, b"source\0" + address) if key else hashlib.sha256(address).hexdigest()


def _version(source: ObjectUri, etag: str, key: Key | None) -> str:
    message = f"version\0{source}\0{etag}".encode("utf-8", "surrogatepass")
    return _keyed(key, message) if key else etag


def _keyed(key: Key, message: bytes) -> str:
    return f"hmac-{key.id}-{key.digest(message)[:DIGITS]}"
