"""``veil reconcile``: compare sources with outputs, and report every difference on a line."""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.bulk.places import Places
from tasks.bulk.reconcile import THREADS, Finding, Only, Reconciliation, State
from tasks.errors import SettingsInvalid
from tasks.messages import BACKFILL
from tasks.publishing import Publisher, Wanted, announced_recipe
from tasks.redis.errors import connected
from tasks.routes import Route
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.inventories import Inventories, listed_from
from worker.commands.options import Json, Suffix, recipe_digest
from worker.commands.progress import progress_bar
from worker.commands.queue import celery_app, wait_for_room
from worker.printing import print_note, print_summary, printable, summarized

if TYPE_CHECKING:
    from tasks.app import App

LISTINGS = 3  # read side by side: sources, outputs and receipts; each needs a connection
STATES: tuple[State, ...] = (
    "current",
    "missing",
    "stale",
    "taken",
    "orphan",
    "refused",
    "unknown key",
    "dead",
    "held",
    "archived",
    "source unknown",
)
# The line for people has these also if their count is 0; CHOSEN if only some are asked for.
COUNTED: tuple[State, ...] = ("current", "missing", "stale", "orphan", "dead", "held")
CHOSEN: tuple[State, ...] = ("current", "stale")
# The states of outputs that have the name of a source.
MATCHED: tuple[State, ...] = ("current", "stale", "taken")
# What to do about states that no worker can repair.
ADVICE: dict[State, str] = {
    "dead": "once the cause is gone, veil dead retry SOURCE enqueues the picture again",
    "unknown key": "add the key to VEIL_RECEIPT_KEY, and run the command again",
}

Source = Annotated[str, typer.Argument(metavar="s3://SOURCE/PREFIX", help="Where the sources are.")]
Output = Annotated[
    str | None,
    typer.Argument(
        metavar="s3://OUTPUT/PREFIX", help="Where the outputs are.", show_default="the route's"
    ),
]
Enqueue = Annotated[
    bool, typer.Option("--enqueue", help="Put missing and stale pictures on the queue.")
]
OtherRecipe = Annotated[
    bool,
    typer.Option(
        "--recipe-older-than-current",
        help="Report and enqueue only outputs of another recipe, and pictures that it held.",
    ),
]
BelowScore = Annotated[
    float | None,
    typer.Option(
        metavar="SCORE",
        min=0,
        max=1,
        help="Report and enqueue only outputs with a face below this score; "
        "current ones are not enqueued.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        callback=recipe_digest,
        metavar="DIGEST",
        help="The recipe that is current; default: the workers'.",
    ),
]
SourcesDeleted = Annotated[
    bool,
    typer.Option(
        "--sources-deleted",
        help="Sources are deleted on purpose: "
        "an output without source is no orphan if it has a receipt.",
    ),
]
Limit = Annotated[
    int | None, typer.Option(metavar="COUNT", min=1, help="Stop after this many lines.")
]

app = CommandApp()


@app.command(has_summary=True)
def reconcile(
    source: Source,
    output: Output = None,
    enqueue: Enqueue = False,
    other_recipe: OtherRecipe = False,
    below_score: BelowScore = None,
    recipe: Recipe = None,
    sources_deleted: SourcesDeleted = False,
    suffix: Suffix = None,
    limit: Limit = None,
    inventory: Inventories = None,
    as_json: Json = False,
) -> ExitCode:
    """Check that every source has its output.

    Exit with 1 if an output is missing or stale, a picture is dead, an output has no source, or
    there is nothing to compare.

    Example: veil reconcile s3://camera-uploads s3://camera-clean --enqueue
    """
    only = Only(other_recipe, below_score)
    settings = Settings.load()
    places = Places.find(source, output, settings.parsed_routes(), settings.receipt_keys())
    store = ObjectStore.connect(settings, connections=THREADS + LISTINGS)
    celery = celery_app()
    redis = celery.backend.client
    with connected():
        redis.ping()  # so that an unreachable Redis is reported before a listing of hours
    recipe = _current_recipe(redis, recipe, only, places.route)
    if places.are_mixed:
        print_note(
            f"names of outputs are hashed, and {places.source} is a part of the sources: outputs "
            f"without a source are left out; name {places.route.source} for these too"
        )
    started = time.monotonic()
    with listed_from(store, inventory, places), progress_bar("compared") as bar:
        reconciliation = Reconciliation(
            store,
            places,
            recipe,
            redis,
            only,
            sources_deleted,
            bar.advance,
            places.route.suffixes_among(suffix or ()),
            tell=print_note,
        )

        def summarize() -> None:
            seconds = time.monotonic() - started
            shown = COUNTED if only.everything else CHOSEN
            _print_counts(reconciliation, shown, recipe, places.route.name, seconds, as_json)
            counts = reconciliation.counts
            if places.are_hashed and counts["orphan"] and not any(map(counts.get, MATCHED)):
                print_note(
                    "no output has the name of a source: if VEIL_NAMES_KEY is not the secret of "
                    "the workers here, everything is told wrongly"
                )

        with summarized(summarize):
            _report(celery, reconciliation, enqueue, limit, as_json)
    is_proven = reconciliation.is_complete and not reconciliation.wrong
    return ExitCode.ok_if(is_proven)


