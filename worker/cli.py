"""The ``veil`` command. Heavy imports stay inside the commands that need them."""

import math
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks import core_dumps
from tasks.errors import VeilError
from tasks.settings import Settings, refuse_unknown
from worker.settings import WorkerSettings, markdown_table

if TYPE_CHECKING:
    from tasks.messages import AnonymizeOptions

EXIT_FAILED = 1  # something did not come through; it is named in the output
EXIT_UNUSABLE = (
    2  # nothing was done: wrong arguments, settings, model, or a server that is not there
)
EXIT_STOPPED = 3  # before the end, by SIGTERM or by another process that goes on with it

RECIPE = re.compile(r"[0-9a-f]{16}")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback with values would show pictures and credentials
    help="Face anonymization workers for S3.",
)
model_app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="The default detector."
)
dead_app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Pictures that were given up."
)
receipt_app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="What was done to each picture."
)
app.add_typer(model_app, name="model")
app.add_typer(dead_app, name="dead")
app.add_typer(receipt_app, name="receipt")
review_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pictures that were held back, or published with a doubt.",
)
app.add_typer(review_app, name="review")


Method = Annotated[
    str | None, typer.Option(help="surround, blur, pixelate or fill, in place of VEIL_METHOD.")
]
Region = Annotated[str | None, typer.Option(help="top, full or a number, in place of VEIL_REGION.")]
Exempt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X1,Y1,X2,Y2",
        help="Leave faces clear that lie in this area, pixels of the upright picture.",
    ),
]
Extra = Annotated[
    list[str] | None,
    typer.Option(metavar="X1,Y1,X2,Y2", help="Hide this area too, whatever is in it."),
]


