"""Standard error is silent within the blocks of all threads, and is there again after them."""

import os
import threading

from worker.process.silence import STDERR, silenced


def test_blocks_of_two_threads_leave_standard_error_as_it_was(capfd):
    first_is_over = threading.Event()
    is_inside = threading.Event()

    def other():
        with silenced():
            is_inside.set()
            first_is_over.wait(10)
            os.write(STDERR, b"in the other block\n")

    thread = threading.Thread(target=other)
    with silenced():
        thread.start()
        assert is_inside.wait(10)
        os.write(STDERR, b"in both blocks\n")
    first_is_over.set()
    thread.join()
    os.write(STDERR, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