def _report(
    celery: "App", reconciliation: Reconciliation, enqueue: bool, limit: int | None, as_json: bool
) -> None:
    """Print the findings and, with `enqueue`, put what a worker can repair on the queue."""
    publisher = Publisher(celery)

    def publish(pictures: Sequence[Wanted]) -> None:
        wait_for_room(celery.backend.client, BACKFILL)
        publisher.publish(pictures, BACKFILL)

    try:
        for finding in reconciliation.findings(publish if enqueue else None, limit):
            _print(finding, as_json)
    finally:
        publisher.close()


def _current_recipe(redis: Any, given: str | None, only: Only, route: Route) -> str | None:
    """Return the recipe that outputs of `route` should have; None if any will do.

    Raise SettingsInvalid if `only` compares recipes and none is known.
    """
    recipe = given or announced_recipe(redis, route.name)
    if recipe is None and only.other_recipe:
        raise SettingsInvalid("no worker has reported its recipe: start one, or give --recipe")
    if recipe is None:
        print_note("no worker has reported its recipe: only versions of sources are compared")
    return recipe


def _print(finding: Finding, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_json_of(finding)), flush=True)
        return
    address = finding.output if finding.state == "orphan" else finding.source or finding.output
    score = "" if finding.lowest_score is None else f" ({finding.lowest_score:g})"
    enqueued = ", enqueued" if finding.enqueued else ""
    line = f"{finding.state:<8} {printable(str(address))}  {printable(finding.reason)}"
    print(f"{line}{score}{enqueued}")


def _json_of(finding: Finding) -> dict[str, Any]:
    return {
        "state": finding.state,
        "source": None if finding.source is None else str(finding.source),
        "output": str(finding.output),
        "reason": finding.reason,
        "lowest_score": finding.lowest_score,
        "enqueued": finding.enqueued,
        "older_output": finding.older_output,
    }


def _print_counts(
    reconciliation: Reconciliation,
    shown: Sequence[State],
    recipe: str | None,
    route: str | None,
    seconds: float,
    as_json: bool,
) -> None:
    counts: dict[str, int] = {state: reconciliation.counts[state] for state in STATES}
    if as_json:
        summary = {
            **counts,
            "held_with_output": reconciliation.held_with_output,
            "enqueued": reconciliation.enqueued,
            "recipe": recipe,
            "complete": reconciliation.is_complete,
            "seconds": round(seconds, 3),
        }
        named = {} if route is None else {"route": route}
        print(json.dumps({"summary": {**named, **summary}}))
        return
    parts = []
    for state, count in counts.items():
        if count or state in shown:
            parts.append(f"{count:,} {state}")
    if reconciliation.enqueued:
        parts.append(f"{reconciliation.enqueued:,} enqueued")
    note = " (stopped at the limit)" if reconciliation.is_at_limit else ""
    name = "" if route is None else f"{route}: "
    print_summary(f"{name}{', '.join(parts)} in {seconds:.1f} s{note}")
    if reconciliation.held_with_output:
        count = reconciliation.held_with_output
        print_summary(f"{name}held, with an older output still published: {count:,}")
    for state, advice in ADVICE.items():
        if counts[state]:
            print_summary(f"{state}: {advice}")
