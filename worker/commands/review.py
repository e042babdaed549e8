"""``veil review``: the pictures that were held, or published with a doubt, and the decisions."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.addresses import PrefixUri
from tasks.bulk.places import Places
from tasks.errors import SettingsInvalid
from tasks.messages import FACE
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tasks.settings import split_address
from worker import logs
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.ledger_entries import LedgerEntries, address_of, time_of
from worker.commands.options import (
    Exempt,
    Extra,
    Json,
    MethodName,
    Queue,
    Region,
    Rules,
    Source,
    Sources,
    Timeout,
    Wait,
    Yes,
    anonymize_options,
    require_confirmation,
    seconds_to_wait,
)
from worker.commands.queue import celery_app
from worker.printing import printable
from worker.settings import WorkerSettings

All = Annotated[bool, typer.Option("--all", help="Every picture on the list.")]
ConfirmedAll = Annotated[
    bool, typer.Option("--all", help="Every picture on the list; needs --yes.")
]

Decided = Annotated[
    str, typer.Argument(metavar="s3://OUTPUT", help="An output, or a prefix of outputs.")
]
Outputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="s3://OUTPUT/PREFIX", help="With --below: where to search.", show_default=False
    ),
]
Http = Annotated[str, typer.Option(metavar="HOST:PORT", help="Address to listen on.")]
Reviewer = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Print a single-use token for this reviewer; repeatable."),
]
ShowSources = Annotated[
    bool, typer.Option("--show-sources", help="Show the clear sources to whoever logs in.")
]
Below = Annotated[
    float | None,
    typer.Option(
        metavar="SCORE",
        min=0,
        max=1,
        help="Also list outputs with a face whose score is below this.",
    ),
]

app = CommandApp("Decide on pictures that were held or flagged.\n\nExample: veil review list")


@app.command("list")
def list_entries(as_json: Json = False) -> ExitCode:
    """Print every picture that needs a review with its reason, oldest first.

    Example: veil review list --json
    """
    entries = _entries().listed(as_json)
    if as_json:
        for entry in entries:
            print(json.dumps(asdict(entry)))
    elif sys.stdout.isatty():
        _print_table(entries)
    else:
        for entry in entries:
            line = f"{time_of(entry)}  {entry.state:<7}  {address_of(entry)}  {entry.reason}"
            print(printable(line))
    return ExitCode.OK


@app.command()
def show(source: Source, as_json: Json = False) -> ExitCode:
    """Print everything that is known of a picture: boxes, never pixels.

    Exit with 1 if the picture is not on the list.

    Example: veil review show s3://camera-uploads/a/b.jpg
    """
    return ExitCode.ok_if(_entries().show(source, as_json))


@app.command("decisions", has_summary=True)
def list_decisions(address: Decided, as_json: Json = False) -> ExitCode:
    """Print the decisions of the desk on outputs, oldest first.

    Each has its time, the reviewer, what was decided with its options, and the version of the
    source. Exit with 1 if the record of one is damaged or, with a VEIL_RECEIPT_KEY, is not signed
    with it.

    Example: veil review decisions s3://camera-clean/2026 --json
    """
    from worker.commands.decisions import DecisionList

    return ExitCode.ok_if(DecisionList(WorkerSettings.load(), address).print(as_json))


@app.command(has_summary=True)
def release(
    sources: Sources = None,
    everything: ConfirmedAll = False,
    yes: Yes = False,
    queue: Queue = "uploads",
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> ExitCode:
    """Publish pictures in spite of the doubt, if their sources are unchanged.

    They stay on the list until they are published. Exit with 1 if a picture is not on the list, or
    can't be put on the queue, if the list is empty and, with --wait, if one failed, has no
    result, or is held while an older output stays.

    Example: veil review release s3://camera-uploads/a/b.jpg
    """
    _require_one_choice(sources, everything)
    require_confirmation(everything, yes)
    wait_seconds = seconds_to_wait(wait, timeout)
    is_complete = _entries().enqueue(
        sources or [],
        ReviewEntry.release_options,
        queue,
        as_json,
        wait_seconds=wait_seconds,
    )
    return ExitCode.ok_if(is_complete)


@app.command(has_summary=True)
def redo(
    sources: Sources = None,
    everything: All = False,
    method: MethodName = None,
    region: Region = None,
    exempt: Exempt = None,
    extra: Extra = None,
    rules: Rules = None,
    queue: Queue = "uploads",
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> ExitCode:
    """Anonymize pictures again, with further options on top of the earlier ones.

    They stay on the list until no doubt is left. Exit with 1 if a picture is not on the list, or
    can't be put on the queue, if the list is empty and, with --wait, if one failed, has no
    result, or is held while an older output stays.

    Example: veil review redo s3://camera-uploads/a/b.jpg --extra 10,20,90,120
    """
    _require_one_choice(sources, everything)
    if (exempt or extra) and len(sources or ()) != 1:
        raise typer.BadParameter(
            "an area belongs to one picture: give one address", param_hint="--extra, --exempt"
        )
    wait_seconds = seconds_to_wait(wait, timeout)
    more = anonymize_options(method, region, exempt, extra, rules)
    is_complete = _entries().enqueue(
        sources or [],
        lambda entry: entry.redo_options(more),
        queue,
        as_json,
        asked_for=ReviewEntry.asked_for,
        wait_seconds=wait_seconds,
    )
    return ExitCode.ok_if(is_complete)


@app.command(has_summary=True)
def drop(
    sources: Sources = None,
    everything: ConfirmedAll = False,
    yes: Yes = False,
    as_json: Json = False,
) -> ExitCode:
    """Take pictures off the list, and change nothing else.

    Exit with 1 if a picture is not on the list, or if the list is empty.

    Example: veil review drop s3://camera-uploads/a/b.jpg
    """
    _require_one_choice(sources, everything)
    require_confirmation(everything, yes)
    return ExitCode.ok_if(_entries().drop(sources or [], as_json))


@app.command()
def serve(
    outputs: Outputs = None,
    http: Http = "127.0.0.1:8600",
    reviewer: Reviewer = None,
    show_sources: ShowSources = False,
    below: Below = None,
) -> ExitCode:
    """Open the review desk in the browser, until SIGTERM or Ctrl-C.

    The command prints the address, with a single-use token for each --reviewer. Without any, it
    prints one token, unless VEIL_REVIEW_PASSWORD or VEIL_REVIEW_USER_HEADER is set.

    Example: veil review serve --reviewer ana --reviewer ben --show-sources
    """
    from worker.desk import serving

    if (below is None) != (not outputs):
        raise typer.BadParameter("--below needs the outputs to search, and they need --below")
    settings = WorkerSettings.load()
    _check_reviewers(reviewer or [])
    logs.configure(settings.log_format, settings.redis_server())
    try:
        host, port = split_address(http)
    except ValueError as error:
        raise SettingsInvalid(f"--http {http}: {error}") from None
    routes, keys = settings.parsed_routes(), settings.receipt_keys()
    places = [
        Places.of_outputs(PrefixUri.parse(address), routes, keys) for address in outputs or ()
    ]
    options = serving.Options(host, port, reviewer or [], show_sources, below, places)
    serving.check(settings, options)
    asyncio.run(serving.serve(celery_app(), settings, options))
    return ExitCode.OK


def _check_reviewers(reviewers: list[str]) -> None:
    """Raise BadParameter for a wrong name, or one that is given twice."""
    from worker.desk.access import MAX_NAME, reviewer_name

    for name in reviewers:
        if not reviewer_name(name):
            raise typer.BadParameter(
                f"{printable(name)!r:.100}: a name has 1 to {MAX_NAME} printable characters",
                param_hint="--reviewer",
            )
    names = Counter(map(reviewer_name, reviewers))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise typer.BadParameter(f"{twice[0]} is named twice", param_hint="--reviewer")


def _entries() -> LedgerEntries[ReviewEntry]:
    return LedgerEntries(celery_app(), REVIEW_LIST, "picture to review")


def _require_one_choice(sources: list[str] | None, everything: bool) -> None:
    if bool(sources) == everything:
        raise typer.BadParameter("give addresses, or --all")


def _print_table(entries: Iterable[ReviewEntry]) -> None:
    table = Table("since", "state", "source", "reason", "faces", "left")
    for entry in entries:
        table.add_row(
            time_of(entry),
            entry.state,
            Text(printable(address_of(entry))),
            entry.reason,
            _objects(entry),
            _count(entry.left),
        )
    if table.row_count:
        Console().print(table)


def _objects(entry: ReviewEntry) -> str:
    """Return the number of faces, and those of other objects with their labels."""
    others = {label: count for label, count in (entry.labels or {}).items() if label != FACE}
    parts = [_count(entry.faces), *(f"{count:,} {label}" for label, count in others.items())]
    return printable(", ".join(parts))


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"
