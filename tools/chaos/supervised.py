"""A worker that is restarted when it dies, as by compose or systemd."""

import threading
import time
from dataclasses import dataclass, field

from tools.local.servers import Server

LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Death:
    """The end of the process `pid`; `time` is in seconds since the epoch."""

    pid: int
    time: float
    code: int


@dataclass
class Supervised:
    """A supervisor that restarts `server` after `pause` seconds, from `start` to `stop`."""

    server: Server
    pause: float = 0.2
    deaths: list[Death] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"supervisor of {self.server.name}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the worker, and do not restart it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def kill(self) -> int | None:
        """Kill the process, as a crash would; return its id, or None if none is running."""
        with self._lock:
            process = self.server.process
            if process is None or process.poll() is not None:
                return None
            process.kill()
            process.wait()
            return process.pid

    @property
    def alive(self) -> bool:
        process = self.server.process
        return process is not None and process.poll() is None

    def said(self, text: str) -> int:
        """Return the number of times that `text` is in the log of all its processes."""
        if not self.server.log.exists():
            return 0
        return self.server.log.read_text(errors="replace").count(text)

    def _run(self) -> None:
        # With PR_SET_PDEATHSIG, Linux kills a child when the thread that started it ends.
        try:
            self.server.start()
            while not self._stopping.wait(LOOK_SECONDS):
                process = self.server.process
                if process is None or (code := process.poll()) is None:
                    continue
                self.deaths.append(Death(process.pid, time.time(), code))
                if not self._stopping.wait(self.pause):
                    with self._lock:
                        self.server.start()
        finally:
            self.server.stop()
