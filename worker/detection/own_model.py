"""A SavedModel of one's own: a folder as it is, a ZIP, or a ZIP in S3, unpacked once into the
cache.
"""

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
from tasks.storage.s3 import ObjectStore
from worker.detection.model import digest_of

MAX_ZIP_BYTES = 1 << 30
MAX_BYTES = 4 << 30  # unpacked
MAX_FILES = 10_000
FETCH_SECONDS = 600
CHUNK = 1 << 20
GRAPH = "saved_model.pb"


def folder(address: str, connect: Callable[[], ObjectStore], pin: str | None = None) -> Path:
    """Return the folder of the SavedModel at `address`; `connect` is called for one in S3.

    `pin` is the digest of the model's files (worker.detection.model.digest_of) or the SHA-256 of
    its ZIP. Raises ModelInvalid when the model is another one, there is none, or its ZIP is
    damaged, too large or would write outside its folder, and what `connect` and the store raise.
    """
    if address.startswith("s3://"):
        return _from_s3(ObjectUri.parse(address), connect(), pin)
    path = Path(address).expanduser()
    try:
        if path.is_file():
            return _from_zip(_sha256(path), path, str(path), pin)
        if pin is not None and path.is_dir():  # SavedModel reports a missing folder
            _check_files(path, str(path), pin)
    except OSError as error:
        raise _unusable(path, error) from None
    return path


def _from_s3(uri: ObjectUri, store: ObjectStore, pin: str | None) -> Path:
    """Fetch the ZIP unless the cache has it: a file there maps each version of an object to the
    ZIP's digest.
    """
    with store.open(uri) as found:
        if found.stored.size > MAX_ZIP_BYTES:
            raise ModelInvalid(
                f"{uri} has {found.stored.size:,} bytes, the limit for a model is {MAX_ZIP_BYTES:,}"
            )
        version = hashlib.sha256(f"{uri} {found.stored.etag}".encode()).hexdigest()
        try:
            known = _cache() / f"object-{version}"
            if known.is_file() and (placed := _place(known.read_text())).is_dir():
                root = _root(placed, str(uri))
                # The cache proves nothing about the ZIP: a pin of the ZIP's own digest is checked
                # on its bytes.
                if pin is None or digest_of(root) == pin:
                    return root
            content = found.read(MAX_ZIP_BYTES, FETCH_SECONDS)
            digest = hashlib.sha256(content).hexdigest()
            with tempfile.NamedTemporaryFile(prefix=".model-", suffix=".zip", dir=_cache()) as file:
                file.write(content)
                file.flush()
                root = _from_zip(digest, Path(file.name), str(uri), pin)
            known.write_text(digest)
            return root
        except OSError as error:
            raise _unusable(uri, error) from None


def _from_zip(digest: str, path: Path, name: str, pin: str | None) -> Path:
    """Return the folder of the SavedModel in the ZIP at `path`, whose SHA-256 is `digest`.

    With a pin of the ZIP the unpacked files are compared with it: others may have written to the
    cache since.
    """
    root = _unpacked(digest, path, name)
    if pin == digest:
        with tempfile.TemporaryDirectory(prefix=".model-", dir=_cache()) as work:
            _unpack(path, Path(work), name)
            _check_files(root, f"{root}, unpacked from {name},", digest_of(_root(Path(work), name)))
    elif pin is not None:
        _check_files(root, name, pin, f" (and its ZIP {digest})")
    return root


def _check_files(root: Path, name: str, pin: str, more: str = "") -> None:
    if (digest := digest_of(root)) != pin:
        raise ModelInvalid(
            f"{name} has the digest {digest}{more}, not {pin}: not used; see VEIL_MODEL_SHA256"
        )


def _unpacked(digest: str, path: Path, name: str) -> Path:
    """Return the SavedModel in the ZIP at `path`, unpacked below its SHA-256 unless this machine
    has it.
    """
    placed = _place(digest)
    with (_cache() / "unpack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not placed.is_dir():
            work = Path(tempfile.mkdtemp(prefix=".model-", dir=_cache()))
            try:
                _unpack(path, work, name)
                work.replace(placed)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return _root(placed, name)


def _unpack(path: Path, target: Path, name: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise ModelInvalid(
                    f"{name} would unpack to more than {MAX_FILES:,} files or {MAX_BYTES:,} bytes"
                )
            left = MAX_BYTES
            for entry in entries:
                _check_place(entry, name)
                if entry.is_dir():
                    continue
                file = target / entry.filename
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, file.open("wb") as sink:
                    left -= _copied(source, sink, left, name)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ModelInvalid(
            f"{name} is no ZIP that can be unpacked ({error}): make it with `veil train export`"
        ) from None
    if not _graphs(target):
        raise ModelInvalid(
            f"{name} holds no {GRAPH}, at its top or in one folder: zip the SavedModel's folder"
        )


def _check_place(entry: zipfile.ZipInfo, name: str) -> None:
    """Refuse what would be written elsewhere than in the archive's own folder, or point there."""
    place = PurePosixPath(entry.filename)
    if (
        place.is_absolute()
        or ".." in place.parts
        or "\\" in entry.filename
        or stat.S_ISLNK(entry.external_attr >> 16)
    ):
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


def _root(placed: Path, name: str) -> Path:
    graphs = _graphs(placed)
    if not graphs:
        raise ModelInvalid(
            f"{placed}, unpacked from {name}, holds no {GRAPH}: remove it, and it is unpacked anew"
        )
    return graphs[0].parent


def _graphs(unpacked: Path) -> list[Path]:
    return [*unpacked.glob(GRAPH), *sorted(unpacked.glob(f"*/{GRAPH}"))]


def _place(digest: str) -> Path:
    return _cache() / f"model-{digest.strip()}"


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
