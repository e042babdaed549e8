"""``veil worker``: a Celery worker that serves both queues, or several of them."""

import os
import socket
import sys
from typing import Annotated

import typer

from tasks.messages import QUEUES
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.queue import celery_app
from worker.settings import WorkerSettings

app = CommandApp()


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
        str | None, typer.Option("--name", metavar="NAME", help="Name of the worker in Flower.")
    ] = None,
) -> int:
    """Anonymize pictures from the queues until stopped.

    The first SIGTERM finishes the pictures in hand, for VEIL_GRACE_SECONDS at most.

    Example: VEIL_ROUTES=s3://camera-uploads=s3://camera-clean veil worker
    """
    settings = WorkerSettings.load()
    if name is not None and workers is not None:
        raise typer.BadParameter("several workers have names of their own", param_hint="--name")
    if name is None:
        from worker.process import supervisor

        devices = supervisor.gpus(os.environ)
        count = workers or max(1, len(devices))
        if count > 1:
            command = [sys.executable, sys.argv[0], "worker"]
            environments = supervisor.environments(settings, count, devices)
            return supervisor.Supervisor(command, environments).run()
    # PipelineStep builds the pipeline before Celery receives a message: see tasks.app.
    celery_worker = celery_app().Worker(
        pool="threads",
        concurrency=settings.pictures_in_flight(),
        hostname=None if name is None else f"{name}@{socket.gethostname()}",
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
