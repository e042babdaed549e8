"""``make chaos``, in short: nothing lost, doubled, clear or different; and nothing left running."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(280)
def test_workers_and_redis_are_killed_and_every_picture_is_delivered(
    repository, tmp_path, clean_environment
):
    amounts = {
        "JOBS": "40",
        "KILLS": "4",
        "REDIS_KILLS": "1",
        "CHILD_KILLS": "8",
        "SEED": "1",
        "VEIL_LEASE_SECONDS": "5",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tools.chaos"],
        cwd=tmp_path,
        env={**os.environ, **amounts, "PYTHONPATH": str(repository)},
        check=False,
        capture_output=True,
        text=True,
        timeout=270,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    failures = ("lost", "doubled", "mismatched", "clear", "unfinished")
    assert {name: result[name] for name in failures} == dict.fromkeys(failures, 0)
    assert result["outputs"] + result["dead_letters"] == 40
    assert result["worker_deaths"] == 4
    assert result["redelivered"] > 0
    assert sum(result["faults"].values()) > 0
    assert not [path for path in Path("/proc").glob("[0-9]*/cwd") if _is_below(path, tmp_path)]


def _is_below(cwd, folder):
    try:
        return cwd.readlink().is_relative_to(folder)
    except OSError:
        return False
