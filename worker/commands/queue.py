"""The queue as commands use it: the Celery app, and the wait for room."""

from typing import TYPE_CHECKING, Any

from tasks import publishing
from tasks.redis.errors import connected
from worker.printing import print_note

if TYPE_CHECKING:
    from tasks.app import App

REDIS_SECONDS = 5.0  # within which Redis must answer, so that a command that shows a state ends
PING_SECONDS = 1.0  # within which a worker must answer
MAX_WAITING = 20_000  # messages on a queue; each takes about 1 kB of Redis memory


def celery_app() -> "App":
    """Return the Celery app. It connects to Redis on first use. Raise SettingsInvalid.

    The import reads the settings of the environment. It is made here and not by the modules of
    commands, so that ``veil COMMAND --help`` works with invalid settings.
    """
    from tasks.app import app

    return app


def answering_workers(celery: "App") -> list[str]:
    """Return the names of the workers that answer within PING_SECONDS, sorted.

    A name that several workers have is in the list for each. Raise QueueUnavailable if workers
    can't be asked.
    """
    with connected():
        replies = celery.control.ping(timeout=PING_SECONDS)
    return sorted(name for reply in replies for name in reply)


def wait_for_room(redis: Any, queue: str) -> None:
    """Wait until fewer than MAX_WAITING messages are on `queue`, with a note that it is full.

    Raise QueueUnavailable.
    """

    def report_full(waiting: int) -> None:
        print_note(f"{waiting:,} messages wait on {queue}: continuing once workers catch up")

    publishing.wait_for_room(redis, queue, MAX_WAITING, report_full)