def _utc(text: str) -> datetime:
    """The time in `text`, in UTC if it does not say where."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time like 2026-11-30 or 2026-11-30T12:00Z"
        ) from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


Sources = Annotated[list[str] | None, typer.Argument(metavar="SOURCE")]
Queue = Annotated[str, typer.Option(help="uploads is worked off before backfill.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def main() -> None:
    """Run the command; an error of ours is one line on standard error and a code that is not 0."""
    core_dumps.prevent()
    try:
        refuse_unknown(os.environ, WorkerSettings)
        app()
    except VeilError as error:
        print(f"veil: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(EXIT_UNUSABLE)
    except ModuleNotFoundError as error:
        extra = "training" if sys.argv[1:2] == ["train"] else "worker"
        print(
            f"veil: {error.name} is not installed here: pip install 'veil[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(EXIT_UNUSABLE)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def worker() -> None:
    """Work off the queues until told to stop (SIGTERM finishes the pictures in hand)."""
    settings = WorkerSettings.load()
    from tasks.app import app as celery
    from tasks.messages import QUEUES

    # The pipeline is built by a step of the Celery worker, before it takes a message: see
    # tasks.app.
    starting = celery.Worker(
        pool="threads",
        concurrency=settings.concurrency,
        queues=",".join(QUEUES),
        loglevel="WARNING",
        quiet=True,
    )
    starting.start()
    sys.exit(starting.exitcode)


@app.command()
def enqueue(
    uris: Annotated[list[str] | None, typer.Argument(metavar="[s3://BUCKET/KEY]...")] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="Every object below this address, s3://BUCKET or s3://BUCKET/PREFIX."),
    ] = None,
    queue: Queue = "uploads",
    wait: Annotated[
        bool, typer.Option(help="Wait for the results; exit 1 if a picture failed.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="With --wait: seconds without any result to give up after.")
    ] = 600,
    method: Method = None,
    region: Region = None,
    exempt: Exempt = None,
    extra: Extra = None,
    as_json: Json = False,
) -> None:
    """Put pictures on the queue."""
    from worker.commands import enqueue as enqueueing

    _check_queue(queue)
    if not uris and not prefix:
        raise typer.BadParameter("give addresses, or --prefix")
    options = _options(method, region, exempt, extra)
    failed = enqueueing.run(
        Settings.load(), uris or [], prefix, queue, wait, timeout, as_json, options
    )
    sys.exit(EXIT_FAILED if failed else 0)


@app.command()
def watch(
    sqs: Annotated[
        str | None, typer.Option(metavar="QUEUE_URL", help="Events from an SQS queue.")
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Events that a store posts here.")
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, help="No events: list the store at this interval."),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(metavar="s3://BUCKET/PREFIX", help="Only what is below; repeatable."),
    ] = None,
    suffix: Annotated[
        list[str] | None, typer.Option(metavar=".EXT", help="Only keys that end so; repeatable.")
    ] = None,
    hold: Annotated[
        float,
        typer.Option(
            min=0,
            max=3600,
            help="With --http: seconds to wait for Redis, while it is away, before a 503.",
        ),
    ] = 4,
    overlap: Annotated[
        float,
        typer.Option(
            min=0, help="With --poll: seconds that a look goes back behind the newest object."
        ),
    ] = 3600,
) -> None:
    """Put pictures on the queue as they are uploaded, until told to stop. Give one of --sqs, --http
    and --poll.
    """
    if sum(source is not None for source in (sqs, http, poll)) != 1:
        raise typer.BadParameter("give one of --sqs, --http and --poll")
    from worker.commands import watch as watching

    watching.run(
        WorkerSettings.load(),
        sqs=sqs,
        http=http,
        poll=poll,
        prefixes=prefix or [],
        suffixes=suffix or [],
        hold=hold,
        overlap=overlap,
    )


@app.command()
def backfill(
    source: Annotated[
        str | None, typer.Argument(metavar="[s3://BUCKET/PREFIX]", show_default=False)
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="s3://BUCKET/PREFIX",
            help="Where outputs go, below the route's destination; by default as the route says.",
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=_utc,
            metavar="TIME",
            help="Only what was modified from then on: ISO 8601, UTC unless it says otherwise.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(parser=_utc, metavar="TIME", help="Only what was modified before."),
    ] = None,
    suffix: Annotated[
        list[str] | None,
        typer.Option(help="Only keys that end so, in either case; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Enqueue so many at most.")] = None,
    max_rate: Annotated[
        float | None, typer.Option(min=0.01, help="Enqueue so many a second at most.")
    ] = None,
    low_water: Annotated[
        int, typer.Option(min=0, help="Enqueue again when so many messages or fewer wait.")
    ] = 5_000,
    high_water: Annotated[
        int, typer.Option(min=1, help="Enqueue until so many messages wait.")
    ] = 20_000,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="The recipe that counts as done; by default that of the worker that started last."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what a new run would enqueue.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget how far the run was.")] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait until the pictures are through; exit 1 if one died."),
    ] = False,
    follow: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Only show this run, until its pictures are through."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put everything that is not done yet on the queue `backfill`, behind every upload, and go on
    where it was stopped.

    Skips what has an output of the source's version and of the workers' recipe. Killed at any
    moment, the same command goes on with the run; once that is through, it begins another pass.
    """
    from tasks.bulk.backfill import Selection
    from tasks.errors import RunTakenOver
    from worker.commands import backfill as backfilling

    if follow:
        sys.exit(backfilling.follow(follow, as_json))
    if not source:
        raise typer.BadParameter("give the address of what is to be done, or --follow a run")
    if low_water >= high_water:
        raise typer.BadParameter("must be below --high-water", param_hint="--low-water")
    order = backfilling.Order(
        source=source,
        to=to,
        selection=Selection(since, until, tuple(sorted(suffix or ())), limit),
        recipe=recipe,
        low_water=low_water,
        high_water=high_water,
        max_rate=max_rate or math.inf,
        restart=restart,
        wait=wait,
    )
    if dry_run:
        backfilling.rehearse(Settings.load(), order, as_json)
        return
    try:
        failed = backfilling.run(Settings.load(), order, as_json)
    except RunTakenOver as error:
        print(f"veil: {error}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    sys.exit(EXIT_FAILED if failed else 0)


@app.command()
def reconcile(
    source: Annotated[str, typer.Argument(metavar="s3://SOURCE[/PREFIX]")],
    output: Annotated[
        str | None, typer.Argument(metavar="s3://OUTPUT[/PREFIX]", show_default="the route's")
    ] = None,
    enqueue: Annotated[
        bool, typer.Option("--enqueue", help="Put what is missing or stale on the queue.")
    ] = False,
    other_recipe: Annotated[
        bool,
        typer.Option(
            "--recipe-older-than-current", help="Tell and enqueue only what another recipe made."
        ),
    ] = False,
    below_score: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Tell and enqueue only outputs with a face of a lower score; what is current is not enqueued.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="What outputs should be made with; the workers' by default.")
    ] = None,
    sources_deleted: Annotated[
        bool,
        typer.Option(
            "--sources-deleted",
            help="Sources are deleted on purpose: an output without one is no orphan if its receipt is there.",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many lines.")] = None,
    as_json: Json = False,
) -> None:
    """Prove that every source has its output; exit 1 if one is missing, stale, dead, or an output
    has no source.
    """
    from tasks.bulk.reconcile import Only
    from worker.commands import reconcile as reconciling

    if recipe is not None and not RECIPE.fullmatch(recipe):
        raise typer.BadParameter("a recipe has 16 hex digits", param_hint="--recipe")
    only = Only(other_recipe, below_score)
    good = reconciling.run(
        Settings.load(), source, output, recipe, only, sources_deleted, enqueue, limit, as_json
    )
    sys.exit(0 if good else EXIT_FAILED)


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A run of a backfill.")] = None,
    runs: Annotated[bool, typer.Option("--runs", help="All runs of backfills.")] = False,
    workers: Annotated[
        bool, typer.Option("--workers", help="Also ask which workers are alive; takes a second.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(min=0.1, help="Look again after so many seconds; 2 on a terminal."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show queues, outcomes, rate and time left: live on a terminal, else once."""
    from worker.commands import status as showing

    if runs and run is not None:
        raise typer.BadParameter("give a run, or --runs")
    showing.run(run, runs, workers, interval, as_json)


@app.command()
def anonymize(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", exists=True, help="Pictures and folders.")
    ],
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for the results.")],
    method: Method = None,
    region: Region = None,
    exempt: Exempt = None,
    extra: Extra = None,
    as_json: Json = False,
) -> None:
    """Anonymize local pictures, without a queue. Folders are searched and their structure is
    kept.
    """
    from worker import logs
    from worker.commands import anonymize as local

    settings = WorkerSettings.load()
    logs.configure(settings.log_format)
    failed = local.run(settings, paths, output, as_json, _options(method, region, exempt, extra))
    sys.exit(EXIT_FAILED if failed else 0)


@app.command("settings")
def show_settings() -> None:
    """Print all settings as a Markdown table."""
    print(markdown_table())


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    short_help="A detector of your own: import, fit, evaluate, export.",
)
def train(context: typer.Context) -> None:
    """Hand the rest of the line to `training`, which nothing else here knows of."""
    from training import cli as training

    training.main(context.args)


@model_app.command("build")
def model_build() -> None:
    """Fetch the weights and build the default model, unless this machine has it; print its
    folder.
    """
    from worker.detection.centerface import default_model

    print(default_model())


@model_app.command("info")
def model_info(
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also print the faces that the model finds in this picture."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Load and test the model that a worker would use, and print what it is."""
    from worker.commands import model as info

    info.run(WorkerSettings.load(), picture, as_json)


@receipt_app.command("verify")
def receipt_verify(
    addresses: Annotated[
        list[str], typer.Argument(metavar="s3://OUTPUT...", help="Outputs, receipts, and prefixes.")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            metavar="s3://SOURCE[/PREFIX]",
            help="Where the sources of the outputs below one prefix are, if a backfill --to put them elsewhere.",
        ),
    ] = None,
    redetect: Annotated[
        bool,
        typer.Option(
            "--redetect", help="Also look for faces in each output that its receipt does not have."
        ),
    ] = False,
    delete_source: Annotated[
        bool,
        typer.Option(
            "--delete-source",
            help="Delete the source of each output that is as its receipt says, looks like the source outside of what "
            "was hidden, and is not flagged.",
        ),
    ] = False,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, help="With --delete-source: keep what is younger."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --delete-source: only tell which would be deleted."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare outputs and sources with their receipts, a line each; exit 1 if one is not as its
    receipt says.
    """
    from tasks.bulk.verify import Disposal
    from worker.commands import receipt

    if not delete_source and (dry_run or older_than is not None):
        raise typer.BadParameter(
            "goes with --delete-source", param_hint="--dry-run" if dry_run else "--older-than"
        )
    settings = WorkerSettings.load()
    age = timedelta(days=older_than or 0)
    disposal = Disposal(age, dry_run, receipt.comparison(settings)) if delete_source else None
    good = receipt.run(settings, addresses, source, redetect, disposal, as_json)
    sys.exit(0 if good else EXIT_FAILED)


@dead_app.command("list")
def dead_list(as_json: Json = False) -> None:
    """Print the pictures that were given up, oldest first, each with its reason."""
    from worker.commands import dead

    dead.list_all(as_json)


@dead_app.command("show")
def dead_show(
    source: Annotated[str, typer.Argument(metavar="SOURCE")], as_json: Json = False
) -> None:
    """Print all that is known of a picture that was given up."""
    from worker.commands import dead

    sys.exit(0 if dead.show(source, as_json) else EXIT_FAILED)


@dead_app.command("retry")
def dead_retry(
    sources: Sources = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every picture that was given up.")
    ] = False,
    error: Annotated[
        str | None, typer.Option(help="Those with this error, such as AccessDenied.")
    ] = None,
    queue: Queue = "backfill",
    as_json: Json = False,
) -> None:
    """Put pictures that were given up back on the queue. They stay listed until they come
    through.
    """
    from worker.commands import dead

    _check_one(sources, everything, error)
    _check_queue(queue)
    sys.exit(0 if dead.retry(sources or [], error, queue, as_json) else EXIT_FAILED)


@dead_app.command("drop")
def dead_drop(
    sources: Sources = None,
    everything: Annotated[bool, typer.Option("--all", help="Every picture; needs --yes.")] = False,
    error: Annotated[
        str | None, typer.Option(help="Those with this error, such as UnsupportedImage.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether --all is meant.")] = False,
) -> None:
    """Forget that pictures were given up; reconcile calls them missing from then on."""
    from worker.commands import dead

    _check_one(sources, everything, error)
    if everything and not yes:
        raise typer.BadParameter("add --yes to forget every one of them", param_hint="--all")
    sys.exit(0 if dead.drop(sources or [], error) else EXIT_FAILED)


@review_app.command("list")
def review_list(as_json: Json = False) -> None:
    """Print the pictures that somebody should look at, oldest first, each with its reason."""
    from worker.commands import review

    review.list_all(as_json)


@review_app.command("show")
def review_show(
    source: Annotated[str, typer.Argument(metavar="SOURCE")], as_json: Json = False
) -> None:
    """Print all that is known of one of them: boxes, never faces."""
    from worker.commands import review

    sys.exit(0 if review.show(source, as_json) else EXIT_FAILED)


@review_app.command("release")
def review_release(
    sources: Sources = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every picture on the list; needs --yes.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether --all is meant.")] = False,
    queue: Queue = "uploads",
    as_json: Json = False,
) -> None:
    """Publish pictures as they would be, if their sources are still the same. They stay listed
    until they are.
    """
    from worker.commands import review

    _check_sources(sources, everything, yes)
    _check_queue(queue)
    sys.exit(0 if review.release(sources or [], queue, as_json) else EXIT_FAILED)


@review_app.command("redo")
def review_redo(
    sources: Sources = None,
    everything: Annotated[bool, typer.Option("--all", help="Every picture on the list.")] = False,
    method: Method = None,
    region: Region = None,
    exempt: Exempt = None,
    extra: Extra = None,
    queue: Queue = "uploads",
    as_json: Json = False,
) -> None:
    """Make pictures anew, with what is asked for on top of what was. They stay listed until there
    is no doubt left.
    """
    from worker.commands import review

    _check_sources(sources, everything, yes=True)
    _check_queue(queue)
    if (exempt or extra) and len(sources or ()) != 1:
        raise typer.BadParameter(
            "areas are of one picture: give one address", param_hint="--extra, --exempt"
        )
    options = _options(method, region, exempt, extra)
    sys.exit(0 if review.redo(sources or [], options, queue, as_json) else EXIT_FAILED)


@review_app.command("drop")
def review_drop(
    sources: Sources = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every picture on the list; needs --yes.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether --all is meant.")] = False,
) -> None:
    """Take pictures off the list, and leave everything else as it is."""
    from worker.commands import review

    _check_sources(sources, everything, yes)
    sys.exit(0 if review.drop(sources or []) else EXIT_FAILED)


def _check_sources(sources: list[str] | None, everything: bool, yes: bool) -> None:
    if bool(sources) == everything:
        raise typer.BadParameter("give addresses, or --all")
    if everything and not yes:
        raise typer.BadParameter("add --yes to mean every one of them", param_hint="--all")


def _check_queue(queue: str) -> None:
    from tasks.messages import QUEUES

    if queue not in QUEUES:
        raise typer.BadParameter(f"choose from {', '.join(QUEUES)}", param_hint="--queue")


def _check_one(sources: list[str] | None, everything: bool, error: str | None) -> None:
    if sum((bool(sources), everything, error is not None)) != 1:
        raise typer.BadParameter("give addresses, or --error, or --all")


def _options(
    method: str | None, region: str | None, exempt: list[str] | None, extra: list[str] | None
) -> "AnonymizeOptions":
    """What the flags ask for; InvalidRequest if it is nothing that can be asked."""
    from tasks.messages import AnonymizeOptions

    fields: dict[str, Any] = {"exempt": _areas(exempt), "extra": _areas(extra)}
    if method is not None:
        fields["method"] = method
    if region is not None:
        fields["region"] = _number(region)
    return AnonymizeOptions.parse(**fields)


def _areas(given: list[str] | None) -> list[list[Any]]:
    return [[_number(side) for side in area.split(",")] for area in given or []]


def _number(text: str) -> Any:
    """`text` as a number if it is one; else as it is, for the message that says what it is not."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
