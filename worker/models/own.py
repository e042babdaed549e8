"""A SavedModel of one's own: a folder as it is, a ZIP, or a ZIP in S3, unpacked once into the cache."""

import fcntl
import hashlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

import platformdirs

from tasks.addresses import ObjectUri
from tasks.errors import ModelInvalid
from tasks.s3 import ObjectStore

MAX_ZIP_BYTES = 1 << 30
MAX_BYTES = 4 << 30  # unpacked
MAX_FILES = 10_000
FETCH_SECONDS = 600
CHUNK = 1 << 20
GRAPH = "saved_model.pb"


def folder(address: str, connect: Callable[[], ObjectStore]) -> Path:
    """The folder of the SavedModel at `address`; `connect` is called for one in S3.

    Raises ModelInvalid when there is none, or its ZIP is damaged, too large or would write outside its folder, and
    what `connect` and the store raise.
    """
    if address.startswith("s3://"):
        return _from_s3(ObjectUri.parse(address), connect())
    path = Path(address).expanduser()
    if not path.is_file():
        return path  # SavedModel says what is wrong with it
    try:
        digest = _sha256(path)
        return _unpacked(digest, path)
    except OSError as error:
        raise _unusable(path, error) from None


def _from_s3(uri: ObjectUri, store: ObjectStore) -> Path:
    """Fetched once: the cache remembers which ZIP an object's version is."""
    with store.open(uri) as found:
        if found.stored.size > MAX_ZIP_BYTES:
            raise ModelInvalid(f"{uri} has {found.stored.size:,} bytes, the limit for a model is {MAX_ZIP_BYTES:,}")
        version = hashlib.sha256(f"{uri} {found.stored.etag}".encode()).hexdigest()
        try:
            known = _cache() / f"object-{version[:16]}"
            if known.is_file() and (placed := _place(known.read_text())).is_dir():
                return _root(placed)
            content = found.read(MAX_ZIP_BYTES, FETCH_SECONDS)
            digest = hashlib.sha256(content).hexdigest()
            with tempfile.NamedTemporaryFile(prefix=".model-", suffix=".zip", dir=_cache()) as file:
                file.write(content)
                file.flush()
                unpacked = _unpacked(digest, Path(file.name), str(uri))
            known.write_text(digest)
            return unpacked
        except OSError as error:
            raise _unusable(uri, error) from None


def _unpacked(digest: str, path: Path, name: str | None = None) -> Path:
    """The SavedModel in the ZIP at `path`, whose SHA-256 is `digest`; unpacked unless this machine has it."""
    placed = _place(digest)
    with (_cache() / "unpack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not placed.is_dir():
            work = Path(tempfile.mkdtemp(prefix=".model-", dir=_cache()))
            try:
                _unpack(path, work, name or str(path))
                work.replace(placed)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return _root(placed)


def _unpack(path: Path, target: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise ModelInvalid(f"{name} would unpack to more than {MAX_FILES:,} files or {MAX_BYTES:,} bytes")
            left = MAX_BYTES
            for entry in entries:
                _check_place(entry, name)
                if entry.is_dir():
                    continue
                file = target / entry.filename
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, file.open("wb") as sink:
                    left -= _copied(source, sink, left, name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelInvalid(
            f"{name} is no ZIP that can be unpacked ({error}): make it with `veil train export`"
        ) from None
    if not _graphs(target):
        raise ModelInvalid(f"{name} holds no {GRAPH}, at its top or in one folder: zip the SavedModel's folder")


def _check_place(entry: zipfile.ZipInfo, name: str) -> None:
    """Refuse what would be written elsewhere than in the archive's own folder, or point there."""
    place = PurePosixPath(entry.filename)
    if place.is_absolute() or ".." in place.parts or "\\" in entry.filename or stat.S_ISLNK(entry.external_attr >> 16):
        raise ModelInvalid(f"{name} holds {entry.filename!r:.100}, which leads out of it: not used")


def _copied(source: IO[bytes], sink: IO[bytes], limit: int, name: str) -> int:
    """Bytes copied; what an archive says of its sizes need not be true."""
    count = 0
    while chunk := source.read(CHUNK):
        count += len(chunk)
        if count > limit:
            raise ModelInvalid(f"{name} unpacks to more than {MAX_BYTES:,} bytes")
        sink.write(chunk)
    return count


def _root(placed: Path) -> Path:
    return _graphs(placed)[0].parent


def _graphs(unpacked: Path) -> list[Path]:
    return [*unpacked.glob(GRAPH), *sorted(unpacked.glob(f"*/{GRAPH}"))]


def _place(digest: str) -> Path:
    return _cache() / f"model-{digest.strip()[:16]}"


def _cache() -> Path:
    cache = platformdirs.user_cache_path("veil")
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _sha256(path: Path) -> str:
    if (size := path.stat().st_size) > MAX_ZIP_BYTES:
        raise ModelInvalid(f"{path} has {size:,} bytes, the limit for a model is {MAX_ZIP_BYTES:,}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unusable(place: object, error: OSError) -> ModelInvalid:
    return ModelInvalid(
        f"{place} can't be read or unpacked in {platformdirs.user_cache_path('veil')}: {error.strerror}"
    )
