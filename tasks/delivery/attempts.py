"""Attempts: the record in Redis of each delivery at work, and the claim on its output.

A delivery records its attempt before the work that may kill its process, and removes the record
however it ends. A dead letter, or an output, removes the records of earlier deliveries too. A
process that stops before its deliveries have ended removes their records as it gives their messages
back. An attempt without a lease therefore means that the process died. The next delivery of such a
picture works on it alone, so that another death has only one suspect. After MAX_DEATHS the picture
is given up.

An output belongs to the first delivery that claims it, for as long as that delivery has its lease.
The claim needs no time limit of its own. A delivery that lost its lease must not store anything.
"""

import hashlib
import json
import os
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self, TypedDict

import structlog
from redis.exceptions import RedisError

from ..addresses import ObjectUri
from ..errors import Busy, Poison, QueueUnavailable
from ..redis import lua
from ..redis.errors import queue_unavailable
from .work_lock import WorkLock

MAX_DEATHS = 3
# Keys are formatted with a digest of the output's address.
ATTEMPTS_KEY = "veil:attempts:{}"  # a hash of attempts by delivery tag, and the two fields below
FIRST_TIME_FIELD = "first"  # when the picture was first tried, in seconds since the epoch
LAST_ERROR_FIELD = "error"  # the reason of the last death, if known
CLAIM_KEY = "veil:turn:{}"  # the tag of the delivery that has claimed the output
LEASES_INDEX = "unacked_index"  # kombu's `Channel.unacked_index_key`: the tags that have a lease
ATTEMPTS_EXPIRE_SECONDS = 7 * 86_400
CLAIM_EXPIRES_SECONDS = 86_400  # only cleans up: a claim ends with the lease of its delivery
OUTPUT_WAIT_SECONDS = 5.0  # the longest wait for another delivery of the same picture
LOCK_WAIT_SECONDS = 120.0  # the longest wait for other pictures of this process
POLL_SECONDS = 0.05
STALL_SECONDS = 2.0  # the longest time to record in Redis why this process ends

Removal = Literal["all", "own", "none"]
"""The attempts that the end of a delivery removes (end_delivery.lua)."""

log = structlog.get_logger("veil")

# These scripts also run in a full Redis (see tasks.redis.lua): only work frees memory there.
CLAIM = lua.load(__package__, "claim")
RECORD_ATTEMPT = lua.load(__package__, "record_attempt")
END_DELIVERY = lua.load(__package__, "end_delivery")
HAS_CLAIM = lua.load(__package__, "has_claim")


class Attempt(TypedDict):
    """One attempt at a picture. `time` is in seconds since the epoch."""

    worker: str
    pid: int
    time: float


class Deliveries:
    """The deliveries at work in this process."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis
        self.work_lock = WorkLock()
        self.claim = redis.register_script(CLAIM)
        self.record_attempt = redis.register_script(RECORD_ATTEMPT)
        self.has_claim = redis.register_script(HAS_CLAIM)
        self._end_delivery = redis.register_script(END_DELIVERY)
        self._lock = threading.Lock()
        self._at_work: dict[str, str] = {}  # keys of attempts, by the tags of their deliveries
        self._is_closed = False
        # The keys and arguments of END_DELIVERY that Redis does not have yet.
        self._unsent_ends: list[tuple[list[str], list[str]]] = []

    def begin(self, attempts_key: str, tag: str) -> None:
        """Note that the delivery `tag` is about to record its attempt.

        Raises QueueUnavailable after `close`.
        """
        with self._lock:
            if self._is_closed:
                raise QueueUnavailable("this worker stops: another worker takes the message over")
            self._at_work[tag] = attempts_key

    def close(self) -> dict[str, str]:
        """Let no delivery begin any more; return the keys of the attempts at work, by tag."""
        with self._lock:
            self._is_closed = True
            return dict(self._at_work)

    def end(
        self, claim_key: str, attempts_key: str, tag: str, removal: Removal, last_error: str
    ) -> None:
        """End a delivery in Redis, now or, if Redis can't be reached, before the next claim."""
        with self._lock:
            self._at_work.pop(tag, None)
            arguments = [tag, removal, LAST_ERROR_FIELD, last_error]
            self._unsent_ends.append(([claim_key, attempts_key], arguments))
        try:
            self.send_ends()
        except (RedisError, OSError) as error:
            log.warning("end of a delivery not recorded yet", error=type(error).__name__)

    def send_ends(self) -> None:
        """Send Redis all ends that it does not have yet. Raises the errors of redis-py."""
        with self._lock:
            ends, self._unsent_ends = self._unsent_ends, []
        for number, (keys, arguments) in enumerate(ends):
            try:
                self._end_delivery(keys=keys, args=arguments)
            except BaseException:
                with self._lock:
                    self._unsent_ends = ends[number:] + self._unsent_ends
                raise

    def record_stall(self, activity: str) -> None:
        """Record for all pictures at work that this process ends because `activity` stalled.

        Takes at most STALL_SECONDS.
        """
        thread = threading.Thread(target=self._record_stall, args=(activity,), daemon=True)
        thread.start()
        thread.join(STALL_SECONDS)

    def _record_stall(self, activity: str) -> None:
        for attempts_key in tuple(self._at_work.values()):
            self.redis.hset(attempts_key, LAST_ERROR_FIELD, f"stalled: {activity}")


