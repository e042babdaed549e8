"""Deliveries at work: each is noted in Redis before the work that may kill its process, and has its
output to itself.

A delivery that ends, however it ends, takes its note away; one whose process died leaves it behind.
So a note whose delivery is no longer in hand anywhere is a death, and a picture that was near one
is worked on alone: the next death has one suspect. After the third it is given up.

An output belongs to the delivery that asked for it first, for as long as that one is in hand: there
is no time limit to renew, for the lease is one. A delivery whose lease was lost may not store any
more.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import structlog
from redis.exceptions import RedisError

from tasks import lua
from tasks.addresses import ObjectUri
from tasks.errors import Busy, Poison, QueueUnavailable, Transient
from tasks.redis_errors import queue_unavailable

MOST_DEATHS = 3
ATTEMPTS = (
    "veil:attempts:{}"  # of an output: a hash of notes by delivery tag, with `first` and `error`
)
ERROR = "error"  # what is known of the last death
TURN = "veil:turn:{}"  # of an output: the tag of the delivery that it belongs to
INDEX = "unacked_index"  # kombu's name for the tags of all that is in hand
NOTES_SECONDS = 7 * 86_400
TURN_SECONDS = 86_400  # only clears away what is left: a turn ends with its delivery
OUTPUT_WAIT_SECONDS = 5.0  # for another delivery of the same picture
ROOM_WAIT_SECONDS = 120.0  # for pictures that are in hand, or worked on alone
POLL_SECONDS = 0.05
STALL_SECONDS = 2.0  # that Redis may take to note why this process ends

log = structlog.get_logger("veil")

# A full Redis refuses a script at its first write, if that needs memory, and never later. Each
# script begins with a write that needs none, because work is what makes room.
ENTER = lua.load(__package__, "enter")
BEGIN = lua.load(__package__, "begin")
END = lua.load(__package__, "end")
HOLDS = lua.load(__package__, "holds")


class Room:
    """Where pictures are worked on: many together, or one alone. Whoever wants to be alone goes
    before the others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._want_alone = 0

    @contextmanager
    def together(self, seconds: float) -> Iterator[None]:
        """Raises Busy when somebody is alone, or wants to be, for longer than `seconds`."""
        with self._changed:
            self._wait(lambda: not self._alone and not self._want_alone, seconds)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, seconds: float) -> Iterator[None]:
        """Raises Busy when the others take longer than `seconds`."""
        with self._changed:
            self._want_alone += 1
            try:
                self._wait(lambda: not self._alone and not self._inside, seconds)
                self._alone = True
            finally:
                self._want_alone -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        if not self._changed.wait_for(condition, seconds):
            raise Busy(f"this worker has been busy with other pictures for {seconds:g} s")


