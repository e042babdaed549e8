"""``veil dead``: the pictures that were given up, and what becomes of them."""

import json
from dataclasses import asdict

from tasks.app import app
from tasks.messages import AnonymizeOptions
from tasks.records.dead_letters import LETTERS, DeadLetter
from worker.commands import entries
from worker.printing import printable

NAME = "dead letter"


def list_all(as_json: bool) -> None:
    """Print every letter, oldest first."""
    for letter in entries.oldest_first(LETTERS):
        print(json.dumps(asdict(letter)) if as_json else printable(_line(letter)))


def show(source: str, as_json: bool) -> bool:
    """Print the letter of `source`; whether there is one."""
    found = entries.of(LETTERS, [source], NAME)
    entries.show(found, as_json)
    return bool(found)


def retry(sources: list[str], error: str | None, queue: str, as_json: bool) -> bool:
    """Put the pictures of `sources`, or all with `error`, or all, on `queue`; whether that could be
    done.

    A letter stays until its picture is delivered, or dies anew.
    """
    found = entries.of(LETTERS, sources, NAME)
    everything = (
        letter for letter in LETTERS.entries(app.backend.client) if error in (None, letter.error)
    )
    complete = entries.enqueue(iter(found) if sources else everything, _options, queue, as_json)
    return complete and len(found) == len(set(sources))


def drop(sources: list[str], error: str | None) -> bool:
    """Forget the letters of `sources`, or all with `error`, or all; whether there were such of all
    `sources`.
    """
    has_error = None if error is None else lambda letter: letter.error == error
    return entries.drop(LETTERS, sources, has_error, NAME)


def _options(letter: DeadLetter) -> AnonymizeOptions | None:
    """As they were asked for; InvalidRequest if they never were any."""
    return None if letter.options is None else AnonymizeOptions.of(letter.options)


def _line(letter: DeadLetter) -> str:
    return f"{entries.when(letter)}  {letter.source}  {letter.error}: {letter.message}"
