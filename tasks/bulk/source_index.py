"""Sources sorted on disk by the keys of their outputs, for routes with hashed names.

Hashed names have another order than the sources in a listing, and do not lead back to a source. A
command therefore lists all sources of its places before it looks at an output. Memory does not grow
with their number.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from ..addresses import ObjectUri, PrefixUri
from ..storage.s3 import StoredObject
from . import disk

PAGE = 1000  # rows that are read at once
# All columns are in the index, so that a scan reads it from front to back.
INDEX = "CREATE INDEX by_output ON rows (output, key, size, etag, modified)"
AFTER = (
    "SELECT output, key, size, etag, modified FROM rows WHERE output > ? ORDER BY output LIMIT ?"
)

KeyOf = Callable[[ObjectUri], str]
"""A function of a source: returns the key of its output."""

Listing = Callable[[str, str], Iterator[StoredObject]]
"""A function of a bucket and a prefix: yields the objects that are there."""


class SortedSources:
    """The sources of one listing, in the order of the keys of their outputs."""

    def __init__(self, bucket: str, sources: Iterator[StoredObject], key_of: KeyOf) -> None:
        """Read all `sources`, which are in `bucket`.

        Raises SettingsInvalid if TMPDIR is no folder for them, OutputFailed without room for them,
        and the errors of the store.
        """
        self._bucket = bucket
        self._lock = threading.Lock()
        self._database = disk.open_database()
        weakref.finalize(self, self._database.close)
        with disk.room("the list of sources"):
            self._database.execute("CREATE TABLE rows (output, key BLOB, size, etag, modified)")
            rows = (_row(stored, key_of) for stored in sources)
            while batch := list(islice(rows, disk.ROWS_AT_ONCE)):
                self._database.execute("BEGIN")
                self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", batch)
                self._database.execute("COMMIT")
            self._database.execute(INDEX)

    def after(self, output_key: str) -> Iterator[StoredObject]:
        """Yield the sources whose outputs come after `output_key`, in the order of these keys."""
        last = output_key
        while rows := self._read(AFTER, last, PAGE):
            for _, key, size, etag, modified in rows:
                time = None if modified is None else datetime.fromtimestamp(modified, UTC)
                yield StoredObject(self._uri(key), etag, size, modified=time)
            last = rows[-1][0]

    def find(self, output_key: str) -> ObjectUri | None:
        """Return the source whose output has the key `output_key`; None if there is none."""
        rows = self._read("SELECT key FROM rows WHERE output = ?", output_key)
        return self._uri(rows[0][0]) if rows else None

    def _uri(self, key: bytes) -> ObjectUri:
        return ObjectUri(self._bucket, key.decode())

    def _read(self, query: str, *parameters: Any) -> list[Any]:
        with self._lock, disk.room("the list of sources"):
            return self._database.execute(query, parameters).fetchall()


class SourceIndex:
    """The sorted sources of a place, read when they are first needed. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sorted: SortedSources | None = None

    def sources(self, listing: Listing, place: PrefixUri, key_of: KeyOf) -> SortedSources:
        """Return the sources of `place` as they were when they were read. They are read once."""
        with self._lock:
            if self._sorted is None:
                self._sorted = _read(listing, place, key_of)
            return self._sorted

    def renew(self, listing: Listing, place: PrefixUri, key_of: KeyOf) -> SortedSources:
        """Read the sources of `place` again, and return them."""
        with self._lock:
            self._sorted = _read(listing, place, key_of)
            return self._sorted


def _read(listing: Listing, place: PrefixUri, key_of: KeyOf) -> SortedSources:
    return SortedSources(place.bucket, listing(place.bucket, place.prefix), key_of)


def _row(stored: StoredObject, key_of: KeyOf) -> tuple[str, bytes, int, str, float | None]:
    modified = None if stored.modified is None else stored.modified.timestamp()
    key = stored.uri.key.encode()
    return key_of(stored.uri), key, stored.size, stored.etag, modified
