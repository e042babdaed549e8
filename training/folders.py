"""Folders that a command writes completely or not at all."""

import fcntl
import glob
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.errors import OutputFailed
from training.data.dataset import INDEX
from training.run import DESCRIPTION, REMAINS

PARTIAL = ".partial"  # the end of the name of a folder beside the one that is written
LOCK = "lock"  # in it, a file that is locked while its process lives


@contextmanager
def written_beside(folder: Path) -> Iterator[Path]:
    """Yield the path of a new folder on the disk of `folder`, which is removed at the end.

    The caller creates it, and moves it to `folder` when it is complete. What a killed process left
    beside `folder` is removed first. Raise OutputFailed for an OSError within the block, and if
    `folder` is the current folder, which must not be replaced.
    """
    target = folder.resolve()  # a link stays, and the folder that it names is written
    if target == Path.cwd():
        raise OutputFailed(f"{folder} is the current folder: choose another --to")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        partial.mkdir()
        with (partial / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield partial / target.name
    except OSError as error:
        raise OutputFailed(f"{folder} can't be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove the folders beside `target` that killed processes left, but not those in use."""
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}"):
        with suppress(BlockingIOError), (partial / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)


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


def refuse_as_run(folder: Path) -> None:
    """Raise OutputFailed if `folder` has content, but no run and no remains of a failed start."""
    if not (folder / DESCRIPTION).is_file():
        refuse_content(folder, REMAINS)


def refuse_content(folder: Path, allowed: Collection[str] = ()) -> None:
    """Raise OutputFailed if `folder` contains anything but files and folders named in `allowed`."""
    try:
        names = {each.name for each in folder.iterdir()}.difference(allowed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputFailed(f"{folder} can't be written: {error.strerror}") from None
    if not names:
        return
    if INDEX in names:
        content = "a data set"
    elif DESCRIPTION in names:
        content = "a run"
    else:
        content = f"something else ({min(names)})"
    raise OutputFailed(f"{folder} holds {content}: choose another --to, or remove it")
