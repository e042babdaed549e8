"""S3 inventories and manifests of Batch Operations, read in place of listings.

An inventory is a snapshot: objects that came later are not in it. Its files are in no order, so
their rows are sorted in a temporary database on disk. Memory does not grow with the number of keys.
All files are read and checked before the first row is used.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Self
from urllib.parse import unquote_plus

from ..addresses import ObjectUri
from ..errors import InventoryInvalid, NothingFound, ObjectNotFound
from ..storage.s3 import ObjectStore, StoredObject
from ..wrong_values import cause
from . import disk

MAX_MANIFEST_BYTES = 16 << 20  # of the JSON of an inventory, which has a line for each file
MANIFEST_SECONDS = 60.0
FILE_SECONDS = 3600.0  # for the download of one file
BUCKET, KEY = "bucket", "key"
BATCH_FIELDS = (BUCKET, KEY, "versionid")  # the columns of a manifest of Batch Operations
MAX_FIELD = 16 << 10  # characters; a key has 1,024 bytes at most, and thrice as many when encoded

Row = tuple[str, int, str, str]
"""A key, its size in bytes, its ETag and the time of its modification, empty if unknown."""


@dataclass(frozen=True)
class _File:
    """A file of rows: its address, and the number and the MD5 of its bytes if they are stated.

    An MD5 that is not stated is empty.
    """

    uri: ObjectUri
    size: int | None
    md5: str
    fields: Sequence[str]
    is_compressed: bool


class Inventory:
    """The objects of one bucket as an inventory has them, sorted by the bytes of their keys.

    `name` is the address of the manifest with its version, and `files` the number of its files.
    """

    def __init__(self, name: str, bucket: str, has_times: bool, files: int) -> None:
        self.name = name
        self.bucket = bucket
        self.has_times = has_times
        self._files = files
        self._database = disk.open_database()
        self._database.execute("CREATE TABLE rows (key BLOB, size, etag, modified)")

    @classmethod
    def read(cls, store: ObjectStore, manifest: ObjectUri, buckets: Sequence[str]) -> Self:
        """Return the inventory whose manifest is at `manifest`, of one of `buckets`.

        A manifest of Batch Operations must be of the first bucket. Raises InventoryInvalid if it
        can't be used or is of another bucket, SettingsInvalid if TMPDIR is no folder for its rows,
        OutputFailed without room for them, and the errors of the store.
        """
        disk.check_folder()
        is_csv = not manifest.key.lower().endswith(".json")
        with store.open(manifest) as opened:
            etag = opened.stored.etag
            content = b"" if is_csv else opened.read(MAX_MANIFEST_BYTES, MANIFEST_SECONDS)
        if is_csv:
            bucket, files = buckets[0], [_batch_file(manifest)]
        else:
            bucket, files = _inventory_files(manifest, content, buckets)
        has_times = all("lastmodifieddate" in file.fields for file in files)
        with ExitStack() as stack, disk.room("the inventory"):
            inventory = cls(f"{manifest}@{etag}", bucket, has_times, len(files))
            stack.callback(inventory.close)
            for file in files:
                inventory._add(_rows(store, file, bucket))
            # Keys with their columns, so that a scan reads the database from front to back.
            inventory._database.execute("CREATE INDEX by_key ON rows (key, size, etag, modified)")
            stack.pop_all()  # The caller closes it.
        return inventory

    def close(self) -> None:
        """Delete the sorted rows."""
        self._database.close()

    def list(self, prefix: str = "", after: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose keys begin with `prefix` and come after the key `after`."""
        start = prefix.encode()
        rows = self._database.execute(
            "SELECT key, size, etag, modified FROM rows "
            "WHERE key >= ? AND key > ? AND key < ? ORDER BY key",
            (start, after.encode(), _after_all(start)),
        )
        last = None
        for key, size, etag, modified in rows:
            if key != last:
                uri = ObjectUri(self.bucket, key.decode())
                time = datetime.fromisoformat(modified) if modified else None
                yield StoredObject(uri, etag, size, modified=time)
            last = key

    def require_any(self) -> None:
        """Raise NothingFound if there is no object in the inventory."""
        if next(self.list(), None) is None:
            reason = "no row of an object is in its files" if self._files else "it names no file"
            raise NothingFound(
                f"the inventory {self.name} is empty, because {reason}: name another one, or have "
                "it written again"
            )

    def _add(self, rows: Iterator[Row]) -> None:
        while batch := [(key.encode(), *rest) for key, *rest in islice(rows, disk.ROWS_AT_ONCE)]:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", batch)
            self._database.execute("COMMIT")


