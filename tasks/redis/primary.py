"""Connections that lead to the primary: through sentinels, and not to a demoted server."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as ConnectionLost
from redis.retry import Retry

from redis import Connection, ConnectionPool, Redis, SSLConnection

from .. import tls_errors
from .address import Host

# From the answer of a read-only server at a fixed address to the next connection.
READ_ONLY_PAUSE_SECONDS = 1.0
SENTINEL_SECONDS = 1.0  # for a sentinel to accept a connection, and to answer
SILENT_SECONDS = 30.0  # in which a sentinel that did not answer is asked only if it is needed
# The answer to a blocked command of a server that is demoted.
UNBLOCKED = "UNBLOCKED"
UNKNOWN_COMMAND = "unknown command"  # in the answer of a server that does not have the command
# The options of the transport that say how to reach the primary.
SENTINELS, SERVICE, SENTINEL_OPTIONS = "sentinels", "master_name", "sentinel_kwargs"
REFUSALS = AuthenticationError, ResponseError
IS_SENTINEL = (
    "this is a sentinel, and no Redis: use sentinel://HOST:PORT/0 in VEIL_REDIS_URL, or "
    "sentinels:// with TLS, and VEIL_REDIS_SERVICE"
)
SERVER = "server_that_sentinels_name"  # the attribute of an error with the address of its server
REPLICAS = "replicas"  # the option of the transport with the number that must confirm a message


class SentinelsRefuse(ConnectionLost):
    """The sentinels answer, but refuse the password, do not know the service, or are not asked."""


@dataclass(frozen=True)
class State:
    """The primary as a sentinel knows it: its address, the configuration, and whether it is down.

    It is down if enough sentinels say so.
    """

    address: Host
    epoch: int
    is_down: bool


class Sentinels:
    """The sentinels of one service. Thread-safe.

    After a failover, a sentinel that was cut off still names the old primary, and for a moment all
    do but the one that led the failover. If the old primary has started again by then, what it
    takes is lost when it is demoted. The number of the configuration (its epoch) tells: each
    failover increments it. So all sentinels are asked that answered the last time, and at least as
    many as agree by a majority; the newest configuration comes first. Its server must then say
    itself that it is the primary (PrimaryConnection).
    """

    def __init__(self, hosts: tuple[Host, ...], service: str, options: Mapping[str, Any]) -> None:
        self.service = service
        limits = {
            "socket_timeout": SENTINEL_SECONDS,
            "socket_connect_timeout": SENTINEL_SECONDS,
            "retry": Retry(NoBackoff(), 0),
        }
        self._hosts = list(hosts)
        self._silent_until: dict[Host, float] = {}
        self._options = {**limits, **options}

    def candidates(self) -> list[Host]:
        """Return the addresses that the sentinels name, those of newer configurations first.

        Raises SentinelsRefuse or ConnectionLost if they name none.
        """
        epochs: dict[Host, int] = {}
        votes = Counter[Host]()
        errors: list[Exception] = []
        answers = 0
        has_majority = False
        for host in tuple(self._hosts):
            if has_majority and self._silent_until.get(host, 0) > time.monotonic():
                break  # So are those after it.
            try:
                state = self._ask(host)
            except (RedisError, OSError) as error:
                errors.append(error)
                self._ask_last(host)
                continue
            answers += 1
            if not state.is_down:
                address = state.address
                epochs[address] = max(epochs.get(address, 0), state.epoch)
                votes[address] += 1
                has_majority |= votes[address] > len(self._hosts) // 2
        if epochs:
            return sorted(epochs, key=lambda each: (epochs[each], votes[each]), reverse=True)
        if answers:
            raise ConnectionLost(
                f"the primary of the service {self.service} is down: the sentinels choose another"
            )
        raise self._failure(errors)

    def _ask(self, host: Host) -> State:
        """Return what the sentinel at `host` says about the primary. Raises errors of redis-py."""
        with Redis(*host, **self._options) as client:
            try:
                answer: Any = client.sentinel_master(self.service)
                address = str(answer["ip"]), int(answer["port"])
                return State(address, int(answer["config-epoch"]), bool(answer["is_odown"]))
            except (InvalidResponse, AttributeError, LookupError, TypeError, ValueError):
                raise ConnectionLost(f"{host[0]}:{host[1]} does not answer as a sentinel") from None

    def _ask_last(self, host: Host) -> None:
        """Ask a sentinel that does not answer after the others, and for a while only if needed."""
        self._silent_until[host] = time.monotonic() + SILENT_SECONDS
        self._hosts = [*(each for each in self._hosts if each != host), host]

    def _failure(self, errors: list[Exception]) -> Exception:
        if any(isinstance(error, AuthenticationError | NoPermissionError) for error in errors):
            return SentinelsRefuse(
                "the sentinels refuse the password: check VEIL_REDIS_SENTINEL_PASSWORD and "
                "VEIL_REDIS_SENTINEL_USER"
            )
        if any(isinstance(error, ResponseError) for error in errors):
            return SentinelsRefuse(
                f"the sentinels do not know the service {self.service:.100}: "
                "check VEIL_REDIS_SERVICE"
            )
        return ConnectionLost(f"no sentinel answers: {errors[-1]!s:.200}")


class ReadOnlyPause:
    """The pause after the answer of a read-only server at a fixed address. Thread-safe.

    The address may lead to the same server for a while, which accepts connections.
    """

    def __init__(self) -> None:
        self._ends = 0.0

    def begin(self) -> None:
        self._ends = time.monotonic() + READ_ONLY_PAUSE_SECONDS

    def wait(self) -> None:
        """Wait until the pause ends, if there is one."""
        time.sleep(max(0.0, self._ends - time.monotonic()))


# Connections come and go, so the pause is that of the process, which has one Redis.
read_only_pause = ReadOnlyPause()


class PrimaryConnection(Connection):
    """A connection to the primary, found through `sentinels` if there are any.

    A server that has become a replica accepts no writes. The connection is then closed, so that the
    next one leads to the new primary, by a sentinel or by a name that a provider has moved.
    """

    plain_class: type[Connection] = Connection  # of a connection to any server

    def __init__(self, *, sentinels: Sentinels | None = None, **options: Any) -> None:
        self._sentinels = sentinels
        self._options = options
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def connect(self) -> None:
        if self._sentinels is None or self._sock:
            super().connect()  # type: ignore[no-untyped-call]
            return
        failures: list[Exception] = []
        for host, port in self._sentinels.candidates():
            self.host, self.port = host, port
            try:
                super().connect()  # type: ignore[no-untyped-call]
                return
            except (RedisError, OSError) as error:
                self.disconnect()  # type: ignore[no-untyped-call]
                setattr(error, SERVER, f"{host}:{port}")
                failures.append(error)
        # A refusal says which setting to check, so it comes before an outage of another server.
        refusals = [each for each in failures if isinstance(each, REFUSALS)]
        raise (refusals or failures)[0]

    def on_connect_check_health(self, check_health: bool = True) -> None:
        try:
            super().on_connect_check_health(check_health)
        except AuthenticationError:  # A sentinel has other users.
            self._refuse_sentinel(username=None, password=None, credential_provider=None)
            raise
        if self._sentinels is not None:
            self._check_role(check_health)

    def _refuse_sentinel(self, **access: None) -> None:
        """Raise SentinelsRefuse if the server, which has refused something, is a sentinel.

        Of a Redis, the answer is empty. The question has a connection of its own, because answers
        to a pipeline may wait on this one. `access` are the options to ask without.
        """
        if self._sentinels is not None:
            return
        pool = ConnectionPool(self.plain_class, **{**self._options, "db": 0, **access})
        try:
            with Redis.from_pool(pool) as client:
                is_sentinel = "sentinel_masters" in client.info("sentinel")
        except (RedisError, OSError):
            return
        if is_sentinel:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise SentinelsRefuse(f"{self.host}:{self.port}: {IS_SENTINEL}")

    def _check_role(self, check_health: bool) -> None:
        """Raise ConnectionLost if the server is a replica.

        Servers that do not allow INFO are not judged. The documented users of Redis have INFO but
        not ROLE.
        """
        self.send_command("INFO", "replication", check_health=check_health)  # type: ignore[no-untyped-call]
        try:
            answer = super().read_response()
        except ResponseError:
            return
        if b"role:master" not in answer.split():
            raise ConnectionLost(
                f"{self.host}:{self.port} is a replica, although a sentinel names it the primary"
            )

    def read_response(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().read_response(*arguments, **named)
        except ResponseError as error:
            if isinstance(error, ReadOnlyError) or str(error).startswith(UNBLOCKED):
                self.disconnect()  # type: ignore[no-untyped-call]
                if self._sentinels is None:
                    read_only_pause.begin()
                raise ConnectionLost("this server is read only, and no primary") from None
            if UNKNOWN_COMMAND in str(error):  # A sentinel has few commands of Redis.
                self._refuse_sentinel()
            raise


class LastingTlsError(RedisError, OSError):
    """TLS fails in a way that a retry at once meets again. Redis-py retries after other errors."""


class PrimarySSLConnection(PrimaryConnection, SSLConnection):
    """Such a connection with TLS."""

    plain_class = SSLConnection

    def connect_check_health(self, *arguments: Any, **named: Any) -> None:
        try:
            super().connect_check_health(*arguments, **named)
        except RedisError as error:
            if tls_errors.is_lasting(error):
                raise LastingTlsError(str(error)) from error
            raise

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        """Return `sock` with TLS. The handshake is a part of connecting, and has its timeout."""
        sock.settimeout(self.socket_connect_timeout)
        wrapped = super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
        wrapped.settimeout(self.socket_timeout)
        return wrapped


def sentinels_of(options: Mapping[str, Any]) -> Sentinels | None:
    """Return the sentinels in the transport's `options`; None if the server's address is fixed."""
    if hosts := options.get(SENTINELS):
        addresses = tuple((host, port) for host, port in hosts)
        return Sentinels(addresses, options[SERVICE], options[SENTINEL_OPTIONS])
    return None


def primary_pool(sentinels: Sentinels | None, parameters: Mapping[str, Any]) -> Any:
    """Return a pool of connections to the primary; `parameters` are those of Celery's backend."""
    has_tls = issubclass(parameters.get("connection_class", Connection), SSLConnection)
    connection = PrimarySSLConnection if has_tls else PrimaryConnection
    return ConnectionPool(**{**parameters, "connection_class": connection, "sentinels": sentinels})
