"""Text on a terminal: notes, summaries, and text from outside."""

import sys


def printable(text: str) -> str:
    """Return `text` on one line, with every character escaped that a terminal might obey."""
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def print_note(line: str) -> None:
    """Print a note of the command on standard error."""
    print(f"veil: {line}", file=sys.stderr, flush=True)


def print_summary(line: str) -> None:
    """Print the result of the command on standard error, which leaves standard output to data."""
    print(line, file=sys.stderr, flush=True)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