def _after_all(prefix: bytes) -> bytes:
    """Return bytes that come after all keys that begin with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else b"\xff"


def _batch_file(manifest: ObjectUri) -> _File:
    return _File(manifest, None, "", BATCH_FIELDS, manifest.key.lower().endswith(".gz"))


def _inventory_files(
    manifest: ObjectUri, content: bytes, buckets: Sequence[str]
) -> tuple[str, list[_File]]:
    """Return the bucket and the files that a manifest names. Raises InventoryInvalid."""
    try:
        stated = json.loads(content)
        source, kind = stated["sourceBucket"], stated["fileFormat"]
        schema = str(stated["fileSchema"])
        names = [
            (str(file["key"]), file.get("size"), str(file.get("MD5checksum") or ""))
            for file in stated["files"]
        ]
        destination = str(stated["destinationBucket"]).rpartition(":")[2]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InventoryInvalid(
            f"{manifest} is no manifest of an S3 inventory: {cause(error):.100}"
        ) from None
    if source not in buckets:
        raise InventoryInvalid(
            f"{manifest} is the inventory of {source!r:.100}, not of {' or '.join(buckets)}"
        )
    if kind != "CSV":
        raise InventoryInvalid(f"{manifest} has the format {kind!r:.50}: have S3 write it as CSV")
    fields = [name.strip().lower() for name in schema.split(",")]
    if missing := {BUCKET, KEY}.difference(fields):
        raise InventoryInvalid(f"{manifest}: the schema has no column {sorted(missing)[0]}")
    return source, [
        _File(ObjectUri(destination, name), size, md5, fields, is_compressed=True)
        for name, size, md5 in names
    ]


def _rows(store: ObjectStore, file: _File, bucket: str) -> Iterator[Row]:
    """Yield the rows of current objects in a file. Raises InventoryInvalid."""
    number = 0
    try:
        with closing(store.chunks(file.uri, FILE_SECONDS)) as chunks:
            content = _Content(chunks)
            for number, values in enumerate(_lines(content, file), start=1):
                row = dict(zip(file.fields, values, strict=False))
                if row[BUCKET] != bucket:
                    raise InventoryInvalid(
                        f"{file.uri}, line {number}: it has the bucket {row[BUCKET]!r:.100}, "
                        f"not {bucket}"
                    )
                if _is_current(row) and (key := _key(row)):
                    yield key, *_attributes(row)
            content.check(file)
    except ObjectNotFound:
        raise InventoryInvalid(
            f"{file.uri} is missing, and the manifest names it: restore it, or name a newer "
            "inventory"
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise InventoryInvalid(
            f"{file.uri} is damaged or cut after line {number} ({type(error).__name__})"
        ) from None
    except (ValueError, KeyError, csv.Error) as error:
        raise InventoryInvalid(
            f"{file.uri}, line {number}: not a row of an inventory: {cause(error):.100}"
        ) from None


def _lines(content: "_Content", file: _File) -> Iterator[list[str]]:
    """Yield the values of each line that is not empty."""
    raw = io.BufferedReader(content)
    binary = gzip.GzipFile(fileobj=raw) if file.is_compressed else raw
    csv.field_size_limit(MAX_FIELD)
    text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
    for values in csv.reader(text, strict=True):
        if values:
            yield values


def _is_current(row: Mapping[str, str]) -> bool:
    """Return whether a row is the current version of an object, and no mark of a deletion."""
    is_latest = row.get("islatest", "true").lower() != "false"
    is_deleted = row.get("isdeletemarker", "false").lower() == "true"
    return is_latest and not is_deleted


def _key(row: Mapping[str, str]) -> str | None:
    """Return the key of a row; None for the marker of a folder. Raises ValueError for no key."""
    key = unquote_plus(row[KEY], errors="strict")
    if not key:
        raise ValueError("no key")
    return None if key.endswith("/") else key


def _attributes(row: Mapping[str, str]) -> tuple[int, str, str]:
    """Return the size, the ETag and the time of a row. Raises ValueError for impossible ones."""
    modified = row.get("lastmodifieddate", "")
    if modified:
        datetime.fromisoformat(modified)
    return int(row.get("size") or 0), row.get("etag", "").strip('"'), modified


class _Content(io.RawIOBase):
    """The bytes of an object as a file, with their MD5."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""
        self._size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._chunks, b"")
            self._count(self._rest)
        part = self._rest[: len(buffer)]
        self._rest = self._rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def check(self, file: _File) -> None:
        """Raise InventoryInvalid if the bytes are not those that the manifest states."""
        for chunk in self._chunks:
            self._count(chunk)
        if file.is_compressed and not self._size:
            raise InventoryInvalid(f"{file.uri} is empty, and so damaged or cut")
        if file.md5 and self._md5.hexdigest() != file.md5.lower():
            raise InventoryInvalid(f"{file.uri} differs from its MD5 in the manifest")
        if file.size is not None and self._size != file.size:
            raise InventoryInvalid(
                f"{file.uri} has {self._size:,} bytes, and the manifest states another number"
            )

    def _count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self._md5.update(chunk)
