"""``veil worker``: a Celery worker that serves both queues."""

import sys

from tasks.messages import QUEUES
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.queue import celery_app
from worker.settings import WorkerSettings

app = CommandApp()


@app.command()
def worker() -> int:
    """Anonymize pictures from the queues until stopped.

    The first SIGTERM finishes the pictures in hand, for VEIL_GRACE_SECONDS at most.

    Example: VEIL_ROUTES=s3://camera-uploads=s3://camera-clean veil worker
    """
    settings = WorkerSettings.load()
    # PipelineStep builds the pipeline before Celery receives a message: see tasks.app.
    celery_worker = celery_app().Worker(
        pool="threads",
        concurrency=settings.pictures_in_flight(),
        queues=",".join(QUEUES),
        loglevel="WARNING",
        quiet=True,
    )
    celery_worker.start()
    exit_code = celery_worker.exitcode
    if isinstance(exit_code, str):  # the reason why the pipeline could not be built
        print(exit_code, file=sys.stderr)
        return ExitCode.FAILED
    return exit_code or ExitCode.OK
