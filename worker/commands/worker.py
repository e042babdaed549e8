"""``veil worker``: a Celery worker that serves both queues, or several of them."""

import os
import re
import sys
from typing import Annotated

import typer

from tasks.early_stop import stop_at_once_on_signals
from tasks.messages import QUEUES
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.queue import celery_app
from worker.settings import WorkerSettings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

app = CommandApp()


def _checked_name(name: str | None) -> str | None:
    """Return `name`. Raise BadParameter for characters that Celery would read as parts of it."""
    if name is not None and not NAME.fullmatch(name):
        raise typer.BadParameter(
            f"{name!r:.80} must have letters, digits, dots, hyphens and underscores only (at most "
            "64), such as gpu-1: Celery adds @ and the host"
        )
    return name


@app.command()
def worker(
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            max=64,
            metavar="N",
            help="Number of workers, which are restarted when they end. By default one for each "
            "GPU, or a single one.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            callback=_checked_name,
            help="Name of the worker in Flower and in the log; of several, NAME-1 and so on. By "
            "default a new one at each start. Letters, digits, dots, hyphens and underscores.",
        ),
    ] = None,
) -> int:
    """Anonymize pictures from the queues until stopped.

    The first SIGTERM or Ctrl-C finishes the pictures in hand, for VEIL_GRACE_SECONDS at most. A
    second one does not wait for them. The exit code is 0, or 1 if unfinished pictures went back to
    the queue.

    Example: VEIL_ROUTES=s3://camera-uploads=s3://camera-clean veil worker
    """
    stop_at_once_on_signals()  # The imports below take a second.
    from worker import logs
    from worker.process import supervisor

    settings = WorkerSettings.load_for_outputs()
    devices = supervisor.gpus(os.environ)
    count = workers or max(1, len(devices))
    names = supervisor.names(name, count)
    if count > 1:
        logs.configure(settings.log_format, settings.redis_server())
        command = [sys.executable, sys.argv[0], "worker"]
        environments = supervisor.environments(settings, count, devices)
        return supervisor.Supervisor(command, names, environments).run()
    node_name = supervisor.node_name(*names)
    logs.configure(settings.log_format, settings.redis_server(), node_name)
    # PipelineStep builds the pipeline before Celery receives a message: see tasks.app.
    celery_worker = celery_app().Worker(
        pool="threads",
        concurrency=settings.pictures_in_flight(),
        hostname=node_name,
        queues=",".join(QUEUES),
        loglevel="WARNING",
        quiet=True,
    )
    celery_worker.start()
    exit_code = celery_worker.exitcode
    if isinstance(exit_code, str):  # the reason why the pipeline can't be built now
        print(exit_code, file=sys.stderr)
        return ExitCode.FAILED
    return exit_code or ExitCode.OK
