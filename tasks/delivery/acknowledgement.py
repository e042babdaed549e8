"""Reports in Redis: one that can't be stored never costs a picture."""

from typing import Any

import structlog
from billiard.einfo import ExceptionWithTraceback
from celery import states
from celery.backends.redis import RedisBackend
from celery.worker import request
from redis.exceptions import OutOfMemoryError, RedisError

from tasks.errors import QueueUnavailable
from tasks.redis_errors import queue_unavailable

log = structlog.get_logger("veil")


class Backend(RedisBackend):  # type: ignore[misc]
    """Celery's Redis backend, as a worker uses it.

    Celery acknowledges a message when its state can't be stored, even if that was the first state
    and no work has been done. Here that ends with QueueUnavailable, and the message comes back. If
    Redis is full, though, work goes on without its reports, for it is the work that makes room.
    """

    def store_result(
        self, task_id: str, result: Any, state: str, *arguments: Any, **named: Any
    ) -> Any:
        try:
            return super().store_result(task_id, result, state, *arguments, **named)
        except (RedisError, OSError) as error:
            failure = queue_unavailable(error)
            if not isinstance(result, QueueUnavailable):
                log.error("report not stored", task_id=task_id, state=state, error=type(failure).__name__,
                          message=str(failure))  # fmt: skip
            # Of a retry the new message is in the queue already, and outside a task nobody could
            # take the error. Celery then wants to store the error as well.
            if (
                isinstance(error, OutOfMemoryError)
                or state == states.RETRY
                or self.app.current_task is None
                or isinstance(result, QueueUnavailable)
            ):
                return result
            raise failure from None


class Request(request.Request):  # type: ignore[misc]
    """A message in a worker's hands."""

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, QueueUnavailable | MemoryError):
            # Celery would raise the latter again, in a thread where nobody hears of it, and the
            # message would stay in hand for good. One of a picture's own comes from the task as a
            # Reject: see tasks.anonymize.
            self._end()
            return self.reject(requeue=True)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _end(self) -> None:
        request.task_ready(self)
