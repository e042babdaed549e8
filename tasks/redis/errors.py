"""Translation of errors of Redis and of its client libraries into QueueUnavailable."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from kombu.exceptions import KombuError
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    WatchError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .. import tls_errors
from ..causes import causes
from ..errors import QueueUnavailable, log_fields
from .client import NotReplicated
from .primary import SERVER, SentinelsRefuse

WRONG_DATABASE = "DB index"  # in Redis's answer to a database number that it does not have
NO_REPLICAS = "NOREPLICAS"  # the first word of the answer of a server with too few of them
# In the answer of a Redis Cluster to the number of a database.
NO_DATABASES = "SELECT is not allowed in cluster mode"
IS_CLUSTER = (
    "Redis runs in cluster mode, which Veil's queue can't use, because its scripts need all keys "
    "in one place: give VEIL_REDIS_URL a Redis without cluster mode"
)
ASK_FOR_RIGHT = (
    "give the user in VEIL_REDIS_URL the rights in docs/permissions.md (ACL SETUSER), or set "
    "VEIL_REDIS_PREFIX to the beginning of the keys and channels that it may use"
)
COMMAND_REFUSED = "permissions to run"  # in the answer to a command that the user may not use
AT = "Redis at "  # begins a message that names the server
# A server with TLS closes the connection of a client without it.
CLOSED = ("closed by server", "reset by peer", "Broken pipe")

REPEAT_SECONDS = 5.0  # after which the log has a line about Redis again, if it is the same

log = structlog.get_logger("veil")


class Outage:
    """The outage of Redis that the log tells of. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: tuple[str, float] | None = None  # the last message, and when it was logged

    def log(self, error: QueueUnavailable) -> None:
        """Log the line ``queue unavailable``, unless the log has had the same just before."""
        now = time.monotonic()
        with self._lock:
            message, told_at = self._told or ("", 0.0)
            if str(error) == message and now - told_at < REPEAT_SECONDS:
                return
            self._told = (str(error), now)
        log.error("queue unavailable", **log_fields(error))

    @property
    def lasts(self) -> bool:
        return self._told is not None

    def end(self) -> None:
        """Log the line ``queue back``."""
        with self._lock:
            self._told = None
        log.warning("queue back")


outage = Outage()  # that of this process


def queue_unavailable(error: BaseException) -> QueueUnavailable:
    """Return the QueueUnavailable for an error of redis-py, or of kombu, which may wrap one."""
    chain = list(causes(error))
    if refusal := _refusal(chain):
        return QueueUnavailable(refusal)
    if any(isinstance(cause, WatchError) for cause in chain):
        return QueueUnavailable(
            "the connection to Redis was lost, or another process changed the values that were read"
        )
    root = chain[-1]
    if isinstance(root, NotReplicated):
        return QueueUnavailable(f"{root!s}")
    if any(isinstance(cause, OutOfMemoryError) for cause in chain):
        return QueueUnavailable(
            "Redis is full (maxmemory): give it more memory, or, if messages wait, let the workers "
            "catch up"
        )
    if isinstance(root, ResponseError) and NO_REPLICAS in str(root):
        return QueueUnavailable(
            "Redis takes no messages, because too few replicas are connected "
            "(min-replicas-to-write): it continues when they are back"
        )
    if isinstance(root, NoPermissionError):
        return QueueUnavailable(f"Redis refuses a command: {root!s:.200}: {ASK_FOR_RIGHT}")
    if isinstance(root, ResponseError):
        return QueueUnavailable(f"Redis refuses a command: {root!s:.200}")
    # The text of these two errors says what failed, and names at most the host and the port.
    if isinstance(root, RedisConnectionError | RedisTimeoutError):
        reason = f"{root!s:.200}".rstrip(".")
    else:
        reason = type(root).__name__
    return QueueUnavailable(f"Redis can't be used ({reason}): {_advice(root)}")


def refusal(error: BaseException) -> str | None:
    """Return why Redis refuses every client with these settings, or None for another error."""
    return _refusal(list(causes(error)))


def lacks_right(error: BaseException) -> bool:
    """Return whether Redis refuses a command, a key or a channel to its user."""
    return any(isinstance(cause, NoPermissionError) for cause in causes(error))


def right_refusal(error: BaseException, key: str) -> str | None:
    """Return why Redis refuses the `key`, or a command, to its user; None for another error."""
    if not lacks_right(error):
        return None
    if COMMAND_REFUSED in str(error):
        return str(queue_unavailable(error))
    return f"Redis refuses the key {key!r:.200} to this user: {ASK_FOR_RIGHT}"


def tried(message: str, servers: str) -> str:
    """Return the end of a `message` about Redis: the `servers` tried, if it names none itself."""
    is_named = message.startswith(AT) or servers in message
    return "" if is_named else f" (tried {AT}{servers})"


def log_unavailable(error: BaseException) -> None:
    """Log the line ``queue unavailable`` for an error of redis-py or kombu."""
    outage.log(queue_unavailable(error))


@contextmanager
def connected() -> Iterator[None]:
    """Raise QueueUnavailable for any error of Redis or of the transport."""
    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        raise queue_unavailable(error) from None


def _refusal(chain: Sequence[BaseException]) -> str | None:
    for cause in chain:
        if isinstance(cause, SentinelsRefuse):
            return str(cause)
    named = (getattr(cause, SERVER, None) for cause in chain)
    server = next((f"{AT}{name}" for name in named if name), "Redis")
    if any(isinstance(cause, AuthenticationError) for cause in chain):
        return (
            f"{server} refuses the password: check VEIL_REDIS_PASSWORD, and the user in "
            "VEIL_REDIS_URL"
        )
    root = chain[-1]
    if isinstance(root, ResponseError) and WRONG_DATABASE in str(root):
        return f"{server} does not have this database: check the number in VEIL_REDIS_URL"
    if isinstance(root, ResponseError) and _is_of_cluster(root):
        return IS_CLUSTER
    return None


def _is_of_cluster(error: ResponseError) -> bool:
    if isinstance(error, MasterDownError):  # A replica without its primary answers this, too.
        return False
    kinds = AskError | ClusterCrossSlotError | ClusterDownError
    return isinstance(error, kinds) or NO_DATABASES in str(error)


def _advice(root: BaseException) -> str:
    """Return what to do about a connection that failed with `root`."""
    if tls_errors.distrusts(root):
        return "check the host and ssl_ca_certs in VEIL_REDIS_URL"
    if tls_errors.speaks_no_tls(root):
        return "this port does not speak TLS: use redis:// in VEIL_REDIS_URL, or another port"
    if tls_errors.wants_certificate(root):
        return (
            "the server may ask for a client certificate that it trusts: check ssl_certfile and "
            "ssl_keyfile in VEIL_REDIS_URL"
        )
    if any(text in str(root) for text in CLOSED):
        return (
            "check VEIL_REDIS_URL: a port with TLS needs rediss:// there, and ssl_certfile and "
            "ssl_keyfile if it asks for client certificates"
        )
    return "check VEIL_REDIS_URL"
