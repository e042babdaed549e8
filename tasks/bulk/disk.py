"""Temporary databases on disk, for rows that are sorted or kept. SQLite deletes them by itself."""

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


class Texts:
    """Texts in a temporary database, in the order in which they were added."""

    def __init__(self, subject: str) -> None:
        """`subject` names the texts in errors: OutputFailed without room for them."""
        self.count = 0
        self._subject = subject
        self._database = open_database()
        with room(subject):
            self._database.execute("CREATE TABLE texts (text)")

    def add(self, text: str) -> None:
        with room(self._subject):
            self._database.execute("INSERT INTO texts VALUES (?)", (text,))
        self.count += 1

    def __iter__(self) -> Iterator[str]:
        with room(self._subject):
            for (text,) in self._database.execute("SELECT text FROM texts ORDER BY rowid"):
                yield text

    def close(self) -> None:
        self._database.close()


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
    """Raise OutputFailed if there is no room on the disk for `subject`."""
    try:
        yield
    except sqlite3.Error as error:
        raise OutputFailed(
            f"{subject} can't be written to this disk ({error}): set TMPDIR to a folder with room"
        ) from None
