"""Temporary databases on disk, in which rows are sorted. SQLite deletes them by itself."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputFailed, SettingsInvalid

ROWS_AT_ONCE = 10_000  # from one call of SQLite to the next
CACHE_KIB = 64 << 10  # of SQLite
# SQLite reads these, and silently uses another folder if it can't write to the one that they name.
FOLDER_VARIABLES = ("SQLITE_TMPDIR", "TMPDIR")


def open_database() -> sqlite3.Connection:
    """Return a temporary database for any thread, but for one at a time.

    Raises SettingsInvalid if TMPDIR is no folder for it.
    """
    check_folder()
    # An empty name stands for a temporary database on disk.
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    database.execute("PRAGMA journal_mode = OFF")
    return database


def check_folder() -> None:
    """Raise SettingsInvalid if a variable names no folder in which rows can be sorted."""
    for variable in FOLDER_VARIABLES:
        folder = os.environ.get(variable)
        if folder and not (
            Path(folder).is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)
        ):
            raise SettingsInvalid(
                f"{variable}: {folder} is no folder that this user may write to: create it, or "
                f"correct {variable}"
            )


@contextmanager
def room(subject: str) -> Iterator[None]:
    """Raise OutputFailed if `subject` can't be sorted for lack of room on the disk."""
    try:
        yield
    except sqlite3.Error as error:
        raise OutputFailed(
            f"{subject} can't be sorted on this disk ({error}): set TMPDIR to a folder with room"
        ) from None
