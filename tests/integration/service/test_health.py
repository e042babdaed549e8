"""The health check of a container finds the workers of its host, whatever their names are."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import health
from tools.local.servers import HOST, free_port

STUB = Path(__file__).parents[1] / "stub_worker.py"
ROOT = str(STUB.parents[2])


@pytest.fixture
def check():
    """``check(environment)`` runs the check as a container does."""

    def run(environment):
        command = [sys.executable, "-m", "tasks.health"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_a_worker_answers_for_its_host_alone(
    unattended, start_worker, worker_settings, check, tmp_path
):
    environment = {**worker_settings(unattended), "PYTHONPATH": ROOT}
    here = socket.gethostname()
    assert not health.has_worker(unattended.app, here, 0.5)

    # The stub has its process ID in its name.
    with start_worker([sys.executable, STUB, tmp_path / "journal"], environment):
        done = check(environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert not health.has_worker(unattended.app, f"not-{here}", 0.5)


def test_without_redis_the_check_fails_in_one_line(worker_settings, unattended, check):
    nowhere = f"redis://{HOST}:{free_port()}/0"
    environment = {**worker_settings(unattended), "PYTHONPATH": ROOT, "VEIL_REDIS_URL": nowhere}

    done = check(environment)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: QueueUnavailable: ")
