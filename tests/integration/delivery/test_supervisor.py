"""The demo's supervisor starts the worker again when it dies, and only then."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUPERVISOR = Path(__file__).parents[3] / "tools" / "local" / "supervisor.py"
# Records its process id, then ends as the first line of the file says. Without a line it waits for
# a signal.
CHILD = """
import os, signal, sys, time
from pathlib import Path
ends = Path("ends").read_text().splitlines()
Path("ends").write_text("\\n".join(ends[1:]))
with open("pids", "a") as pids:
    print(os.getpid(), file=pids, flush=True)
if not ends:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(60)
if ends[0] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(ends[0]))
"""


@pytest.fixture
def supervise(tmp_path):
    started = []

    def start(*ends):
        (tmp_path / "ends").write_text("\n".join(ends))
        command = [sys.executable, SUPERVISOR, sys.executable, "-c", CHILD]
        started.append(subprocess.Popen(command, cwd=tmp_path))
        return started[
            0
        ], lambda: (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_worker_that_is_killed_or_has_stalled_is_started_again_and_a_sigterm_reaches_it(
    supervise, wait_until
):
    supervisor, pids = supervise("kill", "70")
    wait_until(lambda: len(pids()) == 3, 20)
    time.sleep(0.2)  # The process sets up its signal handler.

    supervisor.terminate()

    assert supervisor.wait(20) == 0
    assert len(pids()) == 3


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_worker_that_ends_by_itself_is_left_alone(supervise, code):
    supervisor, pids = supervise(str(code))
    assert supervisor.wait(20) == code
    assert len(pids()) == 1


def test_a_worker_dies_with_its_supervisor(supervise, wait_until):
    supervisor, pids = supervise()
    (pid,) = wait_until(pids, 20)

    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()

    def gone():
        try:
            return os.read(os.open(f"/proc/{pid}/stat", os.O_RDONLY), 200).split()[2] == b"Z"
        except FileNotFoundError:
            return True

    wait_until(gone, 20)
