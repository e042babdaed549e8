"""Leases on deliveries: renewed while their process lives, and expired after its death.

Every step that moves a message is one script inside Redis. A message is therefore always either on
a queue or leased, whatever dies. Each delivery has its own tag. A worker that lost a lease has a
tag that no longer exists, so it can neither end nor renew the delivery to another worker.

Leased messages are stored as kombu stores unacknowledged ones, under the same names: the hash
`unacked` contains ``[message, exchange, routing key]`` by tag, and the sorted set `unacked_index`
the tags. The exchange is the priority of the list that the message was taken from, and empty for
the first list of a queue. The scores of kombu are times of delivery; these are the times at which
leases expire.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from redis.exceptions import RedisError

from ..redis import lua
from ..redis.clients import try_writing
from ..redis.errors import log_unavailable, outage

RENEWALS_PER_LEASE = 6
TURNS_PER_LEASE = 15  # of the thread
MAX_TAKEN_BACK_AT_ONCE = 100  # messages
LONGEST_TAKE_SECONDS = 2.0  # the longest wait for a message on its way, when a worker stops
REFUSAL_PAUSE_SECONDS = 5.0  # how long a worker takes no messages after Redis refused a command

log = structlog.get_logger("veil")

# These scripts also run in a full Redis (see tasks.redis.lua).
TAKE = lua.load(__package__, "now", "take")
RENEW = lua.load(__package__, "now", "renew")
GIVE_BACK = lua.load(__package__, "restore", "give_back")
TAKE_BACK = lua.load(__package__, "restore", "now", "take_back")


class Leases:
    """The leases of this process, and the thread that maintains them.

    The thread renews the leases, removes finished messages, and takes back the messages of
    processes that died. It has its own connection, so it need not wait until Celery has connected
    to Redis again. All methods may be called from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._leased: set[str] = set()
        self._finished: set[str] = set()  # tags that Redis must still remove
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._takes_no_more = False
        self._no_take_runs = threading.Event()
        self._no_take_runs.set()
        self._paused = False
        self._paused_until = 0.0
        self.is_refused = False  # True from a refusal of TAKE until Redis answers it again
        self._renew_at = 0.0
        self._last_turn = clock()
        self._steady_since: float | None = None  # since when Redis and this process run unbroken
        self._is_reachable = True

    def open(self, redis: Any, records: str, index: str, seconds: float) -> None:
        """Start to maintain leases of `seconds` in the hash `records` and the sorted set `index`.

        Later calls do nothing.
        """
        with self._lock:
            if self._thread is not None:
                return
            self._redis, self._records, self._index, self._seconds = redis, records, index, seconds
            self._renew = redis.register_script(RENEW)
            self._give_back = redis.register_script(GIVE_BACK)
            self._take_back = redis.register_script(TAKE_BACK)
            self._turn_seconds = seconds / TURNS_PER_LEASE
            self._last_turn = self._clock()
            self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def begin_take(self) -> bool:
        """Note that Redis is asked for a message; return False if this process takes no more."""
        with self._lock:
            if self._takes_no_more:
                return False
            self._no_take_runs.clear()
            return True

    def end_take(self) -> None:
        """Note that the answer of Redis has arrived, and that a message in it has been added."""
        self._no_take_runs.set()

    def stop_taking(self) -> None:
        """Let no further message be taken, and wait for the one that may be on its way.

        A message that is given back before could be taken again by this process.
        """
        with self._lock:
            self._takes_no_more = True
        self._no_take_runs.wait(LONGEST_TAKE_SECONDS)

    def add(self, tag: str) -> None:
        """Renew the lease of `tag`, which this process has taken, from now on."""
        with self._lock:
            self._leased.add(tag)

    def finish(self, tag: str) -> None:
        """Remove the message of `tag` for good, now or as soon as Redis can be reached.

        A second call does nothing, nor does one for a lease that is lost.
        """
        with self._lock:
            if tag not in self._leased:
                return
            self._leased.remove(tag)
            self._finished.add(tag)
        self._wake.set()

    def let_expire(self, tags: Iterable[str]) -> None:
        """Stop renewing `tags`: their messages come back when the leases expire.

        This needs no connection to Redis.
        """
        with self._lock:
            self._leased.difference_update(tags)

    def give_back(
        self, tags: Iterable[str] | None = None, attempts: Mapping[str, str] | None = None
    ) -> int:
        """Put the messages of `tags`, by default all, back on their queues; return their number.

        Finished messages are removed before. `attempts` are the keys of the attempts to remove in
        the same step, by tag. If Redis can't be reached, the messages come back when their leases
        expire.
        """
        attempts = attempts or {}
        with self._lock:
            returned = sorted(self._leased if tags is None else set(tags))
            self._leased.difference_update(returned)
        try:
            self._remove_finished()
            if returned:
                self._give_back(
                    keys=[self._records, self._index, *attempts.values()],
                    args=[*attempts, *returned],
                )
        except (RedisError, OSError) as error:
            self._log_once(error)
        return len(returned)

    def pause_after_refusal(self) -> None:
        """Take no messages for REFUSAL_PAUSE_SECONDS, because Redis has refused a command."""
        self._paused_until = self._clock() + REFUSAL_PAUSE_SECONDS

    def set_paused(self, paused: bool) -> None:
        """Take no messages while `paused`."""
        self._paused = paused

    @property
    def is_paused(self) -> bool:
        return self._paused or self._clock() < self._paused_until

    def close(self) -> None:
        """Remove finished messages, give back all others, and end the thread."""
        self._closed = True
        self._wake.set()
        if self._thread is None:
            return
        self._thread.join(timeout=self._seconds)
        self.give_back()

    def _run(self) -> None:
        while not self._closed:
            try:
                self._take_turn()
                if outage.lasts:
                    try_writing(self._redis)
                    outage.end()
                self._is_reachable = True
            except Exception as error:  # Any error: without this thread all leases would expire.
                self._log_once(error)
                time.sleep(min(1.0, self._turn_seconds))
            self._wake.wait(self._turn_seconds)
            self._wake.clear()

    def _log_once(self, error: Exception) -> None:
        """Log the first error of an outage."""
        if self._is_reachable:
            log_unavailable(error)
        self._is_reachable = False

    def _take_turn(self) -> None:
        self._remove_finished()
        now = self._clock()
        if now >= self._renew_at:
            self._renew_leased()
            self._renew_at = now + self._seconds / RENEWALS_PER_LEASE
        if self._others_could_renew(now):
            self._take_back_expired()
        else:
            self._redis.ping()
        # Redis answered in this turn, even if this worker has no leases: one of the two branches
        # above sent it a command.
        self._last_turn = now

    def _others_could_renew(self, now: float) -> bool:
        """Return whether every living worker has had the time to renew its leases.

        If Redis, or this process, was away for longer than a lease, the other workers could not
        renew theirs either, so they get a third of a lease to do so first. During a shorter gap no
        renewed lease expires. A process that has just started asks Redis how long it has been up,
        because the messages of killed workers must not wait for the new process.
        """
        margin = self._seconds / 3
        if self._steady_since is None:
            self._steady_since = now - self._uptime()
        if now - self._last_turn > margin:
            self._steady_since = now
        return now - self._steady_since >= margin

    def _uptime(self) -> float:
        """Return the seconds since Redis started."""
        return float(self._redis.info("server")["uptime_in_seconds"])

    def _remove_finished(self) -> None:
        with self._lock:
            tags = sorted(self._finished)
        if tags:
            with self._redis.pipeline() as pipe:
                pipe.hdel(self._records, *tags).zrem(self._index, *tags).execute()
            with self._lock:
                self._finished.difference_update(tags)

    def _renew_leased(self) -> None:
        with self._lock:
            tags = sorted(self._leased)
        if not tags:
            return
        answer = self._renew(keys=[self._index], args=[self._seconds, *tags])
        lost = {tag.decode() for tag in answer}
        with self._lock:
            lost &= self._leased
            self._leased -= lost
        if lost:
            log.warning("leases lost", pictures=len(lost))

    def _take_back_expired(self) -> None:
        count = self._take_back(keys=[self._records, self._index], args=[MAX_TAKEN_BACK_AT_ONCE])
        if count:
            log.warning("messages taken back", messages=count)
        if count == MAX_TAKEN_BACK_AT_ONCE:
            self._wake.set()
