"""The ``veil`` command: a table of commands, each loaded when it is used."""

import os
import sys
from importlib import import_module, metadata
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand
from typer.main import get_command

from tasks import core_dumps
from tasks.errors import AddressInUse, NothingFound, QueueUnavailable, VeilError
from tasks.extras import not_installed
from worker.commands.command import HELP_FLAGS, USAGE_ERROR, CommandGroup
from worker.commands.exit_codes import ExitCode
from worker.printing import print_note, print_system_error

PASSING = (NothingFound, AddressInUse)  # errors with which a command ends with FAILED


class Entry(NamedTuple):
    """The module that defines a command as its `app`, and the line of ``veil --help`` about it."""

    module: str
    help: str


# In the order of `veil --help`, which imports none of the modules.
COMMANDS = {
    "worker": Entry("worker.commands.worker", "Anonymize pictures from the queues until stopped."),
    "enqueue": Entry("worker.commands.enqueue", "Put pictures on the queue."),
    "watch": Entry("worker.commands.watch", "Put pictures on the queue as they are uploaded."),
    "backfill": Entry(
        "worker.commands.backfill", "Put every source that is not done yet on the queue."
    ),
    "reconcile": Entry("worker.commands.reconcile", "Check that every source has its output."),
    "status": Entry("worker.commands.status", "Show queues, outcomes, rate and time left."),
    "anonymize": Entry("worker.commands.anonymize", "Anonymize local pictures, without a queue."),
    "preview": Entry(
        "worker.commands.preview", "Show a sample of an archive as it would be anonymized."
    ),
    "settings": Entry("worker.commands.settings", "Print or check the settings."),
    "routes": Entry("worker.commands.routes", "Show and check the routes."),
    "train": Entry("training.cli", "Train a detector: import, fit, evaluate, export."),
    "model": Entry("worker.commands.model", "Build or inspect the detector's model."),
    "dead": Entry("worker.commands.dead", "List, retry or drop dead letters."),
    "receipt": Entry("worker.commands.receipt", "Check outputs against their receipts."),
    "sample": Entry("worker.commands.sample", "Measure the rate of misses in an archive."),
    "review": Entry("worker.commands.review", "Decide on pictures that were held or flagged."),
}


class CommandTable(CommandGroup):
    """A group that knows its commands from the table, and imports the one that is used."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, remaining = super().resolve_command(ctx, args)
        if name is None:
            return None, None, remaining
        return name, get_command(import_module(COMMANDS[name].module).app), remaining


EXIT_CODES = "\n".join(f"{code.value:>4}  {code.meaning}" for code in ExitCode)
EPILOG = f"Example: veil anonymize holiday/ -o clean/\n\nExit codes:\n{EXIT_CODES}"

app = typer.Typer(
    cls=CommandTable,
    context_settings=HELP_FLAGS,
    epilog=EPILOG,
    no_args_is_help=True,
    # Typer's own tracebacks show local variables: pictures and credentials.
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"veil {metadata.version('veil')}")
        raise typer.Exit


@app.callback()
def veil(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Face anonymization workers for S3."""


def main() -> None:
    """Run ``veil``, and report an error on one line of standard error.

    The exit code is 2 for an error of Veil or of the command line. It is 1 if there was nothing to
    do or the address is in use, and for an error of the operating system, such as a full disk.
    """
    core_dumps.prevent()
    try:
        code = _run()
    except SystemExit as ended:
        code = ended.code
    try:
        print(end="", flush=True)
    except OSError as error:
        _print_system_error(error)
        code = code or ExitCode.FAILED
    sys.exit(code)


def _run() -> Any:
    """Run ``veil``, print its error, and return the exit code. Raise SystemExit as commands do."""
    try:
        return app(prog_name="veil", standalone_mode=False)
    except USAGE_ERROR as error:
        _print_usage_error(error)
        return ExitCode.UNUSABLE
    except VeilError as error:
        print_note(f"{type(error).__name__}: {error}{_server_of(error)}")
        return ExitCode.FAILED if isinstance(error, PASSING) else ExitCode.UNUSABLE
    except ModuleNotFoundError as error:
        extra = "training" if sys.argv[1:2] == ["train"] else "worker"
        print_note(not_installed(str(error.name), extra))
        return ExitCode.UNUSABLE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except OSError as error:
        _print_system_error(error)
        return ExitCode.FAILED


def _print_usage_error(error: Any) -> None:
    """Print an error of Typer on one line; its own form is a box of several lines.

    A group without a command is an error without a text, after its help was printed.
    """
    message = " ".join(error.format_message().split()).removesuffix(".")
    if message:
        command = error.ctx.command_path if error.ctx else "veil"
        print_note(f"{message} ({command} -h shows the usage)")


def _print_system_error(error: OSError) -> None:
    print_system_error(error)
    # Python would write what is left in the buffer when it ends, and fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _server_of(error: VeilError) -> str:
    """Return the Redis that was tried if `error` is about Redis and names none, else nothing."""
    if not isinstance(error, QueueUnavailable):
        return ""
    from tasks.redis.errors import tried
    from tasks.settings import Settings

    return tried(str(error), Settings.load().redis_server())
