"""The ``veil`` command. Heavy imports stay inside the commands that need them."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.errors import VeilError
from tasks.settings import Settings, refuse_unknown
from worker.settings import WorkerSettings, markdown_table

if TYPE_CHECKING:
    from tasks.messages import AnonymizeOptions

EXIT_FAILED = 1  # something did not come through; it is named in the output
EXIT_UNUSABLE = 2  # nothing was done: wrong arguments, settings, model, or a server that is not there

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Face anonymization workers for S3.",
)
model_app = typer.Typer(no_args_is_help=True, help="The default detector.")
dead_app = typer.Typer(no_args_is_help=True, help="Pictures that were given up.")
app.add_typer(model_app, name="model")
app.add_typer(dead_app, name="dead")

Method = Annotated[str | None, typer.Option(help="surround, blur, pixelate or fill, in place of VEIL_METHOD.")]
Region = Annotated[str | None, typer.Option(help="top, full or a number, in place of VEIL_REGION.")]
Exempt = Annotated[
    list[str] | None,
    typer.Option(metavar="X1,Y1,X2,Y2", help="Leave faces clear that lie in this area, pixels of the upright picture."),
]
Extra = Annotated[list[str] | None, typer.Option(metavar="X1,Y1,X2,Y2", help="Hide this area too, whatever is in it.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def main() -> None:
    """Run the command; an error of ours is one line on standard error and a code that is not 0."""
    try:
        refuse_unknown(os.environ, WorkerSettings)
        app()
    except VeilError as error:
        print(f"veil: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(EXIT_UNUSABLE)
    except ModuleNotFoundError as error:
        print(f"veil: {error.name} is not installed here: pip install 'veil[worker]'", file=sys.stderr)
        sys.exit(EXIT_UNUSABLE)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def worker() -> None:
    """Work off the queues until told to stop (SIGTERM finishes the pictures in hand)."""
    settings = WorkerSettings.load()
    from tasks.app import QUEUES
    from tasks.app import app as celery

    # The pipeline is built by a step of the Celery worker, before it takes a message: see tasks.app.
    starting = celery.Worker(
        pool="threads", concurrency=settings.concurrency, queues=",".join(QUEUES), loglevel="WARNING", quiet=True
    )
    starting.start()
    sys.exit(starting.exitcode)


@app.command()
def enqueue(
    uris: Annotated[list[str] | None, typer.Argument(metavar="[s3://BUCKET/KEY]...")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Every object below this address, s3://BUCKET or s3://BUCKET/PREFIX.")
    ] = None,
    queue: Annotated[str, typer.Option(help="uploads is worked off before backfill.")] = "uploads",
    wait: Annotated[bool, typer.Option(help="Wait for the results; exit 1 if a picture failed.")] = False,
    timeout: Annotated[float, typer.Option(help="With --wait: seconds without any result to give up after.")] = 600,
    method: Method = None,
    region: Region = None,
    exempt: Exempt = None,
    extra: Extra = None,
    as_json: Json = False,
) -> None:
    """Put pictures on the queue."""
    from tasks.app import QUEUES
    from worker import enqueueing

    if queue not in QUEUES:
        raise typer.BadParameter(f"choose from {', '.join(QUEUES)}", param_hint="--queue")
    if not uris and not prefix:
        raise typer.BadParameter("give addresses, or --prefix")
    options = _options(method, region, exempt, extra)
    failed = enqueueing.run(Settings.load(), uris or [], prefix, queue, wait, timeout, as_json, options)
    sys.exit(EXIT_FAILED if failed else 0)


@app.command()
def anonymize(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", exists=True, help="Pictures and folders.")],
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for the results.")],
    method: Method = None,
    region: Region = None,
    exempt: Exempt = None,
    extra: Extra = None,
    as_json: Json = False,
) -> None:
    """Anonymize local pictures, without a queue. Folders are searched and their structure is kept."""
    from worker import local, logs

    settings = WorkerSettings.load()
    logs.configure(settings.log_format)
    failed = local.run(settings, paths, output, as_json, _options(method, region, exempt, extra))
    sys.exit(EXIT_FAILED if failed else 0)


@app.command("settings")
def show_settings() -> None:
    """Print all settings as a Markdown table."""
    print(markdown_table())


@model_app.command("build")
def model_build() -> None:
    """Fetch the weights and build the default model, unless this machine has it; print its folder."""
    from worker.models import default_model

    print(default_model())


@model_app.command("info")
def model_info(as_json: Json = False) -> None:
    """Load the model that a worker would use, and say what it is."""
    settings = WorkerSettings.load()
    from worker.bootstrap import load_model

    model = load_model(settings)
    _show(
        {
            "folder": str(model.folder),
            "digest": model.digest,
            "score_threshold": settings.score_threshold or model.score_threshold,
            "fixed_size": model.fixed_size,
            "device": model.device,
        },
        as_json,
    )


@dead_app.command("list")
def dead_list(as_json: Json = False) -> None:
    """Print the pictures that were given up, oldest first, each with its reason."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from tasks import dead_letters
    from tasks.app import app as celery
    from worker.enqueueing import connected

    with connected():
        letters = sorted(dead_letters.entries(celery.backend.client), key=lambda letter: letter.time)
    for letter in letters:
        when = datetime.fromtimestamp(letter.time, UTC).isoformat(timespec="seconds")
        print(json.dumps(asdict(letter)) if as_json else f"{when}  {letter.source}  {letter.error}: {letter.message}")


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


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
        return
    for name, value in values.items():
        print(f"{name}: {value}")
