"""The picture processes of a worker.

A picture process runs decoders on untrusted bytes, so the worker takes it for hostile: the process
gets no credentials, and all that it sends is checked (`worker.process.channel`). It works on one
picture at a time, so if it dies, the picture that it worked on is known.
"""

import fcntl
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from tasks.delivery.work_lock import WorkLock
from tasks.errors import Busy, PictureProcessLost
from worker.anonymizer import STALL_MARGIN_SECONDS, OnStage
from worker.detection.canvas import SIDE_MULTIPLE
from worker.detection.tiled import Infer
from worker.pixels import Pixels
from worker.process import allocator
from worker.process.channel import (
    ERRORS,
    OUT_OF_MEMORY,
    Bug,
    Canvases,
    Channel,
    ChannelClosed,
    ChannelTimeout,
    Configuration,
    Failure,
    Kind,
    Message,
    ProtocolBroken,
    Ready,
    Result,
    Stage,
    Work,
    packed,
    packed_answers,
    parsed,
    read_file,
    write_file,
)

COMMAND = (sys.executable, "-P", "-X", "faulthandler", "-m", "worker.process.picture_process")
# The variables that a picture process inherits. All others, which may hold secrets, stay here.
INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "GLIBC_TUNABLES",
    "OMP_NUM_THREADS",
    *allocator.VARIABLES,
)
START_SECONDS = 120.0  # for a process to start on a busy machine
SEND_SECONDS = 60.0  # for a process to take a message
END_SECONDS = 5.0  # for the end of a process whose channel is closed
MAX_STDERR_BYTES = 64 << 10
MAX_REASON_LENGTH = 200  # characters
# The innermost line of a traceback of faulthandler. Its time is linear, whatever is written.
CRASHED_AT = re.compile(rb'File "(?:[^"\n]*/)?(\w+\.py)", line (\d+) in (\w+)')
NO_CANVASES = np.zeros(0, np.uint8)
LONG_STAGES = ("detecting", "verifying")

log = structlog.get_logger("veil")


class ProcessDied(Exception):
    """A picture process died, or had to be ended, while it worked on a picture.

    `is_doubtful` tells whether something other than the picture may be the reason, such as other
    pictures that took the memory. `is_foreign` tells whether something else ended it for certain.
    """

    def __init__(self, reason: str, is_doubtful: bool = False, is_foreign: bool = False) -> None:
        super().__init__(reason)
        self.is_doubtful = is_doubtful
        self.is_foreign = is_foreign


class OutOfMemory(Exception):
    """A picture process has no memory left."""


class UnexpectedError(RuntimeError):
    """An exception in a picture process that is no VeilError: a bug."""


@dataclass(frozen=True)
class Finished:
    """The result of the work on a picture, and its output, None if there is none."""

    result: Result
    output: bytes | None


