"""The health check of a worker's container: ``python -m tasks.health``.

The loop that takes messages answers, through Redis. The check fails if the loop hangs, or if Redis
is unavailable. It asks the workers of this host, whatever their names are. One must answer: a
supervisor restarts its workers itself.
"""

import socket
import sys
from typing import Any

from .app import app
from .errors import QueueUnavailable
from .redis.broadcasts import check_subscription
from .redis.errors import connected

ANSWER_SECONDS = 10.0


def has_worker(app: Any, host: str, seconds: float) -> bool:
    """Return whether a worker on `host` answers within `seconds`. Raises QueueUnavailable."""
    with connected(), app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)  # Otherwise Celery would try for ever.
        answers = app.control.ping(
            timeout=seconds, connection=connection, pattern=f"*@{host}", matcher="glob", limit=1
        )
    return bool(answers)


def main() -> None:
    host = socket.gethostname()
    try:
        if has_worker(app, host, ANSWER_SECONDS):
            return
        check_subscription(app)
        reason = f"no worker of {host} has answered within {ANSWER_SECONDS:g} s"
    except QueueUnavailable as error:
        reason = f"QueueUnavailable: {error}"
    sys.exit(f"veil: {reason}")


if __name__ == "__main__":
    main()
