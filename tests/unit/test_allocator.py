"""What a worker's threads free is given back or used again, so that its memory does not grow with their number."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

ARENAS = """
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
MAPPED = """
import ctypes
from worker import allocator
{call}
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
class Counts(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(str(number), ctypes.c_size_t) for number in range(10)]
libc.mallinfo2.restype = Counts
def mapped():
    return getattr(libc.mallinfo2(), "4")  # bytes in blocks that are mapped by themselves
libc.free(libc.malloc(20_000_000))
before = mapped()
libc.malloc(10_000_000)
print(mapped() - before)
"""


@pytest.fixture
def run(repository):
    """The output of a program after a call, with these variables set."""

    def started(program, call, **environment):
        command = [sys.executable, "-c", program.format(call=call)]
        environment["PYTHONPATH"] = str(repository)
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return done.stdout + done.stderr

    return started


def test_threads_share_two_arenas(run):
    assert run(ARENAS, "").count("Arena ") > 2
    assert run(ARENAS, "allocator.keep_less()").count("Arena ") == 2
    assert run(ARENAS, "allocator.keep_less()", MALLOC_ARENA_MAX="4").count("Arena ") == 4


def test_large_blocks_are_mapped_by_themselves_whatever_was_freed_before(run):
    assert int(run(MAPPED, "")) == 0
    assert int(run(MAPPED, "allocator.keep_less()")) >= 10_000_000
    assert int(run(MAPPED, "allocator.keep_less()", MALLOC_MMAP_THRESHOLD_="16000000")) == 0
