"""Celery's Redis transport and result backend with connections to the primary, and a prefix."""

from functools import cached_property, partial
from typing import Any

from celery.backends.redis import RedisBackend
from kombu.transport import redis
from kombu.utils import json

from .client import VeilRedis
from .primary import (
    REPLICAS,
    SENTINEL_OPTIONS,
    SENTINELS,
    SERVICE,
    PrimaryConnection,
    PrimarySSLConnection,
    primary_pool,
    read_only_pause,
    sentinels_of,
)


class Channel(redis.Channel):  # type: ignore[misc]
    """Kombu's channel, with connections to the primary and a prefix for every key."""

    connection_class = PrimaryConnection
    connection_class_ssl = PrimarySSLConnection
    sentinels: Any = None
    master_name: Any = None
    sentinel_kwargs: Any = None
    replicas = 0
    from_transport_options = (
        *redis.Channel.from_transport_options,
        *(SENTINELS, SERVICE, SENTINEL_OPTIONS, REPLICAS),
    )

    def _connparams(self, asynchronous: bool = False) -> Any:
        parameters = super()._connparams(asynchronous)
        return {**parameters, "sentinels": self._primary}

    @cached_property
    def _primary(self) -> Any:
        return sentinels_of(vars(self))

    def _get_client(self) -> Any:
        return partial(VeilRedis, global_keyprefix=self.global_keyprefix)

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        """Put `message` on `queue`; raise NotReplicated if too few replicas have it."""
        is_answer = queue in self._expires  # Only the queues of answers of workers expire.
        if not self.replicas or is_answer or options.get("_publish_batch"):
            super()._put(queue, message, **options)
            return
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            pipe.replicas = self.replicas
            pipe.lpush(key, json.dumps(message)).execute()

    @property
    def _script_binding_deadlines(self) -> str:
        """The key of kombu's deadlines: this client puts the prefix before all keys of a script."""
        return str(self.keyprefix_binding_deadlines)


class Transport(redis.Transport):  # type: ignore[misc]
    """The transport of producers. Workers have one with leases (tasks.delivery.transport)."""

    Channel = Channel

    def establish_connection(self) -> Any:
        # Celery connects again at once after an error. Without the pause that would be a loop.
        read_only_pause.wait()
        return super().establish_connection()


class PrimaryBackend(RedisBackend):  # type: ignore[misc]
    """Celery's Redis backend, with connections to the primary and a prefix for every key."""

    def _get_client(self) -> Any:
        prefix = self.app.conf.broker_transport_options.get("global_keyprefix", "")
        return partial(VeilRedis, global_keyprefix=prefix)

    def _get_pool(self, **parameters: Any) -> Any:
        return primary_pool(self._primary, parameters)

    @cached_property
    def _primary(self) -> Any:
        return sentinels_of(self.app.conf.broker_transport_options)
