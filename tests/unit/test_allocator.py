"""Threads share two arenas of the C library's, so that a worker's memory does not grow with their number."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, threading
from worker import allocator
{call}
inside = threading.Barrier(6)
def work():
    ctypes.CDLL("libc.so.6").malloc(1000)
    inside.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ctypes.CDLL("libc.so.6").malloc_stats()
"""


def arenas(call, **environment):
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stderr.count("Arena ")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_threads_share_two_arenas(repository):
    path = {"PYTHONPATH": str(repository)}

    assert arenas("", **path) > 2
    assert arenas("allocator.keep_less()", **path) == 2
    assert arenas("allocator.keep_less()", MALLOC_ARENA_MAX="4", **path) == 4
