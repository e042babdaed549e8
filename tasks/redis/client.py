"""The client of Redis: a prefix for keys, and transactions that wait for replicas.

The prefix stands before every key and channel, so that installations share a Redis.

Kombu's own clients know the commands of kombu alone. These know all that Veil sends: the first
argument of a command is a key, unless the command is in one of the tables below. The keys inside
Lua scripts are arguments of these, or derived from one (restore.lua).
"""

from collections.abc import Sequence
from typing import Any

from kombu.transport.redis import GlobalKeyPrefixMixin, PrefixedRedisPubSub
from redis.exceptions import ConnectionError as ConnectionLost

from redis import Redis
from redis.client import Pipeline

WITHOUT_KEYS = {
    *("ACL", "AUTH", "CLIENT", "COMMAND", "CONFIG", "DBSIZE", "DISCARD", "ECHO", "EXEC"),
    *("FLUSHDB", "HELLO", "INFO", "MULTI", "PING", "ROLE", "SCRIPT", "SELECT", "TIME"),
    *("UNWATCH", "WAIT"),
}
ALL_KEYS = {"DEL", "EXISTS", "MGET", "TOUCH", "UNLINK", "WATCH"}
KEYS_AND_TIMEOUT = {"BLPOP", "BRPOP"}
SCRIPTS = {"EVAL", "EVALSHA"}  # the arguments are the script, the number of keys, then the keys


REPLICA_SECONDS = 2.0  # for replicas to confirm a transaction


class NotReplicated(ConnectionLost):
    """Too few replicas have confirmed a transaction, which a failover may therefore undo."""


class Prefixing(GlobalKeyPrefixMixin):  # type: ignore[misc]
    """Adds the prefix to the keys of commands, and removes it from keys in answers."""

    def _prefix_args(self, args: Sequence[Any]) -> list[Any]:
        name, *rest = args
        if not self.global_keyprefix:
            return [name, *rest]
        command = str(name).split()[0].upper()
        if command == "SCAN":
            return [name, *self._scan_arguments(rest)]
        first, end = _key_positions(command, rest)
        keys = [self._prefixed(key) for key in rest[first:end]]
        return [name, *rest[:first], *keys, *rest[end:]]

    def _prefixed(self, key: Any) -> Any:
        return _prefixed(self.global_keyprefix, key)

    def _scan_arguments(self, arguments: list[Any]) -> list[Any]:
        """Return the arguments of SCAN for the keys with the prefix alone."""
        for position, argument in enumerate(arguments):
            if argument in ("MATCH", b"MATCH"):
                pattern = self._prefixed(arguments[position + 1])
                return [*arguments[: position + 1], pattern, *arguments[position + 2 :]]
        return [arguments[0], "MATCH", self._prefixed("*"), *arguments[1:]]

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        answer = super().execute_command(*arguments, **options)
        if self.global_keyprefix and arguments[0] == "SCAN" and isinstance(answer, tuple):
            cursor, keys = answer
            return cursor, [key[len(self.global_keyprefix) :] for key in keys]
        return answer

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return VeilPipeline(
            self.connection_pool,
            self.response_callbacks,
            transaction,
            shard_hint,
            global_keyprefix=self.global_keyprefix,
        )


class VeilRedis(Prefixing, Redis):
    """A client of Redis, with a prefix that may be empty."""

    def __init__(self, *arguments: Any, global_keyprefix: str = "", **options: Any) -> None:
        self.global_keyprefix = global_keyprefix
        super().__init__(*arguments, **options)

    def pubsub(self, **options: Any) -> Any:
        return PrefixedPubSub(
            self.connection_pool, global_keyprefix=self.global_keyprefix, **options
        )


class PrefixedPubSub(PrefixedRedisPubSub):  # type: ignore[misc]
    """The subscriptions of such a client. Kombu's class knows no channels that are bytes."""

    def _prefix_args(self, args: Sequence[Any]) -> list[Any]:
        name, *channels = args
        if name not in self.PUBSUB_COMMANDS:
            return [name, *channels]
        return [name, *(_prefixed(self.global_keyprefix, channel) for channel in channels)]


class VeilPipeline(Prefixing, Pipeline):
    """A pipeline of such a client.

    If `replicas` is set, a transaction succeeds only when this number of replicas has confirmed it.
    """

    replicas = 0

    def __init__(self, *arguments: Any, global_keyprefix: str = "", **options: Any) -> None:
        self.global_keyprefix = global_keyprefix
        super().__init__(*arguments, **options)

    def _execute_transaction(self, connection: Any, *arguments: Any) -> Any:
        answers = super()._execute_transaction(connection, *arguments)
        if self.replicas:
            # The command waits for the writes of its own connection alone.
            connection.send_command("WAIT", self.replicas, int(REPLICA_SECONDS * 1000))
            confirmed = connection.read_response()
            if confirmed < self.replicas:
                raise NotReplicated(
                    f"{confirmed} of {self.replicas} replicas have confirmed the messages within "
                    f"{REPLICA_SECONDS:g} s, so a failover may lose them: they are on the queue "
                    "of the primary, and to enqueue them again is safe"
                )
        return answers


def _prefixed(prefix: str, key: Any) -> Any:
    if isinstance(key, bytes):
        return prefix.encode() + key
    return f"{prefix}{key}"


def _key_positions(command: str, arguments: Sequence[Any]) -> tuple[int, int]:
    """Return where the keys of `command` begin and end in `arguments`."""
    if command in WITHOUT_KEYS:
        return 0, 0
    if command in ALL_KEYS:
        return 0, len(arguments)
    if command in KEYS_AND_TIMEOUT:
        return 0, len(arguments) - 1
    if command in SCRIPTS:
        return 2, 2 + int(arguments[1])
    return 0, 1
