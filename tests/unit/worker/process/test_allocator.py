"""Memory that threads free is returned or used again, so it does not grow with their number."""

import ctypes
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)
can_tell = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33"
)

ARENAS = """
import ctypes, threading
from worker.process import allocator
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
COUNTS = """
import ctypes
from worker.process import allocator
{call}
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
class Mallinfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]
libc.mallinfo2.restype = Mallinfo2
"""
# Print the bytes of a block that is mapped by itself, after a larger one was freed.
MAPPED = """
libc.free(libc.malloc(20_000_000))
before = libc.mallinfo2().hblkhd
libc.malloc(10_000_000)
print(libc.mallinfo2().hblkhd - before)
"""
# Print the bytes that stay free at the heap's end, after 20 MB in small blocks were freed.
KEPT = """
blocks = (ctypes.c_void_p * 200)()
for place in range(200): blocks[place] = libc.malloc(100_000)
for place in reversed(range(200)): libc.free(blocks[place])
print(libc.mallinfo2().keepcost)
"""


@pytest.fixture
def run(repository):
    """Return ``run(program, call, **environment)``, which returns its standard output and error."""

    def started(program, call="", **environment):
        command = [sys.executable, "-c", program.replace("{call}", call)]
        environment["PYTHONPATH"] = str(repository)
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return done.stdout, done.stderr

    return started


def test_threads_share_two_arenas(run):
    def arenas(*call, **environment):
        return run(ARENAS, *call, **environment)[1].count("Arena ")

    assert arenas() > 2
    assert arenas("allocator.share_arenas()") == 2
    assert arenas("allocator.share_arenas()", MALLOC_ARENA_MAX="4") == 4


@can_tell
def test_large_blocks_are_mapped_by_themselves_whatever_was_freed_before(run):
    def mapped(*call, **environment):
        return int(run(COUNTS + MAPPED, *call, **environment)[0])

    assert mapped() == 0
    assert mapped("allocator.return_memory()") >= 10_000_000
    assert mapped("allocator.return_memory()", MALLOC_MMAP_THRESHOLD_="16000000") == 0


@can_tell
def test_free_memory_at_the_end_of_the_heap_is_used_again(run):
    def kept(*call, **environment):
        return int(run(COUNTS + KEPT, *call, **environment)[0])

    assert kept() < 1_000_000
    assert kept("allocator.return_memory()") > 15_000_000
    assert kept("allocator.return_memory()", MALLOC_TRIM_THRESHOLD_="131072") < 1_000_000
