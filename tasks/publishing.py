"""Messages onto the queue, all of a batch or none; and what Redis raises there, in one line that says what to do."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from kombu.transport import redis as kombu_redis
from redis.exceptions import RedisError

from tasks.addresses import ObjectUri
from tasks.app import RUN_HEADER, TASK
from tasks.redis_errors import queue_unavailable

RECIPE = "veil:recipe"  # of the worker that started last
NAMESPACE = uuid.UUID("7d7a3c1e-6a0c-4c55-9d0f-5b8d6f1f9a52")  # of the task ids; made once, at random


@contextmanager
def connected() -> Iterator[None]:
    """Turns what Redis and the transport raise into QueueUnavailable."""
    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        raise queue_unavailable(error) from None


@dataclass(frozen=True)
class Wanted:
    """A picture to put on the queue. `destination` is None for the route's own; `etag` is the source version's."""

    source: ObjectUri
    destination: ObjectUri | None = None
    etag: str | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        return (str(self.source),) if self.destination is None else (str(self.source), str(self.destination))

    @property
    def task_id(self) -> str:
        """The same for the same picture and version, so that whoever asks twice is seen to; random without one."""
        if self.etag is None:
            return str(uuid.uuid4())
        return str(uuid.uuid5(NAMESPACE, "\n".join((self.etag, *self.arguments))))


class Batch(kombu_redis.PublishBatch):  # type: ignore[misc]
    """A batch that Redis takes in one transaction: kombu's own can be cut anywhere when the producer dies."""

    def __init__(self, channel: Any, max_size: int) -> None:
        super().__init__(channel, max_size)
        self.pipeline.transaction = True


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """Keeps the batch that is open, for what is to be written along with it."""

    batch: Batch

    def create_publish_batch(self, max_size: int) -> Batch:
        self.batch = Batch(self, max_size)
        return self.batch


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """Redis, with batches that are taken whole."""

    Channel = Channel


class Publisher:
    """Puts pictures on the queue over one connection. Not for several threads."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._producer: Any = None

    def publish(
        self, pictures: Sequence[Wanted], queue: str, run: str | None = None, along: Callable[[Any], None] | None = None
    ) -> None:
        """Put `pictures` on `queue`, all of them or none, and with them what `along` adds to the pipeline it gets.

        Raises QueueUnavailable when it is not certain that Redis has them; to publish them again is safe.
        """
        try:
            with connected():
                if not pictures:
                    with self._app.backend.client.pipeline() as pipe:
                        if along:
                            along(pipe)
                        pipe.execute()
                    return
                producer = self._producer = self._producer or self._connect()
                with producer.batch(len(pictures) + 1):
                    for picture in pictures:
                        self._send(producer, picture, queue, run)
                    if along:
                        along(producer.channel.batch.pipeline)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back; the next `publish` makes a new one."""
        if self._producer is not None:
            self._producer.connection.release()
            self._producer = None

    def _connect(self) -> Any:
        connection = self._app.connection(transport=f"{__name__}:{Transport.__name__}")
        return self._app.amqp.Producer(connection)

    def _send(self, producer: Any, picture: Wanted, queue: str, run: str | None) -> None:
        self._app.send_task(
            TASK,
            picture.arguments,
            task_id=picture.task_id,
            queue=queue,
            producer=producer,
            ignore_result=True,  # nobody waits for it; the receipt has it, and Flower shows it
            retry=False,
            headers={RUN_HEADER: run} if run else None,
        )


def announce_recipe(redis: Any, recipe: str) -> None:
    """Tell producers with which recipe outputs are made from now on."""
    redis.set(RECIPE, recipe)


def announced_recipe(redis: Any) -> str | None:
    """The recipe of the worker that started last; None if none has."""
    with connected():
        found = redis.get(RECIPE)
    return found.decode() if found else None
