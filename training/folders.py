"""Folders that a command writes completely or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import OutputFailed


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """Yield the path of a new folder beside `folder`, which is removed at the end.

    The caller creates it, and moves it to `folder` when it is complete. Raise OutputFailed for an
    OSError within the block, and if `folder` is the current folder, which must not be replaced.
    """
    target = folder.resolve()  # a link stays, and the folder that it names is written
    if target == Path.cwd():
        raise OutputFailed(f"{folder} is the current folder: choose another --to")
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        yield work
    except OSError as error:
        raise OutputFailed(f"{folder} can't be written: {error.strerror}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield the path of a new folder, which replaces `folder` unless an error ends the block.

    Raise OutputFailed as `written_beside`.
    """
    with written_beside(folder) as work:
        yield work
        target = folder.resolve()
        if target.exists():
            shutil.rmtree(target)
        work.replace(target)
