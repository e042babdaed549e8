"""A worker's memory grows neither with its threads nor with the pictures that it has seen."""

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

LEFT_OPEN = """
import ctypes
from worker import allocator
library = ctypes.CDLL("libc.so.6")
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

blocks = [library.malloc(100_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks[:-1]:
    library.free(block)
before = resident()
allocator.give_back()
print(before - resident())
"""
ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def arenas(call, **environment):
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stderr.count("Arena ")


@ON_GLIBC
def test_threads_share_two_arenas(repository):
    path = {"PYTHONPATH": str(repository)}

    assert arenas("", **path) > 2
    assert arenas("allocator.keep_less()", **path) == 2
    assert arenas("allocator.keep_less()", MALLOC_ARENA_MAX="4", **path) == 4


@ON_GLIBC
def test_what_was_freed_below_a_block_in_use_is_given_back(repository):
    command, path = [sys.executable, "-c", LEFT_OPEN], {"PYTHONPATH": str(repository)}

    given_back = int(subprocess.run(command, check=True, capture_output=True, text=True, env=path).stdout)

    assert given_back > 150_000_000
