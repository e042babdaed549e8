"""Several workers on one machine: their share of it, restarts, and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.errors import SettingsInvalid
from worker.process import supervisor
from worker.process.supervisor import environments, gpus, names
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[4]
SUPERVISOR = """
import sys
from worker import logs
from worker.process.supervisor import Supervisor, names
logs.configure("json")
shares = [{"SHARE": "a"}, {"SHARE": "b"}]
sys.exit(Supervisor(sys.argv[1:], names("worker", 2), shares, 0.05).run())
"""
# A worker that writes a line for its start and its end, and ends as the file `order` says.
WORKER = """
import os, signal, sys, time
from pathlib import Path
folder = Path(__file__).parent
name = sys.argv[sys.argv.index("--name") + 1]
journal = folder / f"{name}.journal"
def note(text):
    with journal.open("a") as file:
        file.write(f"{text} {os.environ['SHARE']} {os.getpid()}\\n")
def stop(number, _frame):
    note(f"stopped by {number}")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
note("started")
order = folder / f"{name}.order"
if order.exists() and order.read_text() == "starting":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
elif order.exists():
    code = int(order.read_text())
    order.unlink()
    sys.exit(code)
time.sleep(60)
"""


class Running:
    def __init__(self, folder):
        self.folder = folder
        (folder / "worker.py").write_text(WORKER)
        self.process = None

    def start(self, *command):
        command = command or (sys.executable, self.folder / "worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, *map(str, command)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self, name):
        path = self.folder / f"{name}.journal"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, name, count):
        deadline = time.monotonic() + 60
        while len(self.lines(name)) < count:
            assert time.monotonic() < deadline, self.lines(name)
            time.sleep(0.02)
        return self.lines(name)


@pytest.fixture
def running(tmp_path):
    made = Running(tmp_path)
    yield made
    if made.process:
        made.process.kill()
        made.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_to_all_workers(running, number):
    running.start()
    for name, share in (("worker-1", "a"), ("worker-2", "b")):
        (line,) = running.wait_for(name, 1)
        assert line.startswith(f"started {share} ")
    running.process.send_signal(number)
    assert running.process.wait(20) == 0
    for name in ("worker-1", "worker-2"):
        assert running.lines(name)[-1].startswith(f"stopped by {number.value} ")


def test_ctrl_c_in_a_terminal_reaches_the_supervisor_alone(running):
    """A terminal sends it to a process group. Workers would get it twice, which cuts them off."""
    running.start()
    for name in ("worker-1", "worker-2"):
        (line,) = running.wait_for(name, 1)
        assert os.getpgid(int(line.split()[-1])) != os.getpgid(running.process.pid)


def test_a_worker_that_ends_is_started_again_and_the_other_is_left_alone(running):
    (running.folder / "worker-1.order").write_text("70")
    running.start()
    first, second = running.wait_for("worker-1", 2)
    assert first != second
    assert len(running.wait_for("worker-2", 1)) == 1
    os.kill(int(second.split()[-1]), signal.SIGKILL)
    running.wait_for("worker-1", 3)
    assert len(running.lines("worker-2")) == 1
    running.process.terminate()
    _, errors = running.process.communicate(timeout=20)
    *ended, stopped = [json.loads(line) for line in errors.splitlines()]
    assert [line["event"] for line in ended] == ["worker ended"] * 2
    assert [line["exit_code"] for line in ended] == [70, -signal.SIGKILL]
    assert {line["worker"].partition("@")[0] for line in ended} == {"worker-1"}
    assert (stopped["event"], stopped["workers"]) == ("stopped", 2)


def test_a_worker_that_the_system_does_not_start_is_tried_again_and_the_other_left_alone(running):
    program = running.folder / "program"
    program.write_text(f"#!{sys.executable}\n{WORKER}")
    program.chmod(0o755)
    running.start(program)
    (first,) = running.wait_for("worker-1", 1)
    running.wait_for("worker-2", 1)
    program.chmod(0o644)
    os.kill(int(first.split()[-1]), signal.SIGKILL)
    time.sleep(1)
    program.chmod(0o755)
    running.wait_for("worker-1", 2)
    assert len(running.lines("worker-2")) == 1
    running.process.terminate()
    _, errors = running.process.communicate(timeout=20)
    ended, *others, stopped = [json.loads(line) for line in errors.splitlines()]
    assert (ended["event"], stopped["event"]) == ("worker ended", "stopped")
    assert {line["event"] for line in others} == {"worker not started"}
    assert all("Permission denied" in line["reason"] for line in others)


def test_a_stop_while_a_worker_starts_is_clean(running):
    (running.folder / "worker-2.order").write_text("starting")
    running.start()
    for name in ("worker-1", "worker-2"):
        running.wait_for(name, 1)
    running.process.terminate()
    assert running.process.wait(20) == 0


def test_several_workers_have_names_of_their_own():
    assert names("camera", 1) == ["camera"]
    assert names("camera", 2) == ["camera-1", "camera-2"]
    assert len({*names(None, 2), *names(None, 2), *names(None, 1), *names(None, 1)}) == 6


def test_a_worker_that_cannot_use_its_settings_ends_all(running):
    (running.folder / "worker-2.order").write_text("2")
    running.start()
    assert running.process.wait(20) == 2


def test_workers_end_with_a_supervisor_that_is_killed(running):
    running.start()
    pids = [int(running.wait_for(name, 1)[0].split()[-1]) for name in ("worker-1", "worker-2")]
    running.process.kill()
    running.process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("variables", "entries", "expected"),
    [
        ({}, 0, []),
        ({}, 2, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "3,GPU-5"}, 2, ["3", "GPU-5"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, []),
    ],
)
def test_the_gpus_are_those_that_the_process_may_use(tmp_path, variables, entries, expected):
    for number in range(entries):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    assert gpus(variables, tmp_path) == expected
    assert gpus({}, tmp_path / "absent") == []


def test_workers_share_processors_devices_and_ports(monkeypatch):
    monkeypatch.setattr(supervisor.WorkerSettings, "picture_processes", lambda self: 7)
    settings = WorkerSettings(metrics="[::1]:9100", processes="auto")
    assert environments(settings, 3, ["0", "1"]) == [
        {"VEIL_PROCESSES": "2", "VEIL_METRICS": "[::1]:9100", "CUDA_VISIBLE_DEVICES": "0"},
        {"VEIL_PROCESSES": "2", "VEIL_METRICS": "[::1]:9101", "CUDA_VISIBLE_DEVICES": "1"},
        {"VEIL_PROCESSES": "2", "VEIL_METRICS": "[::1]:9102", "CUDA_VISIBLE_DEVICES": "0"},
    ]
    assert environments(WorkerSettings(processes=4), 2, []) == [{}, {}]


def test_each_worker_needs_a_port_that_exists():
    settings = WorkerSettings(metrics="127.0.0.1:65534", processes=1)
    assert len(environments(settings, 2, [])) == 2
    with pytest.raises(SettingsInvalid, match="3 workers need the ports 65534 to 65536"):
        environments(settings, 3, [])