class Delivery:
    """One delivery of a picture: a context manager that claims its output while it is entered."""

    def __init__(self, deliveries: Deliveries, output: ObjectUri, tag: str, worker: str) -> None:
        digest = hashlib.sha256(str(output).encode()).hexdigest()[:32]
        self._deliveries = deliveries
        self._output = output
        self._claim_key = CLAIM_KEY.format(digest)
        self._attempts_key = ATTEMPTS_KEY.format(digest)
        self._tag = tag
        self._worker = worker
        self._work_lock = ExitStack()
        self.first_time: float | None = None
        """When the picture was first tried, in seconds since the epoch."""
        self.last_error: str | None = None
        """The reason of the last death, if known."""
        self.deaths: list[Attempt] = []
        """The attempts whose processes died, the oldest first."""

    @property
    def is_poison(self) -> bool:
        return len(self.deaths) >= MAX_DEATHS

    @property
    def last_worker(self) -> str | None:
        """The worker whose process was the last to die while it worked on the picture."""
        return str(self.deaths[-1]["worker"]) if self.deaths else None

    def __enter__(self) -> Self:
        """Claim the output, and record the attempt unless the picture is given up.

        Raises Busy if another delivery or other pictures take too long, and QueueUnavailable.
        """
        try:
            self._claim()
            if not self.is_poison:
                self._begin()
        except (RedisError, OSError) as error:
            raise queue_unavailable(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._work_lock.close()
        if kind is None:
            self._end("all")
        elif issubclass(kind, MemoryError):
            # This picture or another one may have caused it. The attempt stays and counts as a
            # death, so that the picture is worked on alone next time.
            self._end("none", last_error=kind.__name__)
        else:
            self._end("own")

    def forget_deaths(self) -> None:
        """Remove the attempts of earlier deliveries too, because the dead letter is recorded.

        Until then they stay: without them a picture that kills its workers would be worked on
        again.
        """
        self._end("all")

    def raise_if_poison(self) -> None:
        """Raise Poison if the picture is given up. Call this before any work on its content."""
        if not self.is_poison:
            return
        workers = ", ".join(dict.fromkeys(str(attempt["worker"]) for attempt in self.deaths))
        reason = self.last_error or (
            "no error was recorded, so it was killed, ran out of memory, or crashed in a library"
        )
        raise Poison(
            f"a worker process died {len(self.deaths)} times while it worked on this picture, "
            f"at last with no other picture ({workers}): {reason}"
        )

    def confirm(self) -> None:
        """Raise QueueUnavailable unless the delivery has its lease and the claim on the output."""
        try:
            has_claim = self._deliveries.has_claim(
                keys=[self._claim_key, LEASES_INDEX], args=[self._tag]
            )
        except (RedisError, OSError) as error:
            raise queue_unavailable(error) from None
        if not has_claim:
            raise _lease_lost()

    def _claim(self) -> None:
        deadline = time.monotonic() + OUTPUT_WAIT_SECONDS
        self._deliveries.send_ends()
        while not (answer := self._try_to_claim()):
            if time.monotonic() > deadline:
                raise Busy("another message for the same output is worked on")
            time.sleep(POLL_SECONDS)
        first_time, last_error, *deaths = answer
        self.first_time = float(first_time) if first_time else None
        self.last_error = last_error or None
        self.deaths = sorted(map(json.loads, deaths), key=lambda attempt: attempt["time"])

    def _try_to_claim(self) -> list[str]:
        """Claim the output, and return the first time, the last error and the deaths.

        The list is empty if another delivery has the claim. Raises QueueUnavailable if the lease is
        lost.
        """
        result, *answer = self._deliveries.claim(
            keys=[self._claim_key, self._attempts_key, LEASES_INDEX],
            args=[self._tag, CLAIM_EXPIRES_SECONDS, FIRST_TIME_FIELD, LAST_ERROR_FIELD],
        )
        if result < 0:
            raise _lease_lost()
        return [part.decode() for part in answer]

    def _begin(self) -> None:
        """Wait for the work lock, and record the attempt."""
        try:
            if self.deaths:
                self._log_takeover()
            lock = self._deliveries.work_lock
            acquire = lock.exclusive if self.deaths else lock.shared
            self._work_lock.enter_context(acquire(LOCK_WAIT_SECONDS))
            self._deliveries.begin(self._attempts_key, self._tag)
            self._record_attempt()
        except BaseException:
            self._work_lock.close()
            self._end("own")
            raise

    def _log_takeover(self) -> None:
        last = self.deaths[-1]
        error = {"error": self.last_error} if self.last_error else {}
        log.warning(
            "taken over, to work on alone",
            output=str(self._output),
            pid=os.getpid(),
            deaths=len(self.deaths),
            last_worker=last["worker"],
            last_pid=last["pid"],
            **error,
        )

    def _record_attempt(self) -> None:
        now = time.time()
        self.first_time = self.first_time or now
        attempt = Attempt(worker=self._worker, pid=os.getpid(), time=now)
        recorded = self._deliveries.record_attempt(
            keys=[self._attempts_key, LEASES_INDEX],
            args=[
                self._tag,
                json.dumps(attempt),
                self.first_time,
                ATTEMPTS_EXPIRE_SECONDS,
                FIRST_TIME_FIELD,
            ],
        )
        if not recorded:
            raise _lease_lost()

    def _end(self, removal: Removal, last_error: str = "") -> None:
        self._deliveries.end(self._claim_key, self._attempts_key, self._tag, removal, last_error)


def _lease_lost() -> QueueUnavailable:
    return QueueUnavailable("the lease of this message was lost: another worker takes it over")
