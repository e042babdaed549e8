"""A worker that is started again whenever it dies, as compose and systemd do."""

import threading
import time
from dataclasses import dataclass, field

from tools.local.servers import Server

LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Death:
    """That the process `pid` was found dead at `time`, in seconds since the epoch, with this exit code."""

    pid: int
    time: float
    code: int


@dataclass
class Supervised:
    """Keeps `server` running from `start` to `stop`, with `pause` seconds before it is started again."""

    server: Server
    pause: float = 0.2
    deaths: list[Death] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"supervisor of {self.server.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the worker as a supervisor would, and do not start it again."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def kill(self) -> int | None:
        """End the process at once, as a crash would: its id, or None if there is none just now."""
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
        """How often `text` is in its log, of all its processes."""
        return self.server.log.read_text(errors="replace").count(text) if self.server.log.exists() else 0

    def _run(self) -> None:
        # Linux kills a child when the thread that started it ends, so all of it happens in this one.
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