class PictureProcess:
    """One picture process. Only one thread may use it at a time."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """Start the process. Raises OSError."""
        self._canvases = NO_CANVASES
        with ExitStack() as own, ExitStack() as others:
            self._pictures = _memory_file("pictures", own)
            self._canvas_file = _memory_file("canvases", own)
            self._stderr, stderr = os.pipe()
            own.callback(os.close, self._stderr)
            others.callback(os.close, stderr)
            end, other_end = socket.socketpair()
            # Celery sets a default timeout while a worker stops. With one, the other end would not
            # wait for messages, and the process would take its worker for gone.
            other_end.setblocking(True)
            self._channel = Channel(end, SEND_SECONDS)
            own.callback(self._channel.close)
            others.callback(other_end.close)
            for pipe_end in (self._stderr, stderr):
                os.set_blocking(pipe_end, False)  # A full pipe must stop nobody.
            descriptors = (other_end.fileno(), self._pictures, self._canvas_file)
            self._process = subprocess.Popen(
                [*command, *map(str, (os.getpid(), *descriptors))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd="/",
                env=_environment(),
                pass_fds=descriptors,
            )
            self._opened = own.pop_all()  # `end` closes them.
        self.is_alive = True
        self.has_worked = False
        """True from its first picture on."""
        self.is_at_work = False
        """True from the beginning of a picture until its last message has arrived."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        """Return whether the process has not ended by itself."""
        return self._process.poll() is None

    def configure(self, configuration: Configuration) -> None:
        """Send `configuration`, with which the process enters its sandbox. Raises ProcessDied."""
        self._configuration = configuration
        largest = max(configuration.limits.max_bytes, configuration.output_bytes)
        _fix_size(self._pictures, largest)
        canvas_bytes = 3 * max(takes.pixels_at_once for takes in configuration.inputs)
        _fix_size(self._canvas_file, canvas_bytes)
        self._canvases = np.frombuffer(mmap.mmap(self._canvas_file, canvas_bytes), np.uint8)
        with self._deaths(["starting"]):
            self._channel.send(*packed(configuration))

    def wait_until_ready(self) -> Ready:
        """Return when the process is in its sandbox. Raises ProcessDied."""
        with self._deaths(["starting"]):
            ready = parsed(*self._channel.receive(START_SECONDS))
            if not isinstance(ready, Ready):
                raise ProtocolBroken(f"{type(ready).__name__} before it was ready")
        return ready

    def work(
        self,
        content: bytes,
        work: Work,
        infer: Sequence[Infer],
        on_stage: OnStage,
        deadline: float,
    ) -> Finished:
        """Return what the process makes of the picture file `content`.

        `infer` has the function that runs each model, in the calling thread. `on_stage` is
        called with each stage after decoding.

        Raises ProcessDied, also after `deadline` (time.monotonic()); the errors of the anonymizer;
        those of `infer` and `on_stage`; and UnexpectedError.
        """
        activities = ["detecting" if work.detect_only else "decoding"]
        with self._deaths(activities):
            self.has_worked = self.is_at_work = True
            self._stderr_text()
            self._limit_processor_time()
            write_file(self._pictures, content)
            self._channel.send(*packed(work))
            # The process may use so many seconds for the stage, apart from those of `infer`.
            remaining = self._stage_seconds(activities[-1])
            while True:
                began = time.monotonic()
                kind, received = self._channel.receive(min(remaining, deadline - began))
                message = parsed(kind, received)
                remaining -= time.monotonic() - began
                if isinstance(message, Canvases):
                    self._answer(message, infer)
                elif not isinstance(message, Stage):
                    return self._finished(message, len(content))
                elif message.activity != activities[0]:
                    if message.activity in activities:
                        raise ProtocolBroken(f"{message.activity} begins again")
                    activities.append(message.activity)
                    remaining = self._stage_seconds(message.activity)
                    self._call(on_stage, message.activity)

    def end(self) -> None:
        """End the process at once, whatever it does. A second call does nothing."""
        if self.is_alive:
            self.is_alive = False
            self._process.kill()
            self._process.wait()
            self._close()

    def _answer(self, message: Canvases, infer: Sequence[Infer]) -> None:
        """Send the process the detections in its canvases, or raise the error of the model."""
        if message.model >= len(infer):
            raise ProtocolBroken(f"canvases for the unknown model {message.model}")
        canvases = self._shared_canvases(message)
        try:
            answers = infer[message.model](canvases)
        except Exception:
            self._refuse()
            raise
        except BaseException:
            self.end()
            raise
        self._channel.send(Kind.ANSWER, packed_answers(answers))

    def _shared_canvases(self, message: Canvases) -> list[Pixels]:
        """Return the canvases in shared memory, uint8 [height, width, 3]."""
        fixed_size = self._configuration.inputs[message.model].fixed_size
        canvases = []
        first = 0
        for height, width in message.sizes:
            is_multiple = not (height % SIDE_MULTIPLE or width % SIDE_MULTIPLE)
            is_known = is_multiple if fixed_size is None else (height, width) == tuple(fixed_size)
            last = first + height * width * 3
            if not is_known or last > self._canvases.size:
                raise ProtocolBroken(f"a canvas of {height} × {width} pixels")
            canvases.append(self._canvases[first:last].reshape(height, width, 3))
            first = last
        return canvases

    def _refuse(self) -> None:
        """Tell the process that its picture has failed, and wait for it to be idle."""
        try:
            self._channel.send(Kind.REFUSAL)
            kind, _ = self._channel.receive(SEND_SECONDS)
            if kind == Kind.REFUSAL:
                self.is_at_work = False
                return
        except (ChannelClosed, ChannelTimeout, ProtocolBroken):
            pass
        self.end()

    def _call(self, on_stage: OnStage, activity: str) -> None:
        try:
            on_stage(activity)
        except BaseException:
            self.end()
            raise

    def _finished(self, message: Message, source_bytes: int) -> Finished:
        """Return the result in the last message about a picture, or raise its error."""
        self.is_at_work = False
        try:
            if isinstance(message, Failure):
                if message.error == OUT_OF_MEMORY:
                    raise OutOfMemory
                raise ERRORS[message.error](message.message)
            if isinstance(message, Bug):
                log.error("bug in a picture process", error=message.error, at=message.raised_at)
                raise UnexpectedError(f"{message.error}: {message.message}")
            if not isinstance(message, Result):
                raise ProtocolBroken(f"{type(message).__name__} as a result")
            for found in (message.faces, message.added, message.remaining):
                found.detections(self._configuration.labels)
            if message.size is None:
                return Finished(message, None)
            if not 0 < message.size <= self._configuration.output_bytes:
                raise ProtocolBroken(f"an output of {message.size} bytes")
            source_bytes = max(source_bytes, message.size)
            return Finished(message, read_file(self._pictures, message.size))
        finally:
            self._forget(source_bytes)

    def _forget(self, size: int) -> None:
        """Give the memory of the first `size` bytes of the file of pictures back."""
        if size:
            with mmap.mmap(self._pictures, size) as mapped:
                mapped.madvise(mmap.MADV_REMOVE)

    @contextmanager
    def _deaths(self, activities: list[str]) -> Iterator[None]:
        """End the process if it does not work any more, and raise ProcessDied.

        The last of `activities` is what it did.
        """
        try:
            yield
        except (ChannelClosed, ChannelTimeout, ProtocolBroken, OutOfMemory) as error:
            activity = activities[-1]
            if isinstance(error, ChannelClosed):
                death = self._death(activity)
            elif isinstance(error, ChannelTimeout):
                death = ProcessDied(f"stalled while {activity}")
            elif isinstance(error, OutOfMemory):
                death = ProcessDied(f"out of memory while {activity}", is_doubtful=True)
            else:
                death = ProcessDied(f"a wrong message while {activity}: {error}")
            self.end()
            raise death from None

    def _death(self, activity: str) -> ProcessDied:
        """Return how the process ended, whose channel is closed."""
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return ProcessDied(f"its channel was closed while {activity}")
        written = self._stderr_text()
        if code >= 0:
            # Before the first picture, the process is not hostile.
            last = written.decode(errors="replace").strip().rpartition("\n")[2]
            reason = "" if self.has_worked or not last else f": {last[:MAX_REASON_LENGTH]}"
            return ProcessDied(f"exit code {code} while {activity}{reason}")
        try:
            name = signal.Signals(-code).name
        except ValueError:  # a real-time signal
            name = f"signal {-code}"
        place = ""
        if found := CRASHED_AT.search(written):
            file, line, function = (part.decode() for part in found.groups())
            place = f" ({file}:{line} {function})"
        is_killed = -code == signal.SIGKILL
        return ProcessDied(f"{name} while {activity}{place}", is_killed, is_killed)

    def _stderr_text(self) -> bytes:
        """Return what the process has written to standard error since the last call."""
        try:
            return os.read(self._stderr, MAX_STDERR_BYTES)
        except BlockingIOError:
            return b""

    def _stage_seconds(self, activity: str) -> float:
        limits = self._configuration.limits
        seconds = limits.decode_seconds + STALL_MARGIN_SECONDS
        return seconds + (limits.detection_seconds if activity in LONG_STAGES else 0)

    def _limit_processor_time(self) -> None:
        """Let the kernel end the process if it uses more processor time than all stages may take.

        The worker ends it before, unless the worker itself is stuck.
        """
        stages = ("decoding", "detecting", "masking", "encoding", "verifying")
        allowed = sum(map(self._stage_seconds, stages))
        with suppress(OSError, ValueError):
            used = _processor_seconds(self.pid)
            soft = int(used + allowed) + 1
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))

    def _close(self) -> None:
        self._canvases = NO_CANVASES  # frees the mapping, and the descriptor that it holds
        self._opened.close()


class PicturePool:
    """A fixed number of picture processes. All threads of a worker share one pool."""

    def __init__(
        self,
        size: int,
        command: Sequence[str] = COMMAND,
        wait_seconds: float = threading.TIMEOUT_MAX,
    ) -> None:
        """Start the first process; the others follow when more pictures are worked on at once.

        A picture waits for a process, and for other pictures to end, for `wait_seconds` each.
        `configure` must be called before the pool is used. Raises PictureProcessLost if the process
        can't be started.
        """
        self._size = size
        self._command = command
        self._wait_seconds = wait_seconds
        self._configuration: Configuration | None = None
        self._work_lock = WorkLock()
        # The kernel ends the processes with the thread that started them, so one thread starts all.
        self._starter = ThreadPoolExecutor(1, "picture-processes")
        self._changed = threading.Condition()
        self._processes: set[PictureProcess] = set()
        self._idle: list[PictureProcess] = []
        self._starting = 0
        self._failed_starts = 0
        self._start_error = ""
        self._end = weakref.finalize(self, _end_all, self._processes)
        self._first = self._starter.submit(self._started).result()

    def configure(self, configuration: Configuration) -> None:
        """Send the first process its configuration, and wait until it is ready.

        Raises PictureProcessLost.
        """
        self._configuration = configuration
        unprotected = self._prepare(self._first)
        with self._changed:
            self._idle.append(self._first)
        if unprotected is not None:
            log.warning(
                "picture processes are not sandboxed",
                reason=unprotected,
                effect="a decoder that runs foreign code can open files and sockets",
            )

    @property
    def pids(self) -> list[int]:
        """The process IDs of the processes that live."""
        with self._changed:
            return [process.pid for process in self._processes if process.is_alive]

    def resident_bytes(self) -> int:
        """Return the resident memory of the processes that live, in bytes."""
        total = 0
        for pid in self.pids:
            with suppress(OSError):  # It has just ended.
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return total * resource.getpagesize()

    @contextmanager
    def borrowed(self, is_new: bool = False, alone: bool = False) -> Iterator[PictureProcess]:
        """Lend a process for one picture.

        If `is_new` is set, it is one that has had no picture before. If `alone` is set, no other
        picture is worked on meanwhile. Raises Busy if the wait is too long, and PictureProcessLost
        if no process can be started.
        """
        lock = self._work_lock.exclusive if alone else self._work_lock.shared
        with lock(self._wait_seconds):
            process = self._taken(is_new)
            try:
                yield process
            finally:
                self._take_back(process)

    def close(self) -> None:
        """End all processes."""
        self._end()

    def _taken(self, is_new: bool) -> PictureProcess:
        """Return a process that is idle; start one if there may be more, and wait for any."""
        deadline = time.monotonic() + self._wait_seconds
        with self._changed:
            failed_starts = self._failed_starts
            while True:
                self._drop_dead()
                if process := self._idle_process(is_new):
                    self._idle.remove(process)
                    return process
                has_failed = self._failed_starts > failed_starts
                if has_failed and (is_new or not self._processes):
                    raise PictureProcessLost(self._start_error)
                if not has_failed:
                    self._start_if_possible(is_new)
                remaining = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
                if remaining <= 0 or not self._changed.wait(remaining):
                    raise Busy(f"no picture process has been free for {self._wait_seconds:g} s")

    def _take_back(self, process: PictureProcess) -> None:
        if process.is_at_work:
            # An error of this process, such as the end of its memory, has cut the work off. The
            # next picture would get the result of this one.
            process.end()
        with self._changed:
            if process.is_alive:
                self._idle.append(process)
            else:
                self._processes.discard(process)
            self._changed.notify_all()

    def _drop_dead(self) -> None:
        """Forget idle processes that have ended."""
        for process in [process for process in self._idle if not process.is_running()]:
            self._remove(process)

    def _remove(self, process: PictureProcess) -> None:
        """End an idle process."""
        self._idle.remove(process)
        self._processes.discard(process)
        process.end()

    def _idle_process(self, is_new: bool) -> PictureProcess | None:
        """Return the idle process that was used last, or one that was not used at all."""
        used = [process for process in self._idle if process.has_worked]
        unused = [process for process in self._idle if not process.has_worked]
        suitable = unused if is_new else unused + used
        return suitable[-1] if suitable else None

    def _start_if_possible(self, is_new: bool) -> None:
        """Have another process started, in place of an idle one if a new one is needed."""
        if self._starting:
            return
        if is_new and self._idle and len(self._processes) >= self._size:
            self._remove(self._idle[0])
        if len(self._processes) < self._size:
            self._starting += 1
            self._starter.submit(self._start)

    def _start(self) -> None:
        """Start a process, and lend it once it is ready. Runs in the starter's thread."""
        process, failure = None, ""
        try:
            process = self._started()
            self._prepare(process)
        except Exception as error:
            failure = str(error) or type(error).__name__
            if process is not None:
                process.end()  # It may wait for its configuration, and must get no picture.
        with self._changed:
            self._starting -= 1
            if failure:
                self._failed_starts += 1
                self._start_error = failure
            if process is not None:
                self._idle.append(process)
                self._drop_dead()
            self._changed.notify_all()

    def _started(self) -> PictureProcess:
        """Return a process that has just been started. Raises PictureProcessLost."""
        try:
            process = PictureProcess(self._command)
        except OSError as error:
            raise PictureProcessLost(
                f"no picture process can be started: {error.strerror}"
            ) from None
        with self._changed:
            self._processes.add(process)
        return process

    def _prepare(self, process: PictureProcess) -> str | None:
        """Wait until `process` is ready; return why it is not sandboxed, or None."""
        assert self._configuration is not None, "configure() comes first"
        try:
            process.configure(self._configuration)
            return process.wait_until_ready().unprotected
        except ProcessDied as death:
            raise PictureProcessLost(f"a picture process died: {death}") from None
        except OSError as error:
            process.end()
            raise PictureProcessLost(
                f"no memory can be shared with a picture process: {error.strerror}"
            ) from None


def _end_all(processes: set[PictureProcess]) -> None:
    for process in tuple(processes):
        process.end()


def _environment() -> dict[str, str]:
    """Return the whole environment of a picture process."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    # The process imports the same modules as this one, wherever they are.
    paths = [str(Path(path).absolute()) for path in sys.path if path]
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _memory_file(name: str, opened: ExitStack) -> int:
    """Return the descriptor of a new file in memory, which `opened` closes."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    opened.callback(os.close, descriptor)
    return descriptor


def _fix_size(file: int, size: int) -> None:
    """Set the size in bytes of a file in memory for good.

    A process that made it smaller would crash the others that use it.
    """
    os.ftruncate(file, size)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)


def _processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used; raises OSError and ValueError."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
