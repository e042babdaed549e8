"""A SavedModel of a user's own: a folder, a ZIP, or a ZIP in S3, unpacked once into the cache."""

import difflib
import fcntl
import hashlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

from tasks.addresses import ObjectUri
from tasks.errors import ModelInvalid
from tasks.storage.s3 import ObjectStore, OpenObject
from worker.detection import cache
from worker.detection.model import GRAPH, digest_of
from worker.model_settings import DEFAULT, PLATES

MAX_ZIP_BYTES = 1 << 30
MAX_BYTES = 4 << 30  # unpacked
MAX_FILES = 10_000
FETCH_SECONDS = 600
CHUNK_BYTES = 1 << 20
PYTORCH = "a PyTorch file: export it to ONNX, and convert that, for example with onnx2tf"
KERAS = "a Keras file: export it as a SavedModel with `model.export(folder)`"
OTHER_FILES = {
    ".onnx": "an ONNX file: convert it, for example with onnx2tf",
    ".h5": KERAS,
    ".hdf5": KERAS,
    ".keras": KERAS,
    ".pt": PYTORCH,
    ".pth": PYTORCH,
    ".tflite": "a TensorFlow Lite file: export the model that it was made from as a SavedModel",
    ".pb": "one file of a model: name the folder of a SavedModel",
}
"""Files that are often taken for a model, by suffix, and how one gets a SavedModel of them."""
# The exceptions of zipfile for an archive that is damaged, encrypted or of an unknown compression.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


def folder(address: str, connect: Callable[[], ObjectStore], pin: str | None = None) -> Path:
    """Return the folder of the SavedModel at `address`; `connect` is called for one in S3.

    `pin` is the digest of the model's files (worker.detection.model.digest_of) or the SHA-256 of
    its ZIP. Raises ModelInvalid if there is no model, if it does not match the pin, or if its ZIP
    is damaged, too large, or would write outside its folder; and what `connect` and the store
    raise.
    """
    if address.startswith("s3://"):
        _refuse_other_file(PurePosixPath(address), address)
        return _from_s3(ObjectUri.parse(address), connect(), pin)
    path = Path(address).expanduser()
    if not path.exists():
        raise ModelInvalid(
            f"{path} does not exist: {_meant(address)}give the folder of a SavedModel, a ZIP file "
            "of it, or the s3:// address of a ZIP file"
        )
    try:
        if path.is_file():
            _refuse_other_file(path, str(path))
            return _from_zip(_sha256(path), path, str(path), pin)
        if pin is not None:
            _check_digest(path, str(path), pin)
    except OSError as error:
        raise _unusable(path, error) from None
    return path


def _meant(address: str) -> str:
    """Return a hint if `address` is the name of a model that comes with Veil, or nearly."""
    if address in (DEFAULT, PLATES):
        return (
            "as a name it is for VEIL_MODELS alone. Leave out VEIL_MODEL for the default model, or "
        )
    near = difflib.get_close_matches(address.lower(), (DEFAULT, PLATES))
    return f"did you mean {near[0]}, a name for VEIL_MODELS? Otherwise " if near else ""


def _refuse_other_file(path: PurePath, name: str) -> None:
    """Raise ModelInvalid if the suffix of `path` is that of a model of another kind."""
    if kind := OTHER_FILES.get(path.suffix.lower()):
        raise ModelInvalid(
            f"{name} is {kind}; a model is a SavedModel as docs/models.md describes it"
        )


def _from_s3(uri: ObjectUri, store: ObjectStore, pin: str | None) -> Path:
    """Return the folder of the SavedModel in the ZIP at `uri`, fetched unless the cache has it.

    A file in the cache maps each version of an object to the digest of its ZIP.
    """
    with store.open(uri) as found:
        if found.stored.size > MAX_ZIP_BYTES:
            raise ModelInvalid(
                f"{uri} has {found.stored.size:,} bytes, the limit for a model is {MAX_ZIP_BYTES:,}"
            )
        version = hashlib.sha256(f"{uri} {found.stored.etag}".encode()).hexdigest()
        try:
            known_digest = _cache() / f"object-{version}"
            root = _cached(known_digest, uri, pin)
            return root or _fetched(found, known_digest, uri, pin)
        except OSError as error:
            raise _unusable(uri, error) from None


def _cached(known_digest: Path, uri: ObjectUri, pin: str | None) -> Path | None:
    """Return the folder of the SavedModel if the cache has it and its files match `pin`.

    Others may have written to the cache, so it proves nothing about the ZIP: a pin of the ZIP's own
    digest is checked on the ZIP's bytes, which have to be fetched again.
    """
    if not known_digest.is_file():
        return None
    unpacked = _unpacked_folder(known_digest.read_text())
    if not unpacked.is_dir():
        return None
    root = _root(unpacked, str(uri))
    return root if pin is None or digest_of(root) == pin else None


def _fetched(found: OpenObject, known_digest: Path, uri: ObjectUri, pin: str | None) -> Path:
    """Return the folder of the SavedModel in the open ZIP `found`, and note its digest."""
    content = found.read(MAX_ZIP_BYTES, FETCH_SECONDS)
    digest = hashlib.sha256(content).hexdigest()
    with tempfile.NamedTemporaryFile(prefix=".model-", suffix=".zip", dir=_cache()) as file:
        file.write(content)
        file.flush()
        root = _from_zip(digest, Path(file.name), str(uri), pin)
    known_digest.write_text(digest)
    return root


