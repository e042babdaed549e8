"""The queue as commands use it: the Celery app, and the wait for room."""

from typing import TYPE_CHECKING, Any

from tasks import publishing
from worker.printing import print_note

if TYPE_CHECKING:
    from tasks.app import App

REDIS_SECONDS = 5.0  # within which Redis must answer, so that a command that shows a state ends
MAX_WAITING = 20_000  # messages on a queue; each takes about 1 kB of Redis memory


def celery_app() -> "App":
    """Return the Celery app. It connects to Redis on first use. Raise SettingsInvalid.

    The import reads the settings of the environment. It is made here and not by the modules of
    commands, so that ``veil COMMAND --help`` works with invalid settings.
    """
    from tasks.app import app

    return app


def wait_for_room(redis: Any, queue: str) -> None:
    """Wait until fewer than MAX_WAITING messages are on `queue`, with a note that it is full.

    Raise QueueUnavailable.
    """

    def report_full(waiting: int) -> None:
        print_note(f"{waiting:,} messages wait on {queue}: continuing once workers catch up")

    publishing.wait_for_room(redis, queue, MAX_WAITING, report_full)
