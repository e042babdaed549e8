"""The end of a message: its result is stored, and then it leaves Redis at once."""

from typing import Any

import structlog
from billiard.einfo import ExceptionWithTraceback
from celery import states
from celery.worker import request
from redis.exceptions import OutOfMemoryError, RedisError

from ..errors import QueueUnavailable, log_fields
from ..redis.errors import queue_unavailable
from ..redis.transport import PrimaryBackend
from .transport import Transport

log = structlog.get_logger("veil")


class Backend(PrimaryBackend):
    """Celery's Redis backend for workers.

    Celery acknowledges a message when its state can't be stored, even if that state is the first
    one and no work has been done. This backend raises QueueUnavailable instead, and the message
    comes back. If Redis is full, however, work continues without stored results, because only work
    frees memory there.
    """

    def store_result(
        self, task_id: str, result: Any, state: str, *arguments: Any, **named: Any
    ) -> Any:
        if isinstance(result, QueueUnavailable):
            return result  # The message comes back, so this is not how its task ends.
        try:
            return super().store_result(task_id, result, state, *arguments, **named)
        except (RedisError, OSError) as error:
            failure = queue_unavailable(error)
            log.error("report not stored", task_id=task_id, state=state, **log_fields(failure))
            if self._is_ignored(error, state):
                return result
            raise failure from None

    def _is_ignored(self, error: Exception, state: str) -> bool:
        """Return whether the task may go on although `result` was not stored."""
        if isinstance(error, OutOfMemoryError):
            return True
        if state == states.RETRY:  # The new message is on the queue already.
            return True
        return self.app.current_task is None  # Outside of a task nothing catches the error.


class Request(request.Request):  # type: ignore[misc]
    """A message that a worker has leased."""

    def acknowledge(self) -> None:
        """Remove the message from Redis at once, also while the worker stops.

        Celery passes each acknowledgement to its event loop, which has ended then.
        """
        Transport.leases.finish(self.message.delivery_tag)
        super().acknowledge()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """Requeue the message after QueueUnavailable or MemoryError; else do as Celery does.

        Celery raises a MemoryError again, in a thread where nothing handles it, and would keep the
        message for ever. A MemoryError of the pipeline does not arrive here: the task turns it into
        a Reject (see tasks.anonymize).
        """
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, QueueUnavailable | MemoryError):
            self._end()
            return self.reject(requeue=True)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _end(self) -> None:
        request.task_ready(self)
