"""Text on a terminal: notes, summaries, times, and text from outside."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

UNKNOWN = "–"
FULL = (errno.ENOSPC, errno.EDQUOT)
# Commands name the files that they are told to write in errors of their own.
WRITTEN_TO = "standard output, or a temporary file"

_quiet = False


def set_quiet(is_quiet: bool) -> None:
    """Turn summaries and progress bars off, or on again; notes are always printed."""
    global _quiet
    _quiet = is_quiet


def quiet() -> bool:
    """Return whether summaries and progress bars are off."""
    return _quiet


def printable(text: str) -> str:
    """Return `text` on one line, with every character escaped that a terminal might obey."""
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 picture`` or ``1,200 pictures``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float | None) -> str:
    """Return a time as ``H:MM:SS``, or as days and hours, which are 10 characters at most."""
    if seconds is None:
        return UNKNOWN
    length = timedelta(seconds=round(seconds))
    if length.days:
        return f"{length.days} d {length.seconds // 3600} h"
    return str(length)


def print_note(line: str) -> None:
    """Print a note of the command on standard error."""
    print(f"veil: {line}", file=sys.stderr, flush=True)


def print_summary(line: str) -> None:
    """Print the result of the command on standard error, which leaves standard output to data.

    A quiet command prints none.
    """
    if not _quiet:
        print(line, file=sys.stderr, flush=True)


def print_system_error(error: OSError) -> None:
    """Print `error`, unless it only says that the reader of a pipe has gone away.

    A write to a full disk names no file in its error.
    """
    if isinstance(error, BrokenPipeError):
        return
    if error.filename is None and error.errno in FULL:
        error.filename = WRITTEN_TO
    print_note(f"{type(error).__name__}: {error}")


def best_effort() -> suppress:
    """Return the context of output that is lost if it can't be printed.

    It is for the last lines of a command that a signal ends: an error there would take the place of
    the signal and of its exit code. Rich exits if the reader of a pipe has gone away.
    """
    return suppress(OSError, SystemExit)


@contextmanager
def summarized(summarize: Callable[[], None]) -> Iterator[None]:
    """Call `summarize` after the work of the block, also if Ctrl-C or SIGTERM ends it early."""
    with told_if_interrupted(summarize):
        yield
    summarize()


@contextmanager
def told_if_interrupted(summarize: Callable[[], None]) -> Iterator[None]:
    """Call `summarize` if Ctrl-C or SIGTERM ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        with best_effort():
            print_note("interrupted" if _quiet else "interrupted; what was done until then:")
        with best_effort():
            summarize()
        raise


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
