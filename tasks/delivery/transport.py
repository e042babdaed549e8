"""Celery's Redis transport, in which a message is in a queue or in hand at every moment, and ends
by name.

What kombu 5.7, the newest release, does otherwise:

  - It takes a message with BRPOP and records it as unacknowledged in a second step; what dies or is
  cut off between
  the two loses it (celery/kombu#305, celery/celery#7950).
  - The time after which an unacknowledged message is delivered again is not renewed
  (celery/celery#5935), is looked at
  every 100 s, and under a lock that a killed worker holds for five minutes (celery/kombu#1816).
  - A connection that drops gives back what the worker still works on; and what is done after that
  on the channel, which
  is closed, raises ``'NoneType' object has no attribute 'hostname'``, which can end the worker
  (celery/kombu#582).
  - An item that is no task message ends the worker, or is left unacknowledged and takes up a place
  for good; one that is
  broadcast ends all workers.
"""

from queue import Empty
from time import monotonic
from typing import Any
from uuid import uuid4

import structlog
from celery.worker import state
from kombu.transport import redis, virtual
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import ResponseError
from redis.retry import Retry

from tasks.delivery.envelopes import MOST_BYTES, for_celery
from tasks.delivery.leases import TAKE, Leases
from tasks.redis_errors import queue_unavailable

MOST_WAITING = 1000  # messages in hand whose time has not come
IDLE_SECONDS = (
    0.04  # between two turns of the event loop, at which empty queues are looked into again
)

log = structlog.get_logger("veil")


def _report(error: ResponseError) -> None:
    failure = queue_unavailable(error)
    log.error("queue unavailable", error=type(failure).__name__, message=str(failure))


class QoS(redis.QoS):  # type: ignore[misc]
    """Counts what a channel has delivered. What is in hand, and how that ends, is the business of
    the leases.
    """

    def append(self, message: Any, delivery_tag: str) -> None:
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        self.channel.leases.done(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Remove a message, or let it come back: with its lease, for at once would be a loop
        without a pause.
        """
        if requeue:
            self.channel.leases.let_go([delivery_tag])
            self.channel.leases.rest()
        else:
            self.channel.leases.done(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """The leases' thread takes back what others left."""

    def restore_unacked_once(self, *_: Any, **__: Any) -> None:
        """A channel is closed: what this process works on stays in hand, what waits for its time is
        let go.

        For of the latter Celery forgets that it has it.
        """
        self._on_collect.cancel()
        waiting = {request.message.delivery_tag for request in tuple(state.scheduled_requests)}
        self.channel.leases.let_go(waiting.intersection(self._delivered))
        self._delivered.clear()


class Channel(redis.Channel):  # type: ignore[misc]
    """Reads the queues: those of tasks with one script, all others, as kombu does, with BRPOP."""

    QoS = QoS
    lease_seconds = 20.0
    from_transport_options = (*redis.Channel.from_transport_options, "lease_seconds")

    def __init__(self, connection: Any, **options: Any) -> None:
        self.leases: Leases = connection.leases
        self.takes = False  # consumes queues whose messages are acknowledged: those of tasks
        self._tag = ""  # of what is being taken
        self._idle_until = 0.0
        super().__init__(connection, **options)

    def basic_consume(self, queue: str, no_ack: bool, *arguments: Any, **named: Any) -> Any:
        if not no_ack and not self.takes:
            self.takes = True
            self.leases.open(
                self._lease_client(), self.unacked_key, self.unacked_index_key, self.lease_seconds
            )
        return super().basic_consume(queue, no_ack, *arguments, **named)

    def _lease_client(self) -> Any:
        """A client that outlives this channel, and never waits so long that a lease runs out."""
        bounds = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), self.lease_seconds / 6)
        pool = ConnectionPool(**{**self._connparams(), **bounds, "retry": Retry(NoBackoff(), 0)})
        return Redis(connection_pool=pool)

    def close(self) -> None:
        """Close, whatever has become of the connection: what waits here for its time must be let
        go.
        """
        try:
            if self._in_poll:
                self._brpop_read()
        except (Empty, *self.connection_errors):
            pass
        super().close()

    def _basic_cancel(self, consumer_tag: str) -> None:
        super()._basic_cancel(consumer_tag)
        if self.takes and self._in_poll and not self.active_queues:
            self._brpop_read()  # what is on its way goes back at once

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self.takes:
            super()._brpop_start(timeout)
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or monotonic() < self._idle_until or self.leases.resting:
            return
        if len(state.scheduled_requests) >= MOST_WAITING:
            return
        self._tag = str(uuid4())
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        names = [queue for queue in queues for _ in self.priority_steps]
        lists = [self._q_for_pri(queue, step) for queue in queues for step in self.priority_steps]
        keys = [self.unacked_key, self.unacked_index_key, *lists]
        self._in_poll.send_command(
            "EVAL", TAKE, len(keys), *keys, self._tag, self.lease_seconds, *names, MOST_BYTES
        )

    def _brpop_read(self, **options: Any) -> Any:
        if not self.takes:
            return super()._brpop_read(**options)
        try:
            taken = self.client.parse_response(self.client.connection, "EVAL", **options)
        except ResponseError as error:
            _report(error)
            self.leases.rest()
            return True
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
        if taken:
            queue, item, *size = taken
            self._receive_task(queue.decode(), item, size[0] if size else len(item), self._tag)
        else:
            self._idle_until = monotonic() + IDLE_SECONDS / 2
        return True

    def _receive_one(self, client: Any) -> Any:
        """Deliver what was broadcast, a control command or an event; junk there would end the
        worker too.
        """
        try:
            return super()._receive_one(client)
        except Exception as error:
            # To kombu a KeyError is a lost connection; here it is a message without a part that it
            # should have.
            if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                raise
            log.error("junk broadcast", reason=type(error).__name__)
            return None

    def _receive_task(self, queue: str, item: bytes, size: int, tag: str) -> None:
        """Deliver what has been taken under `tag`, if there is still a place for it."""
        if queue not in self.active_queues or not self.qos.can_consume():
            self.leases.give_back([tag])
            return
        self.leases.hold(tag)
        self.connection._deliver(for_celery(item, size, queue, tag), queue)

    def _queue_bind(self, *arguments: Any) -> None:
        """Note a binding in Redis, if it takes it. A full one is not waited for: it is workers that
        make room.
        """
        try:
            super()._queue_bind(*arguments)
        except ResponseError as error:
            _report(error)

    def _connparams(self, asynchronous: bool = False) -> Any:
        if getattr(self.connection, "client", None) is None:
            raise ConnectionLost("the connection of this channel is closed")
        return super()._connparams(asynchronous)


class Poller(redis.MultiChannelPoller):  # type: ignore[misc]
    """Asks all channels, and lets no answer lie that holds a task message, for its lease is
    running.
    """

    def _pause_brpop(self, channel: Any, fileno: int) -> None:
        if channel.takes:
            channel._brpop_read()
        else:
            super()._pause_brpop(channel, fileno)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Without an event loop: come back in time for the next look into the queues."""
        return super().get(
            callback, IDLE_SECONDS if timeout is None else min(timeout, IDLE_SECONDS)
        )


class Transport(redis.Transport):  # type: ignore[misc]
    """Reads with the channels above. A process has one set of leases, whatever becomes of its
    connections.
    """

    Channel = Channel
    leases = Leases()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        # Celery cancels it with the connection.
        loop.call_repeatedly(IDLE_SECONDS, _look_again)


def _look_again() -> None:
    """A turn of the event loop is all that it takes."""
