"""Publish messages to the queues, in batches that Redis takes as a whole, and bound the queues."""

import base64
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kombu.utils import json

from .addresses import ObjectUri
from .messages import FACE, RUN_HEADER, TASK, AnonymizeOptions
from .records import queues
from .redis import transport as redis_transport
from .redis.errors import connected
from .redis.primary import REPLICAS
from .representation import shown
from .telemetry import tracing

if TYPE_CHECKING:
    from .app import App

RECIPES = "veil:recipes"  # the Redis key of the recipes of routes, a hash by their names
LABELS = "veil:labels"  # the key of the labels that it finds, a JSON list
# The namespace (RFC 9562, section 6.6) of task ids. It was drawn at random once.
NAMESPACE = uuid.UUID("7d7a3c1e-6a0c-4c55-9d0f-5b8d6f1f9a52")
FULL_QUEUE_SECONDS = 1.0  # from one check of a full queue to the next


@dataclass(frozen=True)
class Wanted:
    """A picture to publish a message for.

    `destination` is None for the one that the route gives. `etag` is that of the source's version.
    `id` is the task id, if the caller has chosen one.
    """

    source: ObjectUri
    destination: ObjectUri | None = None
    etag: str | None = None
    options: AnonymizeOptions | None = None
    id: str | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of the task, without trailing ones that are None.

        Empty options stay: they replace those of an existing output.
        """
        destination = None if self.destination is None else str(self.destination)
        if self.options is not None:
            return str(self.source), destination, self.options.to_json()
        return (str(self.source),) if destination is None else (str(self.source), destination)

    @property
    def task_id(self) -> str:
        """An id that is the same for the same picture and version; random without an ETag."""
        if self.id is not None:
            return self.id
        if self.etag is None:
            return str(uuid.uuid4())
        name = "\n".join((self.etag, *map(str, self.arguments)))
        # An ETag comes from outside, and may hold surrogates, which UTF-8 can't encode.
        return str(uuid.uuid5(NAMESPACE, name.encode("utf-8", "backslashreplace").decode()))


class Channel(redis_transport.Channel):
    """A channel that keeps the message that Celery would send, and sends nothing."""

    written: dict[str, Any]
    queue: str

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.written, self.queue = message, queue

    def list_of(self, priority: int) -> str:
        """Return the list in Redis of the messages of the queue with this priority."""
        return str(self._q_for_pri(self.queue, priority))


class Transport(redis_transport.Transport):
    """A Redis transport whose channels keep messages in place of sending them."""

    Channel = Channel


class Publisher:
    """Publishes messages. Not thread-safe.

    Celery writes the first message of a batch. The others are copies of it with the ids, arguments
    and priorities of their pictures, because `send_task` takes five times as long for a message.
    """

    def __init__(self, app: "App") -> None:
        self._app = app
        self._producer: Any = None

    def publish(
        self,
        pictures: Sequence[Wanted],
        queue: str,
        run: str | None = None,
        also_write: Callable[[Any], None] | None = None,
        *,
        watch: Callable[[Any], None] | None = None,
        keep_results: bool = False,
    ) -> list[str]:
        """Publish messages for `pictures` to `queue`, all or none, and return the task ids.

        `run` is the name of the backfill that they belong to. `also_write` gets the Redis pipeline
        and may add commands to the transaction. `watch` gets it before, and may watch and read
        keys: if a watched key changes before the end, nothing is written. `keep_results` stores the
        results of the tasks, which receipts have and Flower shows anyway.

        Raises QueueUnavailable when it is not certain that Redis has the messages; to publish them
        again is safe.
        """
        wanted = [(picture.task_id, picture) for picture in pictures]
        try:
            with (
                tracing.publishing(len(wanted)),
                connected(),
                self._app.backend.client.pipeline() as pipe,
            ):
                pipe.replicas = self._app.conf.broker_transport_options.get(REPLICAS, 0)
                if watch:
                    watch(pipe)
                    pipe.multi()
                for key, message in self._messages(wanted, queue, run, keep_results):
                    pipe.lpush(key, message)
                if also_write:
                    also_write(pipe)
                pipe.execute()
        except BaseException:
            self.close()
            raise
        return [task_id for task_id, _ in wanted]

    def close(self) -> None:
        """Release the connection. The next `publish` opens a new one."""
        if self._producer is not None:
            self._producer.connection.release()
            self._producer = None

    def _messages(
        self,
        wanted: Sequence[tuple[str, Wanted]],
        queue: str,
        run: str | None,
        keep_results: bool,
    ) -> Iterator[tuple[str, str]]:
        """Yield for each task id with its picture the list in Redis and the message as JSON."""
        if not wanted:
            return
        producer = self._producer = self._producer or self._connect()
        self._app.send_task(
            TASK,
            wanted[0][1].arguments,
            task_id=wanted[0][0],
            queue=queue,
            producer=producer,
            ignore_result=not keep_results,
            retry=False,
            headers={RUN_HEADER: run} if run else None,
        )
        message = producer.channel.written
        headers, properties = message["headers"], message["properties"]
        _, named, embedded = json.loads(base64.b64decode(message["body"]))
        for task_id, picture in wanted:
            arguments = picture.arguments
            headers["id"] = headers["root_id"] = properties["correlation_id"] = task_id
            headers["argsrepr"] = shown(arguments)
            properties["delivery_tag"] = str(uuid.uuid4())
            properties["priority"] = self._app.routes.priority_of(picture.source)
            message["body"] = base64.b64encode(
                json.dumps([arguments, named, embedded]).encode()
            ).decode()
            key = producer.channel.list_of(properties["priority"])
            yield key, json.dumps(message)

    def _connect(self) -> Any:
        # Kombu would retry for six seconds. The caller decides how long to retry.
        connection = self._app.connection(
            transport=f"{__name__}:{Transport.__name__}", transport_options={"max_retries": 0}
        )
        return self._app.amqp.Producer(connection)


class Backpressure:
    """A bound on the messages that wait on a queue.

    Publishing fills the queue up to `high_water` messages. Then it pauses until the workers have
    taken all but `low_water`, which is one less than `high_water` by default.
    """

    def __init__(
        self, redis: Any, queue: str, high_water: int, low_water: int | None = None
    ) -> None:
        self.waiting = 0  # messages at the last check
        self._redis = redis
        self._queue = queue
        self._high_water = high_water
        self._low_water = high_water - 1 if low_water is None else low_water
        self._is_filling = True

    def free(self) -> int:
        """Return how many messages may be published now; 0 if the queue is full.

        Raises QueueUnavailable.
        """
        with connected():
            self.waiting = queues.depth(self._redis, self._queue)
        if self.waiting <= self._low_water:
            self._is_filling = True
        if self.waiting >= self._high_water:
            self._is_filling = False
        return self._high_water - self.waiting if self._is_filling else 0

    def claim(self, at_most: int) -> int:
        """Return how many messages are going to be published: those that are free, or `at_most`.

        If these fill the queue it counts as full, even if workers take messages meanwhile.
        """
        free = self._high_water - self.waiting
        self._is_filling = free > at_most
        return min(free, at_most)


def wait_for_room(
    redis: Any,
    queue: str,
    max_waiting: int,
    on_full: Callable[[int], None],
    pause: Callable[[float], bool | None] = time.sleep,
) -> bool:
    """Wait until fewer than `max_waiting` messages are on `queue`, and return True.

    A full queue is reported once: `on_full` gets the number of messages. `pause` waits the seconds
    that it gets; if it returns True, the wait ends and False is returned. Raises QueueUnavailable.
    """
    backpressure = Backpressure(redis, queue, max_waiting)
    is_reported = False
    while not backpressure.free():
        if not is_reported:
            on_full(backpressure.waiting)
            is_reported = True
        if pause(FULL_QUEUE_SECONDS):
            return False
    return True


def announce_recipe(
    redis: Any,
    recipe: str,
    labels: Sequence[str] = (FACE,),
    of_routes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Record the recipe that new outputs are made with, for the commands that enqueue.

    `labels` are those of the objects that are hidden in them, for `veil status`. `of_routes` has
    the recipe of each route that has a name.
    """
    with redis.pipeline() as pipe:
        pipe.set(queues.RECIPE, recipe)
        pipe.set(LABELS, json.dumps(list(labels)))
        pipe.delete(RECIPES)
        if of_routes:
            pipe.hset(RECIPES, mapping=dict(of_routes))
        pipe.execute()


def announced_recipe(redis: Any, route: str | None = None) -> str | None:
    """Return the recipe of the worker that started last; None if no worker has started.

    It is that of the route with the name `route`, if the worker knows the route.
    """
    with connected():
        stored = redis.hget(RECIPES, route) if route is not None else None
        stored = stored or redis.get(queues.RECIPE)
    return stored.decode() if stored else None


def announced_recipes(redis: Any) -> dict[str, str]:
    """Return the recipes of the routes with names of the worker that started last."""
    with connected():
        stored = redis.hgetall(RECIPES)
    return {name.decode(): recipe.decode() for name, recipe in stored.items()}


def announced_labels(redis: Any) -> list[str]:
    """Return the labels that the worker that started last finds.

    They are empty if no worker has started, or none of this version.
    """
    with connected():
        stored = redis.get(LABELS)
    return [str(label) for label in json.loads(stored)] if stored else []
