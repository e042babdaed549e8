"""What a worker has in hand: messages on leases that are renewed while its process lives, and run
out after it.

Every step that moves a message is one script inside Redis, so that it is in a queue or in hand at
every moment, whatever dies. Each delivery has a tag of its own: whoever lost its lease holds a tag
that names nothing any more, and can neither end nor renew the delivery to somebody else.

What is in hand is kept as kombu keeps it, and under its names: the hash `unacked` holds ``[message,
exchange, routing key]`` by tag, the sorted set `unacked_index` the tags. Kombu's scores are the
time of delivery, these the lease's end.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from redis.exceptions import RedisError

from tasks import lua
from tasks.redis_errors import queue_unavailable

RESTORED_AT_ONCE = 100
REST_SECONDS = 5.0  # how long a worker takes nothing after Redis refused it something

log = structlog.get_logger("veil")

# A full Redis refuses a script at its first write, if that needs memory, and never later. Each
# script begins with a write that needs none.
TAKE = lua.load(__package__, "now", "take")
RENEW = lua.load(__package__, "now", "renew")
GIVE_BACK = lua.load(__package__, "restore", "give_back")
TAKE_BACK = lua.load(__package__, "restore", "now", "take_back")


class Leases:
    """The messages that this process has in hand, and a thread that looks after them.

    The thread renews their leases, removes what is done, and takes back what other processes left:
    with a connection of its own, so that none of it waits for Celery to find Redis again. All
    methods may be called from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._done: set[str] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._rests_until = 0.0
        self._paused = False
        self._renew_at = 0.0
        self._tended = clock()
        self._steady_since: float | None = None
        self._reached = True

    def open(self, redis: Any, records: str, index: str, seconds: float) -> None:
        """Look after leases of `seconds` in the hash `records` and its `index`; from the second
        call on nothing new.
        """
        with self._lock:
            if self._thread is not None:
                return
            self._redis, self._records, self._index, self._seconds = redis, records, index, seconds
            self._renew = redis.register_script(RENEW)
            self._give_back = redis.register_script(GIVE_BACK)
            self._take_back = redis.register_script(TAKE_BACK)
            self._pause = seconds / 15
            self._tended = self._clock()
            self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def hold(self, tag: str) -> None:
        """From now on renew the lease of `tag`, which has been taken."""
        with self._lock:
            self._held.add(tag)

    def done(self, tag: str) -> None:
        """Remove the message of `tag` for good, now or as soon as Redis can be reached."""
        with self._lock:
            self._held.discard(tag)
            self._done.add(tag)
        self._wake.set()

    def let_go(self, tags: Iterable[str]) -> None:
        """Stop renewing: the messages come back when their leases run out, which needs no Redis."""
        with self._lock:
            self._held.difference_update(tags)

    def give_back(self, tags: Iterable[str] | None = None) -> int:
        """Put the messages of `tags`, by default all that is held, back into their queues; their
        number.

        Where Redis can't be reached they come back when their leases run out.
        """
        with self._lock:
            returned = sorted(self._held if tags is None else set(tags))
            self._held.difference_update(returned)
        if returned:
            try:
                self._give_back(keys=[self._records, self._index], args=returned)
            except (RedisError, OSError) as error:
                self._report(error)
        return len(returned)

    def rest(self, seconds: float = REST_SECONDS) -> None:
        """Take nothing for a while: Redis has just refused this worker something."""
        self._rests_until = self._clock() + seconds

    def pause(self, paused: bool) -> None:
        """Take nothing from now on, or, with False, take messages again."""
        self._paused = paused

    @property
    def resting(self) -> bool:
        return self._paused or self._clock() < self._rests_until

    def close(self) -> None:
        """Remove what is done, give back the rest, and end the thread."""
        self._closed = True
        self._wake.set()
        if self._thread is None:
            return
        self._thread.join(timeout=self._seconds)
        try:
            self._remove_done()
        except (RedisError, OSError) as error:
            self._report(error)
        self.give_back()

    def _run(self) -> None:
        while not self._closed:
            try:
                self._tend()
                self._reached = True
            except Exception as error:  # whatever it is: without this thread all leases run out
                self._report(error)
                time.sleep(min(1.0, self._pause))
            self._wake.wait(self._pause)
            self._wake.clear()

    def _report(self, error: Exception) -> None:
        """One line at the beginning of an outage."""
        if self._reached:
            failure = queue_unavailable(error)
            log.error("queue unavailable", error=type(failure).__name__, message=str(failure))
        self._reached = False

    def _tend(self) -> None:
        self._remove_done()
        now = self._clock()
        if now >= self._renew_at:
            self._renew_held()
            self._renew_at = now + self._seconds / 6
        # Redis, or this process, may have been away for longer than a lease, and the others could
        # not renew theirs either: after a gap they are given time to do so first. In a shorter one
        # no lease runs out that is renewed. A process that has just started asks Redis how long it
        # has been there; killed workers must not wait for that.
        if self._steady_since is None:
            self._steady_since = now - self._uptime()
        if now - self._tended > self._seconds / 3:
            self._steady_since = now
        if now - self._steady_since >= self._seconds / 3:
            self._take_back_expired()
        else:
            self._redis.ping()
        self._tended = (
            now  # Redis was there in this turn, which a worker with nothing in hand asked just now
        )

    def _uptime(self) -> float:
        """Seconds since Redis was started."""
        return float(self._redis.info("server")["uptime_in_seconds"])

    def _remove_done(self) -> None:
        with self._lock:
            tags = sorted(self._done)
        if tags:
            with self._redis.pipeline() as pipe:
                pipe.hdel(self._records, *tags).zrem(self._index, *tags).execute()
            with self._lock:
                self._done.difference_update(tags)

    def _renew_held(self) -> None:
        with self._lock:
            tags = sorted(self._held)
        if not tags:
            return
        lost = {
            tag.decode() for tag in self._renew(keys=[self._index], args=[self._seconds, *tags])
        }
        with self._lock:
            lost &= self._held
            self._held -= lost
        if lost:
            log.warning("leases lost", pictures=len(lost))

    def _take_back_expired(self) -> None:
        count = self._take_back(keys=[self._records, self._index], args=[RESTORED_AT_ONCE])
        if count:
            log.warning("messages taken back", messages=count)
        if count == RESTORED_AT_ONCE:
            self._wake.set()
