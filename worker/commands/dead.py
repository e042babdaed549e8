"""``veil dead``: list, show, retry and drop dead letters."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from tasks.errors import InvalidRequest, Permanent, Transient
from tasks.messages import AnonymizeOptions
from tasks.records.dead_letters import LETTERS, DeadLetter, nameless
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.ledger_entries import LedgerEntries, address_of, time_of
from worker.commands.options import (
    Json,
    Queue,
    Timeout,
    Wait,
    Yes,
    require_confirmation,
    seconds_to_wait,
)
from worker.commands.queue import celery_app
from worker.printing import printable

Error = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Every picture with this error, such as AccessDenied."),
]

TASK_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _recorded(given: list[str] | None) -> list[str] | None:
    """Return each of the arguments as a letter has it: the id of a message with its prefix."""
    if given is None:
        return None
    return [nameless(text) if TASK_ID.fullmatch(text) else text for text in given]


Letter = Annotated[
    str,
    typer.Argument(
        metavar="s3://BUCKET/KEY|ID",
        callback=lambda given: _recorded([given])[0],
        help="Address of a picture, or the id of a message that names none.",
    ),
]
ChosenLetters = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="s3://BUCKET/KEY|ID",
        callback=_recorded,
        help="Addresses of pictures, or ids of messages that name none.",
        show_default=False,
    ),
]

# The names of the errors that Veil reports, without those of their groups.
KNOWN = sorted(kind.__name__ for group in (Transient, Permanent) for kind in group.__subclasses__())

app = CommandApp("List, retry or drop dead letters.\n\nExample: veil dead list")


@app.command("list")
def list_letters(error: Error = None, as_json: Json = False) -> ExitCode:
    """Print every dead letter with its reason, oldest first, or those with --error.

    Example: veil dead list --json
    """
    letters = _letters()
    for letter in letters.listed(as_json, _has_error(letters, error)):
        print(json.dumps(asdict(letter)) if as_json else printable(_line(letter)))
    return ExitCode.OK


@app.command()
def show(source: Letter, as_json: Json = False) -> ExitCode:
    """Print everything that is known of a dead letter; exit with 1 if there is none.

    Example: veil dead show s3://camera-uploads/a/b.jpg
    """
    return ExitCode.ok_if(_letters().show(source, as_json))


@app.command(has_summary=True)
def retry(
    sources: ChosenLetters = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    error: Error = None,
    queue: Queue = "backfill",
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> ExitCode:
    """Put the pictures of dead letters back on the queue.

    A letter stays listed until its picture comes through, or dies again; that of a message which no
    worker accepted goes once its picture is on the queue. A message that asked for something no
    worker knows is not tried again, nor one that leaves objects visible in any version of the
    source. Exit with 1 if a picture has no letter, or can't be put on the queue, if there was no
    letter to retry and, with --wait, if one failed or has no result.

    Example: veil dead retry --error AccessDenied
    """
    _require_one_choice(sources, everything, error)
    wait_seconds = seconds_to_wait(wait, timeout)
    letters = _letters()
    is_complete = letters.enqueue(
        sources or [],
        _original_options,
        queue,
        as_json,
        condition=_has_error(letters, error),
        is_settled=lambda letter: letter.is_refused,
        wait_seconds=wait_seconds,
    )
    return ExitCode.ok_if(is_complete)


@app.command(has_summary=True)
def drop(
    sources: ChosenLetters = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every dead letter; needs --yes.")
    ] = False,
    error: Error = None,
    yes: Yes = False,
    as_json: Json = False,
) -> ExitCode:
    """Forget dead letters; `veil reconcile` reports their pictures as missing from then on.

    Exit with 1 if a picture has no letter, or if there was none to drop.

    Example: veil dead drop --error UnsupportedImage
    """
    _require_one_choice(sources, everything, error)
    require_confirmation(everything, yes)
    letters = _letters()
    is_complete = letters.drop(sources or [], as_json, condition=_has_error(letters, error))
    return ExitCode.ok_if(is_complete)


def _letters() -> LedgerEntries[DeadLetter]:
    return LedgerEntries(celery_app(), LETTERS, "dead letter")


def _require_one_choice(sources: list[str] | None, everything: bool, error: str | None) -> None:
    if sum((bool(sources), everything, error is not None)) != 1:
        raise typer.BadParameter("give addresses, or --error, or --all")


def _has_error(
    letters: LedgerEntries[DeadLetter], error: str | None
) -> Callable[[DeadLetter], bool] | None:
    """Return the condition of --error. Raise BadParameter for a name that no error has.

    An unexpected error has a letter, too, under the name of its class.
    """
    if error is None:
        return None
    if error not in KNOWN:
        present = letters.values(lambda letter: letter.error)
        if error not in present:
            names = printable(", ".join(present)) if present else ", ".join(KNOWN)
            raise typer.BadParameter(
                f"{printable(error):.100} is not the name of an error: choose from {names}",
                param_hint="--error",
            )
    return lambda letter: letter.error == error


def _original_options(letter: DeadLetter) -> AnonymizeOptions | None:
    """Return the options of the dead message.

    Raise InvalidRequest if they are not valid, or the letter may lack something of the message, or
    they could show faces of a picture that has taken the place of the source since.
    """
    options = None if letter.options is None else AnonymizeOptions.of(letter.options)
    if letter.is_refused and not letter.is_whole:
        raise InvalidRequest(
            "its message may have asked for something that the letter does not have: send a "
            "corrected message"
        )
    if options is not None and options.lacks_version:
        raise InvalidRequest(
            "its options leave objects visible in any version of the source: send the message "
            "again, with the ETag of the source as the option version"
        )
    return options


def _line(letter: DeadLetter) -> str:
    return f"{time_of(letter)}  {address_of(letter)}  {letter.error}: {letter.message}"
