"""``veil review``: the pictures that were held back, or published with a doubt, and what becomes of
them.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.app import app
from tasks.messages import AnonymizeOptions
from tasks.records.review import REVIEW_LIST, ReviewEntry
from worker.commands import entries
from worker.printing import printable

NAME = "picture to review"


def list_all(as_json: bool) -> None:
    """Print every picture on the list, oldest first: a table on a terminal, else a line each."""
    doubts = entries.oldest_first(REVIEW_LIST)
    if as_json:
        for doubt in doubts:
            print(json.dumps(asdict(doubt)))
    elif sys.stdout.isatty():
        table = Table("since", "state", "source", "reason", "faces", "left")
        for doubt in doubts:
            counts = ("–" if count is None else f"{count:,}" for count in (doubt.faces, doubt.left))
            table.add_row(
                entries.when(doubt),
                doubt.state,
                Text(printable(doubt.source)),
                doubt.reason,
                *counts,
            )
        Console().print(table)
    else:
        for doubt in doubts:
            print(
                printable(
                    f"{entries.when(doubt)}  {doubt.state:<7}  {doubt.source}  {doubt.reason}"
                )
            )


def show(source: str, as_json: bool) -> bool:
    """Print all that is known of the picture `source`; whether it is on the list."""
    found = entries.of(REVIEW_LIST, [source], NAME)
    entries.show(found, as_json)
    return bool(found)


def release(sources: list[str], queue: str, as_json: bool) -> bool:
    """Have the pictures of `sources`, or all, published as they would be; whether that could be
    asked for.
    """
    return _enqueue(sources, ReviewEntry.release_options, queue, as_json)


def redo(sources: list[str], more: AnonymizeOptions, queue: str, as_json: bool) -> bool:
    """Have the pictures of `sources`, or all, made anew with what `more` asks for; whether that
    could be asked for.
    """
    return _enqueue(sources, lambda doubt: doubt.redo_options(more), queue, as_json)


def drop(sources: list[str]) -> bool:
    """Take the pictures of `sources`, or all, off the list; whether all `sources` were on it."""
    return entries.drop(REVIEW_LIST, sources, None, NAME)


def _enqueue(
    sources: list[str],
    options: Callable[[ReviewEntry], AnonymizeOptions],
    queue: str,
    as_json: bool,
) -> bool:
    """A picture stays on the list until it is published without a doubt."""
    found = entries.of(REVIEW_LIST, sources, NAME)
    doubts = iter(found) if sources else REVIEW_LIST.entries(app.backend.client)
    return entries.enqueue(doubts, options, queue, as_json) and len(found) == len(set(sources))