class Deliveries:
    """All deliveries of this process."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis
        self.room = Room()
        self.enter = redis.register_script(ENTER)
        self.begin = redis.register_script(BEGIN)
        self.holds = redis.register_script(HOLDS)
        self._end = redis.register_script(END)
        self._lock = threading.Lock()
        self._begun: set[str] = set()  # keys of notes
        self._to_end: list[tuple[list[str], list[str]]] = []  # what Redis could not be told yet

    def began(self, notes: str) -> None:
        with self._lock:
            self._begun.add(notes)

    def ended(self, turn: str, notes: str, tag: str, remove: str, error: str = "") -> None:
        """Tell Redis of an end, now or before the next beginning."""
        with self._lock:
            self._begun.discard(notes)
            self._to_end.append(([turn, notes], [tag, remove, error]))
        try:
            self.tell_ends()
        except (RedisError, OSError) as error:
            log.warning("an end could not be noted yet", error=type(error).__name__)

    def tell_ends(self) -> None:
        with self._lock:
            ends, self._to_end = self._to_end, []
        for number, (keys, arguments) in enumerate(ends):
            try:
                self._end(keys=keys, args=arguments)
            except BaseException:
                with self._lock:
                    self._to_end = ends[number:] + self._to_end
                raise

    def note_stall(self, what: str) -> None:
        """Note, before this process ends, why it does: for the pictures that it works on. Takes 2 s
        at most.
        """
        thread = threading.Thread(target=self._note_stall, args=(what,), daemon=True)
        thread.start()
        thread.join(STALL_SECONDS)

    def _note_stall(self, what: str) -> None:
        for notes in tuple(self._begun):
            self.redis.hset(notes, ERROR, f"stalled: {what}")


class Delivery:
    """One delivery while its picture is worked on: a context, in which the output is its own."""

    def __init__(self, deliveries: Deliveries, output: ObjectUri, tag: str, worker: str) -> None:
        digest = hashlib.sha256(str(output).encode()).hexdigest()[:32]
        self._deliveries = deliveries
        self._output = output
        self._turn, self._notes = TURN.format(digest), ATTEMPTS.format(digest)
        self._tag = tag
        self._worker = worker
        self._inside = ExitStack()
        self.first_time: float | None = (
            None  # when the picture was first tried, in seconds since the epoch
        )
        self.last_error: str | None = None  # what is known of the last death
        self.deaths: list[
            dict[str, Any]
        ] = []  # the notes that processes left behind: worker, pid, time

    @property
    def is_given_up(self) -> bool:
        return len(self.deaths) >= MOST_DEATHS

    def __enter__(self) -> Self:
        """Raises Busy where waiting took too long, and QueueUnavailable."""
        try:
            self._take_turn()
            if not self.is_given_up:
                self._begin()
        except (RedisError, OSError) as error:
            raise queue_unavailable(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._inside.close()
        if kind is None or (
            issubclass(kind, Exception) and not issubclass(kind, Transient | MemoryError)
        ):
            self._end("all")
        elif issubclass(kind, MemoryError):
            # It may be another's doing, or its own: the note stays, and it is worked on alone.
            self._end("none", kind.__name__)
        else:
            self._end("mine")

    @property
    def last_worker(self) -> str | None:
        """The worker that died last at work on it."""
        return str(self.deaths[-1]["worker"]) if self.deaths else None

    def dare(self) -> None:
        """Raise Poison for a picture that is given up: before any work on what it holds."""
        if self.is_given_up:
            raise Poison(self._epitaph())

    def confirm(self) -> None:
        """Raise QueueUnavailable unless the delivery is still in hand, and the output its own."""
        try:
            holds = self._deliveries.holds(keys=[self._turn, INDEX], args=[self._tag])
        except (RedisError, OSError) as error:
            raise queue_unavailable(error) from None
        if not holds:
            raise _lost()

    def _take_turn(self) -> None:
        deadline = time.monotonic() + OUTPUT_WAIT_SECONDS
        self._deliveries.tell_ends()
        while True:
            answer = self._deliveries.enter(
                keys=[self._turn, self._notes, INDEX], args=[self._tag, TURN_SECONDS]
            )
            if answer[0] < 0:
                raise _lost()
            if answer[0] > 0:
                break
            if time.monotonic() > deadline:
                raise Busy("another message for the same output is worked on")
            time.sleep(POLL_SECONDS)
        first, error, *dead = (part.decode() for part in answer[1:])
        self.first_time = float(first) if first else None
        self.last_error = error or None
        self.deaths = sorted((json.loads(note) for note in dead), key=lambda note: note["time"])

    def _begin(self) -> None:
        try:
            if self.deaths:
                log.warning(
                    "taken over, to work on alone",
                    output=str(self._output),
                    pid=os.getpid(),
                    **self._last_death(),
                )
            room = self._deliveries.room
            self._inside.enter_context(
                (room.alone if self.deaths else room.together)(ROOM_WAIT_SECONDS)
            )
            now = time.time()
            self.first_time = self.first_time or now
            note = json.dumps({"worker": self._worker, "pid": os.getpid(), "time": now})
            begun = self._deliveries.begin(
                keys=[self._notes, INDEX], args=[self._tag, note, self.first_time, NOTES_SECONDS]
            )
            if not begun:
                raise _lost()
            self._deliveries.began(self._notes)
        except BaseException:
            self._inside.close()
            self._end("mine")
            raise

    def _last_death(self) -> dict[str, Any]:
        last = self.deaths[-1]
        return {
            "deaths": len(self.deaths),
            "last_worker": last["worker"],
            "last_pid": last["pid"],
            "error": self.last_error,
        }

    def _end(self, remove: str, error: str = "") -> None:
        self._deliveries.ended(self._turn, self._notes, self._tag, remove, error)

    def _epitaph(self) -> str:
        workers = ", ".join(dict.fromkeys(str(note["worker"]) for note in self.deaths))
        why = self.last_error or "no error was seen: killed, out of memory, or a crash in a library"
        return f"{len(self.deaths)} times a process died of it, at the end with no other picture ({workers}): {why}"


def _lost() -> QueueUnavailable:
    return QueueUnavailable("the lease of this message was lost: whoever has it now does the work")
