"""Celery's Redis transport with leases: a message is always either on a queue or leased.

kombu 5.7, the newest release, has these problems, which this transport avoids:

- It takes a message with BRPOP, and records it as unacknowledged in a second step. A process or
  a connection that dies between the two loses the message (celery/kombu#305, celery/celery#7950).
- It never renews the time after which an unacknowledged message is delivered again
  (celery/celery#5935). It checks that time every 100 s, under a lock that a killed worker keeps for
  five minutes (celery/kombu#1816).
- A dropped connection gives back the messages that the worker still works on. Later calls on
  the closed channel raise ``'NoneType' object has no attribute 'hostname'``, which can end the
  worker (celery/kombu#582).
- An item that is not a task message ends the worker, or stays unacknowledged and occupies a
  slot for ever. Such an item in a broadcast ends all workers.
"""

from queue import Empty
from time import monotonic
from typing import Any
from uuid import uuid4

import structlog
from celery.worker import state
from kombu.transport import redis, virtual
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import NoPermissionError, ResponseError
from redis.retry import Retry

from redis import ConnectionPool

from ..errors import log_fields
from ..redis import broadcasts
from ..redis import transport as redis_transport
from ..redis.errors import log_unavailable
from . import in_hand
from .envelopes import MAX_MESSAGE_BYTES, celery_message
from .leases import REFUSAL_PAUSE_SECONDS, RENEWALS_PER_LEASE, TAKE, Leases

MAX_SCHEDULED = 1000  # leased messages that wait for their `eta`
POLL_SECONDS = 0.04  # between two turns of the event loop, each of which polls empty queues

log = structlog.get_logger("veil")


