"""Files that demand excessive memory or time, each decoded in a process that measures itself."""

import json
import os
import subprocess
import sys

import pytest

from worker.images.formats import BY_NAME

# All 510 that docs/reliability.md counts: BOMBS=510. There are 30 kinds.
COUNT = int(os.environ.get("BOMBS", "180"))
LANES = 2
# The memory that any file takes with VEIL_MAX_PIXELS=1000000; stated in docs/reliability.md.
MAX_GROWTH_MIB = 100
HANG_SECONDS = 30  # more than any file takes on a busy machine
SECONDS = 300

# This runs in a process of its own: a crash or a hang ends only that process, and its peak memory
# is that of the files alone.
DECODE = """
import faulthandler, json, re, resource, sys
from pathlib import Path

from tasks.errors import VeilError
from tests import bombs
from worker import images

def mib(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", status)[1]) // 1024

images.decode(bombs.written("AVIF"), 10**6), images.decode(bombs.written("PNG", (900, 900)), 10**6)
first, step, count, hang = map(int, sys.argv[1:])
limit = (mib("VmSize") + 1500) << 20
for seed in range(first, count, step):
    name, content = bombs.make(seed)
    faulthandler.dump_traceback_later(hang, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")
    before = mib("VmRSS")
    try:
        picture = images.decode(content, 10**6)
        outcome = picture.format
    except VeilError as error:
        outcome = f"{type(error).__name__}: {error}"
    grown = mib("VmHWM") - before
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps([name, len(content), grown, outcome]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(repository):
    arguments = [LANES, COUNT, HANG_SECONDS]
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DECODE, *map(str, [lane, *arguments])],
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for lane in range(LANES)
    ]
    lines = []
    for run in runs:
        printed, errors = run.communicate(timeout=SECONDS)
        lines += printed.splitlines()
        assert run.returncode == 0, (lines[-1:], errors[-2000:])
    return [json.loads(line) for line in lines]


def test_every_bomb_has_an_outcome_with_a_name(outcomes):
    assert len(outcomes) == COUNT
    refused = [outcome for *_, outcome in outcomes if outcome not in BY_NAME]
    assert all(
        outcome.split(":")[0] in ("ImageTooLarge", "UnreadableImage", "UnsupportedImage")
        for outcome in refused
    )
    assert not any("not enough memory" in outcome for outcome in refused)
    assert len(refused) > COUNT / 2


def test_no_bomb_takes_more_memory_than_is_stated(outcomes):
    assert [one for one in outcomes if one[2] > MAX_GROWTH_MIB] == []
