"""``veil worker --workers 2``: two workers from one command share the queue, and stop together."""

import json
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tools.local.servers import HOST, free_port, start_redis


def test_several_workers_share_the_queue_and_stop_with_their_command(
    unattended, worker_settings, start_worker, programs, raw, portrait, place, wait_until
):
    port = free_port()
    environment = {**worker_settings(unattended), "VEIL_METRICS": f"{HOST}:{port}"}
    command = [programs / "veil", "worker", "--workers", "2", "--name", "camera"]
    with start_worker(command, environment) as workers:
        wait_until(lambda: len(workers.lines("worker ready")) == 2, 90)
        for number in range(4):
            source = raw.put(f"{place}{number}.jpg", portrait)
            assert unattended.report(source)["status"] == "anonymized"
        pages = []
        for own in (port, port + 1):
            with urllib.request.urlopen(f"http://{HOST}:{own}/metrics", timeout=10) as page:
                pages.append(page.read().decode())
        assert all("veil_worker_heartbeat" in page for page in pages)

        workers.server.process.send_signal(signal.SIGTERM)

        assert workers.server.process.wait(60) == 0
        lines = [json.loads(line) for line in workers.log.splitlines()]
        stopped = [line for line in lines if line["event"] == "stopped"]
        assert [line.get("workers") for line in stopped] == [None, None, 2]
        names = {line["worker"].partition("@")[0] for line in lines if line not in stopped[2:]}
        assert names == {"camera-1", "camera-2"}
        assert not workers.lines("redis may lose messages")
    assert not unattended.client.hlen("unacked")


def catches(process, number):
    """Return whether `process` has a handler for the signal `number`."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s+([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(caught, 16) & 1 << (number - 1))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("has_said", [False, True], ids=["at once", "after its first line"])
def test_a_stop_during_the_start_is_a_clean_one(
    unattended, worker_settings, programs, wait_until, count, has_said
):
    started = subprocess.Popen(
        [programs / "veil", "worker", f"--workers={count}"],
        env=worker_settings(unattended),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: catches(started, signal.SIGTERM))
    said = [started.stderr.readline()] if has_said else []
    started.terminate()
    output, errors = started.communicate(timeout=60)
    assert (started.returncode, output) == (0, "")
    lines = [json.loads(line) for line in (*said, *errors.splitlines())]
    # Before the first setting is read, the log has no form yet.
    assert (lines[-1:] and lines[-1]["event"]) in ([], "stopped")
    assert lines or not has_said


def test_a_worker_stops_cleanly_while_redis_is_away(
    quiet_port, worker_settings, unattended, programs
):
    away = {"VEIL_REDIS_URL": f"redis://{HOST}:{quiet_port}/0"}
    process = subprocess.Popen(
        [programs / "veil", "worker"],
        env={**worker_settings(unattended), **away},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if json.loads(line)["event"] == "queue unavailable":
            break
    process.terminate()
    rest = process.communicate(timeout=40)[1]
    assert process.returncode == 0
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"


def test_a_worker_warns_of_a_redis_that_may_lose_messages(
    tmp_path, unattended, worker_settings, start_worker, programs, wait_until
):
    redis = start_redis(tmp_path / "redis")
    try:
        redis.client().config_set("appendonly", "no")
        environment = {**worker_settings(unattended), **redis.environment()}
        with start_worker([programs / "veil", "worker"], environment) as worker:
            (line,) = wait_until(lambda: worker.lines("redis may lose messages"))
            assert line["level"] == "warning"
            assert line["settings"].startswith("appendonly is no")
    finally:
        redis.server.stop()