class QoS(redis.QoS):  # type: ignore[misc]
    """A count of the messages that a channel has delivered. Leases decide what becomes of them."""

    def append(self, message: Any, delivery_tag: str) -> None:
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        self.channel.leases.finish(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Remove a message, or let it come back when its lease expires.

        To requeue it at once would be a loop without a pause.
        """
        if requeue:
            self.channel.leases.let_expire([delivery_tag])
            self.channel.leases.pause_after_refusal()
        else:
            self.channel.leases.finish(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Do nothing: the thread of the leases takes back the messages of dead processes."""

    def restore_unacked_once(self, *_: Any, **__: Any) -> None:
        """Let the leases of scheduled messages expire, as the channel is closed.

        Celery forgets scheduled messages when the channel closes. It still works on the others, so
        their leases are renewed.
        """
        self._on_collect.cancel()
        self.channel.leases.let_expire(in_hand.scheduled_tags().intersection(self._delivered))
        self._delivered.clear()


class Channel(redis_transport.Channel):
    """A channel that takes tasks with one script. Other queues are read with kombu's BRPOP."""

    QoS = QoS
    lease_seconds = 20.0
    from_transport_options = (
        *redis_transport.Channel.from_transport_options,
        "lease_seconds",
    )

    def __init__(self, connection: Any, **options: Any) -> None:
        self.leases: Leases = connection.leases
        self.consumes_tasks = False  # True if messages are acknowledged: only those of tasks are
        self._next_tag = ""  # the tag of the message that the pending script takes
        self._idle_until = 0.0
        self._binding_refused_until = 0.0
        super().__init__(connection, **options)

    def basic_consume(self, queue: str, no_ack: bool, *arguments: Any, **named: Any) -> Any:
        if not no_ack and not self.consumes_tasks:
            self.consumes_tasks = True
            self.leases.open(
                self._lease_client(), self.unacked_key, self.unacked_index_key, self.lease_seconds
            )
        return super().basic_consume(queue, no_ack, *arguments, **named)

    def _lease_client(self) -> Any:
        """Return a client that outlives this channel and never waits until a lease expires."""
        seconds = self.lease_seconds / RENEWALS_PER_LEASE
        parameters = {
            **self._connparams(),
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "retry": Retry(NoBackoff(), 0),
        }
        return self.Client(connection_pool=ConnectionPool(**parameters))

    def close(self) -> None:
        """Close the channel, even if the connection is lost, so that scheduled messages expire."""
        try:
            if self._in_poll:
                self._brpop_read()
        except (Empty, *self.connection_errors):
            pass
        super().close()

    def _delete(self, *arguments: Any, **named: Any) -> None:
        """Delete a queue. A channel that closes because Redis is away leaves its queue there.

        Otherwise Celery would log a traceback, and the channel would not be closed completely.
        """
        try:
            super()._delete(*arguments, **named)
        except self.connection_errors as error:
            if not self._closing:
                raise
            log.debug("queue not deleted", error=type(error).__name__)

    def _basic_cancel(self, consumer_tag: str) -> None:
        super()._basic_cancel(consumer_tag)
        if self.consumes_tasks and self._in_poll and not self.active_queues:
            self._brpop_read()  # gives a message that is on its way back at once

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self.consumes_tasks:
            super()._brpop_start(timeout)
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or monotonic() < self._idle_until or self.leases.is_paused:
            return
        if len(state.scheduled_requests) >= MAX_SCHEDULED:
            return
        self._send_take(queues)

    def _send_take(self, queues: list[str]) -> None:
        """Send the script TAKE for `queues`; `_brpop_read` reads the answer."""
        if not self.leases.begin_take():
            return
        self._next_tag = str(uuid4())
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        names, lists = [], []
        for queue in queues:
            for step in self.priority_steps:
                names.append(queue)
                lists.append(self._q_for_pri(queue, step))
        keys = [self.unacked_key, self.unacked_index_key, *lists]
        arguments = [self._next_tag, self.lease_seconds, *names, MAX_MESSAGE_BYTES]
        command = ["EVAL", TAKE, len(keys), *keys, *arguments]
        if self.global_keyprefix:  # The client adds it to the commands that it sends itself.
            command = self.client._prefix_args(command)
        self._in_poll.send_command(*command)

    def _brpop_read(self, **options: Any) -> Any:
        if not self.consumes_tasks:
            return super()._brpop_read(**options)
        try:
            return self._read_take(**options)
        finally:
            self.leases.end_take()

    def _read_take(self, **options: Any) -> bool:
        """Deliver the message that the script TAKE has answered with, if there is one."""
        try:
            taken = self.client.parse_response(self.client.connection, "EVAL", **options)
        except ResponseError as error:
            log_unavailable(error)
            self.leases.is_refused = True
            self.leases.pause_after_refusal()
            return True
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
        self.leases.is_refused = False
        if taken:
            queue, item, *rest = taken
            size = rest[0] if rest else len(item)  # The script returns the size of a cut message.
            self._receive_task(queue.decode(), item, size, self._next_tag)
        else:
            self._idle_until = monotonic() + POLL_SECONDS / 2
        return True

    def _receive_one(self, client: Any) -> Any:
        """Deliver a broadcast, which is a control command or an event; log and drop junk."""
        try:
            return super()._receive_one(client)
        except NoPermissionError as error:
            refusal = broadcasts.refused(error, self._patterns())
            log.error("broadcasts refused", **log_fields(refusal))
            return None
        except Exception as error:
            # kombu counts KeyError as a lost connection. Here it means that the broadcast lacks a
            # required part.
            if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                raise
            log.error("junk broadcast", reason=type(error).__name__)
            return None

    def _patterns(self) -> list[str]:
        """Return the patterns of channels of Redis to which this channel subscribes."""
        return sorted(
            f"{self.global_keyprefix}{topic}"
            for queue in self.active_fanout_queues
            for topic in self._get_subscribe_topics(queue)
        )

    def _receive_task(self, queue: str, item: bytes, size: int, tag: str) -> None:
        """Deliver the `item` taken as `tag`, or give it back if there is no slot for it."""
        if queue not in self.active_queues or not self.qos.can_consume():
            self.leases.give_back([tag])
            return
        self.leases.add(tag)
        self.connection._deliver(celery_message(item, size, queue, tag), queue)

    def _queue_bind(self, *arguments: Any) -> None:
        """Record a binding in Redis, unless Redis is full.

        A worker does not wait for a full Redis, because only workers free memory there.
        """
        try:
            super()._queue_bind(*arguments)
        except ResponseError as error:
            log_unavailable(error)

    def maybe_refresh_binding_expiry(self) -> None:
        """Renew bindings that expire. After a refusal, as by a full Redis, try again later."""
        if monotonic() < self._binding_refused_until:
            return
        try:
            super().maybe_refresh_binding_expiry()
        except ResponseError as error:
            self._binding_refused_until = monotonic() + REFUSAL_PAUSE_SECONDS
            log_unavailable(error)

    def _connparams(self, asynchronous: bool = False) -> Any:
        if getattr(self.connection, "client", None) is None:
            raise ConnectionLost("the connection of this channel is closed")
        return super()._connparams(asynchronous)


class Poller(redis.MultiChannelPoller):  # type: ignore[misc]
    """A poller that reads every task message at once, because its lease is running."""

    def _pause_brpop(self, channel: Any, fileno: int) -> None:
        if channel.consumes_tasks:
            channel._brpop_read()
        else:
            super()._pause_brpop(channel, fileno)

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Wait for an event, at most until the next poll. Used where there is no event loop."""
        seconds = POLL_SECONDS if timeout is None else min(timeout, POLL_SECONDS)
        return super().get(callback, seconds)


class Transport(redis_transport.Transport):
    """A transport with the channels above.

    A process has one set of leases, which outlives its connections.
    """

    Channel = Channel
    leases = Leases()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        # Celery cancels this timer with the connection.
        loop.call_repeatedly(POLL_SECONDS, _poll)


def _poll() -> None:
    """Do nothing: each turn of the event loop polls the queues."""
