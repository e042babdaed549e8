"""Picture files on this machine: how they are named, read and written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import ImageTooLarge, OutputFailed

# Files in a folder that neither hold a picture nor have one of these suffixes are ignored.
PICTURE_SUFFIXES = {
    ".apng", ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".ico",
    ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".mpo", ".nef", ".orf", ".png",
    ".psd", ".raf", ".rw2", ".tif", ".tiff", ".webp",
}  # fmt: skip


def read_picture(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of the file at `path`. Raise ImageTooLarge, or OSError.

    Of a pipe or a device, which tells no size, at most one byte more than `max_bytes` is read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, max_bytes)
        content = file.read(size + 1)
        if len(content) > size:
            content += file.read(max_bytes + 1 - len(content))
    check_size(len(content), max_bytes)
    return content


def check_size(size: int, max_bytes: int) -> None:
    """Raise ImageTooLarge for a file of more than `max_bytes`."""
    if size > max_bytes:
        raise ImageTooLarge(f"the file has more than {max_bytes:,} bytes: raise VEIL_MAX_BYTES")


def refuse_unwritable(path: Path) -> None:
    """Raise OutputFailed if no file can be written at `path`, before the work for it begins."""
    folder = path.parent
    if path.is_dir():
        raise OutputFailed(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        return  # a pipe or a device, which nothing replaces
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputFailed(f"{path} can't be written: name a file in a folder that exists")


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write all of `content` to `path` or nothing, and create missing folders.

    A link at `path` is replaced, not followed. `mode` has the permissions of the file, of which
    the umask takes some away. Raise OutputFailed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path, mode) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise OutputFailed(f"{path} can't be written: {error.strerror}") from None


@contextmanager
def replaced(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Provide the path of a new file, which takes the place of `path` if the block succeeds.

    A pipe or a device at `path` is no file to replace: the block writes to it directly.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.parent / f".{secrets.token_hex(8)}.partial"
    try:
        partial.touch(mode)
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
