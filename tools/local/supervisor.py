"""``supervisor.py COMMAND…``: restart a worker that died, as compose or systemd do."""

import ctypes
import signal
import subprocess
import sys
import threading
from typing import Any

from worker.process.watchdog import EXIT_STALLED

MOST_RESTARTS = 5
PAUSE_SECONDS = 1.0
PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> int:
    """Run the command until it ends by itself, and return its exit code.

    Restart it if it was killed or stalled.
    """
    stopping = threading.Event()
    worker: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: Any) -> None:
        stopping.set()
        if worker is not None:
            worker.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = 0
    for restarts in range(MOST_RESTARTS + 1):
        if stopping.is_set():
            break
        worker = subprocess.Popen(sys.argv[1:], preexec_fn=_die_together)
        code = worker.wait()
        if code >= 0 and code != EXIT_STALLED:
            break
        if restarts < MOST_RESTARTS and not stopping.wait(PAUSE_SECONDS):
            message = f"demo: the worker ended with {code} and is started again"
            print(message, file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


def _die_together() -> None:
    """Set up the child process to be killed with the supervisor."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
