"""Messages onto the queue, all of a batch or none; and what Redis raises there, in one line that
says what to do.
"""

import base64
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu.transport import redis as kombu_redis
from kombu.utils import json

from tasks.addresses import ObjectUri
from tasks.messages import RUN_HEADER, TASK, AnonymizeOptions
from tasks.redis_errors import connected
from tasks.representation import shown

RECIPE = "veil:recipe"  # of the worker that started last
NAMESPACE = uuid.UUID(
    "7d7a3c1e-6a0c-4c55-9d0f-5b8d6f1f9a52"
)  # of the task ids; made once, at random


@dataclass(frozen=True)
class Wanted:
    """A picture to put on the queue. `destination` is None for the route's own; `etag` is the
    source version's.
    """

    source: ObjectUri
    destination: ObjectUri | None = None
    etag: str | None = None
    options: AnonymizeOptions | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of the task, as short as can be."""
        destination = None if self.destination is None else str(self.destination)
        if self.options is not None and (options := self.options.to_json()):
            return str(self.source), destination, options
        return (str(self.source),) if destination is None else (str(self.source), destination)

    @property
    def task_id(self) -> str:
        """Return an id that is the same for the same picture and version; a random one without an
        ETag.
        """
        if self.etag is None:
            return str(uuid.uuid4())
        name = "\n".join((self.etag, *map(str, self.arguments)))
        # An ETag comes from outside, and may hold what UTF-8 has no bytes for.
        return str(uuid.uuid5(NAMESPACE, name.encode("utf-8", "backslashreplace").decode()))


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """Keeps the message that Celery would send, and the list it would go to, and sends nothing."""

    written: tuple[str, dict[str, Any]]

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.written = (
            self._q_for_pri(queue, self._get_message_priority(message, reverse=False)),
            message,
        )


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """Redis, for writing down what would be sent."""

    Channel = Channel


class Publisher:
    """Puts pictures on the queue. Not for several threads.

    Celery writes the first message of a batch, and the others are like it but for what names their
    pictures: through `send_task` each would take five times as long.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._producer: Any = None

    def publish(
        self,
        pictures: Sequence[Wanted],
        queue: str,
        run: str | None = None,
        along: Callable[[Any], None] | None = None,
        *,
        first: Callable[[Any], None] | None = None,
        keep_results: bool = False,
    ) -> list[str]:
        """Put `pictures` on `queue`, all of them or none, and with them what `along` adds to the
        pipeline it gets.

        `first` may watch and read with the pipeline: if what it watches changes until the end,
        nothing is written. Results are not kept unless asked for: the receipts have them, and
        Flower shows them. Returns the task ids. Raises QueueUnavailable when it is not certain that
        Redis has them; to publish them again is safe.
        """
        wanted = [(picture.task_id, picture.arguments) for picture in pictures]
        try:
            with connected(), self._app.backend.client.pipeline() as pipe:
                if first:
                    first(pipe)
                    pipe.multi()
                for key, message in self._messages(wanted, queue, run, keep_results):
                    pipe.lpush(key, message)
                if along:
                    along(pipe)
                pipe.execute()
        except BaseException:
            self.close()
            raise
        return [task_id for task_id, _ in wanted]

    def close(self) -> None:
        """Give the connection back; the next `publish` makes a new one."""
        if self._producer is not None:
            self._producer.connection.release()
            self._producer = None

    def _messages(
        self,
        wanted: Sequence[tuple[str, tuple[Any, ...]]],
        queue: str,
        run: str | None,
        keep_results: bool,
    ) -> Iterator[tuple[str, str]]:
        """The list in Redis and the message, as text, of each task id with its arguments."""
        if not wanted:
            return
        producer = self._producer = self._producer or self._connect()
        self._app.send_task(
            TASK,
            wanted[0][1],
            task_id=wanted[0][0],
            queue=queue,
            producer=producer,
            ignore_result=not keep_results,
            retry=False,
            headers={RUN_HEADER: run} if run else None,
        )
        key, message = producer.channel.written
        headers, properties = message["headers"], message["properties"]
        _, named, embedded = json.loads(base64.b64decode(message["body"]))
        for task_id, arguments in wanted:
            headers["id"] = headers["root_id"] = properties["correlation_id"] = task_id
            headers["argsrepr"] = shown(arguments)
            properties["delivery_tag"] = str(uuid.uuid4())
            message["body"] = base64.b64encode(
                json.dumps([arguments, named, embedded]).encode()
            ).decode()
            yield key, json.dumps(message)

    def _connect(self) -> Any:
        # Kombu would try to connect for six seconds; whoever publishes knows better how long to
        # try.
        connection = self._app.connection(
            transport=f"{__name__}:{Transport.__name__}", transport_options={"max_retries": 0}
        )
        return self._app.amqp.Producer(connection)


def announce_recipe(redis: Any, recipe: str) -> None:
    """Tell producers with which recipe outputs are made from now on."""
    redis.set(RECIPE, recipe)


def announced_recipe(redis: Any) -> str | None:
    """The recipe of the worker that started last; None if none has."""
    with connected():
        found = redis.get(RECIPE)
    return found.decode() if found else None