def _from_zip(digest: str, path: Path, name: str, pin: str | None) -> Path:
    """Return the folder of the SavedModel in the ZIP at `path`, whose SHA-256 is `digest`.

    If the pin is that of the ZIP, the unpacked files are compared with the ZIP's, because others
    may have written to the cache since.
    """
    root = _unpacked(digest, path, name)
    if pin == digest:
        with tempfile.TemporaryDirectory(prefix=".model-", dir=_cache()) as work:
            _unpack(path, Path(work), name)
            fresh = digest_of(_root(Path(work), name))
        _check_digest(root, f"{root}, unpacked from {name},", fresh)
    elif pin is not None:
        _check_digest(root, name, pin, f" (and its ZIP {digest})")
    return root


def _check_digest(root: Path, name: str, pin: str, more: str = "") -> None:
    """Raise ModelInvalid if the files below `root` do not have the digest `pin`."""
    if (digest := digest_of(root)) != pin:
        raise ModelInvalid(f"{name} has the digest {digest}{more}, not {pin}, its pin: not used")


def _unpacked(digest: str, path: Path, name: str) -> Path:
    """Return the folder of the SavedModel in the ZIP at `path`, unpacked unless the cache has it.

    It is kept under the ZIP's SHA-256, `digest`.
    """
    unpacked = _unpacked_folder(digest)
    with (_cache() / "unpack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.is_dir():
            work = Path(tempfile.mkdtemp(prefix=".model-", dir=_cache()))
            try:
                _unpack(path, work, name)
                work.replace(unpacked)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return _root(unpacked, name)


def _unpack(path: Path, target: Path, name: str) -> None:
    """Unpack the ZIP at `path` into `target`; ModelInvalid if it is damaged, large or unsafe."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise ModelInvalid(
                    f"{name} would unpack to more than {MAX_FILES:,} files or {MAX_BYTES:,} bytes"
                )
            remaining = MAX_BYTES
            for entry in entries:
                _check_path(entry, name)
                if not entry.is_dir():
                    remaining -= _extract(archive, entry, target, remaining, name)
    except ZIP_ERRORS as error:
        raise ModelInvalid(
            f"{name} is no ZIP that can be unpacked ({error}): "
            "give the folder of a SavedModel, or a ZIP file of it"
        ) from None
    if not _graphs(target):
        raise ModelInvalid(
            f"{name} holds no {GRAPH}, at its top or in one folder: zip the SavedModel's folder"
        )


def _check_path(entry: zipfile.ZipInfo, name: str) -> None:
    """Refuse an entry that would be written outside the archive's folder, or that links there."""
    path = PurePosixPath(entry.filename)
    leads_out = path.is_absolute() or ".." in path.parts or "\\" in entry.filename
    if leads_out or stat.S_ISLNK(entry.external_attr >> 16):
        raise ModelInvalid(f"{name} holds {entry.filename!r:.100}, which leads out of it: not used")


def _extract(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limit: int, name: str
) -> int:
    """Write a file of `archive` below `target`, and return its bytes, at most `limit`."""
    file = target / entry.filename
    file.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, file.open("wb") as sink:
        return _copy(source, sink, limit, name)


def _copy(source: IO[bytes], sink: IO[bytes], limit: int, name: str) -> int:
    """Copy `source` to `sink`, and return the number of bytes, at most `limit`.

    They are counted because the sizes that an archive states may be wrong.
    """
    count = 0
    while chunk := source.read(CHUNK_BYTES):
        count += len(chunk)
        if count > limit:
            raise ModelInvalid(f"{name} unpacks to more than {MAX_BYTES:,} bytes")
        sink.write(chunk)
    return count


def _root(unpacked: Path, name: str) -> Path:
    """Return the folder below `unpacked` that has the graph.

    Raises ModelInvalid if there is none, or if several folders have one and the top has none.
    """
    graphs = _graphs(unpacked)
    if not graphs:
        raise ModelInvalid(
            f"{unpacked}, unpacked from {name}, holds no {GRAPH}: "
            "remove it, and it is unpacked anew"
        )
    root = graphs[0].parent
    if root != unpacked and len(graphs) > 1:
        folders = ", ".join(graph.parent.name for graph in graphs)
        raise ModelInvalid(f"{name} holds several models ({folders:.100}): zip one of them")
    return root


def _graphs(unpacked: Path) -> list[Path]:
    return [*unpacked.glob(GRAPH), *sorted(unpacked.glob(f"*/{GRAPH}"))]


def _unpacked_folder(digest: str) -> Path:
    return _cache() / f"model-{digest.strip()}"


def cache_folder() -> Path:
    """Return the folder for unpacked models. In containers it is a volume, and may be written."""
    return cache.folder() / "models"


def _cache() -> Path:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sha256(path: Path) -> str:
    if (size := path.stat().st_size) > MAX_ZIP_BYTES:
        raise ModelInvalid(f"{path} has {size:,} bytes, the limit for a model is {MAX_ZIP_BYTES:,}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unusable(address: object, error: OSError) -> ModelInvalid:
    reason = f"{address} can't be read or unpacked in {cache_folder()}: {error.strerror}"
    advice = None if str(error.filename) == str(address) else cache.advice(error)
    return ModelInvalid(f"{reason}: {advice}" if advice else reason)
